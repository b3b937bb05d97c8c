"""Kubelets that run nothing: they report what a real one would, when a real one would.

One object plays the kubelets of many nodes. A pod bound to one of them gets an address, pulls its
image, waits for the cliques it starts after, starts, becomes ready, and ends when it is deleted.
How long each step takes is drawn from the seed and the pod's identity, so it does not depend on the
order of events. Crashes and dead nodes are injected by call.

Level-based like any controller: what a pod should report now is a function of its run and the
time; what it reports already is not reported again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from spinney.api import names
from spinney.api.core import Node, Pod
from spinney.api.grove import PodClique
from spinney.api.meta import is_true
from spinney.clock import rfc3339
from spinney.kube import transport as wire
from spinney.kube.controller import Result
from spinney.kube.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.kube.controller import Runtime
    from spinney.kube.informer import Change

Stage = Literal["creating", "running", "ready", "crashed", "failed", "succeeded"]

INIT_POLL_S = 1.0
"""How often a pod that waits for other cliques looks again."""
WORKERS = 16
"""Pods of all nodes together that are worked on at a time."""
CLUSTER_NETWORK = ipaddress.IPv4Address("10.64.0.0")

Span = tuple[float, float]
"""Shortest and longest time, in seconds."""


@dataclass(frozen=True, slots=True)
class KubeletModel:
    """How long things take on a node."""

    pull_s: Span = (1.0, 4.0)
    start_s: Span = (0.5, 1.5)
    ready_s: Span = (2.0, 8.0)
    """From started to ready: loading the model."""
    stop_s: Span = (0.2, 1.0)
    restart_s: Span = (5.0, 15.0)
    """From a crash to the next start."""


@dataclass(frozen=True, slots=True)
class _Life:
    """The times of one pod."""

    pull_s: float
    start_s: float
    ready_s: float
    stop_s: float
    restart_s: float


@dataclass(slots=True)
class _Run:
    """What a kubelet remembers of a pod."""

    uid: str
    life: _Life
    address: str
    began_s: float
    initialized_s: float | None = None
    """When its init containers were done; None while they are not."""
    crashed_s: float | None = None
    exit_code: int = 0
    restarts: int = 0
    deleting_s: float | None = None


class Kubelets:
    """The kubelets of *nodes*, on *runtime*, by *model*."""

    def __init__(
        self,
        runtime: Runtime,
        nodes: Iterable[str],
        *,
        seed: int,
        model: KubeletModel | None = None,
    ) -> None:
        self._client = runtime.client
        self._clock = runtime.clock
        self._nodes = set(nodes)
        self._down: set[str] = set()
        self._seed = seed
        self._model = model or KubeletModel()
        self._runs: dict[str, _Run] = {}
        self._addresses = 0
        self._pods = runtime.informer(Pod)
        self._cliques = runtime.informer(PodClique)
        self._pods.add_index("clique", _clique_of)
        self._controller = runtime.controller("kubelets", self, concurrency=WORKERS)
        self._pods.add_handler(self._changed)

    # Faults

    def crash(self, pod: str, exit_code: int = 1) -> None:
        """Let the containers of *pod* (``namespace/name``) end now."""
        run = self._runs[pod]
        run.crashed_s, run.exit_code = _now_s(), exit_code
        self._controller.enqueue(pod)

    async def fail_node(self, name: str) -> None:
        """Stop the node: nothing on it reports or ends any more, and it is not ready."""
        self._down.add(name)
        await self._report_node(name, ready=False)

    async def restore_node(self, name: str) -> None:
        """Let the node go on where it stopped."""
        self._down.discard(name)
        await self._report_node(name, ready=True)
        for pod in self._pods.list():
            if pod.spec.node_name == name:
                self._controller.enqueue(pod.key)

    async def _report_node(self, name: str, *, ready: bool) -> None:
        condition = {"type": "Ready", "status": "True" if ready else "Unknown"}
        patch = {"status": {"conditions": [condition]}}
        await self._client.patch(
            Node, name, patch, content_type=wire.STRATEGIC_PATCH, subresource="status"
        )

    # Pods

    def _changed(self, change: Change[Pod]) -> None:
        if change.object.spec.node_name in self._nodes:
            self._controller.enqueue(change.object.key)

    async def reconcile(self, key: str) -> Result | None:
        """Report what is due for one pod; come back when more will be."""
        pod = self._pods.get_key(key)
        if pod is None:
            self._runs.pop(key, None)
            return None
        if pod.spec.node_name in self._down:
            return None
        run = self._run_of(pod)
        try:
            if pod.deleting:
                return await self._stop(pod, run)
            return await self._go_on(pod, run)
        except (NotFoundError, ConflictError):
            return None

    def _run_of(self, pod: Pod) -> _Run:
        run = self._runs.get(pod.key)
        if run is None or run.uid != pod.metadata.uid:
            rng = random.Random(f"{self._seed}/{pod.metadata.uid}")
            self._addresses += 1
            address = pod.status.pod_ip or str(CLUSTER_NETWORK + self._addresses)
            run = _Run(pod.metadata.uid, _draw(self._model, rng), address, _now_s())
            self._runs[pod.key] = run
        return run

    async def _stop(self, pod: Pod, run: _Run) -> Result | None:
        if run.deleting_s is None:
            run.deleting_s = _now_s()
        left_s = run.deleting_s + run.life.stop_s - _now_s()
        if left_s > 0:
            return Result(left_s)
        await self._client.delete(
            Pod, pod.name, pod.namespace, grace_period_s=0, uid=pod.metadata.uid
        )
        return None

    async def _go_on(self, pod: Pod, run: _Run) -> Result | None:
        if run.initialized_s is None and _now_s() >= run.began_s + run.life.pull_s:
            if self._may_start(pod):
                run.initialized_s = _now_s()
            else:
                await self._report(pod, run, "creating")
                return Result(INIT_POLL_S)
        stage, left_s = _stage(pod, run, _now_s())
        await self._report(pod, run, stage)
        return None if left_s is None else Result(left_s)

    def _may_start(self, pod: Pod) -> bool:
        """Tell whether the cliques that the pod's clique starts after have their minimum ready."""
        clique = self._cliques.get(pod.labels.get(names.POD_CLIQUE, ""), pod.namespace)
        for name in clique.spec.starts_after if clique is not None else ():
            parent = self._cliques.get(name, pod.namespace)
            if parent is None:
                return False
            members = self._pods.by_index("clique", f"{pod.namespace}/{name}")
            ready = sum(is_true(m.status.conditions, "Ready") for m in members)
            if ready < (parent.spec.min_available or parent.spec.replicas or 1):
                return False
        return True

    async def _report(self, pod: Pod, run: _Run, stage: Stage) -> None:
        if _reported(pod, run) == (stage, run.restarts):
            return
        now = rfc3339(self._clock.now())
        await self._client.patch(
            Pod,
            pod.name,
            {"status": _status(pod, run, stage, now)},
            pod.namespace,
            content_type=wire.STRATEGIC_PATCH,
            subresource="status",
        )


def _clique_of(pod: Pod) -> list[str]:
    clique = pod.labels.get(names.POD_CLIQUE)
    return [f"{pod.namespace}/{clique}"] if clique else []


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _draw(model: KubeletModel, rng: random.Random) -> _Life:
    return _Life(
        rng.uniform(*model.pull_s),
        rng.uniform(*model.start_s),
        rng.uniform(*model.ready_s),
        rng.uniform(*model.stop_s),
        rng.uniform(*model.restart_s),
    )


def _stage(pod: Pod, run: _Run, now_s: float) -> tuple[Stage, float | None]:
    """Return what the pod is at, and the seconds to its next change, None for never."""
    if run.initialized_s is None:
        return "creating", run.began_s + run.life.pull_s - now_s
    starts_s = run.initialized_s + run.life.start_s
    if run.crashed_s is not None:
        if pod.spec.restart_policy == "Never" or (
            pod.spec.restart_policy == "OnFailure" and run.exit_code == 0
        ):
            return ("failed" if run.exit_code else "succeeded"), None
        starts_s = run.crashed_s + run.life.restart_s
        if now_s < starts_s:
            return "crashed", starts_s - now_s
        run.restarts += 1
        run.crashed_s, run.initialized_s = None, starts_s - run.life.start_s
    if now_s < starts_s:
        return "creating", starts_s - now_s
    ready_s = starts_s + run.life.ready_s
    return ("ready", None) if now_s >= ready_s else ("running", ready_s - now_s)


def _reported(pod: Pod, run: _Run) -> tuple[Stage, int] | None:
    """Return the stage and the restarts that the pod's status tells of."""
    status = pod.status
    if status.start_time is None:
        return None
    if status.phase in ("Failed", "Succeeded"):
        return ("failed" if status.phase == "Failed" else "succeeded"), run.restarts
    restarts = max((c.restart_count for c in status.container_statuses), default=0)
    if is_true(status.conditions, "Ready"):
        return "ready", restarts
    states = [c.state for c in status.container_statuses]
    if any(state.waiting and state.waiting.reason == "CrashLoopBackOff" for state in states):
        return "crashed", restarts
    return ("running" if any(state.running for state in states) else "creating"), restarts


def _status(pod: Pod, run: _Run, stage: Stage, now: str) -> dict[str, Any]:
    """Return the status of a pod that reaches *stage* at the time *now*."""
    phases = {"creating": "Pending", "failed": "Failed", "succeeded": "Succeeded"}
    began = stage not in ("creating",)
    ready = stage == "ready"
    flags = {"Initialized": began, "ContainersReady": ready, "Ready": ready}
    return {
        "phase": phases.get(stage, "Running"),
        "startTime": pod.status.start_time or now,
        "podIP": run.address,
        "podIPs": [{"ip": run.address}],
        "conditions": [
            {"type": kind, "status": str(flag), "lastTransitionTime": now}
            for kind, flag in flags.items()
        ],
        "containerStatuses": [
            {
                "name": container.name,
                "image": container.image,
                "imageID": container.image,
                "ready": ready,
                "started": stage in ("running", "ready"),
                "restartCount": run.restarts,
                "state": _container_state(run, stage, now),
            }
            for container in pod.spec.containers
        ],
    }


def _container_state(run: _Run, stage: Stage, now: str) -> dict[str, Any]:
    match stage:
        case "creating":
            return {"waiting": {"reason": "ContainerCreating"}}
        case "crashed":
            return {"waiting": {"reason": "CrashLoopBackOff"}}
        case "running" | "ready":
            return {"running": {"startedAt": now}}
        case _:
            return {"terminated": {"exitCode": run.exit_code, "finishedAt": now}}
