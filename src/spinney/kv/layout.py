"""What a block of KV bytes means, so that two workers can tell whether they mean the same.

A block is ``block_size`` tokens of every layer. A worker of several ranks keeps the KV heads spread
over them, so its bytes come in shards, one per group of heads, the first heads first. On the wire
and in shared memory a shard is ``[block][layer][key, value][token][kv head][head dim]`` in C order,
little-endian, keys after rotary embedding with the two halves of a head rotated as Hugging Face
checkpoints expect. Invariant: where `incompatibility` finds nothing, bytes of one side are valid on
the other once `spinney.kv.reshard` has put them where the other side's shards and blocks have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from spinney.errors import BadInputError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The element types that may travel, with their width."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape, element type and origin of KV blocks. *model* is a fingerprint of the weights.

    *kv_heads* are those of the model; *ranks* is how many processes or devices share them.
    """

    model: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    ranks: int = 1

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of one token, all layers, all heads."""
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers, all heads."""
        return self.block_size * self.token_bytes

    @property
    def shards(self) -> int:
        """Shards that together are the whole: a head that several ranks have travels once."""
        return min(self.ranks, self.kv_heads)

    def shard_heads(self, shard: int) -> range:
        """Return the KV heads in *shard*."""
        return rank_heads(self.kv_heads, self.shards, shard)

    def shard_shape(self, shard: int) -> tuple[int, int, int, int, int]:
        """Axes of one block of *shard*: layer, key or value, token, head, dimension."""
        return (self.layers, 2, self.block_size, len(self.shard_heads(shard)), self.head_dim)

    def shard_bytes(self, shard: int, num_blocks: int) -> range:
        """Return where the bytes of *shard* lie when *num_blocks* blocks come, shard by shard."""
        heads, one = self.shard_heads(shard), num_blocks * self.block_bytes // self.kv_heads
        return range(heads.start * one, heads.stop * one)


def rank_heads(heads: int, ranks: int, rank: int) -> range:
    """Return which of *heads* KV heads *rank* of *ranks* has.

    As even as may be; where there are more ranks than heads, several ranks have the same head.
    Raises BadInputError when the ranks cannot share the heads evenly enough for that.
    """
    if ranks <= heads:
        return range(rank * heads // ranks, (rank + 1) * heads // ranks)
    if ranks % heads:
        raise BadInputError(
            f"{ranks} ranks cannot share {heads} KV heads: give at most {heads} ranks, or a "
            f"multiple of {heads}"
        )
    head = rank * heads // ranks
    return range(head, head + 1)


def incompatibility(source: KVLayout, reader: KVLayout) -> str | None:
    """Return why blocks of *source* are worthless to *reader*; None when they are not.

    Ranks and block sizes may differ: they are converted.
    """
    wrong = [
        f"{name} is {there!r} there and {here!r} here"
        for name, there, here in (
            ("the model", source.model, reader.model),
            ("the element type", source.dtype, reader.dtype),
            ("the number of layers", source.layers, reader.layers),
            ("the number of KV heads", source.kv_heads, reader.kv_heads),
            ("the head dimension", source.head_dim, reader.head_dim),
        )
        if there != here
    ]
    if source.dtype not in DTYPE_BYTES:
        wrong.append(f"element type {source.dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    if min(source.layers, source.kv_heads, source.head_dim, source.block_size, source.ranks) < 1:
        wrong.append("a size is below 1")
    elif source.ranks > source.kv_heads and source.ranks % source.kv_heads:
        wrong.append(f"{source.ranks} ranks cannot share {source.kv_heads} KV heads")
    return "; ".join(wrong) or None
