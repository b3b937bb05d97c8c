"""From a cluster's objects to a snapshot file: the reverse of `spinney.scheduler.scenario`.

What is written has the pods' own names and all that placing looks at, and nothing else: no
images, no environment, no secrets. Pods of other schedulers are kept where they are on nodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.devices import CLAIMED
from spinney.api.leaderworkerset import LEADER_READY
from spinney.api.podgroup import POD_GROUP_NAME, SUB_GROUP
from spinney.api.queue import PREEMPTIBILITY, QUEUE
from spinney.clock import rfc3339
from spinney.scheduler.claims import resource_claims, volume_claims
from spinney.scheduler.scenario import GPU, GPU_MEMORY, domain_of
from spinney.scheduler.shapes import PODS, amounts, requests_of
from spinney.scheduler.snapshot_format import (
    BudgetLine,
    ClaimLine,
    GangLine,
    NodeLine,
    PodLine,
    PodsLine,
    PriorityClassLine,
    QueueLine,
    Scenario,
    ShareLine,
    TaintLine,
    TopologyLine,
    VolumeLine,
)
from spinney.scheduler.sources.min_member import min_member_spec
from spinney.scheduler.sources.podgang import podgang_spec
from spinney.scheduler.sources.podgroup import podgroup_spec, upstream_spec, workload_groups
from spinney.scheduler.sources.pods import (
    leaders_first,
    membership,
    set_of_leaders,
    workload_of,
)
from spinney.scheduler.sources.spec import GangSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spinney.api.core import Node, Pod
    from spinney.api.queue import Queue, QueueResource
    from spinney.scheduler.claims import ClaimBook
    from spinney.scheduler.scenario import Objects
    from spinney.scheduler.snapshot_format import Amount, PodPhase
    from spinney.scheduler.sources.spec import GroupSpec

_HOSTNAME = "kubernetes.io/hostname"
_GANG_LABELS = (names.POD_GANG, names.BASE_POD_GANG, SUB_GROUP, QUEUE, PREEMPTIBILITY)
_SPEC_FIELDS = (
    "node_selector",
    "affinity",
    "tolerations",
    "topology_spread_constraints",
    "host_network",
)
_ANNOTATIONS = ("kai.scheduler/", "gpu-", "spinney.dev/gpu-", "leaderworkerset.sh/")
_PLAIN = ("cpu", "memory", GPU, PODS)


@dataclass(frozen=True, slots=True)
class _Claims:
    """What pods claim, and which of the claims several of them name."""

    book: ClaimBook
    shared: frozenset[str]


def scenario_of(found: Objects, now_s: float) -> Scenario:
    """Return the state of *found*, at *now_s*, as a snapshot file has it."""
    specs = gang_specs(found)
    book = found.claim_book()
    claims = _Claims(book, _shared_by_pods(found, book))
    members: dict[str, list[Pod]] = {}
    alone: list[Pod] = []
    for pod in found.pods:
        if not _matters(pod):
            continue
        gang = membership(pod).gang
        if gang in specs:
            members.setdefault(gang, []).append(pod)
        else:
            alone.append(pod)
    labels = {gang.key: gang.labels for gang in found.gangs}
    gangs = [
        _gang(spec, members.get(key, []), labels.get(key, {}), claims)
        for key, spec in sorted(specs.items(), key=lambda item: (item[1].created, item[0]))
    ]
    return Scenario(
        now=rfc3339(now_s),
        nodes=[_node(node, book) for node in sorted(found.nodes, key=lambda n: n.name)],
        volumes=list(_volumes(found, book)),
        budgets=list(_budgets(found)),
        claims=[_claim(key, book) for key in sorted(claims.shared)],
        topologies=[
            _topology(t.name, {level.key: level.domain for level in t.spec.levels})
            for t in found.topologies
        ],
        priority_classes=[
            PriorityClassLine(name=c.name, value=c.value, global_default=c.global_default)
            for c in found.classes
        ],
        queues=[_queue(queue) for queue in found.queues],
        gangs=gangs,
        pods=[_lone(pod, claims) for pod in sorted(alone, key=lambda p: p.key)],
    )


def gang_specs(found: Objects) -> dict[str, GangSpec]:
    """Return all gangs of *found* by key, whichever kind of object or label describes them."""
    specs = [podgang_spec(gang) for gang in found.gangs]
    specs += [podgroup_spec(group) for group in found.groups]
    specs += [upstream_spec(group) for group in found.upstream]
    specs += [min_member_spec(group) for group in found.min_member]
    result = {spec.key: spec for spec in specs}
    groups = {workload.key: workload_groups(workload) for workload in found.workloads}
    leading = {
        obj.key for obj in found.leader_worker_sets if obj.spec.startup_policy == LEADER_READY
    }
    for pod in found.pods:
        member = membership(pod)
        if member.gang in result:
            continue
        if member.implied is not None:
            late = set_of_leaders(member.gang) in leading
            result[member.gang] = leaders_first(member.implied) if late else member.implied
        elif (owner := workload_of(member.gang)) and owner[1] in groups.get(owner[0], {}):
            result[member.gang] = GangSpec(member.gang, groups[owner[0]][owner[1]])
    return result


def _matters(pod: Pod) -> bool:
    if pod.status.phase in ("Succeeded", "Failed"):
        return False
    return bool(pod.spec.node_name) or not pod.deleting


# Nodes and queues


def _node(node: Node, book: ClaimBook) -> NodeLine:
    offered = {**amounts(node.status.allocatable), **book.devices_on(node.name)}
    have = {key: _quantity(key, value) for key, value in offered.items()}
    ready = next((c for c in node.status.conditions if c.get("type") == "Ready"), None)
    labels = dict(node.labels)
    if labels.get(_HOSTNAME) == node.name:
        del labels[_HOSTNAME]
    memory = labels.get(GPU_MEMORY, "")
    if memory.isdigit():
        del labels[GPU_MEMORY]
    return NodeLine(
        name=node.name,
        gpus=_count(have.get(GPU, 0)),
        gpu_memory=int(memory) if memory.isdigit() else 0,
        cpu=have.get("cpu", 0),
        memory=have.get("memory", 0),
        pods=_count(have.get(PODS, 0)),
        labels=labels,
        taints=[
            TaintLine(key=t.key, value=t.value, effect=t.effect)  # type: ignore[arg-type]
            for t in node.spec.taints
        ],
        unschedulable=node.spec.unschedulable,
        ready=ready is None or ready.get("status") == "True",
        allocatable={key: value for key, value in have.items() if _is_further(key)},
        devices=_devices(have),
    )


def _topology(name: str, levels: dict[str, str]) -> TopologyLine:
    usual = all(domain_of(key) == domain for key, domain in levels.items())
    domains = [] if usual else list(levels.values())
    return TopologyLine(name=name, levels=list(levels), domains=domains)


def _is_further(resource: str) -> bool:
    return resource not in _PLAIN and not resource.startswith(CLAIMED)


def _devices(have: Mapping[str, Amount]) -> dict[str, int]:
    return {k.removeprefix(CLAIMED): _count(v) for k, v in have.items() if k.startswith(CLAIMED)}


def _budgets(found: Objects) -> Iterator[BudgetLine]:
    """Yield the disruption budgets; one that selects by more than labels covers too many here."""
    for budget in sorted(found.budgets, key=lambda b: b.key):
        spec = budget.spec
        yield BudgetLine(
            name=budget.name,
            namespace=budget.namespace,
            labels=dict(spec.selector.get("matchLabels") or {}),
            min_available=spec.min_available,
            max_unavailable=spec.max_unavailable,
        )


def _shared_by_pods(found: Objects, book: ClaimBook) -> frozenset[str]:
    pods = (pod for pod in found.pods if _matters(pod))
    users = Counter(key for pod in pods for key in resource_claims(pod))
    return frozenset(key for key, count in users.items() if count > 1 and key in book.claims)


def _claim(key: str, book: ClaimBook) -> ClaimLine:
    namespace, _, name = key.partition("/")
    wanted = book.claims[key].wanted
    devices = {
        found.removeprefix(CLAIMED): amount // 1000
        for found, amount in wanted.items()
        if found.startswith(CLAIMED)
    }
    return ClaimLine(name=name, namespace=namespace, devices=devices)


def _volumes(found: Objects, book: ClaimBook) -> Iterator[VolumeLine]:
    """Yield the volume claims whose volumes only some nodes reach."""
    for key, volume in sorted(book.bound.items()):
        terms = book.volumes.get(volume, ())
        if terms:
            namespace, _, name = key.partition("/")
            reach = [n.name for n in found.nodes if any(t.matches(n.name, n.labels) for t in terms)]
            yield VolumeLine(name=name, namespace=namespace, nodes=sorted(reach))


def _count(value: Amount) -> int:
    return value if isinstance(value, int) else 0


def _quantity(resource: str, milli: int) -> Amount:
    """Return thousandths as a short quantity."""
    if milli % 1000:
        return f"{milli}m"
    value = milli // 1000
    for suffix, power in (("Gi", 30), ("Mi", 20), ("Ki", 10)):
        if resource not in ("cpu", PODS) and value and value % (1 << power) == 0:
            return f"{value >> power}{suffix}"
    return value


def _queue(queue: Queue) -> QueueLine:
    spec, given = queue.spec, queue.spec.resources
    return QueueLine(
        name=queue.name,
        parent=spec.parent_queue,
        priority=100 if spec.priority is None else spec.priority,
        gpus=_share(given.gpu if given else None, 1),
        cpu=_share(given.cpu if given else None, 1000),
        memory=_share(given.memory if given else None, 1e-6),
        preempt_min_runtime=spec.preempt_min_runtime,
        reclaim_min_runtime=spec.reclaim_min_runtime,
        created=queue.metadata.creation_timestamp or "",
    )


def _share(found: QueueResource | None, unit: float) -> ShareLine:
    if found is None:
        return ShareLine()
    quota, limit = (v if v < 0 else v / unit for v in (found.quota, found.limit))
    return ShareLine(quota=quota, limit=limit, weight=found.over_quota_weight)


# Gangs


def _gang(spec: GangSpec, pods: list[Pod], labels: dict[str, str], claims: _Claims) -> GangLine:
    namespace, _, name = spec.key.partition("/")
    every = {key: value for pod in pods for key, value in pod.labels.items()} | labels
    by_leaf = _by_leaf(spec, pods, claims)
    for line in (pod for found in by_leaf.values() for pod in found):
        line.created = "" if line.created == spec.created else line.created
    root = spec.root
    groups = [_group(child, by_leaf, "") for child in root.children]
    word = every.get(PREEMPTIBILITY, "")
    asked = {"preemptible": True, "non-preemptible": False}.get(word)
    return GangLine(
        name=(name.partition(":")[2] or name).replace("/", "-"),
        namespace=namespace,
        groups=groups or [_leaf(root, by_leaf.get(root.name, []), "pods")],
        minimum=(root.minimum or None) if root.children else None,
        priority_class=spec.priority_class,
        required=(root.required or None) if root.children else None,
        preferred=(root.preferred or None) if root.children else None,
        topology=spec.topology,
        base=every.get(names.BASE_POD_GANG, ""),
        queue=spec.queue or every.get(QUEUE, ""),
        preemptible=asked if spec.preemptible is None else spec.preemptible,
        created=spec.created,
    )


def _by_leaf(spec: GangSpec, pods: list[Pod], claims: _Claims) -> dict[str, list[PodLine]]:
    leaves = list(spec.root.leaves())
    if spec.lists_pods:
        found = {pod.key: pod for pod in pods}
        return {
            leaf.name: [
                _pod(found[key], claims)
                if key in found
                else PodLine(name=key.partition("/")[2], state="absent")
                for key in leaf.pods
            ]
            for leaf in leaves
        }
    result: dict[str, list[PodLine]] = {leaf.name: [] for leaf in leaves}
    for pod in sorted(pods, key=lambda p: p.key):
        group = membership(pod).group
        result[group if group in result else leaves[0].name].append(_pod(pod, claims))
    return result


def _group(spec: GroupSpec, by_leaf: Mapping[str, list[PodLine]], above: str) -> PodsLine:
    name = spec.name.removeprefix(f"{above}-") if above else spec.name
    if not spec.children:
        return _leaf(spec, by_leaf.get(spec.name, []), name)
    return PodsLine(
        name=name,
        groups=[_group(child, by_leaf, spec.name) for child in spec.children],
        minimum=spec.minimum or None,
        required=spec.required or None,
        preferred=spec.preferred or None,
    )


def _leaf(spec: GroupSpec, pods: list[PodLine], name: str) -> PodsLine:
    line = _together(name, pods)
    line.minimum = spec.minimum
    line.required, line.preferred = spec.required or None, spec.preferred or None
    return line


_ADDED = ("labels", "annotations", "spec")
"""Fields in which a pod adds to what its group says."""
_REPLACED = (
    "gpus",
    "cpu",
    "memory",
    "requests",
    "claims",
    "shared_claims",
    "volumes",
    "host_ports",
    "priority",
)
"""Fields in which it replaces that."""


def _together(name: str, pods: list[PodLine]) -> PodsLine:
    """Return a group of *pods*; what all of them have in common is written once."""
    line, here = PodsLine(name=name, pods=pods), [pod for pod in pods if pod.state != "absent"]
    for field in _ADDED if here else ():
        values = [getattr(pod, field) for pod in here]
        shared = _in_all(values)
        setattr(line, field, shared)
        for pod, value in zip(here, values, strict=True):
            setattr(pod, field, {k: v for k, v in value.items() if k not in shared})
    for field in _REPLACED if here else ():
        value = getattr(here[0], field)
        if value is not None and all(getattr(pod, field) == value for pod in here):
            setattr(line, field, value)
            for pod in here:
                setattr(pod, field, None)
    return line


def _in_all(values: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = values
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}


# Pods


def _lone(pod: Pod, claims: _Claims) -> PodsLine:
    own = _pod(pod, claims)
    own.created = ""
    line = _together(pod.name, [own])
    line.namespace = pod.namespace
    line.scheduler = pod.spec.scheduler_name
    line.priority_class = pod.spec.priority_class_name
    line.queue = pod.labels.get(QUEUE, "")
    word = pod.labels.get(PREEMPTIBILITY, "")
    line.preemptible = {"preemptible": True, "non-preemptible": False}.get(word)
    line.created = pod.metadata.creation_timestamp or ""
    return line


def _pod(pod: Pod, claims: _Claims) -> PodLine:
    spec = pod.spec
    shared = [key for key in resource_claims(pod) if key in claims.shared]
    asked = {**dict(requests_of(spec)), **claims.book.of(pod, shared)[1]}
    have = {key: _quantity(key, value) for key, value in asked.items()}
    raw = msgspec.to_builtins(spec)
    fields = {f.encode_name: raw[f.encode_name] for f in _fields(spec) if f.encode_name in raw}
    annotations = pod.metadata.annotations
    return PodLine(
        name=pod.name,
        state=_state(pod),
        node=spec.node_name,
        started=(pod.status.start_time or "") if spec.node_name else "",
        created=pod.metadata.creation_timestamp or "",
        nominated="" if spec.node_name else pod.status.nominated_node_name,
        gpus=_count(have.get(GPU, 0)),
        cpu=have.get("cpu", 0),
        memory=have.get("memory", 0),
        requests={key: value for key, value in have.items() if _is_further(key)},
        claims=_devices(have),
        shared_claims=[key.partition("/")[2] for key in shared],
        volumes=[key.partition("/")[2] for key in volume_claims(pod)],
        host_ports=list(_host_ports(pod)),
        labels={key: value for key, value in pod.labels.items() if key not in _GANG_LABELS},
        annotations={
            key: value
            for key, value in annotations.items()
            if key.startswith(_ANNOTATIONS) and key != POD_GROUP_NAME
        },
        spec=fields,
        priority=spec.priority,
    )


def _fields(spec: Any) -> Iterable[msgspec.structs.FieldInfo]:
    return (f for f in msgspec.structs.fields(spec) if f.name in _SPEC_FIELDS)


def _state(pod: Pod) -> PodPhase:
    if pod.spec.node_name:
        return "leaving" if pod.deleting else "running"
    return "gated" if pod.spec.scheduling_gates else "pending"


def _host_ports(pod: Pod) -> Iterator[int | str]:
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        for port in container.ports:
            if port.host_port:
                udp = port.protocol not in ("", "TCP")
                yield f"{port.host_port}/{port.protocol}" if udp else port.host_port
