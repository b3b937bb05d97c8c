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
"""How long a change waits that readers act on."""
PROGRESS_S = 2.0
"""How long one waits that only says how far a start has come."""
_EPSILON_S = 1e-6


class Pacer:
    """Remembers, by key, since when a change waits to be written."""

    def __init__(self, clock: Clock, settle_s: float = SETTLE_S) -> None:
        self._clock = clock
        self._settle_s = settle_s
        self._noticed: dict[str, float] = {}

    def wait_s(self, key: str, *, changed: bool, progress: bool = False) -> float | None:
        """Tell how long to wait before writing: 0 for now, None when nothing is to be written.

        A change that is but *progress* may wait longer. After 0 the change counts as written.
        """
        if not changed:
            self._noticed.pop(key, None)
            return None
        now = self._clock.now()
        settle_s = PROGRESS_S if progress else self._settle_s
        left = self._noticed.setdefault(key, now) + settle_s - now
        if left > _EPSILON_S:
            return left
        del self._noticed[key]
        return 0.0

    def forget(self, key: str) -> None:
        """Drop what is known of an object that is gone."""
        self._noticed.pop(key, None)
