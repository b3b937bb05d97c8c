"""The API server behind HTTPS: a thin ASGI adapter, run by uvicorn.

Requests need the cluster's bearer token, but for the health and version paths. Each event of a
watch is sent when it happens. A client that goes away takes its watch with it, and a server that
shuts down ends its watches first.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import uvicorn

from spinney.kube.transport import ApiRequest, ApiResponse, TransportError
from spinney.listener import ListeningServer, listen
from spinney.local.apiserver.refusal import RefusalError
from spinney.local.apiserver.reviews import ADMIN
from spinney.local.apiserver.routes import MAX_BODY_BYTES
from spinney.log import get_logger
from spinney.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    from spinney.local.apiserver.server import ApiServer
    from spinney.local.apiserver.tls import Credentials

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

log = get_logger("apiserver.http")

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/livez", "/version"})
"""Paths that need no token."""
KEEP_ALIVE_S = 75
SHUTDOWN_S = 3
"""How long requests at hand have when the server stops."""
PORT_ADVICE = "is another cluster running there? choose another port"


class HttpApp:
    """The ASGI application: *api* for those who know *token*.

    *metrics* returns what ``/metrics`` answers, for them too; without it there is no such path.
    """

    def __init__(
        self, api: ApiServer, token: str, metrics: Callable[[], bytes] | None = None
    ) -> None:
        self._api = api
        self._metrics = metrics
        self._bearer = f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if not self._allowed(scope["path"], headers):
            refusal = RefusalError(
                401, "Unauthorized", "Unauthorized: the bearer token is missing or wrong"
            )
            await _send_whole(refusal.response(), send)
            return
        if scope["path"] == "/metrics" and self._metrics is not None:
            await _send_whole(ApiResponse(200, self._metrics(), content_type=CONTENT_TYPE), send)
            return
        body = await _body(receive)
        if body is None:
            return
        request = ApiRequest(
            scope["method"],
            scope["path"],
            dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
            body,
            headers.get(b"content-type", b"application/json").decode("latin-1"),
            headers.get(b"accept", b"application/json").decode("latin-1"),
            ADMIN,
        )
        response = await self._api.send(request)
        if response.stream is None:
            await _send_whole(response, send)
        else:
            await _send_stream(response, response.stream, receive, send)

    def _allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if path in OPEN_PATHS:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), self._bearer)


class HttpServer:
    """Listens on *host* and *port* (0 finds a free one) and serves *api* over TLS.

    Raises BadInputError when the port is taken.
    """

    def __init__(
        self,
        api: ApiServer,
        found: Credentials,
        host: str,
        port: int,
        *,
        metrics: Callable[[], bytes] | None = None,
    ) -> None:
        self._socket = listen(host, port, advice=PORT_ADVICE)
        config = uvicorn.Config(
            HttpApp(api, found.token, metrics),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
            ssl_certfile=found.certificate,
            ssl_keyfile=found.key,
        )
        self._server = _Server(config, api)

    @property
    def port(self) -> int:
        """The port it listens on."""
        number: int = self._socket.getsockname()[1]
        return number

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"https://{self._socket.getsockname()[0]}:{self.port}"

    async def run(self) -> None:
        """Serve until `stop` is called or the task is cancelled; then end watches and requests."""
        await self._server.serve_until_stopped(self._socket)

    def stop(self) -> None:
        """Make `run` return, when open watches and requests have ended."""
        self._server.stop()


class _Server(ListeningServer):
    """Ends watches when it shuts down."""

    def __init__(self, config: uvicorn.Config, api: ApiServer) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the watches, which would else be waited for, and shut down."""
        self._api.end_streams()
        await super().shutdown(sockets)


async def _body(receive: Receive) -> bytes | None:
    """Return the body, None if the client went away before its end."""
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body"):
            # A body over the bound is dropped; any other of that size is refused like it.
            return b"".join(parts) if size <= MAX_BODY_BYTES else b" " * (MAX_BODY_BYTES + 1)


def _start(response: ApiResponse, length: int | None) -> Message:
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"cache-control", b"no-cache, private"),
    ]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    headers += [(k.encode(), v.encode("utf-8")) for k, v in response.headers.items()]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


async def _send_whole(response: ApiResponse, send: Send) -> None:
    await send(_start(response, len(response.body)))
    await send({"type": "http.response.body", "body": response.body})


async def _send_stream(
    response: ApiResponse, stream: AsyncIterator[bytes], receive: Receive, send: Send
) -> None:
    await send(_start(response, None))
    # The client sees the headers at once, not with the first event.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    pumping = asyncio.create_task(_pump(stream, send))
    leaving = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait((pumping, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        pumping.cancel()
        leaving.cancel()
        await asyncio.gather(pumping, leaving, return_exceptions=True)
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
    if not pumping.cancelled():
        await send({"type": "http.response.body", "body": b""})


async def _pump(stream: AsyncIterator[bytes], send: Send) -> None:
    try:
        async for chunk in stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TransportError as error:
        log.warning("stream broke off", error=str(error))


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
