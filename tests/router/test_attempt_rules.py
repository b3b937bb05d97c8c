"""The rules of an attempt, over real sockets: who is asked how often, what counts as load and as
cached, and what reaches the client."""

from __future__ import annotations

import asyncio
import re

import pytest
from tests.router.fake_workers import PATIENT, fleet, in_turn, until, words

from spinney.router.picker import Policy

PROMPT = {"prompt": "Once upon a time", "max_tokens": 5}
STREAM = PROMPT | {"stream": True}
TEXT = "".join(words(PROMPT))
LONG = {"prompt": "the same long beginning " * 100, "max_tokens": 2, "stream": True}
NO_BUDGET = {"retry_reserve": 0.0, "retry_ratio": 0.0}


# How often


@pytest.mark.parametrize(
    ("fault", "more", "asked"),
    [
        pytest.param(500, {}, 2, id="two are asked of three"),
        pytest.param(400, {}, 1, id="a refused request is not tried elsewhere"),
        pytest.param(500, NO_BUDGET, 1, id="a second one is a retry"),
        pytest.param(503, NO_BUDGET, 2, id="that is free where the first just died"),
    ],
)
def test_prefill_workers_are_asked_within_bounds_and_none_twice(fault, more, asked):
    async def main():
        async with fleet("p p p d", **more, **PATIENT) as world:
            for worker in world.prefill:
                worker.fault = fault
            for number in range(1 if fault == 503 else 8):
                name = f"r{number}"
                said = await world.ask(STREAM, headers={"x-request-id": name})
                assert (said.status, said.text, said.mode) == (200, TEXT, "local-prefill")
                seen = [sum(s.id == name for s in worker.seen) for worker in world.prefill]
                assert sorted(seen) == [0] * (3 - asked) + [1] * asked

    asyncio.run(main())


def test_the_last_try_of_all_is_prefilled_by_its_decode_worker():
    async def main():
        async with fleet("p d d d", max_tries=3, **PATIENT) as world:
            in_turn(world.decode, 503, 503)
            said = await world.ask(STREAM)
            assert (said.status, said.text, said.mode) == (200, TEXT, "local-prefill")

    asyncio.run(main())


@pytest.mark.parametrize("roles", ["d d", "p p d"])
def test_a_worker_that_succeeds_again_is_avoided_no_longer_at_its_next_failure(roles, capsys):
    async def main():
        async with fleet(roles, avoid_first_s=0.02, **NO_BUDGET, **PATIENT) as world:
            failing = world.prefill or world.decode
            for _ in range(3):
                in_turn(failing, 503)
                said = await world.ask(STREAM)
                assert (said.status, said.text) == (200, TEXT), "a free retry"
                assert said.mode == ("disaggregated" if world.prefill else "local-prefill")
                await until(lambda: not any(avoided(world, name) for name in world.workers))
                before = [len(worker.seen) for worker in failing]
                while any(len(w.seen) == n for w, n in zip(failing, before, strict=True)):
                    assert (await world.ask(STREAM)).status == 200

    asyncio.run(main())

    assert re.findall(r"avoided_s=([0-9.]+)", capsys.readouterr().err) == ["0.02"] * 3


def avoided(world, name):
    return name in world.router.app._serving.view().avoided


def test_where_nobody_decodes_no_first_request_waits_for_it():
    async def main():
        async with fleet("p", return_wait_s=60.0, **PATIENT) as world, asyncio.timeout(5):
            said = await world.ask(STREAM)
            assert (said.status, said.json["error"]["code"]) == (503, "no_worker")

    asyncio.run(main())


def test_a_whole_answer_has_its_own_deadline_and_is_given_up_then():
    async def main():
        limits = PATIENT | {"response_deadline_s": 0.1}
        async with fleet("d", max_attempts=1, **limits) as world:
            world.decode[0].hold = asyncio.Event()
            said = await world.ask(PROMPT)
            assert (said.status, said.json["error"]["code"]) == (504, "worker_failed")
            await until(lambda: world.decode[0].seen[0].aborted, "the work is aborted")

    asyncio.run(main())


# Load


def test_the_ledger_knows_what_is_still_to_be_computed_and_what_is_held():
    async def main():
        async with fleet("p d", **PATIENT) as world:
            prefill, decode = world.prefill[0], world.decode[0]
            prefill.hold, decode.hold_mid_stream = asyncio.Event(), asyncio.Event()
            body = STREAM | {"prompt": list(range(100))}
            asking = asyncio.ensure_future(world.ask(body))
            await until(lambda: bool(prefill.seen), "the prompt is computed")
            loads = world.router.ledger.loads()
            assert (loads["p0"].prefill_tokens, loads["p0"].decode_requests) == (100, 0)
            assert (loads["d0"].prefill_tokens, loads["d0"].context_tokens) == (0, 100)
            prefill.hold.set()
            await until(lambda: bool(decode.seen), "the answer is made")
            assert set(world.router.ledger.loads()) == {"d0"}
            decode.hold_mid_stream.set()
            await asking
            assert world.idle()

    asyncio.run(main())


def test_a_prompt_that_is_prefilled_locally_is_work_until_the_first_byte():
    async def main():
        async with fleet("d", **PATIENT) as world:
            decode = world.decode[0]
            decode.hold, decode.hold_mid_stream = asyncio.Event(), asyncio.Event()
            body = STREAM | {"prompt": list(range(100))}
            asking = asyncio.ensure_future(world.ask(body))
            await until(lambda: bool(decode.seen), "it is asked")
            load = world.router.ledger.loads()["d0"]
            assert (load.prefill_requests, load.prefill_tokens) == (1, 100)
            decode.hold.set()
            await until(
                lambda: world.router.ledger.loads()["d0"].prefill_requests == 0, "first byte"
            )
            load = world.router.ledger.loads()["d0"]
            assert (load.prefill_tokens, load.context_tokens) == (0, 100)
            decode.hold_mid_stream.set()
            assert (await asking).status == 200

    asyncio.run(main())


# Caches


def test_a_decode_worker_that_fetched_a_prompt_is_believed_to_have_it():
    async def main():
        policy = Policy(local_prefill_below_tokens=150)
        async with fleet("p d d d d", policy=policy, **PATIENT) as world:
            modes = [(await world.ask(LONG)).mode for _ in range(3)]
            assert modes == ["disaggregated", "local-prefill", "local-prefill"]

    asyncio.run(main())


def test_a_decode_worker_that_computed_a_prompt_is_believed_to_have_it():
    async def main():
        async with fleet("d d d d", **PATIENT) as world:
            went = {(await world.ask(LONG)).headers["x-spinney-decode-worker"] for _ in range(6)}
            assert len(went) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("roles", "found"), [("p b", 250), ("b", 750)])
def test_the_cached_tokens_of_a_request_are_those_of_who_computed_its_prompt(roles, found):
    async def main():
        async with fleet(roles.replace("b", "d"), **PATIENT) as world:
            for worker in world.prefill:
                worker.cached_part = 0.25
            world.decode[0].cached_part = 0.75
            await world.ask(PROMPT, headers={"x-request-id": "r"})
            story = (await world.get("/debug/requests/r")).json
            assert story["cached_tokens"] == found

    asyncio.run(main())


def test_the_cached_tokens_of_a_migrated_stream_are_those_of_its_prompt():
    async def main():
        async with fleet("p d d d", **PATIENT) as world:
            in_turn(world.decode, "die-mid-stream")
            prefill = world.prefill[0]
            prefill.cached_part = 0.25
            asking = asyncio.ensure_future(world.ask(STREAM, headers={"x-request-id": "r"}))
            await until(lambda: any(worker.seen for worker in world.decode), "it streams")
            prefill.cached_part = 0.5
            assert (await asking).text == TEXT
            story = (await world.get("/debug/requests/r")).json
            cached = [s["fields"]["cached"] for s in story["steps"] if s["what"] == "prefilled"]
            assert (cached, story["cached_tokens"]) == ([250, 500], 250)

    asyncio.run(main())


# What reaches the client


@pytest.mark.parametrize(
    ("code", "status"), [(422, 422), (99, 500), ("oops", 500), (302, 500), (501, 501)]
)
def test_a_stream_that_begins_with_an_error_is_one_of_that_status(code, status):
    async def main():
        async with fleet("d", max_attempts=1, **PATIENT) as world:
            world.decode[0].fault, world.decode[0].error_code = "error-event", code
            said = await world.ask(STREAM)
            assert (said.status, said.json["error"]["message"]) == (status, "boom")
            assert len(world.decode[0].seen) == 1

    asyncio.run(main())


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_says_who_made_it_and_what_it_is(stream):
    async def main():
        async with fleet("p d", **PATIENT) as world:
            return await world.ask(PROMPT | {"stream": stream})

    headers = asyncio.run(main()).headers

    assert headers["x-spinney-mode"] == "disaggregated"
    assert headers["x-spinney-prefill-worker"] == "p0"
    assert headers["x-spinney-decode-worker"] == "d0"
    assert float(headers["x-spinney-prefill-ms"]) > 0
    want = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert headers["content-type"] == want
    assert headers.get("cache-control") == ("no-cache" if stream else None)


def test_what_only_the_router_asked_for_is_not_the_clients():
    async def main():
        async with fleet("p d", **PATIENT) as world:
            plain = await world.ask(STREAM)
            counted = await world.ask(STREAM | {"stream_options": {"include_usage": True}})
            assert b"usage" not in plain.body
            assert b"token_ids" not in plain.body
            assert counted.events[-2]["usage"]["completion_tokens"] == 5
            plain, counted = (seen.body for seen in world.decode[0].seen)
            assert plain["stream_options"] == counted["stream_options"] == {"include_usage": True}

    asyncio.run(main())


def test_streams_that_may_not_migrate_are_asked_for_as_they_came():
    async def main():
        async with fleet("d d", max_migrations=0, **PATIENT) as world:
            for worker in world.decode:
                worker.fault = "die-mid-stream"
            said = await world.ask(STREAM)
            assert said.events[-1]["error"]["code"] == "worker_failed"
            (seen,) = [seen for worker in world.decode for seen in worker.seen]
            assert "return_token_ids" not in seen.body

    asyncio.run(main())


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text, *, add_special_tokens=True):
        return [ord(letter) for letter in text]


def test_the_tokenizer_without_a_name_is_for_all_models():
    async def main():
        async with fleet("d", parts={"tokenizers": {"": Letters()}}, **PATIENT) as world:
            await world.ask(STREAM, headers={"x-request-id": "r"})
            story = (await world.get("/debug/requests/r")).json
            assert story["prompt_tokens"] == len(PROMPT["prompt"])

    asyncio.run(main())


def test_a_stream_that_broke_off_is_told_with_its_migrations():
    async def main():
        async with fleet("d d d", max_migrations=1, **PATIENT) as world:
            in_turn(world.decode, "die-mid-stream", "die-mid-stream")
            said = await world.ask(STREAM, headers={"x-request-id": "r"})
            assert said.events[-1]["error"]["code"] == "worker_failed"
            story = (await world.get("/debug/requests/r")).json
            assert (story["attempts"], story["migrations"]) == (2, 1)
            assert story["outcome"] == "broken-off"
            again = {"stage": "migration", "cause": "broken"}
            assert await world.metric("retries_total", **again) == 1

    asyncio.run(main())


def test_workers_that_turn_a_broken_stream_away_use_up_none_of_its_migrations():
    async def main():
        async with fleet("d d d d", max_migrations=1, **PATIENT) as world:
            whole = await world.ask(STREAM)
            in_turn(world.decode, "die-mid-stream", 503, 503)
            said = await world.ask(STREAM, headers={"x-request-id": "r"})
            assert said.text == whole.text
            story = (await world.get("/debug/requests/r")).json
            assert (story["attempts"], story["migrations"]) == (4, 1)
            assert story["outcome"] == "ok"

    asyncio.run(main())


def test_where_all_have_failed_lately_one_is_asked_and_its_failure_is_the_answer():
    async def main():
        limits = PATIENT | {"return_wait_s": 0.05, "avoid_first_s": 60.0, "avoid_most_s": 60.0}
        async with fleet("d d", **limits) as world:
            for worker in world.decode:
                await worker.server.stop()
            await world.ask(STREAM)
            said = await world.ask(STREAM, headers={"x-request-id": "r"})
            story = (await world.get("/debug/requests/r")).json
            assert (said.status, story["attempts"]) == (502, 1)

    asyncio.run(main())
