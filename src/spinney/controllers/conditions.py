"""Writes one condition of a set whose other status another reconciler keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove import PodCliqueSet
from spinney.api.meta import find_condition, with_condition
from spinney.controllers.actions import status_patch

if TYPE_CHECKING:
    from spinney.api.meta import Condition
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


async def report(
    client: KubeClient, events: EventRecorder, pcs: PodCliqueSet, said: Condition, now: str
) -> None:
    """Write *said* into the status of *pcs* if it is news; a new trouble is a Warning event too.

    Refused by the API, with ConflictError, if the set has changed since it was read.
    """
    conditions = with_condition(pcs.status.conditions, said, now)
    status = msgspec.structs.replace(pcs.status, conditions=conditions)
    patch = status_patch(pcs, msgspec.structs.replace(pcs, status=status))
    if not patch:
        return
    await client.patch(PodCliqueSet, pcs.name, patch, pcs.namespace, subresource="status")
    before = find_condition(pcs.status.conditions, said.type)
    if said.status == "False" and (before is None or before.message != said.message):
        events.event(pcs, "Warning", said.reason, said.message)
