"""Workers that refuse what SGLang's refuse: all that they serve goes through a pair of them.

They are fakes, whose rules were read from SGLang's sources and tried with its servers.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.router.fake_workers import PATIENT, fleet, words

from spinney.router.picker import Policy
from spinney.router.workers import Role, Way, may_pair, parse_worker

PROMPT = {"prompt": "Once upon a time", "max_tokens": 5}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


def served(body, path="/v1/completions", roles="p d", fault="", **fields):
    async def main():
        async with fleet(roles, sglang=True, **{**PATIENT, **fields}) as world:
            if fault:
                world.prefill[0].fault, world.prefill[0].faults_left = fault, 1
            said = await world.ask(body, path, headers={"x-override-bootstrap-host": "10.9.9.9"})
            if fault == "die":
                story = (await world.get("/debug/requests/" + said.headers["x-request-id"])).json
                assert "waited for a worker" in [step["what"] for step in story["steps"]]
            assert world.idle()
            assert world.fabric.wrong == []
            return said

    return asyncio.run(main())


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("body", "path"), [(PROMPT, "/v1/completions"), (CHAT, "/v1/chat/completions")]
)
def test_they_are_met_and_told_nothing_that_they_refuse(body, path, stream):
    said = served(body | {"stream": stream}, path)
    assert (said.status, said.mode) == (200, "disaggregated")
    assert not stream or said.text == "".join(words(body))


@pytest.mark.parametrize("fields", [{"prompt": ["one", "two"]}, {"echo": True}])
def test_what_one_hand_over_does_not_carry_goes_through_a_pair_too(fields):
    said = served(PROMPT | fields)
    assert (said.status, said.mode) == (200, "disaggregated")


def test_several_choices_are_refused_since_they_would_never_come():
    said = served(PROMPT | {"n": 2})
    assert (said.status, said.json["error"]["param"]) == (400, "n")


def test_short_prompts_are_not_prefilled_by_who_cannot():
    said = served(PROMPT, policy=Policy(local_prefill_below_tokens=1000))
    assert (said.status, said.mode) == (200, "disaggregated")


@pytest.mark.parametrize("fault", ["die", 500])
def test_the_only_prefill_worker_is_asked_again_after_a_fault(fault):
    said = served(PROMPT, fault=fault)
    assert (said.status, said.mode) == (200, "disaggregated")


def test_what_the_prefill_worker_refuses_is_refused_at_once():
    said = served(PROMPT, fault=400)
    assert said.status == 400


def test_without_a_prefill_worker_nobody_serves():
    said = served(PROMPT, roles="d")
    assert said.status == 503
    assert "no-prefill-worker" in said.json["error"]["message"]


def test_they_pair_with_their_kind_alone():
    ours, theirs = (
        parse_worker(f"prefill=http://p:1,{way}=5600") for way in ("rendezvous", "sglang")
    )
    decode = parse_worker("decode=http://d:1,sglang=0")
    assert (theirs.way, theirs.bootstrap_port, decode.only_paired) == (Way.SGLANG, 5600, True)
    assert may_pair(theirs, decode)
    assert not may_pair(ours, decode)
    whole = parse_worker("both=http://b:1,sglang=0")
    assert whole.role is Role.BOTH
    assert not whole.only_paired
