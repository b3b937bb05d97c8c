"""KV blocks over TCP, through shared memory where both ends are on one host, or by NIXL.

Sockets are driven directly, so that bytes land where they are wanted without a copy between.
Invariant: each wait has a named deadline, and whatever ends a pull ends its connection, its
segment and its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from spinney.errors import BadInputError
from spinney.kv.lease import Failure, Handle, HandoverError
from spinney.kv.reshard import Span
from spinney.kv.transfer import nixl
from spinney.kv.transfer import segment as shm
from spinney.kv.transfer.connector import (
    Pulled,
    PullRequest,
    check_compatible,
    expected_bytes,
    room,
)
from spinney.kv.transfer.wire import (
    VERSION,
    Done,
    Later,
    Opened,
    Pull,
    Ready,
    Refused,
    expect,
    receive,
    receive_into,
    send,
)
from spinney.log import get_logger
from spinney.tracing import NO_SPAN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from numpy.typing import NDArray

    from spinney.kv.transfer.connector import BlockSource, Taken
    from spinney.kv.transfer.nixl import Registered, RemoteMemory
    from spinney.tracing import Span as Traced

CONNECT_TIMEOUT_S = 1.0
"""A peer that has not accepted by then counts as dead."""
ANSWER_TIMEOUT_S = 5.0
"""A peer that accepted but does not answer: longer than any step its engine may be in."""
TRANSFER_TIMEOUT_S = 30.0
"""All the bytes have to be there by then."""
MAX_CONCURRENT_PULLS = 32
"""Pulls served at one time: each holds a copy of its blocks. More are refused as BUSY."""
MAX_PATIENT_PULLS = 1024
"""The same, of those whose prompts may still be being computed: most of them hold nothing yet."""
LATER_S = 1.0
"""How often a reader that is kept waiting is told so."""
LISTEN_BACKLOG = 128

log = get_logger("kv-transfer")


class TcpConnector:
    """Pulls over TCP. With *shared_memory* off, bytes travel through the socket, or by *memory*."""

    def __init__(self, *, shared_memory: bool = True, memory: RemoteMemory | None = None) -> None:
        self._host = shm.host_identity() if shared_memory else ""
        self._memory = memory

    @asynccontextmanager
    async def pull(self, host: str, port: int, request: PullRequest) -> AsyncIterator[Pulled]:
        """Fetch blocks; see `Connector.pull`."""
        sock = await _connect(host, port)
        landing = _Landing(self._memory)
        reads = nixl.NAME if self._memory is not None and self._memory.usable else ""
        try:
            with _as_handover_errors(f"{host}:{port}"):
                async with asyncio.timeout(request.patience_s or ANSWER_TIMEOUT_S):
                    await send(sock, _pull_message(request, self._host, reads))
                    ready = await _ready(sock)
                _check(request, ready)
                async with asyncio.timeout(TRANSFER_TIMEOUT_S):
                    await landing.fetch(sock, ready)
            yield Pulled(landing.data, ready.checksum, landing.transport, ready.layout)
            with contextlib.suppress(OSError):
                await send(sock, Done(None))
        except HandoverError as error:
            with contextlib.suppress(OSError):
                await send(sock, Done(error.failure))
            raise
        finally:
            sock.close()
            landing.close()


async def _ready(sock: socket.socket) -> Ready:
    while True:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            message = await receive(sock)
        match message:
            case Ready():
                return message
            case Refused(failure, text):
                raise HandoverError(failure, text)
            case Later():
                continue
            case _:
                raise HandoverError(
                    Failure.PROTOCOL, f"Ready was due, {type(message).__name__} came"
                )


class _Landing:
    """Where the blocks of one pull arrive: a segment, or memory of this process."""

    def __init__(self, memory: RemoteMemory | None) -> None:
        self._memory = memory
        self._segment: shm.Segment | None = None
        self._buffer: Registered | None = None
        self.data: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.transport = "tcp"

    async def fetch(self, sock: socket.socket, ready: Ready) -> None:
        """Get the bytes in the best way that both sides have."""
        if ready.segment is not None:
            self._segment = shm.attach(ready.segment, ready.num_bytes)
            await send(sock, Opened(self._segment is not None))
        elif ready.offer is not None:
            await self._read(sock, ready.offer, ready.num_bytes)
            await send(sock, Opened(self._buffer is not None))
        if self._segment is not None:
            self.data, self.transport = self._segment.data, "shared-memory"
        elif self._buffer is not None:
            self.data, self.transport = self._buffer.data[: ready.num_bytes], nixl.NAME
        else:
            self.data = room(ready.num_bytes)
            await receive_into(sock, self.data)

    async def _read(self, sock: socket.socket, offer: bytes, num_bytes: int) -> None:
        if self._memory is None:
            raise HandoverError(Failure.PROTOCOL, "an offer came that was not asked for")
        buffer = self._memory.take(num_bytes)
        try:
            await _unless_closed(sock, self._memory.read(offer, buffer, num_bytes))
        except BaseException:
            self._give_back(buffer)
            raise
        self._buffer = buffer

    def _give_back(self, buffer: Registered) -> None:
        if self._memory is not None and not self._memory.abandoned(buffer):
            self._memory.give_back(buffer)

    def close(self) -> None:
        """Let go of the bytes."""
        self.data = np.empty(0, np.uint8)
        if self._segment is not None:
            self._segment.close()
        if self._buffer is not None:
            self._give_back(self._buffer)
            self._buffer = None


async def _unless_closed(sock: socket.socket, reading: Coroutine[Any, Any, None]) -> None:
    """Await *reading*; end it when *sock*, on which nothing is due, is closed by the peer."""
    work = asyncio.ensure_future(reading)
    closed = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(sock, 1))
    try:
        await asyncio.wait((work, closed), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HandoverError(Failure.UNREACHABLE, "the peer is gone while its memory was read")
        work.result()
    finally:
        for task in (work, closed):
            task.cancel()
        await asyncio.gather(work, closed, return_exceptions=True)


def _check(request: PullRequest, ready: Ready) -> None:
    # Before memory is taken: the numbers may be anything.
    check_compatible(ready.layout, request.layout)
    expected = expected_bytes(request, ready.layout)
    if ready.num_bytes != expected:
        raise HandoverError(
            Failure.PROTOCOL,
            f"{expected} bytes were asked for, {ready.num_bytes} are announced",
        )


def _pull_message(request: PullRequest, host: str, reads: str) -> Pull:
    return Pull(
        VERSION,
        request.handle,
        request.layout,
        request.prompt,
        request.span.first,
        request.span.end,
        host,
        reads,
        request.patience_s is not None,
        request.trace,
    )


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    with _as_handover_errors(f"{host}:{port}"):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(sock, address)
            except BaseException:
                sock.close()
                raise
            return sock


@contextlib.contextmanager
def _as_handover_errors(peer: str) -> Iterator[None]:
    """Raise what the operating system reports as the HandoverError it means."""
    try:
        yield
    except TimeoutError:
        raise HandoverError(
            Failure.TIMEOUT, f"{peer} did not answer in time; compute the prompt again"
        ) from None
    except OSError as error:
        raise HandoverError(
            Failure.UNREACHABLE, f"{peer}: {error}; compute the prompt again"
        ) from None


def _untraced(_traceparent: str) -> Traced:
    return NO_SPAN


class TransferServer:
    """Serves pulls of *source*'s blocks on ``host:port``; port 0 picks a free one.

    Readers of other hosts that can may read them from *memory*. *spans* begins the span of a pull
    that names a trace.
    """

    def __init__(
        self,
        source: BlockSource,
        host: str,
        port: int,
        *,
        memory: RemoteMemory | None = None,
        spans: Callable[[str], Traced] = _untraced,
    ) -> None:
        self._memory = memory
        self._spans = spans
        self._source = source
        self._host = shm.host_identity()
        self._pulls = {False: 0, True: 0}
        self._segments = shm.SegmentPool()
        try:
            self._listener = socket.create_server((host, port), backlog=LISTEN_BACKLOG)
        except OSError as error:
            raise BadInputError(
                f"KV port {host}:{port} cannot be used: {error}; give a free one with --kv-port"
            ) from None
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    async def serve(self) -> None:
        """Answer pulls until cancelled; then no connection and no segment is left."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    sock, _ = await loop.sock_accept(self._listener)
                    group.create_task(self._connection(sock))
        finally:
            self._listener.close()
            self._segments.close()

    async def _connection(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(TRANSFER_TIMEOUT_S):
                message = await expect(sock, Pull)
            with self._counted(message.patient), self._traced(message) as span:
                await self._serve_pull(sock, message, span)
        except HandoverError as error:
            log.info("pull refused", failure=str(error.failure), reason=str(error))
            with contextlib.suppress(OSError):
                await send(sock, Refused(error.failure, str(error)))
        except (OSError, TimeoutError) as error:
            log.warning("pull ended early", reason=repr(error))
        finally:
            sock.close()

    @contextlib.contextmanager
    def _counted(self, patient: bool) -> Iterator[None]:
        """Raise HandoverError when as many pulls are under way as may be."""
        most = MAX_PATIENT_PULLS if patient else MAX_CONCURRENT_PULLS
        if self._pulls[patient] >= most:
            raise HandoverError(Failure.BUSY, f"{most} pulls are under way here already")
        self._pulls[patient] += 1
        try:
            yield
        finally:
            self._pulls[patient] -= 1

    @contextlib.contextmanager
    def _traced(self, message: Pull) -> Iterator[Traced]:
        with self._spans(message.trace) if message.trace else NO_SPAN as span:
            span.set({"spinney.handover.tokens": message.end - message.first})
            try:
                yield span
            except HandoverError as error:
                span.end(str(error.failure))
                raise

    async def _serve_pull(self, sock: socket.socket, message: Pull, span: Traced) -> None:
        if message.version != VERSION:
            raise HandoverError(
                Failure.PROTOCOL, f"protocol {message.version} was asked for, this is {VERSION}"
            )
        request = PullRequest(
            Handle(message.handle),
            message.layout,
            message.prompt,
            Span(message.first, message.end),
            0.0 if message.patient else None,
            message.trace,
        )
        same_host = bool(self._host) and message.host == self._host
        memory = self._memory if message.reads == nixl.NAME else None
        staging = _Staging(self._segments if same_host else None, memory)
        try:
            taken = await _keeping_in_touch(sock, self._source.take(request, staging.allocate))
            failure: str | None = Failure.UNREACHABLE
            try:
                async with asyncio.timeout(TRANSFER_TIMEOUT_S):
                    failure = await _deliver(sock, staging, taken)
            finally:
                span.set({"spinney.handover.bytes": staging.num_bytes})
                self._source.ended(request, staging.num_bytes, failure)
            if failure is not None:
                span.end(str(failure))
        finally:
            staging.close()


async def _keeping_in_touch(sock: socket.socket, taking: Coroutine[Any, Any, Taken]) -> Taken:
    """Await *taking*, and tell the reader meanwhile that it is not forgotten."""
    task = asyncio.ensure_future(taking)
    try:
        while not (await asyncio.wait((task,), timeout=LATER_S))[0]:
            await send(sock, Later())
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _deliver(sock: socket.socket, staging: _Staging, taken: Taken) -> str | None:
    loop = asyncio.get_running_loop()
    await send(
        sock,
        Ready(staging.num_bytes, taken.checksum, staging.address, taken.layout, staging.offer()),
    )
    got = False
    if staging.is_shared:
        async with staging.progressing():
            answer = await receive(sock)
        if isinstance(answer, Done):
            return answer.failure
        got = isinstance(answer, Opened) and answer.ok
    if not got:
        await loop.sock_sendall(sock, staging.data.data)
    done = await expect(sock, Done)
    staging.reusable = True
    return done.failure


class _Staging:
    """Where the blocks of one pull are copied to.

    That is a segment where the reader is on this host, memory that it can read from elsewhere where
    it can, and plain memory otherwise.
    """

    def __init__(self, segments: shm.SegmentPool | None, memory: RemoteMemory | None) -> None:
        self._segments = segments
        self._memory = memory
        self._segment: shm.Segment | None = None
        self._buffer: Registered | None = None
        self.data: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.reusable = False

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def address(self) -> str | None:
        return None if self._segment is None else self._segment.address

    @property
    def is_shared(self) -> bool:
        return self._segment is not None or self._buffer is not None

    def offer(self) -> bytes | None:
        if self._memory is None or self._buffer is None:
            return None
        return self._memory.offer(self._buffer)

    def allocate(self, num_bytes: int) -> NDArray[np.uint8]:
        if self._segments is not None and num_bytes:
            self._segment = self._segments.take(num_bytes)
        if self._segment is not None:
            self.data = self._segment.data[:num_bytes]
        elif self._memory is not None and num_bytes:
            self._buffer = self._memory.take(num_bytes)
            self.data = self._buffer.data[:num_bytes]
        else:
            self.data = room(num_bytes)
        return self.data

    @asynccontextmanager
    async def progressing(self) -> AsyncIterator[None]:
        """Keep a read of this memory going meanwhile."""
        if self._memory is None or self._buffer is None:
            yield
            return
        pushing = asyncio.ensure_future(_push(self._memory))
        try:
            yield
        finally:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)

    def close(self) -> None:
        self.data = np.empty(0, np.uint8)
        if self._buffer is not None and self._memory is not None:
            # A read that goes on gets other bytes: its reader has given up on it.
            self._memory.give_back(self._buffer)
        if self._segment is None or self._segments is None:
            return
        if self.reusable:
            self._segments.give_back(self._segment)
        else:
            # Who knows whether the reader, or a copy not yet ended, still uses it.
            self._segment.close()


async def _push(memory: RemoteMemory) -> None:
    while True:
        memory.progress()
        await asyncio.sleep(nixl.POLL_S)
