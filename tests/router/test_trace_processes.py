"""One trace from the client through router, prefill and decode worker: real processes tell it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest
from tests.router.collector import collector
from tests.router.fake_workers import lower
from tests.router.real_stack import real_stack, until

pytestmark = pytest.mark.e2e
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
FROM_CLIENT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
SERVER, CLIENT = 2, 3
CHAT = {
    "messages": [{"role": "user", "content": "What is a spinney? " * 8}],
    "max_tokens": 6,
    "temperature": 0,
    "ignore_eos": True,
}


def test_a_disaggregated_request_is_one_trace_with_each_stage_below_who_asked_for_it(tmp_path):
    async def main():
        async with collector() as told, real_stack(tmp_path, "p d", env=told.env) as stack:
            answer = await stack.ask(CHAT, headers=FROM_CLIENT)
            await until(lambda: len(told.of(TRACE)) == 14, "all spans came")
            return answer, told, stack.router.lines("request")

    answer, told, lines = asyncio.run(main())

    computed = ["chat demo", ["queue", "prefill"]]
    pulled = ["chat demo", ["queue", "hand-over", "serve KV", "prefill", "decode"]]
    steps = ["queue", "pick", "prefill", computed, "decode", pulled]
    assert told.tree(TRACE) == ["chat demo", steps]
    root = told.root(TRACE)
    assert (root.parent, root.kind, root.service) == (CALLER, SERVER, "spinney-router")
    usage = answer["usage"]
    asked = root.attributes
    assert asked["gen_ai.operation.name"] == "chat"
    assert asked["gen_ai.request.model"] == "demo"
    assert asked["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert asked["gen_ai.usage.output_tokens"] == 6
    assert asked["http.response.status_code"] == 200
    by_name = {(s.service, s.name): s for s in told.of(TRACE)}
    decode = by_name["spinney-router", "decode"]
    assert (decode.kind, decode.attributes["spinney.worker"]) == (CLIENT, "d0")
    assert "handed over" in decode.events
    moved = by_name["spinney-worker", "hand-over"].attributes
    assert (moved["spinney.handover.outcome"], moved["spinney.handover.from"]) == ("pulled", "p0")
    assert moved["spinney.handover.bytes"] > 0
    served = by_name["spinney-worker", "serve KV"]
    assert (served.kind, served.attributes["spinney.engine.id"]) == (SERVER, "p0")
    assert served.attributes["spinney.handover.bytes"] == moved["spinney.handover.bytes"]
    for span in told.of(TRACE):
        assert span.start_ns <= span.end_ns
        assert not span.failed
        if span is not root:
            # A loop's clock has milliseconds, which is what some beginnings are told by.
            assert root.start_ns - 5_000_000 <= span.start_ns <= root.end_ns
    assert [line["trace"] for line in lines] == [TRACE]


def test_a_migrated_stream_stays_one_trace_with_the_migration_in_it(tmp_path):
    slow = ("--speed-up", "0.2")

    async def main():
        async with (
            collector() as told,
            real_stack(tmp_path, "d d", flags=slow, env=told.env) as stack,
        ):
            body = CHAT | {"model": "demo", "stream": True, "max_tokens": 30}
            url = stack.url + "/v1/chat/completions"
            async with stack.session.post(url, json=body, headers=FROM_CLIENT) as said:
                victim = lower(said.headers)["x-spinney-decode-worker"]
                lines = [line async for line in _killing(said, stack.programs[victim].process)]
            assert lines[-1] == b"data: [DONE]"
            await until(lambda: len(told.of(TRACE)) == 11, "all spans came")
            return told, victim, stack.router.lines("request")

    told, victim, lines = asyncio.run(main())

    worker = ["chat demo", ["queue", "prefill", "decode"]]
    assert told.tree(TRACE) == [
        "chat demo",
        ["queue", "pick", "decode", "migration", ["pick", "decode", worker]],
    ]
    spans = {span.name: span for span in told.of(TRACE)}
    assert spans["migration"].attributes["spinney.failed.worker"] == victim
    first, second = [s for s in told.of(TRACE) if s.name == "decode" and s.kind == CLIENT]
    assert (first.failed, first.attributes["error.type"]) == (True, "broken")
    assert not second.failed
    resumed = [s for s in told.of(TRACE) if s.service == "spinney-worker" and s.kind == SERVER]
    assert [s.attributes["spinney.resumed.tokens"] > 0 for s in resumed] == [True]
    root = told.root(TRACE)
    assert root.attributes["gen_ai.usage.output_tokens"] == 30
    assert [(line["migrations"], line["outcome"]) for line in lines] == [(1, "ok")]


async def _killing(said, process):
    """Yield the lines of *said*; kill *process* when five have come."""
    seen = 0
    async for line in said.content:
        if line.strip():
            yield line.strip()
            seen += 1
        if seen == 5 and process.returncode is None:
            process.kill()
            await process.wait()


def test_a_collector_that_refuses_or_is_away_costs_no_request_and_no_shutdown(tmp_path):
    async def main():
        async with collector() as told:
            told.fault = 503
            async with real_stack(tmp_path, "b", env=told.env) as stack:
                for _ in range(3):
                    assert (await stack.ask(CHAT))["usage"]["completion_tokens"] == 6
                await told.server.stop()
                assert (await stack.ask(CHAT))["usage"]["completion_tokens"] == 6
                codes, began = [], time.perf_counter()
                for program in reversed(stack.programs.values()):
                    program.process.send_signal(signal.SIGTERM)
                    codes.append(await program.process.wait())
                return codes, time.perf_counter() - began

    codes, took_s = asyncio.run(main())  # fmt: skip

    assert codes == [0, 0]
    assert took_s < 15


def test_without_otel_variables_nothing_of_it_is_imported(tmp_path):
    async def main():
        async with real_stack(tmp_path, "b") as stack:
            await stack.ask(CHAT, headers=FROM_CLIENT)
            loaded = {}
            for name, program in stack.programs.items():
                maps = Path(f"/proc/{program.process.pid}/maps").read_text()
                loaded[name] = "opentelemetry" in maps or "google/_upb" in maps
            await until(lambda: stack.router.lines("request"), "its line is in the log")
            return loaded, stack.router.lines("request")

    loaded, lines = asyncio.run(main())

    assert not any(loaded.values())
    assert lines[0]["trace"] == TRACE  # The client's own, for whoever looks for it.
    assert json.dumps(lines)
