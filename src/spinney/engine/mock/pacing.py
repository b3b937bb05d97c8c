"""Modelled time spent in the loop, without a thread.

A function of the mock takes microseconds; what takes long is the waiting for the time that the
model says, and that is a timer of the loop. So a mock engine runs on a loop with virtual time as
well. Timers of a real loop are as fine as a millisecond; steps may be shorter. Invariant: over many
steps the time spent is the time modelled, divided by the speed-up, as long as the machine keeps up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.engine.mock.executor import MockExecutor

T = TypeVar("T")

CATCH_UP_S = 0.01
"""How much of a late timer the following steps make good."""


class ModelledTurns:
    """Runs functions in the loop, one at a time, and waits as long as their steps would take.

    See `spinney.engine.worker_thread.Turns`. Raises BadInputError unless *speed_up* is above 0.
    """

    def __init__(self, executor: MockExecutor, speed_up: float = 1.0) -> None:
        if not speed_up > 0:
            raise BadInputError(f"--speed-up {speed_up}: give a number above 0")
        self._executor = executor
        self._speed_up = speed_up
        self._turn = asyncio.Lock()
        self._late_s = 0.0

    async def run(self, function: Callable[[], T]) -> T:
        """Return what *function* returns, after the modelled time; or raise what it raises."""
        async with self._turn:
            result = function()
            await self._wait(self._executor.take_spent_s() / self._speed_up)
            return result

    def stop(self) -> None:
        """Do nothing: no thread is there."""

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() - self._late_s + seconds
        # Others get their turn also when time is owed.
        await asyncio.sleep(max(0.0, due - loop.time()))
        self._late_s = max(0.0, min(CATCH_UP_S, loop.time() - due))
