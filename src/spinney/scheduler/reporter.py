"""Writes down what cycles decide, beside bindings and evictions: on gangs, pods and queues.

What is written already is not written again; what could not be written is tried again with a
later cycle. Writes of one cycle are under way together, up to a bound, so that saying why five
hundred gangs wait does not hold up the binding of the next one for long.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from spinney.clock import parse_rfc3339
from spinney.kube.errors import ApiError
from spinney.kube.transport import TransportError
from spinney.log import get_logger
from spinney.scheduler.evictor import EVICTED_EVENT
from spinney.scheduler.queue_reports import QueueReports
from spinney.scheduler.queues.status import queue_statuses
from spinney.scheduler.said import SCHEDULED
from spinney.scheduler.session import Session
from spinney.scheduler.sources.objects import object_of
from spinney.scheduler.status import StatusWriter
from spinney.scheduler.topology.placement_score import placement_score

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from spinney.api.core import Pod
    from spinney.api.podgang import PodGang
    from spinney.api.queue import Queue
    from spinney.kube.controller import Runtime
    from spinney.kube.events import EventRecorder
    from spinney.kube.informer import Informer
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.optional_kinds import OptionalKinds
    from spinney.scheduler.queues.usage import UsageMemory
    from spinney.scheduler.said import GangObject
    from spinney.scheduler.scheduler_metrics import SchedulerMetrics
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.verdict import Binding, Eviction, Verdict

CONCURRENT_GANGS = 16
"""Gangs whose status is being written at a time."""
CONCURRENT_PODS = 32
"""Pods, of all these gangs together."""
WAIT_TOLD_S = 10.0
"""How long a gang waits for its pods, or for an object, before that is written down: most are
whole within a moment."""
RETRY_S = 1.0
"""When to try again after writes failed, if nothing else makes a cycle due."""

V = TypeVar("V")

log = get_logger("scheduler")


class Reporter:
    """Says on objects how they fare. *again* makes a cycle come after so many seconds."""

    def __init__(
        self,
        runtime: Runtime,
        events: EventRecorder,
        config: SchedulerConfig,
        cache: Cache,
        kinds: OptionalKinds,
        metrics: SchedulerMetrics,
        again: Callable[[float], None],
        *,
        pods: Informer[Pod],
        gangs: Informer[PodGang],
        queues: Informer[Queue],
    ) -> None:
        self._status = StatusWriter(runtime.client, runtime.clock, events, config.pool)
        self._queue_reports = QueueReports(runtime.client, runtime.clock, queues)
        self._clock = runtime.clock
        self._events = events
        self._config = config
        self._cache = cache
        self._kinds = kinds
        self._metrics = metrics
        self._again = again
        self._pods, self._gangs, self._queues = pods, gangs, queues
        self._gang_slots = asyncio.Semaphore(CONCURRENT_GANGS)
        self._pod_slots = asyncio.Semaphore(CONCURRENT_PODS)
        self._unsettled: set[str] = set()
        """Gangs of which something changed since their condition was looked at."""
        self._waiting_since_s: dict[str, float] = {}
        """Gangs that are not judged yet, in loop time."""
        self._told: dict[str, Verdict] = {}
        """By gang: the verdict that is written down, with all its pods."""

    # What changed

    def pod_changed(self, uid: str, before: PodInfo | None, after: PodInfo | None) -> None:
        """Note a change of a pod: its gang may stand differently."""
        if after is None or after.state != "pending":
            self._status.forget_pod(uid)
        self._unsettled.update(found.gang for found in (before, after) if found and found.gang)

    def gang_changed(self, key: str) -> None:
        """Note a change of a PodGang: others may have written over what was said."""
        self._unsettled.add(key)
        self._told.pop(key, None)

    # What was decided

    async def nominate(self, keep: Mapping[str, str]) -> set[str]:
        """Say on pods which room is kept for them, and that there is none any more on others.

        *keep* are pods with their nodes. Returns the pods on which that could not be written.
        """
        unsaid: set[str] = set()

        async def tell(pod: Pod) -> None:
            try:
                await self._status.pod_nominated(pod, keep.get(pod.key, ""))
            except (ApiError, TransportError) as error:
                log.warning("pod's node is not nominated", pod=pod.key, error=str(error))
                unsaid.add(pod.key)

        await self._each_pending(sorted({*self._cache.nominated, *keep}), tell)
        if unsaid:
            self._again(RETRY_S)
        return unsaid

    def tell_bound(self, bindings: Iterable[Binding]) -> None:
        """Report pods that no object speaks for; of the others their gang is reported."""
        for binding in bindings:
            pod = self._pods.get_key(binding.pod)
            if pod is not None and self._object(binding.gang) is None:
                self._events.event(pod, "Normal", SCHEDULED, f"placed on {binding.node}")

    async def tell_evicted(self, evictions: Iterable[Eviction]) -> None:
        """Say on gangs that they are being evicted; their pods know already."""

        async def tell(gang: str, found: Eviction) -> bool:
            obj, tree = self._object(gang), self._cache.judge(gang)
            if obj is None:
                return True
            self._events.event(obj, "Normal", EVICTED_EVENT, f"{found.action}: {found.message}")
            if tree is not None and not tree.satisfied:
                await self._status.gang_disrupted(obj, found.message)
            return True

        by_gang = {eviction.gang: eviction for eviction in evictions}
        await self._each_gang(by_gang, tell)

    async def tell_unplaced(self, verdicts: Mapping[str, Verdict]) -> None:
        """Write down every verdict that is not what was written down before."""
        wanted = self._worth_telling(verdicts)
        news = {key: v for key, v in wanted.items() if self._told.get(key) is not v}
        failed = await self._each_gang(news, lambda _, verdict: self._tell(verdict))
        self._told = {key: verdict for key, verdict in wanted.items() if key not in failed}

    def _worth_telling(self, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Return the verdicts on pods without a node; of gangs that wait, if that takes long."""
        loop_s = asyncio.get_running_loop().time()
        since_s = {
            key: self._waiting_since_s.get(key, loop_s)
            for key, verdict in verdicts.items()
            if verdict.kind == "waiting"
        }
        self._waiting_since_s = since_s
        soon_s = [at + WAIT_TOLD_S - loop_s for at in since_s.values() if at + WAIT_TOLD_S > loop_s]
        if soon_s:
            self._again(min(soon_s))
        return {
            key: verdict
            for key, verdict in verdicts.items()
            if (since_s[key] + WAIT_TOLD_S <= loop_s if key in since_s else verdict.left)
        }

    async def _tell(self, verdict: Verdict) -> bool:
        """Say on a gang and its pods why they have no node; return whether all of it is written."""
        obj, waiting = self._object(verdict.gang), verdict.kind == "waiting"
        if obj is not None and verdict.kind != "placed":
            await self._status.gang_unplaced(obj, verdict.reason, waiting=waiting)
        left = self._cache.waiting_pods(verdict.gang) if waiting else verdict.left
        failed: list[str] = []

        async def tell(pod: Pod) -> None:
            report = obj is None and pod.key == left[0]
            try:
                await self._status.pod_unplaced(pod, verdict.reason, report=report, waiting=waiting)
            except (ApiError, TransportError) as error:
                log.warning("pod's condition not written", pod=pod.key, error=str(error))
                failed.append(pod.key)

        await self._each_pending(left, tell)
        return not failed

    # How gangs and queues stand

    async def settle(self) -> None:
        """Write the condition of gangs whose minimum the API confirms to be on nodes."""
        unsettled = sorted(self._unsettled)
        trees = {key: tree for key in unsettled if (tree := self._cache.judge(key)) is not None}
        standing = {key: tree for key, tree in trees.items() if self._confirmed(tree)}
        self._unsettled.clear()
        if not standing:
            return
        session = Session(self._cache.snapshot(), self._config)

        async def tell(key: str, tree: Gang) -> bool:
            obj = self._object(key)
            if obj is None:
                return True
            score = placement_score(session, tree)
            if await self._status.gang_placed(obj, score, _placed_text(tree)):
                born = obj.metadata.creation_timestamp
                waited_s = self._clock.now() - parse_rfc3339(born) if born else 0.0
                self._metrics.wait_seconds.observe(max(0.0, waited_s))
            return True

        self._unsettled |= await self._each_gang(standing, tell)

    def _confirmed(self, gang: Gang) -> bool:
        leaves = list(gang.root.leaves())
        pods = [pod for leaf in leaves for pod in leaf.active]
        return bool(pods) and gang.satisfied and all(self._cache.confirmed(pod.key) for pod in pods)

    async def report_queues(self, usage: UsageMemory | None) -> None:
        """Write the status of queues, unless that was done just now or is for all pools to do."""
        if self._config.pool_label is not None or not self._queues.list():
            return
        loop_s = asyncio.get_running_loop().time()
        if wait_s := self._queue_reports.wait_s(loop_s):
            self._again(wait_s)
            return
        weight = self._config.usage_weight if usage is not None else 0.0
        found = queue_statuses(self._cache.snapshot(self._clock.now()), usage, weight)
        await self._queue_reports.write(found, loop_s)

    # Several at a time

    def _object(self, gang: str) -> GangObject | None:
        """Return the object that describes *gang*, if there is one with a status."""
        return object_of(gang, self._gangs.get_key, self._kinds.get)

    async def _each_gang(
        self, gangs: Mapping[str, V], work: Callable[[str, V], Awaitable[bool]]
    ) -> set[str]:
        """Do *work* on all *gangs* together; return those for which it has to be done again."""
        failed: set[str] = set()

        async def one(key: str, value: V) -> None:
            try:
                async with self._gang_slots:
                    if await work(key, value):
                        return
            except (ApiError, TransportError) as error:
                log.warning("gang's status not written", gang=key, error=str(error))
            failed.add(key)

        async with asyncio.TaskGroup() as group:
            for key, value in gangs.items():
                group.create_task(one(key, value))
        if failed:
            self._again(RETRY_S)
        return failed

    async def _each_pending(
        self, keys: Iterable[str], work: Callable[[Pod], Awaitable[None]]
    ) -> None:
        """Do *work* on those of *keys* that have no node, several at a time."""

        async def one(pod: Pod) -> None:
            async with self._pod_slots:
                await work(pod)

        async with asyncio.TaskGroup() as group:
            for key in keys:
                pod = self._pods.get_key(key)
                if pod is not None and not pod.spec.node_name:
                    group.create_task(one(pod))


def _placed_text(gang: Gang) -> str:
    pods = [pod for leaf in gang.root.leaves() for pod in leaf.active]
    return f"placed {len(pods)} pods on {len({pod.node for pod in pods})} nodes"
