"""When to write a status that changes with every pod event.

A clique of a hundred pods sees hundreds of events while it starts; readers of its status need
the sum, soon, not each step. A change is written a little after it is first noticed, with whatever
came meanwhile; what goes back to how it was is not written at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spinney.clock import Clock

SETTLE_S = 0.25
_EPSILON_S = 1e-6


class Pacer:
    """Remembers, by key, when a pending change is to be written."""

    def __init__(self, clock: Clock, settle_s: float = SETTLE_S) -> None:
        self._clock = clock
        self._settle_s = settle_s
        self._due: dict[str, float] = {}

    def wait_s(self, key: str, *, changed: bool) -> float | None:
        """Tell how long to wait before writing: 0 for now, None when nothing is to be written.

        After 0 the change counts as written.
        """
        if not changed:
            self._due.pop(key, None)
            return None
        now = self._clock.now()
        left = self._due.setdefault(key, now + self._settle_s) - now
        if left > _EPSILON_S:
            return left
        del self._due[key]
        return 0.0

    def forget(self, key: str) -> None:
        """Drop what is known of an object that is gone."""
        self._due.pop(key, None)
