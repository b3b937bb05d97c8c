"""What a clique reports: counts, and whether it is scheduled and available, and if not, why.

A pod that still starts is no breach: loading a model takes minutes. One that has come up
and does not serve is, and so is one whose container ended with an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import names, selectors
from spinney.api.meta import Condition, find_condition, is_true, with_condition
from spinney.controllers.pacing import turned
from spinney.controllers.pod_state import (
    exited_with_error,
    is_gated,
    is_live,
    is_ready,
    is_scheduled,
    started_but_not_ready,
    why_not_ready,
)
from spinney.controllers.template import clique_count
from spinney.controllers.update.parts import clique_progress, generation_of
from spinney.controllers.update.plan import PLAN, ROLLOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.core import Pod
    from spinney.api.grove import LastError, PodClique, PodCliqueStatus

MIN_AVAILABLE_BREACHED = "MinAvailableBreached"
MIN_AVAILABLE_REACHED = "MinAvailableReached"
"""Whether the minimum had nodes once: since the clique was made or was last scaled up from zero. It
does not go when the minimum is lost; what has never run is not terminated."""
SCHEDULED = "PodCliqueScheduled"
_NAMED_PODS = 3
"""Pods that a message tells of one by one."""


def clique_status(
    clique: PodClique,
    pods: Sequence[Pod],
    errors: list[LastError],
    now: str,
    *,
    reached: bool = False,
    replaced: Sequence[str] = (),
) -> PodCliqueStatus:
    """Return the clique's status from its *pods*; *now* dates conditions that change.

    *reached* tells that its minimum was seen on nodes, though that may not be written yet.
    *replaced* names the pods that went for others of the clique's revision.
    """
    live = [pod for pod in pods if is_live(pod)]
    revision = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    updated = sum(pod.labels.get(names.POD_TEMPLATE_HASH) == revision for pod in live)
    conditions = clique.status.conditions
    for condition in (
        _breached(clique, live, errors),
        _scheduled(clique, live),
        _reached(clique, live, seen=reached),
    ):
        conditions = with_condition(conditions, condition, now)
    current = clique.status.current_pod_template_hash
    return msgspec.structs.replace(
        clique.status,
        observed_generation=clique.metadata.generation,
        replicas=len(live),
        ready_replicas=sum(map(is_ready, live)),
        scheduled_replicas=sum(map(is_scheduled, live)),
        schedule_gated_replicas=sum(map(is_gated, live)),
        updated_replicas=updated,
        hpa_pod_selector=_selector(clique),
        conditions=conditions,
        last_errors=errors,
        current_pod_template_hash=revision if updated == len(live) else current,
        current_pod_clique_set_generation_hash=generation_of(clique)
        if updated == len(live)
        else clique.status.current_pod_clique_set_generation_hash,
        update_progress=clique_progress(clique, pods, now, replaced),
    )


def is_progress(clique: PodClique, status: PodCliqueStatus) -> bool:
    """Tell whether *status*, compared with what is written, only tells of a start that goes on.

    That all are ready is news, and so is every loss and every failure, also of what was never
    written to be there.
    """
    before = clique.status
    return (
        status.ready_replicas < clique_count(clique).target
        and status.ready_replicas >= before.ready_replicas
        and status.scheduled_replicas >= before.scheduled_replicas
        and status.replicas >= before.replicas
        and status.last_errors == before.last_errors
        and not turned(before.conditions, status.conditions)
        and (is_true(status.conditions, SCHEDULED) or not has_reached(status))
    )


def has_reached(status: PodCliqueStatus) -> bool:
    """Tell whether *status* says that the minimum had nodes once."""
    return is_true(status.conditions, MIN_AVAILABLE_REACHED)


def lacks_minimum(clique: PodClique, pods: Sequence[Pod]) -> bool:
    """Tell whether *pods*, all that the clique controls, are a breach of its minimum."""
    live = [pod for pod in pods if is_live(pod)]
    return _breached(clique, live, ()).status == "True"


def _breached(clique: PodClique, live: Sequence[Pod], errors: Sequence[LastError]) -> Condition:
    count = clique_count(clique)
    needed = count.needed
    ready = sum(map(is_ready, live))
    scheduled = [pod for pod in live if is_scheduled(pod)]
    broken = [pod for pod in scheduled if not is_ready(pod) and _is_broken(pod)]
    failed = "".join(f"; {error.description}" for error in errors[:1])
    message = f"{ready} of {needed} needed pods are ready{_reasons(live)}{failed}{count.remark}"
    short = len(scheduled) - len(broken) < needed
    if short and _is_updating(clique, live):
        return _condition(MIN_AVAILABLE_BREACHED, "Unknown", "UpdateInProgress", message)
    if len(scheduled) < needed:
        return _condition(
            MIN_AVAILABLE_BREACHED, "True", "ScheduledReplicasBelowMinAvailable", message
        )
    if len(scheduled) - len(broken) < needed:
        return _condition(MIN_AVAILABLE_BREACHED, "True", "InsufficientReadyPods", message)
    return _condition(MIN_AVAILABLE_BREACHED, "False", "SufficientReadyPods", message)


def _is_updating(clique: PodClique, live: Sequence[Pod]) -> bool:
    """Tell whether an update is replacing the pods: what is missing then is missing on purpose."""
    if PLAN in clique.metadata.annotations:
        return True
    own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    old = any(pod.labels.get(names.POD_TEMPLATE_HASH) != own for pod in live)
    return old and ROLLOUT in clique.metadata.annotations


def _is_broken(pod: Pod) -> bool:
    return exited_with_error(pod) or started_but_not_ready(pod)


def _scheduled(clique: PodClique, live: Sequence[Pod]) -> Condition:
    needed = clique_count(clique).needed
    scheduled = sum(map(is_scheduled, live))
    enough = scheduled >= needed
    return _condition(
        SCHEDULED,
        "True" if enough else "False",
        "SufficientScheduledPods" if enough else "InsufficientScheduledPods",
        f"{scheduled} of {needed} needed pods have a node",
    )


def _reached(clique: PodClique, live: Sequence[Pod], *, seen: bool) -> Condition:
    needed = clique_count(clique).needed
    before = find_condition(clique.status.conditions, MIN_AVAILABLE_REACHED)
    if not needed:
        return _condition(MIN_AVAILABLE_REACHED, "False", "ScaledToZero", "no pod is wanted")
    if before is not None and before.status == "True":
        return before
    if seen or sum(map(is_scheduled, live)) >= needed:
        message = f"{needed} needed pods have had nodes"
        return _condition(MIN_AVAILABLE_REACHED, "True", "MinimumScheduled", message)
    message = f"{needed} needed pods have not had nodes yet"
    return _condition(MIN_AVAILABLE_REACHED, "False", "NeverScheduled", message)


def _condition(kind: str, status: str, reason: str, message: str) -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message)


def _reasons(live: Sequence[Pod]) -> str:
    """Say of the first few pods that are not ready what they wait for."""
    waiting = [(pod, why) for pod in live if (why := why_not_ready(pod))]
    if not waiting:
        return ""
    named = "; ".join(f"{pod.name} {why}" for pod, why in waiting[:_NAMED_PODS])
    more = len(waiting) - _NAMED_PODS
    return f": {named}" + (f"; and {more} more" if more > 0 else "")


def _selector(clique: PodClique) -> str:
    """Return the selector autoscalers read; members of a scaling group scale with the group."""
    if names.SCALING_GROUP in clique.labels:
        return ""
    return selectors.format_labels(
        {
            names.MANAGED_BY: names.OPERATOR,
            names.PART_OF: clique.labels.get(names.PART_OF, ""),
            names.POD_CLIQUE: clique.name,
        }
    )
