"""Keeps the cliques of a scaling group's replicas, and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove import PodCliqueScalingGroup
from spinney.clock import rfc3339
from spinney.controllers import identity
from spinney.controllers.actions import Create, Delete, is_current, perform, status_patch
from spinney.controllers.conditions import last_errors
from spinney.controllers.pacing import Pacer
from spinney.controllers.scalinggroup.decide import decide, template_of
from spinney.controllers.scalinggroup.status import group_status, is_progress
from spinney.errors import SpinneyError
from spinney.kube.controller import Result
from spinney.kube.transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spinney.api.grove import PodClique, PodCliqueSet
    from spinney.clock import Clock
    from spinney.controllers.actions import Action
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


STALE_S = 1.0
"""When to look again at a group of which the informer shows an older state than the API has."""


class ScalingGroupReconciler:
    """Reconciles PodCliqueScalingGroups by ``namespace/name``."""

    def __init__(
        self, client: KubeClient, world: World, clock: Clock, events: EventRecorder
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events
        self._pacer = Pacer(clock)

    async def reconcile(self, key: str) -> Result | None:
        """Bring the cliques of one scaling group to its replica count; write its status."""
        group = self._world.groups.get_key(key)
        pcs = self._world.set_of(group) if group is not None else None
        if group is None or pcs is None or group.deleting:
            self._pacer.forget(key)
            return None
        siblings = self._world.groups_of_replica(identity.replica_key(group))
        existing = self._world.owned(self._world.cliques, group)
        todo = decide(
            pcs,
            group,
            {g.name: g for g in siblings},
            existing,
            self._world.target(pcs),
            self._world.stored(pcs),
        )
        removes = any(isinstance(action, Delete) for action in todo)
        if removes and not await is_current(self._client, group):
            return Result(STALE_S)
        failed: Exception | None = None
        try:
            await perform(self._client, todo)
        except (SpinneyError, TransportError) as error:
            failed = error
        else:
            self._tell(group, todo)
        result = await self._report(pcs, group, existing.values(), failed)
        if failed is not None:
            raise failed
        return result

    def _tell(self, group: PodCliqueScalingGroup, todo: Sequence[Action]) -> None:
        made = [action.object.name for action in todo if isinstance(action, Create)]
        gone = [action.object.name for action in todo if isinstance(action, Delete)]
        if made:
            text = f"created {len(made)} cliques: {', '.join(made)}"
            self._events.event(group, "Normal", "PodCliqueCreateSuccessful", text)
        if gone:
            text = f"deleted {len(gone)} cliques: {', '.join(gone)}"
            self._events.event(
                group, "Normal", "PodCliqueScalingGroupReplicaDeleteSuccessful", text
            )

    async def _report(
        self,
        pcs: PodCliqueSet,
        group: PodCliqueScalingGroup,
        existing: Iterable[PodClique],
        failed: Exception | None,
    ) -> Result | None:
        template = template_of(pcs, group)
        if template is None:
            return None
        now = rfc3339(self._clock.now())
        errors = [failed] if failed is not None else []
        told = last_errors(group.status.last_errors, "ERR_SYNC_PODCLIQUES", errors, now)
        target = self._world.target(pcs)
        status = group_status(pcs, group, template, existing, now, target, told)
        patch = status_patch(group, msgspec.structs.replace(group, status=status))
        progress = is_progress(group, status)
        wait_s = self._pacer.wait_s(group.key, changed=bool(patch), progress=progress)
        if wait_s == 0.0:
            await self._client.patch(
                PodCliqueScalingGroup, group.name, patch, group.namespace, subresource="status"
            )
        return Result(wait_s) if wait_s else None
