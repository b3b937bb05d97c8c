"""The search against an exact solver: what can be placed is placed, over few domains."""

from __future__ import annotations

from typing import Any

from benchmarks.placement_oracle import Host, can_place, fewest_domains
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.table import Outcome

from spinney.scheduler.snapshot_format import scenario

LEVELS = ["zone", "block", "rack"]
KEYS = st.sampled_from([None, None, "rack", "block", "zone"])


@st.composite
def clusters(draw: st.DrawFn, most: int = 8) -> list[dict[str, Any]]:
    nodes = []
    for at in range(draw(st.integers(1, most))):
        rack = draw(st.integers(0, 3))
        labels = {"rack": f"r{rack}", "block": f"b{rack // 2}", "zone": "z0"}
        if draw(st.integers(0, 9)) == 0:
            labels.pop(draw(st.sampled_from(["rack", "block"])))
        nodes.append({"name": f"n{at}", "gpus": draw(st.integers(0, 8)), "labels": labels})
    return nodes


@st.composite
def groups(draw: st.DrawFn, name: str, depth: int) -> dict[str, Any]:
    if depth and draw(st.booleans()):
        below = [draw(groups(f"{name}{at}", depth - 1)) for at in range(draw(st.integers(1, 3)))]
        found: dict[str, Any] = {"name": name, "groups": below}
        if draw(st.booleans()):
            found["minimum"] = draw(st.integers(1, len(below)))
    else:
        sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        if draw(st.booleans()):
            sizes = [sizes[0]] * len(sizes)
        found = {"name": name, "sizes": sizes, "minimum": draw(st.integers(0, len(sizes)))}
    return found | {"required": draw(KEYS)}


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    below = [draw(groups(f"g{at}", 2)) for at in range(draw(st.integers(1, 3)))]
    found: dict[str, Any] = {"name": "x", "groups": below, "required": draw(KEYS)}
    if draw(st.booleans()):
        found["minimum"] = draw(st.integers(1, len(below)))
    return found


def hosts(nodes: list[dict[str, Any]]) -> list[Host]:
    """Return the nodes with labels that say the whole path, as the topology reads them."""
    paths = []
    for node in nodes:
        have, labels = node["labels"], {}
        for at, key in enumerate(LEVELS):
            if key in have:
                labels[key] = "/".join(have.get(level, "") for level in LEVELS[: at + 1])
        paths.append(Host(node["name"], node["gpus"], labels))
    return paths


@settings(max_examples=250, deadline=None)
@given(clusters(), trees())
def test_a_tree_is_placed_exactly_when_a_solver_can(
    nodes: list[dict[str, Any]], gang: dict[str, Any]
) -> None:
    document = {"levels": LEVELS, "nodes": nodes, "gangs": [gang]}
    outcome = Outcome(document)

    (line,) = scenario(document).gangs
    wanted = can_place(hosts(nodes), line)
    assert (outcome.kind("x") == "placed") == wanted


@st.composite
def alike_pods(draw: st.DrawFn) -> dict[str, Any]:
    sizes = [draw(st.integers(1, 4))] * draw(st.integers(1, 10))
    return {"name": "x", "groups": [{"name": "p", "sizes": sizes}], "preferred": "rack"}


@settings(max_examples=120, deadline=None)
@given(clusters(most=10), alike_pods())
def test_equal_pods_are_on_as_few_racks_as_a_solver_finds(
    nodes: list[dict[str, Any]], gang: dict[str, Any]
) -> None:
    nodes = [node for node in nodes if set(node["labels"]) == set(LEVELS)]
    document = {"levels": ["rack"], "nodes": nodes, "gangs": [gang]}
    outcome = Outcome(document)

    (line,) = scenario(document).gangs
    free = [Host(n["name"], n["gpus"], n["labels"]) for n in nodes]
    rack_of = {node["name"]: node["labels"]["rack"] for node in nodes}
    used = len({rack_of[name] for name in outcome.nodes("x")})
    assert (used or None) == fewest_domains(free, line, "rack")
