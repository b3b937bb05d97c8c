"""Counts after a known traffic are exactly those of the traffic."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client import CollectorRegistry
from tests.router.fake_workers import fleet, until
from tests.router.real_stack import real_stack

from spinney.router.load import Ledger
from spinney.router.metrics import MAX_MODELS, MAX_TENANTS, RouterMetrics
from spinney.router.openai import HandoverReport

PATIENT = {"prefill_deadline_s": 10, "first_byte_deadline_s": 10, "response_deadline_s": 10}
PROMPT = "A spinney is a small wood, and a wood has many trees. " * 6


def test_a_known_traffic_is_counted_exactly():
    """Three streams and two whole answers are handed over, one is refused, two are wrong."""

    async def main():
        async with fleet("p d", **PATIENT) as world:
            for worker in world.prefill:
                worker.cached_part = 0.5
            for number in range(3):
                body = {"prompt": f"{number} {PROMPT}", "max_tokens": 5, "stream": True}
                assert (await world.ask(body)).status == 200
            for number in range(2):
                body = {"prompt": f"whole {number} {PROMPT}", "max_tokens": 4}
                assert (await world.ask(body)).status == 200
            await world.ask(b"{")
            await world.ask({"model": "other", "prompt": "x"})
            world.decode[0].fault = 400
            await world.ask({"prompt": PROMPT})
            assert world.idle()
            return {
                sample.name.removeprefix("spinney_router_") + _labels(sample.labels): sample.value
                for family in world.registry.collect()
                for sample in family.samples
                if not sample.name.endswith(("_bucket", "_created", "_sum"))
            }

    counts = asyncio.run(main())

    # Events that come in the first piece of a stream have nothing before them.
    assert 0 < counts.pop("itl_seconds_count{model=m}") <= 3 * (5 - 1 + 2)
    path = "path=/v1/completions"
    assert {name: value for name, value in counts.items() if value} == {
        f"requests_total{{outcome=ok,{path}}}": 5,
        f"requests_total{{outcome=bad-request,{path}}}": 1,
        f"requests_total{{outcome=unknown-model,{path}}}": 1,
        f"requests_total{{outcome=refused-by-worker,{path}}}": 1,
        "picks_total{reason=only-one,stage=decode}": 6,
        "picks_total{reason=only-one,stage=prefill}": 6,
        "handovers_total{outcome=offered}": 6,
        "handovers_total{outcome=pulled}": 3,
        "handovers_total{outcome=served}": 2,
        "handovers_total{outcome=failed}": 1,
        "handover_bytes_total{}": 3 * 4096,
        "handover_seconds_count{}": 3,
        "input_tokens_total{model=m}": 5 * 7,
        "output_tokens_total{model=m}": 3 * 5 + 2 * 4,
        "cached_tokens_total{model=m}": 6 * 500,
        "ttft_seconds_count{model=m}": 5,
        "request_seconds_count{model=m}": 6,
        "prefill_seconds_count{model=m}": 6,
        "queue_wait_seconds_count{model=m}": 6,
        "streamed_events_total{}": 3 * (5 + 2),
        "prompt_tokens_total{}": counts["prompt_tokens_total{}"],
        "workers{role=decode,state=ready}": 1,
        "workers{role=prefill,state=ready}": 1,
    }


def _labels(labels):
    return "{" + ",".join(f"{name}={value}" for name, value in sorted(labels.items())) + "}"


@pytest.mark.e2e
def test_router_and_workers_count_the_same_tokens_and_bytes(tmp_path):
    async def main():
        async with real_stack(tmp_path, "p d") as stack:
            usages = []
            for number in range(6):
                body = {"prompt": f"{number % 4} {PROMPT}", "max_tokens": 5, "ignore_eos": True}
                body |= {"stream": number % 2 == 0}
                if number == 2:
                    body["stream_options"] = {"include_usage": True}
                said = await stack.ask(body, "/v1/completions")
                usages.append(_told(said) if body["stream"] else said["usage"])
            names = ("router", "p0", "d0")
            samples = {name: await stack.samples(name) for name in names}
            return usages, samples, stack.router.lines("request")

    usages, samples, lines = asyncio.run(main())

    def total(program, name):
        return sum(v for key, v in samples[program].items() if key.split("{")[0] == name)

    assert [usage is not None for usage in usages] == [False, True, True, True, False, True]
    prompts = sum(line["input_tokens"] for line in lines)
    assert prompts == total("router", "spinney_router_input_tokens_total")
    assert prompts == total("p0", "vllm:prompt_tokens_total")
    assert total("router", "spinney_router_output_tokens_total") == 30
    assert total("d0", "vllm:generation_tokens_total") == 30
    cached = total("router", "spinney_router_cached_tokens_total")
    assert cached == total("p0", "vllm:prefix_cache_hits_total") > 0
    moved = total("router", "spinney_router_handover_bytes_total")
    assert moved == total("d0", "spinney:kv_pulled_bytes_total") > 0
    assert moved == total("p0", "spinney:kv_served_bytes_total")
    for usage, line in zip(usages, lines, strict=True):
        if usage is not None:
            assert line["input_tokens"] == usage["prompt_tokens"]
            assert line["output_tokens"] == usage["completion_tokens"]
    assert {(line["outcome"], line["mode"]) for line in lines} == {("ok", "disaggregated")}
    assert all(0 < line["ttft_ms"] <= line["duration_ms"] for line in lines)
    assert not any("_created" in key for key in samples["router"])


def _told(stream):
    """Return the usage in *stream*, if its client gets one."""
    events = [json.loads(e[6:]) for e in stream.split("\n\n") if e and e != "data: [DONE]"]
    found = [event["usage"] for event in events if event.get("usage")]
    assert all("usage" not in event for event in events) or found
    return found[0] if found else None


def test_each_model_has_workers_and_figures_of_its_own():
    async def main():
        models = {"p0": "one", "d0": "one", "d1": "org/two"}
        async with fleet("p d d", models=models, **PATIENT) as world:
            for model, times in (("one", 2), ("org/two", 1)):
                for _ in range(times):
                    said = await world.ask({"model": model, "prompt": PROMPT, "max_tokens": 3})
                    assert said.status == 200
            unnamed = await world.ask({"model": None, "prompt": PROMPT})
            listed = (await world.get("/v1/models")).json["data"]
            got = (await world.get("/v1/models/org/two")).json["id"]
            counts = [
                await world.metric("output_tokens_total", model=name)
                for name in ("one", "org/two", "m", "")
            ]
            workers = {name: len(worker.completions) for name, worker in world.workers.items()}
            return unnamed, {model["id"] for model in listed}, got, counts, workers

    unnamed, listed, got, counts, workers = asyncio.run(main())

    assert (unnamed.status, unnamed.json["error"]["param"]) == (404, "model")
    assert listed == {"one", "org/two"}
    assert got == "org/two"
    assert counts == [6, 3, 0, 0]
    assert workers == {"p0": 2, "d0": 2, "d1": 1}


def test_tenants_and_models_beyond_the_bound_share_a_label():
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry, Ledger())
    for number in range(MAX_TENANTS + 10):
        metrics.refused("queue_full", f"tenant-{number}")
    for number in range(MAX_MODELS + 10):
        metrics.of(f"model-{number}").input_tokens += 1
    metrics.handover_ended(HandoverReport("made up", failure="made up, too"))

    samples = [s for family in registry.collect() for s in family.samples]
    refused = [s for s in samples if s.name == "spinney_router_refusals_total"]
    assert len(refused) == MAX_TENANTS + 1
    assert {s.value for s in refused if s.labels["tenant"] == "other"} == {10}
    tokens = [s for s in samples if s.name == "spinney_router_input_tokens_total"]
    assert len(tokens) == MAX_MODELS + 1
    assert {s.value for s in tokens if s.labels["model"] == "other"} == {10}
    words = {v for s in samples for v in s.labels.values()}
    assert not {"made up", "made up, too"} & words


class Broken:
    """A tokenizer with a fault."""

    def encode(self, text, *, add_special_tokens=True):
        raise ZeroDivisionError(text)

    def render_chat(self, messages, **_):
        raise ZeroDivisionError


def test_a_fault_of_ours_is_an_answer_a_count_and_a_line_with_its_place(capfd):
    async def main():
        async with fleet("d", parts={"tokenizers": {"": Broken()}}) as world:
            said = await world.ask({"prompt": "p"}, headers={"x-request-id": "r9"})
            assert world.idle()
            path = "/v1/completions"
            return said, await world.metric("requests_total", path=path, outcome="failed")

    said, failed = asyncio.run(main())
    lines = "".join(capfd.readouterr())

    assert (said.status, said.json["error"]["code"]) == (500, "internal_error")
    assert said.headers["x-request-id"] == "r9"
    assert failed == 1
    assert "ZeroDivisionError" in lines
    assert "outcome=failed" in lines


def test_a_line_tells_a_request_that_ended_badly(capfd):
    async def main():
        async with fleet("d", max_migrations=0) as world:
            world.decode[0].fault = "die-mid-stream"
            headers = {"x-request-id": "r7", "x-spinney-tenant": "acme"}
            said = await world.ask({"prompt": "p", "stream": True}, headers=headers)
            assert b"worker_failed" in said.body
            await until(world.idle)

    asyncio.run(main())
    said = capfd.readouterr()
    line = next(line for line in (said.out + said.err).splitlines() if "outcome=" in line)

    for word in ("request=r7", "tenant=acme", "outcome=broken-off", "decode_worker=d0"):
        assert word in line
    assert "input_tokens" not in line
