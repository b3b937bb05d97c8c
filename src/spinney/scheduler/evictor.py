"""Tells the API which pods have to leave: gang by gang, announced on each pod first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.api.core import Pod
from spinney.clock import rfc3339
from spinney.kube import transport as wire
from spinney.kube.errors import ApiError, BusyError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger
from spinney.scheduler.said import DISRUPTION_TARGET, EVICTED_REASON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder
    from spinney.kube.informer import Informer
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.verdict import Eviction

CONCURRENT_EVICTIONS = 32
"""Gangs that are being evicted at a time; the pods of one go one after the other."""
EVICTED_EVENT = "Evicted"

log = get_logger("scheduler")


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
