"""Workers that are called at the same time, and what of it fails: nobody waits for nothing."""

from __future__ import annotations

import asyncio

import pytest
from tests.router.fake_workers import fleet, until, words

PROMPT = {"prompt": "Once upon a time", "max_tokens": 5}
STREAM = PROMPT | {"stream": True}
TEXT = "".join(words(PROMPT))
PATIENT = {"first_byte_deadline_s": 60.0, "response_deadline_s": 60.0, "prefill_deadline_s": 60.0}
"""With these, a decode worker that nobody comes to meet would be waited for too long."""
AT_ONCE_S = 5.0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_both_workers_are_called_and_find_each_other(stream):
    async def main():
        async with fleet("p d", meets=True) as world:
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
            left = {"faults": 1}

            def take():
                left["faults"] -= 1
                return fault if left["faults"] >= 0 else ""

            for worker in world.prefill:
                worker._take_fault = take
            async with asyncio.timeout(AT_ONCE_S):
                said = await world.ask(STREAM)
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            asked = [len(worker.seen) for worker in world.prefill]
            assert asked == [1, 1], "the one that failed is not asked again"
            first, second = world.decode[0].seen
            assert first.aborted
            assert first.body["bootstrap_room"] != second.body["bootstrap_room"]
            assert await world.metric("handovers_total", outcome="failed") == 0
            assert world.idle()

    asyncio.run(main())


def test_a_stream_that_goes_on_does_not_wait_for_a_prefill_that_failed():
    async def main():
        async with fleet("p p d d d", meets=True, **PATIENT) as world:
            left = {"streams": 1, "prefills": 1}

            def breaks():
                left["streams"] -= 1
                return "die-mid-stream" if left["streams"] >= 0 else ""

            def fails():
                if left["streams"] > 0:
                    return ""
                left["prefills"] -= 1
                return 500 if left["prefills"] >= 0 else ""

            for worker in world.decode:
                worker._take_fault = breaks
            async with asyncio.timeout(AT_ONCE_S):
                asking = asyncio.ensure_future(world.ask(STREAM, headers={"x-request-id": "r"}))
                await until(lambda: any(worker.seen for worker in world.prefill), "the first")
                for worker in world.prefill:
                    worker._take_fault = fails
                said = await asking
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
            world.prefill[0].fault = world.decode[0].fault = 422
            said = await world.ask(STREAM, headers={"x-request-id": "r"})
            assert (said.status, said.json["error"]["message"]) == (422, "told to fail")
            assert len(world.decode[0].seen) == 1
            assert world.idle()

    asyncio.run(main())


def test_when_the_decode_worker_fails_the_prefill_is_called_off_and_both_go_another_way():
    async def main():
        async with fleet("p p d d", meets=True, **PATIENT) as world:
            hold = asyncio.Event()
            for worker in world.prefill:
                worker.hold = hold
            for worker in world.decode:
                worker.fault, worker.faults_left = 500, 1
            world.decode[1].faults_left = 0
            asking = asyncio.ensure_future(world.ask(STREAM))
            await until(lambda: any(w.seen for w in world.decode), "a decode worker is asked")
            if world.decode[0].seen:
                await until(lambda: any(s.aborted for w in world.prefill for s in w.seen))
            hold.set()
            said = await asking
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            assert world.fabric.wrong == []
            assert world.idle()

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_client_that_leaves_calls_both_off(stage):
    async def main():
        async with fleet("p d", meets=True, idle_stream_deadline_s=60.0, **PATIENT) as world:
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
