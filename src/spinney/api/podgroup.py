"""Pod groups of other schedulers' APIs: KAI's, with sub-groups, and the upstream ones.

Spinney places what they describe, and writes in their status why that does not work.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from spinney.api.meta import ApiStruct, Condition, KubeObject
from spinney.api.resource import Resource

POD_GROUP_NAME = "pod-group-name"
"""Pod annotation: the KAI PodGroup it belongs to."""
SUB_GROUP = "kai.scheduler/subgroup-name"
"""Pod label: the leaf of the PodGroup's tree it belongs to."""
COSCHEDULING_GROUP = "scheduling.x-k8s.io/pod-group"
"""Pod label: the PodGroup of the scheduler plugins it belongs to."""
VOLCANO_GROUP = "scheduling.k8s.io/group-name"
"""Pod annotation: the Volcano PodGroup it belongs to."""


class GroupTopology(ApiStruct):
    """How close the pods of a group have to be, or had better be, as node label keys."""

    topology: str = ""
    required_topology_level: str = ""
    preferred_topology_level: str = ""


class SubGroup(ApiStruct):
    """One node of the tree below a PodGroup."""

    name: str
    parent: str | None = None
    """The sub-group it is in; none: the PodGroup itself."""
    min_member: int | None = None
    """Of a leaf: how many pods it needs."""
    min_sub_group: int | None = None
    """Of a group with children: how many of them it needs; all unless given."""
    topology_constraint: GroupTopology | None = None


class PodGroupSpec(ApiStruct):
    """What is placed together or not at all."""

    min_member: int | None = None
    min_sub_group: int | None = None
    queue: str = ""
    priority_class_name: str = ""
    preemptibility: str = ""
    topology_constraint: GroupTopology | None = None
    sub_groups: list[SubGroup] = []
    staleness_grace_period: str | None = None
    preemption_delay: str | None = None
    mark_unschedulable: bool | None = None
    """KAI's own to write, as is the next; kept for it."""
    scheduling_backoff: int | None = None


class SchedulingCondition(ApiStruct, kw_only=True):
    """Why a group is not placed on the nodes of one pool."""

    type: str
    node_pool: str
    status: str
    reason: str = ""
    message: str = ""
    transition_id: str = msgspec.field(default="", name="transitionID")
    """Counts the changes: the highest is the last."""
    last_transition_time: str | None = None


class PodGroupStatus(ApiStruct):
    """How a group fares."""

    scheduling_conditions: list[SchedulingCondition] = []


class PodGroup(KubeObject):
    """A gang as KAI Scheduler describes it."""

    RESOURCE: ClassVar[Resource] = Resource(
        "scheduling.run.ai", "v2alpha2", "PodGroup", "podgroups"
    )
    spec: PodGroupSpec = msgspec.field(default_factory=PodGroupSpec)
    status: PodGroupStatus = msgspec.field(default_factory=PodGroupStatus)


class WorkloadSpec(ApiStruct):
    """The groups of a workload; each has a ``name`` and a ``policy``."""

    pod_groups: list[dict[str, Any]] = []


class Workload(KubeObject):
    """The upstream description of a workload's gangs; pods name it in ``spec.workloadRef``."""

    RESOURCE: ClassVar[Resource] = Resource(
        "scheduling.k8s.io", "v1alpha1", "Workload", "workloads"
    )
    spec: WorkloadSpec = msgspec.field(default_factory=WorkloadSpec)


class UpstreamPodGroupSpec(ApiStruct):
    """The policy of one group, ``basic`` or ``gang`` with ``minCount``, and its constraints."""

    scheduling_policy: dict[str, Any] = {}
    scheduling_constraints: dict[str, Any] = {}
    priority_class_name: str = ""


class UpstreamPodGroupStatus(ApiStruct):
    """How the gang fares."""

    conditions: list[Condition] = []


class UpstreamPodGroup(KubeObject):
    """The upstream gang; pods name it in ``spec.schedulingGroup.podGroupName``."""

    RESOURCE: ClassVar[Resource] = Resource(
        "scheduling.k8s.io", "v1alpha2", "PodGroup", "podgroups"
    )
    spec: UpstreamPodGroupSpec = msgspec.field(default_factory=UpstreamPodGroupSpec)
    status: UpstreamPodGroupStatus = msgspec.field(default_factory=UpstreamPodGroupStatus)


class MinMemberSpec(ApiStruct):
    """How many pods run together or not at all, and, in Volcano, for whom."""

    min_member: int = 1
    queue: str = ""
    priority_class_name: str = ""


class CoschedulingPodGroup(KubeObject):
    """A gang as the scheduler plugins describe it; Kubeflow's and Ray's operators make them."""

    RESOURCE: ClassVar[Resource] = Resource(
        "scheduling.x-k8s.io", "v1alpha1", "PodGroup", "podgroups"
    )
    spec: MinMemberSpec = msgspec.field(default_factory=MinMemberSpec)


class VolcanoPodGroup(KubeObject):
    """A gang as Volcano describes it; operators that know Volcano make them."""

    RESOURCE: ClassVar[Resource] = Resource(
        "scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups"
    )
    spec: MinMemberSpec = msgspec.field(default_factory=MinMemberSpec)


MinMemberGroup = CoschedulingPodGroup | VolcanoPodGroup
