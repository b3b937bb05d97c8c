"""A stage for acceptance scenarios: the real controllers and the real scheduler on nodes that hold
one pod each, so that capacity is a number of nodes, opened and closed by cordoning."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from tests.controllers.farm import NS, clique, pcs

from spinney.api import codec
from spinney.api.core import Event, Node, Pod
from spinney.api.crd import crd_documents
from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.api.podgang import PodGang
from spinney.controllers.pod_state import is_live, is_ready, is_scheduled
from spinney.controllers.setup import register as controllers
from spinney.local.apiserver.server import ApiServer
from spinney.scheduler.setup import register as scheduler
from spinney.sim.cluster import SimulatedNode, simulate
from spinney.sim.kubelet import KubeletModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.sim.cluster import SimulatedCluster

QUICK = KubeletModel(
    pull_s=(0.1, 0.3), start_s=(0.1, 0.2), ready_s=(0.2, 0.5), stop_s=(0.1, 0.2), restart_s=(1, 2)
)
SETTLE_S = 8.0
"""Simulated seconds in which everything that can be placed has been."""

documents = functools.cache(crd_documents)


def api(clock: Clock, ids: IdSource) -> ApiServer:
    return ApiServer(clock, ids, hooks=[GroveAdmission()], definitions=documents())


class Stage:
    """What a scenario works with."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.client = cluster.client
        self._pods = cluster.runtime.informer(Pod)
        self._names = [node.name for node in cluster.nodes]
        self._open = list(self._names)

    # Capacity

    async def close_nodes(self, count: int) -> None:
        """Cordon *count* of the open nodes, the last first."""
        for _ in range(count):
            await self.cordon(self._open[-1])

    async def open_nodes(self, count: int | None = None) -> None:
        """Uncordon *count* nodes, or all."""
        closed = [name for name in self._names if name not in self._open]
        for name in closed[: len(closed) if count is None else count]:
            await self.client.patch(Node, name, {"spec": {"unschedulable": None}})
            self._open.append(name)

    async def cordon(self, name: str) -> None:
        await self.client.patch(Node, name, {"spec": {"unschedulable": True}})
        self._open.remove(name)

    # What there is

    def pods(self, clique: str = "") -> list[Pod]:
        found = [pod for pod in self._pods.list(NS) if is_live(pod)]
        return [p for p in found if not clique or p.labels["grove.io/podclique"] == clique]

    def on_nodes(self) -> dict[str, int]:
        """Return how many pods of each clique have a node, without those that have none."""
        found: dict[str, int] = {}
        for pod in self.pods():
            if is_scheduled(pod):
                name = pod.labels["grove.io/podclique"]
                found[name] = found.get(name, 0) + 1
        return dict(sorted(found.items()))

    def uids(self, prefix: str = "") -> set[str]:
        found = [p for p in self.pods() if p.labels["grove.io/podclique"].startswith(prefix)]
        return {pod.metadata.uid for pod in found}

    async def clique(self, name: str) -> PodClique:
        return await self.client.get(PodClique, name, NS)

    async def group(self, name: str) -> PodCliqueScalingGroup:
        return await self.client.get(PodCliqueScalingGroup, name, NS)

    async def gang(self, name: str) -> PodGang:
        return await self.client.get(PodGang, name, NS)

    async def set(self, name: str = "s") -> PodCliqueSet:
        return await self.client.get(PodCliqueSet, name, NS)

    async def reasons(self, reason: str) -> list[str]:
        events = (await self.client.list(Event, NS)).items
        return [event.message for event in events if event.reason == reason]

    # What happens

    async def apply(self, manifest: dict[str, Any]) -> None:
        await self.client.create(codec.from_dict(PodCliqueSet, manifest))

    async def scale(self, kind: type[Any], name: str, replicas: int) -> None:
        await self.client.set_scale(kind, name, replicas, NS)

    async def kill(self, clique: str, count: int = 1) -> None:
        """Cordon the nodes of *count* ready pods of a clique and delete the pods."""
        victims = [pod for pod in self.pods(clique) if is_ready(pod)][:count]
        assert len(victims) == count, f"{clique} has {len(victims)} ready pods"
        for pod in victims:
            await self.cordon(pod.spec.node_name)
            await self.client.delete(Pod, pod.name, NS)

    async def delete_pod(self, clique: str) -> None:
        pod = next(pod for pod in self.pods(clique) if is_ready(pod))
        await self.client.delete(Pod, pod.name, NS)

    async def settle(self, seconds: float = SETTLE_S) -> None:
        await asyncio.sleep(seconds)

    async def ready(self, pods: int, within_s: float = 60) -> None:
        async def holds() -> bool:
            found = self.pods()
            return len(found) == pods and all(map(is_ready, found))

        await self.until(holds, f"{pods} pods ready", within_s)

    async def until(
        self, holds: Callable[[], Awaitable[bool]], what: str, within_s: float = 60
    ) -> None:
        await self.cluster.until(holds, within_s=within_s, what=what)


def play(
    scene: Callable[[Stage], Awaitable[None]],
    nodes: int | Sequence[SimulatedNode],
    *,
    seed: int = 1,
) -> None:
    """Run *scene* on that many nodes for one pod each, or on *nodes*, in simulated time."""
    if isinstance(nodes, int):
        nodes = [SimulatedNode(f"n{at:02}", {}, gpus=0, cpu="1") for at in range(nodes)]

    async def main(cluster: SimulatedCluster) -> None:
        async def there() -> bool:
            return len((await cluster.client.list(Node)).items) == len(nodes)

        await cluster.until(there, within_s=30, what="the nodes")
        await scene(Stage(cluster))

    simulate(
        main, seed=seed, nodes=nodes, api=api, programs=(controllers, scheduler), kubelets=QUICK
    )


def role(name: str, replicas: int, minimum: int, **spec: Any) -> dict[str, Any]:
    """A clique each of whose pods fills a node."""
    made = clique(name, replicas, min=minimum, **spec)
    container = made["spec"]["podSpec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": "1"}}
    made["spec"]["podSpec"]["schedulerName"] = "spinney-scheduler"
    return made


def strict(**more: Any) -> dict[str, Any]:
    """Ten pods, all of them needed: two leaders, and two group replicas of one and three."""
    return _service((2, 2), (3, 3), 2, **more)


def lenient(**more: Any) -> dict[str, Any]:
    """The same ten pods, of which the base gang needs three and the scaled gang two."""
    return _service((2, 1), (3, 1), 1, **more)


def _service(
    front: tuple[int, int],
    workers: tuple[int, int],
    group_minimum: int,
    after: dict[str, list[str]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    def order(name: str) -> dict[str, Any]:
        return {"after": after[name]} if after and name in after else {}

    group = {
        "name": "x",
        "cliqueNames": ["lead", "work"],
        "replicas": 2,
        "minAvailable": group_minimum,
    }
    if after:
        more["startup"] = "CliqueStartupTypeExplicit"
    return pcs(
        role("front", *front, **order("front")),
        role("lead", 1, 1, **order("lead")),
        role("work", *workers, **order("work")),
        groups=[group],
        **more,
    )
