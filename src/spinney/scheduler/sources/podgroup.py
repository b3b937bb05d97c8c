"""PodGroups: KAI's ``scheduling.run.ai/v2alpha2`` with sub-groups to any depth, and upstream's.

A KAI pod names its PodGroup in the annotation ``pod-group-name`` and its leaf in the label
``kai.scheduler/subgroup-name``. Upstream pods name a PodGroup in ``spec.schedulingGroup``, or, in
the older form, a group of a Workload in ``spec.workloadRef``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.errors import BadInputError
from spinney.scheduler.sources.spec import GangSpec, GroupSpec
from spinney.scheduler.sources.timing import timing_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.api.podgroup import (
        GroupTopology,
        PodGroup,
        PodGroupSpec,
        SubGroup,
        UpstreamPodGroup,
        Workload,
    )


def podgroup_key(namespace: str, name: str) -> str:
    """Return the gang key of a KAI PodGroup."""
    return f"{namespace}/podgroup:{name}"


def upstream_key(namespace: str, name: str) -> str:
    """Return the gang key of an upstream PodGroup."""
    return f"{namespace}/group:{name}"


def workload_key(namespace: str, name: str, group: str, replica: str = "") -> str:
    """Return the gang key of one replica of a Workload's group."""
    return f"{namespace}/workload:{name}/{group}" + (f"/{replica}" if replica else "")


def podgroup_spec(podgroup: PodGroup) -> GangSpec:
    """Return what *podgroup* asks for; raise BadInputError when its sub-groups are no tree."""
    spec = podgroup.spec
    words = {"preemptible": True, "non-preemptible": False}
    topology = spec.topology_constraint.topology if spec.topology_constraint else ""
    return GangSpec(
        podgroup_key(podgroup.namespace, podgroup.name),
        _tree(podgroup.key, spec),
        spec.priority_class_name,
        podgroup.metadata.creation_timestamp or "",
        topology,
        spec.queue,
        words.get(spec.preemptibility),
        timing_of(
            podgroup.key,
            podgroup.metadata.annotations,
            stale_grace=spec.staleness_grace_period,
            preemption_delay=spec.preemption_delay,
        ),
    )


def _tree(key: str, spec: PodGroupSpec) -> GroupSpec:
    names = {sub.name for sub in spec.sub_groups}
    if len(names) != len(spec.sub_groups):
        raise BadInputError(f"PodGroup {key}: two sub-groups have one name; give each its own")
    below: dict[str, list[SubGroup]] = {}
    for sub in spec.sub_groups:
        if sub.parent and sub.parent not in names:
            raise BadInputError(
                f"PodGroup {key}: sub-group {sub.name!r} has the parent {sub.parent!r}, "
                f"which is none of {', '.join(sorted(names))}"
            )
        below.setdefault(sub.parent or "", []).append(sub)
    root = _group(key, spec, below.get("", []), below)
    reached = sum(1 for _ in _walk(root)) - 1
    if reached != len(names):
        raise BadInputError(f"PodGroup {key}: its sub-groups are parents of each other in a circle")
    return root


def _group(
    name: str,
    found: PodGroupSpec | SubGroup,
    children: list[SubGroup],
    below: Mapping[str, list[SubGroup]],
) -> GroupSpec:
    required, preferred = _levels(found.topology_constraint)
    if children:
        inner = tuple(_group(c.name, c, below.get(c.name, []), below) for c in children)
        return GroupSpec(name, required, preferred, found.min_sub_group or 0, inner)
    minimum = 1 if found.min_member is None else found.min_member
    return GroupSpec(name, required, preferred, minimum)


def _walk(group: GroupSpec) -> Iterator[GroupSpec]:
    yield group
    for child in group.children:
        yield from _walk(child)


def _levels(constraint: GroupTopology | None) -> tuple[str, str]:
    if constraint is None:
        return "", ""
    return constraint.required_topology_level, constraint.preferred_topology_level


def upstream_spec(group: UpstreamPodGroup) -> GangSpec:
    """Return the gang of an upstream PodGroup; with the ``basic`` policy it needs no minimum."""
    minimum = _min_count(group.spec.scheduling_policy)
    required = _topology_key(group.spec.scheduling_constraints)
    key = upstream_key(group.namespace, group.name)
    return GangSpec(
        key,
        GroupSpec(key, required, minimum=minimum),
        group.spec.priority_class_name,
        group.metadata.creation_timestamp or "",
    )


def workload_groups(workload: Workload) -> dict[str, GroupSpec]:
    """Return what each gang of *workload* asks for, by the group's name."""
    named = {str(group.get("name", "")): group for group in workload.spec.pod_groups}
    return {
        name: GroupSpec(name, minimum=_min_count(group.get("policy") or {}))
        for name, group in named.items()
    }


def _min_count(policy: Mapping[str, Any]) -> int:
    gang = policy.get("gang")
    return 0 if gang is None else int(gang.get("minCount", 1))


def _topology_key(constraints: Mapping[str, Any]) -> str:
    for line in constraints.get("topology") or ():
        key = line.get("key", "")
        if key:
            return str(key)
    return ""
