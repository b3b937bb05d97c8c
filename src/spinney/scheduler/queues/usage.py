"""What queues used in the past, fading: the memory that fairness over time needs.

Usage is the time integral of what a queue had, halved every half-life. It is kept as a float per
queue and resource, as a share of what the cluster had in the same time; the decision turns it into
an exact fraction, so equal inputs still give equal shares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.scheduler.queues.model import Amounts

PRECISION = 10**6
"""Shares of the past are rounded to so many parts."""


@dataclass(slots=True)
class UsageMemory:
    """Decaying usage by queue. Changed by `observe` only."""

    half_life_s: float
    at: float | None = None
    used: dict[str, list[float]] = field(default_factory=dict)
    capacity: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def observe(self, now: float, allocated: Mapping[str, Amounts], total: Amounts) -> None:
        """Note that from the last observation until *now* queues had what they are said to have."""
        if self.at is not None and now > self.at:
            seconds = now - self.at
            kept = 0.5 ** (seconds / self.half_life_s)
            self._fade(kept)
            for at, amount in enumerate(total):
                self.capacity[at] += amount * seconds
            for name, amounts in allocated.items():
                mine = self.used.setdefault(name, [0.0, 0.0, 0.0])
                for at, amount in enumerate(amounts):
                    mine[at] += amount * seconds
        self.at = now if self.at is None else max(now, self.at)

    def _fade(self, kept: float) -> None:
        self.capacity = [value * kept for value in self.capacity]
        for name, values in self.used.items():
            self.used[name] = [value * kept for value in values]

    def share(self, queue: str, resource: int) -> Fraction:
        """Return what part of the cluster's *resource* the queue had, from 0 to 1."""
        had = self.used.get(queue)
        if had is None or not self.capacity[resource]:
            return Fraction(0)
        return Fraction(round(had[resource] / self.capacity[resource] * PRECISION), PRECISION)
