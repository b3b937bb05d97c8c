"""The choice of workers: tables, and what must hold whatever the view."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.router.picker import (
    Ask,
    Choice,
    Load,
    Mode,
    Nobody,
    Policy,
    View,
    pick,
    pick_prefill,
)
from spinney.router.workers import Role, Worker

KINDS = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}


def worker(name, **changes):
    return Worker(
        **{
            "name": name,
            "url": f"http://{name}",
            "role": KINDS[name[0]],
            "models": frozenset({"m"}),
            **changes,
        }
    )


def view(names, loads=None, avoided=()):
    workers = tuple(worker(name) if isinstance(name, str) else name for name in names)
    return View(workers, loads or {}, frozenset(avoided))


def ask(tokens=100, **changes):
    return Ask(**{"model": "m", "prompt_tokens": tokens, **changes})


def chosen(choice):
    if isinstance(choice, Nobody):
        return None
    prefill = choice.prefill.worker.name if choice.prefill else None
    return choice.mode.value, prefill, choice.decode.worker.name


QUEUED = Load(prefill_requests=1, prefill_tokens=500)
DECODING = Load(decode_requests=10, context_tokens=1000)


@pytest.mark.parametrize(
    ("asked", "seen", "policy", "want"),
    [
        pytest.param(
            ask(),
            view(["p0", "p1", "d0", "d1"], {"p0": QUEUED, "d1": DECODING}),
            Policy(),
            ("disaggregated", "p1", "d0"),
            id="least work in both stages",
        ),
        pytest.param(
            ask(1000, cached={"p0": 900}),
            view(["p0", "p1", "d0"], {"p0": QUEUED}),
            Policy(),
            ("disaggregated", "p0", "d0"),
            id="a cached beginning outweighs a short queue",
        ),
        pytest.param(
            ask(1000, cached={"p0": 400}),
            view(["p0", "p1", "d0"], {"p0": QUEUED}),
            Policy(),
            ("disaggregated", "p1", "d0"),
            id="and not a longer one",
        ),
        pytest.param(
            ask(1000, cached={"p0": 900}),
            view(["p0", "p1", "d0"], {"p0": QUEUED}),
            Policy(prefix_weight=0.1),
            ("disaggregated", "p1", "d0"),
            id="an index that is not believed is load balancing",
        ),
        pytest.param(
            ask(), view(["d0"]), Policy(), ("local-prefill", None, "d0"), id="no prefill worker"
        ),
        pytest.param(ask(), view(["b0"]), Policy(), ("aggregated", None, "b0"), id="one for both"),
        pytest.param(
            ask(),
            view(["p0", "b0"]),
            Policy(),
            ("aggregated", None, "b0"),
            id="whole where it costs the same",
        ),
        pytest.param(
            ask(),
            view(["p0", "b0"], {"b0": QUEUED}),
            Policy(),
            ("aggregated", None, "b0"),
            id="a queue on the decoder is in the way of both",
        ),
        pytest.param(
            ask(cached={"p0": 64}),
            view(["p0", "b0"]),
            Policy(),
            ("disaggregated", "p0", "b0"),
            id="split where a prefill worker has the beginning",
        ),
        pytest.param(
            ask(10),
            view(["p0", "d0"]),
            Policy(local_prefill_below_tokens=11),
            ("local-prefill", None, "d0"),
            id="short",
        ),
        pytest.param(
            ask(11),
            view(["p0", "d0"]),
            Policy(local_prefill_below_tokens=11),
            ("disaggregated", "p0", "d0"),
            id="not short",
        ),
        pytest.param(
            ask(1000, cached={"d1": 992}),
            view(["p0", "d0", "d1"]),
            Policy(local_prefill_below_tokens=11),
            ("local-prefill", None, "d1"),
            id="short for the worker that has the rest",
        ),
        pytest.param(
            ask(splittable=False),
            view(["p0", "d0"]),
            Policy(),
            ("local-prefill", None, "d0"),
            id="several sequences",
        ),
        pytest.param(
            ask(),
            view(["p0", "d0"], avoided=["p0"]),
            Policy(),
            ("local-prefill", None, "d0"),
            id="the prefill worker failed lately",
        ),
        pytest.param(
            ask(),
            view(["d0", "d1"], {"d1": DECODING}, avoided=["d0"]),
            Policy(),
            ("local-prefill", None, "d1"),
            id="the idle decode worker failed lately",
        ),
        pytest.param(
            ask(tried_decode=frozenset({"d0"})),
            view(["d0", "d1"], avoided=["d0", "d1"]),
            Policy(),
            ("local-prefill", None, "d1"),
            id="of two that failed, the one not tried",
        ),
        pytest.param(ask(), view(["p0"]), Policy(), None, id="nobody decodes"),
        pytest.param(ask(model="o"), view(["p0", "d0"]), Policy(), None, id="another model"),
        pytest.param(
            ask(),
            view([worker("d0", ready=False), worker("d1", draining=True)]),
            Policy(),
            None,
            id="neither ready nor staying",
        ),
    ],
)
def test_the_choice(asked, seen, policy, want):
    assert chosen(pick(asked, seen, policy, random.Random(1))) == want


def test_a_choice_says_why():
    seen = view(["p0", "d0", "d1", worker("d2", ready=False)], {"d0": DECODING}, avoided=["d1"])

    choice = pick(ask(100, cached={"p0": 64}), seen, Policy(), random.Random(1))

    assert choice.prefill.reason == "only-one"
    assert (choice.decode.worker.name, choice.decode.reason) == ("d0", "only-one")
    assert choice.rejected == {"not-ready": 1, "failed-lately": 1}
    terms = {c.worker: (c.cost, c.uncached_tokens, c.cached_tokens) for c in choice.candidates}
    assert terms == {"p0": (36, 36, 64), "d0": (10 * 16 + 1000 / 16, 100, 0)}


def test_equals_are_picked_by_chance_and_all_of_them():
    rng = random.Random(7)

    picked = {chosen(pick(ask(), view(["p0", "p1", "d0", "d1"]), Policy(), rng)) for _ in range(64)}

    assert len(picked) == 4


def test_nobody_says_what_was_rejected():
    seen = view([worker("d0", ready=False), worker("d1", models=frozenset()), "p0"])

    assert pick(ask(), seen, Policy(), random.Random(1)) == Nobody({"not-ready": 1, "model": 1})


# Whatever the view

NAMES = [f"{kind}{index}" for kind in "pdb" for index in range(3)]
COUNTS = st.integers(0, 2000)
WORKERS = st.builds(
    lambda name, ready, draining, models: worker(
        name, ready=ready, draining=draining, models=models
    ),
    st.sampled_from(NAMES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([frozenset(), frozenset({"m"}), frozenset({"o"}), frozenset({"m", "o"})]),
)
VIEWS = st.builds(
    View,
    st.lists(WORKERS, unique_by=lambda w: w.name, max_size=9).map(
        lambda found: tuple(sorted(found, key=lambda w: w.name))
    ),
    st.dictionaries(st.sampled_from(NAMES), st.builds(Load, COUNTS, COUNTS, COUNTS, COUNTS)),
    st.frozensets(st.sampled_from(NAMES)),
)
ASKS = st.builds(
    Ask,
    st.sampled_from(["m", "o", "x"]),
    st.integers(1, 5000),
    st.dictionaries(st.sampled_from(NAMES), COUNTS),
    st.booleans(),
    st.frozensets(st.sampled_from(NAMES)),
    st.frozensets(st.sampled_from(NAMES)),
    st.booleans(),
)
POLICIES = st.builds(Policy, st.integers(0, 3000))


@given(ASKS, VIEWS, POLICIES, st.integers())
def test_only_workers_that_can_serve_are_picked(asked, seen, policy, seed):
    choice = pick(asked, seen, policy, random.Random(seed))

    able = [w for w in seen.workers if w.ready and not w.draining and asked.model in w.models]
    assert isinstance(choice, Choice) == any(w.role is not Role.PREFILL for w in able)
    if isinstance(choice, Nobody):
        return
    assert choice.decode.worker in able
    assert choice.decode.worker.role is not Role.PREFILL
    assert (choice.prefill is not None) == (choice.mode is Mode.DISAGGREGATED)
    if choice.prefill is not None:
        assert choice.prefill.worker in able
        assert choice.prefill.worker.role is Role.PREFILL
        assert choice.prefill.worker.name not in asked.tried_prefill | seen.avoided
        assert asked.splittable
        assert not asked.local
    if choice.decode.worker.name in asked.tried_decode | seen.avoided:
        others = {w.name for w in able if w.role is not Role.PREFILL}
        assert others <= asked.tried_decode | seen.avoided, "only when there is nobody else"
        assert choice.decode.reason == "last-resort"


@given(ASKS, VIEWS, POLICIES, st.integers())
def test_the_same_seed_gives_the_same_choice_whatever_the_order(asked, seen, policy, seed):
    mixed = View(tuple(reversed(seen.workers)), seen.loads, seen.avoided)

    first = pick(asked, seen, policy, random.Random(seed))
    again = pick(asked, seen, policy, random.Random(seed))
    other = pick(asked, mixed, policy, random.Random(seed))

    assert first == again
    assert chosen(first) == chosen(other)


@given(ASKS, VIEWS, st.integers())
def test_another_prefill_worker_is_one_that_did_not_fail(asked, seen, seed):
    found = pick_prefill(asked, seen, Policy(), random.Random(seed))

    if found is not None:
        assert found.worker.role is Role.PREFILL
        assert found.worker.available
        assert found.worker.name not in asked.tried_prefill | seen.avoided


@given(ASKS, VIEWS)
def test_more_load_on_the_picked_worker_never_makes_it_cheaper(asked, seen):
    choice = pick(asked, seen, Policy(), random.Random(1))
    if isinstance(choice, Nobody):
        return
    name = choice.decode.worker.name
    before = seen.loads.get(name, Load())
    more = Load(before.prefill_requests, before.prefill_tokens, before.decode_requests + 5, 10**5)
    heavier = View(seen.workers, {**seen.loads, name: more}, seen.avoided)

    after = pick(asked, heavier, Policy(), random.Random(1))

    assert after.decode.cost >= choice.decode.cost
