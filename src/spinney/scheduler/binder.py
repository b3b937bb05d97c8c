"""Tells the API what was decided, bindings and evictions: pod by pod, several at a time.

A binding cannot be taken back, so a gang of which some binds succeed and others fail stays bound in
part: its bound pods count and pin the domain, and the next cycle places the others beside them
under the same constraints. A bind that fails for good takes back the assumption of its pod only.
Nothing is bound twice: the API refuses a pod that has a node, or that is another pod by now.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.api.core import Pod
from spinney.clock import rfc3339
from spinney.kube import transport as wire
from spinney.kube.errors import ApiError, BusyError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder
    from spinney.kube.informer import Informer
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.verdict import Binding, Eviction

CONCURRENT_BINDS = 32
"""Binding calls that are under way at a time."""
BIND_ATTEMPTS = 4
"""Tries of one binding when the API is busy or not reachable."""
BIND_RETRY_S = 0.1
"""The wait after the first failed try; it doubles."""

CONCURRENT_EVICTIONS = 32
"""Gangs that are being evicted at a time; the pods of one go one after the other."""
DISRUPTION_TARGET = "DisruptionTarget"
EVICTED_REASON = "PreemptionByScheduler"
EVICTED_EVENT = "Evicted"

log = get_logger("scheduler")


class Binder:
    """Sends bindings, and keeps the cache's assumptions true."""

    def __init__(self, client: KubeClient, cache: Cache) -> None:
        self._client = client
        self._cache = cache

    async def bind(self, bindings: Sequence[Binding]) -> list[Binding]:
        """Assume all *bindings*, send them, and return those that failed for good."""
        for binding in bindings:
            self._cache.assume(binding.pod, binding.node)
        slots = asyncio.Semaphore(CONCURRENT_BINDS)
        failed: list[Binding] = []
        async with asyncio.TaskGroup() as group:
            for binding in bindings:
                await slots.acquire()
                task = group.create_task(self._bind(binding, failed))
                task.add_done_callback(lambda _: slots.release())
        return failed

    async def _bind(self, binding: Binding, failed: list[Binding]) -> None:
        namespace, _, name = binding.pod.partition("/")
        try:
            await self._send(name, namespace, binding)
        except (ApiError, TransportError) as error:
            self._cache.forget(binding.pod)
            failed.append(binding)
            log.warning("bind failed", pod=binding.pod, node=binding.node, error=str(error))

    async def _send(self, name: str, namespace: str, binding: Binding) -> None:
        for attempt in range(BIND_ATTEMPTS):
            try:
                await self._client.bind(name, namespace, binding.node, uid=binding.uid)
            except (BusyError, TransportError) as error:
                if attempt + 1 == BIND_ATTEMPTS:
                    raise
                asked_s = error.retry_after_s if isinstance(error, BusyError) else 0.0
                await asyncio.sleep(max(asked_s, BIND_RETRY_S * 2**attempt))
            else:
                return


class Evictor:
    """Sends evictions, a gang at a time, so that no gang is left in part.

    A disruption budget that refuses a gang's first pod spares the gang. One that refuses a later
    pod comes too late, and the pod is deleted: half of a gang is of no use to anyone.
    """

    def __init__(
        self,
        client: KubeClient,
        clock: Clock,
        events: EventRecorder,
        cache: Cache,
        pods: Informer[Pod],
    ) -> None:
        self._client = client
        self._clock = clock
        self._events = events
        self._cache = cache
        self._pods = pods

    async def evict(self, evictions: Sequence[Eviction]) -> list[Eviction]:
        """Evict all, and return those that did not work, of which the pods go on running."""
        slots = asyncio.Semaphore(CONCURRENT_EVICTIONS)
        failed: list[Eviction] = []

        async def one(members: list[Eviction]) -> None:
            async with slots:
                failed.extend(await self._gang(members))

        gangs: dict[str, list[Eviction]] = {}
        for eviction in evictions:
            gangs.setdefault(eviction.gang, []).append(eviction)
        async with asyncio.TaskGroup() as group:
            for members in gangs.values():
                group.create_task(one(members))
        return failed

    async def _gang(self, members: list[Eviction]) -> list[Eviction]:
        for at, eviction in enumerate(members):
            try:
                await self._evict(eviction, insist=at > 0)
            except (ApiError, TransportError) as error:
                log.warning("eviction failed", pod=eviction.pod, error=str(error))
                return members[at:]
            self._cache.displace(eviction.pod)
        return []

    async def _evict(self, eviction: Eviction, *, insist: bool) -> None:
        namespace, _, name = eviction.pod.partition("/")
        pod = self._pods.get(name, namespace)
        if pod is None or pod.metadata.uid != eviction.uid:
            return
        try:
            await self._announce(pod, eviction)
            await self._client.evict(name, namespace)
        except NotFoundError:
            return
        except BusyError:
            if not insist:
                raise
            await self._client.delete(Pod, name, namespace, uid=eviction.uid)
        self._events.event(pod, "Normal", EVICTED_EVENT, f"{eviction.action}: {eviction.message}")
        log.info("pod evicted", pod=eviction.pod, action=eviction.action, room=eviction.made_for)

    async def _announce(self, pod: Pod, eviction: Eviction) -> None:
        condition = {
            "type": DISRUPTION_TARGET,
            "status": "True",
            "reason": EVICTED_REASON,
            "message": eviction.message,
            "lastTransitionTime": rfc3339(self._clock.now()),
        }
        await self._client.patch(
            Pod,
            pod.name,
            {"metadata": {"uid": eviction.uid}, "status": {"conditions": [condition]}},
            pod.namespace,
            content_type=wire.STRATEGIC_PATCH,
            subresource="status",
        )
