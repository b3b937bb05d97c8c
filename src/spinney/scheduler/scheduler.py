"""The scheduler as a reconciler of one key: the cluster.

Informers feed the cache; any change that may matter makes a cycle due, a little later, so that a
burst of changes is one cycle. A cycle takes a snapshot, decides (`spinney.scheduler.cycle`), binds,
evicts, and writes down what did not fit. It is level-based: after a restart the cache is filled
from the API, pods that have a node are simply there, kept room is read from the pods it is kept
for, and the first cycle goes on where the last one stopped.

One cycle runs at a time, and it ends when its bindings are answered, but for those of gangs that
wait for volumes or for a GPU that they share (`spinney.scheduler.late_bindings`).
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from spinney.api.core import Node, Pod, PriorityClass
from spinney.api.grove import ClusterTopologyBinding
from spinney.api.meta import KubeObject
from spinney.api.podgang import PodGang
from spinney.api.queue import Queue
from spinney.log import get_logger
from spinney.scheduler.bind_claims import ClaimBinder
from spinney.scheduler.binder import Binder
from spinney.scheduler.cache import Cache
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.evictor import Evictor
from spinney.scheduler.gpu_reserver import GpuReserver
from spinney.scheduler.late_bindings import LateBindings
from spinney.scheduler.nominations import recovered, wanted
from spinney.scheduler.optional_kinds import LOOK_AGAIN_S, OptionalKinds
from spinney.scheduler.reporter import RETRY_S, Reporter
from spinney.scheduler.scheduler_metrics import SchedulerMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set

    from prometheus_client import CollectorRegistry

    from spinney.kube.controller import Controller, Runtime
    from spinney.kube.events import EventRecorder
    from spinney.kube.informer import Change
    from spinney.scheduler.binder import BindReport
    from spinney.scheduler.memory import Memory
    from spinney.scheduler.snapshot import Snapshot
    from spinney.scheduler.verdict import Binding, Eviction

DEBOUNCE_S = 0.02
"""How long a cycle waits for further changes after the first."""
MAX_RETRY_S = 60.0
"""The longest wait before a gang whose bindings are refused again and again is tried again."""
KEY = "cluster"

K = TypeVar("K", bound=KubeObject)

log = get_logger("scheduler")


class Scheduler:
    """The shell around the decisions. Made by `spinney.scheduler.setup.register`."""

    def __init__(
        self,
        runtime: Runtime,
        events: EventRecorder,
        config: SchedulerConfig | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config or SchedulerConfig()
        self._cache = Cache(self._config.scheduler_names, self._config.pool_label)
        self._claims = ClaimBinder(runtime.client, self._cache)
        self._pods = runtime.informer(Pod)
        self._gpus = GpuReserver(runtime, self._cache, self._pods, self._config)
        self._binder = Binder(runtime.client, self._cache, self._claims, self._gpus)
        self._metrics = SchedulerMetrics(registry)
        self._memory: Memory | None = None
        """None until the first cycle."""
        self._clock = runtime.clock
        self._held_off: dict[str, tuple[float, float]] = {}
        """Gang whose bindings were refused to when they may be sent again, and the wait until then,
        in loop time."""
        self._due = False
        self._gangs = runtime.informer(PodGang)
        self._queues = runtime.informer(Queue)
        self._evictor = Evictor(runtime.client, runtime.clock, events, self._cache, self._pods)
        self._controller: Controller = runtime.controller("scheduler", self)
        self._late = LateBindings(runtime, self._binder, self._account)
        self._kinds = OptionalKinds(runtime, self._cache, self._make_due)
        self._reporter = Reporter(
            runtime,
            events,
            self._config,
            self._cache,
            self._kinds,
            self._metrics,
            functools.partial(self._controller.enqueue, KEY),
            pods=self._pods,
            gangs=self._gangs,
            queues=self._queues,
        )
        self._watch(runtime)

    def _watch(self, runtime: Runtime) -> None:
        self._pods.add_handler(self._pod_changed)
        self._gangs.add_handler(self._gang_changed)
        cache = self._cache
        runtime.informer(Node).add_handler(self._feed(cache.set_node, cache.remove_node))
        runtime.informer(PriorityClass).add_handler(
            self._feed(cache.set_priority_class, cache.remove_priority_class)
        )
        self._queues.add_handler(self._feed(cache.set_queue, cache.remove_queue))
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
        if before == after and confirmed == self._cache.confirmed(pod.key):
            return
        self._reporter.pod_changed(pod.metadata.uid, before, after)
        self._make_due()

    def _gang_changed(self, change: Change[PodGang]) -> None:
        gang = change.object
        if change.new is None:
            self._cache.remove_gang(gang.key)
            return
        self._cache.set_gang(change.new)
        self._reporter.gang_changed(gang.key)
        if change.old is None or change.old.spec != change.new.spec:
            self._make_due()

    def _make_due(self) -> None:
        if not self._due:
            self._due = True
            self._controller.enqueue(KEY, DEBOUNCE_S)

    def _retry(self) -> None:
        """Run a cycle in a while, if nothing makes one come sooner: that does for the retry too."""
        self._controller.enqueue(KEY, RETRY_S)

    # A cycle

    async def reconcile(self, key: str) -> None:
        """Run one cycle. Whatever it raises makes the next one come after a back-off."""
        self._due = False
        now, loop = self._clock.now(), asyncio.get_running_loop()
        await self._kinds.look(now)
        started_s = loop.time()
        snapshot = self._cache.snapshot(now)
        if self._memory is None:
            self._memory = recovered(snapshot, self._cache.nominated, self._config)
        result = run_cycle(snapshot, self._config, memory=self._memory)
        self._memory = result.memory
        self._metrics.cycle_seconds.observe(loop.time() - started_s)
        self._metrics.show_pending(result.verdicts)
        if result.memory.wake_at is not None:
            self._controller.enqueue(KEY, max(DEBOUNCE_S, result.memory.wake_at - now))
        if self._cache.pending and not self._kinds.complete:
            self._controller.enqueue(KEY, LOOK_AGAIN_S)
        await self._perform(result, snapshot)
        self._metrics.round_seconds.observe(loop.time() - started_s)

    async def _perform(self, result: CycleResult, snapshot: Snapshot) -> None:
        # Only made due here: by the time it is done all pods are assumed where they go.
        self._gpus.compare()
        if result.bindings:
            await self._bind(result)
        unsaid = await self._reporter.nominate(wanted(result.memory, snapshot))
        if result.evictions:
            await self._evict(result.evictions, unsaid)
        await self._claims.release_held(
            pod for verdict in result.verdicts.values() for pod in verdict.left
        )
        await self._reporter.tell_unplaced(result.verdicts)
        await self._reporter.settle()
        await self._reporter.report_queues(result.memory.usage)

    async def _bind(self, result: CycleResult) -> None:
        bindings = self._ready(result.bindings)
        if not bindings:
            return
        late = {binding.gang for binding in bindings if self._takes_long(binding)}
        for gang in sorted(late):
            self._late.put(gang, [binding for binding in bindings if binding.gang == gang])
        prompt = [binding for binding in bindings if binding.gang not in late]
        gangs = {binding.gang for binding in bindings}
        log.info("gangs placed", gangs=len(gangs), pods=len(bindings))
        self._account(gangs - late, await self._binder.bind(prompt))

    def _takes_long(self, binding: Binding) -> bool:
        return self._claims.awaits_volume(binding.pod) or self._gpus.awaited(binding)

    def _account(self, gangs: Set[str], report: BindReport) -> None:
        """Draw the conclusions of what became of the bindings of *gangs*."""
        self._metrics.count_binds(report)
        self._reporter.tell_bound(report.bound)
        for gang in gangs - report.refused:
            self._held_off.pop(gang, None)
        for gang in report.refused:
            self._hold_off(gang)
        if report.failed:
            self._retry()

    def _ready(self, bindings: Sequence[Binding]) -> list[Binding]:
        """Return *bindings* without those of gangs that are held off, which are decided again."""
        assert self._memory is not None
        now_s = asyncio.get_running_loop().time()
        waiting = {gang for gang, (until_s, _) in self._held_off.items() if until_s > now_s}
        found = [binding for binding in bindings if binding.gang not in waiting]
        if len(found) < len(bindings):
            self._memory = replace(self._memory, version=-1)
            left_s = min(self._held_off[gang][0] for gang in waiting) - now_s
            # A timer may fire a little early: what is then left is too short to wait for.
            self._controller.enqueue(KEY, max(DEBOUNCE_S, left_s))
        return found

    def _hold_off(self, gang: str) -> None:
        _, last_s = self._held_off.get(gang, (0.0, 0.0))
        wait_s = min(MAX_RETRY_S, max(RETRY_S, 2 * last_s))
        now_s = asyncio.get_running_loop().time()
        kept = {key: held for key, held in self._held_off.items() if held[0] + MAX_RETRY_S > now_s}
        self._held_off = {**kept, gang: (now_s + wait_s, wait_s)}
        self._controller.enqueue(KEY, wait_s)

    async def _evict(self, evictions: Iterable[Eviction], unsaid: set[str]) -> None:
        """Evict for gangs whose pods know the room that is kept for them, and for no other.

        The others are looked at anew: a restart now would forget for whom room was made.
        """
        assert self._memory is not None
        unready = {
            r.gang for r in self._memory.reservations for s in r.spots if s.pod.key in unsaid
        }
        asked = [eviction for eviction in evictions if eviction.made_for not in unready]
        failed = await self._evictor.evict(asked)
        self._metrics.count_evictions(asked, failed)
        lost = {eviction.pod for eviction in failed}
        for gang in {eviction.made_for for eviction in failed} | unready:
            self._memory = self._memory.without_reservation(gang)
        if failed or unready:
            self._retry()
        await self._reporter.tell_evicted(
            [eviction for eviction in asked if eviction.pod not in lost]
        )
