"""What a block of KV bytes means, so that two workers can tell whether they mean the same.

A block is ``block_size`` tokens of every layer. Its bytes, on the wire and in shared memory, are
``[layer][key, value][token][kv head][head dim]`` in C order, little-endian, keys after rotary
embedding with the two halves of a head rotated as Hugging Face checkpoints expect. Invariant:
equal `KVLayout.digest` means that bytes of one side are valid on the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The element types that may travel, with their width."""

FORMAT_VERSION = 1
"""Part of the digest: raise it when the meaning of the bytes changes."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape, element type and origin of KV blocks. *model* is a fingerprint of the weights."""

    model: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    block_size: int

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of one token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return self.block_size * self.token_bytes

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Axes of one block: layer, key or value, token, head, dimension."""
        return (self.layers, 2, self.block_size, self.kv_heads, self.head_dim)

    @property
    def digest(self) -> str:
        """Return 16 hex characters that differ when any field differs."""
        fields = (
            f"v{FORMAT_VERSION}|{self.model}|{self.dtype}|{self.layers}|"
            f"{self.kv_heads}|{self.head_dim}|{self.block_size}"
        )
        return hashlib.sha256(fields.encode()).hexdigest()[:16]
