"""The spans of one request, as they follow from what happens to it.

    POST → queue, pick, prefill, decode              the first try
         → retry → pick, prefill, decode             each further one before the first byte
         → migration → pick, decode                  each further one after it

Invariant: what a worker is asked within a span is that span's child in the worker.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spinney.router import openai
from spinney.router.picker import Nobody
from spinney.router.upstream import WorkerFailure
from spinney.tracing import NO_SPAN, Kind, Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.router.picker import Choice
    from spinney.router.stories import Story
    from spinney.router.workers import Worker
    from spinney.tracing import Attributes, Value

OPERATIONS = {
    openai.CHAT_COMPLETIONS: "chat",
    openai.COMPLETIONS: "text_completion",
    openai.EMBEDDINGS: "embeddings",
    openai.RESPONSES: "generate_content",
}
"""What the semantic conventions for generative AI call what is asked."""


class RequestTrace:
    """Tells the spans of a request below *span*."""

    __slots__ = ("_step", "span")

    def __init__(self, span: Span = NO_SPAN) -> None:
        self.span = span
        self._step = span

    def read(self, inbound: openai.Inbound) -> None:
        """Tell what is asked."""
        if not self.span.recording:
            return
        operation = OPERATIONS[inbound.path]
        self.span.rename(f"{operation} {inbound.model}")
        self.span.set(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "spinney",
                "gen_ai.request.model": inbound.model,
                "gen_ai.request.stream": inbound.stream,
            }
        )

    def queued(self, came_s: float, refused: str = "") -> None:
        """Tell that it waits for its turn no more, since it has it or is *refused* one."""
        if self.span.recording:
            self.span.child("queue", ago_s=_now() - came_s).end(refused)

    def picking(self) -> Span:
        """Return the span of a choice, waiting for workers included."""
        return self._step.child("pick")

    def picked(self, pick: Span, choice: Choice | Nobody, attempt: int) -> None:
        """Tell who was chosen, and why."""
        if not self.span.recording:
            return
        if isinstance(choice, Nobody):
            pick.end("no-worker")
            return
        told: dict[str, Value] = {
            "spinney.attempt": attempt,
            "spinney.mode": choice.mode.value,
            "spinney.decode.worker": choice.decode.worker.name,
            "spinney.decode.reason": choice.decode.reason,
        }
        if choice.prefill is not None:
            told["spinney.prefill.worker"] = choice.prefill.worker.name
            told["spinney.prefill.reason"] = choice.prefill.reason
        pick.set(told)

    @contextmanager
    def asking(self, stage: str, worker: Worker) -> Iterator[Span]:
        """Give the span in which *worker* is asked for *stage*."""
        if not self.span.recording:
            yield self.span
            return
        at = urlsplit(worker.url)
        told: Attributes = {
            "spinney.worker": worker.name,
            "server.address": at.hostname or "",
            "server.port": at.port or 80,
        }
        with self._step.child(stage, told, kind=Kind.CLIENT) as span:
            try:
                yield span
            except WorkerFailure as failure:
                span.end(failure.cause)
                raise

    def again(self, what: str, failure: WorkerFailure) -> None:
        """Begin a further try, which is a ``retry`` or a ``migration``."""
        if not self.span.recording:
            return
        self._end_step()
        told: Attributes = {
            "spinney.cause": failure.cause,
            "spinney.failed.worker": failure.worker.name,
        }
        self._step = self.span.child(what, told)

    def over(self, story: Story, status: int) -> None:
        """Tell how the request ended, with which HTTP *status*."""
        if not self.span.recording:
            return
        self._end_step()
        self.span.set(story_attributes(story) | {"http.response.status_code": status})
        self.span.end("" if story.outcome in _WELL else story.outcome)

    def _end_step(self) -> None:
        if self._step is not self.span:
            self._step.end()


def handover_attributes(report: openai.HandoverReport) -> Attributes:
    """Return what a decode worker says of a hand-over."""
    return {
        "spinney.handover.outcome": report.outcome,
        "spinney.handover.bytes": report.bytes_pulled,
        "spinney.handover.seconds": report.seconds,
    }


def _now() -> float:
    return asyncio.get_running_loop().time()


_WELL = frozenset({"ok", "refused-by-worker", "bad-request", "unknown-model", "disconnected"})
"""Outcomes that are no fault of the server's, and so no errors of its spans."""


def story_attributes(story: Story) -> dict[str, Value]:
    """Return what is known of a request at its end."""
    told: dict[str, Value | None] = {
        "spinney.request.id": story.id,
        "spinney.outcome": story.outcome,
        "spinney.mode": story.mode or None,
        "gen_ai.usage.input_tokens": story.input_tokens,
        "gen_ai.usage.output_tokens": story.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": story.cached_tokens,
        "gen_ai.response.time_to_first_chunk": None
        if story.ttft_ms is None
        else story.ttft_ms / 1000,
    }
    return {name: value for name, value in told.items() if value is not None}
