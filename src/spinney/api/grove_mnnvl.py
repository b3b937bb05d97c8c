"""Rules M1 to M4: the annotation ``grove.io/mnnvl-group``, which asks for one NVLink domain.

It may stand on the set, on a scaling group and on a clique; for a clique the nearest counts, and
``none`` opts out. Only cliques with GPUs take part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.api.grove_fields import CLIQUES, GROUPS, immutable, invalid, is_label

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.api.admission import FieldError
    from spinney.api.grove import PodCliqueSet, PodCliqueTemplate

MNNVL_GROUP = "grove.io/mnnvl-group"
OPT_OUT = "none"
GPU = "nvidia.com/gpu"


def mnnvl_group(pcs: PodCliqueSet, clique: PodCliqueTemplate) -> str | None:
    """Return the group whose NVLink domain the pods of *clique* share; None where they do not."""
    value = next(
        (a[MNNVL_GROUP] for a in _nearest(pcs, clique) if MNNVL_GROUP in a),
        OPT_OUT,
    )
    return None if value == OPT_OUT or not wants_gpus(clique) else value


def wants_gpus(clique: PodCliqueTemplate) -> bool:
    """Tell whether a container of the clique asks for a GPU."""
    spec = clique.spec.pod_spec
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    return any(map(container_has_gpu, containers))


def container_has_gpu(container: Any) -> bool:
    """Tell whether a container, as JSON, asks for a GPU."""
    resources = container.get("resources") if isinstance(container, dict) else None
    if not isinstance(resources, dict):
        return False
    amounts = [(resources.get(part) or {}).get(GPU) for part in ("limits", "requests")]
    return any(amount not in (None, 0, "0") for amount in amounts)


def check_mnnvl(pcs: PodCliqueSet, *, enabled: bool) -> Iterator[FieldError]:
    """Yield values that are no name (M1), or ask for what is switched off (M2)."""
    for path, held in _holders(pcs).items():
        value = held.get(MNNVL_GROUP)
        if value is None or value == OPT_OUT:
            continue
        where = f"{path}[{MNNVL_GROUP}]"
        if not is_label(value):
            yield invalid(
                where, f"{value!r} must be {OPT_OUT!r}, or letters, digits and '-', such as train"
            )
        elif not enabled:
            yield invalid(where, f"MNNVL is switched off here: remove it or write {OPT_OUT!r}")


def check_same_mnnvl(old: PodCliqueSet, new: PodCliqueSet) -> Iterator[FieldError]:
    """M3: yield each place where an update adds, removes or changes the annotation."""
    before, after = _by_owner(old), _by_owner(new)
    for owner, (path, value) in after.items():
        was = before.get(owner, (path, value))[1]
        if value != was:
            yield immutable(f"{path}[{MNNVL_GROUP}]", was)


def mnnvl_warnings(pcs: PodCliqueSet) -> Iterator[str]:
    """M4: yield each annotation that has no effect, for want of GPUs below it."""
    template = pcs.spec.template
    for i, clique in enumerate(template.cliques):
        value = clique.annotations.get(MNNVL_GROUP, OPT_OUT)
        if value != OPT_OUT and not wants_gpus(clique):
            yield _without_effect(f"{CLIQUES}[{i}].annotations", f"clique {clique.name!r} asks")
    for i, group in enumerate(template.pod_clique_scaling_groups):
        if group.annotations.get(MNNVL_GROUP, OPT_OUT) != OPT_OUT:
            members = [c for c in template.cliques if c.name in group.clique_names]
            if not any(map(wants_gpus, members)):
                yield _without_effect(f"{GROUPS}[{i}].annotations", "no clique of the group asks")
    on_set = pcs.metadata.annotations.get(MNNVL_GROUP, OPT_OUT)
    if on_set != OPT_OUT and not any(map(wants_gpus, template.cliques)):
        yield _without_effect("metadata.annotations", "no clique asks")


def _without_effect(path: str, who: str) -> str:
    return f"{path}[{MNNVL_GROUP}]: has no effect, because {who} for {GPU}"


def _nearest(pcs: PodCliqueSet, clique: PodCliqueTemplate) -> Iterator[Mapping[str, str]]:
    yield clique.annotations
    for group in pcs.spec.template.pod_clique_scaling_groups:
        if clique.name in group.clique_names:
            yield group.annotations
    yield pcs.metadata.annotations


def _holders(pcs: PodCliqueSet) -> dict[str, Mapping[str, str]]:
    template = pcs.spec.template
    found: dict[str, Mapping[str, str]] = {"metadata.annotations": pcs.metadata.annotations}
    for i, group in enumerate(template.pod_clique_scaling_groups):
        found[f"{GROUPS}[{i}].annotations"] = group.annotations
    for i, clique in enumerate(template.cliques):
        found[f"{CLIQUES}[{i}].annotations"] = clique.annotations
    return found


def _by_owner(pcs: PodCliqueSet) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Return path and value of the annotation by who has it, whatever the order of lists."""
    template = pcs.spec.template
    owners = [
        ("set", ""),
        *(("group", group.name) for group in template.pod_clique_scaling_groups),
        *(("clique", clique.name) for clique in template.cliques),
    ]
    places = _holders(pcs).items()
    return {
        owner: (path, held.get(MNNVL_GROUP))
        for owner, (path, held) in zip(owners, places, strict=True)
    }
