"""Revisions and rolling updates as pure decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.controllers.farm import clique, pcs, typed
from tests.controllers.test_clique_decisions import pod

from spinney.api.grove import UpdateStrategy
from spinney.controllers.update import revisions
from spinney.controllers.update.plan import PLAN, read_plan, units_of, write_plan
from spinney.controllers.update.rolling import (
    GroupReplica,
    SetReplica,
    next_replica,
    pods_to_replace,
    replicas_to_replace,
)
from spinney.controllers.update.rollout import Places


def of(manifest: dict[str, Any], *stored: revisions.Revision) -> revisions.Revision:
    return revisions.of_template(typed(manifest).spec.template, stored)


def kept(manifest: dict[str, Any], *older: revisions.Revision) -> revisions.Revision:
    """The revision of *manifest*, written and read again."""
    found = revisions.read(revisions.to_store(typed(manifest), of(manifest, *older)))
    assert found is not None
    return found


SERVICE = pcs(clique("a"), clique("b"))


def test_a_stored_revision_keeps_the_hashes_it_was_stored_with() -> None:
    """As when a newer version of Spinney hashes in another way."""
    old = kept(SERVICE)
    other = {n: dataclasses.replace(r, hash=f"x-{n}") for n, r in old.roles.items()}
    stored = dataclasses.replace(old, id="x", roles=other)
    assert of(SERVICE, stored) is stored
    changed = pcs(clique("a"), clique("b", outer={"labels": {"x": "y"}}))
    found = of(changed, stored)
    assert found.id != "x"
    assert found.number == 2
    assert found.hashes["a"] == "x-a", "a role that says the same keeps its hash"
    assert found.hashes["b"] != "x-b"


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        pytest.param("restartPolicy", "Always", True, id="a default said"),
        pytest.param("terminationGracePeriodSeconds", 30, True, id="another default said"),
        pytest.param("nodeName", None, True, id="null"),
        pytest.param("restartPolicy", "Never", False, id="not the default"),
    ],
)
def test_saying_a_default_is_no_new_revision(field: str, value: object, same: bool) -> None:
    old = kept(SERVICE)
    changed = pcs(clique("a"), clique("b"))
    changed["spec"]["template"]["cliques"][0]["spec"]["podSpec"][field] = value
    assert (of(changed, old) == old) is same


def test_scaling_is_no_new_revision() -> None:
    old = kept(SERVICE)
    assert of(pcs(clique("a", 7, min=3), clique("b"), replicas=4), old) == old


def test_a_rollback_goes_to_the_number_and_stays_put_where_there_is_none() -> None:
    first = kept(SERVICE)
    second_manifest = pcs(clique("a", outer={"labels": {"x": "y"}}), clique("b"))
    second = kept(second_manifest, first)
    assert second.number == 2
    owner = typed(second_manifest)
    owner.status.current_generation_hash = first.id
    for number, want in ((None, second), (1, first), (2, second), (9, first)):
        owner.spec.update_strategy = UpdateStrategy(rollback_to=number)
        assert revisions.target(owner, [second, first]) == want, number
    view = revisions.at(owner, first)
    assert view.spec.template.cliques[0].labels == {}
    assert owner.spec.template.cliques[0].labels == {"x": "y"}


def test_history_keeps_what_is_in_use_and_the_newest_others() -> None:
    stored: list[revisions.Revision] = []
    for n in range(6):
        manifest = pcs(clique("a", outer={"labels": {"n": str(n)}}))
        stored.insert(0, kept(manifest, *stored))
    in_use = stored[4].hashes["a"]
    gone = revisions.surplus(stored, stored[0], {in_use}, 2)
    assert [r.number for r in gone] == [3, 1]


def replica(index: int, **changes: Any) -> SetReplica:
    values: dict[str, Any] = {
        "index": index,
        "outdated": True,
        "settled": False,
        "begun": False,
        "scheduled": True,
        "breached": False,
    }
    return SetReplica(**(values | changes))


@pytest.mark.parametrize(
    ("replicas", "current", "want"),
    [
        pytest.param([replica(0), replica(1)], None, 0, id="lowest first"),
        pytest.param([replica(0), replica(1, breached=True)], None, 1, id="broken before whole"),
        pytest.param(
            [replica(0, breached=True), replica(1, scheduled=False)], None, 1, id="no node first"
        ),
        pytest.param([replica(0), replica(1)], 1, 1, id="the current one stays"),
        pytest.param([replica(0), replica(1, outdated=False)], 1, 1, id="until it serves as well"),
        pytest.param(
            [replica(0), replica(1, outdated=False, settled=True)], 1, 0, id="then the next"
        ),
        pytest.param([replica(0), replica(1, begun=True)], None, 1, id="what was begun goes on"),
        pytest.param([replica(0, outdated=False, settled=True)], 0, None, id="none left"),
        pytest.param([replica(0)], 3, 0, id="the current one was scaled away"),
    ],
)
def test_the_replica_to_update(
    replicas: list[SetReplica], current: int | None, want: int | None
) -> None:
    assert next_replica(replicas, current) == want


OLD = {"revision": "old"}


@pytest.mark.parametrize(
    ("pods", "want"),
    [
        pytest.param([pod(0, **OLD), pod(1, **OLD)], ["p0"], id="one ready pod"),
        pytest.param(
            [pod(0, **OLD), pod(1, **OLD, created="2025-01-01T00:00:00Z")],
            ["p1"],
            id="the oldest",
        ),
        pytest.param(
            [pod(0, **OLD, gated=True), pod(1, **OLD, exit_code=1, ready=False, started=False)],
            ["p0", "p1"],
            id="what holds nothing at once",
        ),
        pytest.param(
            [pod(0, **OLD, ready=False), pod(1, **OLD, ready=False), pod(2, **OLD)],
            ["p0"],
            id="pods that lost their readiness one at a time",
        ),
        pytest.param([pod(0, ready=False), pod(1, **OLD)], [], id="waits for the new pod"),
        pytest.param([pod(0, **OLD)], [], id="waits for the missing pod"),
        pytest.param(
            [pod(0), pod(1, **OLD)], ["p1"], id="with the minimum ready the next one goes"
        ),
        pytest.param([pod(0), pod(1)], [], id="done"),
    ],
)
def test_the_pods_to_replace(pods: list[Any], want: list[str]) -> None:
    target = max(2, len(pods))
    found = pods_to_replace(pods, "new", target=target)
    assert [p.name for p in found] == want


def member(index: int, *, updated: bool = False, up: bool = True, holds: bool = True) -> Any:
    return GroupReplica(index, updated=updated, available=up, holds=holds)


@pytest.mark.parametrize(
    ("replicas", "want"),
    [
        pytest.param([member(0), member(1)], [0], id="lowest first"),
        pytest.param([member(0), member(1, up=False)], [1], id="the unavailable one first"),
        pytest.param(
            [member(0), member(1, up=False, holds=False), member(2, up=False, holds=False)],
            [1, 2],
            id="what holds nothing at once",
        ),
        pytest.param([member(0, updated=True, up=False), member(1)], [], id="one at a time"),
        pytest.param([member(0, updated=True)], [], id="done"),
    ],
)
def test_the_group_replicas_to_replace(replicas: list[GroupReplica], want: list[int]) -> None:
    assert replicas_to_replace(replicas) == want


def test_a_plan_has_holes_where_scaling_in_left_them() -> None:
    plan = ("", "old", "", "new")
    assert read_plan({PLAN: write_plan(plan)}) == plan
    assert units_of(plan) == ("old", "new")


def test_units_keep_their_indices_and_more_units_get_the_lowest_free_ones() -> None:
    places = Places.of(None, {1: ("old", True), 4: ("old", True)}, 2)
    assert places.spread(("new", "old")) == ("", "new", "", "", "old")
    assert places.spread(("new", "old", "new")) == ("new", "new", "", "", "old")
    assert places.spread(("new",)) == ("", "new")
    assert places.spread(()) == ()
    assert Places.of(("", "new"), {}, 5).indices == (1,)
    assert Places.of(None, {1: ("old", True)}, 2).indices == (0, 1)
    assert Places.of(None, dict.fromkeys(range(3), ("old", True)), 2).indices == (0, 1)
