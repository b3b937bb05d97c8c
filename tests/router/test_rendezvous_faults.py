"""Workers that are called at the same time, and what of it fails: nobody waits for nothing."""

from __future__ import annotations

import asyncio

import pytest
from tests.router.fake_workers import PATIENT, fleet, in_turn, until, words

PROMPT = {"prompt": "Once upon a time", "max_tokens": 5}
STREAM = PROMPT | {"stream": True}
TEXT = "".join(words(PROMPT))
AT_ONCE_S = 5.0
"""In which a decode worker that nobody comes to meet is called off, its deadlines being longer."""


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_both_workers_are_called_and_find_each_other(stream):
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            said = await world.ask(PROMPT | {"stream": stream}, headers={"x-request-id": "r"})
            text = said.text if stream else said.json["choices"][0]["text"]
            assert (said.status, text, said.mode) == (200, TEXT, "disaggregated")
            (prefill,), (decode,) = world.prefill[0].seen, world.decode[0].seen
            assert prefill.body["bootstrap_room"] == decode.body["bootstrap_room"]
            assert "kv_transfer_params" not in decode.body
            assert world.fabric.wrong == []
            assert await world.metric("handovers_total", outcome="offered") == 1
            assert world.idle()

    asyncio.run(main())


@pytest.mark.parametrize("fault", [500, 503, "die"])
def test_when_the_prefill_fails_another_pair_meets_in_another_room(fault):
    async def main():
        async with fleet("p p d", meets=True, **PATIENT) as world:
            in_turn(world.prefill, fault)
            hold = asyncio.Event()
            for worker in world.prefill:
                worker.hold = hold
            asking = asyncio.ensure_future(world.ask(STREAM))
            await until(lambda: bool(world.decode[0].seen), "the decode worker waits")
            hold.set()
            async with asyncio.timeout(AT_ONCE_S):
                said = await asking
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            asked = [len(worker.seen) for worker in world.prefill]
            assert asked == [1, 1], "the one that failed is not asked again"
            first, second = world.decode[0].seen
            assert first.aborted
            assert first.body["bootstrap_room"] != second.body["bootstrap_room"]
            assert await world.metric("handovers_total", outcome="failed") == 0
            assert world.idle()

    asyncio.run(main())


def test_where_a_kept_connection_ended_the_same_workers_meet_in_another_room():
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            await world.ask(STREAM)
            world.prefill[0].fault, world.prefill[0].faults_left = "close-idle", 1
            async with asyncio.timeout(AT_ONCE_S):
                said = await world.ask(STREAM)
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            rooms = [seen.body["bootstrap_room"] for seen in world.prefill[0].seen]
            assert len(rooms) == len(set(rooms)) == 3
            assert world.idle()

    asyncio.run(main())


def test_a_stream_that_goes_on_does_not_wait_for_a_prefill_that_failed():
    async def main():
        async with fleet("p p d d d", meets=True, **PATIENT) as world:
            in_turn(world.decode, "die-mid-stream")
            in_turn(world.prefill, "", 500)
            async with asyncio.timeout(AT_ONCE_S):
                said = await world.ask(STREAM, headers={"x-request-id": "r"})
            assert said.text == TEXT
            story = (await world.get("/debug/requests/r")).json
            failed = [each["fields"] for each in story["steps"] if each["what"] == "worker failed"]
            assert [each["stage"] for each in failed] == ["decode", "prefill"]
            assert world.fabric.wrong == []
            await until(world.idle, "the ledger is empty")

    asyncio.run(main())


def test_a_request_that_the_prefill_worker_refuses_is_the_decode_workers_to_answer():
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            world.prefill[0].fault, world.decode[0].fault = 422, 400
            hold = world.decode[0].hold = asyncio.Event()
            asking = asyncio.ensure_future(world.ask(STREAM, headers={"x-request-id": "r"}))
            await until(lambda: any(seen.done for seen in world.prefill[0].seen), "a refusal")
            await until(lambda: "p0" not in world.router.ledger.loads(), "it is heard")
            hold.set()
            assert (await asking).status == 400
            assert len(world.decode[0].seen) == 1
            story = (await world.get("/debug/requests/r")).json
            assert "prefill refused" in [step["what"] for step in story["steps"]]
            assert world.idle()

    asyncio.run(main())


def test_when_the_decode_worker_fails_the_prefill_is_called_off_and_another_pair_meets():
    async def main():
        async with fleet("p p d d", meets=True, **PATIENT) as world:
            hold = asyncio.Event()
            for worker in world.prefill:
                worker.hold = hold
            in_turn(world.decode, 500)
            asking = asyncio.ensure_future(world.ask(STREAM))
            await until(lambda: any(s.aborted for w in world.prefill for s in w.seen))
            hold.set()
            said = await asking
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            assert world.fabric.wrong == []
            assert await world.metric("handovers_total", outcome="failed") == 1
            assert [len(worker.seen) for worker in world.workers.values()] == [1, 1, 1, 1]
            assert world.idle()

    asyncio.run(main())


def test_a_prefill_worker_that_dies_after_its_hand_over_costs_nothing():
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            world.prefill[0].late = asyncio.Event()
            hold = world.decode[0].hold_mid_stream = asyncio.Event()
            async with world.post(STREAM, headers={"x-request-id": "r"}) as response:
                first = await response.content.readany()
                world.prefill[0].server.cut()
                await until(lambda: not world.router.ledger.loads().get("p0"), "p0 is let go")
                hold.set()
                text = (first + await response.content.read()).decode()
            assert text.endswith("data: [DONE]\n\n")
            assert "error" not in text
            assert len(world.decode[0].seen) == 1
            assert (await world.get("/debug/requests/r")).json["outcome"] == "ok"

    asyncio.run(main())


def test_a_prefill_worker_may_answer_a_little_later_than_the_decode_worker():
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            late = world.prefill[0].late = asyncio.Event()
            asking = asyncio.ensure_future(world.ask(STREAM, headers={"x-request-id": "r"}))
            await until(lambda: any(seen.done for seen in world.decode[0].seen), "decoded")
            await asyncio.sleep(0.05)
            late.set()
            assert (await asking).text == TEXT
            await until(lambda: not world.router.ledger.loads(), "all is over")
            story = (await world.get("/debug/requests/r")).json
            assert "prefilled" in [step["what"] for step in story["steps"]]

    asyncio.run(main())


def test_a_prefill_worker_that_does_not_answer_is_let_go_when_the_answer_is_complete():
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            world.prefill[0].late = asyncio.Event()
            async with asyncio.timeout(AT_ONCE_S):
                said = await world.ask(STREAM, headers={"x-request-id": "r"})
                assert said.text == TEXT
                await until(world.idle, "the ledger is empty")
                await until(lambda: world.prefill[0].seen[0].aborted, "it is called off")
            assert (await world.get("/debug/requests/r")).json["outcome"] == "ok"

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_client_that_leaves_calls_both_off(stage):
    async def main():
        async with fleet("p d", meets=True, **PATIENT) as world:
            hold = asyncio.Event()
            if stage == "prefill":
                world.prefill[0].hold = hold
            else:
                world.decode[0].hold_mid_stream = hold
            asking = asyncio.ensure_future(world.ask(STREAM))
            await until(lambda: bool(world.decode[0].seen and world.prefill[0].seen))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: world.decode[0].seen[0].aborted, "the decode is called off")
            if stage == "prefill":
                await until(lambda: world.prefill[0].seen[0].aborted, "and the prefill")
            await until(world.idle, "the ledger is empty")

    asyncio.run(main())
