"""The informers that the reconcilers read, and the questions they ask of them.

All look-ups are by index: by who controls an object, or by a label. What they return is for
reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from spinney.api import names
from spinney.api.computedomain import ComputeDomain
from spinney.api.core import (
    ControllerRevision,
    HorizontalPodAutoscaler,
    Pod,
    Role,
    RoleBinding,
    Service,
)
from spinney.api.devices import ResourceClaim, ResourceClaimTemplate
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.podgang import PodGang
from spinney.controllers import identity, topology
from spinney.controllers.cliques import Place, pod_spec_of
from spinney.controllers.optional_kinds import OptionalKinds
from spinney.controllers.podclique.unseen import UnseenWrites
from spinney.controllers.resourceclaims import refs
from spinney.controllers.template import find_clique, group_of
from spinney.controllers.update import revisions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spinney.api.meta import KubeObject
    from spinney.controllers.topology import Keys
    from spinney.controllers.update.revisions import Revision
    from spinney.kube.controller import Runtime
    from spinney.kube.informer import Change, Informer

T = TypeVar("T", bound="KubeObject")

MANAGED = f"{names.MANAGED_BY}={names.OPERATOR}"

_OWNER = "controllers/owner"
_SET = "controllers/set"
_REPLICA = "controllers/replica"
_GANG = "controllers/gang"
_BASE_GANG = "controllers/base-gang"
_PARENT = "controllers/starts-after"
_TOPOLOGY = "controllers/topology"


class World:
    """Copies of all objects the controllers read."""

    def __init__(self, runtime: Runtime) -> None:
        self.sets: Informer[PodCliqueSet] = runtime.informer(PodCliqueSet)
        self.bindings: Informer[ClusterTopologyBinding] = runtime.informer(ClusterTopologyBinding)
        self.cliques: Informer[PodClique] = runtime.informer(PodClique, labels=MANAGED)
        self.groups: Informer[PodCliqueScalingGroup] = runtime.informer(
            PodCliqueScalingGroup, labels=MANAGED
        )
        self.gangs: Informer[PodGang] = runtime.informer(PodGang, labels=MANAGED)
        self.pods: Informer[Pod] = runtime.informer(Pod, labels=MANAGED)
        self.services: Informer[Service] = runtime.informer(Service, labels=MANAGED)
        self.autoscalers: Informer[HorizontalPodAutoscaler] = runtime.informer(
            HorizontalPodAutoscaler, labels=MANAGED
        )
        self.roles: Informer[Role] = runtime.informer(Role, labels=MANAGED)
        self.role_bindings: Informer[RoleBinding] = runtime.informer(RoleBinding, labels=MANAGED)
        self.revisions: Informer[ControllerRevision] = runtime.informer(
            ControllerRevision, labels=MANAGED
        )
        self.optional = OptionalKinds(
            runtime, {ResourceClaim: MANAGED, ResourceClaimTemplate: "", ComputeDomain: MANAGED}
        )
        self.unseen = UnseenWrites(self.pods, runtime.clock)
        self._targets: dict[str, tuple[object, Revision]] = {}
        self.sets.add_handler(self._forget_target)
        self._index()

    def _forget_target(self, change: Change[PodCliqueSet]) -> None:
        self._targets.pop(change.object.key, None)

    def _index(self) -> None:
        self.sets.add_index(_TOPOLOGY, _topology_of)
        for informer in (self.services, self.autoscalers, self.roles, self.role_bindings):
            informer.add_index(_OWNER, _owner_of)
        self.revisions.add_index(_OWNER, _owner_of)
        self.cliques.add_index(_OWNER, _owner_of)
        self.groups.add_index(_OWNER, _owner_of)
        self.gangs.add_index(_OWNER, _owner_of)
        self.pods.add_index(_OWNER, _owner_of)
        self.cliques.add_index(_GANG, _one(identity.gang_key))
        self.pods.add_index(_GANG, _one(identity.gang_key))
        self.cliques.add_index(_BASE_GANG, _one(identity.base_gang_key))
        self.cliques.add_index(_REPLICA, _one(identity.replica_key))
        self.groups.add_index(_REPLICA, _one(identity.replica_key))
        self.cliques.add_index(_PARENT, _parents_of)
        self.cliques.add_index(_SET, _one(identity.set_key))
        self.groups.add_index(_SET, _one(identity.set_key))
        self.gangs.add_index(_REPLICA, _one(identity.replica_key))
        self.gangs.add_index(_SET, _one(identity.set_key))
        for kind in (ResourceClaim, ComputeDomain):
            self.optional.prepare(kind, _index_by_set)

    def owned(self, informer: Informer[T], owner: KubeObject) -> dict[str, T]:
        """Return the objects that *owner* controls, by name."""
        found = informer.by_index(_OWNER, owner.metadata.uid)
        return {obj.name: obj for obj in found}

    def set_of(self, obj: KubeObject) -> PodCliqueSet | None:
        """Return the set that *obj* is part of, with the pod templates it is to have."""
        pcs = self.sets.get_key(identity.set_key(obj))
        return self.effective(pcs) if pcs is not None else None

    def effective(self, pcs: PodCliqueSet) -> PodCliqueSet:
        """Return the set with the pod templates it is to have: those it says, or rolls back to."""
        strategy = pcs.spec.update_strategy
        if strategy is None or strategy.rollback_to is None:
            return pcs
        return revisions.at(pcs, self.target(pcs))

    def stepping_set_key(self, obj: KubeObject) -> str:
        """Return the key of the set of *obj* if it is in a coherent update, which goes by pods."""
        pcs = self.sets.get_key(identity.set_key(obj))
        strategy = pcs.spec.update_strategy if pcs is not None else None
        if pcs is None or strategy is None or strategy.type != "Coherent":
            return ""
        progress = pcs.status.update_progress
        return pcs.key if progress is not None and progress.update_ended_at is None else ""

    def stored(self, pcs: PodCliqueSet) -> list[Revision]:
        """Return the stored revisions of a set, the newest first."""
        return revisions.read_all(self.owned(self.revisions, pcs).values())

    def target(self, pcs: PodCliqueSet) -> Revision:
        """Return the revision that the pods of a set are to be of."""
        owned = self.owned(self.revisions, pcs)
        token = (
            pcs.metadata.uid,
            pcs.metadata.resource_version,
            sorted(found.metadata.resource_version for found in owned.values()),
        )
        known = self._targets.get(pcs.key)
        if known is not None and known[0] == token:
            return known[1]
        found = revisions.target(pcs, revisions.read_all(owned.values()))
        self._targets[pcs.key] = (token, found)
        return found

    def clique_as_of(self, pcs: PodCliqueSet, clique: PodClique, pod_hash: str) -> PodClique | None:
        """Return *clique* with the pod template of *pod_hash*; None if that is not stored."""
        own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
        now = next((r for r in self.target(pcs).roles.values() if r.hash == own), None)
        for revision in self.stored(pcs):
            for name, role in revision.roles.items():
                if role.hash == pod_hash:
                    found = revisions.clique_as(clique, now, role, revision)
                    return _completed(found, revisions.at(pcs, revision), name)
        return None

    def cliques_of_set(self, key: str) -> list[PodClique]:
        """Return all cliques that are part of a set, also those of its scaling groups."""
        return self.cliques.by_index(_SET, key)

    def groups_of_set(self, key: str) -> list[PodCliqueScalingGroup]:
        """Return the scaling groups that are part of a set."""
        return self.groups.by_index(_SET, key)

    def gangs_of_replica(self, key: str) -> list[PodGang]:
        """Return the gangs of a set's replica."""
        return self.gangs.by_index(_REPLICA, key)

    def gangs_of_set(self, key: str) -> list[PodGang]:
        """Return the gangs that are part of a set."""
        return self.gangs.by_index(_SET, key)

    def cliques_of_replica(self, key: str) -> list[PodClique]:
        """Return all cliques of a set's replica, also those of its scaling groups."""
        return self.cliques.by_index(_REPLICA, key)

    def groups_of_replica(self, key: str) -> list[PodCliqueScalingGroup]:
        """Return the scaling groups of a set's replica."""
        return self.groups.by_index(_REPLICA, key)

    def cliques_of_gang(self, key: str) -> list[PodClique]:
        """Return the cliques of a gang."""
        return self.cliques.by_index(_GANG, key)

    def cliques_after_gang(self, key: str) -> list[PodClique]:
        """Return the cliques that wait for a base gang to be scheduled."""
        return self.cliques.by_index(_BASE_GANG, key)

    def cliques_after(self, key: str) -> list[PodClique]:
        """Return the cliques that start after the clique *key*."""
        return self.cliques.by_index(_PARENT, key)

    def claims_of_set(self, key: str) -> dict[str, ResourceClaim]:
        """Return the shared resource claims that are part of a set, by name."""
        return self._optional_of_set(ResourceClaim, key)

    def domains_of_set(self, key: str) -> dict[str, ComputeDomain]:
        """Return the compute domains that are part of a set, by name."""
        return self._optional_of_set(ComputeDomain, key)

    def _optional_of_set(self, kind: type[T], key: str) -> dict[str, T]:
        informer = self.optional.informer(kind)
        found = informer.by_index(_SET, key) if informer is not None else []
        return {obj.name: obj for obj in found}

    def missing_claims(self, clique: PodClique, index: int | None = None) -> list[str]:
        """Return the claims of the pods of *clique*, or of its pod *index*, that are not there.

        Those of a former owner are on their way out and do not count.
        """
        notes = clique.metadata.annotations
        if index is None:
            wanted = [name for name in notes.get(refs.SHARED, "").split(",") if name]
        else:
            wanted = refs.pod_claims(clique.name, notes, index)
        if not wanted:
            return []
        informer = self.optional.informer(ResourceClaim)
        above = [
            self.sets.get_key(identity.set_key(clique)),
            self.groups.get_key(identity.group_key(clique)),
        ]
        owners = {owner.metadata.uid for owner in (clique, *above) if owner is not None}

        def there(name: str) -> bool:
            claim = informer.get(name, clique.namespace) if informer is not None else None
            return claim is not None and not claim.deleting and claim.controller_uid() in owners

        return [name for name in wanted if not there(name)]

    def pods_of_clique(self, clique: PodClique) -> list[Pod]:
        """Return the pods a clique controls, as they are after what this process has written."""
        return self.unseen.apply(clique.metadata.uid, self.owned(self.pods, clique).values())

    def pods_of_gang(self, key: str) -> list[Pod]:
        """Return the pods of a gang's cliques.

        Pods that carry the gang's label but whose clique is gone, as after a set was deleted and
        made again, are on their way out and not of this gang.
        """
        owners = {c.metadata.uid for c in self.cliques_of_gang(key) if not c.deleting}
        pods = self.pods.by_index(_GANG, key)
        return [pod for pod in pods if pod.controller_uid() in owners]

    def sets_of_topology(self, name: str) -> list[PodCliqueSet]:
        """Return the sets whose constraints mean a binding."""
        return self.sets.by_index(_TOPOLOGY, name)

    def topology_keys(self, pcs: PodCliqueSet) -> Keys | None:
        """Return the node label keys that the set's domains mean; None without its binding."""
        name = topology.topology_name(pcs.spec.template)
        binding = self.bindings.get(name) if name else None
        return topology.keys_of(binding) if binding is not None else None


def _completed(clique: PodClique, pcs: PodCliqueSet, role: str) -> PodClique:
    """Return *clique*, of a *role* of the set as it was, with what a pod spec has by its place."""
    template = find_clique(pcs.spec.template, role)
    replica = identity.index_label(clique.labels, names.SET_REPLICA_INDEX)
    if template is None or replica is None:
        return clique
    group_replica = identity.index_label(clique.labels, names.SCALING_GROUP_REPLICA_INDEX)
    place = Place(replica, group_of(pcs.spec.template, role), group_replica)
    spec = msgspec.structs.replace(clique.spec, pod_spec=pod_spec_of(pcs, template, place))
    return msgspec.structs.replace(clique, spec=spec)


def _one(key: Callable[[KubeObject], str]) -> Callable[[KubeObject], Iterable[str]]:
    return lambda obj: [found] if (found := key(obj)) else []


def _index_by_set(informer: Informer[Any]) -> None:
    informer.add_index(_SET, _one(identity.set_key))


def _owner_of(obj: KubeObject) -> list[str]:
    uid = obj.controller_uid()
    return [uid] if uid else []


def _parents_of(clique: PodClique) -> list[str]:
    return [f"{clique.namespace}/{name}" for name in clique.spec.starts_after]


def _topology_of(pcs: PodCliqueSet) -> list[str]:
    name = topology.topology_name(pcs.spec.template)
    return [name] if name else []
