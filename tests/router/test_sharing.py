"""Routers that tell each other of the load they gave: what is lost, who dies, and a real burst."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.fake_workers import Fabric, FakeWorker

from spinney.router.hearsay import Hearsay
from spinney.router.limits import Limits
from spinney.router.load import Faults, Ledger
from spinney.router.peer_app import merged
from spinney.router.picker import IDLE, Load
from spinney.router.sharing import PeerLoads, Shared, Sharing
from spinney.router.turns import Turns
from spinney.router.workers import Role, Stage, Worker
from spinney.sim.loop import SimulatedLoop

LIMITS = Limits()
START = "import sys; from spinney.cmd.router import router; router(sys.argv[1:])"
WORKER = Worker("d0", "http://d0", Role.DECODE)


class Wire:
    """Carries messages between routers; loses those that *lost* says."""

    def __init__(self):
        self.routers = {}
        self.lost = lambda: False
        self.messages = []

    async def post(self, base, _path, body):
        await asyncio.sleep(0.001)
        if self.lost() or base not in self.routers:
            return None
        self.messages.append(body)
        answer = self.routers[base].take(body, asyncio.get_running_loop().time())
        return None if self.lost() else answer


class Router:
    def __init__(self, wire, name, others):
        self.shared = shared_of(name)
        self.ledger = self.shared.ledger
        self.loads = PeerLoads(name, self.shared, LIMITS)
        wire.routers[name] = self.loads
        self.sharing = Sharing(name, self.shared, self.loads, wire, lambda: others, LIMITS)


def shared_of(name):
    faults = Faults(LIMITS)
    turns = Turns(name, LIMITS, lambda: asyncio.get_running_loop().time())
    return Shared(Ledger(), faults, turns, Hearsay(None, faults, tuple, LIMITS))


def simulate(main):
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(None)) as runner:
        return runner.run(main())


CHANGES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["d0", "d1"]), st.integers(1, 9)), max_size=20
)


@given(CHANGES, st.integers(0, 2**20))
def test_whatever_is_lost_in_the_end_each_knows_the_sum(changes, losses):
    async def main():
        wire = Wire()
        names = ["a", "b", "c"]
        made = {name: Router(wire, name, names) for name in names}
        bits = iter(f"{losses:b}")
        wire.lost = lambda: next(bits, "0") == "1"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each.sharing.run()) for each in made.values()]
            held = []
            for at, (name, worker, tokens) in enumerate(changes):
                ledger = made[name].ledger
                ledger.add(worker, Load(1, tokens, 0, 0))
                held.append((ledger, worker, Load(1, tokens, 0, 0)))
                if at % 3 == 2:
                    gone, of, load = held.pop(0)
                    gone.subtract(of, load)
                await asyncio.sleep(0.01)
            await asyncio.sleep(5)
            want = Counter()
            for _, worker, load in held:
                want[worker] += load.prefill_tokens
            for each in made.values():
                found = {n: load.prefill_tokens for n, load in each.ledger.loads_now().items()}
                assert found == dict(want)
            for task in tasks:
                task.cancel()

    simulate(main)


def test_a_router_that_goes_silent_is_counted_no_more():
    async def main():
        wire = Wire()
        one, other = (Router(wire, name, ["a", "b"]) for name in "ab")
        first, second = (asyncio.ensure_future(each.sharing.run()) for each in (one, other))
        with one.ledger.work(WORKER, Stage.DECODE, context_tokens=7):
            await asyncio.sleep(0.1)
            assert other.ledger.loads_now()["d0"] == Load(0, 0, 1, 7)
            assert other.ledger.loads() == {}, "it is not its own"
            first.cancel()
            await asyncio.sleep(LIMITS.peer_expiry_s * 2)
            assert other.ledger.loads_now() == {}
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)

    simulate(main)


def test_what_does_not_change_is_not_told_again():
    async def main():
        wire = Wire()
        one, other = (Router(wire, name, ["a", "b"]) for name in "ab")
        tasks = [asyncio.ensure_future(each.sharing.run()) for each in (one, other)]
        for number in range(100):
            one.ledger.add(f"d{number}", Load(1, 1, 1, 1))
        await asyncio.sleep(1)
        wire.messages.clear()
        one.ledger.add("d7", Load(1, 1, 1, 1))
        await asyncio.sleep(0.3)
        told = [json.loads(each) for each in wire.messages]
        assert [loads for name, _, _, loads, *_ in told if name == "a" and loads] == [
            {"d7": [2, 2, 2, 2]}
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    simulate(main)


def test_a_message_to_one_router_that_is_played_to_another_does_it_no_harm():
    async def main():
        wire = Wire()
        one, other, third = (Router(wire, name, ["a", "b", "c"]) for name in "abc")
        tasks = [asyncio.ensure_future(each.sharing.run()) for each in (one, other, third)]
        for number in range(20):
            one.ledger.add("d0", Load(0, 0, 1, 0))
            await asyncio.sleep(0.05)
            said = [json.loads(body)[:3] for body in wire.messages]
            numbers = [seq for name, _, seq in said if name == "a"]
            assert len(numbers) == len(set(numbers)), "none is the next one of another's"
            for body in wire.messages[-6:] if number % 3 else ():
                for name in "bc":
                    wire.routers[name].take(body, asyncio.get_running_loop().time())
        await asyncio.sleep(0.2)
        seen = [each.ledger.loads_now()["d0"].decode_requests for each in (other, third)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seen

    assert simulate(main) == [20, 20]


def test_a_message_after_a_lost_one_is_not_taken():
    shared = shared_of("me")
    ledger, loads = shared.ledger, PeerLoads("me", shared, LIMITS)

    def take(*message):
        return json.loads(loads.take(json.dumps(message).encode(), 0.0))[1]

    assert take("a", 0, 4, {"d0": [1, 2, 3, 4]}) is True
    assert take("a", 5, 6, {"d0": [0, 0, 0, 0]}) is False
    assert ledger.loads_now() == {"d0": Load(1, 2, 3, 4)}
    assert take("a", 4, 5, {"d0": [0, 0, 0, 0]}) is True
    assert ledger.loads_now() == {}
    assert take("b", 3, 4, {"d0": [1, 1, 1, 1]}) is False, "nobody that is known"
    assert take("me", 0, 1, {"d0": [1, 1, 1, 1]}) is True, "our own word is not counted twice"
    assert ledger.loads_now().get("d0", IDLE) == IDLE


STATES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["d0", "d1"]), st.integers(0, 9)),
        st.sets(st.sampled_from(["d0", "d1"])),
        st.dictionaries(st.sampled_from("tu"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=6,
)


@given(STATES, st.data())
def test_of_messages_lost_doubled_and_late_the_latest_counts(states, data):
    async def main():
        shared = shared_of("me")
        loads = PeerLoads("me", shared, LIMITS)
        came = data.draw(
            st.lists(st.integers(1, len(states)), min_size=1, max_size=2 * len(states))
        )
        for seq in came:
            load, failing, tenants = states[seq - 1]
            message = ["a", 0, seq, {name: [0, 0, count, 0] for name, count in load.items()}]
            message += [sorted(failing), {"m": {t: [n, 0, 0, 0.0] for t, n in tenants.items()}}]
            assert json.loads(loads.take(json.dumps(message).encode(), 0.0))[1] is True
        load, _, tenants = states[max(came) - 1]
        found = {name: each.decode_requests for name, each in shared.ledger.loads_now().items()}
        assert found == {name: count for name, count in load.items() if count}
        (said,) = shared.turns._peers.values()
        assert {name: wish.running for name, wish in said.tenants.items()} == tenants
        loads.expire(LIMITS.peer_expiry_s + 0.1)
        assert (shared.ledger.loads_now(), shared.turns.shared) == ({}, False)

    asyncio.run(main())


def test_the_figures_of_processes_are_one_text_with_a_label():
    one = b'# HELP a A\n# TYPE a counter\na{x="}"} 1.0\nb 2\n'
    assert merged([(0, one), (1, one)]).decode().splitlines() == [
        "# HELP a A",
        "# TYPE a counter",
        'a{x="}",process="0"} 1.0',
        'b{process="0"} 2',
        'a{x="}",process="1"} 1.0',
        'b{process="1"} 2',
    ]


# Real processes


@asynccontextmanager
async def running(*flags):
    """Run a router; give its process and URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", START, "--port", "0", "--log-json", *flags),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SPINNEY_PEER_SECRET": "a secret of these tests"},
    )
    try:
        async with asyncio.timeout(30):
            yield process, json.loads(await process.stderr.readline())["url"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def true(what, condition):
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what is polled is in other processes
            await asyncio.sleep(0.02)


async def in_flight(client, url):
    async with client.get(url + "/debug/workers") as response:
        workers = json.loads(await response.read())
    return sum((each["load"] or {}).get("decode_requests", 0) for each in workers)


async def ports(count):
    servers = [await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) for _ in range(count)]
    found = [server.sockets[0].getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return found


ASKED = {"model": "m", "prompt": "p", "max_tokens": 2}


@pytest.mark.e2e
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "not shared"])
def test_bursts_at_two_routers_are_spread_over_all_workers(shared):
    async def main():
        workers = [FakeWorker(f"d{n}", Role.DECODE, Fabric(), "m") for n in range(6)]
        for worker in workers:
            await worker.server.start()
        named = [f"decode:{w.name}={w.server.url}" for w in workers]
        flags = ["--model", "m", "--seed", "1", *(x for n in named for x in ("--worker", n))]
        one, other = await ports(2)
        peers = [
            ["--peer-port", str(here), "--peer", f"http://127.0.0.1:{there}"] if shared else []
            for here, there in ((one, other), (other, one))
        ]
        spread = []
        async with (
            aiohttp.ClientSession() as client,
            running(*flags, *peers[0]) as (_, first),
            running(*flags, *peers[1]) as (_, second),
        ):
            for _ in range(3):
                for worker in workers:
                    worker.hold = asyncio.Event()
                before = [len(worker.completions) for worker in workers]
                asking = []
                for number, url in enumerate((first, second)):
                    asking += [
                        asyncio.ensure_future(client.post(url + "/v1/completions", json=ASKED))
                        for _ in range(3)
                    ]
                    due = 3 * (number + 1)

                    async def arrived(due=due, before=before):
                        return sum(len(w.completions) for w in workers) - sum(before) == due

                    async def known(due=due):
                        return await in_flight(client, second) == due

                    await true("all are asked", arrived)
                    if shared:
                        await true("the other router knows", known)
                spread.append(
                    [len(w.completions) - b for w, b in zip(workers, before, strict=True)]
                )
                for worker in workers:
                    worker.hold.set()
                for response in await asyncio.gather(*asking):
                    assert response.status == 200
                    response.close()
        for worker in workers:
            await worker.server.stop()
        return spread

    spread = asyncio.run(main())

    even = [each == [1] * 6 for each in spread]
    assert all(even) if shared else not all(even), spread


@pytest.mark.e2e
def test_processes_share_a_port_and_one_that_dies_is_replaced():
    async def main():
        worker = FakeWorker("b0", Role.BOTH, Fabric(), "m")
        await worker.server.start()
        flags = ("--worker", f"both:b0={worker.server.url}", "--model", "m", "--processes", "2")
        async with aiohttp.ClientSession() as client, running(*flags) as (process, url):

            async def served_by():
                """Ask over many connections; return how many requests each process counts."""
                async with aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(force_close=True)
                ) as fresh:
                    for number in range(16):
                        headers = {"x-request-id": f"r{number}"}
                        async with fresh.post(
                            url + "/v1/completions", json=ASKED, headers=headers
                        ) as response:
                            assert response.status == 200
                    async with fresh.get(url + "/metrics") as response:
                        text = (await response.read()).decode()
                return [
                    line
                    for line in text.splitlines()
                    if line.startswith("spinney_router_requests_total")
                    and not line.endswith(" 0.0")
                ]

            def children():
                with open(f"/proc/{process.pid}/task/{process.pid}/children") as listed:
                    return [int(each) for each in listed.read().split()]

            async def both():
                return len(await served_by()) == 2

            await true("both serve", both)
            for number in range(16):
                async with client.get(f"{url}/debug/requests/r{number}") as response:
                    assert response.status == 200, "whichever process is asked"
            before = children()
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)

            async def replaced():
                return len(children()) == 2 and children() != before

            await true("another process is there", replaced)
            await true("both serve again", both)
            process.terminate()
            assert await process.wait() == 0
        await worker.server.stop()

    asyncio.run(main())


@pytest.mark.e2e
def test_processes_end_when_the_one_that_started_them_is_killed():
    async def main():
        flags = ("--worker", "both=http://127.0.0.1:9", "--model", "m", "--processes", "2")
        async with running(*flags) as (process, _):
            children = []

            async def started():
                with open(f"/proc/{process.pid}/task/{process.pid}/children") as listed:
                    children[:] = [int(each) for each in listed.read().split()]
                return len(children) == 2

            await true("both have started", started)
            process.kill()
            await process.wait()

            async def gone():
                return not any(os.path.exists(f"/proc/{child}") for child in children)

            await true("the processes have ended", gone)

    asyncio.run(main())
