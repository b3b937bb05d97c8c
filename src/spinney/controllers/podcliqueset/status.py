"""What a set reports: how many replicas serve, and of the others, which role does not and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import names, selectors
from spinney.api.meta import Condition, find_condition, with_condition
from spinney.controllers import identity, topology
from spinney.controllers.cliques import is_available, is_updated, trouble
from spinney.controllers.podclique.status import MIN_AVAILABLE_BREACHED
from spinney.controllers.template import (
    clique_count,
    group_count,
    set_replicas,
    standalone_cliques,
)
from spinney.controllers.update.revisions import of_template
from spinney.controllers.update.rollout import is_group_updated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spinney.api.grove import (
        LastError,
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        PodCliqueSetStatus,
    )
    from spinney.controllers.topology import Keys
    from spinney.controllers.update.revisions import Revision

AVAILABLE = "Available"
_NAMED_ROLES = 4
"""Roles that a message tells of one by one."""


def set_status(
    pcs: PodCliqueSet,
    cliques: Mapping[str, PodClique],
    groups: Mapping[str, PodCliqueScalingGroup],
    keys: Keys | None,
    now: str,
    target: Revision | None = None,
    errors: Sequence[LastError] = (),
) -> PodCliqueSetStatus:
    """Return the set's status from its live cliques and groups, by full name.

    *target* is the revision its pods are to be of, that of the template if None. *errors* are
    those of the last reconciliation.
    """
    target = of_template(pcs.spec.template) if target is None else target
    wanted = set_replicas(pcs)
    troubles = {i: list(_troubles(pcs, i, cliques, groups)) for i in range(wanted)}
    available = sum(not found for found in troubles.values())
    conditions = with_condition(pcs.status.conditions, _available(wanted, troubles, errors), now)
    levels = topology.levels_condition(pcs.spec.template, keys)
    if levels is not None:
        conditions = with_condition(conditions, levels, now)
    else:
        conditions = [c for c in conditions if c.type != topology.LEVELS_UNAVAILABLE]
    return msgspec.structs.replace(
        pcs.status,
        observed_generation=pcs.metadata.generation,
        replicas=wanted,
        available_replicas=available,
        updated_replicas=_updated(pcs, cliques, groups, target),
        hpa_pod_selector=selectors.format_labels(
            {names.MANAGED_BY: names.OPERATOR, names.PART_OF: pcs.name}
        ),
        current_generation_hash=target.id,
        current_revision=target.number,
        conditions=conditions,
        last_errors=list(errors),
    )


def _troubles(
    pcs: PodCliqueSet,
    replica: int,
    cliques: Mapping[str, PodClique],
    groups: Mapping[str, PodCliqueScalingGroup],
) -> Iterator[str]:
    """Yield each role of a replica that does not serve, with what it says of it."""
    for role in standalone_cliques(pcs.spec.template):
        clique = cliques.get(identity.clique_name(pcs.name, replica, role.name))
        if clique is None:
            yield f"{role.name} of replica {replica} is still to be created"
        elif not is_available(clique, clique_count(clique).needed):
            yield f"{role.name} of replica {replica}: {trouble(clique)}"
    for template in pcs.spec.template.pod_clique_scaling_groups:
        group = groups.get(identity.group_name(pcs.name, replica, template.name))
        if group is None:
            yield f"{template.name} of replica {replica} is still to be created"
        elif group.status.available_replicas < group_count(group).needed:
            yield f"{template.name} of replica {replica}: {_group_trouble(group)}"


def _group_trouble(group: PodCliqueScalingGroup) -> str:
    found = find_condition(group.status.conditions, MIN_AVAILABLE_BREACHED)
    return found.message if found is not None else "has not reported yet"


def _available(
    wanted: int, troubles: Mapping[int, list[str]], errors: Sequence[LastError]
) -> Condition:
    broken = [text for _, found in sorted(troubles.items()) for text in found]
    available = sum(not found for found in troubles.values())
    if not wanted:
        return Condition(
            type=AVAILABLE, status="True", reason="ScaledToZero", message="no replica is wanted"
        )
    if not broken:
        return Condition(
            type=AVAILABLE,
            status="True",
            reason="AllReplicasAvailable",
            message=f"all roles of {wanted} of {wanted} replicas serve",
        )
    named = "; ".join(broken[:_NAMED_ROLES])
    more = len(broken) - _NAMED_ROLES
    tail = f"; and {more} more roles" if more > 0 else ""
    tail += "".join(f"; {error.description}" for error in errors[:1])
    return Condition(
        type=AVAILABLE,
        status="False",
        reason="RolesNotAvailable",
        message=f"{available} of {wanted} replicas serve: {named}{tail}",
    )


def _updated(
    pcs: PodCliqueSet,
    cliques: Mapping[str, PodClique],
    groups: Mapping[str, PodCliqueScalingGroup],
    target: Revision,
) -> int:
    """Count replicas all of whose pods are of the template's revision."""
    template = pcs.spec.template
    hashes = {role.name: target.hashes[role.name] for role in standalone_cliques(template)}

    def updated(replica: int) -> bool:
        for role, revision in hashes.items():
            clique = cliques.get(identity.clique_name(pcs.name, replica, role))
            if clique is None or not is_updated(clique, revision):
                return False
        for config in template.pod_clique_scaling_groups:
            group = groups.get(identity.group_name(pcs.name, replica, config.name))
            if group is None or not is_group_updated(group, target):
                return False
        return True

    return sum(map(updated, range(set_replicas(pcs))))
