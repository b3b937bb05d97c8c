"""Attention of decoding sequences over blocks in place, written in Triton.

A step that decodes reads much KV and computes little, and there are few sequences to spread over a
GPU. So each sequence and KV head is split along its tokens: a program reads its share once, for all
query heads of the KV head, with an online softmax; a second kernel weighs the shares together.
Invariants: no program reads KV beyond its sequence's length; shares depend on lengths only inside
the kernels, so that a captured launch serves every batch of its shape.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
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


def _weigh_source(
    asked: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    bias: tl.tensor,
    scale: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    mixed: tl.tensor,
) -> Any:
    """Take some tokens into a softmax that is under way; *bias* is minus infinity for no token."""
    score = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale + bias[None, :]
    peak = tl.maximum(highest, tl.max(score, 1))
    shrink = tl.exp2(highest - peak)
    portion = tl.exp2(score - peak[:, None])
    total = total * shrink + tl.sum(portion, 1)
    mixed = mixed * shrink[:, None]
    mixed += tl.dot(portion.to(value.dtype), value, input_precision="ieee")
    return peak, total, mixed


_weigh = triton.jit(_weigh_source)


# fmt: off
def _share_source(
    query: tl.tensor, pool: tl.tensor, tables: tl.tensor, lengths: tl.tensor,
    partial: tl.tensor, weight: tl.tensor, scale: tl.tensor,
    query_row: tl.tensor, pool_block: tl.tensor, pool_kind: tl.tensor, pool_token: tl.tensor,
    pool_head: tl.tensor, table_row: tl.tensor, table_column: tl.tensor,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr, STEP: tl.constexpr, UPCAST: tl.constexpr,  # noqa: N803 - constants
) -> None:
    # fmt: on
    row, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    span = tl.cdiv(tl.cdiv(length, STEP), tl.num_programs(2)) * STEP
    end = tl.minimum(share * span + span, length)

    member, dim = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    is_query = (member[:, None] < GROUP) & (dim[None, :] < DIM)
    at_query = row * query_row + (head * GROUP + member[:, None]) * DIM + dim[None, :]
    asked = tl.load(query + at_query, mask=is_query, other=0.0)
    if UPCAST:
        asked = asked.to(tl.float32)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(share * span, end, STEP):
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
        bias = tl.where(seen, 0.0, float("-inf"))
        highest, total, mixed = _weigh(asked, key, value, bias, scale, highest, total, mixed)

    # An empty share weighs nothing.
    safe = tl.where(total == 0.0, 1.0, total)
    power = tl.where(total == 0.0, float("-inf"), highest + tl.log2(safe))
    slot = ((row * tl.num_programs(1) + head) * GROUP + member) * tl.num_programs(2) + share
    tl.store(weight + slot, power, mask=member < GROUP)
    spot = partial + slot[:, None].to(tl.int64) * DIM + dim[None, :]
    tl.store(spot, mixed / safe[:, None], mask=is_query)


def _join_source(
    partial: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
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


@dataclass(frozen=True, slots=True)
class PagedKernel:
    """Attends over pools of *kv_heads* heads; *programs* of the first kernel fill the device."""

    kv_heads: int
    block_size: int
    programs: int

    def attend(self, pool: Tensor, query: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
        """Return what *query* ``(sequences, heads, dim)`` mixes of their values.

        *pool* is one layer, ``(blocks, 2, size, kv heads, dim)``; *tables* ``(sequences, width)``
        and *lengths* are int32, lengths at least 1. Of the pool and the tables every layout is
        allowed in which the dimensions of a head lie side by side.
        """
        how = (self.kv_heads, self.block_size, self.programs)
        # To a compiler it is one operation, or it would compile anew for every number of shares.
        call = _operation if torch.compiler.is_compiling() else _attend
        attended: Tensor = call(pool, query, tables, lengths, *how)
        return attended


def number_of_shares(sequences: int, kv_heads: int, tokens: int, programs: int) -> int:
    """Return in how many shares to read each sequence of at most *tokens*; a power of two."""
    useful = min(MOST_SHARES, -(-tokens // TILE))
    wanted = -(-programs // (sequences * kv_heads))
    return int(triton.next_power_of_2(max(1, min(useful, wanted))))


def _attend(
    pool: Tensor,
    query: Tensor,
    tables: Tensor,
    lengths: Tensor,
    kv_heads: int,
    block_size: int,
    programs: int,
) -> Tensor:
    query = query.contiguous()
    count, heads, dim = query.shape
    shares = number_of_shares(count, kv_heads, tables.shape[1] * block_size, programs)
    floats = {"dtype": torch.float32, "device": query.device}
    partial = torch.empty((count * heads, shares, dim), **floats)
    weight = torch.empty((count * heads, shares), **floats)
    group, wide = heads // kv_heads, max(LEAST_ROWS, int(triton.next_power_of_2(dim)))
    _share[(count, kv_heads, shares)](
        query,
        pool,
        tables,
        lengths,
        partial,
        weight,
        # The kernels take powers of two, the softmax powers of e.
        dim**-0.5 * math.log2(math.e),
        query.stride(0),
        *pool.stride()[:4],
        *tables.stride(),
        GROUP=group,
        ROWS=max(LEAST_ROWS, int(triton.next_power_of_2(group))),
        DIM=dim,
        WIDTH=wide,
        SIZE=block_size,
        STEP=TILE if query.element_size() <= 2 else TILE // 2,
        UPCAST=INTERPRETED,
    )
    out = torch.empty_like(query)
    _join[(count * heads,)](partial, weight, out, DIM=dim, WIDTH=wide, SHARES=shares)
    return out


_operation = torch.library.custom_op(
    "spinney::paged_attention",
    _attend,
    mutates_args=(),
    schema="(Tensor pool, Tensor query, Tensor tables, Tensor lengths, int kv_heads, "
    "int block_size, int programs) -> Tensor",
)
_operation.register_fake(lambda pool, query, *rest: torch.empty_like(query.contiguous()))
