"""What has to be written before a pod with claims is bound: volumes asked for, devices allocated.

As the default scheduler does it: a volume claim whose class waits for a consumer is told the node,
and the pod is bound once it has its volume; a resource claim gets its devices and the pod among its
users. A pod that is not bound after all gives its devices back. Everything can be done again:
a restart finds what was written and goes on from there.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from spinney.api.devices import PROTECTION, DeviceClass, ResourceClaim
from spinney.api.storage import SELECTED_NODE, PersistentVolumeClaim
from spinney.errors import SpinneyError
from spinney.kube.errors import ApiError, ConflictError, NotFoundError
from spinney.kube.transport import TransportError
from spinney.log import get_logger
from spinney.scheduler.claims import resource_claims, volume_claims
from spinney.scheduler.device_allocation import released, reserved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spinney.api.core import Pod
    from spinney.kube.client import KubeClient
    from spinney.scheduler.cache import Cache
    from spinney.scheduler.verdict import Binding

VOLUME_WAIT_S = 120.0
"""How long a pod that is placed waits for its volume before it is placed anew, on the same node."""
VOLUME_LOOK_S = 0.1
CLAIM_ATTEMPTS = 8
"""Times a claim is read and written again when others write to it too."""

log = get_logger("scheduler")

Device = tuple[str, str, str]


class NoVolumeError(SpinneyError):
    """A volume was asked for and has not been made in time."""


class ClaimBinder:
    """Settles the claims of pods before they are bound."""

    def __init__(self, client: KubeClient, cache: Cache) -> None:
        self._client = client
        self._cache = cache
        self._taken: dict[str, frozenset[Device]] = {}
        """Devices that were allocated here, until the cache knows of them."""

    def awaits_volume(self, key: str) -> bool:
        """Tell whether the pod *key* has to wait until a volume is made for its node."""
        pod, book = self._cache.claiming(key), self._cache.claims
        return pod is not None and any(book.awaits_node(claim) for claim in volume_claims(pod))

    async def settle(self, binding: Binding) -> None:
        """Ask for volumes and allocate devices; raise NoVolumeError, NoDevicesError, ApiError."""
        pod = self._cache.claiming(binding.pod)
        if pod is None:
            return
        for key in resource_claims(pod):
            await self._reserve(key, pod, binding.node)
        book = self._cache.claims
        waiting = [key for key in volume_claims(pod) if book.awaits_node(key)]
        for key in waiting:
            if book.selected.get(key) != binding.node:
                await self._select(key, binding.node)
        for _ in range(int(VOLUME_WAIT_S / VOLUME_LOOK_S)):
            if not any(book.awaits_node(key) for key in waiting):
                return
            await asyncio.sleep(VOLUME_LOOK_S)
        if any(book.awaits_node(key) for key in waiting):
            raise NoVolumeError(
                f"pod {binding.pod}: no volume for {', '.join(waiting)} on {binding.node} after "
                f"{VOLUME_WAIT_S:g} s; look at the events of the volume claim"
            )

    async def _select(self, key: str, node: str) -> None:
        namespace, _, name = key.partition("/")
        changes = {"metadata": {"annotations": {SELECTED_NODE: node}}}
        await self._client.patch(PersistentVolumeClaim, name, changes, namespace)

    async def _reserve(self, key: str, pod: Pod, node: str) -> None:
        classes: dict[str, DeviceClass] = {}

        def changes(claim: ResourceClaim) -> dict[str, Any] | None:
            return reserved(claim, pod, node, self._cache.claims, self._others(key), classes)

        if not self._cache.claims.claims.get(key) or not self._cache.claims.claims[key].devices:
            found = (await self._client.list(DeviceClass)).items
            classes.update({device_class.name: device_class for device_class in found})
        await self._change(key, changes, protect=True)

    def _others(self, key: str) -> set[Device]:
        """Return the devices of all other claims."""
        known = self._cache.claims.claims
        self._taken = {
            name: devices
            for name, devices in self._taken.items()
            if name in known and not known[name].devices
        }
        found = {device for name, claim in known.items() if name != key for device in claim.devices}
        return found.union(*(devices for name, devices in self._taken.items() if name != key))

    async def release_held(self, pods: Iterable[str]) -> None:
        """Give back what is allocated for those of *pods* alone, which found no place.

        A scheduler that died between allocating and binding left it so: the devices pin the pod to
        a node that may have no room for it any more.
        """
        for key in pods:
            pod = self._cache.claiming(key)
            if pod is not None and self._cache.claims.held_alone(pod):
                await self.release(key)

    async def release(self, key: str) -> None:
        """Give back the devices of the pod *key*, which is not bound, as far as the API lets us."""
        pod = self._cache.claiming(key)
        if pod is None:
            return
        for claim in resource_claims(pod):
            try:
                await self._change(claim, functools.partial(released, pod=pod), protect=False)
            except (ApiError, TransportError) as error:
                log.warning("devices not given back", claim=claim, error=str(error))

    async def _change(
        self,
        key: str,
        changes: Callable[[ResourceClaim], dict[str, Any] | None],
        *,
        protect: bool,
    ) -> None:
        namespace, _, name = key.partition("/")
        for attempt in range(CLAIM_ATTEMPTS):
            claim = await self._client.get(ResourceClaim, name, namespace)
            wanted = changes(claim)
            if wanted is None:
                return
            if allocation := wanted.get("allocation"):
                self._take(key, allocation)
            try:
                if protect and PROTECTION not in claim.metadata.finalizers:
                    claim = await self._protect(claim)
                version = {"resourceVersion": claim.metadata.resource_version}
                patch = {"metadata": version, "status": wanted}
                await self._client.patch(
                    ResourceClaim, name, patch, namespace, subresource="status"
                )
            except ConflictError:
                if attempt + 1 == CLAIM_ATTEMPTS:
                    raise
            except NotFoundError:
                if protect:
                    raise
                return
            else:
                return

    def _take(self, key: str, allocation: dict[str, Any]) -> None:
        results = allocation["devices"]["results"]
        self._taken[key] = frozenset((r["driver"], r["pool"], r["device"]) for r in results)

    async def _protect(self, claim: ResourceClaim) -> ResourceClaim:
        changes = {
            "metadata": {
                "resourceVersion": claim.metadata.resource_version,
                "finalizers": [*claim.metadata.finalizers, PROTECTION],
            }
        }
        return await self._client.patch(ResourceClaim, claim.name, changes, claim.namespace)
