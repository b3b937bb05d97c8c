"""Puts the reconcilers on a runtime: who is woken by what.

A change of a part wakes its whole after a moment, so that many changes make one look. What
opens the way for a pod wakes its clique at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from spinney.api import names
from spinney.api.computedomain import ComputeDomain
from spinney.api.devices import ResourceClaim, ResourceClaimTemplate
from spinney.controllers import identity
from spinney.controllers.autoscaling.reconciler import AutoscalerReconciler
from spinney.controllers.backends.handover import Handover
from spinney.controllers.clustertopology.reconciler import ClusterTopologyReconciler
from spinney.controllers.computedomains.decide import groups_of
from spinney.controllers.computedomains.reconciler import ComputeDomainReconciler
from spinney.controllers.metrics import ControllerMetrics
from spinney.controllers.pod_state import (
    exited_with_error,
    is_finished,
    is_ready,
    is_scheduled,
    started_but_not_ready,
)
from spinney.controllers.podclique.pod import WAIT_IMAGE
from spinney.controllers.podclique.reconciler import PodCliqueReconciler
from spinney.controllers.podcliqueset.reconciler import PodCliqueSetReconciler
from spinney.controllers.podgang.reconciler import PodGangReconciler
from spinney.controllers.resourceclaims.decide import shares_claims
from spinney.controllers.resourceclaims.reconciler import ResourceClaimReconciler
from spinney.controllers.scalinggroup.reconciler import ScalingGroupReconciler
from spinney.controllers.template import set_replicas
from spinney.controllers.termination.decide import breached_since_s
from spinney.controllers.termination.reconciler import GangTermination
from spinney.controllers.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from spinney.api.core import Pod
    from spinney.api.grove import (
        ClusterTopologyBinding,
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
    )
    from spinney.api.meta import KubeObject
    from spinney.api.podgang import PodGang
    from spinney.ids import IdSource
    from spinney.kube.controller import Controller, Runtime
    from spinney.kube.events import EventRecorder
    from spinney.kube.informer import Change, Informer

T = TypeVar("T", bound="KubeObject")

GATHER_S = 0.1
"""How long changes of parts are gathered before their whole is looked at."""
SET_GATHER_S = 0.5
"""The same for a set."""
SET_GATHER_PER_REPLICA_S = 0.001
"""What is added for each replica of the set: the time that a look at it takes grows with them."""
CONCURRENCY = 16
"""Objects of one kind that are reconciled at a time."""


def register(
    runtime: Runtime,
    ids: IdSource,
    events: EventRecorder,
    *,
    wait_image: str = WAIT_IMAGE,
    registry: CollectorRegistry | None = None,
) -> None:
    """Put all reconcilers on *runtime*; *events* is run by the caller.

    Pod names come from the API server, so *ids* is not drawn from. *wait_image* is the image of
    the container that waits for other roles. Metrics go to *registry*.
    """
    del ids
    world = World(runtime)
    client, clock = runtime.client, runtime.clock
    metrics = ControllerMetrics(registry, clock) if registry is not None else None
    if metrics is not None:
        metrics.observe(world)
    handover = Handover(client, events)
    sets = runtime.controller(
        "podcliqueset", PodCliqueSetReconciler(client, world, clock, events), concurrency=2
    )
    groups = runtime.controller(
        "podcliquescalinggroup",
        ScalingGroupReconciler(client, world, clock, events),
        concurrency=CONCURRENCY,
    )
    cliques = runtime.controller(
        "podclique",
        PodCliqueReconciler(client, world, clock, events, handover, wait_image=wait_image),
        concurrency=CONCURRENCY,
    )
    gangs = runtime.controller(
        "podgang", PodGangReconciler(client, world, clock, handover), concurrency=CONCURRENCY
    )
    termination = runtime.controller(
        "gangtermination",
        GangTermination(client, world, clock, events, metrics),
        concurrency=CONCURRENCY,
    )
    _register_autoscaling(runtime, world, events)
    _register_devices(runtime, world, events, cliques)
    _register_topologies(runtime, world, events)
    _wake_termination(termination, world)
    _wake_sets(sets, world)
    _wake_groups(groups, world)
    _wake_cliques(cliques, world)
    _wake_gangs(gangs, world)


def _register_autoscaling(runtime: Runtime, world: World, events: EventRecorder) -> None:
    autoscaling = runtime.controller(
        "autoscaling",
        AutoscalerReconciler(runtime.client, world, events),
        concurrency=CONCURRENCY,
    )
    _wake_autoscaling(autoscaling, world)


def _register_devices(
    runtime: Runtime, world: World, events: EventRecorder, cliques: Controller
) -> None:
    client, clock = runtime.client, runtime.clock
    claims = runtime.controller(
        "resourceclaims", ResourceClaimReconciler(client, world, clock, events)
    )
    domains = runtime.controller(
        "computedomains", ComputeDomainReconciler(client, world, clock, events)
    )
    _wake_claims(claims, cliques, world)
    _wake_domains(domains, world)


def _register_topologies(runtime: Runtime, world: World, events: EventRecorder) -> None:
    topologies = runtime.controller(
        "clustertopology",
        ClusterTopologyReconciler(runtime.client, world, runtime.clock, events),
    )
    # What one binding says of our scheduler may depend on another that it refers to.
    topologies.watch(world.bindings, lambda _: [b.name for b in world.bindings.list()])
    topologies.watch(world.bindings, _own_key)


def _wake_sets(controller: Controller, world: World) -> None:
    controller.watch(world.sets, _own_key)

    def part_changed(change: Change[PodClique] | Change[PodCliqueScalingGroup]) -> None:
        key = identity.set_key(change.object)
        pcs = world.sets.get_key(key)
        if pcs is None:
            return
        gone = change.new is None
        more_s = 0.0 if gone else set_replicas(pcs) * SET_GATHER_PER_REPLICA_S
        controller.enqueue(key, SET_GATHER_S + more_s)

    world.cliques.add_handler(part_changed)
    world.groups.add_handler(part_changed)
    _gather(controller, world.pods, world.stepping_set_key, after_s=SET_GATHER_S)
    _gather(controller, world.services, identity.set_key, added=False)
    _gather(controller, world.roles, identity.set_key, added=False)
    _gather(controller, world.role_bindings, identity.set_key, added=False)
    _gather(controller, world.gangs, identity.set_key, deleted_only=True)
    controller.watch(world.bindings, lambda b: [s.key for s in world.sets_of_topology(b.name)])


def _wake_groups(controller: Controller, world: World) -> None:
    def siblings(group: KubeObject) -> list[str]:
        return [g.key for g in world.groups_of_replica(identity.replica_key(group))]

    controller.watch(world.groups, _own_key)
    # Start order goes by how far the other groups are scaled.
    _wake_on_words(controller, world.groups, siblings)
    _wake_on_words(
        controller, world.sets, lambda pcs: [g.key for g in world.groups_of_set(pcs.key)]
    )
    _gather(controller, world.cliques, identity.group_key)


def _wake_cliques(controller: Controller, world: World) -> None:
    def dependents(change: Change[PodClique]) -> None:
        if change.old is None:
            for clique in world.cliques_after(change.object.key):
                controller.enqueue(clique.key)

    def released(gang: PodGang) -> list[str]:
        found = [*world.cliques_of_gang(gang.key), *world.cliques_after_gang(gang.key)]
        return [clique.key for clique in found]

    def changed(change: Change[Pod]) -> None:
        # A pod that is gone is replaced at once; how the others fare is looked at together.
        gone = change.new is None or is_finished(change.new)
        if clique := _clique_of(change.object):
            controller.enqueue(clique, 0.0 if gone else GATHER_S)

    def scheduled(change: Change[Pod]) -> None:
        old, new = change.old, change.new
        if (old is not None and is_scheduled(old)) == (new is not None and is_scheduled(new)):
            return
        for clique in world.cliques_after_gang(identity.gang_key(change.object)):
            controller.enqueue(clique.key)

    controller.watch(world.cliques, _own_key)
    world.cliques.add_handler(dependents)
    world.pods.add_handler(changed)
    world.pods.add_handler(scheduled)
    _wake_on_words(controller, world.gangs, released)


def _wake_gangs(controller: Controller, world: World) -> None:
    controller.watch(world.gangs, _own_key)
    _gather(controller, world.cliques, identity.gang_key, seen=_words)
    _gather(controller, world.pods, identity.gang_key, seen=_bearing)
    _wake_on_words(
        controller,
        world.groups,
        lambda group: [g.key for g in world.gangs_of_replica(identity.replica_key(group))],
    )

    def of_set(pcs: PodCliqueSet) -> list[str]:
        return [gang.key for gang in world.gangs_of_set(pcs.key)]

    def of_binding(binding: ClusterTopologyBinding) -> list[str]:
        return [key for pcs in world.sets_of_topology(binding.name) for key in of_set(pcs)]

    _wake_on_words(controller, world.sets, of_set)
    controller.watch(world.bindings, of_binding)


def _wake_autoscaling(controller: Controller, world: World) -> None:
    def changed(change: Change[PodCliqueSet]) -> None:
        old, new = change.old, change.new
        if old is None or new is None or old.metadata.generation != new.metadata.generation:
            controller.enqueue(change.object.key)

    world.sets.add_handler(changed)
    _gather(controller, world.autoscalers, identity.set_key)


def _wake_termination(controller: Controller, world: World) -> None:
    """Look at a replica when one of its cliques loses its minimum, or what was lost may be back."""

    def changed(change: Change[PodClique]) -> None:
        sides = (change.old, change.new)
        if any(side is not None and breached_since_s(side) is not None for side in sides):
            controller.enqueue(identity.replica_key(change.object), GATHER_S)

    def set_changed(change: Change[PodCliqueSet]) -> None:
        old, new = change.old, change.new
        if old is None or new is None or _same_terms(old, new):
            return
        for clique in world.cliques_of_set(new.key):
            if breached_since_s(clique) is not None:
                controller.enqueue(identity.replica_key(clique))

    world.cliques.add_handler(changed)
    world.sets.add_handler(set_changed)


def _wake_claims(controller: Controller, cliques: Controller, world: World) -> None:
    def of_set(obj: KubeObject) -> str:
        pcs = world.sets.get_key(identity.set_key(obj))
        return pcs.key if pcs is not None and shares_claims(pcs) else ""

    def all_sets() -> None:
        for pcs in world.sets.list():
            if shares_claims(pcs):
                controller.enqueue(pcs.key)
                _enqueue_all(cliques, world.cliques_of_set(pcs.key))

    def claim_changed(change: Change[ResourceClaim]) -> None:
        claim = change.object
        controller.enqueue(identity.set_key(claim))
        if change.old is None:
            replica = identity.replica_key(claim)
            found = world.cliques_of_replica(replica) if replica else None
            _enqueue_all(cliques, found or world.cliques_of_set(identity.set_key(claim)))

    def of_pod(change: Change[Pod]) -> None:
        if (change.old is None or change.new is None) and (key := of_set(change.object)):
            controller.enqueue(key, GATHER_S)

    controller.watch(world.sets, lambda pcs: [pcs.key] if shares_claims(pcs) else [])
    _gather(controller, world.groups, of_set)
    _gather(controller, world.cliques, of_set)
    world.pods.add_handler(of_pod)
    optional = world.optional
    optional.prepare(ResourceClaim, lambda informer: informer.add_handler(claim_changed))
    optional.prepare(
        ResourceClaimTemplate, lambda informer: informer.add_handler(lambda _: all_sets())
    )
    for kind in (ResourceClaim, ResourceClaimTemplate):
        optional.when_known(kind, all_sets)


def _wake_domains(controller: Controller, world: World) -> None:
    def of_set(obj: KubeObject) -> str:
        pcs = world.sets.get_key(identity.set_key(obj))
        return pcs.key if pcs is not None and groups_of(pcs) else ""

    def all_sets() -> None:
        for pcs in world.sets.list():
            controller.enqueue(pcs.key)

    controller.watch(world.sets, lambda pcs: [pcs.key] if groups_of(pcs) else [])
    _gather(controller, world.cliques, of_set, deleted_only=True)
    world.optional.prepare(
        ComputeDomain, lambda informer: controller.watch(informer, lambda d: [identity.set_key(d)])
    )
    world.optional.when_known(ComputeDomain, all_sets)


def _enqueue_all(controller: Controller, found: Iterable[KubeObject]) -> None:
    for obj in found:
        controller.enqueue(obj.key)


def _same_terms(old: PodCliqueSet, new: PodCliqueSet) -> bool:
    """Tell whether an edit leaves alone what terminations go by."""
    return (
        old.spec.template.termination_delay == new.spec.template.termination_delay
        and old.status.update_progress == new.status.update_progress
    )


def _wake_on_words(
    controller: Controller, informer: Informer[T], keys: Callable[[T], list[str]]
) -> None:
    """Wake the *keys* of an object when its `_words` change, not when it only reports."""

    def changed(change: Change[T]) -> None:
        old, new = change.old, change.new
        if old is None or new is None or _words(old) != _words(new):
            for key in keys(change.object):
                controller.enqueue(key)

    informer.add_handler(changed)


def _words(obj: KubeObject) -> object:
    """Return what an object says of what is wanted; its status says what is."""
    meta = obj.metadata
    return meta.generation, meta.deletion_timestamp, meta.labels, meta.annotations


def _bearing(pod: Pod) -> object:
    """Return what a gang goes by of a pod."""
    return (
        pod.spec.node_name,
        pod.status.phase,
        pod.deleting,
        is_ready(pod),
        exited_with_error(pod),
        started_but_not_ready(pod),
    )


def _own_key(obj: KubeObject) -> list[str]:
    return [obj.key]


def _clique_of(pod: Pod) -> str:
    clique = pod.labels.get(names.POD_CLIQUE)
    return f"{pod.namespace}/{clique}" if clique else ""


def _gather(
    controller: Controller,
    informer: Informer[T],
    key: Callable[[T], str],
    *,
    after_s: float = GATHER_S,
    added: bool = True,
    deleted_only: bool = False,
    seen: Callable[[T], object] | None = None,
) -> None:
    """Wake the *key* of each object of *informer* that changes, in *after_s*.

    With *seen*, a change counts that shows in what it returns.
    """

    def changed(change: Change[T]) -> None:
        old, new = change.old, change.new
        if (deleted_only and new is not None) or (old is None and not added):
            return
        if seen is not None and old is not None and new is not None and seen(old) == seen(new):
            return
        if found := key(change.object):
            controller.enqueue(found, after_s)

    informer.add_handler(changed)
