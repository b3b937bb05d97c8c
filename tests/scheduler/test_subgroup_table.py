"""Gangs of gangs: trees of groups, each with its minimum, and K of N of them."""

from __future__ import annotations

from tests.scheduler.offline_table import Table, busy, gang, group, leaving, node

TABLE = Table("allocate")
case = TABLE.case

case(
    "every group has its own minimum",
    {"g": "-, -, -"},
    nodes=[node("a", 4)],
    gangs=[gang("g", group("many", 2, 1, minimum=2), group("large", 1, 8))],
)
case(
    "two groups that fit are placed together",
    {"g-x": "B a, B a", "g-y": "B b"},
    nodes=[node("a", 2), node("b", 4)],
    gangs=[gang("g", group("x", 2, 1), group("y", 1, 4))],
)
case(
    "minimums of all groups come before growth of any",
    {"g-x": "R a, B a, -, -, -", "g-y": "B a, -"},
    nodes=[node("a", 4)],
    gangs=[
        gang("g", group("x", 4, 1, on=["a"], minimum=2), group("y", 2, 1, minimum=1)),
    ],
    pods=[busy("a", 1)],
)
case(
    "a running pod of two GPUs counts, and each group completes to its minimum and no further",
    {"g-sub0": "R n0, B n0, -, -, -", "g-sub1": "B n0, -"},
    nodes=[node("n0", 4)],
    gangs=[
        gang(
            "g",
            group("sub0", [{"state": "running", "node": "n0", "gpus": 2}, *[{}] * 4], 1, minimum=2),
            group("sub1", 2, 1, minimum=1),
        )
    ],
)
case(
    "what a group lacks is placed although another group is above its minimum",
    {"g-x": "R a, R a, R a, -", "g-y": "B a"},
    nodes=[node("a", 4)],
    gangs=[gang("g", group("x", 1, 1, on=["a"] * 3, minimum=1), group("y", 1, 1))],
)
case(
    "one group that cannot have its minimum keeps the whole gang from its nodes",
    {"g-x": "-, -", "g-y": "-"},
    nodes=[node("a", 2)],
    gangs=[gang("g", group("x", 2, 1), group("y", 1, 1))],
)
case(
    "a whole gang waits when one of its groups has to",
    {"g-x": "P a", "g-y": "P b"},
    nodes=[node("a", 1), node("b", 1)],
    pods=[leaving("b", 1)],
    gangs=[
        gang(
            "g",
            group("x", 1, 1, spec={"nodeSelector": {"kubernetes.io/hostname": "a"}}),
            group("y", 1, 1),
        )
    ],
)
case(
    "a group without a minimum takes what is left",
    {"g-x": "B a, B a", "g-y": "B a, -"},
    nodes=[node("a", 3)],
    gangs=[gang("g", group("x", 2, 1), group("y", 2, 1, minimum=0))],
)
case(
    "pods that are gated in a group without a minimum hold nobody up",
    {"g-x": "B a", "g-y": "-"},
    nodes=[node("a", 3)],
    gangs=[gang("g", group("x", 1, 1), group("y", 0, 1, gated=1, minimum=0))],
)

# Trees


def replica(name: str, *groups: object, **more: object) -> dict[str, object]:
    return {"name": name, "groups": list(groups), **more}


case(
    "a tree of three levels is placed as one",
    {"s-r0": "B a, B a, B a", "s-r1": "B b, B b, B b"},
    nodes=[node("a", 4, "r1"), node("b", 4, "r2")],
    gangs=[
        gang(
            "s",
            *(
                replica(f"r{n}", group("p", 2, 1), group("d", 1, 2), required="rack")
                for n in range(2)
            ),
        )
    ],
)
case(
    "a leaf deep in a tree that does not fit takes the tree back",
    {"s": "-, -, -, -, -, -"},
    nodes=[node("a", 4, "r1"), node("b", 3, "r2")],
    gangs=[
        gang(
            "s",
            *(
                replica(f"r{n}", group("p", 2, 1), group("d", 1, 2), required="rack")
                for n in range(2)
            ),
        )
    ],
)
case(
    "four levels of groups, each with its own domain",
    {"s-r0-x-t": "B a, B a", "s-r0-y-t": "B b, B b"},
    levels=["zone", "rack"],
    nodes=[node("a", 2, "r1", "z1"), node("b", 2, "r2", "z1"), node("c", 2, "r3", "z2")],
    gangs=[
        gang(
            "s",
            replica(
                "r0",
                replica("x", group("t", 2, 1), required="rack"),
                replica("y", group("t", 2, 1), required="rack"),
                required="zone",
            ),
        )
    ],
)

# K of N

case(
    "a gang that needs two of three groups has the two that fit",
    {"g-a": "B x, B x", "g-b": "-, -", "g-c": "B x, B x"},
    nodes=[node("x", 4)],
    gangs=[
        gang("g", group("a", 2, 1), group("b", 2, 8), group("c", 2, 1), minimum=2),
    ],
)
case(
    "the groups it can do without follow where there is room",
    {"g-a": "B x", "g-b": "B x", "g-c": "B x"},
    nodes=[node("x", 3)],
    gangs=[gang("g", group("a", 1, 1), group("b", 1, 1), group("c", 1, 1), minimum=1)],
)
case(
    "a group that a gang can do without has its whole minimum or nothing",
    {"g-a": "B x", "g-b": "-, -, -"},
    nodes=[node("x", 3)],
    gangs=[gang("g", group("a", 1, 1), group("b", 3, 1), minimum=1)],
)
case(
    "a group that a gang can do without and that lacks pods has nothing",
    {"g-a": "B x, B x", "g-b": "-"},
    nodes=[node("x", 8)],
    gangs=[
        gang("g", group("a", 2, 1), group("b", 1, 1, absent=1, minimum=2), minimum=1),
    ],
)
case(
    "fewer groups than needed fit: nothing is placed",
    {"g-a": "-", "g-b": "-", "g-c": "-"},
    nodes=[node("x", 1)],
    gangs=[gang("g", group("a", 1, 1), group("b", 1, 1), group("c", 1, 8), minimum=2)],
)
case(
    "K of N below a group that is needed whole",
    {"g-r0-a": "B x", "g-r0-b": "-", "g-r1-a": "B x", "g-r1-b": "-"},
    nodes=[node("x", 2)],
    gangs=[
        gang(
            "g",
            *(replica(f"r{n}", group("a", 1, 1), group("b", 1, 1), minimum=1) for n in range(2)),
        )
    ],
)
case(
    "running groups count for K, the others are growth",
    {"g-a": "R x", "g-b": "B x", "g-c": "-"},
    nodes=[node("x", 2)],
    gangs=[
        gang("g", group("a", 0, 1, on=["x"]), group("b", 1, 1), group("c", 1, 1), minimum=1),
    ],
)
case(
    "the groups that fit one rack together are chosen, whatever their names",
    {"g-a": "-, -", "g-b": "B n2, B n2", "g-c": "B n2, B n2"},
    nodes=[node("n1", 3, "r1"), node("n2", 4, "r2")],
    gangs=[
        gang(
            "g",
            group("a", 2, 3),
            group("b", 2, 1),
            group("c", 2, 1),
            minimum=2,
            required="rack",
        )
    ],
)
case(
    "nine groups of which eight are needed: any eight do",
    {"g-g0": "-", **{f"g-g{n}": "B x" for n in range(1, 9)}},
    nodes=[node("x", 8)],
    gangs=[gang("g", group("g0", 1, 9), *(group(f"g{n}", 1, 1) for n in range(1, 9)), minimum=8)],
)
case(
    "sixteen groups of two kinds of which eight are needed",
    {
        **{f"g-g{n:02}": "-" for n in range(0, 16, 2)},
        **{f"g-g{n:02}": "B x" for n in range(1, 16, 2)},
    },
    nodes=[node("x", 8)],
    gangs=[
        gang("g", *(group(f"g{n:02}", 1, 1 if n % 2 else 9) for n in range(16)), minimum=8),
    ],
)

case(
    "two of three groups wait where pods are leaving",
    {"g-a": "-", "g-b": "P x", "g-c": "P x"},
    nodes=[node("x", 2)],
    pods=[leaving("x", 2)],
    gangs=[gang("g", group("a", 1, 2), group("b", 1, 1), group("c", 1, 1), minimum=2)],
)

test_subgroups = TABLE.test()
