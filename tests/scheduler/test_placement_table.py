"""Placement, case by case: a scenario, the nodes wanted for each gang, and who stays pending."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.table import Outcome

CASES: list[Any] = []


def node(name: str, gpus: int, rack: str = "", zone: str = "", **more: Any) -> dict[str, Any]:
    labels = {k: v for k, v in (("rack", rack), ("zone", zone)) if v}
    return {"name": name, "gpus": gpus, "labels": labels | more.pop("labels", {}), **more}


def group(name: str, pods: int = 1, gpus: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "pods": pods, "gpus": gpus, **more}


def gang(name: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "groups": list(groups), **more}


def case(
    sentence: str, want: dict[str, list[str]], pending: tuple[str, ...] = (), **doc: Any
) -> None:
    CASES.append(pytest.param(doc, want, pending, id=sentence))


LEVELS = ["zone", "rack"]

# Gangs

case(
    "a gang that fits is placed whole",
    {"g": ["a", "a", "b", "b"]},
    nodes=[node("a", 2), node("b", 2)],
    gangs=[gang("g", group("p", 4, 1))],
)
case(
    "a gang that does not fit leaves no trace",
    {"g": []},
    ("g",),
    nodes=[node("a", 2), node("b", 1)],
    gangs=[gang("g", group("p", 4, 1))],
)
case(
    "what one gang cannot use is another's",
    {"big": [], "small": ["a"]},
    ("big",),
    nodes=[node("a", 2)],
    gangs=[gang("big", group("p", 3, 1)), gang("small", group("p", 1, 1))],
)
case(
    "interleaved arrivals of two workloads do not deadlock",
    {"first-a": ["a"] * 2, "first-c": ["a"] * 2, "second-b": [], "second-d": []},
    ("second",),
    nodes=[node("a", 4)],
    gangs=[
        gang("first", group("a", 2, 1), group("c", 2, 1)),
        gang("second", group("b", 2, 1), group("d", 2, 1)),
    ],
)
case(
    "the higher priority goes first, whoever came first",
    {"low": [], "high": ["a", "a"]},
    ("low",),
    nodes=[node("a", 2)],
    gangs=[gang("low", group("p", 2, 1)), gang("high", group("p", 2, 1), priority=10)],
)
case(
    "of equal priorities the older goes first",
    {"old": ["a", "a"], "new": []},
    ("new",),
    nodes=[node("a", 2)],
    gangs=[gang("old", group("p", 2, 1)), gang("new", group("p", 2, 1))],
)
case(
    "every group has its own minimum",
    {"g": []},
    ("g",),
    nodes=[node("a", 4)],
    gangs=[gang("g", group("many", 4, 1, minimum=1), group("few", 1, 4, minimum=1))],
)
case(
    "a group completes to its minimum before any grows",
    {"g-x": ["a"], "g-y": ["a"]},
    nodes=[node("a", 4)],
    gangs=[
        gang("g", group("x", 4, 1, on=["a"], minimum=2), group("y", 2, 1, minimum=1)),
    ],
    pods=[group("other", 0, 1, on=["a"])],
)
case(
    "minimums come before growth, and growth interleaves",
    {"x": ["a"] * 3, "y": ["a"] * 2},
    nodes=[node("a", 5)],
    gangs=[gang("x", group("p", 4, 1, minimum=1)), gang("y", group("p", 4, 1, minimum=1))],
)
case(
    "gated pods are not looked at",
    {"g": []},
    nodes=[node("a", 8)],
    gangs=[gang("g", group("p", 1, 1, gated=1))],
)
case(
    "gated pods beyond the minimum hold nobody up",
    {"g": ["a", "a"]},
    nodes=[node("a", 8)],
    gangs=[gang("g", group("p", 2, 1, gated=2, minimum=2))],
)
case(
    "a gang waits for the pods it lists",
    {"g": []},
    nodes=[node("a", 8)],
    gangs=[gang("g", group("p", 2, 1, absent=1, minimum=2))],
)
case(
    "a pod on its own is a gang of one",
    {"x": ["a"]},
    nodes=[node("a", 1)],
    pods=[group("x", 1, 1)],
)
case(
    "of alike single pods as many are placed as fit, the oldest first",
    {"a": ["n"], "b": ["n"], "c": []},
    ("c",),
    nodes=[node("n", 2)],
    pods=[group("a", 1, 1), group("b", 1, 1), group("c", 1, 1)],
)
case(
    "a pod that is being deleted still holds its place",
    {"g": []},
    ("g",),
    nodes=[node("a", 4)],
    gangs=[gang("g", group("p", 2, 2))],
    pods=[group("old", 0, 1, leaving=["a"])],
)
case(
    "pods of other schedulers take room, and are not placed",
    {"g": ["b"], "other": []},
    nodes=[node("a", 1), node("b", 1)],
    gangs=[gang("g", group("p", 1, 1))],
    pods=[
        group("there", 0, 1, on=["a"], scheduler="default-scheduler"),
        group("other", 1, 0, scheduler="default-scheduler"),
    ],
)

# Topology

case(
    "a required rack holds all pods or none",
    {"g": ["c", "d"]},
    levels=LEVELS,
    nodes=[node("a", 2, "r1"), node("b", 1, "r1"), node("c", 2, "r2"), node("d", 2, "r2")],
    gangs=[gang("g", group("p", 2, 2), required="rack")],
)
case(
    "a required rack skips one whose nodes do not match",
    {"g": ["c", "d"]},
    nodes=[node("a", 1, "r1"), node("b", 1, "r1"), node("c", 1, "r2"), node("d", 1, "r2")],
    gangs=[
        gang(
            "g",
            group("any", 1, 1),
            group("picky", 1, 1, spec={"nodeSelector": {"kubernetes.io/hostname": "c"}}),
            required="rack",
        )
    ],
)
case(
    "nested racks inside spines inside a zone",
    {"g-a": ["n4"], "g-b": ["n5"], "g-c": ["n6"], "g-d": ["n7"]},
    levels=["zone", "spine", "rack"],
    nodes=[
        node(
            f"n{i}",
            2,
            f"r{i}",
            f"z{i // 4}",
            labels={"spine": f"s{i // 2}"},
        )
        for i in range(8)
    ],
    pods=[group("busy", 0, 2, on=["n0"])],
    gangs=[
        gang(
            "g",
            *(
                group(name, 1, 2, required="rack", within=within)
                for name, within in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"))
            ),
            required="zone",
            constraints=[{"name": "x", "required": "spine"}, {"name": "y", "required": "spine"}],
        )
    ],
)
case(
    "the tightest rack is taken, so that the large one stays whole",
    {"g": ["n1", "n1"]},
    levels=LEVELS,
    nodes=[node("n0", 10, "r1"), node("n1", 10, "r2")],
    pods=[group("busy", 0, 1, on=["n1"])],
    gangs=[gang("g", group("p", 2, 1, minimum=1), required="rack")],
)
case(
    "the upper level is packed first",
    {"g": ["d"]},
    levels=["spine", "rack"],
    nodes=[
        *(
            node(n, 1, r, labels={"spine": "s1"})
            for n, r in (("a", "r1"), ("b", "r2"), ("c", "r3"))
        ),
        *(node(n, 1, "r4", labels={"spine": "s2"}) for n in ("d", "e")),
    ],
    gangs=[gang("g", group("p", 1, 1), preferred="rack")],
)
case(
    "three prefill and one decode fill a rack exactly",
    {"g": ["c", "c", "d", "d"]},
    nodes=[node("a", 4, "r1"), node("b", 2, "r1"), node("c", 4, "r2"), node("d", 4, "r2")],
    gangs=[gang("g", group("prefill", 3, 2), group("decode", 1, 2), required="rack")],
)
case(
    "pods of different sizes fill a rack exactly",
    {"g": ["a", "b", "b"]},
    nodes=[node("a", 8, "r1"), node("b", 8, "r1")],
    gangs=[gang("g", group("p", sizes=[4, 8, 4]), required="rack")],
)
case(
    "the group with less choice gets the rack that the other could do without",
    {"g-a": ["n5", "n6"], "g-b": ["n1", "n2", "n3"]},
    nodes=[
        *(node(f"n{i}", 4, "r0") for i in (1, 2, 3)),
        node("n5", 4, "r1"),
        node("n6", 4, "r1"),
        *(node(f"m{i}", 3, "r1") for i in range(5)),
    ],
    gangs=[gang("g", group("a", 2, 4, required="rack"), group("b", 3, 4, required="rack"))],
)
case(
    "sizes that best-fit fills badly are found by trying",
    {"g": ["a"] * 3 + ["b"] * 3},
    nodes=[node("a", 10), node("b", 10)],
    gangs=[gang("g", group("p", sizes=[5, 4, 4, 3, 2, 2]))],
)
case(
    "nodes that are alike may have to be filled alike",
    {"g": ["a"] * 3 + ["b"] * 3},
    nodes=[node("a", 9), node("b", 9)],
    gangs=[gang("g", group("p", sizes=[4, 4, 3, 3, 2, 2]))],
)
case(
    "groups that each need a rack may share one",
    {"g": ["a", "a"]},
    levels=LEVELS,
    nodes=[node("a", 2, "r1", "z1"), node("b", 1, "r2", "z2")],
    gangs=[
        gang(
            "g",
            group("x", 1, 1, required="rack"),
            group("y", 1, 1, required="rack"),
            required="zone",
        )
    ],
)
case(
    "a preferred rack is one where one will do",
    {"g": ["c", "d"]},
    levels=LEVELS,
    nodes=[node("a", 2, "r1"), node("b", 1, "r1"), node("c", 2, "r2"), node("d", 2, "r2")],
    gangs=[gang("g", group("p", 2, 2), preferred="rack")],
)
case(
    "a preferred rack gives way to as few as will do",
    {"g": ["a", "b", "c", "d"]},
    levels=LEVELS,
    nodes=[
        node("a", 2, "r1", "z"),
        node("b", 2, "r1", "z"),
        node("c", 2, "r2", "z"),
        node("d", 2, "r2", "z"),
        node("e", 2, "r3", "z"),
    ],
    gangs=[gang("g", group("p", 4, 2), preferred="rack")],
)
case(
    "minimums of a preferred rack come before growth",
    {"g-x": ["n0", "n1"], "g-y": ["n0", "n1"]},
    levels=["rack"],
    nodes=[node("n0", 2, "r1"), node("n1", 2, "r2")],
    gangs=[gang("g", group("x", 2, 1, minimum=1), group("y", 2, 1, minimum=1), preferred="rack")],
)
case(
    "running pods pin the rack for their replacement",
    {"g": ["a"]},
    nodes=[node("a", 2, "r1"), node("b", 8, "r2")],
    gangs=[gang("g", group("p", 1, 1, on=["a"]), required="rack")],
)
case(
    "a replacement that does not fit beside the others waits",
    {"g": []},
    ("g",),
    nodes=[node("a", 1, "r1"), node("b", 8, "r2")],
    gangs=[gang("g", group("p", 1, 1, on=["a"]), required="rack")],
)
case(
    "growth keeps to the rack of the minimum",
    {"g": ["c", "d"]},
    levels=["rack"],
    nodes=[node("a", 1, "r1"), node("b", 8, "r3"), node("c", 1, "r2"), node("d", 1, "r2")],
    pods=[group("busy", 0, 8, on=["b"])],
    gangs=[gang("g", group("p", 4, 1, minimum=2), required="rack")],
)
case(
    "a scaled gang keeps to the rack of its base gang",
    {"more": ["b"]},
    nodes=[node("a", 1, "r1"), node("b", 2, "r1"), node("c", 8, "r2")],
    gangs=[
        gang("base", group("p", 0, 1, on=["a"]), required="rack"),
        gang("more", group("p", 1, 1), base="base"),
    ],
)
case(
    "a scaled gang does not leave the rack of its base gang",
    {"more": []},
    ("more",),
    nodes=[node("a", 1, "r1"), node("c", 8, "r2")],
    gangs=[
        gang("base", group("p", 0, 1, on=["a"]), required="rack"),
        gang("more", group("p", 1, 1), base="base"),
    ],
)
case(
    "a base gang that starts again joins what was scaled out from it",
    {"base": ["b"]},
    nodes=[node("a", 1, "r1"), node("b", 1, "r1"), node("c", 1, "r2")],
    gangs=[
        gang("base", group("p", 1, 1), required="rack"),
        gang("more", group("p", 0, 1, on=["a"]), base="base"),
    ],
)
case(
    "racks of one name in two zones are two racks",
    {"g": []},
    ("g",),
    levels=LEVELS,
    nodes=[node("a", 1, "r1", "z1"), node("b", 1, "r1", "z2")],
    gangs=[gang("g", group("p", 2, 1), required="rack")],
)
case(
    "nodes without the label are in no rack",
    {"g": []},
    ("g",),
    nodes=[node("a", 8), node("b", 1, "r1")],
    gangs=[gang("g", group("p", 2, 1), required="rack")],
)

# Filters and scores

case(
    "cordoned, tainted and unready nodes take nothing",
    {"x": ["d"]},
    nodes=[
        node("a", 1, spec={"unschedulable": True}),
        node("b", 1, spec={"taints": [{"key": "k", "effect": "NoSchedule"}]}),
        node("c", 1, ready=False),
        node("d", 1),
    ],
    pods=[group("x", 1, 1)],
)
case(
    "a toleration opens a tainted node, a soft taint closes none",
    {"x": ["b"], "y": ["c"]},
    nodes=[
        node("b", 1, spec={"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
        node("c", 1, spec={"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}),
    ],
    pods=[
        group(
            "x",
            1,
            1,
            spec={
                "tolerations": [{"key": "k", "value": "v", "effect": "NoSchedule"}],
                "nodeSelector": {"kubernetes.io/hostname": "b"},
            },
        ),
        group("y", 1, 1),
    ],
)
case(
    "required node affinity: any term, all of its lines",
    {"x": ["c"]},
    nodes=[
        node("a", 1, labels={"gen": "3"}),
        node("b", 1, labels={"gen": "5", "old": "yes"}),
        node("c", 1, labels={"gen": "5"}),
    ],
    pods=[
        group(
            "x",
            1,
            1,
            spec={
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchExpressions": []},
                                {
                                    "matchExpressions": [
                                        {"key": "gen", "operator": "Gt", "values": ["4"]},
                                        {"key": "old", "operator": "DoesNotExist"},
                                    ]
                                },
                            ]
                        }
                    }
                }
            },
        )
    ],
)
case(
    "preferred node affinity wins over packing",
    {"x": ["b"]},
    nodes=[node("a", 1), node("b", 8, labels={"fast": "yes"})],
    pods=[
        group(
            "x",
            1,
            1,
            spec={
                "affinity": {
                    "nodeAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "weight": 5,
                                "preference": {
                                    "matchExpressions": [{"key": "fast", "operator": "Exists"}]
                                },
                            }
                        ]
                    }
                }
            },
        )
    ],
)
case(
    "the number of pods, extended resources and CPU all count",
    {"x": ["d"]},
    nodes=[
        node("a", 1, pods=0),
        node("b", 1, cpu="500m", allocatable={"rdma/ib": 1}),
        node("c", 1),
        node("d", 1, allocatable={"rdma/ib": 1}),
    ],
    pods=[group("x", 1, 1, cpu="600m", requests={"rdma/ib": 1})],
)
case(
    "pods pack the fullest node that has room",
    {"x": ["b", "b"]},
    nodes=[node("a", 4), node("b", 4), node("c", 4)],
    pods=[group("busy", 0, 2, on=["b"]), group("x", 2, 1)],
)
case(
    "pods without a GPU leave GPU nodes alone",
    {"x": ["b"]},
    nodes=[node("a", 4), node("b", 0)],
    pods=[group("x", 1, 0, cpu=1)],
)
PORTS = {"containers": [{"name": "m", "ports": [{"containerPort": 80, "hostPort": 80}]}]}
case(
    "a host port is had once per node",
    {"g": ["a", "b"], "x": []},
    ("x",),
    nodes=[node("a", 0), node("b", 0)],
    gangs=[gang("g", group("p", 2, spec=PORTS))],
    pods=[group("x", 1, spec=PORTS)],
)


def term(labels: dict[str, str], key: str, kind: str = "podAntiAffinity") -> dict[str, Any]:
    line = {"labelSelector": {"matchLabels": labels}, "topologyKey": key}
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [line]}}}


HOST = "kubernetes.io/hostname"
case(
    "anti-affinity spreads a gang over hosts",
    {"g": ["a", "b"]},
    nodes=[node("a", 8), node("b", 8)],
    gangs=[gang("g", group("p", 2, 1, labels={"x": "1"}, spec=term({"x": "1"}, HOST)))],
)
case(
    "anti-affinity that leaves too few hosts keeps the gang pending",
    {"g": []},
    ("g",),
    nodes=[node("a", 8), node("b", 8)],
    gangs=[gang("g", group("p", 3, 1, labels={"x": "1"}, spec=term({"x": "1"}, HOST)))],
)
case(
    "anti-affinity of a running pod keeps others away",
    {"x": ["b"]},
    nodes=[node("a", 2), node("b", 8)],
    pods=[
        group("busy", 0, 1, on=["a"], spec=term({"app": "x"}, HOST)),
        group("x", 1, 1, labels={"app": "x"}),
    ],
)
case(
    "affinity follows a running pod into its rack",
    {"x": ["b"]},
    nodes=[node("a", 1, "r1"), node("b", 8, "r2"), node("c", 1, "r2")],
    pods=[
        group("leader", 0, 1, on=["c"], labels={"app": "l"}),
        group("x", 1, 1, spec=term({"app": "l"}, "rack", "podAffinity")),
    ],
)
case(
    "affinity to one's own kind lets the first go anywhere and the others follow",
    {"g": ["a", "b"]},
    nodes=[node("a", 1, "r1"), node("b", 1, "r1"), node("c", 1, "r2")],
    gangs=[
        gang("g", group("p", 2, 1, labels={"x": "1"}, spec=term({"x": "1"}, "rack", "podAffinity")))
    ],
)
case(
    "affinity between two groups of a gang is resolved inside it",
    {"g-follow": ["b"], "g-lead": ["b"]},
    nodes=[node("a", 1), node("b", 2)],
    gangs=[
        gang(
            "g",
            group("follow", 1, 1, spec=term({"role": "lead"}, HOST, "podAffinity")),
            group("lead", 1, 1, labels={"role": "lead"}),
        )
    ],
)


@pytest.mark.parametrize(("document", "want", "pending"), CASES)
def test_placement(
    document: dict[str, Any], want: dict[str, list[str]], pending: tuple[str, ...]
) -> None:
    outcome = Outcome(document)

    assert {name: outcome.nodes(name) for name in want} == want
    kinds = {key: verdict.kind for key, verdict in outcome.result.verdicts.items()}
    unplaced = {key for key, kind in kinds.items() if kind in ("unplaced", "pipelined")}
    assert unplaced == {f"default/{name}" for name in pending}
    assert all(outcome.result.verdicts[key].reason for key in unplaced)
