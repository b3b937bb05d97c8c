"""The failure contract on real processes: each fault once, at each stage of a request."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.worker_process import free_port
from tests.faults.arena import Arena, Job, WorkerProcess, status, until
from tests.faults.proxy import Way

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("faults"),
    # A link that is cut before its first step leaves its writer to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MOST_ASKED = 20
"""Requests after which each of two workers has surely been chosen."""
CLEAN = {"ok", "error event"}
FULL = Path("/dev/full")
"""Every write to it fails for want of space."""


def job(number: int, length: int = 300, count: int = 40, *, stream: bool = True) -> Job:
    return Job(number, [(number * 37 + n * 11) % 1700 + 300 for n in range(length)], count, stream)


def of_role(arena: Arena, role: str) -> list[WorkerProcess]:
    return [worker for worker in arena.workers if worker.role == role]


async def one_dies(workers: list[WorkerProcess]) -> None:
    async def dead() -> bool:
        return any(worker.died for worker in workers)

    await until(dead, "a worker has met its trap", 2)


def trap(proxy: Any, worker: WorkerProcess, after: int) -> None:
    proxy.set_trap(after, lambda: worker.send(signal.SIGKILL))


@pytest.mark.parametrize("after", [0, 1, 5000], ids=["before", "begun", "during"])
def test_a_prefill_worker_killed_around_the_transfer_costs_no_request(
    runner: asyncio.Runner, arena: Arena, after: int
) -> None:
    for worker in of_role(arena, "prefill"):
        trap(worker.kv, worker, after)
        # Slow enough that the worker dies with bytes on their way.
        worker.kv.way = Way("slow", after=0, rate=200_000.0)

    async def main() -> list[str]:
        # At one time, so that both decode workers pull: one of them through the proxy.
        asks = (arena.ask(job(after % 997 * 10 + n, 800)) for n in range(4))
        return list(await asyncio.gather(*asks))

    assert runner.run(main()) == ["ok"] * 4
    runner.run(one_dies(of_role(arena, "prefill")))


def test_a_prefill_worker_killed_after_the_transfer_is_not_missed(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> str:
        asking = asyncio.ensure_future(arena.ask(job(20, count=400)))
        await until(lambda: seen(arena, "decode", "vllm:num_requests_running"), "it decodes", 10)
        for worker in of_role(arena, "prefill"):
            worker.send(signal.SIGKILL)
        return await asking

    assert runner.run(main()) == "ok"


async def seen(arena: Arena, role: str, metric: str) -> bool:
    for worker in of_role(arena, role):
        if (await arena.metrics(worker)).get(metric, 0) > 0:
            return True
    return False


def test_without_any_prefill_worker_requests_are_served_and_decode_is_healthy(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        for worker in of_role(arena, "prefill"):
            worker.send(signal.SIGKILL)
            await worker.end()
        ends = [await arena.ask(job(30 + n)) for n in range(3)]
        for worker in of_role(arena, "decode"):
            assert await worker.answers(arena.session)
        return ends

    assert runner.run(main()) == ["ok"] * 3


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_decode_worker_killed_before_its_first_byte_costs_no_request(
    runner: asyncio.Runner, arena: Arena, stream: bool
) -> None:
    first = of_role(arena, "decode")[0]
    trap(first.http, first, 0)
    # On a kept connection it would be a later request that meets the trap.
    first.http.cut_all()
    for n in range(MOST_ASKED):
        assert runner.run(arena.ask(job(40 + n, stream=stream))) == "ok"
        if first.died:
            return
    raise AssertionError(f"none of {MOST_ASKED} requests met the trap")


def test_a_decode_worker_killed_in_its_stream_ends_the_stream_cleanly(
    runner: asyncio.Runner, arena: Arena
) -> None:
    for worker in of_role(arena, "decode"):
        trap(worker.http, worker, 2500)
    assert runner.run(arena.ask(job(50, count=60))) in CLEAN
    runner.run(one_dies(of_role(arena, "decode")))


@pytest.mark.parametrize(
    ("way", "failure"),
    [
        (Way("corrupt", after=300), "recomputed checksum_mismatch"),
        (Way("garbage"), "recomputed protocol_error"),
        (Way("cut", after=300), "recomputed peer_unreachable"),
        (Way("stall", after=300), "recomputed timeout"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_broken_transfer_is_computed_again(
    runner: asyncio.Runner, arena: Arena, way: Way, failure: str
) -> None:
    async def main() -> list[str]:
        for worker in of_role(arena, "prefill"):
            worker.kv.way = way
        seed = len(way.kind) * 10
        return list(await asyncio.gather(*(arena.ask(job(60 + seed + n)) for n in range(6))))

    assert runner.run(main()) == ["ok"] * 6
    # One of the decode workers maps shared memory: its bytes do not pass the proxy.
    assert arena.tally.handovers[failure] > 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_that_stands_still_costs_no_request(
    runner: asyncio.Runner, arena: Arena, role: str
) -> None:
    async def main() -> list[str]:
        of_role(arena, role)[0].send(signal.SIGSTOP)
        return list(await asyncio.gather(*(arena.ask(job(200 + n)) for n in range(4))))

    assert runner.run(main()) == ["ok"] * 4


def test_a_draining_worker_fails_no_request(runner: asyncio.Runner, arena: Arena) -> None:
    async def main() -> list[str]:
        work = asyncio.ensure_future(arena.run(60, clients=6, leaving=0.0))
        for worker in (arena.by_name["p0"], arena.by_name["d0"]):
            await asyncio.sleep(0.2)
            worker.send(signal.SIGTERM)
            assert await worker.end() == 0
        await work
        return list(arena.tally.ended)

    assert runner.run(main()) == ["ok"]


@pytest.mark.parametrize("role", ["prefill", "decode"], ids=["prefilling", "transferring"])
def test_a_client_that_leaves_before_its_first_token_leaves_nothing_held(
    runner: asyncio.Runner, arena: Arena, role: str
) -> None:
    async def main() -> None:
        for worker in of_role(arena, "prefill"):
            # What the decode worker asks for does not come.
            worker.kv.way = Way("stall")
        asking = asyncio.ensure_future(arena.ask(job(300 + len(role), 1900)))
        running = "vllm:num_requests_running"
        await until(lambda: seen(arena, role, running), f"{role} runs", 10, every_s=0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    runner.run(main())


def test_a_client_that_leaves_its_stream_leaves_nothing_held(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        jobs = [replace(job(320 + n, count=500), leave=n) for n in range(6)]
        return list(await asyncio.gather(*(arena.ask(each) for each in jobs)))

    assert runner.run(main()) == ["left"] * 6


def test_a_killed_router_leaves_nothing_held(runner: asyncio.Runner, arena: Arena) -> None:
    async def main() -> None:
        asks = [asyncio.ensure_future(arena.ask(job(340 + n, 900, 500))) for n in range(8)]
        await until(lambda: seen(arena, "decode", "vllm:num_requests_running"), "it decodes", 10)
        assert arena.router is not None
        arena.router.kill()
        await arena.router.wait()
        await asyncio.gather(*asks)
        # The clients' connections broke, which is all that a killed router can say.
        arena.tally.wrong.clear()
        await arena.start_router()
        await until(arena.router_ready, "the router is ready", 20)

    runner.run(main())


def test_a_rollout_of_all_workers_under_load_fails_no_request(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        numbers, over = itertools.count(), asyncio.Event()

        async def client() -> None:
            while not over.is_set():
                await arena.ask(arena.job(next(numbers)))

        async with asyncio.TaskGroup() as clients:
            for _ in range(6):
                clients.create_task(client())
            for worker in arena.workers:
                worker.send(signal.SIGTERM)
                assert await worker.end() == 0
                await worker.start()
                await worker.wait_ready(arena.session)
            over.set()
        return list(arena.tally.ended)

    assert runner.run(main()) == ["ok"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_while_no_decode_worker_is_there_leaves_nothing_held(
    runner: asyncio.Runner, arena: Arena, stream: bool
) -> None:
    async def main() -> None:
        for worker in of_role(arena, "decode"):
            worker.send(signal.SIGKILL)
            await worker.end()
        asking = asyncio.ensure_future(arena.ask(job(360 + stream, stream=stream)))
        done, _ = await asyncio.wait((asking,), timeout=1.0)
        assert not done, "it waits for one to come back"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    runner.run(main())


def test_a_client_that_leaves_an_answer_that_is_not_streamed_leaves_nothing_held(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> None:
        asking = asyncio.ensure_future(arena.ask(job(370, count=500, stream=False)))
        await until(lambda: seen(arena, "decode", "vllm:num_requests_running"), "it decodes", 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    runner.run(main())


def test_clients_of_a_killed_router_are_served_by_another_that_knows_its_load(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        ports = [free_port() for _ in range(4)]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        routers = [
            await arena.another_router(
                ports[n], "--peer-port", str(ports[2 + n]), "--peer", urls[3 - n]
            )
            for n in range(2)
        ]
        try:
            for url in urls[:2]:
                await until(lambda url=url: healthy(arena, url), "the router is ready", 20)
            asks = [
                asyncio.ensure_future(arena.ask(job(380 + n, 900, 500), urls[0])) for n in range(4)
            ]
            await until(lambda: told(arena, urls[1], 4), "the other knows of all four", 20)
            routers[0].kill()
            await asyncio.gather(*asks)
            # The clients' connections broke, which is all that a killed router can say.
            arena.tally.wrong.clear()
            ends = [await arena.ask(job(380 + n, 900), urls[1]) for n in range(4)]
            await until(lambda: told(arena, urls[1], 0), "the dead one's load is forgotten", 20)
            return ends
        finally:
            for router in routers:
                if router.returncode is None:
                    router.kill()
                await router.wait()

    assert runner.run(main()) == ["ok"] * 4


async def healthy(arena: Arena, url: str) -> bool:
    return await status(arena.session, f"{url}/health") == 200


async def told(arena: Arena, url: str, requests: int) -> bool:
    """Whether the router at *url* knows of so many requests that decode."""
    async with arena.session.get(f"{url}/debug/workers") as answer:
        workers = json.loads(await answer.read())
    return sum((each["load"] or {}).get("decode_requests", 0) for each in workers) == requests


def test_a_full_disk_under_the_logs_costs_no_request(runner: asyncio.Runner, arena: Arena) -> None:
    async def main() -> list[str]:
        port = free_port()
        router = await arena.another_router(port, log_to=FULL)
        for worker in arena.workers:
            worker.log_to = FULL
            worker.send(signal.SIGKILL)
            await worker.end()
            await worker.start()
        try:
            for worker in arena.workers:
                await worker.wait_ready(arena.session)
            url = f"http://127.0.0.1:{port}"
            await until(lambda: healthy(arena, url), "the router is ready", 20)
            of_role(arena, "decode")[0].http.cut_all()
            return [await arena.ask(job(400 + n), url) for n in range(4)]
        finally:
            router.kill()
            await router.wait()
            for worker in arena.workers:
                worker.log_to = arena.folder / f"{worker.name}.log"

    assert runner.run(main()) == ["ok"] * 4
