"""Logs: what is stored, cut, rotated and followed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from spinney.errors import BadInputError
from spinney.local.nodeagent.log_server import parse_query
from spinney.local.nodeagent.logs import MAX_LINE_BYTES, LogQuery, LogStore

if TYPE_CHECKING:
    from pathlib import Path


ALL = LogQuery()


class Ticking:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def now(self) -> float:
        return self.at


async def read(store: LogStore, query: LogQuery = ALL, **options: bool) -> str | None:
    lines = store.read("u", "main", query, **options)
    if lines is None:
        return None
    return b"".join([line async for line in lines]).decode()


def test_lines_come_back_whole_in_order_and_cut_as_asked(tmp_path: Path) -> None:
    async def story() -> None:
        clock = Ticking()
        store = LogStore(tmp_path, clock)
        assert await read(store) is None
        log = store.create("u", "main", 0)
        log.write("stdout", b"one\ntw")
        log.write("stderr", b"err\n")
        clock.at += 10
        log.write("stdout", b"o\nlast without end")
        assert await read(store) == "one\nerr\ntwo\n"
        log.close()
        assert await read(store) == "one\nerr\ntwo\nlast without end"
        assert await read(store, LogQuery(tail_lines=2)) == "two\nlast without end"
        assert await read(store, LogQuery(tail_lines=0)) == ""
        assert await read(store, LogQuery(limit_bytes=5)) == "one\ne"
        assert await read(store, LogQuery(since_s=clock.at - 5)) == "two\nlast without end"
        stamped = await read(store, LogQuery(timestamps=True, tail_lines=2))
        assert stamped is not None
        assert stamped.startswith("1970-01-12T13:46:50.000000Z two\n")

    asyncio.run(story())


def test_a_log_is_bounded_and_keeps_its_newest_lines(tmp_path: Path) -> None:
    async def story() -> None:
        store = LogStore(tmp_path, Ticking(), max_bytes=2000)
        log = store.create("u", "main", 0)
        for i in range(1000):
            log.write("stdout", f"line {i}\n".encode())
        log.write("stdout", b"x" * (MAX_LINE_BYTES + 10) + b"\n")
        log.close()
        text = await read(store)
        assert text is not None
        assert text.endswith("x" * (MAX_LINE_BYTES + 10) + "\n")
        size = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
        assert size < 2 * 2000 + MAX_LINE_BYTES + 1000

    asyncio.run(story())


def test_a_follower_sees_every_line_across_a_rotation_and_ends_with_the_log(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        store = LogStore(tmp_path, Ticking(), max_bytes=600)
        log = store.create("u", "main", 0)
        log.write("stdout", b"before\n")
        following = asyncio.ensure_future(read(store, LogQuery(follow=True)))
        await asyncio.sleep(0)
        for i in range(40):
            log.write("stdout", f"{i}\n".encode())
            await asyncio.sleep(0)
        log.close()
        text = await asyncio.wait_for(following, 5)
        assert text == "before\n" + "".join(f"{i}\n" for i in range(40))

    asyncio.run(story())


def test_only_the_newest_attempt_and_the_one_before_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        store = LogStore(tmp_path, Ticking())
        for attempt in range(4):
            log = store.create("u", "main", attempt)
            log.write("stdout", f"attempt {attempt}\n".encode())
            log.close()
        assert await read(store) == "attempt 3\n"
        assert await read(store, previous=True) == "attempt 2\n"
        assert sorted(p.name for p in tmp_path.rglob("*.log")) == ["2.log", "3.log"]
        store.remove("u")
        assert await read(store) is None

    asyncio.run(story())


def test_arguments_of_a_request_are_checked() -> None:
    query = parse_query({"follow": "true", "tailLines": "3", "sinceSeconds": "5"}, 100.0)
    assert query == LogQuery(follow=True, tail_lines=3, since_s=95.0)
    for wrong in ({"tailLines": "-1"}, {"limitBytes": "x"}, {"sinceTime": "yesterday"}):
        with pytest.raises(BadInputError, match=next(iter(wrong))):
            parse_query(wrong, 0.0)
