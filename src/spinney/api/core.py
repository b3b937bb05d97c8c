"""The core kinds Spinney touches, with the fields it reads or writes."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from spinney.api.meta import ApiStruct, Condition, KubeObject
from spinney.api.resource import Resource

IntOrString = int | str


class EnvVar(ApiStruct):
    """An environment variable: a value, or where to take it from."""

    name: str
    value: str = ""
    value_from: dict[str, Any] | None = None


class ContainerPort(ApiStruct):
    """A port a container listens on."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int | None = None


class ResourceRequirements(ApiStruct):
    """Requests and limits, as quantities; see `spinney.api.quantity`."""

    requests: dict[str, str | int | float] = {}
    limits: dict[str, str | int | float] = {}
    claims: list[dict[str, Any]] = []


class HTTPGetAction(ApiStruct):
    """A probe by GET; any status from 200 to 399 is success."""

    port: IntOrString
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: list[dict[str, str]] = []


class TCPSocketAction(ApiStruct):
    """A probe by connecting."""

    port: IntOrString
    host: str = ""


class ExecAction(ApiStruct):
    """A probe or hook by a command; exit code 0 is success."""

    command: list[str] = []


class Probe(ApiStruct):
    """How and how often a container is asked whether it is well."""

    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    exec: ExecAction | None = None
    grpc: dict[str, Any] | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class Container(ApiStruct):
    """One program of a pod."""

    name: str
    image: str = ""
    command: list[str] = []
    args: list[str] = []
    working_dir: str = ""
    env: list[EnvVar] = []
    env_from: list[dict[str, Any]] = []
    ports: list[ContainerPort] = []
    resources: ResourceRequirements = msgspec.field(default_factory=ResourceRequirements)
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: dict[str, Any] | None = None
    restart_policy: str = ""
    volume_mounts: list[dict[str, Any]] = []


class SchedulingGate(ApiStruct):
    """While a pod has one, no scheduler looks at it."""

    name: str


class Toleration(ApiStruct):
    """Lets a pod onto nodes with a matching taint."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class PodSpec(ApiStruct):
    """What to run, and where it may run."""

    containers: list[Container] = []
    init_containers: list[Container] = []
    node_name: str = ""
    scheduler_name: str = ""
    scheduling_gates: list[SchedulingGate] = []
    restart_policy: str = "Always"
    termination_grace_period_seconds: int | None = None
    node_selector: dict[str, str] = {}
    affinity: dict[str, Any] | None = None
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[dict[str, Any]] = []
    priority_class_name: str = ""
    priority: int | None = None
    preemption_policy: str = ""
    overhead: dict[str, str | int | float] = {}
    hostname: str = ""
    subdomain: str = ""
    host_network: bool = False
    service_account_name: str = ""
    volumes: list[dict[str, Any]] = []
    resource_claims: list[dict[str, Any]] = []
    scheduling_group: dict[str, str] = {}
    """Names the pod's upstream PodGroup: ``podGroupName``."""
    workload_ref: dict[str, str] = {}
    """Names a Workload and its group: ``name``, ``podGroup``, ``podGroupReplicaKey``."""


class ContainerStateWaiting(ApiStruct):
    """Not started yet, and why."""

    reason: str = ""
    message: str = ""


class ContainerStateRunning(ApiStruct):
    """Running, since when."""

    started_at: str | None = None


class ContainerStateTerminated(ApiStruct):
    """Ended, and how."""

    exit_code: int
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    container_id: str = msgspec.field(default="", name="containerID")


class ContainerState(ApiStruct):
    """One of waiting, running, terminated."""

    waiting: ContainerStateWaiting | None = None
    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(ApiStruct):
    """How one container of a pod is."""

    name: str
    ready: bool
    restart_count: int
    image: str
    image_id: str = msgspec.field(name="imageID")
    state: ContainerState = msgspec.field(default_factory=ContainerState)
    last_state: ContainerState = msgspec.field(default_factory=ContainerState)
    container_id: str = msgspec.field(default="", name="containerID")
    started: bool | None = None


class PodIP(ApiStruct):
    """An address of a pod."""

    ip: str = ""


class PodStatus(ApiStruct):
    """How a pod is, as its node reports it."""

    phase: str = ""
    conditions: list[Condition] = []
    message: str = ""
    reason: str = ""
    nominated_node_name: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: list[PodIP] = msgspec.field(default_factory=list, name="podIPs")
    start_time: str | None = None
    init_container_statuses: list[ContainerStatus] = []
    container_statuses: list[ContainerStatus] = []
    qos_class: str = ""
    resource_claim_statuses: list[dict[str, str]] = []


class Pod(KubeObject):
    """A group of containers on one node."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "Pod", "pods", short_names=("po",), categories=("all",)
    )
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class Taint(ApiStruct):
    """Keeps pods off a node unless they tolerate it."""

    key: str
    effect: str
    value: str = ""
    time_added: str | None = None


class NodeSpec(ApiStruct):
    """What an administrator says of a node."""

    unschedulable: bool = False
    taints: list[Taint] = []
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    provider_id: str = msgspec.field(default="", name="providerID")


class NodeAddress(ApiStruct):
    """How to reach a node."""

    type: str
    address: str


class NodeStatus(ApiStruct):
    """What a node has and how it is."""

    capacity: dict[str, str | int | float] = {}
    allocatable: dict[str, str | int | float] = {}
    conditions: list[dict[str, Any]] = []
    addresses: list[NodeAddress] = []
    node_info: dict[str, Any] = {}
    phase: str = ""


class Node(KubeObject):
    """A machine that runs pods."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "Node", "nodes", namespaced=False, short_names=("no",)
    )
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class ServicePort(ApiStruct):
    """A port of a service."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: IntOrString | None = None
    node_port: int | None = None


class ServiceSpec(ApiStruct):
    """Which pods a service stands for."""

    selector: dict[str, str] = {}
    ports: list[ServicePort] = []
    type: str = ""
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    publish_not_ready_addresses: bool = False


class Service(KubeObject):
    """A name for a set of pods."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "Service", "services", short_names=("svc",), categories=("all",)
    )
    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)


class Namespace(KubeObject):
    """A space of names."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "Namespace", "namespaces", namespaced=False, short_names=("ns",)
    )
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class ConfigMap(KubeObject):
    """Strings by key."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "ConfigMap", "configmaps", short_names=("cm",)
    )
    data: dict[str, str] = {}
    binary_data: dict[str, str] = {}
    immutable: bool | None = None


class Secret(KubeObject):
    """Base64 strings by key."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Secret", "secrets")
    data: dict[str, str] = {}
    type: str = ""


class ServiceAccount(KubeObject):
    """An identity for pods."""

    RESOURCE: ClassVar[Resource] = Resource(
        "", "v1", "ServiceAccount", "serviceaccounts", short_names=("sa",)
    )


class Role(KubeObject):
    """What its holders may do in its namespace."""

    RESOURCE: ClassVar[Resource] = Resource("rbac.authorization.k8s.io", "v1", "Role", "roles")
    rules: list[dict[str, Any]] = []


class RoleBinding(KubeObject):
    """Who holds a role."""

    RESOURCE: ClassVar[Resource] = Resource(
        "rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"
    )
    subjects: list[dict[str, Any]] = []
    role_ref: dict[str, Any] = {}


class ObjectReference(ApiStruct):
    """Names another object."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""


class EventSource(ApiStruct):
    """Which component reported an event."""

    component: str = ""
    host: str = ""


class Event(KubeObject):
    """Something that happened to an object."""

    RESOURCE: ClassVar[Resource] = Resource("", "v1", "Event", "events", short_names=("ev",))
    involved_object: ObjectReference = msgspec.field(default_factory=ObjectReference)
    reason: str = ""
    message: str = ""
    type: str = ""
    """``Normal`` or ``Warning``."""
    count: int = 0
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    event_time: str | None = None
    source: EventSource = msgspec.field(default_factory=EventSource)
    reporting_component: str = ""
    reporting_instance: str = ""


class LeaseSpec(ApiStruct):
    """Who holds a lease, since when and for how long."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0


class Lease(KubeObject):
    """A lock with an owner and a term: leader election and node heartbeats."""

    RESOURCE: ClassVar[Resource] = Resource("coordination.k8s.io", "v1", "Lease", "leases")
    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)


class PriorityClass(KubeObject):
    """A named priority."""

    RESOURCE: ClassVar[Resource] = Resource(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        namespaced=False,
        short_names=("pc",),
    )
    value: int = 0
    global_default: bool = False
    description: str = ""
    preemption_policy: str = ""


class HorizontalPodAutoscaler(KubeObject):
    """Scales a target by metrics; Spinney writes it and leaves acting on it to the cluster."""

    RESOURCE: ClassVar[Resource] = Resource(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        short_names=("hpa",),
        categories=("all",),
    )
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class ControllerRevision(KubeObject):
    """An immutable copy of what a controller once rolled out."""

    RESOURCE: ClassVar[Resource] = Resource(
        "apps", "v1", "ControllerRevision", "controllerrevisions"
    )
    data: dict[str, Any] = {}
    revision: int = 0


class CustomResourceDefinition(KubeObject):
    """Teaches the API a new kind."""

    RESOURCE: ClassVar[Resource] = Resource(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        namespaced=False,
        short_names=("crd", "crds"),
    )
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class ScaleSpec(ApiStruct):
    """How many are wanted."""

    replicas: int


class ScaleStatus(ApiStruct):
    """How many there are, and which they are."""

    replicas: int
    selector: str = ""


class Scale(ApiStruct, kw_only=True):
    """The scale subresource of any kind that has one."""

    metadata: dict[str, Any] = {}
    spec: ScaleSpec
    status: ScaleStatus | None = None
    api_version: str = "autoscaling/v1"
    kind: str = "Scale"
