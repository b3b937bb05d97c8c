"""An ASGI application on a TCP port, as a task of the program it is part of.

uvicorn speaks HTTP. The program keeps its signals, makes the socket itself (so that it knows the
port before anything is served), and stops the server by ending its task.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKLOG = 1024


class ListeningServer(uvicorn.Server):
    """uvicorn that leaves signals to the program and ends when its task does."""

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
