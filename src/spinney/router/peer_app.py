"""What a router serves to other routers and to its own processes, on a port that clients do not
reach, and how the processes of one router answer for each other.

Invariant: what is asked on that port is answered by the one process that was asked, so that no
question goes round.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.metrics import CONTENT_TYPE, exposition
from spinney.router.http_client import BrokenError, ConnectError, HttpClient
from spinney.router.relay import Reply
from spinney.router.sharing import LOAD_PATH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from prometheus_client import CollectorRegistry

    from spinney.router.sharing import PeerLoads
    from spinney.router.stories import Stories

    Message = MutableMapping[str, Any]

MOST_BYTES = 8 << 20
"""Of a message or an answer between routers."""
PEER_DEADLINE_S = 1.0
"""For an answer of another router."""
STORY_PATH = "/debug/requests/"


class HttpPeers:
    """Asks other routers, over kept connections."""

    def __init__(self) -> None:
        self._client = HttpClient(PEER_DEADLINE_S)

    async def aclose(self) -> None:
        """Close all connections."""
        self._client.close()

    async def post(self, base: str, path: str, body: bytes) -> bytes | None:
        """Return the answer to *body*, None when there is none in time."""
        return await self._ask("POST", base, path, body)

    async def get(self, base: str, path: str) -> bytes | None:
        """Return what is at *path*, None when it cannot be had in time."""
        return await self._ask("GET", base, path)

    async def _ask(self, method: str, base: str, path: str, body: bytes = b"") -> bytes | None:
        try:
            async with asyncio.timeout(PEER_DEADLINE_S):
                connection = await self._client.send(method, base, path, {}, body)
                try:
                    parts, size = [], 0
                    while (part := await connection.chunk()) and size <= MOST_BYTES:
                        parts.append(part)
                        size += len(part)
                finally:
                    connection.let_go()
        except (ConnectError, BrokenError, TimeoutError):
            return None
        return b"".join(parts) if connection.status == 200 and size <= MOST_BYTES else None


class PeerApp:
    """Answers other routers, and the other processes of this one."""

    def __init__(self, loads: PeerLoads, registry: CollectorRegistry, stories: Stories) -> None:
        self._loads = loads
        self._registry = registry
        self._stories = stories

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        status, body = 404, b""
        path, method = scope["path"], scope["method"]
        if method == "POST" and path == LOAD_PATH:
            status, body = await self._take(receive)
        elif method == "GET" and path == "/metrics":
            status, body = 200, exposition(self._registry)
        elif method == "GET" and path.startswith(STORY_PATH):
            story = self._stories.get(path.removeprefix(STORY_PATH))
            if story is not None:
                status, body = 200, story.encode()
        await Reply(send).whole(status, [(b"content-type", CONTENT_TYPE.encode())], body)

    async def _take(self, receive: Callable[[], Awaitable[Message]]) -> tuple[int, bytes]:
        parts, size = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MOST_BYTES:
                return 413, b""
            if not message.get("more_body", False):
                break
        try:
            return 200, self._loads.take(b"".join(parts), asyncio.get_running_loop().time())
        except msgspec.DecodeError:
            return 400, b""


class Siblings:
    """The other processes of this router, by their peer URLs."""

    def __init__(self, number: int, urls: Iterable[tuple[int, str]], peers: HttpPeers) -> None:
        """This process is *number*; *urls* are the numbers and URLs of the others."""
        self._number = number
        self._urls = tuple(urls)
        self._peers = peers

    async def story(self, request_id: str) -> bytes | None:
        """Return the story of a request that another process served."""
        found = await asyncio.gather(
            *(self._peers.get(url, STORY_PATH + request_id) for _, url in self._urls)
        )
        return next((each for each in found if each), None)

    async def metrics(self, own: bytes) -> bytes:
        """Return the figures of all processes, each with a label ``process``."""
        found = await asyncio.gather(*(self._peers.get(url, "/metrics") for _, url in self._urls))
        others = [
            (number, each) for (number, _), each in zip(self._urls, found, strict=True) if each
        ]
        return merged(sorted([(self._number, own), *others]))


_SAMPLE = re.compile(rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.+)")


def merged(expositions: Iterable[tuple[int, bytes]]) -> bytes:
    """Return Prometheus' texts of numbered processes as one, their samples labelled apart."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for number, text in expositions:
        family = b""
        for line in text.splitlines():
            if line.startswith(b"# "):
                family = line.split(b" ", 3)[2]
                lines = heads.setdefault(family, [])
                if line not in lines:
                    lines.append(line)
            elif match := _SAMPLE.fullmatch(line):
                name, labels, value = match.groups()
                all_labels = (labels + b"," if labels else b"") + b'process="%d"' % number
                samples.setdefault(family, []).append(name + b"{" + all_labels + b"} " + value)
    parts = [line for family, lines in heads.items() for line in (*lines, *samples.get(family, ()))]
    return b"\n".join(parts) + b"\n"
