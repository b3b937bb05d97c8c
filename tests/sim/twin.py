"""The twin that the tests run: the embedded API server with all programs, and sets to give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api.core import Pod
from spinney.api.crd import crd_documents
from spinney.api.grove import ClusterTopologyBinding, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.api.meta import is_true
from spinney.controllers.setup import register as controllers
from spinney.local.apiserver.server import ApiServer
from spinney.scheduler.setup import register as scheduler
from spinney.sim.cluster import SimulatedCluster, SimulatedNode, simulate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from spinney.clock import Clock
    from spinney.ids import IdSource


def api(clock: Clock, ids: IdSource) -> ApiServer:
    return ApiServer(clock, ids, hooks=[GroveAdmission()], definitions=crd_documents())


def racks(nodes: int, per_rack: int = 10, per_zone: int = 50) -> list[SimulatedNode]:
    """Return nodes ``n000``, ``n001``... in racks and zones."""
    return [
        SimulatedNode(
            f"n{at:03}",
            {
                "topology.kubernetes.io/zone": f"z{at // per_zone}",
                "topology.kubernetes.io/rack": f"r{at // per_rack}",
            },
        )
        for at in range(nodes)
    ]


def play(
    scene: Callable[[SimulatedCluster], Awaitable[Any]],
    seed: int = 1,
    nodes: Sequence[SimulatedNode] | None = None,
) -> Any:
    return simulate(
        scene,
        seed=seed,
        nodes=racks(100) if nodes is None else nodes,
        api=api,
        programs=(controllers, scheduler),
    )


def topology() -> ClusterTopologyBinding:
    levels = [
        {"domain": "zone", "key": "topology.kubernetes.io/zone"},
        {"domain": "rack", "key": "topology.kubernetes.io/rack"},
        {"domain": "host", "key": "kubernetes.io/hostname"},
    ]
    return msgspec.convert(
        {"metadata": {"name": "cluster"}, "spec": {"levels": levels}}, ClusterTopologyBinding
    )


def clique(name: str, replicas: int, gpus: int, *after: str, **more: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": "example.org/worker:1",
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {},
    }
    spec = {
        "roleName": name,
        "replicas": replicas,
        "podSpec": {"schedulerName": "spinney-scheduler", "containers": [container]},
        **more,
    }
    if after:
        spec["startsAfter"] = list(after)
    return {"name": name, "spec": spec}


def pod_clique_set(
    name: str, cliques: list[dict[str, Any]], replicas: int = 1, **template: Any
) -> PodCliqueSet:
    body = {"cliques": cliques, **template}
    if any("startsAfter" in c["spec"] for c in cliques):
        body["cliqueStartupType"] = "CliqueStartupTypeExplicit"
    raw = {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "template": body},
    }
    return msgspec.convert(raw, PodCliqueSet)


def in_one(domain: str) -> dict[str, Any]:
    return {"topologyName": "cluster", "pack": {"required": domain}}


async def all_pods(cluster: SimulatedCluster) -> list[Pod]:
    return (await cluster.client.list(Pod, "default")).items


async def until_ready(cluster: SimulatedCluster, pods: int, within_s: float = 120) -> float:
    seen = cluster.runtime.informer(Pod)

    async def ready() -> bool:
        found = seen.list("default")
        return len(found) == pods and all(is_true(p.status.conditions, "Ready") for p in found)

    return await cluster.until(ready, within_s=within_s, what=f"{pods} pods ready")
