"""Which resource claims a set, its scaling groups and its cliques share, and which have to go.

A claim has a fixed spec, copied from its template when it is made; an edited template changes
nothing. One for each replica exists as long as the replica is wanted or something of it is there: a
pod never loses a claim that it uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.devices import ResourceClaim, ResourceClaimSpec
from spinney.api.meta import Condition, ObjectMeta
from spinney.controllers import identity
from spinney.controllers.actions import Create, Delete
from spinney.controllers.podclique.decide import free_indices
from spinney.controllers.scalinggroup.decide import template_of
from spinney.controllers.template import clique_count, group_count, role_of, set_replicas
from spinney.controllers.update.plan import HOLE, read_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from spinney.api.core import Pod
    from spinney.api.devices import ResourceClaimTemplate
    from spinney.api.grove import (
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        ResourceSharing,
    )
    from spinney.api.meta import KubeObject
    from spinney.controllers.actions import Action

AVAILABLE = "ResourceClaimsAvailable"
"""Whether all claims that the set's pods share exist."""
_NAMED = 3
"""Problems that a message tells of one by one."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What there is of a set that shares claims."""

    groups: Sequence[PodCliqueScalingGroup]
    cliques: Sequence[PodClique]
    pods: Callable[[PodClique], Sequence[Pod]]
    claims: Mapping[str, ResourceClaim]
    """The claims labelled as parts of the set, by name."""
    template: Callable[[str, str], ResourceClaimTemplate | None]
    """Returns the template of a namespace and name that is not the set's own."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and what stands in the way."""

    actions: list[Action] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    total: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    name: str
    owner: KubeObject
    entry: ResourceSharing
    labels: Mapping[str, str]


def shares_claims(pcs: PodCliqueSet) -> bool:
    """Tell whether anything in the set shares a claim."""
    template = pcs.spec.template
    below = [group.resource_sharing for group in template.pod_clique_scaling_groups]
    below += [clique.resource_sharing for clique in template.cliques]
    return bool(template.resource_sharing) or any(below)


def decide(pcs: PodCliqueSet, seen: Observation) -> Decision:
    """Return what brings the set's claims to where its spec wants them."""
    if pcs.deleting:
        return Decision()
    wanted: dict[str, _Wanted] = {}
    for claim in _wanted(pcs, seen):
        wanted.setdefault(claim.name, claim)
    owners = {claim.owner.metadata.uid for claim in wanted.values()} | {pcs.metadata.uid}
    owners |= {obj.metadata.uid for obj in (*seen.groups, *seen.cliques) if not obj.deleting}
    actions: list[Action] = [
        Delete(claim)
        for name, claim in sorted(seen.claims.items())
        if name not in wanted and not claim.deleting and claim.controller_uid() in owners
    ]
    problems = []
    for name, claim in sorted(wanted.items()):
        found = seen.claims.get(name)
        if found is not None:
            if found.controller_uid() != claim.owner.metadata.uid or found.deleting:
                problems.append(f"{name} is of an owner that is gone; waiting for it to go")
            continue
        made = _made(pcs, claim, seen)
        if isinstance(made, str):
            problems.append(made)
        else:
            actions.append(Create(made))
    return Decision(actions, problems, len(wanted))


def condition(decision: Decision) -> Condition:
    """Return what the set says of its claims."""
    if not decision.problems:
        text = f"all {decision.total} shared claims exist"
        return Condition(type=AVAILABLE, status="True", reason="AllClaimsExist", message=text)
    named = "; ".join(decision.problems[:_NAMED])
    more = len(decision.problems) - _NAMED
    text = named + (f"; and {more} more" if more > 0 else "")
    return Condition(type=AVAILABLE, status="False", reason="ClaimsMissing", message=text)


def not_served() -> Condition:
    """Return what a set says that shares claims where the API has none."""
    return Condition(
        type=AVAILABLE,
        status="False",
        reason="KindNotServed",
        message="this cluster does not serve ResourceClaim resource.k8s.io/v1, so no pod of the "
        "set is made: Kubernetes 1.34 and later has it",
    )


def _wanted(pcs: PodCliqueSet, seen: Observation) -> Iterator[_Wanted]:
    replicas = _still_there(
        range(set_replicas(pcs)),
        (_index(obj, names.SET_REPLICA_INDEX) for obj in (*seen.groups, *seen.cliques)),
    )
    yield from _of(pcs, pcs.name, pcs.spec.template.resource_sharing, replicas, _SET, {})
    for group in seen.groups:
        config = template_of(pcs, group)
        if config is None or group.deleting:
            continue
        members = [c for c in seen.cliques if c.labels.get(names.SCALING_GROUP) == group.name]
        indices = _still_there(
            range(group_count(group).target),
            (_index(c, names.SCALING_GROUP_REPLICA_INDEX) for c in members),
        )
        place = _place(group) | {names.SCALING_GROUP: group.name}
        yield from _of(group, group.name, config.resource_sharing, indices, _GROUP, place)
    for clique in seen.cliques:
        role = role_of(pcs, clique)
        if role is None or clique.deleting or not role.resource_sharing:
            continue
        place = _place(clique) | {names.POD_CLIQUE: clique.name}
        indices = _pod_indices(clique, seen.pods(clique))
        yield from _of(clique, clique.name, role.resource_sharing, indices, _CLIQUE, place)


_SET, _GROUP, _CLIQUE = (
    names.SET_REPLICA_INDEX,
    names.SCALING_GROUP_REPLICA_INDEX,
    names.POD_INDEX,
)
_PLACE = (names.SET_REPLICA_INDEX, names.SCALING_GROUP, names.SCALING_GROUP_REPLICA_INDEX)


def _place(obj: KubeObject) -> dict[str, str]:
    return {key: obj.labels[key] for key in _PLACE if key in obj.labels}


def _of(
    owner: KubeObject,
    name: str,
    entries: Iterable[ResourceSharing],
    indices: Iterable[int],
    index_label: str,
    labels: Mapping[str, str],
) -> Iterator[_Wanted]:
    indices = list(indices)
    for entry in entries:
        if entry.scope == "AllReplicas":
            yield _Wanted(identity.claim_name(name, entry.name), owner, entry, labels)
            continue
        for i in indices:
            full = identity.claim_name(name, entry.name, i)
            yield _Wanted(full, owner, entry, {**labels, index_label: str(i)})


def _index(obj: KubeObject, label: str) -> int | None:
    return identity.index_label(obj.labels, label)


def _still_there(wanted: Iterable[int], found: Iterable[int | None]) -> list[int]:
    return sorted({*wanted, *(i for i in found if i is not None)})


def _pod_indices(clique: PodClique, pods: Sequence[Pod]) -> list[int]:
    """Return the indices that pods have, and those that the pods to be made will get."""
    used = {i for pod in pods if (i := _index(pod, names.POD_INDEX)) is not None}
    plan = read_plan(clique.metadata.annotations)
    if plan is not None:
        return sorted(used | {i for i, own in enumerate(plan) if own != HOLE})
    staying = [pod for pod in pods if not pod.deleting]
    missing = clique_count(clique).target - len(staying)
    return sorted(used | set(free_indices(staying, missing)))


def _made(pcs: PodCliqueSet, claim: _Wanted, seen: Observation) -> ResourceClaim | str:
    """Return the claim to make, or why it cannot be made."""
    entry = claim.entry
    own = next(
        (t for t in pcs.spec.template.resource_claim_templates if t.name == entry.name), None
    )
    if own is not None and not entry.namespace:
        meta, spec = own.template_spec.get("metadata") or {}, own.template_spec.get("spec") or {}
    else:
        namespace = entry.namespace or pcs.namespace
        found = seen.template(namespace, entry.name)
        if found is None:
            return (
                f"{claim.name} waits for ResourceClaimTemplate {namespace}/{entry.name}, "
                "which does not exist: create it"
            )
        meta, spec = found.spec.metadata, found.spec.spec
    labels = {
        **(meta.get("labels") or {}),
        **claim.labels,
        **identity.managed_labels(pcs.name, claim.name, "resource-claim"),
    }
    return ResourceClaim(
        metadata=ObjectMeta(
            name=claim.name,
            namespace=pcs.namespace,
            labels=labels,
            annotations=dict(meta.get("annotations") or {}),
            owner_references=[claim.owner.owner_reference()],
        ),
        spec=ResourceClaimSpec(devices=dict(spec.get("devices") or {})),
    )
