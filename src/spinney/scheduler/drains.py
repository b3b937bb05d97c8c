"""Room that comes free little by little, kept for a gang that waited too long for it.

Where small gangs come and go without end, a large one never finds its room free at one moment. A
drain names the nodes that the large gang is to have. What is free there, and what becomes free, is
withheld from others, up to what the gang needs on each node; what is beyond its need they may use.
When everything it needs is free the gang is placed like any other.

A drain holds nothing back from who could displace it or be displaced by it: gangs of higher
priority, and preemptible ones of its own queue of lower priority. Two drains never want the same
room, so none waits for another; and every drain ends: with the gang or in time.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.memory import Reservation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.memory import Spot
    from spinney.scheduler.session import Session


@dataclass(slots=True)
class _Drain:
    found: Reservation
    priority: int
    rows: NDArray[np.int64]
    need: NDArray[np.int64]
    """By row, what the gang needs there."""
    withheld: NDArray[np.int64] | None = None
    """What of it is free and kept from others now; None while nothing is."""


class Drains:
    """The drains of one cycle."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._all: dict[str, _Drain] = {}
        self.gone: set[str] = set()
        """Gangs whose drain of the last cycle is no more: if they wait, that starts anew."""

    def restore(self) -> None:
        """Take over the drains of the last cycle, as far as they still make sense."""
        kept = [found for found in self._session.memory.reservations if found.draining]
        if not kept:
            return
        gangs = {gang.key: gang for gang in self._session.snapshot.gangs}
        for found in kept:
            gang = gangs.get(found.gang)
            alive = found.until > self._session.snapshot.now and self._exists(found.spots)
            if gang is not None and alive:
                self._take_on(found, gang)
            else:
                self.gone.add(found.gang)

    def _exists(self, spots: Iterable[Spot]) -> bool:
        return all(spot.node in self._session.layout.index for spot in spots)

    def start(self, gang: Gang, spots: tuple[Spot, ...]) -> None:
        """Keep what becomes free of the room of *spots* for *gang*."""
        until = self._session.snapshot.now + self._session.config.drain_limit_s
        firm = gang.preemptible is False
        self._take_on(Reservation(gang.key, gang.queue, firm, spots, until, draining=True), gang)

    def _take_on(self, found: Reservation, gang: Gang) -> None:
        layout = self._session.layout
        rows = np.unique([layout.index[spot.node] for spot in found.spots]).astype(np.int64)
        need = np.zeros((len(rows), len(layout.resources)), np.int64)
        for spot in found.spots:
            at = int(np.searchsorted(rows, layout.index[spot.node]))
            need[at] += layout.vector(spot.pod.shape.requests)
        self._all[gang.key] = _Drain(found, gang.priority, rows, need)
        self._session.wake(found.until)

    # What is kept from whom

    def make_way(self, gang: Gang) -> None:
        """Let the session show the room that is there for *gang*."""
        for drain in self._all.values():
            if self._held_from(drain, gang) != (drain.withheld is not None):
                self._switch(drain)

    def _held_from(self, drain: _Drain, gang: Gang) -> bool:
        if gang.key == drain.found.gang or gang.priority > drain.priority:
            return False
        resolve = self._session.snapshot.queues.resolve
        beside = resolve(gang.queue) == resolve(drain.found.queue)
        return not (beside and gang.preemptible and gang.priority < drain.priority)

    def _switch(self, drain: _Drain) -> None:
        idle = self._session.idle
        if drain.withheld is None:
            drain.withheld = np.clip(np.minimum(idle[drain.rows], drain.need), 0, None)
            idle[drain.rows] -= drain.withheld
        else:
            idle[drain.rows] += drain.withheld
            drain.withheld = None
        self._session.statement.touched.append(drain.rows)

    def holding(self) -> list[str]:
        """Return the gangs for which room is withheld at the moment."""
        return [gang for gang, drain in self._all.items() if drain.withheld is not None]

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Show the room that is withheld as free."""
        lifted = [self._all[gang] for gang in self.holding()]
        for drain in lifted:
            self._switch(drain)
        try:
            yield
        finally:
            for drain in lifted:
                self._switch(drain)

    def missing(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield nodes, and by node what drains that hold something back lack there still."""
        for drain in self._all.values():
            if drain.withheld is not None:
                yield drain.rows, drain.need - drain.withheld

    # What there is

    def __contains__(self, gang: str) -> bool:
        return gang in self._all

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._all)

    def queues(self) -> set[str]:
        """Return the queues of gangs that have a drain."""
        resolve = self._session.snapshot.queues.resolve
        return {resolve(drain.found.queue) for drain in self._all.values()}

    def names(self, gang: str) -> list[str]:
        """Return the nodes that are kept for *gang*."""
        drain = self._all.get(gang)
        nodes = self._session.layout.nodes
        return [nodes[row].name for row in drain.rows.tolist()] if drain is not None else []

    def lasting(self) -> tuple[Reservation, ...]:
        """Return the drains of gangs that still wait: what the next cycle takes over."""
        verdicts = self._session.verdicts
        return tuple(
            drain.found
            for gang, drain in self._all.items()
            if (verdict := verdicts.get(gang)) is not None and verdict.kind == "unplaced"
        )

    def in_vain(self) -> dict[str, frozenset[str]]:
        """Return which nodes were kept for gangs that still wait, without all becoming free."""
        memory, verdicts = self._session.memory, self._session.verdicts
        found = dict(memory.drained)
        for drain in memory.reservations:
            if drain.draining and drain.gang in self.gone:
                nodes = frozenset(spot.node for spot in drain.spots)
                found[drain.gang] = found.get(drain.gang, frozenset()) | nodes
        return {
            gang: nodes
            for gang, nodes in found.items()
            if (verdict := verdicts.get(gang)) is not None and verdict.kind == "unplaced"
        }

    @property
    def any_ended(self) -> bool:
        """Whether room is free for others now that was kept from them in this cycle."""
        return len(self.lasting()) < len(self._all)
