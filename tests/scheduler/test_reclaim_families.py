"""Reclaim: a queue below its share takes back what others have beyond theirs. By family."""

from __future__ import annotations

from typing import Any

from tests.scheduler.eviction_table import (
    Table,
    asks,
    at,
    cpu_queue,
    gang,
    group,
    node,
    queue,
    runs,
    tree,
)

# What is whose

BASE = Table()
case = BASE.case

case(
    "a queue at its share takes nothing",
    "a: R n; b: R n; x: -",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q1", "n"), asks("x", "q1")],
)
case(
    "what is free is used before anybody leaves",
    "a: R n; b: R n; x: B m",
    nodes=[node("n", 2), node("m", 1)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1")],
)
case(
    "the youngest of the queue that has too much goes",
    "a: R n; b: R n; c: E n; x: P n",
    finally_="a: 1; b: 1; c: 0; x: 1",
    nodes=[node("n", 3)],
    queues=[queue("q0", 1), queue("q1", 2)],
    gangs=[*(runs(name, "q0", "n") for name in "abc"), asks("x", "q1")],
)
case(
    "a lower priority goes before a younger gang",
    "a: E n; b: R n; x: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n", priority=10), asks("x", "q1")],
)
case(
    "what is not preemptible stays, and the next goes",
    "a: E n; b: R n; x: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n", preemptible=False), asks("x", "q1")],
)
case(
    "who is not preemptible takes back up to its quota",
    "a: R n; b: E n; x: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", 0), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1", preemptible=False)],
)
case(
    "and not beyond it, whatever its share",
    "a: R n; b: R n; x: -",
    reasons={"x": "queue q1 has no quota left"},
    nodes=[node("n", 2)],
    queues=[queue("q0", 0), queue("q1", 0)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1", preemptible=False)],
)
case(
    "a queue without quota takes its part of the surplus",
    "a: R n; b: R n; c: E n; d: E n; x: P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0"), queue("q1")],
    gangs=[*(runs(name, "q0", "n") for name in "abcd"), asks("x", "q1", 2)],
)
case(
    "a gang that is larger than the share takes nothing",
    "a: R n; b: R n; c: R n; d: R n; x: -, -, -",
    nodes=[node("n", 4)],
    queues=[queue("q0"), queue("q1")],
    gangs=[*(runs(name, "q0", "n") for name in "abcd"), asks("x", "q1", 3)],
)
case(
    "the part of the surplus is by weight",
    "a: R n; b: E n; c: E n; d: E n; x: P n, P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0"), queue("q1", weight=3)],
    gangs=[*(runs(name, "q0", "n") for name in "abcd"), asks("x", "q1", 3)],
)
case(
    "a queue of higher priority has the whole surplus",
    "a: E n; b: E n; x: P n, P n",
    nodes=[node("n", 2)],
    queues=[queue("q0"), queue("q1", priority=200)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1", 2)],
)
case(
    "and its own surplus is not taken by one of lower priority",
    "a: R n; b: R n; x: -",
    nodes=[node("n", 2)],
    queues=[queue("q0", priority=200), queue("q1")],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1")],
)
case(
    "a quota is taken back from a queue of higher priority",
    "a: R n; b: E n; x: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", priority=200), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1")],
)
case(
    "of two queues with too much the one of lower priority loses",
    "a: R n; b: R n; c: R n; d: E n; x: P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1), queue("q1", 1), queue("q2", 1, priority=50)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q0", "n"),
        runs("c", "q2", "n"),
        runs("d", "q2", "n"),
        asks("x", "q1"),
    ],
)
case(
    "the queue that has most of what it may have loses first, then of equals the younger",
    "a: R n; b: R n; c: E n; d: R n; e: E n; x: P n, P n",
    nodes=[node("n", 5)],
    queues=[queue("q0", 1, weight=0), queue("q1", 3), queue("q2", 1, weight=0)],
    gangs=[
        *(runs(name, "q0", "n") for name in "abc"),
        *(runs(name, "q2", "n") for name in "de"),
        asks("x", "q1", 2),
    ],
)
case(
    "of equal queues the younger one loses",
    "a: R n; b: R n; c: R n; d: E n; x: P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1, weight=0), queue("q2", 1, weight=0), queue("q1", 2)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q0", "n"),
        runs("c", "q2", "n"),
        runs("d", "q2", "n"),
        asks("x", "q1"),
    ],
)
case(
    "a limit holds for who takes back",
    "a: R n; b: R n; x: -",
    reasons={"x": "queue q1 is at its limit of 1 GPUs"},
    nodes=[node("n", 2)],
    queues=[queue("q0"), queue("q1", 2, limit=1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q1", "n"), asks("x", "q1")],
)
case(
    "free room and a victim's together are enough",
    "a: E n; x: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("a", "q0", "n"), asks("x", "q1", gpus=2)],
)
case(
    "a pod that is leaving already is waited for, and nobody else leaves",
    "a: R n; x: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("a", "q0", "n"), asks("x", "q1")],
    pods=[{"name": "old", "pods": 0, "gpus": 1, "leaving": ["n"]}],
)
case(
    "a victim that is larger than what is wanted goes all the same",
    "a: R n; b: E n; x: P n",
    finally_="a: 1; b: 0; x: 1",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n", 3), asks("x", "q1")],
)
case(
    "a queue of unlimited quota loses nothing",
    "a: R n; b: R n; x: -",
    nodes=[node("n", 2)],
    queues=[queue("q0", -1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1")],
)
case(
    "where all victims together are not enough nobody leaves",
    "a: R n; f: R n; x: -",
    nodes=[node("n", 2)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[
        runs("a", "q0", "n"),
        runs("f", "q0", "n", preemptible=False),
        asks("x", "q1", gpus=2),
    ],
)
case(
    "who leaves is on a node that the taker can use, though another is younger",
    "a: E n; b: R m; x: P n",
    nodes=[node("n", 1), node("m", 1)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "m"), asks("x", "q1", spec=at("n"))],
)
case(
    "a tainted node is not cleared for who does not tolerate it",
    "a: E n; b: R m; x: P n",
    nodes=[node("n", 1), node("m", 1, taints=[{"key": "k"}])],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "m"), asks("x", "q1")],
)
case(
    "pods of another scheduler are no victims",
    "x: -",
    nodes=[node("n", 1)],
    queues=[queue("q1", 1)],
    gangs=[asks("x", "q1")],
    pods=[{"name": "a", "pods": 0, "gpus": 1, "on": ["n"], "scheduler": "default-scheduler"}],
)
case(
    "two queues take back in one cycle",
    "a: E n; b: E n; x: P n; y: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", weight=0), queue("q1", 1), queue("q2", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1"), asks("y", "q2")],
)
case(
    "of two gangs of one queue the older takes what is its queue's",
    "a: R n; b: E n; x: P n; y: -",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1, weight=0), queue("q1", 1, weight=0)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1"), asks("y", "q1")],
)
case(
    "of two gangs of one queue the more important takes what is its queue's",
    "a: R n; b: E n; x: -; y: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1, weight=0), queue("q1", 1, weight=0)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q0", "n"),
        asks("x", "q1"),
        asks("y", "q1", priority=10),
    ],
)
case(
    "one that does not fit its queue's share does not hold up a smaller one",
    "a: R n; b: E n; x: -, -; y: P n",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1, weight=0), queue("q1", 1, weight=0)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1", 2), asks("y", "q1")],
)
case(
    "a queue inside its quota takes back from one beyond its own, even inside its share",
    "a: E n; x: P n",
    nodes=[node("n", 1), node("m", 3)],
    queues=[queue("q0"), queue("q1", 1)],
    gangs=[runs("a", "q0", "n", spec=at("n")), asks("x", "q1", spec=at("n"))],
)
case(
    "without quota it cannot",
    "a: R n; x: -",
    nodes=[node("n", 1), node("m", 3)],
    queues=[queue("q0"), queue("q1")],
    gangs=[runs("a", "q0", "n", spec=at("n")), asks("x", "q1", spec=at("n"))],
)
case(
    "who is inside its share moves where there is room for it",
    "a: M n>m; x: P n",
    finally_="a: 1; x: 1",
    config={"actions": ["allocate", "reclaim"]},
    nodes=[node("n", 2), node("m", 1)],
    queues=[queue("q0", 1), queue("q1", 2)],
    gangs=[runs("a", "q0", "n"), asks("x", "q1", gpus=2)],
)
case(
    "who is in the way leaves alone, though another is younger",
    "a: E n; b: R m; x: P n",
    nodes=[node("n", 3), node("m", 2)],
    queues=[queue("q0", 1, weight=0), queue("q1", 4)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "m", 2), asks("x", "q1", gpus=3)],
)
case(
    "one moves to where another leaves",
    "a: M n>m; b: E m; x: P n",
    finally_="a: 1; b: 0; x: 1",
    nodes=[node("n", 3), node("m", 2)],
    queues=[queue("q0", weight=0), queue("q1", 3), queue("q2", 1)],
    gangs=[runs("a", "q2", "n"), runs("b", "q0", "m", 2), asks("x", "q1", gpus=3)],
)
case(
    "cores are shared out like devices",
    "a: R n; b: E n; c: E n; x: P n",
    nodes=[node("n", cpu=3)],
    queues=[cpu_queue("q0", quota=1, weight=0), cpu_queue("q1", quota=2)],
    gangs=[
        *(runs(name, "q0", "n", 0, cpu=1) for name in "abc"),
        asks("x", "q1", gpus=0, cpu=2),
    ],
)
case(
    "and so is memory",
    "a: R n; b: E n; x: P n",
    nodes=[node("n", memory="4Gi")],
    queues=[
        cpu_queue("q0", "memory", quota="2Gi", weight=0),
        cpu_queue("q1", "memory", quota="2Gi"),
    ],
    gangs=[
        *(runs(name, "q0", "n", 0, memory="2Gi") for name in "ab"),
        asks("x", "q1", gpus=0, memory="2Gi"),
    ],
)
case(
    "a queue that has too many cores takes back no devices",
    "a: R n; b: R n; c: R n; x: -",
    nodes=[node("n", 2, cpu=8)],
    queues=[queue("q0", weight=0), queue("q1", 2, cpu={"quota": 1, "weight": 0})],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q0", "n"),
        runs("c", "q1", "n", 0, cpu=4),
        asks("x", "q1", cpu=1),
    ],
)
case(
    "who uses no devices is not displaced for devices",
    "a: R n; b: E n; x: P n",
    nodes=[node("n", 1)],
    queues=[queue("q0", weight=0), queue("q1", 1)],
    gangs=[runs("b", "q0", "n"), runs("a", "q0", "n", 0, cpu=1), asks("x", "q1")],
)
case(
    "nodes that are not ready are no part of what is shared out",
    "a: R n; b: R n; x: -",
    nodes=[node("n", 2), node("m", 2, ready=False)],
    queues=[queue("q0", 2), queue("q1")],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n"), asks("x", "q1")],
)
case(
    "of several gangs the one that suffices alone goes, and no other",
    "a: E n0, E n1, E n2; b: R n3; x: P n0, P n1, P n2",
    nodes=[node(f"n{i}", 1) for i in range(4)],
    queues=[queue("q0", 1, weight=0), queue("q1", 2)],
    gangs=[runs("a", "q0", "n0 n1 n2"), runs("b", "q0", "n3"), asks("x", "q1", 3)],
)
case(
    "surplus is shared out over several rounds",
    "a: R n; b: R n; c: E n; x: P n; y: -",
    finally_="a: 1; b: 1; c: 0; x: 1; y: 0",
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

test_base = BASE.test()

# Gangs that have more than they need

ELASTIC = Table()
case = ELASTIC.case

case(
    "a gang gives up as much of its surplus as is wanted",
    "y: R n, R n, R n, E n; x: P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 2), queue("q1", 2)],
    gangs=[runs("y", "q0", "n n n n", minimum=1), asks("x", "q1")],
)
case(
    "a gang keeps its minimum where its surplus is enough",
    "y: R n, R n, E n, E n; x: P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 2), queue("q1", 2)],
    gangs=[runs("y", "q0", "n n n n", minimum=2), asks("x", "q1", 2)],
)
case(
    "the minimum goes as one where the surplus is not enough",
    "y: E n, E n, E n; x: P n, P n",
    nodes=[node("n", 3)],
    queues=[queue("q0", weight=0), queue("q1", 3)],
    gangs=[runs("y", "q0", "n n n", minimum=2), asks("x", "q1", 2)],
)
case(
    "a minimum does not go without the surplus that is elsewhere, and takes its place",
    "y: M n>m, E m; x: P n",
    nodes=[node("n", 1), node("m", 1)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("y", "q0", "n m", minimum=1), asks("x", "q1", spec=at("n"))],
)
case(
    "surplus of the younger gang goes first, then of the older, then minimums",
    "a: R n, E n; b: R n, E n; x: P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", weight=0), queue("q1", 4)],
    gangs=[
        runs("a", "q0", "n n", minimum=1),
        runs("b", "q0", "n n", minimum=1),
        asks("x", "q1", 2),
    ],
)
case(
    "then the younger minimum",
    "a: R n, E n; b: E n, E n; x: P n, P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1, weight=0), queue("q1", 3)],
    gangs=[
        runs("a", "q0", "n n", minimum=1),
        runs("b", "q0", "n n", minimum=1),
        asks("x", "q1", 3),
    ],
)
case(
    "a lower priority goes before surplus of a higher one",
    "a: E n; b: R n, R n; x: P n",
    nodes=[node("n", 3)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q0", "n n", minimum=1, priority=10),
        asks("x", "q1"),
    ],
)
case(
    "two gangs each take a pod of one gang's surplus in one cycle",
    "y: R n, R n, E n, E n; w: P n; x: P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", weight=0), queue("q1", 1), queue("q2", 1)],
    gangs=[
        runs("y", "q0", "n n n n", minimum=1),
        asks("w", "q1"),
        asks("x", "q2"),
    ],
)
case(
    "only the minimum of who takes back has to fit its share",
    "y: R n, E n; x: P n, -, -",
    finally_="y: 1; x: 1",
    nodes=[node("n", 2)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("y", "q0", "n n", minimum=1), asks("x", "q1", 3, minimum=1)],
)
case(
    "growth takes back too, one pod in a cycle",
    "y: R n, R n, E n; x: R n, P n, -",
    finally_="y: 1; x: 3",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1, weight=0), queue("q1", 3)],
    gangs=[
        runs("y", "q0", "n n n", minimum=1),
        gang("x", "q1", pods=2, gpus=1, on="n", minimum=1),
    ],
)
case(
    "growth ends at the share",
    "y: R n, R n, E n; x: R n, P n, -",
    finally_="y: 2; x: 2",
    nodes=[node("n", 4)],
    queues=[queue("q0", 2), queue("q1", 2)],
    gangs=[
        runs("y", "q0", "n n n", minimum=1),
        gang("x", "q1", pods=2, gpus=1, on="n", minimum=1),
    ],
)
case(
    "growth takes a whole gang where there is no surplus",
    "y: R n; z: E n, E n; x: R n, P n",
    finally_="y: 1; z: 0; x: 2",
    nodes=[node("n", 4)],
    queues=[queue("q0", 1, weight=0), queue("q1", 3)],
    gangs=[
        runs("y", "q0", "n"),
        runs("z", "q0", "n n"),
        gang("x", "q1", pods=1, gpus=1, on="n", minimum=1),
    ],
)
case(
    "minimums take back before growth does",
    "y: R n, E n; x: R n, -; z: P n",
    nodes=[node("n", 3)],
    queues=[queue("q0", 1, weight=0), queue("q1", 2, weight=0)],
    gangs=[
        runs("y", "q0", "n n", minimum=1),
        gang("x", "q1", pods=1, gpus=1, on="n", minimum=1),
        asks("z", "q1"),
    ],
)
case(
    "pods of a low task priority are given up first",
    "y: R n, R n, E m; x: P m",
    nodes=[node("n", 2), node("m", 1)],
    queues=[queue("q0", 2), queue("q1", 1)],
    gangs=[
        tree(
            "y",
            "q0",
            {
                "name": "p",
                "gpus": 1,
                "minimum": 1,
                "pods": [
                    {
                        "state": "running",
                        "node": "m",
                        "labels": {"kai.scheduler/task-priority": "-1"},
                    },
                    {"state": "running", "node": "n"},
                    {"state": "running", "node": "n"},
                ],
            },
        ),
        asks("x", "q1"),
    ],
)

test_elastic = ELASTIC.test()

# Departments, and queues at any depth

DEPARTMENTS = Table()
case = DEPARTMENTS.case

case(
    "a department takes back from a department",
    "y: R n; z: E n; x: P n",
    nodes=[node("n", 2)],
    queues=[
        queue("d0", 1, weight=0),
        queue("d1", 1, weight=0),
        queue("t0", 2, parent="d0"),
        queue("t1", 2, parent="d1"),
    ],
    gangs=[runs("y", "t0", "n"), runs("z", "t0", "n"), asks("x", "t1")],
)
case(
    "a department inside its share loses nothing, whatever its team has beyond its own",
    "y: R n; z: R n; x: -",
    nodes=[node("n", 2)],
    queues=[
        queue("d0", 2),
        queue("d1", 2),
        queue("t0", 0, parent="d0"),
        queue("t1", 2, parent="d1"),
    ],
    gangs=[runs("y", "t0", "n"), runs("z", "t0", "n"), asks("x", "t1")],
)
case(
    "teams of one department take back from each other",
    "w: R n, R n; y: R n; z: E n; x: P n",
    nodes=[node("n", 4)],
    queues=[
        queue("d0", 2, weight=0),
        queue("d1", 2, weight=0),
        queue("t0", 1, parent="d0"),
        queue("t1", 1, parent="d0"),
        queue("t2", 2, parent="d1"),
    ],
    gangs=[
        runs("w", "t2", "n n"),
        runs("y", "t0", "n"),
        runs("z", "t0", "n"),
        asks("x", "t1"),
    ],
)
case(
    "the surplus of a department is its teams', not the neighbours'",
    "y: R n; z: E n; w: R n, R n; x: P n",
    nodes=[node("n", 4)],
    queues=[
        queue("d0", 2, weight=0),
        queue("d1", 2, weight=0),
        queue("t0", 0, parent="d0"),
        queue("t1", 0, parent="d0"),
        queue("t2", 0, parent="d1"),
    ],
    gangs=[
        runs("y", "t0", "n"),
        runs("z", "t0", "n"),
        runs("w", "t2", "n n"),
        asks("x", "t1"),
    ],
)
case(
    "a department's limit holds for its teams together",
    "y: R n; z: R n; x: -",
    reasons={"x": "queue d1 is at its limit of 1 GPUs"},
    nodes=[node("n", 3)],
    queues=[
        queue("d0", 0),
        queue("d1", 2, limit=1),
        queue("t0", 0, parent="d0"),
        queue("t1", 1, parent="d1"),
        queue("t2", 1, parent="d1"),
    ],
    gangs=[
        runs("y", "t0", "n"),
        runs("v", "t0", "n"),
        runs("z", "t1", "n"),
        asks("x", "t2"),
    ],
)
case(
    "a department of higher priority has the surplus",
    "y: E n; z: E n; x: P n, P n",
    nodes=[node("n", 2)],
    queues=[
        queue("d0"),
        queue("d1", priority=200),
        queue("t0", parent="d0"),
        queue("t1", parent="d1"),
    ],
    gangs=[runs("y", "t0", "n"), runs("z", "t0", "n"), asks("x", "t1", 2)],
)
case(
    "a department that has more of its share than its neighbour takes nothing from it",
    "m: R n, R n, R n, R n; y: R n, R n, R n, R n, R n, R n; x: -, -",
    nodes=[node("n", 10)],
    queues=[
        queue("d0", 4, weight=0),
        queue("d1", 4, weight=0),
        queue("t0", 2, parent="d0"),
        queue("t1", 2, parent="d0"),
        queue("t2", 4, parent="d1"),
    ],
    gangs=[
        runs("m", "t1", "n n n n", preemptible=False),
        runs("y", "t2", "n n n n n n", minimum=1),
        asks("x", "t0", 2),
    ],
)
case(
    "a department inside its quota may grow by a team that has no quota of its own",
    "y: R n; z: E n; x: P n",
    nodes=[node("n", 2)],
    queues=[
        queue("d0", 1),
        queue("d1", 1),
        queue("t0", 0, parent="d0"),
        queue("t1", 0, parent="d1"),
    ],
    gangs=[runs("y", "t0", "n"), runs("z", "t0", "n"), asks("x", "t1")],
)
case(
    "three levels are divided one after the other",
    "y: R n; z: E n; v: R n, R n; x: P n",
    nodes=[node("n", 4)],
    queues=[
        queue("o0", 2, weight=0),
        queue("o1", 2, weight=0),
        queue("d0", 1, weight=0, parent="o0"),
        queue("d1", 1, weight=0, parent="o0"),
        queue("t0", 2, parent="d0"),
        queue("t1", 2, parent="d1"),
        queue("t2", 2, parent="o1"),
    ],
    gangs=[
        runs("v", "t2", "n n"),
        runs("y", "t0", "n"),
        runs("z", "t0", "n"),
        asks("x", "t1"),
    ],
)
case(
    "the department with most of its share loses before others",
    "a: R n, R n; b: R n; c: R n; d: E n; x: P n",
    nodes=[node("n", 5)],
    queues=[
        queue("d0", 2),
        queue("d1", 1),
        queue("d2", 1),
        queue("t0", 0, parent="d0"),
        queue("t1", 0, parent="d1"),
        queue("t2", 1, parent="d2"),
    ],
    gangs=[
        runs("a", "t0", "n n"),
        runs("b", "t1", "n"),
        runs("c", "t1", "n"),
        runs("d", "t1", "n"),
        asks("x", "t2"),
    ],
)

test_departments = DEPARTMENTS.test()

# Gangs and groups of gangs

GANGS = Table()
case = GANGS.case

case(
    "a gang leaves whole, over all of its nodes",
    "y: E n0, E n1; x: P n0",
    nodes=[node("n0", 1), node("n1", 1)],
    queues=[queue("q0", weight=0), queue("q1", 1)],
    gangs=[runs("y", "q0", "n0 n1"), asks("x", "q1", spec=at("n0"))],
)
case(
    "a gang takes back for all of its pods or for none",
    "y: R n0; z: R n1; x: -, -, -",
    nodes=[node("n0", 1), node("n1", 1)],
    queues=[queue("q0", weight=0), queue("q1", 3)],
    gangs=[runs("y", "q0", "n0"), runs("z", "q0", "n1"), asks("x", "q1", 3)],
)
case(
    "a gang takes back over several nodes",
    "y: E n0; z: E n1; x: P n0, P n1",
    nodes=[node("n0", 1), node("n1", 1)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("y", "q0", "n0"), runs("z", "q0", "n1"), asks("x", "q1", 2)],
)
case(
    "a gang that lost a pod takes back for that one",
    "y: E n1; x: R n0, P n1",
    nodes=[node("n0", 1), node("n1", 1)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[runs("y", "q0", "n1"), gang("x", "q1", pods=1, gpus=1, on="n0")],
)
case(
    "both groups of a gang leave",
    "y: E n0, E n1; x: P n0, P n1",
    nodes=[node("n0", 1), node("n1", 1)],
    queues=[queue("q0", weight=0), queue("q1", 2)],
    gangs=[
        tree("y", "q0", group("a", on="n0"), group("b", on="n1")),
        asks("x", "q1", 2),
    ],
)
case(
    "each group gives up what it has beyond its own minimum",
    "y: R n, R n, E n, E n; x: P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 2), queue("q1", 2)],
    gangs=[
        tree("y", "q0", group("a", on="n n", minimum=1), group("b", on="n n", minimum=1)),
        asks("x", "q1", 2),
    ],
)
case(
    "the minimums of both groups are taken back for, and no more",
    "y: R n, R n, E n, E n; x: P n, P n, -, -",
    finally_="y: 2; x: 2",
    nodes=[node("n", 4)],
    queues=[queue("q0", 2, weight=0), queue("q1", 2, weight=0)],
    gangs=[
        runs("y", "q0", "n n n n", minimum=1),
        tree("x", "q1", group("a", 2, minimum=1), group("b", 2, minimum=1)),
    ],
)
case(
    "a group that its gang can do without goes before the gang",
    "y: R n, R n, E n, E n; x: P n, P n",
    nodes=[node("n", 4)],
    queues=[queue("q0", 2), queue("q1", 2)],
    gangs=[
        tree("y", "q0", group("a", on="n n"), group("b", on="n n"), minimum=1),
        asks("x", "q1", 2),
    ],
)
case(
    "who leaves is in the rack that the gang needs",
    "a: R n0; b: R n1; c: E n2; d: E n3; x: P n2, P n3",
    nodes=[node("n0", 1, "r1"), node("n1", 1, "r2"), node("n2", 1, "r3"), node("n3", 1, "r3")],
    levels=["rack"],
    queues=[queue("q0", 1, weight=0), queue("q1", 3)],
    gangs=[
        runs("c", "q0", "n2"),
        runs("d", "q0", "n3"),
        runs("a", "q0", "n0"),
        runs("b", "q0", "n1"),
        asks("x", "q1", 2, required="rack"),
    ],
)
case(
    "each group of a gang in its own rack",
    "a: R n0, R n1; b: E n2; c: R n3; d: E n4; e: E n5; x: P n2, P n4, P n5",
    nodes=[node(f"n{i}", 1, f"r{i // 2}") for i in range(6)],
    levels=["rack"],
    queues=[queue("q0", 3, weight=0), queue("q1", 3)],
    gangs=[
        runs("a", "q0", "n0 n1", preemptible=False),
        runs("c", "q0", "n3", preemptible=False),
        runs("b", "q0", "n2"),
        runs("d", "q0", "n4"),
        runs("e", "q0", "n5"),
        tree("x", "q1", group("s", 1), group("t", 2, required="rack")),
    ],
)

test_gangs = GANGS.test()

# Parts of GPUs

PARTS = Table(nodes=[node("n", 2, gpuMemory=100)])
case = PARTS.case

case(
    "a part of a GPU is taken back",
    "a: R n; b: R n; c: R n; d: E n; x: P n",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        *(runs(name, "q0", "n", 0, gpuFraction=0.5) for name in "abcd"),
        asks("x", "q1", gpus=0, gpuFraction=0.5),
    ],
)
case(
    "a whole GPU is taken back from who shares it",
    "a: R n; b: R n; c: E n; d: E n; x: P n",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        *(
            tree(
                name,
                "q0",
                {
                    "name": "p",
                    "gpuFraction": 0.5,
                    "pods": [{"state": "running", "node": "n", "gpuIndices": [index]}],
                },
            )
            for name, index in zip("abcd", (0, 0, 1, 1), strict=True)
        ),
        asks("x", "q1"),
    ],
)
case(
    "memory of GPUs counts for the queue as the part it is",
    "a: R n; b: R n; c: R n; d: E n; x: P n",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        *(runs(name, "q0", "n", 0, gpuMemory=50) for name in "abcd"),
        asks("x", "q1", gpus=0, gpuMemory=50),
    ],
)
case(
    "who shares leaves for who asks for memory",
    "a: R n; b: E n; x: P n",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q0", "n"),
        asks("x", "q1", gpus=0, gpuMemory=60),
    ],
)
case(
    "a queue at its share of memory takes nothing",
    "a: R n; b: R n; x: -",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n"),
        runs("b", "q1", "n", 0, gpuMemory=100),
        asks("x", "q1", gpus=0, gpuMemory=50),
    ],
)
case(
    "surplus that shares GPUs is given up pod by pod",
    "y: R n, R n, R n, E n; x: P n",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[
        runs("y", "q0", "n n n n", 0, gpuMemory=50, minimum=1),
        asks("x", "q1", gpus=0, gpuMemory=50),
    ],
)

test_parts = PARTS.test()

CLAIMS = Table(nodes=[node("n", devices={"gpu.nvidia.com": 2})])
case = CLAIMS.case


def claims(name: str, queue_name: str, on: str = "", **more: Any) -> dict[str, Any]:
    found = gang(name, queue_name, pods=0 if on else 1, on=on, **more)
    found["groups"][0]["claims"] = {"gpu.nvidia.com": 1}
    return found


case(
    "claimed GPUs are taken back",
    "a: R n; b: E n; x: P n",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[claims("a", "q0", "n"), claims("b", "q0", "n"), claims("x", "q1")],
)
case(
    "claimed GPUs count to the share of their queue",
    "a: R n; b: R n; x: -",
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[claims("a", "q0", "n"), claims("b", "q1", "n"), claims("x", "q1")],
)
case(
    "claimed GPUs count to the limit of their queue",
    "x: B n; y: -",
    reasons={"y": "queue q1 is at its limit of 1 GPUs"},
    queues=[queue("q1", 1, 1)],
    gangs=[claims("x", "q1"), claims("y", "q1")],
)
case(
    "GPUs that a node offers in both ways are counted once",
    "a: R n; b: E n; x: P n",
    nodes=[node("n", 2, devices={"gpu.nvidia.com": 2})],
    queues=[queue("q0"), queue("q1")],
    gangs=[claims("a", "q0", "n"), claims("b", "q0", "n"), claims("x", "q1")],
)

test_claims = CLAIMS.test()

MIG = "nvidia.com/mig-1g.10gb"
LARGE_MIG = "nvidia.com/mig-3g.40gb"
SLICES = Table(nodes=[node("n", allocatable={MIG: 2, LARGE_MIG: 1})])
case = SLICES.case

case(
    "a slice is taken back from who has one of the same kind",
    "a: R n; b: E n; c: R n; x: P n",
    queues=[queue("q0", 4, weight=0), queue("q1", 1)],
    gangs=[
        runs("a", "q0", "n", 0, requests={MIG: 1}),
        runs("b", "q0", "n", 0, requests={MIG: 1}),
        runs("c", "q0", "n", 0, requests={LARGE_MIG: 1}),
        asks("x", "q1", gpus=0, requests={MIG: 1}),
    ],
)
case(
    "slices count for their queue by their size",
    "a: R n; c: R n; x: -",
    queues=[queue("q0", 1, weight=0), queue("q1", 1, weight=0)],
    gangs=[
        runs("a", "q0", "n", 0, requests={MIG: 1}),
        runs("c", "q0", "n", 0, requests={LARGE_MIG: 1}),
        asks("x", "q1", gpus=0, requests={LARGE_MIG: 1}),
    ],
)

test_slices = SLICES.test()
