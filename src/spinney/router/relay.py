"""The way of an answer from a worker to the client.

The bytes of a stream pass through: nothing is parsed per token. Invariant: what the client has been
sent of a stream is whole events, so that an error event can follow at any time, and so can
another worker's events.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Self

from spinney.errors import SpinneyError
from spinney.router.openai import DONE, read_error, without_counts
from spinney.router.upstream import Answer, FailureKind, WorkerFailure
from spinney.router.workers import Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    from spinney.router.metrics import FastHistogram, RouterMetrics
    from spinney.router.migration import Journal
    from spinney.router.vigil import Attendance
    from spinney.router.workers import Worker

    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Headers = list[tuple[bytes, bytes]]
_END = b"\n\n"
_CRLF_END = b"\r\n\r\n"
_ERROR = b'data: {"error"'


class ClientStalledError(SpinneyError):
    """The client keeps the connection and does not read."""


class Reply:
    """The answer to one client."""

    __slots__ = ("_send", "finished", "started", "status", "told")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        """Whether the client has been told a status, so that there is no other way any more."""
        self.finished = False
        self.told: Headers = []
        """Headers that every answer has."""
        self.status = 0
        """What the client was told."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and headers of a stream."""
        self.started = True
        self.status = status
        start = {"type": "http.response.start", "status": status}
        await self._send(start | {"headers": headers + self.told})

    async def more(self, chunk: bytes) -> None:
        """Send a part of the body; waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, chunk: bytes = b"") -> None:
        """Send the last part of the body."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)


class IdleWatch:
    """Ends a stream in which nothing has moved for *limit_s*.

    One timer per stream, which looks back when it rings: a chunk costs a time stamp, no timer.
    """

    __slots__ = (
        "_cancelling",
        "_expired",
        "_handle",
        "_last_s",
        "_limit_s",
        "_loop",
        "_task",
        "on",
    )

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._expired = False
        self._last_s = self._loop.time()
        self.on: Literal["worker", "client"] = "worker"
        """Whom the stream waits for."""

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._handle = self._loop.call_later(self._limit_s, self._look)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handle.cancel()
        if not self._expired or kind is not asyncio.CancelledError:
            return
        if self._task.uncancel() <= self._cancelling:
            raise TimeoutError(f"the {self.on} moved nothing for {self._limit_s} s")

    def moved(self) -> float:
        """Note that something moved; return the loop's time."""
        self._last_s = self._loop.time()
        return self._last_s

    def _look(self) -> None:
        due_s = self._last_s + self._limit_s
        if due_s > self._loop.time():
            self._handle = self._loop.call_at(due_s, self._look)
            return
        self._expired = True
        self._task.cancel()


class EventRelay:
    """Passes the events of one worker's stream on to one client."""

    def __init__(
        self,
        worker: Worker,
        answer: Answer,
        reply: Reply,
        metrics: RouterMetrics,
        *,
        itl: FastHistogram,
        idle_s: float,
        most_held: int,
        ends: tuple[bytes, ...] = (DONE,),
        journal: Journal | None = None,
        hide_counts: bool = False,
        attendance: Attendance | None = None,
    ) -> None:
        """One of *ends* is in the last event of a complete stream.

        *journal* takes down what is sent, so that another worker can go on. *hide_counts*: the
        token counts at the end are the router's to know. *attendance* is told of every chunk.
        """
        self._worker = worker
        self._answer = answer
        self._reply = reply
        self._metrics = metrics
        self._idle_s = idle_s
        self._most_held = most_held
        self._ends = ends
        self._journal = journal
        self._itl = itl
        self._hide_counts = hide_counts
        self._attendance = attendance
        self.events = 0
        """Events sent so far."""
        self._tail = (b"", b"", b"")

    @property
    def end(self) -> bytes:
        """The last chunks that came, three at least: they tell counts and the hand-over."""
        return b"".join(self._tail)

    async def first(self) -> bytes:
        """Return the first bytes, a whole line at least; raise WorkerFailure."""
        start = await self._answer.chunk()
        while b"\n" not in start:
            more = await self._answer.chunk()
            if not more:
                raise self._failure(FailureKind.BROKEN, "the stream ended before its first event")
            start += more
            self._bound(len(start))
        return start

    async def run(self, first: bytes) -> None:
        """Pass *first* and all that follows on, and end the reply.

        Raises WorkerFailure when the worker breaks off, stalls or ends without ``[DONE]``;
        ClientStalledError; DivergedError from the journal.
        """
        watch = IdleWatch(self._idle_s)
        try:
            async with watch:
                await self._pump(first, watch)
        except TimeoutError as error:
            if watch.on == "client":
                raise ClientStalledError(
                    f"the client read nothing for {self._idle_s} s; the stream was given up"
                ) from error
            raise self._failure(FailureKind.TIMEOUT, f"silent for {self._idle_s} s") from error

    async def _pump(self, chunk: bytes, watch: IdleWatch) -> None:
        reply, metrics, journal = self._reply, self._metrics, self._journal
        held = last = b""
        tail = self._tail
        before_s = watch.moved()
        attendance = self._attendance
        while chunk:
            now_s = watch.moved()
            if attendance is not None:
                attendance.pulse.heard_s = now_s
            whole, held = split_events(held + chunk if held else chunk)
            if whole:
                last = whole
                self._tail = tail = (tail[1], tail[2], whole)
                if self._hide_counts:
                    whole = without_counts(whole)
                failed = None
                if journal is not None:
                    if _ERROR in whole:
                        whole, failed = self._before_error(whole)
                    whole = journal.passed(whole)
                events = whole.count(_END)
                if self.events and events:
                    self._itl.observe((now_s - before_s) / events, events)
                self.events += events
                metrics.streamed_events += events
                before_s = now_s
                if whole:
                    watch.on = "client"
                    if attendance is not None:
                        attendance.on_client = True
                    await reply.more(whole)
                    watch.on = "worker"
                    if attendance is not None:
                        attendance.on_client = False
                    watch.moved()
                if failed is not None:
                    raise failed
            elif len(held) > self._most_held:
                self._bound(len(held))
            chunk = await self._next(last)
        if self._ended(held):
            last = held
        if not self._ended(last) and _ERROR not in last:
            wanted = self._ends[-1].decode()
            raise self._failure(FailureKind.BROKEN, f"the stream ended without {wanted}")
        await reply.end(held)

    async def _next(self, last: bytes) -> bytes:
        """Return the next chunk; a connection that breaks after ``[DONE]`` has ended well."""
        try:
            return await self._answer.chunk()
        except WorkerFailure:
            if self._ended(last):
                return b""
            raise

    def _ended(self, last: bytes) -> bool:
        return any(end in last for end in self._ends)

    def _before_error(self, events: bytes) -> tuple[bytes, WorkerFailure | None]:
        """Return what comes before an error in *events*, and the failure that the error is.

        An error that the request is to blame for is no failure: it is passed on.
        """
        at = events.index(_ERROR)
        said = events[at + len(b"data: ") :].split(b"\n", 1)[0]
        error = read_error(said)
        if error is not None and error.code.isdigit() and 400 <= int(error.code) < 500:
            return events, None
        detail = f"reported in its stream: {error.message if error else 'an error'}"
        return events[:at], self._failure(FailureKind.BAD_ANSWER, detail)

    def _bound(self, size: int) -> None:
        if size > self._most_held:
            detail = f"an event has more than {self._most_held} bytes"
            raise self._failure(FailureKind.BAD_ANSWER, detail)

    def _failure(self, kind: FailureKind, detail: str) -> WorkerFailure:
        return WorkerFailure(self._worker, Stage.DECODE, kind, detail)


def split_events(data: bytes) -> tuple[bytes, bytes]:
    """Return the whole events at the beginning of *data*, and the rest."""
    if data.endswith(_END):
        return data, b""
    ends = (data.rfind(_END) + len(_END), data.rfind(_CRLF_END) + len(_CRLF_END))
    found = (ends[0] >= len(_END), ends[1] >= len(_CRLF_END))
    end = max((at for at, is_one in zip(ends, found, strict=True) if is_one), default=0)
    return data[:end], data[end:]
