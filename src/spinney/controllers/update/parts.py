"""How far an update is in one clique or scaling group, in Grove's words.

Read from what is there, so that a restart loses at most which pod was replaced before which. With
OnDelete an update of a part has ended when it begins: nobody waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.api.grove import (
    PodCliqueScalingGroupUpdateProgress,
    PodCliqueUpdateProgress,
    PodsSelectedToUpdate,
    ReplicaIndicesSelectedToUpdate,
)
from spinney.controllers.pod_state import is_live, is_ready
from spinney.controllers.template import clique_count, group_count
from spinney.controllers.update.plan import PLAN, ROLLOUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.core import Pod
    from spinney.api.grove import PodClique, PodCliqueScalingGroup
    from spinney.controllers.update.revisions import Revision


def generation_of(clique: PodClique) -> str:
    """Return the set's revision that the clique's template is of; empty where nothing tells."""
    return clique.labels.get(names.REVISION, "").rpartition(".")[2]


def clique_progress(
    clique: PodClique, pods: Sequence[Pod], now: str, replaced: Sequence[str] = ()
) -> PodCliqueUpdateProgress | None:
    """Return how far the clique's update is; None where there never was one.

    *pods* has the pods that it controls, *replaced* the names of those that went for newer ones.
    """
    own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    live = [pod for pod in pods if is_live(pod)]
    outdated = [pod for pod in live if pod.labels.get(names.POD_TEMPLATE_HASH) != own]
    told = _is_told(clique)
    known = clique.status.update_progress
    again = known is not None and known.update_ended_at is not None and told
    if outdated and (known is None or known.pod_template_hash != own or again):
        known = PodCliqueUpdateProgress(
            pod_clique_set_generation_hash=generation_of(clique),
            pod_template_hash=own,
            update_started_at=now,
        )
    if known is None or known.update_ended_at is not None:
        return known
    complete = len(live) >= clique_count(clique).target and all(map(is_ready, live))
    ended = not told or (not outdated and complete)
    return msgspec.structs.replace(
        known,
        update_ended_at=now if ended else None,
        ready_pods_selected_to_update=_selected(known.ready_pods_selected_to_update, replaced),
    )


def _selected(
    known: PodsSelectedToUpdate | None, replaced: Sequence[str]
) -> PodsSelectedToUpdate | None:
    told = [*known.completed, known.current] if known is not None else []
    chosen = list(dict.fromkeys([*told, *replaced]))
    return PodsSelectedToUpdate(current=chosen[-1], completed=chosen[:-1]) if chosen else None


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica of a scaling group that is there."""

    updated: bool
    """Whether it declares the pods of the revision, and has no others."""
    available: bool


def group_progress(
    group: PodCliqueScalingGroup,
    target: Revision,
    replicas: Mapping[int, Replica],
    now: str,
    *,
    on_delete: bool,
) -> PodCliqueScalingGroupUpdateProgress | None:
    """Return how far the group's update to *target* is; None where there never was one."""
    known = group.status.update_progress
    notes = group.metadata.annotations
    told = PLAN in notes or notes.get(ROLLOUT) == target.id
    behind = [j for j, replica in replicas.items() if not replica.updated]
    again = known is not None and known.update_ended_at is not None and told
    new = known is None or known.pod_clique_set_generation_hash != target.id or again
    if behind and new and (told or on_delete):
        known = PodCliqueScalingGroupUpdateProgress(
            update_started_at=now, pod_clique_set_generation_hash=target.id
        )
    if known is None or known.update_ended_at is not None:
        return known
    wanted = range(group_count(group).target)
    done = [j for j, replica in sorted(replicas.items()) if replica.updated and replica.available]
    at_work = [j for j in wanted if j not in done and j not in behind]
    ended = on_delete or (not behind and not at_work and PLAN not in notes)
    selected = (
        ReplicaIndicesSelectedToUpdate(current=at_work[0], completed=done) if at_work else None
    )
    size = len(group.spec.clique_names)
    return msgspec.structs.replace(
        known,
        update_ended_at=now if ended else None,
        updated_pod_cliques_count=size * (len(replicas) - len(behind)),
        total_pod_cliques_count=size * len(wanted),
        ready_replica_indices_selected_to_update=None if ended else selected,
    )


def _is_told(clique: PodClique) -> bool:
    """Tell whether *clique* is told to replace what runs."""
    return PLAN in clique.metadata.annotations or ROLLOUT in clique.metadata.annotations
