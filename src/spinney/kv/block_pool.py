"""Who holds which KV block, and which released blocks still answer for a prefix.

A block is *held* (reference count above zero), *cached* (released, but its content is known by a
hash and may be taken up again) or *free*. Invariants, which `BlockPool.check` verifies:

- every block is in exactly one of the three states, and the counts add up to the capacity;
- a hash names at most one block, and that block holds what was registered under it: a block loses
  its hash before anyone may write to it;
- the cached block released longest ago is the first one to be reused, and within one sequence the
  tail goes before the head, whose prefix more requests share.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kv.block_hash import BlockHash

BlockId = NewType("BlockId", int)


class OutOfBlocksError(SpinneyError):
    """More blocks were wanted than are free or cached."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A full block became findable by its hash."""

    block_hash: BlockHash
    parent: BlockHash | None
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """A block's content is gone."""

    block_hash: BlockHash


@dataclass(frozen=True, slots=True)
class Cleared:
    """All content is gone."""


CacheChange = Stored | Removed | Cleared


class BlockPool:
    """Reference-counted blocks with a prefix cache. All methods are constant time per block."""

    def __init__(self, capacity: int, block_size: int) -> None:
        self.capacity = capacity
        self.block_size = block_size
        self._references = [0] * capacity
        self._hash_of: list[BlockHash | None] = [None] * capacity
        self._block_of: dict[BlockHash, BlockId] = {}
        self._free: deque[BlockId] = deque(BlockId(index) for index in range(capacity))
        self._cached: OrderedDict[BlockId, None] = OrderedDict()
        self._changes: list[CacheChange] = []

    @property
    def available(self) -> int:
        """Blocks that `allocate` could give out now: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        """Blocks with a reference."""
        return self.capacity - self.available

    def allocate(self, count: int) -> list[BlockId]:
        """Take *count* blocks with one reference each; cached ones are evicted if need be.

        Raises OutOfBlocksError, and takes none, when fewer are available.
        """
        if count > self.available:
            raise OutOfBlocksError(
                f"{count} KV blocks wanted, {self.available} free or cached of {self.capacity}; "
                f"wait, preempt a request, or raise the number of blocks"
            )
        taken = [self._take_one() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def match(self, hashes: Sequence[BlockHash]) -> list[BlockId]:
        """Return the blocks of the longest known prefix of *hashes*. Takes no reference."""
        found: list[BlockId] = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def idle_among(self, blocks: Sequence[BlockId]) -> int:
        """How many of *blocks* are released: holding them lowers `available` by as many."""
        return sum(self._references[block] == 0 for block in blocks)

    def sole_among(self, blocks: Sequence[BlockId]) -> int:
        """How many of *blocks* have one reference: releasing them raises `available` as much."""
        return sum(self._references[block] == 1 for block in blocks)

    def hold(self, blocks: Sequence[BlockId]) -> None:
        """Add a reference to *blocks*, which are held or cached."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[BlockId]) -> None:
        """Drop a reference to each of *blocks*, given from head to tail of a sequence."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is released more often than held"
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def register(
        self,
        block: BlockId,
        block_hash: BlockHash,
        parent: BlockHash | None,
        token_ids: Sequence[int],
    ) -> None:
        """Make a held, full *block* findable. Where another block has the hash, nothing changes."""
        assert self._references[block] > 0, f"block {block} is registered but not held"
        if block_hash in self._block_of or self._hash_of[block] is not None:
            return
        self._hash_of[block] = block_hash
        self._block_of[block_hash] = block
        self._changes.append(Stored(block_hash, parent, tuple(token_ids)))

    def clear(self) -> None:
        """Forget all content; held blocks stay held but are no longer found."""
        self._hash_of = [None] * self.capacity
        self._block_of.clear()
        self._free.extend(self._cached)
        self._cached.clear()
        self._changes.append(Cleared())

    def take_changes(self) -> list[CacheChange]:
        """Return what became known or unknown since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def check(self) -> None:
        """Raise AssertionError when an invariant of this module does not hold."""
        held = {block for block, count in enumerate(self._references) if count > 0}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert len(held) + len(free) + len(cached) == self.capacity, "a block is lost"
        assert held | free | cached == set(range(self.capacity)), "a block is in two states"
        assert all(count >= 0 for count in self._references), "a count is negative"
        assert all(self._hash_of[block] is not None for block in cached), "cached, but no hash"
        assert all(self._hash_of[block] is None for block in free), "free, but has a hash"
        known = {h: b for b, h in enumerate(self._hash_of) if h is not None}
        assert known == self._block_of, "hashes and blocks disagree"

    def _take_one(self) -> BlockId:
        if self._free:
            return self._free.popleft()
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hash_of[block]
        assert block_hash is not None, "a cached block has a hash"
        self._hash_of[block] = None
        del self._block_of[block_hash]
        self._changes.append(Removed(block_hash))
        return block
