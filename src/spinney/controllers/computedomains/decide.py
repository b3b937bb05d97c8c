"""Which compute domains a set has: one for each of its replicas and each group of cliques in it.

The annotation ``grove.io/mnnvl-group`` says which cliques are in one NVLink domain. A domain that
is wanted keeps its finalizer, so that somebody's deletion does not take it from running pods; one
that is not wanted loses it when nothing of its replica is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.computedomain import (
    ClaimTemplateReference,
    ComputeDomain,
    ComputeDomainChannel,
    ComputeDomainSpec,
)
from spinney.api.grove_mnnvl import MNNVL_GROUP, mnnvl_group
from spinney.api.meta import Condition, ObjectMeta
from spinney.controllers import identity
from spinney.controllers.actions import Change, Create, Delete, metadata_patch
from spinney.controllers.template import set_replicas

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from spinney.api.grove import PodCliqueSet
    from spinney.controllers.actions import Action

AVAILABLE = "ComputeDomainsAvailable"
"""Whether the set's NVLink domains exist."""
FINALIZER = "grove.io/computedomain-finalizer"
ELASTIC = 0
"""Number of nodes of a domain that has those its pods are on."""


def groups_of(pcs: PodCliqueSet) -> list[str]:
    """Return the NVLink groups of the set's cliques, in order and once each."""
    found = [mnnvl_group(pcs, clique) for clique in pcs.spec.template.cliques]
    return list(dict.fromkeys(group for group in found if group is not None))


def decide(
    pcs: PodCliqueSet | None, existing: Mapping[str, ComputeDomain], occupied: Collection[int]
) -> list[Action]:
    """Return what brings a set's domains to where its spec wants them.

    *existing* has the domains labelled as parts of the set, by name; *pcs* is None when the set is
    gone. *occupied* has the replicas that there are still cliques of.
    """
    wanted = {} if pcs is None or pcs.deleting else {d.name: d for d in _wanted(pcs)}
    actions: list[Action] = []
    for name, domain in wanted.items():
        found = existing.get(name)
        if found is None:
            actions.append(Create(domain))
        elif not found.deleting and (patch := metadata_patch(found, domain.labels, {})):
            actions.append(Change(found, patch))
    for name, found in sorted(existing.items()):
        replica = identity.index_label(found.labels, names.SET_REPLICA_INDEX)
        if name in wanted or replica in occupied:
            continue
        if found.deleting:
            actions += _release(found)
        elif pcs is not None and found.controller_uid() == pcs.metadata.uid:
            actions += [] if "orphan" in pcs.metadata.finalizers else [Delete(found)]
    return actions


def taken(pcs: PodCliqueSet, existing: Mapping[str, ComputeDomain]) -> list[str]:
    """Return the wanted names that domains of somebody else, or of a former set, have."""
    return [
        domain.name
        for domain in _wanted(pcs)
        if (found := existing.get(domain.name)) is not None
        and found.controller_uid() != pcs.metadata.uid
    ]


def condition(count: int, occupied_names: list[str]) -> Condition:
    """Return what the set says of its *count* domains."""
    if occupied_names:
        text = f"{', '.join(occupied_names)} belongs to somebody else; waiting for it to go"
        return Condition(type=AVAILABLE, status="False", reason="NameTaken", message=text)
    text = f"all {count} compute domains exist"
    return Condition(type=AVAILABLE, status="True", reason="AllDomainsExist", message=text)


def not_served() -> Condition:
    """Return what a set says that wants NVLink domains where there is no such kind."""
    return Condition(
        type=AVAILABLE,
        status="False",
        reason="KindNotServed",
        message="this cluster does not serve ComputeDomain resource.nvidia.com/v1beta1, so pods "
        "with an NVLink domain wait: install NVIDIA's DRA driver for GPUs, or set "
        f"{MNNVL_GROUP} to none",
    )


def _wanted(pcs: PodCliqueSet) -> list[ComputeDomain]:
    groups = groups_of(pcs)
    return [_domain(pcs, i, group) for i in range(set_replicas(pcs)) for group in groups]


def _domain(pcs: PodCliqueSet, replica: int, group: str) -> ComputeDomain:
    name = identity.compute_domain_name(pcs.name, replica, group)
    labels = identity.managed_labels(pcs.name, name, "pcs-computedomain")
    return ComputeDomain(
        metadata=ObjectMeta(
            name=name,
            namespace=pcs.namespace,
            labels={**labels, names.SET_REPLICA_INDEX: str(replica), MNNVL_GROUP: group},
            finalizers=[FINALIZER],
            owner_references=[pcs.owner_reference()],
        ),
        spec=ComputeDomainSpec(
            num_nodes=ELASTIC,
            channel=ComputeDomainChannel(resource_claim_template=ClaimTemplateReference(name=name)),
        ),
    )


def _release(domain: ComputeDomain) -> list[Action]:
    others = [f for f in domain.metadata.finalizers if f != FINALIZER]
    if others == domain.metadata.finalizers:
        return []
    version = domain.metadata.resource_version
    return [Change(domain, {"metadata": {"resourceVersion": version, "finalizers": others}})]
