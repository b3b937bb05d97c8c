"""Requests over real sockets: hand-over, failures at every stage, disconnects, draining."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from tests.router.fake_workers import Fleet, fleet, lower, until, words

from spinney.router.limits import Limits
from spinney.router.picker import Policy

PROMPT = {"prompt": "Once upon a time", "max_tokens": 5}
STREAM = PROMPT | {"stream": True}
TEXT = "".join(words(PROMPT))


def test_a_streamed_request_is_prefilled_by_one_worker_and_decoded_by_another():
    async def main():
        async with fleet() as world:
            said = await world.ask(STREAM, headers={"x-request-id": "abc"})
            return world, said

    world, said = asyncio.run(main())

    assert said.text == TEXT
    assert said.events[-1] == "[DONE]"
    prefill = world.workers[said.headers["x-spinney-prefill-worker"]]
    decode = world.workers[said.headers["x-spinney-decode-worker"]]
    assert said.mode == "disaggregated"
    assert said.headers["x-request-id"] == said.headers["x-spinney-request-id"] == "abc"
    assert float(said.headers["x-spinney-prefill-ms"]) > 0
    (first,) = prefill.seen
    assert first.body["stream"] is False
    assert first.body["max_tokens"] == first.body["max_completion_tokens"] == 1
    assert first.body["kv_transfer_params"]["do_remote_decode"] is True
    (second,) = decode.seen
    added = {"kv_transfer_params", "return_token_ids", "return_prompt_token_ids"}
    added.add("stream_options")
    assert {k: v for k, v in second.body.items() if k not in added} == STREAM | {"model": "m"}
    assert first.id == second.id == "abc"
    assert world.fabric.fetched == [f"{prefill.name}/1"]
    assert world.fabric.wrong == []
    assert world.idle()


def test_a_whole_answer_passes_through_untouched():
    async def main():
        async with fleet() as world:
            return await world.ask(PROMPT | {"seed": 3, "logprobs": 2, "stop": ["x"]})

    said = asyncio.run(main())

    assert said.status == 200
    assert said.json["choices"][0]["text"] == TEXT
    assert said.json["usage"]["completion_tokens"] == 5
    assert said.mode == "disaggregated"


def test_requests_without_an_id_get_one_and_other_headers_go_on():
    async def main():
        async with fleet("b") as world:
            said = await world.ask(PROMPT, headers={"authorization": "Bearer k", "x-tenant": "t"})
            return world.workers["b0"].seen[0], said

    seen, said = asyncio.run(main())

    assert len(said.headers["x-request-id"]) == 36
    assert seen.id == said.headers["x-request-id"]
    assert seen.headers["authorization"] == "Bearer k"
    assert seen.headers["x-tenant"] == "t"


@pytest.mark.parametrize(
    ("roles", "more", "mode"),
    [
        pytest.param("p d", {}, "disaggregated", id="prefill and decode"),
        pytest.param("d", {}, "local-prefill", id="no prefill worker"),
        pytest.param("b", {}, "aggregated", id="a worker for both"),
        pytest.param("p d", {"n": 2}, "local-prefill", id="two sequences"),
        pytest.param("p d", {"echo": True}, "local-prefill", id="echo of the prompt"),
        pytest.param("p d", {"prompt": ["a", "b"]}, "local-prefill", id="two prompts"),
        pytest.param("p d", {"prompt": [1, 2, 3]}, "disaggregated", id="token ids"),
    ],
)
def test_the_mode_follows_from_the_workers_and_the_request(roles, more, mode):
    async def main():
        async with fleet(roles) as world:
            return await world.ask(PROMPT | more)

    said = asyncio.run(main())

    assert (said.status, said.mode) == (200, mode)


def test_short_prompts_go_straight_to_a_decode_worker_when_the_threshold_says_so():
    async def main():
        async with fleet(policy=Policy(local_prefill_below_tokens=50)) as world:
            short = await world.ask(PROMPT)
            long = await world.ask(PROMPT | {"prompt": "word " * 100})
            return short.mode, long.mode

    assert asyncio.run(main()) == ("local-prefill", "disaggregated")


# Failures of prefill workers

PREFILL_FAULTS = ["die", 500, 503, 429, "bad-json"]


@pytest.mark.parametrize("fault", PREFILL_FAULTS)
def test_a_failing_prefill_worker_is_replaced_by_another(fault):
    async def main():
        async with fleet("p p d") as world:
            for worker in world.prefill:
                worker.fault, worker.faults_left = fault, 0
            world.prefill[0].faults_left = world.prefill[1].faults_left = 0
            first = await world.ask(STREAM)
            chosen = world.workers[first.headers["x-spinney-prefill-worker"]]
            chosen.faults_left = 1
            # The prompt's beginning is too short to remember, so ties decide; ask until it fails.
            for _ in range(20):
                said = await world.ask(STREAM)
                assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
                if not chosen.faults_left:
                    break
            assert chosen.faults_left == 0
            assert said.headers["x-spinney-prefill-worker"] != chosen.name
            assert world.idle()

    asyncio.run(main())


@pytest.mark.parametrize("fault", [*PREFILL_FAULTS, 400, "no-handle"])
def test_without_a_working_prefill_worker_the_decode_worker_prefills(fault):
    async def main():
        async with fleet("p p d") as world:
            for worker in world.prefill:
                worker.fault = fault
            said = await world.ask(STREAM)
            assert (said.status, said.text, said.mode) == (200, TEXT, "local-prefill")
            assert "x-spinney-prefill-worker" not in said.headers
            assert "kv_transfer_params" not in world.workers["d0"].seen[0].body
            reason = {"reason": "prefill-failed"}
            assert await world.metric("local_prefills_total", **reason) == 1

    asyncio.run(main())


def test_prefill_workers_that_refuse_connections_are_avoided_for_a_while():
    async def main():
        async with fleet("p d") as world:
            await world.workers["p0"].server.stop()
            modes = [(await world.ask(STREAM)).mode for _ in range(3)]
            assert modes == ["local-prefill"] * 3
            retries = await world.metric("picks_total", stage="prefill", reason="only-one")
            assert retries == 1
            workers = (await world.get("/debug/workers")).json
            assert {w["worker"]["name"]: w["avoided"] for w in workers} == {
                "d0": False,
                "p0": True,
            }
            await world.workers["p0"].server.start()

    asyncio.run(main())


def test_an_avoided_worker_gets_requests_again_after_its_back_off():
    async def main():
        async with fleet("p d", avoid_first_s=0.05) as world:
            world.prefill[0].fault, world.prefill[0].faults_left = 503, 1
            assert (await world.ask(STREAM)).mode == "local-prefill"
            async with asyncio.timeout(5):
                modes = []
                while "disaggregated" not in modes:
                    modes.append((await world.ask(STREAM)).mode)

    asyncio.run(main())


def test_a_prefill_that_takes_too_long_is_given_up_and_aborted():
    async def main():
        async with fleet("p d", prefill_deadline_s=0.05) as world:
            world.prefill[0].hold = asyncio.Event()
            said = await world.ask(STREAM)
            assert (said.status, said.text, said.mode) == (200, TEXT, "local-prefill")
            await until(lambda: world.prefill[0].seen[0].aborted, "the prefill is aborted")

    asyncio.run(main())


# Failures of decode workers

EARLY_FAULTS = ["die", "die-after-headers", "error-event", 500, 503, "kv-lost"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", EARLY_FAULTS)
def test_a_decode_worker_failing_before_the_first_byte_costs_a_new_prefill(fault, stream):
    if not stream and fault in ("die-after-headers", "error-event"):
        pytest.skip("only streams have it")

    async def main():
        async with fleet("p p d d") as world:
            for worker in world.decode:
                worker.fault, worker.faults_left = fault, 1
            world.decode[1].faults_left = 0
            for _ in range(20):
                before = len(world.fabric.fetched)
                said = await world.ask(PROMPT | {"stream": stream})
                assert said.status == 200
                text = said.text if stream else said.json["choices"][0]["text"]
                assert (text, said.mode) == (TEXT, "disaggregated")
                if not world.decode[0].faults_left:
                    break
            assert world.decode[0].faults_left == 0
            if fault != "kv-lost":
                assert said.headers["x-spinney-decode-worker"] == "d1"
            assert world.fabric.wrong == [], "no handle is used twice"
            handles = sum(worker.handles for worker in world.prefill)
            assert handles == before + 2, "the second attempt had a prefill of its own"
            ids = [seen.id for worker in world.workers.values() for seen in worker.seen]
            assert any(each.endswith(".2") for each in ids)
            assert world.idle()

    asyncio.run(main())


def test_no_request_goes_twice_to_a_decode_worker_that_failed_it_while_there_is_another():
    async def main():
        async with fleet("d d") as world:
            world.workers["d0"].fault = 500
            for number in range(16):
                said = await world.ask(STREAM, headers={"x-request-id": f"r{number}"})
                assert (said.status, said.text) == (200, TEXT)
            requests = [seen.id.split(".")[0] for seen in world.workers["d0"].seen]
            assert len(requests) == len(set(requests)) > 2

    asyncio.run(main())


def test_lost_blocks_are_the_prefill_workers_fault():
    async def main():
        async with fleet("p p d") as world:
            world.decode[0].fault, world.decode[0].faults_left = "kv-lost", 1
            said = await world.ask(STREAM)
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            assert [len(worker.seen) for worker in world.prefill] == [1, 1]
            workers = (await world.get("/debug/workers")).json
            avoided = [each["worker"]["name"] for each in workers if each["avoided"]]
            served = said.headers["x-spinney-prefill-worker"]
            assert avoided == [{"p0": "p1", "p1": "p0"}[served]]

    asyncio.run(main())


def test_an_idle_connection_that_the_worker_closes_is_no_failure():
    async def main():
        async with fleet("d") as world:
            await world.ask(STREAM)
            world.decode[0].fault, world.decode[0].faults_left = "close-idle", 1
            said = await world.ask(STREAM, headers={"x-request-id": "again"})
            assert (said.status, said.text) == (200, TEXT)
            story = (await world.get("/debug/requests/again")).json
            assert [step["what"] for step in story["steps"]] == ["chosen", "first byte"]

    asyncio.run(main())


def test_a_handle_is_not_sent_again_where_its_worker_may_have_seen_it():
    async def main():
        async with fleet("p d") as world:
            await world.ask(STREAM)
            world.decode[0].fault, world.decode[0].faults_left = "close-idle", 1
            said = await world.ask(STREAM, headers={"x-request-id": "again"})
            assert (said.status, said.text, said.mode) == (200, TEXT, "disaggregated")
            handles = [
                seen.body["kv_transfer_params"]["remote_request_id"]
                for seen in world.decode[0].completions
            ]
            assert len(handles) == len(set(handles)) == 3
            assert world.fabric.wrong == []
            assert await world.metric("retries_total", stage="decode", cause="stale") == 1
            story = (await world.get("/debug/requests/again")).json
            failed = next(step for step in story["steps"] if step["what"] == "worker failed")
            assert failed["fields"]["cause"] == "stale"
            assert [each["avoided"] for each in (await world.get("/debug/workers")).json] == [
                False,
                False,
            ]

    asyncio.run(main())


def test_a_prompt_is_sent_again_under_another_id_where_an_idle_connection_was_closed():
    async def main():
        async with fleet("p d") as world:
            await world.ask(STREAM)
            world.prefill[0].fault, world.prefill[0].faults_left = "close-idle", 1
            said = await world.ask(STREAM, headers={"x-request-id": "again"})
            assert (said.status, said.mode) == (200, "disaggregated")
            assert [seen.id for seen in world.prefill[0].completions][1:] == ["again", "againr"]

    asyncio.run(main())


def test_what_follows_from_one_workers_death_is_not_taken_from_the_retry_budget():
    async def main():
        async with fleet("d d", retry_reserve=0.0, retry_ratio=0.0) as world:
            world.decode[0].hold = world.decode[1].hold = asyncio.Event()
            asking = [asyncio.ensure_future(world.ask(STREAM)) for _ in range(12)]
            await until(lambda: sum(len(w.completions) for w in world.decode) == 12)
            first = [len(worker.completions) for worker in world.decode]
            world.decode[0].server.cut()
            world.decode[0].hold.set()
            said = await asyncio.gather(*asking)
            assert [each.text for each in said] == [TEXT] * 12
            assert first == [6, 6]
            assert len(world.decode[1].completions) == 12

    asyncio.run(main())


def test_a_request_waits_for_the_only_decode_worker_to_come_back():
    async def main():
        async with fleet("p d", return_wait_s=5.0, avoid_first_s=60.0, avoid_most_s=60.0) as world:
            worker = world.decode[0]
            worker.fault, worker.faults_left = "die", 1
            worker.deaf = True
            asking = asyncio.ensure_future(world.ask(STREAM, headers={"x-request-id": "r"}))
            await until(lambda: len(worker.completions) == 1 and worker.faults_left == 0)
            await asyncio.sleep(0.3)
            assert not asking.done()
            await worker.server.stop()
            worker.deaf = False
            await worker.server.start()
            said = await asking
            assert (said.status, said.text) == (200, TEXT)
            story = (await world.get("/debug/requests/r")).json
            assert "waited for a worker" in [step["what"] for step in story["steps"]]

    asyncio.run(main())


def test_a_request_does_not_wait_beyond_the_bound_or_its_own_target():
    async def main():
        async with fleet("d d", return_wait_s=0.4, avoid_first_s=60.0, avoid_most_s=60.0) as world:
            for worker in world.decode:
                await worker.server.stop()
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            assert (await world.ask(STREAM)).status == 502
            assert loop.time() - began_s >= 0.4
            began_s = loop.time()
            hurried = await world.ask(STREAM, headers={"x-spinney-ttft-ms": "50"})
            assert hurried.status == 502
            assert loop.time() - began_s < 0.4

    asyncio.run(main())


def test_a_single_decode_worker_that_failed_is_asked_again():
    async def main():
        async with fleet("p d") as world:
            world.decode[0].fault, world.decode[0].faults_left = "die", 1
            said = await world.ask(STREAM)
            assert (said.status, said.text) == (200, TEXT)

    asyncio.run(main())


def test_attempts_are_bounded_and_the_last_one_prefills_locally():
    async def main():
        async with fleet("p p d d", max_attempts=3) as world:
            for worker in world.decode:
                worker.fault = 500
            said = await world.ask(STREAM)
            assert said.status == 500
            assert said.json["error"]["message"] == "told to fail"
            seen = [seen for worker in world.decode for seen in worker.seen]
            assert len(seen) == 3
            assert sum("kv_transfer_params" not in each.body for each in seen) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "status"),
    [("die", 502), ("hold", 504), (503, 503), (429, 429)],
)
def test_what_no_worker_can_do_is_an_error_in_openais_form(fault, status):
    async def main():
        async with fleet("d d", first_byte_deadline_s=0.15) as world:
            for worker in world.decode:
                if fault == "hold":
                    worker.hold = asyncio.Event()
                else:
                    worker.fault = fault
            said = await world.ask(STREAM)
            assert said.status == status
            assert set(said.json["error"]) >= {"message", "type", "code"}
            assert world.idle()
            outcome = {"path": "/v1/completions", "outcome": "failed"}
            assert await world.metric("requests_total", **outcome) == 1

    asyncio.run(main())


def test_an_error_of_the_request_is_passed_on_at_once():
    async def main():
        async with fleet("d d") as world:
            for worker in world.decode:
                worker.fault = 422
            said = await world.ask(STREAM)
            assert (said.status, said.json["error"]["message"]) == (422, "told to fail")
            assert sum(len(worker.seen) for worker in world.decode) == 1

    asyncio.run(main())


def test_retries_are_limited_for_all_requests_together():
    async def main():
        async with fleet("d d", retry_reserve=3.0, retry_ratio=0.0) as world:
            for worker in world.decode:
                worker.fault = 500
            for _ in range(5):
                await world.ask(STREAM)
            assert sum(len(worker.seen) for worker in world.decode) == 5 + 3

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["die-mid-stream", "silent-mid-stream"])
def test_a_stream_that_breaks_at_every_worker_ends_with_an_error_event(fault):
    async def main():
        async with fleet("p d d") as world:
            for worker in world.decode:
                worker.fault = fault
            said = await world.ask(STREAM)
            assert said.status == 200
            assert said.events[0]["choices"][0]["text"] == words(PROMPT)[0]
            assert said.events[-1]["error"]["code"] == "worker_failed"
            assert TEXT.startswith(said.text)
            assert world.idle()
            outcome = {"path": "/v1/completions", "outcome": "broken-off"}
            assert await world.metric("requests_total", **outcome) == 1

    asyncio.run(main())


# Clients that go away


async def hang_up(world: Fleet, when) -> None:
    asking = asyncio.ensure_future(world.ask(STREAM))
    await until(when, "the request is where it is to be cut")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


def test_a_disconnect_during_prefill_aborts_the_prefill():
    async def main():
        async with fleet("p d", prefill_deadline_s=60) as world:
            world.prefill[0].hold = asyncio.Event()
            await hang_up(world, lambda: bool(world.prefill[0].seen))
            await until(lambda: world.prefill[0].seen[0].aborted, "the prefill is aborted")
            await until(world.idle, "the ledger is empty")
            assert world.decode[0].seen == []
            outcome = {"path": "/v1/completions", "outcome": "disconnected"}
            assert await world.metric("requests_total", **outcome) == 1

    asyncio.run(main())


def test_a_disconnect_before_the_first_byte_aborts_the_decode():
    async def main():
        async with fleet("p d", first_byte_deadline_s=60) as world:
            world.decode[0].hold = asyncio.Event()
            await hang_up(world, lambda: bool(world.decode[0].seen))
            await until(lambda: world.decode[0].seen[0].aborted, "the decode is aborted")
            await until(world.idle, "the ledger is empty")
            assert len(world.decode[0].seen) == 1

    asyncio.run(main())


def test_a_disconnect_in_the_stream_aborts_the_decode():
    async def main():
        async with fleet("p d", idle_stream_deadline_s=60) as world:
            world.decode[0].hold_mid_stream = asyncio.Event()
            async with world.post(STREAM) as response:
                assert await response.content.readany()
                response.close()
            await until(lambda: world.decode[0].seen[0].aborted, "the decode is aborted")
            await until(world.idle, "the ledger is empty")

    asyncio.run(main())


def test_a_client_that_does_not_read_is_given_up():
    async def main():
        # The worker keeps the loop to itself for as long as the buffers take what it says.
        limits = Limits(idle_stream_deadline_s=0.2, first_byte_deadline_s=60)
        async with fleet("d", limits=limits) as world:
            body = STREAM | {"max_tokens": 200_000}
            reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
            sent = json.dumps(body | {"model": "m"}).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n\r\n"
            )
            writer.write(head.encode() + sent)
            await reader.readline()
            reader._transport.pause_reading()
            await until(lambda: world.decode[0].seen[0].aborted, "the decode is aborted")
            await until(world.idle, "the ledger is empty")
            writer.close()
            outcome = {"path": "/v1/completions", "outcome": "client-stalled"}
            assert await world.metric("requests_total", **outcome) == 1

    asyncio.run(main())


# Shutting down


def test_draining_finishes_what_runs_and_takes_nothing_new():
    async def main():
        async with fleet("p d", drain_deadline_s=5, idle_stream_deadline_s=5) as world:
            world.decode[0].hold_mid_stream = asyncio.Event()
            running = asyncio.ensure_future(world.ask(STREAM))
            await until(lambda: bool(world.decode[0].seen), "the request runs")
            draining = asyncio.ensure_future(world.router.app.drain())
            await until(lambda: world.router.app.draining, "draining has begun")
            refused = await world.ask(STREAM)
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
            health = await world.get("/health")
            assert (health.status, health.json["status"]) == (503, "draining")
            assert not draining.done()
            world.decode[0].hold_mid_stream.set()
            assert (await running).text == TEXT
            await draining

    asyncio.run(main())


def test_what_runs_longer_than_the_drain_is_broken_off_with_an_error_event():
    async def main():
        async with fleet("p d", drain_deadline_s=0.1, idle_stream_deadline_s=60) as world:
            world.decode[0].hold_mid_stream = asyncio.Event()
            running = asyncio.ensure_future(world.ask(STREAM))
            await until(lambda: bool(world.decode[0].seen), "the request runs")
            await asyncio.sleep(0.05)
            await world.router.app.drain()
            assert (await running).events[-1]["error"]["code"] == "shutting_down"
            await until(lambda: world.decode[0].seen[0].aborted, "the decode is aborted")

    asyncio.run(main())


# Bad input, and what can be read


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        pytest.param(b"{not json", 400, "not JSON", id="malformed"),
        pytest.param(b'["a"]', 400, "wrong type", id="no object"),
        pytest.param(b'{"model": "m", "prompt": "\xff"}', 400, "JSON", id="no text"),
        pytest.param({"prompt": None}, 400, "'prompt'", id="no prompt"),
        pytest.param(PROMPT | {"stream": "yes"}, 400, "$.stream", id="a field's type"),
        pytest.param(PROMPT | {"model": "other"}, 404, "'other' does not exist", id="model"),
        pytest.param(PROMPT | {"user": "x" * 3000}, 413, "2000 bytes", id="size"),
    ],
)
def test_bad_requests_are_refused_in_openais_form(body, status, message):
    async def main():
        async with fleet("d", max_request_bytes=2000) as world:
            said = await world.ask(body)
            assert world.decode[0].seen == []
            return said

    said = asyncio.run(main())

    assert said.status == status
    assert message in said.json["error"]["message"]
    assert said.headers["x-request-id"]


def test_a_client_cannot_bring_a_handle_of_its_own():
    async def main():
        async with fleet("d") as world:
            stolen = {"kv_transfer_params": {"remote_host": "10.0.0.1", "remote_request_id": "x"}}
            said = await world.ask(PROMPT | stolen)
            assert "kv_transfer_params" not in world.decode[0].seen[0].body
            return said.status

    assert asyncio.run(main()) == 200


def test_without_workers_requests_are_refused_for_a_while_and_health_says_so():
    async def main():
        async with fleet("p") as world:
            said = await world.ask(STREAM)
            health = await world.get("/health")
            return said, health

    said, health = asyncio.run(main())

    assert (said.status, said.headers["retry-after"]) == (503, "2")
    assert said.json["error"]["code"] == "no_worker"
    assert (health.status, health.json["status"]) == (503, "no worker")


def test_what_can_be_read_and_what_not():
    async def main():
        async with fleet("p d") as world:
            await world.ask(STREAM, headers={"x-request-id": "r1"})
            paths = ["/health", "/v1/models", "/v1/models/m", "/v1/models/o", "/nowhere"]
            statuses = [(await world.get(path)).status for path in paths]
            models = (await world.get("/v1/models")).json
            story = (await world.get("/debug/requests/r1")).json
            recent = (await world.get("/debug/requests")).json
            metrics = (await world.get("/metrics")).body.decode()
            wrong = await world.client.get(world.server.url + "/v1/completions")
            await wrong.read()
            return statuses, models, story, recent, metrics, wrong.status

    statuses, models, story, recent, metrics, wrong = asyncio.run(main())

    assert statuses == [200, 200, 200, 404, 404]
    assert [model["id"] for model in models["data"]] == ["m"]
    steps = [step["what"] for step in story["steps"]]
    assert steps == ["chosen", "prefilled", "first byte", "handed over"]
    choice = story["steps"][0]["fields"]["choice"]
    assert {c["worker"] for c in choice["candidates"]} == {"p0", "d0"}
    assert (story["outcome"], recent[0]["id"]) == ("ok", "r1")
    assert 'spinney_router_requests_total{outcome="ok",path="/v1/completions"} 1.0' in metrics
    assert 'spinney_router_workers{role="prefill",state="ready"} 1.0' in metrics
    assert "spinney_router_streamed_events_total 7.0" in metrics
    assert 'spinney_router_handovers_total{outcome="pulled"} 1.0' in metrics
    assert "spinney_router_handover_bytes_total 4096.0" in metrics
    assert "spinney_router_handover_seconds_sum 0.25" in metrics
    assert wrong == 405


def test_a_repeated_beginning_goes_to_the_worker_that_has_it():
    async def main():
        async with fleet("p p p d") as world:
            body = STREAM | {"prompt": "the same long beginning " * 100}
            went = [(await world.ask(body)).headers["x-spinney-prefill-worker"] for _ in range(6)]
            return set(went)

    assert len(asyncio.run(main())) == 1


def test_many_at_once_are_spread_over_the_workers_and_none_is_mixed_up():
    async def main():
        async with fleet("p p d d", limits=Limits(connect_timeout_s=60)) as world:
            bodies = [STREAM | {"prompt": "x" * index} for index in range(1, 65)]
            said = await asyncio.gather(*(world.ask(body) for body in bodies))
            assert [each.text for each in said] == ["".join(words(body)) for body in bodies]
            assert {each.mode for each in said} == {"disaggregated"}
            assert all(len(worker.seen) > 10 for worker in world.workers.values())
            assert world.fabric.wrong == []
            assert world.idle()

    asyncio.run(main())


def test_the_connection_of_a_broken_answer_is_not_reused():
    async def main():
        async with fleet("d") as world:
            world.decode[0].fault, world.decode[0].faults_left = "die-mid-stream", 1
            await world.ask(STREAM)
            async with asyncio.timeout(5):
                while True:
                    with_luck = await world.ask(STREAM)
                    if with_luck.text == TEXT:
                        return
                    assert with_luck.status in (200, 502)

    asyncio.run(main())


def test_an_aiohttp_client_sees_no_compression_or_length_on_streams():
    async def main():
        async with fleet("d") as world, aiohttp.ClientSession() as plain:
            body = STREAM | {"model": "m"}
            async with plain.post(world.server.url + "/v1/completions", json=body) as response:
                await response.read()
                return lower(response.headers)

    headers = asyncio.run(main())

    assert headers["content-type"].startswith("text/event-stream")
    assert headers["transfer-encoding"] == "chunked"
    assert "content-encoding" not in headers


# What only passes through


def test_embeddings_and_responses_pass_through_to_a_worker_that_decodes():
    async def main():
        async with fleet("p d") as world:
            asked = {"input": "a text", "stream": False}
            found = await world.ask(asked, "/v1/embeddings")
            whole = await world.ask(asked, "/v1/responses")
            stream = await world.ask(asked | {"stream": True}, "/v1/responses")
            lacking = await world.ask({"prompt": "x"}, "/v1/responses")
            assert found.json["data"][0]["embedding"] == [0.5]
            assert whole.json["object"] == "response"
            assert stream.body.count(b"event: ") == 2
            assert (lacking.status, world.prefill[0].seen) == (400, [])
            assert {seen.body["input"] for seen in world.decode[0].seen} == {"a text"}
            assert all("return_token_ids" not in seen.body for seen in world.decode[0].seen)
            ok = [
                await world.metric("requests_total", path=path, outcome="ok")
                for path in ("/v1/embeddings", "/v1/responses")
            ]
            assert ok == [1, 2]

    asyncio.run(main())


def test_a_response_that_is_not_complete_ends_with_an_error_event():
    async def main():
        async with fleet("d") as world:
            world.decode[0].fault = "no-done"
            asked = {"input": "a text", "stream": True}
            return await world.ask(asked, "/v1/responses")

    said = asyncio.run(main())

    assert b"response.created" in said.body
    assert b'"code":"worker_failed"' in said.body


def test_a_worker_without_the_path_has_its_404_passed_on():
    async def main():
        async with fleet("d") as world:
            world.decode[0].fault = 404
            return await world.ask({"input": "a"}, "/v1/embeddings")

    assert asyncio.run(main()).status == 404
