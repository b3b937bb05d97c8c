"""The ``grove.io`` kinds: what a user declares of one inference service.

A PodCliqueSet declares all roles of a service. From it the controllers make PodCliques (pods of
one role), PodCliqueScalingGroups (roles that scale together) and PodGangs (what the
scheduler places as one). Field names and defaults are Grove's, so that its manifests run.

``podSpec`` is kept as the JSON the user wrote: it is copied into pods, and a typed copy would
lose what it does not name. `PodCliqueSpec.typed_pod_spec` reads it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from spinney.api.core import IntOrString, PodSpec
from spinney.api.meta import ApiStruct, Condition, KubeObject
from spinney.api.resource import Resource

GROUP = "grove.io"

_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

DomainName = Annotated[str, Meta(min_length=1, max_length=63, pattern="^[a-z][a-z0-9-]*$")]
"""A topology domain as users name it, such as ``rack``."""

StartupType = Literal[
    "CliqueStartupTypeAnyOrder", "CliqueStartupTypeInOrder", "CliqueStartupTypeExplicit"
]
UpdateStrategyType = Literal["RollingRecreate", "OnDelete", "Coherent"]
SharingScope = Literal["AllReplicas", "PerReplica"]


class PackConstraint(ApiStruct):
    """Into which topology domain pods are packed."""

    required: DomainName | None = None
    """Hard: without one such domain that holds all, nothing is placed."""
    preferred: DomainName | None = None
    """Soft: as narrow as this where possible."""


class TopologyConstraint(ApiStruct):
    """How close to each other pods have to be."""

    topology_name: str | None = None
    """The ClusterTopologyBinding whose domains are meant; inherited from the parent if absent."""
    pack: PackConstraint | None = None
    pack_domain: DomainName | None = None
    """Deprecated: the same as ``pack.required``."""


class ResourceSharingFilter(ApiStruct):
    """Which children take part in sharing a claim."""

    child_clique_names: list[str] = []
    child_scaling_group_names: list[str] = []


class ResourceSharing(ApiStruct):
    """A resource claim that pods share."""

    name: str
    scope: SharingScope
    namespace: str = ""
    filter: ResourceSharingFilter | None = None


class AutoScalingConfig(ApiStruct):
    """Bounds and metrics of a HorizontalPodAutoscaler to generate."""

    max_replicas: int
    min_replicas: int | None = None
    metrics: list[dict[str, Any]] = []


class PodCliqueSpec(ApiStruct):
    """Pods of one role."""

    pod_spec: Annotated[dict[str, Any], Meta(extra={"schema_of": PodSpec})] = {}
    role_name: str = ""
    replicas: int | None = None
    min_available: int | None = None
    """The gang minimum, and below it the clique counts as broken."""
    starts_after: list[str] = []
    """Cliques whose minimum has to be ready before this one starts."""
    auto_scaling_config: AutoScalingConfig | None = None

    def typed_pod_spec(self) -> PodSpec:
        """Return a typed view of ``podSpec``; raise msgspec.ValidationError if it is malformed."""
        return msgspec.convert(self.pod_spec, PodSpec)


class PodCliqueTemplate(ApiStruct):
    """A role as the PodCliqueSet declares it."""

    name: str
    spec: PodCliqueSpec
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    topology_constraint: TopologyConstraint | None = None
    resource_sharing: list[ResourceSharing] = []


class ScalingGroupTemplate(ApiStruct):
    """Roles that scale together: one replica holds all pods of all its cliques."""

    name: str
    clique_names: list[str]
    annotations: dict[str, str] = {}
    replicas: int | None = None
    min_available: int | None = None
    scale_config: AutoScalingConfig | None = None
    resource_sharing: list[ResourceSharing] = []
    topology_constraint: TopologyConstraint | None = None


class HeadlessServiceConfig(ApiStruct):
    """How the service that names the pods is set up."""

    publish_not_ready_addresses: bool = msgspec.field(default=True, name="publishNotReadyAddresses")


class ResourceClaimTemplateConfig(ApiStruct):
    """A claim template that lives inside the set."""

    name: str
    template_spec: dict[str, Any]


class PodCliqueSetTemplate(ApiStruct):
    """One complete copy of the service."""

    cliques: list[PodCliqueTemplate] = []
    clique_startup_type: StartupType | None = None
    priority_class_name: str = ""
    headless_service_config: HeadlessServiceConfig | None = None
    topology_constraint: TopologyConstraint | None = None
    termination_delay: str | None = None
    resource_claim_templates: list[ResourceClaimTemplateConfig] = []
    resource_sharing: list[ResourceSharing] = []
    pod_clique_scaling_groups: list[ScalingGroupTemplate] = []


class CoherentUpdate(ApiStruct):
    """How much service a coherent update leaves at every step."""

    min_capacity_percent: Annotated[int, Meta(ge=0, le=100)] | None = None
    """Share of the replica's end-to-end capacity that no step goes below; 75 if absent."""
    max_unavailable: IntOrString | None = None
    """Units of a role, or per cent of them, that may be missing at a time; 25% if absent."""
    max_surge: IntOrString | None = None
    """Units of a role, or per cent of them, that may exist on top of it; 1 if absent."""


class UpdateStrategy(ApiStruct):
    """How a changed template reaches running pods."""

    type: UpdateStrategyType = "RollingRecreate"
    paused: bool = False
    """No running pod is replaced by an update; scaling and repair go on."""
    rollback_to: Annotated[int, Meta(ge=1)] | None = None
    """While set, pods are as this stored revision has them, whatever the template says."""
    revision_history_limit: Annotated[int, Meta(ge=0)] | None = None
    """Stored revisions kept besides those in use; 10 if absent."""
    progress_deadline_seconds: Annotated[int, Meta(ge=1)] | None = None
    """How long an update may go without a further updated pod before it is reported; 1800 if
    absent, because loading a model takes long."""
    coherent: CoherentUpdate | None = None


class PodCliqueSetSpec(ApiStruct):
    """How many copies of which service."""

    template: PodCliqueSetTemplate
    replicas: int | None = None
    update_strategy: UpdateStrategy | None = None


class LastError(ApiStruct):
    """A failure of the last reconciliation."""

    code: str
    description: str
    observed_at: str


class CurrentlyUpdating(ApiStruct):
    """The replica a rolling update is at."""

    replica_index: int
    update_started_at: str | None = None
    update_ended_at: str | None = None


class PodCliqueSetUpdateProgress(ApiStruct):
    """How far a rolling update is."""

    update_started_at: str | None = None
    update_ended_at: str | None = None
    updated_pod_cliques_count: int = 0
    total_pod_cliques_count: int = 0
    updated_pod_clique_scaling_groups_count: int = 0
    total_pod_clique_scaling_groups_count: int = 0
    currently_updating: list[CurrentlyUpdating] = []
    replaced_revisions: list[str] = []
    """Ids of the stored revisions of which there are pods to replace."""
    updated_pods: int = 0
    """Pods of the new revision, the most there were."""
    last_progress_at: str | None = None
    """When there was last a further one."""


class PodCliqueSetStatus(ApiStruct):
    """How the set is."""

    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    available_replicas: int = 0
    hpa_pod_selector: str = ""
    current_generation_hash: str = ""
    current_revision: int = 0
    """The number of the stored revision that pods are to be of."""
    conditions: list[Condition] = []
    last_errors: list[LastError] = []
    update_progress: PodCliqueSetUpdateProgress | None = None


class PodCliqueSet(KubeObject, kw_only=True):
    """One inference service, with all its roles."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v1alpha1", "PodCliqueSet", "podcliquesets", short_names=("pcs",)
    )
    spec: PodCliqueSetSpec
    status: PodCliqueSetStatus = msgspec.field(default_factory=PodCliqueSetStatus)


class PodsSelectedToUpdate(ApiStruct):
    """Which ready pods a rolling update replaces."""

    current: str
    completed: list[str] = []


class PodCliqueUpdateProgress(ApiStruct):
    """How far a clique's rolling update is."""

    pod_clique_set_generation_hash: str
    pod_template_hash: str
    update_started_at: str | None = None
    update_ended_at: str | None = None
    ready_pods_selected_to_update: PodsSelectedToUpdate | None = None


class PodCliqueStatus(ApiStruct):
    """How many pods of a clique are there, scheduled, ready."""

    observed_generation: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    scheduled_replicas: int = 0
    schedule_gated_replicas: int = 0
    updated_replicas: int = 0
    hpa_pod_selector: str = ""
    conditions: list[Condition] = []
    last_errors: list[LastError] = []
    current_pod_clique_set_generation_hash: str = ""
    current_pod_template_hash: str = ""
    update_progress: PodCliqueUpdateProgress | None = None


class PodClique(KubeObject):
    """Pods of one role of one replica."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP, "v1alpha1", "PodClique", "podcliques", short_names=("pclq",)
    )
    spec: PodCliqueSpec = msgspec.field(default_factory=PodCliqueSpec)
    status: PodCliqueStatus = msgspec.field(default_factory=PodCliqueStatus)


class PodCliqueScalingGroupSpec(ApiStruct):
    """How many copies of which cliques."""

    replicas: int | None = None
    min_available: int | None = None
    clique_names: list[str] = []


class ReplicaIndicesSelectedToUpdate(ApiStruct):
    """Which replicas a rolling update replaces."""

    current: int
    completed: list[int] = []


class PodCliqueScalingGroupUpdateProgress(ApiStruct):
    """How far a scaling group's rolling update is."""

    update_started_at: str
    pod_clique_set_generation_hash: str
    update_ended_at: str | None = None
    updated_pod_cliques_count: int = 0
    total_pod_cliques_count: int = 0
    ready_replica_indices_selected_to_update: ReplicaIndicesSelectedToUpdate | None = None


class PodCliqueScalingGroupStatus(ApiStruct):
    """How the replicas of a scaling group are."""

    observed_generation: int = 0
    replicas: int = 0
    scheduled_replicas: int = 0
    available_replicas: int = 0
    updated_replicas: int = 0
    selector: str = ""
    conditions: list[Condition] = []
    last_errors: list[LastError] = []
    current_pod_clique_set_generation_hash: str = ""
    update_progress: PodCliqueScalingGroupUpdateProgress | None = None


class PodCliqueScalingGroup(KubeObject):
    """Cliques of one replica that scale together."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP,
        "v1alpha1",
        "PodCliqueScalingGroup",
        "podcliquescalinggroups",
        short_names=("pcsg",),
    )
    spec: PodCliqueScalingGroupSpec = msgspec.field(default_factory=PodCliqueScalingGroupSpec)
    status: PodCliqueScalingGroupStatus = msgspec.field(default_factory=PodCliqueScalingGroupStatus)


class TopologyLevel(ApiStruct):
    """A level of the topology: its name, and the node label that tells the domain."""

    domain: DomainName
    key: Annotated[str, Meta(min_length=1, max_length=63, pattern=_LABEL_KEY)]


class SchedulerTopologyBinding(ApiStruct):
    """A scheduler's own topology object that somebody else manages."""

    scheduler_name: str
    topology_reference: str


class ClusterTopologyBindingSpec(ApiStruct):
    """Levels from broadest to narrowest."""

    levels: Annotated[list[TopologyLevel], Meta(min_length=1)]
    scheduler_topology_bindings: list[SchedulerTopologyBinding] = []


class ClusterTopologyBindingStatus(ApiStruct):
    """Whether schedulers see the same levels."""

    observed_generation: int = 0
    conditions: list[Condition] = []
    scheduler_topology_statuses: list[dict[str, Any]] = []


class ClusterTopologyBinding(KubeObject, kw_only=True):
    """Names the levels of the cluster's topology."""

    RESOURCE: ClassVar[Resource] = Resource(
        GROUP,
        "v1alpha1",
        "ClusterTopologyBinding",
        "clustertopologybindings",
        namespaced=False,
        short_names=("ct",),
    )
    spec: ClusterTopologyBindingSpec
    status: ClusterTopologyBindingStatus = msgspec.field(
        default_factory=ClusterTopologyBindingStatus
    )
