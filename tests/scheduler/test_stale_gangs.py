"""Gangs that run below a minimum: they hold room and do no work, so after a grace they leave."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.eviction_table import cluster, fates, group, node, runs, step, tree

SINCE = "kai.scheduler/stale-podgroup-timestamp"
GRACE = "kai.scheduler/staleness-grace-period"
NODES = [node("n", 8)]
NOW = "2026-01-02T00:00:00Z"


def stale(seconds: int, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a gang that is below its minimum for so long, as another scheduler wrote down."""
    minutes, rest = divmod(seconds, 60)
    since = f"2026-01-01T23:{59 - minutes:02d}:{60 - rest:02d}Z" if rest else ""
    annotations = {SINCE: since or f"2026-01-01T23:{60 - minutes:02d}:00Z"}
    return tree("g", "", *groups, annotations=annotations | more.pop("annotations", {}), **more)


def failed(name: str, minimum: int) -> dict[str, Any]:
    return {"name": name, "gpus": 1, "minimum": minimum, "pods": [{"state": "failed", "node": "n"}]}


def ended(name: str, minimum: int) -> dict[str, Any]:
    return {
        "name": name,
        "gpus": 1,
        "minimum": minimum,
        "pods": [{"state": "succeeded", "node": "n"}],
    }


CASES = [
    pytest.param(
        stale(61, group("a", on="n n n", minimum=2), failed("b", 1)),
        ["-", "E n", "E n", "E n"],
        id="a group that lost its only pod takes all of the gang along",
    ),
    pytest.param(
        stale(61, group("a", on="n n n", minimum=2), group("b", on="n", minimum=1)),
        ["R n"] * 4,
        id="a gang of which every group has its minimum stays",
    ),
    pytest.param(
        stale(59, group("a", on="n n n", minimum=2), failed("b", 1)),
        ["-", "R n", "R n", "R n"],
        id="within its grace it stays",
    ),
    pytest.param(
        stale(61, group("a", on="n n", minimum=3)),
        ["E n", "E n"],
        id="too few pods of its only group",
    ),
    pytest.param(
        stale(61, group("a", on="n n", minimum=3), ended("b", 0)),
        ["-", "R n", "R n"],
        id="one of which a pod ended well goes by itself",
    ),
    pytest.param(
        stale(61, group("a", 1, on="n n", minimum=3)),
        ["B n", "R n", "R n"],
        id="one whose missing pod is placed in this cycle stays",
    ),
    pytest.param(
        stale(61, group("a", on="n n", minimum=3), annotations={GRACE: "5m"}),
        ["R n", "R n"],
        id="its own grace wins over the configured one",
    ),
    pytest.param(
        stale(120, group("a", on="n n", minimum=3), annotations={GRACE: "10s"}),
        ["E n", "E n"],
        id="also when it is shorter",
    ),
    pytest.param(
        stale(3600 - 61, group("a", on="n n", minimum=3), annotations={GRACE: "-1s"}),
        ["R n", "R n"],
        id="a negative grace is for ever",
    ),
    pytest.param(
        stale(61, group("a", on="n n", minimum=1), failed("b", 1), minimum=1),
        ["-", "R n", "R n"],
        id="a group that the gang can do without may be short",
    ),
    pytest.param(
        stale(61, group("a", on="n n", minimum=3), priority=125),
        ["E n", "E n"],
        id="one that is not preemptible leaves too",
    ),
    pytest.param(
        stale(61, group("a", 1, on="n n", minimum=1)),
        ["B n", "R n", "R n"],
        id="pods beyond the minimum may be missing",
    ),
]


@pytest.mark.parametrize(("found", "want"), CASES)
def test_stale_gangs(found: dict[str, Any], want: list[str]) -> None:
    report = cluster({"nodes": NODES, "now": NOW, "gangs": [found]}).run(1)

    assert [fate if fate[0] != "L" else "-" for fate in fates(report, "g")] == want


def test_a_grace_counts_from_the_first_cycle_that_saw_it() -> None:
    document = {"nodes": NODES, "period": 20, "gangs": [runs("g", "", "n n", minimum=3)]}
    world = cluster(document, {"staleGraceS": 60})

    evicted = [len(world.run(1).cycles[0].evictions)]
    evicted += [len(step(world).cycles[0].evictions) for _ in range(4)]

    assert evicted == [0, 0, 0, 2, 0]


def test_with_no_grace_it_leaves_at_once_and_its_room_is_used() -> None:
    document = {
        "nodes": [node("n", 2)],
        "gangs": [
            runs("g", "", "n n", minimum=3),
            {"name": "x", "groups": [{"name": "p", "pods": 2, "gpus": 1}]},
        ],
    }
    world = cluster(document, {"staleGraceS": 0})
    first = world.run(1)
    second = step(world)

    assert fates(first, "g") == ["E n", "E n"]
    assert fates(second, "x") == ["B n", "B n"]
    assert fates(second, "g") == ["-", "-"]


def test_a_grace_that_is_no_duration_is_left_out() -> None:
    found = stale(61, group("a", on="n n", minimum=3), annotations={GRACE: "soon"})
    report = cluster({"nodes": NODES, "now": NOW, "gangs": [found]}).run(1)

    assert fates(report, "g") == ["E n", "E n"]


@pytest.mark.parametrize("field", [True, False])
def test_a_pod_group_says_its_grace_in_a_field_or_an_annotation(field: bool) -> None:
    from spinney.api.meta import ObjectMeta
    from spinney.api.podgroup import PodGroup, PodGroupSpec
    from spinney.scheduler.sources.podgroup import podgroup_spec

    meta = ObjectMeta(name="g", namespace="d", annotations={} if field else {GRACE: "90s"})
    spec = PodGroupSpec(staleness_grace_period="90s" if field else None, preemption_delay="5s")
    timing = podgroup_spec(PodGroup(metadata=meta, spec=spec)).timing

    assert (timing.stale_grace_s, timing.preemption_delay_s) == (90.0, 5.0)
