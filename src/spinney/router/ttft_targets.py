"""When a request's first token is wanted, and whether it will be there by then.

Invariant: only a first choice is refused for being late. Once workers have been asked, what they
began is worth more than the time it is late.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.router.admission import Forecast, too_late

if TYPE_CHECKING:
    from spinney.router.limits import Limits
    from spinney.router.run import Run


class TtftTargets:
    """Holds requests to their targets, by what first tokens took before."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._forecast = Forecast()

    def check(self, run: Run) -> None:
        """Raise RefusedError when the first token would come too late, as far as is known."""
        wanted_ms = run.claim.ttft_ms
        if wanted_ms is None or run.attempt.number > 1:
            return
        expected_ms = self._forecast.ms(run.attempt.expected)
        if expected_ms is None:
            return
        expected_ms += 1000 * run.age_s()
        if expected_ms > wanted_ms:
            raise too_late(wanted_ms, expected_ms)

    def came(self, run: Run) -> None:
        """Learn from the first byte of *run*, which has just come.

        A further attempt tells how long failures take, and a whole answer how long it is.
        """
        if run.attempt.number == 1 and run.inbound.stream:
            took_s = asyncio.get_running_loop().time() - run.attempt.chosen_s
            self._forecast.observe(run.attempt.expected, 1000 * took_s)

    def patience_s(self, run: Run) -> float:
        """Return how long *run* may wait for a worker to come back."""
        if run.claim.ttft_ms is None or run.reply.started:
            return self._limits.return_wait_s
        return max(0.0, run.claim.ttft_ms / 1000 - run.age_s())
