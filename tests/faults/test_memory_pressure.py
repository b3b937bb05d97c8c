"""Hand-overs where there is no room for KV, on real processes with pools of a few blocks.

A decode worker that has no free block cannot pull yet, and its request waits; the prefill worker
keeps the blocks of that prompt until the lease ends, and what has no room beside them waits too.
Neither may cost a request, and all blocks are free when it is over.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.worker_process import MODEL
from tests.faults.arena import Arena, Job, Pools, WorkerProcess, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("faults"),
    # A link that is cut before its first step leaves its writer to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BLOCK = 16
POOL = Pools(prefill=20, decode=20, context=256)
HELD = 16 * BLOCK - 1
"""Tokens of a prompt that leaves 4 of 20 blocks free."""
PROMPT = 10 * BLOCK
"""Tokens of a prompt that has no room beside that; two fill a pool, a third has to wait."""
PATIENCE = ("--prefill-deadline", "20", "--first-byte-deadline", "20")
"""These requests wait for memory; no other worker would have it sooner."""
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
LEASES, EXPIRED = "spinney:kv_leases", "spinney:kv_leases_expired_total"


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("tight"), 12, pools=POOL, patience=PATIENCE)
    runner.run(arena.__aenter__())
    yield arena
    runner.run(arena.__aexit__())


def of_role(arena: Arena, role: str) -> list[WorkerProcess]:
    return [worker for worker in arena.workers if worker.role == role]


def job(number: int, length: int = PROMPT, count: int = 10) -> Job:
    prompt = [(number * 37 + n * 11) % 1700 + 300 for n in range(length)]
    return Job(number, prompt, count, stream=number % 2 == 0)


def asked(arena: Arena, numbers: range, **size: int) -> list[asyncio.Task[str]]:
    return [asyncio.ensure_future(arena.ask(job(number, **size))) for number in numbers]


async def total(arena: Arena, role: str, metric: str) -> float:
    found = [await arena.metrics(worker) for worker in of_role(arena, role)]
    return sum(each.get(metric, 0.0) for each in found)


async def reaches(arena: Arena, role: str, metric: str, least: float) -> None:
    async def there() -> bool:
        return await total(arena, role, metric) >= least

    await until(there, f"{metric} of {role} workers is {least:g}", 10)


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@asynccontextmanager
async def full(arena: Arena, workers: list[WorkerProcess]) -> AsyncIterator[None]:
    """Have most blocks of each of *workers* held, for a prompt that does not come."""
    silent = await asyncio.start_server(_say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(silent)
        holds = [
            asyncio.ensure_future(_hold(arena, worker, number, port))
            for number, worker in enumerate(workers)
        ]
        try:
            await reaches(arena, workers[0].role, RUNNING, len(workers))
            yield
        finally:
            for hold in holds:
                hold.cancel()
            await asyncio.gather(*holds, return_exceptions=True)


async def _hold(arena: Arena, worker: WorkerProcess, number: int, silent: int) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": job(900 + number, HELD).prompt,
        "max_tokens": 1,
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "remote_engine_id": "silent",
            "remote_request_id": "none",
            "remote_host": "127.0.0.1",
            "remote_port": silent,
        },
    }
    url = f"http://127.0.0.1:{worker.port}/v1/completions"
    async with arena.session.post(url, json=body) as answer:
        await answer.read()


def test_a_decode_worker_without_free_blocks_pulls_once_it_has_some(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        async with full(arena, of_role(arena, "decode")):
            asks = asked(arena, range(2))
            await reaches(arena, "decode", WAITING, 2)
            assert await total(arena, "prefill", LEASES) == 2
        return list(await asyncio.gather(*asks))

    assert runner.run(main()) == ["ok"] * 2
    assert arena.tally.handovers == {"pulled": 2}


def test_prompts_whose_leases_end_before_there_is_a_free_block_are_computed_again(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        async with full(arena, of_role(arena, "decode")):
            before = await total(arena, "prefill", EXPIRED)
            asks = asked(arena, range(10, 12))
            await reaches(arena, "decode", WAITING, 2)
            await reaches(arena, "prefill", EXPIRED, before + 2)
            # The prefill workers have their blocks back while the decode workers have none yet.
            assert await total(arena, "prefill", "vllm:kv_cache_usage_perc") == 0
            assert await total(arena, "decode", WAITING) == 2
        return list(await asyncio.gather(*asks))

    assert runner.run(main()) == ["ok"] * 2
    assert arena.tally.handovers == {"recomputed lease_expired": 2}


def test_prefill_workers_full_of_leases_take_further_prompts_as_those_end(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        async with full(arena, of_role(arena, "decode")):
            asks = asked(arena, range(20, 28))
            await reaches(arena, "prefill", LEASES, 3)
            await reaches(arena, "prefill", WAITING, 1)
        return list(await asyncio.gather(*asks))

    assert runner.run(main()) == ["ok"] * 8
    assert arena.tally.handovers["pulled"] > 0


def test_decode_workers_that_die_while_prefill_workers_are_full_of_leases_cost_no_request(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        decoders = of_role(arena, "decode")
        async with full(arena, decoders):
            asks = asked(arena, range(30, 38))
            await reaches(arena, "prefill", WAITING, 1)
            for worker in decoders:
                worker.send(signal.SIGKILL)
                await worker.end()
        for worker in decoders:
            await worker.start()
        return list(await asyncio.gather(*asks))

    assert runner.run(main()) == ["ok"] * 8


def test_a_prefill_worker_that_dies_full_of_leases_costs_no_request(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        async with full(arena, of_role(arena, "decode")):
            asks = asked(arena, range(40, 48))
            await reaches(arena, "prefill", WAITING, 1)
            await reaches(arena, "decode", WAITING, 1)
            for worker in of_role(arena, "prefill"):
                worker.send(signal.SIGKILL)
                await worker.end()
        return list(await asyncio.gather(*asks))

    assert runner.run(main()) == ["ok"] * 8


def test_clients_that_leave_while_no_block_is_free_leave_nothing_held(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> None:
        async with full(arena, of_role(arena, "decode")):
            asks = asked(arena, range(50, 58))
            await reaches(arena, "prefill", WAITING, 1)
            await reaches(arena, "decode", WAITING, 1)
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)

    runner.run(main())


def test_requests_that_outgrow_the_pool_after_their_hand_over_are_all_answered(
    runner: asyncio.Runner, arena: Arena
) -> None:
    async def main() -> list[str]:
        asks = asked(arena, range(60, 66), length=6 * BLOCK, count=9 * BLOCK)
        ends = list(await asyncio.gather(*asks))
        assert await total(arena, "decode", "vllm:num_preemptions_total") > 0
        return ends

    assert runner.run(main()) == ["ok"] * 6
