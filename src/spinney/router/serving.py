"""One request from its choice of workers to its end, whatever fails on the way.

    choose prefill and decode worker ─→ prefill (again elsewhere, or not at all) ─→ decode
          ↑                                                                           │
          └─────── failed before the first byte: another prefill, another decode worker

Invariants: a hand-over's handle is used for one decode attempt and never again, since a worker may
have given the memory it names to another prompt; a request that ends, in whichever way, leaves
nothing in the ledger and no open connection to a worker.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from spinney.log import get_logger
from spinney.router import openai
from spinney.router.admission import Forecast, Gate, RefusedError, too_late
from spinney.router.load import Faults, Ledger, RetryBudget, Work
from spinney.router.migration import RESUMED_HEADER, DivergedError, Journal
from spinney.router.picker import Choice, Nobody, Pick, View
from spinney.router.prompt_tokens import prompt_tokens
from spinney.router.relay import ClientStalledError, EventRelay, Headers
from spinney.router.rendezvous import Meeting, beside, meeting_at, secret_room
from spinney.router.request_trace import handover_attributes
from spinney.router.run import Handover, Outcome, Run, Served, mode_of
from spinney.router.upstream import Answer, FailureKind, Upstream, WorkerFailure, read_all
from spinney.router.workers import Stage, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from spinney.router.cache_view import CacheView
    from spinney.router.choosing import Chooser
    from spinney.router.limits import Limits
    from spinney.router.metrics import ModelFigures, RouterMetrics
    from spinney.router.openai import Inbound
    from spinney.router.prompt_tokens import PromptTokenizer
    from spinney.router.stories import Stories
    from spinney.router.table import WorkerTable
    from spinney.router.vigil import Attendance, Vigil
    from spinney.tracing import Span

log = get_logger("router")

RETRY_AFTER_S = 2
"""What a client is told to wait when there is no worker."""
AGAIN = "r"
"""Ends the id of a request that is sent to one worker a second time."""
KV_FAULTS = frozenset({"kv_lost", "kv_transfer_failed"})
"""Codes with which a decode worker says that the prefill worker's blocks did not come."""


class Serving:
    """Serves requests with the workers of *table*."""

    def __init__(
        self,
        table: WorkerTable,
        upstream: Upstream,
        *,
        limits: Limits,
        chooser: Chooser,
        vigil: Vigil,
        metrics: RouterMetrics,
        ledger: Ledger,
        cache: CacheView,
        faults: Faults,
        stories: Stories,
        tokenizers: Mapping[str, PromptTokenizer],
        rooms: Callable[[], int] = secret_room,
    ) -> None:
        """*tokenizers* are by model; the one of an empty name is for all others.

        *rooms* makes up where two workers meet.
        """
        self._rooms = rooms
        self._table = table
        self._upstream = upstream
        self._limits = limits
        self._chooser = chooser
        self._vigil = vigil
        self._metrics = metrics
        self._ledger = ledger
        self._cache = cache
        self._tokenizers = tokenizers
        self._faults = faults
        self._stories = stories
        self._budget = RetryBudget(limits)
        self._gates: dict[str, Gate] = {}
        self._forecast = Forecast()

    def view(self) -> View:
        """Return what a choice would be made from now."""
        return self._chooser.view()

    async def serve(self, run: Run) -> Outcome:
        """Answer *run*; return how it ended. Being cancelled ends all work for it."""
        gate = self._gate(run.inbound.model)
        try:
            if gate is None or not self._capacity(run.inbound.model):
                return await self._serve(run)
            async with gate.passed(run.claim, run.inbound.prompt_tokens):
                self._let_in(run)
                return await self._serve(run)
        except RefusedError as error:
            return await self._refuse(run, error)
        finally:
            run.settle()

    def _let_in(self, run: Run) -> None:
        waited_s = _now() - run.came_s
        run.story.queue_ms = round(1000 * waited_s, 3)
        self._figures(run).queue_wait.observe(waited_s)
        run.trace.queued(run.came_s)

    def _figures(self, run: Run) -> ModelFigures:
        return self._metrics.of(run.inbound.model)

    def waiting(self, model: str) -> int:
        """Return how many requests for *model* wait for their turn."""
        gate = self._gates.get(model)
        return gate.waiting if gate else 0

    def all_waiting(self) -> dict[str, int]:
        """Return how many wait, by model."""
        return {model: gate.waiting for model, gate in self._gates.items()}

    def look(self) -> None:
        """Let in who waits, when there are other workers than before."""
        for gate in self._gates.values():
            gate.look()

    def _gate(self, model: str) -> Gate | None:
        """Return the door to the workers of *model*; None when there are none to wait for."""
        found = self._gates.get(model)
        if found is None:
            if not self._capacity(model):
                return None
            found = self._gates[model] = Gate(self._limits, lambda: self._capacity(model))
        return found

    def _capacity(self, model: str) -> int:
        return len(self._table.roster(model).decoders) * self._limits.max_running_per_worker

    def _in_time(self, run: Run, choice: Choice) -> None:
        """Raise RefusedError when the first token would come too late, as far as is known."""
        wanted_ms = run.claim.ttft_ms
        if wanted_ms is None or run.attempt > 1:
            return
        expected_ms = self._forecast.ms(choice.first_token)
        if expected_ms is None:
            return
        expected_ms += 1000 * (_now() - run.came_s)
        if expected_ms > wanted_ms:
            raise too_late(wanted_ms, expected_ms)

    async def _refuse(self, run: Run, error: RefusedError) -> Outcome:
        self._metrics.refused(error.code, run.claim.tenant)
        if not run.attempt:
            run.trace.queued(run.came_s, error.code)
        self._note(run, "refused", code=error.code, detail=str(error))
        headers = [
            (b"content-type", b"application/json"),
            (b"retry-after", str(error.retry_after_s).encode()),
        ]
        kind = "rate_limit_error" if error.status == 429 else "server_error"
        body = openai.error_body(str(error), kind, code=error.code)
        await self._send_whole(run, error.status, headers, body)
        return Outcome.REFUSED

    async def _serve(self, run: Run) -> Outcome:
        self._budget.earn()
        await self._measure(run)
        self._metrics.prompt_tokens.inc(run.inbound.prompt_tokens)
        while True:
            run.attempt += 1
            run.local = run.resumes_locally or self._is_last(run)
            run.answering = False
            if run.reply.started:
                await self._measure_again(run)
            with run.trace.picking() as pick:
                chosen = await self._chooser.choose(
                    run.ask(), most_s=self._patience_s(run), patient=run.attempt > 1
                )
                run.trace.picked(pick, chosen.choice, run.attempt)
            choice, run.desperate, run.asked_s = chosen.choice, chosen.desperate, _now()
            if chosen.waited_s:
                self._note(run, "waited for a worker", waited_ms=round(1000 * chosen.waited_s, 3))
            if isinstance(choice, Nobody):
                return await self._nobody(run, choice)
            self._note_choice(run, choice)
            self._in_time(run, choice)
            try:
                return await self._attempt(run, choice)
            except ClientStalledError as error:
                self._note(run, "client stalled", detail=str(error))
                return Outcome.CLIENT_STALLED
            except DivergedError as error:
                self._note(run, "diverged", detail=str(error))
                return await self._break_off(run, str(error))
            except WorkerFailure as failure:
                outcome = await self._failed(run, failure)
                if outcome is not None:
                    return outcome

    def _is_last(self, run: Run) -> bool:
        limits = self._limits
        if run.reply.started and run.migrations >= limits.max_migrations:
            return True
        return run.attempt > 1 and (
            run.counted + 1 >= limits.max_attempts or run.attempt >= limits.max_tries
        )

    def _patience_s(self, run: Run) -> float:
        """Return how long *run* may wait for a worker to come back."""
        if run.claim.ttft_ms is None or run.reply.started:
            return self._limits.return_wait_s
        return max(0.0, run.came_s + run.claim.ttft_ms / 1000 - _now())

    async def _measure(self, run: Run) -> None:
        """Find how long the prompt is, and who has computed how much of it before."""
        inbound = run.inbound
        tokens = await self._tokens(inbound)
        run.found = self._cache.found(inbound, tokens, _now())
        run.cached = self._cache.believed(run.found)
        if tokens:
            run.estimated = inbound
            run.inbound = replace(inbound, prompt_tokens=len(tokens))
            run.story.prompt_tokens = len(tokens)

    async def _measure_again(self, run: Run) -> None:
        """Find the same of the prompt and what was sent of the answer, which count alike now."""
        run.told = run.break_point()
        tokens = await self._tokens(run.inbound)
        inbound = run.estimated or run.inbound
        known = None if tokens is None else [*tokens, *run.told]
        inbound = replace(inbound, prompt_tokens=inbound.prompt_tokens + len(run.told))
        run.found = self._cache.found(inbound, known, _now())
        run.cached = self._cache.believed(run.found)

    async def _tokens(self, inbound: Inbound) -> list[int] | None:
        tokenizer = self._tokenizers.get(inbound.model) or self._tokenizers.get("")
        return await prompt_tokens(inbound, tokenizer)

    # Attempts

    async def _attempt(self, run: Run, choice: Choice) -> Outcome:
        run.expected = choice.first_token
        run.chosen_s = _now()
        worker = choice.decode.worker
        tokens = run.known_tokens
        with self._ledger.work(worker, Stage.DECODE, context_tokens=tokens) as work:
            handover = None
            if choice.prefill is not None:
                meeting = meeting_at(choice.prefill.worker, self._rooms)
                if meeting is not None:
                    return await self._met(run, choice, meeting, work)
            if choice.prefill is not None:
                handover = await self._prefill(run, choice.prefill, worker)
            served = Served(worker, handover, mode_of(choice, handover))
            if handover is None:
                work.prefilling(max(1, tokens - run.cached.get(worker.name, 0)))
                self._cache.routed(worker.name, run.inbound, _now())
                reason = "prefill-failed" if choice.prefill else choice.why_mode
                self._metrics.local_prefills.labels(reason).inc()
            try:
                return await self._decode(run, served, work)
            except WorkerFailure as failure:
                if handover is not None:
                    self._handover_failed(run, handover, failure)
                raise

    async def _met(self, run: Run, choice: Choice, meeting: Meeting, work: Work) -> Outcome:
        """Have both workers called at once."""
        assert choice.prefill is not None, "there is somebody to meet"
        prefill = choice.prefill.worker
        handover = Handover(prefill, msgspec.Raw(b""), 0.0, meeting)
        served = Served(choice.decode.worker, handover, mode_of(choice, handover))
        try:
            async with beside(
                self._prefill_beside(run, prefill, meeting), lambda: not run.answering
            ):
                return await self._decode(run, served, work)
        except WorkerFailure as failure:
            if failure.stage is Stage.PREFILL:
                run.tried_prefill.add(prefill.name)
            else:
                self._handover_failed(run, handover, failure)
            raise

    async def _prefill_beside(self, run: Run, worker: Worker, meeting: Meeting) -> None:
        try:
            await self._prefill_on(run, worker, meeting)
        except WorkerFailure as failure:
            if not failure.clients_fault:
                raise
            # The decode worker has the last word on the request.
            self._note(run, "prefill refused", worker=worker.name, detail=failure.detail)

    async def _prefill(self, run: Run, first: Pick, decode: Worker) -> Handover | None:
        """Return the prompt computed by a prefill worker for *decode*, or None when none could."""
        picked: Pick | None = first
        cause, free = "", True
        for _turn in range(self._limits.max_prefill_attempts):
            if picked is None or not (free or self._budget.try_spend()):
                break
            if cause:
                self._metrics.retries.labels(Stage.PREFILL.value, cause).inc()
            try:
                return await self._prefill_on(run, picked.worker)
            except WorkerFailure as failure:
                free = self._blame(run, failure)
                run.tried_prefill.add(failure.worker.name)
                if failure.clients_fault:
                    break  # The decode worker has the last word on the request.
                cause = failure.cause
            picked = self._chooser.another_prefill(run.ask(), decode)
            run.asked_s = _now()
        self._note(run, "prefill given up", tried=sorted(run.tried_prefill))
        return None

    async def _prefill_on(
        self, run: Run, worker: Worker, meeting: Meeting | None = None
    ) -> Handover | None:
        inbound, began_s = run.inbound, _now()
        uncached = max(1, run.known_tokens - run.cached.get(worker.name, 0))
        self._cache.routed(worker.name, inbound, began_s)
        prefill_body = openai.prefill_body if meeting is None else meeting.prefill_body
        body = prefill_body(run.body)
        with (
            self._ledger.work(worker, Stage.PREFILL, prefill_tokens=uncached),
            run.trace.asking("prefill", worker) as span,
            self._vigil.attend(worker, Stage.PREFILL),
        ):
            deadline_s = self._limits.prefill_deadline(run.known_tokens)
            async with _within(deadline_s, worker, Stage.PREFILL):
                answered = await self._whole_answer(run, worker, Stage.PREFILL, body, span)
        took_s = _now() - began_s
        self._faults.succeeded(worker.name)
        self._figures(run).prefill.observe(took_s)
        try:
            handle, usage = openai.handle_of(answered.body)
        except msgspec.DecodeError as error:
            raise WorkerFailure(
                worker, Stage.PREFILL, FailureKind.BAD_ANSWER, f"answered what is no JSON: {error}"
            ) from error
        offered = handle is not None or meeting is not None
        found = "prefilled" if offered else "prefilled without hand-over"
        real = self._audit(run, worker, usage)
        self._note(run, found, worker=worker.name, took_ms=round(took_s * 1000, 3), cached=real)
        self._metrics.handovers.labels("offered" if offered else "none").inc()
        return Handover(worker, handle, took_s) if handle is not None else None

    async def _decode(self, run: Run, served: Served, work: Work) -> Outcome:
        body = run.body
        if served.handover is not None:
            body = served.handover.decode_body(body)
        worker = served.decode
        with (
            run.trace.asking("decode", worker) as span,
            self._vigil.attend(worker, Stage.DECODE) as attendance,
        ):
            if run.inbound.stream:
                await self._stream(run, served, work, body, span, attendance)
                return Outcome.OK
            async with _within(self._limits.response_deadline_s, worker, Stage.DECODE):
                answered = await self._whole_answer(
                    run, worker, Stage.DECODE, body, span, served.handover
                )
            self._first_byte(run, served, work, span)
            self._decode_ended(run, served, answered.body, span)
        headers = _answer_headers(answered.headers) + served.headers()
        await self._send_whole(run, answered.status, headers, answered.body)
        return Outcome.OK

    async def _stream(
        self,
        run: Run,
        served: Served,
        work: Work,
        body: bytes,
        span: Span,
        attendance: Attendance,
    ) -> None:
        worker, limits = served.decode, self._limits
        answer = None
        body = self._stream_body(run, body)
        try:
            deadline_s = limits.first_byte_deadline(run.known_tokens)
            async with _within(deadline_s, worker, Stage.DECODE):
                answer = await self._open(run, worker, Stage.DECODE, body, span, served.handover)
                if answer.status != 200:
                    said = await read_all(answer, worker, Stage.DECODE, limits.max_answer_bytes)
                    raise WorkerFailure.refusal(
                        worker, Stage.DECODE, answer.status, said, answer.headers
                    )
                relay = EventRelay(
                    worker,
                    answer,
                    run.reply,
                    self._metrics,
                    itl=self._figures(run).itl,
                    idle_s=limits.idle_stream_deadline_s,
                    most_held=limits.max_event_bytes,
                    ends=run.inbound.stream_ends,
                    journal=run.journal,
                    hide_counts=run.inbound.counts_hidden,
                    attendance=attendance,
                )
                first = await relay.first()
            _raise_first_error(first, worker)
            if run.reply.started:
                self._goes_on(run, served, work, answer.headers, first)
            else:
                self._first_byte(run, served, work, span)
                if run.journal is not None:
                    run.journal.begin(first)
                head = [*_answer_headers(answer.headers), (b"cache-control", b"no-cache")]
                attendance.heard(on_client=True)
                await run.reply.start(200, head + served.headers())
            attendance.heard(on_client=False)
            await relay.run(first)
            self._decode_ended(run, served, relay.end, span)
        finally:
            if answer is not None:
                answer.close()

    def _stream_body(self, run: Run, body: bytes) -> bytes:
        """Return *body* with what migration needs: token ids beside the text, and a journal."""
        inbound = run.inbound
        if inbound.counts_hidden:
            body = openai.counted_body(body)
        if not inbound.migratable or not self._limits.max_migrations:
            return body
        if not inbound.wants_token_ids:
            body = openai.traced_body(body)
        if run.journal is None or not run.reply.started:
            run.journal = Journal(strip=not inbound.wants_token_ids)
        return body

    def _goes_on(
        self, run: Run, served: Served, work: Work, headers: Mapping[str, str], first: bytes
    ) -> None:
        """Have the journal expect the stream of another worker; raise DivergedError."""
        assert run.journal is not None, "only such streams are gone on with"
        resumed = RESUMED_HEADER in headers
        run.journal.go_on(first, resumed=resumed)
        self._answers(run, served, work)
        self._metrics.migrations.labels("resumed" if resumed else "replayed").inc()
        sent = len(run.journal.tokens)
        self._note(
            run,
            "migrated",
            worker=served.decode.name,
            resumed=resumed,
            tokens_sent=sent,
            mode=served.mode.value,
            prefill_worker=served.handover.worker.name if served.handover else "",
        )

    def _answers(self, run: Run, served: Served, work: Work) -> None:
        work.prefilled()
        run.answering = True
        self._faults.succeeded(served.decode.name)
        if served.handover is not None:
            self._cache.routed(served.decode.name, run.inbound, _now())

    async def _open(
        self,
        run: Run,
        worker: Worker,
        stage: Stage,
        body: bytes,
        span: Span,
        handover: Handover | None = None,
    ) -> Answer:
        """Ask *worker*; once again where a kept connection ended, unless there is a *handover*.

        The worker may have seen the request, and a handle is for one use.
        """
        path, headers = run.inbound.path, run.upstream_headers(span)
        try:
            return await self._upstream.open(worker, stage, path, headers, body)
        except WorkerFailure as failure:
            if failure.kind is not FailureKind.STALE or handover is not None:
                raise
        headers["x-request-id"] += AGAIN
        return await self._upstream.open(worker, stage, path, headers, body)

    async def _whole_answer(
        self,
        run: Run,
        worker: Worker,
        stage: Stage,
        body: bytes,
        span: Span,
        handover: Handover | None = None,
    ) -> _Answered:
        answer = await self._open(run, worker, stage, body, span, handover)
        try:
            said = await read_all(answer, worker, stage, self._limits.max_answer_bytes)
        finally:
            answer.close()
        if answer.status != 200:
            raise WorkerFailure.refusal(worker, stage, answer.status, said, answer.headers)
        return _Answered(answer.status, answer.headers, said)

    def _first_byte(self, run: Run, served: Served, work: Work, span: Span) -> None:
        self._answers(run, served, work)
        worker = served.decode
        now_s = _now()
        ttft_s = now_s - run.came_s
        if run.attempt == 1 and run.inbound.stream:
            self._forecast.observe(run.expected, 1000 * (now_s - run.chosen_s))
        self._figures(run).ttft.observe(ttft_s)
        story = run.story
        story.ttft_ms, story.mode = round(1000 * ttft_s, 3), served.mode.value
        story.decode_worker = worker.name
        story.prefill_worker = served.handover.worker.name if served.handover else ""
        span.event("first byte")
        self._note(run, "first byte", worker=worker.name, mode=served.mode.value)

    def _audit(self, run: Run, worker: Worker, usage: openai.Usage | None) -> int | None:
        """Compare what *worker* found in its cache with what was thought; return its figure."""
        if usage is None or usage.cached_tokens is None or usage.prompt_tokens <= 0:
            return None
        if run.migrations:
            return usage.cached_tokens  # What was sent is not in the worker's figures.
        run.story.cached_tokens = usage.cached_tokens
        thought = run.found.get(worker.name, 0) / run.inbound.prompt_tokens
        real = usage.cached_tokens / usage.prompt_tokens
        if thought > 0:
            before = self._cache.trust(worker.name)
            after = self._cache.audited(worker.name, thought, real)
            self._metrics.audits.labels("wrong" if after < before else "right").inc()
        return usage.cached_tokens

    def _decode_ended(self, run: Run, served: Served, end: bytes, span: Span) -> None:
        usage = openai.usage_of(end)
        if usage is not None:
            story = run.story
            story.input_tokens, story.output_tokens = usage.prompt_tokens, usage.completion_tokens
        if served.handover is None:
            self._audit(run, served.decode, usage)
            return
        report = openai.handover_report(end)
        self._metrics.handover_ended(report)
        if report is not None:
            self._note(run, "handed over", report=report)
            span.event("handed over", handover_attributes(report))

    # Failures

    async def _failed(self, run: Run, failure: WorkerFailure) -> Outcome | None:
        """Tell the client of *failure*, or return None when another attempt is to be made."""
        free = self._blame(run, failure)
        if run.reply.started:
            if run.all_is_sent():
                await run.reply.end(openai.END_OF_STREAM)
                return Outcome.OK
            if self._may_migrate(run, free=free):
                self._metrics.retries.labels("migration", failure.cause).inc()
                run.trace.again("migration", failure)
                return None
            return await self._break_off(run, str(failure))
        if failure.clients_fault:
            await self._pass_on(run, failure)
            return Outcome.REFUSED_BY_WORKER
        if not self._may_retry(run, failure, free=free):
            await self._pass_on(run, failure)
            return Outcome.FAILED
        self._metrics.retries.labels(Stage.DECODE.value, failure.cause).inc()
        run.trace.again("retry", failure)
        return None

    def _may_retry(self, run: Run, failure: WorkerFailure, *, free: bool) -> bool:
        """Whether another attempt is to be made; counts it if so."""
        if not (free and failure.refused):
            run.counted += 1
        limits = self._limits
        if run.desperate or run.counted >= limits.max_attempts or run.attempt >= limits.max_tries:
            return False
        if _now() - run.came_s > limits.retry_within_s:
            return False
        return free or self._budget.try_spend()

    def _blame(self, run: Run, failure: WorkerFailure) -> bool:
        """Note the failure; return whether another try is free.

        It is where the worker was not known to fail when it was asked: as many requests fail with
        it as it had, and no retry of theirs makes more of them.
        """
        worker = failure.worker.name
        avoided_s, free = 0.0, failure.kind is FailureKind.STALE
        if failure.blames_worker:
            avoided_s = self._faults.failed(worker, _now())
            free = not self._faults.was_known(worker, run.asked_s)
        elif failure.stage is Stage.DECODE and failure.error_code not in KV_FAULTS and not free:
            run.tried_decode.add(worker)
        if failure.forgets_prefixes:
            self._cache.forget(worker)
        self._note(
            run,
            "worker failed",
            worker=worker,
            stage=failure.stage.value,
            cause=failure.cause,
            detail=failure.detail,
        )
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

    def _handover_failed(self, run: Run, handover: Handover, failure: WorkerFailure) -> None:
        """Try another prefill worker next time: a plain 500 may mean that its blocks were lost."""
        self._metrics.handovers.labels("failed").inc()
        run.resumes_locally |= failure.clients_fault and bool(run.told)
        if failure.kind is FailureKind.STATUS:
            run.tried_prefill.add(handover.worker.name)
        if failure.error_code in KV_FAULTS:
            self._faults.failed(handover.worker.name, _now())
            self._cache.forget(handover.worker.name)

    def _may_migrate(self, run: Run, *, free: bool) -> bool:
        """Whether another worker is to go on with a stream that broke off; counts it if so."""
        if run.journal is None or run.migrations >= self._limits.max_migrations:
            return False
        run.migrations += 1
        return free or self._budget.try_spend()

    async def _break_off(self, run: Run, why: str) -> Outcome:
        if run.migrations:
            self._metrics.migrations.labels("failed").inc()
        message = f"the answer broke off: {why}; what was sent so far is all there is"
        await run.reply.end(openai.error_event(message, "server_error", code="worker_failed"))
        return Outcome.BROKEN_OFF

    async def _pass_on(self, run: Run, failure: WorkerFailure) -> None:
        """Answer with the worker's own error where it has one."""
        headers = [(b"content-type", b"application/json")]
        if failure.kind is FailureKind.STATUS:
            if wait := failure.headers.get("retry-after"):
                headers.append((b"retry-after", wait.encode()))
            body = failure.body
            if openai.read_error(body) is None:
                body = openai.error_body(str(failure), "server_error", code="worker_failed")
            await self._send_whole(run, failure.status, headers, body)
            return
        status = 504 if failure.kind is FailureKind.TIMEOUT else 502
        body = openai.error_body(str(failure), "server_error", code="worker_failed")
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        await self._send_whole(run, status, headers, body)

    async def _nobody(self, run: Run, nobody: Nobody) -> Outcome:
        self._note(run, "no worker", rejected=dict(nobody.rejected))
        if run.reply.started:
            return await self._break_off(run, "there is no worker to go on with it")
        found = ", ".join(f"{count} {why}" for why, count in sorted(nobody.rejected.items()))
        message = (
            f"a decode worker for model {run.inbound.model!r} is wanted, none can serve now "
            f"({found or 'no worker is known'}); try again"
        )
        body = openai.error_body(message, "server_error", code="no_worker")
        headers = [
            (b"content-type", b"application/json"),
            (b"retry-after", str(RETRY_AFTER_S).encode()),
        ]
        await self._send_whole(run, 503, headers, body)
        return Outcome.NO_WORKER

    async def _send_whole(self, run: Run, status: int, headers: Headers, body: bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.idle_stream_deadline_s):
                await run.reply.whole(status, headers, body)
        except TimeoutError as error:
            raise ClientStalledError("the client did not read its answer") from error

    # Notes

    def _note_choice(self, run: Run, choice: Choice) -> None:
        self._metrics.picks.labels(Stage.DECODE.value, choice.decode.reason).inc()
        if choice.prefill is not None:
            self._metrics.picks.labels(Stage.PREFILL.value, choice.prefill.reason).inc()
        self._note(run, "chosen", attempt=run.attempt, choice=choice)

    def _note(self, run: Run, what: str, **fields: object) -> None:
        self._stories.note(run.story, (_now() - run.came_s) * 1000, what, **fields)


@dataclass(frozen=True, slots=True)
class _Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes


def _answer_headers(headers: Mapping[str, str]) -> Headers:
    content_type = headers.get("content-type", "application/json")
    return [(b"content-type", content_type.encode())]


def _raise_first_error(first: bytes, worker: Worker) -> None:
    """Raise WorkerFailure when a stream starts with an error: it is one before the first token."""
    said = openai.first_event_error(first)
    if said is None:
        return
    error = openai.read_error(said)
    status = int(error.code) if error and error.code.isdigit() else 500
    if not 400 <= status < 600:
        status = 500
    raise WorkerFailure.refusal(worker, Stage.DECODE, status, said)


@asynccontextmanager
async def _within(deadline_s: float, worker: Worker, stage: Stage) -> AsyncIterator[None]:
    """Raise WorkerFailure when what is done inside takes longer than *deadline_s*."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError as error:
        detail = f"no answer within {deadline_s:.1f} s"
        raise WorkerFailure(worker, stage, FailureKind.TIMEOUT, detail) from error


def _now() -> float:
    return asyncio.get_running_loop().time()
