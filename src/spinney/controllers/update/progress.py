"""How far a set's update is, and what is said of it.

An update begins when the set's revision changes and ends when no pod of another revision is left
and the last replica serves. Progress is one more pod of the revision than there ever were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove import CurrentlyUpdating, PodCliqueSetUpdateProgress
from spinney.api.meta import Condition
from spinney.clock import parse_rfc3339
from spinney.controllers.update import strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.grove import PodCliqueSet
    from spinney.controllers.update.revisions import Revision

PROGRESSING = "Progressing"
MAX_REPLACED = 3
"""Revisions besides the target that a pod's label names: what fits into a label."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an update's progress is told from."""

    target: Revision
    outdated: int
    """Replicas of the set with pods of another revision."""
    replicas: int
    current: int | None
    """The replica the update is at."""
    updated_pods: int
    total_pods: int
    updated_cliques: int
    total_cliques: int
    updated_groups: int
    total_groups: int
    capacity: str = ""
    """Of a coherent update: what serves, and the floor."""
    blocked: str = ""
    waits: str = ""
    """What the replica it is at waits for."""


def begun(
    pcs: PodCliqueSet, target: Revision, *, outdated: bool, now: str
) -> PodCliqueSetUpdateProgress | None:
    """Return the update in progress as it is before anything is done; None if there was none yet.

    Another target starts it anew, and what it was replacing stays to be replaced.
    """
    old = pcs.status.update_progress
    was = pcs.status.current_generation_hash
    if was in ("", target.id):
        auto = not strategy.is_on_delete(pcs)
        if outdated and auto and (old is None or old.update_ended_at is not None):
            replaced = old.replaced_revisions if old is not None else []
            return _fresh(now, replaced)
        return old
    before = old.replaced_revisions if old is not None else []
    replaced = [r for r in dict.fromkeys([*before, was]) if r != target.id]
    return _fresh(now, replaced[-MAX_REPLACED:])


def _fresh(now: str, replaced: Sequence[str]) -> PodCliqueSetUpdateProgress:
    return PodCliqueSetUpdateProgress(
        update_started_at=now, last_progress_at=now, replaced_revisions=list(replaced)
    )


def advanced(
    pcs: PodCliqueSet, progress: PodCliqueSetUpdateProgress | None, seen: Seen, now: str
) -> PodCliqueSetUpdateProgress | None:
    """Return *progress* with what has been seen."""
    if progress is None:
        return None
    on_delete = strategy.is_on_delete(pcs)
    over = not seen.outdated and seen.current is None
    ended = progress.update_ended_at or (now if over or on_delete else None)
    further = seen.updated_pods > progress.updated_pods
    return msgspec.structs.replace(
        progress,
        update_ended_at=ended,
        updated_pod_cliques_count=seen.updated_cliques,
        total_pod_cliques_count=seen.total_cliques,
        updated_pod_clique_scaling_groups_count=seen.updated_groups,
        total_pod_clique_scaling_groups_count=seen.total_groups,
        currently_updating=_current(progress, seen, now) if ended is None else [],
        replaced_revisions=[] if not seen.outdated and over else progress.replaced_revisions,
        updated_pods=max(seen.updated_pods, progress.updated_pods),
        last_progress_at=now if further and ended is None else progress.last_progress_at,
    )


def _current(progress: PodCliqueSetUpdateProgress, seen: Seen, now: str) -> list[CurrentlyUpdating]:
    if seen.current is None:
        return []
    for known in progress.currently_updating:
        if known.replica_index == seen.current:
            return [known]
    return [CurrentlyUpdating(replica_index=seen.current, update_started_at=now)]


def overdue_in_s(
    pcs: PodCliqueSet, progress: PodCliqueSetUpdateProgress | None, now_s: float
) -> float | None:
    """Return the seconds until the update is overdue, 0 if it is, None if none is in progress."""
    if progress is None or progress.update_ended_at is not None or strategy.is_paused(pcs):
        return None
    since = parse_rfc3339(progress.last_progress_at or progress.update_started_at or "")
    return max(0.0, since + strategy.deadline_s(pcs) - now_s)


def condition(
    pcs: PodCliqueSet, progress: PodCliqueSetUpdateProgress | None, seen: Seen, now_s: float
) -> Condition | None:
    """Return what the set says of its update; None where there has been none."""
    wanted = pcs.spec.update_strategy.rollback_to if pcs.spec.update_strategy else None
    if wanted is not None and seen.target.number != wanted:
        text = f"rollbackTo asks for revision {wanted}, which is not stored; nothing is changed"
        return _condition("False", "RevisionNotFound", text)
    if progress is None:
        return None
    at = f"revision {seen.target.number}"
    if not seen.outdated and progress.update_ended_at is not None:
        return _condition("True", "UpdateComplete", f"all pods are of {at}")
    counts = (
        f"{at}: {seen.updated_pods} of {seen.total_pods} pods and "
        f"{seen.replicas - seen.outdated} of {seen.replicas} replicas are updated"
    )
    if strategy.is_paused(pcs):
        return _condition("Unknown", "UpdatePaused", f"{counts}; the update is paused")
    if strategy.is_on_delete(pcs):
        text = f"{counts}; the others are when somebody deletes them"
        return _condition("True", "WaitsForDeletion", text)
    where = f"; at replica {seen.current}" if seen.current is not None else ""
    text = counts + where + seen.capacity + (f": {seen.waits}" if seen.waits else "")
    if seen.blocked:
        return _condition("False", "FloorCannotBeKept", f"{text}; {seen.blocked}")
    if overdue_in_s(pcs, progress, now_s) == 0.0:
        limit = f"; no further pod was updated for {strategy.deadline_s(pcs):g} s"
        return _condition("False", "ProgressDeadlineExceeded", text + limit)
    return _condition("True", "UpdateInProgress", text)


def _condition(status: str, reason: str, message: str) -> Condition:
    return Condition(type=PROGRESSING, status=status, reason=reason, message=message)
