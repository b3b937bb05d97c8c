"""Writes down how gangs fare: on the gang's object, on its pods, as events.

Conditions are a list that others write to as well, so the patch names the version it was computed
from and is computed again when somebody else wrote first. What is written already is not
written again: a cluster at rest sees no writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.api.codec import merge_diff
from spinney.api.meta import find_condition
from spinney.clock import rfc3339
from spinney.kube import transport as wire
from spinney.kube.errors import ConflictError, NotFoundError
from spinney.scheduler.said import (
    SCHEDULED,
    UNSCHEDULABLE,
    WAITING,
    Said,
    is_said_placed,
    said_before,
    same_but_for_figures,
    with_disruption,
    with_said,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.core import Pod
    from spinney.api.meta import KubeObject
    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder
    from spinney.scheduler.said import GangObject

POD_SCHEDULED = "PodScheduled"
FAILED_EVENT = "FailedScheduling"

CONFLICT_ATTEMPTS = 5
"""Times a gang's status is computed again before the next cycle has to do it."""


class StatusWriter:
    """The scheduler's share of the status of gangs and pods."""

    def __init__(
        self, client: KubeClient, clock: Clock, events: EventRecorder, pool: str = ""
    ) -> None:
        self._client = client
        self._clock = clock
        self._events = events
        self._pool = pool
        self._told: dict[str, str] = {}
        """Uid of a pod to the last message on it, which its informer may not know yet."""
        self._nominated: dict[str, str] = {}
        """Uid of a pod to the node it was told is kept for it, likewise."""

    async def gang_unplaced(self, gang: GangObject, reason: str, *, waiting: bool = False) -> None:
        """Say on *gang* why it is not placed, and report it if that is news: other figures are
        not."""
        before = said_before(gang)
        said = Said(placed=False, message=reason, pool=self._pool, waiting=waiting)
        wrote = await self._write(gang, said)
        if wrote and same_but_for_figures(before) != same_but_for_figures(reason):
            self._report(gang, reason, waiting=waiting)

    async def gang_placed(self, gang: GangObject, score: float, text: str) -> bool:
        """Say on *gang* that its minimum is on nodes, and how good the placement is.

        Returns whether it said something else before.
        """
        said = Said(
            placed=True,
            message="the gang's minimum is on nodes",
            score=score,
            pool=self._pool,
        )
        news = not is_said_placed(gang)
        if not await self._write(gang, said) or not news:
            return False
        self._events.event(gang, "Normal", SCHEDULED, text)
        return True

    async def gang_disrupted(self, gang: GangObject, message: str) -> None:
        """Say on *gang* that pods of its minimum are being evicted."""
        await self._change(gang, lambda found, now: with_disruption(found, message, now))

    def _report(self, obj: KubeObject, reason: str, *, waiting: bool) -> None:
        if waiting:
            self._events.event(obj, "Normal", WAITING, reason)
        else:
            self._events.event(obj, "Warning", FAILED_EVENT, reason)

    async def pod_unplaced(
        self, pod: Pod, reason: str, *, report: bool, waiting: bool = False
    ) -> None:
        """Say on *pod* why it has no node; *report* it as an event too. Other figures are no news:
        those of the moment are on the gang."""
        found = find_condition(pod.status.conditions, POD_SCHEDULED)
        word = WAITING if waiting else UNSCHEDULABLE
        said = found.message if found and found.reason == word else ""
        known = {
            same_but_for_figures(text) for text in (said, self._told.get(pod.metadata.uid, ""))
        }
        if same_but_for_figures(reason) in known:
            return
        now = rfc3339(self._clock.now())
        since = (found.last_transition_time if found and found.status == "False" else None) or now
        condition = {
            "type": POD_SCHEDULED,
            "status": "False",
            "reason": word,
            "message": reason,
            "lastTransitionTime": since,
        }
        if not await self._patch_pod(pod, {"conditions": [condition]}):
            return
        self._told[pod.metadata.uid] = reason
        if report:
            self._report(pod, reason, waiting=waiting)

    async def pod_nominated(self, pod: Pod, node: str) -> None:
        """Say on *pod* that room is kept for it on *node*; an empty name takes that back."""
        known = self._nominated.get(pod.metadata.uid, pod.status.nominated_node_name)
        if node != known and await self._patch_pod(pod, {"nominatedNodeName": node or None}):
            self._nominated[pod.metadata.uid] = node

    def forget_pod(self, uid: str) -> None:
        """Let go of what was remembered of a pod that is gone or has a node."""
        self._told.pop(uid, None)
        self._nominated.pop(uid, None)

    async def _patch_pod(self, pod: Pod, status: dict[str, Any]) -> bool:
        """Change the pod's status; False when it is gone or another one by now."""
        try:
            await self._client.patch(
                type(pod),
                pod.name,
                {"metadata": {"uid": pod.metadata.uid}, "status": status},
                pod.namespace,
                content_type=wire.STRATEGIC_PATCH,
                subresource="status",
            )
        except (NotFoundError, ConflictError):
            return False
        return True

    async def _write(self, gang: GangObject, said: Said) -> bool:
        """Write *said*; False when it is there already or the gang is gone."""
        return await self._change(gang, lambda found, now: with_said(found, said, now))

    async def _change(
        self, gang: GangObject, change: Callable[[GangObject, str], GangObject | None]
    ) -> bool:
        """Write what *change* makes of the gang; False when that is nothing or it is gone."""
        for attempt in range(CONFLICT_ATTEMPTS):
            after = change(gang, rfc3339(self._clock.now()))
            if after is None:
                return False
            changes = merge_diff(gang, after)
            changes["metadata"] = {"resourceVersion": gang.metadata.resource_version}
            try:
                await self._client.patch(
                    type(gang), gang.name, changes, gang.namespace, subresource="status"
                )
            except NotFoundError:
                return False
            except ConflictError:
                if attempt + 1 == CONFLICT_ATTEMPTS:
                    raise
                uid = gang.metadata.uid
                gang = await self._client.get(type(gang), gang.name, gang.namespace)
                if gang.metadata.uid != uid:
                    return False
            else:
                return True
        return False
