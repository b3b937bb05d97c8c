"""The index of blocks against a model that keeps whole prefixes, and what must not get in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spinney.kv.block_hash import hash_blocks
from spinney.kv.events import AllBlocksCleared, BlockRemoved, BlockStored
from spinney.kv.prefix_index import MAX_BLOCK_SIZE, BlockIndex, _digest

SIZES = {"a": 2, "b": 2, "c": 3}


def stored(tokens, size, name, start=0, **more):
    """Return the event by which a worker says that it has *tokens* from block *start* on."""
    names = [name(tokens[: (at + 1) * size]) for at in range(len(tokens) // size)]
    parent = names[start - 1] if start else None
    rest = list(tokens[start * size : len(names) * size])
    return BlockStored(names[start:], parent, rest, size, **more)


def named(worker):
    return lambda prefix: f"{worker}{prefix}".encode()


def test_the_longest_known_beginning_counts_and_workers_may_differ_in_block_size():
    index = BlockIndex()
    index.apply("a", [stored((1, 2, 3, 4, 5), 2, named("a"))])
    index.apply("b", [stored((1, 2, 9, 9), 2, named("b"))])
    index.apply("c", [stored((1, 2, 3, 4, 5, 6), 3, named("c"))])

    assert index.cached_tokens([1, 2, 3, 4, 5, 6, 7]) == {"a": 4, "b": 2, "c": 6}
    assert index.cached_tokens([1, 2]) == {"a": 2, "b": 2}
    assert index.cached_tokens([2, 2, 3]) == {}
    assert index.cached_tokens([]) == {}
    assert index.cached_tokens([-1, 1 << 80]) == {}


def test_the_names_of_our_own_blocks_are_the_hashes_of_the_engine():
    tokens = list(range(12))

    parent, found = bytes(8), []
    for at in range(0, 12, 4):
        parent = _digest(parent + b"".join(t.to_bytes(8, "little") for t in tokens[at : at + 4]))
        found.append(int.from_bytes(parent, "big"))

    assert found == hash_blocks(tokens, 4)


def test_a_restarted_worker_starts_from_nothing():
    index = BlockIndex()
    index.apply("a", [stored((1, 2, 3, 4), 2, named("a"))])
    index.apply("b", [stored((1, 2), 2, named("b"))])
    index.forget("a")
    index.forget("never seen")

    assert index.cached_tokens([1, 2, 3, 4]) == {"b": 2}
    index.apply("new", [stored((1, 2, 3, 4), 2, named("x"))])
    assert index.cached_tokens([1, 2, 3, 4]) == {"b": 2, "new": 4}
    index.forget("b")
    index.forget("new")
    assert len(index) == 0


def test_blocks_without_a_known_parent_are_left_out():
    index = BlockIndex()
    index.apply("a", [stored((1, 2, 3, 4, 5, 6), 2, named("a"), start=1)])

    assert (index.blocks("a"), index.orphans) == (0, 2)


def test_a_worker_is_bounded_whatever_it_says():
    index = BlockIndex(max_blocks_per_worker=10)
    for number in range(100):
        index.apply("a", [stored((number, 2, 3, 4), 2, named("a"))])
        assert index.blocks("a") <= 10
        assert len(index) <= 10

    assert index.cached_tokens([99, 2, 3, 4]) == {"a": 4}
    assert index.cached_tokens([0, 2, 3, 4]) == {}


def test_another_block_size_voids_what_was_known():
    index = BlockIndex()
    index.apply("a", [stored((1, 2, 3, 4), 2, named("a"))])
    index.apply("a", [stored((1, 2, 3, 4), 4, named("a"))])

    assert index.cached_tokens([1, 2, 3, 4]) == {"a": 4}
    assert index.cached_tokens([1, 2, 3]) == {}


@pytest.mark.parametrize(
    "more",
    [
        {"lora_id": 1},
        {"lora_name": "x"},
        {"extra_keys": [["image"], None]},
        {"cache_salt": "tenant"},
        {"medium": "CPU"},
        {"group_idx": 1},
    ],
)
def test_blocks_of_other_content_or_in_slow_memory_do_not_count(more):
    index = BlockIndex()
    index.apply("a", [stored((1, 2, 3, 4), 2, named("a"), **more)])

    assert index.cached_tokens([1, 2, 3, 4]) == {}


@pytest.mark.parametrize(
    "event",
    [
        BlockStored([1], None, [-1, 2], 2),
        BlockStored([1], None, [1 << 70, 2], 2),
        BlockStored([1, 2, 3], None, [1], 2),
        BlockStored([1], None, [1], 0),
        BlockStored([1], None, [1], -5),
        BlockStored([1], None, [1], MAX_BLOCK_SIZE + 1),
        BlockRemoved([b"unknown"]),
    ],
)
def test_nonsense_changes_nothing(event):
    index = BlockIndex()
    index.apply("a", [stored((1, 2), 2, named("a")), event])

    assert index.cached_tokens([1, 2]) == {"a": 2}


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
WORKERS = st.sampled_from(sorted(SIZES))


class Index(RuleBasedStateMachine):
    """Workers store and remove blocks in any order; the model keeps each one's prefixes."""

    def __init__(self):
        super().__init__()
        self.index = BlockIndex()
        self.held = {worker: set() for worker in SIZES}

    @rule(worker=WORKERS, tokens=PROMPTS)
    def store(self, worker, tokens):
        size = SIZES[worker]
        prefixes = [tokens[: end + size] for end in range(0, len(tokens) - size + 1, size)]
        have = 0
        while have < len(prefixes) and prefixes[have] in self.held[worker]:
            have += 1
        if have < len(prefixes):
            self.index.apply(worker, [stored(tokens, size, named(worker), have)])
            self.held[worker] |= set(prefixes)

    @rule(worker=WORKERS, data=st.data())
    def remove(self, worker, data):
        if self.held[worker]:
            gone = data.draw(st.sampled_from(sorted(self.held[worker])))
            self.held[worker].discard(gone)
            self.index.apply(worker, [BlockRemoved([named(worker)(gone)])])

    @rule(worker=WORKERS)
    def clear(self, worker):
        self.held[worker].clear()
        self.index.apply(worker, [AllBlocksCleared()])

    @rule(worker=WORKERS)
    def forget(self, worker):
        self.held[worker].clear()
        self.index.forget(worker)

    @rule(tokens=PROMPTS)
    def look(self, tokens):
        want = {}
        for worker, size in SIZES.items():
            count = 0
            while tokens[: count + size] in self.held[worker] and count + size <= len(tokens):
                count += size
            if count:
                want[worker] = count
        assert self.index.cached_tokens(tokens) == want

    @invariant()
    def counts_agree(self):
        for worker in SIZES:
            assert self.index.blocks(worker) == len(self.held[worker])
        if not any(self.held.values()):
            assert len(self.index) == 0


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(PROMPTS, max_size=8))
def test_what_one_worker_says_never_counts_for_another(prompts):
    index = BlockIndex()
    for tokens in prompts:
        index.apply("a", [stored(tokens, 2, named("a"))])
    index.apply("b", [])

    assert all("b" not in index.cached_tokens(tokens) for tokens in prompts)
