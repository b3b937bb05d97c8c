"""A TCP proxy that breaks connections on demand: what networks and half-dead hosts do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

PIECE = 16 * 1024
CONNECT_S = 2.0


@dataclass(frozen=True)
class Way:
    """What happens to a connection once *after* bytes have come from the target.

    pass: nothing. stall: it stays open and no byte moves. cut: it is reset. slow: *rate* bytes per
    second. corrupt: one bit flips. garbage: instead of the target, noise answers.
    """

    kind: str = "pass"
    after: int = 0
    rate: float = 20_000.0


class Proxy:
    """Listens on a port of its own for a target; `way` holds for connections made after it is set.

    *trap* is called once, when a connection is made (0) or has carried so many bytes.
    """

    def __init__(self, target_port: int, rng: Random) -> None:
        self.target_port = target_port
        self.way = Way()
        self.connections = 0
        self._rng = rng
        self._listener = _listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._trap: tuple[int, Callable[[], None]] | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._listener)

    async def refuse(self, refused: bool) -> None:
        """Refuse connections from now on, or take them again."""
        if refused and self._server is not None:
            self._server.close()
            self._server = None
        elif not refused and self._server is None:
            self._listener = _listen(self.port)
            await self.start()

    def set_trap(self, after: int, spring: Callable[[], None]) -> None:
        self._trap = (after, spring)

    def clear_trap(self) -> None:
        """Have nothing happen any more."""
        self._trap = None

    async def heal(self) -> None:
        """Take connections and pass bytes; connections under way that are broken end."""
        self._trap = None
        self.way = Way()
        await self.refuse(False)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def cut_all(self) -> None:
        for link in list(self._links):
            link.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError):
            pass
        except asyncio.CancelledError:
            _reset(writer)
        finally:
            self._links.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = self.way
        self._carried(0)
        if way.kind == "garbage":
            await reader.read(PIECE)
            writer.write(self._rng.randbytes(200) + b"\r\n\r\n")
            await writer.drain()
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(
                    "127.0.0.1", self.target_port
                )
        except (OSError, TimeoutError):
            _reset(writer)
            return
        up = asyncio.ensure_future(_copy(reader, far_writer))
        down = asyncio.ensure_future(self._deliver(far_reader, writer, way))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not down.done() and up.done() and not up.cancelled() and way.kind == "pass":
                # The client has said all; the answer may still come.
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await asyncio.wait((down,), timeout=0.01)
            for task in (up, down):
                task.cancel()
            # Before the next wait, in which this link may be cut once more.
            far_writer.close()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _deliver(
        self, source: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        carried = 0
        while data := await source.read(PIECE):
            left = way.after - carried
            if way.kind != "pass" and len(data) > left:
                data = await self._break(data, max(0, left), writer, way)
                way = way if way.kind == "slow" else Way()
            carried += len(data)
            writer.write(data)
            await writer.drain()
            self._carried(carried)

    async def _break(self, data: bytes, left: int, writer: asyncio.StreamWriter, way: Way) -> bytes:
        """Return what of *data* goes on, if anything does."""
        if way.kind in ("cut", "stall"):
            writer.write(data[:left])
            await writer.drain()
            if way.kind == "stall":
                await asyncio.Event().wait()
            _reset(writer)
            raise ConnectionResetError
        if way.kind == "slow":
            await asyncio.sleep(len(data) / way.rate)
            return data
        at = self._rng.randrange(left, len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]

    def _carried(self, count: int) -> None:
        if self._trap is not None and count >= self._trap[0]:
            spring = self._trap[1]
            self._trap = None
            spring()


async def _copy(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await source.read(PIECE):
        writer.write(data)
        await writer.drain()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(256)
    listener.setblocking(False)
    return listener


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
