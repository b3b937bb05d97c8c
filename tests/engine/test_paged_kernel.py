"""The kernel that reads KV in place says what gathered KV says, and reads nothing else.

Without a GPU this needs Triton's interpreter, which has to be chosen before Triton is loaded:

    TRITON_INTERPRET=1 pytest tests/engine/test_paged_kernel.py

A test in `test_paged_kernel_builds.py` does that.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.random_model import RandomModel, write_random_model

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("triton", reason="Triton is not installed")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU is here, and no interpreter is asked for", allow_module_level=True)

from spinney.engine.tensor import paged_kernel  # noqa: E402
from spinney.engine.tensor.attention import GatherAttention, choose_attention  # noqa: E402
from spinney.engine.torch_executor import TorchExecutor  # noqa: E402
from spinney.errors import BadInputError  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from spinney.engine.checkpoint import Checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")


def gathered(pool: Any, query: Any, tables: Any, lengths: Any) -> Any:
    over = GatherAttention(pool.shape[3], pool.shape[2]).over(tables, lengths)
    return over(pool, query)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes of a model and lengths of sequences; long ones have several tiles and shares."""
    lengths = draw(st.lists(st.integers(1, 200), min_size=1, max_size=3))
    return {
        "lengths": lengths,
        "kv_heads": draw(st.integers(1, 3)),
        "group": draw(st.sampled_from([1, 2, 3, 7, 17])),
        "dim": draw(st.sampled_from([8, 16, 24, 64])),
        "size": draw(st.sampled_from([1, 4, 16, 48])),
        "programs": draw(st.sampled_from([1, 4, 64])),
        "spare": draw(st.integers(0, 3)),
        "seed": draw(st.integers(0, 99)),
    }


def make(case: dict[str, Any], dtype: Any) -> tuple[Any, Any, Any, Any]:
    """Return a pool, queries, tables and lengths; the pool has a layer before and one behind."""
    size, lengths = case["size"], case["lengths"]
    width = -(-max(lengths) // size) + case["spare"]
    count, total = len(lengths), len(lengths) * width
    noise = torch.Generator().manual_seed(case["seed"])
    shape = (total, 3, 2, size, case["kv_heads"], case["dim"])
    pool = torch.randn(shape, generator=noise).to(DEVICE, dtype)[:, 1]
    heads = case["kv_heads"] * case["group"]
    query = torch.randn((count, heads, case["dim"]), generator=noise).to(DEVICE, dtype)
    tables = torch.randperm(total, generator=noise).view(width, count).T
    return (
        pool,
        query,
        tables.to(DEVICE, torch.int32),
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@settings(max_examples=12)
@given(case=cases())
def test_any_shape_gives_what_gathered_blocks_give(dtype: Any, case: dict[str, Any]) -> None:
    pool, query, tables, lengths = make(case, dtype)
    kernel = paged_kernel.PagedKernel(case["kv_heads"], case["size"], case["programs"])
    want = gathered(pool.float(), query.float(), tables, lengths)
    got = kernel.attend(pool, query, tables, lengths)
    assert got.dtype == dtype
    loose = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), want, rtol=loose, atol=loose)


@settings(max_examples=8)
@given(case=cases())
def test_nothing_beyond_a_sequences_length_is_read(case: dict[str, Any]) -> None:
    pool, query, tables, lengths = make(case, torch.float32)
    kernel = paged_kernel.PagedKernel(case["kv_heads"], case["size"], case["programs"])
    want = gathered(pool, query, tables, lengths)
    poisoned, wild = torch.full_like(pool, math.nan), torch.full_like(tables, 2**30)
    for row, length in enumerate(case["lengths"]):
        for at in range(-(-length // case["size"])):
            end = min(case["size"], length - at * case["size"])
            block = int(tables[row, at])
            poisoned[block, :, :end] = pool[block, :, :end]
            wild[row, at] = block
    got = kernel.attend(poisoned, query, wild, lengths)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("sequences", "tokens", "want"),
    [(1, 100_000, 32), (1, 128, 2), (1, 1, 1), (4, 100_000, 16), (5, 100_000, 16), (500, 9_000, 1)],
)
def test_a_device_is_filled_by_few_sequences_in_many_shares_or_many_in_few(
    sequences: int, tokens: int, want: int
) -> None:
    assert paged_kernel.number_of_shares(sequences, 4, tokens, 256) == want


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("kernel") / "model"
    return load_checkpoint(write_random_model(directory, RandomModel(heads=6, kv_heads=2)))


def executor(checkpoint: Checkpoint, graph: str, attention: str) -> TorchExecutor:
    options = DecodeOptions(graph, attention, most_sequences=4)
    return TorchExecutor(
        checkpoint, num_blocks=64, block_size=8, device=DEVICE, threads=1, options=options
    )


@pytest.mark.parametrize("graph", ["eager", "static"])
def test_an_executor_with_the_kernel_says_what_one_says_that_gathers(
    checkpoint: Checkpoint, graph: str
) -> None:
    kernel = executor(checkpoint, graph, "kernel")
    gather = executor(checkpoint, "eager", "gather")
    assert kernel.decodes_by.endswith("kernel")
    count = 64 * kernel.layout.block_bytes // 4
    noise = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    for each in (kernel, gather):
        each.write_blocks(range(64), noise.view(np.uint8))
    batch = Batch(
        (
            SequenceStep([7], 0, [3], True),
            SequenceStep([5, 9, 11], 17, [8, 1, 30], True),
            SequenceStep([8], 150, list(range(40, 60)), True),
            SequenceStep([9], 30, [0, 2, 4, 6], True),
        )
    )
    np.testing.assert_allclose(kernel.step(batch), gather.step(batch), rtol=1e-3, atol=1e-3)


def test_a_kernel_that_says_something_else_is_refused_by_name_and_not_taken_by_auto(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = paged_kernel._attend
    monkeypatch.setattr(paged_kernel, "_attend", lambda *args: right(*args) + 0.01)
    config, device = checkpoint.config, torch.device(DEVICE)
    with pytest.raises(BadInputError, match=r"attention kernel: the kernel is off by 0\.01"):
        choose_attention("kernel", config, 8, device, torch.float32)
    assert choose_attention("auto", config, 8, device, torch.float32).name == "gather"
