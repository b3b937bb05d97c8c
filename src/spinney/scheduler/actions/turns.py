"""Whose turn it is: queues take turns by what they have of what they are entitled to.

Under every parent the neediest child comes first; inside a queue gangs come by priority, and at one
priority minimums by age before pods beyond a minimum. An order depends on what was placed so far,
so it is asked for one turn at a time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.queues.ledger import Ledger
    from spinney.scheduler.queues.model import Amounts

Stage = Literal[0, 1, 2]
"""A minimum; the first pod beyond it; further ones."""


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    priority: int
    stage: Stage
    created: str
    key: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What is tried next."""

    gang: Gang
    stage: Stage


class Turns:
    """All gangs that wait for their turn. Taking one removes it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tree = ledger.tree
        self._heaps: dict[str, list[tuple[_Place, int, Turn, Amounts]]] = {}
        self._waiting: dict[str, int] = dict.fromkeys(self._tree.queues, 0)
        """Turns in the queue and below it."""
        self._pushed = 0
        self._keys: dict[str, tuple[tuple[Amounts, Amounts], tuple[object, ...]]] = {}

    def push(self, gang: Gang, stage: Stage, wanted: Amounts) -> None:
        """Let *gang* wait in its queue; *wanted* is what it will take."""
        place = _Place(-gang.priority, stage, gang.created, gang.key)
        self._pushed += 1
        queue = self._tree.path(gang.queue)[0]
        heap = self._heaps.setdefault(queue, [])
        heapq.heappush(heap, (place, self._pushed, Turn(gang, stage), wanted))
        self._count(queue, 1)

    def take(self) -> Turn | None:
        """Return the next turn, or None when nobody waits."""
        at = ""
        while below := [c for c in self._tree.children.get(at, ()) if self._waiting.get(c)]:
            at = min(below, key=self._key) if len(below) > 1 else below[0]
        if not at:
            return None
        _, _, turn, _ = heapq.heappop(self._heaps[at])
        self._count(at, -1)
        return turn

    def _count(self, queue: str, change: int) -> None:
        for name in self._tree.path(queue):
            self._waiting[name] += change

    def _key(self, queue: str) -> tuple[object, ...]:
        state = (self._ledger.allocated[queue], self._head(queue))
        known = self._keys.get(queue)
        if known is None or known[0] != state:
            known = self._keys[queue] = (state, self._ledger.order_key(queue, state[1]))
        return known[1]

    def _head(self, queue: str) -> Amounts:
        """Return what the queue's next gang wants; of a parent, of its first child with one."""
        while queue not in self._heaps or not self._heaps[queue]:
            queue = next(c for c in self._tree.children[queue] if self._waiting[c])
        return self._heaps[queue][0][3]
