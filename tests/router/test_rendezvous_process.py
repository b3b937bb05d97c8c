"""Workers that are called at the same time: real processes, and the answer is that of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import aiohttp
import msgspec
import pytest
from tests.router.fake_workers import lower
from tests.router.test_migration_process import free_port, healthy, process

from spinney.api.core import Pod
from spinney.errors import BadInputError
from spinney.router.openai import COMPLETIONS, read_request
from spinney.router.pods import worker_of
from spinney.router.rendezvous import Meeting, beside, meeting_at
from spinney.router.upstream import FailureKind, WorkerFailure
from spinney.router.workers import Role, Stage, Way, Worker, may_pair, parse_worker

PREFILL = Worker("p", "http://10.0.0.7:8000", Role.PREFILL, way=Way.RENDEZVOUS, bootstrap_port=5600)
DECODE = Worker("d", "http://10.0.0.8:8000", Role.DECODE, way=Way.RENDEZVOUS)


def pod(role, ports, **annotations):
    return {
        "metadata": {"name": "w", "labels": {"spinney.dev/role": role}, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
        "status": {"podIP": "10.0.0.7"},
    }


HTTP = {"name": "http", "containerPort": 8000}
MEETS = {"name": "kv-bootstrap", "containerPort": 5600}


@pytest.mark.parametrize(
    ("role", "ports", "way", "expected"),
    [
        ("prefill", [HTTP, MEETS], "rendezvous", (Way.RENDEZVOUS, 5600)),
        ("prefill", [HTTP], "sglang", (Way.SGLANG, 8998)),
        ("decode", [HTTP], "rendezvous", (Way.RENDEZVOUS, 0)),
        ("prefill", [HTTP, MEETS], "ticket", (Way.TICKET, 0)),
    ],
)
def test_a_pod_says_which_way_it_hands_over(role, ports, way, expected):
    raw = pod(role, ports, **{"spinney.dev/kv-handover": way})
    found = worker_of(msgspec.convert(raw, Pod))
    assert (found.way, found.bootstrap_port) == expected


def test_a_worker_on_the_command_line_says_it_too():
    found = parse_worker("prefill=http://10.0.0.7:8000,rendezvous=5600")
    assert (found.way, found.bootstrap_port) == (Way.RENDEZVOUS, 5600)
    with pytest.raises(BadInputError, match="rendezvous=x is no port"):
        parse_worker("prefill=http://10.0.0.7:8000,rendezvous=x")


def test_only_workers_of_one_way_are_paired():
    assert may_pair(PREFILL, DECODE)
    assert not may_pair(PREFILL, replace(DECODE, way=Way.TICKET))
    assert not may_pair(replace(PREFILL, way=Way.TICKET), DECODE)
    assert meeting_at(replace(PREFILL, way=Way.TICKET, bootstrap_port=0), lambda: 1) is None


def test_both_are_told_the_same_and_only_the_decode_worker_streams():
    meeting = meeting_at(PREFILL, lambda: 42)
    assert meeting == Meeting("10.0.0.7", 5600, 42)
    body = b'{"prompt":"x","stream":true,"stream_options":{"include_usage":true},"max_tokens":9}'
    told = {"bootstrap_host": "10.0.0.7", "bootstrap_port": 5600, "bootstrap_room": 42}
    assert json.loads(meeting.decode_body(body)) == json.loads(body) | told
    prefill = json.loads(meeting.prefill_body(body))
    assert prefill == {"prompt": "x", "stream": False, "max_tokens": 9} | told


def test_a_client_cannot_send_a_worker_to_an_address():
    body = b'{"prompt":"x","bootstrap_host":"169.254.169.254","bootstrap_port":80}'
    assert json.loads(read_request(COMPLETIONS, body).body) == {"prompt": "x"}
    assert json.loads(read_request(COMPLETIONS, b'{"prompt":"x","bootstrap_room":0}').body) == {
        "prompt": "x"
    }


def test_a_failed_prefill_ends_the_wait_of_the_decode_worker_unless_it_is_over():
    failure = WorkerFailure(PREFILL, Stage.PREFILL, FailureKind.BROKEN, "gone")

    async def fails():
        raise failure

    async def waits(matters):
        async with beside(fails(), lambda: matters):
            await asyncio.sleep(0.1)
            return "answered"

    with pytest.raises(WorkerFailure) as caught:
        asyncio.run(waits(True))
    assert caught.value is failure
    assert asyncio.run(waits(False)) == "answered"


def test_what_goes_wrong_inside_is_raised_as_it_is():
    ended = []

    async def prefills():
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(True)

    async def main():
        async with beside(prefills(), lambda: True):
            await asyncio.sleep(0)
            raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert ended == [True]


@contextlib.asynccontextmanager
async def fleet(prefillers):
    """A router before mock workers that meet; yields session, URL, prefill processes, ports."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        flags, ports, victims = [], [], {}
        for name in (*prefillers, "d0"):
            port, kv = free_port(), free_port()
            role = "decode" if name == "d0" else "prefill"
            slow = ["--speed-up", "0.1"] if name == "slow" else []
            words = ["mock", "--port", str(port), "--kv-port", str(kv), "--role", role, *slow]
            victims[name] = await stack.enter_async_context(process(*words))
            ports.append(port)
            flags += ["--worker", f"{role}:{name}=http://127.0.0.1:{port},rendezvous={kv}"]
        for port in ports:
            await healthy(session, port)
        front = free_port()
        await stack.enter_async_context(process("router", "--port", str(front), *flags))
        await healthy(session, front)
        yield session, front, victims, ports


ASKED = {"model": "demo", "temperature": 0, "max_tokens": 12, "ignore_eos": True}


def prompt(seed, count=400):
    return [(seed * 131 + n * 17) % 1500 + 300 for n in range(count)]


async def ask(session, port, text, *, stream):
    """Return the text of the answer, and its headers."""
    url = f"http://127.0.0.1:{port}/v1/completions"
    async with session.post(url, json=ASKED | {"prompt": text, "stream": stream}) as answer:
        assert answer.status == 200, await answer.text()
        headers = lower(answer.headers)
        if not stream:
            return (await answer.json())["choices"][0]["text"], headers
        parts = []
        async for line in answer.content:
            if line.startswith(b"data: {"):
                parts += [choice["text"] for choice in json.loads(line[6:])["choices"]]
        return "".join(parts), headers


async def outcomes(session, port):
    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    name = "spinney:kv_handovers_total{"
    found = [line for line in lines if line.startswith(name)]
    return {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in found}


@pytest.mark.e2e
def test_answers_are_those_of_one_worker():
    async def main():
        async with fleet(["p0", "p1"]) as (session, front, _, ports):

            async def one(seed):
                text, headers = await ask(session, front, prompt(seed), stream=seed % 2 == 0)
                assert headers["x-spinney-mode"] == "disaggregated"
                alone, _ = await ask(session, ports[0], prompt(seed), stream=False)
                assert text == alone

            await asyncio.gather(*(one(seed) for seed in range(12)))
            assert (await outcomes(session, ports[-1]))["pulled"] == 12
            assert "recomputed" not in await outcomes(session, ports[-1])

    asyncio.run(main())


@pytest.mark.e2e
def test_a_prefill_worker_that_dies_meanwhile_costs_no_answer():
    async def main():
        async with fleet(["slow"]) as (session, front, victims, ports):
            expected, _ = await ask(session, ports[-1], prompt(5), stream=False)
            text = prompt(6, 1500)
            asked = asyncio.create_task(ask(session, front, text, stream=True))
            await asyncio.sleep(0.5)
            assert not asked.done()
            victims["slow"].kill()
            answer, _ = await asked
            assert answer == (await ask(session, ports[-1], text, stream=False))[0]
            assert expected

    asyncio.run(main())
