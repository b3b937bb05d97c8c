"""What holds of every placement."""

from __future__ import annotations

from typing import Any

from benchmarks.placement_oracle import Host, can_place
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler import test_oracle as oracle
from tests.scheduler.table import Outcome

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.snapshot_format import scenario

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


@st.composite
def settings_of_trees(draw: st.DrawFn) -> dict[str, Any]:
    """Return a cluster with pods that run or leave, and two trees that want room on it."""
    nodes = draw(oracle.clusters())
    found = [
        draw(oracle.trees()) | {"name": name, "priority": draw(st.integers(0, 1))}
        for name in ("x", "y")
    ]
    standing = []
    for node in nodes:
        part = draw(st.integers(0, node["gpus"]))
        how = draw(st.sampled_from(["on", "leaving"]))
        name = node["name"]
        standing.append({"name": f"b{name}", "pods": 0, "gpus": part, how: [name]})
    return {"levels": oracle.LEVELS, "nodes": nodes, "gangs": found, "pods": standing}


@settings(max_examples=80, deadline=None)
@given(settings_of_trees())
def test_trees_beside_pods_that_run_or_leave_keep_the_rules(document: dict[str, Any]) -> None:
    config = SchedulerConfig(actions=("allocate",))
    first, again = Outcome(document, config), Outcome(document, config)

    assert first.result.bindings == again.result.bindings
    assert first.result.pipelined == again.result.pipelined
    assert first.result.verdicts == again.result.verdicts


@settings(max_examples=80, deadline=None)
@given(settings_of_trees(), st.integers(0, 4), st.integers(0, 4))
def test_a_search_that_gives_up_leaves_no_trace(
    document: dict[str, Any], domain_steps: int, node_steps: int
) -> None:
    bounds = {"domain_steps": domain_steps, "node_steps": node_steps}

    Outcome(document, SchedulerConfig(actions=("allocate",), **bounds))  # Checks all rules.


@settings(max_examples=60, deadline=None)
@given(oracle.clusters(), oracle.trees(), st.integers(0, 8), st.integers(0, 3))
def test_a_free_node_more_never_unplaces_a_tree(
    nodes: list[dict[str, Any]], gang: dict[str, Any], gpus: int, rack: int
) -> None:
    labels = {"rack": f"r{rack}", "block": f"b{rack // 2}", "zone": "z0"}
    more = {"name": "extra", "gpus": gpus, "labels": labels}

    before = Outcome({"levels": oracle.LEVELS, "nodes": nodes, "gangs": [gang]})
    after = Outcome({"levels": oracle.LEVELS, "nodes": [*nodes, more], "gangs": [gang]})

    if before.kind("x") == "placed":
        assert after.kind("x") == "placed"


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
        (line,) = scenario({"gangs": [free]}).gangs
        assert not can_place([Host(n["name"], n["gpus"], n["labels"]) for n in nodes], line)
