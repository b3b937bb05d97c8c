"""What a router serves to other routers and to its own processes, on a port that clients do not
reach, and how the processes of one router answer for each other.

Invariants: nothing is told to who has not the routers' secret, and nothing of theirs is taken; what
is asked on that port is answered by the one process that was asked, so that no question goes round.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.log import get_logger
from spinney.metrics import CONTENT_TYPE, exposition
from spinney.router.http_client import BrokenError, ConnectError, HttpClient
from spinney.router.peer_seal import HEADER, WORDS, Refusal
from spinney.router.relay import Reply
from spinney.router.sharing import LOAD_PATH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from spinney.router.metrics import RouterMetrics
    from spinney.router.peer_seal import Seal
    from spinney.router.sharing import PeerLoads
    from spinney.router.stories import Stories

    Message = MutableMapping[str, Any]

MOST_BYTES = 8 << 20
"""Of an answer of another process; figures of many models and workers are long."""
MOST_MESSAGE_BYTES = 2 << 20
"""Of what another router says."""
PEER_DEADLINE_S = 1.0
"""For an answer of another router."""
STORY_PATH = "/debug/requests/"
SAY_AGAIN_S = 30.0
"""Between two lines of log that say the same of one router."""

log = get_logger("router")


class HttpPeers:
    """Asks other routers, over kept connections."""

    def __init__(self, seal: Seal) -> None:
        self._client = HttpClient(PEER_DEADLINE_S)
        self._seal = seal
        self._said_s: dict[str, float] = {}

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
        seal = self._seal.question(method, path, body)
        try:
            async with asyncio.timeout(PEER_DEADLINE_S):
                connection = await self._client.send(method, base, path, {HEADER: seal}, body)
                try:
                    parts, size = [], 0
                    while (part := await connection.chunk()) and size <= MOST_BYTES:
                        parts.append(part)
                        size += len(part)
                finally:
                    connection.let_go()
        except (ConnectError, BrokenError, TimeoutError):
            return None
        answer = b"".join(parts)
        if connection.status in (400, 401, 413):
            self._say(base, answer[:200].decode("utf-8", "replace"))
        if connection.status != 200 or size > MOST_BYTES:
            return None
        if not self._seal.answers(connection.headers.get(HEADER, ""), seal, answer):
            self._say(base, "its answer is not sealed with our secret; it is no router of ours")
            return None
        return answer

    def _say(self, base: str, why: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._said_s.get(base, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_s[base] = now_s
            log.warning("another router is not understood", url=base, why=why)


class PeerApp:
    """Answers other routers, and the other processes of this one."""

    def __init__(
        self, loads: PeerLoads, seal: Seal, metrics: RouterMetrics, stories: Stories
    ) -> None:
        self._loads = loads
        self._seal = seal
        self._metrics = metrics
        self._stories = stories
        self._said_s: dict[Refusal, float] = {}

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        reply = Reply(send)
        seal = dict(scope["headers"]).get(HEADER.encode(), b"").decode("latin-1")
        body = await _read(receive) if seal else b""
        if body is None:
            await self._refuse(reply, scope, Refusal.TOO_LARGE)
            return
        why = self._seal.refusal(seal, scope["method"], scope["path"], body)
        if why is not None:
            await self._refuse(reply, scope, why)
            return
        try:
            status, answer = self._answer(scope["method"], scope["path"], body)
        except msgspec.DecodeError:
            await self._refuse(reply, scope, Refusal.MALFORMED)
            return
        headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (HEADER.encode(), self._seal.answer(seal, answer).encode()),
        ]
        await reply.whole(status, headers, answer)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if method == "POST" and path == LOAD_PATH:
            return 200, self._loads.take(body, asyncio.get_running_loop().time())
        if method == "GET" and path == "/metrics":
            return 200, exposition(self._metrics.registry)
        if method == "GET" and path.startswith(STORY_PATH):
            story = self._stories.get(path.removeprefix(STORY_PATH))
            if story is not None:
                return 200, story.encode()
        return 404, b""

    async def _refuse(self, reply: Reply, scope: Message, why: Refusal) -> None:
        """Say why what came is not taken, to who sent it, in the log and in figures."""
        self._metrics.peer_refusals.labels(why.value).inc()
        now_s = asyncio.get_running_loop().time()
        if now_s - self._said_s.get(why, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_s[why] = now_s
            sender = (scope.get("client") or ("unknown",))[0]
            log.warning("refused on the port for routers", sender=sender, why=WORDS[why])
        status = {Refusal.MALFORMED: 400, Refusal.TOO_LARGE: 413}.get(why, 401)
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await reply.whole(status, headers, WORDS[why].encode())


async def _read(receive: Callable[[], Awaitable[Message]]) -> bytes | None:
    """Return the body of a request, None where it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_MESSAGE_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


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
