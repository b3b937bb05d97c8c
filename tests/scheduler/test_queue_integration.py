"""All actions over several rounds: where things come to rest, and that they stay there.

The other families say what one cycle decides. Here a case says how many pods of each gang run in
the end. Graces, and room that is kept for others, take part as they do in a cluster.
"""

from __future__ import annotations

from typing import Any

from tests.scheduler.eviction_table import (
    Table,
    asks,
    at,
    cluster,
    fates,
    gang,
    group,
    node,
    queue,
    runs,
    step,
    tree,
)

TABLE = Table()


def case(sentence: str, finally_: str, **document: Any) -> None:
    TABLE.case(sentence, "", finally_=finally_, settle=document.pop("settle", 6), **document)


# Sharing

case(
    "two queues come to equal parts of the surplus",
    "a: 4; b: 4",
    nodes=[node("n", 8)],
    queues=[queue("q0"), queue("q1")],
    gangs=[runs("a", "q0", " ".join("n" * 8), minimum=1), asks("b", "q1", 8, minimum=1)],
    settle=8,
)
case(
    "three queues come to parts by weight",
    "a: 1; b: 2; c: 5",
    nodes=[node("n", 8)],
    queues=[queue("q0", weight=1), queue("q1", weight=2), queue("q2", weight=5)],
    gangs=[
        runs("a", "q0", " ".join("n" * 8), minimum=1),
        asks("b", "q1", 8, minimum=1),
        asks("c", "q2", 8, minimum=1),
    ],
    settle=12,
)
case(
    "quotas first, then the rest to who may have it",
    "a: 5; b: 3",
    nodes=[node("n", 8)],
    queues=[queue("q0", 2), queue("q1", 3, weight=0)],
    gangs=[runs("a", "q0", " ".join("n" * 8), minimum=1), asks("b", "q1", 8, minimum=1)],
    settle=8,
)
case(
    "one job of a queue's two is served where both would be too much",
    "a: 1; b: 1; c: 0; x: 1; y: 0",
    nodes=[node("n", 8)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n", 1),
        runs("b", "q0", "n", 3),
        runs("c", "q0", "n", 4),
        asks("x", "q1", gpus=4),
        asks("y", "q1", gpus=4),
    ],
)
case(
    "single pods of two queues end up even",
    "a0: 0; a1: 0; a2: 1; a3: 1; b0: 1; b1: 1; b2: 0; b3: 0",
    nodes=[node("n", 4)],
    queues=[queue("q0"), queue("q1")],
    gangs=[
        *(runs(f"a{i}", "q0", "n", created=f"2026-01-01T00:00:1{3 - i}Z") for i in range(4)),
        *(asks(f"b{i}", "q1") for i in range(4)),
    ],
)
case(
    "an empty queue's share is used until it comes back for it",
    "a: 8",
    nodes=[node("n", 8)],
    queues=[queue("q0", 4), queue("q1", 4)],
    gangs=[asks("a", "q0", 8, minimum=1)],
)
case(
    "departments even out before their teams do",
    "a: 2; b: 2; c: 4",
    nodes=[node("n", 8)],
    queues=[
        queue("d0"),
        queue("d1"),
        queue("t0", parent="d0"),
        queue("t1", parent="d0"),
        queue("t2", parent="d1"),
    ],
    gangs=[
        runs("a", "t0", " ".join("n" * 8), minimum=1),
        asks("b", "t1", 8, minimum=1),
        asks("c", "t2", 8, minimum=1),
    ],
    settle=10,
)
case(
    "a queue of higher priority gets all that it wants of the surplus",
    "a: 2; b: 6",
    nodes=[node("n", 8)],
    queues=[queue("q0", 2), queue("q1", priority=200)],
    gangs=[runs("a", "q0", " ".join("n" * 8), minimum=1), asks("b", "q1", 8, minimum=1)],
    settle=12,
)
case(
    "limits keep room free",
    "a: 3; b: 2",
    nodes=[node("n", 8)],
    queues=[queue("q0", 1, 3), queue("q1", 1, 2)],
    gangs=[asks("a", "q0", 8, minimum=1), asks("b", "q1", 8, minimum=1)],
)
case(
    "who is not preemptible fills its quota, who is takes the rest",
    "firm: 2; firm2: 0; soft: 6",
    nodes=[node("n", 8)],
    queues=[queue("q", 3)],
    gangs=[
        asks("firm", "q", 2, priority=100),
        asks("firm2", "q", 2, priority=100),
        asks("soft", "q", 8, minimum=1),
    ],
)

# Displacing, and not again

case(
    "who took room back does not lose it again",
    "a: 1; b: 0; x: 1",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1")],
)
case(
    "a large victim for a small one does not come back at its cost",
    "a: 0; x: 1",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n", 4), asks("x", "q1")],
)
case(
    "preempted gangs run again when there is room on another node",
    "low: 1; high: 1",
    nodes=[node("n", 2), node("m", 1)],
    gangs=[
        runs("low", "", "n"),
        asks("high", "", gpus=2, priority=75),
    ],
)
case(
    "a chain of priorities ends with the highest ones running",
    "a: 0; b: 0; c: 1; d: 1",
    nodes=[node("n", 2)],
    gangs=[
        runs("a", "", "n", priority=1),
        runs("b", "", "n", priority=2),
        asks("c", "", priority=3),
        asks("d", "", priority=4),
    ],
)
case(
    "a reclaim inside a queue's preemption ends too",
    "a: 0; b: 1; c: 1",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1, weight=0), queue("q1", 1, weight=0)],
    gangs=[
        runs("a", "q0", "n n"),
        asks("b", "q0", priority=75),
        asks("c", "q1"),
    ],
)
case(
    "moved gangs stay where they were moved to",
    "a: 1; b: 1; x: 1",
    nodes=[node("n", 4), node("m", 4)],
    gangs=[runs("a", "", "n", 3), runs("b", "", "m", 1), asks("x", "", gpus=4)],
)
case(
    "three nodes are cleared into one",
    "a: 1; b: 1; c: 1; d: 1; x: 2",
    nodes=[node(f"n{i}", 4) for i in range(4)],
    gangs=[
        *(runs(name, "", f"n{i}", 1) for i, name in enumerate("abcd")),
        asks("x", "", 2, 4),
    ],
)
case(
    "one moves, another leaves, and both sides stay so",
    "a: 1; b: 0; x: 1",
    nodes=[node("n", 3), node("m", 2)],
    queues=[queue("q0", weight=0), queue("q1", 3), queue("q2", 1)],
    gangs=[runs("a", "q2", "n"), runs("b", "q0", "m", 2), asks("x", "q1", gpus=3)],
)
case(
    "gangs of one queue grow in turn to the end of the room",
    "a: 3; b: 2",
    nodes=[node("n", 5)],
    gangs=[asks("a", "", 4, minimum=1), asks("b", "", 4, minimum=1)],
)
case(
    "minimums win over what others grew to",
    "a: 1; b: 3",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1, weight=0), queue("q1", 3)],
    gangs=[runs("a", "q0", "n n n n", minimum=1), asks("b", "q1", 3)],
)
case(
    "a gang that needs a rack gets one, the others keep theirs",
    "a: 1; b: 1; c: 0; d: 0; x: 2",
    nodes=[node(f"n{i}", 1, f"r{i // 2}") for i in range(4)],
    levels=["rack"],
    queues=[queue("q0", 2, weight=0), queue("q1", 2)],
    gangs=[
        *(runs(name, "q0", f"n{i}") for i, name in enumerate("abcd")),
        asks("x", "q1", 2, required="rack"),
    ],
)
case(
    "a tree of groups is placed by reclaim and grows by it",
    "y: 2; x: 4",
    nodes=[node("n", 6)],
    queues=[queue("q0", 2, weight=0), queue("q1", 4)],
    gangs=[
        runs("y", "q0", " ".join("n" * 6), minimum=1),
        tree("x", "q1", group("a", 2, minimum=1), group("b", 2, minimum=1)),
    ],
    settle=8,
)
case(
    "a group that the gang can do without takes back as a whole or not at all",
    "y: 3; x: 2",
    nodes=[node("n", 5)],
    queues=[queue("q0", 2, weight=0), queue("q1", 3, weight=0)],
    gangs=[
        runs("y", "q0", " ".join("n" * 5), minimum=1),
        tree("x", "q1", group("a", 2), group("b", 2), minimum=1),
    ],
    settle=8,
)
case(
    "parts of GPUs come to rest as whole ones do",
    "a: 1; b: 1; c: 0; d: 0; x: 1; y: 1",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        *(runs(name, "q0", "n", 0, gpuFraction=0.5) for name in "abcd"),
        asks("x", "q1", gpus=0, gpuFraction=0.5),
        asks("y", "q1", gpus=0, gpuFraction=0.5),
    ],
)
case(
    "memory of GPUs too",
    "a: 1; b: 1; c: 0; x: 1",
    nodes=[node("n", 2, gpuMemory=100)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n", 0, gpuMemory=50),
        runs("b", "q0", "n", 0, gpuMemory=50),
        runs("c", "q0", "n"),
        asks("x", "q1"),
    ],
)
MIG = "nvidia.com/mig-1g.10gb"
case(
    "slices too",
    "a: 1; b: 0; x: 1",
    nodes=[node("n", allocatable={MIG: 2})],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n", 0, requests={MIG: 1}),
        runs("b", "q0", "n", 0, requests={MIG: 1}),
        asks("x", "q1", gpus=0, requests={MIG: 1}),
    ],
)
case(
    "who cannot be served anywhere disturbs nobody",
    "a: 1; b: 1; x: 0; y: 0",
    nodes=[node("n", 2)],
    queues=[queue("q0"), queue("q1", 2)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q1", "n"),
        asks("x", "q1", gpus=3),
        asks("y", "q1", spec=at("nowhere")),
    ],
)
case(
    "a gang that runs with too few pods leaves for one that waits",
    "a: 0; x: 1",
    nodes=[node("n", 2)],
    gangs=[runs("a", "", "n n", minimum=3), asks("x", "", gpus=2)],
    config={"staleGraceS": 0},
)
case(
    "a gang whose missing pod finds no place leaves for one that fits",
    "x: 2",
    nodes=[node("n", 2)],
    gangs=[
        gang("a", "", pods=1, gpus=2, on="n", minimum=2, preemptible=False, started=""),
        asks("x", "", 2),
    ],
    config={"staleGraceS": 0},
)

test_rounds = TABLE.test()


def test_a_pod_that_is_deleted_for_good_leaves_its_room_to_others() -> None:
    document = {
        "nodes": [node("n", 1)],
        "gangs": [asks("x", "")],
        "pods": [{"name": "old", "pods": 0, "gpus": 1, "leaving": ["n"]}],
    }
    world = cluster(document)
    first = world.run(1)
    second = step(world)

    assert fates(first, "x") == ["P n"]
    assert fates(second, "x") == ["B n"]
    assert fates(second, "old") == []


def test_room_that_is_kept_is_reported_again_when_nothing_changed() -> None:
    document = {
        "nodes": [node("n", 1)],
        "gangs": [asks("x", "")],
        "pods": [{"name": "old", "pods": 0, "gpus": 1, "leaving": ["n"]}],
    }
    world = cluster(document)
    first = world.run(1).cycles[0].pipelined
    again = world.run(1).cycles[0].pipelined

    assert [p.pod for p in first] == ["default/x-p-0"]
    assert again == first
