import asyncio
import functools
import itertools
import random
import time

import pytest

from spinney.sim import loop as simulated
from spinney.sim.loop import DeadlockError, LivelockError, SimulatedLoop


def run(main, seed=None):
    rng = None if seed is None else random.Random(seed)
    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, rng)) as runner:
        return runner.run(main)


async def trace(workers):
    loop = asyncio.get_running_loop()
    seen = []

    async def worker(name):
        for step in range(3):
            await asyncio.sleep(1.5)
            seen.append((loop.time(), name, step))

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for name in range(workers):
            group.create_task(worker(name))
    return seen


def test_time_jumps_and_does_not_pass():
    began = time.perf_counter()

    seen = run(trace(1))

    assert [at for at, _, _ in seen] == [1.5, 3.0, 4.5]
    assert time.perf_counter() - began < 1


def test_timers_of_one_instant_fire_in_the_order_they_were_set():
    seen = run(trace(50))

    assert [name for at, name, _ in seen if at == 1.5] == list(range(50))


def test_a_seed_gives_one_order_and_another_seed_another():
    first, again, other = (run(trace(50), seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_a_timeout_fires_in_simulated_time():
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == 3600


def test_a_deadlock_is_reported_and_not_waited_for():
    async def main():
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="no timer is set"):
        run(main())


def test_threads_are_refused():
    async def main():
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="threads cannot run"):
        run(main())


@pytest.mark.parametrize("step_s", [0.0, 1e-9])
def test_tasks_that_keep_time_from_passing_are_an_error(step_s, monkeypatch):
    monkeypatch.setattr(simulated, "MOST_TURNS", 1000)

    async def spin():
        for _ in itertools.count():
            await asyncio.sleep(step_s)

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(spin())

    with pytest.raises(LivelockError, match="no progress at"):
        run(main())


def test_many_turns_at_one_instant_are_no_error_when_time_passes_then(monkeypatch):
    monkeypatch.setattr(simulated, "MOST_TURNS", 1000)

    async def main():
        for _ in range(10):
            for _ in range(500):
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    run(main())
