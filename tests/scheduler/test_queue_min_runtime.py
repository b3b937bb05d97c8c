"""How long a gang is safe from displacement, by the queues around it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.eviction_table import Table, asks, node, queue, runs

from spinney.scheduler.queues.model import QueueInfo, QueueTree

TREE = [
    ("org", ""),
    ("d0", "org"),
    ("d1", "org"),
    ("a", "d0"),
    ("b", "d0"),
    ("c", "d1"),
]


def tree(**runtimes: tuple[float | None, float | None]) -> QueueTree:
    """Return the tree with minimum runtimes for preemption and reclaim by queue."""
    found = []
    for name, parent in TREE:
        preempt, reclaim = runtimes.get(name, (None, None))
        found.append(
            QueueInfo(name, parent, preempt_min_runtime_s=preempt, reclaim_min_runtime_s=reclaim)
        )
    return QueueTree(found)


PREEMPT = [
    pytest.param({}, "a", 0.0, id="nobody says"),
    pytest.param({"a": (5.0, None)}, "a", 5.0, id="its own"),
    pytest.param({"d0": (5.0, None)}, "a", 5.0, id="its parent's"),
    pytest.param({"org": (5.0, None)}, "a", 5.0, id="its grandparent's"),
    pytest.param({"a": (1.0, None), "d0": (5.0, None)}, "a", 1.0, id="its own wins"),
    pytest.param({"a": (0.0, None), "d0": (5.0, None)}, "a", 0.0, id="its own zero wins"),
    pytest.param({"d0": (1.0, None), "org": (5.0, None)}, "a", 1.0, id="the nearest wins"),
    pytest.param({"b": (5.0, None)}, "a", 0.0, id="not its sibling's"),
    pytest.param({"a": (None, 5.0)}, "a", 0.0, id="not what holds for reclaim"),
    pytest.param({"d1": (5.0, None)}, "a", 0.0, id="not its uncle's"),
]


@pytest.mark.parametrize(("given", "of", "want"), PREEMPT)
def test_safe_from_its_own_queue(given: dict[str, Any], of: str, want: float) -> None:
    assert tree(**given).min_runtime_s(of, reclaim=False) == want


RECLAIM = [
    pytest.param({}, "b", "a", 0.0, id="nobody says"),
    pytest.param({"a": (None, 5.0)}, "b", "a", 5.0, id="a sibling: its own"),
    pytest.param({"d0": (None, 5.0)}, "b", "a", 5.0, id="a sibling: its parent's"),
    pytest.param({"b": (None, 5.0)}, "b", "a", 0.0, id="not the taker's"),
    pytest.param({"d0": (None, 5.0)}, "c", "a", 5.0, id="a cousin: its side where they part"),
    pytest.param({"a": (None, 5.0)}, "c", "a", 0.0, id="a cousin: not below where they part"),
    pytest.param({"org": (None, 5.0)}, "c", "a", 5.0, id="a cousin: above where they part"),
    pytest.param(
        {"a": (None, 1.0), "d0": (None, 5.0)}, "c", "a", 5.0, id="a cousin: the higher one's"
    ),
    pytest.param(
        {"a": (None, 1.0), "d0": (None, 5.0)}, "b", "a", 1.0, id="a sibling: the lower one's"
    ),
    pytest.param(
        {"d0": (None, 0.0), "org": (None, 5.0)}, "c", "a", 0.0, id="zero where they part wins"
    ),
    pytest.param({"d1": (None, 5.0)}, "c", "a", 0.0, id="not the taker's side"),
    pytest.param({"a": (5.0, None)}, "b", "a", 0.0, id="not what holds for preemption"),
]


@pytest.mark.parametrize(("given", "taker", "victim", "want"), RECLAIM)
def test_safe_from_other_queues(
    given: dict[str, Any], taker: str, victim: str, want: float
) -> None:
    found = tree(**given)
    meeting = found.meet(taker, victim)

    assert meeting is not None
    assert found.min_runtime_s(meeting[1], reclaim=True) == want


YOUNG, OLD = "2026-01-01T23:59:30Z", "2026-01-01T23:58:30Z"
TABLE = Table(nodes=[node("n", 2)])
case = TABLE.case

case(
    "one that has not run for long is not reclaimed",
    "y: R n, R n; x: -",
    settle=1,
    config={"actions": ["allocate", "reclaim"]},
    queues=[queue("q0", weight=0, reclaimMinRuntime="10m"), queue("q1", 2)],
    gangs=[runs("y", "q0", "n n", started=YOUNG), asks("x", "q1")],
)
case(
    "one that has is",
    "y: E n, E n; x: P n",
    queues=[queue("q0", weight=0, reclaimMinRuntime="1m"), queue("q1", 2)],
    gangs=[runs("y", "q0", "n n", started=OLD), asks("x", "q1")],
)
case(
    "surplus is not protected",
    "y: R n, E n; x: P n",
    queues=[queue("q0", weight=0, reclaimMinRuntime="10m"), queue("q1", 2)],
    gangs=[runs("y", "q0", "n n", minimum=1, started=YOUNG), asks("x", "q1")],
)
case(
    "the older of two goes where the younger is protected",
    "old: E n; young: R n; x: P n",
    queues=[queue("q0", weight=0, reclaimMinRuntime="1m"), queue("q1", 2)],
    gangs=[
        runs("old", "q0", "n", started=OLD),
        runs("young", "q0", "n", started=YOUNG),
        asks("x", "q1"),
    ],
)
case(
    "one that has not run for long is not preempted",
    "low: R n, R n; x: -",
    config={"actions": ["allocate", "preempt"]},
    queues=[queue("q0", 2, preemptMinRuntime="10m")],
    gangs=[runs("low", "q0", "n n", started=YOUNG), asks("x", "q0", priority=75)],
)
case(
    "what holds for reclaim does not hold for preemption",
    "low: E n, E n; x: P n",
    queues=[queue("q0", 2, reclaimMinRuntime="10m")],
    gangs=[runs("low", "q0", "n n", started=YOUNG), asks("x", "q0", priority=75)],
)
case(
    "a gang that waits before it has others displaced",
    "low: R n; x: -",
    settle=7,
    finally_="low: 0; x: 1",
    nodes=[node("n", 1)],
    gangs=[
        runs("low", "", "n"),
        asks("x", "", priority=75, annotations={"kai.scheduler/preemption-delay": "3s"}),
    ],
)

test_cycles = TABLE.test()
