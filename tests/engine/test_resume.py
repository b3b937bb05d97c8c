"""Answers that another worker began: what was told is not told again, the rest is the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

CHAT = {"messages": [{"role": "user", "content": "tell me"}], "max_tokens": 12}
TEXT = {"prompt": "tell me", "max_tokens": 12}
WAYS = {
    "greedy": {"temperature": 0, "ignore_eos": True},
    "seeded": {"temperature": 1.5, "seed": 5, "ignore_eos": True},
    "penalised": {"temperature": 0, "frequency_penalty": 1.5, "ignore_eos": True},
}


def parts(events: list[Any]) -> tuple[str, list[int], list[str]]:
    choices = [choice for event in events for choice in event["choices"]]
    texts = [c.get("text") or (c.get("delta") or {}).get("content") or "" for c in choices]
    reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
    return "".join(texts), [token for c in choices for token in c["token_ids"]], reasons


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_stream_is_the_rest_of_the_whole_one(start_engine: Any, path: str, way: str):
    async def main() -> None:
        async with start_engine() as engine:
            body = (CHAT if "chat" in path else TEXT) | WAYS[way] | {"return_token_ids": True}
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            whole = (await engine.post(path, body)).events
            text, ids, reasons = parts(whole)
            for told in (1, 5, 11):
                sent = sum(1 for at in range(len(whole)) if len(parts(whole[: at + 1])[1]) <= told)
                begun = parts(whole[:sent])
                answer = await engine.post(path, body | {"resume_token_ids": begun[1]})
                rest = parts(answer.events)
                assert answer.headers["x-spinney-resumed-tokens"] == str(len(begun[1]))
                assert begun[0] + rest[0] == text
                assert begun[1] + rest[1] == ids
                assert rest[2] == reasons == ["length"]
                usage, first = answer.events[-1]["usage"], whole[-1]["usage"]
                for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
                    assert usage[key] == first[key]
                assert "role" not in str(answer.events[0]["choices"])

    asyncio.run(main())


def test_a_stop_string_that_began_at_the_other_worker_is_found(start_engine: Any):
    async def main() -> None:
        async with start_engine() as engine:
            body = TEXT | WAYS["greedy"] | {"stream": True, "return_token_ids": True}
            text, _, _ = parts((await engine.post("/v1/completions", body)).events)
            stop = text[3:9]
            body |= {"stop": [stop]}
            events = (await engine.post("/v1/completions", body)).events
            want = parts(events)
            for sent in range(1, len(events)):
                begun = parts(events[:sent])
                resumed = body | {"resume_token_ids": begun[1]}
                rest = parts((await engine.post("/v1/completions", resumed)).events)
                assert begun[0] + rest[0] == want[0] == text[: text.index(stop)]
                assert rest[2] == ["stop"]

    asyncio.run(main())


PROMPT = [(7 * at) % 400 + 20 for at in range(61)]


def meeting(prefill: Any, room: int) -> dict[str, Any]:
    port = prefill.engine.transfer.port
    return {"bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": room}


@pytest.mark.parametrize("by", ["ticket", "room"])
@pytest.mark.parametrize("way", WAYS)
def test_what_another_worker_began_is_handed_over_with_its_tokens(
    start_engine: Any, way: str, by: str
):
    async def main() -> None:
        async with (
            start_engine() as whole,
            start_engine(role="prefill") as prefill,
            start_engine(role="decode") as decode,
        ):
            body = WAYS[way] | {"max_tokens": 30, "logprobs": 2, "min_tokens": 20}
            expected = await whole.complete(PROMPT, **body)
            ids = expected["choices"][0]["token_ids"]
            for told in (1, 2, 3, 4, 12, 29):
                more = body | {"resume_token_ids": ids[:told]}
                if by == "room":
                    more |= meeting(prefill, 1000 + told)
                    answer, other = await asyncio.gather(
                        decode.complete(PROMPT, **more), prefill.complete(PROMPT, **more)
                    )
                    assert len(other["choices"][0]["token_ids"]) == 1
                else:
                    asked = {key: more[key] for key in more if key != "max_tokens"}
                    ticket = await prefill.prefill(PROMPT, **asked | {"min_tokens": 1})
                    assert ticket["remote_num_tokens"] == len(PROMPT) + told
                    answer = await decode.complete(PROMPT, **more, kv_transfer_params=ticket)
                assert answer["choices"][0]["token_ids"] == ids[told:]
                assert answer["choices"][0]["finish_reason"] == "length"
                logprobs = expected["choices"][0]["logprobs"]["token_logprobs"][told:]
                found = answer["choices"][0]["logprobs"]["token_logprobs"]
                assert found == pytest.approx(logprobs, abs=1e-3)
                usage = answer["usage"]
                assert (usage["prompt_tokens"], usage["completion_tokens"]) == (61, 30)
                handover = answer["kv_transfer_params"]
                # A reader that has all but a block may say so before there is anything in the room.
                early = by == "room" and handover["failure"] == "lease_released"
                assert handover["outcome"] in ("pulled", "cached") or early
                assert told > 1 or handover["blocks_pulled"] == 8
            assert len(prefill.core.leases) == 0
            for engine in (prefill, decode):
                engine.core.check()
                assert engine.core.pool.held == 0

    asyncio.run(main())


def test_what_the_decode_side_has_of_the_resumed_tokens_is_not_pulled(start_engine: Any):
    async def main() -> None:
        async with (
            start_engine(role="prefill") as prefill,
            start_engine(role="decode") as decode,
        ):
            body = WAYS["greedy"]
            whole = await decode.complete(PROMPT, max_tokens=60, **body)
            ids = whole["choices"][0]["token_ids"]
            more = body | {"resume_token_ids": ids[:50]}
            ticket = await prefill.prefill(PROMPT, **more)
            answer = await decode.complete(PROMPT, max_tokens=60, **more, kv_transfer_params=ticket)
            assert answer["choices"][0]["token_ids"] == ids[50:]
            assert answer["kv_transfer_params"]["outcome"] == "cached"
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT)
            assert len(prefill.core.leases) == 0

    asyncio.run(main())


def test_only_the_blocks_that_are_not_there_are_pulled_and_none_is_computed(start_engine: Any):
    async def main() -> None:
        async with (
            start_engine(role="prefill") as prefill,
            start_engine(role="decode") as decode,
        ):
            body = WAYS["greedy"]
            ids = (await prefill.complete(PROMPT, max_tokens=30, **body))["choices"][0]["token_ids"]
            await decode.complete(PROMPT[:33], max_tokens=1)
            more = body | {"resume_token_ids": ids[:20]}
            ticket = await prefill.prefill(PROMPT, **more)
            steps: list[int] = []
            compute = decode.core._executor.step

            def step(batch: Any) -> Any:
                steps.extend(len(each.token_ids) for each in batch.sequences)
                return compute(batch)

            decode.core._executor.step = step
            answer = await decode.complete(PROMPT, max_tokens=30, **more, kv_transfer_params=ticket)
            assert answer["choices"][0]["token_ids"] == ids[20:]
            handover = answer["kv_transfer_params"]
            known, there = -(-(len(PROMPT) + 20) // 8), 33 // 8
            assert (handover["outcome"], handover["blocks_pulled"]) == ("pulled", known - there)
            assert steps == [1] * 10, "one token a step: those sent before were not computed again"

    asyncio.run(main())


def test_a_ticket_for_the_prompt_alone_is_not_taken_for_more(start_engine: Any):
    async def main() -> None:
        async with (
            start_engine(role="prefill") as prefill,
            start_engine(role="decode") as decode,
        ):
            body = WAYS["greedy"] | {"max_tokens": 12}
            ids = (await prefill.complete(PROMPT, **body))["choices"][0]["token_ids"]
            ticket = await prefill.prefill(PROMPT)
            more = body | {"resume_token_ids": ids[:5]}
            answer = await decode.complete(PROMPT, **more, kv_transfer_params=ticket)
            assert answer["choices"][0]["token_ids"] == ids[5:]
            assert answer["kv_transfer_params"]["failure"] == "prompt_mismatch"
            prefill.service.release(ticket["remote_request_id"])

    asyncio.run(main())


@pytest.mark.parametrize("told", [[30] * 12, [-1], [10**30]])
def test_a_resumed_hand_over_that_is_refused_is_a_bad_request(start_engine: Any, told: list[int]):
    async def main() -> None:
        async with (
            start_engine(role="prefill") as prefill,
            start_engine(role="decode") as decode,
        ):
            leased = {"resume_token_ids": told} if told[0] == 30 else {}
            ticket = await prefill.prefill(PROMPT, **leased)
            body = {"prompt": PROMPT, "max_tokens": 12, "kv_transfer_params": ticket}
            answer = await decode.post("/v1/completions", body | {"resume_token_ids": told})
            assert answer.status == 400
            if leased:
                await decode.until(lambda: len(prefill.core.leases) == 0)
            prefill.service.release(ticket["remote_request_id"])

    asyncio.run(main())


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"resume_token_ids": [1] * 12}, id="nothing is left"),
        pytest.param({"resume_token_ids": [-1]}, id="no tokens"),
        pytest.param({"resume_token_ids": [1], "n": 2}, id="several choices"),
    ],
)
def test_what_cannot_be_resumed_is_refused(start_engine: Any, more: dict[str, Any]):
    async def main() -> None:
        async with start_engine() as engine:
            answer = await engine.post("/v1/completions", TEXT | more)
            assert answer.status == 400
            assert answer.json["error"]["message"]

    asyncio.run(main())
