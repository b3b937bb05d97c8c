"""The JSON of the HTTP interface: OpenAI's, with vLLM's additions.

Requests are decoded and checked once, here; what the engine gets afterwards needs no more
checking. Fields that are not known are ignored, as OpenAI clients expect; fields that are known but
would be computed wrongly are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from spinney.engine.rendezvous import room_handle
from spinney.engine.request import RemotePrefill, SamplingParams
from spinney.errors import SpinneyError
from spinney.kv.lease import Handle

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_STOP_STRINGS = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for completions; a chat may go on to the context length."""

T = TypeVar("T", bound=msgspec.Struct)
Field = TypeVar("Field", str, int)


class ApiError(SpinneyError):
    """An answer that is no success, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool = False


Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Room = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class TransferParams(msgspec.Struct):
    """``kv_transfer_params`` of a request, in vLLM's shape; other keys are ignored."""

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_block_ids: list[Any] | None = None
    remote_request_id: str | None = None
    remote_host: str | None = None
    remote_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    remote_num_tokens: int | None = None
    remote_blocks_expiry_time: float | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What completions and chats have in common."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Fraction | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_prompt_token_ids: bool = True
    resume_token_ids: list[int] | None = None
    kv_transfer_params: TransferParams | None = None
    bootstrap_host: str | list[str] | None = None
    bootstrap_port: Port | list[Port] | None = None
    bootstrap_room: Room | list[Room] | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None
    add_special_tokens: bool = True


class ChatMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One message of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """``POST /tokenize``: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[Annotated[int, Meta(ge=0)]]
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests are checked against. *defaults* are the model's ``generation_config.json``."""

    vocab_size: int
    max_model_len: int
    defaults: Mapping[str, float]


_AT = re.compile(r"at `\$\.?([^`]*)`")


def decode(body: bytes, kind: type[T]) -> T:
    """Return *body* as *kind*; raise ApiError 400 that names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        found = _AT.search(str(error))
        raise ApiError(400, str(error), param=found.group(1) if found else None) from None
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def completion_prompts(request: CompletionRequest) -> list[str | list[int]]:
    """Return the prompts: texts or token ids; raise ApiError when they are neither."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, "prompt is empty; give a text or token ids", param="prompt")
    if all(_is_token(item) for item in prompt):
        return [prompt]
    if all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if all(
        isinstance(item, list) and item and all(_is_token(token) for token in item)
        for item in prompt
    ):
        return list(prompt)
    raise ApiError(
        400,
        "prompt has to be a text, a list of texts, a list of token ids or a list of such lists",
        param="prompt",
    )


def check_completion(request: CompletionRequest) -> None:
    """Refuse what would be answered wrongly."""
    _refuse(request.echo, "echo", "the prompt is not echoed")
    _refuse(bool(request.suffix), "suffix", "text is not inserted before a suffix")
    _refuse((request.best_of or 1) > (request.n or 1), "best_of", "choices are not ranked")
    check_generation(request)


def check_chat(request: ChatRequest) -> None:
    """Refuse what would be answered wrongly."""
    if not request.messages:
        raise ApiError(400, "messages is empty; give at least one", param="messages")
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    forced = request.tool_choice not in (None, "none", "auto")
    _refuse(forced, "tool_choice", "a call of a tool cannot be forced")
    check_generation(request)


def check_generation(request: GenerationRequest) -> None:
    """Refuse what would be answered wrongly."""
    wanted = (request.response_format or {}).get("type", "text")
    _refuse(wanted != "text", "response_format", f"output is not constrained to {wanted!r}")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    stops = stop_strings(request)
    if len(stops) > MAX_STOP_STRINGS:
        raise ApiError(400, f"{len(stops)} stop strings, {MAX_STOP_STRINGS} may be", param="stop")
    if any(not stop for stop in stops):
        raise ApiError(400, "a stop string is empty", param="stop")


def _refuse(present: bool, param: str, why: str) -> None:
    if present:
        raise ApiError(400, f"{param} is not supported: {why}", param=param)


def stop_strings(request: GenerationRequest) -> tuple[str, ...]:
    """Return ``stop``, which may be absent, one text or several."""
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def check_tokens(tokens: list[int], limits: Limits) -> None:
    """Raise ApiError when *tokens* cannot be a prompt."""
    if not tokens:
        raise ApiError(400, "the prompt has no tokens; give at least one", param="prompt")
    worst = max(max(tokens), -min(tokens))
    if min(tokens) < 0 or worst >= limits.vocab_size:
        raise ApiError(
            400,
            f"token id {worst if min(tokens) >= 0 else min(tokens)} is not of this model, whose "
            f"ids are 0 to {limits.vocab_size - 1}",
            param="prompt",
        )
    if len(tokens) >= limits.max_model_len:
        raise ApiError(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens; the prompt "
            f"has {len(tokens)}, and at least one has to be left for the answer. Shorten it.",
            param="prompt",
            code="context_length_exceeded",
        )


def resumed_tokens(
    request: GenerationRequest, prompt: list[int], choices: int, length: int | None, limits: Limits
) -> tuple[int, ...]:
    """Return the output tokens that another worker told; raise ApiError if none can follow.

    *length* is None where the answer is another worker's to give.
    """
    told = request.resume_token_ids or []
    if not told:
        return ()
    if choices != 1:
        raise ApiError(
            400, "resume_token_ids goes with one prompt and n=1", param="resume_token_ids"
        )
    check_tokens([*prompt, *told], limits)
    if length is not None and len(told) >= length:
        raise ApiError(
            400,
            f"resume_token_ids has {len(told)} tokens and max_tokens is {length}: none is left",
            param="resume_token_ids",
        )
    return tuple(told)


def output_tokens(wanted: int | None, default: int | None, prompt: int, limits: Limits) -> int:
    """Return how many tokens may come; raise ApiError when *wanted* do not fit."""
    room = limits.max_model_len - prompt
    if wanted is None:
        return room if default is None else min(default, room)
    if wanted > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens; the prompt "
            f"has {prompt} and max_tokens is {wanted}, {prompt + wanted} in all. Lower one.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return wanted


def sampling_params(
    request: GenerationRequest, max_tokens: int, logprobs: int | None, limits: Limits
) -> SamplingParams:
    """Return how to choose tokens: the request's word, else the model's, else OpenAI's default."""
    given = limits.defaults

    def pick(name: str, default: float) -> float:
        value = getattr(request, name)
        return given.get(name, default) if value is None else value

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=pick("temperature", 1.0),
        top_p=pick("top_p", 1.0),
        top_k=max(0, int(pick("top_k", 0))),
        min_p=pick("min_p", 0.0),
        seed=None if request.seed is None else request.seed & ((1 << 63) - 1),
        repetition_penalty=pick("repetition_penalty", 1.0),
        presence_penalty=pick("presence_penalty", 0.0),
        frequency_penalty=pick("frequency_penalty", 0.0),
        logit_bias=_logit_bias(request, limits),
        stop=stop_strings(request),
        stop_token_ids=frozenset(request.stop_token_ids or ()),
        ignore_eos=request.ignore_eos,
        min_tokens=request.min_tokens,
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=logprobs,
    )


def _logit_bias(request: GenerationRequest, limits: Limits) -> tuple[tuple[int, float], ...]:
    found: list[tuple[int, float]] = []
    for text, bias in (request.logit_bias or {}).items():
        if not text.isdecimal() or int(text) >= limits.vocab_size:
            raise ApiError(400, f"logit_bias: {text!r} is no token id", param="logit_bias")
        found.append((int(text), bias))
    return tuple(sorted(found))


def remote_prefill(params: TransferParams) -> RemotePrefill:
    """Return where to pull from; raise ApiError when the parameters do not say it."""
    missing = [
        name
        for name in ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
        if getattr(params, name) is None
    ]
    if missing:
        raise ApiError(
            400,
            f"kv_transfer_params: do_remote_prefill needs {', '.join(missing)}; send back what "
            f"the prefill worker answered, unchanged",
            param="kv_transfer_params",
        )
    return RemotePrefill(
        engine_id=str(params.remote_engine_id),
        host=str(params.remote_host),
        port=int(params.remote_port or 0),
        handle=Handle(str(params.remote_request_id)),
        deadline_s=params.remote_blocks_expiry_time,
    )


def meetings(request: GenerationRequest, prompts: int) -> list[RemotePrefill]:
    """Return where the KV of each prompt is found; raise ApiError when it is not said.

    Fields are lists with one value a prompt, or one value for all: then rooms count up from it.
    """
    room = request.bootstrap_room
    rooms = room if isinstance(room, list) else [(room or 0) + at for at in range(prompts)]
    hosts = _for_each(request.bootstrap_host or "", prompts)
    ports = _for_each(request.bootstrap_port or 0, prompts)
    if {len(rooms), len(hosts), len(ports)} != {prompts} or not all([*hosts, *ports]):
        raise ApiError(
            400,
            f"bootstrap_host, bootstrap_port and bootstrap_room go together: the prefill worker's "
            f"address and a number that no other request has, or lists of {prompts}, the number "
            f"of prompts",
            param="bootstrap_room",
        )
    return [_meeting(*where) for where in zip(hosts, ports, rooms, strict=True)]


def _for_each(value: Field | list[Field], prompts: int) -> list[Field]:
    return value if isinstance(value, list) else [value] * prompts


def _meeting(host: str, port: int, room: int) -> RemotePrefill:
    host = host.removeprefix("[").removesuffix("]")
    return RemotePrefill(f"{host}:{port}", host, port, room_handle(room), None, patient=True)


def chat_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Return *messages* for a template, parts of text joined; raise ApiError for other parts."""
    result = []
    for at, message in enumerate(messages):
        plain: dict[str, Any] = msgspec.to_builtins(message)
        if isinstance(message.content, list):
            plain["content"] = "\n".join(
                _part_text(part, f"messages[{at}].content") for part in message.content
            )
        result.append({"content": "", **plain})
    return result


def _part_text(part: dict[str, Any], where: str) -> str:
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise ApiError(
            400, f"{where}: a part of type {part.get('type')!r}; this model reads text", param=where
        )
    return text


def _is_token(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)
