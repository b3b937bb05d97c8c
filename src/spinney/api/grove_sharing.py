"""Rules V5 to V16: resource claim templates inside a set, and who shares the claims.

A claim is shared by the pods below whatever lists it: the set, a scaling group or a clique. A
filter narrows that to children; which children there can be depends on the level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.api.grove_fields import (
    CLIQUES,
    GROUPS,
    TEMPLATE,
    check_name,
    duplicates,
    forbidden,
    invalid,
    not_found,
    required,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from spinney.api.admission import FieldError
    from spinney.api.grove import (
        PodCliqueSetTemplate,
        ResourceClaimTemplateConfig,
        ResourceSharing,
        ResourceSharingFilter,
    )


def check_claim_names(name: str, template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    """Yield each sharing entry whose claims would be called like those of another one.

    Names are built from those of owner and template with hyphens: set ``s`` with template
    ``a-all-x`` and its clique ``a`` with template ``x`` both mean ``s-0-a-all-x``. Told of first
    replicas.
    """
    known: dict[str, str] = {}
    for path, claim in _claims(name, template):
        if known.setdefault(claim, path) != path:
            yield invalid(
                f"{path}.name",
                f"its claim {claim!r} is called like one of {known[claim]}: rename the template",
            )


def _claims(name: str, template: PodCliqueSetTemplate) -> Iterator[tuple[str, str]]:
    """Yield the claims of first replicas, each with the path of its entry."""
    grouped: dict[str, str] = {}
    holders = [(f"{TEMPLATE}.resourceSharing", name, template.resource_sharing)]
    for g, group in enumerate(template.pod_clique_scaling_groups):
        full = f"{name}-0-{group.name}"
        holders.append((f"{GROUPS}[{g}].resourceSharing", full, group.resource_sharing))
        grouped |= {clique: f"{full}-0-{clique}" for clique in group.clique_names}
    for c, clique in enumerate(template.cliques):
        full = grouped.get(clique.name, f"{name}-0-{clique.name}")
        holders.append((f"{CLIQUES}[{c}].resourceSharing", full, clique.resource_sharing))
    for path, owner, entries in holders:
        # Of a template that is listed twice only the first: that is a mistake of its own.
        first = {entry.name: i for i, entry in reversed(list(enumerate(entries)))}
        for i in sorted(first.values()):
            entry = entries[i]
            which = "all" if entry.scope == "AllReplicas" else "0"
            yield f"{path}[{i}]", f"{owner}-{which}-{entry.name}"


def check_sharing(template: PodCliqueSetTemplate) -> Iterator[FieldError]:
    """Yield every rule that claim templates and sharing lists break."""
    templates = template.resource_claim_templates
    internal = {t.name for t in templates}
    yield from _check_claim_templates(templates)
    path = f"{TEMPLATE}.resourceSharing"
    yield from _check_list(path, template.resource_sharing, internal)
    cliques = {c.name for c in template.cliques}
    groups = {g.name for g in template.pod_clique_scaling_groups}
    for i, entry in enumerate(template.resource_sharing):
        if entry.filter is not None:
            yield from _check_set_filter(f"{path}[{i}].filter", entry.filter, cliques, groups)
    for g, group in enumerate(template.pod_clique_scaling_groups):
        path = f"{GROUPS}[{g}].resourceSharing"
        yield from _check_list(path, group.resource_sharing, internal)
        for i, entry in enumerate(group.resource_sharing):
            if entry.filter is not None:
                where = f"{path}[{i}].filter"
                yield from _check_group_filter(where, entry.filter, group.clique_names)
    for c, clique in enumerate(template.cliques):
        path = f"{CLIQUES}[{c}].resourceSharing"
        yield from _check_list(path, clique.resource_sharing, internal)
        for i, entry in enumerate(clique.resource_sharing):
            if entry.filter is not None:
                yield forbidden(f"{path}[{i}].filter", "a clique has no children to choose from")


def _check_claim_templates(
    templates: Sequence[ResourceClaimTemplateConfig],
) -> Iterator[FieldError]:
    path = f"{TEMPLATE}.resourceClaimTemplates"
    for i, template in enumerate(templates):
        if not template.name.strip():  # V5
            yield required(f"{path}[{i}].name", "a name to share it by")
        elif template.name:
            yield from check_name(f"{path}[{i}].name", template.name)
        if not _requests(template.template_spec):  # V6
            yield required(
                f"{path}[{i}].templateSpec.spec.devices.requests", "at least one device request"
            )
    yield from duplicates([t.name for t in templates], f"{path}[{{i}}].name")  # V7


def _requests(template_spec: dict[str, Any]) -> Any:
    found: Any = template_spec
    for step in ("spec", "devices", "requests"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _check_list(
    path: str, entries: Sequence[ResourceSharing], internal: AbstractSet[str]
) -> Iterator[FieldError]:
    for i, entry in enumerate(entries):
        if not entry.name.strip():  # V8
            yield required(f"{path}[{i}].name", "the name of a resource claim template")
        if entry.namespace and entry.name in internal:  # V10
            yield invalid(
                f"{path}[{i}].namespace",
                f"{entry.name!r} is a template of this set: leave the namespace out",
            )
    named = [entry.name for entry in entries]
    yield from duplicates(named, f"{path}[{{i}}].name")  # V9


def _check_set_filter(
    path: str, chosen: ResourceSharingFilter, cliques: AbstractSet[str], groups: AbstractSet[str]
) -> Iterator[FieldError]:
    if not chosen.child_clique_names and not chosen.child_scaling_group_names:  # V12
        yield required(path, "childCliqueNames or childScalingGroupNames; without a filter all")
    for k, name in enumerate(chosen.child_clique_names):
        if name not in cliques:  # V13
            yield not_found(f"{path}.childCliqueNames[{k}]", f"no clique is called {name!r}")
    for k, name in enumerate(chosen.child_scaling_group_names):
        if name not in groups:  # V14
            yield not_found(
                f"{path}.childScalingGroupNames[{k}]", f"no scaling group is called {name!r}"
            )


def _check_group_filter(
    path: str, chosen: ResourceSharingFilter, members: Sequence[str]
) -> Iterator[FieldError]:
    if chosen.child_scaling_group_names:
        yield forbidden(f"{path}.childScalingGroupNames", "a scaling group holds no groups")
    if not chosen.child_clique_names:  # V15
        yield required(f"{path}.childCliqueNames", "a clique of the group; without a filter all")
    for k, name in enumerate(chosen.child_clique_names):
        if name not in members:  # V16
            yield not_found(
                f"{path}.childCliqueNames[{k}]", f"{name!r} is no clique of the group: {members}"
            )
