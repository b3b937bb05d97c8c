"""Which worker has the KV of the beginning of a prompt, as the workers' own events tell.

Workers name blocks by hashes of their own making, so that two workers' names for one content
differ. The index names a block by `hash_block` of its tokens and its parent instead, and keeps for
each worker what its names stand for. Invariants: a block is counted for a worker only while that
worker holds it by its own word; memory is bounded per worker, whatever its events say.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from spinney.kv.events import AllBlocksCleared, BlockRemoved, BlockStored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kv.events import KVEvent

MAX_BLOCKS_PER_WORKER = 262_144
"""Blocks kept for one worker; the oldest is forgotten first."""
MAX_DEPTH = 4096
"""Blocks of one prompt that are looked up; what lies beyond does not decide where it goes."""
MAX_BLOCK_SIZE = 4096
_MEDIUMS = (None, "GPU")
"""Where a block has to be to count: elsewhere it has still to be loaded."""


@dataclass(slots=True, eq=False)
class _Holder:
    """One worker: its slot, its bit in masks, and its names for the blocks it has."""

    slot: int
    bit: int
    names: dict[int | bytes, int] = field(default_factory=dict)
    block_size: int = 0


class BlockIndex:
    """The blocks of all workers."""

    def __init__(self, max_blocks_per_worker: int = MAX_BLOCKS_PER_WORKER) -> None:
        self._most = max_blocks_per_worker
        self._holding: dict[int, int] = {}
        """By block the slot of the worker that has it; of several, the negative of their mask.
        Most blocks have one, and its number takes no memory of its own."""
        self._holders: dict[str, _Holder] = {}
        self._slots: list[str] = []
        self._bits: list[int] = []
        self._free: list[int] = []
        self._sizes: Counter[int] = Counter()
        self.orphans = 0
        """Blocks that were not taken in, since their parent is not known."""

    def __len__(self) -> int:
        """Return how many blocks are indexed; one that two workers have counts once."""
        return len(self._holding)

    def blocks(self, worker: str) -> int:
        """Return how many blocks *worker* is known to have."""
        holder = self._holders.get(worker)
        return len(holder.names) if holder else 0

    def apply(self, worker: str, events: Sequence[KVEvent]) -> None:
        """Take in what *worker* says of its blocks."""
        holder = self._holders.get(worker) or self._new_holder(worker)
        for event in events:
            match event:
                case BlockStored():
                    self._store(holder, event)
                case BlockRemoved():
                    self._remove(holder, event)
                case AllBlocksCleared():
                    self._clear(holder)

    def forget(self, worker: str) -> None:
        """Drop all that is known of *worker*."""
        holder = self._holders.pop(worker, None)
        if holder is None:
            return
        self._clear(holder)
        self._note_size(holder, 0)
        self._slots[holder.slot] = ""
        self._free.append(holder.slot)

    def cached_tokens(self, tokens: Sequence[int]) -> dict[str, int]:
        """Return how many of *tokens* each worker has in a row, for those that have some."""
        if not self._holding or not tokens:
            return {}
        try:
            data = array("Q", tokens).tobytes()
        except OverflowError:
            return {}  # Not token ids: a worker will say so.
        found: dict[str, int] = {}
        for size in self._sizes:
            self._look_up(data, size, found)
        return found

    def _look_up(self, data: bytes, size: int, found: dict[str, int]) -> None:
        holders, bits, step, parent = self._holding, self._bits, size * 8, _ROOT
        holding = -1
        depth = 0
        for begin in range(0, min(len(data) - step + 1, MAX_DEPTH * step), step):
            parent = _digest(parent + data[begin : begin + step])
            entry = holders.get(int.from_bytes(parent, "big"))
            mask = 0 if entry is None else bits[entry] if entry >= 0 else -entry
            still = holding & mask
            if still != holding and depth:
                self._found(holding & ~still, depth * size, found)
            holding = still
            if not holding:
                return
            depth += 1
        if depth:
            self._found(holding, depth * size, found)

    def _found(self, mask: int, tokens: int, found: dict[str, int]) -> None:
        slots = self._slots
        if mask & (mask - 1) == 0:
            found[slots[mask.bit_length() - 1]] = tokens
            return
        for slot, bit in enumerate(bin(mask)[:1:-1]):
            if bit == "1":
                found[slots[slot]] = tokens

    def _new_holder(self, worker: str) -> _Holder:
        if self._free:
            slot = self._free.pop()
            self._slots[slot] = worker
        else:
            slot = len(self._slots)
            self._slots.append(worker)
            self._bits.append(1 << slot)
        holder = self._holders[worker] = _Holder(slot, self._bits[slot])
        return holder

    def _note_size(self, holder: _Holder, size: int) -> None:
        if holder.block_size:
            self._sizes[holder.block_size] -= 1
            if not self._sizes[holder.block_size]:
                del self._sizes[holder.block_size]
        holder.block_size = size
        if size:
            self._sizes[size] += 1

    def _store(self, holder: _Holder, event: BlockStored) -> None:
        size = event.block_size
        if not _is_plain(event) or not 0 < size <= MAX_BLOCK_SIZE:
            return
        if size != holder.block_size:
            self._clear(holder)
            self._note_size(holder, size)
        parent = _ROOT
        if event.parent_block_hash is not None:
            known = holder.names.get(event.parent_block_hash)
            if known is None:
                self.orphans += len(event.block_hashes)
                return
            parent = known.to_bytes(8, "big")
        try:
            data = array("Q", event.token_ids).tobytes()
        except (OverflowError, TypeError):
            return
        step = size * 8
        for at, name in enumerate(event.block_hashes[: len(data) // step]):
            parent = _digest(parent + data[at * step : (at + 1) * step])
            self._hold(holder, name, int.from_bytes(parent, "big"))

    def _hold(self, holder: _Holder, name: int | bytes, block: int) -> None:
        names, holding = holder.names, self._holding
        before = names.get(name)
        if before is not None and before != block:
            self._drop(holder, name)
        names[name] = block
        entry = holding.get(block)
        if entry is None:
            holding[block] = holder.slot
        elif entry < 0:
            holding[block] = -(-entry | holder.bit)
        elif entry != holder.slot:
            holding[block] = -(self._bits[entry] | holder.bit)
        if len(names) > self._most:
            self._drop(holder, next(iter(names)))

    def _drop(self, holder: _Holder, name: int | bytes) -> None:
        block = holder.names.pop(name, None)
        if block is None:
            return
        entry = self._holding.get(block)
        if entry is None:
            return
        mask = (self._bits[entry] if entry >= 0 else -entry) & ~holder.bit
        if not mask:
            del self._holding[block]
        elif mask & (mask - 1):
            self._holding[block] = -mask
        else:
            self._holding[block] = mask.bit_length() - 1

    def _remove(self, holder: _Holder, event: BlockRemoved) -> None:
        if event.medium in _MEDIUMS and not event.group_idx:
            for name in event.block_hashes:
                self._drop(holder, name)

    def _clear(self, holder: _Holder) -> None:
        for name in list(holder.names):
            self._drop(holder, name)


_ROOT = bytes(8)


def _digest(data: bytes) -> bytes:
    """Return `hash_block` of a parent's hash and tokens, as the bytes that both are here."""
    return blake2b(data, digest_size=8).digest()


def _is_plain(event: BlockStored) -> bool:
    """Whether the tokens alone make the content: no adapter, no image, and in fast memory."""
    extra = event.extra_keys
    return (
        event.lora_id is None
        and event.lora_name is None
        and not event.cache_salt
        and event.medium in _MEDIUMS
        and not event.group_idx
        and (not extra or all(not each for each in extra))
    )
