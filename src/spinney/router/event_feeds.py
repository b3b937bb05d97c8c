"""Follows the KV events of all workers, so that the index holds what they hold.

One subscription per worker that publishes, over one ZeroMQ context. Invariant: what the index has
of a worker was said without a gap by the worker that is there now; after a gap, a restart, or a
`resync` it starts from nothing, with what the worker can say again.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from spinney.kv.event_stream import Gap
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from spinney.kv.events import KVEventBatch
    from spinney.kv.prefix_index import BlockIndex
    from spinney.router.metrics import RouterMetrics
    from spinney.router.workers import Worker, WorkerSource

    Subscribe = Callable[[str, str | None], AsyncGenerator[KVEventBatch | Gap, None]]
    """Takes the endpoints of events and of replays."""

RESUBSCRIBE_S = 1.0
"""Between two subscriptions to a worker, when the first one failed."""

log = get_logger("router")


class EventFeeds:
    """The subscriptions to the workers of *source*."""

    def __init__(
        self,
        source: WorkerSource,
        index: BlockIndex,
        subscribe: Subscribe,
        metrics: RouterMetrics,
    ) -> None:
        self._source = source
        self._index = index
        self._subscribe = subscribe
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._followed: dict[tuple[str, str, str, str], asyncio.Task[None]] = {}
        self._stale: set[str] = set()
        self.heard: set[str] = set()
        """Workers whose events arrive."""
        source.on_change(self._changed.set)

    def resync(self, worker: str) -> None:
        """Forget what *worker* said, and have it said again."""
        self._index.forget(worker)
        self.heard.discard(worker)
        self._stale.add(worker)
        self._changed.set()

    async def run(self) -> None:
        """Follow the workers that come and go, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                self._reconcile(tasks)
                await self._changed.wait()

    def _reconcile(self, tasks: asyncio.TaskGroup) -> None:
        wanted = {_key(worker): worker for worker in self._source.workers() if worker.kv_events}
        for key in [key for key in self._followed if key not in wanted or key[0] in self._stale]:
            self._followed.pop(key).cancel()
            self._index.forget(key[0])
            self.heard.discard(key[0])
        self._stale.clear()
        for key, worker in wanted.items():
            if key not in self._followed:
                self._followed[key] = tasks.create_task(self._follow(worker))

    async def _follow(self, worker: Worker) -> None:
        name = worker.name
        while True:
            try:
                async with aclosing(
                    self._subscribe(worker.kv_events, worker.kv_replay or None)
                ) as messages:
                    async for message in messages:
                        self._take(name, message)
            except Exception as error:  # noqa: BLE001 - one worker's feed must not end the others
                log.warning("KV events failed", worker=name, error=repr(error))
            self._index.forget(name)
            self.heard.discard(name)
            await asyncio.sleep(RESUBSCRIBE_S)

    def _take(self, name: str, message: KVEventBatch | Gap) -> None:
        if isinstance(message, Gap):
            self._index.forget(name)
            self._metrics.event_gaps.inc()
            log.info("KV events lost; starting anew", worker=name)
            return
        self.heard.add(name)
        self._index.apply(name, message.events)
        self._metrics.kv_events.inc(len(message.events))


def _key(worker: Worker) -> tuple[str, str, str, str]:
    return worker.name, worker.uid, worker.kv_events, worker.kv_replay
