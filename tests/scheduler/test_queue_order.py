"""Which of two queues is served first, and which loses first: the rules, one after the other.

Every case is two sibling queues, ``x`` and ``y``, with what they have, in a cluster of 8 GPUs, and
says which of them comes first. Where a rule does not tell them apart the next one does.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.eviction_table import asks, cluster, node, queue, runs

from spinney.scheduler.actions.turns import Turns
from spinney.scheduler.queues.ledger import Ledger
from spinney.scheduler.queues.model import NOTHING, Amounts

NODE = node("n", 8, cpu=8, memory="8Gi")
GPU: Amounts = (1000, 0, 0)
CORE: Amounts = (0, 1000, 0)


def ledger(x: dict[str, Any], y: dict[str, Any], have: dict[str, int], **more: Any) -> Ledger:
    gangs = [runs(f"g{q}{i}", q, "n", 1, cpu=1) for q, n in have.items() for i in range(n)]
    gangs += [asks(f"w{q}", q, n, 1, cpu=1) for q, n in more.get("want", {}).items() if n]
    document = {"nodes": [NODE], "queues": [x, y, *more.get("others", [])], "gangs": gangs}
    return Ledger(cluster(document).cache.snapshot())


def q(name: str, quota: float = 0, **more: Any) -> dict[str, Any]:
    return queue(name, quota, **more)


CASES = [
    pytest.param(q("x", 2), q("y", 2), {"x": 2, "y": 1}, GPU, "y", id="smaller part of its due"),
    pytest.param(q("x", 4), q("y", 2), {"x": 2, "y": 2}, GPU, "x", id="larger due"),
    pytest.param(q("x", 2), q("y", 1), {"x": 1, "y": 1}, GPU, "x", id="within quota afterwards"),
    pytest.param(
        q("x", 1), q("y", 0, priority=200), {}, GPU, "x", id="quota before a higher priority"
    ),
    pytest.param(q("x"), q("y", priority=200), {"y": 2}, GPU, "y", id="priority before parts"),
    pytest.param(
        q("x", 2), q("y", 2, priority=50), {"x": 1}, GPU, "x", id="a low priority comes later"
    ),
    pytest.param(q("x", 2), q("y", 2), {}, GPU, "x", id="the elder of equals"),
    pytest.param(q("x", 2), q("y", 2), {"x": 1, "y": 1}, GPU, "x", id="the elder of equal parts"),
    pytest.param(
        q("x", 0, limit=0), q("y", 0), {}, GPU, "y", id="one that may have none comes later"
    ),
    pytest.param(
        q("x", -1), q("y", 2), {"x": 2, "y": 1}, GPU, "x", id="an unlimited quota is the cluster"
    ),
    pytest.param(q("x", -1, limit=4), q("y", 2), {"x": 3, "y": 1}, GPU, "y", id="up to its limit"),
    pytest.param(
        q("x", 4, cpu={"quota": 2}),
        q("y", 4, cpu={"quota": 8}),
        {"x": 1, "y": 2},
        CORE,
        "y",
        id="the largest part of any resource counts",
    ),
    pytest.param(
        q("x", 1, weight=0), q("y", 1, weight=0), {"x": 3, "y": 2}, GPU, "y", id="both beyond"
    ),
]


@pytest.mark.parametrize(("x", "y", "have", "head", "first"), CASES)
def test_order(
    x: dict[str, Any], y: dict[str, Any], have: dict[str, int], head: Amounts, first: str
) -> None:
    want = {"x": 8, "y": 8}
    found = ledger(x, y, have, want=want)

    assert min(("x", "y"), key=lambda name: found.order_key(name, head)) == first


def test_one_beyond_its_share_of_everything_comes_last_whatever_its_priority() -> None:
    everything = {"cpu": {"quota": 1, "weight": 0}, "memory": {"quota": 0, "weight": 0}}
    x = q("x", 1, weight=0, priority=200, **everything)
    found = ledger(x, q("y", 0, weight=0), {"x": 2}, want={"y": 1})

    beyond = {"x": (2000, 2000, 2000)}
    keys = {n: found.order_key(n, NOTHING, have=beyond.get(n)) for n in ("x", "y")}
    assert keys["y"] < keys["x"]
    some = found.order_key("x", NOTHING, have=(2000, 2000, 0))
    assert some < keys["x"], "beyond its share of some resources only"


def test_a_higher_priority_comes_before_a_smaller_part_of_what_is_due() -> None:
    found = ledger(q("x"), q("y", priority=200), {"y": 2}, want={"x": 8, "y": 2})

    assert found.entitled("x")[0] == found.entitled("y")[0] == 4000
    assert min(("x", "y"), key=lambda n: found.order_key(n, GPU)) == "y"


def test_what_happens_to_a_queue_between_turns_changes_whose_turn_it_is() -> None:
    gangs = [asks(f"{q}{i}", q, 1, 1) for q in ("x", "y") for i in range(2)]
    document = {"nodes": [NODE], "queues": [q("x", 4), q("y", 4)], "gangs": gangs}
    snapshot = cluster(document).cache.snapshot()
    found = Ledger(snapshot)
    turns = Turns(found)
    for gang in snapshot.gangs:
        turns.push(gang, 0, GPU)

    first = turns.take()
    found.enter_for("x", (3000, 0, 0), firm=False)
    second = turns.take()
    found.enter_for("x", (-3000, 0, 0), firm=False)
    found.enter_for("y", (2000, 0, 0), firm=False)
    third = turns.take()

    keys = [turn.gang.key.removeprefix("default/") for turn in (first, second, third) if turn]
    assert keys == ["x0", "y0", "x1"]


def test_a_small_gang_comes_before_one_that_would_take_most_of_the_share() -> None:
    found = ledger(q("x", 4), q("y", 4), {"x": 1, "y": 1}, want={"x": 8, "y": 8})

    large, small = found.order_key("x", (3000, 0, 0)), found.order_key("y", GPU)
    assert small < large


def test_what_was_taken_already_counts_when_victims_are_looked_for() -> None:
    found = ledger(q("x", 1), q("y", 1), {"x": 3, "y": 2}, want={"x": 1, "y": 1})

    def loser(left: dict[str, Amounts]) -> str:
        return max(("x", "y"), key=lambda n: found.order_key(n, NOTHING, have=left[n]))

    assert loser({"x": (3000, 3000, 0), "y": (2000, 2000, 0)}) == "x"
    assert loser({"x": (1000, 1000, 0), "y": (2000, 2000, 0)}) == "y"


def test_a_parent_is_compared_by_all_that_is_below_it() -> None:
    others = [queue("t", 8, parent="x"), queue("u", 8, parent="y")]
    found = ledger(q("x", 4), q("y", 4), {"t": 3, "u": 1}, others=others, want={"t": 1, "u": 1})

    assert min(("x", "y"), key=lambda n: found.order_key(n, GPU)) == "y"


def test_departments_are_compared_by_the_gang_that_would_be_next() -> None:
    queues = [queue("d", 4), queue("e", 4)]
    queues += [queue("t", 4, parent="d"), queue("u", 4, parent="d"), queue("v", 4, parent="e")]
    gangs = [asks("big", "t", 4, 1), asks("small", "u", 1, 1), asks("middle", "v", 2, 1)]
    report = cluster({"nodes": [NODE], "queues": queues, "gangs": gangs}).run(1)

    order = dict.fromkeys(b.gang.removeprefix("default/") for b in report.cycles[0].bindings)
    assert next(iter(order)) == "small"


@pytest.mark.parametrize(
    ("gangs", "order"),
    [
        pytest.param(
            [asks("a", "q", 1, 1), asks("b", "q", 1, 1, priority=10)], "b a", id="priority"
        ),
        pytest.param([asks("a", "q", 1, 1), asks("b", "q", 1, 1)], "a b", id="age"),
        pytest.param(
            [
                asks("b", "q", 1, 1, created="2026-01-01T00:00:00Z"),
                asks("a", "q", 1, 1, created="2026-01-01T00:00:00Z"),
            ],
            "a b",
            id="name",
        ),
        pytest.param(
            [asks("a", "q", 2, 1, minimum=1), asks("b", "q", 1, 1)],
            "a b a",
            id="a minimum before growth",
        ),
        pytest.param(
            [asks("a", "q", 2, 1, minimum=1, priority=10), asks("b", "q", 1, 1)],
            "a a b",
            id="growth of a higher priority before a minimum",
        ),
        pytest.param(
            [asks("a", "q", 3, 1, minimum=1), asks("b", "q", 2, 1, minimum=1)],
            "a b a b a",
            id="each grows once before one grows twice",
        ),
        pytest.param(
            [asks("a", "q", 1, 1), asks("b", "r", 1, 1), asks("c", "q", 1, 1)],
            "a b c",
            id="queues in turn",
        ),
        pytest.param(
            [asks("a", "q", 2, 1), asks("c", "q", 1, 1), asks("b", "r", 1, 1)],
            "a b c",
            id="of equal parts afterwards, the queue that has less so far",
        ),
    ],
)
def test_gangs_are_placed_in_turn(gangs: list[dict[str, Any]], order: str) -> None:
    document = {"nodes": [NODE], "queues": [queue("q"), queue("r")], "gangs": gangs}
    report = cluster(document).run(1)

    whole = {g["name"] for g in gangs if "minimum" not in g["groups"][0]}
    found: list[str] = []
    for binding in report.cycles[0].bindings:
        name = binding.gang.removeprefix("default/")
        if name not in whole or name not in found:
            found.append(name)
    assert " ".join(found) == order
