"""The router on a simulated loop, without sockets: default deadlines, seeds, and no hang."""

from __future__ import annotations

import asyncio
import functools
import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.router.assembly import assemble
from spinney.router.limits import Limits
from spinney.router.picker import Policy
from spinney.router.upstream import FailureKind, WorkerFailure
from spinney.router.workers import Role, Stage, StaticWorkers, Worker
from spinney.sim.loop import SimulatedLoop

EVENTS = [
    b'data: {"choices":[{"index":0,"text":"a"}]}\n\n',
    b'data: {"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
HANDLE = b'{"kv_transfer_params":{"remote_request_id":"x"}}'
FAULTS = ["ok", "refuse", "hang", "break", "cut", "stall", "500", "503", "400"]


class ModelledAnswer:
    """An answer whose chunks take a tenth of a second each."""

    def __init__(self, network, status, chunks, failure=None):
        self.network = network
        self.status = status
        self.headers = {"content-type": "text/event-stream"}
        self.chunks = list(chunks)
        self.failure = failure
        network.open_answers += 1

    async def chunk(self):
        await asyncio.sleep(0.1)
        if self.chunks:
            return self.chunks.pop(0)
        if isinstance(self.failure, WorkerFailure):
            raise self.failure
        if self.failure == "stall":
            await asyncio.sleep(1e6)
        return b""

    def close(self):
        self.network.open_answers -= 1


class ModelledNetwork:
    """Workers that behave as *faults* says, each request taking the next one of its worker."""

    def __init__(self, faults):
        self.faults = {name: list(each) for name, each in faults.items()}
        self.open_answers = 0

    async def models(self, _worker):
        return frozenset()

    async def answers(self, _worker, within_s):
        await asyncio.sleep(within_s)
        return False

    async def open(self, worker, stage, _path, _headers, body):
        faults = self.faults.get(worker.name)
        fault = faults.pop(0) if faults else "ok"
        await asyncio.sleep(0.5)
        match fault:
            case "refuse":
                raise WorkerFailure(worker, stage, FailureKind.REFUSED, "refused")
            case "hang":
                await asyncio.sleep(1e6)
            case "500" | "503" | "400":
                said = b'{"error": {"message": "told to"}}'
                return ModelledAnswer(self, int(fault), [said])
        broken = WorkerFailure(worker, stage, FailureKind.BROKEN, "cut")
        if stage is Stage.PREFILL:
            return ModelledAnswer(
                self, 200, [HANDLE] if fault != "break" else [], broken_or(fault, broken)
            )
        assert json.loads(body)["stream"]
        chunks = {"break": [], "cut": EVENTS[:1], "stall": EVENTS[:1]}.get(fault, EVENTS)
        return ModelledAnswer(self, 200, chunks, broken_or(fault, broken))


def broken_or(fault, broken):
    return {"break": broken, "cut": broken, "stall": "stall"}.get(fault)


WORKERS = [Worker(n, f"http://{n}", Role.PREFILL, frozenset({"m"})) for n in ("p0", "p1")] + [
    Worker(n, f"http://{n}", Role.DECODE, frozenset({"m"})) for n in ("d0", "d1")
]


async def history(faults, requests, seed):
    """Return what *requests* clients were told and when, and what was left behind."""
    loop = asyncio.get_running_loop()
    network = ModelledNetwork(faults)
    made = assemble(
        StaticWorkers(WORKERS),
        network,
        limits=Limits(),
        policy=Policy(),
        rng=random.Random(seed),
        clock=LoopClock(loop),
        ids=RandomIds(random.Random(seed)),
        registry=CollectorRegistry(),
    )
    said = []

    async def client(number):
        await asyncio.sleep(number * 0.3)
        body = json.dumps({"model": "m", "prompt": f"{number}", "stream": True}).encode()
        sent = [{"type": "http.request", "body": body}]

        async def receive():
            return sent.pop() if sent else await loop.create_future()

        async def send(message):
            said.append((round(loop.time(), 6), number, message))

        headers = [(b"x-request-id", b"%d" % number)]
        path = "/v1/completions"
        await made.app(
            {"type": "http", "path": path, "method": "POST", "headers": headers}, receive, send
        )

    async with asyncio.TaskGroup() as clients:
        for number in range(requests):
            clients.create_task(client(number))
    return said, network.open_answers, made.ledger.loads()


def simulate(faults, requests=1, seed=1):
    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        return runner.run(history(faults, requests, seed))


def test_hanging_workers_cost_their_deadlines_and_no_more():
    limits = Limits()

    said, _, _ = simulate({name: ["hang"] * 9 for name in ("p0", "p1", "d0", "d1")})

    at_s, _, start = said[0]
    attempt_s = 2 * limits.prefill_deadline(1) + limits.first_byte_deadline(1)
    most_s = limits.retry_within_s + limits.return_wait_s + attempt_s
    assert start["status"] == 504
    assert at_s <= most_s


def test_a_stream_that_stalls_everywhere_ends_after_its_idle_deadlines():
    said, _, _ = simulate({"d0": ["stall"] * 9, "d1": ["stall"] * 9})

    at_s, _, last = said[-1]
    most_s = (1 + Limits().max_migrations) * Limits().idle_stream_deadline_s
    assert b"worker_failed" in last["body"]
    assert most_s < at_s < most_s + 10


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(FAULTS), max_size=6) for name in ("p0", "p1", "d0", "d1")}
    ),
    st.integers(0, 2**32),
)
def test_whatever_fails_every_request_ends_once_and_nothing_is_left(faults, seed):
    said, open_answers, loads = simulate(faults, requests=5, seed=seed)

    assert open_answers == 0
    assert loads == {}
    for number in range(5):
        told = [message for _, who, message in said if who == number]
        assert [m["type"] for m in told].count("http.response.start") == 1
        assert [m.get("more_body") for m in told[1:]] == [True] * (len(told) - 2) + [False]
        body = b"".join(m["body"] for m in told[1:])
        if told[0]["status"] == 200:
            assert body == b"".join(EVENTS) or b'{"error"' in body
        else:
            assert json.loads(body)["error"]["message"]


def test_the_same_seed_gives_the_same_history():
    faults = {"p0": ["hang", "500"], "d0": ["cut", "503"], "d1": ["refuse"]}

    assert simulate(faults, 5, seed=7) == simulate(faults, 5, seed=7)
