"""Kinds that a cluster may or may not have: other APIs' pod groups, volumes, claimed devices.

An informer of a kind that the API does not serve would never be synced. So each is asked for first,
and again now and then, for it may be installed later; it is watched from the moment it is there.
No cycle runs before what is there has been read once: a pod with a volume is not placed
before the volume is known.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from spinney.api.devices import DeviceClass, ResourceClaim, ResourceSlice
from spinney.api.leaderworkerset import LeaderWorkerSet
from spinney.api.podgroup import (
    CoschedulingPodGroup,
    PodGroup,
    UpstreamPodGroup,
    VolcanoPodGroup,
    Workload,
)
from spinney.api.policy import PodDisruptionBudget
from spinney.api.storage import PersistentVolume, PersistentVolumeClaim, StorageClass
from spinney.kube.errors import NotFoundError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.meta import KubeObject
    from spinney.kube.controller import Runtime
    from spinney.kube.informer import Change, Informer
    from spinney.scheduler.cache import Cache

LOOK_AGAIN_S = 60.0
"""How often a kind that was not there is asked for again, while cycles run."""

log = get_logger("scheduler")


class OptionalKinds:
    """Feeds *cache* from the kinds that are there; *changed* is called after each change."""

    def __init__(self, runtime: Runtime, cache: Cache, changed: Callable[[], None]) -> None:
        self._runtime = runtime
        self._changed = changed
        self._looked_s: float | None = None
        put_and_remove: dict[type[Any], tuple[Callable[[Any], None], Callable[[str], None]]] = {
            PodGroup: (cache.set_podgroup, cache.remove_podgroup),
            UpstreamPodGroup: (cache.set_upstream_group, cache.remove_upstream_group),
            Workload: (cache.set_workload, cache.remove_workload),
            CoschedulingPodGroup: (
                cache.set_min_member_group,
                functools.partial(cache.remove_min_member_group, CoschedulingPodGroup),
            ),
            VolcanoPodGroup: (
                cache.set_min_member_group,
                functools.partial(cache.remove_min_member_group, VolcanoPodGroup),
            ),
            LeaderWorkerSet: (cache.set_leader_worker_set, cache.remove_leader_worker_set),
            PodDisruptionBudget: (cache.set_budget, cache.remove_budget),
            PersistentVolume: (cache.set_volume, cache.remove_claim),
            PersistentVolumeClaim: (cache.set_volume_claim, cache.remove_claim),
            StorageClass: (cache.set_storage_class, cache.remove_storage_class),
            ResourceClaim: (cache.set_resource_claim, cache.remove_claim),
            DeviceClass: (cache.set_device_class, cache.remove_devices),
            ResourceSlice: (cache.set_resource_slice, cache.remove_devices),
        }
        self._missing = put_and_remove
        self._watched: dict[type[KubeObject], Informer[Any]] = {}

    @property
    def complete(self) -> bool:
        """Whether all of them are watched."""
        return not self._missing

    def get(self, kind: type[KubeObject], key: str) -> KubeObject | None:
        """Return an object as last seen; None also while its kind is not watched."""
        informer = self._watched.get(kind)
        found: KubeObject | None = informer.get_key(key) if informer is not None else None
        return found

    async def look(self, now_s: float) -> None:
        """Watch those that are there, if it is time to look; return when they have been read.

        Raises what the API raises, but for a kind that is not there.
        """
        if self._looked_s is not None and now_s - self._looked_s < LOOK_AGAIN_S:
            return
        for kind in list(self._missing):
            if await self._is_served(kind):
                put, remove = self._missing.pop(kind)
                informer = self._runtime.informer(kind)
                informer.add_handler(self._feed(put, remove))
                await informer.wait_synced()
                self._watched[kind] = informer
                log.info("kind is watched", kind=kind.RESOURCE.name)
        self._looked_s = now_s

    async def _is_served(self, kind: type[KubeObject]) -> bool:
        try:
            await self._runtime.client.list(kind, limit=1)
        except NotFoundError:
            return False
        return True

    def _feed(
        self, put: Callable[[Any], None], remove: Callable[[str], None]
    ) -> Callable[[Change[Any]], None]:
        def changed(change: Change[Any]) -> None:
            if change.new is not None:
                put(change.new)
            else:
                remove(change.object.key)
            self._changed()

        return changed
