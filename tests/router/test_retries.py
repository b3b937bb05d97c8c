"""Who is avoided after which failure, and whether another attempt follows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from tests.router.run_parts import Aftermath, a_failure, a_run

from spinney.router.migration import Journal
from spinney.router.run import Handover
from spinney.router.upstream import FailureKind
from spinney.router.workers import Role, Stage, Worker

KIND = FailureKind
NO_BUDGET = {"retry_reserve": 0.0, "retry_ratio": 0.0}


@dataclass(frozen=True)
class Blamed:
    """What follows for the worker that failed."""

    avoided: bool = False
    tried: bool = False
    forgotten: bool = False
    free: bool = False


@pytest.mark.parametrize(
    ("kind", "code", "stage", "want"),
    [
        pytest.param(KIND.STALE, "", "decode", Blamed(free=True), id="idle close"),
        pytest.param(KIND.REFUSED, "", "decode", Blamed(True, False, True, True), id="refused"),
        pytest.param(KIND.BROKEN, "", "decode", Blamed(True, False, True, True), id="broken"),
        pytest.param(KIND.TIMEOUT, "", "decode", Blamed(True, free=True), id="too slow"),
        pytest.param(KIND.BAD_ANSWER, "", "decode", Blamed(True, free=True), id="bad answer"),
        pytest.param(503, "", "decode", Blamed(True, free=True), id="503"),
        pytest.param(500, "", "decode", Blamed(tried=True), id="500"),
        pytest.param(429, "", "decode", Blamed(tried=True), id="429"),
        pytest.param(500, "kv_lost", "decode", Blamed(), id="lost blocks"),
        pytest.param(500, "kv_transfer_failed", "decode", Blamed(), id="failed transfer"),
        pytest.param(500, "", "prefill", Blamed(), id="500 of a prefill worker"),
        pytest.param(KIND.BROKEN, "", "prefill", Blamed(True, False, True, True), id="prefill"),
    ],
)
def test_what_is_thought_of_a_worker_that_failed(kind, code, stage, want):
    async def main():
        made, run = Aftermath(), a_run()
        failure = a_failure(kind, code=code, stage=Stage(stage))
        free = made.retries.blame(run, failure)
        name = failure.worker.name
        assert run.tried_prefill == set(), "that is for the leg to say"
        return Blamed(
            name in made.avoided(), name in run.tried_decode, made.forgotten == [name], free
        )

    assert asyncio.run(main()) == want


@pytest.mark.parametrize(("asked_ago_s", "free"), [(1.0, True), (-1.0, False)])
def test_another_try_is_free_only_for_what_a_worker_had_when_it_was_found_failing(
    asked_ago_s, free
):
    async def main():
        made, run = Aftermath(), a_run()
        made.retries.blame(a_run(), a_failure(KIND.BROKEN))
        run.attempt.asked_s -= asked_ago_s
        return made.retries.blame(run, a_failure(KIND.BROKEN))

    assert asyncio.run(main()) is free


OTHER = Worker("p1", "http://p1", Role.PREFILL)


@pytest.mark.parametrize(
    ("kind", "code", "told", "tried", "lost", "locally"),
    [
        pytest.param(KIND.BROKEN, "", (1,), False, False, False, id="broken"),
        pytest.param(500, "", (1,), True, False, False, id="500"),
        pytest.param(500, "kv_lost", (), True, True, False, id="lost blocks"),
        pytest.param(400, "", (1,), True, False, True, id="a resumed hand-over is refused"),
        pytest.param(400, "", (), True, False, False, id="a hand-over is refused"),
    ],
)
def test_what_a_decode_workers_failure_says_of_the_hand_over(
    kind, code, told, tried, lost, locally
):
    async def main():
        made, run = Aftermath(), a_run()
        run.told = told
        made.retries.handover_failed(run, Handover(OTHER, None, 0.0), a_failure(kind, code=code))
        assert ("p1" in run.tried_prefill) is tried
        assert ("p1" in made.avoided()) is lost
        assert made.forgotten == (["p1"] if lost else [])
        assert made.retries.next_attempt(run).local is locally
        failed = {"outcome": "failed"}
        assert made.registry.get_sample_value("spinney_router_handovers_total", failed) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "free", "counted", "number", "more", "want"),
    [
        pytest.param(500, False, 0, 1, {}, True, id="first failure"),
        pytest.param(500, False, 1, 2, {}, True, id="second failure"),
        pytest.param(500, False, 2, 3, {}, False, id="third failure of three"),
        pytest.param(KIND.BROKEN, True, 2, 3, {}, False, id="what was begun counts, free or not"),
        pytest.param(KIND.REFUSED, True, 2, 3, {}, True, id="what reached nobody does not count"),
        pytest.param(503, True, 2, 3, {}, True, id="a 503 reached nobody"),
        pytest.param(503, False, 2, 3, {}, False, id="one of a worker known to fail counts"),
        pytest.param(503, True, 0, 6, {}, False, id="sixth try of six"),
        pytest.param(500, False, 0, 1, {"desperate": True}, False, id="nobody was well"),
        pytest.param(500, False, 0, 1, {"age_s": 61.0}, False, id="too late"),
        pytest.param(500, False, 0, 1, {"age_s": 59.0}, True, id="not too late"),
        pytest.param(500, False, 0, 1, NO_BUDGET, False, id="no budget"),
        pytest.param(503, True, 0, 1, NO_BUDGET, True, id="free without budget"),
    ],
)
def test_another_attempt_is_made_within_all_bounds(kind, free, counted, number, more, want):
    async def main():
        budget = {name: more[name] for name in NO_BUDGET if name in more}
        made = Aftermath(max_attempts=3, max_tries=6, retry_within_s=60.0, **budget)
        run = a_run(number=number, age_s=more.get("age_s", 0.0))
        run.counted = counted
        run.attempt.desperate = more.get("desperate", False)
        return made.retries.may_retry(run, a_failure(kind), free=free)

    assert asyncio.run(main()) is want


@pytest.mark.parametrize(
    ("counted", "number", "want"),
    [(0, 1, False), (1, 2, False), (2, 3, True), (0, 4, False), (0, 5, True)],
)
def test_the_last_attempt_is_prefilled_by_its_decode_worker(counted, number, want):
    async def main():
        made, run = Aftermath(max_attempts=3, max_tries=5), a_run(number=number - 1)
        run.counted = counted
        attempt = made.retries.next_attempt(run)
        return attempt.number, attempt.local

    assert asyncio.run(main()) == (number, want)


def test_the_only_attempt_may_be_split():
    async def main():
        made = Aftermath(max_attempts=1, max_tries=1)
        return made.retries.next_attempt(a_run(number=0)).local

    assert asyncio.run(main()) is False


def test_an_attempt_takes_nothing_over_from_the_one_before():
    async def main():
        run = a_run()
        run.attempt.answering = run.attempt.desperate = run.attempt.local = True
        after = Aftermath().retries.next_attempt(run)
        return after.answering, after.desperate, after.local, after.asked_s

    assert asyncio.run(main()) == (False, False, False, 0.0)


@pytest.mark.parametrize(
    ("kind", "migrations", "free", "more", "counted", "want"),
    [
        pytest.param(KIND.BROKEN, 1, False, {}, True, True, id="one more"),
        pytest.param(KIND.BROKEN, 2, True, {}, False, False, id="no more"),
        pytest.param(KIND.BROKEN, 0, True, {"journal": False}, False, False, id="no journal"),
        pytest.param(KIND.BROKEN, 0, False, NO_BUDGET, True, False, id="no budget"),
        pytest.param(KIND.BROKEN, 0, True, NO_BUDGET, True, True, id="free without budget"),
        pytest.param(KIND.REFUSED, 2, True, {}, False, True, id="nobody was reached"),
        pytest.param(503, 2, True, {}, False, True, id="a 503 reached nobody"),
        pytest.param(503, 2, True, {"turned_away": 6}, False, False, id="turned away too often"),
        pytest.param(503, 2, True, {"answering": True}, False, False, id="it had begun"),
        pytest.param(KIND.REFUSED, 1, False, {}, True, True, id="it was known to fail"),
        pytest.param(KIND.REFUSED, 2, False, {}, False, False, id="known to fail, no more"),
    ],
)
def test_a_stream_goes_on_within_all_bounds(kind, migrations, free, more, counted, want):
    async def main():
        budget = {name: more[name] for name in NO_BUDGET if name in more}
        made, run = Aftermath(max_migrations=2, max_tries=6, **budget), a_run()
        run.journal = Journal(strip=True) if more.get("journal", True) else None
        run.migrations, run.turned_away = migrations, more.get("turned_away", 0)
        run.attempt.answering = more.get("answering", False)
        found = made.retries.may_migrate(run, a_failure(kind), free=free)
        assert run.migrations == migrations + counted
        return found

    assert asyncio.run(main()) is want


def test_retries_are_earned_by_requests_and_spent_by_all_kinds():
    async def main():
        retries = Aftermath(retry_reserve=1.0, retry_ratio=0.5).retries
        run = a_run()
        run.journal = Journal(strip=True)
        found = []
        for spend in (
            lambda: retries.may_prefill_again(free=False),
            lambda: retries.may_retry(a_run(), a_failure(500), free=False),
            lambda: retries.may_migrate(run, a_failure(500), free=False),
        ):
            found.append((spend(), spend()))
            retries.earn()
            retries.earn()
        return found

    assert asyncio.run(main()) == [(True, False)] * 3
