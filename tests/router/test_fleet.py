"""The fast choice is the specified one, whatever the fleet, its loads and the question."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.router.test_pair_choice import Simple
from tests.router.test_picker import worker

from spinney.router.costs import TABLE_CELLS, ModelCosts, TokenCosts
from spinney.router.fleet import MARKED, Fleet, Fleets
from spinney.router.picker import IDLE, Ask, Choice, Load, Policy, View, pick
from spinney.router.workers import Role, Way

COUNTS = st.integers(0, 3).map(lambda n: 100 * n) | st.integers(0, 300)
LOADS = st.builds(Load, COUNTS, COUNTS, COUNTS, COUNTS)
PLACES = st.one_of(st.just(()), st.tuples(*(st.sampled_from(["", "a", "b"]),) * 3))
REVISIONS = st.sampled_from([frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")])


@dataclass(frozen=True)
class Kind:
    letter: str
    places: tuple
    revisions: frozenset
    ready: bool
    models: frozenset
    way: Way


KINDS = st.builds(
    Kind,
    st.sampled_from("ppdddb"),
    PLACES,
    REVISIONS,
    st.sampled_from([True] * 5 + [False]),
    st.sampled_from([frozenset("m")] * 5 + [frozenset("o"), frozenset("mo")]),
    st.sampled_from([*Way, Way.SGLANG]),
)


@st.composite
def questions(draw):
    kinds = draw(st.lists(KINDS, min_size=0, max_size=14))
    if draw(st.sampled_from([True, False, False, False])):
        kinds = [replace(kind, places=()) for kind in kinds]
    if draw(st.booleans()):
        kinds = [replace(kind, revisions=frozenset()) for kind in kinds]
    if one_way := draw(st.sampled_from([None, Way.TICKET, Way.TICKET, Way.SGLANG])):
        kinds = [replace(kind, way=one_way) for kind in kinds]
    workers = tuple(
        worker(
            f"{kind.letter}{number:02}",
            places=kind.places,
            revisions=kind.revisions,
            ready=kind.ready,
            models=kind.models,
            way=kind.way,
        )
        for number, kind in enumerate(kinds)
    )
    names = [each.name for each in workers] or ["d00"]
    some = st.frozensets(st.sampled_from(names), max_size=4)
    loads = draw(st.dictionaries(st.sampled_from(names), LOADS))
    tokens = draw(st.integers(1, 400))
    asked = Ask(
        "m",
        tokens,
        draw(st.dictionaries(st.sampled_from([*names, "gone"]), st.integers(0, 500))),
        draw(st.sampled_from([True, True, True, False])),
        draw(some),
        draw(some),
        draw(st.sampled_from([False, False, False, True])),
    )
    costs = draw(st.sampled_from([TokenCosts(), ModelCosts(Simple())]))
    policy = Policy(
        draw(st.sampled_from([0, 0, 50, 300])), draw(st.sampled_from([1.0, 0.37])), costs
    )
    return View(workers, loads, draw(some)), asked, policy


def told(choice):
    """Everything but the candidates: which of several equal ones are shown is not said."""
    return replace(choice, candidates=()) if isinstance(choice, Choice) else choice


@settings(max_examples=200)
@given(questions(), st.integers(0, 5))
def test_the_choice_is_the_specified_one(question, seed):
    seen, asked, policy = question
    fleet = Fleet(seen.roster("m"), seen.loads, policy)

    fast = fleet.pick(asked, seen.avoided, random.Random(seed))
    slow = pick(asked, seen, policy, random.Random(seed))

    assert told(fast) == told(slow)
    if isinstance(fast, Choice):
        assert [each.cost for each in fast.candidates] == [each.cost for each in slow.candidates]
        known = {(each.worker, each.stage): each for each in slow.candidates}
        for each in fast.candidates:
            assert each == known.get((each.worker, each.stage), each)


@given(questions(), st.lists(st.tuples(st.integers(0, 13), st.one_of(LOADS, st.just(IDLE)))))
def test_loads_that_change_are_as_loads_that_were_there(question, changes):
    seen, asked, policy = question
    fleet = Fleet(seen.roster("m"), seen.loads, policy)
    loads = dict(seen.loads)
    for at, load in changes:
        if at < len(seen.workers):
            name = seen.workers[at].name
            fleet.note(name, load)
            loads[name] = load

    fast = fleet.pick(asked, seen.avoided, random.Random(1))

    assert told(fast) == told(pick(asked, replace(seen, loads=loads), policy, random.Random(1)))


HITS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 3) | COUNTS), max_size=8)


@given(questions(), st.lists(HITS, min_size=2, max_size=4), st.sampled_from([50, MARKED]))
def test_what_was_asked_before_changes_no_choice(question, asked_for, more_tokens):
    seen, asked, policy = question
    fleet = Fleet(seen.roster("m"), seen.loads, policy)
    names = [*(each.name for each in seen.workers), "gone"]
    for hits in asked_for:
        for longer in (0, more_tokens):  # The same workers in the same order, with other counts.
            cached = {names[at % len(names)]: count + longer for at, count in hits}
            ask = replace(asked, prompt_tokens=asked.prompt_tokens + longer, cached=cached)

            fast = fleet.pick(ask, seen.avoided, random.Random(1))

            assert told(fast) == told(pick(ask, seen, policy, random.Random(1)))


def test_a_worker_of_unknown_place_is_not_taken_for_a_far_one():
    seen = View(
        (
            worker("p0", places=("h", "r", "z")),
            worker("p1"),
            worker("d0"),
            worker("d1", places=("i", "s", "y")),
        ),
        {"p0": Load(1, 50), "p1": Load(1, 60), "d1": Load(0, 0, 99, 99)},
    )
    fast = Fleet(seen.roster("m"), seen.loads, Policy())

    choice = fast.pick(Ask("m", 400), frozenset(), random.Random(1))

    assert (choice.prefill.worker.name, choice.decode.worker.name) == ("p0", "d0")
    assert told(choice) == told(pick(Ask("m", 400), seen, Policy(), random.Random(1)))


def test_a_fleet_lasts_until_the_workers_change():
    fleets = Fleets(Policy())
    seen = View((worker("d0"), worker("d1")))
    first = fleets.of("m", seen.roster("m"), seen.rosters, {"d0": Load(decode_requests=5)})
    fleets.note("d1", Load(decode_requests=9))

    assert fleets.of("m", seen.roster("m"), seen.rosters, {}) is first
    assert first.pick(Ask("m", 10), frozenset(), random.Random(1)).decode.worker.name == "d0"

    fleets.note("d1", IDLE)
    assert first.pick(Ask("m", 10), frozenset(), random.Random(1)).decode.worker.name == "d1"

    flipped = View((worker("d0"), replace(worker("d1"), role=Role.PREFILL)))
    after = fleets.of("m", flipped.roster("m"), flipped.rosters, {})
    found = after.pick(Ask("m", 10), frozenset(), random.Random(1))
    assert isinstance(found, Choice)
    assert (found.prefill.worker.name, found.decode.worker.name) == ("d1", "d0")


def test_loads_too_large_for_the_table_of_a_model_are_asked_one_by_one():
    costs = ModelCosts(Simple())
    sequences = np.array([3, 100_000, 7])
    context = np.array([10, 256 * TABLE_CELLS, 3000])

    found = costs.decode_all(sequences, context, 100)

    assert found.tolist() == [
        costs.decode(int(one), int(other), 100)
        for one, other in zip(sequences, context, strict=True)
    ]
    assert costs._table.size <= TABLE_CELLS
