"""The same gangs several times, under names of their own: for asking how many of them fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import msgspec

from spinney.api import names
from spinney.api.meta import KubeObject
from spinney.api.podgroup import COSCHEDULING_GROUP, POD_GROUP_NAME, VOLCANO_GROUP
from spinney.scheduler.sources.pods import JOB_NAME, LEGACY_JOB_NAME, LWS_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from spinney.api.core import Pod
    from spinney.api.podgang import PodGang
    from spinney.scheduler.scenario import Objects

K = TypeVar("K", bound=KubeObject)

_LABELS = frozenset(
    {
        names.POD_GANG,
        names.BASE_POD_GANG,
        COSCHEDULING_GROUP,
        LWS_NAME,
        JOB_NAME,
        LEGACY_JOB_NAME,
    }
)
_ANNOTATIONS = frozenset({POD_GROUP_NAME, VOLCANO_GROUP})
"""Labels and annotations by which pods say which gang they belong to."""


def copy_of(wanted: Objects, number: int) -> Objects:
    """Return the copy *number* of *wanted*; 0 is *wanted* itself."""
    if number == 0:
        return wanted
    end = f"-copy{number}"
    return replace(
        wanted,
        gangs=[_gang(gang, end) for gang in wanted.gangs],
        groups=[_named(group, end) for group in wanted.groups],
        upstream=[_named(group, end) for group in wanted.upstream],
        workloads=[_named(workload, end) for workload in wanted.workloads],
        min_member=[_named(group, end) for group in wanted.min_member],
        leader_worker_sets=[_named(found, end) for found in wanted.leader_worker_sets],
        pods=[_pod(pod, end) for pod in wanted.pods],
    )


def together(copies: Sequence[Objects]) -> Objects:
    """Return the gangs, groups and pods of all *copies*, and what else is in the first."""
    return replace(
        copies[0],
        gangs=[gang for found in copies for gang in found.gangs],
        groups=[group for found in copies for group in found.groups],
        upstream=[group for found in copies for group in found.upstream],
        workloads=[workload for found in copies for workload in found.workloads],
        min_member=[group for found in copies for group in found.min_member],
        leader_worker_sets=[obj for found in copies for obj in found.leader_worker_sets],
        pods=[pod for found in copies for pod in found.pods],
    )


def _gang(gang: PodGang, end: str) -> PodGang:
    groups = [
        msgspec.structs.replace(
            group,
            pod_references=[
                msgspec.structs.replace(ref, name=ref.name + end) for ref in group.pod_references
            ],
        )
        for group in gang.spec.pod_groups
    ]
    spec = msgspec.structs.replace(gang.spec, pod_groups=groups)
    return msgspec.structs.replace(_named(gang, end), spec=spec)


def _pod(pod: Pod, end: str) -> Pod:
    spec = msgspec.structs.replace(
        pod.spec,
        scheduling_group=_renamed(pod.spec.scheduling_group, {"podGroupName"}, end),
        workload_ref=_renamed(pod.spec.workload_ref, {"name"}, end),
    )
    return msgspec.structs.replace(_named(pod, end), spec=spec)


def _named(obj: K, end: str) -> K:
    metadata = msgspec.structs.replace(
        obj.metadata,
        name=obj.name + end,
        uid=obj.metadata.uid + end,
        labels=_renamed(obj.labels, _LABELS, end),
        annotations=_renamed(obj.metadata.annotations, _ANNOTATIONS, end),
    )
    return msgspec.structs.replace(obj, metadata=metadata)


def _renamed(values: Mapping[str, str], keys: Set[str], end: str) -> dict[str, str]:
    return {key: value + end if key in keys else value for key, value in values.items()}
