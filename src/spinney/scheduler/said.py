"""What is said on the object of a gang about its placement, in the words of that object's API.

A PodGang has the condition ``Scheduled`` and a placement score; an upstream PodGroup has
``PodGroupScheduled``; KAI's PodGroup has, while it is not placed, a scheduling condition for its
node pool with one of KAI's reasons. Pure: an object in, the object as it should be out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from spinney.api.meta import Condition, find_condition, with_condition
from spinney.api.podgang import PodGang
from spinney.api.podgroup import PodGroup, SchedulingCondition, UpstreamPodGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIGURES = re.compile(r"\b\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?\b")
_NODES = re.compile(r"\d+/\d+ nodes")
_BEST = re.compile(r"best domain \S+")

GangObject = PodGang | PodGroup | UpstreamPodGroup

SCHEDULED = "Scheduled"
GROUP_SCHEDULED = "PodGroupScheduled"
UNSCHEDULABLE = "Unschedulable"
WAITING = "Waiting"
PLACED = "Placed"
ON_NODE_POOL = "UnschedulableOnNodePool"
DEFAULT_POOL = "default"
DISRUPTION_TARGET = "DisruptionTarget"
EVICTED_REASON = "PreemptionByScheduler"
RECOVERED_REASON = "PlacedAgain"


@dataclass(frozen=True, slots=True)
class Said:
    """How a gang fares."""

    placed: bool
    message: str
    score: float | None = None
    pool: str = ""
    waiting: bool = False
    """Whether it is not to be judged yet: pods, or an object that describes it, are missing."""

    @property
    def reason(self) -> str:
        """One word for it."""
        if self.placed:
            return PLACED
        return WAITING if self.waiting else UNSCHEDULABLE


def with_said(obj: GangObject, said: Said, now: str) -> GangObject | None:
    """Return *obj* saying *said*, or None when it does already."""
    if isinstance(obj, PodGroup):
        return _on_pool(obj, said, now)
    kind = SCHEDULED if isinstance(obj, PodGang) else GROUP_SCHEDULED
    wanted = Condition(
        type=kind,
        status=str(said.placed),
        reason=said.reason,
        message=said.message,
        observed_generation=obj.metadata.generation,
    )
    found = find_condition(obj.status.conditions, kind)
    same = found is not None and _fields(found) == _fields(wanted)
    conditions = with_condition(obj.status.conditions, wanted, now)
    if said.placed and is_disrupted(obj):
        over = Condition(type=DISRUPTION_TARGET, status="False", reason=RECOVERED_REASON)
        conditions, same = with_condition(conditions, over, now), False
    if isinstance(obj, UpstreamPodGroup):
        return None if same else replace(obj, status=replace(obj.status, conditions=conditions))
    score = obj.status.placement_score if said.score is None else said.score
    if same and score == obj.status.placement_score:
        return None
    return replace(obj, status=replace(obj.status, conditions=conditions, placement_score=score))


def with_disruption(obj: GangObject, message: str, now: str) -> GangObject | None:
    """Return *obj* saying that its pods are being evicted, or None when its API has no word for
    that, or it says so already."""
    if isinstance(obj, PodGroup) or is_disrupted(obj):
        return None
    wanted = Condition(
        type=DISRUPTION_TARGET,
        status="True",
        reason=EVICTED_REASON,
        message=message,
        observed_generation=obj.metadata.generation,
    )
    conditions = with_condition(obj.status.conditions, wanted, now)
    status = replace(obj.status, conditions=conditions)
    return replace(obj, status=status)


def is_disrupted(obj: PodGang | UpstreamPodGroup) -> bool:
    """Tell whether *obj* says that its pods are being evicted."""
    found = find_condition(obj.status.conditions, DISRUPTION_TARGET)
    return found is not None and found.status == "True"


def is_said_placed(obj: GangObject) -> bool:
    """Tell whether *obj* says that it is placed, or, a KAI PodGroup, nothing else."""
    if isinstance(obj, PodGroup):
        return not any(c.type == ON_NODE_POOL for c in obj.status.scheduling_conditions)
    kind = SCHEDULED if isinstance(obj, PodGang) else GROUP_SCHEDULED
    found = find_condition(obj.status.conditions, kind)
    return found is not None and found.status == "True"


def said_before(obj: GangObject) -> str:
    """Return why *obj* says that it is not placed; empty when it does not say so."""
    if isinstance(obj, PodGroup):
        return next((c.message for c in obj.status.scheduling_conditions), "")
    kind = SCHEDULED if isinstance(obj, PodGang) else GROUP_SCHEDULED
    found = find_condition(obj.status.conditions, kind)
    return found.message if found is not None and found.status == "False" else ""


def same_but_for_figures(reason: str) -> str:
    """Return what is the same for reasons that differ only in how much there is, and where."""
    parts = (part for part in reason.split("; ") if not _NODES.match(part))
    return _FIGURES.sub("#", _BEST.sub("best domain #", "; ".join(parts)))


def _fields(condition: Condition) -> tuple[str, str, str]:
    return condition.status, condition.reason, condition.message


def _on_pool(group: PodGroup, said: Said, now: str) -> PodGroup | None:
    pool = said.pool or DEFAULT_POOL
    mine = [c for c in group.status.scheduling_conditions if c.node_pool == pool]
    others = [c for c in group.status.scheduling_conditions if c.node_pool != pool]
    if said.placed and not mine:
        return None
    wanted = [] if said.placed else [_condition(group, said, pool, now)]
    if wanted and any(_same(found, wanted[0]) for found in mine):
        return None
    return replace(group, status=replace(group.status, scheduling_conditions=[*others, *wanted]))


def _condition(group: PodGroup, said: Said, pool: str, now: str) -> SchedulingCondition:
    last = max(_numbers(group), default=0)
    return SchedulingCondition(
        type=ON_NODE_POOL,
        node_pool=pool,
        status="True",
        reason=kai_reason(said.message),
        message=said.message,
        transition_id=str(last + 1),
        last_transition_time=now,
    )


def _numbers(group: PodGroup) -> Iterator[int]:
    for condition in group.status.scheduling_conditions:
        if condition.transition_id.isdigit():
            yield int(condition.transition_id)


def _same(found: SchedulingCondition, wanted: SchedulingCondition) -> bool:
    return (found.reason, found.message) == (wanted.reason, wanted.message)


def kai_reason(message: str) -> str:
    """Return KAI's word for why a gang is pending."""
    if message.startswith("queue "):
        if "is at its limit" in message:
            return "OverLimit"
        return "NonPreemptibleOverQuota" if "no quota left" in message else "QueueDoesNotExist"
    return "PodSchedulingErrors"
