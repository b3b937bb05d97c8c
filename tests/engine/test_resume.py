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


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"resume_token_ids": [1] * 12}, id="nothing is left"),
        pytest.param({"resume_token_ids": [-1]}, id="no tokens"),
        pytest.param({"resume_token_ids": [1], "n": 2}, id="several choices"),
        pytest.param(
            {"resume_token_ids": [1], "kv_transfer_params": {"do_remote_decode": True}},
            id="a hand-over",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(start_engine: Any, more: dict[str, Any]):
    async def main() -> None:
        async with start_engine() as engine:
            answer = await engine.post("/v1/completions", TEXT | more)
            assert answer.status == 400
            assert answer.json["error"]["message"]

    asyncio.run(main())
