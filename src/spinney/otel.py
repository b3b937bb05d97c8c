"""Traces over OpenTelemetry, as its standard ``OTEL_*`` variables ask for.

Imported only by processes that are to trace, since its libraries are an optional extra. Invariant:
a collector that is slow or away costs traces, never requests: spans wait in a bounded queue for a
thread of their own.
"""

from __future__ import annotations

import os
from asyncio import CancelledError
from importlib.metadata import entry_points
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from spinney.errors import BadInputError
from spinney.tracing import Kind, NoSpan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

    from spinney.clock import Clock
    from spinney.tracing import Attributes, Span

_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.SERVER: SpanKind.SERVER,
    Kind.CLIENT: SpanKind.CLIENT,
}
LAST_SPANS_S = 3.0
"""What a process that ends waits for its collector; the exporter would try for longer."""
_EXPORTERS = "opentelemetry_traces_exporter"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class UnsampledSpan(NoSpan):
    """A span that the sampler left out, and all below it: only its place in the trace goes on."""

    __slots__ = ("_context", "_trace_id")

    def __init__(self, span: trace.Span, context: Context) -> None:
        self._context = trace.set_span_in_context(span, context)
        self._trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self._trace_id

    def carry(self, headers: dict[str, str]) -> dict[str, str]:
        """Return *headers* and what says that the trace is not sampled."""
        carried = dict(headers)
        propagate.inject(carried, self._context)
        return carried


class OtelSpan:
    """A `spinney.tracing.Span` that is recorded."""

    __slots__ = ("_context", "_ended", "_span", "_tracer")
    recording = True

    def __init__(self, tracer: OtelTracer, span: trace.Span, context: Context | None) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, context)
        self._ended = False

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def child(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: Kind = Kind.INTERNAL,
        ago_s: float = 0.0,
    ) -> Span:
        """Return a span within this one; see `Span.child`."""
        return self._tracer.start(name, self._context, attributes, kind, ago_s)

    def rename(self, name: str) -> None:
        """Call it *name* from now on."""
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        """Add *attributes*."""
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Note that something happened now."""
        self._span.add_event(name, attributes, self._tracer.now_ns())

    def carry(self, headers: dict[str, str]) -> dict[str, str]:
        """Return *headers* and those of this span; see `Span.carry`."""
        carried = dict(headers)
        propagate.inject(carried, self._context)
        return carried

    def end(self, error: str = "", *, ago_s: float = 0.0) -> None:
        """End it; see `Span.end`."""
        if self._ended:
            return
        self._ended = True
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(self._tracer.now_ns(ago_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        left = isinstance(error, CancelledError)
        self.end("cancelled" if left else type(error).__name__ if error is not None else "")


class OtelTracer:
    """A `spinney.tracing.Tracer` for *provider*, with the times of *clock*."""

    def __init__(self, provider: TracerProvider, clock: Clock) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("spinney")
        self._clock = clock

    def begin(self, name: str, headers: Mapping[str, str], kind: Kind = Kind.SERVER) -> Span:
        """Return a span below the one that *headers* name; see `Tracer.begin`."""
        context = propagate.extract(headers)
        span = self._tracer.start_span(name, context, _KINDS[kind], start_time=self.now_ns())
        if not span.is_recording():
            return UnsampledSpan(span, context)
        return OtelSpan(self, span, context)

    def start(
        self,
        name: str,
        context: Context | None,
        attributes: Attributes | None,
        kind: Kind,
        ago_s: float,
    ) -> OtelSpan:
        """Return a span in *context* that began *ago_s* seconds before now."""
        span = self._tracer.start_span(
            name, context, _KINDS[kind], attributes, start_time=self.now_ns(ago_s)
        )
        return OtelSpan(self, span, context)

    def now_ns(self, ago_s: float = 0.0) -> int:
        """Return the time of *ago_s* seconds before now, as spans are stamped."""
        return int((self._clock.now() - ago_s) * 1e9)

    def close(self) -> None:
        """Send what is left; blocks for `LAST_SPANS_S` at most."""
        closing = Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(LAST_SPANS_S)


def tracer_from_environment(service: str, clock: Clock) -> OtelTracer:
    """Return the tracer that ``OTEL_*`` variables describe; raise BadInputError.

    *service* is the ``service.name`` where they name none. Sampling, batching, resource and
    exporter read their own variables.
    """
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if named else {"service.name": service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
    return OtelTracer(provider, clock)


def _exporter(name: str) -> SpanExporter:
    """Return the exporter that is installed under *name*; raise BadInputError."""
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = _PROTOCOLS.get(protocol, protocol)
    found = list(entry_points(group=_EXPORTERS, name=name))
    if not found:
        have = ", ".join(sorted({entry.name for entry in entry_points(group=_EXPORTERS)}))
        raise BadInputError(
            f"OTEL_TRACES_EXPORTER: no exporter {name!r} is installed, there is {have}; install "
            f"opentelemetry's package for it, or choose another one"
        )
    made: Any = found[0].load()
    exporter: SpanExporter = made()
    return exporter
