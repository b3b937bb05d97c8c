"""A request's way to a prefill worker, and to another one where that fails.

Invariant: whatever fails here costs time and not the request, which a decode worker can prefill.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from spinney.router import openai
from spinney.router.run import Handover
from spinney.router.upstream import FailureKind, WorkerFailure
from spinney.router.worker_call import Call, Deadline, WorkerCalls
from spinney.router.workers import Stage

if TYPE_CHECKING:
    from spinney.router.choosing import Chooser
    from spinney.router.limits import Limits
    from spinney.router.load import Faults, Ledger
    from spinney.router.picker import Pick
    from spinney.router.prompt_lookup import PromptLookup
    from spinney.router.recorder import Recorder
    from spinney.router.rendezvous import Meeting
    from spinney.router.retries import Retries
    from spinney.router.run import Run
    from spinney.router.vigil import Vigil
    from spinney.router.workers import Worker


class PrefillLeg:
    """Has prompts computed by prefill workers."""

    def __init__(
        self,
        calls: WorkerCalls,
        *,
        chooser: Chooser,
        ledger: Ledger,
        faults: Faults,
        vigil: Vigil,
        lookup: PromptLookup,
        retries: Retries,
        recorder: Recorder,
        limits: Limits,
    ) -> None:
        self._calls = calls
        self._chooser = chooser
        self._ledger = ledger
        self._faults = faults
        self._vigil = vigil
        self._lookup = lookup
        self._retries = retries
        self._recorder = recorder
        self._limits = limits

    async def handover(self, run: Run, first: Pick, decode: Worker) -> Handover | None:
        """Return the prompt computed by a prefill worker for *decode*, or None when none could."""
        picked: Pick | None = first
        cause, free = "", True
        for _turn in range(self._limits.max_prefill_attempts):
            if picked is None or not self._retries.may_prefill_again(free=free):
                break
            if cause:
                self._recorder.prefills_again(cause)
            try:
                return await self._prefill(run, picked.worker)
            except WorkerFailure as failure:
                free = self._retries.blame(run, failure)
                run.tried_prefill.add(failure.worker.name)
                if failure.clients_fault:
                    break  # The decode worker has the last word on the request.
                cause = failure.cause
            picked = self._chooser.another_prefill(run.ask(), decode)
            run.attempt.asked_s = _now()
        self._recorder.note(run, "prefill given up", tried=sorted(run.tried_prefill))
        return None

    async def meet(self, run: Run, worker: Worker, meeting: Meeting) -> None:
        """Have *worker* compute the prompt for the decode worker it meets; raise WorkerFailure."""
        try:
            await self._prefill(run, worker, meeting)
        except WorkerFailure as failure:
            if not failure.clients_fault or worker.only_paired:
                raise  # A worker that needs it would wait for what never comes.
            # The decode worker has the last word on the request.
            self._recorder.note(run, "prefill refused", worker=worker.name, detail=failure.detail)

    async def _prefill(
        self, run: Run, worker: Worker, meeting: Meeting | None = None
    ) -> Handover | None:
        began_s = _now()
        uncached = self._lookup.uncached_tokens(run, worker)
        self._lookup.routed(run, worker)
        prefill_body = openai.prefill_body if meeting is None else meeting.prefill_body
        body = prefill_body(run.body)
        with (
            self._ledger.work(worker, Stage.PREFILL, prefill_tokens=uncached),
            run.trace.asking("prefill", worker) as span,
            self._vigil.attend(worker, Stage.PREFILL),
        ):
            deadline_s = self._limits.prefill_deadline(run.known_tokens)
            async with Deadline(deadline_s, worker, Stage.PREFILL):
                call = Call(run, worker, Stage.PREFILL, body, span, once=meeting is not None)
                answer = await self._calls.whole(call)
        took_s = _now() - began_s
        self._faults.succeeded(worker.name)
        self._recorder.prefill_answered(run, took_s)
        handle, usage = _read(answer.body, worker)
        offered = handle is not None or meeting is not None
        cached = self._lookup.audit(run, worker, usage)
        self._recorder.prefilled(run, worker, took_s, cached, offered=offered)
        return Handover(worker, handle, took_s) if handle is not None else None


def _read(body: bytes, worker: Worker) -> tuple[msgspec.Raw | None, openai.Usage | None]:
    try:
        return openai.handle_of(body)
    except msgspec.DecodeError as error:
        detail = f"answered what is no JSON: {error}"
        raise WorkerFailure(worker, Stage.PREFILL, FailureKind.BAD_ANSWER, detail) from error


def _now() -> float:
    return asyncio.get_running_loop().time()
