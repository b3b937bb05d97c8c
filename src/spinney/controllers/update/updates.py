"""The part of a set's reconciliation that is about updates: looks, stores revisions, tells.

A plan that was written and is not in the informer's copy yet is remembered: the next one is made
from it and not from the one before, or two steps would be taken with the budget of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.api.meta import find_condition, with_condition
from spinney.clock import rfc3339
from spinney.controllers.actions import Create, Delete, perform
from spinney.controllers.update import progress, revisions, strategy
from spinney.controllers.update.plan import read_plan, units_of
from spinney.controllers.update.rollout import Parts, is_behind, plan_rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.core import ControllerRevision, Pod
    from spinney.api.grove import (
        PodClique,
        PodCliqueSet,
        PodCliqueSetStatus,
        PodCliqueSetUpdateProgress,
    )
    from spinney.clock import Clock
    from spinney.controllers.update.plan import Plan
    from spinney.controllers.update.revisions import Revision
    from spinney.controllers.update.rollout import Rollout
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a set found of its update."""

    pcs: PodCliqueSet
    """The set with the pod templates of the target."""
    rollout: Rollout
    progress: PodCliqueSetUpdateProgress | None


class Updates:
    """Decides for sets; one for all of them."""

    def __init__(
        self, client: KubeClient, world: World, clock: Clock, events: EventRecorder
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events
        self._written: dict[str, dict[str, Plan]] = {}

    def forget(self, key: str) -> None:
        """Drop what is remembered of a set that is gone."""
        self._written.pop(key, None)

    def look(self, pcs: PodCliqueSet) -> Look:
        """Decide what the update of a set does next, and remember the plans that will be written.

        The caller writes them; until they show, they are taken as written.
        """
        target = self._world.target(pcs)
        pcs = self._world.effective(pcs)
        parts = self._parts(pcs)
        now = rfc3339(self._clock.now())
        begun = progress.begun(pcs, target, outdated=is_behind(parts, target), now=now)
        rollout = plan_rollout(pcs, target, self._world.stored(pcs), parts, begun)
        self._tell_steps(pcs, parts, rollout)
        if rollout.plans:
            self._written[pcs.key] = dict(rollout.plans)
        else:
            self._written.pop(pcs.key, None)
        after = progress.advanced(pcs, begun, rollout.seen, rfc3339(self._clock.now()))
        return Look(pcs, rollout, after)

    def _parts(self, pcs: PodCliqueSet) -> Parts:
        world = self._world
        cliques = {c.name: c for c in world.cliques_of_set(pcs.key) if not c.deleting}
        groups = {g.name: g for g in world.groups_of_set(pcs.key) if not g.deleting}

        def pods(clique: PodClique) -> Sequence[Pod]:
            return world.pods_of_clique(clique)

        plans = {
            name: plan
            for name, plan in self._written.get(pcs.key, {}).items()
            if (obj := cliques.get(name) or groups.get(name)) is not None
            and read_plan(obj.metadata.annotations) != plan
        }
        return Parts(cliques, groups, pods, plans)

    def _tell_steps(self, pcs: PodCliqueSet, parts: Parts, rollout: Rollout) -> None:
        target = set(rollout.target.hashes.values())
        for name, plan in rollout.plans.items():
            obj = parts.cliques.get(name) or parts.groups.get(name)
            before = parts.plans.get(name)
            if before is None and obj is not None:
                before = read_plan(obj.metadata.annotations)
            if before == plan:
                continue
            units = units_of(plan)
            new = sum(set(own.split("-")) <= target for own in units)
            text = f"{name}: {new} of {len(units)} units are to be of {_said(rollout.target)}"
            self._events.event(pcs, "Normal", "UpdateStep", text)

    async def store(self, pcs: PodCliqueSet, target: Revision) -> None:
        """Store *target* if it is not stored; drop what is beyond the history's limit."""
        if not target.stored:
            await perform(self._client, [Create(revisions.to_store(pcs, target))])
            return
        stored = self._world.stored(pcs)
        limit = strategy.history_limit(pcs)
        if len(stored) <= limit + 1:
            return
        hashes = {c.labels.get(_HASH, "") for c in self._world.cliques_of_set(pcs.key)}
        for clique in self._world.cliques_of_set(pcs.key):
            pods = self._world.owned(self._world.pods, clique).values()
            hashes |= {pod.labels.get(_HASH, "") for pod in pods}
        gone = {r.id for r in revisions.surplus(stored, target, hashes, limit)}
        owned = self._world.owned(self._world.revisions, pcs).values()
        old = [Delete(obj) for obj in owned if _id(obj) in gone and not obj.deleting]
        await perform(self._client, old)

    def status(self, look: Look, status: PodCliqueSetStatus) -> PodCliqueSetStatus:
        """Return *status* with how far the update is."""
        now_s = self._clock.now()
        said = progress.condition(look.pcs, look.progress, look.rollout.seen, now_s)
        conditions = [c for c in status.conditions if c.type != progress.PROGRESSING]
        if said is not None:
            conditions = with_condition(status.conditions, said, rfc3339(now_s))
        return msgspec.structs.replace(status, update_progress=look.progress, conditions=conditions)

    def overdue_in_s(self, look: Look) -> float | None:
        """Return when the set has to be looked at again because of the deadline."""
        left = progress.overdue_in_s(look.pcs, look.progress, self._clock.now())
        return left or None

    def tell(self, pcs: PodCliqueSet, look: Look, status: PodCliqueSetStatus) -> None:
        """Report what *status* has that the set's own has not, as events."""
        old, new = pcs.status.update_progress, status.update_progress
        at = _said(look.rollout.target)
        was = (old.update_started_at, old.update_ended_at) if old is not None else (None, None)
        if new is not None and new.update_started_at != was[0]:
            self._events.event(pcs, "Normal", "UpdateStarted", f"pods are updated to {at}")
        before = {c.replica_index for c in old.currently_updating} if old is not None else set()
        for found in new.currently_updating if new is not None else ():
            if found.replica_index not in before:
                text = f"replica {found.replica_index} is updated to {at}"
                self._events.event(pcs, "Normal", "ReplicaUpdateStarted", text)
        said = find_condition(status.conditions, progress.PROGRESSING)
        last = find_condition(pcs.status.conditions, progress.PROGRESSING)
        if said is None or (last is not None and last.reason == said.reason):
            return
        if said.status == "False":
            self._events.event(pcs, "Warning", said.reason, said.message)
        elif said.reason in ("UpdateComplete", "UpdatePaused", "WaitsForDeletion"):
            self._events.event(pcs, "Normal", said.reason, said.message)


_HASH = names.POD_TEMPLATE_HASH


def _said(target: Revision) -> str:
    return f"revision {target.number}"


def _id(obj: ControllerRevision) -> str:
    found = revisions.read(obj)
    return found.id if found is not None else ""
