"""Makes anew what `decide` says has been broken for too long.

Deciding goes by the informers' copies, which may be behind. So before anything is deleted the
offenders are read from the API with their pods, and what turns out to be whole again stays.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueScalingGroup
from spinney.api.meta import Condition, is_true, with_condition
from spinney.api.podgang import PodGang
from spinney.clock import rfc3339
from spinney.controllers import identity
from spinney.controllers.actions import Delete, perform, status_patch
from spinney.controllers.podclique.status import lacks_minimum
from spinney.controllers.scalinggroup.status import TERMINATING
from spinney.controllers.termination.decide import breached_since_s, decide
from spinney.controllers.termination.kept import KEPT_REPLICAS, note
from spinney.kube.controller import Result
from spinney.kube.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.grove import PodCliqueSet
    from spinney.clock import Clock
    from spinney.controllers.metrics import ControllerMetrics
    from spinney.controllers.termination.decide import Breach, Plan
    from spinney.controllers.world import World
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder

AGAIN_S = 1.0
"""When to look again for what the informers do not show yet."""
MAX_REMEMBERED = 4096
"""Announced terminations that are remembered, so that each is announced once."""


class GangTermination:
    """Reconciles replicas of sets by ``namespace/set/index``."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        clock: Clock,
        events: EventRecorder,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self._client = client
        self._world = world
        self._clock = clock
        self._events = events
        self._metrics = metrics
        self._announced: OrderedDict[tuple[str, str, float], None] = OrderedDict()

    async def reconcile(self, key: str) -> Result | None:
        """Make anew what is due in one replica; come back when more will be."""
        set_key, _, index = key.rpartition("/")
        pcs = self._world.sets.get_key(set_key)
        if pcs is None:
            return None
        groups = {g.name: g for g in self._world.groups_of_replica(key)}
        cliques = self._world.cliques_of_replica(key)
        plan = decide(pcs, int(index), groups, cliques, self._clock.now())
        self._announce(pcs, plan)
        for breach in plan.now:
            if not await self._is_so(breach):
                return Result(AGAIN_S)
            if not breach.group and not await self._keep_counts(pcs, int(index), breach):
                return Result(AGAIN_S)
            await self._make_anew(pcs, int(index), breach, groups)
        next_s = plan.next_s(self._clock.now())
        return None if next_s is None else Result(max(next_s - self._clock.now(), 0.0) + 0.001)

    def _announce(self, pcs: PodCliqueSet, plan: Plan) -> None:
        """Say once of each breach when it will end its gang."""
        for breach in plan.later:
            key = (pcs.metadata.uid, breach.name, breach.due_s)
            if key in self._announced or breach.warn_s > self._clock.now():
                continue
            self._announced[key] = None
            if len(self._announced) > MAX_REMEMBERED:
                self._announced.popitem(last=False)
            text = f"{breach.name} lacks its minimum; {_scope(breach)} is made anew at "
            self._events.event(
                pcs, "Warning", "GangTerminationPending", text + rfc3339(breach.due_s)
            )

    async def _is_so(self, breach: Breach) -> bool:
        """Ask the API whether the offenders still are what they seemed."""
        for offender in breach.offenders:
            try:
                clique = await self._client.get(PodClique, offender.name, offender.namespace)
            except NotFoundError:
                return False
            if clique.metadata.uid != offender.metadata.uid or clique.deleting:
                return False
            if breached_since_s(clique) != breached_since_s(offender):
                return False
            labels = f"{names.POD_CLIQUE}={clique.name}"
            found = await self._client.list(Pod, clique.namespace, labels=labels)
            own = [p for p in found.items if p.controller_uid() == clique.metadata.uid]
            if not lacks_minimum(clique, own):
                return False
        return True

    async def _keep_counts(self, pcs: PodCliqueSet, replica: int, breach: Breach) -> bool:
        """Note how far cliques are scaled; False until the informer shows the note."""
        name = identity.replica_name(pcs.name, replica)
        gang = self._world.gangs.get(name, pcs.namespace)
        wanted = note(breach.cliques)
        if gang is None or gang.metadata.annotations.get(KEPT_REPLICAS) == wanted:
            return True
        patch = {"metadata": {"annotations": {KEPT_REPLICAS: wanted}}}
        await self._client.patch(PodGang, name, patch, pcs.namespace)
        return False

    async def _make_anew(
        self,
        pcs: PodCliqueSet,
        replica: int,
        breach: Breach,
        groups: dict[str, PodCliqueScalingGroup],
    ) -> None:
        first = [c for c in breach.cliques if c not in breach.offenders]
        await perform(self._client, [Delete(clique) for clique in first])
        await perform(self._client, [Delete(clique) for clique in breach.offenders])
        text = (
            f"{breach.name} lacked its minimum for longer than terminationDelay; "
            f"made {_scope(breach)} anew: {', '.join(c.name for c in breach.cliques)}"
        )
        if breach.group:
            reason = "PodCliqueScalingGroupReplicaDeleteSuccessful"
            self._events.event(groups[breach.group], "Warning", reason, text)
        else:
            text = f"replica {replica}: {text}"
            self._events.event(pcs, "Warning", "PodCliqueSetReplicaDeleteSuccessful", text)
            await self._flag(list(groups.values()))
        if self._metrics is not None:
            self._metrics.terminations.labels("group" if breach.group else "set").inc()

    async def _flag(self, groups: Sequence[PodCliqueScalingGroup]) -> None:
        """Tell on the scaling groups that they are rebuilt; it goes when they have their minimum.

        It informs; nothing is decided by it, so one that was changed meanwhile is left.
        """
        condition = Condition(
            type=TERMINATING,
            status="True",
            reason="GangTerminationActive",
            message="the replica was made anew because it lacked its minimum for too long",
        )
        now = rfc3339(self._clock.now())
        for group in groups:
            if is_true(group.status.conditions, TERMINATING):
                continue
            conditions = with_condition(group.status.conditions, condition, now)
            status = msgspec.structs.replace(group.status, conditions=conditions)
            patch = status_patch(group, msgspec.structs.replace(group, status=status))
            try:
                await self._client.patch(
                    PodCliqueScalingGroup,
                    group.name,
                    patch,
                    group.namespace,
                    subresource="status",
                )
            except (ConflictError, NotFoundError):
                continue


def _scope(breach: Breach) -> str:
    if breach.group:
        return f"this replica of {breach.group}"
    return "the whole replica of the set"
