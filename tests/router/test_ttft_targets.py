"""Requests are held to their targets only before workers were asked."""

from __future__ import annotations

import asyncio

import pytest
from tests.router.run_parts import a_run

from spinney.router.admission import ENOUGH, Claim, RefusedError
from spinney.router.limits import Limits
from spinney.router.ttft_targets import TtftTargets


def a_claim(ttft_ms, **more):
    run = a_run(**more)
    run.claim = Claim(ttft_ms=ttft_ms)
    run.attempt.expected = 1.0
    return run


def learned(took_s, **more):
    """Return targets that have seen first tokens come after *took_s*."""
    targets = TtftTargets(Limits(return_wait_s=5.0))
    for _ in range(ENOUGH):
        run = a_claim(None, **more)
        run.attempt.chosen_s -= took_s
        targets.came(run)
    return targets


@pytest.mark.parametrize(
    ("wanted_ms", "age_s", "number", "late"),
    [
        pytest.param(500.0, 0.0, 1, True, id="too late"),
        pytest.param(1500.0, 0.0, 1, False, id="in time"),
        pytest.param(1500.0, 1.0, 1, True, id="too late for having waited"),
        pytest.param(500.0, 0.0, 2, False, id="workers were asked"),
        pytest.param(None, 9.0, 1, False, id="at any time"),
    ],
)
def test_what_cannot_come_in_time_is_refused(wanted_ms, age_s, number, late):
    async def main():
        targets = learned(1.0)
        run = a_claim(wanted_ms, age_s=age_s, number=number)
        if late:
            with pytest.raises(RefusedError):
                targets.check(run)
        else:
            targets.check(run)

    asyncio.run(main())


@pytest.mark.parametrize("more", [{"number": 2}, {"stream": False}], ids=["retry", "whole"])
def test_only_the_first_bytes_of_first_attempts_at_streams_teach_anything(more):
    async def main():
        learned(9.0, **more).check(a_claim(1.0))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wanted_ms", "age_s", "started", "most_s"),
    [
        pytest.param(None, 3.0, False, 5.0, id="no target"),
        pytest.param(1000.0, 0.4, False, 0.6, id="what is left of the target"),
        pytest.param(1000.0, 3.0, False, 0.0, id="nothing is left"),
        pytest.param(1000.0, 3.0, True, 5.0, id="the first token was in time"),
    ],
)
def test_nobody_waits_for_a_worker_beyond_the_target(wanted_ms, age_s, started, most_s):
    async def main():
        run = a_claim(wanted_ms, age_s=age_s)
        run.reply.started = started
        return learned(1.0).patience_s(run)

    assert asyncio.run(main()) == pytest.approx(most_s, abs=0.05)
