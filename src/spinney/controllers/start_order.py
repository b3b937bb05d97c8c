"""Which cliques a clique waits for before its containers start.

A set's template names parents by role. Pods wait for live cliques, so each parent is expanded to
the cliques of the base gang that carry it. A group replica above the minimum
starts after the base gang as a whole; inside it, only order among its own cliques is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.controllers import identity
from spinney.controllers.template import find_clique, group_of, group_template_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.grove import PodCliqueSet, PodCliqueSetTemplate
    from spinney.controllers.template import Count

IN_ORDER = "CliqueStartupTypeInOrder"
EXPLICIT = "CliqueStartupTypeExplicit"


def parents(template: PodCliqueSetTemplate, clique: str) -> list[str]:
    """Return the roles that *clique* starts after, by their names in the template."""
    match template.clique_startup_type:
        case "CliqueStartupTypeInOrder":
            order = [other.name for other in template.cliques]
            place = order.index(clique)
            return order[place - 1 : place] if place else []
        case "CliqueStartupTypeExplicit":
            found = find_clique(template, clique)
            return list(found.spec.starts_after) if found else []
        case _:
            return []


def has_order(template: PodCliqueSetTemplate) -> bool:
    """Tell whether any clique waits for another."""
    return any(parents(template, clique.name) for clique in template.cliques)


def starts_after(
    pcs: PodCliqueSet,
    replica: int,
    clique: str,
    group_counts: Mapping[str, Count],
    group_replica: int | None = None,
) -> list[str]:
    """Return the full names of the cliques that *clique* waits for.

    *group_counts* has the live count of scaling groups by their name in the template; a group
    that is not in it counts as the template says. A group scaled to zero is not waited for.
    *group_replica* is that of *clique*, None for one outside groups.
    """
    template = pcs.spec.template
    own = group_of(template, clique)
    scaled = (
        own is not None
        and group_replica is not None
        and group_replica >= group_template_count(own).minimum
    )
    found: list[str] = []
    for parent in parents(template, clique):
        group = group_of(template, parent)
        if scaled and own is not None:
            if group is own and group_replica is not None:
                full = identity.group_name(pcs.name, replica, own.name)
                found.append(identity.member_name(full, group_replica, parent))
        elif group is None:
            found.append(identity.clique_name(pcs.name, replica, parent))
        else:
            count = group_counts.get(group.name, group_template_count(group))
            full = identity.group_name(pcs.name, replica, group.name)
            found += [identity.member_name(full, j, parent) for j in range(count.needed)]
    return found
