"""The token ids of a prompt, as the workers will compute them.

Best effort: a prompt that cannot be tokenised here (another tokenizer, a template that refuses,
images) is estimated from its length instead, and the worker has the last word on it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from spinney.errors import SpinneyError
from spinney.router.openai import CHAT_COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.router.openai import Inbound

LONG_BYTES = 20_000
"""Longer prompts are tokenised in a thread: ten milliseconds in which the loop would not answer."""


class PromptTokenizer(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of *text*."""
        ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt for *messages*; raise SpinneyError when they do not fit."""
        ...


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class _Chat(msgspec.Struct):
    messages: list[_Message]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class _Completion(msgspec.Struct):
    prompt: str | list[int]
    add_special_tokens: bool = True


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)


async def prompt_tokens(inbound: Inbound, tokenizer: PromptTokenizer | None) -> list[int] | None:
    """Return the token ids of *inbound*'s prompt, or None when they cannot be known here."""
    if inbound.prompt.startswith(b"[") and inbound.path != CHAT_COMPLETIONS:
        return _given(inbound)
    if tokenizer is None:
        return None
    try:
        if len(inbound.prompt) > LONG_BYTES:
            return await asyncio.to_thread(_tokenise, inbound, tokenizer)
        return _tokenise(inbound, tokenizer)
    except (SpinneyError, msgspec.MsgspecError):
        return None


def _given(inbound: Inbound) -> list[int] | None:
    try:
        return msgspec.json.decode(inbound.prompt, type=list[int])
    except msgspec.MsgspecError:
        return None


def _tokenise(inbound: Inbound, tokenizer: PromptTokenizer) -> list[int]:
    if inbound.path != CHAT_COMPLETIONS:
        asked = _completion.decode(inbound.body)
        assert isinstance(asked.prompt, str), "a list was looked at before"
        return tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens)
    chat = _chat.decode(inbound.body)
    text = tokenizer.render_chat(
        [_plain(message) for message in chat.messages],
        add_generation_prompt=chat.add_generation_prompt,
        tools=chat.tools,
        extra=chat.chat_template_kwargs,
    )
    return tokenizer.encode(text, add_special_tokens=False)


def _plain(message: _Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"content": "", **msgspec.to_builtins(message)}
    if isinstance(message.content, list):
        if any(part.get("type") != "text" for part in message.content):
            raise SpinneyError("only text can be tokenised here")
        plain["content"] = "\n".join(str(part.get("text", "")) for part in message.content)
    return plain
