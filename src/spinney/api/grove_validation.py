"""Which PodCliqueSets and ClusterTopologyBindings are accepted, and every reason why one is not.

All functions are pure and return all violations. Rule names in comments (V1, U4, T5, …) are those
of the compatibility checklist in ``docs/compatibility.md``; modules beside this one have the rules
of one subject each. Objects come here after defaulting and after the schema's own check, so
types are right and enums hold.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from spinney.api.admission import FieldError
from spinney.api.grove_backends import check_backend, check_scheduler
from spinney.api.grove_fields import (
    CLIQUES,
    GROUPS,
    TEMPLATE,
    check_annotations,
    check_labels,
    check_name,
    duplicate,
    duplicates,
    invalid,
    required,
)
from spinney.api.grove_mnnvl import check_mnnvl
from spinney.api.grove_sharing import check_claim_names, check_sharing
from spinney.api.grove_update_strategy import check_update_strategy
from spinney.api.quantity import parse_duration_s
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spinney.api.core import Container
    from spinney.api.grove import (
        AutoScalingConfig,
        ClusterTopologyBinding,
        PodCliqueSet,
        PodCliqueSetTemplate,
        PodCliqueTemplate,
        ScalingGroupTemplate,
    )
    from spinney.api.grove_backends import QueueLookup
    from spinney.api.grove_policy import GrovePolicy

NAME_BUDGET = 45
"""Characters for the names a user chooses; indices, hyphens and a suffix fill up to 63."""

_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
EXPLICIT = "CliqueStartupTypeExplicit"


def validate_pod_clique_set(
    pcs: PodCliqueSet, old: PodCliqueSet | None, policy: GrovePolicy, queue_of: QueueLookup
) -> list[FieldError]:
    """Return every rule *pcs* breaks by itself, but for those of topology.

    *old* is what is stored, None for a new set; *queue_of* tells a Volcano queue.
    """
    template = pcs.spec.template
    errors = [*check_name("metadata.name", pcs.name)]  # V1
    if (pcs.spec.replicas or 0) < 0:  # V2
        errors.append(invalid("spec.replicas", f"must not be negative, got {pcs.spec.replicas}"))
    if template.clique_startup_type is None:  # V3
        errors.append(required(f"{TEMPLATE}.cliqueStartupType", "one of the start orders"))
    errors += _check_delay(template.termination_delay)  # V4
    errors += check_sharing(template)  # V5 to V16
    errors += check_claim_names(pcs.name, template)
    errors += _check_cliques(template)
    errors += _check_groups(template)
    errors += _check_name_budget(pcs)
    errors += _check_starts_after(template)
    errors += check_update_strategy(pcs)
    if old is None:
        errors += _check_new_pod_specs(template)
    errors += check_mnnvl(pcs, enabled=policy.mnnvl_enabled)  # M1, M2
    errors += check_scheduler(pcs, policy)  # V23, V24, B5
    errors += check_backend(pcs, old, policy, queue_of)  # B1 to B4
    return errors


def late_pod_spec_fields(old: PodCliqueSet, new: PodCliqueSet) -> Iterator[str]:
    """Yield warnings for what only a new set may not have, where an update brings it in."""
    before = {c.name: c.spec.pod_spec for c in old.spec.template.cliques}
    for i, clique in enumerate(new.spec.template.cliques):
        was = before.get(clique.name, {})
        for field, why in _UNWANTED.items():
            if clique.spec.pod_spec.get(field) and not was.get(field):
                yield f"{CLIQUES}[{i}].spec.podSpec.{field}: a new set may not have it: {why}"


def validate_topology_binding(
    binding: ClusterTopologyBinding, policy: GrovePolicy
) -> list[FieldError]:
    """Return duplicate domains, label keys and schedulers, and schedulers that cannot use it."""
    levels = binding.spec.levels
    path = "spec.schedulerTopologyBindings[{i}].schedulerName"
    named = [s.scheduler_name for s in binding.spec.scheduler_topology_bindings]
    errors = [
        *duplicates([level.domain for level in levels], "spec.levels[{i}].domain"),  # CT1
        *duplicates([level.key for level in levels], "spec.levels[{i}].key"),  # CT2
        *duplicates(named, path),  # CT3
    ]
    for i, name in enumerate(named):
        backend = policy.backend(name) if name else None
        if backend is None:  # CT4
            detail = f"scheduler {name!r} is not enabled here; enabled: {policy.scheduler_names}"
            errors.append(invalid(path.format(i=i), detail))
        elif not backend.topology_aware:  # CT5
            errors.append(invalid(path.format(i=i), f"scheduler {name!r} knows no topology"))
    return errors


def _check_delay(delay: str | None) -> Iterator[FieldError]:
    path = f"{TEMPLATE}.terminationDelay"
    if delay is None:
        yield required(path, "a duration such as 4h")
        return
    try:
        seconds = parse_duration_s(delay)
    except BadInputError as error:
        yield invalid(path, str(error))
        return
    if seconds <= 0:
        yield invalid(path, f"must be more than 0, got {delay}")


# Cliques


def _check_cliques(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    cliques = template.cliques
    if not cliques:  # V17
        yield required(CLIQUES, "at least one clique")
    yield from duplicates([c.name for c in cliques], f"{CLIQUES}[{{i}}].name")  # V19
    roles = [c.spec.role_name for c in cliques]
    yield from duplicates(roles, f"{CLIQUES}[{{i}}].spec.roleName")  # V20
    grouped = {name for g in template.pod_clique_scaling_groups for name in g.clique_names}
    for i, clique in enumerate(cliques):
        path = f"{CLIQUES}[{i}]"
        yield from check_name(f"{path}.name", clique.name)  # V18
        yield from check_labels(f"{path}.labels", clique.labels)  # V22
        yield from check_annotations(f"{path}.annotations", clique.annotations)
        yield from _check_clique_counts(f"{path}.spec", clique)
        if clique.name in grouped and clique.spec.auto_scaling_config:  # V45
            yield invalid(
                f"{path}.spec.autoScalingConfig",
                "the clique is in a scaling group: put scaleConfig on the group",
            )
        yield from _check_pod_spec(f"{path}.spec.podSpec", clique)


def _check_clique_counts(path: str, clique: PodCliqueTemplate) -> Iterator[FieldError]:
    spec = clique.spec
    replicas = spec.replicas or 0
    if replicas <= 0:  # V25
        yield invalid(f"{path}.replicas", f"must be more than 0, got {replicas}")
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
        yield required(path, "how many the gang needs")
    elif value <= 0:
        yield invalid(path, f"must be more than 0, got {value}")
    elif value > replicas:
        yield invalid(path, f"must not be more than replicas ({replicas}), got {value}")


def _check_scaling(
    path: str, config: AutoScalingConfig, *, replicas: int, min_available: int
) -> Iterator[FieldError]:
    low, high = config.min_replicas, config.max_replicas
    if low is None:  # V30
        yield required(f"{path}.minReplicas", "a lower bound")
    elif low < min_available:
        yield invalid(
            f"{path}.minReplicas", f"must be at least minAvailable ({min_available}), got {low}"
        )
    if low is not None and high < low:  # V31
        yield invalid(f"{path}.maxReplicas", f"must be at least minReplicas ({low}), got {high}")
    if high < replicas:  # V32
        yield invalid(f"{path}.maxReplicas", f"must be at least replicas ({replicas}), got {high}")


def _check_pod_spec(path: str, clique: PodCliqueTemplate) -> Iterator[FieldError]:
    try:
        spec = clique.spec.typed_pod_spec()
    except msgspec.ValidationError as error:
        yield invalid(path, str(error))
        return
    if not spec.containers:
        yield required(f"{path}.containers", "at least one container")
    names = [c.name for c in (*spec.init_containers, *spec.containers)]
    for name, count in Counter(names).items():
        if count > 1:
            yield duplicate(f"{path}.containers", name)
    for field, containers in (
        ("containers", spec.containers),
        ("initContainers", spec.init_containers),
    ):
        for j, container in enumerate(containers):
            yield from _check_env(f"{path}.{field}[{j}]", container)


def _check_env(path: str, container: Container) -> Iterator[FieldError]:
    names = [variable.name for variable in container.env]
    for k, name in enumerate(names):
        if not _ENV_NAME.fullmatch(name) or name == "." or name.startswith(".."):  # V33
            yield invalid(
                f"{path}.env[{k}].name",
                f"{name!r} is no name of a variable: letters, digits, '_', '-' and '.', "
                "and no digit first",
            )
    yield from duplicates(names, f"{path}.env[{{i}}].name")  # V34


_UNWANTED = {
    "topologySpreadConstraints": "use topologyConstraint instead",  # V35
    "nodeName": "the scheduler chooses the node; leave it out",  # V36
}


def _check_new_pod_specs(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    for i, clique in enumerate(template.cliques):
        for field, why in _UNWANTED.items():
            if clique.spec.pod_spec.get(field):
                yield invalid(f"{CLIQUES}[{i}].spec.podSpec.{field}", why)


# Scaling groups


def _check_groups(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    groups = template.pod_clique_scaling_groups
    known = {c.name for c in template.cliques}
    yield from duplicates([g.name for g in groups], f"{GROUPS}[{{i}}].name")  # V38
    taken: dict[str, str] = {}
    for i, group in enumerate(groups):
        path = f"{GROUPS}[{i}]"
        yield from check_name(f"{path}.name", group.name)  # V37
        yield from check_annotations(f"{path}.annotations", group.annotations)
        yield from _check_group_counts(path, group)
        if not group.clique_names:
            yield required(f"{path}.cliqueNames", "at least one clique")
        for k, name in enumerate(group.clique_names):
            where = f"{path}.cliqueNames[{k}]"
            if name not in known:  # V39
                yield invalid(where, f"no clique is called {name!r}")
            elif name in taken:  # V40
                detail = f"{name!r} is in group {taken[name]!r} already; a clique scales once"
                yield FieldError(where, "FieldValueDuplicate", detail)
            taken[name] = group.name


def _check_group_counts(path: str, group: ScalingGroupTemplate) -> Iterator[FieldError]:
    replicas = 1 if group.replicas is None else group.replicas
    minimum = 1 if group.min_available is None else group.min_available
    if replicas <= 0:  # V41
        yield invalid(f"{path}.replicas", f"must be more than 0, got {replicas}")
    yield from _check_min_available(f"{path}.minAvailable", minimum, replicas)  # V42, V43
    if group.scale_config:  # V44, and the maximum, which Grove leaves unchecked
        yield from _check_scaling(
            f"{path}.scaleConfig", group.scale_config, replicas=replicas, min_available=minimum
        )


def _check_name_budget(pcs: PodCliqueSet) -> Iterator[FieldError]:
    """V21: generated names have to fit; told of each name that could be shorter, once."""
    longest: dict[str, list[str]] = {}
    for places in _name_parts(pcs):
        parts = list(places.values())
        if sum(map(len, parts)) <= NAME_BUDGET:
            continue
        for path in places:
            if sum(map(len, parts)) > sum(map(len, longest.get(path, ()))):
                longest[path] = parts
    for path, parts in longest.items():
        yield invalid(
            path,
            f"{' + '.join(parts)} have {sum(map(len, parts))} characters together, "
            f"at most {NAME_BUDGET} fit into the names of pods",
        )


def _name_parts(pcs: PodCliqueSet) -> Iterator[dict[str, str]]:
    """Yield, for each clique, what its pods' names are made of, by path."""
    template = pcs.spec.template
    grouped: set[str] = set()
    for g, group in enumerate(template.pod_clique_scaling_groups):
        for k, name in enumerate(group.clique_names):
            grouped.add(name)
            own = {f"{GROUPS}[{g}].cliqueNames[{k}]": name, f"{GROUPS}[{g}].name": group.name}
            yield {"metadata.name": pcs.name, **own}
    for i, clique in enumerate(template.cliques):
        if clique.name not in grouped:
            yield {"metadata.name": pcs.name, f"{CLIQUES}[{i}].name": clique.name}


# Start order


def _check_starts_after(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    if template.clique_startup_type != EXPLICIT:
        return
    known = {c.name for c in template.cliques}
    parents: dict[str, list[str]] = {}
    for i, clique in enumerate(template.cliques):
        path = f"{CLIQUES}[{i}].spec.startsAfter"
        after = clique.spec.starts_after
        yield from duplicates(after, f"{path}[{{i}}]")  # V27
        for name in after:
            if not name.strip():
                yield required(path, "the name of a clique")
            elif name == clique.name:
                yield invalid(path, f"{name!r} cannot start after itself")
            elif name not in known:  # V28
                yield invalid(path, f"no clique is called {name!r}")
        parents[clique.name] = [n for n in after if n in known and n != clique.name]
    for cycle in find_cycles(parents):  # V29
        yield invalid(CLIQUES, f"startsAfter goes round in a circle: {' → '.join(cycle)}")


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
