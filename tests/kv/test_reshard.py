"""Bytes of one layout in another: the same tensor, cut up otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spinney.errors import BadInputError
from spinney.kv.layout import KVLayout, incompatibility, rank_heads
from spinney.kv.reshard import Span, head_pieces, reshard, token_pieces


def whole(tokens: int, layout: KVLayout) -> np.ndarray:
    """KV of *tokens* tokens, ``(layer, key or value, token, head, dim)``, every element its own."""
    shape = (layout.layers, 2, tokens, layout.kv_heads, layout.head_dim)
    return np.arange(1, np.prod(shape) + 1, dtype=np.uint32).reshape(shape)


def cut(tensor: np.ndarray, span: Span, layout: KVLayout) -> np.ndarray:
    """Cut *tensor* into the blocks of *span*, by the definition and token by token."""
    blocks, size = span.blocks(layout.block_size), layout.block_size
    shards = []
    for shard in range(layout.shards):
        heads = layout.shard_heads(shard)
        out = np.zeros((len(blocks), *layout.shard_shape(shard)), np.uint32)
        for token in range(blocks.start * size, min(blocks.stop * size, tensor.shape[2])):
            if span.first <= token < span.end:
                chosen = tensor[:, :, token, heads.start : heads.stop]
                out[token // size - blocks.start, :, :, token % size] = chosen
        shards.append(out.reshape(-1))
    return np.concatenate(shards).view(np.uint8)


def layouts(heads: int, ranks: int, block: int) -> KVLayout:
    return KVLayout("m", "float32", 2, heads, 3, block, ranks)


@given(
    heads=st.integers(1, 8),
    source_ranks=st.integers(1, 16),
    destination_ranks=st.integers(1, 16),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    same=st.booleans(),
    first=st.integers(0, 30),
    count=st.integers(1, 40),
)
def test_resharding_is_putting_together_and_cutting_up_again(
    heads: int,
    source_ranks: int,
    destination_ranks: int,
    sizes: tuple[int, int],
    same: bool,
    first: int,
    count: int,
) -> None:
    for ranks in (source_ranks, destination_ranks):
        assume(ranks <= heads or ranks % heads == 0)
    source = layouts(heads, source_ranks, sizes[0])
    destination = layouts(heads, destination_ranks, sizes[0] if same else sizes[1])
    # As a reader asks: from one of its blocks on.
    first -= first % destination.block_size
    span = Span(first, first + count)
    tensor = whole(span.end, source)
    found = reshard(cut(tensor, span, source), span, source, destination)
    assert found.tobytes() == cut(tensor, span, destination).tobytes()


@given(heads=st.integers(1, 12), source=st.integers(1, 24), destination=st.integers(1, 24))
def test_every_rank_gets_each_of_its_heads_once_and_from_a_rank_that_has_it(
    heads: int, source: int, destination: int
) -> None:
    assume(all(n <= heads or n % heads == 0 for n in (source, destination)))
    got: dict[int, list[int]] = {rank: [] for rank in range(destination)}
    for piece in head_pieces(heads, source, destination):
        there = rank_heads(heads, source, piece.source_rank)[piece.source_heads]
        here = rank_heads(heads, destination, piece.destination_rank)[piece.destination_heads]
        assert there == here
        got[piece.destination_rank] += here
    assert got == {rank: list(rank_heads(heads, destination, rank)) for rank in range(destination)}


def test_copies_of_a_head_serve_in_turns() -> None:
    pieces = head_pieces(2, 4, 8)
    assert [piece.source_rank for piece in pieces] == [0, 1, 0, 1, 2, 3, 2, 3]


def test_ranks_share_heads_as_evenly_as_may_be() -> None:
    assert [list(rank_heads(3, 2, rank)) for rank in range(2)] == [[0], [1, 2]]
    assert [list(rank_heads(2, 4, rank)) for rank in range(4)] == [[0], [0], [1], [1]]
    with pytest.raises(BadInputError, match="4 ranks cannot share 3 KV heads"):
        rank_heads(3, 4, 0)


def test_tokens_are_moved_in_runs_as_long_as_both_blocks_allow() -> None:
    pieces = token_pieces(Span(8, 21), 16, 8)
    moved = [(p.source_block, p.source_tokens, p.destination_block) for p in pieces]
    assert moved == [(0, slice(8, 16), 0), (1, slice(0, 5), 1)]


def test_nothing_is_copied_where_the_layouts_are_one() -> None:
    data = np.zeros(4 * layouts(4, 2, 4).block_bytes, np.uint8)
    assert reshard(data, Span(0, 16), layouts(4, 2, 4), layouts(4, 2, 4)) is data
    # Four ranks with two heads send each head once: as two ranks do.
    data = np.zeros(4 * layouts(2, 4, 4).block_bytes, np.uint8)
    assert reshard(data, Span(0, 16), layouts(2, 4, 4), layouts(2, 2, 4)) is data


def test_what_cannot_be_converted_is_named() -> None:
    here = KVLayout("a", "float32", 2, 4, 8, 16)
    assert incompatibility(KVLayout("a", "float32", 2, 4, 8, 32, 2), here) is None
    there = KVLayout("b", "float16", 3, 2, 4, 16)
    said = incompatibility(there, here) or ""
    for part in ("model", "element type", "layers", "KV heads", "head dimension"):
        assert part in said
    assert "2 there and 4 here" in said
    assert "below 1" in (incompatibility(KVLayout("a", "float32", 2, 4, 8, 0), here) or "")
    two = KVLayout("a", "float32", 2, 2, 8, 1)
    assert "3 ranks" in (incompatibility(replace(two, ranks=3), two) or "")
