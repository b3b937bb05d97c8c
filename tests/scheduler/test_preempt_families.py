"""Preemption: gangs displace less important ones of their own queue. By family."""

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

TRAIN, BUILD, INFERENCE = 50, 75, 125
ONE_QUEUE = [queue("q", 8)]

BASE = Table(queues=ONE_QUEUE)
case = BASE.case

case(
    "a lower priority leaves for a higher one",
    "low: E n; high: P n",
    finally_="low: 0; high: 1",
    nodes=[node("n", 1)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=BUILD)],
)
case(
    "who needs its quota for good preempts too",
    "low: E n; high: P n",
    nodes=[node("n", 1)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=INFERENCE)],
)
case(
    "an equal priority stays",
    "low: R n; high: -",
    nodes=[node("n", 1)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=TRAIN)],
)
case(
    "a higher priority stays",
    "high: R n; low: -",
    nodes=[node("n", 1)],
    gangs=[runs("high", "q", "n", priority=BUILD), asks("low", "q", priority=TRAIN)],
)
case(
    "what is free is used first",
    "low: R n; high: B n",
    nodes=[node("n", 2)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=BUILD)],
)
case(
    "what is free and a victim's room together are enough",
    "low: E n; high: P n",
    nodes=[node("n", 2)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", gpus=2, priority=BUILD)],
)
case(
    "the lowest priority goes first, whatever its age",
    "lowest: E n; low: R n; high: P n",
    nodes=[node("n", 2)],
    gangs=[
        runs("lowest", "q", "n", priority=10),
        runs("low", "q", "n", priority=20),
        asks("high", "q", priority=BUILD),
    ],
)
case(
    "of one priority the youngest goes",
    "a: R n; b: R n; c: E n; high: P n",
    nodes=[node("n", 3)],
    gangs=[*(runs(name, "q", "n") for name in "abc"), asks("high", "q", priority=BUILD)],
)
case(
    "one that need not go is spared, though it would be first",
    "lowest: R n; low: E n; high: P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("lowest", "q", "n", 1, priority=10),
        runs("low", "q", "n", 2, priority=20),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "as many go as are needed",
    "a: R n; b: E n; c: E n; high: P n",
    nodes=[node("n", 3)],
    gangs=[
        *(runs(name, "q", "n") for name in "abc"),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "nobody goes in vain",
    "a: R n; f: R n; high: -",
    nodes=[node("n", 2)],
    gangs=[
        runs("a", "q", "n"),
        runs("f", "q", "n", preemptible=False),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "what is not preemptible stays",
    "low: R n; high: -",
    nodes=[node("n", 1)],
    gangs=[
        runs("low", "q", "n", priority=TRAIN, preemptible=False),
        asks("high", "q", priority=BUILD),
    ],
)
case(
    "another queue's stay, whatever their priority",
    "low: R n; high: -",
    nodes=[node("n", 1)],
    queues=[queue("q", 1), queue("r", 0)],
    gangs=[runs("low", "q", "n", priority=1), asks("high", "r", priority=BUILD)],
)
case(
    "another team's of the same department stay",
    "low: R n; high: -",
    nodes=[node("n", 1)],
    queues=[queue("d", 1), queue("q", 1, parent="d"), queue("r", 0, parent="d")],
    gangs=[runs("low", "q", "n", priority=1), asks("high", "r", priority=BUILD)],
)
case(
    "room below the queue's limit is made",
    "low: E n; high: P n",
    nodes=[node("n", 4)],
    queues=[queue("q", 1, 1)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=BUILD)],
)
case(
    "a limit that victims do not give way to holds",
    "low: R n; high: -",
    reasons={"high": "queue q is at its limit of 1 GPUs"},
    nodes=[node("n", 4)],
    queues=[queue("q", 1, 1)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", gpus=2, priority=BUILD)],
)
case(
    "a queue without quota has none for who is not preemptible",
    "low: R n; high: -",
    reasons={"high": "queue q has no quota left"},
    nodes=[node("n", 1)],
    queues=[queue("q", 0)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=INFERENCE)],
)
case(
    "the node that the important one needs is cleared, though another's is younger",
    "a: E n; b: R m; high: P n",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[
        runs("a", "q", "n"),
        runs("b", "q", "m"),
        asks("high", "q", spec=at("n"), priority=BUILD),
    ],
)
case(
    "two important ones each displace one",
    "a: E n; b: E n; x: P n; y: P n",
    nodes=[node("n", 2)],
    gangs=[
        runs("a", "q", "n"),
        runs("b", "q", "n"),
        asks("x", "q", priority=BUILD),
        asks("y", "q", priority=BUILD),
    ],
)
case(
    "of two that wait the more important is served",
    "low: E n; x: -; y: P n",
    nodes=[node("n", 1)],
    gangs=[
        runs("low", "q", "n"),
        asks("x", "q", priority=BUILD),
        asks("y", "q", priority=INFERENCE),
    ],
)
case(
    "who leaves goes where there is room",
    "low: M n>m; high: P n",
    finally_="low: 1; high: 1",
    config={"actions": ["allocate", "preempt"]},
    nodes=[node("n", 2), node("m", 1)],
    gangs=[runs("low", "q", "n"), asks("high", "q", gpus=2, priority=BUILD)],
)
case(
    "a pod that is leaving already is waited for",
    "low: R n; high: P n",
    nodes=[node("n", 2)],
    gangs=[runs("low", "q", "n"), asks("high", "q", priority=BUILD)],
    pods=[{"name": "old", "pods": 0, "gpus": 1, "leaving": ["n"]}],
)
case(
    "cores and memory are made room in, too",
    "low: E n; high: P n",
    nodes=[node("n", cpu=4, memory="4Gi")],
    gangs=[
        runs("low", "q", "n", 0, cpu=3, memory="1Gi"),
        asks("high", "q", gpus=0, cpu=2, memory="2Gi", priority=BUILD),
    ],
)
case(
    "the preemption alone is an action",
    "low: E n; high: P n",
    config={"actions": ["preempt"]},
    nodes=[node("n", 1)],
    gangs=[runs("low", "q", "n", priority=TRAIN), asks("high", "q", priority=BUILD)],
)

test_base = BASE.test()

ELASTIC = Table(queues=ONE_QUEUE)
case = ELASTIC.case

case(
    "surplus goes before minimums",
    "elastic: R n, E n; young: R n; high: P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("elastic", "q", "n n", minimum=1),
        runs("young", "q", "n"),
        asks("high", "q", priority=BUILD),
    ],
)
case(
    "a lower priority goes before surplus of a higher one",
    "low: E n; elastic: R n, R n; high: P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("low", "q", "n", priority=10),
        runs("elastic", "q", "n n", minimum=1, priority=20),
        asks("high", "q", priority=BUILD),
    ],
)
case(
    "a gang shrinks to its minimum and keeps it",
    "elastic: R n, E n, E n; high: P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("elastic", "q", "n n n", minimum=1),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "and goes whole where that is not enough",
    "elastic: E n, E n, E n; high: P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("elastic", "q", "n n n", minimum=2),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "a gang shrinks and moves",
    "e: M n0>n1, E n0; high: P n0",
    finally_="e: 1; high: 1",
    nodes=[node("n0", 2), node("n1", 1)],
    gangs=[
        runs("e", "q", "n0 n0", minimum=1, priority=TRAIN),
        asks("high", "q", gpus=2, priority=INFERENCE),
    ],
)
case(
    "only the minimum of the important one is made room for at once",
    "low: R n, E n; high: P n, -",
    finally_="low: 0; high: 2",
    nodes=[node("n", 2)],
    gangs=[
        runs("low", "q", "n n", minimum=1),
        asks("high", "q", 2, minimum=1, priority=BUILD),
    ],
)
case(
    "growth displaces one step in a cycle",
    "a: R n; b: R n; c: E n; high: R n, P n, -",
    finally_="a: 1; b: 0; c: 0; high: 3",
    nodes=[node("n", 4)],
    gangs=[
        *(runs(name, "q", "n") for name in "abc"),
        gang("high", "q", pods=2, gpus=1, on="n", minimum=1, priority=BUILD),
    ],
)
case(
    "growth displaces no equal",
    "a: R n; g: R n, -",
    nodes=[node("n", 2)],
    gangs=[runs("a", "q", "n"), gang("g", "q", pods=1, gpus=1, on="n", minimum=1)],
)
case(
    "two gangs each take a pod of one gang's surplus",
    "low: R n, E n, E n; x: P n; y: P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("low", "q", "n n n", minimum=1),
        asks("x", "q", priority=BUILD),
        asks("y", "q", priority=BUILD),
    ],
)
case(
    "surplus of the youngest gang goes first",
    "a: R n, R n; b: R n, E n; high: P n",
    nodes=[node("n", 4)],
    gangs=[
        runs("a", "q", "n n", minimum=1),
        runs("b", "q", "n n", minimum=1),
        asks("high", "q", priority=BUILD),
    ],
)

test_elastic = ELASTIC.test()

GANGS = Table(queues=ONE_QUEUE)
case = GANGS.case

case(
    "a gang leaves whole",
    "low: E n, E m; high: P n",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[runs("low", "q", "n m"), asks("high", "q", spec=at("n"), priority=BUILD)],
)
case(
    "a gang displaces for all of its pods or for none",
    "a: R n; b: R m; high: -, -, -",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[runs("a", "q", "n"), runs("b", "q", "m"), asks("high", "q", 3, priority=BUILD)],
)
case(
    "a gang displaces on several nodes",
    "a: E n; b: E m; high: P n, P m",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[runs("a", "q", "n"), runs("b", "q", "m"), asks("high", "q", 2, priority=BUILD)],
)
case(
    "part of it may be placed where there is room already",
    "a: E n; high: P n, P m",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[runs("a", "q", "n"), asks("high", "q", 2, priority=BUILD)],
)
case(
    "who is left over of a gang that lost a pod displaces for that one",
    "low: E n; high: R m, P n",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[
        runs("low", "q", "n"),
        gang("high", "q", pods=1, gpus=1, on="m", priority=BUILD),
    ],
)
case(
    "both groups of a gang leave",
    "low: E n, E m; high: P n",
    nodes=[node("n", 1), node("m", 1)],
    gangs=[
        tree("low", "q", group("a", on="n"), group("b", on="m")),
        asks("high", "q", spec=at("n"), priority=BUILD),
    ],
)
case(
    "each group shrinks to its own minimum",
    "low: R n, R n, E n, E n; high: P n",
    nodes=[node("n", 4)],
    gangs=[
        tree("low", "q", group("a", on="n n", minimum=1), group("b", on="n n", minimum=1)),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "the minimums of both groups displace",
    "low: R n, R n, E n, E n; high: P n, P n, -, -",
    finally_="high: 4; low: 0",
    settle=8,
    nodes=[node("n", 4)],
    gangs=[
        runs("low", "q", "n n n n", minimum=1),
        tree("high", "q", group("a", 2, minimum=1), group("b", 2, minimum=1), priority=BUILD),
    ],
)
case(
    "a group below its minimum displaces for what it lacks",
    "low: E n, E n; high: R n, P n, P n",
    nodes=[node("n", 3)],
    gangs=[
        runs("low", "q", "n n", minimum=1),
        tree("high", "q", group("a", on="n"), group("b", 2), priority=BUILD),
    ],
)
case(
    "a group that its gang can do without goes before the gang",
    "low: R n, R n, E n, E n; high: P n",
    nodes=[node("n", 4)],
    gangs=[
        tree("low", "q", group("a", on="n n"), group("b", on="n n"), minimum=1),
        asks("high", "q", priority=BUILD),
    ],
)
case(
    "nested groups leave with their gang",
    "low: E n, E n, E m; high: P n",
    nodes=[node("n", 2), node("m", 1)],
    gangs=[
        tree(
            "low",
            "q",
            {
                "name": "r",
                "groups": [
                    {"name": "a", "groups": [group("l", on="n")]},
                    group("b", on="n"),
                ],
            },
            group("c", on="m"),
            minimum=2,
        ),
        asks("high", "q", gpus=2, priority=BUILD),
    ],
)
case(
    "the rack that the important gang needs is cleared",
    "a: R n0; b: R n1; c: E n2; d: E n3; high: P n2, P n3",
    nodes=[node("n0", 1, "r1"), node("n1", 1, "r2"), node("n2", 1, "r3"), node("n3", 1, "r3")],
    levels=["rack"],
    gangs=[
        runs("c", "q", "n2"),
        runs("d", "q", "n3"),
        runs("a", "q", "n0"),
        runs("b", "q", "n1"),
        asks("high", "q", 2, required="rack", priority=BUILD),
    ],
)

test_gangs = GANGS.test()

PARTS = Table(nodes=[node("n", 1, gpuMemory=100)], queues=ONE_QUEUE)
case = PARTS.case

case(
    "who shares a GPU leaves for another that shares",
    "a: R n; b: E n; high: P n",
    gangs=[
        runs("a", "q", "n", 0, gpuFraction=0.5),
        runs("b", "q", "n", 0, gpuFraction=0.5),
        asks("high", "q", gpus=0, gpuFraction=0.5, priority=BUILD),
    ],
)
case(
    "all that share leave for who needs the whole",
    "a: E n; b: E n; high: P n",
    gangs=[
        runs("a", "q", "n", 0, gpuFraction=0.5),
        runs("b", "q", "n", 0, gpuFraction=0.5),
        asks("high", "q", priority=BUILD),
    ],
)
case(
    "memory is made room in",
    "a: R n; b: E n; high: P n",
    gangs=[
        runs("a", "q", "n", 0, gpuMemory=50),
        runs("b", "q", "n", 0, gpuMemory=50),
        asks("high", "q", gpus=0, gpuMemory=40, priority=BUILD),
    ],
)
case(
    "who needs more memory than one gives up displaces both",
    "a: E n; b: E n; high: P n",
    gangs=[
        runs("a", "q", "n", 0, gpuMemory=50),
        runs("b", "q", "n", 0, gpuMemory=50),
        asks("high", "q", gpus=0, gpuMemory=60, priority=BUILD),
    ],
)
case(
    "the free part is used first",
    "a: R n; high: B n",
    gangs=[
        runs("a", "q", "n", 0, gpuMemory=50),
        asks("high", "q", gpus=0, gpuMemory=50, priority=BUILD),
    ],
)
case(
    "a whole GPU's user leaves for who shares",
    "a: E n; high: P n",
    gangs=[runs("a", "q", "n"), asks("high", "q", gpus=0, gpuMemory=10, priority=BUILD)],
)
case(
    "equal priorities that share stay",
    "a: R n; b: R n; high: -",
    gangs=[
        runs("a", "q", "n", 0, gpuMemory=50),
        runs("b", "q", "n", 0, gpuMemory=50),
        asks("high", "q", gpus=0, gpuMemory=50),
    ],
)

test_parts = PARTS.test()

SMALL, LARGE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
SLICES = Table(nodes=[node("n", allocatable={SMALL: 2, LARGE: 1})], queues=ONE_QUEUE)
case = SLICES.case


def slice_of(kind: str) -> dict[str, dict[str, int]]:
    return {"requests": {kind: 1}}


case(
    "a slice of the same kind is given up, the youngest first",
    "a: R n; b: E n; high: P n",
    gangs=[
        runs("a", "q", "n", 0, **slice_of(SMALL)),
        runs("b", "q", "n", 0, **slice_of(SMALL)),
        asks("high", "q", gpus=0, priority=BUILD, **slice_of(SMALL)),
    ],
)
case(
    "one of another kind is not, though it is younger",
    "a: R n; b: E n; c: R n; high: P n",
    gangs=[
        runs("a", "q", "n", 0, **slice_of(SMALL)),
        runs("b", "q", "n", 0, **slice_of(SMALL)),
        runs("c", "q", "n", 0, **slice_of(LARGE)),
        asks("high", "q", gpus=0, priority=BUILD, **slice_of(SMALL)),
    ],
)
case(
    "two small slices are no large one",
    "a: R n; b: R n; c: E n; high: P n",
    gangs=[
        runs("c", "q", "n", 0, **slice_of(LARGE)),
        runs("a", "q", "n", 0, **slice_of(SMALL)),
        runs("b", "q", "n", 0, **slice_of(SMALL)),
        asks("high", "q", gpus=0, priority=BUILD, **slice_of(LARGE)),
    ],
)
case(
    "a free slice is used first",
    "a: R n; high: B n",
    gangs=[
        runs("a", "q", "n", 0, **slice_of(SMALL)),
        asks("high", "q", gpus=0, priority=BUILD, **slice_of(SMALL)),
    ],
)
case(
    "a kind that no node has is waited for",
    "a: R n; high: -",
    gangs=[
        runs("a", "q", "n", 0, **slice_of(SMALL)),
        asks("high", "q", gpus=0, priority=BUILD, **slice_of("nvidia.com/mig-7g.80gb")),
    ],
)

test_slices = SLICES.test()
