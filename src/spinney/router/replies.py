"""Answers to a client in one piece, and what it is told where there is none to be had.

Invariants: an error has OpenAI's form, is the worker's own where it has one, and says when to ask
again where that may help; a stream that broke off ends with an error event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.router import openai
from spinney.router.relay import ClientStalledError, Headers
from spinney.router.upstream import FailureKind, WorkerFailure

if TYPE_CHECKING:
    from spinney.router.admission import RefusedError
    from spinney.router.picker import Nobody
    from spinney.router.run import Run

RETRY_AFTER_S = 2
"""What a client is told to wait when there is no worker."""
_JSON: Headers = [(b"content-type", b"application/json")]


class Replies:
    """Tells clients how their requests ended. One that does not read has *most_s* to do so."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s

    async def whole(self, run: Run, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer; raise ClientStalledError."""
        try:
            async with asyncio.timeout(self._most_s):
                await run.reply.whole(status, headers, body)
        except TimeoutError as error:
            raise ClientStalledError("the client did not read its answer") from error

    async def refused(self, run: Run, error: RefusedError) -> None:
        """Tell that the request is not served now."""
        kind = "rate_limit_error" if error.status == 429 else "server_error"
        body = openai.error_body(str(error), kind, code=error.code)
        headers = _again_after(str(error.retry_after_s))
        await self.whole(run, error.status, headers, body)

    async def failed(self, run: Run, failure: WorkerFailure) -> None:
        """Answer with the worker's own error where it has one."""
        if failure.kind is FailureKind.STATUS:
            wait = failure.headers.get("retry-after")
            body = failure.body
            if openai.read_error(body) is None:
                body = _worker_failed(failure)
            await self.whole(run, failure.status, _again_after(wait) if wait else _JSON, body)
            return
        status = 504 if failure.kind is FailureKind.TIMEOUT else 502
        await self.whole(run, status, _again_after(str(RETRY_AFTER_S)), _worker_failed(failure))

    async def nobody(self, run: Run, nobody: Nobody) -> None:
        """Tell that no worker can serve the request now, and why."""
        found = ", ".join(f"{count} {why}" for why, count in sorted(nobody.rejected.items()))
        message = (
            f"a decode worker for model {run.inbound.model!r} is wanted, none can serve now "
            f"({found or 'no worker is known'}); try again"
        )
        body = openai.error_body(message, "server_error", code="no_worker")
        await self.whole(run, 503, _again_after(str(RETRY_AFTER_S)), body)

    async def broke_off(self, run: Run, why: str) -> None:
        """End a stream with the error *why* nobody goes on with it."""
        message = f"the answer broke off: {why}; what was sent so far is all there is"
        await run.reply.end(openai.error_event(message, "server_error", code="worker_failed"))


def _again_after(seconds: str) -> Headers:
    return [*_JSON, (b"retry-after", seconds.encode())]


def _worker_failed(failure: WorkerFailure) -> bytes:
    return openai.error_body(str(failure), "server_error", code="worker_failed")
