"""``scheduler.grove.io``: the contract between the controllers and the scheduler."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from spinney.api.meta import ApiStruct, Condition, KubeObject
from spinney.api.resource import Resource

GROUP = "scheduler.grove.io"

GangPhase = Literal["Pending", "Starting", "Running", "Failed", "Succeeded"]


class NamespacedName(ApiStruct):
    """Names an object by namespace and name."""

    namespace: str
    name: str


class GangPackConstraint(ApiStruct):
    """Node label keys whose values have to be, or had better be, the same for all pods."""

    required: str | None = None
    preferred: str | None = None


class GangTopologyConstraint(ApiStruct):
    """A topology constraint in terms of node labels."""

    pack_constraint: GangPackConstraint | None = None


class GangPodGroup(ApiStruct, kw_only=True):
    """The pods of one PodClique, and how many of them the gang needs."""

    name: str
    pod_references: list[NamespacedName] = []
    min_replicas: int
    topology_constraint: GangTopologyConstraint | None = None


class TopologyConstraintGroupConfig(ApiStruct):
    """A constraint over several pod groups of the gang."""

    name: str
    pod_group_names: list[str] = []
    topology_constraint: GangTopologyConstraint | None = None


class PodGangSpec(ApiStruct):
    """What is placed all together or not at all."""

    pod_groups: list[GangPodGroup] = msgspec.field(default_factory=list, name="podgroups")
    topology_constraint: GangTopologyConstraint | None = None
    topology_constraint_group_configs: list[TopologyConstraintGroupConfig] = []
    priority_class_name: str = ""
    reuse_reservation_ref: NamespacedName | None = None


class PodGangStatus(ApiStruct):
    """Where the gang is in its life."""

    phase: GangPhase = "Pending"
    conditions: list[Condition] = []
    placement_score: float | None = None
    """1.0 is the best placement the topology allows."""


class PodGang(KubeObject):
    """Pods that are placed all together or not at all."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v1alpha1", "PodGang", "podgangs", short_names=("pg",)
    )
    spec: PodGangSpec = msgspec.field(default_factory=PodGangSpec)
    status: PodGangStatus = msgspec.field(default_factory=PodGangStatus)
