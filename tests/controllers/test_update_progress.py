"""What is said of an update, as values: when it begins, what it replaces, when it is overdue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.controllers.farm import clique, pcs, typed

from spinney.api.grove import CurrentlyUpdating, PodCliqueSet, PodCliqueSetUpdateProgress
from spinney.clock import parse_rfc3339
from spinney.controllers.update import progress, revisions
from spinney.controllers.update.progress import MAX_REPLACED, Seen

NOW, LATER = "2026-01-01T00:10:00Z", "2026-01-01T00:20:00Z"


def a_set(
    was: str = "", known: PodCliqueSetUpdateProgress | None = None, **strategy: Any
) -> PodCliqueSet:
    made = pcs(clique("a"))
    if strategy:
        made["spec"]["updateStrategy"] = strategy
    found = typed(made)
    found.status.current_generation_hash = was
    found.status.update_progress = known
    return found


def target(number: int = 7) -> revisions.Revision:
    return replace(revisions.of_template(a_set().spec.template), id="new", number=number)


def under_way(**fields: Any) -> PodCliqueSetUpdateProgress:
    return PodCliqueSetUpdateProgress(update_started_at=NOW, last_progress_at=NOW, **fields)


def seen(**fields: Any) -> Seen:
    all_done = Seen(target(), 0, 2, None, 4, 4, 1, 1, 0, 0)
    return replace(all_done, **fields)


def test_without_an_update_nothing_is_said() -> None:
    assert progress.begun(a_set(), target(), outdated=False, now=NOW) is None
    assert progress.condition(a_set(), None, seen(), 0) is None


@pytest.mark.parametrize(
    ("before", "was", "want"),
    [
        pytest.param([], "one", ["one"], id="the one before"),
        pytest.param(["one"], "two", ["one", "two"], id="and those not replaced yet"),
        pytest.param(["one", "two"], "one", ["one", "two"], id="each once"),
        pytest.param(["new"], "one", ["one"], id="the target is not replaced"),
        pytest.param(["a", "b", "c"], "d", ["b", "c", "d"], id="the newest that fit a label"),
    ],
)
def test_another_target_begins_anew_and_knows_what_is_replaced(
    before: list[str], was: str, want: list[str]
) -> None:
    old = under_way(replaced_revisions=before, updated_pods=3)
    found = progress.begun(a_set(was, old), target(), outdated=True, now=LATER)
    assert found is not None
    assert found.replaced_revisions == want
    assert len(want) <= MAX_REPLACED
    assert (found.update_started_at, found.updated_pods) == (LATER, 0)


def test_what_is_outdated_again_begins_an_update_again_but_on_deletion() -> None:
    ended = under_way(update_ended_at=NOW)
    found = progress.begun(a_set("new", ended), target(), outdated=True, now=LATER)
    assert found is not None
    assert found.update_started_at == LATER
    kept = progress.begun(a_set("new", ended, type="OnDelete"), target(), outdated=True, now=LATER)
    assert kept == ended


def test_a_further_pod_is_progress_and_fewer_are_none() -> None:
    at = under_way(updated_pods=2)
    more = progress.advanced(a_set(), at, seen(outdated=1, current=0, updated_pods=3), LATER)
    assert more is not None
    assert (more.updated_pods, more.last_progress_at, more.update_ended_at) == (3, LATER, None)
    same = progress.advanced(a_set(), at, seen(outdated=1, current=0, updated_pods=2), LATER)
    assert same is not None
    assert same.last_progress_at == NOW
    fewer = progress.advanced(a_set(), at, seen(outdated=1, current=0, updated_pods=1), LATER)
    assert fewer is not None
    assert (fewer.updated_pods, fewer.last_progress_at) == (2, NOW)


def test_an_update_ends_when_nothing_is_outdated_and_forgets_what_it_replaced() -> None:
    at = under_way(replaced_revisions=["one"])
    going = progress.advanced(a_set(), at, seen(current=1), LATER)
    assert going is not None
    assert (going.update_ended_at, going.replaced_revisions) == (None, ["one"])
    assert going.currently_updating == [CurrentlyUpdating(replica_index=1, update_started_at=LATER)]
    over = progress.advanced(a_set(), at, seen(), LATER)
    assert over is not None
    assert (over.update_ended_at, over.replaced_revisions) == (LATER, [])
    assert over.currently_updating == []


@pytest.mark.parametrize(
    ("strategy", "known", "left"),
    [
        pytest.param({"progressDeadlineSeconds": 60}, under_way(), 60, id="from the last progress"),
        pytest.param({"type": "RollingRecreate"}, under_way(), 1800, id="half an hour if not said"),
        pytest.param({"paused": True}, under_way(), None, id="never while it is paused"),
        pytest.param({}, under_way(update_ended_at=NOW), None, id="never when it has ended"),
        pytest.param({}, None, None, id="never without an update"),
    ],
)
def test_when_an_update_is_overdue(
    strategy: dict[str, Any], known: PodCliqueSetUpdateProgress | None, left: float | None
) -> None:
    now_s = parse_rfc3339(NOW)
    assert progress.overdue_in_s(a_set(**strategy), known, now_s) == left


@pytest.mark.parametrize(
    ("strategy", "what", "reason"),
    [
        pytest.param({}, {}, "UpdateInProgress", id="in progress"),
        pytest.param({"paused": True}, {}, "UpdatePaused", id="paused, also when it is overdue"),
        pytest.param({"type": "OnDelete"}, {}, "WaitsForDeletion", id="on deletion"),
        pytest.param({}, {"blocked": "raise it"}, "FloorCannotBeKept", id="blocked"),
        pytest.param({"progressDeadlineSeconds": 1}, {}, "ProgressDeadlineExceeded", id="overdue"),
        pytest.param({"rollbackTo": 3}, {}, "RevisionNotFound", id="no such revision"),
    ],
)
def test_what_is_said_of_an_update(
    strategy: dict[str, Any], what: dict[str, Any], reason: str
) -> None:
    late = 10_000 if strategy.get("paused") else 5
    said = progress.condition(
        a_set(**strategy),
        under_way(),
        seen(outdated=1, current=0, **what),
        parse_rfc3339(NOW) + late,
    )
    assert said is not None
    assert said.reason == reason
