"""Events for people: what happened to an object, told once and counted after.

A component may report the same thing in every cycle. The same (object, type, reason, message) is
one Event object whose count grows, written at most once per `REPEAT_INTERVAL_S`; so talk
never costs more than a bounded number of writes, and reporting never waits or fails.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from spinney.api.core import Event, EventSource, ObjectReference
from spinney.api.meta import ObjectMeta
from spinney.clock import rfc3339
from spinney.kube.errors import ApiError, BusyError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from spinney.api.meta import KubeObject
    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.client import KubeClient

MAX_PENDING = 1000
"""Distinct events that may wait to be written; further ones are dropped, and counted in the log."""
MAX_REMEMBERED = 4096
"""Written events that are remembered, so that a repetition counts up instead of adding one."""
REPEAT_INTERVAL_S = 10.0
"""The shortest time between two writes of one event."""
ATTEMPTS = 4
"""Tries of one write before the event is dropped."""
RETRY_S = 0.5
"""The wait after the first failed try; it doubles."""
MAX_MESSAGE = 1024
"""Characters of a message that are kept: what Kubernetes allows."""

EventKind = Literal["Normal", "Warning"]
_Key = tuple[str, str, str, str, str]

log = get_logger("events")


@dataclass(slots=True)
class _Pending:
    """Occurrences that are not written yet."""

    about: ObjectReference
    count: int
    first_s: float
    last_s: float


@dataclass(slots=True)
class _Written:
    """An Event object that exists."""

    namespace: str
    name: str
    count: int
    at_loop_s: float


class EventRecorder:
    """Reports events in the name of *component*, through a queue that `run` writes out."""

    def __init__(self, client: KubeClient, clock: Clock, ids: IdSource, component: str) -> None:
        self._client = client
        self._clock = clock
        self._ids = ids
        self._component = component
        self._pending: OrderedDict[_Key, _Pending] = OrderedDict()
        self._written: OrderedDict[_Key, _Written] = OrderedDict()
        self._wake = asyncio.Event()
        self._dropped = 0

    # The name of the argument is that of the field.
    def event(self, obj: KubeObject, type: EventKind, reason: str, message: str) -> None:
        """Report that *reason* (CamelCase) happened to *obj*. Returns at once, never raises."""
        key = (obj.metadata.uid, obj.key, type, reason, message[:MAX_MESSAGE])
        now_s = self._clock.now()
        found = self._pending.get(key)
        if found is not None:
            found.count += 1
            found.last_s = now_s
            return
        if len(self._pending) >= MAX_PENDING:
            self._dropped += 1
            return
        self._pending[key] = _Pending(_reference(obj), 1, now_s, now_s)
        self._wake.set()

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            key = await self._next()
            pending = self._pending.pop(key)
            if self._dropped:
                log.warning("events dropped", component=self._component, count=self._dropped)
                self._dropped = 0
            try:
                await self._write(key, pending)
            except (ApiError, TransportError) as error:
                log.warning("event not written", reason=key[3], key=key[1], error=str(error))

    async def _next(self) -> _Key:
        """Wait for an event that may be written now."""
        while True:
            self._wake.clear()
            if not self._pending:
                await self._wake.wait()
                continue
            now_s = _loop_s()
            soonest_s = float("inf")
            for key in self._pending:
                due_s = self._due_s(key)
                if due_s <= now_s:
                    return key
                soonest_s = min(soonest_s, due_s)
            try:
                async with asyncio.timeout(soonest_s - now_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _due_s(self, key: _Key) -> float:
        written = self._written.get(key)
        return written.at_loop_s + REPEAT_INTERVAL_S if written else float("-inf")

    async def _write(self, key: _Key, pending: _Pending) -> None:
        for attempt in range(ATTEMPTS):
            try:
                await self._write_once(key, pending)
            except (BusyError, TransportError):
                if attempt + 1 == ATTEMPTS:
                    raise
                await asyncio.sleep(RETRY_S * 2**attempt)
            else:
                return

    async def _write_once(self, key: _Key, pending: _Pending) -> None:
        written = self._written.get(key)
        if written is not None:
            try:
                await self._count_up(written, pending)
            except NotFoundError:
                # Events expire; a new one starts its own count.
                del self._written[key]
            else:
                return
        created = await self._client.create(self._new(key, pending))
        self._remember(key, _Written(created.namespace, created.name, pending.count, _loop_s()))

    async def _count_up(self, written: _Written, pending: _Pending) -> None:
        count = written.count + pending.count
        patch = {"count": count, "lastTimestamp": rfc3339(pending.last_s)}
        await self._client.patch(Event, written.name, patch, written.namespace)
        written.count = count
        written.at_loop_s = _loop_s()

    def _new(self, key: _Key, pending: _Pending) -> Event:
        about = pending.about
        namespace = about.namespace or "default"
        # A name of an object may be 253 characters long; the suffix has to fit as well.
        name = f"{about.name[:230].rstrip('.-')}.{self._ids.suffix(16)}"
        return Event(
            metadata=ObjectMeta(name=name, namespace=namespace),
            involved_object=about,
            type=key[2],
            reason=key[3],
            message=key[4],
            count=pending.count,
            first_timestamp=rfc3339(pending.first_s),
            last_timestamp=rfc3339(pending.last_s),
            source=EventSource(component=self._component),
            reporting_component=self._component,
        )

    def _remember(self, key: _Key, written: _Written) -> None:
        self._written[key] = written
        if len(self._written) > MAX_REMEMBERED:
            self._written.popitem(last=False)


def _reference(obj: KubeObject) -> ObjectReference:
    meta, resource = obj.metadata, obj.RESOURCE
    return ObjectReference(
        api_version=resource.api_version,
        kind=resource.kind,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
    )


def _loop_s() -> float:
    return asyncio.get_running_loop().time()
