"""Pods that look at nodes, at other pods, at volumes and at claimed devices."""

from __future__ import annotations

from typing import Any

from tests.scheduler.offline_table import Table, busy, gang, group, leaving, node

TABLE = Table("allocate")
case = TABLE.case

HOST = "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def beside(labels: dict[str, str], key: str, kind: str = "podAffinity") -> dict[str, Any]:
    line = {"labelSelector": {"matchLabels": labels}, "topologyKey": key}
    return {"affinity": {kind: {REQUIRED: [line]}}}


def apart(labels: dict[str, str], key: str = HOST) -> dict[str, Any]:
    return beside(labels, key, "podAntiAffinity")


def rather(labels: dict[str, str], key: str, kind: str = "podAffinity") -> dict[str, Any]:
    line = {"labelSelector": {"matchLabels": labels}, "topologyKey": key}
    return {"affinity": {kind: {PREFERRED: [{"weight": 10, "podAffinityTerm": line}]}}}


def on(*terms: dict[str, Any]) -> dict[str, Any]:
    lines = [{"matchExpressions": [term]} for term in terms]
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": lines}}}}


# Nodes

case(
    "each pod of a gang has nodes of its own",
    {"g-p-0": "B b", "g-p-1": "B a"},
    nodes=[node("a", 2), node("b", 2)],
    gangs=[
        gang(
            "g",
            group(
                "p",
                [
                    {"spec": on({"key": HOST, "operator": "In", "values": ["b"]})},
                    {"spec": on({"key": HOST, "operator": "NotIn", "values": ["b"]})},
                ],
                1,
            ),
        )
    ],
)
case(
    "one pod whose only node is full holds back its gang",
    {"g": "-, -"},
    nodes=[node("a", 1), node("b", 8)],
    pods=[busy("a", 1)],
    gangs=[
        gang(
            "g",
            group("p", [{"spec": on({"key": HOST, "operator": "In", "values": ["a"]})}, {}], 1),
        )
    ],
)
case(
    "a label that exists, one that does not, and numbers",
    {"x": "B c"},
    nodes=[
        node("a", 1, labels={"gen": "3"}),
        node("b", 1, labels={"gen": "5", "old": ""}),
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
                        REQUIRED: {
                            "nodeSelectorTerms": [
                                {
                                    "matchExpressions": [
                                        {"key": "gen", "operator": "Gt", "values": ["4"]},
                                        {"key": "old", "operator": "DoesNotExist"},
                                    ]
                                }
                            ]
                        }
                    }
                }
            },
        )
    ],
)
case(
    "taints and what tolerates them",
    {"x": "B b", "y": "-"},
    nodes=[
        node("b", 2, taints=[{"key": "gpu", "value": "yes"}]),
    ],
    pods=[
        group("x", 1, 1, spec={"tolerations": [{"key": "gpu", "operator": "Exists"}]}),
        group("y", 1, 1, spec={"tolerations": [{"key": "gpu", "value": "no"}]}),
    ],
)
case(
    "cordoned and unready nodes take nothing new, what runs there stays",
    {"x": "-", "busy-a": "R a"},
    nodes=[node("a", 2, unschedulable=True), node("b", 2, ready=False)],
    pods=[busy("a", 1), group("x", 1, 1)],
)
case(
    "two pods that want one port of the host are on two hosts",
    {"x": "B a, B b, -"},
    nodes=[node("a"), node("b")],
    pods=[group("x", 3, hostPorts=[8080])],
)

case(
    "a port of the host that is being freed is waited for",
    {"x": "P a"},
    nodes=[node("a")],
    pods=[group("old", 0, hostPorts=[8080], leaving=["a"]), group("x", hostPorts=[8080])],
)

# Pods

case(
    "a pod follows another one that runs to its host",
    {"x": "B b"},
    nodes=[node("a", 1), node("b", 8)],
    pods=[busy("b", 1, labels={"app": "l"}), group("x", 1, 1, spec=beside({"app": "l"}, HOST))],
)
case(
    "a pod follows another one that runs to its rack and packs there",
    {"x": "B c"},
    nodes=[node("a", 1, "r1"), node("b", 8, "r2"), node("c", 2, "r2")],
    pods=[
        busy("b", 1, labels={"app": "l"}),
        group("x", 1, 1, spec=beside({"app": "l"}, "rack")),
    ],
)
case(
    "a pod that has nobody to follow waits",
    {"x": "-"},
    nodes=[node("a", 8)],
    pods=[group("x", 1, 1, spec=beside({"app": "l"}, HOST))],
)
case(
    "a pod follows one that is placed in the same cycle",
    {"l": "B b", "x": "B b"},
    nodes=[node("a", 1), node("b", 2)],
    pods=[
        group(
            "l",
            1,
            1,
            labels={"app": "l"},
            spec={"nodeSelector": {HOST: "b"}},
        ),
        group("x", 1, 1, spec=beside({"app": "l"}, HOST)),
    ],
)
case(
    "who is to be followed goes where there is room for both",
    {"g": "B b, B b"},
    nodes=[node("a", 1), node("b", 2)],
    gangs=[
        gang(
            "g",
            group("l", 1, 1, labels={"app": "l"}),
            group("x", 1, 1, spec=beside({"app": "l"}, HOST)),
        )
    ],
)
case(
    "the first of a kind goes anywhere and the others to it",
    {"g": "B b, B b, B b"},
    nodes=[node("a", 2), node("b", 3)],
    gangs=[gang("g", group("p", 3, 1, labels={"k": "1"}, spec=beside({"k": "1"}, HOST)))],
)
case(
    "pods that stay away from each other have a host each",
    {"g": "B a, B b, B c"},
    nodes=[node("a", 8), node("b", 8), node("c", 8)],
    gangs=[gang("g", group("p", 3, 1, labels={"k": "1"}, spec=apart({"k": "1"})))],
)
case(
    "with too few hosts to stay away from each other none is placed",
    {"g": "-, -, -"},
    nodes=[node("a", 8), node("b", 8)],
    gangs=[gang("g", group("p", 3, 1, labels={"k": "1"}, spec=apart({"k": "1"})))],
)
case(
    "an elastic gang that stays apart has as many as there are hosts",
    {"g": "B a, B b, -"},
    nodes=[node("a", 8), node("b", 8)],
    gangs=[gang("g", group("p", 3, 1, minimum=1, labels={"k": "1"}, spec=apart({"k": "1"})))],
)
case(
    "who runs keeps others away by its own wish",
    {"x": "B b"},
    nodes=[node("a", 2), node("b", 8)],
    pods=[busy("a", 1, spec=apart({"app": "x"})), group("x", 1, 1, labels={"app": "x"})],
)
case(
    "who is leaving still keeps others away, and its room is waited for",
    {"x": "P a"},
    nodes=[node("a", 2)],
    pods=[leaving("a", 1, labels={"app": "y"}), group("x", 1, 1, spec=apart({"app": "y"}))],
)
case(
    "racks apart, in one zone",
    {"g": "B a, B c"},
    levels=["zone", "rack"],
    nodes=[
        node("a", 1, "r1", "z1"),
        node("b", 1, "r1", "z1"),
        node("c", 1, "r2", "z1"),
        node("d", 1, "r3", "z2"),
    ],
    gangs=[
        gang(
            "g",
            group("p", 2, 1, labels={"k": "1"}, spec=apart({"k": "1"}, "rack")),
            required="zone",
        )
    ],
)
case(
    "rather beside than packed",
    {"x": "B b"},
    nodes=[node("a", 1), node("b", 8)],
    pods=[busy("b", 1, labels={"app": "l"}), group("x", 1, 1, spec=rather({"app": "l"}, HOST))],
)
case(
    "rather apart than packed",
    {"x": "B b"},
    nodes=[node("a", 2), node("b", 8)],
    pods=[
        busy("a", 1, labels={"app": "l"}),
        group("x", 1, 1, spec=rather({"app": "l"}, HOST, "podAntiAffinity")),
    ],
)
case(
    "a preference that cannot be had gives way",
    {"x": "B a"},
    nodes=[node("a", 2), node("b", 1)],
    pods=[
        busy("b", 1, labels={"app": "l"}),
        group("x", 1, 1, spec=rather({"app": "l"}, HOST)),
    ],
)
case(
    "pods of other namespaces do not count",
    {"x": "-"},
    nodes=[node("a", 8)],
    pods=[
        busy("a", 1, labels={"app": "l"}, namespace="other"),
        group("x", 1, 1, spec=beside({"app": "l"}, HOST)),
    ],
)

# Volumes and claims

case(
    "a volume keeps its pod on the nodes that reach it",
    {"x": "B b"},
    nodes=[node("a", 1), node("b", 8)],
    volumes=[{"name": "data", "nodes": ["b"]}],
    pods=[group("x", 1, 1, volumes=["data"])],
)
case(
    "a volume in a zone decides the zone of a gang",
    {"g": "B c, B d"},
    levels=["zone"],
    nodes=[
        node("a", 1, "", "z1"),
        node("b", 1, "", "z1"),
        node("c", 2, "", "z2"),
        node("d", 2, "", "z2"),
    ],
    volumes=[{"name": "data", "labels": {"zone": "z2"}}],
    gangs=[gang("g", group("p", [{"volumes": ["data"]}, {}], 2), required="zone")],
)
case(
    "claimed devices are there or not",
    {"x": "B b", "y": "-"},
    nodes=[node("a"), node("b", devices={"gpu.nvidia.com": 1})],
    pods=[
        group("x", claims={"gpu.nvidia.com": 1}),
        group("y", claims={"gpu.nvidia.com": 1}),
    ],
)
case(
    "a claim for more devices than one node has waits",
    {"x": "-"},
    nodes=[node("a", devices={"gpu": 1}), node("b", devices={"gpu": 1})],
    pods=[group("x", claims={"gpu": 2})],
)
case(
    "a claim for a class that no node has waits",
    {"x": "-"},
    nodes=[node("a", devices={"gpu": 1})],
    pods=[group("x", claims={"other": 1})],
)
case(
    "claims of two classes need a node with both",
    {"x": "B c"},
    nodes=[
        node("a", devices={"gpu": 1}),
        node("b", devices={"nic": 1}),
        node("c", devices={"gpu": 1, "nic": 1}),
    ],
    pods=[group("x", claims={"gpu": 1, "nic": 1})],
)
case(
    "claims pack the node in use",
    {"x": "B b"},
    nodes=[node("a", devices={"gpu": 4}), node("b", devices={"gpu": 4})],
    pods=[group("old", 0, claims={"gpu": 1}, on=["b"]), group("x", claims={"gpu": 1})],
)
case(
    "a gang whose pods claim a device each is placed whole",
    {"g": "B a, B a, B b"},
    nodes=[node("a", devices={"gpu": 2}), node("b", devices={"gpu": 2})],
    gangs=[gang("g", group("p", 3, claims={"gpu": 1}))],
)
case(
    "a gang of which one claim cannot be had is not placed",
    {"g": "-, -, -"},
    nodes=[node("a", devices={"gpu": 2})],
    gangs=[gang("g", group("p", 3, claims={"gpu": 1}))],
)
case(
    "an elastic gang has as many pods as there are devices",
    {"g": "B a, B a, -"},
    nodes=[node("a", devices={"gpu": 2})],
    gangs=[gang("g", group("p", 3, claims={"gpu": 1}, minimum=1))],
)
case(
    "a claim waits for a pod that is leaving with its device",
    {"x": "P a"},
    nodes=[node("a", devices={"gpu": 1})],
    pods=[group("old", 0, claims={"gpu": 1}, leaving=["a"]), group("x", claims={"gpu": 1})],
)
case(
    "whole GPUs and claimed devices are two things",
    {"x": "B a", "y": "B a"},
    nodes=[node("a", 1, devices={"gpu": 1})],
    pods=[group("x", 1, 1), group("y", claims={"gpu": 1})],
)
case(
    "a required rack counts claimed devices",
    {"g": "B b, B c"},
    levels=["rack"],
    nodes=[
        node("a", 0, "r1", devices={"gpu": 1}),
        node("b", 0, "r2", devices={"gpu": 1}),
        node("c", 0, "r2", devices={"gpu": 1}),
    ],
    gangs=[gang("g", group("p", 2, claims={"gpu": 1}), required="rack")],
)

SHARED = {"claims": [{"name": "c", "devices": {"gpu": 1}}]}
case(
    "two pods that share a claim run on one node and take its device once",
    {"x": "B b", "y": "B b"},
    nodes=[node("a"), node("b", devices={"gpu": 1})],
    pods=[group("x", sharedClaims=["c"]), group("y", sharedClaims=["c"])],
    **SHARED,
)
case(
    "a gang whose pods share a claim is on one node",
    {"g": "B b, B b, B b"},
    nodes=[node("a", 2, devices={"gpu": 4}), node("b", 3, devices={"gpu": 1})],
    gangs=[gang("g", group("p", 3, 1, sharedClaims=["c"]))],
    **SHARED,
)
case(
    "a gang whose pods share a claim and fit no node together waits",
    {"g": "-, -, -"},
    nodes=[node("a", 2, devices={"gpu": 4}), node("b", 2, devices={"gpu": 1})],
    gangs=[gang("g", group("p", 3, 1, sharedClaims=["c"]))],
    **SHARED,
)
case(
    "a pod joins the one that runs with the claim they share",
    {"x": "B b"},
    nodes=[node("a", devices={"gpu": 1}), node("b", devices={"gpu": 1})],
    pods=[group("old", 0, on=["b"], sharedClaims=["c"]), group("x", sharedClaims=["c"])],
    **SHARED,
)
case(
    "a shared claim whose node is full holds back who wants to join",
    {"x": "-"},
    nodes=[node("a", 1, devices={"gpu": 1}), node("b", 1, devices={"gpu": 1})],
    pods=[group("old", 0, 1, on=["b"], sharedClaims=["c"]), group("x", 1, 1, sharedClaims=["c"])],
    **SHARED,
)
case(
    "the device of a shared claim is free when the last of its pods is gone",
    {"z": "R b"},
    cycles=3,
    nodes=[node("b", devices={"gpu": 1})],
    pods=[
        group("old", 0, leaving=["b"], sharedClaims=["c"]),
        group("older", 0, leaving=["b"], sharedClaims=["c"]),
        group("z", claims={"gpu": 1}),
    ],
    **SHARED,
)
case(
    "a shared claim is one device over several cycles",
    {"x": "R a", "y": "R a", "z": "-"},
    cycles=3,
    nodes=[node("a", devices={"gpu": 1})],
    pods=[
        group("x", sharedClaims=["c"]),
        group("y", sharedClaims=["c"]),
        group("z", claims={"gpu": 1}),
    ],
    **SHARED,
)
case(
    "a pod with a claim of its own and a shared one",
    {"x": "B b", "y": "B b"},
    nodes=[node("a", devices={"gpu": 2}), node("b", devices={"gpu": 2, "nic": 1})],
    pods=[group("x", claims={"nic": 1}, sharedClaims=["c"]), group("y", sharedClaims=["c"])],
    **SHARED,
)

test_affinity = TABLE.test()
