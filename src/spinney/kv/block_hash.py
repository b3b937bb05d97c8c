"""Names for the content of KV blocks: a hash of all tokens from the beginning to a block's end.

KV of a token depends on every token before it, so a block's hash chains its parent's. Invariant:
equal hashes mean equal token prefixes (of equal block size and salt), whichever worker computed
them; only full blocks have one.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BlockHash = NewType("BlockHash", int)
"""64 bits, not negative; never zero."""


def hash_block(parent: BlockHash | None, token_ids: Sequence[int], salt: str = "") -> BlockHash:
    """Return the hash of a full block after *parent*; *salt* keeps tenants or models apart."""
    digest = hashlib.blake2b(digest_size=8, key=salt.encode()[:64])
    digest.update((parent or 0).to_bytes(8, "big"))
    digest.update(_token_bytes(token_ids))
    return BlockHash(int.from_bytes(digest.digest(), "big") or 1)


def hash_blocks(
    token_ids: Sequence[int],
    block_size: int,
    *,
    salt: str = "",
    known: Iterable[BlockHash] = (),
) -> list[BlockHash]:
    """Return the hashes of the full blocks of *token_ids*; *known* are the first ones already."""
    hashes = list(known)
    parent = hashes[-1] if hashes else None
    for begin in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = hash_block(parent, token_ids[begin : begin + block_size], salt)
        hashes.append(parent)
    return hashes


def prompt_digest(token_ids: Sequence[int]) -> str:
    """Return 16 hex characters that name a whole prompt, its unfilled last block included."""
    return hashlib.blake2b(_token_bytes(token_ids), digest_size=8).hexdigest()


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    return array("Q", token_ids).tobytes()
