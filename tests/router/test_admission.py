"""Turns, shares and refusals: the queue as a pure thing, the gate in virtual time, both served."""

from __future__ import annotations

import asyncio
import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.fake_workers import fleet, until

from spinney.cmd.router import parse_share
from spinney.errors import BadInputError
from spinney.router.admission import (
    ENOUGH,
    MAX_TENANTS,
    Claim,
    FairQueue,
    Forecast,
    Gate,
    RefusedError,
)
from spinney.router.app import read_claim
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


SHARES = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0]), min_size=2, max_size=4)


@given(SHARES, st.data())
def test_under_overload_each_tenant_gets_work_in_proportion_to_its_share(shares, data):
    """Everyone always wants more; what each got then differs from its share by a request or two."""
    costs = {
        f"t{number}": data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
        for number, _ in enumerate(shares)
    }
    parts = dict(zip(costs, shares, strict=True))
    queue, given_to, pushed = FairQueue(10_000, parts), dict.fromkeys(costs, 0.0), 0
    for tenant, sizes in costs.items():
        for turn in range(200):
            queue.push((tenant, sizes[turn % len(sizes)]), tenant, 0, sizes[turn % len(sizes)])
            pushed += 1
    for _ in range(150):
        tenant, cost = queue.pop()
        given_to[tenant] += cost
    if len({tenant for tenant, _ in drain(queue)}) < len(costs):
        return  # Somebody wanted no more: there was no overload of all.
    for tenant, got in given_to.items():
        for other, had in given_to.items():
            slack = max(costs[tenant]) / parts[tenant] + max(costs[other]) / parts[other]
            assert abs(got / parts[tenant] - had / parts[other]) <= slack


@pytest.mark.parametrize("workers", [1, 4])
def test_an_overload_is_shared_out_in_virtual_time(workers):
    """Work for 10 s a second comes; a small tenant gets all it asks for, large ones share."""

    async def main():
        limits = Limits(max_waiting=60, queue_deadline_s=20, tenant_shares=(("gold", 2.0),))
        gate, done, refused = Gate(limits, lambda: workers), {}, {}
        rate = {"small": 0.1, "flood": 6.0, "gold": 3.0, "other": 3.0}

        async def one(tenant):
            try:
                async with gate.passed(Claim(tenant), 1):
                    await asyncio.sleep(1)
                    done[tenant] = done.get(tenant, 0) + 1
            except RefusedError as error:
                refused.setdefault(tenant, []).append((error.code, error.retry_after_s))

        async def arrive(tasks, tenant):
            for _ in range(round(200 * workers * rate[tenant])):
                tasks.create_task(one(tenant))
                await asyncio.sleep(1 / rate[tenant] / workers)

        async with asyncio.TaskGroup() as tasks:
            for tenant in rate:
                tasks.create_task(arrive(tasks, tenant))
        return done, refused, gate

    done, refused, gate = simulate(main)

    total = sum(done.values())
    assert (gate.running, gate.waiting) == (0, 0)
    assert total >= 200 * workers * 0.95, "workers are never idle"
    assert done["small"] >= 0.95 * 20 * workers
    rest = total - done["small"]
    for tenant, part in (("flood", 1), ("other", 1), ("gold", 2)):
        assert abs(done[tenant] / rest - part / 4) < 0.05, done
    assert set(refused) == {"flood", "other", "gold"} or set(refused) == set(done)
    told = [each for those in refused.values() for each in those]
    assert {code for code, _ in told} <= {"queue_full", "deadline"}
    assert all(1 <= wait_s <= 60 for _, wait_s in told)


def test_who_is_told_to_come_back_is_told_when_there_may_be_room():
    async def main():
        loop = asyncio.get_running_loop()
        gate, told = Gate(Limits(max_waiting=10, queue_deadline_s=1000), lambda: 1), []

        async def one():
            try:
                async with gate.passed(Claim(), 1):
                    await asyncio.sleep(3)
            except RefusedError as error:
                told.append((loop.time(), error.retry_after_s, error.status))

        async with asyncio.TaskGroup() as tasks:
            for number in range(60):
                tasks.create_task(one())
                await asyncio.sleep(0.01 if number < 11 else 2)
        return told

    told = simulate(main)
    later = [wait for at, wait, _ in told if at > 60]

    assert {status for *_, status in told} == {429}
    assert later, "some were refused when the pace was known"
    assert all(20 <= wait <= 40 for wait in later), "ten wait for three seconds each"


TARGETS = {"x-spinney-ttft-ms": "250.5"}


@pytest.mark.parametrize(
    ("headers", "default", "claim"),
    [
        ({}, None, Claim()),
        ({}, 800.0, Claim(ttft_ms=800.0)),
        (TARGETS, 800.0, Claim(ttft_ms=250.5)),
        ({"x-spinney-tenant": "acme", "authorization": "Bearer k"}, None, Claim("acme")),
        ({"x-spinney-priority": "-9"}, 800.0, Claim("", -9, 800.0)),
        ({"x-spinney-priority": "3"} | TARGETS, None, Claim("", 3, 250.5)),
    ],
)
def test_headers_come_before_the_routers_own_target(headers, default, claim):
    assert read_claim(headers, default) == claim


@pytest.mark.parametrize(
    "headers",
    [
        {"x-spinney-ttft-ms": bad} for bad in ("0", "-1", "nan", "inf", "soon", "")
    ] + [{"x-spinney-priority": bad} for bad in ("10", "-10", "1.5", "high")]
    + [{"x-spinney-tenant": "x" * 129}],
)  # fmt: skip
def test_headers_that_say_nothing_sensible_are_refused(headers):
    with pytest.raises(BadInputError, match="x-spinney"):
        read_claim(headers, None)


def test_keys_tell_tenants_apart_and_are_not_kept():
    one, other = (read_claim({"authorization": f"Bearer {key}"}, None).tenant for key in "ab")
    assert one != other
    assert "Bearer" not in one
    assert read_claim({"authorization": "Bearer a"}, None).tenant == one


@pytest.mark.parametrize("text", ["acme", "acme=", "=3", "acme=0", "acme=-1", "acme=x", "a=inf"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(BadInputError, match="NAME=PARTS"):
        parse_share(text)


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
            await until(lambda: world.router.gates.waiting().get("m", 0) == 1, "one waits")
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


def test_the_routers_own_target_holds_for_requests_that_say_nothing():
    async def main():
        async with fleet("d", **SLOW, max_running_per_worker=1, ttft_target_ms=20_000) as world:
            for _ in range(ENOUGH):
                assert (await world.ask(PROMPT)).status == 200
        async with fleet("d", **SLOW, max_running_per_worker=1, ttft_target_ms=150) as world:
            world.decode[0].hold = asyncio.Event()
            first = asyncio.ensure_future(world.ask(PROMPT))
            await until(lambda: bool(world.decode[0].seen), "one is served")
            late = await world.ask(PROMPT)
            asked = asyncio.ensure_future(world.ask(PROMPT, headers={"x-spinney-ttft-ms": "60000"}))
            await until(lambda: world.router.gates.waiting().get("m", 0) == 1, "it may wait")
            world.decode[0].hold.set()
            assert ((await first).status, (await asked).status) == (200, 200)
            assert (late.status, late.json["error"]["code"]) == (503, "deadline")
            assert late.headers["retry-after"].isdigit()

    asyncio.run(main())


def test_a_client_that_leaves_the_queue_leaves_nothing_there():
    async def main():
        async with fleet("d", **SLOW, max_running_per_worker=1) as world:
            world.decode[0].hold = asyncio.Event()
            first = asyncio.ensure_future(world.ask(PROMPT))
            await until(lambda: bool(world.decode[0].seen), "one is served")
            second = asyncio.ensure_future(world.ask(PROMPT))
            await until(lambda: world.router.gates.waiting().get("m", 0) == 1, "one waits")
            second.cancel()
            await until(lambda: world.router.gates.waiting().get("m", 0) == 0, "it is gone")
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
                        lambda: world.router.gates.waiting().get("m", 0) == waiting,  # noqa: B023
                        "it waits",
                    )
            world.decode[0].hold.set()
            await asyncio.gather(*asking)
            served = [seen.body.get("user") for seen in world.decode[0].seen[1:]]
            assert served.index("small") < 3
            assert [at for at, who in enumerate(served) if who == "small"][-1] < 6
            assert json.dumps(served).count("flood") == 8

    asyncio.run(main())
