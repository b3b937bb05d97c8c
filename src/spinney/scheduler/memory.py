"""What one cycle leaves to the next: verdicts, reserved room, and since when things are so.

It is all that the scheduler knows beyond the API. Losing it is safe: gangs are tried again, room
that was made for one may go to another, and grace periods start anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.scheduler.queues.usage import UsageMemory
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.verdict import Pipelined, Verdict


@dataclass(frozen=True, slots=True)
class Spot:
    """A pod and the node on which room is kept for it."""

    pod: PodInfo
    node: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that is kept for one gang until it binds or time runs out."""

    gang: str
    queue: str
    firm: bool
    """Whether the gang is not preemptible."""
    spots: tuple[Spot, ...]
    until: float
    """Seconds since the epoch."""
    moved: bool = False
    """Whether the gang was displaced to come back here, maybe with pods of other names."""
    draining: bool = False
    """Whether the room is still in use by others and only what becomes free is kept."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The state between cycles. Immutable; each cycle returns a new one."""

    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()
    pipelined: tuple[Pipelined, ...] = ()
    """The pods of the reservations, and where their room is."""
    lapsed: Mapping[str, int] = field(default_factory=dict)
    """Gangs whose reservation ran out, with the room version of then: not made again before that
    changes."""
    stale_since: Mapping[str, float] = field(default_factory=dict)
    """Gangs that run below their minimum."""
    unplaced_since: Mapping[str, float] = field(default_factory=dict)
    """Gangs that wait for room, with when that began."""
    passed_since: Mapping[str, float] = field(default_factory=dict)
    """Gangs that wait for room while later ones were placed, with when that began."""
    drained: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Gangs that wait for room, with nodes that were kept for them in vain."""
    undrainable: Mapping[str, int] = field(default_factory=dict)
    """Gangs for which no node could be drained, with what was asked."""
    usage: UsageMemory | None = None
    version: int = -1
    """The snapshot that this was concluded from."""
    wake_at: float | None = None
    """When time alone may change the conclusion."""

    def unchanged(self, version: int, now: float) -> bool:
        """Tell whether a cycle on the snapshot *version* would only repeat the last one."""
        return version == self.version and (self.wake_at is None or now < self.wake_at)

    def without_reservation(self, gang: str) -> Memory:
        """Return the memory of which the next cycle looks at *gang* anew."""
        kept = tuple(r for r in self.reservations if r.gang != gang)
        verdicts = {key: v for key, v in self.verdicts.items() if key != gang}
        return replace(self, reservations=kept, verdicts=verdicts, version=-1)
