"""An ASGI application on a TCP port, as a task of the program it is part of.

uvicorn speaks HTTP. The program keeps its signals, makes the socket itself (so that it knows the
port before anything is served), and stops the server by ending its task. All connections that wait
are accepted in one turn of the event loop: uvloop's own servers accept one a turn, so that on a
busy loop, where a turn takes tens of milliseconds, the hundredth newcomer waits for seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from spinney.errors import BadInputError
from spinney.log import get_logger

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

log = get_logger("listener")

BACKLOG = 1024
ACCEPTED_AT_ONCE = 256
"""Connections accepted in one turn, so that those who are served already get theirs."""
REST_S = 1.0
"""Until a socket that cannot be accepted from, as files have run out, is asked again."""
LAST_GREETING_S = 1.0
"""What a connection, accepted as the server ends, has for its start (TLS takes some exchanges)."""


class ListeningServer(uvicorn.Server):
    """uvicorn that leaves signals to the program and ends when its task does."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._doors: list[Door] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def serve_until_stopped(self, listener: socket.socket) -> None:
        """Serve until `stop` is called or the task is cancelled; requests at hand are answered."""
        serving = asyncio.create_task(self.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.stop()
            await serving
            raise

    def stop(self) -> None:
        """Make serving end."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, but accept from *sockets* through doors."""
        if sockets is None:
            raise TypeError("a listening server is given its sockets")
        await super().startup(sockets=[])
        # As uvicorn does: a `Protocol` that takes these is what its configuration loads.
        http: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        protocol = functools.partial(
            http,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self._doors = [Door(listener, protocol, self.config.ssl) for listener in sockets]
        for door in self._doors:
            door.open()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and shut down as uvicorn does, with all who came in."""
        await asyncio.gather(*(door.close() for door in self._doors))
        await super().shutdown(sockets)


class Door:
    """Accepts the connections of *listener*; each gets a *protocol*, behind TLS with *context*."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], Any],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._greetings: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Accept from now on."""
        self._rest = None
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def close(self) -> None:
        """Accept no more; return when all who were accepted have their protocol, or are gone."""
        self._loop.remove_reader(self._listener.fileno())
        if self._rest is not None:
            self._rest.cancel()
        if self._greetings:
            _, late = await asyncio.wait(self._greetings, timeout=LAST_GREETING_S)
            for greeting in late:
                greeting.cancel()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._take_a_rest(error)
                return
            connection.setblocking(False)
            greeting = self._loop.create_task(self._greet(connection))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket) -> None:
        # A client that breaks off its TLS handshake, or is gone already, is nobody's error.
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._context)

    def _take_a_rest(self, error: OSError) -> None:
        # The socket stays readable: asked at once, it would keep the loop busy.
        log.error("cannot accept connections", reason=error.strerror, again_in_s=REST_S)
        self._loop.remove_reader(self._listener.fileno())
        self._rest = self._loop.call_later(REST_S, self.open)


def listen(host: str, port: int, *, advice: str = "choose another port") -> socket.socket:
    """Return a socket that listens on *host* and *port* (0 finds a free one).

    Raises BadInputError, ending in *advice*, when the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name TCP: 40 ms a reply otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise BadInputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; {advice}"
        ) from error
    listener.setblocking(False)
    return listener
