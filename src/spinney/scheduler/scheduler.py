"""The scheduler as a reconciler of one key: the cluster.

Informers feed the cache; any change that may matter makes a cycle due, a little later, so that a
burst of changes is one cycle. A cycle takes a snapshot, decides (`spinney.scheduler.cycle`), binds,
and writes down what did not fit. It is level-based: after a restart the cache is filled from the
API, pods that have a node are simply there, and the first cycle goes on where the last one stopped.

One cycle runs at a time, and it ends when its bindings are answered.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from spinney.api import names
from spinney.api.core import Node, Pod, PriorityClass
from spinney.api.grove import ClusterTopologyBinding
from spinney.api.meta import KubeObject
from spinney.api.podgang import PodGang
from spinney.api.queue import Queue
from spinney.kube.errors import ApiError
from spinney.kube.transport import TransportError
from spinney.log import get_logger
from spinney.scheduler.binder import Binder, Evictor
from spinney.scheduler.cache import Cache
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.memory import Memory
from spinney.scheduler.optional_kinds import LOOK_AGAIN_S, OptionalKinds
from spinney.scheduler.session import Session
from spinney.scheduler.status import StatusWriter
from spinney.scheduler.topology.placement_score import placement_score

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.kube.controller import Controller, Runtime
    from spinney.kube.events import EventRecorder
    from spinney.kube.informer import Change
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.verdict import Binding, Verdict

DEBOUNCE_S = 0.02
"""How long a cycle waits for further changes after the first."""
RETRY_S = 1.0
"""When to try again after writes failed, if nothing else makes a cycle due."""
CONCURRENT_PATCHES = 32
"""Pods of one gang that are told at a time why they have no node."""

KEY = "cluster"

K = TypeVar("K", bound=KubeObject)

log = get_logger("scheduler")


class Scheduler:
    """The shell around the decisions. Made by `spinney.scheduler.setup.register`."""

    def __init__(
        self, runtime: Runtime, events: EventRecorder, config: SchedulerConfig | None = None
    ) -> None:
        self._config = config or SchedulerConfig()
        self._cache = Cache(self._config.scheduler_names, self._config.pool_label)
        self._binder = Binder(runtime.client, self._cache)
        self._status = StatusWriter(runtime.client, runtime.clock, events)
        self._memory = Memory()
        self._clock = runtime.clock
        self._unsettled: set[str] = set()
        """Gangs of which something changed since their condition was looked at."""
        self._due = False
        self._pods = runtime.informer(Pod)
        self._gangs = runtime.informer(PodGang)
        self._evictor = Evictor(runtime.client, runtime.clock, events, self._cache, self._pods)
        self._controller: Controller = runtime.controller("scheduler", self)
        self._kinds = OptionalKinds(runtime, self._cache, self._make_due)
        self._watch(runtime)

    def _watch(self, runtime: Runtime) -> None:
        self._pods.add_handler(self._pod_changed)
        self._gangs.add_handler(self._gang_changed)
        cache = self._cache
        runtime.informer(Node).add_handler(self._feed(cache.set_node, cache.remove_node))
        runtime.informer(PriorityClass).add_handler(
            self._feed(cache.set_priority_class, cache.remove_priority_class)
        )
        runtime.informer(Queue).add_handler(self._feed(cache.set_queue, cache.remove_queue))
        runtime.informer(ClusterTopologyBinding).add_handler(
            self._feed(cache.set_topology, cache.remove_topology)
        )

    # What changes

    def _feed(
        self, put: Callable[[K], None], remove: Callable[[str], None]
    ) -> Callable[[Change[K]], None]:
        """Return a handler that passes changes on to the cache, for kinds of the cluster."""

        def changed(change: Change[K]) -> None:
            version = self._cache.room_version
            if change.new is not None:
                put(change.new)
            else:
                remove(change.object.name)
            if self._cache.room_version != version and self._cache.pending:
                self._make_due()

        return changed

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.object
        before = self._cache.pod(pod.key)
        confirmed = self._cache.confirmed(pod.key)
        if change.new is not None:
            self._cache.set_pod(change.new)
        else:
            self._cache.remove_pod(pod.key)
        after = self._cache.pod(pod.key)
        if after is None or after.state != "pending":
            self._status.forget_pod(pod.metadata.uid)
        if before == after and confirmed == self._cache.confirmed(pod.key):
            return
        gang = pod.labels.get(names.POD_GANG)
        if gang:
            self._unsettled.add(f"{pod.namespace}/{gang}")
        self._make_due()

    def _gang_changed(self, change: Change[PodGang]) -> None:
        gang = change.object
        if change.new is None:
            self._cache.remove_gang(gang.key)
            return
        self._cache.set_gang(change.new)
        self._unsettled.add(gang.key)
        if change.old is None or change.old.spec != change.new.spec:
            self._make_due()

    def _make_due(self) -> None:
        if not self._due:
            self._due = True
            self._controller.enqueue(KEY, DEBOUNCE_S)

    # A cycle

    async def reconcile(self, key: str) -> None:
        """Run one cycle. Whatever it raises makes the next one come after a back-off."""
        self._due = False
        now = self._clock.now()
        await self._kinds.look(now)
        result = run_cycle(self._cache.snapshot(now), self._config, memory=self._memory)
        self._memory = result.memory
        if result.memory.wake_at is not None:
            self._controller.enqueue(KEY, max(DEBOUNCE_S, result.memory.wake_at - now))
        if self._cache.pending and not self._kinds.complete:
            self._controller.enqueue(KEY, LOOK_AGAIN_S)
        if result.bindings:
            await self._bind(result)
        if result.evictions:
            await self._evict(result)
        await self._tell_unplaced(result)
        await self._settle()

    async def _bind(self, result: CycleResult) -> None:
        gangs = {binding.gang for binding in result.bindings}
        log.info("gangs placed", gangs=len(gangs), pods=len(result.bindings))
        failed: list[Binding] = await self._binder.bind(result.bindings)
        if failed:
            self._due = True
            self._controller.enqueue(KEY, RETRY_S)

    async def _evict(self, result: CycleResult) -> None:
        failed = await self._evictor.evict(result.evictions)
        for gang in {eviction.made_for for eviction in failed}:
            self._memory = self._memory.without_reservation(gang)
        if failed:
            self._due = True
            self._controller.enqueue(KEY, RETRY_S)

    async def _tell_unplaced(self, result: CycleResult) -> None:
        for verdict in result.verdicts.values():
            if verdict.kind == "waiting" or not verdict.left:
                continue
            gang = self._gangs.get_key(verdict.gang)
            if gang is not None and verdict.kind in ("unplaced", "pipelined"):
                await self._status.gang_unplaced(gang, verdict.reason)
            await self._tell_pods(verdict, report=gang is None)

    async def _tell_pods(self, verdict: Verdict, *, report: bool) -> None:
        slots = asyncio.Semaphore(CONCURRENT_PATCHES)

        async def tell(pod: Pod) -> None:
            async with slots:
                try:
                    await self._status.pod_unplaced(pod, verdict.reason, report=report)
                except (ApiError, TransportError) as error:
                    log.warning("pod's condition not written", pod=pod.key, error=str(error))
                    self._controller.enqueue(KEY, RETRY_S)

        async with asyncio.TaskGroup() as group:
            for key in verdict.left:
                pod = self._pods.get_key(key)
                if pod is not None and not pod.spec.node_name:
                    group.create_task(tell(pod))

    async def _settle(self) -> None:
        """Write the condition of gangs whose minimum the API confirms to be on nodes."""
        unsettled = sorted(self._unsettled)
        trees = {key: tree for key in unsettled if (tree := self._cache.judge(key)) is not None}
        standing = {key: tree for key, tree in trees.items() if self._confirmed(tree)}
        self._unsettled.difference_update(key for key in unsettled if key not in standing)
        if not standing:
            return
        session = Session(self._cache.snapshot(), self._config)
        for key, tree in standing.items():
            gang = self._gangs.get_key(key)
            self._unsettled.discard(key)
            if gang is not None:
                await self._settle_one(gang, session, tree)

    async def _settle_one(self, gang: PodGang, session: Session, tree: Gang) -> None:
        score = placement_score(session, tree)
        try:
            await self._status.gang_placed(gang, score, _placed_text(tree))
        except BaseException:
            self._unsettled.add(gang.key)
            raise

    def _confirmed(self, gang: Gang) -> bool:
        leaves = list(gang.root.leaves())
        pods = [pod for leaf in leaves for pod in leaf.active]
        return bool(pods) and gang.satisfied and all(self._cache.confirmed(pod.key) for pod in pods)


def _placed_text(gang: Gang) -> str:
    pods = [pod for leaf in gang.root.leaves() for pod in leaf.active]
    return f"placed {len(pods)} pods on {len({pod.node for pod in pods})} nodes"
