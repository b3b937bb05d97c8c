"""One request to one worker, asked again only where that can do no harm.

A kept connection can end just when it is used again, and nobody knows whether the worker has seen
what was sent. Invariant: what must not be done twice is sent once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from spinney.router.upstream import Answer, FailureKind, Upstream, WorkerFailure, read_all

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from spinney.router.run import Run
    from spinney.router.workers import Stage, Worker
    from spinney.tracing import Span

AGAIN = "r"
"""Ends the id of a request that is sent to one worker a second time."""


class Call(NamedTuple):
    """What is asked of a worker."""

    run: Run
    worker: Worker
    stage: Stage
    body: bytes
    span: Span
    once: bool = False
    """Whether the worker must not see it twice: its handle or its room is for one use."""


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer that was read to its end."""

    headers: Mapping[str, str]
    body: bytes


class WorkerCalls:
    """Asks workers through *upstream*. Answers of at most *most_bytes* are held."""

    def __init__(self, upstream: Upstream, most_bytes: int) -> None:
        self._upstream = upstream
        self._most_bytes = most_bytes

    async def begin(self, call: Call) -> Answer:
        """Return the good answer to *call*, its body on the way; raise WorkerFailure."""
        answer = await self._open(call)
        if answer.status == 200:
            return answer
        try:
            said = await read_all(answer, call.worker, call.stage, self._most_bytes)
        finally:
            answer.close()
        raise WorkerFailure.refusal(call.worker, call.stage, answer.status, said, answer.headers)

    async def whole(self, call: Call) -> WholeAnswer:
        """Return the good answer to *call*, read to its end; raise WorkerFailure."""
        answer = await self.begin(call)
        try:
            said = await read_all(answer, call.worker, call.stage, self._most_bytes)
        finally:
            answer.close()
        return WholeAnswer(answer.headers, said)

    async def _open(self, call: Call) -> Answer:
        run, worker, stage = call.run, call.worker, call.stage
        path, headers = run.inbound.path, run.upstream_headers(call.span)
        try:
            return await self._upstream.open(worker, stage, path, headers, call.body)
        except WorkerFailure as failure:
            if failure.kind is not FailureKind.STALE or call.once:
                raise
        headers["x-request-id"] += AGAIN
        return await self._upstream.open(worker, stage, path, headers, call.body)


class Deadline:
    """A context that raises WorkerFailure when what is done inside takes longer than *seconds*."""

    __slots__ = ("_seconds", "_stage", "_timeout", "_worker")

    def __init__(self, seconds: float, worker: Worker, stage: Stage) -> None:
        self._seconds = seconds
        self._worker = worker
        self._stage = stage
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            detail = f"no answer within {self._seconds:.1f} s"
            raise WorkerFailure(self._worker, self._stage, FailureKind.TIMEOUT, detail) from late
