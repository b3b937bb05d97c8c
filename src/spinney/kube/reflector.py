"""Keeps a copy of a collection true to the API, whatever breaks in between.

A list gives the state at one version; a watch from that version gives every change after it. As
long as the last version seen is kept, a broken or ended watch goes on from there and nothing is
missed. When the server no longer keeps that version (410, as a reply or inside the stream) the
collection is listed again, and the sink learns the whole, so that deletions which nobody
reported become known.

The invariant: the sink has been told of every change up to ``version``, in order.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from spinney.api import codec
from spinney.api.meta import KubeObject, ListMeta, ObjectMeta, Status
from spinney.kube.backoff import BackoffPolicy
from spinney.kube.errors import ApiError, ExpiredError, error_of
from spinney.kube.transport import ApiRequest, TransportError
from spinney.log import get_logger

if TYPE_CHECKING:
    from random import Random

    from spinney.kube.client import KubeClient

T = TypeVar("T", bound=KubeObject)

PAGE_LIMIT = 500
"""Objects per page of a list: bounds the memory of one reply."""
WATCH_MIN_S, WATCH_MAX_S = 300, 600
"""A watch is asked to end after a random time between these, so that watchers spread out."""
WATCH_OVERTIME_S = 30.0
"""A watch still open this long after it had to end counts as broken."""
SHORT_WATCH_S = 1.0
"""A watch that ends sooner and without an event counts as a failure, and so is backed off."""
RELIST_AFTER_FAILURES = 6
"""Failed watches in a row after which the version itself is doubted."""
EVENTS_PER_TURN = 256
"""Events handled before other tasks get a turn, when a stream always has one ready."""
BACKOFF = BackoffPolicy(base_s=0.2, cap_s=30.0)

log = get_logger("reflector")


class Sink(Protocol[T]):
    """Takes what the reflector learns."""

    def put(self, key: str, obj: T) -> None:
        """*obj* was added or changed."""
        ...

    def remove(self, key: str, last: T | None) -> None:
        """The object is gone; *last* is its last state, where the event could be read."""
        ...

    def replace(self, objects: dict[str, T], unreadable: set[str]) -> None:
        """The whole collection; keys in *unreadable* exist as well but could not be decoded."""
        ...


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Header(msgspec.Struct):
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)

    @property
    def key(self) -> str:
        meta = self.metadata
        return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name


class _RawPage(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[msgspec.Raw] | None = None


class _EmptyWatchError(Exception):
    """A watch ended at once and brought nothing."""


class Reflector(Generic[T]):
    """Tells *sink* of every object of *kind* that the selectors match, until cancelled."""

    def __init__(
        self,
        client: KubeClient,
        kind: type[T],
        sink: Sink[T],
        *,
        rng: Random,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> None:
        self._client = client
        self._kind = kind
        self._sink = sink
        self._rng = rng
        self._path = kind.RESOURCE.path(namespace)
        self._selectors = {
            key: value
            for key, value in (("labelSelector", labels), ("fieldSelector", fields))
            if value
        }
        event = msgspec.defstruct("Event", [("type", str), ("object", kind)])
        page = msgspec.defstruct("Page", [("metadata", ListMeta), ("items", list[kind])])  # type: ignore[valid-type]
        self._event_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(event)
        self._page_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(page)
        self._log = log.bind(resource=kind.RESOURCE.name)
        self.version: str | None = None
        """The version up to which the sink knows everything; None before a list."""

    async def run(self) -> None:
        """List, watch, and start over where need be, until cancelled."""
        failures = 0
        while True:
            from_version = self.version
            try:
                if self.version is None:
                    await self._list()
                    from_version = self.version
                await self._watch()
                failures = 0
            except (ApiError, TransportError, TimeoutError, _EmptyWatchError) as error:
                if self.version != from_version:
                    failures = 0
                failures = self._failures_after(error, failures)
                await asyncio.sleep(self._delay_s(error, failures))

    def _failures_after(self, error: Exception, before: int) -> int:
        failures = before + 1
        if isinstance(error, ExpiredError):
            self._log.info("version expired, listing again", version=self.version)
            self.version = None
        elif failures % RELIST_AFTER_FAILURES == 0:
            self.version = None
        if not isinstance(error, ExpiredError | _EmptyWatchError | TimeoutError):
            self._log.warning("list or watch failed", error=str(error), failures=failures)
        return failures

    def _delay_s(self, error: Exception, failures: int) -> float:
        if isinstance(error, ExpiredError) and failures == 1:
            return 0.0
        asked_s = error.retry_after_s if isinstance(error, ApiError) else 0.0
        # The server names the earliest time; the jitter keeps its clients apart.
        return asked_s + BACKOFF.delay_s(failures, self._rng)

    # Listing

    async def _list(self) -> None:
        objects: dict[str, T] = {}
        unreadable: set[str] = set()
        try:
            version = await self._pages(objects, unreadable, PAGE_LIMIT)
        except ExpiredError:
            # The continue token outlived the state it was for: one reply cannot.
            objects.clear()
            unreadable.clear()
            version = await self._pages(objects, unreadable, 0)
        self._sink.replace(objects, unreadable)
        self.version = version

    async def _pages(self, objects: dict[str, T], unreadable: set[str], limit: int) -> str:
        token = ""
        while True:
            query = dict(self._selectors)
            if limit:
                query["limit"] = str(limit)
            if token:
                query["continue"] = token
            response = await self._client.raw(ApiRequest("GET", self._path, query))
            meta = self._take_page(response.body, objects, unreadable)
            token = meta.continue_
            if not token:
                return meta.resource_version

    def _take_page(self, body: bytes, objects: dict[str, T], unreadable: set[str]) -> ListMeta:
        try:
            page = self._page_decoder.decode(body)
        except msgspec.MsgspecError:
            return self._take_items(body, objects, unreadable)
        for obj in page.items:
            objects[obj.key] = obj
        meta: ListMeta = page.metadata
        return meta

    def _take_items(self, body: bytes, objects: dict[str, T], unreadable: set[str]) -> ListMeta:
        """Decode one by one, so that one odd object costs only itself."""
        try:
            page = msgspec.json.decode(body, type=_RawPage)
        except msgspec.MsgspecError as error:
            raise TransportError(f"{self._path}: the reply is no list: {error}") from error
        for raw in page.items or ():
            obj = self._decode(bytes(raw))
            if obj is not None:
                objects[obj.key] = obj
            elif (header := _header(bytes(raw))) is not None:
                unreadable.add(header.key)
        return page.metadata

    def _decode(self, raw: bytes) -> T | None:
        try:
            return codec.decode(self._kind, raw)
        except codec.DecodeError as error:
            header = _header(raw)
            self._log.error(
                "object skipped", key=header.key if header else "unknown", error=str(error)
            )
            return None

    # Watching

    async def _watch(self) -> None:
        timeout_s = self._rng.randint(WATCH_MIN_S, WATCH_MAX_S)
        query = {
            **self._selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.version or "",
            "timeoutSeconds": str(timeout_s),
        }
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        async with asyncio.timeout(timeout_s + WATCH_OVERTIME_S):
            response = await self._client.raw(ApiRequest("GET", self._path, query))
            if response.stream is None:
                raise TransportError(f"{self._path}: a watch was asked for, a body came")
            stream = response.stream
            try:
                seen = await self._take_events(stream)
            finally:
                if (close := getattr(stream, "aclose", None)) is not None:
                    await close()
        if not seen and loop.time() - started_s < SHORT_WATCH_S:
            raise _EmptyWatchError

    async def _take_events(self, stream: Any) -> int:
        """Handle events until the stream ends; return how many."""
        decode, put = self._event_decoder.decode, self._sink.put
        seen = 0
        async for line in stream:
            seen += 1
            if seen % EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                event = decode(line)
            except msgspec.MsgspecError:
                self._take_odd(line)
                continue
            kind, obj = event.type, event.object
            if kind == "MODIFIED" or kind == "ADDED":
                put(obj.key, obj)
            elif kind == "DELETED":
                self._sink.remove(obj.key, obj)
            elif kind != "BOOKMARK":
                self._take_odd(line)
                continue
            self.version = obj.metadata.resource_version
        return seen

    def _take_odd(self, line: bytes) -> None:
        """Handle a line whose object is not of the kind: an error, a bookmark, or a bad object."""
        try:
            event = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise TransportError(f"{self._path}: the watch broke inside an event") from error
        raw = bytes(event.object)
        if event.type == "ERROR":
            raise _stream_error(raw)
        header = _header(raw)
        if event.type in ("ADDED", "MODIFIED"):
            obj = self._decode(raw)
            if obj is not None:
                self._sink.put(obj.key, obj)
        elif event.type == "DELETED" and header is not None:
            self._sink.remove(header.key, self._decode(raw))
        if header is not None and header.metadata.resource_version:
            self.version = header.metadata.resource_version


def _header(raw: bytes) -> _Header | None:
    """Return the metadata of *raw*, whatever the rest of it is."""
    try:
        value = msgspec.json.decode(raw)
        return msgspec.convert(codec.without_nulls({"metadata": value["metadata"]}), _Header)
    except (msgspec.MsgspecError, KeyError, TypeError):
        return None


def _stream_error(raw: bytes) -> ApiError:
    try:
        return error_of(msgspec.json.decode(raw, type=Status))
    except msgspec.MsgspecError:
        text = raw[:200].decode("utf-8", "replace")
        return ApiError(Status(status="Failure", message=f"the watch ended with {text}"))
