"""The node agent: one process that is the kubelet of every node a local cluster declares.

It registers the nodes and keeps one `PodWorker` for each pod bound to them. Pods are told apart by
uid, never by name: a pod that was replaced is another one, and the old one's processes end.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spinney.kube.errors import ApiError
from spinney.kube.transport import TransportError
from spinney.local.nodeagent.addresses import AddressesExhaustedError, AddressRange
from spinney.local.nodeagent.node_objects import NodeObjects
from spinney.local.nodeagent.runs import new_run, restored, run_from_status
from spinney.local.nodeagent.worker import PodWorker
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.core import Pod
    from spinney.kube.informer import Change, Informer
    from spinney.local.cluster_config import NodeDeclaration
    from spinney.local.nodeagent.runs import PodRun
    from spinney.local.nodeagent.worker import Tools

BOUND_PODS = "spec.nodeName!="
"""The field selector of the informer the agent needs: one watch serves all its nodes."""
SHUTDOWN_GRACE_S = 25.0
"""What pods get at most when the agent is asked to end."""
SHUTDOWN_SLACK_S = 5.0
"""On top of it, for killed processes to be gone and statuses to be written."""
RETIRE_TIMEOUT_S = 5.0
"""For telling the API that the nodes are not ready from now on."""
RECOVERY_S = 5.0
"""The wait before a worker that broke is started again."""
ADDRESS_RETRY_S = 5.0

log = get_logger("nodeagent")


@dataclass(slots=True)
class _Node:
    declaration: NodeDeclaration
    addresses: AddressRange


class NodeAgent:
    """Runs the pods of *nodes*; everything it does ends with `run`."""

    def __init__(self, nodes: Sequence[NodeDeclaration], pods: Informer[Pod], tools: Tools) -> None:
        self._tools = tools
        self._pods = pods
        self._nodes = {n.name: _Node(n, AddressRange(n.pod_range)) for n in nodes}
        self._objects = NodeObjects(tools.client, tools.clock, tools.rng, nodes)
        self._workers: dict[str, PodWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished: set[str] = set()
        self._saved: dict[str, PodRun] = {}
        self._group: asyncio.TaskGroup | None = None
        self._stopping = False

    def find_uid(self, namespace: str, name: str) -> str | None:
        """Return the uid of the pod of that name that runs here."""
        pod = self._pods.get(name, namespace)
        if pod is None or pod.spec.node_name not in self._nodes:
            return None
        return pod.metadata.uid

    async def run(self, stop: asyncio.Event, log_ports: dict[str, int]) -> None:
        """Run pods until *stop* is set, then end them within a bound and return."""
        self._take_up()
        async with asyncio.TaskGroup() as group:
            self._group = group
            informing = group.create_task(self._pods.run())
            beating = group.create_task(self._objects.run(log_ports))
            following = group.create_task(self._follow_pods())
            await stop.wait()
            for task in (following, informing, beating):
                task.cancel()
            await self._end_all()
            with contextlib.suppress(ApiError, TransportError, TimeoutError):
                async with asyncio.timeout(RETIRE_TIMEOUT_S):
                    await self._objects.retire()

    async def _follow_pods(self) -> None:
        await self._pods.wait_synced()
        self._forget_absent()
        self._pods.add_handler(self._changed)

    def _take_up(self) -> None:
        """Kill what an earlier agent left, and remember what it ran."""
        found = self._tools.state_dir.kill_leftovers()
        if found:
            log.warning("killed processes of an earlier agent", count=found)
        self._saved = self._tools.state_dir.load()
        for node in self._nodes.values():
            node.addresses.skip_past(run.ip for run in self._saved.values())

    def _forget_absent(self) -> None:
        """Remove the files of pods that went while no agent ran."""
        present = {pod.metadata.uid for pod in self._pods.list()}
        for uid in self._saved.keys() - present:
            self._remove_files(uid)
        self._saved = {uid: run for uid, run in self._saved.items() if uid in present}

    def _changed(self, change: Change[Pod]) -> None:
        old, new = change.old, change.new
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            self._gone(old.metadata.uid)
        if new is None or new.spec.node_name not in self._nodes or self._stopping:
            return
        uid = new.metadata.uid
        if uid in self._workers:
            self._workers[uid].observe(new)
        elif uid not in self._finished:
            self._take_on(new)

    def _gone(self, uid: str) -> None:
        self._finished.discard(uid)
        worker = self._workers.get(uid)
        if worker is not None:
            worker.vanish()

    def _take_on(self, pod: Pod) -> None:
        assert self._group is not None
        node = self._nodes[pod.spec.node_name]
        uid = pod.metadata.uid
        saved = self._saved.pop(uid, None)
        try:
            ip = node.addresses.acquire(saved.ip if saved else pod.status.pod_ip)
        except AddressesExhaustedError as error:
            self._tools.events.event(pod, "Warning", "NoPodAddress", str(error))
            asyncio.get_running_loop().call_later(ADDRESS_RETRY_S, self._again, pod.key, uid)
            return
        run = self._first_run(pod, saved, ip, node.declaration.address)
        worker = PodWorker(pod, run, self._tools)
        self._workers[uid] = worker
        task = self._group.create_task(self._keep(worker, node), name=f"pod-{pod.key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _again(self, key: str, uid: str) -> None:
        """Try once more to take on a pod that found no address."""
        pod = self._pods.get_key(key)
        known = self._stopping or uid in self._workers or uid in self._finished
        if pod is not None and pod.metadata.uid == uid and not known:
            self._take_on(pod)

    def _first_run(self, pod: Pod, saved: PodRun | None, ip: str, host_ip: str) -> PodRun:
        now = self._tools.clock.now()
        if saved is not None:
            return replace(restored(saved, now), ip=ip, host_ip=host_ip)
        if pod.status.container_statuses or pod.status.init_container_statuses:
            return run_from_status(pod, ip, host_ip, now)
        return new_run(pod, ip, host_ip, now)

    async def _keep(self, worker: PodWorker, node: _Node) -> None:
        """Run a worker to its end, also over its faults."""
        uid = worker.run.uid
        while True:
            try:
                await worker.work()
                break
            except Exception:  # One pod's fault must not end the others.
                log.exception("pod worker broke", pod=worker.pod.key, again_in_s=RECOVERY_S)
                if self._stopping:
                    break
                await asyncio.sleep(RECOVERY_S)
                worker.recover()
        del self._workers[uid]
        node.addresses.release(worker.run.ip)
        if worker.removed or worker.vanished:
            self._remove_files(uid)
        if not worker.vanished:
            self._finished.add(uid)

    def _remove_files(self, uid: str) -> None:
        self._tools.state_dir.remove(uid)
        self._tools.logs.remove(uid)

    async def _end_all(self) -> None:
        """End all pods; what is not over within the bound is killed by cancelling its worker."""
        self._stopping = True
        for worker in self._workers.values():
            worker.shut_down(SHUTDOWN_GRACE_S)
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=SHUTDOWN_GRACE_S + SHUTDOWN_SLACK_S)
        for task in late:
            log.error("a pod did not end in time; it is killed", task=task.get_name())
            task.cancel()
