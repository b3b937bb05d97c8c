"""HTTP to the workers: one answer at a time, every failure with its kind.

`Upstream` is the seam: what carries a request does not know of sockets. Whoever takes an `Answer`
must close it; closing one that is not finished closes its connection, which aborts the work in
the worker.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from spinney.router.http_client import BrokenError, ConnectError, HttpClient
from spinney.router.openai import read_error, read_models
from spinney.router.workers import Stage, Way

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.router.http_client import Connection
    from spinney.router.limits import Limits
    from spinney.router.workers import Worker

STALE_WITHIN_S = 0.05
"""How soon a reused connection has to break for the break to count as the worker's idle close."""


class FailureKind(StrEnum):
    """In which way a worker failed."""

    REFUSED = "refused"
    """No connection."""
    BROKEN = "broken"
    """The connection ended before the answer did."""
    STALE = "stale"
    """A kept connection ended just when it was used again. That says nothing of the worker, and
    not whether it has seen the request."""
    TIMEOUT = "timeout"
    """A deadline passed."""
    STATUS = "status"
    """It answered with an error."""
    BAD_ANSWER = "bad-answer"
    """What it answered is not what the contract says."""


class WorkerFailure(Exception):  # noqa: N818 - it is a fact about a worker, which callers handle
    """A worker did not do its part of a request."""

    def __init__(
        self,
        worker: Worker,
        stage: Stage,
        kind: FailureKind,
        detail: str,
        *,
        status: int = 0,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{stage.value} worker {worker.name}: {detail}")
        self.worker = worker
        self.stage = stage
        self.kind = kind
        self.detail = detail
        self.status = status
        """Its HTTP status, for `FailureKind.STATUS`."""
        self.body = body
        self.headers: Mapping[str, str] = headers or {}

    @property
    def clients_fault(self) -> bool:
        """Whether the request itself is refused, so that no other worker would take it."""
        return 400 <= self.status < 500 and self.status not in (408, 425, 429)

    @property
    def blames_worker(self) -> bool:
        """Whether the worker should be avoided for a while.

        A plain 500 does not say so: it can be about one request, or about the other worker.
        """
        if self.kind is FailureKind.STATUS:
            return self.status in (502, 503, 504)
        return self.kind is not FailureKind.STALE

    @property
    def refused(self) -> bool:
        """Whether the worker did not even begin, by what is known."""
        return self.kind in (FailureKind.REFUSED, FailureKind.STALE) or self.status == 503

    @property
    def forgets_prefixes(self) -> bool:
        """Whether the worker may have lost its memory with the connection."""
        return self.kind in (FailureKind.REFUSED, FailureKind.BROKEN)

    @property
    def error_code(self) -> str:
        """The code that the worker gave its error, or an empty string."""
        error = read_error(self.body) if self.body else None
        return error.code if error else ""

    @property
    def cause(self) -> str:
        """A word for metrics."""
        return str(self.status) if self.kind is FailureKind.STATUS else self.kind.value

    @classmethod
    def refusal(
        cls,
        worker: Worker,
        stage: Stage,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> WorkerFailure:
        """Return the failure that an answer of *status* with *body* is."""
        error = read_error(body)
        said = error.message if error else body[:200].decode(errors="replace")
        return cls(
            worker,
            stage,
            FailureKind.STATUS,
            f"answered {status}: {said}",
            status=status,
            body=body,
            headers=headers,
        )


class Answer(Protocol):
    """A worker's answer, its headers read and its body on the way."""

    @property
    def status(self) -> int: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]:
        """Header values by name; look names up in lower case."""
        ...

    async def chunk(self) -> bytes:
        """Return the next bytes as they come, empty at the end; raise WorkerFailure."""
        ...

    def close(self) -> None:
        """Let go of it; without having come to the end, abort it."""
        ...


class Upstream(Protocol):
    """Sends requests to workers."""

    async def open(
        self, worker: Worker, stage: Stage, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Return the answer to a POST, of any status; raise WorkerFailure when none comes."""
        ...


async def read_all(answer: Answer, worker: Worker, stage: Stage, most_bytes: int) -> bytes:
    """Return the whole body; raise WorkerFailure when it breaks off or is over *most_bytes*."""
    parts = []
    size = 0
    while part := await answer.chunk():
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            detail = f"answered more than {most_bytes} bytes; raise the limit or ask for less"
            raise WorkerFailure(worker, stage, FailureKind.BAD_ANSWER, detail)
    return b"".join(parts)


class HttpUpstream:
    """Pooled HTTP/1.1 connections. Use as an async context manager."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._client = HttpClient(limits.connect_timeout_s)

    async def __aenter__(self) -> HttpUpstream:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._client.close()

    async def open(
        self, worker: Worker, stage: Stage, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Return the answer to a POST; see `Upstream.open`."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            connection = await self._client.send("POST", worker.url, path, headers, body)
        except ConnectError as error:
            detail = f"no connection to {worker.url}: {error}"
            raise WorkerFailure(worker, stage, FailureKind.REFUSED, detail) from error
        except BrokenError as error:
            detail = f"connection broke before an answer: {error}"
            # A worker may close an idle connection just when it is used again; that shows at once.
            stale = error.reused and loop.time() - began_s <= STALE_WITHIN_S
            kind = FailureKind.STALE if stale else FailureKind.BROKEN
            raise WorkerFailure(worker, stage, kind, detail) from error
        return HttpAnswer(connection, worker, stage)

    async def answers(self, worker: Worker, within_s: float) -> bool:
        """Return whether *worker* answers anything at all in that time.

        SGLang computes a token for its ``/health``, after all that it has to do before.
        """
        path = "/v1/models" if worker.way is Way.SGLANG else "/health"
        return await self._get(worker, path, within_s) is not None

    async def models(self, worker: Worker) -> frozenset[str]:
        """Return the models that *worker* lists, empty when it cannot tell now."""
        said = await self._get(worker, "/v1/models", self._limits.probe_timeout_s)
        with suppress(msgspec.MsgspecError):
            if said is not None and said[0] == 200:
                return read_models(said[1])
        return frozenset()

    async def _get(self, worker: Worker, path: str, within_s: float) -> tuple[int, bytes] | None:
        """Return status and body of what is read at *path*; None when it cannot be."""
        headers = {"connection": "close"}
        with suppress(ConnectError, BrokenError, WorkerFailure, TimeoutError):
            async with asyncio.timeout(within_s):
                connection = await self._client.send("GET", worker.url, path, headers, fresh=True)
                try:
                    answer = HttpAnswer(connection, worker, Stage.DECODE)
                    most = self._limits.max_answer_bytes
                    return answer.status, await read_all(answer, worker, Stage.DECODE, most)
                finally:
                    connection.let_go()
        return None


class HttpAnswer:
    """An answer over HTTP."""

    __slots__ = ("_connection", "_stage", "_worker", "headers", "status")

    def __init__(self, connection: Connection, worker: Worker, stage: Stage) -> None:
        self._connection = connection
        self._worker = worker
        self._stage = stage
        self.status: int = connection.status
        self.headers: Mapping[str, str] = connection.headers

    async def chunk(self) -> bytes:
        """Return the next bytes as they come; see `Answer.chunk`."""
        try:
            return await self._connection.chunk()
        except BrokenError as error:
            detail = f"connection broke in the answer: {error}"
            raise WorkerFailure(self._worker, self._stage, FailureKind.BROKEN, detail) from error

    def close(self) -> None:
        """Give the connection back, or close it when the answer is not finished."""
        self._connection.let_go()
