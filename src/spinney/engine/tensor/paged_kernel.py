"""Attention of decoding sequences over blocks in place, written in Triton.

A step that decodes reads much KV and computes little, and there are few sequences to spread over a
GPU. So each sequence and KV head is split along its tokens: a program reads its share once, for all
query heads of the KV head, with an online softmax; a second kernel weighs the shares together.
Invariants: no program reads beyond its sequence's length, not even the block table; shares depend
on lengths only inside the kernels, so that a captured launch serves every batch of its shape.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

TILE = 64
"""Tokens that a program looks at in one go."""
MOST_SHARES = 32
"""Shares that a sequence is split into at most."""
LEAST_ROWS = 16
"""Rows that the matrix units want; fewer query heads are filled up."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels run in Triton's interpreter, which also works on a CPU, slowly."""


def _share_source(
    query: Any,
    pool: Any,
    tables: Any,
    lengths: Any,
    partial: Any,
    weight: Any,
    scale: Any,
    query_row: Any,
    pool_block: Any,
    pool_kind: Any,
    pool_token: Any,
    pool_head: Any,
    table_row: Any,
    table_column: Any,
    GROUP: tl.constexpr,  # noqa: N803 - constants of a kernel
    ROWS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    UPCAST: tl.constexpr,  # noqa: N803
) -> None:
    row, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    shares, heads = tl.num_programs(2), tl.num_programs(1)
    length = tl.load(lengths + row)
    span = tl.cdiv(tl.cdiv(length, STEP), shares) * STEP
    begin = share * span
    end = tl.minimum(begin + span, length)

    member, dim = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    is_query = (member[:, None] < GROUP) & (dim[None, :] < DIM)
    at_query = row * query_row + (head * GROUP + member[:, None]) * DIM + dim[None, :]
    asked = tl.load(query + at_query, mask=is_query, other=0.0)
    if UPCAST:
        asked = asked.to(tl.float32)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(begin, end, STEP):
        token = first + tl.arange(0, STEP)
        seen = token < end
        at_table = row * table_row + (token // SIZE) * table_column
        block = tl.load(tables + at_table, mask=seen, other=0).to(tl.int64)
        place = block * pool_block + (token % SIZE) * pool_token + head * pool_head
        spot = pool + place[:, None] + dim[None, :]
        is_kept = seen[:, None] & (dim[None, :] < DIM)
        key = tl.load(spot, mask=is_kept, other=0.0)
        value = tl.load(spot + pool_kind, mask=is_kept, other=0.0)
        if UPCAST:
            key, value = key.to(tl.float32), value.to(tl.float32)
        score = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        peak = tl.maximum(highest, tl.max(score, 1))
        shrink = tl.exp2(highest - peak)
        portion = tl.exp2(score - peak[:, None])
        total = total * shrink + tl.sum(portion, 1)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(portion.to(value.dtype), value, input_precision="ieee")
        highest = peak

    # An empty share weighs nothing.
    is_empty = total == 0.0
    safe = tl.where(is_empty, 1.0, total)
    slot = ((row * heads + head) * GROUP + member) * shares + share
    tl.store(
        weight + slot,
        tl.where(is_empty, float("-inf"), highest + tl.log2(safe)),
        mask=member < GROUP,
    )
    tl.store(
        partial + slot[:, None].to(tl.int64) * DIM + dim[None, :],
        mixed / safe[:, None],
        mask=is_query,
    )


def _join_source(
    partial: Any,
    weight: Any,
    out: Any,
    DIM: tl.constexpr,  # noqa: N803 - constants of a kernel
    WIDTH: tl.constexpr,  # noqa: N803
    SHARES: tl.constexpr,  # noqa: N803
) -> None:
    slot = tl.program_id(0)
    share, dim = tl.arange(0, SHARES), tl.arange(0, WIDTH)
    at = slot.to(tl.int64) * SHARES + share
    power = tl.load(weight + at)
    portion = tl.exp2(power - tl.max(power, 0))
    is_kept = dim < DIM
    spot = partial + at[:, None] * DIM + dim[None, :]
    mixed = tl.sum(tl.load(spot, mask=is_kept[None, :], other=0.0) * portion[:, None], 0)
    value = mixed / tl.sum(portion, 0)
    tl.store(out + slot.to(tl.int64) * DIM + dim, value.to(out.dtype.element_ty), mask=is_kept)


_share = triton.jit(_share_source)
_join = triton.jit(_join_source)


class PagedKernel:
    """Attends over pools of *kv_heads* heads; *programs* of the first kernel fill the device."""

    def __init__(self, kv_heads: int, block_size: int, programs: int) -> None:
        self._kv_heads = kv_heads
        self._block_size = block_size
        self._programs = programs

    def shares(self, sequences: int, tokens: int) -> int:
        """Return in how many shares to read *sequences* of at most *tokens*; a power of two."""
        useful = min(MOST_SHARES, -(-tokens // TILE))
        wanted = -(-self._programs // (sequences * self._kv_heads))
        return int(triton.next_power_of_2(max(1, min(useful, wanted))))

    def attend(self, pool: Tensor, query: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
        """Return what *query* ``(sequences, heads, dim)`` mixes of their values.

        *pool* is one layer, ``(blocks, 2, size, kv heads, dim)``; *tables* ``(sequences, width)``
        and *lengths* are int32, lengths at least 1. Every layout of them but that the dimensions of
        a head lie side by side is allowed.
        """
        query = query.contiguous()
        count, heads, dim = query.shape
        shares = self.shares(count, tables.shape[1] * self._block_size)
        floats = {"dtype": torch.float32, "device": query.device}
        partial = torch.empty((count * heads, shares, dim), **floats)
        weight = torch.empty((count * heads, shares), **floats)
        wide, group = int(triton.next_power_of_2(dim)), heads // self._kv_heads
        _share[(count, self._kv_heads, shares)](
            query,
            pool,
            tables,
            lengths,
            partial,
            weight,
            # The kernels take powers of two, the softmax powers of e.
            dim**-0.5 * 1.4426950408889634,
            query.stride(0),
            *pool.stride()[:4],
            *tables.stride(),
            GROUP=group,
            ROWS=max(LEAST_ROWS, int(triton.next_power_of_2(group))),
            DIM=dim,
            WIDTH=max(LEAST_ROWS, wide),
            SIZE=self._block_size,
            STEP=TILE,
            UPCAST=INTERPRETED,
        )
        out = torch.empty_like(query)
        _join[(count * heads,)](
            partial, weight, out, DIM=dim, WIDTH=max(LEAST_ROWS, wide), SHARES=shares
        )
        return out
