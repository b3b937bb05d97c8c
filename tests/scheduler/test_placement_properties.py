"""What holds of every placement; and an oracle that tries everything, for small clusters."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.table import Outcome

RACKS = ("r1", "r2", "r3")
LEVEL = st.sampled_from([None, None, "rack", "zone"])


@st.composite
def clusters(draw: st.DrawFn, most: int = 6) -> list[dict[str, Any]]:
    count = draw(st.integers(1, most))
    nodes = []
    for at in range(count):
        rack = draw(st.sampled_from(RACKS))
        zone = "z1" if rack == "r1" else "z2"
        gpus = draw(st.integers(0, 5))
        nodes.append({"name": f"n{at}", "gpus": gpus, "labels": {"rack": rack, "zone": zone}})
    return nodes


@st.composite
def groups(draw: st.DrawFn, name: str, *, most: int, mixed: bool) -> dict[str, Any]:
    count = draw(st.integers(1, most))
    if mixed and draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
        found: dict[str, Any] = {"name": name, "sizes": sizes}
    else:
        found = {"name": name, "pods": count, "gpus": draw(st.integers(1, 3))}
    found["minimum"] = draw(st.integers(0, count))
    found["required"] = draw(LEVEL)
    found["preferred"] = draw(LEVEL)
    return found


@st.composite
def gangs(
    draw: st.DrawFn, name: str, *, most_groups: int = 3, most_pods: int = 4, mixed: bool = True
) -> dict[str, Any]:
    count = draw(st.integers(1, most_groups))
    found = [draw(groups(f"g{at}", most=most_pods, mixed=mixed)) for at in range(count)]
    gang: dict[str, Any] = {
        "name": name,
        "groups": found,
        "required": draw(LEVEL),
        "preferred": draw(LEVEL),
        "priority": draw(st.integers(0, 2)),
    }
    if draw(st.booleans()):
        gang["constraints"] = [{"name": "c", "required": draw(LEVEL), "preferred": draw(LEVEL)}]
        for group in found[: draw(st.integers(1, count))]:
            group["within"] = "c"
    return gang


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 4))
    return {
        "nodes": draw(clusters()),
        "levels": draw(st.sampled_from([[], ["zone", "rack"]])),
        "gangs": [draw(gangs(f"x{at}")) for at in range(count)],
    }


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_every_result_keeps_the_rules_and_is_the_same_again(document: dict[str, Any]) -> None:
    first, again = Outcome(document), Outcome(document)

    assert first.result.bindings == again.result.bindings
    assert first.result.verdicts == again.result.verdicts


@settings(max_examples=80, deadline=None)
@given(clusters(), gangs("x"), st.integers(0, 5), st.sampled_from(RACKS))
def test_a_free_node_more_never_unplaces_a_gang(
    nodes: list[dict[str, Any]], gang: dict[str, Any], gpus: int, rack: str
) -> None:
    zone = "z1" if rack == "r1" else "z2"
    more = {"name": "extra", "gpus": gpus, "labels": {"rack": rack, "zone": zone}}

    before = Outcome({"nodes": nodes, "gangs": [gang]})
    after = Outcome({"nodes": [*nodes, more], "gangs": [gang]})

    if before.kind("x") == "placed":
        assert after.kind("x") == "placed"


# The oracle


def minimums(gang: dict[str, Any]) -> list[tuple[int, int]]:
    """Return group number and GPUs of each pod of the gang's minimum."""
    found = []
    for at, group in enumerate(gang["groups"]):
        sizes = group.get("sizes") or [group["gpus"]] * group["pods"]
        found += [(at, size) for size in sizes[: group["minimum"]]]
    return found


def could_be_placed(nodes: list[dict[str, Any]], gang: dict[str, Any]) -> bool:
    """Try every assignment of pods to nodes."""
    pods = minimums(gang)
    for choice in itertools.product(range(len(nodes)), repeat=len(pods)):
        used = [0] * len(nodes)
        for node, (_, size) in zip(choice, pods, strict=True):
            used[node] += size
        if any(have > node["gpus"] for have, node in zip(used, nodes, strict=True)):
            continue
        if constraints_hold(nodes, gang, pods, choice):
            return True
    return False


def constraints_hold(
    nodes: list[dict[str, Any]],
    gang: dict[str, Any],
    pods: list[tuple[int, int]],
    choice: tuple[int, ...],
) -> bool:
    parts = [(set(range(len(gang["groups"]))), gang["required"])]
    for at, group in enumerate(gang["groups"]):
        parts.append(({at}, group["required"]))
    for constraint in gang.get("constraints", ()):
        members = {i for i, g in enumerate(gang["groups"]) if g.get("within") == "c"}
        parts.append((members, constraint["required"]))
    for members, key in parts:
        if key:
            mine = [c for c, (group, _) in zip(choice, pods, strict=True) if group in members]
            if len({nodes[at]["labels"][key] for at in mine}) > 1:
                return False
    return True


@settings(max_examples=250, deadline=None)
@given(clusters(most=5), gangs("x", most_groups=3, most_pods=2))
def test_what_an_exhaustive_search_can_place_is_placed(
    nodes: list[dict[str, Any]], gang: dict[str, Any]
) -> None:
    outcome = Outcome({"nodes": nodes, "gangs": [gang]})

    assert (outcome.kind("x") == "placed") == could_be_placed(nodes, gang)


@settings(max_examples=80, deadline=None)
@given(clusters(), gangs("x"))
def test_a_reason_that_claims_a_relaxation_is_true(
    nodes: list[dict[str, Any]], gang: dict[str, Any]
) -> None:
    outcome = Outcome({"nodes": nodes, "gangs": [gang]})
    if outcome.kind("x") != "unplaced":
        return

    if "without any topology constraint" in outcome.reason("x"):
        free = {**gang, "required": None, "constraints": []}
        free["groups"] = [{**g, "required": None, "within": ""} for g in gang["groups"]]
        assert Outcome({"nodes": nodes, "gangs": [free]}).kind("x") == "placed"
    if "not even the whole cluster" in outcome.reason("x"):
        free = {**gang, "required": None, "constraints": []}
        free["groups"] = [{**g, "required": None, "within": ""} for g in gang["groups"]]
        assert not could_be_placed(nodes, free) if len(minimums(free)) <= 5 else True
