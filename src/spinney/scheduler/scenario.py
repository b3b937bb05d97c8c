"""A cluster and its gangs, written by hand: where tables, snapshots and what-ifs start from.

The lines of a `spinney.scheduler.snapshot_format.Scenario` become the same API objects that a real
cluster would report, in a `Cache`. Pods are named ``<gang>-<group>-<number>``; what is older comes
first in the document. A gang of at most three levels without minimums of inner groups is a
PodGang; any other tree is a PodGroup with sub-groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from spinney.api import names
from spinney.api.core import Node, Pod, PriorityClass
from spinney.api.devices import (
    CLAIMED,
    DeviceClass,
    ResourceClaim,
    ResourceClaimSpec,
    ResourceClaimStatus,
    ResourceSlice,
)
from spinney.api.grove import ClusterTopologyBinding, ClusterTopologyBindingSpec, TopologyLevel
from spinney.api.meta import ObjectMeta
from spinney.api.podgang import (
    GangPackConstraint,
    GangPodGroup,
    GangTopologyConstraint,
    NamespacedName,
    PodGang,
    PodGangSpec,
    TopologyConstraintGroupConfig,
)
from spinney.api.podgroup import (
    POD_GROUP_NAME,
    SUB_GROUP,
    GroupTopology,
    MinMemberGroup,
    PodGroup,
    PodGroupSpec,
    SubGroup,
    UpstreamPodGroup,
    Workload,
)
from spinney.api.policy import PodDisruptionBudget, PodDisruptionBudgetSpec
from spinney.api.quantity import parse_quantity
from spinney.api.queue import PREEMPTIBILITY, QUEUE, Queue, QueueResource, QueueResources, QueueSpec
from spinney.api.storage import (
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeClaimSpec,
    PersistentVolumeSpec,
)
from spinney.errors import BadInputError
from spinney.scheduler.cache import Cache
from spinney.scheduler.claims import ClaimBook, resource_claims
from spinney.scheduler.shapes import GPU_DEVICES, GPU_FRACTION, GPU_GROUP
from spinney.scheduler.shapes import GPU_MEMORY as GPU_MEMORY_SHARE
from spinney.scheduler.snapshot_format import (
    BudgetLine,
    ClaimLine,
    GangLine,
    PodLine,
    PodsLine,
    QueueLine,
    Scenario,
    ShareLine,
    TopologyLine,
    VolumeLine,
    numbered,
    scenario,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from spinney.api.leaderworkerset import LeaderWorkerSet
    from spinney.scheduler.snapshot_format import Amount, NodeLine

__all__ = ["NAMESPACE", "Objects", "fill", "nodes", "objects", "podgang", "pods", "scenario"]

T = TypeVar("T", Node, Pod)

GPU = "nvidia.com/gpu"
GPU_MEMORY = "nvidia.com/gpu.memory"
NAMESPACE = names.DEFAULT_NAMESPACE
TOPOLOGY = "cluster"


@dataclass(frozen=True, slots=True)
class Objects:
    """The API objects that a scenario stands for."""

    topologies: list[ClusterTopologyBinding] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    classes: list[PriorityClass] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    gangs: list[PodGang] = field(default_factory=list)
    groups: list[PodGroup] = field(default_factory=list)
    upstream: list[UpstreamPodGroup] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    min_member: list[MinMemberGroup] = field(default_factory=list)
    leader_worker_sets: list[LeaderWorkerSet] = field(default_factory=list)
    budgets: list[PodDisruptionBudget] = field(default_factory=list)
    volumes: list[PersistentVolume] = field(default_factory=list)
    volume_claims: list[PersistentVolumeClaim] = field(default_factory=list)
    device_classes: list[DeviceClass] = field(default_factory=list)
    slices: list[ResourceSlice] = field(default_factory=list)
    claims: list[ResourceClaim] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)

    def put_into(self, cache: Cache) -> None:
        """Tell *cache* of all of them."""
        for topology in self.topologies:
            cache.set_topology(topology)
        for node in self.nodes:
            cache.set_node(node)
        for found in self.classes:
            cache.set_priority_class(found)
        for queue in self.queues:
            cache.set_queue(queue)
        for gang in self.gangs:
            cache.set_gang(gang)
        for group in self.groups:
            cache.set_podgroup(group)
        for upstream in self.upstream:
            cache.set_upstream_group(upstream)
        for workload in self.workloads:
            cache.set_workload(workload)
        for named in self.min_member:
            cache.set_min_member_group(named)
        for leading in self.leader_worker_sets:
            cache.set_leader_worker_set(leading)
        for budget in self.budgets:
            cache.set_budget(budget)
        self._put_claims(cache)
        for pod in self.pods:
            cache.set_pod(pod)

    def claim_book(self) -> ClaimBook:
        """Return what volumes and claims say, without a cache."""
        book = ClaimBook()
        for volume in self.volumes:
            book.set_volume(volume)
        for bound in self.volume_claims:
            book.set_volume_claim(bound)
        for found in self.device_classes:
            book.set_device_class(found)
        for offered in self.slices:
            book.set_slice(offered)
        for claim in self.claims:
            book.set_resource_claim(claim)
        return book

    def _put_claims(self, cache: Cache) -> None:
        for volume in self.volumes:
            cache.set_volume(volume)
        for bound in self.volume_claims:
            cache.set_volume_claim(bound)
        for found in self.device_classes:
            cache.set_device_class(found)
        for offered in self.slices:
            cache.set_resource_slice(offered)
        for claim in self.claims:
            cache.set_resource_claim(claim)


def objects(found: Scenario) -> Objects:
    """Return all of *found* as API objects."""
    result = Objects(
        topologies=_topologies(found),
        nodes=list(nodes(found)),
        classes=list(_classes(found)),
        queues=[queue_object(queue, at) for at, queue in enumerate(found.queues)],
        budgets=[_budget(line) for line in found.budgets],
        volumes=[_volume(line) for line in found.volumes],
        volume_claims=[_volume_claim(line) for line in found.volumes],
    )
    for at, gang in enumerate(found.gangs):
        if is_podgang(gang):
            result.gangs.append(podgang(gang, at))
        else:
            result.groups.append(podgroup(gang, at))
        for path, leaf in leaves(gang.groups):
            result.pods.extend(pods(leaf, at, gang, path))
    for at, line in enumerate(found.pods):
        result.pods.extend(pods(line, len(found.gangs) + at))
    result.claims.extend(_claim(line) for line in found.claims)
    result.claims[:] = allocated(result.claims, result.pods)
    return result


def allocated(claims: Iterable[ResourceClaim], pods: Iterable[Pod]) -> list[ResourceClaim]:
    """Return *claims* as they are with *pods* on their nodes: allocated where a pod uses them."""
    users: dict[str, list[Pod]] = {}
    for pod in sorted(pods, key=lambda pod: pod.key):
        if pod.spec.node_name and pod.status.phase not in ("Succeeded", "Failed"):
            for key in resource_claims(pod):
                users.setdefault(key, []).append(pod)
    return [_with_users(claim, users.get(claim.key, [])) for claim in claims]


def _with_users(claim: ResourceClaim, users: list[Pod]) -> ResourceClaim:
    if not users:
        return msgspec.structs.replace(claim, status=ResourceClaimStatus())
    where = {"key": "metadata.name", "operator": "In", "values": [users[0].spec.node_name]}
    selector = {"nodeSelectorTerms": [{"matchFields": [where]}]}
    reserved = [{"resource": "pods", "name": pod.name, "uid": pod.metadata.uid} for pod in users]
    status = ResourceClaimStatus(allocation={"nodeSelector": selector}, reserved_for=reserved)
    return msgspec.structs.replace(claim, status=status)


def _claim(line: ClaimLine) -> ResourceClaim:
    requests = [
        {"name": f"r{at}", "exactly": {"deviceClassName": name, "count": count}}
        for at, (name, count) in enumerate(line.devices.items())
    ]
    return ResourceClaim(
        metadata=ObjectMeta(name=line.name, namespace=line.namespace),
        spec=ResourceClaimSpec(devices={"requests": requests}),
    )


def fill(found: Scenario, cache: Cache | None = None) -> Cache:
    """Put all of the scenario into *cache*, or into a new one, and return it."""
    cache = cache or Cache()
    objects(found).put_into(cache)
    return cache


def _topologies(found: Scenario) -> list[ClusterTopologyBinding]:
    lines = [*found.topologies]
    lines += [TopologyLine(name=TOPOLOGY, levels=found.levels)] if found.levels else []
    return [
        ClusterTopologyBinding(
            metadata=ObjectMeta(name=line.name),
            spec=ClusterTopologyBindingSpec(
                levels=[
                    TopologyLevel(domain=domain, key=key)
                    for domain, key in zip(
                        line.domains or map(domain_of, line.levels), line.levels, strict=True
                    )
                ]
            ),
        )
        for line in lines
    ]


def domain_of(key: str) -> str:
    """Return what a manifest calls the level of a node label key, unless a topology says it."""
    last = key.rpartition("/")[2]
    return "host" if last == "hostname" else last


def _classes(found: Scenario) -> Iterator[PriorityClass]:
    for line in found.priority_classes:
        yield PriorityClass(
            metadata=ObjectMeta(name=line.name),
            value=line.value,
            global_default=line.global_default,
        )
    for value in sorted({gang.priority for gang in found.gangs} - {0}):
        yield PriorityClass(metadata=ObjectMeta(name=f"p{value}"), value=value)


# Nodes


def nodes(found: Scenario) -> Iterator[Node]:
    """Yield the nodes as API objects."""
    for line in found.nodes:
        for name in numbered(line):
            yield _converted(f"node {name}", _node(line, name), Node)


def _node(line: NodeLine, name: str) -> dict[str, Any]:
    allocatable = {"cpu": line.cpu, "memory": line.memory, "pods": line.pods}
    allocatable |= {GPU: line.gpus} if line.gpus else {}
    allocatable |= {CLAIMED + name: count for name, count in line.devices.items()}
    labels = {"kubernetes.io/hostname": name, **line.labels}
    labels |= {GPU_MEMORY: str(line.gpu_memory)} if line.gpu_memory else {}
    spec: dict[str, Any] = {"unschedulable": line.unschedulable}
    if line.taints:
        spec["taints"] = [{"key": t.key, "value": t.value, "effect": t.effect} for t in line.taints]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": spec | line.spec,
        "status": {
            "allocatable": {**allocatable, **line.allocatable},
            "conditions": [{"type": "Ready", "status": str(line.ready)}],
        },
    }


def _volume(line: VolumeLine) -> PersistentVolume:
    labels = [
        {"key": key, "operator": "In", "values": [value]} for key, value in line.labels.items()
    ]
    fields = [{"key": "metadata.name", "operator": "In", "values": [n]} for n in line.nodes]
    terms: list[dict[str, Any]] = [
        {"matchFields": [field], "matchExpressions": labels} for field in fields
    ]
    terms = terms or ([{"matchExpressions": labels}] if labels else [])
    affinity = {"required": {"nodeSelectorTerms": terms}} if terms else {}
    return PersistentVolume(
        metadata=ObjectMeta(name=f"{line.namespace}-{line.name}"),
        spec=PersistentVolumeSpec(node_affinity=affinity),
    )


def _volume_claim(line: VolumeLine) -> PersistentVolumeClaim:
    return PersistentVolumeClaim(
        metadata=ObjectMeta(name=line.name, namespace=line.namespace),
        spec=PersistentVolumeClaimSpec(volume_name=f"{line.namespace}-{line.name}"),
    )


def _budget(line: BudgetLine) -> PodDisruptionBudget:
    return PodDisruptionBudget(
        metadata=ObjectMeta(name=line.name, namespace=line.namespace),
        spec=PodDisruptionBudgetSpec(
            selector={"matchLabels": dict(line.labels)},
            min_available=line.min_available,
            max_unavailable=line.max_unavailable,
        ),
    )


# Gangs


def leaves(groups: Iterable[PodsLine], above: str = "") -> Iterator[tuple[str, PodsLine]]:
    """Yield the groups that hold pods, each with its path in the tree: ``replica-0-prefill``."""
    for line in groups:
        path = f"{above}-{line.name}" if above else line.name
        if line.groups:
            yield from leaves(line.groups, path)
        else:
            yield path, line


def is_podgang(line: GangLine) -> bool:
    """Tell whether a PodGang can say what *line* says."""
    inner = [group for group in line.groups if group.groups]
    if line.minimum is not None or any(g.minimum is not None for g in inner):
        return False
    return not any(below.groups for group in inner for below in group.groups)


def podgang(line: GangLine, age: int = 0) -> PodGang:
    """Return the gang as an API object; a larger *age* means younger."""
    configs = [
        _config(found.name, found, [g.name for g in line.groups if g.within == found.name])
        for found in line.constraints
    ]
    configs += [
        _config(group.name, group, [path for path, _ in leaves([group])])
        for group in line.groups
        if group.groups
    ]
    return PodGang(
        metadata=_gang_metadata(line, age),
        spec=PodGangSpec(
            pod_groups=[_group(line, path, leaf) for path, leaf in leaves(line.groups)],
            topology_constraint=_constraint(line.required, line.preferred),
            topology_constraint_group_configs=configs,
            priority_class_name=_priority_class(line),
        ),
    )


def _gang_metadata(line: GangLine, age: int) -> ObjectMeta:
    annotations = {names.TOPOLOGY_NAME: line.topology} if line.topology else {}
    return ObjectMeta(
        name=line.name,
        namespace=line.namespace,
        labels=_queue_labels(line),
        annotations=annotations | line.annotations,
        creation_timestamp=line.created or created(age),
        uid=line.name,
    )


def _priority_class(line: GangLine) -> str:
    return line.priority_class or (f"p{line.priority}" if line.priority else "")


def _queue_labels(line: GangLine | PodsLine) -> dict[str, str]:
    labels = {QUEUE: line.queue} if line.queue else {}
    if line.preemptible is not None:
        labels[PREEMPTIBILITY] = "preemptible" if line.preemptible else "non-preemptible"
    return labels


def _config(name: str, found: Any, members: list[str]) -> TopologyConstraintGroupConfig:
    return TopologyConstraintGroupConfig(
        name=name,
        pod_group_names=members,
        topology_constraint=_constraint(found.required, found.preferred),
    )


def _group(gang: GangLine, path: str, line: PodsLine) -> GangPodGroup:
    listed = _listed(line, f"{gang.name}-{path}")
    return GangPodGroup(
        name=path,
        pod_references=[NamespacedName(namespace=gang.namespace, name=name) for name in listed],
        min_replicas=_minimum(line),
        topology_constraint=_constraint(line.required, line.preferred),
    )


def _constraint(required: str | None, preferred: str | None) -> GangTopologyConstraint | None:
    if not required and not preferred:
        return None
    return GangTopologyConstraint(
        pack_constraint=GangPackConstraint(required=required, preferred=preferred)
    )


def podgroup(line: GangLine, age: int = 0) -> PodGroup:
    """Return a gang of any depth as an API object; a larger *age* means younger."""
    return PodGroup(
        metadata=_gang_metadata(line, age),
        spec=PodGroupSpec(
            min_sub_group=line.minimum,
            queue=line.queue,
            priority_class_name=_priority_class(line),
            topology_constraint=_levels(line, line.topology),
            sub_groups=list(_sub_groups(line.groups)),
        ),
    )


def _sub_groups(groups: Iterable[PodsLine], above: str = "") -> Iterator[SubGroup]:
    for line in groups:
        path = f"{above}-{line.name}" if above else line.name
        yield SubGroup(
            name=path,
            parent=above or None,
            min_member=None if line.groups else _minimum(line),
            min_sub_group=line.minimum if line.groups else None,
            topology_constraint=_levels(line),
        )
        yield from _sub_groups(line.groups, path)


def _levels(line: GangLine | PodsLine, topology: str = "") -> GroupTopology | None:
    if not (line.required or line.preferred or topology):
        return None
    return GroupTopology(
        topology=topology,
        required_topology_level=line.required or "",
        preferred_topology_level=line.preferred or "",
    )


# Pods


def _lines(line: PodsLine) -> list[PodLine]:
    """Return the pods of a group, each on its own: to place, gated, running, leaving."""
    if isinstance(line.pods, list):
        return line.pods
    waiting = [PodLine(gpus=size) for size in line.sizes] or [PodLine()] * line.pods
    return [
        *waiting,
        *[PodLine(state="gated")] * line.gated,
        *(PodLine(state="running", node=node) for node in line.on),
        *(PodLine(state="leaving", node=node) for node in line.leaving),
    ]


def _listed(line: PodsLine, prefix: str) -> list[str]:
    """Return the names of all pods of a group of a gang, absent ones included."""
    found = [pod.name or f"{prefix}-{at}" for at, pod in enumerate(_lines(line))]
    return [*found, *(f"{prefix}-absent{at}" for at in range(line.absent))]


def _minimum(line: PodsLine) -> int:
    if line.minimum is not None:
        return line.minimum
    gone = ("leaving", "succeeded", "failed")
    return sum(pod.state not in gone for pod in _lines(line)) + line.absent


def pods(
    line: PodsLine, age: int = 0, gang: GangLine | None = None, path: str = ""
) -> Iterator[Pod]:
    """Yield the pods of *line*, at *path* in the tree of *gang*, as API objects."""
    prefix = f"{gang.name}-{path or line.name}" if gang else line.name
    found = _lines(line)
    alone = gang is None and len(found) == 1
    for number, pod in enumerate(found):
        if pod.state != "absent":
            name = pod.name or (prefix if alone else f"{prefix}-{number}")
            raw = _pod(line, pod, name, gang, path or line.name, age)
            yield _converted(f"pod {name}", raw, Pod)


def _pod(
    line: PodsLine, pod: PodLine, name: str, gang: GangLine | None, path: str, age: int
) -> dict[str, Any]:
    born = pod.created or (gang.created if gang else line.created) or created(age)
    labels, annotations = _marks(line, pod, gang, path)
    metadata = {
        "name": name,
        "namespace": gang.namespace if gang else line.namespace,
        "uid": name,
        "labels": labels,
        "annotations": annotations,
        "creationTimestamp": born,
    }
    if pod.state == "leaving":
        metadata["deletionTimestamp"] = born
    status: dict[str, Any] = {}
    if pod.state in ("succeeded", "failed"):
        status["phase"] = pod.state.capitalize()
    started = pod.started or (gang.started if gang else "")
    if pod.node and started:
        status["startTime"] = started
    if pod.nominated:
        status["nominatedNodeName"] = pod.nominated
    return {"metadata": metadata, "spec": _pod_spec(line, pod), "status": status}


def _pod_spec(line: PodsLine, pod: PodLine) -> dict[str, Any]:
    priority = line.priority if pod.priority is None else pod.priority
    container: dict[str, Any] = {"name": "main", "resources": {"requests": _requests(line, pod)}}
    ports = line.host_ports if pod.host_ports is None else pod.host_ports
    if ports:
        container["ports"] = [_host_port(port) for port in ports]
    spec: dict[str, Any] = {"schedulerName": line.scheduler, "containers": [container]}
    if priority is not None:
        spec["priority"] = priority
    if line.priority_class:
        spec["priorityClassName"] = line.priority_class
    if pod.node:
        spec["nodeName"] = pod.node
    if pod.state == "gated":
        spec["schedulingGates"] = [{"name": names.POD_GANG_GATE}]
    mounted = line.volumes if pod.volumes is None else pod.volumes
    if mounted:
        spec["volumes"] = [
            {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in mounted
        ]
    shared = line.shared_claims if pod.shared_claims is None else pod.shared_claims
    if shared:
        spec["resourceClaims"] = [{"name": name, "resourceClaimName": name} for name in shared]
    return {**spec, **line.spec, **pod.spec}


def _host_port(port: int | str) -> dict[str, Any]:
    number, _, protocol = str(port).partition("/")
    return {"containerPort": int(number), "hostPort": int(number), "protocol": protocol or "TCP"}


def _requests(line: PodsLine, pod: PodLine) -> dict[str, Amount]:
    found: dict[str, Amount] = {
        "cpu": line.cpu if pod.cpu is None else pod.cpu,
        "memory": line.memory if pod.memory is None else pod.memory,
        GPU: line.gpus if pod.gpus is None else pod.gpus,
    }
    further = dict(line.requests if pod.requests is None else pod.requests)
    claims = line.claims if pod.claims is None else pod.claims
    further |= {CLAIMED + name: count for name, count in claims.items()}
    return {key: value for key, value in found.items() if value} | further


def _marks(
    line: PodsLine, pod: PodLine, gang: GangLine | None, path: str
) -> tuple[dict[str, str], dict[str, str]]:
    labels = {**line.labels, **pod.labels}
    annotations = {**line.annotations, **pod.annotations, **_share(line, pod)}
    labels |= {f"{GPU_GROUP}/{at}": str(at) for at in pod.gpu_indices or ()}
    if gang is None:
        labels |= _queue_labels(line)
    elif is_podgang(gang):
        labels[names.POD_GANG] = gang.name
        labels |= {names.BASE_POD_GANG: gang.base} if gang.base else {}
    else:
        labels[SUB_GROUP] = path
        labels |= _queue_labels(gang)
        annotations[POD_GROUP_NAME] = gang.name
    return labels, annotations


def _share(line: PodsLine, pod: PodLine) -> dict[str, str]:
    fraction = line.gpu_fraction if pod.gpu_fraction is None else pod.gpu_fraction
    memory = line.gpu_memory if pod.gpu_memory is None else pod.gpu_memory
    devices = line.gpu_devices if pod.gpu_devices is None else pod.gpu_devices
    if not fraction and not memory:
        return {}
    several = {GPU_DEVICES: str(devices)} if devices != 1 else {}
    if memory:
        return {GPU_MEMORY_SHARE: str(memory), **several}
    return {GPU_FRACTION: f"{fraction:g}", **several}


# Queues


def queue_object(line: QueueLine, age: int = 0) -> Queue:
    """Return the queue as an API object; a larger *age* means younger."""

    def part(share: ShareLine, unit: float) -> QueueResource:
        quota, limit = (float(parse_quantity(v)) for v in (share.quota, share.limit))
        return QueueResource(
            quota=quota if quota < 0 else quota * unit,
            over_quota_weight=share.weight,
            limit=limit if limit < 0 else limit * unit,
        )

    return Queue(
        metadata=ObjectMeta(name=line.name, creation_timestamp=line.created or created(age)),
        spec=QueueSpec(
            parent_queue=line.parent,
            priority=line.priority,
            preempt_min_runtime=line.preempt_min_runtime,
            reclaim_min_runtime=line.reclaim_min_runtime,
            resources=QueueResources(
                gpu=part(line.gpus, 1),
                cpu=part(line.cpu, 1000),
                memory=part(line.memory, 1e-6),
            ),
        ),
    )


def _converted(what: str, raw: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BadInputError(f"{what}: {error}") from error


def created(age: int) -> str:
    """Return when the object at place *age* of its list came to be, a second after the last."""
    hours, minutes, seconds = age // 3600, age // 60 % 60, age % 60
    return f"2026-01-01T{hours:02d}:{minutes:02d}:{seconds:02d}Z"
