"""A cluster and its gangs, written by hand: the format of scheduling tables and of what-ifs.

A scenario names nodes, topology levels, gangs with their tree and single pods in a few lines, and
becomes the same API objects that a real cluster would report, in a `Cache`. Pods are named
``<gang>-<group>-<number>``; what is older comes first in the document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.core import Node, Pod, PriorityClass
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
from spinney.api.quantity import parse_quantity
from spinney.api.queue import (
    PREEMPTIBILITY,
    QUEUE,
    Queue,
    QueueResource,
    QueueResources,
    QueueSpec,
)
from spinney.errors import BadInputError
from spinney.scheduler.cache import Cache

if TYPE_CHECKING:
    from collections.abc import Iterator

GPU = "nvidia.com/gpu"
NAMESPACE = "default"

Amount = str | int | float


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class NodeLine(_Part):
    """One node, or several alike."""

    name: str
    count: int = 1
    """With more than one, they are named ``<name>-0``, ``<name>-1``, ..."""
    gpus: int = 0
    cpu: Amount = 64
    memory: Amount = "512Gi"
    pods: int = 110
    labels: dict[str, str] = {}
    allocatable: dict[str, Amount] = {}
    """Further resources."""
    spec: dict[str, Any] = {}
    ready: bool = True


class PodsLine(_Part):
    """Pods of one template."""

    name: str
    pods: int = 1
    """How many there are to place, beside those on nodes."""
    gpus: int = 0
    cpu: Amount = 0
    memory: Amount = 0
    requests: dict[str, Amount] = {}
    """Further resources."""
    sizes: list[int] = []
    """GPUs of each pod to place, where they differ; then ``pods`` and ``gpus`` are not used."""
    on: list[str] = []
    """The nodes of pods that run already."""
    leaving: list[str] = []
    """The nodes of pods that are being deleted."""
    gated: int = 0
    absent: int = 0
    """Pods that the gang lists and that do not exist yet."""
    labels: dict[str, str] = {}
    spec: dict[str, Any] = {}
    priority: int | None = None
    scheduler: str = names.SPINNEY_SCHEDULER

    minimum: int | None = None
    """In a gang: how many it needs; all that the gang lists unless given."""
    required: str | None = None
    preferred: str | None = None
    within: str = ""
    """In a gang: the constraint group it is in."""


class ConstraintLine(_Part):
    """A constraint over several groups of a gang."""

    name: str
    required: str | None = None
    preferred: str | None = None


class GangLine(_Part):
    """A gang with its groups."""

    name: str
    groups: list[PodsLine]
    priority: int = 0
    required: str | None = None
    preferred: str | None = None
    constraints: list[ConstraintLine] = []
    base: str = ""
    """The gang it was scaled out from."""
    queue: str = ""
    preemptible: bool | None = None
    """Whatever its priority."""
    started: str = ""
    """When its pods came to their nodes; their creation unless given."""


class ShareLine(_Part, frozen=True):
    """A queue's part of one resource, in GPUs, cores or bytes; -1 is unlimited."""

    quota: Amount = -1
    limit: Amount = -1
    weight: float = 1


class QueueLine(_Part):
    """A queue; what it does not say is not restricted."""

    name: str
    parent: str = ""
    priority: int = 100
    gpus: ShareLine = ShareLine()
    cpu: ShareLine = ShareLine()
    memory: ShareLine = ShareLine()
    preempt_min_runtime: str | None = None
    reclaim_min_runtime: str | None = None


class Scenario(_Part):
    """All that a scheduling cycle looks at."""

    nodes: list[NodeLine] = []
    levels: list[str] = []
    """Label keys from broad to narrow."""
    queues: list[QueueLine] = []
    gangs: list[GangLine] = []
    pods: list[PodsLine] = []


def scenario(document: dict[str, Any]) -> Scenario:
    """Return the scenario that *document* describes; raise BadInputError naming the field."""
    try:
        return msgspec.convert(document, Scenario)
    except msgspec.ValidationError as error:
        raise BadInputError(f"scenario: {error}") from error


def fill(found: Scenario, cache: Cache | None = None) -> Cache:
    """Put all of the scenario into *cache*, or into a new one, and return it."""
    cache = cache or Cache()
    if found.levels:
        cache.set_topology(_topology(found.levels))
    for node in nodes(found):
        cache.set_node(node)
    for at, queue in enumerate(found.queues):
        cache.set_queue(queue_object(queue, at))
    for at, gang in enumerate(found.gangs):
        if gang.priority:
            value = PriorityClass(
                metadata=ObjectMeta(name=f"p{gang.priority}"), value=gang.priority
            )
            cache.set_priority_class(value)
        cache.set_gang(podgang(gang, at))
        for group in gang.groups:
            for pod in pods(group, at, gang):
                cache.set_pod(pod)
    for at, line in enumerate(found.pods):
        for pod in pods(line, len(found.gangs) + at):
            cache.set_pod(pod)
    return cache


def _topology(levels: list[str]) -> ClusterTopologyBinding:
    named = [TopologyLevel(domain="rack", key=key) for key in levels]
    return ClusterTopologyBinding(
        metadata=ObjectMeta(name="cluster"), spec=ClusterTopologyBindingSpec(levels=named)
    )


def nodes(found: Scenario) -> Iterator[Node]:
    """Yield the nodes as API objects."""
    for line in found.nodes:
        allocatable = {"cpu": line.cpu, "memory": line.memory, "pods": line.pods}
        allocatable |= {GPU: line.gpus} if line.gpus else {}
        for at in range(line.count):
            name = line.name if line.count == 1 else f"{line.name}-{at}"
            yield msgspec.convert(
                {
                    "metadata": {
                        "name": name,
                        "labels": {"kubernetes.io/hostname": name, **line.labels},
                    },
                    "spec": line.spec,
                    "status": {
                        "allocatable": {**allocatable, **line.allocatable},
                        "conditions": [{"type": "Ready", "status": str(line.ready)}],
                    },
                },
                Node,
            )


def podgang(line: GangLine, age: int = 0) -> PodGang:
    """Return the gang as an API object; a larger *age* means younger."""
    configs = [
        TopologyConstraintGroupConfig(
            name=found.name,
            pod_group_names=[g.name for g in line.groups if g.within == found.name],
            topology_constraint=_constraint(found.required, found.preferred),
        )
        for found in line.constraints
    ]
    return PodGang(
        metadata=ObjectMeta(
            name=line.name,
            namespace=NAMESPACE,
            labels=_gang_labels(line),
            creation_timestamp=_created(age),
            uid=line.name,
        ),
        spec=PodGangSpec(
            pod_groups=[_group(line, group) for group in line.groups],
            topology_constraint=_constraint(line.required, line.preferred),
            topology_constraint_group_configs=configs,
            priority_class_name=f"p{line.priority}" if line.priority else "",
        ),
    )


def queue_object(line: QueueLine, age: int = 0) -> Queue:
    """Return the queue as an API object; a larger *age* means younger."""

    def part(share: ShareLine, unit: float) -> QueueResource:
        quota, limit = (float(parse_quantity(v)) for v in (share.quota, share.limit))
        return QueueResource(
            quota if quota < 0 else quota * unit,
            share.weight,
            limit if limit < 0 else limit * unit,
        )

    return Queue(
        metadata=ObjectMeta(name=line.name, creation_timestamp=_created(age)),
        spec=QueueSpec(
            parent_queue=line.parent,
            priority=line.priority,
            preempt_min_runtime=line.preempt_min_runtime,
            reclaim_min_runtime=line.reclaim_min_runtime,
            resources=QueueResources(
                part(line.gpus, 1), part(line.cpu, 1000), part(line.memory, 1e-6)
            ),
        ),
    )


def _gang_labels(line: GangLine) -> dict[str, str]:
    labels = {QUEUE: line.queue} if line.queue else {}
    if line.preemptible is not None:
        labels[PREEMPTIBILITY] = "preemptible" if line.preemptible else "non-preemptible"
    return labels


def _group(gang: GangLine, line: PodsLine) -> GangPodGroup:
    listed = [
        *_names(line, gang),
        *(f"{gang.name}-{line.name}-absent{n}" for n in range(line.absent)),
    ]
    minimum = len(listed) - len(line.leaving) if line.minimum is None else line.minimum
    return GangPodGroup(
        name=line.name,
        pod_references=[NamespacedName(namespace=NAMESPACE, name=name) for name in listed],
        min_replicas=minimum,
        topology_constraint=_constraint(line.required, line.preferred),
    )


def _constraint(required: str | None, preferred: str | None) -> GangTopologyConstraint | None:
    if not required and not preferred:
        return None
    return GangTopologyConstraint(
        pack_constraint=GangPackConstraint(required=required, preferred=preferred)
    )


def _names(line: PodsLine, gang: GangLine | None) -> list[str]:
    prefix = f"{gang.name}-{line.name}" if gang else line.name
    total = (len(line.sizes) or line.pods) + line.gated + len(line.on) + len(line.leaving)
    return [prefix] if gang is None and total == 1 else [f"{prefix}-{n}" for n in range(total)]


def pods(line: PodsLine, age: int = 0, gang: GangLine | None = None) -> Iterator[Pod]:
    """Yield the pods as API objects: to place, gated, running, leaving, in this order."""
    waiting = len(line.sizes) or line.pods
    placed = [""] * (waiting + line.gated) + line.on + line.leaving
    for number, (name, node) in enumerate(zip(_names(line, gang), placed, strict=True)):
        gpus = line.sizes[number] if number < len(line.sizes) else line.gpus
        raw = _pod(line, name, gpus, gang, age)
        if node:
            raw["spec"]["nodeName"] = node
            if gang is not None and gang.started:
                raw["status"]["startTime"] = gang.started
        elif number >= waiting:
            raw["spec"]["schedulingGates"] = [{"name": names.POD_GANG_GATE}]
        if number >= waiting + line.gated + len(line.on):
            raw["metadata"]["deletionTimestamp"] = _created(age)
        yield msgspec.convert(raw, Pod)


def _pod(line: PodsLine, name: str, gpus: int, gang: GangLine | None, age: int) -> dict[str, Any]:
    requests: dict[str, Amount] = {"cpu": line.cpu, "memory": line.memory, GPU: gpus}
    requests = {key: value for key, value in requests.items() if value} | line.requests
    labels = dict(line.labels)
    if gang is not None:
        labels[names.POD_GANG] = gang.name
        labels |= {names.BASE_POD_GANG: gang.base} if gang.base else {}
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": name,
            "labels": labels,
            "creationTimestamp": _created(age),
        },
        "spec": {
            "schedulerName": line.scheduler,
            "containers": [{"name": "main", "resources": {"requests": requests}}],
            **({"priority": line.priority} if line.priority is not None else {}),
            **line.spec,
        },
        "status": {},
    }


def _created(age: int) -> str:
    return f"2026-01-01T{age // 3600:02d}:{age // 60 % 60:02d}:{age % 60:02d}Z"
