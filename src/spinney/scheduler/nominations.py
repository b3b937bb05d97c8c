"""Kept room, written on the pods it is kept for, so that a restart does not lose it.

Room that others were evicted for exists in the scheduler's memory alone until its gang is bound. So
before anybody is evicted, each pod is told its node in ``status.nominatedNodeName``. A scheduler
that starts reads them back as reservations; one that no longer holds is found out by the
next cycle like any other, and is taken off the pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.scheduler.memory import Memory, Reservation, Spot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.snapshot import Snapshot


def recovered(snapshot: Snapshot, nominated: Mapping[str, str], config: SchedulerConfig) -> Memory:
    """Return the memory with which a scheduler starts on *snapshot*.

    *nominated* are pending pods with the node on which the API says room is kept for them.
    """
    until = snapshot.now + config.reservation_s
    kept = []
    for gang in snapshot.gangs:
        pending = [pod for leaf in gang.root.leaves() for pod in leaf.pending]
        spots = tuple(Spot(p, nominated[p.key]) for p in pending if p.key in nominated)
        if spots:
            firm = gang.preemptible is False
            kept.append(Reservation(gang.key, gang.queue, firm, spots, until))
    return Memory(reservations=tuple(kept))


def wanted(memory: Memory, snapshot: Snapshot) -> dict[str, str]:
    """Return the pods that are to carry a node's name, with it: kept room of pods that wait.

    Room that is still in use by others is not theirs yet.
    """
    return {
        spot.pod.key: spot.node
        for reservation in memory.reservations
        if not reservation.draining
        for spot in reservation.spots
        if (pod := snapshot.pods.get(spot.pod.key)) is not None
        and pod.uid == spot.pod.uid
        and pod.state == "pending"
    }
