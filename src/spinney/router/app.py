"""The ASGI application: routes, request ids, disconnects, draining.

Invariant: a client that goes away cancels its request, which closes the connections to workers;
nothing is asked of a worker for nobody.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.log import get_logger
from spinney.metrics import CONTENT_TYPE, exposition
from spinney.router import openai
from spinney.router.admission import Claim
from spinney.router.relay import ClientStalledError, Headers, Reply
from spinney.router.replies import RETRY_AFTER_S
from spinney.router.request_trace import OPERATIONS, RequestTrace
from spinney.router.run import Outcome, Run, request_id_headers
from spinney.router.stories import Stories, Story
from spinney.tracing import NO_TRACER, Tracer, trace_id_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from prometheus_client import CollectorRegistry

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.router.limits import Limits
    from spinney.router.metrics import RouterMetrics
    from spinney.router.peer_app import Siblings
    from spinney.router.serving import Serving
    from spinney.router.table import WorkerTable

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

log = get_logger("router")

_JSON: Headers = [(b"content-type", b"application/json")]
_FORWARDED = frozenset({b"authorization", b"traceparent", b"tracestate", b"baggage"})
"""Request headers that go on to workers, besides those that start with ``x-``."""
_OVERRIDE = b"x-override-"
"""Begins the headers that SGLang takes for fields of the request. They name an address, as
``bootstrap_host`` does, and never come from a client."""
_MAX_ID = 128
INTERNAL = "an error within the router; its log has it"
TENANT = "x-spinney-tenant"
PRIORITY = "x-spinney-priority"
TARGET = "x-spinney-ttft-ms"
MOST_URGENT = 9
GOODBYE_S = 1.0
"""For telling clients that their requests are broken off."""
_READ = frozenset({"/health", "/metrics", "/v1/models", "/debug/requests", "/debug/workers"})
_MODEL = "/v1/models/"
_STORY = "/debug/requests/"
_SERVED = (openai.COMPLETIONS, openai.CHAT_COMPLETIONS, openai.EMBEDDINGS, openai.RESPONSES)


class BodyTooLargeError(Exception):
    """The client sends more than is taken."""


class RouterApp:
    """Answers OpenAI's API with the workers of *table*."""

    def __init__(
        self,
        serving: Serving,
        table: WorkerTable,
        *,
        limits: Limits,
        stories: Stories,
        metrics: RouterMetrics,
        registry: CollectorRegistry,
        clock: Clock,
        ids: IdSource,
        tracer: Tracer = NO_TRACER,
        siblings: Siblings | None = None,
    ) -> None:
        self._serving = serving
        self._table = table
        self._limits = limits
        self._stories = stories
        self._metrics = metrics
        self._registry = registry
        self._clock = clock
        self._ids = ids
        self._tracer = tracer
        self._siblings = siblings
        self._created_s = int(clock.now())
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self._aborting = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        reply = Reply(send)
        path, method = scope["path"], scope["method"]
        if path in _SERVED and method == "POST":
            try:
                await self._completion(path, scope["headers"], receive, reply)
            except Exception:
                log.exception("a request failed", path=path)
                if reply.started:
                    raise  # All that is left is to break its answer off.
                await _error(reply, 500, INTERNAL, code="internal_error")
            return
        request_id, _ = self._read_headers(scope["headers"])
        reply.told = request_id_headers(request_id)
        if path in _SERVED or (_readable(path) and method not in ("GET", "HEAD")):
            allowed = "POST" if path in _SERVED else "GET, HEAD"
            headers: Headers = [(b"allow", allowed.encode())]
            await _error(reply, 405, f"{path} takes {allowed}, not {method}", headers)
        elif _readable(path):
            await self._get(path, reply)
        else:
            served = ", ".join(_SERVED)
            await _error(reply, 404, f"there is no {method} {path}; there are {served}")

    # What can be read

    async def _get(self, path: str, reply: Reply) -> None:
        match path:
            case "/health":
                await self._health(reply)
            case "/metrics":
                headers: Headers = [(b"content-type", CONTENT_TYPE.encode())]
                figures = exposition(self._registry)
                if self._siblings is not None:
                    figures = await self._siblings.metrics(figures)
                await reply.whole(200, headers, figures)
            case "/v1/models":
                body = openai.models_body(self._table.models(), self._created_s)
                await reply.whole(200, _JSON, body)
            case "/debug/requests":
                await reply.whole(200, _JSON, msgspec.json.encode(self._stories.recent()))
            case "/debug/workers":
                await reply.whole(200, _JSON, self._debug_workers())
            case _ if path.startswith(_MODEL):
                await self._model(path.removeprefix(_MODEL), reply)
            case _:
                await self._story(path.removeprefix(_STORY), reply)

    async def _health(self, reply: Reply) -> None:
        models = self._table.available_models()
        status = "draining" if self.draining else "ok" if models else "no worker"
        body = msgspec.json.encode({"status": status, "models": models})
        await reply.whole(200 if status == "ok" else 503, _JSON, body)

    async def _model(self, name: str, reply: Reply) -> None:
        if name not in self._table.models():
            await self._unknown_model(reply, name)
            return
        await reply.whole(
            200, _JSON, msgspec.json.encode(openai.model_entry(name, self._created_s))
        )

    async def _story(self, request_id: str, reply: Reply) -> None:
        story = self._stories.get(request_id)
        if story is None and self._siblings is not None:
            told = await self._siblings.story(request_id)
            if told is not None:
                await reply.whole(200, _JSON, told)
                return
        if story is None:
            most = self._limits.max_stories
            message = f"request {request_id!r} is not among the last {most}"
            await _error(reply, 404, message)
            return
        await reply.whole(200, _JSON, story.encode())

    def _debug_workers(self) -> bytes:
        view = self._serving.view()
        workers = [
            {
                "worker": worker,
                "load": view.loads.get(worker.name),
                "avoided": worker.name in view.avoided,
            }
            for worker in view.workers
        ]
        return msgspec.json.encode(workers)

    # Requests

    async def _completion(
        self, path: str, headers: Headers, receive: Receive, reply: Reply
    ) -> None:
        request_id, forwarded = self._read_headers(headers)
        story = Story(request_id, path, "", 0, stream=False, came_at=self._clock.now())
        with self._tracer.begin(OPERATIONS[path], forwarded) as span:
            came_s = asyncio.get_running_loop().time()
            trace = RequestTrace(span)
            story.trace_id = span.trace_id or trace_id_of(forwarded)
            reply.told = request_id_headers(request_id)
            size = _content_length(headers)
            run = await self._read(story, forwarded, size, receive, reply)
            try:
                if isinstance(run, Run):
                    run.came_s, run.trace = came_s, trace
                    trace.read(run.inbound)
                    run = await self._tracked(run, receive)
                story.outcome = run.value
            except BaseException:
                story.outcome = Outcome.FAILED.value
                raise
            finally:
                self._ended(story, came_s)
                trace.over(story, reply.status)

    async def _read(
        self, story: Story, forwarded: dict[str, str], size: int, receive: Receive, reply: Reply
    ) -> Run | Outcome:
        """Return the request that is to be served, or what became of it."""
        if self.draining:
            await _error(reply, 503, "the router is shutting down; try again", _RETRY)
            return Outcome.DRAINING
        try:
            if size > self._limits.max_request_bytes:
                raise BodyTooLargeError
            body = await self._read_body(receive)
            if body is None:
                return Outcome.DISCONNECTED
            inbound = openai.read_request(story.path, body)
            claim = read_claim(forwarded, self._limits.ttft_target_ms)
        except BodyTooLargeError:
            most = self._limits.max_request_bytes
            message = f"the request body has more than {most} bytes"
            await _error(reply, 413, message, [(b"connection", b"close")])
            return Outcome.BAD_REQUEST
        except openai.BadRequestError as error:
            await _error(reply, 400, str(error), param=error.param, code=error.code)
            return Outcome.BAD_REQUEST
        story.tenant = claim.tenant
        return Run(story.id, inbound, forwarded, reply, story, 0.0, claim)

    async def _tracked(self, run: Run, receive: Receive) -> Outcome:
        """Serve *run* as one of the running requests, until its end or its client's."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._idle.clear()
        watch = _Disconnect(run.reply, task)
        watcher = asyncio.create_task(watch.run(receive))
        try:
            return await self._routed(run)
        except asyncio.CancelledError:
            if watch.gone:
                task.uncancel()
                return Outcome.DISCONNECTED
            if not self._aborting:
                raise
            task.uncancel()
            return await self._abort(run)
        finally:
            watcher.cancel()
            self._running.discard(task)
            if not self._running:
                self._idle.set()

    async def _routed(self, run: Run) -> Outcome:
        """Find the model of *run*, and serve it."""
        models = self._table.models()
        inbound = run.inbound
        if not inbound.model and len(models) == 1:
            inbound = replace(inbound, model=models[0])
            run.inbound = inbound
        known = inbound.model in models
        story = run.story
        story.model, story.prompt_tokens = inbound.model, inbound.prompt_tokens
        story.stream = inbound.stream
        self._stories.begin(story)
        if not known and self._table.complete():
            await self._unknown_model(run.reply, inbound.model)
            return Outcome.UNKNOWN_MODEL
        try:
            return await self._serving.serve(run)
        except ClientStalledError:
            return Outcome.CLIENT_STALLED

    async def _abort(self, run: Run) -> Outcome:
        message = "the router is shutting down; send the request again"
        if run.reply.started:
            event = openai.error_event(message, "server_error", code="shutting_down")
            await run.reply.end(event)
            return Outcome.BROKEN_OFF
        await _error(run.reply, 503, message, _RETRY)
        return Outcome.DRAINING

    async def _unknown_model(self, reply: Reply, name: str) -> None:
        known = ", ".join(self._table.models())
        body = openai.error_body(
            f"the model {name!r} does not exist; there is {known or 'none'}",
            "invalid_request_error",
            code="model_not_found",
            param="model",
        )
        await reply.whole(404, _JSON, body)

    def _read_headers(self, headers: Headers) -> tuple[str, dict[str, str]]:
        """Return the request's id and the headers that go on to workers."""
        forwarded = {"content-type": "application/json"}
        request_id = ""
        for name, value in headers:
            if name == b"x-request-id":
                request_id = value.decode("latin-1")
            elif name.startswith(_OVERRIDE):
                continue
            elif name in _FORWARDED or name.startswith(b"x-"):
                forwarded[name.decode("latin-1")] = value.decode("latin-1")
        usable = request_id.isascii() and request_id.isprintable() and len(request_id) <= _MAX_ID
        return (request_id if request_id and usable else self._ids.uid()), forwarded

    async def _read_body(self, receive: Receive) -> bytes | None:
        """Return the body, or None when the client went away while sending it."""
        parts = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._limits.max_request_bytes:
                raise BodyTooLargeError
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _ended(self, story: Story, came_s: float) -> None:
        took_s = asyncio.get_running_loop().time() - came_s
        story.duration_ms = round(1000 * took_s, 3)
        self._metrics.ended(story, took_s)
        log.info("request", **log_fields(story))

    # Shutting down

    async def drain(self) -> None:
        """Take no new requests, and return when the running ones have ended.

        Those that run longer than ``drain_deadline_s`` are broken off with an error.
        """
        self.draining = True
        log.info("draining", running=len(self._running), at_most_s=self._limits.drain_deadline_s)
        try:
            async with asyncio.timeout(self._limits.drain_deadline_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("breaking requests off", running=len(self._running))
            self._aborting = True
            for task in tuple(self._running):
                task.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._idle.wait()


class _Disconnect:
    """Cancels a request when its client goes away."""

    def __init__(self, reply: Reply, task: asyncio.Task[Any]) -> None:
        self._reply = reply
        self._task = task
        self.gone = False

    async def run(self, receive: Receive) -> None:
        """Wait for the client to go; a client whose answer is complete may."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._reply.finished:
            self.gone = True
            self._task.cancel()


def log_fields(story: Story) -> dict[str, object]:
    """Return what the log says of a request that has ended; neither prompt nor answer.

    What is not known is left out.
    """
    known: dict[str, object] = {
        "request": story.id,
        "trace": story.trace_id or None,
        "path": story.path,
        "model": story.model or None,
        "tenant": story.tenant or None,
        "outcome": story.outcome,
        "stream": story.stream,
        "mode": story.mode or None,
        "prefill_worker": story.prefill_worker or None,
        "decode_worker": story.decode_worker or None,
        "queue_ms": story.queue_ms,
        "ttft_ms": story.ttft_ms,
        "duration_ms": story.duration_ms,
        "input_tokens": story.input_tokens,
        "output_tokens": story.output_tokens,
        "cached_tokens": story.cached_tokens,
        "attempts": story.attempts,
        "migrations": story.migrations,
    }
    return {name: value for name, value in known.items() if value is not None}


def read_claim(headers: Mapping[str, str], ttft_ms: float | None) -> Claim:
    """Return how a request stands among others, by its headers; raise BadRequestError.

    The tenant is the one it names, else its API key; *ttft_ms* is for those that name no target.
    """
    tenant = headers.get(TENANT) or _digest(headers.get("authorization", ""))
    if len(tenant) > _MAX_ID:
        raise openai.BadRequestError(f"header {TENANT} has over {_MAX_ID} characters")
    target, priority = headers.get(TARGET), headers.get(PRIORITY)
    if target is None and priority is None:
        return Claim(tenant, ttft_ms=ttft_ms)
    try:
        if target is not None:
            ttft_ms = float(target)
            if not 0 < ttft_ms < float("inf"):
                raise ValueError
        urgency = int(priority or 0)
        if abs(urgency) > MOST_URGENT:
            raise ValueError
    except ValueError:
        raise openai.BadRequestError(
            f"headers {TARGET}: {target!r}, {PRIORITY}: {priority!r}; wanted are milliseconds "
            f"above 0, and a whole number from -{MOST_URGENT} to {MOST_URGENT}"
        ) from None
    return Claim(tenant, urgency, ttft_ms)


def _digest(key: str) -> str:
    """Return what tells keys apart and does not give them away."""
    return blake2b(key.encode(), digest_size=8).hexdigest() if key else ""


_RETRY: Headers = [(b"retry-after", str(RETRY_AFTER_S).encode()), (b"connection", b"close")]


def _readable(path: str) -> bool:
    return path in _READ or path.startswith((_MODEL, _STORY))


def _content_length(headers: Headers) -> int:
    """Return how long the body says it is, 0 where it does not say."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _error(
    reply: Reply,
    status: int,
    message: str,
    headers: Headers | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = openai.error_body(message, kind, code=code, param=param)
    await reply.whole(status, [*_JSON, *(headers or [])], body)
