"""Whether a process traces, as OpenTelemetry's environment variables say.

Invariant: without one of `WANTED`, nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spinney.log import get_logger
from spinney.tracing import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.clock import Clock
    from spinney.tracing import Tracer

EXPORTER = "OTEL_TRACES_EXPORTER"
WANTED = (EXPORTER, "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""One of these has to be set."""

log = get_logger("traces")


class _Said(logging.Handler):
    """Has what OpenTelemetry's libraries log come out as the process's other lines do."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log *record*."""
        log.warning("opentelemetry", said=record.getMessage())


def wanted(environment: Mapping[str, str]) -> bool:
    """Return whether *environment* asks for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get(EXPORTER) == "none":
        return False
    return any(environment.get(name) for name in WANTED)


@contextmanager
def tracing(service: str, clock: Clock) -> Iterator[Tracer]:
    """Give the process's tracer; what is left to send is sent at the end.

    Where the libraries are missing that is logged, and requests are served without traces.
    """
    if not wanted(os.environ):
        yield NO_TRACER
        return
    try:
        from spinney.otel import tracer_from_environment
    except ImportError as error:
        log.warning("no traces: install spinney[otel]", missing=str(error))
        yield NO_TRACER
        return
    libraries = logging.getLogger("opentelemetry")
    libraries.propagate = False
    libraries.addHandler(_Said(logging.WARNING))
    tracer = tracer_from_environment(service, clock)
    log.info("tracing", exporter=os.environ.get(EXPORTER) or "otlp")
    try:
        yield tracer
    finally:
        tracer.close()
