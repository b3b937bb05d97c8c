"""Changes and those who watch them.

A change is encoded once, however many watch. A watcher that does not read fast enough is
ended with 410, after which its client lists again: its queue never grows past `QUEUE_CHANGES`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from spinney.local.apiserver.stored import Stored

QUEUE_CHANGES = 10_000
"""Changes that a watcher may be behind. They are shared between watchers, not copied."""

BOOKMARK_INTERVAL_S = 60.0
"""How often a quiet watch is told how far the server's state has got."""


class Change:
    """One write to one object: created (no old), modified, or deleted (no new)."""

    __slots__ = ("_deleted", "_lines", "key", "new", "old", "revision", "storage")

    def __init__(
        self,
        revision: int,
        storage: str,
        key: tuple[str, str],
        old: Stored | None,
        new: Stored | None,
    ) -> None:
        self.revision = revision
        self.storage = storage
        self.key = key
        self.old = old
        self.new = new
        self._lines: dict[str, bytes] = {}
        self._deleted: bytes | None = None

    def raw(self, kind: str) -> bytes:
        """Return the object as an event of this type shows it."""
        if kind != "DELETED":
            assert self.new is not None
            return self.new.raw
        if self._deleted is None:
            assert self.old is not None
            obj = self.old.decode()
            obj["metadata"]["resourceVersion"] = str(self.revision)
            self._deleted = msgspec.json.encode(obj)
        return self._deleted

    def line(self, kind: str) -> bytes:
        """Return the event as a watch sends it, encoded at the first call."""
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = event_line(kind, self.raw(kind))
        return line


def event_line(kind: str, raw: bytes) -> bytes:
    """Return one line of a watch."""
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), raw)


class Encoder(Protocol):
    """Turns what a watch has to say into lines."""

    def initial(self, stored: Stored) -> bytes:
        """Return the ADDED line of an object that is there when the watch starts."""
        ...

    def change(self, kind: str, change: Change) -> bytes:
        """Return the line of a change."""
        ...

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """Return the line that says only how far the watch has got."""
        ...


class Watcher:
    """One open watch: what it selects, and the lines that wait to be read."""

    def __init__(
        self,
        matches: Callable[[Stored], bool] | None,
        encoder: Encoder,
        *,
        bookmarks: bool,
        timeout_s: float,
        too_slow: bytes,
        queue_changes: int = QUEUE_CHANGES,
    ) -> None:
        self._matches = matches
        self._encoder = encoder
        self._bookmarks = bookmarks
        self._timeout_s = timeout_s
        self._too_slow = too_slow
        self._bound = queue_changes
        self._queue: deque[bytes] = deque()
        self._seen = 0
        self._quiet = True
        self._ended = False
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closers: list[Callable[[], object]] = []

    def push(self, change: Change) -> None:
        """Queue the line of *change*, if the watch selects it and has not seen it."""
        if change.revision <= self._seen or self._ended:
            return
        self._seen = change.revision
        kind = self._kind(change)
        if not kind:
            return
        if len(self._queue) >= self._bound:
            self._queue.clear()
            self._queue.append(self._too_slow)
            self.end()
            return
        self._quiet = False
        self._put(self._encoder.change(kind, change))

    def push_line(self, line: bytes) -> None:
        """Queue a line that is not a change."""
        self._put(line)

    def skip_to(self, revision: int) -> None:
        """Take what happened up to *revision* as seen."""
        self._seen = max(self._seen, revision)

    def end(self) -> None:
        """End the stream after what is queued; nothing more is queued."""
        self.close()
        self._notify()

    def on_close(self, closer: Callable[[], object]) -> None:
        """Call *closer* when the stream is over, however it ends."""
        self._closers.append(closer)

    async def stream(
        self, initial: Iterable[bytes], revision: Callable[[], int]
    ) -> AsyncIterator[bytes]:
        """Yield the *initial* lines, then one line for each change, until the watch ends."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + self._timeout_s
        self._timer = loop.call_later(self._tick_s(end_at), self._tick, end_at, revision)
        try:
            for line in initial:
                yield line
            while True:
                while self._queue:
                    yield self._queue.popleft()
                if self._ended:
                    return
                self._wake = loop.create_future()
                await self._wake
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the watch."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        closers, self._closers = self._closers, []
        for closer in closers:
            closer()

    def _tick_s(self, end_at: float) -> float:
        left = end_at - asyncio.get_running_loop().time()
        return max(0.0, min(left, BOOKMARK_INTERVAL_S) if self._bookmarks else left)

    def _tick(self, end_at: float, revision: Callable[[], int]) -> None:
        if self._ended:
            return
        loop = asyncio.get_running_loop()
        if self._bookmarks and self._quiet:
            self._put(self._encoder.bookmark(revision()))
        self._quiet = True
        if loop.time() >= end_at:
            self.end()
            return
        self._timer = loop.call_later(self._tick_s(end_at), self._tick, end_at, revision)

    def _kind(self, change: Change) -> str:
        matches = self._matches
        old, new = change.old, change.new
        was = old is not None and (matches is None or matches(old))
        if new is not None and (matches is None or matches(new)):
            return "MODIFIED" if was else "ADDED"
        return "DELETED" if was else ""

    def _put(self, line: bytes) -> None:
        self._queue.append(line)
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
