"""Keeps the compute domains of sets, by set, and says on the set whether they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.computedomain import ComputeDomain
from spinney.clock import rfc3339
from spinney.controllers import identity
from spinney.controllers.actions import Create, Delete, perform
from spinney.controllers.computedomains.decide import (
    condition,
    decide,
    groups_of,
    not_served,
    taken,
)
from spinney.controllers.conditions import report
from spinney.controllers.template import set_replicas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.grove import PodCliqueSet
    from spinney.api.meta import Condition
    from spinney.clock import Clock
    from spinney.controllers.actions import Action
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


class ComputeDomainReconciler:
    """Reconciles the NVLink domains of PodCliqueSets, by ``namespace/name`` of the set."""

    def __init__(
        self, client: KubeClient, world: World, clock: Clock, events: EventRecorder
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events

    async def reconcile(self, key: str) -> None:
        """Bring the domains of one set, which may be gone, to where its spec wants them."""
        world = self._world
        pcs = world.sets.get_key(key)
        wants = pcs is not None and not pcs.deleting and bool(groups_of(pcs))
        if world.optional.informer(ComputeDomain) is None:
            if pcs is not None and wants and world.optional.state(ComputeDomain) == "missing":
                await self._report(pcs, not_served())
            return
        existing = world.domains_of_set(key)
        indices = [
            identity.index_label(clique.labels, names.SET_REPLICA_INDEX)
            for clique in world.cliques_of_set(key)
        ]
        todo = decide(pcs, existing, {i for i in indices if i is not None})
        try:
            await perform(self._client, todo)
        except Exception as error:
            if pcs is not None:
                text = f"cannot bring the compute domains up to date: {error}"
                self._events.event(pcs, "Warning", "ComputeDomainSyncFailed", text)
            raise
        if pcs is None:
            return
        self._tell(pcs, todo)
        if wants:
            count = len(groups_of(pcs)) * set_replicas(pcs)
            await self._report(pcs, condition(count, taken(pcs, existing)))

    def _tell(self, pcs: PodCliqueSet, todo: Sequence[Action]) -> None:
        words = (
            (Create, "ComputeDomainCreate", "created"),
            (Delete, "ComputeDomainDelete", "deleted"),
        )
        for kind, reason, verb in words:
            found = [action.object.name for action in todo if isinstance(action, kind)]
            if found:
                text = f"{verb} compute domains {', '.join(found)}"
                self._events.event(pcs, "Normal", f"{reason}Successful", text)

    async def _report(self, pcs: PodCliqueSet, said: Condition) -> None:
        await report(self._client, self._events, pcs, said, rfc3339(self._clock.now()))
