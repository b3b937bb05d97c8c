"""Logs of containers: one file per attempt, lines with their time, bounded in size.

A line is stored as ``TIME STREAM TAG TEXT``: RFC 3339 time, ``stdout`` or ``stderr``, and ``F``
for a whole line or ``P`` for a part of one that had to be cut. When a file is full it becomes
``….log.1``, in place of the one before, so an attempt keeps at most two files. Writer and readers
live in one process: a follower sleeps until the writer wakes it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from spinney.clock import parse_rfc3339, rfc3339
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from spinney.clock import Clock
    from spinney.local.nodeagent.process import Stream

DEFAULT_MAX_BYTES = 10 * 1024 * 1024
"""Of one file; an attempt has two."""
MAX_LINE_BYTES = 16 * 1024
"""A longer line is stored in parts."""
KEPT_ATTEMPTS = 2
"""The newest attempt and the one before it can be read."""
_CHUNK_BYTES = 64 * 1024

log = get_logger("nodeagent")


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which part of a log is wanted."""

    follow: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since_s: float | None = None
    """Seconds since the epoch; older lines are left out."""
    timestamps: bool = False


class LogFile:
    """The log of one attempt, while it is written and after."""

    def __init__(self, path: Path, clock: Clock, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.path = path
        self.closed = False
        self._clock = clock
        self._max_bytes = max_bytes
        self._partial: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self._rotations = 0
        self._failed = False
        self._changed = asyncio.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, stream: Stream, data: bytes) -> None:
        """Store what a process wrote; a line without its end waits for it."""
        *whole, rest = (self._partial[stream] + data).split(b"\n")
        out = bytearray()
        for line in whole:
            self._store(out, stream, line)
        while len(rest) > MAX_LINE_BYTES:
            self._stamp(out, stream, b"P", rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self._partial[stream] = rest
        self._append(bytes(out))

    def close(self) -> None:
        """Store what is left and wake followers for the last time."""
        out = bytearray()
        for stream, rest in self._partial.items():
            if rest:
                self._stamp(out, stream, b"P", rest)
        self._append(bytes(out))
        self.closed = True
        self._file.close()
        self._wake()

    def _store(self, out: bytearray, stream: Stream, line: bytes) -> None:
        while len(line) > MAX_LINE_BYTES:
            self._stamp(out, stream, b"P", line[:MAX_LINE_BYTES])
            line = line[MAX_LINE_BYTES:]
        self._stamp(out, stream, b"F", line)

    def _stamp(self, out: bytearray, stream: Stream, tag: bytes, line: bytes) -> None:
        now = rfc3339(self._clock.now(), micro=True).encode()
        out += b"%s %s %s %s\n" % (now, stream.encode(), tag, line)

    def _append(self, data: bytes) -> None:
        if not data or self.closed:
            return
        try:
            self._write_out(data)
        except OSError as error:
            # A full disk costs lines, not pods.
            if not self._failed:
                log.error("log lines are lost", path=str(self.path), error=str(error))
            self._failed = True
        self._wake()

    def _write_out(self, data: bytes) -> None:
        if self._file.tell() and self._file.tell() + len(data) > self._max_bytes:
            self._file.close()
            self.path.replace(rotated(self.path))
            self._file = self.path.open("ab", buffering=0)
            self._rotations += 1
        self._file.write(data)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, query: LogQuery) -> AsyncIterator[bytes]:
        """Yield the wanted part of the log, then lines as they come, until it is closed."""
        render = _Renderer(query)
        rotations, position = self._rotations, self.path.stat().st_size
        for line in render.past(stored_lines(self.path)):
            yield line
        while not render.full:
            changed = self._changed
            closed = self.closed
            fresh, rotations, position = self._news(rotations, position)
            for line in fresh:
                if out := render.line(line):
                    yield out
            if closed:
                return
            await changed.wait()

    def _news(self, rotations: int, position: int) -> tuple[list[bytes], int, int]:
        """Return the lines stored after *position*, and where to go on."""
        lines: list[bytes] = []
        if rotations == self._rotations - 1:
            lines += _read_from(rotated(self.path), position)
        if rotations != self._rotations:
            position = 0  # A reader two files behind has lost what was between.
        new = _read_from(self.path, position)
        size = sum(len(line) for line in new)
        return lines + new, self._rotations, position + size


class LogStore:
    """All logs below *root*: ``root/POD_UID/CONTAINER/ATTEMPT.log``."""

    def __init__(self, root: Path, clock: Clock, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._root = root
        self._clock = clock
        self._max_bytes = max_bytes
        self._open: dict[Path, LogFile] = {}

    def create(self, uid: str, container: str, attempt: int) -> LogFile:
        """Open the log of a new attempt; logs before the one before it are removed."""
        folder = self._folder(uid, container)
        for old in self._attempts(uid, container)[: -(KEPT_ATTEMPTS - 1) or None]:
            self._path(folder, old).unlink(missing_ok=True)
            rotated(self._path(folder, old)).unlink(missing_ok=True)
        path = self._path(folder, attempt)
        made = LogFile(path, self._clock, self._max_bytes)
        self._open = {p: f for p, f in self._open.items() if not f.closed}
        self._open[path] = made
        return made

    def remove(self, uid: str) -> None:
        """Remove all logs of a pod."""
        shutil.rmtree(self._root / uid, ignore_errors=True)

    def read(
        self, uid: str, container: str, query: LogQuery, *, previous: bool = False
    ) -> AsyncIterator[bytes] | None:
        """Return the lines of the newest attempt, or of the one before; None if there is none."""
        attempts = self._attempts(uid, container)
        index = -2 if previous else -1
        if len(attempts) < -index:
            return None
        path = self._path(self._folder(uid, container), attempts[index])
        live = self._open.get(path)
        if query.follow and live is not None and not live.closed:
            return live.follow(query)
        return _whole(path, query)

    def _attempts(self, uid: str, container: str) -> list[int]:
        names = [p.name.removesuffix(".log") for p in self._folder(uid, container).glob("*.log")]
        return sorted(int(name) for name in names if name.isdigit())

    def _folder(self, uid: str, container: str) -> Path:
        return self._root / uid / container

    @staticmethod
    def _path(folder: Path, attempt: int) -> Path:
        return folder / f"{attempt}.log"


def rotated(path: Path) -> Path:
    """Return where the file before *path* is kept."""
    return path.with_name(path.name + ".1")


def stored_lines(path: Path) -> Iterator[bytes]:
    """Yield the stored lines of an attempt, oldest first."""
    for part in (rotated(path), path):
        if part.exists():
            with part.open("rb") as file:
                yield from file


class _Renderer:
    """Turns stored lines into what the query asks for."""

    def __init__(self, query: LogQuery) -> None:
        self._query = query
        self._left = query.limit_bytes

    @property
    def full(self) -> bool:
        """Whether the limit in bytes is reached."""
        return self._left is not None and self._left <= 0

    def past(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the wanted ones of the lines there are."""
        tail = self._query.tail_lines
        wanted = (line for line in lines if self._is_recent(line))
        for line in wanted if tail is None else _last_lines(wanted, tail):
            if self.full:
                return
            if out := self.line(line):
                yield out

    def line(self, stored: bytes) -> bytes:
        """Return a line as the reader wants it, empty when it is not wanted."""
        if not self._is_recent(stored) or self.full:
            return b""
        time, _, rest = stored.partition(b" ")
        _, _, rest = rest.partition(b" ")
        tag, _, text = rest.partition(b" ")
        text = text if tag == b"F" else text.removesuffix(b"\n")
        out = time + b" " + text if self._query.timestamps else text
        if self._left is not None:
            out = out[: self._left]
            self._left -= len(out)
        return out

    def _is_recent(self, stored: bytes) -> bool:
        since_s = self._query.since_s
        if since_s is None:
            return True
        return parse_rfc3339(stored.partition(b" ")[0].decode()) >= since_s


def _last_lines(lines: Iterable[bytes], count: int) -> Iterable[bytes]:
    return deque(lines, maxlen=max(0, count))


def _read_from(path: Path, position: int) -> list[bytes]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(position)
        return file.readlines()


async def _whole(path: Path, query: LogQuery) -> AsyncIterator[bytes]:
    chunk = bytearray()
    for line in _Renderer(query).past(stored_lines(path)):
        chunk += line
        if len(chunk) >= _CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
            await asyncio.sleep(0)  # A long log must not hold up the agent.
    if chunk:
        yield bytes(chunk)
