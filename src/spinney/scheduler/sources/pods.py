"""Which gang a pod belongs to, by what the pod itself says.

In this order: a PodGang's label, a KAI PodGroup's annotation, an upstream group, a PodGroup of the
scheduler plugins or of Volcano, the labels of a LeaderWorkerSet, the labels of a Job with a
minimum. A pod that says nothing is on its own: those of Deployments and StatefulSets serve alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.podgroup import POD_GROUP_NAME, SUB_GROUP
from spinney.scheduler.sources.min_member import COSCHEDULING, VOLCANO, min_member_of
from spinney.scheduler.sources.podgroup import podgroup_key, upstream_key, workload_key
from spinney.scheduler.sources.spec import GangSpec, GroupSpec, Membership

if TYPE_CHECKING:
    from spinney.api.core import Pod

LWS_NAME = "leaderworkerset.sh/name"
LWS_GROUP = "leaderworkerset.sh/group-index"
LWS_WORKER = "leaderworkerset.sh/worker-index"
LWS_SIZE = "leaderworkerset.sh/size"
"""Annotation: how many pods a group has, the leader included."""
LWS_EXCLUSIVE = "leaderworkerset.sh/exclusive-topology"
"""Annotation: a node label key; all pods of a group are on nodes with one value of it."""

JOB_NAME = "batch.kubernetes.io/job-name"
LEGACY_JOB_NAME = "job-name"
JOB_MINIMUM = "kai.scheduler/batch-min-member"
"""Annotation of a Job's pods: how many of them run together or not at all."""

REQUIRED_LEVEL = "kai.scheduler/topology-required-placement"
PREFERRED_LEVEL = "kai.scheduler/topology-preferred-placement"
TOPOLOGY = "kai.scheduler/topology"

_WORKERS = "workers"
_LEADER = "leader"


def membership(pod: Pod) -> Membership:
    """Return where *pod* belongs."""
    labels, annotations, namespace = pod.labels, pod.metadata.annotations, pod.namespace
    if gang := labels.get(names.POD_GANG, ""):
        return Membership(f"{namespace}/{gang}")
    if group := annotations.get(POD_GROUP_NAME, ""):
        return Membership(podgroup_key(namespace, group), labels.get(SUB_GROUP, ""))
    if group := pod.spec.scheduling_group.get("podGroupName", ""):
        return Membership(upstream_key(namespace, group))
    if found := _workload(pod):
        return found
    if key := min_member_of(pod):
        return Membership(key)
    return _leader_worker_set(pod) or _job(pod) or Membership()


def workload_of(key: str) -> tuple[str, str] | None:
    """Return the Workload's ``namespace/name`` and the group that a gang key of one names."""
    namespace, found, rest = key.partition("/workload:")
    if not found:
        return None
    name, _, group = rest.partition("/")
    return f"{namespace}/{name}", group.partition("/")[0]


def set_of_leaders(key: str) -> str:
    """Return ``namespace/name`` of the LeaderWorkerSet that a gang is a group of; else empty."""
    namespace, found, rest = key.partition("/lws:")
    return f"{namespace}/{rest.rpartition('-')[0]}" if found else ""


def leaders_first(spec: GangSpec) -> GangSpec:
    """Return the gang of a group whose workers are made when its leader is ready: the leader is all
    that it needs, and workers join it under the same constraints."""
    children = tuple(
        replace(child, minimum=0) if child.name == _WORKERS else child
        for child in spec.root.children
    )
    return replace(spec, root=replace(spec.root, children=children))


def described(key: str) -> str:
    """Return in words which object has to exist for the gang *key*."""
    namespace, _, name = key.partition("/")
    kind, found, rest = name.partition(":")
    words = {
        "podgroup": "PodGroup",
        "group": "PodGroup",
        "workload": "Workload",
        COSCHEDULING: "PodGroup",
        VOLCANO: "PodGroup",
    }
    return f"{words[kind]} {namespace}/{rest}" if found and kind in words else f"PodGang {key}"


def _workload(pod: Pod) -> Membership | None:
    ref = pod.spec.workload_ref
    if not ref.get("name"):
        return None
    group, replica = ref.get("podGroup", ""), ref.get("podGroupReplicaKey", "")
    return Membership(workload_key(pod.namespace, ref["name"], group, replica), group)


def _leader_worker_set(pod: Pod) -> Membership | None:
    """Return the group of a LeaderWorkerSet: a leader and its workers, all or none."""
    labels = pod.labels
    name, index = labels.get(LWS_NAME, ""), labels.get(LWS_GROUP, "")
    if not name or not index:
        return None
    key = f"{pod.namespace}/lws:{name}-{index}"
    size = _number(pod.metadata.annotations.get(LWS_SIZE, ""), 1)
    leader = labels.get(LWS_WORKER, "0") == "0"
    children = (GroupSpec(_LEADER, minimum=1), GroupSpec(_WORKERS, minimum=size - 1))
    required, preferred = _levels(pod)
    required = required or pod.metadata.annotations.get(LWS_EXCLUSIVE, "")
    root = GroupSpec(key, required, preferred, children=children[: 2 if size > 1 else 1])
    return Membership(key, _LEADER if leader else _WORKERS, _gang(pod, key, root))


def _job(pod: Pod) -> Membership | None:
    """Return the gang of a Job that says how many pods it needs; others' pods are on their own."""
    name = pod.labels.get(JOB_NAME, "") or pod.labels.get(LEGACY_JOB_NAME, "")
    minimum = _number(pod.metadata.annotations.get(JOB_MINIMUM, ""), 0)
    if not name or minimum < 1:
        return None
    key = f"{pod.namespace}/job:{name}"
    required, preferred = _levels(pod)
    return Membership(key, "", _gang(pod, key, GroupSpec(key, required, preferred, minimum)))


def _gang(pod: Pod, key: str, root: GroupSpec) -> GangSpec:
    """Return the gang as any of its pods describes it: the same for all."""
    topology = pod.metadata.annotations.get(TOPOLOGY, "")
    return GangSpec(key, root, pod.spec.priority_class_name, topology=topology)


def _levels(pod: Pod) -> tuple[str, str]:
    annotations = pod.metadata.annotations
    return annotations.get(REQUIRED_LEVEL, ""), annotations.get(PREFERRED_LEVEL, "")


def _number(text: str, default: int) -> int:
    return int(text) if text.isdigit() else default
