"""Workers that stand still are given up in seconds, and busy ones are not; in virtual time."""

from __future__ import annotations

import asyncio
import functools
import json
import random

import pytest
from prometheus_client import CollectorRegistry
from tests.router.test_router_virtual_time import EVENTS, WORKERS, ModelledNetwork

from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.router.assembly import assemble
from spinney.router.limits import Limits
from spinney.router.picker import Policy
from spinney.router.workers import StaticWorkers
from spinney.sim.loop import SimulatedLoop

LIMITS = Limits()
NOTICED_S = LIMITS.suspect_after_s + LIMITS.alive_deadline_s + 0.5
BODY = {"model": "m", "prompt": "x", "stream": True}


class Network(ModelledNetwork):
    """Workers of *stopped* answer no question; all others do, at once."""

    def __init__(self, faults, stopped):
        super().__init__(faults)
        self.stopped = stopped
        self.asked = []

    async def answers(self, worker, within_s):
        self.asked.append(worker.name)
        if worker.name in self.stopped:
            await asyncio.sleep(within_s)
            return False
        return True


class Client:
    """One client that takes in what it is sent, after *slow_s* each."""

    def __init__(self, app, slow_s=0.0):
        self.app, self.slow_s, self.told = app, slow_s, []

    async def ask(self):
        loop = asyncio.get_running_loop()
        sent = [{"type": "http.request", "body": json.dumps(BODY).encode()}]

        async def receive():
            return sent.pop() if sent else await loop.create_future()

        async def send(message):
            await asyncio.sleep(self.slow_s)
            self.told.append((loop.time(), message))

        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
        await self.app(scope, receive, send)

    @property
    def status(self):
        return self.told[0][1]["status"]

    @property
    def body(self):
        return b"".join(message["body"] for _, message in self.told[1:])


def run(faults, stopped=(), slow_s=0.0, **limits):
    """Return one client, what it took in seconds, and whom the router asked whether it is alive."""

    async def main():
        loop = asyncio.get_running_loop()
        network = Network(faults, stopped)
        made = assemble(
            StaticWorkers(WORKERS),
            network,
            limits=Limits(**limits),
            policy=Policy(),
            rng=random.Random(1),
            clock=LoopClock(loop),
            ids=RandomIds(random.Random(1)),
            registry=CollectorRegistry(),
        )
        watching = asyncio.ensure_future(made.run())
        client = Client(made.app, slow_s)
        began_s = loop.time()
        await client.ask()
        took_s = loop.time() - began_s
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert network.open_answers == 0
        assert made.ledger.loads() == {}
        return client, took_s, network.asked

    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        return runner.run(main())


ALL = ("p0", "p1", "d0", "d1")


@pytest.mark.parametrize("fault", ["hang", "stall"])
def test_a_stream_leaves_a_worker_that_stands_still(fault):
    faults = {"d0": [fault], "d1": [fault]}
    client, took_s, _ = run(faults, stopped=("d0", "d1"))

    assert client.status == 200
    assert client.body == b"".join(EVENTS)
    # Both stood still, one after the other, and then the first had to come back.
    assert took_s < 2 * NOTICED_S + LIMITS.return_wait_s + 4


def test_a_prompt_leaves_a_prefill_worker_that_stands_still():
    client, took_s, _ = run({"p0": ["hang"], "p1": ["hang"]}, stopped=("p0", "p1"))

    assert client.status == 200
    assert took_s < 2 * NOTICED_S + 4


def test_a_worker_that_is_silent_and_answers_is_waited_for():
    client, took_s, asked = run({"d0": ["stall"], "d1": ["stall"]}, idle_stream_deadline_s=20)

    assert client.body == b"".join(EVENTS)
    assert took_s > 2 * 20, "both streams had their whole idle deadline"
    assert set(asked) == {"d0", "d1"}


def test_where_all_are_silent_at_once_nobody_is_given_up():
    async def main():
        loop = asyncio.get_running_loop()
        network = Network({"d0": ["stall"], "d1": ["stall"]}, ("d0", "d1"))
        made = assemble(
            StaticWorkers(WORKERS),
            network,
            limits=Limits(idle_stream_deadline_s=30),
            policy=Policy(),
            rng=random.Random(1),
            clock=LoopClock(loop),
            ids=RandomIds(random.Random(1)),
            registry=CollectorRegistry(),
        )
        watching = asyncio.ensure_future(made.run())
        both = [asyncio.ensure_future(Client(made.app).ask()) for _ in range(2)]
        done, _ = await asyncio.wait(both, timeout=25)
        assert not done
        assert set(network.asked) == {"d0", "d1"}
        for task in (*both, watching):
            task.cancel()
        await asyncio.gather(*both, watching, return_exceptions=True)

    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        runner.run(main())


def test_a_worker_that_talks_is_asked_nothing():
    _, _, asked = run({})

    assert asked == []


def test_a_client_that_reads_slowly_is_not_taken_for_a_silent_worker():
    client, took_s, _ = run({}, stopped=ALL, slow_s=20)

    assert client.body == b"".join(EVENTS)
    assert took_s > 60


def test_a_stream_that_talks_speaks_for_one_that_is_silent():
    async def main():
        loop = asyncio.get_running_loop()
        network = Network({"d0": ["stall"]}, ("d0",))
        made = assemble(
            StaticWorkers([worker for worker in WORKERS if worker.name != "d1"]),
            network,
            limits=Limits(idle_stream_deadline_s=30),
            policy=Policy(),
            rng=random.Random(1),
            clock=LoopClock(loop),
            ids=RandomIds(random.Random(1)),
            registry=CollectorRegistry(),
        )
        watching = asyncio.ensure_future(made.run())
        silent = asyncio.ensure_future(Client(made.app).ask())
        await asyncio.sleep(1)
        began_s = loop.time()
        while not silent.done() and loop.time() - began_s < 25:
            # Each of them is a sign of life of the one decode worker.
            await Client(made.app).ask()
        assert not silent.done()
        for task in (silent, watching):
            task.cancel()
        await asyncio.gather(silent, watching, return_exceptions=True)

    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, None)) as runner:
        runner.run(main())
