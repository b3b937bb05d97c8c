"""What one gang is: its pod groups, the pods it lists, and its constraints.

A gang lists pods only when all of them exist: then the gates open for all. After that a
replacement is listed as soon as every group has its minimum of pods again; so one group that
cannot be filled up keeps no other from being repaired, and a gang whose pods were all
replaced is released as a whole again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.grove_backends import KAI_QUEUE, VOLCANO_QUEUE_ANNOTATION
from spinney.api.meta import ObjectMeta
from spinney.api.podgang import (
    GangPodGroup,
    NamespacedName,
    PodGang,
    PodGangSpec,
    TopologyConstraintGroupConfig,
)
from spinney.controllers import identity, topology
from spinney.controllers.pod_state import is_live
from spinney.controllers.template import (
    clique_count,
    group_count,
    group_template_count,
    member_cliques,
    set_replicas,
    standalone_cliques,
    template_count,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.core import Pod
    from spinney.api.grove import (
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        PodCliqueTemplate,
        ScalingGroupTemplate,
        TopologyConstraint,
    )
    from spinney.controllers.identity import GangIdentity
    from spinney.controllers.template import Count
    from spinney.controllers.topology import Keys

_NOT_MIRRORED = ("grove.io/", "kubectl.kubernetes.io/", "app.kubernetes.io/", "spinney.dev/")


@dataclass(frozen=True, slots=True)
class Observation:
    """What there is of a gang, its set and its parts."""

    gang: PodGang | None
    groups: Mapping[str, PodCliqueScalingGroup]
    """Live scaling groups of the replica, by full name."""
    cliques: Mapping[str, PodClique]
    """Live cliques of the replica, by full name."""
    pods: Sequence[Pod]
    """The pods labelled with the gang."""
    keys: Keys | None
    """The node labels that the set's topology domains mean."""


@dataclass(frozen=True, slots=True)
class Part:
    """A clique that a gang consists of."""

    name: str
    template: PodCliqueTemplate
    group: ScalingGroupTemplate | None = None
    group_replica: int | None = None


def gang_name(pcs: PodCliqueSet, which: GangIdentity) -> str | None:
    """Return what the gang of this identity is called now; None if its group is no more."""
    if which.is_base:
        return identity.replica_name(pcs.name, which.replica)
    group = _group_template(pcs, which)
    if group is None or which.group is None or which.group_replica is None:
        return None
    minimum = group_template_count(group).minimum
    return identity.scaled_gang_name(which.group, which.group_replica, minimum)


def is_wanted(
    pcs: PodCliqueSet, which: GangIdentity, groups: Mapping[str, PodCliqueScalingGroup]
) -> bool:
    """Tell whether the set, as scaled now, has this gang."""
    if pcs.deleting or which.replica >= set_replicas(pcs):
        return False
    if which.is_base:
        return True
    template = _group_template(pcs, which)
    live = groups.get(which.group or "")
    if template is None or live is None or which.group_replica is None:
        return False
    return group_template_count(template).minimum <= which.group_replica < group_count(live).target


def parts(
    pcs: PodCliqueSet, which: GangIdentity, groups: Mapping[str, PodCliqueScalingGroup]
) -> list[Part]:
    """Return the cliques the gang consists of, in the order of the template."""
    template = pcs.spec.template
    if not which.is_base:
        group = _group_template(pcs, which)
        if group is None or which.group_replica is None:
            return []
        return _members(pcs, which.replica, group, [which.group_replica])
    found = [
        Part(identity.clique_name(pcs.name, which.replica, clique.name), clique)
        for clique in standalone_cliques(template)
    ]
    for group in template.pod_clique_scaling_groups:
        live = groups.get(identity.group_name(pcs.name, which.replica, group.name))
        count = group_count(live) if live is not None else group_template_count(group)
        found += _members(pcs, which.replica, group, range(count.needed))
    return found


def wanted_gang(pcs: PodCliqueSet, which: GangIdentity, name: str, seen: Observation) -> PodGang:
    """Return the gang as it should be now."""
    found = parts(pcs, which, seen.groups)
    listed = _listed(found, seen)
    constrained = topology.resolved(pcs.spec.template, seen.keys)
    keep = seen.gang if seen.gang is not None and not constrained else None
    old = {group.name: group for group in keep.spec.pod_groups} if keep else {}
    pod_groups = [
        GangPodGroup(
            name=part.name,
            pod_references=[
                NamespacedName(namespace=pcs.namespace, name=pod)
                for pod in listed.get(part.name, ())
            ],
            min_replicas=_count(part, seen.cliques).needed,
            topology_constraint=old[part.name].topology_constraint
            if part.name in old
            else topology.translate(part.template.topology_constraint, seen.keys),
        )
        for part in found
    ]
    spec = PodGangSpec(
        pod_groups=pod_groups,
        topology_constraint=keep.spec.topology_constraint
        if keep
        else topology.translate(_own_constraint(pcs, which), seen.keys),
        topology_constraint_group_configs=keep.spec.topology_constraint_group_configs
        if keep
        else _group_configs(pcs, which, found, seen.keys),
        priority_class_name=pcs.spec.template.priority_class_name,
    )
    return PodGang(metadata=_metadata(pcs, which, name, spec, seen.keys), spec=spec)


def _listed(found: Sequence[Part], seen: Observation) -> dict[str, list[str]]:
    """Return the names of the pods to list, by clique."""
    live: dict[str, list[str]] = {part.name: [] for part in found}
    for pod in seen.pods:
        if is_live(pod) and (clique := pod.labels.get(names.POD_CLIQUE)) in live:
            live[clique].append(pod.name)
    for pods in live.values():
        pods.sort()
    groups = seen.gang.spec.pod_groups if seen.gang is not None else []
    before = {ref.name for group in groups for ref in group.pod_references}
    kept = {clique: [name for name in pods if name in before] for clique, pods in live.items()}
    released = any(kept.values())
    for part in found:
        count = _count(part, seen.cliques)
        enough = count.needed if released else count.target
        if part.name not in seen.cliques or len(live[part.name]) < enough:
            return kept
    return live


def _count(part: Part, cliques: Mapping[str, PodClique]) -> Count:
    clique = cliques.get(part.name)
    return clique_count(clique) if clique is not None else template_count(part.template)


def _members(
    pcs: PodCliqueSet, replica: int, group: ScalingGroupTemplate, indices: Sequence[int]
) -> list[Part]:
    full = identity.group_name(pcs.name, replica, group.name)
    return [
        Part(identity.member_name(full, j, clique.name), clique, group, j)
        for j in indices
        for clique in member_cliques(pcs.spec.template, group)
    ]


def _group_template(pcs: PodCliqueSet, which: GangIdentity) -> ScalingGroupTemplate | None:
    for group in pcs.spec.template.pod_clique_scaling_groups:
        if identity.group_name(pcs.name, which.replica, group.name) == which.group:
            return group
    return None


def _own_constraint(pcs: PodCliqueSet, which: GangIdentity) -> TopologyConstraint | None:
    group = None if which.is_base else _group_template(pcs, which)
    if group is not None and group.topology_constraint is not None:
        return group.topology_constraint
    return pcs.spec.template.topology_constraint


def _group_configs(
    pcs: PodCliqueSet, which: GangIdentity, found: Sequence[Part], keys: Keys | None
) -> list[TopologyConstraintGroupConfig]:
    """Return one constraint for each replica of each constrained scaling group in a base gang."""
    if not which.is_base:
        return []
    configs: list[TopologyConstraintGroupConfig] = []
    for group in pcs.spec.template.pod_clique_scaling_groups:
        constraint = topology.translate(group.topology_constraint, keys)
        if constraint is None:
            continue
        full = identity.group_name(pcs.name, which.replica, group.name)
        own = [p for p in found if p.group is group and p.group_replica is not None]
        indices = sorted({p.group_replica for p in own if p.group_replica is not None})
        configs += [
            TopologyConstraintGroupConfig(
                name=f"{full}-{j}",
                pod_group_names=[p.name for p in own if p.group_replica == j],
                topology_constraint=constraint,
            )
            for j in indices
        ]
    return configs


def _metadata(
    pcs: PodCliqueSet, which: GangIdentity, name: str, spec: PodGangSpec, keys: Keys | None
) -> ObjectMeta:
    """Return labels and annotations: the set's own, Grove's, and those that tell which gang it is.

    The label that names the base gang tells the scheduler to hold the base gang's
    topology constraint for this one too.
    """
    labels = {
        **_mirrored(pcs.metadata.labels),
        **identity.managed_labels(pcs.name, name, "podgang"),
        names.SCHEDULER_NAME: _scheduler(pcs),
        names.SET_REPLICA_INDEX: str(which.replica),
    }
    if which.group is not None:
        labels[names.BASE_POD_GANG] = identity.replica_name(pcs.name, which.replica)
        labels[names.SCALING_GROUP] = which.group
        labels[names.SCALING_GROUP_REPLICA_INDEX] = str(which.group_replica)
    annotations = _mirrored(pcs.metadata.annotations)
    for clique in pcs.spec.template.cliques:
        if queue := clique.labels.get(KAI_QUEUE) or clique.annotations.get(KAI_QUEUE):
            labels.setdefault(KAI_QUEUE, queue)
        if queue := clique.annotations.get(VOLCANO_QUEUE_ANNOTATION):
            annotations.setdefault(VOLCANO_QUEUE_ANNOTATION, queue)
    if keys is not None and _is_constrained(spec):
        annotations[names.TOPOLOGY_NAME] = keys.topology_name
    return ObjectMeta(
        name=name,
        namespace=pcs.namespace,
        labels=labels,
        annotations=annotations,
        owner_references=[pcs.owner_reference()],
    )


def _mirrored(values: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in values.items() if not k.startswith(_NOT_MIRRORED)}


def _scheduler(pcs: PodCliqueSet) -> str:
    for clique in pcs.spec.template.cliques:
        if name := clique.spec.pod_spec.get("schedulerName"):
            return str(name)
    return names.SPINNEY_SCHEDULER


def _is_constrained(spec: PodGangSpec) -> bool:
    return (
        spec.topology_constraint is not None
        or bool(spec.topology_constraint_group_configs)
        or any(group.topology_constraint is not None for group in spec.pod_groups)
    )
