"""The work queue: one worker per key, nothing lost, failures spaced out."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spinney.kube.workqueue import RETRY_BACKOFF, RETRY_BURST, TokenBucket, WorkQueue
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine

R = TypeVar("R")


def simulate(main: Coroutine[object, object, R]) -> R:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)


def make() -> WorkQueue:
    return WorkQueue(rng=random.Random(1))


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_key_added_many_times_is_handed_out_once() -> None:
    async def main() -> None:
        queue = make()
        for key in ("a", "b", "a", "a"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        assert len(queue) == 0

    simulate(main())


def test_a_key_added_while_it_is_worked_on_comes_back_when_done() -> None:
    async def main() -> None:
        queue = make()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert len(queue) == 0

    simulate(main())


def test_of_several_times_for_a_key_the_earliest_counts() -> None:
    async def main() -> None:
        queue = make()
        queue.add_after("a", 5)
        queue.add_after("a", 2)
        queue.add_after("a", 9)
        await queue.get()
        assert now() == 2
        queue.done("a")
        await asyncio.sleep(20)
        assert len(queue) == 0

    simulate(main())


def test_waits_of_a_failing_key_double_to_a_cap_until_it_is_forgotten() -> None:
    async def main() -> None:
        queue = make()
        delays = [queue.retry("a") for _ in range(30)]
        whole = [min(RETRY_BACKOFF.cap_s, RETRY_BACKOFF.base_s * 2.0**n) for n in range(30)]
        assert all(w / 2 <= delay <= w for w, delay in zip(whole, delays, strict=True))
        queue.forget("a")
        assert queue.retry("a") <= RETRY_BACKOFF.base_s
        assert queue.retry("b", at_least_s=7) >= 7
        queue.close()

    simulate(main())


def test_retries_of_all_keys_together_have_a_rate() -> None:
    async def main() -> None:
        queue = make()
        for number in range(RETRY_BURST + 100):
            queue.retry(f"k{number}")
        await asyncio.sleep(1.0)
        assert RETRY_BURST <= len(queue) <= RETRY_BURST + 51
        await asyncio.sleep(2.0)
        assert len(queue) == RETRY_BURST + 100

    simulate(main())


def test_a_token_bucket_grants_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=3)
    waits = [bucket.reserve(100.0) for _ in range(5)]
    assert [round(wait, 6) for wait in waits] == [0, 0, 0, 0.1, 0.2]
    assert bucket.reserve(200.0) == 0


class QueueMachine(RuleBasedStateMachine):
    """Workers in any order against a model: what was asked for, what is being worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=SimulatedLoop)
        self.queue = self.runner.run(self._make())
        self.wanted: set[str] = set()
        self.later: dict[str, float] = {}
        self.working: set[str] = set()

    async def _make(self) -> WorkQueue:
        return make()

    def _pass(self, seconds: float) -> None:
        async def sleep() -> float:
            await asyncio.sleep(seconds)
            return now()

        at = self.runner.run(sleep())
        ripe = {key for key, when in self.later.items() if when <= at}
        self.wanted |= ripe
        for key in ripe:
            del self.later[key]

    async def _add_after(self, key: str, delay: float) -> float:
        self.queue.add_after(key, delay)
        return now() + delay

    @rule(key=st.sampled_from("abc"))
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.wanted.add(key)

    @rule(key=st.sampled_from("abc"), delay=st.sampled_from([0.5, 1.0, 4.0]))
    def add_later(self, key: str, delay: float) -> None:
        when = self.runner.run(self._add_after(key, delay))
        self.later[key] = min(when, self.later.get(key, when))

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    @precondition(lambda self: self.wanted - self.working)
    @rule()
    def take(self) -> None:
        async def get() -> str:
            async with asyncio.timeout(1e-9):
                return await self.queue.get()

        key = self.runner.run(get())
        assert key not in self.working, "two workers on one key"
        assert key in self.wanted, "work nobody asked for"
        self.wanted.discard(key)
        self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key)
        self.working.discard(key)

    @invariant()
    def ready_is_what_is_wanted_and_free(self) -> None:
        assert len(self.queue) == len(self.wanted - self.working)
        assert self.queue.waiting == len(self.later)

    def teardown(self) -> None:
        self._pass(10)
        while self.working or self.wanted:
            while self.wanted - self.working:
                self.take()
            for key in sorted(self.working):
                self.queue.done(key)
            self.working.clear()
        assert self.queue.idle
        self.runner.close()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
