"""How a gang is: its phase and conditions, told from its pods.

The scheduler writes into the same status: `Scheduled`, `DisruptionTarget`, the placement score.
What others wrote is kept. For a scheduler that knows no PodGangs, `Scheduled` is written here, and
where it was not told all that the gang asks for, `GangScheduling` says what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.api.meta import Condition, find_condition, is_true, with_condition
from spinney.controllers import gangs
from spinney.controllers.backends.conformance import ALL_OR_NOTHING, lost
from spinney.controllers.pod_state import (
    exited_with_error,
    is_live,
    is_ready,
    is_scheduled,
    started_but_not_ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spinney.api.core import Pod
    from spinney.api.podgang import GangPhase, PodGang, PodGangStatus
    from spinney.controllers.backends.backend import Backend

INITIALIZED = "Initialized"
SCHEDULED = "Scheduled"
READY = "Ready"
UNHEALTHY = "Unhealthy"
GANG_SCHEDULING = "GangScheduling"


def gang_status(
    gang: PodGang, pods: Sequence[Pod], now: str, backend: Backend | None = None
) -> PodGangStatus:
    """Return the gang's status from its *pods*; *now* dates conditions that change.

    *backend* is that of its scheduler; None for ours.
    """
    ready = gangs.is_gang_ready(gang, pods)
    scheduled = gangs.is_gang_scheduled(gang, pods)
    conditions = gang.status.conditions
    wanted = [_initialized(gang), _ready(gang, pods, ready=ready)]
    if scheduled or find_condition(conditions, UNHEALTHY) is not None:
        wanted.append(_unhealthy(gang, pods))
    if backend is not None and backend.scheduler != names.SPINNEY_SCHEDULER:
        wanted.append(_scheduled(gang, pods, scheduled=scheduled))
        wanted += _gang_scheduling(backend, gang)
    for condition in wanted:
        conditions = with_condition(conditions, condition, now)
    return msgspec.structs.replace(
        gang.status,
        phase=_phase(gang, pods, ready=ready, scheduled=scheduled),
        conditions=conditions,
    )


def _phase(gang: PodGang, pods: Sequence[Pod], *, ready: bool, scheduled: bool) -> GangPhase:
    """Return Failed while pods that ended with an error leave too few, until they are replaced."""
    if ready:
        return "Running"
    ended = [pod for pod in pods if not pod.deleting and pod.status.phase == "Succeeded"]
    if ended and len(ended) == len(pods):
        return "Succeeded"
    if any(not pod.deleting and pod.status.phase == "Failed" for pod in pods) and _short(
        gang, pods, is_live
    ):
        return "Failed"
    return "Starting" if scheduled else "Pending"


def _initialized(gang: PodGang) -> Condition:
    """Return whether all pods exist and are listed; once they were, it stays."""
    listed = all(group.pod_references or not group.min_replicas for group in gang.spec.pod_groups)
    if listed or is_true(gang.status.conditions, INITIALIZED):
        return _condition(INITIALIZED, True, "PodGangPodsCreated", "all pods have been created")
    message = "pods of the gang are still to be created"
    return _condition(INITIALIZED, False, "PodGangPodsCreationPending", message)


def _scheduled(gang: PodGang, pods: Sequence[Pod], *, scheduled: bool) -> Condition:
    if scheduled:
        return _condition(SCHEDULED, True, "Placed", "the gang's minimum is on nodes")
    short = _short(gang, pods, is_scheduled)
    return _condition(SCHEDULED, False, "Pending", f"fewer pods have nodes than needed: {short}")


def _ready(gang: PodGang, pods: Sequence[Pod], *, ready: bool) -> Condition:
    if ready:
        message = "every clique of the gang has its minimum of ready pods"
        return _condition(READY, True, "PodGangReady", message)
    short = _short(gang, pods, is_ready)
    return _condition(READY, False, "PodGangNotReady", f"fewer pods are ready than needed: {short}")


def _unhealthy(gang: PodGang, pods: Sequence[Pod]) -> Condition:
    """Return whether a gang that had its minimum on nodes has lost it since."""
    short = _short(gang, pods, _is_sound)
    if not short:
        message = "every clique of the gang has its minimum of sound pods"
        return _condition(UNHEALTHY, False, "MinimumHealthy", message)
    message = f"fewer pods are sound than needed: {short}"
    return _condition(UNHEALTHY, True, "MinimumLost", message)


def _is_sound(pod: Pod) -> bool:
    """Tell whether a pod serves, or is on its way to."""
    if is_ready(pod):
        return True
    return is_scheduled(pod) and not exited_with_error(pod) and not started_but_not_ready(pod)


def _gang_scheduling(backend: Backend, gang: PodGang) -> list[Condition]:
    """Return what the scheduler was not told; nothing where it was told all."""
    missing = lost(backend, gang)
    if not missing:
        before = find_condition(gang.status.conditions, GANG_SCHEDULING)
        if before is None:
            return []
        return [_condition(GANG_SCHEDULING, True, "Expressed", "the scheduler was told all")]
    kept = ALL_OR_NOTHING not in missing
    message = f"{backend.title} is not told of: {'; '.join(f.title for f in missing)}"
    return [
        _condition(GANG_SCHEDULING, kept, "PartlyExpressed" if kept else "NotSupported", message)
    ]


def _short(gang: PodGang, pods: Sequence[Pod], fulfils: Callable[[Pod], bool]) -> str:
    """Name the cliques of which too few pods fulfil a condition; empty when none is short."""
    found = gangs.counts(pods, fulfils)
    return ", ".join(
        f"{group.name} {found.get(group.name, 0)} of {group.min_replicas}"
        for group in gang.spec.pod_groups
        if found.get(group.name, 0) < group.min_replicas
    )


def _condition(kind: str, value: bool, reason: str, message: str) -> Condition:
    return Condition(type=kind, status=str(value), reason=reason, message=message)
