"""Consolidation: gangs move closer together where that makes room for one more. By family."""

from __future__ import annotations

from tests.scheduler.eviction_table import (
    Table,
    asks,
    at,
    gang,
    group,
    node,
    queue,
    runs,
    tree,
)

TWO = [node("n0", 4), node("n1", 4)]
ONE_QUEUE = [queue("q", 100)]

BASE = Table(nodes=TWO, queues=ONE_QUEUE)
case = BASE.case

case(
    "a small gang moves to make a node free",
    "a: R n0; b: M n1>n0; x: P n1",
    finally_="a: 1; b: 1; x: 1",
    gangs=[runs("a", "q", "n0", 3), runs("b", "q", "n1", 1), asks("x", "q", gpus=4)],
)
case(
    "of two that could move the younger does",
    "b: R n0; a: M n1>n0; x: P n1",
    gangs=[runs("b", "q", "n0", 1), runs("a", "q", "n1", 3), asks("x", "q", gpus=4)],
)
case(
    "nobody moves when there is not enough in sum",
    "a: R n0; b: R n1; x: -",
    gangs=[runs("a", "q", "n0", 3), runs("b", "q", "n1", 2), asks("x", "q", gpus=4)],
)
case(
    "nobody moves who has nowhere to go",
    "a: R n0; b: R n1; x: -",
    gangs=[runs("a", "q", "n0", 2), runs("b", "q", "n1", 2, spec=at("n1")), asks("x", "q", gpus=4)],
    nodes=[node("n0", 3), node("n1", 4)],
)
case(
    "one that may run only where it is does not move, the other does",
    "a: M n0>n1; b: R n1; x: P n0",
    gangs=[runs("a", "q", "n0", 2), runs("b", "q", "n1", 2, spec=at("n1")), asks("x", "q", gpus=4)],
)
case(
    "what is not preemptible is not moved",
    "a: R n0; b: R n1; x: -",
    gangs=[
        runs("a", "q", "n0", 3, preemptible=False),
        runs("b", "q", "n1", 1, preemptible=False),
        asks("x", "q", gpus=4),
    ],
)
case(
    "nobody moves for who is not preemptible",
    "a: R n0; b: R n1; x: -",
    gangs=[
        runs("a", "q", "n0", 3, priority=100),
        runs("b", "q", "n1", 1),
        asks("x", "q", gpus=4, preemptible=False),
    ],
)
case(
    "what is free is used without moves",
    "a: R n0; b: R n1; x: B n1",
    gangs=[runs("a", "q", "n0", 3), runs("b", "q", "n1", 1), asks("x", "q", gpus=3)],
)
case(
    "gangs of other queues move too",
    "a: R n0; b: M n1>n0; x: P n1",
    queues=[queue("q", 4), queue("r", 4)],
    gangs=[runs("a", "r", "n0", 3), runs("b", "r", "n1", 1), asks("x", "q", gpus=4)],
)
case(
    "a more important one moves for a less important one",
    "a: R n0; b: M n1>n0; x: P n1",
    gangs=[
        runs("a", "q", "n0", 3, preemptible=False),
        runs("b", "q", "n1", 1, priority=75),
        asks("x", "q", gpus=4, priority=10),
    ],
)
case(
    "the least important of those that could move does",
    "a: M n0>n1; b: R n1; x: P n0",
    gangs=[
        runs("a", "q", "n0", 3),
        runs("b", "q", "n1", 1, priority=75),
        asks("x", "q", gpus=4, priority=10),
    ],
)
case(
    "two gangs move where one is not enough",
    "a: R n0; b: M n1>n0; c: M n1>n0; x: P n1",
    gangs=[
        runs("a", "q", "n0", 2, preemptible=False),
        runs("b", "q", "n1", 1),
        runs("c", "q", "n1", 1),
        asks("x", "q", gpus=4),
    ],
)
case(
    "no more gangs move than the configuration says",
    "a: R n0; b: R n1; c: R n1; x: -",
    config={"consolidatedGangs": 1, "actions": ["allocate", "consolidate"]},
    settle=1,
    nodes=[node("n0", 4), node("n1", 4)],
    gangs=[
        runs("a", "q", "n0", 2, preemptible=False),
        runs("b", "q", "n1", 1),
        runs("c", "q", "n1", 1),
        asks("x", "q", gpus=4),
    ],
)
case(
    "a gang moves with all of its pods or stays",
    "y: M n0>n2, M n1>n2; x: P n0, P n1",
    finally_="y: 2; x: 2",
    nodes=[node("n0", 2), node("n1", 2), node("n2", 2)],
    gangs=[runs("y", "q", "n0 n1", 1), asks("x", "q", 2, 2)],
)
case(
    "a gang of which one pod has nowhere to go stays",
    "y: R n0, R n1; x: -, -",
    nodes=[node("n0", 2), node("n1", 2), node("n2", 1)],
    gangs=[runs("y", "q", "n0 n1", 1), asks("x", "q", 2, 2)],
)
case(
    "a queue's limit is not passed by moving",
    "a: R n0; b: R n1; x: -",
    reasons={"x": "queue q is at its limit"},
    queues=[queue("q", 4, 3), queue("r", 4)],
    gangs=[runs("a", "r", "n0", 3), runs("b", "r", "n1", 1), asks("x", "q", gpus=4)],
)
case(
    "room that pods are leaving counts",
    "b: M n1>n0; x: P n1",
    gangs=[runs("b", "q", "n1", 2), asks("x", "q", gpus=4)],
    pods=[
        {"name": "a", "pods": 0, "gpus": 2, "on": ["n0"], "preemptible": False},
        {"name": "old", "pods": 0, "gpus": 1, "leaving": ["n0"]},
        {"name": "older", "pods": 0, "gpus": 1, "leaving": ["n1"]},
    ],
)
case(
    "one that moves does not go to a node that refuses it",
    "a: R n0; b: R n1; x: -",
    nodes=[node("n0", 4, taints=[{"key": "k"}]), node("n1", 4)],
    gangs=[
        runs("a", "q", "n0", 3, spec={"tolerations": [{"operator": "Exists"}]}),
        runs("b", "q", "n1", 1),
        asks("x", "q", gpus=4),
    ],
)
case(
    "a rack is made free by a move into another",
    "a: R n0; b: M n2>n0; x: P n2, P n3",
    nodes=[node("n0", 2, "r0"), node("n1", 1, "r0"), node("n2", 2, "r1"), node("n3", 2, "r1")],
    levels=["rack"],
    gangs=[
        runs("a", "q", "n0", 1),
        runs("b", "q", "n2", 1),
        asks("x", "q", 2, 2, required="rack"),
    ],
)
case(
    "one that needs its rack moves inside it",
    "y: M n0>n1; x: P n0",
    nodes=[node("n0", 4, "r0"), node("n1", 1, "r0"), node("n2", 1, "r1")],
    levels=["rack"],
    gangs=[runs("y", "q", "n0", 1, required="rack"), asks("x", "q", gpus=4)],
)
case(
    "two that wait are both made room for",
    "a: R n0; b: M n1>n2; c: R n2; d: M n3>n0; x: P n3; y: P n1",
    nodes=[node(f"n{i}", 4) for i in range(4)],
    gangs=[
        runs("a", "q", "n0", 3),
        runs("c", "q", "n2", 3),
        runs("b", "q", "n1", 1),
        runs("d", "q", "n3", 1),
        asks("x", "q", gpus=4),
        asks("y", "q", gpus=4),
    ],
)
case(
    "growth is made room for by a move",
    "a: R n0; b: M n1>n0; x: R n2, P n1",
    nodes=[*TWO, node("n2", 4)],
    gangs=[
        runs("a", "q", "n0", 3),
        runs("b", "q", "n1", 1),
        gang("x", "q", pods=1, gpus=4, on="n2", minimum=1),
    ],
)
case(
    "the move alone is an action",
    "a: R n0; b: M n1>n0; x: P n1",
    config={"actions": ["consolidate"]},
    gangs=[runs("a", "q", "n0", 3), runs("b", "q", "n1", 1), asks("x", "q", gpus=4)],
)

test_base = BASE.test()

GROUPS = Table(nodes=TWO, queues=ONE_QUEUE)
case = GROUPS.case

case(
    "the minimums of both groups get room by a move",
    "a: R n0; b: M n1>n0; x: P n1, P n1, -, -, -, -",
    finally_="a: 1; b: 1; x: 2",
    gangs=[
        runs("a", "q", "n0", 3),
        runs("b", "q", "n1", 1),
        tree("x", "q", group("s0", 3, 2, minimum=1), group("s1", 3, 2, minimum=1)),
    ],
)
case(
    "a group that has its minimum waits for the other's",
    "a: R n0; b: M n1>n0; x: R n2, P n1",
    nodes=[*TWO, node("n2", 2)],
    gangs=[
        runs("a", "q", "n0", 3),
        runs("b", "q", "n1", 1),
        tree("x", "q", group("s0", 0, 2, on="n2"), group("s1", 1, 4)),
    ],
)
case(
    "a gang of two groups moves whole",
    "y: M n0>n1, M n0>n1; x: P n0",
    nodes=[node("n0", 4), node("n1", 3)],
    gangs=[
        tree("y", "q", group("a", 0, 1, on="n0"), group("b", 0, 1, on="n0")),
        asks("x", "q", gpus=4),
    ],
)
case(
    "a gang that has more than its minimum moves with all of it",
    "y: M n0>n1, M n0>n1; x: P n0",
    nodes=[node("n0", 4), node("n1", 3)],
    gangs=[runs("y", "q", "n0 n0", 1, minimum=1), asks("x", "q", gpus=4)],
)
case(
    "and not without what is beyond it",
    "y: R n0, R n0; x: -",
    nodes=[node("n0", 4), node("n1", 1)],
    gangs=[runs("y", "q", "n0 n0", 1, minimum=1), asks("x", "q", gpus=4)],
)
case(
    "a nested gang in one rack gets room by a move",
    "b: M n2>n0; x: P n2, P n2, P n3",
    nodes=[node("n0", 1, "r0"), node("n1", 1, "r0"), node("n2", 2, "r1"), node("n3", 2, "r1")],
    levels=["rack"],
    gangs=[
        runs("b", "q", "n2", 1),
        tree("x", "q", group("s0", 2, 1), group("s1", 1, 2), required="rack"),
    ],
)

test_groups = GROUPS.test()

PARTS = Table(queues=ONE_QUEUE, nodes=[node("n0", 1, gpuMemory=100), node("n1", 1, gpuMemory=100)])
case = PARTS.case

case(
    "one that shares a GPU joins another, for who needs a whole one",
    "a: R n0; b: M n1>n0; x: P n1",
    finally_="a: 1; b: 1; x: 1",
    gangs=[
        runs("a", "q", "n0", 0, gpuMemory=50),
        runs("b", "q", "n1", 0, gpuMemory=50),
        asks("x", "q"),
    ],
)
case(
    "one that shares by part joins another",
    "a: R n0; b: M n1>n0; x: P n1",
    gangs=[
        runs("a", "q", "n0", 0, gpuFraction=0.5),
        runs("b", "q", "n1", 0, gpuFraction=0.5),
        asks("x", "q"),
    ],
)
case(
    "two that do not fit one GPU stay",
    "a: R n0; b: R n1; x: -",
    gangs=[
        runs("a", "q", "n0", 0, gpuMemory=60),
        runs("b", "q", "n1", 0, gpuMemory=60),
        asks("x", "q"),
    ],
)
case(
    "memory is made room in by a move",
    "a: R n0; b: M n1>n0; x: P n1",
    gangs=[
        runs("a", "q", "n0", 0, gpuMemory=60),
        runs("b", "q", "n1", 0, gpuMemory=40),
        asks("x", "q", gpus=0, gpuMemory=80),
    ],
)

test_parts = PARTS.test()
