"""The spans of a request that does not go as it should; in this process, with fake workers."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.router.fake_workers import fleet, until

from spinney.clock import SystemClock
from spinney.cmd.traces import wanted
from spinney.otel import OtelTracer
from spinney.tracing import NO_SPAN, trace_id_of

ASKED = {"prompt": "Once upon a time " * 20, "max_tokens": 4, "stream": True}
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"


@contextmanager
def recorded():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter, {"tracer": OtelTracer(provider, SystemClock())}
    provider.shutdown()


def tree(spans, parent=None):
    """Return names below *parent* in the order they began."""
    ids = {span.context.span_id for span in spans}
    below = [
        s for s in spans
        if (s.parent.span_id if s.parent and s.parent.span_id in ids else None) == parent
    ]  # fmt: skip
    found = []
    for span in sorted(below, key=lambda s: s.start_time):
        inner = tree(spans, span.context.span_id)
        found += [span.name, inner] if inner else [span.name]
    return found


async def asked_once(roles, fault, exporter, parts, **changes):
    async with fleet(roles, parts=parts, **changes) as world:
        for worker in world.workers.values():
            worker.fault, worker.faults_left = fault(worker.name), 1
        said = await world.ask(ASKED)
        return said, exporter.get_finished_spans(), world


def test_a_retry_holds_what_is_tried_again_and_names_who_failed():
    with recorded() as (exporter, parts):
        said, spans, _ = asyncio.run(
            asked_once("d d", lambda name: 503 if name == "d0" else "", exporter, parts)
        )

    assert said.status == 200
    assert tree(spans) == [
        "text_completion m",
        ["queue", "pick", "decode", "retry", ["pick", "decode"]],
    ]
    by_name = {span.name: span for span in spans}
    assert by_name["retry"].attributes["spinney.cause"] == "503"
    assert by_name["retry"].attributes["spinney.failed.worker"] == "d0"
    assert by_name["text_completion m"].status.is_unset


def test_a_refused_request_tells_its_outcome_and_status():
    with recorded() as (exporter, parts):
        said, spans, _ = asyncio.run(
            asked_once("p d", lambda _: 400, exporter, parts, max_prefill_attempts=1)
        )

    root = next(span for span in spans if span.parent is None)
    assert said.status == 400
    assert root.attributes["http.response.status_code"] == 400
    assert root.attributes["spinney.outcome"] == "refused-by-worker"
    assert root.status.is_unset, "a request that is at fault is no fault of the server"
    asked = [span for span in spans if span.name in ("prefill", "decode")]
    assert [span.attributes["error.type"] for span in asked] == ["400", "400"]


def test_workers_get_the_span_that_asks_them_and_all_of_the_clients_headers():
    async def main(parts):
        async with fleet("p d", parts=parts) as world:
            headers = {"traceparent": PARENT + "01", "tracestate": "a=b", "baggage": "k=v"}
            await world.ask(ASKED, headers=headers)
            return {name: worker.seen[0].headers for name, worker in world.workers.items()}

    with recorded() as (exporter, parts):
        seen = asyncio.run(main(parts))
        ids = {s.name: f"{s.context.span_id:016x}" for s in exporter.get_finished_spans()}

    for name, stage in (("p0", "prefill"), ("d0", "decode")):
        assert seen[name]["traceparent"] == f"{PARENT[:36]}{ids[stage]}-01"
        assert (seen[name]["tracestate"], seen[name]["baggage"]) == ("a=b", "k=v")


def test_a_trace_that_is_not_sampled_is_passed_on_and_not_recorded():
    async def main(parts):
        async with fleet("d", parts=parts) as world:
            await world.ask(ASKED, headers={"traceparent": PARENT + "00"})
            return world.workers["d0"].seen[0].headers["traceparent"]

    with recorded() as (exporter, parts):
        passed = asyncio.run(main(parts))
        spans = exporter.get_finished_spans()

    assert spans == ()
    assert passed.startswith(PARENT[:36])
    assert passed.endswith("-00")


def test_every_span_ends_when_the_client_goes_away():
    async def main(parts):
        async with fleet("d", parts=parts) as world:
            world.decode[0].hold = asyncio.Event()
            asking = asyncio.ensure_future(world.ask(ASKED))
            await until(lambda: bool(world.decode[0].seen))
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            await until(world.idle)
            await until(lambda: len(exporter.get_finished_spans()) == 4)

    with recorded() as (exporter, parts):
        asyncio.run(main(parts))
        spans = {span.name: span for span in exporter.get_finished_spans()}

    assert spans["text_completion m"].attributes["spinney.outcome"] == "disconnected"
    assert spans["text_completion m"].status.is_unset
    assert spans["decode"].attributes["error.type"] == "cancelled"


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_standard_variables_turn_traces_on_and_off(environment, on):
    assert wanted(environment) is on


def test_a_broken_traceparent_names_no_trace():
    assert trace_id_of({"traceparent": PARENT + "01"}) == PARENT[3:35]
    assert [trace_id_of({"traceparent": bad}) for bad in ("", "x", PARENT, "é" * 55)] == [""] * 4
    assert NO_SPAN.child("x").carry({"a": "b"}) == {"a": "b"}
