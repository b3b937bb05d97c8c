"""What every worker has to do, whichever program it is: docs/worker-contract.md as tests."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.worker_process import (
    ANSWER_S,
    MODEL,
    REMOTE_DECODE,
    Worker,
    free_port,
    send_raw,
    tokens,
    wait_for,
)

from spinney.kv.event_stream import subscribe
from spinney.kv.events import BlockStored, KVEventBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("contract")]
NEGATIVE_ACK_S = 0.2
METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:cache_config_info",
)


def prompt(seed: int, length: int = 40) -> list[int]:
    return [(seed * 131 + n * 17) % 1500 + 300 for n in range(length)]


def test_models_health_and_version(worker: Worker) -> None:
    card = worker.call("GET", "/v1/models").json["data"][0]
    assert (card["id"], card["object"]) == (MODEL, "model")
    assert card["max_model_len"] >= 2048
    assert worker.call("GET", "/health").status == 200
    assert worker.call("GET", "/version").json["version"]


def test_a_completion_has_text_usage_and_an_end(worker: Worker) -> None:
    answer = worker.complete("A spinney is a small", 6, ignore_eos=True)
    choice = answer["choices"][0]
    assert answer["object"] == "text_completion"
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert choice["text"]
    assert len(choice["token_ids"]) == answer["usage"]["completion_tokens"] == 6
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6


def test_a_chat_is_answered_by_the_assistant(worker: Worker) -> None:
    messages = [{"role": "user", "content": "hello"}]
    reply = worker.post("/v1/chat/completions", messages=messages, max_tokens=4, temperature=0)
    answer = reply.json
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["prompt_tokens"] > 2


def test_a_stream_says_what_the_whole_answer_says(worker: Worker) -> None:
    whole = worker.complete(prompt(1), 8)["choices"][0]
    reply = worker.post(
        "/v1/completions",
        prompt=prompt(1),
        max_tokens=8,
        temperature=0,
        stream=True,
        return_token_ids=True,
        stream_options={"include_usage": True},
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, last = reply.events
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    streamed = [t for chunk in chunks for t in chunk["choices"][0].get("token_ids") or []]
    assert streamed == whole["token_ids"]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(whole["token_ids"])
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1


def test_a_streamed_chat_begins_with_the_role(worker: Worker) -> None:
    messages = [{"role": "user", "content": "hello"}]
    reply = worker.post("/v1/chat/completions", messages=messages, max_tokens=4, stream=True)
    first = reply.events[0]
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, 400),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10_000_000}, 400),
        ("/v1/completions", {"prompt": "x", "model": "other"}, 404),
        ("/v1/chat/completions", {"messages": "x"}, 400),
        ("/v1/nothing", {"prompt": "x"}, 404),
    ],
    ids=["json", "zero", "range", "long", "model", "type", "path"],
)
def test_bad_requests_get_an_error(worker: Worker, path: str, body: Any, status: int) -> None:
    raw = body if isinstance(body, bytes) else {"model": MODEL} | body
    reply = worker.call("POST", path, raw)
    assert reply.status in {status, 422 if worker.kind.name == "vllm" else status}
    if path != "/v1/nothing" or worker.kind.name != "vllm":
        assert reply.json["error"]["message"]


def test_stop_strings_and_tokens_end_an_answer(worker: Worker) -> None:
    whole = worker.complete(prompt(2), 12, ignore_eos=True)["choices"][0]
    third = whole["token_ids"][2]
    at = whole["token_ids"].index(third)
    stopped = worker.complete(prompt(2), 12, ignore_eos=True, stop_token_ids=[third])
    assert stopped["choices"][0]["token_ids"] == whole["token_ids"][: at + 1]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    text = whole["text"]
    word = text[len(text) // 2 :][:3]
    cut = worker.complete(prompt(2), 12, ignore_eos=True, stop=[word])["choices"][0]
    assert cut["text"] == text[: text.index(word)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", word)


def test_a_seed_repeats_and_another_one_differs(worker: Worker) -> None:
    def sampled(seed: int) -> list[int]:
        return tokens(worker.complete(prompt(3), 16, temperature=1.0, seed=seed, ignore_eos=True))

    assert sampled(5) == sampled(5)
    assert len({tuple(sampled(seed)) for seed in range(4)}) > 1


def test_n_gives_so_many_choices(worker: Worker) -> None:
    answer = worker.complete(prompt(4), 3, n=3, temperature=0.9, seed=1, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 9


def test_logprobs_are_given_where_asked(worker: Worker) -> None:
    answer = worker.complete(prompt(5), 3, logprobs=2, ignore_eos=True)
    report = answer["choices"][0]["logprobs"]
    assert len(report["token_logprobs"]) == 3
    assert all(value <= 0 for value in report["token_logprobs"])
    assert all(len(top) >= 2 for top in report["top_logprobs"])


def test_a_repeated_prompt_is_cached(worker: Worker) -> None:
    block = worker.kind.block
    text = prompt(6, 5 * block + 3)
    first = tokens(worker.complete(text, 4))
    before = worker.metrics()["vllm:prefix_cache_hits_total"]
    assert tokens(worker.complete(text, 4)) == first
    assert worker.metrics()["vllm:prefix_cache_hits_total"] - before == 5 * block


@pytest.mark.parametrize("length", [5, 16, 32, 64, 101, 300])
def test_a_hand_over_gives_the_answer_of_one_worker(pair: Pair, length: int) -> None:
    text = prompt(100 + length, length)
    expected = tokens(pair.prefill.complete(text, 10, ignore_eos=True))
    ticket = pair.prefill.prefill(text)
    assert ticket["do_remote_prefill"] is True
    assert ticket["remote_engine_id"] == f"{pair.kind.name}-prefill"
    answer = pair.decode.complete(text, 10, ignore_eos=True, kv_transfer_params=ticket)
    assert tokens(answer) == expected
    if pair.kind.name != "vllm":
        # A prompt of one block is computed faster than asked for.
        way = ("pulled", pair.kind.transport) if length > pair.kind.block else ("cached", None)
        report = answer["kv_transfer_params"]
        assert (report["outcome"], report["transport"]) == way
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == (length if length > pair.kind.block else 0)
    pair.prefill.wait_idle()
    pair.decode.wait_idle()


def test_a_hand_over_can_be_streamed(pair: Pair) -> None:
    text = prompt(7, 70)
    expected = tokens(pair.prefill.complete(text, 6, ignore_eos=True))
    reply = pair.decode.post(
        "/v1/completions",
        prompt=text,
        max_tokens=6,
        temperature=0,
        ignore_eos=True,
        stream=True,
        return_token_ids=True,
        kv_transfer_params=pair.prefill.prefill(text),
    )
    found = [t for event in reply.events for t in event["choices"][0].get("token_ids") or []]
    assert found == expected


def test_both_workers_can_be_called_at_once(pair: Pair) -> None:
    if pair.kind.name == "vllm":
        pytest.skip("vLLM hands over by tickets")
    text = prompt(17, 90)
    expected = tokens(pair.prefill.complete(text, 6, ignore_eos=True))
    address = pair.prefill.prefill(prompt(18, 20))
    where = {
        "bootstrap_host": address["remote_host"],
        "bootstrap_port": address["remote_port"],
        "bootstrap_room": time.time_ns(),
    }
    with ThreadPoolExecutor(1) as beside:
        decoded = beside.submit(pair.decode.complete, text, 6, ignore_eos=True, **where)
        prefilled = pair.prefill.complete(text, 6, ignore_eos=True, **where)
        answer = decoded.result(ANSWER_S)
    assert tokens(answer) == expected
    assert len(tokens(prefilled)) == 1
    report = answer["kv_transfer_params"]
    assert (report["outcome"], report["transport"]) == ("pulled", pair.kind.transport)
    pair.prefill.wait_idle()
    pair.decode.wait_idle()


@pytest.mark.parametrize("told", [1, 7, 16])
def test_an_answer_that_was_begun_is_handed_over_with_its_tokens(pair: Pair, told: int) -> None:
    if pair.kind.name == "vllm":
        pytest.skip("vLLM answers from the beginning")
    text = prompt(300 + told, 90)
    ids = tokens(pair.prefill.complete(text, 24, ignore_eos=True))
    begun = {"ignore_eos": True, "resume_token_ids": ids[:told]}
    first = pair.prefill.complete(text, 1, kv_transfer_params=REMOTE_DECODE, **begun)
    ticket = first["kv_transfer_params"]
    assert ticket["remote_num_tokens"] == len(text) + told
    answer = pair.decode.complete(text, 24, kv_transfer_params=ticket, **begun)
    assert tokens(answer) == ids[told:]
    assert answer["kv_transfer_params"]["outcome"] == "pulled"
    assert answer["usage"]["prompt_tokens"] == 90
    assert answer["usage"]["completion_tokens"] == 24
    pair.prefill.wait_idle()
    pair.decode.wait_idle()


BROKEN = {
    "used": "handle_used",
    "unknown": "unknown_handle",
    "other prompt": "prompt_mismatch",
    "expired": "lease_expired",
    "refused": "peer_unreachable",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_useless_ticket_is_refused_at_once_and_the_prompt_computed(
    pair: Pair, fault: str, request: pytest.FixtureRequest
) -> None:
    if pair.kind.name == "vllm":
        pytest.skip("vLLM finds out by a timeout of its own")
    source, text = pair.prefill, prompt(200 + len(fault), 50)
    if fault == "expired":
        source = request.getfixturevalue("start")("prefill", "--kv-lease", "0.05")
    expected = tokens(source.complete(text, 6, ignore_eos=True))
    ticket = source.prefill(text)
    if fault == "used":
        # The worker that computed the prompt has it cached, and ends the lease without a pull.
        source.complete(text, 1, kv_transfer_params=ticket)
    elif fault == "unknown":
        ticket |= {"remote_request_id": "no-such-handle"}
    elif fault == "other prompt":
        ticket = source.prefill(prompt(300, 50))
    elif fault == "refused":
        ticket |= {"remote_port": free_port()}
    elif fault == "expired":
        wait_for(lambda: source.metrics()["spinney:kv_leases"] == 0, "the lease expires")
    answer = pair.decode.complete(text, 6, ignore_eos=True, kv_transfer_params=ticket)
    assert tokens(answer) == expected
    report = answer["kv_transfer_params"]
    assert (report["outcome"], report["failure"]) == ("recomputed", BROKEN[fault])
    assert report["seconds"] < NEGATIVE_ACK_S
    pair.decode.wait_idle()


def test_a_killed_prefill_worker_is_noticed_at_once(pair: Pair, start: Any) -> None:
    text = prompt(8, 90)
    expected = tokens(pair.prefill.complete(text, 5, ignore_eos=True))
    source = start("prefill")
    ticket = source.prefill(text)
    source.kill()
    started = time.perf_counter()
    answer = pair.decode.complete(text, 5, ignore_eos=True, kv_transfer_params=ticket)
    assert tokens(answer) == expected
    if pair.kind.name != "vllm":
        report = answer["kv_transfer_params"]
        assert (report["outcome"], report["failure"]) == ("recomputed", "peer_unreachable")
        assert report["seconds"] < NEGATIVE_ACK_S
        assert time.perf_counter() - started < 5
    assert pair.decode.call("GET", "/health").status == 200


def test_blocks_are_announced_and_can_be_replayed(start: Any) -> None:
    worker = start("prefill")
    block = worker.kind.block
    text = prompt(9, 3 * block + 4)
    worker.complete(text, 1)

    async def stored(replay: str | None) -> BlockStored:
        events = f"ipc://{worker.folder}/prefill-events"
        stream = subscribe(events, replay, worker.topic)
        async with asyncio.timeout(10):
            batch = await anext(stream)
        await stream.aclose()
        assert isinstance(batch, KVEventBatch)
        event = batch.events[0]
        assert isinstance(event, BlockStored)
        return event

    # The subscriber comes after the event: only a replay can tell it.
    event = asyncio.run(stored(f"ipc://{worker.folder}/prefill-replay"))
    assert event.token_ids == text[: 3 * block]
    assert (event.block_size, event.parent_block_hash) == (block, None)
    assert len(event.block_hashes) == 3


def test_metrics_have_vllms_names(worker: Worker) -> None:
    worker.complete(prompt(10), 3)
    metrics = worker.metrics()
    assert [name for name in METRICS if name not in metrics] == []


def test_counters_count(worker: Worker) -> None:
    before = worker.metrics()
    worker.complete(prompt(11), 7, ignore_eos=True)
    after = worker.metrics()

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("vllm:generation_tokens_total") == 7
    assert grown("vllm:prompt_tokens_total") == 40
    assert grown("vllm:request_success_total") == 1
    assert grown("vllm:time_to_first_token_seconds_count") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_away_leaves_no_block_held(worker: Worker, stream: bool) -> None:
    body = {"prompt": prompt(12), "max_tokens": 1900, "ignore_eos": True, "stream": stream}
    before = worker.aborted()
    with send_raw(worker.port, body):
        wait_for(lambda: worker.metrics()["vllm:num_requests_running"] > 0, "the request runs", 20)
        assert worker.metrics()[worker.kind.kv_metric] > 0
    worker.wait_idle()
    if worker.kind.name != "vllm":  # It counts only requests that came to an end.
        assert worker.aborted() == before + 1


def test_a_client_that_goes_away_while_its_kv_comes_leaves_no_block_held(pair: Pair) -> None:
    if pair.kind.name == "vllm":
        pytest.skip("the address in a ticket of vLLM is not the one bytes come from")
    text = prompt(13, 60)
    ticket = pair.prefill.prefill(text)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ticket |= {"remote_port": silent.getsockname()[1]}
        body = {"prompt": text, "max_tokens": 5, "kv_transfer_params": ticket}
        with send_raw(pair.decode.port, body):
            pull, _ = silent.accept()
            assert pair.decode.metrics()[pair.kind.kv_metric] > 0
        pair.decode.wait_idle()
        pull.close()


def test_sigterm_finishes_what_runs_refuses_what_comes_and_ends_with_0(
    start: Callable[..., Worker],
) -> None:
    worker = start("decode")
    found: list[Any] = []

    def run() -> None:
        found.append(worker.complete(prompt(14), 600, ignore_eos=True))

    client = threading.Thread(target=run)
    client.start()
    wait_for(lambda: worker.metrics()["vllm:num_requests_running"] > 0, "it runs", 20)
    worker.process.send_signal(signal.SIGTERM)
    if worker.kind.name != "vllm":
        wait_for(lambda: worker.call("GET", "/health").status == 503, "it drains")
        late = worker.post("/v1/completions", prompt="x")
        assert (late.status, late.json["error"]["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) > 0
    client.join(60)
    assert found, "the running request was answered"
    assert len(tokens(found[0])) == 600
    assert worker.process.wait(30) == 0


def test_a_lease_nobody_claims_ends_at_its_deadline(start: Callable[..., Worker]) -> None:
    worker = start("prefill", "--kv-lease", "0.3")
    if worker.kind.name == "vllm":
        pytest.skip("vLLM's lease time is set by its environment")
    worker.prefill(prompt(15, 100))
    assert worker.metrics()[worker.kind.kv_metric] > 0
    worker.wait_idle()


def test_a_prefill_request_leaves_its_first_token_to_be_thrown_away(pair: Pair) -> None:
    answer = pair.prefill.complete(prompt(16, 20), 1, kv_transfer_params=REMOTE_DECODE)
    assert len(tokens(answer)) == 1
    ticket = answer["kv_transfer_params"]
    assert json.loads(json.dumps(ticket)) == ticket
    assert ticket["remote_host"] == "127.0.0.1"
    pair.decode.complete(prompt(16, 20), 1, kv_transfer_params=ticket)
    pair.prefill.wait_idle()
