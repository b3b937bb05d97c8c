"""Serves the webhook over HTTPS with uvicorn, in a task of the program it is part of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvicorn

from spinney.controllers.admission.certificate import CHECK_S, RenewedCertificate
from spinney.listener import ListeningServer, listen

if TYPE_CHECKING:
    from pathlib import Path

    from spinney.controllers.admission.app import WebhookApp

KEEP_ALIVE_S = 75
SHUTDOWN_S = 10
"""How long reviews at hand have when the server stops: as long as the API server waits."""


class WebhookServer:
    """Listens on *host* and *port* (0 finds a free one).

    Every *check_s* seconds it looks whether *certificate* and *key* have been renewed. Raises
    BadInputError when the address cannot be listened on.
    """

    def __init__(
        self,
        app: WebhookApp,
        *,
        certificate: Path,
        key: Path,
        host: str,
        port: int,
        check_s: float = CHECK_S,
    ) -> None:
        self._check_s = check_s
        self._socket = listen(host, port)
        config = uvicorn.Config(
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
        config.load()
        assert config.ssl is not None, "it has a certificate"
        self._certificate = RenewedCertificate(config.ssl, certificate, key)
        self._server = ListeningServer(config)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self._socket.getsockname()[:2]
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    async def run(self) -> None:
        """Serve until `stop` is called or the task is cancelled; reviews at hand are answered.

        A certificate that is renewed meanwhile is used for new connections.
        """
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._certificate.run(self._check_s))
            await self._server.serve_until_stopped(self._socket)
            renewing.cancel()

    def stop(self) -> None:
        """Make `run` return."""
        self._server.stop()
