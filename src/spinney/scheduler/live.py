"""A cluster's scheduling state, read once through the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from spinney.api.core import Node, Pod, PriorityClass
from spinney.api.devices import DeviceClass, ResourceClaim, ResourceSlice
from spinney.api.grove import ClusterTopologyBinding
from spinney.api.leaderworkerset import LeaderWorkerSet
from spinney.api.meta import KubeObject
from spinney.api.podgang import PodGang
from spinney.api.podgroup import (
    CoschedulingPodGroup,
    PodGroup,
    UpstreamPodGroup,
    VolcanoPodGroup,
    Workload,
)
from spinney.api.policy import PodDisruptionBudget
from spinney.api.queue import Queue
from spinney.api.storage import PersistentVolume, PersistentVolumeClaim
from spinney.kube.errors import NotFoundError
from spinney.scheduler.scenario import Objects

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient

K = TypeVar("K", bound=KubeObject)


async def read_cluster(client: KubeClient) -> Objects:
    """Return what a scheduling cycle looks at. Kinds that the cluster does not have are none."""
    return Objects(
        topologies=await _all(client, ClusterTopologyBinding),
        nodes=await _all(client, Node),
        classes=await _all(client, PriorityClass),
        queues=await _all(client, Queue),
        gangs=await _all(client, PodGang),
        groups=await _all(client, PodGroup),
        upstream=await _all(client, UpstreamPodGroup),
        workloads=await _all(client, Workload),
        min_member=[
            *await _all(client, CoschedulingPodGroup),
            *await _all(client, VolcanoPodGroup),
        ],
        leader_worker_sets=await _all(client, LeaderWorkerSet),
        budgets=await _all(client, PodDisruptionBudget),
        volumes=await _all(client, PersistentVolume),
        volume_claims=await _all(client, PersistentVolumeClaim),
        device_classes=await _all(client, DeviceClass),
        slices=await _all(client, ResourceSlice),
        claims=await _all(client, ResourceClaim),
        pods=await _all(client, Pod),
    )


async def _all(client: KubeClient, kind: type[K]) -> list[K]:
    try:
        return (await client.list(kind)).items
    except NotFoundError:
        return []
