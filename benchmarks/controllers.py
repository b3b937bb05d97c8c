"""Cost of the controllers: ``python benchmarks/controllers.py [shape ...] [--latency-ms 5]``.

A set is created, becomes ready, is scaled and deleted, with the embedded API server, modelled
kubelets and a scheduler that binds whatever is released. Every request takes the given latency, in
simulated time; so times say how many requests stand one after the other, whatever the machine. The
CPU seconds are real and those of all programs together, the API server included. Writes are the
controllers' own: not bindings, not what kubelets report, not events.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.api import codec
from spinney.api.core import HorizontalPodAutoscaler, Pod, Service
from spinney.api.crd import crd_documents
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.grove_admission import GroveAdmission
from spinney.api.podgang import PodGang
from spinney.controllers.pod_state import is_ready
from spinney.controllers.setup import register
from spinney.local.apiserver.server import ApiServer
from spinney.log import configure
from spinney.sim.cluster import SimulatedNode, simulate
from spinney.sim.kubelet import KubeletModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.controller import Result, Runtime
    from spinney.kube.events import EventRecorder
    from spinney.kube.transport import ApiRequest, ApiResponse
    from spinney.sim.cluster import SimulatedCluster, Write

NS = "default"
NODES = [
    SimulatedNode(f"n{at:03}", {"rack": f"r{at // 10}", "zone": f"z{at // 50}"})
    for at in range(100)
]
KUBELET = KubeletModel(pull_s=(0.2, 0.5), start_s=(0.2, 0.5), ready_s=(0.5, 1.0), stop_s=(0.1, 0.3))
WITHIN_S = 600.0


class Slow:
    """An API behind a network: each request takes *latency_s* longer."""

    def __init__(self, inner: ApiServer, latency_s: float) -> None:
        self._inner = inner
        self._latency_s = latency_s

    async def send(self, request: ApiRequest) -> ApiResponse:
        await asyncio.sleep(self._latency_s)
        return await self._inner.send(request)

    async def close(self) -> None:
        await self._inner.close()


class Binder:
    """Binds each released pod to the next node."""

    def __init__(self) -> None:
        self._turn = 0

    def register(self, runtime: Runtime, ids: IdSource, events: EventRecorder) -> None:
        self._client = runtime.client
        self._pods = runtime.informer(Pod)
        runtime.controller("binder", self, concurrency=16).watch(self._pods, lambda pod: [pod.key])

    async def reconcile(self, key: str) -> Result | None:
        pod = self._pods.get_key(key)
        if pod is None or pod.deleting or pod.spec.node_name or pod.spec.scheduling_gates:
            return None
        self._turn += 1
        node = NODES[self._turn % len(NODES)].name
        await self._client.bind(pod.name, pod.namespace, node, uid=pod.metadata.uid)
        return None


@dataclass(frozen=True)
class Shape:
    """A set to measure."""

    title: str
    replicas: int
    pods: int
    """Pods of one replica."""
    template: dict[str, Any]
    scales: tuple[int, ...] = ()
    reference: str = ""
    """What Grove's own scale test says of such a set, where it has one."""

    def manifest(self) -> PodCliqueSet:
        return codec.from_dict(
            PodCliqueSet,
            {
                "metadata": {"name": "s", "namespace": NS},
                "spec": {"replicas": self.replicas, "template": self.template},
            },
        )


def role(name: str, replicas: int) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "worker:1"}]}
    body = {"roleName": name, "replicas": replicas, "minAvailable": replicas, "podSpec": spec}
    return {"name": name, "spec": body}


def grouped() -> dict[str, Any]:
    return {
        "cliques": [role("front", 1), role("lead", 1), role("work", 3)],
        "podCliqueScalingGroups": [
            {
                "name": "g",
                "cliqueNames": ["lead", "work"],
                "replicas": 2,
                "minAvailable": 1,
                "topologyConstraint": {"topologyName": "cluster", "pack": {"required": "rack"}},
            }
        ],
        "topologyConstraint": {"topologyName": "cluster", "pack": {"required": "zone"}},
    }


SHAPES = {
    "small": Shape("50 x 2", 50, 2, {"cliques": [role("worker", 2)]}, (25, 50, 0)),
    "flat": Shape(
        "500 x 2",
        500,
        2,
        {"cliques": [role("worker", 2)]},
        (250, 500, 250, 0),
        "created 22.2 s, ready 49.7 s; 250 to 500: 16.8 s, 40.7 s; to 250: 31.2 s; to 0: 56.4 s",
    ),
    "groups": Shape("100 x 9, groups, topology", 100, 9, grouped(), (50, 100, 0)),
    "wide": Shape("100 x 10, one clique", 100, 10, {"cliques": [role("worker", 10)]}),
    "large": Shape("2500 x 2", 2500, 2, {"cliques": [role("worker", 2)]}),
    "deep": Shape("555 x 9, groups, topology", 555, 9, grouped()),
}


class Bench:
    """One run of a shape: prints a line for each step."""

    def __init__(self, cluster: SimulatedCluster, shape: Shape) -> None:
        self._cluster = cluster
        self._client = cluster.client
        self._shape = shape
        self._pods = cluster.runtime.informer(Pod)
        self._sets = cluster.runtime.informer(PodCliqueSet)

    async def run(self) -> None:
        levels = [{"domain": level, "key": level} for level in ("zone", "rack")]
        binding = {"metadata": {"name": "cluster"}, "spec": {"levels": levels}}
        await self._client.create(codec.from_dict(ClusterTopologyBinding, binding))
        await asyncio.sleep(1)
        shape = self._shape
        print(f"\n{shape.title}: {shape.replicas * shape.pods} pods")
        await self._step("create", self._create, self._whole(shape.replicas))
        await self._step("rest 600 s", self._rest, lambda: True)
        for replicas in shape.scales:
            await self._step(
                f"scale to {replicas}", self._scale_to(replicas), self._whole(replicas)
            )
        await self._step("delete", self._delete, self._gone)
        if shape.reference:
            print(f"  Grove, median, on KWOK and a real API server: {shape.reference}")
        await self._leaks()

    async def _step(self, title: str, act: Any, done: Callable[[], bool]) -> None:
        writes, loop = self._cluster.transport.writes, asyncio.get_running_loop()
        began_s, cpu_s, before = loop.time(), time.process_time(), len(writes)
        changed = self._changed(title)
        await act()
        acted_s = loop.time()
        created_s = None
        while not done():
            if created_s is None and len(self._pods.list()) >= changed > 0:
                created_s = loop.time()
            if loop.time() - began_s > WITHIN_S:
                raise TimeoutError(f"{title}: {len(self._pods.list())} pods")
            await asyncio.sleep(0.02)
        done_s = loop.time()
        # What is written after the last pod is ready belongs to the step too.
        await asyncio.sleep(5)
        ours = Counter(filter(None, map(_kind_of_write, writes[before:])))
        total = sum(ours.values())
        cpu_s = time.process_time() - cpu_s
        moved = self._moved
        per_pod = f"{total / moved:5.2f} writes/pod" if moved else f"{total:5} writes    "
        per_k = f"{cpu_s / moved * 1000:6.2f} CPU s/1000 pods" if moved else f"{cpu_s:6.2f} CPU s"
        created = f" created {created_s - acted_s:6.2f} s," if created_s is not None else ""
        print(f"  {title:14}{created} done {done_s - acted_s:6.2f} s, {per_pod}, {per_k}")
        print("      " + ", ".join(f"{n} {kind}" for kind, n in ours.most_common(12)))
        sys.stdout.flush()

    def _changed(self, title: str) -> int:
        """Return how many pods there will be at the end of a step that makes some."""
        now = len(self._pods.list())
        last = title.rsplit(" ", 1)[-1]
        replicas = {"create": self._shape.replicas, "delete": 0}.get(title)
        if replicas is None:
            replicas = int(last) if last.isdecimal() else -1
        goal = replicas * self._shape.pods if replicas >= 0 else now
        self._moved = abs(goal - now)
        return goal if goal > now else 0

    def _whole(self, replicas: int) -> Callable[[], bool]:
        def done() -> bool:
            found = self._pods.list()
            return len(found) == replicas * self._shape.pods and all(map(is_ready, found))

        return done

    def _gone(self) -> bool:
        return not self._pods.list() and not self._sets.list()

    async def _create(self) -> None:
        await self._client.create(self._shape.manifest())

    async def _rest(self) -> None:
        await asyncio.sleep(600)

    def _scale_to(self, replicas: int) -> Any:
        async def act() -> None:
            await self._client.set_scale(PodCliqueSet, "s", replicas, NS)

        return act

    async def _delete(self) -> None:
        await self._client.delete(PodCliqueSet, "s", NS)

    async def _leaks(self) -> None:
        kinds = (PodClique, PodCliqueScalingGroup, PodGang, Service, HorizontalPodAutoscaler)
        for kind in kinds:
            left = (await self._client.list(kind, NS)).items
            if left:
                print(f"  LEFT BEHIND: {len(left)} {kind.RESOURCE.kind}")


def _kind_of_write(write: Write) -> str:
    """Return what the controllers wrote, empty for what others did."""
    parts = write.path.split("/")
    if "namespaces" not in parts:
        return ""
    at = parts.index("namespaces") + 2
    plural, sub = parts[at], "/".join(parts[at + 2 :])
    if plural == "events" or (plural == "pods" and sub in ("status", "binding")):
        return ""
    if plural == "pods" and write.method == "DELETE" and b'"gracePeriodSeconds":0' in write.body:
        return ""
    if write.status == 409:
        return f"{write.method} {plural} {sub} CONFLICT".replace("  ", " ")
    return f"{write.method} {plural} {sub}".strip()


def measure(shape: Shape, latency_s: float) -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await asyncio.sleep(1)
        await Bench(cluster, shape).run()

    def api(clock: Clock, ids: IdSource) -> Slow:
        hooks = [GroveAdmission()]
        server = ApiServer(clock, ids, hooks=hooks, definitions=crd_documents())
        return Slow(server, latency_s)

    simulate(
        scene,
        seed=1,
        nodes=NODES,
        api=api,
        programs=(register, Binder().register),
        kubelets=KUBELET,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES), metavar="shape"
    )
    parser.add_argument("--latency-ms", type=float, default=5.0)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    configure(level="error")
    profile = cProfile.Profile()
    if given.profile:
        profile.enable()
    for name in given.shapes:
        measure(SHAPES[name], given.latency_ms / 1000)
    if given.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
