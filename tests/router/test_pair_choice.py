"""Prefill and decode chosen together: distance, milliseconds of a model, whole or split."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.test_picker import ask, chosen, view, worker

from spinney.perfmodel.profile import load_step_model
from spinney.perfmodel.step_model import Distance
from spinney.router.costs import REMEMBERED, ModelCosts, TokenCosts
from spinney.router.picker import Load, Mode, Policy, distance, pick, pick_prefill
from spinney.router.workers import parse_worker


@dataclass(frozen=True)
class Simple:
    """A model whose figures are easy to add up: 1 ms a token, 1 ms a sequence and step."""

    chunk_tokens: int = 100
    far_ms: float = 500.0

    def prefill_s(self, tokens, cached=0):
        return max(1, tokens - cached) / 1000

    def decode_step_s(self, batch, _context_tokens):
        return batch / 1000

    def transfer_s(self, bytes_, distance=Distance.FAR):
        part = (0, 0.1, 0.5, 1)[distance]
        return part * self.far_ms / 1000 * bytes_ / 1000

    def kv_bytes(self, tokens):
        return tokens


MS = Policy(costs=ModelCosts(Simple()))


def at(name, host="", rack="", zone="", **more):
    return worker(name, places=(host, rack, zone), **more)


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        (("h", "r", "z"), ("h", "r", "z"), Distance.HOST),
        (("h", "r", "z"), ("i", "r", "z"), Distance.RACK),
        (("h", "r", "z"), ("i", "s", "z"), Distance.ZONE),
        (("h", "r", "z"), ("i", "s", "y"), Distance.FAR),
        (("", "r", ""), ("", "r", ""), Distance.RACK),
        (("", "", ""), ("", "", ""), Distance.FAR),
    ],
)
def test_the_distance_is_the_smallest_domain_that_is_shared(one, other, want):
    assert distance(at("p", *one), at("d", *other)) is want
    assert distance(at("p", *one), worker("d")) is None


@pytest.mark.parametrize("policy", [Policy(), MS], ids=["tokens", "ms"])
def test_equally_busy_pairs_are_in_one_rack(policy):
    seen = view(
        [
            at("p0", "h0", "r0"),
            at("p1", "h1", "r1"),
            at("d0", "h2", "r2"),
            at("d1", "h3", "r1"),
        ]
    )
    for seed in range(8):
        choice = pick(ask(1000, local=False), seen, policy, random.Random(seed))
        if policy is MS:
            assert choice.decode.worker.name in ("d0", "d1")
        else:
            assert chosen(choice) == ("disaggregated", "p1", "d1")
            assert choice.decode.reason == "near"


def test_a_long_queue_outweighs_a_short_way():
    seen = view(
        [at("p0", "h0", "r0"), at("d0", "h1", "r0"), at("d1", "h2", "r1")],
        {"d0": Load(decode_requests=100)},
    )

    assert chosen(pick(ask(100), seen, Policy(), random.Random(1)))[2] == "d1"
    assert chosen(pick(ask(100), view(seen.workers), Policy(), random.Random(1)))[2] == "d0"


@pytest.mark.parametrize(
    ("loads", "cached", "want"),
    [
        pytest.param({}, {}, (Mode.LOCAL_PREFILL, None), id="idle: moving costs more"),
        pytest.param(
            {"d0": Load(decode_requests=20)},
            {},
            (Mode.DISAGGREGATED, "p0"),
            id="a prompt would hold up many sequences",
        ),
        pytest.param(
            {"d0": Load(decode_requests=20)},
            {"d0": 995},
            (Mode.LOCAL_PREFILL, None),
            id="but not one that is nearly there",
        ),
        pytest.param(
            {"p0": Load(prefill_tokens=9000), "d0": Load(decode_requests=20)},
            {},
            (Mode.LOCAL_PREFILL, None),
            id="nor where prefill workers are behind",
        ),
    ],
)
def test_with_a_model_the_decode_worker_prefills_where_that_is_cheaper(loads, cached, want):
    seen = view([at("p0", "h0", "r", "z"), at("d0", "h1", "r", "z")], loads)

    choice = pick(ask(1000, cached=cached), seen, MS, random.Random(1))

    assert (choice.mode, choice.prefill and choice.prefill.worker.name) == want
    assert choice.unit == "ms"


def test_the_terms_of_a_pick_add_up_and_say_when_the_first_token_comes():
    seen = view(
        [at("p0", "h0", "r"), at("d0", "h1", "r")],
        {"p0": Load(prefill_tokens=50), "d0": Load(decode_requests=20)},
    )

    choice = pick(ask(1000, cached={"p0": 600}), seen, MS, random.Random(1))

    assert choice.prefill.terms == {"queue": 50.0, "prefill": 400.0}
    assert choice.decode.terms == {"decode": 64 * 21.0, "transfer": 50.0}
    assert choice.decode.cost == sum(choice.decode.terms.values())
    assert choice.first_token == 500.0


PLACES = st.tuples(*(st.sampled_from(["", "a", "b"]) for _ in range(3)))
COUNTS = st.integers(0, 300)


@given(
    st.lists(st.one_of(PLACES, st.just(())), min_size=1, max_size=4),
    st.lists(st.one_of(PLACES, st.just(())), min_size=1, max_size=4),
    st.lists(st.builds(Load, COUNTS, COUNTS, COUNTS, COUNTS), min_size=8, max_size=8),
    st.dictionaries(st.sampled_from(["p0", "p1", "d0", "d1"]), st.integers(0, 400)),
    st.integers(1, 400),
    st.booleans(),
)
def test_no_pair_is_cheaper_than_the_one_chosen(ps, ds, loads, cached, tokens, in_ms):
    workers = [worker(f"p{n}", places=places) for n, places in enumerate(ps)]
    workers += [worker(f"d{n}", places=places) for n, places in enumerate(ds)]
    costs = ModelCosts(Simple()) if in_ms else TokenCosts()
    of = dict(zip((w.name for w in workers), loads, strict=False))
    choice = pick(
        ask(tokens, cached=cached), view(workers, of), Policy(costs=costs), random.Random(1)
    )

    def known(w):
        return min(tokens, cached.get(w.name, 0))

    def pair(p, d):
        load = of[d.name]
        return (
            costs.queued(of[p.name].prefill_tokens)
            + costs.prefill(tokens, known(p))
            + costs.queued(load.prefill_tokens)
            + costs.decode(load.decode_requests, load.context_tokens, tokens)
            + costs.transfer(tokens - known(d), distance(p, d))
        )

    best = min(pair(p, d) for p, d in itertools.product(workers[: len(ps)], workers[len(ps) :]))
    if choice.mode is Mode.DISAGGREGATED:
        assert pair(choice.prefill.worker, choice.decode.worker) == pytest.approx(best)
        assert choice.prefill.cost + choice.decode.cost == pytest.approx(best)
    else:
        assert choice.decode.cost <= best + 1e-6


@pytest.mark.parametrize(
    ("p0", "p1", "d", "want"),
    [
        ("a", "b", "b", ("disaggregated", "p1", "d0")),
        ("a", "b", "ab", ("disaggregated", "p0", "d0")),
        ("", "b", "a", ("disaggregated", "p0", "d0")),
        ("a", "b", "c", ("local-prefill", None, "d0")),
        ("a", "b", "", ("disaggregated", "p0", "d0")),
    ],
)
def test_prefill_and_decode_are_of_one_revision_where_both_say_which(p0, p1, d, want):
    busy = {"p1": Load(prefill_tokens=5)}
    seen = view(
        [
            worker("p0", revisions=frozenset(p0)),
            worker("p1", revisions=frozenset(p1)),
            worker("d0", revisions=frozenset(d)),
        ],
        busy,
    )

    choice = pick(ask(1000), seen, Policy(), random.Random(1))

    assert chosen(choice) == want
    if want[1] is None:
        assert choice.why_mode == "revisions-differ"
    other = pick_prefill(ask(1000), seen, Policy(), random.Random(1), seen.workers[2])
    assert (other.worker.name if other else None) == want[1]


def test_a_shipped_profile_is_a_cost_model():
    costs = ModelCosts(load_step_model("llama-8b-h100"))

    assert costs.prefill(4000, 3000) < costs.prefill(4000, 0)
    assert costs.decode(0, 0, 4000) < costs.decode(64, 64 * 4000, 4000)
    assert costs.transfer(4000, Distance.HOST) < costs.transfer(4000, Distance.FAR)
    assert costs.transfer(4000, None) == costs.transfer(4000, Distance.FAR)
    assert costs.queued(0) == 0


def test_what_is_remembered_of_a_model_is_bounded():
    costs = ModelCosts(Simple())
    for number in range(REMEMBERED + 100):
        costs.prefill(number, 0)
        costs.decode(number, 0, 1)

    assert len(costs._prefills) <= REMEMBERED
    assert len(costs._decodes) <= REMEMBERED
    assert costs.prefill(REMEMBERED, 0) == REMEMBERED


def test_a_worker_on_the_command_line_can_name_its_place():
    assert parse_worker("prefill=http://h:1,rack=r1").places == ("", "r1", "")
    assert parse_worker("prefill=http://h:1").places == ()
