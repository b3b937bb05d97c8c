"""One attempt at a request: prefill and decode leg, one after the other or side by side.

    ticket:      prefill worker ─→ handle ─→ decode worker
    rendezvous:  prefill worker ∥ decode worker, which find each other

Invariants: a hand-over's handle is used for one decode attempt and never again, since a worker may
have given the memory it names to another prompt; an attempt that ends, in whichever way, leaves
nothing in the ledger and no open connection to a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.router import openai
from spinney.router.rendezvous import Meeting, beside, meeting_at, secret_room
from spinney.router.run import Handover, Outcome, Served, mode_of
from spinney.router.upstream import FailureKind, WorkerFailure
from spinney.router.workers import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.router.decode_leg import DecodeLeg
    from spinney.router.load import Ledger, Work
    from spinney.router.picker import Choice, Pick
    from spinney.router.prefill_leg import PrefillLeg
    from spinney.router.prompt_lookup import PromptLookup
    from spinney.router.recorder import Recorder
    from spinney.router.retries import Retries
    from spinney.router.run import Run


SINGLE = openai.error_body(
    "n is more than 1: workers that are met (SGLang's) answer that never; ask once for each choice",
    "invalid_request_error",
    param="n",
)


class Attempts:
    """Carries requests to the workers that were chosen for them."""

    def __init__(
        self,
        prefill: PrefillLeg,
        decode: DecodeLeg,
        *,
        ledger: Ledger,
        lookup: PromptLookup,
        retries: Retries,
        recorder: Recorder,
        rooms: Callable[[], int] = secret_room,
    ) -> None:
        """*rooms* makes up where two workers meet."""
        self._prefill = prefill
        self._decode = decode
        self._ledger = ledger
        self._lookup = lookup
        self._retries = retries
        self._recorder = recorder
        self._rooms = rooms

    async def make(self, run: Run, choice: Choice) -> Outcome:
        """Have *run* answered as *choice* says; raise WorkerFailure, DivergedError."""
        decode = choice.decode.worker
        with self._ledger.work(decode, Stage.DECODE, context_tokens=run.known_tokens) as work:
            if choice.prefill is None:
                return await self._alone(run, choice, work)
            meeting = meeting_at(choice.prefill.worker, self._rooms)
            if meeting is not None:
                return await self._met(run, choice, choice.prefill, meeting, work)
            handover = await self._prefill.handover(run, choice.prefill, decode)
            if handover is None:
                return await self._alone(run, choice, work)
            return await self._fetched(run, choice, handover, work)

    async def _alone(self, run: Run, choice: Choice, work: Work) -> Outcome:
        """Have the decode worker compute the prompt."""
        decode = choice.decode.worker
        work.prefilling(self._lookup.uncached_tokens(run, decode))
        self._lookup.routed(run, decode)
        self._recorder.prefilled_locally(choice)
        return await self._decode.answer(run, Served(decode, None, mode_of(choice, None)), work)

    async def _fetched(self, run: Run, choice: Choice, handover: Handover, work: Work) -> Outcome:
        """Have the decode worker fetch what a prefill worker has computed."""
        served = Served(choice.decode.worker, handover, mode_of(choice, handover))
        try:
            return await self._decode.answer(run, served, work)
        except WorkerFailure as failure:
            self._retries.handover_failed(run, handover, failure)
            raise

    async def _met(
        self, run: Run, choice: Choice, prefill: Pick, meeting: Meeting, work: Work
    ) -> Outcome:
        """Have both workers called at once."""
        if run.inbound.choices > 1 and prefill.worker.only_paired:
            raise WorkerFailure.refusal(choice.decode.worker, Stage.DECODE, 400, SINGLE)
        handover = Handover(prefill.worker, msgspec.Raw(b""), 0.0, meeting)
        served = Served(choice.decode.worker, handover, mode_of(choice, handover))
        attempt = run.attempt
        prefilling = self._prefill.meet(run, prefill.worker, meeting)
        try:
            async with beside(prefilling, lambda: not attempt.answering):
                return await self._decode.answer(run, served, work)
        except WorkerFailure as failure:
            if failure.stage is Stage.DECODE:
                self._retries.handover_failed(run, handover, failure)
            elif failure.kind is not FailureKind.STALE:
                run.tried_prefill.add(prefill.worker.name)
            raise
