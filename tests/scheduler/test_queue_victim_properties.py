"""Who may be displaced, whatever comes together: rules that hold of every eviction."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.eviction_table import cluster, step

from spinney.clock import parse_rfc3339, rfc3339
from spinney.scheduler.snapshot_file import FIRST_CYCLE

NOW = parse_rfc3339(FIRST_CYCLE)
QUEUES = ("qa", "qb", "qc")
SAFE_S = 100
"""How long gangs of a queue with a minimum run time are safe."""


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    gpus = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    nodes = [{"name": f"n{at}", "gpus": count} for at, count in enumerate(gpus)]
    queues = [draw(queue(name)) for name in QUEUES] if draw(st.booleans()) else []
    if queues and draw(st.booleans()):
        queues.append({"name": "dept", "gpus": {"quota": draw(st.integers(0, 6))}})
        queues[0]["parent"] = "dept"
    free = {f"n{at}": count for at, count in enumerate(gpus)}
    gangs = [draw(gang(f"x{at}", free)) for at in range(draw(st.integers(2, 7)))]
    return {"nodes": nodes, "queues": queues, "gangs": gangs}


@st.composite
def queue(draw: st.DrawFn, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "gpus": {"quota": draw(st.integers(-1, 3)), "weight": draw(st.sampled_from([0, 1]))},
    }
    for key in ("preemptMinRuntime", "reclaimMinRuntime"):
        if draw(st.booleans()):
            found[key] = f"{SAFE_S}s"
    return found


@st.composite
def gang(draw: st.DrawFn, name: str, free: dict[str, int]) -> dict[str, Any]:
    groups = []
    for at in range(draw(st.integers(1, 2))):
        on = []
        for node in draw(st.lists(st.sampled_from(sorted(free)), max_size=3)):
            if free[node]:
                free[node] -= 1
                on.append(node)
        pods = 0 if on and draw(st.booleans()) else draw(st.integers(1, 2))
        minimum = draw(st.integers(0 if at else 1, pods + len(on)))
        groups.append({"name": f"g{at}", "pods": pods, "gpus": 1, "on": on, "minimum": minimum})
    return {
        "name": name,
        "groups": groups,
        "queue": draw(st.sampled_from(QUEUES)),
        "priority": draw(st.sampled_from([0, 0, 50, 75])),
        "preemptible": draw(st.sampled_from([True, True, False])),
        "started": rfc3339(NOW - draw(st.integers(0, 2 * SAFE_S))),
        "minimum": draw(st.sampled_from([None, 1])),
    }


def safe_s(document: dict[str, Any], found: dict[str, Any], action: str) -> float:
    key = f"{action}MinRuntime"
    named = {q["name"]: q for q in document["queues"]}
    return SAFE_S if key in named.get(found["queue"], {}) else 0


@settings(max_examples=50, deadline=None)
@given(clusters())
def test_every_eviction_keeps_the_rules(document: dict[str, Any]) -> None:
    named = {g["name"]: g for g in document["gangs"]}
    world = cluster(document)
    report = world.run(1)

    evicted: dict[tuple[str, str], set[str]] = {}
    for eviction in report.cycles[0].evictions:
        found = named[eviction.gang.removeprefix("default/")]
        maker = named.get(eviction.made_for.removeprefix("default/"))
        if eviction.action == "evict-stale":
            continue
        assert found["preemptible"], "one that is not preemptible is displaced"
        assert maker is not None
        if eviction.action == "preempt":
            assert found["priority"] < maker["priority"]
            assert found["queue"] == maker["queue"] or not document["queues"]
        if eviction.action == "reclaim":
            assert found["queue"] != maker["queue"]
        if eviction.action == "consolidate":
            assert maker["preemptible"]
            assert eviction.moves_to
        evicted.setdefault((found["name"], eviction.action), set()).add(eviction.pod)
    gone: dict[str, set[str]] = {}
    for (name, action), pods in evicted.items():
        # One action may take what another has left: in order, with what has gone before.
        gone[name] = gone.get(name, set()) | pods
        _check_minimum(document, named[name], action, gone[name])


def _check_minimum(
    document: dict[str, Any], found: dict[str, Any], action: str, pods: set[str]
) -> None:
    """Assert that a gang that is cut below its minimum leaves whole, and had run long enough."""
    left = {}
    for group in found["groups"]:
        first = group["pods"]
        keys = {
            f"default/{found['name']}-{group['name']}-{first + at}"
            for at in range(len(group["on"]))
        }
        left[group["name"]] = (len(keys), len(keys - pods), group["minimum"])
    kept = sum(have for _, have, _ in left.values())
    enough = [have >= minimum for _, have, minimum in left.values()]
    before = [had >= minimum for had, _, minimum in left.values()]
    needed = found["minimum"] or len(enough)
    if sum(enough) >= needed or not kept or sum(before) < needed:
        below = not kept or sum(enough) < needed
    else:
        raise AssertionError(f"half of {found['name']} is displaced")
    if below and action in ("reclaim", "preempt") and "parent" not in str(document["queues"]):
        ran_s = NOW - parse_rfc3339(found["started"])
        assert ran_s >= safe_s(document, found, action), "displaced before its minimum run time"


@settings(max_examples=25, deadline=None)
@given(clusters())
def test_the_same_file_gives_the_same_decisions(document: dict[str, Any]) -> None:
    def decisions() -> list[Any]:
        world = cluster(document)
        reports = [world.run(1), *(step(world) for _ in range(3))]
        return [(r.cycles[-1].bindings, r.cycles[-1].evictions) for r in reports]

    assert decisions() == decisions()


@settings(max_examples=25, deadline=None)
@given(clusters())
def test_who_gets_room_is_placed_in_it_in_the_next_cycle(document: dict[str, Any]) -> None:
    world = cluster(document)
    report = world.run(1)
    for _ in range(3):
        made_for = {e.made_for for e in report.cycles[-1].evictions if e.made_for}
        kept = {(p.pod, p.node) for p in report.cycles[-1].pipelined if p.gang in made_for}
        report = step(world)
        bound = {b.pod for b in report.cycles[-1].bindings}
        assert {pod for pod, _ in kept} <= bound
