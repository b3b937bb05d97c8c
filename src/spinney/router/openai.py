"""OpenAI's wire form, as far as a router has to know it.

A request is read just enough to route it: which model, how long, streamed or not, whether one
hand-over can carry it. Everything else passes through as the bytes that came.

Invariant: ``kv_transfer_params`` and ``bootstrap_*`` never come from a client. They name an address
to fetch memory from, and only a prefill worker's own answer or this router may do that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.errors import BadInputError
from spinney.router.prefix_index import BYTES_PER_TOKEN, chunk_hashes

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
PROMPT_FIELD = {
    COMPLETIONS: "prompt",
    CHAT_COMPLETIONS: "messages",
    EMBEDDINGS: "input",
    RESPONSES: "input",
}
"""What is asked about, by path. Those with an input pass through to a worker that has the path."""
DONE = b"[DONE]"
_RESPONSE_ENDS = (b"response.completed", b"response.incomplete", b"response.failed", DONE)

NULL = b"null"
_KV = "kv_transfer_params"
_FROM_WORKERS = (_KV, "bootstrap_host", "bootstrap_port", "bootstrap_room")
_WANTED: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""Asks a worker to keep a prompt's KV blocks for another one; the keys are vLLM's."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"")
    bootstrap_host: msgspec.Raw = msgspec.Raw(b"")
    bootstrap_port: msgspec.Raw = msgspec.Raw(b"")
    bootstrap_room: msgspec.Raw = msgspec.Raw(b"")
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    return_token_ids: bool | None = None
    stream_options: _StreamOptions | None = None


_fields = msgspec.json.Decoder(_Fields)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_token_ids = msgspec.json.Decoder(list[int])
_texts = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Inbound:
    """A client's request."""

    path: str
    body: bytes
    model: str
    """Empty when the client named none."""
    stream: bool
    prompt_tokens: int
    """Counted for token ids, estimated from the length of text."""
    prompt: bytes
    """The JSON of the prompt or the messages."""
    chunks: tuple[int, ...]
    """Hashes of the prompt's beginning; see `spinney.router.prefix_index`."""
    splittable: bool
    """Whether one hand-over carries it: one sequence, and nothing asked about the prompt."""
    migratable: bool = False
    """Whether another worker can go on with its stream."""
    wants_token_ids: bool = False
    wants_usage: bool = False
    """Whether a stream is to end with the token counts."""
    choices: int = 1
    """How many answers are wanted."""
    counts_hidden: bool = False
    """Whether the router asks for them in its own name, and the client is not to see them."""

    @property
    def stream_ends(self) -> tuple[bytes, ...]:
        """What is in the last event of a complete stream: one of these."""
        return _RESPONSE_ENDS if self.path == RESPONSES else (DONE,)


class BadRequestError(BadInputError):
    """A request cannot be read. *param* is the field that is wrong, *code* a word for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


_AT = re.compile(r"at `\$\.([^`]*)`")


def read_request(path: str, body: bytes) -> Inbound:
    """Return what routing needs of *body*; raise BadRequestError saying what is wrong where."""
    try:
        fields = _fields.decode(body.decode())  # The whole body: skipped values may not be text.
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        message = f"the request body has a field of the wrong type: {error}"
        raise BadRequestError(message, param=at.group(1) if at else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the request body is not JSON: {error}"
        raise BadRequestError(message, code="invalid_json") from None
    wanted = PROMPT_FIELD[path]
    prompt = bytes(getattr(fields, wanted))
    if not prompt or prompt == NULL:
        message = f"the request body has no field {wanted!r}; {path} needs it"
        raise BadRequestError(message, param=wanted)
    tokens, single = _measure(prompt) if wanted == "prompt" else (_estimate(prompt), True)
    single &= wanted != "input"
    splittable = single and _one_sequence(fields)
    seed = b"\0".join(((fields.model or "").encode(), bytes(fields.tools), b""))
    return Inbound(
        path=path,
        body=_without_kv(body) if _names_kv(fields) else body,
        model=fields.model or "",
        stream=bool(fields.stream),
        prompt_tokens=tokens,
        prompt=prompt,
        chunks=chunk_hashes(prompt, seed),
        splittable=splittable,
        migratable=splittable and bool(fields.stream) and not _reports_probabilities(fields),
        choices=fields.n or 1,
        wants_token_ids=bool(fields.return_token_ids),
        wants_usage=bool(fields.stream_options and fields.stream_options.include_usage),
        counts_hidden=wanted != "input" and bool(fields.stream) and fields.stream_options is None,
    )


def _one_sequence(fields: _Fields) -> bool:
    return (
        (fields.n or 1) == 1
        and (fields.best_of or 1) == 1
        and not fields.echo
        and fields.prompt_logprobs is None
        and not fields.use_beam_search
    )


def _reports_probabilities(fields: _Fields) -> bool:
    """Whether logprobs are asked for; 0 asks for those of the chosen tokens."""
    return not (fields.logprobs is None or fields.logprobs is False) or bool(fields.top_logprobs)


def _measure(prompt: bytes) -> tuple[int, bool]:
    """Return the tokens of ``prompt`` and whether it is one prompt: it has four legal forms."""
    if not prompt.startswith(b"["):
        return _estimate(prompt), True
    try:
        return max(1, len(_token_ids.decode(prompt))), True
    except msgspec.ValidationError:
        parts = _texts.decode(prompt)
        return _estimate(prompt), len(parts) == 1


def _estimate(text: bytes) -> int:
    return max(1, len(text) // BYTES_PER_TOKEN)


def _names_kv(fields: _Fields) -> bool:
    named = (getattr(fields, name) for name in _FROM_WORKERS)
    return any(named)


def _without_kv(body: bytes) -> bytes:
    members = _members.decode(body)
    for name in _FROM_WORKERS:
        members.pop(name, None)
    return msgspec.json.encode(members)


def prefill_body(body: bytes) -> bytes:
    """Return the request that has a prefill worker compute the prompt and keep its KV blocks.

    Tokens that *body* resumes from are computed with it.
    """
    members: dict[str, Any] = dict(_members.decode(body))
    members.pop("stream_options", None)
    members |= {"stream": False, "max_tokens": 1, "max_completion_tokens": 1, _KV: _WANTED}
    if "min_tokens" in members:
        members["min_tokens"] = 1
    return msgspec.json.encode(members)


def decode_body(body: bytes, handle: msgspec.Raw) -> bytes:
    """Return the client's request with the *handle* by which its KV blocks are fetched."""
    members = _members.decode(body)
    members[_KV] = handle
    return msgspec.json.encode(members)


def traced_body(body: bytes) -> bytes:
    """Return the request with the tokens of the answer asked for beside its text.

    *body* is an object that has neither field; it is not parsed.
    """
    return body.rstrip()[:-1] + b',"return_token_ids":true,"return_prompt_token_ids":false}'


def counted_body(body: bytes) -> bytes:
    """Return the request with the token counts asked for at the end of its stream.

    *body* is an object without ``stream_options``; it is not parsed.
    """
    return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'


_COUNTS = re.compile(rb'data: \{[^\r\n]*"choices":\s?\[\],\s?"usage":[^\r\n]*\}\r?\n\r?\n')


def without_counts(events: bytes) -> bytes:
    """Return whole *events* without the token counts that a client did not ask for."""
    events = events.replace(b',"usage":null', b"")
    return _COUNTS.sub(b"", events) if b'"usage":' in events else events


def resume_body(body: bytes, tokens: Sequence[int]) -> bytes:
    """Return the request for what follows *tokens* of the answer."""
    members: dict[str, Any] = dict(_members.decode(body))
    return msgspec.json.encode(members | {"resume_token_ids": list(tokens)})


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What a worker says of a prompt."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Tokens that were not computed; None when the worker does not say."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class _PrefillAnswer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"")
    usage: Usage | None = None


_prefill_answer = msgspec.json.Decoder(_PrefillAnswer)


def handle_of(answer: bytes) -> tuple[msgspec.Raw | None, Usage | None]:
    """Return the hand-over's handle in a prefill worker's answer, opaque, and its token counts.

    A worker gives no handle when the first token already ended the answer. Raises
    msgspec.DecodeError when *answer* is not JSON.
    """
    read = _prefill_answer.decode(answer)
    handle = read.kv_transfer_params
    return (handle if handle and bytes(handle) not in (NULL, b"{}") else None), read.usage


_usage = msgspec.json.Decoder(Usage)


def usage_of(end: bytes) -> Usage | None:
    """Return the token counts in the *end* of an answer, streamed or whole, if there are any."""
    begin, depth = _object_at(end, b'"usage":'), 0
    if begin < 0:
        return None
    for found in _BRACES.finditer(end, begin):
        depth += 1 if found.group() == b"{" else -1
        if not depth:
            try:
                return _usage.decode(end[begin : found.end()])
            except msgspec.DecodeError:
                return None
    return None


def _object_at(end: bytes, member: bytes) -> int:
    """Return where the object of the last *member* begins, or -1."""
    close, spaced = end.rfind(member + b"{"), end.rfind(member + b" {")
    at = max(close, spaced)
    return at if at < 0 else at + len(member) + (at == spaced)


_BRACES = re.compile(rb"[{}]")


class HandoverReport(msgspec.Struct):
    """What a decode worker says at the end of an answer of the hand-over before it."""

    outcome: str = ""
    bytes_pulled: int = 0
    seconds: float = 0.0
    failure: str | None = None


_report = msgspec.json.Decoder(HandoverReport)


def handover_report(end: bytes) -> HandoverReport | None:
    """Return the report in the *end* of an answer, streamed or whole, if there is one."""
    begin = _object_at(end, b'"kv_transfer_params":')
    stop = end.find(b"}", begin)
    if begin < 0 or stop < 0:
        return None
    try:
        found = _report.decode(end[begin : stop + 1])
    except msgspec.DecodeError:
        return None
    return found if found.outcome else None


# Errors


class _Error(msgspec.Struct):
    message: str = ""
    code: int | str | None = None
    type: str | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error | None = None
    message: str = ""
    code: int | str | None = None
    type: str | None = None


_error_answer = msgspec.json.Decoder(_ErrorAnswer)


@dataclass(frozen=True, slots=True)
class WorkerError:
    """What a worker says in an error."""

    message: str
    code: str
    type: str


def read_error(body: bytes) -> WorkerError | None:
    """Return the error that *body* reports, in OpenAI's form or vLLM's older flat one."""
    try:
        answer = _error_answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    found = answer.error or _Error(answer.message, answer.code, answer.type)
    if not found.message and found.code is None:
        return None
    code = "" if found.code is None else str(found.code)
    return WorkerError(found.message, code, found.type or "")


def first_event_error(chunk: bytes) -> bytes | None:
    """Return the JSON of the error event that *chunk* starts with, if it does.

    A worker that fails before the first token may have answered 200 already.
    """
    if not chunk.startswith(b"data: {"):
        return None
    line = chunk[6 : chunk.find(b"\n") if b"\n" in chunk else len(chunk)]
    if not line.startswith((b'{"error"', b'{"object":"error"', b'{"object": "error"')):
        return None
    return line


def error_body(
    message: str, kind: str, *, code: str | None = None, param: str | None = None
) -> bytes:
    """Return an error as OpenAI's clients read it."""
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}
    )


END_OF_STREAM = b"data: [DONE]\n\n"


def error_event(message: str, kind: str, *, code: str | None = None) -> bytes:
    """Return the event that ends a broken stream."""
    return b"data: " + error_body(message, kind, code=code) + b"\n\n"


def models_body(models: list[str], created_s: int) -> bytes:
    """Return the answer of ``/v1/models``."""
    data = [model_entry(model, created_s) for model in models]
    return msgspec.json.encode({"object": "list", "data": data})


def model_entry(model: str, created_s: int) -> dict[str, Any]:
    """Return one model as ``/v1/models`` lists it."""
    return {"id": model, "object": "model", "created": created_s, "owned_by": "spinney"}


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] = []


def read_models(body: bytes) -> frozenset[str]:
    """Return the names in a worker's ``/v1/models``; raise msgspec.DecodeError."""
    return frozenset(model.id for model in msgspec.json.decode(body, type=_Models).data)
