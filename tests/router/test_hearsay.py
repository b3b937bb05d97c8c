"""Workers that another router found dead are avoided at once, asked, and believed over its word."""

from __future__ import annotations

import asyncio
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.router.hearsay import MARGIN_S, REFUTED_S, Hearsay, may_be_avoided
from spinney.router.limits import Limits
from spinney.router.load import Faults
from spinney.router.workers import Role, Worker
from spinney.sim.loop import SimulatedLoop

LIMITS = Limits()
HEALTH_S = 0.05


def worker(name, role=Role.DECODE, *, ready=True, models=("m",)):
    return Worker(name, f"http://{name}", role, frozenset(models), ready=ready)


FOUR = tuple(worker(f"d{number}") for number in range(4))


class World:
    """One router's view of *workers*, of which some are dead, and what others say."""

    def __init__(self, workers=FOUR):
        self.workers, self.dead, self.asked = workers, set(), []
        self.faults = Faults(LIMITS)
        self.hearsay = Hearsay(self, self.faults, lambda: self.workers, LIMITS)

    async def answers(self, worker, within_s):
        self.asked.append(worker.name)
        await asyncio.sleep(within_s if worker.name in self.dead else HEALTH_S)
        return worker.name not in self.dead

    def hear(self, router, *failing):
        self.hearsay.heard(router, failing, asyncio.get_running_loop().time())

    @property
    def avoided(self):
        return set(self.faults.avoided(asyncio.get_running_loop().time()))

    @property
    def failing(self):
        return set(self.faults.failing(asyncio.get_running_loop().time()))


def simulate(main, world=None):
    async def around():
        made = world or World()
        running = asyncio.create_task(made.hearsay.run())
        await asyncio.sleep(0)
        try:
            return await main(made)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        return runner.run(around())


def test_a_dead_worker_is_avoided_at_once_and_then_for_what_was_found():
    async def main(world):
        world.dead = {"d1"}
        world.hear("a", "d1")
        assert world.avoided == {"d1"}
        assert world.failing == set(), "a word is not passed on"
        await asyncio.sleep(LIMITS.alive_deadline_s + 0.01)
        assert world.avoided == world.failing == {"d1"}
        assert world.asked == ["d1"]

    simulate(main)


def test_a_worker_that_answers_is_used_again_and_the_word_counts_no_more():
    async def main(world):
        world.hear("liar", "d1")
        await asyncio.sleep(HEALTH_S + 0.01)
        assert world.avoided == set()
        while asyncio.get_running_loop().time() < REFUTED_S - 1:
            world.hear("liar", "d1")
            assert world.avoided == set()
            await asyncio.sleep(0.5)
        assert world.asked == ["d1"]
        world.hear("another", "d1")
        assert world.avoided == {"d1"}, "it is another one's word"

    simulate(main)


def test_a_word_that_is_taken_back_and_given_again_is_a_new_one():
    async def main(world):
        world.hear("a", "d1")
        await asyncio.sleep(HEALTH_S + 0.01)
        world.hear("a")
        world.dead = {"d1"}
        world.hear("a", "d1")
        assert world.avoided == {"d1"}

    simulate(main)


def test_a_worker_that_stays_dead_stays_avoided_and_is_asked_no_more_than_that():
    async def main(world):
        world.dead = {"d1"}
        loop, unavoided = asyncio.get_running_loop(), 0
        world.hear("a", "d1")
        while loop.time() < 60:
            await asyncio.sleep(0.1)
            world.hear("a", "d1")
            unavoided += "d1" not in world.avoided
        assert unavoided == 0
        assert len(world.asked) <= 12, "failures are further and further apart"

    simulate(main)


def test_a_router_that_lies_of_all_takes_half_out_for_a_moment_and_none_that_works():
    async def main(world):
        names = [each.name for each in FOUR]
        world.hear("liar", *names)
        assert len(world.avoided) == 2
        await asyncio.sleep(HEALTH_S * 2)
        for _ in range(50):
            world.hear("liar", *names)
            assert world.avoided == set()
            await asyncio.sleep(0.1)
        assert sorted(world.asked) == names

    simulate(main)


def test_all_that_are_dead_are_found_dead_however_many():
    async def main(world):
        world.dead = {"d0", "d1", "d2"}
        world.hear("a", "d0", "d1", "d2")
        assert len(world.avoided) == 2
        await asyncio.sleep(LIMITS.alive_deadline_s + 0.01)
        assert world.failing == {"d0", "d1", "d2"}

    simulate(main)


def test_without_anybody_who_asks_a_word_passes():
    async def main():
        world = World()
        world.hear("a", "d1", "nobody")
        assert world.avoided == {"d1"}
        await asyncio.sleep(LIMITS.alive_deadline_s + MARGIN_S + 0.01)
        assert world.avoided == set()

    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        runner.run(main())


def test_a_worker_that_serves_a_request_is_believed():
    async def main(world):
        world.dead = {"d1"}
        world.hear("a", "d1")
        world.faults.succeeded("d1")
        assert world.avoided == set()

    simulate(main)


@pytest.mark.parametrize(
    ("workers", "avoided", "want"),
    [
        ((worker("d0"),), (), False),
        ((worker("d0"), worker("d1")), (), True),
        ((worker("d0"), worker("d1")), ("d1",), False),
        ((worker("d0"), worker("d1", ready=False)), (), False),
        ((worker("d0"), worker("p0", Role.PREFILL), worker("p1", Role.PREFILL)), (), False),
        ((worker("d0"), worker("b0", Role.BOTH)), (), True),
        ((worker("d0"), worker("d1", models=("other",))), (), False),
        ((worker("d0", models=("m", "n")), worker("d1"), worker("d2")), (), False),
        ((worker("d0", models=()), worker("d1")), (), True),
    ],
)
def test_at_most_half_of_those_that_do_the_same_are_avoided_on_a_word(workers, avoided, want):
    assert may_be_avoided(workers[0], workers, frozenset(avoided)) is want


WORDS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sets(st.sampled_from(["d0", "d1", "d2", "d3", "x"])),
        st.integers(0, 20),
    ),
    max_size=20,
)


@given(WORDS, st.sets(st.sampled_from(["d0", "d1", "d2", "d3"])))
def test_whatever_is_said_in_the_end_only_dead_workers_are_avoided(words, dead):
    async def main(world):
        world.dead = dead
        for router, failing, wait in words:
            world.hear(router, *failing)
            assert len(world.avoided - dead) <= 2, "never more than half on a word"
            await asyncio.sleep(wait / 10)
            assert world.failing <= dead
        world.hear("a")
        world.hear("b")
        await asyncio.sleep(LIMITS.alive_deadline_s + MARGIN_S + 0.01)
        assert world.avoided <= dead
        await asyncio.sleep(LIMITS.avoid_most_s + 1)
        assert world.avoided == set()
        assert not world.hearsay._pending
        assert not world.hearsay._refuted

    simulate(main)
