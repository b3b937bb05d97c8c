"""Whose turn it is: queues take turns by what they have of what they are entitled to.

Under every parent the neediest child comes first; inside a queue gangs come by priority, and at one
priority minimums by age before pods beyond a minimum. An order depends on what was placed so far,
so it is asked for one turn at a time. Only queues of which something changed are looked at again:
what else has a key has the same one as before.
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

_Key = tuple[object, ...]


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
        self._heaps: dict[str, list[tuple[_Key, int, Turn, Amounts]]] = {}
        self._waiting: dict[str, int] = dict.fromkeys(self._tree.queues, 0)
        """Turns in the queue and below it."""
        self._pushed = 0
        self._keys: dict[str, _Key] = {}
        """By queue; one that is not here has to be found out."""
        self._children: dict[str, list[tuple[_Key, str]]] = {}
        """By parent: keys that its children have or had, as heaps."""
        self._changed: set[str] = set()
        ledger.watchers.append(self._changed)

    def push(self, gang: Gang, stage: Stage, wanted: Amounts) -> None:
        """Let *gang* wait in its queue; *wanted* is what it will take."""
        place = (-gang.priority, stage, gang.created, gang.key)
        self._pushed += 1
        queue = self._tree.path(gang.queue)[0]
        heap = self._heaps.setdefault(queue, [])
        heapq.heappush(heap, (place, self._pushed, Turn(gang, stage), wanted))
        self._count(queue, 1)

    def take(self) -> Turn | None:
        """Return the next turn, or None when nobody waits."""
        self._look_again()
        at = ""
        while (below := self._first_below(at)) is not None:
            at = below
        if not at:
            return None
        _, _, turn, _ = heapq.heappop(self._heaps[at])
        self._count(at, -1)
        return turn

    def _first_below(self, parent: str) -> str | None:
        heap = self._children.get(parent)
        while heap:
            key, child = heap[0]
            if self._waiting[child] and self._keys.get(child) is key:
                return child
            heapq.heappop(heap)
        return None

    def _count(self, queue: str, change: int) -> None:
        for name in self._tree.path(queue):
            self._waiting[name] += change
            self._changed.add(name)

    def _look_again(self) -> None:
        """Find out the keys of queues of which something changed, and of those above them."""
        for name in self._changed:
            self._keys.pop(name, None)
        for name in sorted(self._changed, key=lambda n: -len(self._tree.path(n))):
            if self._waiting.get(name):
                key = self._keys[name] = self._ledger.order_key(name, self._head(name))
                parent = self._tree.queues[name].parent
                heapq.heappush(self._children.setdefault(parent, []), (key, name))
        self._changed.clear()

    def _head(self, queue: str) -> Amounts:
        """Return what the next gang wants in the queue, or below it: children come before it."""
        while not self._heaps.get(queue):
            below = self._first_below(queue)
            assert below is not None, "a queue with waiting gangs has none"
            queue = below
        return self._heaps[queue][0][3]
