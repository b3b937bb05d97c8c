"""HTTP/1.1 to workers, as little of it as a router needs, over kept connections.

A general client costs more per request than all the rest of the router. This one sends one request
at a time on a connection, gives the body's bytes as they come, and leaves out what no worker does:
redirects, cookies, compression, pipelining. Invariant: a connection is used again only after its
answer came to its proper end; one that is let go of earlier is closed, which aborts the work.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from collections.abc import Mapping

KEEP_ALIVE_S = 3.0
"""Idle connections are closed before the worker's server does (uvicorn: after 5 s)."""
MOST_HELD = 256 << 10
"""Bytes of an answer that are held while nobody takes them; then no more are read."""
MOST_HEADERS = 64 << 10
"""A larger head of an answer is none."""


class ConnectError(Exception):
    """No connection came about."""


class BrokenError(Exception):
    """A connection ended, or said what is no HTTP, before the answer had come to its end.

    *reused*: it had served another request before.
    """

    def __init__(self, detail: str, *, reused: bool = False) -> None:
        super().__init__(detail)
        self.reused = reused


class Origin(NamedTuple):
    """Where connections go to."""

    host: str
    port: int
    tls: bool


class Connection(asyncio.Protocol):
    """One connection, and the answer that comes over it."""

    __slots__ = (
        "_error",
        "_head",
        "_headers_bytes",
        "_keepable",
        "_loop",
        "_parser",
        "_parts",
        "_paused",
        "_pool",
        "_size",
        "_until_end",
        "_waiter",
        "complete",
        "headers",
        "idle_since_s",
        "on_body",
        "origin",
        "status",
        "transport",
        "used",
    )

    def __init__(self, pool: HttpClient, origin: Origin) -> None:
        self._pool = pool
        self.origin = origin
        self.used = 0
        """Requests sent."""
        self.idle_since_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # Once a token: without a frame of its own.
        self._size = 0
        self._paused = False
        self._error = ""
        self._head: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.complete = True
        self.status = 0
        self.headers: dict[str, str] = {}
        self._headers_bytes = 0
        self._until_end = False
        """Whether the end of the connection is that of the answer."""
        self._keepable = False

    # The loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport; called by the loop."""
        self.transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Take in what came; called by the loop."""
        if self.complete:
            self._fail("sent what was not asked for")  # Or it belongs to an answer let go of.
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError) as error:
            self._fail(f"what came is no HTTP: {error}")
            return
        self._size += len(data)
        waiter = self._waiter
        if waiter is not None and (self._parts or self.complete) and not waiter.done():
            waiter.set_result(None)
        if self._size > MOST_HELD and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Have the connection closed; called by the loop."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Note the end of the connection; called by the loop."""
        self._pool.lost(self)
        if self.complete:
            return
        if error is None and self._until_end and self.status:
            self.on_message_complete()
            self._wake()
            return
        self._fail(f"{error}" if error else "the server closed it")

    # The parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; called by the parser."""
        self._headers_bytes += len(name) + len(value)
        if self._headers_bytes > MOST_HEADERS:
            raise ValueError("the head is too large")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Tell who waits that the answer begins; called by the parser."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        headers = self.headers
        self._until_end = "content-length" not in headers and "transfer-encoding" not in headers
        self._keepable = not self._until_end and self._parser.should_keep_alive()
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_message_complete(self) -> None:
        """Note that the answer is whole; called by the parser."""
        if self.status:
            self.complete = True

    # The request's side

    async def request(self, data: bytes) -> None:
        """Send *data* and return when status and headers are there; raise BrokenError."""
        self.used += 1
        self.complete = False
        self._size = 0
        self.status = self._headers_bytes = 0
        self.headers = {}
        self._head = self._loop.create_future()
        self.transport.write(data)
        try:
            await self._head
        finally:
            self._head = None

    async def chunk(self) -> bytes:
        """Return what has come of the body, empty at its end; raise BrokenError."""
        while not self._parts:
            if self._error:
                raise BrokenError(self._error)
            if self.complete:
                return b""
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        parts, self._size = self._parts, 0
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data

    def let_go(self) -> None:
        """Keep the connection for another request, or close it where the answer is not over."""
        whole = self.complete and not self._error and not self._parts
        if whole and self._keepable:
            self._pool.keep(self)
        else:
            self.complete = True
            self.transport.abort()

    def _fail(self, detail: str) -> None:
        self._error = self._error or detail
        if self._head is not None and not self._head.done():
            self._head.set_exception(BrokenError(detail, reused=self.used > 1))
        self._wake()
        self.transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class HttpClient:
    """Connections to any number of origins. Close it when it is not needed any more."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._origins: dict[str, tuple[Origin, bytes, str]] = {}

    async def send(
        self,
        method: str,
        base: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        fresh: bool = False,
    ) -> Connection:
        """Return the connection on which the answer begins; its `Connection.let_go` is due.

        With *fresh* no kept connection is used. Raises ConnectError and BrokenError.
        """
        origin, host, prefix = self._origin(base)
        connection = (None if fresh else self._kept(origin)) or await self._connect(origin)
        lines = [f"{method} {prefix}{path} HTTP/1.1\r\n".encode("latin-1"), host]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        lines.append(body)
        try:
            await connection.request(b"".join(lines))
        except BrokenError as error:
            if error.reused:
                self.drop(origin)
            raise
        except BaseException:
            connection.let_go()
            raise
        return connection

    def drop(self, origin: Origin) -> None:
        """Close the kept connections to *origin*: one of them had ended."""
        for connection in self._idle.pop(origin, ()):
            connection.transport.abort()

    def close(self) -> None:
        """Close all connections."""
        for connection in tuple(self._open):
            connection.transport.abort()
        self._idle.clear()

    def keep(self, connection: Connection) -> None:
        """Have *connection* used again."""
        if connection.transport.is_closing():
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.setdefault(connection.origin, []).append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget *connection*."""
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def _origin(self, base: str) -> tuple[Origin, bytes, str]:
        """Return where *base* is, the line that names it, and what paths there begin with."""
        found = self._origins.get(base)
        if found is None:
            parts = urlsplit(base)
            tls = parts.scheme == "https"
            origin = Origin(parts.hostname or "", parts.port or (443 if tls else 80), tls)
            found = (origin, f"host: {parts.netloc}\r\n".encode("latin-1"), parts.path)
            if len(self._origins) >= MOST_ORIGINS:
                self._origins.clear()
            self._origins[base] = found
        return found

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        # The one used last is the freshest; where it is too old all are.
        connection = idle.pop()
        old = asyncio.get_running_loop().time() - connection.idle_since_s > KEEP_ALIVE_S
        if not old and not connection.transport.is_closing():
            return connection
        idle.append(connection)
        self.drop(origin)
        return None

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, origin),
                    origin.host,
                    origin.port,
                    ssl=origin.tls or None,
                )
        except TimeoutError:
            raise ConnectError(f"not accepted within {self._connect_timeout_s:g} s") from None
        except OSError as error:
            raise ConnectError(error.strerror or str(error)) from error
        self._open.add(connection)
        return connection


MOST_ORIGINS = 4096
"""Addresses of which it is remembered how they are written."""
