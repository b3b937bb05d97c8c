"""Keeps the resource claims of sets, by set, and says on the set whether they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api.devices import ResourceClaim, ResourceClaimTemplate
from spinney.clock import rfc3339
from spinney.controllers.actions import Create, Delete, perform
from spinney.controllers.conditions import report
from spinney.controllers.resourceclaims.decide import (
    Observation,
    condition,
    decide,
    not_served,
    shares_claims,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.core import Pod
    from spinney.api.grove import PodClique, PodCliqueSet
    from spinney.api.meta import Condition
    from spinney.clock import Clock
    from spinney.controllers.actions import Action
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


class ResourceClaimReconciler:
    """Reconciles the shared claims of PodCliqueSets, by ``namespace/name`` of the set."""

    def __init__(
        self, client: KubeClient, world: World, clock: Clock, events: EventRecorder
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events

    async def reconcile(self, key: str) -> None:
        """Bring the claims of one set to where its spec wants them."""
        world = self._world
        pcs = world.sets.get_key(key)
        if pcs is None or pcs.deleting or not shares_claims(pcs):
            return
        claims = world.optional.informer(ResourceClaim)
        templates = world.optional.informer(ResourceClaimTemplate)
        if claims is None or templates is None:
            if "missing" in (
                world.optional.state(ResourceClaim),
                world.optional.state(ResourceClaimTemplate),
            ):
                await self._report(pcs, not_served())
            return

        def pods(clique: PodClique) -> Sequence[Pod]:
            return list(world.owned(world.pods, clique).values())

        seen = Observation(
            groups=world.groups_of_set(key),
            cliques=world.cliques_of_set(key),
            pods=pods,
            claims=world.claims_of_set(key),
            template=lambda namespace, name: templates.get(name, namespace),
        )
        decision = decide(pcs, seen)
        await perform(self._client, decision.actions)
        self._tell(pcs, decision.actions)
        await self._report(pcs, condition(decision))

    def _tell(self, pcs: PodCliqueSet, todo: Sequence[Action]) -> None:
        words = (
            (Create, "ResourceClaimCreate", "created"),
            (Delete, "ResourceClaimDelete", "deleted"),
        )
        for kind, reason, verb in words:
            count = sum(isinstance(action, kind) for action in todo)
            if count:
                text = f"{verb} {count} shared resource claims"
                self._events.event(pcs, "Normal", f"{reason}Successful", text)

    async def _report(self, pcs: PodCliqueSet, said: Condition) -> None:
        await report(self._client, self._events, pcs, said, rfc3339(self._clock.now()))
