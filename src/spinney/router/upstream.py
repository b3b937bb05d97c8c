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

import aiohttp
import msgspec

from spinney.router.openai import read_error, read_models

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import SimpleNamespace

    from spinney.router.limits import Limits
    from spinney.router.workers import Stage, Worker

KEEP_ALIVE_S = 3.0
"""Idle connections are closed before the worker's server does (uvicorn: after 5 s)."""

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
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpUpstream:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(sock_connect=self._limits.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            trace_configs=[tracing],
            read_bufsize=1 << 16,
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def open(
        self, worker: Worker, stage: Stage, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Return the answer to a POST; see `Upstream.open`."""
        loop = asyncio.get_running_loop()
        used: dict[str, bool] = {}
        began_s = loop.time()
        try:
            response = await self._post(worker.url + path, headers, body, used)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            detail = f"no connection to {worker.url}: {error}"
            raise WorkerFailure(worker, stage, FailureKind.REFUSED, detail) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = f"connection broke before an answer: {error or type(error).__name__}"
            # A worker may close an idle connection just when it is used again; that shows at once.
            stale = bool(used) and loop.time() - began_s <= STALE_WITHIN_S
            kind = FailureKind.STALE if stale else FailureKind.BROKEN
            raise WorkerFailure(worker, stage, kind, detail) from error
        return HttpAnswer(response, worker, stage)

    async def _post(
        self, url: str, headers: Mapping[str, str], body: bytes, used: dict[str, bool]
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "HttpUpstream is used inside its context"
        return await self._session.post(
            url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=used
        )

    async def answers(self, worker: Worker, within_s: float) -> bool:
        """Return whether *worker* answers anything at all in that time."""
        assert self._session is not None, "HttpUpstream is used inside its context"
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                asyncio.timeout(within_s),
                self._session.get(worker.url + "/health", headers={"connection": "close"}),
            ):
                return True
        return False

    async def models(self, worker: Worker) -> frozenset[str]:
        """Return the models that *worker* lists, empty when it cannot tell now."""
        assert self._session is not None, "HttpUpstream is used inside its context"
        with suppress(aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError):
            async with (
                asyncio.timeout(self._limits.probe_timeout_s),
                self._session.get(worker.url + "/v1/models") as response,
            ):
                if response.status == 200:
                    return read_models(await response.read())
        return frozenset()


async def _note_reuse(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: object
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx["reused"] = True


class HttpAnswer:
    """An answer over HTTP."""

    __slots__ = ("_next", "_response", "_stage", "_worker", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, worker: Worker, stage: Stage) -> None:
        self._response = response
        self._next = response.content.readany
        self._worker = worker
        self._stage = stage
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunk(self) -> bytes:
        """Return the next bytes as they come; see `Answer.chunk`."""
        try:
            return await self._next()
        except (aiohttp.ClientError, OSError) as error:
            detail = f"connection broke in the answer: {error or type(error).__name__}"
            raise WorkerFailure(self._worker, self._stage, FailureKind.BROKEN, detail) from error

    def close(self) -> None:
        """Give the connection back, or close it when the answer is not finished."""
        self._response.close()
