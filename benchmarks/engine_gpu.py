"""What the torch executor reaches: prefill, decode against memory bandwidth, KV hand-over.

    python benchmarks/engine_gpu.py                            the first GPU; on a CPU where none is
    python benchmarks/engine_gpu.py --device cpu
    python benchmarks/engine_gpu.py --size 8b --to-device cuda:1

The weights are random, drawn from one seed; the sizes are those of real models and follow the
memory of the device. The floor of a decode step is the time in which its weights and the KV it
attends to can be read once, at the bandwidth that a large copy on the device reaches. Every way to
decode runs in one process, on the same sequences. GB are 10^9 bytes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spinney.engine.checkpoint import Checkpoint
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.model import ModelConfig, RopeScaling, gather_weights
from spinney.engine.random_model import FOUR_MILLION, write_random_model
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.engine.torch_executor import TorchExecutor

SEED, BLOCK = 1, 16
DRAWN = 1 << 22
"""Random numbers that weights are made of; more would take minutes and change no time."""
WARM_UPS = 3
BANDWIDTH_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}


@dataclass(frozen=True)
class Size:
    """A model's sizes, and what is measured with it."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    prompts: tuple[int, ...] = (512, 2048, 8192)
    chunk: int = 2048
    contexts: tuple[int, ...] = (256, 2048)
    batches: tuple[int, ...] = (1, 8, 32, 64)


SIZES = {
    "4m": Size(
        FOUR_MILLION.hidden,
        FOUR_MILLION.inner,
        FOUR_MILLION.layers,
        FOUR_MILLION.heads,
        FOUR_MILLION.kv_heads,
        FOUR_MILLION.vocab,
        tied=False,
        prompts=(256, 1024),
        chunk=512,
        contexts=(256, 1024),
        batches=(1, 4, 16),
    ),
    "1b": Size(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "8b": Size(4096, 14_336, 32, 32, 8, 128_256, tied=False),
}
NEEDED_GB = {"8b": 60, "1b": 12, "4m": 0}
"""Memory of a device with room for weights in sixteen bits, KV and captures."""


def config_of(size: Size) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_layers=size.layers,
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(),
        max_position_embeddings=max(*size.prompts, *size.contexts) + 2 * BLOCK,
        tie_word_embeddings=size.tied,
        qkv_bias=False,
        output_bias=False,
        qk_norm=False,
        dtype="float32",
        bos_token_ids=(0,),
        eos_token_ids=(1,),
    )


def random_checkpoint(config: ModelConfig) -> Checkpoint:
    """Return weights in memory; all layers share one layer's, and become many on the device."""
    drawn = np.random.default_rng(SEED).standard_normal(DRAWN, np.float32)

    def draw(name: str, shape: tuple[int, ...]) -> Any:
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        return np.resize(drawn, shape) * np.float32(1.6 / shape[-1] ** 0.5)

    one = gather_weights(dataclasses.replace(config, num_layers=1), draw)
    weights = dataclasses.replace(one, layers=one.layers * config.num_layers)
    return Checkpoint(Path("random"), config, weights, f"random-{config.hidden_size}")


def bandwidth(torch: Any, device: Any) -> float:
    """Return bytes per second that a large copy reads and writes, the best of ten."""
    source = torch.ones(BANDWIDTH_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    copy()
    return float(2 * source.nbytes / min(seconds(copy, 10)))


def seconds(function: Callable[[], object], repeat: int) -> list[float]:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


def measure_prefill(executor: TorchExecutor, size: Size, repeat: int) -> None:
    rng = np.random.default_rng(SEED)
    for length in size.prompts:
        prompt = rng.integers(0, size.vocab, length).tolist()
        blocks = range(-(-length // BLOCK))

        def run(prompt: list[int] = prompt, blocks: range = blocks) -> None:
            for start in range(0, len(prompt), size.chunk):
                tokens = prompt[start : start + size.chunk]
                is_last = start + len(tokens) == len(prompt)
                executor.step(Batch((SequenceStep(tokens, start, blocks, is_last),)))

        run()
        times = seconds(run, repeat)
        print(
            f"prefill {length:>6} tokens, chunks of {size.chunk}   "
            f"best {length / min(times):>9,.0f} tok/s   "
            f"median {length / statistics.median(times):>9,.0f} tok/s",
            flush=True,
        )


def decode_batch(size: Size, batch: int, context: int) -> Batch:
    rng = np.random.default_rng(SEED)
    width = -(-(context + 1) // BLOCK)
    order = rng.permutation(width * batch).reshape(batch, width).tolist()
    tokens = rng.integers(0, size.vocab, batch).tolist()
    return Batch(
        tuple(
            SequenceStep([token], context, table, True)
            for token, table in zip(tokens, order, strict=True)
        )
    )


def measure_decode(
    executors: dict[str, TorchExecutor], size: Size, repeat: int, rate: float
) -> None:
    """Time the same steps on all *executors* in turn, so that other work disturbs all alike."""
    for context in size.contexts:
        for batch in size.batches:
            work = decode_batch(size, batch, context)
            times: dict[str, list[float]] = {way: [] for way in executors}
            for turn in range(repeat + WARM_UPS):
                for way, executor in executors.items():
                    took = seconds(partial(executor.step, work), 1)
                    times[way] += took if turn >= WARM_UPS else []
            for way, executor in executors.items():
                moved = executor.weight_bytes + batch * context * executor.layout.token_bytes
                report_decode(way, batch, context, times[way], moved / rate)


def report_decode(way: str, batch: int, context: int, times: list[float], floor: float) -> None:
    best, median = min(times), statistics.median(times)
    print(
        f"decode {way:<16} batch {batch:>3}, context {context:>5}   best {best * 1e3:>8.3f} ms   "
        f"median {median * 1e3:>8.3f} ms   floor {floor * 1e3:>7.3f} ms ({floor / best:>4.0%})   "
        f"{batch / best:>8,.0f} tok/s",
        flush=True,
    )


def ways(device_type: str) -> list[tuple[str, str]]:
    """Return every way to decode that is compared: the graph and the attention."""
    if device_type == "cuda":
        graphs = ("eager", "static", "cuda", "compile")
        return [(graph, attention) for attention in ("gather", "kernel") for graph in graphs]
    return [(graph, "gather") for graph in ("eager", "static", "compile")]


def make(
    checkpoint: Checkpoint, size: Size, options: argparse.Namespace, graph: str, attention: str
) -> TorchExecutor | None:
    """Return an executor that decodes so; None, and the reason on a line, where it cannot."""
    from spinney.engine.torch_executor import TorchExecutor

    started = time.perf_counter()
    needed = max(size.batches) * -(-(max(size.contexts) + 1) // BLOCK)
    try:
        executor = TorchExecutor(
            checkpoint,
            num_blocks=max(needed, -(-max(size.prompts) // BLOCK)),
            block_size=BLOCK,
            device=options.device,
            dtype=options.dtype,
            threads=options.threads,
            options=DecodeOptions(graph, attention, most_sequences=max(size.batches)),
        )
    except BadInputError as error:
        print(f"{graph}, {attention}: {error}", flush=True)
        return None
    print(f"{graph}, {attention}: ready in {time.perf_counter() - started:.1f} s", flush=True)
    return executor


def measure(torch: Any, options: argparse.Namespace, size: Size) -> None:
    device = torch.device(options.device)
    rate = bandwidth(torch, device)
    print(f"a copy on {device} moves {rate / 1e9:,.1f} GB/s, read and written", flush=True)
    checkpoint = random_checkpoint(config_of(size))
    held: dict[str, TorchExecutor] = {}
    prefilled = False
    for graph, attention in ways(device.type):
        if options.only and graph not in options.only:
            continue
        executor = make(checkpoint, size, options, graph, attention)
        if executor is None:
            continue
        if not prefilled:
            prefilled = True
            print(f"weights that a step reads: {executor.weight_bytes / 1e9:,.2f} GB", flush=True)
            measure_prefill(executor, size, max(3, options.repeat // 5))
        held[f"{graph}, {attention}"] = executor
        if device.type == "cuda":
            # A GPU has no room for the weights many times over.
            measure_decode(held, size, options.repeat, rate)
            executor.close()
            held.clear()
            del executor
    measure_decode(held, size, options.repeat, rate)


def choose_size(torch: Any, device: str) -> str:
    if not device.startswith("cuda"):
        return "4m"
    memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
    return next(name for name, needed in NEEDED_GB.items() if memory >= needed * 1e9)


def measure_handover(options: argparse.Namespace) -> None:
    from handover_speed import run

    to_device = options.to_device or options.device
    print(f"hand-over from a process on {options.device} to one on {to_device}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        model = str(write_random_model(Path(scratch) / "model", FOUR_MILLION))
        run(model, options.blocks, options.repeat, options.device, to_device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", help="torch device; default: a GPU where there is one")
    parser.add_argument("--to-device", help="device of the hand-over's reader; default: the same")
    parser.add_argument("--size", choices=sorted(SIZES), help="default: by the device's memory")
    parser.add_argument("--only", nargs="*", help="values of --decode-graph; default: all")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU's arithmetic")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=1024, help="of the largest hand-over")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("torch is not installed: nothing is measured; pip install 'spinney[torch]'")
        return
    has_gpu = torch.cuda.is_available()
    options.device = options.device or ("cuda:0" if has_gpu else "cpu")
    is_gpu = options.device.startswith("cuda")
    options.dtype = options.dtype or ("bfloat16" if is_gpu else "float32")
    name = options.size or choose_size(torch, options.device)
    what = torch.cuda.get_device_name(options.device) if is_gpu else "a CPU, which is no GPU"
    print(f"torch {torch.__version__} on {what}; model {name}, {options.dtype}, seed {SEED}")
    measure(torch, options, SIZES[name])
    measure_handover(options)


if __name__ == "__main__":
    main()
