"""Which PodCliqueSets and ClusterTopologyBindings are accepted, and every reason why one is not.

All functions are pure and return all violations. Rule names in comments (V1, U4, T5, …) are those
of the compatibility checklist in ``docs/compatibility.md``. Objects come here after defaulting
and after the schema's own check, so types are right and enums hold.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api.admission import FieldError
from spinney.api.quantity import parse_duration_s
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from spinney.api.admission import Reason
    from spinney.api.core import Container
    from spinney.api.grove import (
        AutoScalingConfig,
        ClusterTopologyBinding,
        PodCliqueSet,
        PodCliqueSetTemplate,
        PodCliqueTemplate,
        ScalingGroupTemplate,
        TopologyConstraint,
    )

NAME_BUDGET = 45
"""Characters for the names a user chooses; indices, hyphens and a suffix fill up to 63."""

_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_ENV_NAME = re.compile(r"^[ -<>-~]+$")

_CLIQUES = "spec.template.cliques"
_GROUPS = "spec.template.podCliqueScalingGroups"
EXPLICIT = "CliqueStartupTypeExplicit"
ANY_ORDER = "CliqueStartupTypeAnyOrder"

Domains = dict[str, int]
"""Domain name → how narrow it is, 0 the broadest."""


def validate_pod_clique_set(
    pcs: PodCliqueSet,
    *,
    domains_of: Callable[[str], Domains | None] | None,
    is_new: bool,
) -> list[FieldError]:
    """Return every rule *pcs* breaks; *domains_of* tells a ClusterTopologyBinding's domains.

    Without it domains are not looked up, as for an update that changes no constraint: a set whose
    binding has gone must stay scalable and deletable.
    """
    template = pcs.spec.template
    errors = [*_check_name("metadata.name", pcs.name)]  # V1
    if (pcs.spec.replicas or 0) < 0:
        errors.append(_invalid("spec.replicas", f"must not be negative, got {pcs.spec.replicas}"))
    errors += _check_delay(template.termination_delay)
    errors += _check_cliques(template)
    errors += _check_groups(template)
    errors += _check_name_budget(pcs)
    errors += _check_starts_after(template)
    if is_new:
        errors += _check_new_pod_specs(template)
    errors += _check_topology(template, domains_of)
    return errors


def same_constraints(old: PodCliqueSet, new: PodCliqueSet) -> bool:
    """Tell whether two versions of a set have the same topology constraints everywhere."""
    before, after = ([p.constraint for p in _constraint_tree(x.spec.template)] for x in (old, new))
    return before == after


def validate_update(old: PodCliqueSet, new: PodCliqueSet) -> list[FieldError]:
    """Return every immutable field that *new* changes."""
    before, after = old.spec.template, new.spec.template
    errors: list[FieldError] = []
    if before.clique_startup_type != after.clique_startup_type:  # U9
        errors.append(_immutable("spec.template.cliqueStartupType", before.clique_startup_type))
    errors += _check_same_names(  # U1, U2
        _CLIQUES, [c.name for c in before.cliques], [c.name for c in after.cliques]
    )
    reordered = [c.name for c in before.cliques] != [c.name for c in after.cliques]
    if not errors and reordered and before.clique_startup_type != ANY_ORDER:  # U3
        errors.append(_invalid(_CLIQUES, "the order of cliques is the start order: keep it"))
    olds = {c.name: c for c in before.cliques}
    for i, clique in enumerate(after.cliques):
        if clique.name in olds:
            errors += _check_same_clique(f"{_CLIQUES}[{i}]", olds[clique.name], clique)
    errors += _check_same_groups(before, after)
    if before.resource_claim_templates != after.resource_claim_templates:  # U15
        errors.append(_immutable("spec.template.resourceClaimTemplates"))
    if before.resource_sharing != after.resource_sharing:  # U16
        errors.append(_immutable("spec.template.resourceSharing"))
    if _constraint(before.topology_constraint) != _constraint(after.topology_constraint):  # T9
        errors.append(_immutable("spec.template.topologyConstraint"))
    return errors


def validate_topology_binding(binding: ClusterTopologyBinding) -> list[FieldError]:
    """Return duplicate domains, label keys and schedulers."""
    levels = binding.spec.levels
    schedulers = binding.spec.scheduler_topology_bindings
    return [
        *_duplicates([level.domain for level in levels], "spec.levels[{i}].domain"),  # CT1
        *_duplicates([level.key for level in levels], "spec.levels[{i}].key"),  # CT2
        *_duplicates(  # CT3
            [s.scheduler_name for s in schedulers],
            "spec.schedulerTopologyBindings[{i}].schedulerName",
        ),
    ]


# Single values


def _error(path: str, reason: Reason, detail: str) -> FieldError:
    return FieldError(path, reason, detail)


def _invalid(path: str, detail: str) -> FieldError:
    return FieldError(path, "FieldValueInvalid", detail)


def _required(path: str, detail: str) -> FieldError:
    return FieldError(path, "FieldValueRequired", detail)


def _immutable(path: str, was: object = None) -> FieldError:
    detail = "may not be changed after creation" + (f"; it is {was!r}" if was is not None else "")
    return FieldError(path, "FieldValueForbidden", detail)


def _check_name(path: str, name: str) -> Iterator[FieldError]:
    if not name.strip():
        yield _required(path, "a name")
    elif len(name) > 253 or not _SUBDOMAIN.match(name):
        yield _invalid(
            path, f"{name!r} must be lower case letters, digits, '-' and '.', such as decode-a"
        )


def _duplicates(values: Sequence[str], path: str) -> Iterator[FieldError]:
    seen: set[str] = set()
    for i, value in enumerate(values):
        if value in seen:
            yield _error(path.format(i=i), "FieldValueDuplicate", f"{value!r}")
        seen.add(value)


def _check_delay(delay: str | None) -> Iterator[FieldError]:
    path = "spec.template.terminationDelay"
    if delay is None:
        yield _required(path, "a duration such as 4h")
        return
    try:
        seconds = parse_duration_s(delay)
    except BadInputError as error:
        yield _invalid(path, str(error))
        return
    if seconds <= 0:
        yield _invalid(path, f"must be more than 0, got {delay}")


# Cliques


def _check_cliques(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    cliques = template.cliques
    if not cliques:  # V17
        yield _required(_CLIQUES, "at least one clique")
    yield from _duplicates([c.name for c in cliques], f"{_CLIQUES}[{{i}}].name")  # V19
    roles = [c.spec.role_name for c in cliques]
    yield from _duplicates([r for r in roles if r], f"{_CLIQUES}.spec.roleName")  # V20
    grouped = {name for g in template.pod_clique_scaling_groups for name in g.clique_names}
    schedulers = {str(c.spec.pod_spec.get("schedulerName") or "") for c in cliques} - {""}
    if len(schedulers) > 1:  # V23
        yield _invalid(
            f"{_CLIQUES}.spec.podSpec.schedulerName",
            f"one scheduler places the whole set, found {', '.join(sorted(schedulers))}",
        )
    for i, clique in enumerate(cliques):
        path = f"{_CLIQUES}[{i}]"
        yield from _check_name(f"{path}.name", clique.name)  # V18
        yield from _check_clique_counts(f"{path}.spec", clique)
        if clique.name in grouped and clique.spec.auto_scaling_config:  # V45
            yield _invalid(
                f"{path}.spec.autoScalingConfig",
                "the clique is in a scaling group: put scaleConfig on the group",
            )
        yield from _check_pod_spec(f"{path}.spec.podSpec", clique)


def _check_clique_counts(path: str, clique: PodCliqueTemplate) -> Iterator[FieldError]:
    spec = clique.spec
    replicas = spec.replicas or 0
    if replicas <= 0:  # V25
        yield _invalid(f"{path}.replicas", f"must be more than 0, got {replicas}")
    yield from _check_min_available(f"{path}.minAvailable", spec.min_available, replicas)
    if spec.auto_scaling_config:
        yield from _check_scaling(
            f"{path}.autoScalingConfig",
            spec.auto_scaling_config,
            replicas=replicas,
            min_available=spec.min_available or 0,
        )


def _check_min_available(path: str, value: int | None, replicas: int) -> Iterator[FieldError]:
    if value is None:  # V26
        yield _required(path, "how many the gang needs")
    elif value <= 0:
        yield _invalid(path, f"must be more than 0, got {value}")
    elif value > replicas:
        yield _invalid(path, f"must not be more than replicas ({replicas}), got {value}")


def _check_scaling(
    path: str, config: AutoScalingConfig, *, replicas: int, min_available: int
) -> Iterator[FieldError]:
    low, high = config.min_replicas, config.max_replicas
    if low is None:  # V30
        yield _required(f"{path}.minReplicas", "a lower bound")
        return
    if low < min_available:
        yield _invalid(
            f"{path}.minReplicas", f"must be at least minAvailable ({min_available}), got {low}"
        )
    if high < low:  # V31
        yield _invalid(f"{path}.maxReplicas", f"must be at least minReplicas ({low}), got {high}")
    if high < replicas:  # V32
        yield _invalid(f"{path}.maxReplicas", f"must be at least replicas ({replicas}), got {high}")


def _check_pod_spec(path: str, clique: PodCliqueTemplate) -> Iterator[FieldError]:
    try:
        spec = clique.spec.typed_pod_spec()
    except msgspec.ValidationError as error:
        yield _invalid(path, str(error))
        return
    if not spec.containers:
        yield _required(f"{path}.containers", "at least one container")
    names = [c.name for c in (*spec.init_containers, *spec.containers)]
    for name, count in Counter(names).items():
        if count > 1:
            yield _error(f"{path}.containers", "FieldValueDuplicate", f"container name {name!r}")
    for field, containers in (
        ("containers", spec.containers),
        ("initContainers", spec.init_containers),
    ):
        for j, container in enumerate(containers):
            yield from _check_env(f"{path}.{field}[{j}]", container)


def _check_env(path: str, container: Container) -> Iterator[FieldError]:
    names = [variable.name for variable in container.env]
    for k, name in enumerate(names):
        if not _ENV_NAME.match(name):  # V33
            yield _invalid(f"{path}.env[{k}].name", f"{name!r} is no name of a variable")
    yield from _duplicates(names, f"{path}.env[{{i}}].name")  # V34


def _check_new_pod_specs(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    for i, clique in enumerate(template.cliques):
        path = f"{_CLIQUES}[{i}].spec.podSpec"
        if clique.spec.pod_spec.get("topologySpreadConstraints"):  # V35
            yield _invalid(f"{path}.topologySpreadConstraints", "use topologyConstraint instead")
        if clique.spec.pod_spec.get("nodeName"):  # V36
            yield _invalid(f"{path}.nodeName", "the scheduler chooses the node; leave it out")


# Scaling groups


def _check_groups(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    groups = template.pod_clique_scaling_groups
    known = {c.name for c in template.cliques}
    yield from _duplicates([g.name for g in groups], f"{_GROUPS}[{{i}}].name")  # V38
    members: Counter[str] = Counter()
    for i, group in enumerate(groups):
        path = f"{_GROUPS}[{i}]"
        yield from _check_name(f"{path}.name", group.name)  # V37
        yield from _check_group_counts(path, group)
        if not group.clique_names:
            yield _required(f"{path}.cliqueNames", "at least one clique")
        for name in group.clique_names:
            if name not in known:  # V39
                yield _invalid(f"{path}.cliqueNames", f"no clique is called {name!r}")
            members[name] += 1
    for name, count in members.items():
        if count > 1:  # V40
            yield _invalid(_GROUPS, f"clique {name!r} is named {count} times; a clique scales once")


def _check_group_counts(path: str, group: ScalingGroupTemplate) -> Iterator[FieldError]:
    replicas = 1 if group.replicas is None else group.replicas
    minimum = 1 if group.min_available is None else group.min_available
    if replicas <= 0:  # V41
        yield _invalid(f"{path}.replicas", f"must be more than 0, got {replicas}")
    yield from _check_min_available(f"{path}.minAvailable", minimum, replicas)  # V42, V43
    if group.scale_config:  # V44, and the maximum, which Grove leaves unchecked
        yield from _check_scaling(
            f"{path}.scaleConfig", group.scale_config, replicas=replicas, min_available=minimum
        )


def _check_name_budget(pcs: PodCliqueSet) -> Iterator[FieldError]:
    """V21: generated names have to fit into 63 characters."""
    template = pcs.spec.template
    group_of = {
        name: group for group in template.pod_clique_scaling_groups for name in group.clique_names
    }
    for i, clique in enumerate(template.cliques):
        group = group_of.get(clique.name)
        parts = [pcs.name, *([group.name] if group else []), clique.name]
        length = sum(map(len, parts))
        if length > NAME_BUDGET:
            yield _invalid(
                f"{_CLIQUES}[{i}].name",
                f"{' + '.join(parts)} have {length} characters together, "
                f"at most {NAME_BUDGET} fit into the names of pods",
            )


# Start order


def _check_starts_after(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    if template.clique_startup_type != EXPLICIT:
        return
    known = {c.name for c in template.cliques}
    parents: dict[str, list[str]] = {}
    for i, clique in enumerate(template.cliques):
        path = f"{_CLIQUES}[{i}].spec.startsAfter"
        after = clique.spec.starts_after
        yield from _duplicates(after, f"{path}[{{i}}]")  # V27
        for name in after:
            if not name.strip():
                yield _required(path, "the name of a clique")
            elif name == clique.name:
                yield _invalid(path, f"{name!r} cannot start after itself")
            elif name not in known:  # V28
                yield _invalid(path, f"no clique is called {name!r}")
        parents[clique.name] = [n for n in after if n in known and n != clique.name]
    for cycle in find_cycles(parents):  # V29
        yield _invalid(_CLIQUES, f"startsAfter goes round in a circle: {' → '.join(cycle)}")


def find_cycles(parents: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return one closed walk for each group of names that wait for each other.

    The names of a walk each start after the next; it begins and ends with the smallest. Two walks
    share no name. Costs nodes × edges at worst, which is small for the roles of a service.
    """
    cycles: list[list[str]] = []
    done: set[str] = set()
    for start in sorted(parents):
        if start in done:
            continue
        walk = _walk_back_to(start, parents)
        if walk:
            cycles.append(walk)
            done.update(walk)
    return cycles


def _walk_back_to(start: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the shortest walk from *start* over parents back to it, empty if there is none."""
    came_from: dict[str, str] = {}
    frontier = [start]
    while frontier:
        following = []
        for name in frontier:
            for parent in parents.get(name, ()):
                if parent == start:
                    return _trace(start, name, came_from)
                if parent not in came_from:
                    came_from[parent] = name
                    following.append(parent)
        frontier = following
    return []


def _trace(start: str, last: str, came_from: Mapping[str, str]) -> list[str]:
    walk = [start]
    while last != start:
        walk.append(last)
        last = came_from[last]
    return [start, *reversed(walk[1:]), start]


# Topology


@dataclass(frozen=True, slots=True)
class _Placed:
    """A constraint, where it stands, and what it inherits its topology from."""

    path: str
    constraint: TopologyConstraint | None
    parent: _Placed | None = None

    def topology(self) -> str:
        own = self.constraint.topology_name if self.constraint else None
        return own or (self.parent.topology() if self.parent else "")


def _check_topology(
    template: PodCliqueSetTemplate, domains_of: Callable[[str], Domains | None] | None
) -> list[FieldError]:
    places = list(_constraint_tree(template))
    held = [(p, p.constraint) for p in places if p.constraint is not None]
    errors = [e for p, c in held for e in _check_constraint_shape(p.path, c)]
    for place, _ in held:
        if not place.topology():  # T2
            errors.append(_required(f"{place.path}.topologyName", "a ClusterTopologyBinding"))
    names = sorted({c.topology_name for _, c in held if c.topology_name})
    if len(names) > 1:  # T3
        errors += [
            _invalid(f"{p.path}.topologyName", f"one set has one topology, found {names}")
            for p, c in held
            if c.topology_name
        ]
        return errors
    if not names or domains_of is None:
        return errors
    domains = domains_of(names[0])
    if domains is None:  # T4
        first = next(p for p, c in held if c.topology_name)
        detail = f"there is no ClusterTopologyBinding {names[0]!r}"
        return [*errors, _invalid(f"{first.path}.topologyName", detail)]
    unknown = [e for p, c in held for e in _check_domains(p.path, c, domains)]
    return [*errors, *(unknown or _check_hierarchy(places, domains))]


def _constraint_tree(template: PodCliqueSetTemplate) -> Iterator[_Placed]:
    top = _Placed("spec.template.topologyConstraint", template.topology_constraint)
    yield top
    parent_of: dict[str, _Placed] = {}
    for i, group in enumerate(template.pod_clique_scaling_groups):
        path = f"{_GROUPS}[{i}].topologyConstraint"
        placed = _Placed(path, group.topology_constraint, top)
        yield placed
        parent_of |= dict.fromkeys(group.clique_names, placed)
    for i, clique in enumerate(template.cliques):
        path = f"{_CLIQUES}[{i}].topologyConstraint"
        yield _Placed(path, clique.topology_constraint, parent_of.get(clique.name, top))


def _required_domain(constraint: TopologyConstraint | None) -> str | None:
    if constraint is None:
        return None
    return constraint.pack_domain or (constraint.pack.required if constraint.pack else None)


def _preferred_domain(constraint: TopologyConstraint | None) -> str | None:
    return constraint.pack.preferred if constraint and constraint.pack else None


def _constraint(constraint: TopologyConstraint | None) -> tuple[str | None, ...] | None:
    """What a constraint means, whichever way its required domain is written (T11)."""
    if constraint is None:
        return None
    return (
        constraint.topology_name,
        _required_domain(constraint),
        _preferred_domain(constraint),
    )


def _check_constraint_shape(path: str, constraint: TopologyConstraint) -> Iterator[FieldError]:
    pack = constraint.pack
    if pack is None and constraint.pack_domain is None:  # C2
        yield _required(f"{path}.pack", "name a domain in pack.required or pack.preferred")
    if pack is not None and not (pack.required or pack.preferred):  # C3
        yield _required(f"{path}.pack", "set required, preferred, or both")
    if constraint.pack_domain and pack is not None and pack.required:  # C4
        yield _invalid(path, "packDomain and pack.required say the same; write pack.required only")


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
            yield _invalid(f"{path}.{field}", f"{domain!r} is no domain of the topology: {known}")


def _check_hierarchy(places: Iterable[_Placed], domains: Domains) -> Iterator[FieldError]:
    """T6, T7: what holds for the whole must not be narrower than what holds for a part."""
    checks = (("pack.required", _required_domain), ("pack.preferred", _preferred_domain))
    for place in places:
        ancestor = place.parent
        while ancestor is not None:
            for field, domain_of in checks:
                whole, part = domain_of(ancestor.constraint), domain_of(place.constraint)
                if whole and part and domains[whole] > domains[part]:
                    yield _invalid(
                        f"{ancestor.path}.{field}",
                        f"{whole!r} is narrower than {part!r} at {place.path}",
                    )
            ancestor = ancestor.parent


# Updates


def _check_same_names(path: str, before: Sequence[str], after: Sequence[str]) -> list[FieldError]:
    if sorted(before) == sorted(after):
        return []
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    detail = f"may not be added, removed or renamed (missing {gone}, new {new})"
    return [_error(path, "FieldValueForbidden", detail)]


def _check_same_clique(
    path: str, before: PodCliqueTemplate, after: PodCliqueTemplate
) -> Iterator[FieldError]:
    pairs: list[tuple[str, object, object]] = [
        ("spec.roleName", before.spec.role_name, after.spec.role_name),  # U4
        ("spec.minAvailable", before.spec.min_available, after.spec.min_available),  # U5
        ("spec.startsAfter", before.spec.starts_after, after.spec.starts_after),  # U6
        (  # U7
            "spec.podSpec.schedulerName",
            before.spec.pod_spec.get("schedulerName"),
            after.spec.pod_spec.get("schedulerName"),
        ),
        ("resourceSharing", before.resource_sharing, after.resource_sharing),  # U8
        (  # T9
            "topologyConstraint",
            _constraint(before.topology_constraint),
            _constraint(after.topology_constraint),
        ),
    ]
    for field, was, is_ in pairs:
        if was != is_:
            yield _immutable(f"{path}.{field}", was)


def _check_same_groups(
    before: PodCliqueSetTemplate, after: PodCliqueSetTemplate
) -> Iterator[FieldError]:
    olds = {g.name: g for g in before.pod_clique_scaling_groups}
    news = after.pod_clique_scaling_groups
    yield from _check_same_names(_GROUPS, list(olds), [g.name for g in news])  # U10, U11
    for i, group in enumerate(news):
        old = olds.get(group.name)
        if old is None:
            continue
        pairs: list[tuple[str, object, object]] = [
            ("cliqueNames", old.clique_names, group.clique_names),  # U12
            ("minAvailable", old.min_available, group.min_available),  # U13
            ("resourceSharing", old.resource_sharing, group.resource_sharing),  # U14
            (
                "topologyConstraint",
                _constraint(old.topology_constraint),
                _constraint(group.topology_constraint),
            ),
        ]
        for field, was, is_ in pairs:
            if was != is_:
                yield _immutable(f"{_GROUPS}[{i}].{field}", was)
