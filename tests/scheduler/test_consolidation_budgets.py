"""Disruption budgets: who moves for others' good moves only where they allow it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.eviction_table import Table, asks, cluster, fates, node, queue, runs

from spinney.api.meta import ObjectMeta
from spinney.api.policy import PodDisruptionBudget, PodDisruptionBudgetSpec
from spinney.errors import BadInputError
from spinney.scheduler.budgets import budget_of
from spinney.scheduler.cache import Cache
from spinney.scheduler.scenario import objects
from spinney.scheduler.snapshot_file import first_cycle_s, read, write
from spinney.scheduler.snapshot_writer import scenario_of

APP = {"app": "kept"}
TABLE = Table(nodes=[node("n0", 4), node("n1", 4)])
case = TABLE.case


def budget(**more: Any) -> dict[str, Any]:
    return {"name": "b", "labels": APP, **more}


def kept(name: str, on: str, gpus: int = 1, **more: Any) -> dict[str, Any]:
    return runs(name, "", on, gpus, labels=APP, **more)


case(
    "a budget of none missing keeps a gang where it is",
    "a: R n0; b: R n1; x: -",
    budgets=[budget(maxUnavailable=0)],
    gangs=[kept("a", "n0", 3), kept("b", "n1"), asks("x", "", gpus=4)],
)
case(
    "another moves in its place",
    "a: M n0>n1; b: R n1; x: P n0",
    budgets=[budget(maxUnavailable=0)],
    gangs=[runs("a", "", "n0", 3), kept("b", "n1"), asks("x", "", gpus=4)],
)
case(
    "one may be missing",
    "a: R n0; b: M n1>n0; x: P n1",
    budgets=[budget(maxUnavailable=1)],
    gangs=[kept("a", "n0", 3), kept("b", "n1"), asks("x", "", gpus=4)],
)
case(
    "two may not",
    "a: R n0, R n0; b: R n1; c: R n1; x: -",
    budgets=[budget(maxUnavailable=1)],
    gangs=[
        runs("a", "", "n0 n0", preemptible=False),
        kept("b", "n1"),
        kept("c", "n1"),
        asks("x", "", gpus=4),
    ],
)
case(
    "a gang is moved whole or not at all",
    "y: R n0, R n0; x: -",
    budgets=[budget(minAvailable=1)],
    gangs=[kept("y", "n0 n0"), asks("x", "", gpus=4)],
    nodes=[node("n0", 4), node("n1", 3)],
)
case(
    "half of them may move",
    "a: R n0; b: M n1>n0; x: P n1",
    budgets=[budget(minAvailable="50%")],
    gangs=[kept("a", "n0", 3), kept("b", "n1"), asks("x", "", gpus=4)],
)
case(
    "one that is missing already counts",
    "a: R n0; b: R n1; w: -; x: -",
    budgets=[budget(maxUnavailable=1)],
    gangs=[
        kept("a", "n0", 3),
        kept("b", "n1"),
        asks("w", "", gpus=9, labels=APP),
        asks("x", "", gpus=4),
    ],
)
case(
    "a budget of another namespace does not count",
    "a: R n0; b: M n1>n0; x: P n1",
    budgets=[budget(maxUnavailable=0, namespace="other")],
    gangs=[kept("a", "n0", 3), kept("b", "n1"), asks("x", "", gpus=4)],
)
case(
    "two moves in one cycle count together",
    "a: R n0; b: R n1; c: R n2; d: M n3>n0; x: P n3; y: -",
    nodes=[node(f"n{i}", 4) for i in range(4)],
    budgets=[budget(maxUnavailable=1)],
    settle=8,
    gangs=[
        runs("a", "", "n0", 3, preemptible=False),
        runs("c", "", "n2", 3, preemptible=False),
        kept("b", "n1"),
        kept("d", "n3"),
        asks("x", "", gpus=4),
        asks("y", "", gpus=4),
    ],
)
case(
    "who has to leave by its share leaves all the same",
    "a: E n; x: P n",
    nodes=[node("n", 1)],
    budgets=[budget(maxUnavailable=0)],
    queues=[queue("q0", weight=0), queue("q1", 1)],
    gangs=[runs("a", "q0", "n", labels=APP), asks("x", "q1")],
)
case(
    "but one that no budget protects goes first, though it is older",
    "a: E n; b: R n; x: P n",
    nodes=[node("n", 2)],
    budgets=[budget(maxUnavailable=0)],
    queues=[queue("q0", 1), queue("q1", 1)],
    gangs=[runs("a", "q0", "n"), runs("b", "q0", "n", labels=APP), asks("x", "q1")],
)
case(
    "by priority too",
    "a: E n; b: R n; x: P n",
    nodes=[node("n", 2)],
    budgets=[budget(maxUnavailable=0)],
    gangs=[runs("a", "", "n"), kept("b", "n"), asks("x", "", priority=75)],
)

test_budgets = TABLE.test()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=6),
    st.integers(0, 3),
)
def test_no_more_move_than_a_budget_spares(running: list[tuple[int, bool]], spared: int) -> None:
    free = [4] * 4
    gangs = []
    for at, (row, protected) in enumerate(running):
        if free[row]:
            free[row] -= 1
            labels = APP if protected else {}
            gangs.append(runs(f"g{at}", "", f"n{row}", labels=labels))
    names = {f"g{at}" for at, (_, protected) in enumerate(running) if protected}
    document = {
        "nodes": [node(f"n{i}", 4) for i in range(4)],
        "budgets": [budget(maxUnavailable=spared)],
        "gangs": [*gangs, asks("x", "", 3, 4)],
    }
    report = cluster(document).run(1)

    moved = [f for name in names for f in fates(report, name) if f.startswith("M")]
    assert len(moved) <= spared
    assert not [f for g in gangs for f in fates(report, g["name"]) if f.startswith("E")]


def pdb(**spec: Any) -> PodDisruptionBudget:
    meta = ObjectMeta(name="b", namespace="default")
    return PodDisruptionBudget(metadata=meta, spec=PodDisruptionBudgetSpec(**spec))


def test_an_amount_that_is_none_is_refused_and_left_out() -> None:
    with pytest.raises(BadInputError, match="'few' is no number of pods"):
        budget_of(pdb(min_available="few"))
    cache = Cache()
    cache.set_budget(pdb(min_available="few"))
    assert not cache.snapshot().budgets


def test_a_saved_snapshot_keeps_them() -> None:
    document = {
        "nodes": [node("n0", 4), node("n1", 4)],
        "budgets": [budget(maxUnavailable=0)],
        "gangs": [kept("a", "n0", 3), kept("b", "n1"), asks("x", "", gpus=4)],
    }
    first = read(yaml.safe_dump(document))
    saved = write(scenario_of(objects(first), first_cycle_s(first)))

    assert [line.name for line in read(saved).budgets] == ["b"]
    assert fates(cluster(yaml.safe_load(saved)).run(1), "x") == ["-"]
