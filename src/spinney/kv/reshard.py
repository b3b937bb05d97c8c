"""Puts KV bytes of one layout where another has them: other ranks, other blocks.

Which heads go where, and which tokens go where, are two short lists that do not depend on each
other; every combination of an entry of one and of the other is one copy of a slice. Invariant: the
result is what one gets by putting the source together into one tensor of all heads and all tokens
and cutting that up as the destination wants it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.kv.layout import DTYPE_BYTES, rank_heads

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from spinney.kv.layout import KVLayout


@dataclass(frozen=True, slots=True)
class HeadPiece:
    """KV heads that a destination rank takes from one source rank; slices count rank by rank."""

    source_rank: int
    source_heads: slice
    destination_rank: int
    destination_heads: slice


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """Consecutive tokens that lie in one block at either side."""

    source_block: int
    source_tokens: slice
    destination_block: int
    destination_tokens: slice


@dataclass(frozen=True, slots=True)
class Span:
    """Which of a prompt's tokens are meant: *first* to *end* - 1."""

    first: int
    end: int

    def blocks(self, block_size: int) -> range:
        """Return the indices of the prompt's blocks that hold them."""
        return range(self.first // block_size, -(-self.end // block_size))


def head_pieces(heads: int, source_ranks: int, destination_ranks: int) -> tuple[HeadPiece, ...]:
    """Return what each destination rank takes from which source rank.

    *heads* are the model's KV heads. Where several source ranks have a head, the destination ranks
    that need it take turns among them, so that none has to serve all. Raises BadInputError when one
    side's ranks cannot share the heads.
    """
    pieces: list[HeadPiece] = []
    copies = max(1, source_ranks // heads)
    for to in range(destination_ranks):
        wanted = rank_heads(heads, destination_ranks, to)
        for shard in range(min(source_ranks, heads)):
            rank = shard * copies + to % copies
            held = rank_heads(heads, source_ranks, rank)
            begin, end = max(wanted.start, held.start), min(wanted.stop, held.stop)
            if begin < end:
                pieces.append(
                    HeadPiece(
                        rank,
                        slice(begin - held.start, end - held.start),
                        to,
                        slice(begin - wanted.start, end - wanted.start),
                    )
                )
    return tuple(pieces)


def token_pieces(span: Span, source_size: int, destination_size: int) -> tuple[TokenPiece, ...]:
    """Return which tokens of which block go where; blocks are counted from *span*'s first."""
    first_source = span.blocks(source_size).start
    first_destination = span.blocks(destination_size).start
    pieces: list[TokenPiece] = []
    at = span.first
    while at < span.end:
        source, offset = divmod(at, source_size)
        destination, place = divmod(at, destination_size)
        count = min(source_size - offset, destination_size - place, span.end - at)
        pieces.append(
            TokenPiece(
                source - first_source,
                slice(offset, offset + count),
                destination - first_destination,
                slice(place, place + count),
            )
        )
        at += count
    return tuple(pieces)


def reshard(
    data: NDArray[np.uint8], span: Span, source: KVLayout, destination: KVLayout
) -> NDArray[np.uint8]:
    """Return the blocks of *span* as *destination* has them, from *data*, as *source* has them.

    Both are whole blocks, shard by shard. Places in the result that no token of *span* has are 0.
    Where nothing has to be moved, *data* itself is returned.
    """
    if source.shards == destination.shards and source.block_size == destination.block_size:
        return data
    count = len(span.blocks(destination.block_size))
    out = np.zeros(count * destination.block_bytes, np.uint8)
    there = _shards(data, source, len(span.blocks(source.block_size)))
    here = _shards(out, destination, count)
    heads = head_pieces(source.kv_heads, source.shards, destination.shards)
    if source.block_size == destination.block_size:
        for piece in heads:
            chosen = there[piece.source_rank][..., piece.source_heads, :]
            here[piece.destination_rank][..., piece.destination_heads, :] = chosen
        return out
    for tokens in token_pieces(span, source.block_size, destination.block_size):
        for piece in heads:
            block = there[piece.source_rank][tokens.source_block]
            place = here[piece.destination_rank][tokens.destination_block]
            chosen = block[:, :, tokens.source_tokens, piece.source_heads]
            place[:, :, tokens.destination_tokens, piece.destination_heads] = chosen
    return out


def _shards(data: NDArray[np.uint8], layout: KVLayout, count: int) -> list[NDArray[Any]]:
    """Return the shards in *data*, each ``(block, layer, key or value, token, head, dim)``."""
    element = np.dtype(f"u{DTYPE_BYTES[layout.dtype]}")
    found = []
    for shard in range(layout.shards):
        place = layout.shard_bytes(shard, count)
        raw = data[place.start : place.stop].view(element)
        found.append(raw.reshape(count, *layout.shard_shape(shard)))
    return found
