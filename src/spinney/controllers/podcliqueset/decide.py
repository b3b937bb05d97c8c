"""What a set consists of: for each replica a service, cliques and scaling groups; once, access.

Replicas are numbered from zero; scaling in removes the highest and everything of them,
the service included. Gangs are kept by their own reconciler, pods by that of their clique.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.api import names
from spinney.api.core import Role, RoleBinding, Service, ServiceSpec
from spinney.api.grove import PodCliqueScalingGroup, PodCliqueScalingGroupSpec
from spinney.api.meta import ObjectMeta
from spinney.controllers import cliques, identity
from spinney.controllers.actions import Change, Create, Delete, covers, metadata_patch
from spinney.controllers.scalinggroup.decide import live_counts
from spinney.controllers.start_order import has_order
from spinney.controllers.template import group_template_count, set_replicas
from spinney.controllers.termination.kept import resume
from spinney.controllers.update.plan import OWN, ROLLOUT, SHARED, write_shared
from spinney.controllers.update.revisions import of_template
from spinney.controllers.update.rollout import in_place, told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.api.grove import PodClique, PodCliqueSet, ScalingGroupTemplate
    from spinney.api.meta import KubeObject
    from spinney.api.podgang import PodGang
    from spinney.controllers.actions import Action
    from spinney.controllers.update.rollout import Mode, Rollout


@dataclass(frozen=True, slots=True)
class Observation:
    """What the set controls, by name."""

    services: Mapping[str, Service]
    cliques: Mapping[str, PodClique]
    groups: Mapping[str, PodCliqueScalingGroup]
    gangs: Mapping[str, PodGang]
    roles: Mapping[str, Role]
    role_bindings: Mapping[str, RoleBinding]

    def all(self) -> list[KubeObject]:
        """Return everything the set controls."""
        kinds: list[Mapping[str, Any]] = [
            self.gangs,
            self.groups,
            self.cliques,
            self.services,
            self.role_bindings,
            self.roles,
        ]
        return [obj for found in kinds for _, obj in sorted(found.items())]


def decide(pcs: PodCliqueSet, seen: Observation, rollout: Rollout | None = None) -> list[Action]:
    """Return what brings the parts of the set to where its spec wants them.

    *rollout* says which replicas get changed pod templates; without it all do.
    """
    if pcs.deleting:
        return _dismantle(pcs, seen)
    rollout = rollout or in_place(pcs, of_template(pcs.spec.template))
    return [
        *_access(pcs, seen),
        *_services(pcs, seen),
        *_groups(pcs, seen, rollout),
        *_cliques(pcs, seen, rollout),
    ]


def may_go(pcs: PodCliqueSet, seen: Observation) -> bool:
    """Tell whether the set, being deleted, has nothing left that would stay behind."""
    return pcs.deleting and not seen.all()


def _dismantle(pcs: PodCliqueSet, seen: Observation) -> list[Action]:
    """Delete the parts, unless the user wants them orphaned: then the collector lets go of them."""
    if "orphan" in pcs.metadata.finalizers:
        return []
    return [Delete(obj) for obj in seen.all() if not obj.deleting]


def _services(pcs: PodCliqueSet, seen: Observation) -> list[Action]:
    actions: list[Action] = []
    wanted = {s.name: s for s in (_service(pcs, i) for i in range(set_replicas(pcs)))}
    for name, service in wanted.items():
        found = seen.services.get(name)
        if found is None:
            actions.append(Create(service))
        elif not found.deleting and (patch := _service_changes(found, service)):
            actions.append(Change(found, patch))
    actions += [
        Delete(service)
        for name, service in sorted(seen.services.items())
        if name not in wanted and not service.deleting
    ]
    return actions


def _service(pcs: PodCliqueSet, replica: int) -> Service:
    name = identity.replica_name(pcs.name, replica)
    config = pcs.spec.template.headless_service_config
    labels = identity.managed_labels(pcs.name, name, "pcs-headless-service")
    return Service(
        metadata=_metadata(pcs, name, {**labels, names.SET_REPLICA_INDEX: str(replica)}),
        spec=ServiceSpec(
            cluster_ip="None",
            selector=identity.replica_selector(pcs.name, replica),
            publish_not_ready_addresses=config is None or config.publish_not_ready_addresses,
        ),
    )


def _service_changes(existing: Service, wanted: Service) -> dict[str, Any]:
    """Return a patch of the two fields that may change; others are the API server's to fill in."""
    patch = metadata_patch(existing, wanted.labels, {})
    spec: dict[str, Any] = {}
    publish = wanted.spec.publish_not_ready_addresses
    if existing.spec.publish_not_ready_addresses != publish:
        spec["publishNotReadyAddresses"] = publish
    if existing.spec.selector != wanted.spec.selector:
        gone = dict.fromkeys(existing.spec.selector.keys() - wanted.spec.selector.keys())
        spec["selector"] = {**gone, **wanted.spec.selector}
    if spec:
        patch["spec"] = spec
    return patch


def _groups(pcs: PodCliqueSet, seen: Observation, rollout: Rollout) -> list[Action]:
    wanted = [
        _told(_group(pcs, replica, template), seen, rollout, rollout.modes[replica])
        for replica in range(set_replicas(pcs))
        for template in pcs.spec.template.pod_clique_scaling_groups
    ]
    by_name = {group.name for group in wanted}
    actions: list[Action] = [
        Delete(group)
        for name, group in sorted(seen.groups.items())
        if name not in by_name and not group.deleting
    ]
    for group in wanted:
        found = seen.groups.get(group.name)
        if found is None:
            actions.append(Create(group))
        elif not found.deleting and (patch := _group_changes(found, group)):
            actions.append(Change(found, patch))
    return actions


def _group(
    pcs: PodCliqueSet, replica: int, template: ScalingGroupTemplate
) -> PodCliqueScalingGroup:
    name = identity.group_name(pcs.name, replica, template.name)
    count = group_template_count(template)
    labels = identity.managed_labels(pcs.name, name, "pcs-podcliquescalinggroup")
    metadata = _metadata(pcs, name, {**labels, names.SET_REPLICA_INDEX: str(replica)})
    metadata.annotations = {
        **template.annotations,
        identity.TEMPLATE_REPLICAS: str(count.wanted),
    }
    return PodCliqueScalingGroup(
        metadata=metadata,
        spec=PodCliqueScalingGroupSpec(
            replicas=count.wanted,
            min_available=count.minimum,
            clique_names=list(template.clique_names),
        ),
    )


def _told(
    group: PodCliqueScalingGroup, seen: Observation, rollout: Rollout, mode: Mode
) -> PodCliqueScalingGroup:
    """Return *group* with what it is told of the update; what it was told where it is to hold."""
    found = seen.groups.get(group.name)
    mine = group.metadata.annotations
    if mode == "hold" and found is not None:
        mine |= {k: v for k, v in found.metadata.annotations.items() if k in OWN}
        return group
    if mode == "roll" or (mode != "in place" and found is None):
        mine |= told(rollout, group.name)
    if rollout.shared:
        mine[SHARED] = write_shared(rollout.shared)
    return group


def _group_changes(
    existing: PodCliqueScalingGroup, wanted: PodCliqueScalingGroup
) -> dict[str, Any]:
    patch = metadata_patch(existing, wanted.labels, wanted.metadata.annotations)
    if gone := cliques.dropped(existing, wanted):
        patch.setdefault("metadata", {}).setdefault("annotations", {}).update(gone)
    spec = cliques.replicas_patch(existing, wanted, wanted.spec.replicas)
    if existing.spec.clique_names != wanted.spec.clique_names:
        spec["cliqueNames"] = wanted.spec.clique_names
    if existing.spec.min_available != wanted.spec.min_available:
        spec["minAvailable"] = wanted.spec.min_available
    if spec:
        patch["spec"] = spec
    return patch


def _cliques(pcs: PodCliqueSet, seen: Observation, rollout: Rollout) -> list[Action]:
    revisions = rollout.target.hashes
    wanted = [
        _reached(clique, seen, rollout, rollout.modes[replica])
        if clique.name in seen.cliques
        else _made(resume(clique, _base_gang(pcs, seen, replica)), rollout, rollout.modes[replica])
        for replica in range(set_replicas(pcs))
        for clique in cliques.standalone(
            pcs, replica, live_counts(pcs, replica, seen.groups), revisions
        )
    ]
    return cliques.reconcile([_labelled(clique, rollout) for clique in wanted], seen.cliques)


def _base_gang(pcs: PodCliqueSet, seen: Observation, replica: int) -> PodGang | None:
    return seen.gangs.get(identity.replica_name(pcs.name, replica))


def _made(clique: PodClique, rollout: Rollout, mode: Mode) -> PodClique:
    """Return a *clique* to be made: it is of the target whatever its replica waits for."""
    own = {} if mode == "in place" else {ROLLOUT: rollout.target.id}
    return cliques.annotated(clique, own)


def _reached(clique: PodClique, seen: Observation, rollout: Rollout, mode: Mode) -> PodClique:
    """Return *clique* as far as the update has reached it."""
    found = seen.cliques[clique.name]
    if mode in ("hold", "stop"):
        return cliques.held(found, clique, stopped=mode == "stop")
    if mode == "in place":
        return clique
    return cliques.annotated(clique, told(rollout, clique.name))


def _labelled(clique: PodClique, rollout: Rollout) -> PodClique:
    """Return *clique* with its revision's label, unless it is held at another."""
    pod_hash = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    if pod_hash not in rollout.target.hashes.values():
        return clique
    return cliques.marked(clique, rollout.label(pod_hash))


def _access(pcs: PodCliqueSet, seen: Observation) -> list[Action]:
    """Let pods that wait for others read pods: with the service account they run under anyway.

    Nothing is granted where no clique waits. No token is stored: the waiting container uses that
    of its pod.
    """
    role, binding = _role(pcs), _role_binding(pcs)
    if not has_order(pcs.spec.template) or not set_replicas(pcs):
        stale = [*seen.role_bindings.values(), *seen.roles.values()]
        return [Delete(obj) for obj in stale if not obj.deleting]
    actions: list[Action] = []
    found = seen.roles.get(role.name)
    if found is None:
        actions.append(Create(role))
    elif not covers(found.rules, role.rules):
        actions.append(Change(found, {"rules": role.rules}))
    bound = seen.role_bindings.get(binding.name)
    if bound is None:
        actions.append(Create(binding))
    elif not covers(bound.subjects, binding.subjects):
        actions.append(Change(bound, {"subjects": binding.subjects}))
    return actions


def _role(pcs: PodCliqueSet) -> Role:
    name = identity.role_name(pcs.name)
    return Role(
        metadata=_metadata(pcs, name, identity.managed_labels(pcs.name, pcs.name, "pod-role")),
        rules=[{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
    )


def _role_binding(pcs: PodCliqueSet) -> RoleBinding:
    name = identity.role_name(pcs.name)
    specs = [clique.spec.pod_spec for clique in pcs.spec.template.cliques]
    accounts = sorted({str(spec.get("serviceAccountName") or "default") for spec in specs})
    labels = identity.managed_labels(pcs.name, pcs.name, "pod-role-binding")
    return RoleBinding(
        metadata=_metadata(pcs, name, labels),
        subjects=[
            {"kind": "ServiceAccount", "name": account, "namespace": pcs.namespace}
            for account in accounts
        ],
        role_ref={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
    )


def _metadata(pcs: PodCliqueSet, name: str, labels: dict[str, str]) -> ObjectMeta:
    return ObjectMeta(
        name=name,
        namespace=pcs.namespace,
        labels=labels,
        owner_references=[pcs.owner_reference()],
    )
