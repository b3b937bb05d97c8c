"""Where single pods and gangs go, and what waits for pods that are leaving."""

from __future__ import annotations

from tests.scheduler.offline_table import Table, busy, gang, group, leaving, node

BASE = Table("allocate")
case = BASE.case

# One pod, one node

case("a pod goes to the only node", {"x": "B a"}, nodes=[node("a", 1)], pods=[group("x", 1, 1)])
case("a pod that is too large waits", {"x": "-"}, nodes=[node("a", 1)], pods=[group("x", 1, 2)])
case(
    "GPUs of two nodes do not add up for one pod",
    {"x": "-"},
    nodes=[node("a", 1), node("b", 1)],
    pods=[group("x", 1, 2)],
)
case(
    "a pod that asks for nothing goes to a full node",
    {"x": "B a"},
    nodes=[node("a", 1)],
    pods=[busy("a", 1), group("x")],
)
case(
    "CPU is a limit like GPUs",
    {"x": "B a", "y": "-"},
    nodes=[node("a", 8, cpu=3)],
    pods=[group("x", 1, 1, cpu=2), group("y", 1, 1, cpu=2)],
)
case(
    "memory is a limit like GPUs",
    {"x": "B a", "y": "-"},
    nodes=[node("a", 8, memory="3G")],
    pods=[group("x", 1, 1, memory="2G"), group("y", 1, 1, memory="2G")],
)
case(
    "a node takes as many pods as it may, whatever they ask for",
    {"x": "B a", "y": "B a", "z": "-"},
    nodes=[node("a", 8, pods=2)],
    pods=[group("x", 1, 1), group("y", 1, 1), group("z", 1, 1)],
)
case(
    "pods that are leaving count for the number of pods",
    {"x": "P a"},
    nodes=[node("a", 8, pods=1)],
    pods=[leaving("a", 1), group("x", 1, 1)],
)
case("without nodes everything waits", {"x": "-"}, nodes=[], pods=[group("x", 1, 1)])

# Which of several nodes

case(
    "of equal nodes the first by name",
    {"x": "B a"},
    nodes=[node("b", 4), node("a", 4)],
    pods=[group("x", 1, 1)],
)
case(
    "the node with fewest GPUs left is filled first",
    {"x": "B b"},
    nodes=[node("a", 4), node("b", 4), node("c", 4)],
    pods=[busy("b", 2), busy("c", 1), group("x", 1, 1)],
)
case(
    "free GPUs count for packing and not the node's size",
    {"x": "B big"},
    nodes=[node("small", 4), node("big", 8)],
    pods=[busy("big", 6), group("x", 1, 2)],
)
case(
    "spreading takes the node with most GPUs left",
    {"x": "B a"},
    config={"scores": {"spread": 10}},
    nodes=[node("a", 4), node("b", 4)],
    pods=[busy("b", 2), group("x", 1, 1)],
)
case(
    "a pod without GPUs leaves GPU nodes alone, however full others are",
    {"x": "B z"},
    nodes=[node("a", 4), node("z", 0)],
    pods=[group("x", 1, 0, cpu=1)],
)
case(
    "a pod without GPUs goes to a GPU node where no other has room",
    {"x": "B a"},
    nodes=[node("a", 4), node("z", 0, cpu=1)],
    pods=[group("x", 1, 0, cpu=2)],
)
case(
    "pods without GPUs pack by CPU",
    {"x": "B b"},
    nodes=[node("a", 0, cpu=8), node("b", 0, cpu=8)],
    pods=[busy("b", 0, cpu=4), group("x", 1, 0, cpu=1)],
)
case(
    "a node selector decides before packing",
    {"x": "B a"},
    nodes=[node("a", 4, labels={"type": "one"}), node("b", 1)],
    pods=[group("x", 1, 1, spec={"nodeSelector": {"type": "one"}})],
)
case(
    "the node on which room was kept for a pod wins over packing",
    {"x": "B b"},
    nodes=[node("a", 1), node("b", 4)],
    pods=[group("x", [{"nominated": "b"}], 1)],
)
case(
    "where the node that was named for a pod is full, another one does",
    {"x": "B a"},
    nodes=[node("a", 1), node("b", 4)],
    pods=[busy("b", 4), group("x", [{"nominated": "b"}], 1)],
)

# Order

case(
    "the higher priority is served first",
    {"train": "-", "build": "B a"},
    nodes=[node("a", 1)],
    pods=[group("train", 1, 1, priority=50), group("build", 1, 1, priority=100)],
)
case(
    "of one priority the older is served first",
    {"new": "-", "old": "B a"},
    nodes=[node("a", 1)],
    pods=[
        group("new", 1, 1, created="2026-01-01T10:00:00Z"),
        group("old", 1, 1, created="2026-01-01T09:00:00Z"),
    ],
)
case(
    "a large one that does not fit holds nothing back",
    {"big": "-", "small": "B a, B a"},
    nodes=[node("a", 2)],
    pods=[group("big", 1, 4, priority=90), group("small", 2, 1, priority=10)],
)
case(
    "what is below in priority takes what is left",
    {"high": "B a", "low": "B a", "lower": "-"},
    nodes=[node("a", 4)],
    pods=[
        group("lower", 1, 2, priority=1),
        group("low", 1, 1, priority=2),
        group("high", 1, 3, priority=3),
    ],
)

# Pods that are leaving

case(
    "room that a leaving pod still has is kept for who is next",
    {"x": "P a"},
    nodes=[node("a", 1)],
    pods=[leaving("a", 1), group("x", 1, 1)],
)
case(
    "room that is free now comes before room that will be",
    {"x": "B b"},
    nodes=[node("a", 1), node("b", 8)],
    pods=[leaving("a", 1), group("x", 1, 1)],
)
case(
    "room that will be free is given once",
    {"x": "P a", "y": "-"},
    nodes=[node("a", 1)],
    pods=[leaving("a", 1), group("x", 1, 1), group("y", 1, 1)],
)
case(
    "who waits for a leaving pod does not keep a smaller one from what is free",
    {"x": "P a", "y": "B a"},
    nodes=[node("a", 4)],
    pods=[leaving("a", 2), group("x", 1, 3), group("y", 1, 1)],
)
case(
    "who fits into what is free and no more would delay who waits",
    {"x": "P a", "y": "-"},
    nodes=[node("a", 4)],
    pods=[leaving("a", 2), group("x", 1, 3), group("y", 1, 2)],
)
case(
    "a leaving pod that does not leave enough is not waited for",
    {"x": "-"},
    nodes=[node("a", 4)],
    pods=[busy("a", 2), leaving("a", 1), group("x", 1, 3)],
)
case(
    "what was waited for is bound once it is free",
    {"x": "B a"},
    cycles=2,
    nodes=[node("a", 1)],
    pods=[leaving("a", 1), group("x", 1, 1)],
)

# Gangs

case(
    "a gang goes to several nodes where it has to",
    {"g": "B a, B a, B b"},
    nodes=[node("a", 2), node("b", 2)],
    gangs=[gang("g", group("p", 3, 1))],
)
case(
    "a gang of which one pod fits nowhere is not placed",
    {"g": "-, -, -"},
    nodes=[node("a", 4), node("b", 1)],
    gangs=[gang("g", group("p", [{}, {}, {"gpus": 8}], 1))],
)
case(
    "a gang waits whole for room that will be free",
    {"g": "P a, P a"},
    nodes=[node("a", 4)],
    pods=[leaving("a", 1)],
    gangs=[gang("g", group("p", 2, 2))],
)
case(
    "a gang that waits for one node waits on all its nodes",
    {"g": "P a, P b"},
    nodes=[node("a", 2), node("b", 2)],
    pods=[leaving("b", 2)],
    gangs=[gang("g", group("p", 2, 2))],
)
case(
    "a gang that lost a pod gets it back beside the others that run",
    {"g": "R a, B a"},
    nodes=[node("a", 4)],
    gangs=[gang("g", group("p", [{"state": "running", "node": "a"}, {}], 1, minimum=2))],
)
case(
    "a gang that runs above its minimum grows where room is left",
    {"g": "R a, R a, B b"},
    nodes=[node("a", 2), node("b", 2)],
    gangs=[gang("g", group("p", 1, 1, on=["a", "a"], minimum=2))],
)
case(
    "a pod that ended counts neither for the minimum nor for room",
    {"g": "-, -, B a"},
    nodes=[node("a", 1)],
    gangs=[gang("g", group("p", [{"state": "succeeded"}, {"state": "failed"}, {}], 1, minimum=1))],
)
case(
    "two gangs that fit one at a time: the first is placed, the other waits",
    {"first": "B a, B b", "second": "-, -"},
    nodes=[node("a", 2), node("b", 2)],
    gangs=[gang("first", group("p", 2, 2)), gang("second", group("p", 2, 2))],
)
case(
    "interleaved arrivals of two gangs: one is placed, none is split",
    {"one": "B n, B n", "two": "-, -"},
    nodes=[node("n", 3)],
    gangs=[
        gang(
            "one",
            group(
                "p",
                [{"created": "2026-01-01T00:00:01Z"}, {"created": "2026-01-01T00:00:03Z"}],
                1,
            ),
        ),
        gang(
            "two",
            group(
                "p",
                [{"created": "2026-01-01T00:00:02Z"}, {"created": "2026-01-01T00:00:04Z"}],
                1,
            ),
        ),
    ],
)
case(
    "sixteen GPUs are free and a gang of two halves of a node waits for whole ones",
    {"g": "-, -"},
    nodes=[{"name": "n", "count": 4, "gpus": 8}],
    pods=[busy(f"n-{at}", 4) for at in range(4)],
    gangs=[gang("g", group("p", 2, 8))],
)
case(
    "sixteen GPUs free in halves of nodes hold a gang of four halves",
    {"g": "B n-0, B n-1, B n-2, B n-3"},
    nodes=[{"name": "n", "count": 4, "gpus": 8}],
    pods=[busy(f"n-{at}", 4) for at in range(4)],
    gangs=[gang("g", group("p", 4, 4))],
)
case(
    "quota for a part of a gang places none of it where it must not be displaced",
    {"g": "-, -, -", "h": "B a"},
    nodes=[node("a", 8)],
    queues=[{"name": "q", "gpus": {"quota": 2}}],
    gangs=[
        gang("g", group("p", 3, 1), queue="q", preemptible=False),
        gang("h", group("p", 1, 2), queue="q", preemptible=False),
    ],
)
case(
    "a limit for a part of a gang places its minimum and no pod too many",
    {"g": "B a, B a, -"},
    nodes=[node("a", 8)],
    queues=[{"name": "q", "gpus": {"limit": 2}}],
    gangs=[gang("g", group("p", 3, 1, minimum=1), queue="q")],
)

# Node pools

POOL = {"poolKey": "pool", "pool": "one"}
case(
    "a scheduler of a pool uses nodes of the pool only",
    {"x": "B b", "y": "-"},
    config=POOL,
    nodes=[node("a", 8), node("b", 1, labels={"pool": "one"}), node("c", 8, labels={"pool": "no"})],
    pods=[group("x", 1, 1, labels={"pool": "one"}), group("y", 1, 1, labels={"pool": "one"})],
)
case(
    "pods of another pool are left alone",
    {"x": "B b", "y": "-", "z": "-"},
    config=POOL,
    nodes=[node("b", 8, labels={"pool": "one"})],
    pods=[
        group("x", 1, 1, labels={"pool": "one"}),
        group("y", 1, 1, labels={"pool": "two"}),
        group("z", 1, 1),
    ],
)
case(
    "the pool without a name has the nodes and pods without the label",
    {"x": "B a", "y": "-"},
    config={"poolKey": "pool"},
    nodes=[node("a", 8), node("b", 8, labels={"pool": "one"})],
    pods=[group("x", 1, 1), group("y", 1, 1, labels={"pool": "one"})],
)

test_base = BASE.test()
