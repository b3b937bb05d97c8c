"""The HTTP interface: the shape of every answer, good and bad."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

Start = Callable[..., AbstractAsyncContextManager[Any]]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def with_engine(start_engine: Start) -> Callable[..., None]:
    """Returns a function that runs a coroutine function with a running engine."""

    def run(scenario: Callable[[Any], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            async with start_engine(**settings) as engine:
                await scenario(engine)

        asyncio.run(main())

    return run


WithEngine = Callable[..., None]


def test_a_completion_has_openais_shape(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        answer = await engine.post(
            COMPLETIONS, {"prompt": "def f", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        )
        assert answer.status == 200
        assert answer.headers["x-spinney-engine-id"] == "engine-under-test"
        body = answer.json
        assert body["id"].startswith("cmpl-")
        assert body["object"] == "text_completion"
        assert isinstance(body["created"], int)
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"] is None
        assert isinstance(choice["text"], str)
        usage = body["usage"]
        assert usage["completion_tokens"] == 4
        assert usage["total_tokens"] == usage["prompt_tokens"] + 4
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
        assert body["kv_transfer_params"] is None

    with_engine(scenario)


def test_a_chat_has_openais_shape(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        answer = await engine.post(CHAT, {"messages": HELLO, "max_completion_tokens": 3, "seed": 1})
        body = answer.json
        assert body["id"].startswith("chatcmpl-")
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["role"] == "assistant"
        assert body["usage"]["completion_tokens"] <= 3

    with_engine(scenario)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_stream_joins_to_the_whole_answer(with_engine: WithEngine, path: str) -> None:
    async def scenario(engine: Any) -> None:
        what = {"prompt": "import os"} if path == COMPLETIONS else {"messages": HELLO}
        body = {**what, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
        whole = (await engine.post(path, body)).json
        answer = await engine.post(
            path, body | {"stream": True, "stream_options": {"include_usage": True}}
        )
        assert answer.headers["content-type"].startswith("text/event-stream")
        *chunks, last = answer.events
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 20
        assert all(chunk["usage"] is None for chunk in chunks)
        choices = [chunk["choices"][0] for chunk in chunks]
        assert [c["finish_reason"] for c in choices][-1] == "length"
        assert not any(c["finish_reason"] for c in choices[:-1])
        if path == COMPLETIONS:
            assert "".join(c["text"] for c in choices) == whole["choices"][0]["text"]
            assert {chunk["object"] for chunk in chunks} == {"text_completion"}
        else:
            assert choices[0]["delta"]["role"] == "assistant"
            assert not any("role" in c["delta"] for c in choices[1:])
            text = "".join(c["delta"].get("content", "") for c in choices)
            assert text == whole["choices"][0]["message"]["content"]
            assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}

    with_engine(scenario)


def test_prompts_may_be_texts_tokens_or_lists_of_either(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        for prompt, count in (
            ("a text", 1),
            ([5, 6, 7], 1),
            (["one", "two"], 2),
            ([[5, 6], [7]], 2),
        ):
            body = await engine.complete(prompt, max_tokens=2, ignore_eos=True)
            assert [c["index"] for c in body["choices"]] == list(range(count))
            assert body["usage"]["completion_tokens"] == 2 * count
        pair = await engine.complete([[5, 6], [7]], max_tokens=6)
        alone = await engine.complete([7], max_tokens=6)
        assert pair["choices"][1]["token_ids"] == alone["choices"][0]["token_ids"]
        assert pair["choices"][0]["prompt_token_ids"] == [5, 6]

    with_engine(scenario)


def test_several_choices_of_one_prompt(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        body = {"prompt": [5] * 20, "n": 3, "max_tokens": 8, "seed": 7, "ignore_eos": True}
        first = (await engine.post(COMPLETIONS, body)).json
        texts = [choice["text"] for choice in first["choices"]]
        assert len(set(texts)) == 3
        assert first["usage"]["prompt_tokens"] == 20
        assert first["usage"]["completion_tokens"] == 24
        again = (await engine.post(COMPLETIONS, body)).json
        assert [choice["text"] for choice in again["choices"]] == texts
        events = (await engine.post(COMPLETIONS, body | {"stream": True})).events
        for at, text in enumerate(texts):
            mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == at]
            assert "".join(choice["text"] for choice in mine) == text

    with_engine(scenario)


def test_logprobs(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        body = {"prompt": [5, 6], "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        found = (await engine.post(COMPLETIONS, body | {"logprobs": 2})).json
        logprobs = found["choices"][0]["logprobs"]
        assert [len(logprobs[key]) for key in sorted(logprobs)] == [3, 3, 3, 3]
        assert all(value <= 0 for value in logprobs["token_logprobs"])
        chat = {"messages": HELLO, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
        found = (await engine.post(CHAT, chat | {"logprobs": True, "top_logprobs": 2})).json
        content = found["choices"][0]["logprobs"]["content"]
        assert len(content) == 2
        assert len(content[0]["top_logprobs"]) == 2
        assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"]

    with_engine(scenario)


def test_a_stop_string_ends_the_answer(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        body = {"prompt": [5, 6], "max_tokens": 30, "temperature": 0, "ignore_eos": True}
        text = (await engine.post(COMPLETIONS, body)).json["choices"][0]["text"]
        stop = text[4:8]
        choice = (await engine.post(COMPLETIONS, body | {"stop": stop})).json["choices"][0]
        assert choice["text"] == text[: text.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)

    with_engine(scenario)


def test_a_repeated_prompt_reports_its_cached_tokens(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        first = await engine.complete([9] * 50, max_tokens=5)
        again = await engine.complete([9] * 50, max_tokens=5)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 48
        assert again["choices"][0]["token_ids"] == first["choices"][0]["token_ids"]
        assert await engine.metric("vllm:prefix_cache_hits_total") == 48

    with_engine(scenario)


def test_models_health_version_and_tokens(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        (card,) = (await engine.call("GET", "/v1/models")).json["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("served", "model", 1024)
        health = await engine.call("GET", "/health")
        assert (health.status, health.json["status"]) == (200, "ok")
        assert (await engine.call("GET", "/version")).json["version"]
        found = (await engine.post("/tokenize", {"prompt": "def f", "model": "served"})).json
        assert found["count"] == len(found["tokens"])
        assert found["max_model_len"] == 1024
        assert found["tokens"][0] == 0, "the beginning of text is added"
        tokens = found["tokens"][1:]
        back = (await engine.post("/detokenize", {"tokens": tokens})).json
        assert back == {"prompt": "def f"}
        chat = (await engine.post("/tokenize", {"messages": HELLO})).json
        assert chat["count"] > found["count"]

    with_engine(scenario, served_names=("served",))


def test_metrics_have_vllms_names(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        await engine.complete([5] * 10, max_tokens=4, ignore_eos=True)
        text = (await engine.call("GET", "/metrics")).body.decode()
        names = {line.split("{")[0] for line in text.splitlines() if line.startswith("vllm:")}
        for name in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:cache_config_info",
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_hits_total",
            "vllm:prompt_tokens_by_source_total",
            "vllm:num_preemptions_total",
            "vllm:request_success_total",
            "vllm:admission_rejections_total",
            "vllm:time_to_first_token_seconds_bucket",
            "vllm:inter_token_latency_seconds_bucket",
            "vllm:request_time_per_output_token_seconds_sum",
            "vllm:e2e_request_latency_seconds_count",
            "vllm:request_queue_time_seconds_sum",
            "vllm:request_prefill_time_seconds_sum",
            "vllm:request_decode_time_seconds_sum",
            "vllm:request_inference_time_seconds_sum",
            "vllm:iteration_tokens_total_sum",
            "vllm:request_prompt_tokens_sum",
            "vllm:request_generation_tokens_sum",
        ):
            assert name in names
        assert await engine.metric("vllm:generation_tokens_total") == 4
        assert await engine.metric("vllm:prompt_tokens_total") == 10
        assert await engine.metric("vllm:request_success_total{length}") == 1
        assert await engine.metric("vllm:inter_token_latency_seconds_count") == 3

    with_engine(scenario)


BAD = [
    (COMPLETIONS, b"{", 400, "not JSON", None),
    (COMPLETIONS, {}, 400, "prompt", None),
    (COMPLETIONS, {"prompt": []}, 400, "prompt is empty", "prompt"),
    (COMPLETIONS, {"prompt": [1, "a"]}, 400, "a text, a list of texts", "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "token id -1", "prompt"),
    (COMPLETIONS, {"prompt": [99999]}, 400, "token id 99999 is not of this model", "prompt"),
    (COMPLETIONS, {"prompt": "a", "temperature": -1}, 400, ">= 0", "temperature"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 400, ">= 1", "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "n": 1000}, 400, "<= 128", "n"),
    (COMPLETIONS, {"prompt": "a", "stop": [""]}, 400, "a stop string is empty", "stop"),
    (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo is not supported", "echo"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, 400, "'x' is no token", "logit_bias"),
    (COMPLETIONS, {"prompt": [5] * 1024}, 400, "1024 tokens; the prompt has 1024", "prompt"),
    (
        COMPLETIONS,
        {"prompt": [5] * 1000, "max_tokens": 25},
        400,
        "1024 tokens; the prompt has 1000 and max_tokens is 25",
        "max_tokens",
    ),
    (COMPLETIONS, {"prompt": "a", "model": "gpt-5"}, 404, "`gpt-5` does not exist", "model"),
    (
        COMPLETIONS,
        {"prompt": ["a", "b"], "kv_transfer_params": {"do_remote_decode": True}},
        400,
        "one prompt and n=1",
        "kv_transfer_params",
    ),
    (CHAT, {"messages": []}, 400, "messages is empty", "messages"),
    (CHAT, {"messages": [{"content": "a"}]}, 400, "role", "messages[0]"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "this model reads text",
        "messages[0].content",
    ),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, "needs logprobs", "top_logprobs"),
    (
        CHAT,
        {"messages": HELLO, "response_format": {"type": "json_object"}},
        400,
        "response_format is not supported",
        "response_format",
    ),
    ("/tokenize", {}, 400, "either prompt or messages", "prompt"),
    ("/detokenize", {"tokens": [99999]}, 400, "token ids of this model", "tokens"),
    ("/nowhere", {}, 404, "no such path: /nowhere", None),
    ("/health", {}, 405, "/health answers GET", None),
]


def test_bad_requests_are_answered_in_openais_form(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        for path, body, status, message, param in BAD:
            answer = await engine.post(path, body)
            assert answer.status == status, (path, body, answer.body)
            error = answer.json["error"]
            assert message in error["message"]
            assert (error["type"], error["param"]) == ("invalid_request_error", param)

    with_engine(scenario)


def test_a_body_that_is_too_long_is_refused(
    with_engine: WithEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinney.engine.server.MAX_BODY_BYTES", 100)

    async def scenario(engine: Any) -> None:
        assert (await engine.post(COMPLETIONS, {"prompt": "a" * 200})).status == 413

    with_engine(scenario)


def test_a_full_queue_answers_503_and_when_to_come_again(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        body = {"prompt": [5], "max_tokens": 900, "ignore_eos": True}
        gone = asyncio.Event()
        calls = [asyncio.create_task(engine.post(COMPLETIONS, body, gone=gone))]
        await engine.until(lambda: engine.core.num_running == 1)
        calls.append(asyncio.create_task(engine.post(COMPLETIONS, body, gone=gone)))
        await engine.until(lambda: engine.core.num_waiting == 1)
        refused = await engine.post(COMPLETIONS, body)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json["error"]["code"] == "queue_full"
        assert await engine.metric("vllm:admission_rejections_total") == 1
        gone.set()
        await asyncio.gather(*calls)

    with_engine(scenario, max_num_seqs=1, max_waiting=1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("when", ["waiting", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_blocks(
    with_engine: WithEngine, stream: bool, when: str
) -> None:
    async def scenario(engine: Any) -> None:
        others = asyncio.Event()
        if when == "waiting":
            blocker = {"prompt": [5], "max_tokens": 900, "ignore_eos": True}
            busy = asyncio.create_task(engine.post(COMPLETIONS, blocker, gone=others))
            await engine.until(lambda: engine.core.num_running == 1)
        gone, produced = asyncio.Event(), engine.core.num_waiting
        body = {"prompt": [6] * 800, "max_tokens": 200, "ignore_eos": True, "stream": stream}
        call = asyncio.create_task(engine.post(COMPLETIONS, body, gone=gone))
        if when == "waiting":
            await engine.until(lambda: engine.core.num_waiting == produced + 1)
        elif when == "prefill":
            await engine.until(lambda: engine.core.num_running == 1)
        else:
            await engine.until(lambda: any(s.output for s in engine.core._running))
        gone.set()
        await call
        others.set()
        if when == "waiting":
            await busy
        await engine.settle()
        assert await engine.metric("vllm:request_success_total{abort}") >= 1

    with_engine(scenario, max_num_seqs=1)


def test_a_broken_executor_answers_500_and_is_unhealthy(
    start_engine: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with start_engine() as engine:

            def broken(batch: Any) -> Any:
                raise MemoryError("no memory left")

            monkeypatch.setattr(engine.engine.executor, "step", broken)
            answer = await engine.post(COMPLETIONS, {"prompt": [5]})
            assert answer.status == 500
            assert answer.json["error"]["type"] == "server_error"
            assert (await engine.call("GET", "/health")).status == 500
            assert (await engine.post(COMPLETIONS, {"prompt": [5]})).status == 503

    with pytest.raises(ExceptionGroup) as broken:  # The service ends, visibly.
        asyncio.run(main())
    assert isinstance(broken.value.exceptions[0], MemoryError)


def test_draining_finishes_what_runs_and_admits_nothing(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        body = {"prompt": [5], "max_tokens": 60, "ignore_eos": True}
        running = asyncio.create_task(engine.post(COMPLETIONS, body))
        await engine.until(lambda: engine.core.num_running == 1)
        draining = asyncio.create_task(engine.service.drain(10))
        await asyncio.sleep(0)
        health = await engine.call("GET", "/health")
        assert (health.status, health.json["status"]) == (503, "draining")
        refused = await engine.post(COMPLETIONS, body)
        assert (refused.status, refused.json["error"]["code"]) == (503, "draining")
        await draining
        done = (await running).json
        assert done["usage"]["completion_tokens"] == 60

    with_engine(scenario)


def test_draining_ends_at_its_bound_and_releases_leases(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        await engine.prefill([5] * 20)
        assert engine.core.pool.held == 3
        body = {"prompt": [5], "max_tokens": 1000, "ignore_eos": True}
        running = asyncio.create_task(engine.post(COMPLETIONS, body))
        await engine.until(lambda: engine.core.num_running == 1)
        await engine.service.drain(0.05)
        assert (await running).status == 503

    with_engine(scenario)


def test_streamed_updates_keep_whole_characters(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        pieces: list[bytes] = []
        body = {
            "prompt": [5],
            "max_tokens": 120,
            "ignore_eos": True,
            "seed": 3,
            "temperature": 3.0,
            "stream": True,
        }
        await engine.post(COMPLETIONS, body, on_body=pieces.append)
        for piece in pieces:
            assert json.loads(piece.removeprefix(b"data: ") if b"{" in piece else b"0") is not None

    with_engine(scenario)


def test_a_fault_of_ours_is_an_answer_in_openais_form(with_engine: WithEngine) -> None:
    async def scenario(engine: Any) -> None:
        engine.engine.app._tokenizer = None
        reply = await engine.post(COMPLETIONS, {"prompt": "hello"})
        assert reply.status == 500
        assert reply.json["error"]["code"] == "internal_error"

    with_engine(scenario)
