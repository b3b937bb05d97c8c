"""Writes the status of queues: what they have, want and are due, as `queue_statuses` finds it.

A burst of bindings changes the figures with each of them, so they are written at most every
`PERIOD_S`; what is written already is not written again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from spinney.api.codec import merge_diff
from spinney.api.meta import with_condition
from spinney.api.queue import Queue
from spinney.clock import rfc3339
from spinney.kube.errors import ConflictError, NotFoundError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.queue import QueueStatus
    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.kube.informer import Informer

PERIOD_S = 1.0

log = get_logger("scheduler")


class QueueReports:
    """The status of all queues of the informer."""

    def __init__(self, client: KubeClient, clock: Clock, queues: Informer[Queue]) -> None:
        self._client = client
        self._clock = clock
        self._queues = queues
        self._last_s = -PERIOD_S

    def wait_s(self, loop_s: float) -> float:
        """Return how long it is until statuses may be written again; 0 for now."""
        return max(0.0, self._last_s + PERIOD_S - loop_s)

    async def write(self, found: Mapping[str, QueueStatus], loop_s: float) -> None:
        """Write what differs. One that somebody else changes at the same time is left for later."""
        self._last_s = loop_s
        for queue in self._queues.list():
            status = found.get(queue.name)
            after = None if status is None else with_status(queue, status, self._now())
            if after is None:
                continue
            changes = merge_diff(queue, after)
            changes["metadata"] = {"resourceVersion": queue.metadata.resource_version}
            try:
                await self._client.patch(Queue, queue.name, changes, subresource="status")
            except (ConflictError, NotFoundError) as error:
                log.info("queue's status not written", queue=queue.name, error=str(error))

    def _now(self) -> str:
        return rfc3339(self._clock.now())


def with_status(queue: Queue, status: QueueStatus, now: str) -> Queue | None:
    """Return *queue* with *status*, or None when it has it; conditions of others are kept."""
    conditions = queue.status.conditions
    for condition in status.conditions:
        conditions = with_condition(conditions, condition, now)
    after = replace(queue, status=replace(status, conditions=conditions))
    return after if after.status != queue.status else None
