"""Workers that speak the contract over real sockets, without a model, and fail when told to.

An answer is a function of the prompt, so a test can tell a right one from a wrong one. KV blocks
are entries of a `Fabric` that all workers share: a handle can be fetched once, as on real memory.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.router.assembly import Router, assemble
from spinney.router.limits import Limits
from spinney.router.picker import Policy
from spinney.router.upstream import STALE_WITHIN_S, HttpUpstream
from spinney.router.workers import Role, StaticWorkers, Way, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

QUICK = Limits(
    connect_timeout_s=0.5,
    prefill_deadline_s=0.3,
    first_byte_deadline_s=0.3,
    response_deadline_s=0.5,
    idle_stream_deadline_s=0.3,
    drain_deadline_s=0.3,
    probe_period_s=0.02,
    return_wait_s=0.2,
)
PATIENT: dict[str, float] = {
    "connect_timeout_s": 10.0,
    "prefill_deadline_s": 60.0,
    "first_byte_deadline_s": 60.0,
    "response_deadline_s": 60.0,
    "idle_stream_deadline_s": 60.0,
}
"""For tests in which no deadline is to pass, however slow the machine is."""
PATIENCE_S = 5.0
REPORT = '{"outcome":"pulled","bytes_pulled":4096,"seconds":0.25}'
"""What a decode worker says of a hand-over in the last event before ``[DONE]``."""


class AsgiServer:
    """An ASGI application on a free port of the loopback."""

    def __init__(self, app: Any) -> None:
        self._config = uvicorn.Config(
            app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False
        )
        self._config.load()
        self._state = ServerState()
        self.port = 0

    async def start(self) -> None:
        def protocol() -> HttpToolsProtocol:
            return HttpToolsProtocol(self._config, self._state, {})

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(protocol, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break all connections, as a killed process does."""
        for connection in tuple(self._state.connections):
            connection.transport.abort()

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        for task in tuple(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        await asyncio.sleep(0)


@dataclass
class Fabric:
    """The memory behind the handles."""

    blocks: dict[str, str] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Handles that were fetched twice or never existed."""
    rooms: dict[int, asyncio.Future[str]] = field(default_factory=dict)
    """What prefill workers have for those that they meet there."""

    def room(self, number: int) -> asyncio.Future[str]:
        """Return what is, or will be, in a room."""
        return self.rooms.setdefault(number, asyncio.get_running_loop().create_future())


@dataclass
class Seen:
    """A request as the worker saw it."""

    id: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    aborted: bool = False
    done: bool = False


def words(body: dict[str, Any], count: int | None = None) -> list[str]:
    """Return the answer to *body*, word by word."""
    text = json.dumps(body.get("messages") or body.get("prompt"))
    total = count if count is not None else int(body.get("max_tokens") or 4)
    return [f"{len(text)}-{index} " for index in range(total)]


def sglang_refusal(seen: Seen) -> str:
    """Return why a paired SGLang server (0.5.23) refuses a request, or an empty text."""
    body, kinds = seen.body, {"bootstrap_host": str, "bootstrap_port": int, "bootstrap_room": int}
    if any(name.startswith("x-override-") for name in seen.headers):
        return "a client chose whom this worker meets"
    for name, kind in kinds.items():
        if type(body.get(name)) is not kind:
            return f"Disaggregated request received without bootstrap room id: no {name}"
    if not 0 < body["bootstrap_room"] < 1 << 63:
        return "a room that cannot be told from none"
    if "chat" in seen.path and body.get("stream") and body.get("return_token_ids"):
        return "return_token_ids is not supported with streaming on /v1/chat/completions"
    if body.get("stream_options") and not body.get("stream"):
        return "stream_options without stream"
    return ""


class FakeWorker:
    """One worker. Set ``fault`` to have it fail; ``hold`` to have it wait."""

    def __init__(self, name: str, role: Role, fabric: Fabric, model: str) -> None:
        self.name = name
        self.role = role
        self.fabric = fabric
        self.model = model
        self.seen: list[Seen] = []
        self.fault: str | int = ""
        """A status, or ``die``, ``die-after-headers``, ``die-mid-stream``, ``error-event``,
        ``bad-json``, ``no-done``, ``silent-mid-stream``, ``no-handle``, ``kv-lost``, or
        ``close-idle``: break at once, as a server does that closes an idle connection;
        ``error-mid-stream``, ``die-before-done``."""
        self.fault_at = 2
        """Words that come before a fault in the middle of a stream."""
        self.tells_ids = True
        """Whether it knows ``return_token_ids``."""
        self.resumes = True
        """Whether it knows ``resume_token_ids``."""
        self.cached_part: float | None = None
        """How much of a prompt it says it found in its cache; None says nothing."""
        self.said_instead: list[str] | None = None
        """Words that it answers in place of the right ones."""
        self.faults_left = 10**9
        self.hold: asyncio.Event | None = None
        """What it waits for before it answers."""
        self.hold_mid_stream: asyncio.Event | None = None
        self.deaf = False
        """Whether it does not answer when it is asked for its health."""
        self.handles = 0
        self.sglang = False
        """Whether it refuses what an SGLang server refuses, and in its words."""
        self.meets = False
        """Whether it hands over by rendezvous."""
        self.late: asyncio.Event | None = None
        """What it waits for before it answers, though those that it meets have its KV."""
        self.error_code: int | str = 500
        """What an ``error-event`` says."""
        self.server = AsgiServer(self)

    @property
    def worker(self) -> Worker:
        made = Worker(self.name, self.server.url, self.role, frozenset({self.model}))
        port = 5600 if self.meets and self.role is Role.PREFILL else 0
        way = Way.RENDEZVOUS if self.meets else Way.TICKET
        way = Way.SGLANG if self.sglang else way
        return replace(made, way=way, bootstrap_port=port)

    @property
    def completions(self) -> list[Seen]:
        return [seen for seen in self.seen if "completions" in seen.path]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["path"]
        if path == "/v1/models":
            await _answer(send, 200, {"object": "list", "data": [{"id": self.model}]})
            return
        if path == "/health":
            if self.deaf:
                await asyncio.sleep(60)
            await _answer(send, 200, {"status": "ok"})
            return
        seen = Seen(headers.get("x-request-id", ""), path, json.loads(body), headers)
        self.seen.append(seen)
        work = asyncio.ensure_future(self._serve(seen, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            seen.aborted = not work.done()
            seen.done = work.done()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def _take_fault(self) -> str | int:
        if not self.fault or self.faults_left <= 0:
            return ""
        self.faults_left -= 1
        return self.fault

    async def _serve(self, seen: Seen, send: Any) -> None:
        fault = self._take_fault()
        if self.hold is not None:
            await self.hold.wait()
        if fault == "close-idle":
            self.server.cut()
            await asyncio.sleep(60)
        if fault == "die":
            await asyncio.sleep(STALE_WITHIN_S + 0.01)
            self.server.cut()
            await asyncio.sleep(60)
        if isinstance(fault, int):
            said = {"error": {"message": "told to fail", "type": "fake", "code": fault}}
            await _answer(send, fault, said)
            return
        if seen.path == "/v1/embeddings":
            await _answer(send, 200, {"object": "list", "data": [{"embedding": [0.5]}]})
            return
        if seen.path == "/v1/responses":
            await self._respond(seen, send, fault)
            return
        if self.sglang and (wrong := sglang_refusal(seen)):
            said = {"object": "error", "message": wrong, "type": "BadRequest", "param": None}
            await _answer(send, 400, said | {"code": 400})
            return
        if "bootstrap_room" in seen.body and not await self._meet(seen, send):
            return
        params = seen.body.get("kv_transfer_params") or {}
        if params.get("do_remote_decode"):
            await self._prefill(seen, send, fault)
            return
        if params and (fault == "kv-lost" or not self._fetch(params, seen)):
            said = {"error": {"message": "blocks lost", "type": "fake", "code": "kv_lost"}}
            await _answer(send, 500, said)
            return
        if seen.body.get("stream"):
            await self._stream(seen, send, fault)
        elif fault == "bad-json":
            await _raw(send, 200, b"{not json")
        else:
            await self._whole(seen, send)

    async def _respond(self, seen: Seen, send: Any, fault: str | int) -> None:
        if not seen.body.get("stream"):
            await _answer(send, 200, {"object": "response", "output": []})
            return
        parts = [b'event: response.created\ndata: {"type":"response.created"}\n\n']
        if fault != "no-done":
            parts.append(b'event: response.completed\ndata: {"type":"response.completed"}\n\n')
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _meet(self, seen: Seen, send: Any) -> bool:
        """Return whether the KV has come that this worker decodes from."""
        room = self.fabric.room(seen.body["bootstrap_room"])
        if self.role is Role.PREFILL:
            room.set_result(self._known(seen))
            if self.late is not None:
                await self.late.wait()
            await _answer(send, 200, {"id": "x"})
            return False
        if await room != self._known(seen):
            self.fabric.wrong.append(str(seen.body["bootstrap_room"]))
        return True

    async def _prefill(self, seen: Seen, send: Any, fault: str | int) -> None:
        if fault == "bad-json":
            await _raw(send, 200, b"{not json")
            return
        self.handles += 1
        handle = f"{self.name}/{self.handles}"
        self.fabric.blocks[handle] = self._known(seen)
        params = {"do_remote_prefill": True, "remote_request_id": handle}
        answer = {"id": "x", "kv_transfer_params": None if fault == "no-handle" else params}
        if self.cached_part is not None:
            details = {"cached_tokens": int(1000 * self.cached_part)}
            answer["usage"] = {"prompt_tokens": 1000, "prompt_tokens_details": details}
        await _answer(send, 200, answer)

    def _fetch(self, params: dict[str, Any], seen: Seen) -> bool:
        handle = params["remote_request_id"]
        first = self.fabric.blocks.pop(handle, None)
        self.fabric.fetched.append(handle)
        if first != self._known(seen):
            self.fabric.wrong.append(handle)
            return False
        return True

    def _known(self, seen: Seen) -> str:
        """Return what stands for the tokens whose KV a hand-over is for."""
        told = seen.body.get("resume_token_ids") if self.resumes else None
        return f"{words(seen.body, 1)[0]} {told or []}"

    async def _whole(self, seen: Seen, send: Any) -> None:
        said = words(seen.body)
        usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": len(said)}
        if self.cached_part is not None:
            details = {"cached_tokens": int(1000 * self.cached_part)}
            usage |= {"prompt_tokens": 1000, "prompt_tokens_details": details}
        choices = [
            _choice(seen.path, "".join(said), index, whole=True) | {"finish_reason": "length"}
            for index in range(seen.body.get("n") or 1)
        ]
        await _answer(send, 200, _envelope(self.model, choices, seen.path) | {"usage": usage})

    async def _stream(self, seen: Seen, send: Any, fault: str | int) -> None:
        start = [(b"content-type", b"text/event-stream; charset=utf-8")]
        told = len(seen.body.get("resume_token_ids", ())) if self.resumes else 0
        if told:
            start.append((b"x-spinney-resumed-tokens", str(told).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": start})
        name = f"cmpl-{seen.id}"

        async def event(data: str, *, end: str = "\n\n") -> None:
            chunk = f"data: {data}{end}".encode()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

        if fault == "die-after-headers":
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await asyncio.sleep(0.01)
            self.server.cut()
            await asyncio.sleep(60)
        if fault == "error-event":
            error = {"message": "boom", "type": "fake", "code": self.error_code}
            await event(json.dumps({"error": error}))
        said = words(seen.body) if self.said_instead is None else self.said_instead
        for index, word in enumerate(said[told:], told):
            if index == self.fault_at:
                await self._mid_stream(event, fault)
            await asyncio.sleep(0)  # After a disconnect, sending does not wait any more.
            choice = _choice(seen.path, word, 0, whole=False)
            if "chat" in seen.path and index:
                choice["delta"].pop("role")
            if seen.body.get("return_token_ids") and self.tells_ids:
                choice["token_ids"] = [100 + index]
            if index == len(said) - 1:
                choice["finish_reason"] = "length"
            data = _envelope(self.model, [choice], seen.path, name)
            await event(json.dumps(data, separators=(",", ":")))
        if fault == "die-before-done":
            await asyncio.sleep(0.02)
            self.server.cut()
            await asyncio.sleep(60)
        if seen.body.get("kv_transfer_params"):
            await event('{"id":"x","choices":[],"kv_transfer_params":' + REPORT + "}")
        if (seen.body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": len(said), "total_tokens": 11}
            data = _envelope(self.model, [], seen.path, name) | {"usage": usage}
            await event(json.dumps(data, separators=(",", ":")))
        if fault != "no-done":
            await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _mid_stream(self, event: Any, fault: str | int) -> None:
        if self.hold_mid_stream is not None:
            await self.hold_mid_stream.wait()
        if fault == "die-mid-stream":
            await event('{"half an ev', end="")
            await asyncio.sleep(0.02)
            self.server.cut()
            await asyncio.sleep(60)
        if fault == "silent-mid-stream":
            await asyncio.sleep(60)
        if fault == "error-mid-stream":
            await event('{"error":{"message":"the executor failed","code":"engine_failed"}}')
            await asyncio.sleep(60)


def _envelope(model: str, choices: list[Any], path: str, name: str = "x") -> dict[str, Any]:
    kind = "chat.completion.chunk" if "chat" in path else "text_completion"
    return {"id": name, "object": kind, "created": 1, "model": model, "choices": choices}


def _choice(path: str, text: str, index: int, *, whole: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
    if "chat" not in path:
        return said | {"text": text}
    return said | {"message" if whole else "delta": {"role": "assistant", "content": text}}


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Any, status: int, body: Any) -> None:
    await _raw(send, status, json.dumps(body).encode())


async def _raw(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Fleet:
    """Workers, a router in front of them, and a client."""

    def __init__(self) -> None:
        self.fabric = Fabric()
        self.workers: dict[str, FakeWorker] = {}
        self.router: Router
        self.server: AsgiServer
        self.client: aiohttp.ClientSession
        self.registry = CollectorRegistry()

    @property
    def prefill(self) -> list[FakeWorker]:
        return [worker for worker in self.workers.values() if worker.role is Role.PREFILL]

    @property
    def decode(self) -> list[FakeWorker]:
        return [worker for worker in self.workers.values() if worker.role is not Role.PREFILL]

    def post(self, body: Any, path: str = "/v1/completions", **options: Any) -> Any:
        sent = body if isinstance(body, bytes) else json.dumps({"model": "m"} | body).encode()
        return self.client.post(self.server.url + path, data=sent, **options)

    async def ask(self, body: Any, path: str = "/v1/completions", **options: Any) -> Said:
        async with self.post(body, path, **options) as response:
            return Said(response.status, lower(response.headers), await response.read())

    async def get(self, path: str) -> Said:
        async with self.client.get(self.server.url + path) as response:
            return Said(response.status, lower(response.headers), await response.read())

    async def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"spinney_router_{name}", labels) or 0.0

    def idle(self) -> bool:
        return not self.router.ledger.loads()


@dataclass(frozen=True)
class Said:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def mode(self) -> str:
        return self.headers.get("x-spinney-mode", "")

    @property
    def events(self) -> list[Any]:
        parts = [part for part in self.body.decode().split("\n\n") if part]
        assert all(part.startswith("data: ") for part in parts), parts
        return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]

    @property
    def text(self) -> str:
        return "".join(
            choice["text"] if "text" in choice else choice["delta"].get("content", "")
            for event in self.events
            if isinstance(event, dict) and "choices" in event
            for choice in event["choices"]
        )


@asynccontextmanager
async def fleet(
    roles: str = "p p d d",
    *,
    limits: Limits = QUICK,
    policy: Policy | None = None,
    seed: int = 1,
    parts: dict[str, Any] | None = None,
    models: dict[str, str] | None = None,
    meets: bool = False,
    sglang: bool = False,
    **changes: Any,
) -> AsyncIterator[Fleet]:
    """Run workers named p0, p1, d0 … or b0, as *roles* says, with a router before them.

    *meets*: whether they hand over by rendezvous, *sglang*: whether as strictly as SGLang's do.
    """
    made = Fleet()
    kinds = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
    for letter in roles.split():
        name = f"{letter}{sum(each.startswith(letter) for each in made.workers)}"
        made.workers[name] = FakeWorker(
            name, kinds[letter], made.fabric, (models or {}).get(name, "m")
        )
        made.workers[name].meets, made.workers[name].sglang = meets or sglang, sglang
        await made.workers[name].server.start()
    limits = replace(limits, **changes)
    source = StaticWorkers(
        replace(worker.worker, kv_events=f"events-of-{name}")
        for name, worker in made.workers.items()
    )
    async with HttpUpstream(limits) as upstream, aiohttp.ClientSession() as client:
        made.router = assemble(
            source,
            upstream,
            limits=limits,
            policy=policy or Policy(),
            rng=random.Random(seed),
            clock=SystemClock(),
            ids=RandomIds(random.Random(seed)),
            registry=made.registry,
            **(parts or {}),
        )
        made.client = client
        made.server = AsgiServer(made.router.app)
        await made.server.start()
        watching = asyncio.create_task(made.router.run())
        try:
            yield made
        finally:
            await client.close()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await made.server.stop()
            for worker in made.workers.values():
                await worker.server.stop()


def in_turn(workers: list[FakeWorker], *faults: str | int) -> None:
    """Have the next requests to any of *workers* meet *faults*, one each; empty is none."""
    left = list(faults)
    for worker in workers:
        worker._take_fault = lambda: left.pop(0) if left else ""  # type: ignore[method-assign]


def lower(headers: Any) -> dict[str, str]:
    """Return *headers* by their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


async def until(true: Callable[[], bool], what: str = "") -> None:
    """Wait until *true*, at most `PATIENCE_S`."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not true():  # noqa: ASYNC110 - what is polled are plain lists of the fakes
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what or true}") from None
