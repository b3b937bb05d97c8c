"""``scheduler.grove.io`` PodGang: the gang, its topology constraint groups, its pod groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.scheduler.sources.spec import GangSpec, GroupSpec

if TYPE_CHECKING:
    from spinney.api.podgang import GangPodGroup, GangTopologyConstraint, PodGang


def podgang_spec(podgang: PodGang) -> GangSpec:
    """Return what *podgang* asks for. Its own group is named by its key."""
    return GangSpec(
        podgang.key,
        _tree(podgang),
        podgang.spec.priority_class_name,
        podgang.metadata.creation_timestamp or "",
        podgang.metadata.annotations.get(names.TOPOLOGY_NAME, ""),
        lists_pods=True,
    )


def _tree(podgang: PodGang) -> GroupSpec:
    leaves = {group.name: _leaf(group) for group in podgang.spec.pod_groups}
    grouped: dict[str, str] = {}
    for config in podgang.spec.topology_constraint_group_configs:
        grouped.update((name, config.name) for name in config.pod_group_names if name in leaves)
    children = []
    for config in podgang.spec.topology_constraint_group_configs:
        members = tuple(leaves[n] for n, owner in grouped.items() if owner == config.name)
        if members:
            required, preferred = constraint_keys(config.topology_constraint)
            children.append(GroupSpec(config.name, required, preferred, children=members))
    children += [leaf for name, leaf in leaves.items() if name not in grouped]
    required, preferred = constraint_keys(podgang.spec.topology_constraint)
    return GroupSpec(podgang.key, required, preferred, children=tuple(children))


def _leaf(group: GangPodGroup) -> GroupSpec:
    required, preferred = constraint_keys(group.topology_constraint)
    listed = tuple(f"{ref.namespace}/{ref.name}" for ref in group.pod_references)
    return GroupSpec(group.name, required, preferred, group.min_replicas, pods=listed)


def constraint_keys(constraint: GangTopologyConstraint | None) -> tuple[str, str]:
    """Return the required and the preferred label key; empty for none."""
    pack = constraint.pack_constraint if constraint else None
    return ((pack.required or ""), (pack.preferred or "")) if pack else ("", "")
