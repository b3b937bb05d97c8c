"""Tells the API what was decided: pod by pod, several at a time.

A binding cannot be taken back, so a gang of which some binds succeed and others fail stays bound in
part: its bound pods count and pin the domain, and the next cycle places the others beside them
under the same constraints. A bind that fails for good takes back the assumption of its pod only.
Nothing is bound twice: the API refuses a pod that has a node, or that is another pod by now.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.kube.errors import ApiError, BusyError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kube.client import KubeClient
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.verdict import Binding

CONCURRENT_BINDS = 32
"""Binding calls that are under way at a time."""
BIND_ATTEMPTS = 4
"""Tries of one binding when the API is busy or not reachable."""
BIND_RETRY_S = 0.1
"""The wait after the first failed try; it doubles."""

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
