"""Where pods are placed: racks and blocks of nodes with the real scheduler.

Each rack has two nodes of four GPUs, each block two racks, each zone two blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.controllers.farm import clique, pcs
from tests.controllers.scenarios.stage import play

from spinney.api import codec
from spinney.api.grove import ClusterTopologyBinding, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.meta import find_condition
from spinney.sim.cluster import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.controllers.scenarios.stage import Stage

LEVELS = ("zone", "block", "rack", "host")
NODES = [
    SimulatedNode(
        f"n{at:02}",
        {"zone": f"z{at // 8}", "block": f"b{at // 4}", "rack": f"r{at // 2}", "host": f"n{at:02}"},
        gpus=4,
    )
    for at in range(16)
]


def binding(name: str = "cluster", levels: tuple[str, ...] = LEVELS) -> ClusterTopologyBinding:
    body = {
        "metadata": {"name": name},
        "spec": {"levels": [{"domain": level, "key": level} for level in levels]},
    }
    return codec.from_dict(ClusterTopologyBinding, body)


def pack(required: str = "", preferred: str = "", name: str = "cluster") -> dict[str, Any]:
    found = {"required": required} if required else {}
    found |= {"preferred": preferred} if preferred else {}
    return {"topologyName": name, "pack": found}


def role(name: str, replicas: int, constraint: Any = None, gpus: int = 1) -> dict[str, Any]:
    made = clique(name, replicas)
    pod = made["spec"]["podSpec"]
    pod["schedulerName"] = "spinney-scheduler"
    pod["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    if constraint:
        made["topologyConstraint"] = constraint
    return made


def group(name: str, *cliques: str, replicas: int, minimum: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "cliqueNames": list(cliques),
        "replicas": replicas,
        "minAvailable": minimum,
        **more,
    }


def spread(stage: Stage, prefix: str, level: str) -> int:
    """Return over how many domains the pods of cliques with this prefix are spread."""
    nodes = {node.name: node.labels for node in NODES}
    pods = [p for p in stage.pods() if p.labels["grove.io/podclique"].startswith(prefix)]
    assert pods, prefix
    return len({nodes[pod.spec.node_name][level] for pod in pods})


def placed(
    manifest: dict[str, Any],
    pods: int,
    check: Callable[[Stage], None],
    nodes: Sequence[SimulatedNode] = NODES,
) -> None:
    async def scene(stage: Stage) -> None:
        await stage.client.create(binding())
        await stage.apply(manifest)
        await stage.ready(pods)
        check(stage)

    play(scene, nodes)


ONE = {
    "TAS2": (
        pcs(role("a", 3, pack("rack")), role("b", 4, pack("block"))),
        7,
        {"s-0-a": "rack", "s-0-b": "block"},
    ),
    "TAS3": (pcs(role("a", 2), role("b", 2), topologyConstraint=pack("rack")), 4, {"s-0": "rack"}),
    "TAS4": (
        pcs(
            role("router", 2),
            role("work", 2),
            groups=[group("g", "work", replicas=2, topologyConstraint=pack("rack"))],
        ),
        6,
        {"s-0-g-0": "rack", "s-0-g-1": "rack"},
    ),
    "TAS5": (pcs(role("a", 2, pack("host"))), 2, {"s-0-a": "host"}),
    "TAS6": (pcs(role("a", 4), topologyConstraint=pack("zone")), 4, {"s-0": "zone"}),
    "TAS7": (pcs(role("a", 2), role("b", 2)), 4, {}),
    "TAS8": (
        pcs(
            role("prefill", 2, pack("host")),
            role("decode", 2, pack("host")),
            topologyConstraint=pack("block"),
            groups=[
                group(
                    "g",
                    "prefill",
                    "decode",
                    replicas=2,
                    minimum=2,
                    topologyConstraint=pack("rack"),
                )
            ],
        ),
        8,
        {
            "s-0": "block",
            "s-0-g-0": "rack",
            "s-0-g-1": "rack",
            "s-0-g-0-prefill": "host",
            "s-0-g-1-decode": "host",
        },
    ),
    "TAS9": (
        pcs(role("a", 4, pack("host")), role("b", 2), topologyConstraint=pack("block")),
        6,
        {"s-0": "block", "s-0-a": "host"},
    ),
    "TAS10": (
        pcs(
            role("lead", 1),
            role("work", 2),
            topologyConstraint=pack("zone"),
            groups=[group("g", "lead", "work", replicas=3, topologyConstraint=pack("rack"))],
        ),
        9,
        {"s-0": "zone", "s-0-g-0": "rack", "s-0-g-1": "rack", "s-0-g-2": "rack"},
    ),
    "TAS11": (
        pcs(
            role("lead", 1),
            role("work", 3, pack("host")),
            groups=[group("g", "lead", "work", replicas=2, topologyConstraint=pack("rack"))],
        ),
        8,
        {"s-0-g-0": "rack", "s-0-g-1": "rack", "s-0-g-0-work": "host"},
    ),
    "TAS12": (
        pcs(
            role("work", 2, pack("host")),
            groups=[group("g", "work", replicas=10, minimum=3)],
        ),
        20,
        {f"s-0-g-{j}-": "host" for j in range(10)},
    ),
    "TAS14": (
        pcs(role("a", 4), topologyConstraint=pack("rack"), replicas=2),
        8,
        {"s-0": "rack", "s-1": "rack"},
    ),
    "TAS15": (
        pcs(
            role("router", 2),
            role("prefill", 2),
            role("decode", 2),
            topologyConstraint=pack("block"),
            groups=[
                group("p", "prefill", replicas=2, topologyConstraint=pack("rack")),
                group("d", "decode", replicas=2, topologyConstraint=pack("rack")),
            ],
        ),
        10,
        {"s-0": "block", "s-0-p-0": "rack", "s-0-p-1": "rack", "s-0-d-1": "rack"},
    ),
    "TAS16": (
        pcs(
            role("router", 2),
            role("prefill", 2, pack("host")),
            role("decode", 2),
            topologyConstraint=pack("block"),
            groups=[
                group("p", "prefill", replicas=2, topologyConstraint=pack("rack")),
                group("d", "decode", replicas=2, topologyConstraint=pack("rack")),
            ],
            replicas=2,
        ),
        20,
        {"s-0": "block", "s-1": "block", "s-1-p-1": "host", "s-1-d-1": "rack"},
    ),
    "TAS23": (
        pcs(role("a", 2, pack(preferred="host")), topologyConstraint=pack("block", "rack")),
        2,
        {"s-0": "host"},
    ),
}


@pytest.mark.parametrize("name", ONE)
def test_pods_are_packed_as_their_constraints_say(name: str) -> None:
    manifest, pods, want = ONE[name]

    def check(stage: Stage) -> None:
        assert {prefix: spread(stage, prefix, level) for prefix, level in want.items()} == (
            dict.fromkeys(want, 1)
        )

    # A base gang reserves no room for the scaled gangs that have to join it in its block.
    nodes = [replace(node, gpus=8) for node in NODES] if name == "TAS16" else NODES
    placed(manifest, pods, check, nodes)


def test_gangs_of_a_large_group_are_numbered_above_the_minimum_tas12() -> None:
    async def scene(stage: Stage) -> None:
        await stage.client.create(binding())
        await stage.apply(ONE["TAS12"][0])
        await stage.ready(20)
        base = await stage.gang("s-0")
        assert [g.name for g in base.spec.pod_groups] == [f"s-0-g-{j}-work" for j in range(3)]
        for k in range(7):
            scaled = await stage.gang(f"s-0-g-{k}")
            assert [g.name for g in scaled.spec.pod_groups] == [f"s-0-g-{k + 3}-work"]

    play(scene, NODES)


def test_what_fits_nowhere_waits_as_a_whole_and_says_why_tas13() -> None:
    async def scene(stage: Stage) -> None:
        await stage.client.create(binding())
        await stage.apply(pcs(role("a", 10), topologyConstraint=pack("rack")))
        await stage.settle()
        assert len(stage.pods()) == 10
        assert stage.on_nodes() == {}
        scheduled = find_condition((await stage.gang("s-0")).status.conditions, "Scheduled")
        assert scheduled is not None
        assert (scheduled.status, scheduled.reason) == ("False", "Unschedulable")
        assert await stage.reasons("FailedScheduling")
        available = find_condition((await stage.set()).status.conditions, "Available")
        assert available is not None
        assert "a of replica 0" in available.message
        assert "has no node" in available.message

    play(scene, NODES)


def test_two_topologies_place_their_own_sets_tas17() -> None:
    """One domain name means one label for one set and another for the other."""
    other = codec.from_dict(
        ClusterTopologyBinding,
        {
            "metadata": {"name": "other"},
            "spec": {"levels": [{"domain": "block", "key": "rack"}]},
        },
    )

    async def scene(stage: Stage) -> None:
        await stage.client.create(binding())
        await stage.client.create(other)
        await stage.apply(pcs(role("a", 8), name="wide", topologyConstraint=pack("block")))
        narrow = pcs(role("a", 8), name="narrow", topologyConstraint=pack("block", name="other"))
        await stage.apply(narrow)
        await stage.ready(16)
        assert spread(stage, "wide-0", "block") == 1
        assert spread(stage, "narrow-0", "rack") == 1

    play(scene, NODES)


def test_without_its_binding_a_set_runs_unconstrained_and_says_so_tas20() -> None:
    async def told(stage: Stage, want: tuple[str, str]) -> None:
        async def holds() -> bool:
            conditions = (await stage.set()).status.conditions
            found = find_condition(conditions, "TopologyLevelsUnavailable")
            return found is not None and (found.status, found.reason) == want

        await stage.until(holds, f"the condition {want}")

    async def scene(stage: Stage) -> None:
        await stage.client.create(binding())
        await stage.apply(pcs(role("a", 2), topologyConstraint=pack("rack"), replicas=0))
        await told(stage, ("False", "AllClusterTopologyLevelsAvailable"))
        await stage.client.delete(ClusterTopologyBinding, "cluster")
        await told(stage, ("Unknown", "ClusterTopologyNotFound"))
        await stage.scale(PodCliqueSet, "s", 1)
        await stage.ready(2)
        assert (await stage.gang("s-0")).spec.topology_constraint is None
        await stage.client.create(binding())
        await told(stage, ("False", "AllClusterTopologyLevelsAvailable"))

    play(scene, NODES)


def test_a_scaled_gang_stays_in_the_block_of_its_base() -> None:
    async def scene(stage: Stage) -> None:
        await stage.client.create(binding())
        manifest = pcs(
            role("lead", 1),
            role("work", 3),
            topologyConstraint=pack("block"),
            groups=[group("g", "lead", "work", replicas=1)],
        )
        await stage.apply(manifest)
        await stage.ready(4)
        await stage.scale(PodCliqueScalingGroup, "s-0-g", 4)
        await stage.ready(16)
        assert spread(stage, "s-0", "block") == 1

    play(scene, NODES)
