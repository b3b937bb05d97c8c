"""Racks, blocks and zones: required and preferred, nested, for running and for new pods."""

from __future__ import annotations

from typing import Any

from tests.scheduler.offline_table import Table, busy, gang, group, leaving, node

TABLE = Table("allocate")
case = TABLE.case

LEVELS = ["zone", "spine", "rack"]


def spot(name: str, gpus: int, rack: str, spine: str = "", zone: str = "") -> dict[str, Any]:
    labels = {"spine": spine} if spine else {}
    return node(name, gpus, rack, zone, labels=labels)


def hosts(name: str) -> dict[str, Any]:
    return {"nodeSelector": {"kubernetes.io/hostname": name}}


# One required level

FOUR = [node("a", 1, "r1"), node("b", 1, "r1"), node("c", 1, "r2"), node("d", 1, "r2")]
case(
    "a required rack is left out where one pod's affinity does not let it in",
    {"g": "B c, B d"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[
        gang(
            "g",
            group(
                "p",
                [
                    {
                        "spec": {
                            "affinity": {
                                "nodeAffinity": {
                                    "requiredDuringSchedulingIgnoredDuringExecution": {
                                        "nodeSelectorTerms": [
                                            {
                                                "matchExpressions": [
                                                    {
                                                        "key": "kubernetes.io/hostname",
                                                        "operator": "In",
                                                        "values": ["c", "d"],
                                                    }
                                                ]
                                            }
                                        ]
                                    }
                                }
                            }
                        }
                    },
                    {},
                ],
                1,
            ),
            required="rack",
        )
    ],
)
case(
    "no rack is large enough, two together would be",
    {"g": "-, -, -"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang("g", group("p", 3, 1), required="rack")],
)
case(
    "a rack that holds the sum in pieces too small is no place",
    {"g": "-, -"},
    levels=["rack"],
    nodes=[node("a", 1, "r1"), node("b", 1, "r1"), node("c", 1, "r1"), node("d", 1, "r1")],
    gangs=[gang("g", group("p", 2, 2), required="rack")],
)
case(
    "of two racks that fit the one with less free",
    {"g": "B c, B d"},
    levels=["rack"],
    nodes=[node("a", 4, "r1"), node("b", 4, "r1"), node("c", 4, "r2"), node("d", 4, "r2")],
    pods=[busy("c", 2), busy("d", 2)],
    gangs=[gang("g", group("p", 2, 2), required="rack")],
)
case(
    "of equal racks the first by name",
    {"g": "B a, B b"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang("g", group("p", 2, 1), required="rack")],
)
case(
    "the second gang gets the second rack",
    {"g": "B a, B b", "h": "B c, B d", "i": "-, -"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang(n, group("p", 2, 1), required="rack") for n in ("g", "h", "i")],
)
case(
    "a level that no node has is nowhere",
    {"g": "-"},
    levels=["rack"],
    nodes=[node("a", 8)],
    gangs=[gang("g", group("p", 1, 1), required="rack")],
)
case(
    "a required rack waits for a pod that is leaving it",
    {"g": "P a, P b"},
    levels=["rack"],
    nodes=FOUR,
    pods=[leaving("b", 1), busy("c", 1)],
    gangs=[gang("g", group("p", 2, 1), required="rack")],
)
case(
    "a required rack that is free now comes before one that will be",
    {"g": "B c, B d"},
    levels=["rack"],
    nodes=FOUR,
    pods=[leaving("b", 1)],
    gangs=[gang("g", group("p", 2, 1), required="rack")],
)
case(
    "CPU pods have racks as well",
    {"g": "B c, B d"},
    levels=["rack"],
    nodes=[
        node("a", 0, "r1", cpu=4),
        node("b", 0, "r1", cpu=1),
        node("c", 0, "r2", cpu=4),
        node("d", 0, "r2", cpu=4),
    ],
    gangs=[gang("g", group("p", 2, 0, cpu=3), required="rack")],
)
case(
    "pods of two sizes fill a rack of two nodes exactly",
    {"g": "B a, B b, B b"},
    levels=["rack"],
    nodes=[node("a", 8, "r1"), node("b", 8, "r1")],
    gangs=[gang("g", group("p", sizes=[8, 4, 4]), required="rack")],
)
case(
    "three prefill and one decode fill a domain of fixed size, and not one a node short",
    {"g-prefill": "B d2a, B d2a, B d2b", "g-decode": "B d2b"},
    levels=["rack"],
    nodes=[
        *(node(f"d1{n}", 4, "d1") for n in "ab"),
        *(node(f"d2{n}", 4, "d2") for n in "ab"),
    ],
    pods=[busy("d1a", 1)],
    gangs=[gang("g", group("prefill", 3, 2), group("decode", 1, 2), required="rack")],
)

# Nested

NESTED = [spot(f"n{at}", 2, f"r{at}", f"s{at // 2}", "z1" if at < 4 else "z2") for at in range(8)]
case(
    "racks in spines in a zone: the zone that lacks one rack is left out whole",
    {"g-r0": "B n4, B n5", "g-r1": "B n6, B n7"},
    levels=LEVELS,
    nodes=NESTED,
    pods=[busy("n0", 2)],
    gangs=[
        gang(
            "g",
            *(
                {
                    "name": f"r{at}",
                    "required": "spine",
                    "groups": [group(n, 1, 2, required="rack") for n in ("x", "y")],
                }
                for at in range(2)
            ),
            required="zone",
        )
    ],
)
case(
    "the tree does not fit any zone whole",
    {"g": "-, -, -, -"},
    levels=LEVELS,
    nodes=NESTED,
    pods=[busy("n0", 2), busy("n7", 1)],
    gangs=[
        gang(
            "g",
            *(
                {
                    "name": f"r{at}",
                    "required": "spine",
                    "groups": [group(n, 1, 2, required="rack") for n in ("x", "y")],
                }
                for at in range(2)
            ),
            required="zone",
        )
    ],
)
case(
    "two groups of one gang take a rack each where one does not hold both",
    {"g-x": "B a, B b", "g-y": "B c, B d"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang("g", group("x", 2, 1, required="rack"), group("y", 2, 1, required="rack"))],
)
case(
    "a group with a rack of its own and one without any constraint",
    {"g-x": "B c, B d", "g-y": "B a"},
    levels=["rack"],
    nodes=[node("a", 1, "r1"), node("c", 1, "r2"), node("d", 1, "r2")],
    gangs=[gang("g", group("y", 1, 1), group("x", 2, 1, required="rack"))],
)
case(
    "the group that has a choice leaves the rack to the one that has none",
    {"g-a": "B m0, B m1", "g-b": "B n0, B n1, B n2"},
    levels=["rack"],
    nodes=[
        *(node(f"n{at}", 4, "r0") for at in range(3)),
        *(node(f"m{at}", 4, "r1") for at in range(2)),
        *(node(f"o{at}", 3, "r1") for at in range(5)),
    ],
    gangs=[gang("g", group("a", 2, 4, required="rack"), group("b", 3, 4, required="rack"))],
)
case(
    "groups of mixed sizes share out racks so that all fit",
    {"g-a": "B r1, B r1", "g-b": "B r2, B r2, B r2"},
    levels=["rack"],
    nodes=[node("r1", 7, "r1"), node("r2", 6, "r2")],
    gangs=[gang("g", group("b", 3, 2, required="rack"), group("a", sizes=[4, 3], required="rack"))],
)
case(
    "each tensor-parallel group in a rack, the replica in a spine",
    {"g-p": "B n2, B n2", "g-d": "B n3, B n3"},
    levels=LEVELS,
    nodes=NESTED,
    pods=[busy("n1", 1)],
    gangs=[
        gang(
            "g",
            group("p", 2, 1, required="rack"),
            group("d", 2, 1, required="rack"),
            required="spine",
        )
    ],
)

# Preferred

case(
    "preferred: one rack where one does, the tightest",
    {"g": "B c, B d"},
    levels=["rack"],
    nodes=[
        node("a", 2, "r1"),
        node("b", 2, "r1"),
        node("c", 1, "r2"),
        node("d", 1, "r2"),
    ],
    gangs=[gang("g", group("p", 2, 1), preferred="rack")],
)
case(
    "preferred and nothing fits in one rack: as few racks as will do",
    {"g": "B a, B b, B e, B f"},
    levels=["rack"],
    nodes=[
        node("a", 1, "r1"),
        node("b", 1, "r1"),
        node("c", 1, "r2"),
        node("e", 1, "r3"),
        node("f", 1, "r3"),
    ],
    gangs=[gang("g", group("p", 4, 1), preferred="rack")],
)
case(
    "the smaller spine is taken for one rack, not the smallest rack",
    {"g": "B d"},
    levels=["spine", "rack"],
    nodes=[
        spot("a", 1, "r1", "s1"),
        spot("b", 1, "r2", "s1"),
        spot("c", 1, "r3", "s1"),
        spot("d", 1, "r4", "s2"),
        spot("e", 1, "r4", "s2"),
    ],
    gangs=[gang("g", group("p", 1, 1), preferred="rack")],
)
case(
    "preferred rack in a required spine: two racks of one spine",
    {"g": "B c, B d"},
    levels=["spine", "rack"],
    nodes=[
        spot("a", 1, "r1", "s1"),
        spot("b", 1, "r2", "s2"),
        spot("c", 1, "r3", "s3"),
        spot("d", 1, "r4", "s3"),
    ],
    gangs=[gang("g", group("p", 2, 1), required="spine", preferred="rack")],
)
case(
    "preferred rack in a required spine: one rack of it where one does",
    {"g": "B d, B e"},
    levels=["spine", "rack"],
    nodes=[
        spot("a", 1, "r1", "s1"),
        spot("b", 1, "r2", "s1"),
        spot("d", 1, "r4", "s2"),
        spot("e", 1, "r4", "s2"),
        spot("f", 1, "r5", "s2"),
    ],
    gangs=[gang("g", group("p", 2, 1), required="spine", preferred="rack")],
)
case(
    "preferred rack widens to one spine before it goes over two",
    {"g": "B c, B d"},
    levels=["spine", "rack"],
    nodes=[
        spot("a", 1, "r1", "s1"),
        spot("b", 1, "r2", "s2"),
        spot("c", 1, "r3", "s3"),
        spot("d", 1, "r4", "s3"),
    ],
    gangs=[gang("g", group("p", 2, 1), preferred="rack")],
)
case(
    "a preference that cannot be had hinders nothing",
    {"g": "B a, B b"},
    levels=["rack"],
    nodes=[node("a", 1), node("b", 1)],
    gangs=[gang("g", group("p", 2, 1), preferred="rack")],
)
case(
    "two gangs that prefer one rack leave each other whole racks",
    {"g": "B a, B b", "h": "B c, B d"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang(n, group("p", 2, 1), preferred="rack") for n in ("g", "h")],
)
case(
    "minimums of two groups that prefer one rack are together, growth comes after both",
    {"g-x": "B n0, B n1", "g-y": "B n0, B n1"},
    levels=["rack"],
    nodes=[node("n0", 2, "r1"), node("n1", 2, "r2")],
    gangs=[gang("g", group("x", 2, 1, minimum=1), group("y", 2, 1, minimum=1), preferred="rack")],
)

# Pods that run, growth, and later increments

case(
    "the minimum takes the tightest rack and growth stays in it",
    {"g": "B n1, B n1"},
    levels=["rack"],
    nodes=[node("n0", 10, "r1"), node("n1", 10, "r2")],
    pods=[busy("n1", 1)],
    gangs=[gang("g", group("p", 2, 1, minimum=1), required="rack")],
)
case(
    "a replacement joins the rack of those that run although another is tighter",
    {"g": "R a, B b"},
    levels=["rack"],
    nodes=[node("a", 1, "r1"), node("b", 8, "r1"), node("c", 1, "r2")],
    gangs=[gang("g", group("p", 1, 1, on=["a"]), required="rack")],
)
case(
    "a replacement waits when its rack is full",
    {"g": "R a, -"},
    levels=["rack"],
    nodes=[node("a", 1, "r1"), node("c", 8, "r2")],
    gangs=[gang("g", group("p", 1, 1, on=["a"]), required="rack")],
)
case(
    "a rack holds over increments: growth does not spread to another rack",
    {"g": "R a, R b, -"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang("g", group("p", 1, 1, on=["a", "b"], minimum=1), required="rack")],
)
case(
    "a rack of one sub-group holds over increments, others are free",
    {"g-x": "R a, B b", "g-y": "B c"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[
        gang("g", group("x", 1, 1, on=["a"], minimum=2, required="rack"), group("y", 1, 1)),
    ],
)
case(
    "a member that comes later is held to the replica's rack",
    {"g-r-x": "R a", "g-r-y": "B b"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[
        gang(
            "g",
            {
                "name": "r",
                "required": "rack",
                "groups": [group("x", 0, 1, on=["a"]), group("y", 1, 1)],
            },
        )
    ],
)
case(
    "a preference follows the pods that run",
    {"g": "R c, B d"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[gang("g", group("p", 1, 1, on=["c"], minimum=1), preferred="rack")],
)
case(
    "a preference follows the pods that run as long as there is room",
    {"g": "R c, B a"},
    levels=["rack"],
    nodes=FOUR,
    pods=[busy("d", 1)],
    gangs=[gang("g", group("p", 1, 1, on=["c"], minimum=1), preferred="rack")],
)
case(
    "pods that ended or are leaving do not pin a rack",
    {"g": "L a, B c, B d"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[
        gang(
            "g",
            group("p", [{"state": "leaving", "node": "a"}, {}, {}], 1, minimum=2),
            required="rack",
        )
    ],
)

# Several topologies

case(
    "levels of two topologies on the same nodes",
    {"g": "B b, B d"},
    topologies=[
        {"name": "network", "levels": ["rack"]},
        {"name": "power", "levels": ["feed"]},
    ],
    nodes=[
        node("a", 1, "r1", labels={"feed": "f1"}),
        node("b", 1, "r1", labels={"feed": "f2"}),
        node("c", 1, "r2", labels={"feed": "f1"}),
        node("d", 1, "r2", labels={"feed": "f2"}),
    ],
    pods=[busy("c", 1)],
    gangs=[gang("g", group("p", 2, 1), required="feed")],
)
case(
    "racks of one name in two zones are two racks",
    {"g": "-, -"},
    levels=["zone", "rack"],
    nodes=[node("a", 1, "r1", "z1"), node("b", 1, "r1", "z2")],
    gangs=[gang("g", group("p", 2, 1), required="rack")],
)
case(
    "the host is a level too",
    {"g": "B b, B b"},
    levels=["rack", "kubernetes.io/hostname"],
    nodes=[node("a", 1, "r1"), node("b", 2, "r1"), node("c", 3, "r1")],
    gangs=[gang("g", group("p", 2, 1), required="kubernetes.io/hostname")],
)
case(
    "the host preferred in a rack required",
    {"g": "B c, B c, B d"},
    levels=["rack", "kubernetes.io/hostname"],
    nodes=[node("a", 2, "r1"), node("c", 2, "r2"), node("d", 1, "r2")],
    gangs=[gang("g", group("p", 3, 1), required="rack", preferred="kubernetes.io/hostname")],
)

# Base gangs and what is scaled out from them

case(
    "a base gang takes a rack that holds what was scaled out from it too",
    {"base": "R c, R d", "more": "B e"},
    levels=["rack"],
    nodes=[
        node("a", 1, "r1"),
        node("b", 1, "r1"),
        node("c", 1, "r2"),
        node("d", 1, "r2"),
        node("e", 1, "r2"),
    ],
    cycles=2,
    gangs=[
        gang("base", group("p", 2, 1), required="rack"),
        gang("more", group("p", 1, 1), base="base"),
    ],
)
case(
    "a base gang takes a rack that holds it where none holds its scaled gangs too",
    {"base": "B a, B b", "more": "-"},
    levels=["rack"],
    nodes=FOUR,
    gangs=[
        gang("base", group("p", 2, 1), required="rack"),
        gang("more", group("p", 1, 1), base="base"),
    ],
)

test_topology = TABLE.test()
