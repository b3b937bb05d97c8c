"""Keeps the autoscalers of a set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.controllers.actions import Create, Delete, perform
from spinney.controllers.autoscaling.decide import decide

if TYPE_CHECKING:
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


class AutoscalerReconciler:
    """Reconciles the autoscalers of PodCliqueSets by ``namespace/name`` of the set."""

    def __init__(self, client: KubeClient, world: World, events: EventRecorder) -> None:
        self._client = client
        self._world = world
        self._events = events

    async def reconcile(self, key: str) -> None:
        """Bring the autoscalers of one set to what its template asks for."""
        pcs = self._world.sets.get_key(key)
        if pcs is None:
            return
        todo = decide(pcs, self._world.owned(self._world.autoscalers, pcs))
        await perform(self._client, todo)
        for action, verb in ((Create, "created"), (Delete, "deleted")):
            done = [found.object.name for found in todo if isinstance(found, action)]
            if done:
                text = f"{verb} {len(done)} HorizontalPodAutoscalers: {', '.join(done)}"
                reason = "HorizontalPodAutoscaler" + ("Create" if action is Create else "Delete")
                self._events.event(pcs, "Normal", f"{reason}Successful", text)
