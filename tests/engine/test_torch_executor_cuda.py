"""What only a GPU can show: graphs, the kernel, and KV between two processes on one device.

Skipped where there is none. `docs/engine.md` has the command.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.random_model import RandomModel, write_random_model

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
if not torch.cuda.is_available():
    pytest.skip("no GPU is here", allow_module_level=True)

from spinney.engine.tensor.pool import KVPool  # noqa: E402
from spinney.engine.torch_executor import TorchExecutor  # noqa: E402

if TYPE_CHECKING:
    from spinney.engine.checkpoint import Checkpoint

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("default"),
    # One process after the other: they share the device's memory.
    pytest.mark.xdist_group("cuda"),
]

BLOCK, BLOCKS, MOST = 16, 256, 8
CLOSE = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.5}
"""Logits of the random model are about 5; what sixteen bits round differently adds up to this."""
MODEL = RandomModel(layers=3, hidden=256, inner=344, heads=8, kv_heads=2, max_positions=2048)
PEER_S = 120
LAST_GPU = f"cuda:{torch.cuda.device_count() - 1}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("cuda") / "model", MODEL)


@pytest.fixture(scope="module")
def checkpoint(directory: Path) -> Checkpoint:
    return load_checkpoint(directory)


def executor(
    checkpoint: Checkpoint,
    graph: str,
    attention: str = "gather",
    dtype: str = "float32",
    device: str = "cuda",
) -> TorchExecutor:
    options = DecodeOptions(graph, attention, most_sequences=MOST)
    return TorchExecutor(
        checkpoint,
        num_blocks=BLOCKS,
        block_size=BLOCK,
        device=device,
        dtype=dtype,
        options=options,
    )


def give_kv(*executors: TorchExecutor) -> None:
    noise = torch.Generator().manual_seed(1)
    memory = torch.randn(executors[0]._pool.memory.shape, generator=noise)
    for each in executors:
        each._pool.memory.copy_(memory)


def batches() -> list[Batch]:
    """Ragged decodes of every bucket, a mixed batch, and more sequences than are captured."""
    rng = np.random.default_rng(2)
    found = []
    for counts in ([1], [1] * 2, [1] * 3, [1] * 7, [1, 40, 1, 1, 9], [1] * (MOST + 2)):
        order = rng.permutation(BLOCKS).tolist()
        steps = []
        for count in counts:
            start = int(rng.integers(0, 300))
            needed = -(-(start + count) // BLOCK)
            table, order = order[:needed], order[needed:]
            tokens = rng.integers(4, 400, count).tolist()
            steps.append(SequenceStep(tokens, start, table, bool(rng.random() < 0.8)))
        found.append(Batch(tuple(steps)))
    return found


@pytest.mark.parametrize("dtype", sorted(CLOSE))
@pytest.mark.parametrize("attention", ["gather", "kernel"])
@pytest.mark.parametrize("graph", ["static", "cuda", "compile"])
@pytest.mark.parametrize("device", sorted({"cuda", LAST_GPU}))
def test_a_captured_step_gives_the_eager_logits_and_kv(
    checkpoint: Checkpoint, graph: str, attention: str, dtype: str, device: str
) -> None:
    torch.compiler.reset()
    captured = executor(checkpoint, graph, attention, dtype, device)
    eager = executor(checkpoint, "eager", "gather", dtype, device)
    assert captured.decodes_by == f"captured, {attention}"
    give_kv(captured, eager)
    before = captured._pool.memory.clone()
    for batch in [*batches(), *batches()]:
        got, want = captured.step(batch), eager.step(batch)
        np.testing.assert_allclose(got, want, atol=CLOSE[dtype], rtol=0)
    written = (before != eager._pool.memory).flatten(1).any(dim=1)
    written[-1] = True  # The scratch block.
    assert torch.equal(captured._pool.memory[~written], before[~written])
    torch.testing.assert_close(
        captured._pool.memory[:-1].float(),
        eager._pool.memory[:-1].float(),
        atol=CLOSE[dtype],
        rtol=0,
    )


@pytest.mark.parametrize("dtype", sorted(CLOSE))
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (14, 2, 64), (8, 8, 96)])
@pytest.mark.parametrize("sequences", [1, 5, 64])
def test_the_kernel_gives_what_gathered_blocks_give_in_sizes_of_real_models(
    sequences: int, heads: int, kv_heads: int, dim: int, dtype: str
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from spinney.engine.tensor.attention import GatherAttention, KernelAttention
    from spinney.engine.tensor.transformer import DTYPES

    rng = torch.Generator().manual_seed(3)
    width, device = 70, torch.device("cuda")
    total = width * sequences
    pool = KVPool(total, (1, 2, BLOCK, kv_heads, dim), DTYPES[dtype], device)
    pool.memory.copy_(torch.randn(pool.memory.shape, generator=rng))
    query = torch.randn((sequences, heads, dim), generator=rng).to(device, DTYPES[dtype])
    tables = torch.randperm(total, generator=rng).view(width, sequences).T
    tables = tables.to(device, torch.int32)
    lengths = torch.randint(1, width * BLOCK + 1, (sequences,), generator=rng)
    lengths = lengths.to(device, torch.int32)
    got = KernelAttention(kv_heads, BLOCK, 264).over(tables, lengths)(pool.layer(0), query)
    want = GatherAttention(kv_heads, BLOCK).over(tables, lengths)(
        pool.layer(0).float(), query.float()
    )
    close = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}[dtype]
    torch.testing.assert_close(got.float(), want, atol=close, rtol=0)


def test_auto_takes_graphs_and_the_kernel_and_warns_of_nothing(checkpoint: Checkpoint) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    with capture_logs() as lines:
        assert executor(checkpoint, "auto", "auto").decodes_by == "captured, kernel"
    assert not [line for line in lines if line["log_level"] in ("warning", "error")]


@pytest.mark.parametrize("staging_bytes", [None, 1, 3 << 20], ids=["default", "single", "3 MiB"])
def test_blocks_come_back_through_pinned_memory_as_they_were_written(
    staging_bytes: int | None,
) -> None:
    shape = (8, 2, BLOCK, 4, 64)
    pool = KVPool(200, shape, torch.bfloat16, torch.device("cuda"), staging_bytes)
    order = np.random.default_rng(4).permutation(200).tolist()
    data = np.random.default_rng(5).integers(0, 256, 200 * pool.memory[0].nbytes, np.uint8)
    sent = data.copy()
    pool.write(order, sent)
    sent[:] = 0  # The caller's again, as soon as the call returns.
    out = np.zeros_like(data)
    pool.read(order, out)
    np.testing.assert_array_equal(out, data)


def decode_elsewhere(model: str, device: str, task: Any) -> None:
    """Take over a prompt's blocks in another process, and go on with them."""
    peer = executor(load_checkpoint(Path(model)), "cuda", "auto", device=device)
    wire, blocks, token, start, count = task.recv()
    peer.write_blocks(blocks[: wire.nbytes // peer.layout.block_bytes], wire)
    found = []
    for at in range(start, start + count):
        logits = peer.step(Batch((SequenceStep([token], at, blocks, True),)))
        token = int(logits[0].argmax())
        found.append(token)
    task.send(found)


@pytest.mark.parametrize("there", sorted({"cuda:0", LAST_GPU}))
def test_a_process_goes_on_with_blocks_that_another_computed_on_its_device(
    directory: Path, checkpoint: Checkpoint, there: str
) -> None:
    prompt, count = np.random.default_rng(6).integers(4, 400, 75).tolist(), 20
    here = executor(checkpoint, "cuda", "auto", device="cuda:0")
    blocks, other = list(range(6, 0, -1)), [20, 11, 3, 40, 5, 6]
    logits = here.step(Batch((SequenceStep(prompt, 0, blocks, True),)))
    first = token = int(logits[0].argmax())
    held = -(-len(prompt) // BLOCK)
    wire = np.zeros(held * here.layout.block_bytes, np.uint8)
    here.read_blocks(blocks[:held], wire)
    want = []
    for at in range(75, 75 + count):
        logits = here.step(Batch((SequenceStep([token], at, blocks, True),)))
        token = int(logits[0].argmax())
        want.append(token)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    peer = context.Process(target=decode_elsewhere, args=(str(directory), there, theirs))
    peer.start()
    try:
        ours.send((wire, other, first, len(prompt), count))
        assert ours.poll(PEER_S), f"no answer in {PEER_S} s"
        assert ours.recv() == want
    finally:
        peer.join(10)
        peer.kill()
