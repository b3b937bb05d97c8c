"""When to write a status that changes with every pod event.

A clique of a hundred pods sees hundreds of events while it starts; readers of its status need
the sum, soon, not each step. A change is written a little after it is first noticed, with whatever
came meanwhile; what goes back to how it was is not written at all.

How far a start has come is told in turn, so many objects a second: a few that start are followed
step by step, and of thousands that start together most report when they are there. No report waits
longer than `LONGEST_S`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.api.meta import Condition
    from spinney.clock import Clock

SETTLE_S = 0.25
"""How long a change waits that readers act on."""
PROGRESS_S = 1.0
"""How long one waits at least that only says how far a start has come."""
PROGRESS_PER_S = 10.0
"""How many of those are written a second, as long as none gets older than `LONGEST_S`."""
LONGEST_S = 10.0
_EPSILON_S = 1e-6


def turned(before: Iterable[Condition], after: Iterable[Condition]) -> bool:
    """Tell whether a condition that was written is not any more what it was: that is news."""
    now = {condition.type: condition.status for condition in after}
    return any(now.get(known.type) != known.status for known in before)


class Pacer:
    """Remembers, by key, since when a change waits to be written, and until when at most."""

    def __init__(self, clock: Clock, settle_s: float = SETTLE_S) -> None:
        self._clock = clock
        self._settle_s = settle_s
        self._noticed: dict[str, float] = {}
        self._turns: dict[str, float] = {}
        self._last_turn_s = 0.0

    def wait_s(self, key: str, *, changed: bool, progress: bool = False) -> float | None:
        """Tell how long to wait before writing: 0 for now, None when nothing is to be written.

        A change that is but *progress* may wait longer. After 0 the change counts as written.
        """
        if not changed:
            self.forget(key)
            return None
        now = self._clock.now()
        noticed_s = self._noticed.setdefault(key, now)
        due_s = self._turn_s(key, now) if progress else noticed_s + self._settle_s
        if due_s - now > _EPSILON_S:
            return due_s - now
        self.forget(key)
        return 0.0

    def forget(self, key: str) -> None:
        """Drop what is known of an object that is gone."""
        self._noticed.pop(key, None)
        self._turns.pop(key, None)

    def _turn_s(self, key: str, now: float) -> float:
        """Return when the progress of *key* is due: its turn, after those asked for earlier."""
        turn_s = self._turns.get(key)
        if turn_s is None:
            next_s = max(self._last_turn_s + 1.0 / PROGRESS_PER_S, now + PROGRESS_S)
            turn_s = self._turns[key] = min(next_s, now + LONGEST_S)
            self._last_turn_s = turn_s
        return turn_s
