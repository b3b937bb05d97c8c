"""The spans of one call in a worker, told when it has ended, and of KV that it serves meanwhile.

    chat MODEL → queue → hand-over → prefill → decode      for each sequence
    chat MODEL → serve KV                                  below the call of the worker that pulls

The engine notes times as it goes, traced or not; spans are made of them afterwards, so that a step
costs nothing more. Invariant: a call has one span, ended however the call ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from spinney.engine.request import FinishReason
from spinney.tracing import NO_TRACER, TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spinney.engine.request import GenerateRequest
    from spinney.engine.sequence import Handover
    from spinney.engine.sequence import Sequence as Sequence_
    from spinney.engine.service import Stream
    from spinney.tracing import Span, Tracer, Value

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}


class CallTracer:
    """Tells the spans of calls of one engine."""

    def __init__(
        self, tracer: Tracer, timer: Callable[[], float], *, engine_id: str, role: str
    ) -> None:
        """*timer* is the one that the engine notes times by."""
        self._tracer = tracer
        self._timer = timer
        self._worker: dict[str, Value] = {
            "gen_ai.provider.name": "spinney",
            "spinney.engine.id": engine_id,
            "spinney.role": role,
        }

    @contextmanager
    def call(
        self,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        model: str,
        requests: Sequence[GenerateRequest],
        streams: Sequence[Stream],
    ) -> Iterator[None]:
        """Trace what is inside as one call at *path*, which *streams* are told of."""
        if self._tracer is NO_TRACER:
            # What a caller said of its own trace is passed on as it is.
            came = (v.decode("latin-1") for name, v in headers if name == _TRACEPARENT)
            _pulls_under(next(came, ""), streams)
            yield
            return
        carried = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        operation = OPERATIONS[path]
        span = self._tracer.begin(f"{operation} {model}", carried)
        _pulls_under(span.carry({}).get(TRACEPARENT, ""), streams)
        if not span.recording:
            yield
            return
        span.set(self._worker | _asked(operation, model, requests))
        with span:
            try:
                yield
            finally:
                self._tell(span, [stream.sequence for stream in streams])

    def serving(self, traceparent: str) -> Span:
        """Return the span of KV that is served to a worker which pulls it under *traceparent*."""
        span = self._tracer.begin("serve KV", {TRACEPARENT: traceparent})
        span.set(self._worker)
        return span

    def _tell(self, span: Span, sequences: Sequence[Sequence_]) -> None:
        now_s = self._timer()
        for sequence in sequences:
            _tell_sequence(span, sequence, now_s)
        span.set(_answered(sequences))
        failed = [s.end_reason for s in sequences if s.end_reason in _FAILED]
        if failed:
            span.end(str(failed[0]))


_TRACEPARENT = TRACEPARENT.encode()
_FAILED = (FinishReason.ERROR, FinishReason.ABORT)


def _pulls_under(traceparent: str, streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.sequence.trace = traceparent


def _tell_sequence(span: Span, sequence: Sequence_, now_s: float) -> None:
    times, pulled = sequence.times, sequence.handover
    admitted = now_s if times.admitted is None else times.admitted
    span.child("queue", ago_s=now_s - times.arrived).end(ago_s=now_s - admitted)
    if times.admitted is None:
        return
    if pulled is not None:
        failed = pulled.failure or ""
        began = span.child("hand-over", _moved(pulled), ago_s=now_s - admitted)
        admitted += pulled.seconds
        began.end(failed, ago_s=now_s - admitted)
    first = now_s if times.first_token is None else times.first_token
    span.child("prefill", ago_s=now_s - admitted).end(ago_s=now_s - first)
    if times.last_token is not None and times.last_token > first:
        span.child("decode", ago_s=now_s - first).end(ago_s=now_s - times.last_token)


def _moved(pulled: Handover) -> dict[str, Value]:
    return {
        "spinney.handover.outcome": str(pulled.outcome),
        "spinney.handover.from": pulled.engine_id,
        "spinney.handover.blocks": pulled.num_blocks,
        "spinney.handover.bytes": pulled.num_bytes,
        "spinney.handover.transport": pulled.transport or "",
    }


def _asked(operation: str, model: str, requests: Sequence[GenerateRequest]) -> dict[str, Value]:
    params = requests[0].sampling
    told: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
    }
    if len(requests) > 1:
        told["gen_ai.request.choice.count"] = len(requests)
    if params.seed is not None:
        told["gen_ai.request.seed"] = params.seed
    if requests[0].resumed:
        told["spinney.resumed.tokens"] = len(requests[0].resumed)
    return told


def _answered(sequences: Sequence[Sequence_]) -> dict[str, Value]:
    reasons = [str(s.end_reason) for s in sequences if s.end_reason is not None]
    return {
        "gen_ai.usage.input_tokens": len(sequences[0].prompt),
        "gen_ai.usage.output_tokens": sum(len(s.output) for s in sequences),
        "gen_ai.usage.cache_read.input_tokens": sequences[0].cached_tokens,
        "gen_ai.response.finish_reasons": reasons,
    }
