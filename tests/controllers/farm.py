"""A cluster for controller tests: the embedded API, the controllers, modelled kubelets, and a
scheduler that binds whatever is released to it unless it is told to hold."""

from __future__ import annotations

import asyncio
import copy
import functools
import random
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from tests.controllers.faults import BadConnection, Guard

from spinney.api import codec
from spinney.api.admission import FieldError, Verdict
from spinney.api.core import Pod
from spinney.api.crd import crd_documents
from spinney.api.grove import PodClique, PodCliqueSet
from spinney.api.grove_admission import GroveAdmission
from spinney.api.podgang import PodGang
from spinney.controllers.pod_state import is_ready
from spinney.controllers.setup import register
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.kube.transport import ApiResponse
from spinney.local.apiserver.server import ApiServer
from spinney.sim.cluster import SimulatedNode, simulate
from spinney.sim.kubelet import KubeletModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from spinney.api.admission import AdmissionRequest
    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.controller import Result
    from spinney.kube.transport import ApiRequest, Transport
    from spinney.sim.cluster import SimulatedCluster

NS = "default"
QUICK = KubeletModel(
    pull_s=(0.1, 0.2), start_s=(0.1, 0.2), ready_s=(0.1, 0.3), stop_s=(0.1, 0.2), restart_s=(1, 2)
)
NODES = [SimulatedNode(f"node-{i}", {"topology.kubernetes.io/rack": f"r{i % 2}"}) for i in range(4)]


documents = functools.cache(crd_documents)


class Binder:
    """Binds each pod that has no gate, spread over the nodes; pods of held cliques wait."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.closed: set[str] = set()
        """Nodes that get no pods."""
        self._turn = 0

    def register(self, runtime: Runtime, ids: IdSource, events: EventRecorder) -> None:
        self._client = runtime.client
        self._pods = runtime.informer(Pod)
        self.controller = runtime.controller("binder", self)
        self.controller.watch(self._pods, lambda pod: [pod.key])

    async def reconcile(self, key: str) -> Result | None:
        pod = self._pods.get_key(key)
        if pod is None or pod.deleting or pod.spec.node_name or pod.spec.scheduling_gates:
            return None
        if pod.labels.get("grove.io/podclique") in self.held:
            return None
        self._turn += 1
        open_nodes = [node.name for node in NODES if node.name not in self.closed]
        node = open_nodes[self._turn % len(open_nodes)]
        await self._client.bind(pod.name, pod.namespace, node, uid=pod.metadata.uid)
        return None

    def release(self, clique: str) -> None:
        self.held.discard(clique)
        for pod in self._pods.list():
            self.controller.enqueue(pod.key)


class Quota:
    """An admission hook that refuses pods of some cliques, as a used-up quota does."""

    resources = frozenset({"pods"})

    def __init__(self) -> None:
        self.refused: set[str] = set()

    def default(self, request: AdmissionRequest) -> dict[str, Any]:
        return request.obj

    def validate(self, request: AdmissionRequest) -> Verdict:
        clique = request.obj["metadata"].get("labels", {}).get("grove.io/podclique")
        if request.operation == "CREATE" and clique in self.refused:
            error = FieldError("spec", "FieldValueForbidden", f"the quota of {clique} is used up")
            return Verdict((error,))
        return Verdict()


class Unreliable:
    """An API that is busy now and then and, told to, ends all watches."""

    def __init__(self, inner: ApiServer, rng: random.Random) -> None:
        self.inner = inner
        self.busy = 0.0
        self.lacking: set[str] = set()
        """Plurals of kinds that it does not serve."""
        self._rng = rng

    async def send(self, request: ApiRequest) -> ApiResponse:
        if self.lacking & set(request.path.split("/")):
            body = b'{"kind":"Status","status":"Failure","code":404,"reason":"NotFound"}'
            return ApiResponse(404, body)
        if request.method != "GET" and self._rng.random() < self.busy:
            body = b'{"kind":"Status","status":"Failure","code":503,"message":"busy"}'
            return ApiResponse(503, body)
        return await self.inner.send(request)

    async def close(self) -> None:
        await self.inner.close()


class Controllers:
    """The controllers on a runtime of their own, so that they can die and start again."""

    def __init__(self, cluster: SimulatedCluster, connection: Transport, seed: int) -> None:
        self._client = KubeClient(connection)
        self._clock = cluster.clock
        self._seed = seed
        self._starts = 0
        self._running: asyncio.Task[None] | None = None
        self._registry = CollectorRegistry()
        self.before = 0.0
        """Reconciles of those that died."""

    def start(self) -> None:
        self._starts += 1
        self._registry = CollectorRegistry()
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Kill them, whatever they are at; raise what they died of by themselves."""
        running = self._running
        assert running is not None
        self.before = self.reconciles()
        self._registry = CollectorRegistry()
        died = running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if died:
            running.result()

    async def restart(self) -> None:
        await self.stop()
        self.start()

    def reconciles(self) -> float:
        """Return how many there were since the first start."""
        found = (
            sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
            if sample.name == "spinney_reconcile_seconds_count"
        )
        return self.before + sum(found)

    async def _run(self) -> None:
        rng = random.Random(f"controllers/{self._seed}/{self._starts}")
        runtime = Runtime(self._client, self._clock, rng=rng, registry=self._registry)
        ids = RandomIds(random.Random(f"controller-ids/{self._seed}/{self._starts}"))
        events = EventRecorder(self._client, self._clock, ids, "spinney-controllers")
        register(runtime, ids, events, registry=self._registry)
        async with asyncio.TaskGroup() as group:
            group.create_task(events.run())
            group.create_task(runtime.run())


class Farm:
    """What a scene works with."""

    def __init__(
        self, cluster: SimulatedCluster, binder: Binder, quota: Quota, api: Unreliable, seed: int
    ) -> None:
        self.cluster = cluster
        self.client = KubeClient(api.inner)
        self.api = api
        self.binder = binder
        self.quota = quota
        self.connection = BadConnection(cluster.transport, random.Random(f"connection/{seed}"))
        self.guard = Guard(self.connection, self.client)
        self.controllers = Controllers(cluster, self.guard, seed)

    async def pods(self, clique: str = "") -> list[Pod]:
        labels = f"grove.io/podclique={clique}" if clique else ""
        found = await self.client.list(Pod, NS, labels=labels)
        return [pod for pod in found.items if not pod.deleting]

    async def set(self, name: str = "s") -> PodCliqueSet:
        return await self.client.get(PodCliqueSet, name, NS)

    async def clique(self, name: str) -> PodClique:
        return await self.client.get(PodClique, name, NS)

    async def gang(self, name: str) -> PodGang:
        return await self.client.get(PodGang, name, NS)

    async def names(self, kind: type[Any]) -> list[str]:
        return [obj.name for obj in (await self.client.list(kind, NS)).items if not obj.deleting]

    async def apply(self, manifest: dict[str, Any]) -> None:
        await self.client.create(codec.from_dict(PodCliqueSet, manifest))

    async def ready(self, pods: int, within_s: float = 60) -> None:
        async def holds() -> bool:
            found = await self.pods()
            return len(found) == pods and all(map(is_ready, found))

        await self.until(holds, f"{pods} pods ready", within_s)

    async def until(
        self, holds: Callable[[], Awaitable[bool]], what: str, within_s: float = 60
    ) -> None:
        await self.cluster.until(holds, within_s=within_s, what=what)

    async def quiet(self, within_s: float = 120, rest_s: float = 5) -> None:
        """Wait until nothing has been written for *rest_s* simulated seconds."""
        writes, clock = self.cluster.transport.writes, self.cluster.clock
        called_s = asyncio.get_running_loop().time()
        epoch_s = clock.now() - called_s

        async def holds() -> bool:
            last_s = max(called_s, writes[-1].at_s if writes else 0.0)
            return clock.now() - epoch_s - last_s > rest_s

        await self.until(holds, "no more writes", within_s)

    def writes(self, part: str = "") -> list[str]:
        found = self.cluster.transport.writes
        return [f"{w.method} {w.path} {w.status}" for w in found if part in w.path]


def play(
    scene: Callable[[Farm], Awaitable[None]], *, seed: int = 1, lacking: Iterable[str] = ()
) -> None:
    """Run *scene* on a new cluster in simulated time, whose API lacks the kinds of some plurals."""
    binder, quota = Binder(), Quota()
    made: list[Unreliable] = []

    def api(clock: Clock, ids: IdSource) -> Unreliable:
        hooks = [GroveAdmission(), quota]
        server = ApiServer(clock, ids, hooks=hooks, definitions=documents())
        made.append(Unreliable(server, random.Random(f"api/{seed}")))
        made[0].lacking |= set(lacking)
        return made[0]

    async def main(cluster: SimulatedCluster) -> None:
        farm = Farm(cluster, binder, quota, made[0], seed)
        farm.controllers.start()
        try:
            await scene(farm)
        finally:
            await farm.controllers.stop()

    simulate(
        main,
        seed=seed,
        nodes=NODES,
        api=api,
        programs=(binder.register,),
        kubelets=QUICK,
    )


def clique(name: str, replicas: int = 1, **spec: Any) -> dict[str, Any]:
    """A clique template; `after` is startsAfter, `min` is minAvailable."""
    body: dict[str, Any] = {
        "roleName": name,
        "replicas": replicas,
        "podSpec": {"containers": [{"name": "main", "image": "worker:1"}]},
    }
    if "after" in spec:
        body["startsAfter"] = spec.pop("after")
    if "min" in spec:
        body["minAvailable"] = spec.pop("min")
    outer = spec.pop("outer", {})
    return {"name": name, "spec": body | spec, **outer}


def pcs(
    *cliques: dict[str, Any],
    name: str = "s",
    replicas: int = 1,
    groups: list[dict[str, Any]] | None = None,
    startup: str = "CliqueStartupTypeAnyOrder",
    **template: Any,
) -> dict[str, Any]:
    """A PodCliqueSet manifest."""
    return {
        "apiVersion": "grove.io/v1alpha1",
        "kind": "PodCliqueSet",
        "metadata": {"name": name, "namespace": NS},
        "spec": {
            "replicas": replicas,
            "template": {
                "cliqueStartupType": startup,
                "cliques": copy.deepcopy(list(cliques)),
                **({"podCliqueScalingGroups": groups} if groups else {}),
                **template,
            },
        },
    }


def typed(manifest: dict[str, Any]) -> PodCliqueSet:
    """The manifest as the API server would return it, with a uid."""
    found = codec.from_dict(PodCliqueSet, manifest)
    found.metadata.uid = "uid-of-set"
    return found
