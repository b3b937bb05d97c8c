"""How pods refer to the claims they share and to their NVLink domain.

What all pods of a clique refer to stands in the clique's pod spec. What each pod has for itself is
named in the clique's annotation `PER_POD`, and is added when the pod is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.api.grove_fields import is_label
from spinney.api.grove_mnnvl import container_has_gpu, mnnvl_group
from spinney.controllers import identity
from spinney.controllers.template import group_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spinney.api.grove import (
        PodCliqueSet,
        PodCliqueTemplate,
        ResourceSharing,
        ScalingGroupTemplate,
    )

PER_POD = "spinney.dev/pod-claims"
"""Annotation of a clique: the templates of which each of its pods has a claim of its own."""
SHARED = "spinney.dev/shared-claims"
"""Annotation of a clique: the claims that have to exist before its pods do."""
MNNVL_CLAIM = "mnnvl-claim"
"""Grove's name of a pod's claim to its NVLink domain."""
_HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class ClaimReference:
    """One entry of a pod's ``resourceClaims``."""

    entry: str
    """Its name in the pod, by which containers take part."""
    claim: str = ""
    """The claim that is shared; empty where each pod gets its own from a template."""
    claim_template: str = ""
    gpus_only: bool = False
    """Whether only containers with GPUs take part; else all do."""


def shared_reference(claim: str) -> ClaimReference:
    """Return the reference to the claim of that name; its name in the pod has to be a label."""
    if is_label(claim):
        return ClaimReference(claim, claim)
    digest = hashlib.blake2b(claim.encode(), digest_size=_HASH_BYTES).hexdigest()
    return ClaimReference(f"claim-{digest}", claim)


def shared_claims(
    pcs: PodCliqueSet, role: PodCliqueTemplate, replica: int, group_replica: int | None
) -> list[str]:
    """Return the names of the claims that all pods of a clique share with each other, in order."""
    group = group_of(pcs.spec.template, role.name)
    found = [
        _named(entry, pcs.name, replica)
        for entry in pcs.spec.template.resource_sharing
        if of_set(entry, role, group)
    ]
    if group is not None:
        full = identity.group_name(pcs.name, replica, group.name)
        found += [
            _named(entry, full, group_replica or 0)
            for entry in group.resource_sharing
            if of_group(entry, role)
        ]
        own = identity.member_name(full, group_replica or 0, role.name)
    else:
        own = identity.clique_name(pcs.name, replica, role.name)
    return found + [
        identity.claim_name(own, entry.name)
        for entry in role.resource_sharing
        if entry.scope == "AllReplicas"
    ]


def per_pod(role: PodCliqueTemplate) -> list[str]:
    """Return the templates of which each pod of a role has a claim of its own."""
    return [entry.name for entry in role.resource_sharing if entry.scope == "PerReplica"]


def pod_claims(clique_name: str, annotations: Mapping[str, str], index: int) -> list[str]:
    """Return the names of the claims that the pod of *index* has for itself."""
    found = [text for text in annotations.get(PER_POD, "").split(",") if text]
    return [identity.claim_name(clique_name, claim_template, index) for claim_template in found]


def claim_annotations(
    pcs: PodCliqueSet, role: PodCliqueTemplate, replica: int, group_replica: int | None
) -> dict[str, str]:
    """Return what a clique is told of claims; nothing where none is shared."""
    shared = shared_claims(pcs, role, replica, group_replica)
    own = per_pod(role)
    return ({SHARED: ",".join(shared)} if shared else {}) | (
        {PER_POD: ",".join(own)} if own else {}
    )


def references(
    pcs: PodCliqueSet, role: PodCliqueTemplate, replica: int, group_replica: int | None
) -> list[ClaimReference]:
    """Return what all pods of a clique refer to."""
    found = [shared_reference(name) for name in shared_claims(pcs, role, replica, group_replica)]
    domain = mnnvl_group(pcs, role)
    if domain is not None:
        name = identity.compute_domain_name(pcs.name, replica, domain)
        found.append(ClaimReference(MNNVL_CLAIM, claim_template=name, gpus_only=True))
    return found


def with_claims(pod_spec: dict[str, Any], wanted: Iterable[ClaimReference]) -> dict[str, Any]:
    """Return *pod_spec* with its containers taking part in the *wanted* claims.

    Entries that the user made under the same name stay. The input is not changed; it is returned
    where nothing is added.
    """
    theirs = list(pod_spec.get("resourceClaims") or ())
    known = {entry.get("name") for entry in theirs}
    added = [ref for ref in wanted if ref.entry not in known]
    if not added:
        return pod_spec
    made = {**pod_spec, "resourceClaims": [*theirs, *map(_entry, added)]}
    for key in ("initContainers", "containers"):
        if pod_spec.get(key):
            made[key] = [_taking_part(container, added) for container in pod_spec[key]]
    return made


def of_set(
    entry: ResourceSharing, role: PodCliqueTemplate, group: ScalingGroupTemplate | None
) -> bool:
    """Tell whether a role, in a scaling group or not, takes part in what the set shares."""
    if entry.filter is None:
        return True
    chosen = entry.filter
    in_group = group is not None and group.name in chosen.child_scaling_group_names
    return in_group or role.name in chosen.child_clique_names


def of_group(entry: ResourceSharing, role: PodCliqueTemplate) -> bool:
    """Tell whether a member takes part in what its scaling group shares."""
    return entry.filter is None or role.name in entry.filter.child_clique_names


def _named(entry: ResourceSharing, owner: str, index: int) -> str:
    return identity.claim_name(owner, entry.name, index if entry.scope == "PerReplica" else None)


def _entry(ref: ClaimReference) -> dict[str, str]:
    if ref.claim:
        return {"name": ref.entry, "resourceClaimName": ref.claim}
    return {"name": ref.entry, "resourceClaimTemplateName": ref.claim_template}


def _taking_part(container: dict[str, Any], added: Sequence[ClaimReference]) -> dict[str, Any]:
    mine = list(_mine(container, added))
    if not mine:
        return container
    resources = container.get("resources") or {}
    return {
        **container,
        "resources": {**resources, "claims": [*(resources.get("claims") or ()), *mine]},
    }


def _mine(container: dict[str, Any], added: Sequence[ClaimReference]) -> Iterator[dict[str, str]]:
    has_gpu = container_has_gpu(container)
    return ({"name": ref.entry} for ref in added if has_gpu or not ref.gpus_only)
