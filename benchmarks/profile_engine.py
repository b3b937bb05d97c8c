"""Measures a model's steps on this machine and writes them as a profile for the step model.

    python benchmarks/profile_engine.py --name demo-cpu --out profile.yaml
    python benchmarks/profile_engine.py --model DIR --executor torch --device cuda:0

The best of several runs of each point is taken: on a machine that others use too, it says what the
code can do. The links are measured between two processes of this host, over shared memory and over
TCP on the loopback; for a network in between, put in your own figures.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import platform
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from spinney.engine.assembly import EngineSettings, make_executor, model_directory
from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.request import SamplingParams
from spinney.engine.sampling import Row, sample
from spinney.kv.layout import KVLayout
from spinney.kv.lease import Handle
from spinney.kv.reshard import Span
from spinney.kv.transfer.connector import PullRequest, Taken, checksum
from spinney.kv.transfer.tcp import TcpConnector, TransferServer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from spinney.engine.executor import Executor

CHUNKS = (1, 16, 64, 128, 256, 512)
STARTS = (0, 256, 1024)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (32, 256, 1024)
SMALL, LARGE = 64 * 1024, 64 * 1024 * 1024
TOKEN = KVLayout("bytes", "float32", 1, 1, 128, 1)
"""A token of a kilobyte, to measure links with."""
GREEDY = SamplingParams(1, temperature=0)


def best(work: Any, repeat: int) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def blocks(length: int, size: int, first: int = 0) -> list[int]:
    return list(range(first, first + -(-length // size)))


def run(executor: Executor, steps: list[SequenceStep]) -> None:
    """Compute a step and choose its tokens, as the engine does."""
    logits = executor.step(Batch(tuple(steps)))
    sample(logits, [Row(GREEDY, (), [], 0.0, ())] * len(logits))


def measure_prefill(executor: Executor, size: int, repeat: int) -> list[list[float]]:
    rows = []
    for count in CHUNKS:
        tokens = [n % 1000 for n in range(count)]
        row = []
        for start in STARTS:
            step = SequenceStep(tokens, start, blocks(start + count, size), True)
            row.append(round(best(lambda step=step: run(executor, [step]), repeat), 7))
        rows.append(row)
    return rows


def measure_decode(executor: Executor, size: int, repeat: int) -> list[list[float]]:
    rows = []
    for count in BATCHES:
        row = []
        for length in LENGTHS:
            each = -(-length // size)
            steps = [
                SequenceStep([n], length - 1, blocks(length, size, n * each), True)
                for n in range(count)
            ]
            row.append(round(best(lambda steps=steps: run(executor, steps), repeat), 7))
        rows.append(row)
    return rows


class Bytes:
    """A block source that serves the same bytes over and over."""

    def __init__(self, count: int) -> None:
        self.data = np.ones(count, np.uint8)

    async def take(self, request: PullRequest, allocate: Any) -> Taken:
        count = request.span.end * TOKEN.block_bytes
        out = allocate(count)
        out[:] = self.data[:count]
        return Taken(TOKEN, checksum(out))

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        pass


def serve(pipe: Connection) -> None:
    async def main() -> None:
        server = TransferServer(Bytes(LARGE), "127.0.0.1", 0)
        pipe.send(server.port)
        await server.serve()

    asyncio.run(main())


async def pull(port: int, count: int, shared: bool, repeat: int) -> float:
    times, target = [], np.ones(count, np.uint8)
    for _ in range(repeat):
        started = time.perf_counter()
        request = PullRequest(Handle("x"), TOKEN, "", Span(0, count // TOKEN.block_bytes))
        async with TcpConnector(shared_memory=shared).pull("127.0.0.1", port, request) as pulled:
            data = pulled.data[:count]
            assert checksum(data) == pulled.checksum
            target[:] = data
        times.append(time.perf_counter() - started)
    return min(times)


def measure_link(shared: bool, repeat: int) -> dict[str, float]:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        port = here.recv()
        small = asyncio.run(pull(port, SMALL, shared, repeat))
        large = asyncio.run(pull(port, LARGE, shared, repeat))
    finally:
        process.kill()
        process.join(10)
    rate = (LARGE - SMALL) / (large - small)
    return {"latency_s": round(max(0.0, small - SMALL / rate), 6), "bytes_per_s": round(rate)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--name", default="profile")
    parser.add_argument("--executor", choices=["numpy", "torch"], default="numpy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--out", type=Path, help="Default: standard output.")
    options = parser.parse_args()
    settings = EngineSettings(
        model=options.model,
        engine_id="profile",
        executor=options.executor,
        torch_device=options.device,
        torch_dtype=options.dtype,
        threads=options.threads,
        block_size=options.block_size,
    )
    checkpoint = load_checkpoint(model_directory(options.model))
    size = options.block_size
    executor = make_executor(settings, checkpoint, max(BATCHES) * -(-max(LENGTHS) // size))
    prefill = measure_prefill(executor, size, options.repeat)
    decode = measure_decode(executor, size, options.repeat)
    profile = {
        "name": options.name,
        "source": (
            f"Measured with benchmarks/profile_engine.py: best of {options.repeat} per point, "
            f"model {Path(options.model).name}, executor {options.executor} on {options.device} "
            f"({platform.machine()}, {options.threads} thread), {options.dtype}; link host is "
            f"shared memory, the others TCP on the loopback."
        ),
        "kv_bytes_per_token": executor.layout.token_bytes,
        "chunk_tokens": max(CHUNKS),
        "links": {
            "host": measure_link(True, options.repeat),
            "far": measure_link(False, options.repeat),
        },
        "measured": {
            "prefill": {"rows": list(CHUNKS), "columns": list(STARTS), "seconds": prefill},
            "decode": {"rows": list(BATCHES), "columns": list(LENGTHS), "seconds": decode},
            "fixed_s": min(prefill[0][0], decode[0][0]),
        },
    }
    text = yaml.safe_dump(profile, sort_keys=False, default_flow_style=None, width=100)
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
