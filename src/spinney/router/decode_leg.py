"""A request's way to its decode worker, and the answer's way back.

Invariants: before the first byte a failure leaves the client untold, so that another attempt can
follow; once the client has some of a stream, all further workers go on with that same stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.router import openai
from spinney.router.migration import RESUMED_HEADER, Journal
from spinney.router.relay import EventRelay, Headers
from spinney.router.run import Outcome
from spinney.router.upstream import WorkerFailure
from spinney.router.worker_call import Call, Deadline, WorkerCalls
from spinney.router.workers import Stage, Way

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.router.limits import Limits
    from spinney.router.load import Faults, Work
    from spinney.router.metrics import RouterMetrics
    from spinney.router.openai import Inbound
    from spinney.router.prompt_lookup import PromptLookup
    from spinney.router.recorder import Recorder
    from spinney.router.replies import Replies
    from spinney.router.run import Run, Served
    from spinney.router.ttft_targets import TtftTargets
    from spinney.router.upstream import Answer
    from spinney.router.vigil import Attendance, Vigil
    from spinney.router.workers import Worker
    from spinney.tracing import Span


class DecodeLeg:
    """Has answers made by decode workers, and passes them on."""

    def __init__(
        self,
        calls: WorkerCalls,
        *,
        faults: Faults,
        vigil: Vigil,
        lookup: PromptLookup,
        targets: TtftTargets,
        replies: Replies,
        recorder: Recorder,
        metrics: RouterMetrics,
        limits: Limits,
    ) -> None:
        self._calls = calls
        self._faults = faults
        self._vigil = vigil
        self._lookup = lookup
        self._targets = targets
        self._replies = replies
        self._recorder = recorder
        self._metrics = metrics
        self._limits = limits

    async def answer(self, run: Run, served: Served, work: Work) -> Outcome:
        """Give the client the answer of ``served.decode``; raise WorkerFailure, DivergedError."""
        worker, handover = served.decode, served.handover
        body = run.body if handover is None else handover.decode_body(run.body)
        once = handover is not None
        with (
            run.trace.asking("decode", worker) as span,
            self._vigil.attend(worker, Stage.DECODE) as attendance,
        ):
            if run.inbound.stream:
                body = journaled_body(run, body, self._limits, worker)
                call = Call(run, worker, Stage.DECODE, body, span, once)
                await self._stream(call, served, work, attendance)
                return Outcome.OK
            call = Call(run, worker, Stage.DECODE, body, span, once)
            async with Deadline(self._limits.response_deadline_s, worker, Stage.DECODE):
                answer = await self._calls.whole(call)
            self._first_byte(run, served, work, span)
            self._ended(run, served, answer.body, span)
        headers = _content_type(answer.headers) + served.headers()
        await self._replies.whole(run, 200, headers, answer.body)
        return Outcome.OK

    async def _stream(self, call: Call, served: Served, work: Work, attendance: Attendance) -> None:
        run, worker = call.run, call.worker
        answer = None
        try:
            deadline_s = self._limits.first_byte_deadline(run.known_tokens)
            async with Deadline(deadline_s, worker, Stage.DECODE):
                answer = await self._calls.begin(call)
                relay = self._relay(run, worker, answer, attendance)
                first = await relay.first()
            _raise_first_error(first, worker)
            if run.reply.started:
                self._goes_on(run, served, work, answer.headers, first)
            else:
                self._first_byte(run, served, work, call.span)
                if run.journal is not None:
                    run.journal.begin(first)
                head = [*_content_type(answer.headers), (b"cache-control", b"no-cache")]
                attendance.heard(on_client=True)
                await run.reply.start(200, head + served.headers())
            attendance.heard(on_client=False)
            await relay.run(first)
            self._ended(run, served, relay.end, call.span)
        finally:
            if answer is not None:
                answer.close()

    def _relay(
        self, run: Run, worker: Worker, answer: Answer, attendance: Attendance
    ) -> EventRelay:
        return EventRelay(
            worker,
            answer,
            run.reply,
            self._metrics,
            itl=self._metrics.of(run.inbound.model).itl,
            idle_s=self._limits.idle_stream_deadline_s,
            most_held=self._limits.max_event_bytes,
            ends=run.inbound.stream_ends,
            journal=run.journal,
            hide_counts=run.inbound.counts_hidden,
            attendance=attendance,
        )

    def _goes_on(
        self, run: Run, served: Served, work: Work, headers: Mapping[str, str], first: bytes
    ) -> None:
        """Have the journal expect the stream of another worker; raise DivergedError."""
        assert run.journal is not None, "only such streams are gone on with"
        resumed = RESUMED_HEADER in headers
        run.journal.go_on(first, resumed=resumed)
        self._answers(run, served, work)
        self._recorder.migrated(run, served, resumed=resumed)

    def _first_byte(self, run: Run, served: Served, work: Work, span: Span) -> None:
        self._answers(run, served, work)
        self._targets.came(run)
        self._recorder.first_byte(run, served, span)

    def _answers(self, run: Run, served: Served, work: Work) -> None:
        work.prefilled()
        run.attempt.answering = True
        self._faults.succeeded(served.decode.name)
        if served.handover is not None:
            self._lookup.routed(run, served.decode)

    def _ended(self, run: Run, served: Served, end: bytes, span: Span) -> None:
        usage = openai.usage_of(end)
        self._recorder.counted(run, usage)
        if served.handover is None:
            self._lookup.audit(run, served.decode, usage)
        else:
            self._recorder.handed_over(run, openai.handover_report(end), span)


def journaled_body(run: Run, body: bytes, limits: Limits, worker: Worker) -> bytes:
    """Return *body* with what migration needs: token ids beside the text, and a journal."""
    inbound = run.inbound
    if inbound.counts_hidden:
        body = openai.counted_body(body)
    if not inbound.migratable or not limits.max_migrations or _tells_no_ids(worker, inbound):
        return body
    if not inbound.wants_token_ids:
        body = openai.traced_body(body)
    if run.journal is None or not run.reply.started:
        run.journal = Journal(strip=not inbound.wants_token_ids)
    return body


def _tells_no_ids(worker: Worker, inbound: Inbound) -> bool:
    """Whether *worker* refuses to tell the tokens of this stream, as SGLang does those of chats."""
    return worker.way is Way.SGLANG and inbound.path == openai.CHAT_COMPLETIONS


def _content_type(headers: Mapping[str, str]) -> Headers:
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
