"""Rules U1 to U16: what an update of a set may not change.

Everything else may change: replicas, pod specs but for their scheduler, labels, delays, scaling
bounds. All violations are reported together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.grove_fields import CLIQUES, GROUPS, TEMPLATE, forbidden, immutable, invalid
from spinney.api.grove_mnnvl import check_same_mnnvl
from spinney.api.grove_topology import check_same_constraints

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spinney.api.admission import FieldError
    from spinney.api.grove import PodCliqueSet, PodCliqueSetTemplate, PodCliqueTemplate

ANY_ORDER = "CliqueStartupTypeAnyOrder"


def validate_update(old: PodCliqueSet, new: PodCliqueSet) -> list[FieldError]:
    """Return every immutable field that *new* changes."""
    before, after = old.spec.template, new.spec.template
    errors: list[FieldError] = []
    if before.clique_startup_type != after.clique_startup_type:  # U9
        errors.append(immutable(f"{TEMPLATE}.cliqueStartupType", before.clique_startup_type))
    errors += _check_cliques(before, after)
    errors += _check_groups(before, after)
    if before.resource_claim_templates != after.resource_claim_templates:  # U15
        errors.append(immutable(f"{TEMPLATE}.resourceClaimTemplates"))
    if before.resource_sharing != after.resource_sharing:  # U16
        errors.append(immutable(f"{TEMPLATE}.resourceSharing"))
    errors += check_same_constraints(before, after)
    errors += check_same_mnnvl(old, new)
    return errors


def _check_cliques(
    before: PodCliqueSetTemplate, after: PodCliqueSetTemplate
) -> Iterator[FieldError]:
    was, is_ = [c.name for c in before.cliques], [c.name for c in after.cliques]
    yield from _check_same_names(CLIQUES, was, is_)  # U1, U2
    reordered = was != is_ and sorted(was) == sorted(is_)
    if reordered and before.clique_startup_type != ANY_ORDER:  # U3
        yield invalid(CLIQUES, f"the order of cliques is the start order: keep {', '.join(was)}")
    olds = {clique.name: clique for clique in before.cliques}
    for i, clique in enumerate(after.cliques):
        if clique.name in olds:
            yield from _check_same_clique(f"{CLIQUES}[{i}]", olds[clique.name], clique)


def _check_same_names(path: str, was: Sequence[str], is_: Sequence[str]) -> Iterator[FieldError]:
    gone, new = sorted(set(was) - set(is_)), sorted(set(is_) - set(was))
    if len(was) != len(is_):
        detail = f"may not be added or removed (missing {gone}, new {new})"
        yield forbidden(path, detail)
        return
    for i, name in enumerate(is_):
        if name in new:
            yield forbidden(f"{path}[{i}].name", f"may not be renamed to {name!r}, missing {gone}")


def _check_same_clique(
    path: str, before: PodCliqueTemplate, after: PodCliqueTemplate
) -> Iterator[FieldError]:
    pairs: list[tuple[str, object, object]] = [
        ("spec.roleName", before.spec.role_name, after.spec.role_name),  # U4
        ("spec.minAvailable", before.spec.min_available, after.spec.min_available),  # U5
        ("spec.startsAfter", before.spec.starts_after, after.spec.starts_after),  # U6
        (  # U7
            "spec.podSpec.schedulerName",
            before.spec.pod_spec.get("schedulerName") or "",
            after.spec.pod_spec.get("schedulerName") or "",
        ),
    ]
    for field, was, is_ in pairs:
        if was != is_:
            yield immutable(f"{path}.{field}", was)
    if before.resource_sharing != after.resource_sharing:  # U8
        yield immutable(f"{path}.resourceSharing")


def _check_groups(
    before: PodCliqueSetTemplate, after: PodCliqueSetTemplate
) -> Iterator[FieldError]:
    olds = {group.name: group for group in before.pod_clique_scaling_groups}
    news = after.pod_clique_scaling_groups
    yield from _check_same_names(GROUPS, list(olds), [g.name for g in news])  # U10, U11
    for i, group in enumerate(news):
        old = olds.get(group.name)
        if old is None:
            continue
        path = f"{GROUPS}[{i}]"
        if old.clique_names != group.clique_names:  # U12: their order counts
            yield immutable(f"{path}.cliqueNames", old.clique_names)
        if old.min_available != group.min_available:  # U13
            yield immutable(f"{path}.minAvailable", old.min_available)
        if old.resource_sharing != group.resource_sharing:  # U14
            yield immutable(f"{path}.resourceSharing")
