"""Which cliques a scaling group has: all of its roles in every replica, the highest leave first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.controllers import cliques, identity
from spinney.controllers.template import group_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.grove import (
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        ScalingGroupTemplate,
    )
    from spinney.controllers.actions import Action
    from spinney.controllers.template import Count


def template_of(pcs: PodCliqueSet, group: PodCliqueScalingGroup) -> ScalingGroupTemplate | None:
    """Return what the set says of *group*, None if it no longer says anything."""
    replica = identity.index_label(group.labels, names.SET_REPLICA_INDEX)
    if replica is None:
        return None
    for template in pcs.spec.template.pod_clique_scaling_groups:
        if identity.group_name(pcs.name, replica, template.name) == group.name:
            return template
    return None


def live_counts(
    pcs: PodCliqueSet, replica: int, groups: Mapping[str, PodCliqueScalingGroup]
) -> dict[str, Count]:
    """Return the counts of a replica's live scaling groups by their names in the template."""
    found = {}
    for template in pcs.spec.template.pod_clique_scaling_groups:
        live = groups.get(identity.group_name(pcs.name, replica, template.name))
        if live is not None:
            found[template.name] = group_count(live)
    return found


def decide(
    pcs: PodCliqueSet,
    group: PodCliqueScalingGroup,
    siblings: Mapping[str, PodCliqueScalingGroup],
    existing: Mapping[str, PodClique],
) -> list[Action]:
    """Return what brings the group's *existing* cliques, by name, to its replica count.

    *siblings* are the scaling groups of the same replica of the set, this one included.
    """
    template = template_of(pcs, group)
    replica = identity.index_label(group.labels, names.SET_REPLICA_INDEX)
    if group.deleting or pcs.deleting or template is None or replica is None:
        return []
    wanted = cliques.members(
        pcs,
        group,
        template,
        replica,
        live_counts(pcs, replica, siblings),
        range(group_count(group).target),
    )
    return cliques.reconcile(wanted, existing)
