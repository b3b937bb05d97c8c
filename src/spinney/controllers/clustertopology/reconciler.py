"""Keeps KAI's topologies, where KAI is installed, and the status of bindings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove import ClusterTopologyBinding
from spinney.api.meta import find_condition
from spinney.clock import rfc3339
from spinney.controllers.actions import status_patch
from spinney.controllers.clustertopology.decide import (
    DRIFT,
    KAI_TOPOLOGIES,
    Seen,
    binding_status,
    kai_actions,
    keys_of,
    render_kai,
    views,
)
from spinney.kube.controller import Result
from spinney.kube.errors import AlreadyExistsError, NotFoundError

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured
    from spinney.clock import Clock
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder

RECHECK_S = 60.0
"""How often topologies of other schedulers, which are not watched, are compared."""


class ClusterTopologyReconciler:
    """Reconciles ClusterTopologyBindings by name."""

    def __init__(
        self, client: KubeClient, world: World, clock: Clock, events: EventRecorder
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events

    async def reconcile(self, key: str) -> Result | None:
        """Bring the topologies of one binding up to date and say how they are."""
        binding = self._world.bindings.get_key(key)
        if binding is None or binding.deleting:
            return None
        seen = await self._observe()
        remove, make = kai_actions(binding, seen)
        if remove:
            await self._client.delete(KAI_TOPOLOGIES, binding.name)
        if make:
            try:
                await self._client.create(render_kai(binding), resource=KAI_TOPOLOGIES)
            except AlreadyExistsError:
                return Result(1.0)
            seen = await self._observe()
        await self._report(binding, seen)
        return Result(RECHECK_S)

    async def _observe(self) -> Seen:
        bindings = {b.name: keys_of(b) for b in self._world.bindings.list()}
        kai: dict[str, Unstructured] | None
        try:
            found = await self._client.list(KAI_TOPOLOGIES)
            kai = {item["metadata"]["name"]: item for item in found.items}
        except NotFoundError:
            kai = None
        return Seen(bindings, kai)

    async def _report(self, binding: ClusterTopologyBinding, seen: Seen) -> None:
        status = binding_status(binding, views(binding, seen), rfc3339(self._clock.now()))
        patch = status_patch(binding, msgspec.structs.replace(binding, status=status))
        if not patch:
            return
        await self._client.patch(ClusterTopologyBinding, binding.name, patch, subresource="status")
        before = find_condition(binding.status.conditions, DRIFT)
        after = find_condition(status.conditions, DRIFT)
        if after is None or (before is not None and before.status == after.status):
            return
        if after.status == "False":
            self._events.event(binding, "Normal", "TopologyInSync", after.message)
        else:
            self._events.event(binding, "Warning", "TopologyDriftDetected", after.message)
