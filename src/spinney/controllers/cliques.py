"""PodCliques as they should be, standalone or in a scaling group.

The set and the scaling-group reconcilers both make cliques; what a clique looks like, and what of
it follows the template, is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import codec, names
from spinney.api.grove import PodClique, PodCliqueSpec
from spinney.api.meta import ObjectMeta, find_condition
from spinney.controllers import identity
from spinney.controllers.actions import Change, Create, Delete, covers, metadata_patch
from spinney.controllers.resourceclaims import refs
from spinney.controllers.start_order import starts_after
from spinney.controllers.template import (
    group_template_count,
    member_cliques,
    pod_template_hash,
    standalone_cliques,
    template_count,
)
from spinney.controllers.update.plan import OWN, PLAN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.grove import (
        PodCliqueScalingGroup,
        PodCliqueSet,
        PodCliqueSetTemplate,
        PodCliqueTemplate,
        ScalingGroupTemplate,
    )
    from spinney.api.meta import KubeObject
    from spinney.controllers.actions import Action
    from spinney.controllers.template import Count

NOT_INHERITED = (names.TOPOLOGY_NAME,)
"""Annotations of a clique's template that say something of gangs, not of pods."""


_OF_TOOLS = "kubectl.kubernetes.io/"
"""Prefix of annotations that kubectl leaves on what people edit."""

Revisions = Mapping[str, str]
"""The revision of each clique's pods, by its name in the template."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a set a clique is."""

    replica: int
    group: ScalingGroupTemplate | None = None
    group_replica: int | None = None


def revisions(template: PodCliqueSetTemplate) -> Revisions:
    """Return the revision of each clique that the set declares."""
    return {clique.name: pod_template_hash(template, clique) for clique in template.cliques}


def standalone(
    pcs: PodCliqueSet, replica: int, counts: Mapping[str, Count], wanted: Revisions
) -> list[PodClique]:
    """Return the cliques of a replica that are in no scaling group, in the template's order.

    *counts* has the live counts of the replica's scaling groups by their template names, *wanted*
    the `revisions` of the template.
    """
    place = Place(replica)
    return [
        _build(pcs, pcs, template, place, counts, wanted)
        for template in standalone_cliques(pcs.spec.template)
    ]


def members(
    pcs: PodCliqueSet,
    group: PodCliqueScalingGroup,
    template: ScalingGroupTemplate,
    replica: int,
    counts: Mapping[str, Count],
    group_replicas: Sequence[int],
    wanted: Revisions | None = None,
) -> list[PodClique]:
    """Return the cliques of the given replicas of a scaling group."""
    wanted = revisions(pcs.spec.template) if wanted is None else wanted
    return [
        _build(pcs, group, clique, Place(replica, template, j), counts, wanted)
        for j in group_replicas
        for clique in member_cliques(pcs.spec.template, template)
    ]


def held(found: PodClique, wanted: PodClique, *, stopped: bool = False) -> PodClique:
    """Return *wanted* with the pod template of *found*: an update has not reached it yet.

    With *stopped* the running pods are left alone also where an update had reached it.
    """
    own = OWN if not stopped else (PLAN,)
    annotations = {k: v for k, v in found.metadata.annotations.items() if k in own}
    annotations[identity.TEMPLATE_REPLICAS] = wanted.metadata.annotations[
        identity.TEMPLATE_REPLICAS
    ]
    metadata = msgspec.structs.replace(
        wanted.metadata, labels=found.metadata.labels, annotations=annotations
    )
    spec = msgspec.structs.replace(wanted.spec, pod_spec=found.spec.pod_spec)
    return msgspec.structs.replace(wanted, metadata=metadata, spec=spec)


def marked(clique: PodClique, revision: str) -> PodClique:
    """Return *clique* with the label of its *revision*."""
    labels = {**clique.labels, names.REVISION: revision}
    metadata = msgspec.structs.replace(clique.metadata, labels=labels)
    return msgspec.structs.replace(clique, metadata=metadata)


def annotated(clique: PodClique, more: Mapping[str, str]) -> PodClique:
    """Return *clique* with *more* annotations."""
    annotations = {**clique.metadata.annotations, **more}
    metadata = msgspec.structs.replace(clique.metadata, annotations=annotations)
    return msgspec.structs.replace(clique, metadata=metadata)


def reconcile(wanted: Sequence[PodClique], existing: Mapping[str, PodClique]) -> list[Action]:
    """Return what makes *existing* cliques, by name, be as *wanted*; the rest is deleted."""
    by_name = {clique.name: clique for clique in wanted}
    actions: list[Action] = [
        Delete(clique)
        for name, clique in sorted(existing.items())
        if name not in by_name and not clique.deleting
    ]
    for clique in wanted:
        found = existing.get(clique.name)
        if found is None:
            actions.append(Create(clique))
        elif not found.deleting and (patch := _changes(found, clique)):
            actions.append(Change(found, patch))
    return actions


def replicas_patch(
    existing: KubeObject, wanted: KubeObject, replicas: int | None
) -> dict[str, Any]:
    """Return the part of a patch that lets an edited template count win over a scaled one."""
    key = identity.TEMPLATE_REPLICAS
    said = wanted.metadata.annotations[key]
    if existing.metadata.annotations.get(key) in (None, said):
        return {}
    return {"replicas": replicas}


def dropped(existing: KubeObject, wanted: KubeObject) -> dict[str, None]:
    """Return the patch of the annotations of an update that *existing* no longer is to have."""
    have, want = existing.metadata.annotations, wanted.metadata.annotations
    return {key: None for key in OWN if key in have and key not in want}


def _changes(existing: PodClique, wanted: PodClique) -> dict[str, Any]:
    """Return a merge patch; fields that the API server has filled in are no difference."""
    patch = metadata_patch(existing, wanted.metadata.labels, wanted.metadata.annotations)
    if gone := dropped(existing, wanted):
        patch.setdefault("metadata", {}).setdefault("annotations", {}).update(gone)
    spec = replicas_patch(existing, wanted, wanted.spec.replicas)
    before = msgspec.to_builtins(_without_replicas(existing.spec))
    after = msgspec.to_builtins(_without_replicas(wanted.spec))
    revised = names.POD_TEMPLATE_HASH in patch.get("metadata", {}).get("labels", {})
    if revised:
        _drop_former(patch["metadata"], existing, wanted)
    if revised or not covers(before, after) or "startsAfter" in before.keys() - after.keys():
        spec |= codec.diff_values(before, after)
    if spec:
        patch["spec"] = spec
    return patch


def _drop_former(patch: dict[str, Any], existing: PodClique, wanted: PodClique) -> None:
    """Remove what the former template had and the new one has not: pods would inherit it."""
    have, want = existing.metadata, wanted.metadata
    labels = have.labels.keys() - want.labels.keys()
    notes = {
        key
        for key in have.annotations.keys() - want.annotations.keys()
        if key not in OWN and not key.startswith(_OF_TOOLS)
    }
    for field, gone in (("labels", labels), ("annotations", notes)):
        if gone:
            patch.setdefault(field, {}).update(dict.fromkeys(sorted(gone)))


def _without_replicas(spec: PodCliqueSpec) -> PodCliqueSpec:
    return msgspec.structs.replace(spec, replicas=None)


def _build(
    pcs: PodCliqueSet,
    owner: KubeObject,
    template: PodCliqueTemplate,
    place: Place,
    counts: Mapping[str, Count],
    wanted: Revisions,
) -> PodClique:
    count = template_count(template)
    name, labels = _name_and_labels(pcs, template, place)
    labels[names.POD_TEMPLATE_HASH] = wanted[template.name]
    spec = msgspec.structs.replace(
        template.spec,
        pod_spec=pod_spec_of(pcs, template, place),
        replicas=count.wanted,
        min_available=count.minimum,
        starts_after=starts_after(pcs, place.replica, template.name, counts, place.group_replica),
    )
    annotations = {k: v for k, v in template.annotations.items() if k not in NOT_INHERITED}
    return PodClique(
        metadata=ObjectMeta(
            name=name,
            namespace=pcs.namespace,
            labels={**template.labels, **labels},
            annotations={
                **annotations,
                **refs.claim_annotations(pcs, template, place.replica, place.group_replica),
                identity.TEMPLATE_REPLICAS: str(count.wanted),
            },
            owner_references=[owner.owner_reference()],
        ),
        spec=spec,
    )


def _name_and_labels(
    pcs: PodCliqueSet, template: PodCliqueTemplate, place: Place
) -> tuple[str, dict[str, str]]:
    base_gang = identity.replica_name(pcs.name, place.replica)
    own = {
        names.SET_REPLICA_INDEX: str(place.replica),
        names.POD_GANG: base_gang,
    }
    group, j = place.group, place.group_replica
    if group is None or j is None:
        name = identity.clique_name(pcs.name, place.replica, template.name)
        return name, {**identity.managed_labels(pcs.name, name, "pcs-podclique"), **own}
    full = identity.group_name(pcs.name, place.replica, group.name)
    name = identity.member_name(full, j, template.name)
    own |= {names.SCALING_GROUP: full, names.SCALING_GROUP_REPLICA_INDEX: str(j)}
    minimum = group_template_count(group).minimum
    if j >= minimum:
        own[names.POD_GANG] = identity.scaled_gang_name(full, j, minimum)
        own[names.BASE_POD_GANG] = base_gang
    return name, {**identity.managed_labels(pcs.name, name, "pcsg-podclique"), **own}


def pod_spec_of(pcs: PodCliqueSet, template: PodCliqueTemplate, place: Place) -> dict[str, Any]:
    """Return the pod spec of a clique: the template's, with the claims and the group's variables.

    The template's is not changed.
    """
    claims = refs.references(pcs, template, place.replica, place.group_replica)
    spec = refs.with_claims(template.spec.pod_spec, claims)
    if place.group is None:
        return spec
    cliques = member_cliques(pcs.spec.template, place.group)
    pods = sum(template_count(clique).wanted for clique in cliques)
    full = identity.group_name(pcs.name, place.replica, place.group.name)
    index = f"metadata.labels['{names.SCALING_GROUP_REPLICA_INDEX}']"
    return with_environment(
        spec,
        [
            {"name": "GROVE_PCSG_NAME", "value": full},
            {"name": "GROVE_PCSG_INDEX", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            {"name": "GROVE_PCSG_TEMPLATE_NUM_PODS", "value": str(pods)},
        ],
    )


def with_environment(
    pod_spec: Mapping[str, Any], variables: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return *pod_spec* with *variables* first in every container's environment.

    First, so that the user's variables may refer to them; a user's variable of the same name
    is replaced. The input is not changed.
    """
    ours = {variable["name"] for variable in variables}

    def container(raw: Mapping[str, Any]) -> dict[str, Any]:
        theirs = [v for v in raw.get("env") or () if v.get("name") not in ours]
        return {**raw, "env": [*variables, *theirs]}

    lists = ("initContainers", "containers")
    changed = {key: [container(c) for c in pod_spec[key]] for key in lists if pod_spec.get(key)}
    return {**pod_spec, **changed}


def is_available(clique: PodClique, needed: int) -> bool:
    """Tell whether the clique reports as many ready pods as it needs."""
    return not clique.deleting and clique.status.ready_replicas >= needed


def is_updated(clique: PodClique, wanted_hash: str) -> bool:
    """Tell whether the clique reports all its pods to be of revision *wanted_hash*."""
    status = clique.status
    return (
        clique.labels.get(names.POD_TEMPLATE_HASH) == wanted_hash
        and status.observed_generation >= clique.metadata.generation
        and status.current_pod_template_hash == wanted_hash
        and status.updated_replicas >= status.replicas
        and status.updated_replicas >= (clique.spec.replicas or 0)
    )


def trouble(clique: PodClique) -> str:
    """Return what the clique says of why it does not serve."""
    found = find_condition(clique.status.conditions, "MinAvailableBreached")
    return found.message if found is not None else "has not reported yet"
