"""An OpenTelemetry collector that keeps what it gets."""

from __future__ import annotations

import gzip
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.router.fake_workers import AsgiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Told:
    """A span as it arrived."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[str]
    failed: bool


@dataclass
class Collector:
    """What came. ``fault`` is a status to answer with instead."""

    spans: list[Told] = field(default_factory=list)
    fault: int = 0
    server: AsgiServer = field(init=False)

    def __post_init__(self) -> None:
        self.server = AsgiServer(self)

    @property
    def env(self) -> dict[str, str]:
        """What has processes send their spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.server.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if not self.fault and scope["path"] == "/v1/traces":
            packed = dict(scope["headers"]).get(b"content-encoding") == b"gzip"
            self._take(gzip.decompress(body) if packed else body)
        status = self.fault or 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def _take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _plain(group.resource.attributes).get("service.name", "")
            self.spans += [_told(service, s) for scope in group.scope_spans for s in scope.spans]

    def of(self, trace: str) -> list[Told]:
        return sorted((s for s in self.spans if s.trace == trace), key=lambda s: s.start_ns)

    def root(self, trace: str) -> Told:
        ids = {span.id for span in self.of(trace)}
        (found,) = [span for span in self.of(trace) if span.parent not in ids]
        return found

    def tree(self, trace: str, below: str | None = None) -> list[Any]:
        """Return the names of spans in the order they began, each before those below it."""
        if below is None:
            root = self.root(trace)
            return [root.name, self.tree(trace, root.id)]
        found: list[Any] = []
        for span in self.of(trace):
            if span.parent == below:
                found.append(span.name)
                if inner := self.tree(trace, span.id):
                    found.append(inner)
        return found


def _told(service: str, span: Any) -> Told:
    return Told(
        service,
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _plain(span.attributes),
        [event.name for event in span.events],
        span.status.code == 2,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Run one on a free port."""
    made = Collector()
    await made.server.start()
    try:
        yield made
    finally:
        await made.server.stop()
