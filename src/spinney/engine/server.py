"""The engine's HTTP interface: a plain ASGI application.

It turns JSON into requests for the service and updates back into JSON or server-sent events.
Invariants: every answer that is no success is in OpenAI's form; an answer's status is decided
before its first byte; a client that goes away takes its sequences, and an unclaimed lease, along.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from spinney import __version__
from spinney.engine import protocol
from spinney.engine.answers import (
    ChatShape,
    CompletionShape,
    Delta,
    transfer_params,
    usage,
)
from spinney.engine.protocol import ApiError, Limits
from spinney.engine.rendezvous import RoomTakenError
from spinney.engine.request import (
    DrainingError,
    FinishReason,
    GenerateRequest,
    QueueFullError,
)
from spinney.engine.tokenizer import TemplateError
from spinney.kv.lease import HandoverError
from spinney.log import get_logger
from spinney.metrics import CONTENT_TYPE, exposition

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping

    from prometheus_client import CollectorRegistry

    from spinney.clock import Clock
    from spinney.engine.answers import Endpoint, Shape
    from spinney.engine.call_trace import CallTracer
    from spinney.engine.protocol import GenerationRequest
    from spinney.engine.request import RemotePrefill
    from spinney.engine.service import EngineService, Stream
    from spinney.engine.tokenizer import Tokenizer
    from spinney.ids import IdSource
    from spinney.kv.lease import Handle

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Header = tuple[bytes, bytes]

MAX_BODY_BYTES = 16 * 1024 * 1024
"""A longer request is refused with 413."""
LONG_TEXT_CHARACTERS = 20_000
"""Longer texts are tokenised in a thread: about ten milliseconds the loop would not answer in."""
RETRY_AFTER_S = 1
"""What a refused client is told to wait."""
INFO_PATHS = ("/server_info", "/get_server_info", "/model_info", "/get_model_info")
"""What SGLang's router asks for a worker's model, in its new and its old words."""
INTERNAL = "an error within the engine; its log has it"
JSON = b"application/json"

log = get_logger("engine-http")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What this server answers for. *names* are what requests may call the model."""

    names: tuple[str, ...]
    root: str
    role: str
    limits: Limits
    endpoint: Endpoint | None
    engine_id: str


@dataclass(frozen=True, slots=True)
class Call:
    """One generation call, checked: its requests and the shape of its answer."""

    call_id: str
    created: int
    model: str
    requests: tuple[GenerateRequest, ...]
    prompt_tokens: int
    shape: Shape
    stream: bool
    include_usage: bool


def _further_choice(first: GenerateRequest, choice: int, name: str) -> GenerateRequest:
    """Return the request of another choice for the same prompt, whose blocks it will find."""
    params = first.sampling
    if params.seed is not None:
        params = replace(params, seed=params.seed + choice)
    follows = first.request_id
    return replace(first, request_id=name, sampling=params, remote=None, follows=follows)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What becomes of a request's KV: pulled from *remote*, or leased, perhaps *lease_as*."""

    remote: RemotePrefill | None = None
    lease: bool = False
    lease_as: Handle | None = None


class EngineApp:
    """The ASGI application."""

    def __init__(
        self,
        service: EngineService,
        tokenizer: Tokenizer,
        model: ServedModel,
        *,
        registry: CollectorRegistry,
        clock: Clock,
        ids: IdSource,
        traces: CallTracer,
    ) -> None:
        self._service = service
        self._traces = traces
        self._tokenizer = tokenizer
        self._model = model
        self._registry = registry
        self._clock = clock
        self._ids = ids
        self._started = int(clock.now())
        self._encode = msgspec.json.Encoder().encode
        self._headers: list[Header] = [(b"x-spinney-engine-id", model.engine_id.encode())]
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            "/v1/completions": ("POST", self._completions),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/version": ("GET", self._version),
            **dict.fromkeys(INFO_PATHS, ("GET", self._info)),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        try:
            await self._route(scope)(scope, receive, send)
        except ApiError as error:
            await self._answer_error(send, error)
        except HandoverError as error:
            failed = ApiError(500, str(error), code="kv_transfer_failed")
            await self._answer_error(send, failed)
        except (QueueFullError, DrainingError) as error:
            code = "queue_full" if isinstance(error, QueueFullError) else "draining"
            refused = ApiError(503, str(error), code=code, retry_after_s=RETRY_AFTER_S)
            await self._answer_error(send, refused)
        except RoomTakenError as error:
            await self._answer_error(send, ApiError(400, str(error), param="bootstrap_room"))
        except TemplateError as error:
            await self._answer_error(send, ApiError(400, str(error), param="messages"))
        except Exception as error:
            log.exception("a request failed", path=scope["path"])
            try:
                await self._answer_error(send, ApiError(500, INTERNAL, code="internal_error"))
            except RuntimeError:  # Its answer has begun: all that is left is to break it off.
                raise error from None

    def _route(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        path, method = scope["path"], scope["method"]
        route = self._routes.get(path)
        if route is None:
            raise ApiError(404, f"no such path: {path}; there are {', '.join(self._routes)}")
        if method != route[0] and not (method == "HEAD" and route[0] == "GET"):
            raise ApiError(405, f"{path} answers {route[0]}, not {method}")
        return route[1]

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "spinney",
                "root": self._model.root,
                "parent": None,
                "max_model_len": self._model.limits.max_model_len,
            }
            for name in self._model.names
        ]
        await self._answer(send, 200, {"object": "list", "data": cards})

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._service.healthy:
            status, word = 500, "broken"
        elif self._service.draining:
            status, word = 503, "draining"
        else:
            status, word = 200, "ok"
        state = {"status": word, "engine_id": self._model.engine_id, "role": self._model.role}
        await self._answer(send, status, state)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send(send, 200, exposition(self._registry), CONTENT_TYPE.encode())

    async def _version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(send, 200, {"version": __version__})

    async def _info(self, scope: Scope, receive: Receive, send: Send) -> None:
        mode = "null" if self._model.role == "both" else self._model.role
        info = {
            "served_model_name": self._model.names[0],
            "model_path": self._model.root,
            "disaggregation_mode": mode,
            "is_generation": True,
            "context_length": self._model.limits.max_model_len,
            "version": __version__,
        }
        await self._answer(send, 200, info)

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = protocol.decode(await _body(receive), protocol.TokenizeRequest)
        self._check_model(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if request.prompt is not None:
            special = request.add_special_tokens is not False
            tokens = await self._encode_text(request.prompt, special)
        else:
            text = self._tokenizer.render_chat(
                protocol.chat_messages(request.messages or []),
                add_generation_prompt=request.add_generation_prompt,
                extra=request.chat_template_kwargs,
            )
            tokens = await self._encode_text(text, bool(request.add_special_tokens))
        texts = [self._tokenizer.token_text(token) for token in tokens]
        answer = {
            "count": len(tokens),
            "max_model_len": self._model.limits.max_model_len,
            "tokens": tokens,
            "token_strs": texts if request.return_token_strs else None,
        }
        await self._answer(send, 200, answer)

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = protocol.decode(await _body(receive), protocol.DetokenizeRequest)
        self._check_model(request.model)
        if any(token >= self._model.limits.vocab_size for token in request.tokens):
            raise ApiError(
                400,
                f"token ids of this model are 0 to {self._model.limits.vocab_size - 1}",
                param="tokens",
            )
        text = self._tokenizer.decode(request.tokens, skip_special_tokens=False)
        await self._answer(send, 200, {"prompt": text})

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = protocol.decode(await _body(receive), protocol.CompletionRequest)
        self._check_model(request.model)
        prompts = [
            await self._encode_text(prompt, request.add_special_tokens)
            if isinstance(prompt, str)
            else prompt
            for prompt in protocol.completion_prompts(request)
        ]
        async with self._handed_over(request, prompts):
            protocol.check_completion(request)
            if len(prompts) * (request.n or 1) > protocol.MAX_CHOICES:
                raise ApiError(400, f"more than {protocol.MAX_CHOICES} choices", param="prompt")
            shape = self._shape(CompletionShape, request)
            tokens = (request.max_tokens, protocol.DEFAULT_COMPLETION_TOKENS)
            call = self._call("cmpl", scope, request, prompts, shape, tokens, request.logprobs)
            streams = self._service.submit(call.requests)
        await self._generate(call, streams, scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = protocol.decode(await _body(receive), protocol.ChatRequest)
        self._check_model(request.model)
        text = self._tokenizer.render_chat(
            protocol.chat_messages(request.messages),
            add_generation_prompt=request.add_generation_prompt,
            tools=request.tools,
            extra=request.chat_template_kwargs,
        )
        prompt = await self._encode_text(text, False)
        async with self._handed_over(request, [prompt]):
            protocol.check_chat(request)
            shape = self._shape(ChatShape, request)
            wanted = request.max_completion_tokens or request.max_tokens
            logprobs = (request.top_logprobs or 0) if request.logprobs else None
            call = self._call("chatcmpl", scope, request, [prompt], shape, (wanted, None), logprobs)
            streams = self._service.submit(call.requests)
        await self._generate(call, streams, scope, receive, send)

    @contextlib.asynccontextmanager
    async def _handed_over(
        self, request: GenerationRequest, prompts: list[list[int]]
    ) -> AsyncGenerator[None, None]:
        """Where what is inside refuses *request*, tell its prefill worker to keep no blocks."""
        try:
            yield
        except (ApiError, QueueFullError, DrainingError):
            # Token ids that are too small or large have no digest, and nobody leases them.
            with contextlib.suppress(ApiError, OverflowError):
                await self._call_off(request, prompts)
            raise

    async def _call_off(self, request: GenerationRequest, prompts: list[list[int]]) -> None:
        transfers = self._transfers(request, len(prompts))
        for prompt, transfer in zip(prompts, transfers, strict=True):
            if transfer.remote is not None:
                known = [*prompt, *(request.resume_token_ids or ())]
                await self._service.decline(transfer.remote, known)
            if transfer.lease_as is not None:
                self._service.give_up(transfer.lease_as)

    def _shape(self, kind: type[Shape], request: GenerationRequest) -> Shape:
        return kind(
            self._tokenizer.token_text,
            return_token_ids=bool(request.return_token_ids),
            return_prompt=request.return_prompt_token_ids,
            resumed=bool(request.resume_token_ids),
        )

    def _check_model(self, name: str | None) -> None:
        if name and name not in self._model.names:
            raise ApiError(
                404,
                f"The model `{name}` does not exist; this engine serves "
                f"{', '.join(self._model.names)}.",
                param="model",
                code="model_not_found",
            )

    async def _encode_text(self, text: str, special: bool) -> list[int]:
        if len(text) <= LONG_TEXT_CHARACTERS:
            return self._tokenizer.encode(text, add_special_tokens=special)
        return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=special)

    def _call(
        self,
        prefix: str,
        scope: Scope,
        request: GenerationRequest,
        prompts: list[list[int]],
        shape: Shape,
        tokens: tuple[int | None, int | None],
        logprobs: int | None,
    ) -> Call:
        """Check what is left to check and return the call; *tokens* are wanted and default."""
        call_id = f"{prefix}-{_request_id(scope) or self._ids.uid()}"
        choices = request.n or 1
        transfers = self._transfers(request, len(prompts))
        requests: list[GenerateRequest] = []
        for prompt, transfer in zip(prompts, transfers, strict=True):
            protocol.check_tokens(prompt, self._model.limits)
            length = protocol.output_tokens(*tokens, len(prompt), self._model.limits)
            resumed = protocol.resumed_tokens(
                request,
                prompt,
                len(prompts) * choices,
                None if transfer.lease else length,
                self._model.limits,
            )
            if transfer.lease and (resumed or transfer.lease_as is not None):
                length = len(resumed) + 1  # The other worker gives the answer.
            params = protocol.sampling_params(request, length, logprobs, self._model.limits)
            first = GenerateRequest(
                f"{call_id}-{len(requests)}-{self._ids.suffix()}",
                tuple(prompt),
                params,
                transfer.remote,
                transfer.lease,
                resumed=resumed,
                lease_as=transfer.lease_as,
            )
            requests.append(first)
            # Of what another worker answers, one choice is enough.
            for choice in range(1, 1 if transfer.lease_as is not None else choices):
                name = f"{call_id}-{len(requests)}-{self._ids.suffix()}"
                requests.append(_further_choice(first, choice, name))
        options = request.stream_options
        return Call(
            call_id,
            int(self._clock.now()),
            request.model or self._model.names[0],
            tuple(requests),
            sum(len(prompt) for prompt in prompts),
            shape,
            bool(request.stream),
            options is not None and options.include_usage,
        )

    def _transfers(self, request: GenerationRequest, prompts: int) -> list[Transfer]:
        """Return for each prompt where its KV is pulled from, or whether it is leased."""
        if request.bootstrap_room is None:
            return [self._transfer(request, prompts * (request.n or 1))] * prompts
        return [
            Transfer(lease=True, lease_as=remote.handle)
            if self._prefills(remote)
            else Transfer(remote)
            for remote in protocol.meetings(request, prompts)
        ]

    def _transfer(self, request: GenerationRequest, choices: int) -> Transfer:
        params = request.kv_transfer_params
        if params is None or not (params.do_remote_decode or params.do_remote_prefill):
            return Transfer()
        if choices != 1:
            raise ApiError(
                400,
                "kv_transfer_params goes with one prompt and n=1",
                param="kv_transfer_params",
            )
        if not params.do_remote_decode:
            return Transfer(protocol.remote_prefill(params))
        if self._model.endpoint is None:
            raise ApiError(
                400,
                f"this engine's role is {self._model.role}: it leases no KV; "
                f"send prefills to a prefill worker",
                param="kv_transfer_params",
            )
        return Transfer(lease=True)

    def _prefills(self, remote: RemotePrefill) -> bool:
        """Tell whether this engine is the one that others are to get the KV from."""
        endpoint = self._model.endpoint
        if self._model.role != "both" or endpoint is None:
            return self._model.role == "prefill"
        return (endpoint.host, endpoint.port) == (remote.host, remote.port)

    async def _generate(
        self, call: Call, streams: list[Stream], scope: Scope, receive: Receive, send: Send
    ) -> None:
        path, headers = scope["path"], scope["headers"]
        with self._traces.call(path, headers, call.model, call.requests, streams):
            await self._answered(call, streams, receive, send)

    async def _answered(
        self, call: Call, streams: list[Stream], receive: Receive, send: Send
    ) -> None:
        watcher = asyncio.create_task(self._abort_when_gone(receive, call))
        try:
            if call.stream:
                await self._stream_answer(call, streams, send)
            else:
                await self._whole_answer(call, streams, send)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            for request in call.requests:
                self._service.abort(request.request_id)

    async def _abort_when_gone(self, receive: Receive, call: Call) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        log.info("client went away", call=call.call_id)
        for request in call.requests:
            self._service.abort(request.request_id)

    async def _whole_answer(self, call: Call, streams: list[Stream], send: Send) -> None:
        deltas = [await _gather(stream) for stream in streams]
        ends = [delta.end for delta in deltas if delta.end is not None]
        try:
            for end in ends:
                _raise_failure(end.error, end.reason)
        except ApiError:
            self._release_leases(deltas)
            raise
        choices = [
            call.shape.whole(at, request, delta)
            for at, (request, delta) in enumerate(zip(call.requests, deltas, strict=True))
        ]
        answer = {
            "id": call.call_id,
            "object": call.shape.object_name,
            "created": call.created,
            "model": call.model,
            "choices": choices,
            "usage": _usage(call, deltas),
            "kv_transfer_params": transfer_params(ends[0], self._model.endpoint),
        }
        await self._answer(send, 200, answer)

    async def _stream_answer(self, call: Call, streams: list[Stream], send: Send) -> None:
        totals = [Delta() for _ in streams]
        begun = False
        async with contextlib.aclosing(_merged(streams)) as deltas:
            async for at, delta in deltas:
                totals[at].add(delta)
                if not begun:
                    if delta.end is not None:
                        _raise_failure(delta.end.error, delta.end.reason)
                    await self._begin_stream(call, send)
                    begun = True
                await self._send_delta(call, at, delta, send)
        await self._end_stream(call, totals, send)

    async def _begin_stream(self, call: Call, send: Send) -> None:
        resumed = len(call.requests[0].resumed)
        headers = [
            *self._headers,
            *([(b"x-spinney-resumed-tokens", str(resumed).encode())] if resumed else []),
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_delta(self, call: Call, at: int, delta: Delta, send: Send) -> None:
        end = delta.end
        if end is not None and end.reason is FinishReason.ERROR:
            error = _failure(end.error, end.reason) or ApiError(500, "the engine failed")
            await _send_event(send, self._encode(error.body()))
            return
        if not call.shape.worth_sending(delta):
            return
        chunk = self._chunk(call, [call.shape.chunk(at, call.requests[at], delta)])
        if call.include_usage:
            chunk["usage"] = None
        if end is not None and (params := transfer_params(end, self._model.endpoint)):
            chunk["kv_transfer_params"] = params
        await _send_event(send, self._encode(chunk))

    async def _end_stream(self, call: Call, totals: list[Delta], send: Send) -> None:
        if call.include_usage:
            chunk = self._chunk(call, []) | {"usage": _usage(call, totals)}
            end = totals[0].end
            if end is not None and (params := transfer_params(end, self._model.endpoint)):
                chunk["kv_transfer_params"] = params
            await _send_event(send, self._encode(chunk))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _chunk(self, call: Call, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": call.call_id,
            "object": call.shape.chunk_name,
            "created": call.created,
            "model": call.model,
            "choices": choices,
        }

    def _release_leases(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if delta.end is not None and delta.end.lease is not None:
                self._service.release(delta.end.lease.handle)

    async def _answer(self, send: Send, status: int, body: Any) -> None:
        await self._send(send, status, self._encode(body), JSON)

    async def _answer_error(self, send: Send, error: ApiError) -> None:
        extra: list[Header] = []
        if error.retry_after_s is not None:
            extra.append((b"retry-after", str(error.retry_after_s).encode()))
        await self._send(send, error.status, self._encode(error.body()), JSON, extra)

    async def _send(
        self,
        send: Send,
        status: int,
        body: bytes,
        content_type: bytes,
        extra: list[Header] | None = None,
    ) -> None:
        headers = [
            *self._headers,
            *(extra or []),
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client went away before the request was complete")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise ApiError(413, f"the request is longer than {MAX_BODY_BYTES} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _gather(stream: Stream) -> Delta:
    """Return all of a sequence, once it has ended."""
    total = Delta()
    while total.end is None:
        total.add(Delta.of(await stream.next()))
    return total


async def _merged(streams: list[Stream]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield what comes of *streams* until all have ended, each with its number.

    A slow client lets updates gather in the sequences: nothing queues up here.
    """
    waiting = {asyncio.create_task(stream.next()): at for at, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                at, delta = waiting.pop(task), Delta.of(task.result())
                yield at, delta
                if delta.end is None:
                    waiting[asyncio.create_task(streams[at].next())] = at
    finally:
        for task in waiting:
            task.cancel()


async def _send_event(send: Send, payload: bytes) -> None:
    body = b"data: " + payload + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _failure(error: Exception | None, reason: FinishReason) -> ApiError | None:
    if reason is FinishReason.ERROR:
        code = "kv_transfer_failed" if isinstance(error, HandoverError) else "engine_failed"
        return ApiError(500, str(error) if error is not None else "the engine failed", code=code)
    if reason is FinishReason.ABORT:
        return ApiError(
            503, "the request was aborted by the engine", code="aborted", retry_after_s=1
        )
    return None


def _raise_failure(error: Exception | None, reason: FinishReason) -> None:
    failure = _failure(error, reason)
    if failure is not None:
        raise failure


def _usage(call: Call, deltas: list[Delta]) -> dict[str, Any]:
    completion = sum(len(delta.tokens) for delta in deltas)
    completion += sum(len(request.resumed) for request in call.requests)
    ends = [delta.end for delta in deltas if delta.end is not None]
    # Choices of one prompt share it: it is counted once, as the prompt tokens are.
    per_prompt = max(1, len(call.requests) // max(1, _prompts(call)))
    cached = sum(end.cached_tokens for end in ends[::per_prompt])
    return usage(call.prompt_tokens, completion, cached)


def _prompts(call: Call) -> int:
    return sum(request.follows is None for request in call.requests)


def _request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return str(value.decode("latin-1"))[:128]
    return None
