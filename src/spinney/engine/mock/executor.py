"""An executor without weights whose answers still prove that KV was handled rightly.

The KV of a token is the token. The next token is a digest of all tokens in the sequence's blocks,
so whatever is wrong with a block (evicted too early, shared by mistake, not transferred) gives
another answer. Invariant: equal tokens before give equal logits, in any batch and on any worker
with the same vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.kv.layout import KVLayout
from spinney.perfmodel.step_times import Chunk, StepShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spinney.engine.executor import Batch, ByteArray, FloatArray, SequenceStep
    from spinney.perfmodel.step_model import StepModel

CANDIDATES = ((12.0, 0), (11.5, 1), (11.0, 2))
"""Logits of the likely next tokens and where in the digest each is read; all others have 0."""
DIGEST_SEED = 7
"""Weights of the digest; workers that hand over to each other have the same."""
CHOICE_BITS = 20
_LOW = 0xFFFF_FFFF


class MockExecutor:
    """See the module. *tokens* are the ids it may answer with; *model* tells a step's time."""

    def __init__(
        self,
        model: StepModel,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        vocab_size: int,
        tokens: Sequence[int],
        ranks: int = 1,
    ) -> None:
        self._model = model
        self._layout = KVLayout("mock", "float32", 1, 1, 1, block_size, ranks)
        self._num_blocks = num_blocks
        self._vocab_size = vocab_size
        self._tokens = tuple(tokens)
        # One more than the token, so that a place that was never written is told from token 0.
        self._tape: NDArray[np.uint64] = np.zeros((num_blocks, block_size), np.uint64)
        # A block table covers up to a block more than the longest sequence.
        longest = max_model_len + block_size
        rng = np.random.default_rng(DIGEST_SEED)
        self._weights = rng.integers(0, 2**64, longest, np.uint64, endpoint=False) | np.uint64(1)
        self._spent_s = 0.0

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block are: one number per token, its low half as the key."""
        return self._layout

    @property
    def num_blocks(self) -> int:
        """Blocks of KV memory."""
        return self._num_blocks

    def take_spent_s(self) -> float:
        """Return the modelled seconds of the steps since the last call."""
        spent, self._spent_s = self._spent_s, 0.0
        return spent

    def step(self, batch: Batch) -> FloatArray:
        """Note the tokens of *batch* and the time it takes; see `Executor.step`."""
        self._spent_s += self._model.step_s(_shape(batch))
        for sequence in batch.sequences:
            self._note(sequence)
        wanting = [sequence for sequence in batch.sequences if sequence.wants_logits]
        logits: FloatArray = np.zeros((len(wanting), self._vocab_size), np.float32)
        for row, sequence in zip(logits, wanting, strict=True):
            digest = self._digest(sequence)
            for logit, place in CANDIDATES:
                choice = (digest >> (place * CHOICE_BITS)) % (1 << CHOICE_BITS)
                token = self._tokens[choice % len(self._tokens)]
                row[token] = max(float(row[token]), logit)
        return logits

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy blocks out; see `Executor.read_blocks`."""
        wire = out.view(np.uint32).reshape(len(block_ids), 2, -1)
        chosen = self._tape[list(block_ids)]
        wire[:, 0], wire[:, 1] = chosen & np.uint64(_LOW), chosen >> np.uint64(32)

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Overwrite blocks; see `Executor.write_blocks`."""
        wire = data.view(np.uint32).reshape(len(block_ids), 2, -1).astype(np.uint64)
        self._tape[list(block_ids)] = wire[:, 0] | wire[:, 1] << np.uint64(32)

    def close(self) -> None:
        """Give the memory back."""
        self._tape = np.zeros((0, self._layout.block_size), np.uint64)

    def _note(self, sequence: SequenceStep) -> None:
        size = self._layout.block_size
        places = np.arange(sequence.start, sequence.start + len(sequence.token_ids))
        blocks = np.asarray(sequence.block_ids, np.intp)[places // size]
        self._tape[blocks, places % size] = np.asarray(sequence.token_ids, np.uint64) + np.uint64(1)

    def _digest(self, sequence: SequenceStep) -> int:
        end = sequence.start + len(sequence.token_ids)
        count = -(-end // self._layout.block_size)
        seen = self._tape[list(sequence.block_ids[:count])].reshape(-1)[:end]
        total = int((seen * self._weights[:end]).sum(dtype=np.uint64))
        return _mixed(total + end)


def _mixed(value: int) -> int:
    """Return *value* with every bit depending on every other: the finaliser of splitmix64."""
    mask = (1 << 64) - 1
    value &= mask
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return value ^ (value >> 31)


def _shape(batch: Batch) -> StepShape:
    chunks: list[Chunk] = []
    decodes = context = 0
    for sequence in batch.sequences:
        count = len(sequence.token_ids)
        if count == 1:
            decodes += 1
            context += sequence.start + 1
        else:
            chunks.append(Chunk(count, sequence.start))
    return StepShape(tuple(chunks), decodes, context)
