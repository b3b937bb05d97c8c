"""What holds of every sequence of cycles: bounds, whole gangs, nothing in vain, no ping-pong."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.world import World

QUEUES = ("qa", "qb", "qc")
ROUNDS = 6


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    nodes = [
        {"name": f"n{at}", "gpus": draw(st.integers(1, 4)), "labels": {"rack": f"r{at // 2}"}}
        for at in range(draw(st.integers(1, 4)))
    ]
    queues = [draw(queues_(name)) for name in QUEUES] if draw(st.booleans()) else []
    if queues and draw(st.booleans()):
        queues.append({"name": "dept", "gpus": {"quota": draw(st.integers(0, 6))}})
        queues[0]["parent"] = queues[1]["parent"] = "dept"
    free = {node["name"]: node["gpus"] for node in nodes}
    gangs = [draw(gangs_(f"x{at}", free)) for at in range(draw(st.integers(1, 7)))]
    return {"nodes": nodes, "levels": ["rack"], "queues": queues, "gangs": gangs}


@st.composite
def queues_(draw: st.DrawFn, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "priority": draw(st.sampled_from([100, 100, 200])),
        "gpus": {
            "quota": draw(st.integers(-1, 4)),
            "limit": draw(st.sampled_from([-1, -1, 2, 5])),
            "weight": draw(st.sampled_from([0, 1, 1, 3])),
        },
    }


@st.composite
def gangs_(draw: st.DrawFn, name: str, free: dict[str, int]) -> dict[str, Any]:
    groups = []
    for at in range(draw(st.integers(1, 2))):
        gpus = draw(st.integers(1, 2))
        on = []
        for node in draw(st.lists(st.sampled_from(sorted(free)), max_size=3)):
            if free[node] >= gpus:
                free[node] -= gpus
                on.append(node)
        pods = 0 if on and draw(st.booleans()) else draw(st.integers(1, 3))
        total = pods + len(on)
        groups.append(
            {
                "name": f"g{at}",
                "pods": pods,
                "gpus": gpus,
                "on": on,
                "minimum": draw(st.integers(1, total)),
            }
        )
    required = "rack" if not any(g["on"] for g in groups) and draw(st.booleans()) else None
    return {
        "name": name,
        "groups": groups,
        "queue": draw(st.sampled_from(QUEUES)),
        "priority": draw(st.sampled_from([0, 0, 50, 120])),
        "required": required,
    }


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_every_cycle_keeps_the_rules_and_the_same_start_gives_the_same_end(
    document: dict[str, Any],
) -> None:
    first, again = World(document), World(document)
    one = first.rounds(ROUNDS)
    two = again.rounds(ROUNDS)

    assert [r.evictions for r in one] == [r.evictions for r in two]
    assert [r.bindings for r in one] == [r.bindings for r in two]


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_who_is_given_room_uses_it_and_is_not_evicted_for_whom_it_was_taken_from(
    document: dict[str, Any],
) -> None:
    world = World(document)
    took: dict[str, set[str]] = {}
    for _ in range(ROUNDS):
        result = world.cycle()
        for eviction in result.evictions:
            if not eviction.made_for:
                continue
            grows = result.verdicts[eviction.made_for].kind == "placed"
            again = eviction.gang in took.get(eviction.made_for, set())
            assert not again or grows or eviction.moves_to, "taken from twice for one minimum"
            assert eviction.made_for not in took.get(eviction.gang, set()), "evicted back"
        for eviction in result.evictions:
            if eviction.made_for and not eviction.moves_to:
                took.setdefault(eviction.made_for, set()).add(eviction.gang)
        made_for = {e.made_for for e in result.evictions if e.made_for}
        promised = {p.pod for p in result.pipelined if p.gang in made_for}
        world.settle()
        if made_for:
            result = world.cycle()
            assert promised <= {b.pod for b in result.bindings}, "room was made in vain"
            world.settle()


@settings(max_examples=40, deadline=None)
@given(clusters())
def test_evictions_come_to_an_end(document: dict[str, Any]) -> None:
    world = World(document)
    world.rounds(3 * ROUNDS)

    assert not world.cycle().evictions
