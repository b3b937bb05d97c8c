"""Who has to leave for whom, case by case, and that it stays so in the rounds that follow."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.test_queue_table import gang, node, queue
from tests.scheduler.world import World

from spinney.scheduler.config import SchedulerConfig

CASES: list[Any] = []


def case(
    sentence: str,
    evicted: set[str],
    running: dict[str, int],
    *,
    reasons: dict[str, str] | None = None,
    moved: dict[str, str] | None = None,
    now_s: float = 0,
    **doc: Any,
) -> None:
    CASES.append(
        pytest.param(doc, evicted, running, reasons or {}, moved or {}, now_s, id=sentence)
    )


def tree(gang_name: str, queue_name: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": gang_name, "queue": queue_name, "groups": list(groups), **more}


# Reclaim

case(
    "a queue takes back its quota from one that is over its own",
    {"y-p-0"},
    {"x": 1, "y": 0, "z": 1},
    nodes=[node("n", 2)],
    queues=[queue("q0", 1, weight=0), queue("q1", 1, weight=0)],
    gangs=[
        gang("z", 0, 1, "q0", on=["n"]),
        gang("y", 0, 1, "q0", on=["n"]),
        gang("x", 1, 1, "q1"),
    ],
)
case(
    "a queue that has its share already takes nothing",
    set(),
    {"x": 1, "y": 1, "w": 0},
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        gang("x", 0, 1, "q0", on=["n"]),
        gang("y", 0, 1, "q1", on=["n"]),
        gang("w", 1, 1, "q1"),
    ],
)
case(
    "a gang that is not preemptible is no victim",
    set(),
    {"y": 2, "x": 0},
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        gang("y", 0, 1, "q0", on=["n", "n"], preemptible=False),
        gang("x", 1, 1, "q1"),
    ],
)
case(
    "the label makes a gang of high priority preemptible",
    {"y-p-0", "y-p-1"},
    {"y": 0, "x": 1},
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        gang("y", 0, 1, "q0", on=["n", "n"], priority=125, preemptible=True),
        gang("x", 1, 1, "q1"),
    ],
)
case(
    "of two gangs the one that suffices alone goes, and no other",
    {"a-p-0", "a-p-1", "a-p-2"},
    {"a": 0, "b": 1, "c": 3},
    nodes=[node(f"n{i}", 1) for i in range(4)],
    queues=[queue("q0", 1, weight=0), queue("q1", 2, weight=1)],
    gangs=[
        gang("a", 0, 1, "q0", on=["n0", "n1", "n2"]),
        gang("b", 0, 1, "q0", on=["n3"]),
        gang("c", 3, 1, "q1"),
    ],
)
case(
    "surplus is shared out: the youngest of the richer queue goes",
    {"c-p-0"},
    {"a": 1, "b": 1, "c": 0, "d": 1, "e": 0},
    nodes=[node("n", 8)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        gang("a", 0, 1, "q0", on=["n"]),
        gang("b", 0, 3, "q0", on=["n"]),
        gang("c", 0, 4, "q0", on=["n"]),
        gang("d", 1, 4, "q1"),
        gang("e", 1, 4, "q1"),
    ],
)
case(
    "an elastic gang gives up its youngest pods and keeps its minimum",
    {"y-p-2", "y-p-3"},
    {"y": 2, "x": 2},
    nodes=[node("n", 4)],
    queues=[queue("q0", 2), queue("q1", 2)],
    gangs=[gang("y", 0, 1, "q0", on=["n"] * 4, minimum=1), gang("x", 2, 1, "q1")],
)
case(
    "where surplus is not enough the whole gang goes",
    {f"y-p-{i}" for i in range(4)},
    {"y": 0, "x": 4},
    nodes=[node("n", 4)],
    queues=[queue("q0", 0, weight=0), queue("q1", 4)],
    gangs=[gang("y", 0, 1, "q0", on=["n"] * 4, minimum=1), gang("x", 4, 1, "q1")],
)
case(
    "a department takes back from a department, whatever their teams have",
    {"y-p-0"},
    {"y": 0, "x": 1, "z": 1},
    nodes=[node("n", 2)],
    queues=[
        queue("d0", 1, weight=0),
        queue("d1", 1, weight=0),
        queue("t0", 2, parent="d0"),
        queue("t1", 2, parent="d1"),
    ],
    gangs=[
        gang("z", 0, 1, "t0", on=["n"]),
        gang("y", 0, 1, "t0", on=["n"]),
        gang("x", 1, 1, "t1"),
    ],
)
case(
    "teams of one department take back from each other while it is full",
    {"y-p-0"},
    {"y": 0, "x": 1, "z": 1, "w": 2},
    nodes=[node("n", 4)],
    queues=[
        queue("d0", 2, weight=0),
        queue("d1", 2, weight=0),
        queue("t0", 1, parent="d0"),
        queue("t1", 1, parent="d0"),
        queue("t2", 2, parent="d1"),
    ],
    gangs=[
        gang("w", 0, 1, "t2", on=["n", "n"]),
        gang("z", 0, 1, "t0", on=["n"]),
        gang("y", 0, 1, "t0", on=["n"]),
        gang("x", 1, 1, "t1"),
    ],
)
case(
    "nothing is evicted when it would not place the whole gang",
    set(),
    {"y": 2, "f": 1, "x": 0},
    nodes=[node("n", 2), node("m", 1)],
    queues=[queue("q0", 0, weight=0), queue("q1", 3)],
    gangs=[
        gang("y", 0, 1, "q0", on=["n", "n"]),
        gang("f", 0, 1, "", on=["m"], preemptible=False),
        gang("x", 3, 1, "q1"),
    ],
)
case(
    "victims are chosen in the rack that the gang needs",
    {"c-p-0", "d-p-0"},
    {"a": 1, "b": 1, "c": 0, "d": 0, "x": 2},
    nodes=[node("n0", 1, labels={"rack": "r1"}), node("n1", 1, labels={"rack": "r2"})]
    + [node(f"n{i}", 1, labels={"rack": f"r{i // 2 + 2}"}) for i in range(2, 4)],
    levels=["rack"],
    queues=[queue("q0", 1, weight=0), queue("q1", 3)],
    gangs=[
        gang("c", 0, 1, "q0", on=["n2"]),
        gang("d", 0, 1, "q0", on=["n3"]),
        gang("a", 0, 1, "q0", on=["n0"]),
        gang("b", 0, 1, "q0", on=["n1"]),
        gang("x", 2, 1, "q1", required="rack"),
    ],
)
case(
    "a gang is safe from other queues for its minimum run time",
    set(),
    {"y": 2, "x": 0},
    now_s=30,
    nodes=[node("n", 2)],
    queues=[queue("q0", 0, weight=0, reclaimMinRuntime="1m"), queue("q1", 2)],
    gangs=[
        gang("y", 0, 1, "q0", on=["n", "n"], started="2026-01-02T00:00:00Z"),
        gang("x", 1, 1, "q1"),
    ],
)
case(
    "after its minimum run time it is not",
    {"y-p-0", "y-p-1"},
    {"y": 0, "x": 1},
    now_s=61,
    nodes=[node("n", 2)],
    queues=[queue("q0", 0, weight=0, reclaimMinRuntime="1m"), queue("q1", 2)],
    gangs=[
        gang("y", 0, 1, "q0", on=["n", "n"], started="2026-01-02T00:00:00Z"),
        gang("x", 1, 1, "q1"),
    ],
)
case(
    "the minimum run time protects a minimum, not what grew beyond it",
    {"y-p-1"},
    {"y": 1, "x": 1},
    now_s=30,
    nodes=[node("n", 2)],
    queues=[queue("q0", 0, weight=0, reclaimMinRuntime="1m"), queue("q1", 2)],
    gangs=[
        gang("y", 0, 1, "q0", on=["n", "n"], minimum=1, started="2026-01-02T00:00:00Z"),
        gang("x", 1, 1, "q1"),
    ],
)

# Preemption

case(
    "a gang displaces one of lower priority of its own queue",
    {"low-p-0"},
    {"low": 0, "high": 1},
    nodes=[node("n", 1)],
    queues=[queue("q", 1)],
    gangs=[gang("low", 0, 1, "q", on=["n"]), gang("high", 1, 1, "q", priority=50)],
)
case(
    "without queues all gangs are in one",
    {"low-p-0"},
    {"low": 0, "high": 1},
    nodes=[node("n", 1)],
    gangs=[gang("low", 0, 1, on=["n"]), gang("high", 1, 1, priority=50)],
)
case(
    "one of equal priority is left alone",
    set(),
    {"low": 1, "high": 0},
    nodes=[node("n", 1)],
    gangs=[gang("low", 0, 1, on=["n"], priority=50), gang("high", 1, 1, priority=50)],
)
case(
    "one of another queue is not preempted",
    set(),
    {"low": 1, "high": 0},
    nodes=[node("n", 1)],
    queues=[queue("q0", 1), queue("q1", 0)],
    gangs=[gang("low", 0, 1, "q0", on=["n"]), gang("high", 1, 1, "q1", priority=50)],
)
case(
    "what is not preemptible stays, whatever the priority of who waits",
    set(),
    {"low": 1, "high": 0},
    nodes=[node("n", 1)],
    gangs=[gang("low", 0, 1, on=["n"], priority=100), gang("high", 1, 1, priority=125)],
)
case(
    "the lowest priority goes first",
    {"lowest-p-0"},
    {"lowest": 0, "low": 1, "high": 1},
    nodes=[node("n", 2)],
    gangs=[
        gang("lowest", 0, 1, on=["n"], priority=1),
        gang("low", 0, 1, on=["n"], priority=2),
        gang("high", 1, 1, priority=50),
    ],
)
case(
    "of one priority the youngest goes",
    {"young-p-0"},
    {"old": 1, "young": 0, "high": 1},
    nodes=[node("n", 2)],
    gangs=[
        gang("old", 0, 1, on=["n"]),
        gang("young", 0, 1, on=["n"]),
        gang("high", 1, 1, priority=50),
    ],
)
case(
    "surplus goes before minimums",
    {"elastic-p-1"},
    {"elastic": 1, "young": 1, "high": 1},
    nodes=[node("n", 3)],
    gangs=[
        gang("elastic", 0, 1, on=["n", "n"], minimum=1),
        gang("young", 0, 1, on=["n"]),
        gang("high", 1, 1, priority=50),
    ],
)
case(
    "who goes comes back elsewhere where there is room",
    {"e-p-0", "e-p-1"},
    {"e": 1, "high": 1},
    moved={"e-p-0": "m"},
    nodes=[node("n", 2), node("m", 1)],
    gangs=[
        gang("e", 0, 1, on=["n", "n"], minimum=1),
        gang("high", 1, 2, priority=125),
    ],
)
case(
    "preemption makes room below the queue's limit",
    {"low-p-0"},
    {"low": 0, "high": 1},
    nodes=[node("n", 4)],
    queues=[queue("q", 1, 1)],
    gangs=[gang("low", 0, 1, "q", on=["n"]), gang("high", 1, 1, "q", priority=50)],
)
case(
    "a quota is not widened by preemption",
    set(),
    {"low": 1, "high": 0},
    reasons={"high": "no quota left"},
    nodes=[node("n", 1)],
    queues=[queue("q", 0)],
    gangs=[gang("low", 0, 1, "q", on=["n"]), gang("high", 1, 1, "q", priority=125)],
)
case(
    "both groups of a gang go, never one",
    {"low-a-0", "low-b-0"},
    {"low": 0, "high": 1},
    nodes=[node("n", 1), node("m", 1)],
    gangs=[
        tree(
            "low",
            "",
            {"name": "a", "pods": 0, "gpus": 1, "on": ["n"]},
            {"name": "b", "pods": 0, "gpus": 1, "on": ["m"]},
        ),
        gang("high", 1, 1, priority=50),
    ],
)

# Consolidation

case(
    "a gang is moved when that makes room for another",
    {"b-p-0"},
    {"a": 1, "b": 1, "x": 1},
    moved={"b-p-0": "n"},
    nodes=[node("n", 4), node("m", 4)],
    gangs=[gang("a", 0, 3, on=["n"]), gang("b", 0, 1, on=["m"]), gang("x", 1, 4)],
)
case(
    "a gang of two groups gets the floors of both by a move",
    {"b-p-0"},
    {"a": 1, "b": 1, "x": 2},
    moved={"b-p-0": "n"},
    nodes=[node("n", 4), node("m", 4)],
    gangs=[
        gang("a", 0, 3, on=["n"]),
        gang("b", 0, 1, on=["m"]),
        tree(
            "x",
            "",
            {"name": "s0", "pods": 3, "gpus": 2, "minimum": 1},
            {"name": "s1", "pods": 3, "gpus": 2, "minimum": 1},
        ),
    ],
)
case(
    "nobody is moved when the sum is not enough",
    set(),
    {"a": 1, "b": 1, "x": 0},
    nodes=[node("n", 4), node("m", 4)],
    gangs=[gang("a", 0, 3, on=["n"]), gang("b", 0, 2, on=["m"]), gang("x", 1, 4)],
)
case(
    "what is not preemptible is not moved",
    set(),
    {"a": 1, "b": 1, "x": 0},
    nodes=[node("n", 4), node("m", 4)],
    gangs=[
        gang("a", 0, 3, on=["n"], preemptible=False),
        gang("b", 0, 1, on=["m"], preemptible=False),
        gang("x", 1, 4),
    ],
)
case(
    "several gangs are moved where one is not enough",
    {"b-p-0", "c-p-0"},
    {"a": 1, "b": 1, "c": 1, "x": 1},
    nodes=[node("n", 4), node("m", 4)],
    gangs=[
        gang("a", 0, 2, on=["n"], preemptible=False),
        gang("b", 0, 1, on=["m"]),
        gang("c", 0, 1, on=["m"]),
        gang("x", 1, 4),
    ],
)
case(
    "a gang moves inside the rack it needs, or not at all",
    set(),
    {"a": 2, "x": 0, "f": 1},
    nodes=[
        node("n", 2, labels={"rack": "r1"}),
        node("m", 2, labels={"rack": "r1"}),
        node("o", 2, labels={"rack": "r2"}),
    ],
    levels=["rack"],
    gangs=[
        gang("a", 0, 1, on=["n", "m"], required="rack"),
        gang("f", 0, 2, on=["o"], preemptible=False),
        gang("x", 2, 2),
    ],
)


@pytest.mark.parametrize(("document", "evicted", "running", "reasons", "moved", "now_s"), CASES)
def test_room_is_made(
    document: dict[str, Any],
    evicted: set[str],
    running: dict[str, int],
    reasons: dict[str, str],
    moved: dict[str, str],
    now_s: float,
) -> None:
    world = World(document)
    world.now += now_s
    world.cycle()

    assert set(world.evicted) == evicted
    assert {pod: node for pod, node in world.evicted.items() if node} == moved or not moved
    for name, text in reasons.items():
        assert text in world.reason(name)
    world.settle()
    for later in range(6):
        result = world.cycle()
        assert not result.evictions, f"evicted again {later + 2} cycles after the first"
        world.settle()
    for name, count in running.items():
        assert sum(pod.startswith(f"{name}-") for pod in world.running) == count, name


def test_room_that_is_made_waits_for_whom_it_was_made() -> None:
    world = World(
        {
            "nodes": [node("n", 2)],
            "gangs": [
                gang("low", 0, 1, on=["n", "n"]),
                gang("high", 1, 2, priority=50),
                gang("opportunist", 1, 1, priority=60, preemptible=True),
            ],
        },
        SchedulerConfig(actions=("allocate", "preempt")),
    )
    world.cycle()
    assert world.pipelined
    world.leave()
    world.cycle()
    assert not world.result.evictions
    assert not world.bound


def test_a_plan_is_not_made_twice_while_the_victims_are_leaving() -> None:
    world = World(
        {
            "nodes": [node("n", 1), node("m", 1)],
            "gangs": [
                gang("one", 0, 1, on=["n"]),
                gang("two", 0, 1, on=["m"]),
                gang("high", 1, 1, priority=50),
            ],
        }
    )
    world.cycle()
    assert len(world.evicted) == 1
    for _ in range(5):
        world.leave()
        world.cycle()
        assert not world.result.evictions
        assert world.kind("high") == "pipelined"


def test_room_that_stays_taken_is_let_go_in_time() -> None:
    config = SchedulerConfig(reservation_s=10)
    world = World({"nodes": [node("n", 1)], "gangs": [gang("x", 1, 1)], "pods": [LEAVING]}, config)
    world.cycle()
    assert world.kind("x") == "pipelined"
    world.now += 11
    world.cycle()
    assert world.kind("x") == "unplaced"
    assert not world.pipelined


LEAVING = {"name": "stuck", "pods": 0, "gpus": 1, "leaving": ["n"]}


@pytest.mark.parametrize("after_s", [30, 90])
def test_a_gang_below_its_minimum_is_evicted_after_its_grace(after_s: float) -> None:
    world = World({"nodes": [node("n", 3)], "gangs": [gang("g", 0, 1, on=["n"] * 3, minimum=4)]})
    world.cycle()
    world.now += after_s
    world.cycle()
    assert len(world.evicted) == (3 if after_s > 60 else 0)
    assert (world.memory.wake_at is not None) == (after_s < 60)


def test_a_gang_at_its_minimum_is_never_stale() -> None:
    world = World({"nodes": [node("n", 3)], "gangs": [gang("g", 0, 1, on=["n"] * 3, minimum=3)]})
    world.cycle()
    world.now += 1000
    world.memory = world.memory.without_reservation("")
    world.cycle()
    assert not world.evicted


def test_actions_are_data() -> None:
    document = {
        "nodes": [node("n", 1)],
        "gangs": [gang("low", 0, 1, on=["n"]), gang("high", 1, 1, priority=50)],
    }
    world = World(document, SchedulerConfig(actions=("allocate",)))
    world.cycle()
    assert not world.evicted
    assert world.kind("high") == "unplaced"
