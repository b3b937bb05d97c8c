"""Dividing among queues: vectors with known answers, and what holds of every division."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduler.test_queue_table import gang, node, queue
from tests.scheduler.world import World

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.queues.fair_share import Claim, divide
from spinney.scheduler.queues.usage import UsageMemory


def claim(name: str, request: int, quota: int = 0, limit: int = -1, **more: Any) -> Claim:
    more["weight"] = Fraction(more.pop("weight", 1))
    return Claim(name, quota, limit, request, **more)


@pytest.mark.parametrize(
    ("total", "claims", "want"),
    [
        pytest.param(8, [claim("a", 3), claim("b", 2)], {"a": 3, "b": 2}, id="enough for all"),
        pytest.param(8, [claim("a", 8), claim("b", 8)], {"a": 4, "b": 4}, id="equal weights"),
        pytest.param(8, [claim("a", 8, weight=3), claim("b", 8)], {"a": 6, "b": 2}, id="by weight"),
        pytest.param(
            8, [claim("a", 8, quota=6), claim("b", 8)], {"a": 7, "b": 1}, id="quota first"
        ),
        pytest.param(
            8,
            [claim("a", 8, priority=1), claim("b", 8)],
            {"a": 8, "b": 0},
            id="a higher priority takes all the surplus it wants",
        ),
        pytest.param(
            8,
            [claim("a", 8, priority=1), claim("b", 8, quota=2)],
            {"a": 6, "b": 2},
            id="and leaves guarantees alone",
        ),
        pytest.param(
            8,
            [claim("a", 8, weight=0), claim("b", 3)],
            {"a": 0, "b": 3},
            id="no weight, no surplus",
        ),
        pytest.param(
            8, [claim("a", 8, limit=2), claim("b", 8)], {"a": 2, "b": 6}, id="a limit caps"
        ),
        pytest.param(
            8, [claim("a", 1), claim("b", 8), claim("c", 8)], {"a": 1, "b": 4, "c": 3}, id="rests"
        ),
        pytest.param(
            8, [claim("a", 8, quota=-1), claim("b", 8)], {"a": 8, "b": 0}, id="unlimited quota"
        ),
        pytest.param(
            4, [claim("a", 4, quota=4), claim("b", 4, quota=4)], {"a": 4, "b": 4}, id="overbooked"
        ),
    ],
)
def test_shares(total: int, claims: list[Claim], want: dict[str, int]) -> None:
    assert divide(total, claims) == want


def test_who_used_more_in_the_past_gets_less_now() -> None:
    claims = [claim("a", 12, usage=Fraction(3, 4)), claim("b", 12, usage=Fraction(1, 4))]
    assert divide(12, claims, history=Fraction(1)) == {"a": 3, "b": 9}
    assert divide(12, claims) == {"a": 6, "b": 6}


CLAIMS = st.lists(
    st.builds(
        lambda quota, limit, request, weight, priority: (quota, limit, request, weight, priority),
        st.integers(-1, 20),
        st.integers(-1, 30),
        st.integers(0, 40),
        st.fractions(0, 3, max_denominator=4),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [Claim(f"q{n}", q, li, r, w, p) for n, (q, li, r, w, p) in enumerate(rows)])


@given(st.integers(0, 60), CLAIMS, st.sampled_from([1, 4]), st.randoms(use_true_random=False))
def test_every_division_is_within_bounds_and_the_same_in_any_order(
    total: int, claims: list[Claim], unit: int, rng: Any
) -> None:
    shares = divide(total, claims, unit=unit)
    shuffled = list(claims)
    rng.shuffle(shuffled)

    assert divide(total, shuffled, unit=unit) == shares
    guaranteed = 0
    for c in claims:
        quota = total if c.quota < 0 else c.quota
        guaranteed += min(quota, c.requestable)
        assert min(quota, c.requestable) <= shares[c.name] <= c.requestable
    assert sum(shares.values()) <= max(total, guaranteed)
    hungry = [c for c in claims if c.weight and shares[c.name] < c.requestable]
    if hungry:
        assert sum(shares.values()) >= min(total, guaranteed)
        assert total - sum(shares.values()) < unit * len(claims) or guaranteed >= total


def test_usage_halves_in_a_half_life() -> None:
    usage = UsageMemory(half_life_s=100)
    usage.observe(0, {}, (8, 0, 0))
    usage.observe(100, {"a": (8, 0, 0)}, (8, 0, 0))
    usage.observe(200, {"b": (8, 0, 0)}, (8, 0, 0))
    assert math.isclose(float(usage.share("a", 0)), 1 / 3, abs_tol=1e-5)
    assert math.isclose(float(usage.share("b", 0)), 2 / 3, abs_tol=1e-5)
    assert usage.share("nobody", 0) == 0


def test_over_time_a_queue_that_had_the_cluster_gives_way() -> None:
    document = {
        "nodes": [node("n", 8)],
        "queues": [queue("a"), queue("b")],
        "gangs": [
            *(gang(f"old{n}", 0, 1, "a", on=["n"]) for n in range(8)),
            *(gang(f"new{n}", 1, 1, "b") for n in range(8)),
        ],
    }

    def share_of_b(half_life_s: float) -> int:
        world = World(document, SchedulerConfig(usage_half_life_s=half_life_s))
        world.config = SchedulerConfig(actions=("allocate",), usage_half_life_s=half_life_s)
        world.cycle()
        world.now += 1000
        world.memory = world.memory.without_reservation("")
        world.config = SchedulerConfig(usage_half_life_s=half_life_s)
        world.cycle()
        return len(world.evicted)

    assert share_of_b(0) == 4
    assert share_of_b(10_000) > 4
