"""How soon pods that ended for good are replaced.

A node restarts what it can; a pod that is finished is replaced by us. The first at once; if its
replacements end as well, each later, so that a broken image does not turn into a stream of
pods. While the wait lasts, the ended pod is kept: its log says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.clock import Clock

FIRST_DELAY_S = 1.0
"""Wait before the second replacement in a row; it doubles."""
LONGEST_DELAY_S = 60.0


@dataclass(slots=True)
class _Record:
    failures: int = 0
    not_before_s: float = 0.0
    seen: set[str] = field(default_factory=set)


class ReplacementBackoff:
    """Counts, by clique, pods that ended in a row."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def wait_s(self, key: str, finished_uids: Iterable[str]) -> float:
        """Return how long to wait before the finished pods of *key* are replaced, 0 for now.

        Pods that are seen finished for the first time lengthen the wait.
        """
        finished = set(finished_uids)
        record = self._records.get(key)
        if not finished:
            return 0.0
        if record is None:
            record = self._records[key] = _Record()
        now = self._clock.now()
        if finished - record.seen:
            delay_s = FIRST_DELAY_S * 2.0 ** (record.failures - 1) if record.failures else 0.0
            record.not_before_s = now + min(delay_s, LONGEST_DELAY_S)
            record.failures += 1
        record.seen = finished
        return max(0.0, record.not_before_s - now)

    def succeeded(self, key: str) -> None:
        """Start over: all pods of *key* are ready, or it is gone."""
        self._records.pop(key, None)
