"""One request from its turn to its end, whatever fails on the way.

    its turn ─→ choose prefill and decode worker ─→ an attempt ─→ answered
                    ↑                                   │
                    ├── failed before the first byte: another prefill, another decode worker
                    └── broke off in the stream: another decode worker goes on with it

Invariants: every request ends with an `Outcome`, and its client has been told; each attempt has a
choice of its own, and nothing of the one before but who failed and what was sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.router import openai
from spinney.router.admission import RefusedError
from spinney.router.migration import DivergedError
from spinney.router.picker import Choice, Nobody, View
from spinney.router.relay import ClientStalledError
from spinney.router.run import Outcome, Run
from spinney.router.upstream import WorkerFailure

if TYPE_CHECKING:
    from spinney.router.attempts import Attempts
    from spinney.router.choosing import Chooser
    from spinney.router.gates import Gates
    from spinney.router.prompt_lookup import PromptLookup
    from spinney.router.recorder import Recorder
    from spinney.router.replies import Replies
    from spinney.router.retries import Retries
    from spinney.router.ttft_targets import TtftTargets


class Serving:
    """Serves requests."""

    def __init__(
        self,
        gates: Gates,
        chooser: Chooser,
        attempts: Attempts,
        *,
        targets: TtftTargets,
        lookup: PromptLookup,
        retries: Retries,
        replies: Replies,
        recorder: Recorder,
    ) -> None:
        self._gates = gates
        self._chooser = chooser
        self._attempts = attempts
        self._targets = targets
        self._lookup = lookup
        self._retries = retries
        self._replies = replies
        self._recorder = recorder

    def view(self) -> View:
        """Return what a choice would be made from now."""
        return self._chooser.view()

    async def serve(self, run: Run) -> Outcome:
        """Answer *run*; return how it ended. Being cancelled ends all work for it."""
        gate = self._gates.of(run.inbound.model)
        try:
            if gate is None:
                return await self._serve(run)
            async with gate.passed(run.claim, run.inbound.prompt_tokens):
                self._recorder.let_in(run)
                return await self._serve(run)
        except RefusedError as error:
            self._recorder.refused(run, error)
            await self._replies.refused(run, error)
            return Outcome.REFUSED
        finally:
            run.settle()

    async def _serve(self, run: Run) -> Outcome:
        self._retries.earn()
        await self._lookup.measure(run)
        while True:
            choice = await self._choose(run)
            if isinstance(choice, Nobody):
                return await self._nobody(run, choice)
            try:
                return await self._attempts.make(run, choice)
            except ClientStalledError as error:
                self._recorder.note(run, "client stalled", detail=str(error))
                return Outcome.CLIENT_STALLED
            except DivergedError as error:
                self._recorder.note(run, "diverged", detail=str(error))
                return await self._break_off(run, str(error))
            except WorkerFailure as failure:
                outcome = await self._failed(run, failure)
                if outcome is not None:
                    return outcome

    async def _choose(self, run: Run) -> Choice | Nobody:
        """Begin the next attempt: return who makes it; raise RefusedError if it is too late."""
        run.attempt = attempt = self._retries.next_attempt(run)
        if run.reply.started:
            await self._lookup.measure_again(run)
        with run.trace.picking() as pick:
            most_s = self._targets.patience_s(run)
            chosen = await self._chooser.choose(
                run.ask(), most_s=most_s, patient=attempt.number > 1
            )
            run.trace.picked(pick, chosen.choice, attempt.number)
        attempt.desperate = chosen.desperate
        attempt.chosen_s = attempt.asked_s = asyncio.get_running_loop().time()
        self._recorder.waited(run, chosen)
        if isinstance(chosen.choice, Choice):
            attempt.expected = chosen.choice.first_token
            self._recorder.chosen(run, chosen.choice)
            self._targets.check(run)
        return chosen.choice

    async def _failed(self, run: Run, failure: WorkerFailure) -> Outcome | None:
        """Tell the client of *failure*, or return None when another attempt is to be made."""
        free = self._retries.blame(run, failure)
        if run.reply.started:
            return await self._broke(run, failure, free=free)
        if failure.clients_fault:
            await self._replies.failed(run, failure)
            return Outcome.REFUSED_BY_WORKER
        if not self._retries.may_retry(run, failure, free=free):
            await self._replies.failed(run, failure)
            return Outcome.FAILED
        self._recorder.retries(run, failure)
        return None

    async def _broke(self, run: Run, failure: WorkerFailure, *, free: bool) -> Outcome | None:
        """End a stream that broke, or return None when another worker is to go on with it."""
        if run.all_is_sent():
            await run.reply.end(openai.END_OF_STREAM)
            return Outcome.OK
        if not self._retries.may_migrate(run, failure, free=free):
            return await self._break_off(run, str(failure))
        self._recorder.migrates(run, failure)
        return None

    async def _nobody(self, run: Run, nobody: Nobody) -> Outcome:
        self._recorder.nobody(run, nobody)
        if run.reply.started:
            return await self._break_off(run, "there is no worker to go on with it")
        await self._replies.nobody(run, nobody)
        return Outcome.NO_WORKER

    async def _break_off(self, run: Run, why: str) -> Outcome:
        self._recorder.broke_off(run)
        run.count_sent()
        await self._replies.broke_off(run, why)
        return Outcome.BROKEN_OFF
