"""Turns, shares and refusals: the queue as a pure thing, the gate in virtual time, both served."""

from __future__ import annotations

import asyncio
import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.fake_workers import fleet, until

from spinney.router.admission import (
    ENOUGH,
    MAX_TENANTS,
    Claim,
    FairQueue,
    Forecast,
    Gate,
    RefusedError,
)
from spinney.router.limits import Limits
from spinney.sim.loop import SimulatedLoop


def drain(queue):
    taken = []
    while len(queue):
        taken.append(queue.pop())
    return taken


def test_tenants_take_turns_whoever_asked_for_more():
    queue = FairQueue(1000)
    for number in range(90):
        queue.push(("flood", number), "flood", 0, 10)
    for number in range(10):
        queue.push(("small", number), "small", 0, 10)

    first = drain(queue)[:20]

    assert [item for item in first if item[0] == "small"] == [("small", n) for n in range(10)]


def test_shares_are_of_cost_and_not_of_requests():
    queue = FairQueue(1000)
    for number in range(40):
        queue.push(("long", number), "long", 0, 30)
        queue.push(("short", number), "short", 0, 10)

    first = [name for name, _ in drain(queue)[:20]]

    assert first.count("short") == 15


def test_higher_priorities_go_first_and_fill_the_queue_first():
    queue = FairQueue(3)
    for number in range(3):
        assert queue.push(f"low{number}", "t", 0, 1) is None
    assert queue.push("high", "u", 5, 1) == "low2"
    assert queue.push("lower", "v", -1, 1) == "lower"
    assert drain(queue) == ["high", "low0", "low1"]
    assert queue.pop() is None


def test_a_full_queue_gives_up_the_latest_of_the_longest_line():
    queue = FairQueue(4)
    for number in range(4):
        queue.push(f"flood{number}", "flood", 0, 1)

    assert queue.push("other", "other", 0, 1) == "flood3"
    assert queue.push("flood4", "flood", 0, 1) == "flood4"
    assert "other" in drain(queue)[:2]


def test_who_was_away_has_not_saved_up_turns():
    queue = FairQueue(1000)
    for number in range(100):
        queue.push(("a", number), "a", 0, 1)
    for _ in range(50):
        queue.pop()
    for number in range(50):
        queue.push(("b", number), "b", 0, 1)

    assert 4 <= [name for name, _ in drain(queue)[:10]].count("a") <= 6


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "pop", "drop"]),
        st.sampled_from("abc"),
        st.integers(-1, 1),
        st.integers(1, 50),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 8))
def test_everything_comes_out_once_and_never_more_wait_than_may(steps, capacity):
    queue, waiting, number = FairQueue(capacity), {}, 0
    for what, tenant, priority, cost in steps:
        if what == "push":
            number += 1
            item = (number,)
            waiting[item] = (tenant, priority)
            out = queue.push(item, tenant, priority, cost)
            if out is not None:
                assert len(waiting) == capacity + 1
                assert waiting.pop(out)[1] <= priority
        elif what == "pop":
            out = queue.pop()
            assert (out is None) == (not waiting)
            if out is not None:
                assert waiting[out][1] == max(p for _, p in waiting.values())
                mine = [i for i, at in waiting.items() if at == waiting[out]]
                assert out == min(mine), "a tenant's own requests keep their order"
                del waiting[out]
        elif waiting:
            item = next(iter(waiting))
            assert queue.discard(item, *waiting.pop(item))
            assert not queue.discard(item, "a", 0)
        assert len(queue) == len(waiting) <= capacity


def test_made_up_tenants_do_not_fill_the_memory():
    queue = FairQueue(10)
    for number in range(3 * MAX_TENANTS):
        queue.push("x", f"t{number}", 0, 1e9)
        queue.pop()

    assert len(queue._had) <= MAX_TENANTS


# Forecasts


def test_a_forecast_follows_a_straight_line_and_its_changes():
    forecast = Forecast()
    assert forecast.ms(10) is None
    for number in range(ENOUGH):
        forecast.observe(number * 10, 5 + number * 20)
    assert forecast.ms(100) == pytest.approx(205)
    for number in range(400):
        forecast.observe(number % 50, 50 + 4 * (number % 50))
    assert forecast.ms(100) == pytest.approx(450, rel=0.01)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=ENOUGH, max_size=50),
    st.floats(0, 1e6),
)
def test_a_forecast_is_never_negative_and_longer_never_takes_less(seen, cost):
    forecast = Forecast()
    for each in seen:
        forecast.observe(*each)

    assert 0 <= forecast.ms(cost) <= forecast.ms(cost + 1000) + 1e-3


# The gate


def simulate(main):
    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        return runner.run(main())


def test_only_so_many_run_and_the_rest_have_their_turns():
    async def main():
        gate, most, order = Gate(Limits(), lambda: 2), [0], []

        async def one(number):
            async with gate.passed(Claim(), 1):
                most[0] = max(most[0], gate.running)
                order.append(number)
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as tasks:
            for number in range(9):
                tasks.create_task(one(number))
        return most[0], order, gate.running, gate.waiting

    assert simulate(main) == (2, list(range(9)), 0, 0)


def test_who_would_be_too_late_is_told_at_once_and_who_is_too_late_then():
    async def main():
        loop = asyncio.get_running_loop()
        gate, told = Gate(Limits(queue_deadline_s=100), lambda: 1), {}

        async def one(name, claim, at_s):
            await asyncio.sleep(at_s)
            try:
                async with gate.passed(claim, 1):
                    await asyncio.sleep(2)
            except RefusedError as error:
                told[name] = round(loop.time() - at_s, 3), error.status, error.code

        async with asyncio.TaskGroup() as tasks:
            for number in range(9):
                tasks.create_task(one(f"r{number}", Claim(), 0))
            tasks.create_task(one("unlucky", Claim(ttft_ms=500), 0.1))
            tasks.create_task(one("hopeless", Claim(ttft_ms=500), 7))
            tasks.create_task(one("patient", Claim(ttft_ms=60_000), 7))
        return told, gate.running, gate.waiting

    told, running, waiting = simulate(main)

    assert told == {"unlucky": (0.5, 503, "deadline"), "hopeless": (0.0, 503, "deadline")}
    assert (running, waiting) == (0, 0)


def test_room_that_comes_while_they_wait_is_used():
    async def main():
        room = [0]
        gate = Gate(Limits(), lambda: room[0])

        async def one():
            async with gate.passed(Claim(), 1):
                pass

        task = asyncio.create_task(one())
        await asyncio.sleep(1)
        assert (gate.waiting, task.done()) == (1, False)
        room[0] = 1
        gate.look()
        await task
        return gate.running, gate.waiting

    assert simulate(main) == (0, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 10), st.integers(0, 15), st.integers(0, 40)),
        max_size=12,
    )
)
def test_whoever_leaves_whenever_the_gate_is_empty_in_the_end(clients):
    async def main():
        gate = Gate(Limits(max_waiting=3, queue_deadline_s=2.0), lambda: 2)

        async def one(start, work, leave, target):
            await asyncio.sleep(start / 10)
            ttft_ms = target * 100 if target else None
            try:
                async with asyncio.timeout(leave / 10 if leave else None):
                    async with gate.passed(Claim(str(work), leave % 2, ttft_ms), work):
                        assert gate.running <= 2
                        await asyncio.sleep(work / 10)
            except (RefusedError, TimeoutError):
                pass

        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(one(*client))
        return gate.running, gate.waiting

    assert simulate(main) == (0, 0)


# Served

PROMPT = {"prompt": "Once upon a time", "max_tokens": 3, "stream": True}
SLOW = {"first_byte_deadline_s": 20.0, "idle_stream_deadline_s": 20.0, "prefill_deadline_s": 20.0}


def test_requests_beyond_the_queue_are_refused_with_429():
    async def main():
        async with fleet("d", **SLOW, max_running_per_worker=1, max_waiting=1) as world:
            world.decode[0].hold = asyncio.Event()
            asking = [asyncio.ensure_future(world.ask(PROMPT))]
            await until(lambda: bool(world.decode[0].seen), "one is served")
            asking.append(asyncio.ensure_future(world.ask(PROMPT)))
            await until(lambda: world.router.serving.waiting("m") == 1, "one waits")
            refused = await world.ask(PROMPT)
            world.decode[0].hold.set()
            said = await asyncio.gather(*asking)
            assert [each.status for each in said] == [200, 200]
            assert (refused.status, refused.json["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            assert await world.metric("refusals_total", reason="queue_full", tenant="") == 1
            assert world.idle()

    asyncio.run(main())


def test_a_target_that_cannot_be_met_is_refused_and_one_that_can_is_served():
    async def main():
        async with fleet("d", **SLOW, max_running_per_worker=1) as world:
            for _ in range(ENOUGH):
                assert (await world.ask(PROMPT)).status == 200
            early = await world.ask(PROMPT, headers={"x-spinney-ttft-ms": "0.001"})
            fine = await world.ask(PROMPT, headers={"x-spinney-ttft-ms": "20000"})
            wrong = await world.ask(PROMPT, headers={"x-spinney-ttft-ms": "soon"})
            assert (early.status, early.json["error"]["code"]) == (503, "deadline")
            assert (fine.status, wrong.status) == (200, 400)
            assert "x-spinney-ttft-ms" in wrong.json["error"]["message"]

    asyncio.run(main())


def test_a_client_that_leaves_the_queue_leaves_nothing_there():
    async def main():
        async with fleet("d", **SLOW, max_running_per_worker=1) as world:
            world.decode[0].hold = asyncio.Event()
            first = asyncio.ensure_future(world.ask(PROMPT))
            await until(lambda: bool(world.decode[0].seen), "one is served")
            second = asyncio.ensure_future(world.ask(PROMPT))
            await until(lambda: world.router.serving.waiting("m") == 1, "one waits")
            second.cancel()
            await until(lambda: world.router.serving.waiting("m") == 0, "it is gone")
            world.decode[0].hold.set()
            assert (await first).status == 200
            assert len(world.decode[0].seen) == 1

    asyncio.run(main())


def test_tenants_share_a_busy_worker():
    async def main():
        async with fleet("d", **SLOW, max_running_per_worker=1) as world:
            world.decode[0].hold = asyncio.Event()
            first = asyncio.ensure_future(world.ask(PROMPT))
            await until(lambda: bool(world.decode[0].seen), "one is served")
            asking = [first]
            for tenant, count in (("flood", 8), ("small", 2)):
                for number in range(count):
                    headers = {"authorization": f"Bearer {tenant}"}
                    if number % 2:
                        headers = {"x-spinney-tenant": tenant}
                    body = PROMPT | {"user": tenant}
                    waiting = len(asking)
                    asking.append(asyncio.ensure_future(world.ask(body, headers=headers)))
                    await until(
                        lambda: world.router.serving.waiting("m") == waiting,  # noqa: B023
                        "it waits",
                    )
            world.decode[0].hold.set()
            await asyncio.gather(*asking)
            served = [seen.body.get("user") for seen in world.decode[0].seen[1:]]
            assert served.index("small") < 3
            assert [at for at, who in enumerate(served) if who == "small"][-1] < 6
            assert json.dumps(served).count("flood") == 8

    asyncio.run(main())
