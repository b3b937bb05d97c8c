"""Plugins by the names that a configuration uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.errors import BadInputError
from spinney.scheduler.plugins.gpu_shares import GpuShares, GpuSharing
from spinney.scheduler.plugins.node_filters import (
    NodeAffinity,
    NotReady,
    Taints,
    Unschedulable,
    Volumes,
)
from spinney.scheduler.plugins.pod_affinity import PodAffinity
from spinney.scheduler.plugins.room_filters import HostPorts, Resources
from spinney.scheduler.plugins.scores import (
    BinPack,
    NominatedNode,
    PreferredAffinity,
    ResourceType,
    SpreadOut,
)
from spinney.scheduler.plugins.topology_spread import SpreadScore, TopologySpread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spinney.scheduler.plugins import NodeFilter, RoomFilter, Score

NODE_FILTERS: dict[str, NodeFilter] = {
    f.name: f for f in (Unschedulable(), NotReady(), Taints(), NodeAffinity(), Volumes())
}
ROOM_FILTERS: dict[str, RoomFilter] = {
    f.name: f for f in (Resources(), GpuShares(), HostPorts(), PodAffinity(), TopologySpread())
}
COUPLING = ("pod-affinity", "topology-spread")
"""Room filters that look at where other pods are."""
SCORES: dict[str, Score] = {
    s.name: s
    for s in (
        BinPack(),
        SpreadOut(),
        ResourceType(),
        PreferredAffinity(),
        GpuSharing(),
        SpreadScore(),
        NominatedNode(),
    )
}


def check(kind: str, names: Iterable[str], known: Mapping[str, object]) -> None:
    """Raise BadInputError for a name that is not *known*."""
    for name in names:
        if name not in known:
            raise BadInputError(f"scheduler {kind} {name!r} is none of {', '.join(known)}")
