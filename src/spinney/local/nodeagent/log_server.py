"""The node's HTTP endpoint for logs, as the API server asks a kubelet for them.

``GET /containerLogs/NAMESPACE/POD/CONTAINER`` with ``follow``, ``previous``, ``tailLines``,
``limitBytes``, ``sinceSeconds``, ``sinceTime`` and ``timestamps``. It listens on the nodes'
addresses, which are loopback: who can reach it is on this machine, as are the log files.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import uvicorn

from spinney.clock import parse_rfc3339
from spinney.errors import BadInputError
from spinney.listener import ListeningServer, listen
from spinney.local.nodeagent.logs import LogQuery

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from spinney.clock import Clock
    from spinney.local.nodeagent.logs import LogStore

TEXT = b"text/plain; charset=utf-8"


class LogServer:
    """An ASGI application; *find_uid* gives the uid of a pod by namespace and name."""

    def __init__(
        self, logs: LogStore, find_uid: Callable[[str, str], str | None], clock: Clock
    ) -> None:
        self._logs = logs
        self._find_uid = find_uid
        self._clock = clock

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        parts = scope["path"].strip("/").split("/")
        if parts == ["healthz"]:
            await _reply(send, 200, "ok")
        elif len(parts) != 4 or parts[0] != "containerLogs" or scope["method"] != "GET":
            await _reply(send, 404, f"no such path: {scope['path']}")
        else:
            await self._container_logs(parts[1:], scope, receive, send)

    async def _container_logs(
        self,
        parts: list[str],
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        namespace, pod, container = parts
        arguments = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        try:
            query = parse_query(arguments, self._clock.now())
        except BadInputError as error:
            await _reply(send, 400, str(error))
            return
        previous = arguments.get("previous") == "true"
        uid = self._find_uid(namespace, pod)
        if uid is None:
            await _reply(send, 404, f"pod {namespace}/{pod} is not on this node")
            return
        lines = self._logs.read(uid, container, query, previous=previous)
        if lines is None:
            which = "previous terminated" if previous else ""
            text = f"{which} container {container!r} in pod {pod!r} has no log".strip()
            await _reply(send, 400, text)
            return
        await _stream(lines, receive, send)


def parse_query(arguments: Mapping[str, str], now: float) -> LogQuery:
    """Return the query that URL arguments make; raise BadInputError naming the wrong one."""
    since_s: float | None = None
    seconds = _number(arguments, "sinceSeconds")
    if seconds is not None:
        since_s = now - seconds
    elif "sinceTime" in arguments:
        try:
            since_s = parse_rfc3339(arguments["sinceTime"])
        except ValueError as error:
            raise BadInputError(f"sinceTime: {arguments['sinceTime']!r} is no time") from error
    return LogQuery(
        follow=arguments.get("follow") == "true",
        tail_lines=_number(arguments, "tailLines"),
        limit_bytes=_number(arguments, "limitBytes"),
        since_s=since_s,
        timestamps=arguments.get("timestamps") == "true",
    )


def _number(arguments: Mapping[str, str], name: str) -> int | None:
    text = arguments.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise BadInputError(f"{name}: {text!r} is no number from 0")
    return int(text)


async def _stream(
    lines: AsyncIterator[bytes],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    """Send lines as they come, until there are no more or the client leaves."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", TEXT)]})
    left = asyncio.ensure_future(_client_left(receive))
    sending = asyncio.ensure_future(_send_all(lines, send))
    try:
        await asyncio.wait((left, sending), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (left, sending):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _send_all(lines: AsyncIterator[bytes], send: Callable[[Any], Awaitable[None]]) -> None:
    async for line in lines:
        await send({"type": "http.response.body", "body": line, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _client_left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: Callable[[Any], Awaitable[None]], status: int, text: str) -> None:
    headers = [(b"content-type", TEXT)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode() + b"\n"})


def listen_on(addresses: Sequence[str]) -> list[socket.socket]:
    """Return a socket on a free port of each address; raise SpinneyError."""
    with contextlib.ExitStack() as opened:
        sockets = [
            opened.enter_context(listen(address, 0, advice="is it an address of this machine?"))
            for address in addresses
        ]
        opened.pop_all()
    return sockets


async def serve(app: LogServer, sockets: list[socket.socket], stop: asyncio.Event) -> None:
    """Answer on *sockets* until *stop* is set; streams that are open then are broken off."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        interface="asgi3",
        http="httptools",
        ws="none",
        loop="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = ListeningServer(config)
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=sockets))
            stopped = group.create_task(stop.wait())
            await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
            server.stop()
            stopped.cancel()
    finally:
        for listener in sockets:
            listener.close()
