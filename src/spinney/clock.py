"""The seam for time of day.

Waiting is asyncio's: ``asyncio.sleep`` and ``asyncio.timeout`` follow the running loop, real or
simulated. What a loop cannot tell is the time of day, which objects carry in their
timestamps; deciding code takes it as a number, shells take a `Clock`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio


class Clock(Protocol):
    """Tells the time of day."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()


class LoopClock:
    """A time of day that advances with *loop*: on a simulated loop it is simulated too."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoch_s: float = 1_767_225_600.0) -> None:
        self._loop = loop
        self._epoch_s = epoch_s

    def now(self) -> float:
        """Seconds since the Unix epoch; *epoch_s* is when the loop's time was zero."""
        return self._epoch_s + self._loop.time()


def rfc3339(at_s: float, *, micro: bool = False) -> str:
    """Return the time stamp Kubernetes writes for *at_s*, in whole seconds or microseconds."""
    at = datetime.fromtimestamp(at_s, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> float:
    """Return seconds since the epoch; raise ValueError when *text* is no time stamp."""
    return datetime.fromisoformat(text).timestamp()
