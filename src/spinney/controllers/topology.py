"""From topology domains, as users name them, to node label keys, as the scheduler reads them.

A constraint that cannot be translated, because its binding or a level of it is missing, is
never dropped in silence: the set says so in a condition, and gangs that have
constraints keep them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api.meta import Condition
from spinney.api.podgang import GangPackConstraint, GangTopologyConstraint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.grove import (
        ClusterTopologyBinding,
        PodCliqueSetTemplate,
        TopologyConstraint,
    )

LEVELS_UNAVAILABLE = "TopologyLevelsUnavailable"


@dataclass(frozen=True, slots=True)
class Keys:
    """Node label keys by domain, of the binding that a set uses."""

    topology_name: str
    by_domain: Mapping[str, str]


def topology_name(template: PodCliqueSetTemplate) -> str | None:
    """Return the binding that the set uses: all its constraints name the same one."""
    for constraint in all_constraints(template):
        if constraint.topology_name:
            return constraint.topology_name
    return None


def all_constraints(template: PodCliqueSetTemplate) -> list[TopologyConstraint]:
    """Return the constraints of the set, its groups and its cliques."""
    found = [template.topology_constraint]
    found += [group.topology_constraint for group in template.pod_clique_scaling_groups]
    found += [clique.topology_constraint for clique in template.cliques]
    return [constraint for constraint in found if constraint is not None]


def keys_of(binding: ClusterTopologyBinding) -> Keys:
    """Return the node label keys of *binding*."""
    return Keys(binding.name, {level.domain: level.key for level in binding.spec.levels})


def translate(
    constraint: TopologyConstraint | None, keys: Keys | None
) -> GangTopologyConstraint | None:
    """Return *constraint* in terms of node labels; what *keys* does not know is left out."""
    if constraint is None or keys is None:
        return None
    required, preferred = _domains(constraint)
    pack = GangPackConstraint(
        required=keys.by_domain.get(required or ""),
        preferred=keys.by_domain.get(preferred or ""),
    )
    if pack.required is None and pack.preferred is None:
        return None
    return GangTopologyConstraint(pack_constraint=pack)


def missing_domains(template: PodCliqueSetTemplate, keys: Keys) -> list[str]:
    """Return the domains that the set asks for and the binding has not, sorted."""
    wanted = {d for c in all_constraints(template) for d in _domains(c) if d is not None}
    return sorted(wanted - keys.by_domain.keys())


def resolved(template: PodCliqueSetTemplate, keys: Keys | None) -> bool:
    """Tell whether every constraint of the set can be translated."""
    if not all_constraints(template):
        return True
    return keys is not None and not missing_domains(template, keys)


def levels_condition(template: PodCliqueSetTemplate, keys: Keys | None) -> Condition | None:
    """Return the condition that tells whether the set's domains exist; None without any."""
    if not all_constraints(template):
        return None
    name = topology_name(template)
    if name is None:
        return Condition(
            type=LEVELS_UNAVAILABLE,
            status="Unknown",
            reason="TopologyNameMissing",
            message="a topologyConstraint is set, but none names a ClusterTopologyBinding; "
            "set topologyName",
        )
    if keys is None:
        return Condition(
            type=LEVELS_UNAVAILABLE,
            status="Unknown",
            reason="ClusterTopologyNotFound",
            message=f"ClusterTopologyBinding {name!r} does not exist; new gangs are placed "
            "without topology constraints until it does",
        )
    if missing := missing_domains(template, keys):
        return Condition(
            type=LEVELS_UNAVAILABLE,
            status="True",
            reason="ClusterTopologyLevelsUnavailable",
            message=f"ClusterTopologyBinding {name!r} has no level for "
            f"{', '.join(missing)}; it has {', '.join(keys.by_domain)}",
        )
    return Condition(
        type=LEVELS_UNAVAILABLE,
        status="False",
        reason="AllClusterTopologyLevelsAvailable",
        message=f"ClusterTopologyBinding {name!r} has all levels that are asked for",
    )


def _domains(constraint: TopologyConstraint) -> tuple[str | None, str | None]:
    pack = constraint.pack
    required = (pack.required if pack else None) or constraint.pack_domain
    return required, pack.preferred if pack else None
