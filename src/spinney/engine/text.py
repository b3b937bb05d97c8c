"""From tokens to text that may be shown: whole characters only, and nothing after a stop string.

A token can end inside a UTF-8 character, and a stop string can begin in one token and end three
later. Invariant: the texts handed out, joined, are a prefix of the decoded output, and when a stop
string appears nothing of it (or all of it, if asked for) has been handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLACEMENT = "�"
"""What a decoder puts where bytes are no character (yet)."""


class Detokenizer:
    """Decodes a growing list of tokens. *decode* turns token ids into text."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._prefix = 0
        self._read = 0

    def push(self, token: int) -> str:
        """Add *token*; return the text that became certain, often empty."""
        self._tokens.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """Return what is left, unfinished characters as `REPLACEMENT`."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        # Decoding a token alone can lose the space before it, so the tokens of the last text go
        # along, and only what is new is handed out.
        shown = self._decode(self._tokens[self._prefix : self._read])
        text = self._decode(self._tokens[self._prefix :])
        if len(text) <= len(shown) or (text.endswith(REPLACEMENT) and not final):
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return text[len(shown) :]


@dataclass(frozen=True, slots=True)
class Checked:
    """Text that may be shown, and the stop string that came, if one did."""

    text: str
    stop: str | None = None


class StopStrings:
    """Looks for *stops* in a growing text and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> Checked:
        """Add *text*. After a stop string came, the rest is dropped."""
        if not self._stops:
            return Checked(text)
        pending = self._held + text
        found = [(pending.find(stop), stop) for stop in self._stops if stop in pending]
        if found:
            self._held = ""
            at, stop = min(found, key=lambda item: (item[0] + len(item[1]), item[0]))
            return Checked(pending[: at + len(stop)] if self._include else pending[:at], stop)
        keep = self._possible_beginning(pending)
        self._held = pending[len(pending) - keep :]
        return Checked(pending[: len(pending) - keep])

    def flush(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, pending: str) -> int:
        """Length of the longest end of *pending* that a stop string begins with."""
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(longest, len(pending)), 0, -1):
            end = pending[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
