"""Pulls over real sockets and real shared memory: all the bytes, or a typed error at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace as replace_struct
from tests.kv.fake_nixl import unless_installed

from spinney.errors import BadInputError
from spinney.kv.layout import KVLayout
from spinney.kv.lease import Failure, Handle, HandoverError
from spinney.kv.reshard import Span
from spinney.kv.transfer import nixl, segment, tcp
from spinney.kv.transfer.connector import PullRequest, Taken, checksum
from spinney.kv.transfer.tcp import TcpConnector, TransferServer
from spinney.kv.transfer.wire import Ready, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from numpy.typing import NDArray

AT_ONCE_S = 0.2
BLOCK = 1000
LAYOUT = KVLayout("m", "float32", 1, 1, BLOCK // 8, 1)
"""Tokens of `BLOCK` bytes, one per block."""


class Blocks:
    """A source of known bytes that counts what is asked of it."""

    def __init__(self, count: int) -> None:
        self.content = np.random.default_rng(0).integers(0, 256, count * BLOCK, np.uint8)
        self.layout = LAYOUT
        self.inflate = 0
        self.refuse: HandoverError | None = None
        self.wait = asyncio.Event()
        self.wait.set()
        self.taken: list[PullRequest] = []
        self.ends: list[tuple[int, str | None]] = []

    async def take(
        self, request: PullRequest, allocate: Callable[[int], NDArray[np.uint8]]
    ) -> Taken:
        self.taken.append(request)
        await self.wait.wait()
        if self.refuse is not None:
            raise self.refuse
        content = self.content[request.span.first * BLOCK :]
        allocate(content.nbytes + self.inflate)[:] = content
        return Taken(self.layout, checksum(content))

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        self.ends.append((num_bytes, failure))


def wanted(first: int = 0, count: int = 1) -> PullRequest:
    return PullRequest(Handle("h"), LAYOUT, "prompt", Span(first, first + count))


WAYS = ["shared-memory", "tcp", "nixl"]


@functools.cache
def memory(side: str) -> nixl.RemoteMemory:
    with unless_installed():
        return nixl.RemoteMemory(f"test-{side}")


def connector(way: str) -> TcpConnector:
    """A connector that moves bytes *way*, where the serving side can."""
    reading = memory("reading") if way == "nixl" else None
    return TcpConnector(shared_memory=way == "shared-memory", memory=reading)


@contextlib.asynccontextmanager
async def serving(source: Blocks) -> AsyncIterator[int]:
    server = TransferServer(source, "127.0.0.1", 0, memory=memory("serving"))
    task = asyncio.create_task(server.serve())
    try:
        yield server.port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def pulled(port: int, request: PullRequest, way: str) -> tuple[bytes, str]:
    async with connector(way).pull("127.0.0.1", port, request) as found:
        assert checksum(found.data) == found.checksum
        return found.data.tobytes(), found.transport


async def failure_of(port: int, way: str = "tcp") -> tuple[HandoverError, float]:
    started = time.perf_counter()
    with pytest.raises(HandoverError) as caught:
        await pulled(port, wanted(), way)
    return caught.value, time.perf_counter() - started


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await asyncio.sleep(0.005)


def segments() -> int:
    """How many segments this process has open."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "memfd:spinney-kv" in str(path.readlink()):
                found.add(path.stat().st_ino)
    return len(found)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 3, 5000], ids=["small", "several", "five-megabytes"])
def test_all_bytes_arrive_unchanged(way: str, count: int) -> None:
    async def main() -> None:
        source = Blocks(count)
        async with serving(source) as port:
            data, transport = await pulled(port, wanted(0, count), way)
            assert data == source.content.tobytes()
            assert transport == way
            await until(lambda: source.ends == [(count * BLOCK, None)])
            tail, _ = await pulled(port, wanted(count - 1, 1), way)
            assert tail == source.content.tobytes()[-BLOCK:]
        assert segments() == 0

    asyncio.run(main())


def test_a_segment_that_cannot_be_seen_is_replaced_by_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        source = Blocks(3)
        monkeypatch.setattr(segment, "attach", lambda name, size: None)
        async with serving(source) as port:
            data, transport = await pulled(port, wanted(0, 3), "shared-memory")
            assert (data, transport) == (source.content.tobytes(), "tcp")
        monkeypatch.setattr(segment, "create", lambda size: None)
        async with serving(source) as port:
            data, transport = await pulled(port, wanted(0, 3), "shared-memory")
            assert (data, transport) == (source.content.tobytes(), "tcp")

    asyncio.run(main())


def test_what_is_not_the_announced_segment_is_not_read(tmp_path: Path) -> None:
    made = segment.create(4096)
    assert made is not None
    process, number, device, inode = made.address.split(":")
    found = segment.attach(made.address, 4096)
    assert found is not None
    found.close()
    for address in (
        "../etc/passwd",
        f"{process}:{number}:{device}:{int(inode) + 1}",
        f"{process}:0:{device}:{inode}",
        f"999999999:{number}:{device}:{inode}",
    ):
        assert segment.attach(address, 4096) is None
    assert segment.attach(made.address, 5000) is None
    made.close()
    assert segments() == 0


def test_a_segment_serves_again_only_after_its_reader_is_done() -> None:
    async def main() -> None:
        source = Blocks(3)
        async with serving(source) as port:
            for count in (1, 2, 3):
                await pulled(port, wanted(0, 3), "shared-memory")
                await until(lambda count=count: len(source.ends) == count)
            await until(lambda: segments() == 1)
            async with TcpConnector().pull("127.0.0.1", port, wanted(0, 3)) as first:
                source.content = source.content[::-1].copy()
                other, _ = await pulled(port, wanted(0, 3), "shared-memory")
                assert other == source.content.tobytes()
                assert first.data.tobytes() == source.content[::-1].tobytes()

    asyncio.run(main())


def test_idle_segments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MAX_IDLE_BYTES", 2 * segment.SMALLEST_BYTES)
    pool = segment.SegmentPool()
    made = [pool.take(100) for _ in range(4)]
    for found in made:
        assert found is not None
        pool.give_back(found)
    assert segments() == 2
    pool.close()
    assert segments() == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("failure", list(Failure))
def test_a_refusal_arrives_at_once_with_its_reason(failure: Failure, way: str) -> None:
    async def main() -> None:
        source = Blocks(1)
        source.refuse = HandoverError(failure, "because")
        async with serving(source) as port:
            error, seconds = await failure_of(port, way)
        assert (error.failure, str(error)) == (failure, "because")
        assert seconds < AT_ONCE_S

    asyncio.run(main())


def test_a_dead_peer_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error, seconds = asyncio.run(failure_of(port))
    assert error.failure is Failure.UNREACHABLE
    assert seconds < AT_ONCE_S


@pytest.mark.parametrize("way", WAYS)
def test_a_peer_that_dies_while_it_is_asked_is_reported_at_once(way: str) -> None:
    async def main() -> None:
        source = Blocks(1)
        source.wait.clear()
        server = TransferServer(source, "127.0.0.1", 0)
        task = asyncio.create_task(server.serve())
        pull = asyncio.create_task(failure_of(server.port, way))
        await until(lambda: bool(source.taken))
        died = time.perf_counter()
        task.cancel()
        error, _ = await pull
        assert error.failure is Failure.UNREACHABLE
        assert time.perf_counter() - died < AT_ONCE_S

    asyncio.run(main())


def test_a_peer_that_dies_in_the_middle_of_the_bytes_is_reported() -> None:
    async def main() -> None:
        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(4)
            writer.write(frame(Ready(1000, 0, None, LAYOUT)) + bytes(500))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(half, "127.0.0.1", 0)
        async with server:
            error, _ = await failure_of(server.sockets[0].getsockname()[1])
        assert error.failure is Failure.UNREACHABLE
        assert "500 of 1000 bytes" in str(error)

    asyncio.run(main())


def test_a_silent_peer_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "ANSWER_TIMEOUT_S", 0.05)

    async def main() -> None:
        source = Blocks(1)
        source.wait.clear()
        async with serving(source) as port:
            error, _ = await failure_of(port)
        assert error.failure is Failure.TIMEOUT

    asyncio.run(main())


def test_a_port_that_speaks_something_else_is_a_protocol_error() -> None:
    async def main() -> None:
        async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(http, "127.0.0.1", 0)
        async with server:
            error, _ = await failure_of(server.sockets[0].getsockname()[1])
        assert error.failure is Failure.PROTOCOL

    asyncio.run(main())


def test_garbage_does_not_disturb_the_server() -> None:
    async def main() -> None:
        source = Blocks(1)
        async with serving(source) as port:
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\4\xc1\xc1\xc1\xc1", b"\0"):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(garbage)
                await writer.drain()
                writer.close()
            data, _ = await pulled(port, wanted(), "shared-memory")
            assert data == source.content.tobytes()

    asyncio.run(main())


def test_more_pulls_than_allowed_are_refused_and_not_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "MAX_CONCURRENT_PULLS", 1)

    async def main() -> None:
        source = Blocks(1)
        source.wait.clear()
        async with serving(source) as port:
            first = asyncio.create_task(pulled(port, wanted(), "tcp"))
            await until(lambda: bool(source.taken))
            error, seconds = await failure_of(port)
            assert error.failure is Failure.BUSY
            assert seconds < AT_ONCE_S
            source.wait.set()
            assert (await first)[0] == source.content.tobytes()

    asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_the_serving_side_learns_what_went_wrong_at_the_reader(way: str) -> None:
    async def main() -> None:
        source = Blocks(2)
        async with serving(source) as port:
            with pytest.raises(HandoverError):
                async with connector(way).pull("127.0.0.1", port, wanted(0, 2)):
                    raise HandoverError(Failure.CHECKSUM, "the bytes differ")
            await until(lambda: source.ends == [(2 * BLOCK, Failure.CHECKSUM)])

    asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_that_gives_up_leaves_nothing_behind(way: str) -> None:
    async def main() -> None:
        source = Blocks(2)
        async with serving(source) as port:
            entered = asyncio.Event()

            async def hold() -> None:
                async with connector(way).pull("127.0.0.1", port, wanted(0, 2)):
                    entered.set()
                    await asyncio.Event().wait()

            reader = asyncio.create_task(hold())
            await until(entered.is_set)
            reader.cancel()
            await until(lambda: len(source.ends) == 1)
            assert source.ends[0][1] is not None
        assert segments() == 0

    asyncio.run(main())


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInputError, match=f"KV port 127.0.0.1:{port}"):
            TransferServer(Blocks(1), "127.0.0.1", port)


def test_blocks_of_another_model_are_refused_by_whoever_sees_it_first() -> None:
    async def main() -> None:
        source = Blocks(1)
        source.layout = replace(LAYOUT, model="other", kv_heads=2)
        async with serving(source) as port:
            error, seconds = await failure_of(port)
        assert error.failure is Failure.LAYOUT
        assert "the model is 'other' there and 'm' here" in str(error)
        assert "the number of KV heads is 2 there and 1 here" in str(error)
        assert seconds < AT_ONCE_S

    asyncio.run(main())


def test_a_serving_side_without_memory_says_so_at_once() -> None:
    async def main() -> None:
        source = Blocks(1)
        source.inflate = 1 << 45
        async with serving(source) as port:
            error, seconds = await failure_of(port)
            assert error.failure is Failure.MEMORY
            assert seconds < AT_ONCE_S
            source.inflate = 0
            assert (await pulled(port, wanted(), "shared-memory"))[0] == source.content.tobytes()

    asyncio.run(main())


def test_an_offer_that_leads_nowhere_is_a_failure_and_no_end() -> None:
    async def main() -> None:
        reading, serving = memory("reading"), memory("serving")
        source, buffer = serving.take(5000), reading.take(5000)
        source.data[:5000] = 7
        offer = msgspec.msgpack.decode(serving.offer(source), type=nixl.Offer)
        wrong = (
            b"noise",
            msgspec.msgpack.encode(replace_struct(offer, metadata=b"noise")),
            msgspec.msgpack.encode(replace_struct(offer, agent="nobody")),
            msgspec.msgpack.encode(replace_struct(offer, address=4096)),
        )
        for raw in wrong:
            with pytest.raises(HandoverError):
                await reading.read(raw, buffer, 5000)
        pushing = asyncio.ensure_future(tcp._push(serving))
        await reading.read(msgspec.msgpack.encode(offer), buffer, 5000)
        pushing.cancel()
        assert (buffer.data[:5000] == 7).all()
        reading.give_back(buffer)
        serving.give_back(source)

    asyncio.run(main())


def test_a_peer_that_dies_while_its_memory_is_read_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody makes progress at the serving side, and then its connection ends."""

    async def main() -> None:
        source = Blocks(5000)
        entered = asyncio.Event()

        async def stand_still(_: nixl.RemoteMemory) -> None:
            entered.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(tcp, "_push", stand_still)
        server = TransferServer(source, "127.0.0.1", 0, memory=memory("serving"))
        task = asyncio.create_task(server.serve())
        pull = asyncio.create_task(pulled(server.port, wanted(0, 5000), "nixl"))
        await until(entered.is_set)
        task.cancel()
        died = time.perf_counter()
        with contextlib.suppress(HandoverError):
            await pull
        assert time.perf_counter() - died < AT_ONCE_S

    asyncio.run(main())
