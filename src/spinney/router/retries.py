"""Who is to blame for a failure, and whether another attempt follows from it.

Invariant: the attempts of one request, its migrations, and the retries of all requests together are
bounded; what follows from one worker's death costs the others nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.log import get_logger
from spinney.router.load import RetryBudget
from spinney.router.run import Attempt
from spinney.router.upstream import FailureKind
from spinney.router.workers import Stage

if TYPE_CHECKING:
    from spinney.router.cache_view import CacheView
    from spinney.router.limits import Limits
    from spinney.router.load import Faults
    from spinney.router.recorder import Recorder
    from spinney.router.run import Handover, Run
    from spinney.router.upstream import WorkerFailure

log = get_logger("router")

KV_FAULTS = frozenset({"kv_lost", "kv_transfer_failed"})
"""Codes with which a decode worker says that the prefill worker's blocks did not come."""


class Retries:
    """Follows what fails, for all requests."""

    def __init__(
        self, faults: Faults, cache: CacheView, recorder: Recorder, *, limits: Limits
    ) -> None:
        self._faults = faults
        self._cache = cache
        self._recorder = recorder
        self._limits = limits
        self._budget = RetryBudget(limits)

    def earn(self) -> None:
        """Note a request, which earns a part of a retry."""
        self._budget.earn()

    def next_attempt(self, run: Run) -> Attempt:
        """Return the attempt that follows the present one."""
        number = run.attempt.number + 1
        return Attempt(number, local=run.resumes_locally or self._is_last(run, number))

    def _is_last(self, run: Run, number: int) -> bool:
        limits = self._limits
        if run.reply.started and run.migrations >= limits.max_migrations:
            return True
        return number > 1 and (run.counted + 1 >= limits.max_attempts or number >= limits.max_tries)

    def blame(self, run: Run, failure: WorkerFailure) -> bool:
        """Note the failure; return whether another try is free.

        It is where the worker was not known to fail when it was asked: as many requests fail with
        it as it had, and no retry of theirs makes more of them.
        """
        worker = failure.worker.name
        avoided_s, free = 0.0, failure.kind is FailureKind.STALE
        if failure.blames_worker:
            avoided_s = self._faults.failed(worker, _now())
            free = not self._faults.was_known(worker, run.attempt.asked_s)
        elif failure.stage is Stage.DECODE and failure.error_code not in KV_FAULTS and not free:
            run.tried_decode.add(worker)
        if failure.forgets_prefixes:
            self._cache.forget(worker)
        self._recorder.worker_failed(run, failure)
        if not failure.clients_fault:
            log.warning(
                "worker failed",
                worker=worker,
                stage=failure.stage.value,
                request=run.id,
                detail=failure.detail,
                avoided_s=round(avoided_s, 3),
            )
        return free

    def handover_failed(self, run: Run, handover: Handover, failure: WorkerFailure) -> None:
        """Try another prefill worker next time: a plain 500 may mean that its blocks were lost."""
        prefill = handover.worker.name
        self._recorder.handover_failed()
        run.resumes_locally |= failure.clients_fault and bool(run.told)
        if failure.kind is FailureKind.STATUS:
            run.tried_prefill.add(prefill)
        if failure.error_code in KV_FAULTS:
            self._faults.failed(prefill, _now())
            self._cache.forget(prefill)

    def may_prefill_again(self, *, free: bool) -> bool:
        """Whether another prefill worker may be asked after a failure."""
        return free or self._budget.try_spend()

    def may_retry(self, run: Run, failure: WorkerFailure, *, free: bool) -> bool:
        """Whether another attempt is to be made; counts the failed one."""
        if not (free and failure.refused):
            run.counted += 1
        limits, attempt = self._limits, run.attempt
        if attempt.desperate:
            return False
        if run.counted >= limits.max_attempts or attempt.number >= limits.max_tries:
            return False
        if run.age_s() > limits.retry_within_s:
            return False
        return free or self._budget.try_spend()

    def may_migrate(self, run: Run, failure: WorkerFailure, *, free: bool) -> bool:
        """Whether another worker is to go on with a stream that broke off; counts it if so.

        A worker that did not even begin has not gone on with it.
        """
        if run.journal is None:
            return False
        if free and failure.refused and not run.attempt.answering:
            run.turned_away += 1
            return run.turned_away <= self._limits.max_tries
        if run.migrations >= self._limits.max_migrations:
            return False
        run.migrations += 1
        return free or self._budget.try_spend()


def _now() -> float:
    return asyncio.get_running_loop().time()
