"""Keeps the parts of a set, holds it until they are gone when it is deleted, and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove import PodCliqueSet
from spinney.clock import rfc3339
from spinney.controllers.actions import Create, Delete, perform, status_patch
from spinney.controllers.conditions import last_errors
from spinney.controllers.identity import SET_FINALIZER
from spinney.controllers.pacing import Pacer
from spinney.controllers.podcliqueset.decide import Observation, decide, may_go
from spinney.controllers.podcliqueset.status import set_status
from spinney.controllers.update.updates import Updates
from spinney.errors import SpinneyError
from spinney.kube.controller import Result
from spinney.kube.transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.clock import Clock
    from spinney.controllers.actions import Action
    from spinney.controllers.update.updates import Look
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


class PodCliqueSetReconciler:
    """Reconciles PodCliqueSets by ``namespace/name``."""

    def __init__(
        self, client: KubeClient, world: World, clock: Clock, events: EventRecorder
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events
        self._pacer = Pacer(clock)
        self._updates = Updates(client, world, clock, events)

    async def reconcile(self, key: str) -> Result | None:
        """Bring the parts of one set to where its spec wants them; write its status."""
        pcs = self._world.sets.get_key(key)
        if pcs is None:
            self._pacer.forget(key)
            self._updates.forget(key)
            return None
        seen = self._observe(pcs)
        if may_go(pcs, seen):
            await self._hold(pcs, held=False)
            return None
        if not pcs.deleting and SET_FINALIZER not in pcs.metadata.finalizers:
            await self._hold(pcs, held=True)
            # Its event brings the set back here, now certain not to go before its parts.
            return None
        if pcs.deleting:
            await self._do(pcs, decide(pcs, seen))
            return None
        look = self._updates.look(pcs)
        # Stored first: a pod of what is replaced can be made again only from what is stored.
        await self._updates.store(pcs, look.rollout.target)
        failed: Exception | None = None
        try:
            await self._do(pcs, decide(look.pcs, seen, look.rollout))
        except (SpinneyError, TransportError) as error:
            failed = error
        result = await self._report(pcs, seen, look, failed)
        if failed is not None:
            raise failed
        return result

    async def _do(self, pcs: PodCliqueSet, todo: Sequence[Action]) -> None:
        await perform(self._client, todo)
        self._tell(pcs, todo)

    def _observe(self, pcs: PodCliqueSet) -> Observation:
        world = self._world
        return Observation(
            services=world.owned(world.services, pcs),
            cliques=world.owned(world.cliques, pcs),
            groups=world.owned(world.groups, pcs),
            gangs=world.owned(world.gangs, pcs),
            roles=world.owned(world.roles, pcs),
            role_bindings=world.owned(world.role_bindings, pcs),
        )

    async def _hold(self, pcs: PodCliqueSet, *, held: bool) -> None:
        """Add or remove our finalizer, if that is a change; others are kept."""
        others = [f for f in pcs.metadata.finalizers if f != SET_FINALIZER]
        finalizers = [*others, SET_FINALIZER] if held else others
        if finalizers == pcs.metadata.finalizers:
            return
        version = pcs.metadata.resource_version
        patch = {"metadata": {"resourceVersion": version, "finalizers": finalizers}}
        await self._client.patch(PodCliqueSet, pcs.name, patch, pcs.namespace)

    def _tell(self, pcs: PodCliqueSet, todo: Sequence[Action]) -> None:
        made = _words(
            [action.object.RESOURCE.kind for action in todo if isinstance(action, Create)]
        )
        gone = _words(
            [action.object.RESOURCE.kind for action in todo if isinstance(action, Delete)]
        )
        if made:
            self._events.event(pcs, "Normal", "PodCliqueSetCreateSuccessful", f"created {made}")
        if gone:
            kind = "PodCliqueSetReplicaDeleteSuccessful"
            self._events.event(pcs, "Normal", kind, f"deleted {gone}")

    async def _report(
        self, pcs: PodCliqueSet, seen: Observation, look: Look, failed: Exception | None
    ) -> Result | None:
        now = rfc3339(self._clock.now())
        errors = [failed] if failed is not None else []
        status = set_status(
            look.pcs,
            seen.cliques,
            seen.groups,
            self._world.topology_keys(pcs),
            now,
            look.rollout.target,
            last_errors(pcs.status.last_errors, "ERR_SYNC_PARTS", errors, now),
        )
        status = self._updates.status(look, status)
        patch = status_patch(pcs, msgspec.structs.replace(pcs, status=status))
        wait_s = self._pacer.wait_s(pcs.key, changed=bool(patch))
        if wait_s == 0.0:
            await self._client.patch(
                PodCliqueSet, pcs.name, patch, pcs.namespace, subresource="status"
            )
            self._updates.tell(pcs, look, status)
        waits = [s for s in (wait_s, self._updates.overdue_in_s(look)) if s]
        return Result(min(waits)) if waits else None


def _words(kinds: Sequence[str]) -> str:
    """Return how many there are of each kind: ``2 PodClique, 1 Service``."""
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
