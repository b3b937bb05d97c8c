"""The seam between the engine's decisions and the arithmetic of a model.

An executor owns the weights and the memory of the KV blocks; block ids index that memory, and
which block belongs to whom is decided elsewhere. Invariants the caller keeps, and an executor
may rely on:

- calls come one at a time (from one worker thread);
- within one batch no two sequences write the same block, and no sequence reads a block that
  another one writes;
- the KV of tokens ``0 … start-1`` of a sequence is already in its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kv.layout import KVLayout

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """Some consecutive tokens of one sequence to run through the model.

    *token_ids* sit at positions ``start, start+1, …``. *block_ids* is the sequence's block table:
    position ``p`` lives in block ``block_ids[p // block_size]`` at offset ``p % block_size``. It
    covers at least ``start + len(token_ids)`` positions; further entries are to be ignored.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: prefill chunks and single decode tokens, in any mixture and order."""

    sequences: tuple[SequenceStep, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that run through the model."""
        return sum(len(sequence.token_ids) for sequence in self.sequences)


class Executor(Protocol):
    """Runs a model. NumPy and torch implement it; a test checks one against the other."""

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block are."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of KV memory; ids are ``0 … num_blocks-1``."""
        ...

    def step(self, batch: Batch) -> FloatArray:
        """Run *batch*, store the KV of its tokens, and return logits.

        The result has one row per sequence that wants logits, in batch order: the float32 logits
        that follow its last token, shape ``(wanting, vocab_size)``. The caller may change it.
        """
        ...

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy blocks into *out*, shard by shard, ``len(block_ids) * block_bytes`` bytes.

        An executor that is one rank of several copies the blocks of its shard, and no other.
        """
        ...

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Overwrite blocks with *data*, laid out as `read_blocks` writes it."""
        ...

    def close(self) -> None:
        """Give the memory back. Calling it twice is allowed."""
        ...
