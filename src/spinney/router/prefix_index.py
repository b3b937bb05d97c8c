"""Which worker has probably computed the beginning of a prompt already.

The prompt's bytes are cut into chunks, and each chunk's hash covers all before it, so that equal
hashes mean equal beginnings. The index is a guess from what was routed, not a report: it is
bounded per worker, and being wrong costs a prefill, never a wrong answer.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

BYTES_PER_TOKEN = 4
"""The estimate for text that is not tokenised here."""
CHUNK_BYTES = 256
CHUNK_TOKENS = CHUNK_BYTES // BYTES_PER_TOKEN
MAX_CHUNKS = 512
"""Chunks hashed of one prompt; what lies beyond does not decide where it goes."""


def chunk_hashes(prompt: bytes | memoryview, seed: bytes = b"") -> tuple[int, ...]:
    """Return one hash for each whole chunk of *prompt*, each covering all before it.

    *seed* stands for what precedes the prompt (the model, the tools): it changes all of them.
    """
    hasher = blake2b(seed, digest_size=8)
    hashes = []
    for start in range(
        0, min(len(prompt) - CHUNK_BYTES + 1, MAX_CHUNKS * CHUNK_BYTES), CHUNK_BYTES
    ):
        hasher.update(prompt[start : start + CHUNK_BYTES])
        hashes.append(int.from_bytes(hasher.copy().digest(), "little"))
    return tuple(hashes)


class PrefixIndex:
    """For each worker, the chunks it was given last; at most *capacity* of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._chunks: dict[str, OrderedDict[int, float]] = {}

    def cached_tokens(
        self, hashes: tuple[int, ...], *, since_s: float = 0.0, only_since: Container[str] = ()
    ) -> dict[str, int]:
        """Return, for each worker that has the first chunk, how many tokens it has in a row.

        Of workers in *only_since* only chunks count that were recorded at *since_s* or later.
        """
        if not hashes:
            return {}
        found = {}
        for name, chunks in self._chunks.items():
            if hashes[0] in chunks:
                after_s = since_s if name in only_since else 0.0
                if count := _leading(hashes, chunks, after_s):
                    found[name] = CHUNK_TOKENS * count
        return found

    def record(self, worker: str, hashes: tuple[int, ...], now_s: float = 0.0) -> None:
        """Note that *worker* computes this prompt; the beginning counts as used last."""
        chunks = self._chunks.setdefault(worker, OrderedDict())
        for each in reversed(hashes):
            chunks[each] = now_s
            chunks.move_to_end(each)
        while len(chunks) > self._capacity:
            chunks.popitem(last=False)

    def forget(self, worker: str) -> None:
        """Drop all that was noted of *worker*: it is gone, or may have restarted empty."""
        self._chunks.pop(worker, None)

    def size(self) -> int:
        """Return the number of chunks noted, of all workers together."""
        return sum(map(len, self._chunks.values()))


def _leading(hashes: Iterable[int], chunks: OrderedDict[int, float], after_s: float) -> int:
    count = 0
    for each in hashes:
        if chunks.get(each, -1.0) < after_s:
            break
        count += 1
    return count
