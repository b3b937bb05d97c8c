"""What telling about a request costs the router: its log line, its spans, its counts.

    python benchmarks/observability.py [--requests 3000]

CPU of the calling thread, so that other work on the machine disturbs little. Spans are those of a
streamed request with a prefill and a decode worker; the exporter takes them and keeps nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import io
import sys
import time
from typing import TYPE_CHECKING, Any

from spinney import log as logs
from spinney.clock import SystemClock
from spinney.router import openai
from spinney.router.app import log_fields
from spinney.router.picker import Choice, Mode, Pick
from spinney.router.request_trace import RequestTrace
from spinney.router.stories import Story
from spinney.router.workers import Role, Worker
from spinney.tracing import NO_TRACER

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.tracing import Tracer

PREFILL = Worker("chat-0-prefill-x7k2p", "http://10.0.0.1:8000", Role.PREFILL)
DECODE = Worker("chat-0-decode-b4n9q", "http://10.0.0.2:8000", Role.DECODE)
CHOICE = Choice(Mode.DISAGGREGATED, Pick(DECODE, 1, "near"), Pick(PREFILL, 1, "prefix"), "")
HEADERS = {"content-type": "application/json", "x-request-id": "0f7a2c9e-5b7e-4a3f"}
STORY = Story(
    "0f7a2c9e-5b7e-4a3f", openai.CHAT_COMPLETIONS, "llama-8b", 700, True, 0.0, outcome="ok",
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736", tenant="acme", mode="disaggregated",
    prefill_worker=PREFILL.name, decode_worker=DECODE.name, ttft_ms=131.2, duration_ms=2211.7,
    input_tokens=700, output_tokens=310, cached_tokens=512, attempts=1,
)  # fmt: skip
INBOUND = openai.read_request(
    openai.CHAT_COMPLETIONS, b'{"model":"llama-8b","stream":true,"messages":[{"content":"hello"}]}'
)
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"llama-8b",'
    b'"choices":[{"index":0,"delta":{"content":" wood"},"finish_reason":null}]}\n\n'
)


def spans(tracer: Tracer) -> None:
    """Tell the spans of one request, as `spinney.router.serving` does."""
    with tracer.begin("chat", HEADERS) as span:
        trace = RequestTrace(span)
        now_s = asyncio.get_running_loop().time()
        trace.read(INBOUND)
        trace.queued(now_s)
        with trace.picking() as pick:
            trace.picked(pick, CHOICE, 1)
        with trace.asking("prefill", PREFILL) as asked:
            asked.carry(dict(HEADERS))
        with trace.asking("decode", DECODE) as asked:
            asked.carry(dict(HEADERS))
            asked.event("first byte")
        trace.over(STORY, 200)


def cost_us(run: Callable[[], Any], times: int) -> float:
    """Return the CPU of *run* in microseconds, the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for _ in range(times // 5):
            run()
        best = min(best, (time.thread_time() - began) / (times // 5))
    return 1e6 * best


def log_cost_us(times: int, *, json: bool) -> float:
    """Return what the line of a finished request costs, written to memory."""
    with contextlib.redirect_stderr(io.StringIO()):
        logs.configure(json=json)
        log = logs.get_logger("router")
        return cost_us(lambda: log.info("request", **log_fields(STORY)), times)


def otel_tracer(ratio: float) -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    from spinney.otel import OtelTracer

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio))
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return OtelTracer(provider, SystemClock())


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=3000)
    times = parser.parse_args().requests
    rows = [("spans off", cost_us(lambda: spans(NO_TRACER), times))]
    with contextlib.suppress(ImportError):
        for ratio, name in ((0.0, "none"), (1.0, "all")):
            tracer = otel_tracer(ratio)
            found = cost_us(functools.partial(spans, tracer), times)
            rows.append((f"spans on, {name} sampled", found))
            tracer.close()
    rows.append(("log line, JSON", log_cost_us(times, json=True)))
    rows.append(("log line, for people", log_cost_us(times, json=False)))
    rows.append(("counts kept from a client, per event", cost_us(_strip, times * 10)))
    for name, took in rows:
        sys.stdout.write(f"{name:40} {took:8.2f} µs\n")


def _strip() -> bytes:
    return openai.without_counts(EVENT)


asyncio.run(main())
