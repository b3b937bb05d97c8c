"""How long to wait before trying again: exponential, jittered, never longer than a named cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Waits double from *base_s* to *cap_s*; each is shortened by up to *jitter* of itself."""

    base_s: float
    cap_s: float
    jitter: float = 0.5

    def delay_s(self, failures: int, rng: Random) -> float:
        """Return the wait after *failures* failures in a row, of which there is at least one."""
        # Past the cap the exponent no longer matters, and 2.0**n overflows at n = 1024.
        exponent = min(max(failures - 1, 0), 60)
        whole = min(self.cap_s, self.base_s * 2.0**exponent)
        return whole * (1.0 - self.jitter * rng.random())
