"""Keeps one gang: makes it, fills in its pods, reports, and removes it when scaled away.

The scheduler writes conditions into the same status; a patch therefore names the version it was
made from and is made anew when the scheduler was faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from spinney.api import codec, names
from spinney.api.podgang import PodGang
from spinney.clock import parse_rfc3339, rfc3339
from spinney.controllers import identity
from spinney.controllers.actions import (
    Change,
    Create,
    Delete,
    metadata_patch,
    perform,
    status_patch,
)
from spinney.controllers.pacing import Pacer, turned
from spinney.controllers.podgang.decide import (
    Observation,
    gang_name,
    is_wanted,
    wanted_gang,
)
from spinney.controllers.podgang.status import gang_status
from spinney.kube.controller import Result

if TYPE_CHECKING:
    from typing import Any

    from spinney.api.grove import PodCliqueSet
    from spinney.api.meta import KubeObject
    from spinney.clock import Clock
    from spinney.controllers.backends.handover import Handover
    from spinney.controllers.identity import GangIdentity
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient

FILL_S = 5.0
"""Age of a gang's newest clique at which the gang is made even if its pods are not there yet."""
_STARTING = {"Pending", "Starting"}

T = TypeVar("T", bound="KubeObject")


class PodGangReconciler:
    """Reconciles PodGangs by ``namespace/name``, also those that are still to be made."""

    def __init__(self, client: KubeClient, world: World, clock: Clock, handover: Handover) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._pacer = Pacer(clock)
        self._handover = handover

    async def reconcile(self, key: str) -> Result | None:
        """Bring one gang to where its set, cliques and pods say it should be."""
        gang = self._world.gangs.get_key(key)
        member = gang or next(iter(self._world.cliques_of_gang(key)), None)
        which = identity.gang_identity(member.labels) if member is not None else None
        pcs = self._world.set_of(member) if member is not None else None
        if pcs is None or which is None or (gang is not None and gang.deleting):
            self._pacer.forget(key)
            if gang is not None:
                self._handover.forget(gang.metadata.uid)
            return None
        seen = self._observe(key, gang, pcs, f"{pcs.key}/{which.replica}")
        name = gang_name(pcs, which)
        if name is None or f"{pcs.namespace}/{name}" != key:
            return None
        if not is_wanted(pcs, which, seen.groups):
            if gang is not None and gang.controller_uid() == pcs.metadata.uid and not pcs.deleting:
                await perform(self._client, [Delete(gang)])
            return None
        return await self._keep(pcs, which, name, seen)

    def _observe(
        self, key: str, gang: PodGang | None, pcs: PodCliqueSet, replica_key: str
    ) -> Observation:
        return Observation(
            gang=gang,
            groups=_live(self._world.groups_of_replica(replica_key)),
            cliques=_live(self._world.cliques_of_replica(replica_key)),
            pods=self._world.pods_of_gang(key),
            keys=self._world.topology_keys(pcs),
        )

    async def _keep(
        self, pcs: PodCliqueSet, which: GangIdentity, name: str, seen: Observation
    ) -> Result | None:
        wanted = wanted_gang(pcs, which, name, seen)
        gang = seen.gang
        if gang is None:
            if wait_s := self._wait_s(wanted, seen):
                return Result(wait_s)
            await perform(self._client, [Create(wanted)])
            return None
        if patch := _changes(gang, wanted):
            await perform(self._client, [Change(gang, patch)])
            # The status speaks of the spec that is stored; its event brings us back.
            return None
        again_s = await self._handover.tell(gang)
        report_s = await self._report(gang, seen)
        waits = [s for s in (again_s, report_s) if s]
        return Result(min(waits)) if waits else None

    def _wait_s(self, wanted: PodGang, seen: Observation) -> float:
        """Return how long to wait for pods that are being created, to list them from the start."""
        groups = wanted.spec.pod_groups
        if all(group.pod_references or not group.min_replicas for group in groups):
            return 0.0
        members = (seen.cliques.get(group.name) for group in groups)
        made = (clique.metadata.creation_timestamp for clique in members if clique is not None)
        newest_s = max((parse_rfc3339(at) for at in made if at), default=0.0)
        return max(0.0, newest_s + FILL_S - self._clock.now())

    async def _report(self, gang: PodGang, seen: Observation) -> float | None:
        backend = await self._handover.backend(gang.labels.get(names.SCHEDULER_NAME, ""))
        status = gang_status(gang, seen.pods, rfc3339(self._clock.now()), backend)
        patch = status_patch(gang, msgspec.structs.replace(gang, status=status))
        progress = {gang.status.phase, status.phase} <= _STARTING and not turned(
            gang.status.conditions, status.conditions
        )
        wait_s = self._pacer.wait_s(gang.key, changed=bool(patch), progress=progress)
        if wait_s == 0.0:
            # A default is not sent by itself, and the schema requires the phase.
            patch["status"]["phase"] = status.phase
            await self._client.patch(
                PodGang, gang.name, patch, gang.namespace, subresource="status"
            )
            return None
        return wait_s


def _changes(gang: PodGang, wanted: PodGang) -> dict[str, Any]:
    patch = metadata_patch(gang, wanted.metadata.labels, wanted.metadata.annotations)
    diff = codec.merge_diff(gang, msgspec.structs.replace(gang, spec=wanted.spec))
    if "spec" in diff:
        patch["spec"] = diff["spec"]
    return patch


def _live(objects: list[T]) -> dict[str, T]:
    return {obj.name: obj for obj in objects if not obj.deleting}
