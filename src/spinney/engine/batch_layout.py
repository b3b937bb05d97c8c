"""Where the tokens of a batch go, and which sequences attend together: for every executor.

Rows are the batch's tokens in order. Invariant: every row is in exactly one chunk or group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spinney.engine.executor import Batch, FloatArray, SequenceStep
    from spinney.engine.model import LayerWeights, ModelConfig

GATHER_SPREAD = 1.5
"""Decoding sequences attend in one group while the longest is at most this much longer."""


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Several tokens of one sequence: rows ``begin:end``, from position *start* on."""

    begin: int
    end: int
    start: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupRows:
    """Sequences that decode one token each and attend together.

    *tables* are all as wide as the longest needs; a shorter one is filled up with its own first
    block, whose positions from its length on are to be masked.
    """

    rows: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether some are shorter, so that a mask is needed."""
        return min(self.lengths) != max(self.lengths)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """A batch row by row: *blocks* and *offsets* are where a row's KV goes."""

    tokens: list[int]
    positions: list[int]
    blocks: list[int]
    chunks: tuple[ChunkRows, ...]
    groups: tuple[GroupRows, ...]
    wanted: list[int]
    """Rows whose logits are wanted."""


def lay_out(batch: Batch, block_size: int, spread: float = GATHER_SPREAD) -> BatchLayout:
    """Return *batch* row by row; sequences in a group differ in length by up to *spread* times."""
    tokens: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    chunks: list[ChunkRows] = []
    singles: list[tuple[int, SequenceStep]] = []
    wanted: list[int] = []
    for sequence in batch.sequences:
        begin, start, table = len(tokens), sequence.start, sequence.block_ids
        end = start + len(sequence.token_ids)
        tokens.extend(sequence.token_ids)
        positions.extend(range(start, end))
        blocks.extend(table[at // block_size] for at in range(start, end))
        if end - start == 1:
            singles.append((begin, sequence))
        else:
            used = tuple(table[: -(-end // block_size)])
            chunks.append(ChunkRows(begin, len(tokens), start, used))
        if sequence.wants_logits:
            wanted.append(len(tokens) - 1)
    groups = tuple(_group(members, block_size) for members in _similar(singles, block_size, spread))
    return BatchLayout(tokens, positions, blocks, tuple(chunks), groups, wanted)


def _similar(
    singles: list[tuple[int, SequenceStep]], size: int, spread: float
) -> list[list[tuple[int, SequenceStep]]]:
    """Put sequences of similar length together, so that little is gathered in vain."""
    groups: list[list[tuple[int, SequenceStep]]] = []
    for item in sorted(singles, key=lambda item: (item[1].start, item[0])):
        if groups and item[1].start < spread * (groups[-1][0][1].start + size):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _group(members: list[tuple[int, SequenceStep]], size: int) -> GroupRows:
    lengths = tuple(sequence.start + 1 for _, sequence in members)
    width = -(-max(lengths) // size)
    tables = tuple(
        (*table[:width], *[table[0]] * (width - len(table)))
        for table in (sequence.block_ids for _, sequence in members)
    )
    return GroupRows(tuple(row for row, _ in members), tables, lengths)


@dataclass(frozen=True, slots=True, eq=False)
class FusedLayer:
    """Weights of one layer, ``(out, in)``, joined where the input is shared."""

    input_norm: FloatArray
    qkv: FloatArray
    qkv_bias: FloatArray | None
    qk_norm: FloatArray | None
    """Of each query and key head, ``(heads, head dim)``."""
    o: FloatArray
    o_bias: FloatArray | None
    post_norm: FloatArray
    gate_up: FloatArray
    down: FloatArray


def fuse(layer: LayerWeights, config: ModelConfig) -> FusedLayer:
    """Join the matrices of *layer* that have one input."""
    qkv_bias = qk_norm = None
    if layer.q_bias is not None and layer.k_bias is not None and layer.v_bias is not None:
        qkv_bias = np.concatenate([layer.q_bias, layer.k_bias, layer.v_bias])
    if layer.q_norm is not None and layer.k_norm is not None:
        heads = ((layer.q_norm, config.num_heads), (layer.k_norm, config.num_kv_heads))
        qk_norm = np.concatenate([np.tile(norm, (count, 1)) for norm, count in heads])
    return FusedLayer(
        input_norm=layer.input_norm,
        qkv=np.concatenate([layer.q, layer.k, layer.v]),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        o=layer.o,
        o_bias=layer.o_bias,
        post_norm=layer.post_norm,
        gate_up=np.concatenate([layer.gate, layer.up]),
        down=layer.down,
    )
