"""Hands gangs to the scheduler that their pods name: makes and keeps the object it reads.

Only what is rendered is written; what the scheduler itself adds to its object is left alone. An
object whose fields cannot be changed any more is made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.grove_policy import KUBE
from spinney.controllers.actions import covers
from spinney.controllers.backends.renderers import KUBE_KINDS, backend_of
from spinney.errors import BadInputError
from spinney.kube.discovery import Discovery
from spinney.kube.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from spinney.api.podgang import PodGang
    from spinney.api.resource import Resource, Unstructured
    from spinney.controllers.backends.backend import Backend
    from spinney.kube.client import KubeClient
    from spinney.kube.events import EventRecorder

RETRY_S = 30.0
"""When to try again to tell a scheduler whose kind is not installed."""
_OWNED = (
    "minMember",
    "queue",
    "subGroups",
    "topologyConstraint",
    "priorityClassName",
    "subGroupPolicy",
    "schedulingPolicy",
    "podGroups",
)
"""Fields of any kind that are ours: left out of a rendering, they are removed."""


class Handover:
    """Knows the back end of each scheduler, and what each was told last."""

    def __init__(self, client: KubeClient, events: EventRecorder) -> None:
        self._client = client
        self._events = events
        self._discovery = Discovery(client)
        self._kube: tuple[Resource | None] | None = None
        self._told: dict[str, bytes] = {}

    async def backend(self, scheduler: str) -> Backend:
        """Return the back end of a ``schedulerName``."""
        if scheduler != KUBE:
            return backend_of(scheduler)
        if self._kube is None:
            served = [kind for kind in KUBE_KINDS if await self._serves(kind)]
            self._kube = (next(iter(served), None),)
        return backend_of(scheduler, kube_kind=self._kube[0])

    async def tell(self, gang: PodGang) -> float | None:
        """Bring the scheduler's object for *gang* up to date; return when to try again, if so."""
        backend = await self.backend(gang.labels.get(names.SCHEDULER_NAME, ""))
        resource = backend.resource
        wanted = backend.render(gang) if resource is not None else None
        if resource is None or wanted is None:
            return None
        text = msgspec.json.encode(wanted, order="sorted")
        if self._told.get(gang.metadata.uid) == text:
            return None
        try:
            stored = await self._write(resource, wanted)
        except NotFoundError:
            message = (
                f"{resource.kind} {resource.api_version} is not served, so {backend.title} does "
                "not know of the gang; install it, or choose another schedulerName"
            )
            self._events.event(gang, "Warning", "SchedulerBackendMappingFailed", message)
            return RETRY_S
        if dropped := sorted(wanted["spec"].keys() - (stored.get("spec") or {}).keys()):
            message = (
                f"{resource.kind} {resource.api_version}, as it is installed, has no "
                f"{', '.join(dropped)}: a newer {backend.title} has it; the gang is placed without"
            )
            reason = f"{backend.title.split('-')[0].capitalize()}CapabilityUnavailable"
            self._events.event(gang, "Warning", reason, message)
        self._told[gang.metadata.uid] = text
        return None

    def forget(self, uid: str) -> None:
        """Drop what is known of a gang that is gone."""
        self._told.pop(uid, None)

    async def _write(self, resource: Resource, wanted: Unstructured) -> Unstructured:
        """Bring the object to where it is *wanted*; return it as the API stored it."""
        meta = wanted["metadata"]
        try:
            found = await self._client.get(resource, meta["name"], meta["namespace"])
        except NotFoundError:
            return await self._client.create(wanted, resource=resource)
        patch = _changes(found, wanted)
        if not patch:
            return found
        try:
            return await self._client.patch(resource, meta["name"], patch, meta["namespace"])
        except InvalidError:
            await self._client.delete(resource, meta["name"], meta["namespace"])
            return await self._client.create(wanted, resource=resource)

    async def _serves(self, resource: Resource) -> bool:
        try:
            found = await self._discovery.resources()
        except BadInputError:
            return False
        wanted = (resource.group, resource.version, resource.plural)
        return any((r.group, r.version, r.plural) == wanted for r in found)


def _changes(found: Unstructured, wanted: Unstructured) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    before, after = found.get("spec") or {}, wanted["spec"]
    spec = {key: value for key, value in after.items() if not covers(before.get(key), value)}
    spec |= {key: None for key in _OWNED if key in before and key not in after}
    if spec:
        patch["spec"] = spec
    have = found.get("metadata") or {}
    meta = {
        key: wanted["metadata"][key]
        for key in ("labels", "annotations")
        if not covers(have.get(key) or {}, wanted["metadata"][key])
    }
    if meta:
        patch["metadata"] = meta
    return patch
