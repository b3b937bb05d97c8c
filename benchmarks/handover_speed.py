"""Speed of KV hand-overs: one process serves blocks, another pulls, checks and stores them.

    python benchmarks/handover_speed.py
    python benchmarks/handover_speed.py --device cuda:0 --to-device cuda:1

Every transport, NIXL where it is installed; several sizes. A pull is timed from the call to the
bytes standing, checked, in the reader's block pool; MB are 10^6 bytes. Without a device both sides
have NumPy's pool, with one torch's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import uvloop

from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.random_model import FOUR_MILLION, write_random_model
from spinney.engine.worker_thread import WorkerThread
from spinney.kv.lease import Handle
from spinney.kv.reshard import Span
from spinney.kv.transfer import nixl
from spinney.kv.transfer.connector import HandoverError, Pulled, PullRequest, Taken, checksum
from spinney.kv.transfer.tcp import TcpConnector, TransferServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from spinney.engine.executor import Executor

BLOCK = 16
START_S = 120


class Source:
    """Serves the first blocks of its pool to whoever asks."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.thread = WorkerThread("serving")

    async def take(
        self, request: PullRequest, allocate: Callable[[int], NDArray[np.uint8]]
    ) -> Taken:
        def copy() -> Taken:
            blocks = request.span.blocks(BLOCK)
            out = allocate(len(blocks) * self.executor.layout.block_bytes)
            self.executor.read_blocks(blocks, out)
            return Taken(self.executor.layout, checksum(out))

        return await self.thread.run(copy)

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        assert failure is None


def make_executor(model: str, num_blocks: int, device: str | None) -> Executor:
    checkpoint = load_checkpoint(Path(model))
    if device is None:
        return NumpyExecutor(checkpoint, num_blocks=num_blocks, block_size=BLOCK)
    from spinney.engine.torch_executor import TorchExecutor

    return TorchExecutor(checkpoint, num_blocks=num_blocks, block_size=BLOCK, device=device)


def serve(model: str, num_blocks: int, device: str | None, pipe: Connection) -> None:
    async def main() -> None:
        executor = make_executor(model, num_blocks, device)
        count = num_blocks * executor.layout.block_bytes // 4
        noise = np.random.default_rng(1).standard_normal(count, np.float32)
        executor.write_blocks(range(num_blocks), noise.view(np.uint8))
        memory = nixl.RemoteMemory("serving") if nixl.installed() else None
        server = TransferServer(Source(executor), "127.0.0.1", 0, memory=memory)
        pipe.send(server.port)
        await server.serve()

    uvloop.run(main())


def store(executor: Executor, pulled: Pulled) -> None:
    assert checksum(pulled.data) == pulled.checksum
    executor.write_blocks(range(pulled.data.nbytes // executor.layout.block_bytes), pulled.data)


async def measure(model: str, port: int, num_blocks: int, repeat: int, device: str | None) -> None:
    executor, thread = make_executor(model, num_blocks, device), WorkerThread("reading")
    memory = nixl.RemoteMemory("reading") if nixl.installed() else None
    connectors = [
        ("shared memory", TcpConnector()),
        ("tcp", TcpConnector(shared_memory=False)),
        *([("nixl", TcpConnector(shared_memory=False, memory=memory))] if memory else []),
    ]
    for name, connector in connectors:
        for count in (4, 64, num_blocks):
            times, failures = [], []
            for _ in range(repeat):
                started = time.perf_counter()
                request = PullRequest(Handle("h"), executor.layout, "", Span(0, count * BLOCK))
                try:
                    async with connector.pull("127.0.0.1", port, request) as pulled:
                        await thread.run(partial(store, executor, pulled))
                except HandoverError as error:
                    # A crowded machine misses deadlines that are meant to be missed.
                    failures.append(str(error))
                    continue
                times.append(time.perf_counter() - started)
            if failures:
                print(f"{name:<14} {count * BLOCK:>6} tokens {len(failures)} failed: {failures[0]}")
            if not times:
                continue
            size = count * executor.layout.block_bytes
            best, median = min(times), statistics.median(times)
            print(
                f"{name:<14} {count * BLOCK:>6} tokens "
                f"{size / 1e6:>8.2f} MB   best {best * 1e3:>7.2f} ms {size / best / 1e6:>7,.0f} "
                f"MB/s   median {median * 1e3:>7.2f} ms {size / median / 1e6:>7,.0f} MB/s",
                flush=True,
            )


def run(
    model: str, num_blocks: int, repeat: int, device: str | None, to_device: str | None
) -> None:
    """Serve from *device* in another process, and pull to *to_device* in this one."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(model, num_blocks, device, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(START_S):
            raise SystemExit(f"the serving process did not start within {START_S} s")
        uvloop.run(measure(model, ours.recv(), num_blocks, repeat, to_device))
    finally:
        process.terminate()
        process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--blocks", type=int, default=1024)
    parser.add_argument("--device", help="torch device of the serving process")
    parser.add_argument("--to-device", help="of the reading process; default: the same")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = str(write_random_model(Path(scratch) / "model", FOUR_MILLION))
        to_device = options.to_device or options.device
        run(model, options.blocks, options.repeat, options.device, to_device)


if __name__ == "__main__":
    main()
