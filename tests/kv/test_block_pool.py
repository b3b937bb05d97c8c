"""The block pool: who holds what, what is found again, what is evicted first."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spinney.kv.block_hash import BlockHash, hash_blocks
from spinney.kv.block_pool import BlockPool, Cleared, OutOfBlocksError, Removed, Stored


def registered(pool: BlockPool, *hashes: int) -> list[int]:
    blocks = pool.allocate(len(hashes))
    parent = None
    for block, name in zip(blocks, hashes, strict=True):
        pool.register(block, BlockHash(name), parent, [name])
        parent = BlockHash(name)
    return blocks


def test_allocating_more_than_available_takes_nothing() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(3)
    with pytest.raises(OutOfBlocksError, match="2 KV blocks wanted, 1 free or cached of 4"):
        pool.allocate(2)
    assert pool.available == 1
    pool.check()


def test_released_blocks_are_found_by_their_hash() -> None:
    pool = BlockPool(4, 16)
    blocks = registered(pool, 11, 12)
    pool.release(blocks)
    assert pool.held == 0
    assert pool.match([BlockHash(11), BlockHash(12), BlockHash(13)]) == blocks
    assert pool.match([BlockHash(12)]) == blocks[1:]
    assert pool.match([BlockHash(13), BlockHash(11)]) == []


def test_free_blocks_are_used_before_cached_ones() -> None:
    pool = BlockPool(4, 16)
    pool.release(registered(pool, 1, 2))
    pool.allocate(2)
    assert len(pool.match([BlockHash(1), BlockHash(2)])) == 2


def test_the_block_released_longest_ago_is_evicted_first_and_tails_before_heads() -> None:
    pool = BlockPool(4, 16)
    first, second = registered(pool, 1, 2), registered(pool, 3, 4)
    pool.release(first)
    pool.release(second)
    pool.take_changes()
    pool.allocate(3)
    assert pool.take_changes() == [Removed(BlockHash(n)) for n in (2, 1, 4)]
    assert len(pool.match([BlockHash(3)])) == 1


def test_a_block_that_is_held_again_is_not_evicted() -> None:
    pool = BlockPool(2, 16)
    blocks = registered(pool, 1)
    pool.release(blocks)
    pool.hold(blocks)
    pool.allocate(1)
    with pytest.raises(OutOfBlocksError):
        pool.allocate(1)


def test_the_second_block_with_a_hash_stays_private() -> None:
    pool = BlockPool(2, 16)
    first, second = registered(pool, 7), registered(pool, 7)
    assert pool.match([BlockHash(7)]) == first
    pool.release(second)
    pool.release(first)
    pool.check()
    assert [type(change) for change in pool.take_changes()] == [Stored]


def test_clearing_forgets_content_but_keeps_holders() -> None:
    pool = BlockPool(3, 16)
    held = registered(pool, 1)
    pool.release(registered(pool, 2))
    pool.clear()
    pool.check()
    assert pool.held == 1
    assert pool.match([BlockHash(1)]) == []
    assert pool.take_changes()[-1] == Cleared()
    pool.release(held)
    assert pool.held == 0


def test_hashes_chain_so_that_equal_blocks_after_different_beginnings_differ() -> None:
    one, other = hash_blocks([1, 2, 3, 4], 2), hash_blocks([9, 2, 3, 4], 2)
    assert one[1] != other[1]
    assert hash_blocks([1, 2, 3, 4, 5], 2) == one
    assert hash_blocks([1, 2, 3, 4], 2, known=one[:1]) == one
    assert hash_blocks([1, 2, 3, 4], 2, salt="tenant") != one
    assert len(hash_blocks([1, 2, 3], 2)) == 1


class PoolMachine(RuleBasedStateMachine):
    """Sequences of tokens come, are shared, go and are evicted; memory is a list of contents."""

    SIZE = 2
    CAPACITY = 8

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.CAPACITY, self.SIZE)
        self.memory: list[tuple[int, ...] | None] = [None] * self.CAPACITY
        self.sequences: list[tuple[list[int], list[int]]] = []
        self.known: set[int] = set()

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9), register=st.booleans())
    def start(self, tokens: list[int], register: bool) -> None:
        hashes = hash_blocks(tokens, self.SIZE)
        found = self.pool.match(hashes)
        needed = -(-len(tokens) // self.SIZE) - len(found)
        if needed + self.pool.idle_among(found) > self.pool.available:
            return
        for at, block in enumerate(found):
            # What is found is what was computed for this very prefix.
            assert self.memory[block] == tuple(tokens[: (at + 1) * self.SIZE])
        self.pool.hold(found)
        blocks = found + self.pool.allocate(needed)
        for at in range(len(found), len(blocks)):
            self.memory[blocks[at]] = tuple(tokens[: (at + 1) * self.SIZE])
        if register:
            for at in range(len(found), len(hashes)):
                parent = hashes[at - 1] if at else None
                own = tokens[at * self.SIZE : (at + 1) * self.SIZE]
                self.pool.register(blocks[at], hashes[at], parent, own)
        self.sequences.append((tokens, blocks))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.sequences) - 1))
        _, blocks = self.sequences.pop(at)
        self.pool.release(blocks)

    @rule()
    def clear(self) -> None:
        self.pool.clear()

    @invariant()
    def holders_have_their_content(self) -> None:
        for tokens, blocks in self.sequences:
            for at, block in enumerate(blocks):
                assert self.memory[block] == tuple(tokens[: (at + 1) * self.SIZE])

    @invariant()
    def counts_add_up(self) -> None:
        self.pool.check()
        assert self.pool.held == len({b for _, blocks in self.sequences for b in blocks})

    @invariant()
    def events_say_what_is_known(self) -> None:
        for change in self.pool.take_changes():
            match change:
                case Stored(name, parent, _):
                    assert name not in self.known
                    assert parent is None or isinstance(parent, int)
                    self.known.add(name)
                case Removed(name):
                    self.known.remove(name)
                case Cleared():
                    self.known.clear()
        assert {name for name in self.known if self.pool.match([BlockHash(name)])} == self.known


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
