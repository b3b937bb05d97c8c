"""A model shared by ranks computes what it computes in one piece, in every family and executor."""

from __future__ import annotations

import functools
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.part import WHOLE, Part, check_ranks
from spinney.engine.random_model import RandomModel, write_random_model
from spinney.errors import BadInputError
from spinney.kv.reshard import Span, reshard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Executor, FloatArray

FAMILIES = {
    "llama": RandomModel(heads=6, kv_heads=3, hidden=96, inner=101),
    "qwen2": RandomModel("Qwen2ForCausalLM", seed=1),
    "qwen3": RandomModel("Qwen3ForCausalLM", kv_heads=1, seed=2),
}
RANKS = {"llama": (2, 3, 6), "qwen2": (2, 4), "qwen3": (2, 4)}
BLOCK, BLOCKS = 4, 32
SIZES = {"num_blocks": BLOCKS, "block_size": BLOCK}
NEEDS_TORCH = [
    pytest.mark.torch,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="the torch extra is missing"
    ),
]
EXECUTORS = [
    "numpy",
    pytest.param("torch", marks=NEEDS_TORCH),
    pytest.param("torch, static decode", marks=NEEDS_TORCH),
]


@dataclass
class Meeting:
    """The sums of ranks that are threads."""

    ranks: int
    sums: dict[int, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.ranks)

    def rank(self, rank: int) -> Any:
        @dataclass
        class Rank:
            meeting: Meeting

            def total(self, partial: FloatArray) -> FloatArray:
                self.meeting.sums[rank] = partial.copy()
                self.meeting.barrier.wait(10)
                summed: FloatArray = np.sum(
                    [self.meeting.sums[at] for at in range(self.meeting.ranks)], axis=0
                )
                self.meeting.barrier.wait(10)
                return summed

        return Rank(self)


def executor_of(kind: str) -> Callable[..., Executor]:
    if kind == "numpy":
        return NumpyExecutor
    from spinney.engine.torch_executor import TorchExecutor

    graph = "eager" if kind == "torch" else "static"
    return functools.partial(TorchExecutor, threads=1, options=DecodeOptions(graph))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp(family) / "model"
    return load_checkpoint(write_random_model(directory, FAMILIES[family]))


def steps() -> list[Batch]:
    """A prefill in two chunks beside another prompt, and then two tokens of each."""
    rng = np.random.default_rng(0)
    first, second = (rng.integers(4, 400, count).tolist() for count in (13, 6))
    tables = ([5, 0, 9, 2], [7, 1, 3])
    return [
        Batch((SequenceStep(first[:7], 0, tables[0], False),)),
        Batch(
            (
                SequenceStep(first[7:], 7, tables[0], True),
                SequenceStep(second, 0, tables[1], True),
            )
        ),
        Batch((SequenceStep([11], 13, tables[0], True), SequenceStep([12], 6, tables[1], True))),
    ]


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_ranks_together_say_what_one_says_and_hold_what_one_holds(
    checkpoint: Checkpoint, family: str, kind: str, which: int
) -> None:
    if which >= len(RANKS[family]):
        pytest.skip("so many ranks are not tried with this family")
    ranks, make = RANKS[family][which], executor_of(kind)
    alone = make(checkpoint, **SIZES, part=WHOLE)
    meeting = Meeting(ranks)
    parts = [Part(rank, ranks, meeting.rank(rank)) for rank in range(ranks)]
    group = [make(checkpoint, **SIZES, part=part) for part in parts]
    with ThreadPoolExecutor(ranks) as threads:
        for batch in steps():
            found = list(threads.map(lambda executor, batch=batch: executor.step(batch), group))
            expected = alone.step(batch)
            for logits in found:
                # The same bits at each rank, and but for rounding those of one.
                np.testing.assert_array_equal(logits, found[0])
                np.testing.assert_allclose(logits, expected, atol=2e-4)
    layout, blocks = group[0].layout, [5, 0, 9, 2]
    wire = np.zeros(len(blocks) * layout.block_bytes, np.uint8)
    for part, executor in zip(parts, group, strict=True):
        place = layout.shard_bytes(part.shard(layout), len(blocks))
        executor.read_blocks(blocks, wire[place.start : place.stop])
    one = np.zeros(len(blocks) * alone.layout.block_bytes, np.uint8)
    alone.read_blocks(blocks, one)
    joined = reshard(wire, Span(0, 14), layout, alone.layout)
    np.testing.assert_allclose(
        joined.view(np.float32)[: one.size // 4], one.view(np.float32), atol=2e-4
    )


def test_too_many_ranks_are_refused_with_what_would_do(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadInputError, match="cannot share"):
        check_ranks(checkpoint.config, checkpoint.config.num_heads + 1)


def test_a_rank_loads_no_more_than_its_part(checkpoint: Checkpoint) -> None:
    whole = checkpoint.weights.layers[0]
    parts = [load_checkpoint(checkpoint.directory, Part(rank, 2)) for rank in range(2)]
    for name in ("gate", "up", "down", "o", "q"):
        cut = [getattr(part.weights.layers[0], name) for part in parts]
        assert sum(array.size for array in cut) == getattr(whole, name).size
        assert all(array.base is None for array in cut)
    assert {part.fingerprint for part in parts} == {checkpoint.fingerprint}
    assert parts[0].cut(Part(0, 2)) is parts[0]
