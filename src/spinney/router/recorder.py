"""What is told of a request on its way: to its story, its spans and the metrics.

Nothing is decided here. Invariant: no prompt and no answer is told, only who did what and when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.router.request_trace import handover_attributes
from spinney.router.workers import Stage

if TYPE_CHECKING:
    from spinney.router import openai
    from spinney.router.admission import RefusedError
    from spinney.router.choosing import Chosen
    from spinney.router.metrics import ModelFigures, RouterMetrics
    from spinney.router.picker import Choice, Nobody
    from spinney.router.run import Run, Served
    from spinney.router.stories import Stories
    from spinney.router.upstream import WorkerFailure
    from spinney.router.workers import Worker
    from spinney.tracing import Span


class Recorder:
    """Tells what happens to requests."""

    def __init__(self, metrics: RouterMetrics, stories: Stories) -> None:
        self._metrics = metrics
        self._stories = stories

    def note(self, run: Run, what: str, **fields: object) -> None:
        """Add a step to the story of *run*."""
        self._stories.note(run.story, run.age_s() * 1000, what, **fields)

    def _figures(self, run: Run) -> ModelFigures:
        return self._metrics.of(run.inbound.model)

    # Coming in

    def let_in(self, run: Run) -> None:
        """Tell that it is its turn."""
        waited_s = run.age_s()
        run.story.queue_ms = round(1000 * waited_s, 3)
        self._figures(run).queue_wait.observe(waited_s)
        run.trace.queued(run.came_s)

    def refused(self, run: Run, error: RefusedError) -> None:
        """Tell that it is not served now."""
        self._metrics.refused(error.code, run.claim.tenant)
        if not run.attempt.number:
            run.trace.queued(run.came_s, error.code)
        self.note(run, "refused", code=error.code, detail=str(error))

    # The choice

    def waited(self, run: Run, chosen: Chosen) -> None:
        """Tell how long it waited for a worker to come back, if it did."""
        if chosen.waited_s:
            self.note(run, "waited for a worker", waited_ms=round(1000 * chosen.waited_s, 3))

    def nobody(self, run: Run, nobody: Nobody) -> None:
        """Tell why there is no worker."""
        self.note(run, "no worker", rejected=dict(nobody.rejected))

    def chosen(self, run: Run, choice: Choice) -> None:
        """Tell who was chosen, and why."""
        self._metrics.picks.labels(Stage.DECODE.value, choice.decode.reason).inc()
        if choice.prefill is not None:
            self._metrics.picks.labels(Stage.PREFILL.value, choice.prefill.reason).inc()
        self.note(run, "chosen", attempt=run.attempt.number, choice=choice)

    # Prefill

    def prefill_answered(self, run: Run, took_s: float) -> None:
        """Tell how long a prefill worker took to answer, whatever it is."""
        self._figures(run).prefill.observe(took_s)

    def prefilled(
        self, run: Run, worker: Worker, took_s: float, cached: int | None, *, offered: bool
    ) -> None:
        """Tell that *worker* computed the prompt, and whether it *offered* to hand it over."""
        found = "prefilled" if offered else "prefilled without hand-over"
        self.note(run, found, worker=worker.name, took_ms=round(took_s * 1000, 3), cached=cached)
        self._metrics.handovers.labels("offered" if offered else "none").inc()

    def prefilled_locally(self, choice: Choice) -> None:
        """Tell that the decode worker computes the prompt, though it may have been to be spared."""
        reason = "prefill-failed" if choice.prefill else choice.why_mode
        self._metrics.local_prefills.labels(reason).inc()

    # Decode

    def first_byte(self, run: Run, served: Served, span: Span) -> None:
        """Tell that the answer begins."""
        ttft_s = run.age_s()
        self._figures(run).ttft.observe(ttft_s)
        story = run.story
        story.ttft_ms, story.mode = round(1000 * ttft_s, 3), served.mode.value
        story.decode_worker, story.prefill_worker = served.decode.name, served.prefill_name
        span.event("first byte")
        self.note(run, "first byte", worker=served.decode.name, mode=served.mode.value)

    def migrated(self, run: Run, served: Served, *, resumed: bool) -> None:
        """Tell that another worker goes on with the stream, *resumed* or from its beginning."""
        assert run.journal is not None, "only such streams are gone on with"
        self._metrics.migrations.labels("resumed" if resumed else "replayed").inc()
        self.note(
            run,
            "migrated",
            worker=served.decode.name,
            resumed=resumed,
            tokens_sent=len(run.journal.tokens),
            mode=served.mode.value,
            prefill_worker=served.prefill_name,
        )

    def counted(self, run: Run, usage: openai.Usage | None) -> None:
        """Tell the token counts at the end of an answer, where the worker said them."""
        if usage is not None:
            story = run.story
            story.input_tokens, story.output_tokens = usage.prompt_tokens, usage.completion_tokens

    def handed_over(self, run: Run, report: openai.HandoverReport | None, span: Span) -> None:
        """Tell what the decode worker says of the hand-over, if anything."""
        self._metrics.handover_ended(report)
        if report is not None:
            self.note(run, "handed over", report=report)
            span.event("handed over", handover_attributes(report))

    # Failures

    def worker_failed(self, run: Run, failure: WorkerFailure) -> None:
        """Tell that a worker did not do its part."""
        self.note(
            run,
            "worker failed",
            worker=failure.worker.name,
            stage=failure.stage.value,
            cause=failure.cause,
            detail=failure.detail,
        )

    def handover_failed(self) -> None:
        """Count a hand-over whose decode worker failed."""
        self._metrics.handovers.labels("failed").inc()

    def prefills_again(self, cause: str) -> None:
        """Count a further prefill worker that is asked after a failure by *cause*."""
        self._metrics.retries.labels(Stage.PREFILL.value, cause).inc()

    def retries(self, run: Run, failure: WorkerFailure) -> None:
        """Tell that another attempt follows."""
        self._metrics.retries.labels(Stage.DECODE.value, failure.cause).inc()
        run.trace.again("retry", failure)

    def migrates(self, run: Run, failure: WorkerFailure) -> None:
        """Tell that the stream broke off, and that another worker is looked for."""
        self._metrics.retries.labels("migration", failure.cause).inc()
        run.trace.again("migration", failure)

    def broke_off(self, run: Run) -> None:
        """Count a stream that nobody could go on with, where somebody was to."""
        if run.migrations:
            self._metrics.migrations.labels("failed").inc()
