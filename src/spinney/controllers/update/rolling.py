"""What a rolling update replaces next: one replica of the set, in it one unit of each role.

What holds nothing goes at once, what serves goes one at a time and only while the minimum serves.
A pod that has come up and does not serve may be back in a second, as after a hiccup of the network;
so it counts as one that serves, except that it goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.clock import parse_rfc3339
from spinney.controllers.identity import index_label
from spinney.controllers.pod_state import exited_with_error, is_ready

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spinney.api.core import Pod


@dataclass(frozen=True, slots=True)
class SetReplica:
    """A replica of the set, as an update sees it."""

    index: int
    outdated: bool
    """Whether it has pods, or declares pods, of another revision."""
    settled: bool
    """Whether all of it is of the revision and has what it needs ready."""
    begun: bool
    """Whether the update has reached it."""
    scheduled: bool
    """Whether any of its pods has a node."""
    breached: bool
    """Whether it lacks a minimum."""


@dataclass(frozen=True, slots=True)
class GroupReplica:
    """A replica of a scaling group, as an update sees it."""

    index: int
    updated: bool
    available: bool
    holds: bool
    """Whether every role has had its minimum of nodes: what lacks one serves nothing."""


def next_replica(replicas: Iterable[SetReplica], current: int | None) -> int | None:
    """Return the replica to update now, None when none is left.

    The *current* one stays until it is settled. After it come those that lose nothing: without a
    node, then those that lack a minimum, then the others, by index.
    """
    found = {replica.index: replica for replica in replicas}
    now = found.get(current) if current is not None else None
    if now is not None and (now.outdated or not now.settled):
        return now.index
    left = [replica for replica in found.values() if replica.outdated]
    left.sort(key=lambda r: (not r.begun, r.scheduled, not r.breached, r.index))
    return left[0].index if left else None


def pods_to_replace(live: Sequence[Pod], revision: str, *, target: int) -> list[Pod]:
    """Return the pods of another revision that go now.

    *live* has all live pods of the clique, *target* is how many it is to have.
    """
    old = [pod for pod in live if pod.labels.get(names.POD_TEMPLATE_HASH) != revision]
    idle = [pod for pod in old if not _holds(pod)]
    if idle:
        return sorted(idle, key=lambda pod: pod.name)
    new = [pod for pod in live if pod.labels.get(names.POD_TEMPLATE_HASH) == revision]
    if not old or len(live) < target or not all(map(is_ready, new)):
        return []
    # Those that are not ready go first: where a ready one goes, all are, and so is the minimum.
    return [min(old, key=_rank)]


def replicas_to_replace(replicas: Sequence[GroupReplica]) -> list[int]:
    """Return the indices of the scaling group's replicas that go now; *replicas* has all wanted."""
    old = [replica for replica in replicas if not replica.updated]
    idle = [replica.index for replica in old if not replica.holds]
    if idle:
        return sorted(idle)
    if not old or any(r.updated and not r.available for r in replicas):
        return []
    # As with pods: where one that is available goes, all are.
    return [min(old, key=lambda replica: (replica.available, replica.index)).index]


def _holds(pod: Pod) -> bool:
    return any(s.started for s in pod.status.container_statuses) and not exited_with_error(pod)


def _rank(pod: Pod) -> tuple[bool, float, int, str]:
    created = pod.metadata.creation_timestamp
    age = parse_rfc3339(created) if created else 0.0
    return is_ready(pod), age, index_label(pod.labels, names.POD_INDEX) or 0, pod.name
