"""Room kept for gangs that cannot be bound yet: what they wait for is still on its way out.

A reservation is entered like a placement, so nobody else is given its room, but its pods are not
bound by it. When its gang's turn comes the room is let go and the gang is placed for real; if that
is not possible yet, room is kept again. Every reservation ends: with the binding, with the gang, or
in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler import search
from spinney.scheduler.demand import growth_demand
from spinney.scheduler.memory import Reservation, Spot
from spinney.scheduler.queues.model import times
from spinney.scheduler.statement import Placement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.session import Session
    from spinney.scheduler.shapes import PodInfo


class Reservations:
    """The reservations of one cycle."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.kept: dict[str, Reservation] = {}
        self.lapsed: dict[str, int] = {}

    def restore(self) -> None:
        """Take over what the last cycle kept, as far as it still makes sense."""
        session = self._session
        snapshot, memory = session.snapshot, session.memory
        pending = {gang.key for gang in snapshot.gangs}
        version = snapshot.room_version
        self.lapsed = {
            gang: at for gang, at in memory.lapsed.items() if at == version and gang in pending
        }
        for found in memory.reservations:
            if found.draining:
                continue
            if found.until <= snapshot.now:
                self.lapsed[found.gang] = version
                continue
            if found.gang not in pending and not found.moved:
                continue
            if any(spot.node not in session.layout.index for spot in found.spots):
                continue
            session.wake(found.until)
            self._hold(found)

    def make(
        self, gang: Gang, spots: Iterable[Spot], until: float | None = None, *, moved: bool = False
    ) -> Reservation:
        """Keep the room of *spots* for *gang*, for as long as before if there was a reservation."""
        session = self._session
        if until is None:
            until = session.snapshot.now + session.config.reservation_s
        session.wake(until)
        firm = gang.preemptible is False
        found = Reservation(gang.key, gang.queue, firm, tuple(spots), until, moved)
        self._hold(found)
        return found

    def release(self, gang: str) -> Reservation | None:
        """Let go of the room that is kept for *gang*."""
        found = self.kept.pop(gang, None)
        if found is not None:
            self._session.statement.release(gang)
            self._enter(found, -1)
        return found

    def _hold(self, found: Reservation) -> None:
        self.release(found.gang)
        self.kept[found.gang] = found
        self._session.statement.hold(found.gang, placements(self._session, found.spots))
        self._enter(found, 1)

    def _enter(self, found: Reservation, sign: int) -> None:
        ledger = self._session.ledger
        if ledger is not None:
            amount = times(self._session.pods_amount(spot.pod for spot in found.spots), sign)
            ledger.enter_for(found.queue, amount, firm=found.firm)


def claim(session: Session, gang: Gang, found: Reservation) -> None:
    """Place pods beyond the minimum of *gang* in the room *found*, which was let go just now.

    A pod that came back under another name takes the room of its like. What cannot be bound yet
    is kept on.
    """
    pods = _present(session, gang, found)
    if not pods:
        return
    demand = growth_demand(session, gang, pods)
    if session.refusal(gang, demand):
        return
    if search.place(session, demand, gang.topology) == "placed":
        session.enter(gang, demand)
        return
    start = session.statement.checkpoint()
    with session.without_leaving():
        if search.place(session, demand, gang.topology) != "placed":
            return
        spots = spots_of(session, session.statement.take_out(start))
    session.reservations.make(gang, spots, found.until, moved=found.moved)


def _present(session: Session, gang: Gang, found: Reservation) -> tuple[PodInfo, ...]:
    waiting = {
        pod.key: pod
        for leaf in gang.root.leaves()
        for pod in leaf.pending
        if pod.key not in session.statement.node_of
    }
    chosen = [waiting.pop(spot.pod.key, None) for spot in found.spots]
    for at, spot in enumerate(found.spots):
        if chosen[at] is None:
            like = next((pod for pod in waiting.values() if pod.shape == spot.pod.shape), None)
            chosen[at] = waiting.pop(like.key) if like is not None else None
    return tuple(pod for pod in chosen if pod is not None)


def placements(session: Session, spots: Iterable[Spot]) -> tuple[Placement, ...]:
    """Return *spots* as placements of *session*."""
    index = session.layout.index
    return tuple(
        Placement(session.class_of(spot.pod), (spot.pod,), np.array([index[spot.node]], np.int64))
        for spot in spots
    )


def spots_of(session: Session, found: Iterable[Placement]) -> tuple[Spot, ...]:
    """Return the placements *found* as spots."""
    nodes = session.layout.nodes
    return tuple(
        Spot(pod, nodes[row].name)
        for placement in found
        for pod, row in zip(placement.pods, placement.rows.tolist(), strict=True)
    )
