"""The small parts: reading requests, prefixes, loads, back-off, events, worker names."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import HistogramMetricFamily

from spinney.errors import BadInputError
from spinney.router import openai
from spinney.router.limits import Limits
from spinney.router.load import Faults, Ledger, RetryBudget
from spinney.router.metrics import FastHistogram
from spinney.router.picker import Load
from spinney.router.prefix_index import CHUNK_BYTES, CHUNK_TOKENS, PrefixIndex, chunk_hashes
from spinney.router.relay import IdleWatch, split_events
from spinney.router.stories import Stories, Story
from spinney.router.workers import Role, Stage, Worker, parse_worker
from spinney.sim.loop import SimulatedLoop

CHAT = openai.CHAT_COMPLETIONS


def chat(**more):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | more)


# Requests


@pytest.mark.parametrize(
    ("more", "splittable"),
    [
        ({}, True),
        ({"n": 1, "logprobs": True}, True),
        ({"n": 2}, False),
        ({"best_of": 2}, False),
        ({"echo": True}, False),
        ({"prompt_logprobs": 0}, False),
        ({"use_beam_search": True}, False),
    ],
)
def test_what_one_hand_over_cannot_carry_is_seen(more, splittable):
    assert openai.read_request(CHAT, chat(**more).encode()).splittable is splittable


def test_the_prefill_request_keeps_all_that_shapes_the_prompt():
    body = chat(tools=[{"type": "function"}], stream=True, stream_options={}, min_tokens=4, seed=1)

    sent = json.loads(openai.prefill_body(body.encode()))

    assert sent.pop("kv_transfer_params")["do_remote_decode"] is True
    assert sent == json.loads(chat(tools=[{"type": "function"}], seed=1)) | {
        "stream": False,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "min_tokens": 1,
    }


def test_a_handle_goes_on_byte_for_byte():
    raw = b'{"remote_block_ids": [[1,2]], "odd": 1e2}'
    answer = b'{"choices": [], "kv_transfer_params": ' + raw + b"}"

    handle, usage = openai.handle_of(answer)

    assert bytes(handle) == raw
    assert raw in openai.decode_body(chat().encode(), handle)
    assert usage is None
    assert openai.handle_of(b'{"kv_transfer_params": null}') == (None, None)
    assert openai.handle_of(b"{}") == (None, None)


@pytest.mark.parametrize(
    ("end", "want"),
    [
        (b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}}', (9, 4)),
        (b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":null},"x":{}}', (9, None)),
        (b'data: {"usage":{"prompt_tokens":9}}\n\ndata: [DONE]\n\n', (9, None)),
        (b'{"usage":{"prompt_tok', None),
        (b'{"usage":null}', None),
        (b"", None),
    ],
)
def test_token_counts_are_found_at_the_end_of_an_answer(end, want):
    usage = openai.usage_of(end)

    assert (usage and (usage.prompt_tokens, usage.cached_tokens)) == want


def test_token_ids_are_counted_and_text_is_estimated():
    def tokens(prompt):
        body = json.dumps({"model": "m", "prompt": prompt}).encode()
        return openai.read_request(openai.COMPLETIONS, body).prompt_tokens

    assert tokens(list(range(77))) == 77
    assert tokens("x" * 398) == 100


def test_errors_are_read_in_both_forms():
    nested = openai.read_error(b'{"error": {"message": "a", "code": 400, "type": "t"}}')
    flat = openai.read_error(b'{"object": "error", "message": "a", "code": 400, "type": "t"}')

    assert nested == flat == openai.WorkerError("a", "400", "t")
    assert openai.read_error(b"<html>") is None
    assert openai.read_error(b'{"id": "x"}') is None


# Prefixes


def test_equal_beginnings_have_equal_hashes_and_seeds_change_all():
    text = b"ab" * CHUNK_BYTES
    longer = chunk_hashes(text + b"c" * CHUNK_BYTES)

    assert chunk_hashes(text) == longer[:2]
    assert not set(chunk_hashes(text)) & set(chunk_hashes(text, b"other model"))
    assert not set(longer) & set(chunk_hashes(b"x" + text))
    assert chunk_hashes(b"short") == ()


def test_the_index_is_bounded_and_forgets_ends_before_beginnings():
    index = PrefixIndex(capacity=4)
    index.record("a", (1, 2, 3))
    index.record("a", (1, 9, 8))

    assert index.size() == 4
    assert index.cached_tokens((1, 9, 8)) == {"a": 3 * CHUNK_TOKENS}
    assert index.cached_tokens((1, 2, 3)) == {"a": 2 * CHUNK_TOKENS}
    assert index.cached_tokens((2,)) == {"a": CHUNK_TOKENS}
    index.forget("a")
    assert index.cached_tokens((1,)) == {}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 9), unique=True))))
def test_the_index_never_claims_what_was_not_recorded(records):
    index = PrefixIndex(capacity=5)
    recorded = {"a": set(), "b": set()}
    for name, hashes in records:
        index.record(name, tuple(hashes))
        recorded[name] |= set(hashes)
        for found, tokens in index.cached_tokens(tuple(hashes)).items():
            assert set(hashes[: tokens // CHUNK_TOKENS]) <= recorded[found]
    assert index.size() <= 10


# Loads, back-off, budget


def test_a_ledger_is_empty_when_all_work_has_ended():
    ledger = Ledger()
    worker = Worker("d", "http://d", Role.DECODE)

    with ledger.work(worker, Stage.DECODE, context_tokens=9) as work:
        assert ledger.loads()["d"] == Load(0, 0, 1, 9)
        work.prefilling(7)
        assert ledger.loads()["d"] == Load(1, 7, 1, 9)
        work.prefilled()
        assert ledger.loads()["d"] == Load(0, 0, 1, 9)
        with pytest.raises(ValueError, match="x"), ledger.work(worker, Stage.PREFILL):
            raise ValueError("x")

    assert ledger.loads() == {}


def test_avoidance_grows_with_failures_up_to_a_bound_and_ends_with_a_success():
    faults = Faults(Limits(avoid_first_s=1, avoid_most_s=3))

    assert faults.failed("w", 0.0) == 1
    assert faults.failed("w", 0.5) == 0.5, "the same outage"
    assert faults.avoided(0.9) == {"w"}
    assert faults.avoided(1.0) == frozenset()
    assert [faults.failed("w", at) for at in (10.0, 20.0)] == [2, 3]
    faults.succeeded("w")
    assert faults.failed("w", 30.0) == 1


def test_a_worker_that_answers_is_let_back_at_once_and_later_when_it_failed_again():
    faults = Faults(Limits(avoid_first_s=1, avoid_most_s=30, avoid_answering_most_s=2))
    waited = []
    now_s = 0.0
    for _ in range(5):
        faults.failed("w", now_s)
        failed_s = now_s
        while "w" in faults.avoided(now_s):
            faults.let_back("w", now_s)
            now_s += 0.25
        waited.append(round(now_s - failed_s - 0.25, 2))

    assert waited == [0, 1, 2, 2, 2]
    assert faults.failed("w", now_s) == 30, "each was a failure of its own"


def test_who_was_asked_before_an_outage_was_known_is_told_from_who_came_later():
    faults = Faults(Limits())

    assert not faults.was_known("w", 0.0)
    faults.failed("w", 5.0)
    assert not faults.was_known("w", 4.0)
    assert not faults.was_known("w", 5.0)
    assert faults.was_known("w", 6.0)


def test_the_retry_budget_is_earned_by_requests():
    budget = RetryBudget(Limits(retry_ratio=0.5, retry_reserve=1))

    assert [budget.try_spend(), budget.try_spend()] == [True, False]
    budget.earn()
    assert budget.try_spend() is False
    budget.earn()
    assert budget.try_spend() is True


# Streams


@pytest.mark.parametrize(
    ("data", "whole", "rest"),
    [
        (b"data: a\n\n", b"data: a\n\n", b""),
        (b"data: a\n\ndata: b", b"data: a\n\n", b"data: b"),
        (b"data: a", b"", b"data: a"),
        (b"data: a\r\n\r\ndata", b"data: a\r\n\r\n", b"data"),
        (b"data: a\n\ndata: b\r\n\r\nd", b"data: a\n\ndata: b\r\n\r\n", b"d"),
        (b"\n\nd", b"\n\n", b"d"),
        (b"", b"", b""),
    ],
)
def test_events_are_split_at_their_ends(data, whole, rest):
    assert split_events(data) == (whole, rest)


@given(st.lists(st.text("ab\n", max_size=6)))
def test_splitting_loses_nothing(parts):
    held, sent = b"", b""
    for part in parts:
        whole, held = split_events(held + part.encode())
        sent += whole
        assert not whole or whole.endswith(b"\n\n")
    assert sent + held == "".join(parts).encode()


def test_a_stream_that_moves_outlives_its_idle_limit_and_one_that_stands_does_not():
    async def main():
        async with IdleWatch(0.05) as watch:
            for _ in range(8):
                await asyncio.sleep(0.02)
                watch.moved()
        with pytest.raises(TimeoutError):
            async with IdleWatch(0.02):
                await asyncio.sleep(5)

    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(None)) as runner:
        runner.run(main())


def test_an_outer_cancel_is_no_idle_timeout():
    async def main():
        async def stand():
            async with IdleWatch(5):
                await asyncio.sleep(5)

        task = asyncio.create_task(stand())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_histogram_adds_up():
    histogram = FastHistogram((1, 2))
    histogram.observe(0.5)
    histogram.observe(2, times=3)
    histogram.observe(9)

    family = HistogramMetricFamily("h", "about")
    histogram.add_to(family, [])
    samples = {s.name + str(s.labels): s.value for s in family.samples}

    assert samples == {
        "h_bucket{'le': '1.0'}": 1,
        "h_bucket{'le': '2.0'}": 4,
        "h_bucket{'le': '+Inf'}": 5,
        "h_count{}": 5,
        "h_sum{}": 15.5,
    }


def test_stories_are_bounded_in_number_and_length():
    stories = Stories(Limits(max_stories=2, max_steps_per_story=1))
    for name in "abc":
        stories.begin(Story(name, "/", "m", 1, stream=False, came_at=0.0))
    story = stories.get("c")
    stories.note(story, 1.0, "chosen", worker="w")
    stories.note(story, 2.0, "failed")

    assert stories.get("a") is None
    assert [line["id"] for line in stories.recent()] == ["c", "b"]
    assert (len(story.steps), story.steps_dropped) == (1, 1)
    assert json.loads(story.encode())["steps"][0]["fields"] == {"worker": "w"}


# Worker flags


def test_a_worker_is_read_from_its_flag():
    assert parse_worker("prefill=http://h:1/", ["m"]) == Worker(
        "h:1", "http://h:1", Role.PREFILL, frozenset({"m"})
    )
    assert parse_worker("both:w=https://h/base").name == "w"


@pytest.mark.parametrize("text", ["http://h:1", "other=http://h:1", "decode=h:1", "decode="])
def test_a_worker_flag_that_is_none_says_how_to_write_it(text):
    with pytest.raises(BadInputError, match="http://"):
        parse_worker(text)
