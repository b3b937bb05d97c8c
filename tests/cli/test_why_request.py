"""``spinney why request/ID`` against a router that has served something."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.router.fake_workers import fleet

from spinney.cli.session import Session
from spinney.cli.why import why
from spinney.clock import SystemClock
from spinney.perfmodel.profile import load_step_model
from spinney.router.costs import ModelCosts
from spinney.router.picker import Policy

MILLISECONDS = Policy(costs=ModelCosts(load_step_model("llama-8b-h100")))
PATIENT = {"prefill_deadline_s": 10, "first_byte_deadline_s": 10, "response_deadline_s": 10}
LONG = {"prompt": "Once upon a time " * 2000, "stream": True, "max_tokens": 5}


def cannot_connect():
    raise AssertionError("the cluster is not asked")


async def asked(world, *words):
    session = Session(Path("/nowhere"), cannot_connect, SystemClock(), lambda *_: 0)
    call = [*words, "--url", world.server.url]
    return await asyncio.to_thread(
        CliRunner().invoke, why, call, obj=session, standalone_mode=False
    )


def test_a_prompt_that_no_worker_counted_is_told_of_as_an_estimate():
    async def main():
        async with fleet("d", max_migrations=0, **PATIENT) as world:
            world.decode[0].fault = "die-mid-stream"
            await world.ask(LONG, headers={"x-request-id": "r1"})
            story = (await world.get("/debug/requests/r1")).json
            return story, await asked(world, "request/r1")

    story, told = asyncio.run(main())

    assert f", about {story['prompt_tokens']} prompt tokens" in told.output.splitlines()[1]


@pytest.mark.parametrize(("policy", "unit"), [(MILLISECONDS, "ms"), (Policy(), "tokens")])
def test_a_story_has_times_candidates_with_the_terms_of_their_costs_and_what_came_of_it(
    policy, unit
):
    async def main():
        async with fleet("p p d", policy=policy, **PATIENT) as world:
            headers = {"x-request-id": "r1", "x-spinney-tenant": "acme"}
            await world.ask(LONG, headers=headers)
            return [await asked(world, *words) for words in (
                ["request/r1"], ["request/last"], ["request/r1", "-o", "json"]
            )]  # fmt: skip

    text, last, document = asyncio.run(main())

    assert text.exit_code == 0, text.output
    told = text.output.splitlines()
    assert told[0] == "request r1: ok"
    assert ", 7 prompt tokens, 5 answered" in told[1]
    assert "first byte after" in told[2]
    assert told[3] == "  tenant acme"
    (chosen,) = [line for line in told if "chosen:" in line]
    split = "; disaggregated" in chosen
    assert "decode by d0 (only-one); " in chosen
    assert ("prefill by p" in chosen) is split
    candidates = [line.split() for line in told if f" {unit} = " in line]
    assert len(candidates) == 3
    assert sum(words[0] == "*" for words in candidates) == 1 + split
    for words in candidates:
        cost, terms = words[words.index("=") - 2], words[words.index("=") + 2 :: 3]
        assert abs(float(cost) - sum(map(float, terms))) < 0.1, words
    assert any("KV pulled: 4096 bytes in 250.0 ms" in line for line in told) is split
    assert split or policy is MILLISECONDS
    assert last.output == text.output
    story = json.loads(document.output)
    assert story["steps"][0]["what"] == "chosen"
    times = [step["at_ms"] for step in story["steps"]]
    assert times == sorted(times)


def test_failures_and_further_tries_are_told():
    async def main():
        async with fleet("d d", **PATIENT) as world:
            for worker in world.decode:
                worker.fault, worker.faults_left = 503, 1
            await world.ask(LONG, headers={"x-request-id": "r2"})
            return await asked(world, "request/r2")

    told = asyncio.run(main()).output

    assert "failed (503)" in told
    assert "told to fail" in told
    assert "chosen (attempt 2)" in told


def test_a_request_that_no_router_knows_says_how_to_find_its_id():
    async def main():
        async with fleet("d") as world:
            return await asked(world, "request/nowhere"), await asked(world, "request/last")

    for result in asyncio.run(main()):
        assert "x-request-id" in str(result.exception)
        assert result.exit_code != 0
