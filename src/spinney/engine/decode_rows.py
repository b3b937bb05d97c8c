"""Sequences that decode, as numbers in an array of fixed shape: what a captured step reads.

A step that is captured once and replayed cannot change shape, so a batch is padded to a bucket. The
array is ``(HEADER + width, batch)``: one column a sequence, its block table below the header, so
that the part a step needs is one contiguous piece. Invariants: a padding column, and a table beyond
the blocks of its sequence, name the scratch block only, which holds no sequence's KV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spinney.engine.executor import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.engine.executor import SequenceStep

TOKENS, POSITIONS, BLOCKS, OFFSETS, LENGTHS = range(5)
"""Rows of the header: the token, where it sits, where its KV goes, how far it attends."""
HEADER = 5
NARROWEST = 4
"""Blocks of the narrowest bucket of tables."""

Rows = NDArray[np.int32]


def powers(least: int, most: int) -> tuple[int, ...]:
    """Return the buckets from *least* to *most*: doubled each time, and *most* itself."""
    sizes = [most]
    size = least
    while size < most:
        sizes.append(size)
        size *= 2
    return tuple(sorted(sizes))


def widths(least: int, most: int) -> tuple[int, ...]:
    """Return `powers`, and a bucket between any two: what is padded in vain is a third at most."""
    whole = powers(least, most)
    between = (size + size // 2 for size in whole[:-1])
    return tuple(sorted({*whole, *(size for size in between if size < most)}))


def bucket(sizes: Sequence[int], wanted: int) -> int | None:
    """Return the smallest of the ascending *sizes* that holds *wanted*; None if none does."""
    return next((size for size in sizes if size >= wanted), None)


def tokens_held(steps: Sequence[SequenceStep]) -> int:
    """Return how many tokens the longest of *steps* attends to, its own included."""
    return max(step.start for step in steps) + 1


def clear(rows: Rows, scratch: int) -> None:
    """Make every column of *rows* padding: token 0, written to and read from *scratch*."""
    rows[:] = 0
    rows[LENGTHS] = 1
    rows[BLOCKS] = rows[HEADER:] = scratch


def fill(rows: Rows, steps: Sequence[SequenceStep], block_size: int, scratch: int) -> None:
    """Write *steps*, of one token each, to the first columns; the rest becomes padding.

    *rows* is wide enough for the longest of them.
    """
    clear(rows, scratch)
    for column, step in enumerate(steps):
        at = step.start
        used = at // block_size + 1
        rows[HEADER : HEADER + used, column] = step.block_ids[:used]
        rows[:HEADER, column] = (
            step.token_ids[0],
            at,
            step.block_ids[used - 1],
            at % block_size,
            at + 1,
        )


@dataclass(frozen=True, slots=True)
class Parted:
    """A batch in two: *decoding* sequences of one token, and the *rest*.

    Logits of the rest, then of all that decode, taken in *order*, are those of the whole batch.
    """

    decoding: tuple[SequenceStep, ...]
    rest: Batch
    order: tuple[int, ...]


def part(batch: Batch) -> Parted:
    """Return *batch* in two."""
    decoding = tuple(step for step in batch.sequences if len(step.token_ids) == 1)
    rest = tuple(step for step in batch.sequences if len(step.token_ids) != 1)
    order: list[int] = []
    first, second = 0, sum(step.wants_logits for step in rest)
    for step in batch.sequences:
        decodes = len(step.token_ids) == 1
        if step.wants_logits:
            order.append(second if decodes else first)
        if decodes:
            second += 1
        elif step.wants_logits:
            first += 1
    return Parted(decoding, Batch(rest), tuple(order))
