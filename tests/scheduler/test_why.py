"""Why a gang is not placed: the part that fails, where it came closest, what would help."""

from __future__ import annotations

from typing import Any

import pytest
from tests.scheduler.table import Outcome
from tests.scheduler.test_placement_table import gang, group, node

from spinney.scheduler.why import quantity_text

FOUR = [node("a", 4, "r1", "z1"), node("b", 4, "r1", "z1"), node("c", 4, "r2", "z1")]


def reason(name: str = "g", **document: Any) -> str:
    outcome = Outcome(document)
    assert outcome.kind(name) in ("unplaced", "pipelined")
    return outcome.reason(name)


def test_a_rack_that_is_too_small_names_the_best_one_and_the_level_that_would_do() -> None:
    text = reason(
        levels=["zone", "rack"],
        nodes=FOUR,
        gangs=[gang("g", group("p", 3, 4), required="rack")],
    )

    assert text == (
        "needs 3 pods with 4 nvidia.com/gpu each in one rack (12 nvidia.com/gpu); "
        "best domain r1 has 8 nvidia.com/gpu free, room for 2 of the 3; "
        "would fit in one zone instead"
    )


def test_sixteen_gpus_free_and_a_gang_of_sixteen_pending_says_why() -> None:
    text = reason(
        nodes=[node(f"n{i}", 8, f"r{i}") for i in range(5)],
        pods=[group("busy", 0, 4, on=[f"n{i}" for i in range(5) for _ in range(1 + (i > 0))])],
        gangs=[gang("g", group("p", 4, 4))],
    )

    assert "needs 4 pods with 4 nvidia.com/gpu each (16 nvidia.com/gpu)" in text
    assert "not even the whole cluster would do: 4 of 40 nvidia.com/gpu free" in text
    assert text.endswith("1/5 nodes: 4 insufficient nvidia.com/gpu")


def test_free_gpus_in_the_wrong_pieces_are_told_by_node_counts() -> None:
    text = reason(nodes=[node(f"n{i}", 2) for i in range(4)], gangs=[gang("g", group("p", 1, 4))])

    assert text.endswith("0/4 nodes: 4 insufficient nvidia.com/gpu")


def test_every_node_counts_once_under_the_first_filter_that_refuses_it() -> None:
    text = reason(
        name="x",
        nodes=[
            node("a", 1, spec={"unschedulable": True}),
            node("b", 1),
            node("c", 1),
            node("d", 8, spec={"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
            node("e", 8, ready=False),
        ],
        pods=[group("x", 1, 2)],
    )

    assert text == (
        "needs 1 pod with 2 nvidia.com/gpu; would fit if nodes that are not ready were used; "
        "0/5 nodes: 1 unschedulable, 1 not ready, 1 with taint k=v, 2 insufficient nvidia.com/gpu"
    )


def test_the_smallest_part_that_fails_by_itself_is_named() -> None:
    text = reason(
        nodes=[*FOUR, node("d", 1, "r2")],
        gangs=[gang("g", group("fine", 1, 1), group("stuck", 3, 4, required="rack"))],
    )

    assert text.startswith("stuck needs 3 pods with 4 nvidia.com/gpu each in one rack (")
    assert "would fit without the rack constraint of stuck" in text


def test_a_part_that_is_too_large_says_what_the_whole_gang_needs() -> None:
    text = reason(
        nodes=FOUR,
        gangs=[gang("g", group("fine", 1, 1), group("stuck", 3, 4, required="rack"))],
    )

    assert "not even the whole cluster would do for the gang's 13 nvidia.com/gpu: 12 of 12" in text


def test_parts_that_fit_alone_and_not_together_are_told_so() -> None:
    text = reason(
        nodes=FOUR,
        gangs=[
            gang("g", group("a", 2, 4, required="rack"), group("b", 2, 4, required="rack")),
        ],
    )

    assert "each of its groups would fit alone, not all together" in text


def test_room_that_is_being_freed_is_the_smallest_change() -> None:
    text = reason(
        nodes=[node("a", 4)],
        pods=[group("old", 0, 3, leaving=["a"])],
        gangs=[gang("g", group("p", 2, 2))],
    )

    assert "would fit once the pods that are being deleted are gone" in text


def test_a_rack_that_is_pinned_by_running_pods_is_named() -> None:
    text = reason(
        nodes=[node("a", 1, "r1"), node("b", 8, "r2")],
        gangs=[gang("g", group("p", 1, 1, on=["a"]), required="rack")],
    )

    assert "its running pods are in r1 has" not in text
    assert "its running pods are in r1, which has 0 nvidia.com/gpu free" in text


def test_a_label_that_no_node_has_is_told() -> None:
    text = reason(nodes=[node("a", 8)], gangs=[gang("g", group("p", 1, 1), required="block")])

    assert "no node has the label block" in text


def test_a_device_that_no_node_has_is_told() -> None:
    text = reason(name="x", nodes=[node("a", 8)], pods=[group("x", 1, requests={"amd.com/gpu": 1})])

    assert "1 without amd.com/gpu" in text


def test_surplus_that_does_not_fit_has_a_reason_and_the_gang_stays_placed() -> None:
    outcome = Outcome({"nodes": [node("a", 2)], "gangs": [gang("g", group("p", 3, 1, minimum=2))]})

    assert outcome.kind("g") == "placed"
    assert outcome.result.verdicts["default/g"].left == ("default/g-p-2",)
    assert "0 of 2 nvidia.com/gpu free" in outcome.reason("g")


@pytest.mark.parametrize(
    ("resource", "milli", "want"),
    [
        ("nvidia.com/gpu", 4000, "4"),
        ("cpu", 500, "500m"),
        ("cpu", 2000, "2"),
        ("memory", 1536 * 2**20 * 1000, "1.5Gi"),
    ],
)
def test_amounts_are_written_as_people_write_them(resource: str, milli: int, want: str) -> None:
    assert quantity_text(resource, milli) == want
