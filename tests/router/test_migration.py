"""Streams whose worker fails in the middle: another one goes on, and the client sees one stream."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.fake_workers import fleet, until, words

from spinney.router.migration import FOLD_BYTES, DivergedError, Journal, payloads
from spinney.router.picker import Policy

PATHS = ["/v1/completions", "/v1/chat/completions"]
ASKED = {"max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}}
BODIES = {
    PATHS[0]: ASKED | {"prompt": "Once upon a time"},
    PATHS[1]: ASKED | {"messages": [{"role": "user", "content": "Once upon a time"}]},
}
MIDDLE = ["die-mid-stream", "silent-mid-stream", "error-mid-stream", "no-done"]
KINDS = {
    "resumes": {},
    "tells ids": {"resumes": False},
    "plain": {"resumes": False, "tells_ids": False},
}


async def served(world, path, **more):
    said = await world.ask(BODIES[path] | more, path, headers={"x-request-id": "r"})
    return said, (await world.get("/debug/requests/r")).json


def told(said):
    """Return the events of *said* but the report of the hand-over, which a migration lacks."""
    return [each for each in said.events if "kv_transfer_params" not in each]


def set_all(workers, **fields):
    for worker in workers:
        for name, value in fields.items():
            setattr(worker, name, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", MIDDLE)
def test_a_stream_that_breaks_goes_on_at_another_worker(kind, path, fault):
    async def main():
        async with fleet("p d d", idle_stream_deadline_s=0.1, prefill_deadline_s=5.0) as world:
            set_all(world.workers.values(), **KINDS[kind])
            whole, _ = await served(world, path)
            left = {"faults": 1}

            def take():
                left["faults"] -= 1
                return fault if left["faults"] >= 0 else ""

            for worker in world.decode:
                worker._take_fault = take
            said, story = await served(world, path)

            assert left["faults"] <= 0, "the fault was met"
            assert told(said) == told(whole)
            assert said.text == "".join(words(BODIES[path]))
            assert "token_ids" not in said.body.decode()
            assert story["outcome"] == "ok"
            ids = {event["id"] for event in said.events if isinstance(event, dict)} - {"x"}
            assert ids == {"cmpl-r"}
            if fault != "no-done":
                outcome = "resumed" if kind == "resumes" else "replayed"
                assert await world.metric("migrations_total", outcome=outcome) == 1
                (last,) = [seen for w in world.decode for seen in w.seen if seen.id == "r.2"]
                resumed = last.body.get("resume_token_ids")
                assert resumed == (None if kind == "plain" else [100, 101])
                assert "kv_transfer_params" in last.body
                (again,) = [seen for seen in world.prefill[0].seen if seen.id == "r.2"]
                assert again.body.get("resume_token_ids") == resumed
                assert again.body["max_tokens"] == 1
                (step,) = [each for each in story["steps"] if each["what"] == "migrated"]
                by = step["fields"]
                assert (by["mode"], by["prefill_worker"]) == ("disaggregated", "p0")
                assert not world.fabric.blocks
                assert not world.fabric.wrong
            assert world.idle()

    asyncio.run(main())


def test_a_worker_that_refuses_to_fetch_what_was_sent_is_not_asked_for_that_again():
    async def main():
        async with fleet("p p d d d d d") as world:
            broken, refused = [], []

            def fault_of(worker):
                def take():
                    body = worker.seen[-1].body
                    if "resume_token_ids" in body:
                        if "kv_transfer_params" not in body:
                            return ""
                        refused.append(worker.name)
                        return 400
                    broken.append(worker.name)
                    return "die-mid-stream"

                return take

            for worker in world.decode:
                worker._take_fault = fault_of(worker)
            said, story = await served(world, PATHS[0])
            assert said.text == "".join(words(BODIES[PATHS[0]]))
            assert (len(broken), len(refused)) == (1, 1)
            (step,) = [each for each in story["steps"] if each["what"] == "migrated"]
            assert step["fields"]["mode"] == "local-prefill"
            assert story["migrations"] == 2
            assert world.idle()

    asyncio.run(main())


def test_whether_a_migrated_prompt_is_handed_over_is_decided_by_what_was_sent_too():
    async def main():
        prompt = BODIES[PATHS[0]] | {"prompt": list(range(10))}
        for below, mode in ((12, "disaggregated"), (13, "local-prefill")):
            policy = Policy(local_prefill_below_tokens=below)
            async with fleet("p d d d d", policy=policy) as world:
                left = {"faults": 1}

                def take(left=left):
                    left["faults"] -= 1
                    return "die-mid-stream" if left["faults"] >= 0 else ""

                for worker in world.decode:
                    worker._take_fault = take
                said = await world.ask(prompt, headers={"x-request-id": "r"})
                assert said.mode == "local-prefill"
                story = (await world.get("/debug/requests/r")).json
                (step,) = [each for each in story["steps"] if each["what"] == "migrated"]
                assert step["fields"]["mode"] == mode

    asyncio.run(main())


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_it_breaks_nothing_is_missing_and_nothing_comes_twice(kind, at):
    async def main():
        async with fleet("d d d d") as world:
            set_all(world.decode, **KINDS[kind], fault="die-mid-stream", fault_at=at)
            set_all(world.decode, faults_left=1)
            world.decode[0].faults_left = 0
            for _ in range(12):
                said, _ = await served(world, PATHS[0])
                assert said.text == "".join(words(BODIES[PATHS[0]]))
                assert [e["choices"][0]["finish_reason"] for e in said.events[:-2]] == [
                    *[None] * 5,
                    "length",
                ]
                assert said.events[-2]["usage"]["completion_tokens"] == 6
            assert sum(worker.faults_left for worker in world.decode) == 0

    asyncio.run(main())


def test_one_that_lacks_only_its_end_is_ended_here():
    async def main():
        async with fleet("d d") as world:
            set_all(world.decode, fault="die-before-done")
            said, story = await served(world, PATHS[0], stream_options=None)
            assert said.text == "".join(words(BODIES[PATHS[0]]))
            assert said.events[-1] == "[DONE]"
            assert story["outcome"] == "ok"
            assert sum(len(worker.completions) for worker in world.decode) == 1
            with_usage, story = await served(world, PATHS[0])
            assert with_usage.events[-1]["error"]["code"] == "worker_failed"

    asyncio.run(main())


def test_the_token_counts_that_are_missing_come_from_another_worker():
    async def main():
        async with fleet("d d") as world:
            set_all(world.decode, fault="die-before-done", faults_left=1)
            world.decode[1].faults_left = 0
            for _ in range(12):
                said, _ = await served(world, PATHS[0])
                assert said.events[-2]["usage"]["completion_tokens"] == 6
                assert said.text == "".join(words(BODIES[PATHS[0]]))
            assert world.decode[0].faults_left == 0
            again = [each.body for each in world.decode[1].seen if each.id == "r.2"]
            assert ["resume_token_ids" in body for body in again] == [False], "it was complete"

    asyncio.run(main())


@pytest.mark.parametrize("instead", [["other ", "words "], words(BODIES[PATHS[0]])[:1]])
def test_another_answer_than_the_one_begun_ends_the_stream(instead):
    async def main():
        async with fleet("d d") as world:
            set_all(world.decode, resumes=False)
            said = None
            for _ in range(12):
                set_all(world.decode, fault="", said_instead=None)
                world.decode[0].fault, world.decode[0].faults_left = "die-mid-stream", 1
                world.decode[1].said_instead = instead
                said, story = await served(world, PATHS[0])
                if said.headers["x-spinney-decode-worker"] == "d0":
                    break
            assert said.text == "".join(words(BODIES[PATHS[0]])[:2])
            assert said.events[-1]["error"]["code"] == "worker_failed"
            assert story["outcome"] == "broken-off"
            assert story["output_tokens"] == 2, "what the client has"
            assert await world.metric("migrations_total", outcome="failed") == 1

    asyncio.run(main())


def test_migrations_are_bounded():
    async def main():
        async with fleet("d d d d d d", max_migrations=3) as world:
            set_all(world.decode, fault="die-mid-stream", resumes=False)
            said, _ = await served(world, PATHS[0])
            assert said.events[-1]["error"]["code"] == "worker_failed"
            assert said.text == "".join(words(BODIES[PATHS[0]])[:2])
            assert sum(len(worker.completions) for worker in world.decode) == 1 + 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "more", [{"logprobs": 2}, {"n": 2}, {"logprobs": 0}, {"prompt": ["a", "b"]}]
)
def test_what_cannot_be_gone_on_with_exactly_ends_with_an_error_event(more):
    async def main():
        async with fleet("d d") as world:
            set_all(world.decode, fault="die-mid-stream")
            said, _ = await served(world, PATHS[0], **more)
            assert said.events[-1]["error"]["code"] == "worker_failed"
            (seen,) = [seen for worker in world.decode for seen in worker.completions]
            assert "return_token_ids" not in seen.body

    asyncio.run(main())


def test_clients_that_ask_for_token_ids_get_them_of_both_workers():
    async def main():
        async with fleet("d d") as world:
            set_all(world.decode, fault="die-mid-stream", faults_left=1)
            world.decode[1].faults_left = 0
            for _ in range(12):
                said, _ = await served(world, PATHS[0], return_token_ids=True)
                ids = [e["choices"][0]["token_ids"] for e in said.events[:-2]]
                assert ids == [[100 + index] for index in range(6)]
            assert world.decode[0].faults_left == 0

    asyncio.run(main())


def test_a_client_that_leaves_during_a_migration_ends_all_work():
    async def main():
        async with fleet("d d", idle_stream_deadline_s=60, first_byte_deadline_s=60) as world:
            set_all(world.decode, fault="die-mid-stream", faults_left=1)
            hold = asyncio.Event()
            asking = asyncio.ensure_future(served(world, PATHS[0]))
            await until(lambda: any(w.seen for w in world.decode), "the stream has begun")
            for worker in world.decode:
                worker.hold = None if worker.seen else hold
            await until(lambda: all(w.seen for w in world.decode), "the other one is asked")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(world.idle, "the ledger is empty")
            await until(lambda: any(s.aborted for w in world.decode for s in w.seen), "aborted")

    asyncio.run(main())


# The journal


def chunk(text, ids=None, name="a", finish=None):
    choice = {"index": 0, "text": text, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    data = {"id": name, "object": "text_completion", "created": 1, "choices": [choice]}
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def text_of(events):
    return "".join(
        c["text"] for p in payloads(events) for c in json.loads(p)["choices"] if p != b"[DONE]"
    )


TOKENS = st.lists(st.text(max_size=4), min_size=1, max_size=12)


@given(TOKENS, st.data())
def test_however_two_workers_cut_the_same_answer_the_client_gets_it_once(tokens, data):
    whole = "".join(tokens)
    sent = data.draw(st.integers(0, len(tokens)))
    has_ids = data.draw(st.booleans())
    ids = (lambda start, count: list(range(start, start + count))) if has_ids else None
    journal = Journal(strip=data.draw(st.booleans()))
    events = [chunk(t, ids and ids(i, 1)) for i, t in enumerate(tokens[:sent])]
    journal.begin(events[0] if events else b"")
    got = b"".join(journal.passed(event) for event in events)
    again, at = [], 0
    while at < len(tokens):
        size = data.draw(st.integers(1, len(tokens) - at))
        end = "length" if at + size == len(tokens) else None
        text = "".join(tokens[at : at + size])
        again.append(chunk(text, ids and ids(at, size), "b", end))
        at += size
    journal.read()
    journal.go_on(again[0], resumed=False)
    for event in again:
        got += journal.passed(event)

    assert text_of(got) == whole
    assert len({json.loads(p)["id"] for p in payloads(got)}) == 1
    journal.read()
    assert journal.text == whole
    assert journal.finished
    if has_ids:
        assert journal.tokens.tolist() == list(range(len(tokens)))


def test_a_long_stream_keeps_its_tokens_and_not_its_events():
    journal = Journal(strip=True)
    event = chunk("x" * 100, [7])
    journal.begin(event)
    count = 20 * FOLD_BYTES // len(event)
    for _ in range(count):
        assert b"token_ids" not in journal.passed(event)
        assert journal._raw_bytes <= FOLD_BYTES
    journal.read()
    assert len(journal.tokens) == count


def test_text_that_looks_like_token_ids_is_left_alone():
    journal = Journal(strip=True)
    text = 'x,"token_ids":[1,2],"prompt_token_ids":[3]'
    event = chunk(text, [1])
    journal.begin(event)

    assert text_of(journal.passed(event)) == text


def test_an_answer_with_tool_calls_is_not_compared():
    journal = Journal(strip=True)
    called = b'data: {"choices":[{"delta":{"tool_calls":[{"id":"1"}]}}]}\n\n'
    journal.begin(called)
    journal.passed(called)
    journal.read()

    with pytest.raises(DivergedError):
        journal.go_on(called, resumed=False)
