"""The schedulers that are known, each with its rendering of a gang."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.grove_backends import (
    KAI_QUEUE,
    VOLCANO_DEFAULT_QUEUE,
    VOLCANO_QUEUE_ANNOTATION,
)
from spinney.api.grove_policy import KAI, KUBE, VOLCANO
from spinney.api.resource import Resource
from spinney.controllers.backends.backend import PodMarks, levels, rendered

if TYPE_CHECKING:
    from spinney.api.podgang import GangTopologyConstraint, PodGang
    from spinney.api.resource import Unstructured
    from spinney.controllers.backends.backend import Backend

KAI_POD_GROUPS = Resource("scheduling.run.ai", "v2alpha2", "PodGroup", "podgroups")
VOLCANO_POD_GROUPS = Resource("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups")
KUBE_POD_GROUPS = Resource("scheduling.k8s.io", "v1alpha2", "PodGroup", "podgroups")
_WORKLOAD_GROUP = "gang"
KUBE_WORKLOADS = Resource("scheduling.k8s.io", "v1alpha1", "Workload", "workloads")


@dataclass(frozen=True, slots=True)
class Spinney:
    """Our scheduler: it reads PodGangs."""

    scheduler: str = names.SPINNEY_SCHEDULER
    title: str = "spinney-scheduler"
    resource: Resource | None = None

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return the PodGang: what the scheduler reads of it."""
        base = {k: v for k, v in gang.labels.items() if k == names.BASE_POD_GANG}
        return {"labels": base, "spec": msgspec.to_builtins(gang.spec)}

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Return nothing: the label of the gang is on every pod anyway."""
        return PodMarks()


@dataclass(frozen=True, slots=True)
class Kai:
    """NVIDIA's KAI: a tree of subgroups with minimums and topology constraints."""

    scheduler: str = KAI
    title: str = "KAI"
    resource: Resource | None = KAI_POD_GROUPS

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return the PodGroup: constrained group replicas are inner subgroups, cliques leaves."""
        spec = gang.spec
        topology = gang.metadata.annotations.get(names.TOPOLOGY_NAME, "")
        inner = spec.topology_constraint_group_configs
        parent = {clique: config.name for config in inner for clique in config.pod_group_names}
        groups: list[dict[str, Any]] = [
            {
                "name": config.name,
                "minSubGroup": len(config.pod_group_names),
                **_kai_constraint(topology, config.topology_constraint),
            }
            for config in inner
        ]
        groups += [
            {
                "name": group.name,
                "minMember": group.min_replicas,
                **({"parent": parent[group.name]} if group.name in parent else {}),
                **_kai_constraint(topology, group.topology_constraint),
            }
            for group in spec.pod_groups
        ]
        body = {
            "minMember": sum(group.min_replicas for group in spec.pod_groups),
            "queue": gang.labels.get(KAI_QUEUE) or gang.metadata.annotations.get(KAI_QUEUE, ""),
            "subGroups": groups,
            **_kai_constraint(topology, spec.topology_constraint),
            **_priority(gang),
        }
        made = rendered(KAI_POD_GROUPS, gang, body)
        made["metadata"]["annotations"]["kai.scheduler/skip-podgrouper"] = "true"
        return made

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Name the PodGroup and the leaf, and keep KAI's own grouper away."""
        return PodMarks(
            labels={"kai.scheduler/subgroup-name": clique},
            annotations={"kai.scheduler/skip-podgrouper": "true", "pod-group-name": gang},
        )


@dataclass(frozen=True, slots=True)
class Volcano:
    """Volcano: a minimum for the whole and for each clique, without our topology."""

    scheduler: str = VOLCANO
    title: str = "Volcano"
    resource: Resource | None = VOLCANO_POD_GROUPS

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return the PodGroup: one policy for each clique, selected by its label."""
        groups = gang.spec.pod_groups
        annotations = gang.metadata.annotations
        body = {
            "minMember": max(1, sum(group.min_replicas for group in groups)),
            "queue": annotations.get(VOLCANO_QUEUE_ANNOTATION) or VOLCANO_DEFAULT_QUEUE,
            "subGroupPolicy": [
                {
                    "name": group.name,
                    "labelSelector": {"matchLabels": {names.POD_CLIQUE: group.name}},
                    "matchLabelKeys": [names.POD_CLIQUE],
                    "subGroupSize": group.min_replicas,
                    "minSubGroups": 1,
                }
                for group in groups
                if group.min_replicas
            ],
            **_priority(gang),
        }
        return rendered(VOLCANO_POD_GROUPS, gang, body)

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Name the PodGroup, in the two ways that Volcano looks for."""
        keys = ("scheduling.k8s.io/group-name", "scheduling.volcano.sh/group-name")
        return PodMarks(annotations=dict.fromkeys(keys, gang))


@dataclass(frozen=True, slots=True)
class KubePodGroups:
    """kube-scheduler where the cluster serves its PodGroup API: one number for the whole gang."""

    scheduler: str = KUBE
    title: str = "kube-scheduler with PodGroups"
    resource: Resource | None = KUBE_POD_GROUPS

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return the PodGroup; its minimum is the sum, whichever cliques the pods are of."""
        return rendered(KUBE_POD_GROUPS, gang, {"schedulingPolicy": _kube_policy(gang)})

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Name the PodGroup."""
        return PodMarks(spec={"schedulingGroup": {"podGroupName": gang}})


@dataclass(frozen=True, slots=True)
class KubeWorkloads:
    """kube-scheduler where the cluster serves its Workload API, which came before PodGroups.

    Each of a workload's groups is a gang by itself; so ours is one group, or parts could start
    alone.
    """

    scheduler: str = KUBE
    title: str = "kube-scheduler with Workloads"
    resource: Resource | None = KUBE_WORKLOADS

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return the Workload; its minimum is the sum, whichever cliques the pods are of."""
        group = {"name": _WORKLOAD_GROUP, "policy": _kube_policy(gang)}
        owner = {"apiGroup": gang.RESOURCE.group, "kind": gang.RESOURCE.kind, "name": gang.name}
        return rendered(KUBE_WORKLOADS, gang, {"controllerRef": owner, "podGroups": [group]})

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Name the Workload and its group."""
        return PodMarks(spec={"workloadRef": {"name": gang, "podGroup": _WORKLOAD_GROUP}})


@dataclass(frozen=True, slots=True)
class Plain:
    """A scheduler that places pods one by one."""

    scheduler: str = KUBE
    title: str = "kube-scheduler"
    resource: Resource | None = None

    def render(self, gang: PodGang) -> Unstructured | None:
        """Return nothing: it knows no gangs."""
        return None

    def marks(self, gang: str, clique: str) -> PodMarks:
        """Return nothing."""
        return PodMarks()


ALL: tuple[Backend, ...] = (
    Spinney(),
    Kai(),
    Volcano(),
    KubePodGroups(),
    KubeWorkloads(),
    Plain(),
)
KUBE_KINDS = (KUBE_POD_GROUPS, KUBE_WORKLOADS)
"""Kinds by which kube-scheduler can be told of gangs, the better one first."""


def backend_of(scheduler: str, *, kube_kind: Resource | None = None) -> Backend:
    """Return the back end for a pod's ``schedulerName``; an unknown one knows no gangs.

    *kube_kind* is the first of `KUBE_KINDS` that the cluster serves, None if it serves none.
    """
    if scheduler == KUBE:
        if kube_kind is None:
            return Plain()
        return KubePodGroups() if kube_kind == KUBE_POD_GROUPS else KubeWorkloads()
    known = {backend.scheduler: backend for backend in ALL}
    return known.get(scheduler or names.SPINNEY_SCHEDULER) or Plain(scheduler, scheduler)


def _kai_constraint(topology: str, constraint: GangTopologyConstraint | None) -> dict[str, Any]:
    required, preferred = levels(constraint)
    if not required and not preferred:
        return {}
    found = {"topology": topology}
    found |= {"requiredTopologyLevel": required} if required else {}
    found |= {"preferredTopologyLevel": preferred} if preferred else {}
    return {"topologyConstraint": found}


def _kube_policy(gang: PodGang) -> dict[str, Any]:
    minimum = sum(group.min_replicas for group in gang.spec.pod_groups)
    return {"gang": {"minCount": minimum}} if minimum else {"basic": {}}


def _priority(gang: PodGang) -> dict[str, Any]:
    name = gang.spec.priority_class_name
    return {"priorityClassName": name} if name else {}
