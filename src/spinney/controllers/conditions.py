"""What several reconcilers write into statuses alike: failures, and a set's further conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api.grove import LastError, PodCliqueSet
from spinney.api.meta import find_condition, with_condition
from spinney.controllers.actions import status_patch
from spinney.kube.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spinney.api.meta import Condition
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder


def last_errors(
    known: Sequence[LastError], code: str, errors: Iterable[BaseException | str], now: str
) -> list[LastError]:
    """Return *errors* for a status; one that is *known* already keeps the time it has.

    That somebody else wrote first is no error: the next look settles it.
    """
    told = {error.description: error for error in known}
    texts = {str(e) or repr(e) for e in errors if not isinstance(e, ConflictError)}
    return [
        told.get(text) or LastError(code=code, description=text, observed_at=now)
        for text in sorted(texts)
    ]


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
