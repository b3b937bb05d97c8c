"""Which trace a worker pulls KV under: its own call's, or its caller's where it has none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from spinney.engine.call_trace import CallTracer
from spinney.engine.request import GenerateRequest, SamplingParams
from spinney.tracing import NO_TRACER, NoSpan, Tracer

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OWN = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01"


class Below:
    """A tracer whose spans are all `OWN`, and nobody records them."""

    def begin(self, name: str, headers: Any, kind: Any = None) -> Any:
        assert headers["traceparent"] == CALLER
        return self.Span()

    class Span(NoSpan):
        def carry(self, headers: dict[str, str]) -> dict[str, str]:
            return headers | {"traceparent": OWN}


@pytest.mark.parametrize(("tracer", "want"), [(Below(), OWN), (NO_TRACER, CALLER)])
def test_kv_is_pulled_under_the_call_that_needs_it(tracer: Tracer, want: str) -> None:
    stream: Any = SimpleNamespace(sequence=SimpleNamespace(trace=""))
    request = GenerateRequest("r", (1, 2), SamplingParams(max_tokens=1))
    headers = [(b"host", b"x"), (b"traceparent", CALLER.encode())]
    traces = CallTracer(tracer, lambda: 0.0, engine_id="d0", role="decode")
    with traces.call("/v1/completions", headers, "m", [request], [stream]):
        assert stream.sequence.trace == want


def test_without_a_trace_kv_is_pulled_under_none() -> None:
    stream: Any = SimpleNamespace(sequence=SimpleNamespace(trace=""))
    request = GenerateRequest("r", (1, 2), SamplingParams(max_tokens=1))
    traces = CallTracer(NO_TRACER, lambda: 0.0, engine_id="d0", role="decode")
    with traces.call("/v1/completions", [(b"host", b"x")], "m", [request], [stream]):
        assert stream.sequence.trace == ""
