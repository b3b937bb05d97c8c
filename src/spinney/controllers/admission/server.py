"""Serves the webhook over HTTPS with uvicorn, in a task of the program it is part of."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spinney.controllers.admission.app import WebhookApp

BACKLOG = 512
KEEP_ALIVE_S = 75
SHUTDOWN_S = 10
"""How long reviews at hand have when the server stops: as long as the API server waits."""


class WebhookServer:
    """Listens on *host* and *port* (0 finds a free one).

    Raises BadInputError when the address cannot be listened on.
    """

    def __init__(
        self, app: WebhookApp, *, certificate: Path, key: Path, host: str, port: int
    ) -> None:
        self._socket = _listen(host, port)
        self._server = _Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self._socket.getsockname()[:2]
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    async def run(self) -> None:
        """Serve until `stop` is called or the task is cancelled; reviews at hand are answered."""
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.stop()
            await serving
            raise

    def stop(self) -> None:
        """Make `run` return."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Leaves signals to the program it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _listen(host: str, port: int) -> socket.socket:
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
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from error
    listener.setblocking(False)
    return listener
