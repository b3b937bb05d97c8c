"""Groups that say a number of pods and no more: the scheduler plugins' and Volcano's PodGroups.

Operators of training and batch jobs make them when told that such a scheduler is there: so
their jobs are gangs here too. A pod names its group in a label or in an annotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.podgroup import (
    COSCHEDULING_GROUP,
    VOLCANO_GROUP,
    CoschedulingPodGroup,
    MinMemberGroup,
)
from spinney.scheduler.sources.spec import GangSpec, GroupSpec

if TYPE_CHECKING:
    from spinney.api.core import Pod

COSCHEDULING = "cosched"
VOLCANO = "volcano"


def min_member_key(kind: type[MinMemberGroup], namespace: str, name: str) -> str:
    """Return the gang key of a group."""
    word = COSCHEDULING if kind is CoschedulingPodGroup else VOLCANO
    return f"{namespace}/{word}:{name}"


def min_member_spec(group: MinMemberGroup) -> GangSpec:
    """Return what *group* asks for."""
    key = min_member_key(type(group), group.namespace, group.name)
    return GangSpec(
        key,
        GroupSpec(key, minimum=group.spec.min_member),
        group.spec.priority_class_name,
        group.metadata.creation_timestamp or "",
        queue=group.spec.queue,
    )


def min_member_of(pod: Pod) -> str:
    """Return the gang key of the group that *pod* names; empty for none."""
    if name := pod.labels.get(COSCHEDULING_GROUP, ""):
        return f"{pod.namespace}/{COSCHEDULING}:{name}"
    if name := pod.metadata.annotations.get(VOLCANO_GROUP, ""):
        return f"{pod.namespace}/{VOLCANO}:{name}"
    return ""
