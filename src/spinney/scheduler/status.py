"""Writes down how gangs fare: a condition and a score on the gang, a condition on its pods, events.

Conditions are a list that the controllers write to as well, so the patch names the version it was
computed from and is computed again when somebody else wrote first. What is written
already is not written again: a cluster at rest sees no writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from spinney.api.codec import merge_diff
from spinney.api.meta import Condition, find_condition, with_condition
from spinney.api.podgang import PodGang
from spinney.clock import rfc3339
from spinney.kube import transport as wire
from spinney.kube.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from spinney.api.core import Pod
    from spinney.clock import Clock
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder

SCHEDULED = "Scheduled"
POD_SCHEDULED = "PodScheduled"
UNSCHEDULABLE = "Unschedulable"
PLACED = "Placed"
FAILED_EVENT = "FailedScheduling"

CONFLICT_ATTEMPTS = 5
"""Times a gang's status is computed again before the next cycle has to do it."""

_CONDITION_FIELDS = ("status", "reason", "message")


class StatusWriter:
    """The scheduler's share of the status of gangs and pods."""

    def __init__(self, client: KubeClient, clock: Clock, events: EventRecorder) -> None:
        self._client = client
        self._clock = clock
        self._events = events
        self._told: dict[str, str] = {}
        """Uid of a pod to the last message on it, which its informer may not know yet."""

    async def gang_unplaced(self, gang: PodGang, reason: str) -> None:
        """Say on *gang* why it is not placed, and report it if that is news."""
        wanted = Condition(type=SCHEDULED, status="False", reason=UNSCHEDULABLE, message=reason)
        if await self._write(gang, wanted, None):
            self._events.event(gang, "Warning", FAILED_EVENT, reason)

    async def gang_placed(self, gang: PodGang, score: float, text: str) -> None:
        """Say on *gang* that its minimum is on nodes, and how good the placement is."""
        wanted = Condition(
            type=SCHEDULED, status="True", reason=PLACED, message="the gang's minimum is on nodes"
        )
        before = find_condition(gang.status.conditions, SCHEDULED)
        if await self._write(gang, wanted, score) and (before is None or before.status != "True"):
            self._events.event(gang, "Normal", SCHEDULED, text)

    async def pod_unplaced(self, pod: Pod, reason: str, *, report: bool) -> None:
        """Say on *pod* why it has no node; *report* it as an event too if that is news."""
        found = find_condition(pod.status.conditions, POD_SCHEDULED)
        said = found.message if found and found.reason == UNSCHEDULABLE else ""
        if reason in (said, self._told.get(pod.metadata.uid)):
            return
        now = rfc3339(self._clock.now())
        since = (found.last_transition_time if found and found.status == "False" else None) or now
        condition = {
            "type": POD_SCHEDULED,
            "status": "False",
            "reason": UNSCHEDULABLE,
            "message": reason,
            "lastTransitionTime": since,
        }
        try:
            await self._client.patch(
                type(pod),
                pod.name,
                {"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}},
                pod.namespace,
                content_type=wire.STRATEGIC_PATCH,
                subresource="status",
            )
        except (NotFoundError, ConflictError):
            return
        self._told[pod.metadata.uid] = reason
        if report:
            self._events.event(pod, "Warning", FAILED_EVENT, reason)

    def forget_pod(self, uid: str) -> None:
        """Let go of what was remembered of a pod that is gone or has a node."""
        self._told.pop(uid, None)

    async def _write(self, gang: PodGang, wanted: Condition, score: float | None) -> bool:
        """Write *wanted* and *score*; False when they are there already or the gang is gone."""
        for attempt in range(CONFLICT_ATTEMPTS):
            if _says(gang, wanted, score):
                return False
            try:
                await self._patch(gang, wanted, score)
            except NotFoundError:
                return False
            except ConflictError:
                if attempt + 1 == CONFLICT_ATTEMPTS:
                    raise
                uid = gang.metadata.uid
                gang = await self._client.get(PodGang, gang.name, gang.namespace)
                if gang.metadata.uid != uid:
                    return False
            else:
                return True
        return False

    async def _patch(self, gang: PodGang, wanted: Condition, score: float | None) -> None:
        now = rfc3339(self._clock.now())
        generation = gang.metadata.generation
        wanted = replace(wanted, observed_generation=generation)
        status = replace(
            gang.status, conditions=with_condition(gang.status.conditions, wanted, now)
        )
        if score is not None:
            status = replace(status, placement_score=score)
        after = replace(gang, status=status)
        changes = merge_diff(gang, after)
        changes["metadata"] = {"resourceVersion": gang.metadata.resource_version}
        await self._client.patch(PodGang, gang.name, changes, gang.namespace, subresource="status")


def _says(gang: PodGang, wanted: Condition, score: float | None) -> bool:
    found = find_condition(gang.status.conditions, SCHEDULED)
    if found is None or (score is not None and gang.status.placement_score != score):
        return False
    return all(getattr(found, f) == getattr(wanted, f) for f in _CONDITION_FIELDS)
