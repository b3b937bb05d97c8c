"""Runs a model with NumPy on one core.

Small models spend their time in call overhead and in moving KV, so: all tokens of a batch go
through each matrix in one product; sequences that decode one token attend together, their KV
gathered into one reused buffer; prefill attends in tiles of queries, each against only the keys
it may see. Invariant: a batch's composition does not change which positions a token attends to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spinney.engine.batch_layout import fuse, lay_out
from spinney.engine.model import rope_tables
from spinney.engine.part import WHOLE, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.engine.batch_layout import FusedLayer, GroupRows
    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Batch, ByteArray, FloatArray, IntArray
    from spinney.engine.model import ModelConfig
    from spinney.kv.layout import KVLayout

QUERY_TILE = 64
"""Queries per tile of prefill attention: scores of a tile stay in the cache."""
SMALL_PRODUCT = 1_000_000
"""Up to so many multiplications OpenBLAS reads a matrix where it lies; above, it packs it."""
FEW_ROWS = 16
STRIP = 32
"""Strips of a product are multiples of this wide."""
HEAD_COPY_BYTES = 256 * 1024 * 1024
"""A larger output matrix is not stored a second time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Several tokens of one sequence: rows ``begin:end`` of the batch."""

    begin: int
    end: int
    start: int
    blocks: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Sequences that decode one token each and attend together."""

    rows: IntArray
    blocks: IntArray
    mask: FloatArray | None
    longest: int


@dataclass(frozen=True, slots=True, eq=False)
class _Schedule:
    """Where the tokens of a batch go, worked out once for all layers."""

    tokens: IntArray
    slots: IntArray
    cos: FloatArray
    sin: FloatArray
    chunks: tuple[_Chunk, ...]
    groups: tuple[_Group, ...]
    logit_rows: IntArray


class NumpyExecutor:
    """See `spinney.engine.executor.Executor`. Memory: the weights twice, and the KV pool.

    As one *part* of several it computes with its heads, and its blocks are those of its shard.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, num_blocks: int, block_size: int, part: Part = WHOLE
    ) -> None:
        self._layout = checkpoint.kv_layout(part, "float32", block_size)
        self._block_shape = self._layout.shard_shape(part.shard(self._layout))
        self._total = part.total
        checkpoint = checkpoint.cut(part)
        config = checkpoint.config
        self._config = config
        self._num_blocks = num_blocks
        self._embed = checkpoint.weights.embed
        self._layers = tuple(_turned(fuse(layer, config)) for layer in checkpoint.weights.layers)
        self._norm = checkpoint.weights.norm
        self._lm_head = _head(checkpoint.weights.lm_head)
        self._cos, self._sin = rope_tables(config, config.max_position_embeddings)
        pool = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self._keys: FloatArray = np.zeros(pool, np.float32)
        self._values: FloatArray = np.zeros(pool, np.float32)
        self._scratch: list[FloatArray] = [np.empty(0, np.float32), np.empty(0, np.float32)]

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block are."""
        return self._layout

    @property
    def num_blocks(self) -> int:
        """Blocks of KV memory."""
        return self._num_blocks

    def step(self, batch: Batch) -> FloatArray:
        """Run *batch*; see `Executor.step`."""
        schedule = self._schedule(batch)
        x = self._embed[schedule.tokens]
        for index, layer in enumerate(self._layers):
            x += self._attention(index, layer, self._rms_norm(x, layer.input_norm), schedule)
            x += self._total(_swiglu(layer, self._rms_norm(x, layer.post_norm)))
        last = self._rms_norm(x[schedule.logit_rows], self._norm)
        return _product(last, self._lm_head)

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy blocks out; see `Executor.read_blocks`."""
        # Block by block, because indexing with many would make a copy of a copy.
        for wire, block in zip(self._as_blocks(out, len(block_ids)), block_ids, strict=True):
            wire[:, 0] = self._keys[:, block]
            wire[:, 1] = self._values[:, block]

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Overwrite blocks; see `Executor.write_blocks`."""
        for wire, block in zip(self._as_blocks(data, len(block_ids)), block_ids, strict=True):
            self._keys[:, block] = wire[:, 0]
            self._values[:, block] = wire[:, 1]

    def close(self) -> None:
        """Drop the KV pool."""
        self._keys = self._values = np.empty((0, 0, 0, 0, 0), np.float32)

    def _as_blocks(self, data: ByteArray, count: int) -> FloatArray:
        wanted = count * math.prod(self._block_shape) * 4
        if data.nbytes != wanted:
            raise ValueError(f"{count} blocks are {wanted} bytes, the buffer has {data.nbytes}")
        return data.view(np.float32).reshape(count, *self._block_shape)

    def _rms_norm(self, x: FloatArray, weight: FloatArray) -> FloatArray:
        square = np.einsum("...i,...i->...", x, x)
        scale = 1.0 / np.sqrt(square / x.shape[-1] + self._config.rms_norm_eps)
        scaled: FloatArray = x * scale[..., None].astype(np.float32, copy=False)
        scaled *= weight
        return scaled

    def _schedule(self, batch: Batch) -> _Schedule:
        size = self._layout.block_size
        rows = lay_out(batch, size)
        positions = np.asarray(rows.positions, np.intp)
        return _Schedule(
            tokens=np.asarray(rows.tokens, np.intp),
            slots=np.asarray(rows.blocks, np.intp) * size + positions % size,
            cos=self._cos[positions][:, None, :],
            sin=self._sin[positions][:, None, :],
            chunks=tuple(
                _Chunk(chunk.begin, chunk.end, chunk.start, np.asarray(chunk.blocks, np.intp))
                for chunk in rows.chunks
            ),
            groups=tuple(_group(group) for group in rows.groups),
            logit_rows=np.asarray(rows.wanted, np.intp),
        )

    def _attention(
        self, index: int, layer: FusedLayer, x: FloatArray, schedule: _Schedule
    ) -> FloatArray:
        config = self._config
        qkv = _product(x, layer.qkv)
        if layer.qkv_bias is not None:
            qkv += layer.qkv_bias
        heads = qkv.reshape(len(x), -1, config.head_dim)
        query_heads, kv_heads = config.num_heads, config.num_kv_heads
        rotated = heads[:, : query_heads + kv_heads]
        if layer.qk_norm is not None:
            rotated = self._rms_norm(rotated, layer.qk_norm)
        rotated = _rotate(rotated, schedule.cos, schedule.sin)
        query = rotated[:, :query_heads]
        query *= np.float32(config.head_dim**-0.5)
        flat = (-1, kv_heads, config.head_dim)
        self._keys[index].reshape(flat)[schedule.slots] = rotated[:, query_heads:]
        self._values[index].reshape(flat)[schedule.slots] = heads[:, query_heads + kv_heads :]
        attended: FloatArray = np.empty((len(x), query_heads, config.head_dim), np.float32)
        for chunk in schedule.chunks:
            self._attend_chunk(index, chunk, query, attended)
        for group in schedule.groups:
            self._attend_group(index, group, query, attended)
        out = self._total(_product(attended.reshape(len(x), -1), layer.o))
        if layer.o_bias is not None:
            out += layer.o_bias
        return out

    def _attend_chunk(self, index: int, chunk: _Chunk, query: FloatArray, out: FloatArray) -> None:
        config = self._config
        kv_heads, dim = config.num_kv_heads, config.head_dim
        group = config.num_heads // kv_heads
        keys = self._gather(0, self._keys[index], chunk.blocks).transpose(1, 2, 0)
        values = self._gather(1, self._values[index], chunk.blocks).transpose(1, 0, 2)
        for begin in range(chunk.begin, chunk.end, QUERY_TILE):
            end = min(begin + QUERY_TILE, chunk.end)
            count = end - begin
            visible = chunk.start + end - chunk.begin
            tile = query[begin:end].reshape(count, kv_heads, group, dim).transpose(1, 2, 0, 3)
            scores = np.matmul(
                np.ascontiguousarray(tile).reshape(kv_heads, group * count, dim),
                keys[:, :, :visible],
            )
            diagonal = scores.reshape(kv_heads, group, count, visible)[..., visible - count :]
            diagonal += _future(count)
            _softmax(scores)
            result = np.matmul(scores, values[:, :visible])
            result = result.reshape(kv_heads, group, count, dim).transpose(2, 0, 1, 3)
            out[begin:end] = result.reshape(count, -1, dim)

    def _attend_group(self, index: int, group: _Group, query: FloatArray, out: FloatArray) -> None:
        config = self._config
        kv_heads, dim, count = config.num_kv_heads, config.head_dim, len(group.rows)
        shape = (count, -1, kv_heads, dim)
        keys = self._gather(0, self._keys[index], group.blocks).reshape(shape)[:, : group.longest]
        values = self._gather(1, self._values[index], group.blocks).reshape(shape)
        values = values[:, : group.longest]
        grouped = query[group.rows].reshape(count, kv_heads, -1, dim)
        scores = np.matmul(grouped, keys.transpose(0, 2, 3, 1))
        if group.mask is not None:
            scores += group.mask
        _softmax(scores)
        result = np.matmul(scores, values.transpose(0, 2, 1, 3))
        out[group.rows] = result.reshape(count, -1, dim)

    def _gather(self, which: int, pool: FloatArray, blocks: IntArray) -> FloatArray:
        """Return the tokens of *blocks*, ``(tokens, kv heads, dim)``; valid until the next call."""
        block = pool.shape[1:]
        wanted = blocks.size * pool[0].size
        if self._scratch[which].size < wanted:
            # Fresh memory is paid for page by page; a little more than needed lasts longer.
            self._scratch[which] = np.empty(wanted + wanted // 2, np.float32)
        buffer = self._scratch[which][:wanted].reshape(blocks.size, *block)
        np.take(pool, blocks.reshape(-1), axis=0, out=buffer, mode="clip")
        return buffer.reshape(-1, *block[1:])


def _head(lm_head: FloatArray) -> FloatArray:
    """Return the output matrix as ``(in, out)``: copied, twice as fast, unless it is very large."""
    return lm_head.T if lm_head.nbytes > HEAD_COPY_BYTES else np.ascontiguousarray(lm_head.T)


def _turned(layer: FusedLayer) -> FusedLayer:
    """Return *layer* with its matrices as ``(in, out)``, as the products here want them."""
    return replace(
        layer,
        qkv=np.ascontiguousarray(layer.qkv.T),
        o=np.ascontiguousarray(layer.o.T),
        gate_up=np.ascontiguousarray(layer.gate_up.T),
        down=np.ascontiguousarray(layer.down.T),
    )


def _group(group: GroupRows) -> _Group:
    longest, mask = group.longest, None
    if group.ragged:
        hidden = np.arange(longest)[None, :] >= np.asarray(group.lengths)[:, None]
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))[:, None, None, :]
    rows, tables = np.asarray(group.rows, np.intp), np.asarray(group.tables, np.intp)
    return _Group(rows, tables, mask, longest)


def _future(count: int) -> FloatArray:
    """Minus infinity above the diagonal: what a tile's queries must not see of its own keys."""
    found = _FUTURE.get(count)
    if found is None:
        found = np.triu(np.full((count, count), -np.inf, np.float32), 1)
        _FUTURE[count] = found
    return found


_FUTURE: dict[int, FloatArray] = {}
"""At most `QUERY_TILE` small masks."""


def _rotate(heads: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    out = np.empty(heads.shape, np.float32)
    np.multiply(first, cos, out=out[..., :half])
    out[..., :half] -= second * sin
    np.multiply(second, cos, out=out[..., half:])
    out[..., half:] += first * sin
    return out


def _softmax(scores: FloatArray) -> None:
    """Turn *scores* into weights along the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def _product(x: FloatArray, weight: FloatArray) -> FloatArray:
    """Return ``x @ weight``; for a few rows in strips, which BLAS then does not copy first."""
    rows, inner = x.shape
    width = SMALL_PRODUCT // (rows * inner) // STRIP * STRIP if rows else 0
    out: FloatArray = np.empty((rows, weight.shape[1]), np.float32)
    if not 1 < rows <= FEW_ROWS or not STRIP <= width < weight.shape[1]:
        return np.matmul(x, weight, out=out)
    for begin in range(0, weight.shape[1], width):
        np.matmul(x, weight[:, begin : begin + width], out=out[:, begin : begin + width])
    return out


def _swiglu(layer: FusedLayer, x: FloatArray) -> FloatArray:
    both = _product(x, layer.gate_up)
    inner = both.shape[-1] // 2
    gate, up = both[:, :inner], both[:, inner:]
    # Overflow of exp(-gate) to infinity is the right answer: the gate closes.
    with np.errstate(over="ignore"):
        gate /= 1.0 + np.exp(-gate)
    gate *= up
    return _product(gate, layer.down)


def pool_bytes(config: ModelConfig, num_blocks: int, block_size: int) -> int:
    """Bytes of a float32 KV pool of that size."""
    return 2 * 4 * config.num_layers * config.kv_size * num_blocks * block_size
