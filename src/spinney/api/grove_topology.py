"""Rules T1 to T13 and C1 to C5: topology constraints of a set, its groups and its cliques.

A constraint is checked against the topology's levels when it is made. It is immutable, so an update
is not checked again: a set whose binding has gone, or that was stored under older rules,
stays scalable and deletable. Two changes are let through: naming the topology of a constraint
that had none, and writing ``packDomain`` as ``pack.required``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove_fields import (
    CLIQUES,
    GROUPS,
    TEMPLATE,
    forbidden,
    immutable,
    invalid,
    required,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from spinney.api.admission import FieldError
    from spinney.api.grove import PodCliqueSetTemplate, TopologyConstraint

Domains = dict[str, int]
"""Domain name → how narrow it is, 0 the broadest."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A constraint, whose it is, where it stands, and what it inherits its topology from."""

    owner: tuple[str, str]
    path: str
    constraint: TopologyConstraint | None
    parent: _Placed | None = None

    def topology(self) -> str:
        own = self.constraint.topology_name if self.constraint else None
        return own or (self.parent.topology() if self.parent else "")


# A set as it is made, or repaired


def check_topology(
    template: PodCliqueSetTemplate, domains_of: Callable[[str], Domains | None], *, enabled: bool
) -> list[FieldError]:
    """Return every rule that the constraints break.

    *domains_of* tells the domains of a ClusterTopologyBinding, None when there is no such binding.
    """
    places = list(_places(template))
    held = [(p, p.constraint) for p in places if p.constraint is not None]
    if not enabled:  # T1
        return [invalid(p.path, "topology is switched off here: remove it") for p, _ in held]
    errors = [
        required(f"{place.path}.topologyName", "a ClusterTopologyBinding")  # T2
        for place, _ in held
        if not place.topology()
    ]
    names = sorted({c.topology_name for _, c in held if c.topology_name})
    if len(names) > 1:  # T3
        return errors + [
            invalid(f"{p.path}.topologyName", f"one set has one topology, found {', '.join(names)}")
            for p, c in held
            if c.topology_name
        ]
    if not names:
        return errors
    domains = domains_of(names[0])
    if domains is None:  # T4
        first = next(p for p, c in held if c.topology_name)
        detail = f"there is no ClusterTopologyBinding {names[0]!r}"
        return [*errors, invalid(f"{first.path}.topologyName", detail)]
    unknown = [e for p, c in held for e in _check_domains(p.path, c, domains)]
    return [*errors, *(unknown or _check_hierarchy(places, domains))]


def check_constraint_shapes(
    template: PodCliqueSetTemplate, *, is_new: bool
) -> Iterator[FieldError]:
    """Yield constraints that name no domain, or name one twice, or in the old way."""
    for place in _places(template):
        constraint = place.constraint
        if constraint is None:
            continue
        pack = constraint.pack
        if pack is None and not constraint.pack_domain:  # C2
            yield required(f"{place.path}.pack", "a domain in pack.required or pack.preferred")
        if pack is not None and not (pack.required or pack.preferred):  # C3
            yield required(f"{place.path}.pack", "set required, preferred, or both")
        if constraint.pack_domain and pack is not None and pack.required:  # C4
            detail = "packDomain and pack.required say the same; write pack.required only"
            yield invalid(place.path, detail)
        if is_new and constraint.pack_domain:  # C1
            yield forbidden(f"{place.path}.packDomain", "deprecated; write pack.required instead")


def redundant_preferences(
    template: PodCliqueSetTemplate, domains_of: Callable[[str], Domains | None]
) -> Iterator[str]:
    """T8: yield warnings for preferences that the same constraint's requirement makes idle."""
    for place in _places(template):
        required_, preferred = _required_domain(place.constraint), _preferred(place.constraint)
        if not required_ or not preferred:
            continue
        domains = domains_of(place.topology()) or {}
        if domains.get(preferred, 0) < domains.get(required_, 0):
            yield (
                f"{place.path}.pack.preferred: {preferred!r} has no effect, because it is broader "
                f"than {required_!r}, which is required"
            )


def deprecated_fields(template: PodCliqueSetTemplate) -> Iterator[str]:
    """T12: yield a warning for each ``packDomain`` that is left."""
    for place in _places(template):
        if place.constraint and place.constraint.pack_domain:
            yield f"{place.path}.packDomain: deprecated; write pack.required instead"


# Updates


def is_repaired(old: PodCliqueSetTemplate, new: PodCliqueSetTemplate) -> bool:
    """T10: tell whether an update names the topology of a constraint that had none."""
    before = {place.owner: place.constraint for place in _places(old)}
    return any(_is_repair(before.get(p.owner), p.constraint) for p in _places(new))


def check_same_constraints(
    old: PodCliqueSetTemplate, new: PodCliqueSetTemplate
) -> Iterator[FieldError]:
    """T9: yield each constraint that an update adds, removes or changes."""
    before = {place.owner: place.constraint for place in _places(old)}
    for place in _places(new):
        if place.owner not in before:
            continue
        was, is_ = before[place.owner], place.constraint
        if was == is_ or _is_repair(was, is_) or _is_migration(was, is_):
            continue
        if was and is_ and (was.topology_name or "") != (is_.topology_name or ""):
            yield immutable(f"{place.path}.topologyName", was.topology_name)
        else:
            yield immutable(place.path)


def _is_repair(was: TopologyConstraint | None, is_: TopologyConstraint | None) -> bool:
    """T10: only the topology is added, to a constraint written in the old way."""
    if was is None or is_ is None or was.topology_name or not was.pack_domain:
        return False
    if not is_.topology_name:
        return False
    return msgspec.structs.replace(is_, topology_name=was.topology_name) == was


def _is_migration(was: TopologyConstraint | None, is_: TopologyConstraint | None) -> bool:
    """T11: the same constraint, whose required domain is written in the new way."""
    if was is None or is_ is None or not was.pack_domain or is_.pack_domain:
        return False
    return _meaning(was) == _meaning(is_)


def _meaning(constraint: TopologyConstraint) -> tuple[str | None, ...]:
    return constraint.topology_name, _required_domain(constraint), _preferred(constraint)


# The tree of constraints


def _places(template: PodCliqueSetTemplate) -> Iterator[_Placed]:
    """Yield every place for a constraint, outer before inner.

    A clique inherits from its group if that has a constraint, else from the set; one in no
    group inherits from no group.
    """
    path = f"{TEMPLATE}.topologyConstraint"
    top = _Placed(("set", ""), path, template.topology_constraint)
    yield top
    parent_of: dict[str, _Placed] = {}
    for i, group in enumerate(template.pod_clique_scaling_groups):
        path = f"{GROUPS}[{i}].topologyConstraint"
        placed = _Placed(("group", group.name), path, group.topology_constraint, top)
        yield placed
        parent_of |= dict.fromkeys(group.clique_names, placed)
    for i, clique in enumerate(template.cliques):
        path = f"{CLIQUES}[{i}].topologyConstraint"
        parent = parent_of.get(clique.name, top)
        yield _Placed(("clique", clique.name), path, clique.topology_constraint, parent)


def _required_domain(constraint: TopologyConstraint | None) -> str | None:
    if constraint is None:
        return None
    return constraint.pack_domain or (constraint.pack.required if constraint.pack else None)


def _preferred(constraint: TopologyConstraint | None) -> str | None:
    return constraint.pack.preferred if constraint and constraint.pack else None


def _check_domains(
    path: str, constraint: TopologyConstraint, domains: Domains
) -> Iterator[FieldError]:
    """T5: each domain named is one of the binding's."""
    named = (
        ("packDomain", constraint.pack_domain),
        ("pack.required", constraint.pack.required if constraint.pack else None),
        ("pack.preferred", constraint.pack.preferred if constraint.pack else None),
    )
    for field, domain in named:
        if domain is not None and domain not in domains:
            known = ", ".join(sorted(domains, key=domains.__getitem__))
            yield invalid(f"{path}.{field}", f"{domain!r} is no domain of the topology: {known}")


def _check_hierarchy(places: Iterable[_Placed], domains: Domains) -> Iterator[FieldError]:
    """T6, T7: what holds for the whole must not be narrower than what holds for a part."""
    for place in places:
        ancestor = place.parent
        while ancestor is not None:
            for field, whole, part in _compared(ancestor.constraint, place.constraint):
                if domains[whole] > domains[part]:
                    yield invalid(
                        f"{ancestor.path}.{field}",
                        f"{whole!r} is narrower than {part!r} at {place.path}",
                    )
            ancestor = ancestor.parent


def _compared(
    whole: TopologyConstraint | None, part: TopologyConstraint | None
) -> Iterator[tuple[str, str, str]]:
    """Yield field, outer domain and inner domain: required with required, preferred likewise."""
    if whole is None or part is None:
        return
    outer, inner = _required_domain(whole), _required_domain(part)
    if outer and inner:
        yield ("packDomain" if whole.pack_domain else "pack.required"), outer, inner
    outer, inner = _preferred(whole), _preferred(part)
    if outer and inner:
        yield "pack.preferred", outer, inner
