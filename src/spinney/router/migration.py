"""What a client has been sent of a stream, so that another worker can go on with it.

Two ways. A worker that knows ``resume_token_ids`` (it answers with the header
``x-spinney-resumed-tokens``) is told the output tokens so far and sends the rest. Any other worker
answers from the beginning; what the client has is left out, and has to be the same.

Events are kept as they came and read only when the stream breaks, or when `FOLD_BYTES` of them
have gathered. Invariant: the texts a client gets of a migrated stream are one answer, without a gap
or a repetition, under one id; where that cannot be had, `DivergedError` ends the stream.
"""

from __future__ import annotations

import re
from array import array
from typing import Any

import msgspec

from spinney.errors import SpinneyError

FOLD_BYTES = 32 << 10
"""Raw events kept of one stream; beyond it they are read, and only tokens and text are kept."""
RESUMED_HEADER = "x-spinney-resumed-tokens"
DATA = b"data: "
_DONE = b"[DONE]"
_COMPACT = re.compile(rb',"token_ids":\[[0-9,]*\]')
_ANY = re.compile(rb',\s?"(?:prompt_)?token_ids":\s?(?:\[[0-9, ]*\]|null)')


class DivergedError(SpinneyError):
    """Another worker's answer is not the one that was begun."""


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: msgspec.Raw = msgspec.Raw(b"")


_event = msgspec.json.Decoder(_Event)


class Journal:
    """The events of one client's stream, whichever worker they come from.

    *strip*: whether the token ids were asked for by the router, so that the client gets none.
    """

    __slots__ = (
        "_head",
        "_raw",
        "_raw_bytes",
        "_replay",
        "_rewrite",
        "_strip",
        "_strip_pattern",
        "finished",
        "opaque",
        "text",
        "tokens",
        "usage_sent",
    )

    def __init__(self, *, strip: bool) -> None:
        self._strip = strip
        self._strip_pattern = _COMPACT
        self._head = b""
        self._rewrite: tuple[bytes, bytes] | None = None
        self._replay: _Replay | None = None
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self.tokens: array[int] = array("L")
        """Output tokens told so far, as of the last `read`."""
        self.text = ""
        self.finished = False
        """Whether the client has been told why the answer ended."""
        self.usage_sent = False
        self.opaque = False
        """Whether events were sent that cannot be compared: tool calls, no JSON."""

    def begin(self, first: bytes) -> None:
        """Note the beginning of the first worker's stream, by which its events are known."""
        self._head = _head(first)
        if b' "token_ids"' in first or b"prompt_token_ids" in first:
            self._strip_pattern = _ANY

    def go_on(self, first: bytes, *, resumed: bool) -> None:
        """Expect another worker's events from now on, the first of which *first* begins with.

        *resumed* tells whether they are the rest of the answer, or the whole of it again. Raises
        DivergedError when they are the whole and what was sent cannot be compared with it.
        """
        if self.opaque and not resumed:
            raise DivergedError("what was sent cannot be compared with another answer")
        head = _head(first)
        self._rewrite = (head, self._head) if head and self._head and head != self._head else None
        self._replay = None if resumed else _Replay(self)
        if b' "token_ids"' in first or b"prompt_token_ids" in first:
            self._strip_pattern = _ANY

    def passed(self, events: bytes) -> bytes:
        """Note *events* and return what of them the client gets; raise DivergedError."""
        if self._replay is not None:
            events, caught_up = self._replay.rest_of(events)
            if caught_up:
                self._replay = None
        self._raw.append(events)
        self._raw_bytes += len(events)
        if self._raw_bytes > FOLD_BYTES:
            self.read()
        if self._rewrite is not None:
            events = events.replace(*self._rewrite)
        return self._strip_pattern.sub(b"", events) if self._strip else events

    def read(self) -> None:
        """Bring `tokens`, `text` and what else is known of the stream up to date."""
        raw, self._raw, self._raw_bytes = self._raw, [], 0
        texts = [self.text]
        for payload in payloads(b"".join(raw)):
            if payload == _DONE:
                continue
            try:
                event = _event.decode(payload)
            except msgspec.DecodeError:
                self.opaque = True
                continue
            self.usage_sent |= bool(event.usage) and event.usage != b"null"
            for choice in event.choices[:1]:
                texts.append(_text(choice))
                self.tokens.extend(choice.token_ids or ())
                self.finished |= choice.finish_reason is not None
                self.opaque |= _incomparable(choice)
        self.text = "".join(texts)


class _Replay:
    """Leaves out of a stream from the beginning what the client has."""

    def __init__(self, journal: Journal) -> None:
        journal.read()
        self._text = journal.text
        self._tokens = journal.tokens
        self._text_at = 0
        self._tokens_at = 0
        self._finish = journal.finished

    def rest_of(self, events: bytes) -> tuple[bytes, bool]:
        """Return what is new in *events*, and whether all that follows is."""
        out = []
        left = list(payloads(events))
        while left:
            payload = left.pop(0)
            try:
                event = _event.decode(payload)
            except msgspec.DecodeError as error:
                raise DivergedError("the answer ends before the one that was begun") from error
            if not event.choices:
                continue
            rest, caught_up = self._rest(event.choices[0], payload)
            if rest:
                out.append(rest)
            if caught_up:
                out += left
                return b"".join(DATA + payload + b"\n\n" for payload in out), True
        return b"", False

    def _rest(self, choice: _Choice, payload: bytes) -> tuple[bytes, bool]:
        text = _text(choice)
        due = self._text[self._text_at : self._text_at + len(text)]
        if not text.startswith(due):
            raise DivergedError("the answer is another one than the one that was begun")
        self._text_at += len(due)
        new_tokens = self._new_tokens(choice.token_ids or [])
        if self._finish:
            return b"", choice.finish_reason is not None
        new = text[len(due) :]
        if new or new_tokens or choice.finish_reason:
            if self._text_at < len(self._text):
                raise DivergedError("the answer ends before the one that was begun")
            return _with(payload, new, new_tokens), True
        return b"", False

    def _new_tokens(self, tokens: list[int]) -> list[int]:
        due = self._tokens[self._tokens_at : self._tokens_at + len(tokens)].tolist()
        if tokens[: len(due)] != due:
            raise DivergedError("the answer has other tokens than the one that was begun")
        self._tokens_at += len(due)
        return tokens[len(due) :]


def payloads(events: bytes) -> list[bytes]:
    """Return the data of whole *events*."""
    lines = events.replace(b"\r\n", b"\n").split(b"\n")
    return [line[len(DATA) :] for line in lines if line.startswith(DATA)]


def _head(first: bytes) -> bytes:
    """Return how the events of a stream begin: id, time and model, up to what differs."""
    end = first.find(b'"choices"')
    return first[:end] if end > 0 and first.startswith(DATA) else b""


def _text(choice: _Choice) -> str:
    if choice.delta is not None:
        return choice.delta.content or ""
    return choice.text or ""


def _incomparable(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return False
    tools = bool(delta.tool_calls) and delta.tool_calls not in (b"null", b"[]")
    return tools or bool(delta.reasoning_content or delta.reasoning)


def _with(payload: bytes, text: str, tokens: list[int]) -> bytes:
    """Return the event *payload* with the *text* and *tokens* that are new."""
    event: dict[str, Any] = msgspec.json.decode(payload)
    choice = event["choices"][0]
    if "delta" in choice:
        choice["delta"] = choice["delta"] | {"content": text}
        choice["delta"].pop("role", None)
    else:
        choice["text"] = text
    if choice.get("token_ids") is not None:
        choice["token_ids"] = tokens
    return msgspec.json.encode(event)
