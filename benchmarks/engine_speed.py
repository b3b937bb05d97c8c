"""Prefill and decode speed of the engine, without HTTP and through it.

    python benchmarks/engine_speed.py            a 4-layer, width-256 model made on the spot
    python benchmarks/engine_speed.py --model DIR --http

Prompts come from one seed. The best and the median of the runs are printed: on a machine that
others use too, the best says what the code can do.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.core import CoreConfig, EngineCore
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.random_model import FOUR_MILLION, write_random_model
from spinney.engine.request import GenerateRequest, SamplingParams
from spinney.engine.tokenizer import Tokenizer, load_tokenizer
from spinney.kv.lease import Handle

SEED = 1
PROMPT, OUTPUT, BLOCK = 256, 64, 16


def make_core(executor: NumpyExecutor, tokenizer: Tokenizer) -> EngineCore:
    return EngineCore(
        executor,
        CoreConfig(max_sequences=64, max_step_tokens=512, max_model_len=2048, max_waiting=256),
        decode=lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip),
        eos_token_ids=frozenset(),
        lease_terms=lambda: (Handle("unused"), 0.0),
        rng=np.random.default_rng(SEED),
    )


def run(core: EngineCore, prompts: list[list[int]], output: int) -> tuple[float, float]:
    """Return the seconds of prefill steps and of decode steps."""
    for n, prompt in enumerate(prompts):
        params = SamplingParams(output, temperature=0, ignore_eos=True)
        core.add(GenerateRequest(f"r{n}", tuple(prompt), params), 0)
    prefill = decode = 0.0
    while True:
        started = time.perf_counter()
        work = core.begin().work
        if work is None:
            return prefill, decode
        core.commit(work, core.execute(work), 0)
        took = time.perf_counter() - started
        if work.batch.num_tokens > len(prompts):
            prefill += took
        else:
            decode += took


def report(what: str, rates: list[float]) -> None:
    best, median = max(rates), statistics.median(rates)
    print(f"{what:<42} best {best:>8,.0f} tok/s   median {median:>8,.0f} tok/s", flush=True)


def measure_core(directory: Path, repeat: int) -> None:
    checkpoint, tokenizer = load_checkpoint(directory), load_tokenizer(directory)
    executor = NumpyExecutor(checkpoint, num_blocks=2048, block_size=BLOCK)
    rng, vocab = np.random.default_rng(SEED), checkpoint.config.vocab_size

    def prompts(count: int, length: int) -> list[list[int]]:
        return [rng.integers(0, vocab, length).tolist() for _ in range(count)]

    for length in (256, 1024):
        times = [
            run(make_core(executor, tokenizer), prompts(1, length), 1)[0] for _ in range(repeat)
        ]
        report(f"prefill, {length} tokens", [length / took for took in times])
    for batch in (1, 4, 16):
        times = [
            run(make_core(executor, tokenizer), prompts(batch, PROMPT), OUTPUT)[1]
            for _ in range(repeat)
        ]
        report(f"decode, batch {batch}", [batch * (OUTPUT - 1) / took for took in times])


async def measure_http(directory: Path, repeat: int) -> None:
    command = [sys.executable, "-c", "from spinney.cmd.engine import engine; engine()"]
    flags = ["--model", str(directory), "--port", "0", "--log-json"]
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        command + flags, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        found = re.search(r'"url": ?"([^"]+)"', process.stderr.readline())
        assert found, "the engine did not start"
        async with aiohttp.ClientSession() as session:
            for batch in (1, 4, 16):
                rates, waits, gaps = [], [], []
                for turn in range(repeat):
                    started = time.perf_counter()
                    calls = (stream(session, found.group(1), turn * 100 + n) for n in range(batch))
                    seen = await asyncio.gather(*calls)
                    rates.append(batch * OUTPUT / (time.perf_counter() - started))
                    waits += [first for first, _ in seen]
                    gaps += [gap for _, gap in seen]
                report(f"HTTP, streamed, {batch} at a time, with prefill", rates)
                print(
                    f"{'':<42} TTFT {statistics.median(waits) * 1e3:.1f} ms, "
                    f"ITL {statistics.median(gaps) * 1e3:.2f} ms (medians)",
                    flush=True,
                )
    finally:
        process.terminate()
        process.wait(20)


async def stream(session: Any, url: str, seed: int) -> tuple[float, float]:
    """Return seconds to the first token and between tokens."""
    prompt = np.random.default_rng(seed).integers(0, 2000, PROMPT).tolist()
    body = {"prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True}
    started = time.perf_counter()
    first = last = 0.0
    tokens = 0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                last = time.perf_counter()
                first = first or last
                tokens += len(json.loads(line[6:])["choices"][0]["token_ids"])
    assert tokens == OUTPUT, f"{tokens} tokens came, {OUTPUT} were asked for"
    return first - started, (last - first) / (OUTPUT - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--http", action="store_true", help="measure through HTTP as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.model or write_random_model(Path(scratch) / "model", FOUR_MILLION)
        measure_core(directory, arguments.repeat)
        if arguments.http:
            asyncio.run(measure_http(directory, arguments.repeat))


if __name__ == "__main__":
    main()
