"""What routers let in together: parts of a limit, shares over all, and what is lost or made up."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.cmd.router import parse_limit
from spinney.errors import BadInputError
from spinney.router.admission import Claim, FairQueue, Gate, RefusedError
from spinney.router.limits import Limits
from spinney.router.turns import (
    MANY_STANDINGS,
    MEMORY_S,
    MOST_STANDINGS,
    PATIENCE_S,
    Standing,
    Turns,
    quotas,
)
from spinney.sim.loop import SimulatedLoop

ROUTERS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 40), min_size=1)


def simulate(main):
    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        return runner.run(main())


# Parts


@given(st.integers(0, 100), ROUTERS, st.integers(0, 1000))
def test_parts_add_up_to_the_limit_and_nobody_who_wants_more_has_less(limit, wanted, turn):
    parts = quotas(limit, wanted, turn)

    assert sum(parts.values()) == limit
    assert parts == quotas(limit, dict(reversed(wanted.items())), turn), "whoever computes it"
    for one, other in ((a, b) for a in wanted for b in wanted):
        if parts[one] < wanted[one]:
            assert parts[other] <= parts[one] + 1
            assert parts[other] <= wanted[other] or limit >= sum(wanted.values())
    if limit >= sum(wanted.values()):
        assert all(parts[name] >= wanted[name] for name in wanted)


def test_what_cannot_be_divided_goes_round():
    had = Counter()
    for turn in range(30):
        had.update(quotas(1, {"a": 5, "b": 5, "c": 5}, turn))

    assert had == {"a": 10, "b": 10, "c": 10}


# Several routers in virtual time


class World:
    """Routers whose reports take *delay_s*, and are lost, doubled and late as *rng* says."""

    def __init__(self, names, limits, capacity=10**6, rng=None, delay_s=0.01):
        self.limits, self.rng, self.delay_s = limits, rng, delay_s
        self.cut = set()
        loop = asyncio.get_running_loop()
        self.turns = {name: Turns(name, limits, loop.time) for name in names}
        self.gates = {
            name: Gate(limits, lambda: capacity, turns.door("m"))
            for name, turns in self.turns.items()
        }
        self.running, self.most = Counter(), Counter()
        self.at = {name: Counter() for name in names}
        self.served = Counter()
        self.refused = Counter()
        self.seqs = {}

    async def run(self):
        async with asyncio.TaskGroup() as tasks:
            for name in self.turns:
                tasks.create_task(self._tell(tasks, name))

    async def _tell(self, tasks, name):
        seq, told, told_s = 0, None, 0.0
        while True:
            await asyncio.sleep(self.limits.share_every_s)
            now_s = asyncio.get_running_loop().time()
            report, seq = self.turns[name].report(now_s), seq + 1
            if report == told and now_s - told_s < 0.1:
                continue
            told, told_s = report, now_s
            for other in self.turns.keys() - {name} - self.cut if name not in self.cut else ():
                copies = 1
                if self.rng is not None:
                    copies = self.rng.choice((0, 1, 1, 1, 2))
                for _ in range(copies):
                    late_s = self.rng.uniform(0, 3) * self.delay_s if self.rng else self.delay_s
                    tasks.create_task(self._arrive(name, other, seq, report, late_s))

    async def _arrive(self, name, other, seq, report, late_s):
        await asyncio.sleep(late_s)
        if self.seqs.get((name, other), 0) < seq:
            self.seqs[name, other] = seq
            now_s = asyncio.get_running_loop().time()
            self.turns[other].heard(name, report, now_s)
            self.turns[other].fade(now_s)
            self.turns[other].look()

    def silent(self, name):
        """Have nothing of *name* heard any more, and its last word too old."""
        self.cut.add(name)
        for other, turns in self.turns.items():
            for gone in self.turns.keys() - {other} if other == name else (name,):
                turns.forget(gone)
            turns.look()

    async def ask(self, router, tenant, takes_s=1.0, cost=1.0):
        try:
            async with self.gates[router].passed(Claim(tenant), cost):
                self.running[tenant] += 1
                self.at[router][tenant] += 1
                self.most[tenant] = max(self.most[tenant], self.running[tenant])
                try:
                    await asyncio.sleep(takes_s)
                    self.served[router, tenant] += 1
                finally:
                    self.running[tenant] -= 1
                    self.at[router][tenant] -= 1
        except RefusedError:
            self.refused[router, tenant] += 1


def world_of(names, main, **options):
    """Return what *main* returns, run among routers *names* that have heard of each other."""

    async def around():
        limits = options.pop("limits")
        world = World(names, limits, **options)
        telling = asyncio.create_task(world.run())
        await asyncio.sleep(0.2)
        try:
            return await main(world)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    return simulate(around)


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_a_tenant_that_asks_all_routers_at_once_has_its_limit_once(limit, names):
    async def main(world):
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                for _ in range(12):
                    tasks.create_task(world.ask(name, "t"))
        return world

    limits = Limits(tenant_limits=(("t", limit),), queue_deadline_s=1000)
    world = world_of(names, main, limits=limits)

    assert world.most["t"] == limit, "no more, and all of it"
    assert world.served == {(name, "t"): 12 for name in names}, "each router had its turns"


def test_a_tenant_that_asks_one_router_has_its_whole_limit_there_soon():
    async def main(world):
        asking = [asyncio.create_task(world.ask("a", "t", 10.0)) for _ in range(12)]
        await asyncio.sleep(0)
        at_once = world.running["t"]
        await asyncio.sleep(3 * world.limits.settle_s)
        settled = world.running["t"]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return at_once, settled

    limits = Limits(tenant_limit=8, queue_deadline_s=1000)
    assert world_of("ab", main, limits=limits) == (4, 8)


def test_a_full_router_gives_way_to_another_that_is_asked():
    async def main(world):
        async def flood(router, until_s):
            async with asyncio.TaskGroup() as tasks:
                while asyncio.get_running_loop().time() < until_s:
                    tasks.create_task(world.ask(router, "t", 0.5))
                    await asyncio.sleep(0.05)

        began_s = asyncio.get_running_loop().time()
        first = asyncio.create_task(flood("a", began_s + 20))
        await asyncio.sleep(5)
        second = asyncio.create_task(flood("b", began_s + 20))
        await asyncio.sleep(5)
        seen = dict(world.at["a"]), dict(world.at["b"])
        await asyncio.gather(first, second)
        return seen, world.most

    limits = Limits(tenant_limit=6, queue_deadline_s=1000)
    seen, most = world_of("ab", main, limits=limits)

    assert most["t"] == 6
    assert all(at["t"] >= 2 for at in seen), seen


def test_the_room_at_workers_is_one_for_all_routers():
    async def main(world):
        most = 0
        async with asyncio.TaskGroup() as tasks:
            for name in "abc":
                for number in range(20):
                    tasks.create_task(world.ask(name, f"t{number}"))
            for _ in range(200):
                await asyncio.sleep(0.1)
                most = max(most, world.running.total())
        return most, world.served.total()

    limits = Limits(queue_deadline_s=1000)
    assert world_of("abc", main, limits=limits, capacity=5) == (5, 60)


def test_one_tenants_limit_holds_up_nobody_else():
    async def main(world):
        held = [asyncio.create_task(world.ask("a", "t", 50.0)) for _ in range(6)]
        await asyncio.sleep(1)
        began_s = asyncio.get_running_loop().time()
        await world.ask("a", "other", 0.5)
        took_s = asyncio.get_running_loop().time() - began_s
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        return took_s, world.gates["a"].running, world.gates["a"].waiting

    limits = Limits(tenant_limits=(("t", 2),), queue_deadline_s=1000)
    assert world_of("a", main, limits=limits) == (pytest.approx(0.5), 0, 0)


def test_a_router_that_is_cut_off_has_the_whole_limit_and_the_others_too():
    async def main(world):
        world.silent("a")
        asking = [asyncio.create_task(world.ask(name, "t", 5.0)) for name in "ab" for _ in range(9)]
        await asyncio.sleep(1)
        seen = world.at["a"]["t"], world.at["b"]["t"]
        await asyncio.gather(*asking)
        return seen

    limits = Limits(tenant_limit=4, queue_deadline_s=1000)
    assert world_of("ab", main, limits=limits) == (4, 4)


def test_a_router_that_claims_everything_keeps_nobody_out_for_good():
    async def main():
        loop = asyncio.get_running_loop()
        limits = Limits(tenant_limit=4, queue_deadline_s=1000)
        turns = Turns("me", limits, loop.time)
        gate = Gate(limits, lambda: 100, turns.door("m"))
        lie = {"m": {"t": Standing(1 << 20, 1 << 20, 0, 1e15), "u": Standing(99, 9, 0, 0)}}
        came = []

        async def one():
            async with gate.passed(Claim("t"), 1):
                came.append(loop.time())
                await asyncio.sleep(100)

        began_s = loop.time()
        turns.heard("liar", lie, began_s)
        asking = [asyncio.create_task(one()) for _ in range(4)]
        while loop.time() < began_s + 60:
            turns.heard("liar", lie, loop.time())
            await asyncio.sleep(0.5)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return [at_s - began_s for at_s in came]

    came = simulate(main)

    assert len(came) == 2, "its even part"
    assert Limits().queue_deadline_s > 2 * PATIENCE_S + 1, "before it is refused"
    assert all(PATIENCE_S <= at_s <= 2 * PATIENCE_S + 1 for at_s in came), came


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from("tu"), st.integers(1, 20), st.integers(0, 20)
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 6), st.integers(0, 2**20))
def test_whatever_is_lost_doubled_or_late_nothing_is_stuck_and_nothing_left(steps, limit, seed):
    async def main(world):
        async with asyncio.TaskGroup() as tasks:
            for router, tenant, takes, wait in steps:
                tasks.create_task(world.ask(router, tenant, takes / 10))
                await asyncio.sleep(wait / 100)
        assert world.served.total() == len(steps)
        # A message that is lost is 100 ms late here, which is more than routers wait for it.
        assert world.most["t"] <= limit + 2
        await asyncio.sleep(0.5)
        for turns in world.turns.values():
            assert turns.report(asyncio.get_running_loop().time()) == {}
            assert not turns._running
        return {
            name: {other: said.of("tenant", "t") for other, said in turns._peers.items()}
            for name, turns in world.turns.items()
        }

    limits = Limits(tenant_limits=(("t", limit),), queue_deadline_s=10_000)
    known = world_of("abc", main, limits=limits, rng=random.Random(seed))

    assert all(wish == (0, 0, 0) for heard in known.values() for wish in heard.values())


# Shares


def overloaded(limits, rates, seconds=25.0, capacity=4, heard=True):
    """Return what each tenant was served where *rates* says how often it asks each router."""

    async def main(world):
        # Each router has workers of its own size here: what is shared is who goes first.
        if not heard:
            for name in world.turns:
                world.silent(name)
        end_s = asyncio.get_running_loop().time() + seconds

        async def arrive(tasks, router, tenant, rate):
            while asyncio.get_running_loop().time() < end_s:
                tasks.create_task(world.ask(router, tenant, 0.2, 10.0))
                await asyncio.sleep(1 / rate)

        async with asyncio.TaskGroup() as tasks:
            for (router, tenant), rate in rates.items():
                tasks.create_task(arrive(tasks, router, tenant, rate))
        served = Counter()
        for (_, tenant), count in world.served.items():
            served[tenant] += count
        return served

    return world_of("ab", main, limits=limits, capacity=capacity)


BOTH = {("a", "twice"): 40, ("b", "twice"): 40, ("a", "once"): 40}


def test_who_asks_two_routers_has_no_more_than_who_asks_one():
    limits = Limits(max_waiting=50, queue_deadline_s=5)
    together = overloaded(limits, BOTH)
    apart = overloaded(limits, BOTH, heard=False)

    assert together["twice"] / together["once"] == pytest.approx(1.0, abs=0.15), together
    assert apart["twice"] / apart["once"] > 2, apart


def test_shares_hold_over_routers():
    limits = Limits(max_waiting=50, queue_deadline_s=5, tenant_shares=(("twice", 3.0),))
    served = overloaded(limits, BOTH)

    assert served["twice"] / served["once"] == pytest.approx(3.0, rel=0.15), served


def test_turns_had_elsewhere_come_off_and_are_forgotten():
    queue = FairQueue(1000)
    for number in range(60):
        queue.push(("x", number), "x", 0, 10)
        queue.push(("y", number), "y", 0, 10)
    queue.had_elsewhere("x", 100.0, 100.0)

    first = [queue.pop()[0] for _ in range(10)]
    assert first.count("y") >= 9

    queue.had_elsewhere("x", 1e9, 50.0)
    assert [queue.pop()[0] for _ in range(4)].count("x") <= 1
    queue.had_elsewhere("x", 0.0, 0.0)
    later = [queue.pop()[0] for _ in range(10)]
    assert 4 <= later.count("x") <= 6, "nothing is paid back once it is past"
    assert not queue._ahead


def test_a_router_that_makes_up_work_bends_shares_no_further_than_one_more_would():
    async def main():
        loop = asyncio.get_running_loop()
        turns = Turns("me", Limits(), loop.time)
        door = turns.door("m")
        turns.heard("liar", {}, 0.0)
        for second in range(10):
            door.let_in("t", 100.0)
            turns.heard("liar", {"m": {"u": Standing(1, 0, 0, 1e12 * (second + 1))}}, loop.time())
            assert door.elsewhere["u"].now(loop.time()) <= door.own.now(loop.time()) + 1e-6
            await asyncio.sleep(1)
        await asyncio.sleep(20 * MEMORY_S)
        turns.fade(loop.time())
        return door.elsewhere

    assert simulate(main) == {}


def test_of_many_tenants_the_busiest_are_told():
    async def main():
        turns = Turns("me", Limits(), asyncio.get_running_loop().time)
        door = turns.door("m")
        for number in range(MOST_STANDINGS + 100):
            door.let_in(f"t{number}", 1.0)
        for _ in range(3):
            door.let_in(f"t{MOST_STANDINGS + 50}", 1.0)
        told = turns.report(0.0)["m"]
        return len(told), told[f"t{MOST_STANDINGS + 50}"].running

    assert simulate(main) == (MOST_STANDINGS, 4)


@pytest.mark.parametrize(
    ("text", "want"), [("acme=8", ("acme", 8)), ("8", ("", 8)), ("a=b=1", ("a=b", 1))]
)
def test_a_limit_is_read(text, want):
    assert parse_limit(text) == want


@pytest.mark.parametrize("text", ["acme", "acme=", "=3", "acme=0", "-1", "1.5", "", "x=²"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(BadInputError, match="NAME=REQUESTS"):
        parse_limit(text)


def test_many_tenants_are_told_of_less_often_and_waited_for_longer():
    async def main():
        limits = Limits()
        turns = Turns("me", limits, asyncio.get_running_loop().time)
        door = turns.door("m")
        for number in range(10 * MANY_STANDINGS):
            door.let_in(f"t{number}", 1.0)
        first = turns.report(0.0)
        door.let_in("one more", 1.0)
        assert turns.report(limits.share_every_s) is first
        assert "one more" in turns.report(10 * limits.share_every_s)["m"]
        turns.heard("other", {"m": {"t0": Standing(0, 0, 0, 0.0)}}, 0.0)
        return turns._settle_s() / limits.settle_s

    assert simulate(main) == pytest.approx(11, abs=0.1)
