"""Batches that decode, padded to shapes that come again; and what can be asked of the decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.engine.assembly import EngineSettings, make_executor
from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.decode_rows import (
    BLOCKS,
    HEADER,
    LENGTHS,
    OFFSETS,
    POSITIONS,
    TOKENS,
    bucket,
    fill,
    part,
    powers,
    tokens_held,
    widths,
)
from spinney.engine.executor import Batch, SequenceStep
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

SCRATCH = 999


@pytest.mark.parametrize(
    ("least", "most", "want"),
    [
        (1, 1, (1,)),
        (1, 16, (1, 2, 4, 8, 16)),
        (1, 48, (1, 2, 4, 8, 16, 32, 48)),
        (4, 100, (4, 8, 16, 32, 64, 100)),
        (4, 3, (3,)),
    ],
    ids=["one", "a power", "no power", "from four", "least above most"],
)
def test_buckets_double_up_to_the_largest_that_is_wanted(
    least: int, most: int, want: tuple[int, ...]
) -> None:
    assert powers(least, most) == want


def test_widths_have_a_bucket_between_any_two_powers() -> None:
    assert widths(4, 40) == (4, 6, 8, 12, 16, 24, 32, 40)
    assert widths(50, 50) == (50,)
    assert widths(4, 3) == (3,)


@given(most=st.integers(1, 300), wanted=st.integers(1, 400))
def test_a_bucket_is_the_smallest_that_holds_what_is_wanted(most: int, wanted: int) -> None:
    sizes = powers(1, most)
    found = bucket(sizes, wanted)
    if wanted > most:
        assert found is None
    else:
        assert found is not None
        assert wanted <= found < 2 * wanted or found == most
        assert not any(wanted <= size < found for size in sizes)


@st.composite
def decoding(draw: st.DrawFn) -> tuple[int, list[SequenceStep]]:
    size = draw(st.integers(1, 8))
    steps = []
    for number in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 40))
        spare = draw(st.integers(0, 2))
        table = [number * 60 + at for at in range(start // size + 1 + spare)]
        steps.append(SequenceStep([draw(st.integers(0, 500))], start, table, draw(st.booleans())))
    return size, steps


@given(case=decoding(), padding=st.integers(0, 3), spare=st.integers(0, 5))
def test_columns_hold_sequences_and_all_else_names_the_scratch_block(
    case: tuple[int, list[SequenceStep]], padding: int, spare: int
) -> None:
    size, steps = case
    width = -(-tokens_held(steps) // size) + spare
    rows = np.full((HEADER + width, len(steps) + padding), -7, np.int32)
    fill(rows, steps, size, SCRATCH)
    for column, step in zip(rows.T, steps, strict=False):
        used = step.start // size + 1
        assert column[TOKENS] == step.token_ids[0]
        assert column[POSITIONS] == step.start == column[LENGTHS] - 1
        assert column[BLOCKS] * size + column[OFFSETS] == (
            step.block_ids[step.start // size] * size + step.start % size
        )
        assert column[HEADER:].tolist() == [*step.block_ids[:used], *[SCRATCH] * (width - used)]
    for column in rows.T[len(steps) :]:
        assert column.tolist() == [0, 0, SCRATCH, 0, 1, *[SCRATCH] * width]


@given(lengths=st.lists(st.tuples(st.sampled_from([1, 1, 2, 5]), st.booleans()), max_size=8))
def test_the_two_parts_of_a_batch_give_its_logits_in_its_order(
    lengths: list[tuple[int, bool]],
) -> None:
    steps = [
        SequenceStep([number] * count, 3, [0, 1, 2], wants)
        for number, (count, wants) in enumerate(lengths)
    ]
    parts = part(Batch(tuple(steps)))
    rest = [step.token_ids[0] for step in parts.rest.sequences if step.wants_logits]
    rows = rest + [step.token_ids[0] for step in parts.decoding]
    wanted = [step.token_ids[0] for step in steps if step.wants_logits]
    assert [rows[at] for at in parts.order] == wanted
    assert all(len(step.token_ids) == 1 for step in parts.decoding)
    assert len(parts.decoding) + len(parts.rest.sequences) == len(steps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"graph": "fast"}, "--decode-graph is 'fast'; it is one of auto, cuda"),
        ({"attention": "flash"}, "--paged-attention is 'flash'; it is one of auto, kernel"),
        ({"most_sequences": -1}, "--decode-graph-max-batch -1: .* give 1 or more"),
    ],
    ids=["graph", "attention", "batch"],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        DecodeOptions(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decode_graph": "compile"}, "--decode-graph compile: the numpy executor has none"),
        ({"paged_attention": "kernel"}, "--paged-attention kernel: the numpy executor has none"),
    ],
    ids=["graph", "attention"],
)
def test_numpy_refuses_what_only_torch_can_do(
    tiny_model: Path, fields: dict[str, str], message: str
) -> None:
    settings = EngineSettings(str(tiny_model), "engine", **fields)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match=message):
        make_executor(settings, load_checkpoint(tiny_model), 8)


def test_numpy_does_what_is_not_asked_for_by_name(tiny_model: Path) -> None:
    settings = EngineSettings(
        str(tiny_model), "engine", decode_graph="eager", paged_attention="gather"
    )
    make_executor(settings, load_checkpoint(tiny_model), 8).close()
