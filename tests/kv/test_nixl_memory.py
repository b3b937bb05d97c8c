"""Memory that NIXL reads, over the fake agent: nothing is used again too early, nothing is kept."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.kv.fake_nixl import FakeAgent, in_its_place
from tests.kv.test_transfer import Blocks, wanted

from spinney.kv.lease import HandoverError
from spinney.kv.transfer import nixl, tcp
from spinney.kv.transfer.nixl import RemoteMemory

if TYPE_CHECKING:
    from spinney.kv.transfer.nixl import Registered

SIZE = nixl.SMALLEST_BYTES


def memory(name: str) -> RemoteMemory:
    with in_its_place():
        return RemoteMemory(name)


def agent(name: str) -> FakeAgent:
    return FakeAgent.running[name]


def filled(side: RemoteMemory, value: int, size: int = SIZE) -> Registered:
    buffer = side.take(size)
    buffer.data[:] = value
    return buffer


async def read(reading: RemoteMemory, serving: RemoteMemory, source: Registered) -> Registered:
    """Return what was read of *source*, both sides seeing to it."""
    buffer = reading.take(SIZE)
    pushing = asyncio.create_task(tcp._push(serving))
    try:
        async with asyncio.timeout(5):
            await reading.read(serving.offer(source), buffer, SIZE)
    finally:
        pushing.cancel()
    return buffer


async def left_alone(reading: RemoteMemory, serving: RemoteMemory, buffer: Registered) -> None:
    """Begin a read that the serving side does not see to, and give it up."""
    source = filled(serving, 9)
    pull = asyncio.create_task(reading.read(serving.offer(source), buffer, SIZE))
    await asyncio.sleep(0.005)
    pull.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pull


def test_memory_registered_after_the_introduction_can_be_read() -> None:
    async def main() -> None:
        reading, serving = memory("reading"), memory("serving")
        first, second = filled(serving, 1), filled(serving, 2, 3 * SIZE)
        assert (await read(reading, serving, first)).data[0] == 1
        assert (await read(reading, serving, second)).data[SIZE - 1] == 2

    asyncio.run(main())


def test_a_read_that_was_given_up_writes_nothing_more() -> None:
    async def main() -> None:
        reading, serving = memory("reading"), memory("serving")
        buffer = filled(reading, 5)
        await left_alone(reading, serving, buffer)
        serving.progress()
        assert not reading.abandoned(buffer)
        assert (buffer.data == 5).all()

    asyncio.run(main())


def test_buffers_under_reads_that_cannot_be_cancelled_are_kept_and_counted() -> None:
    async def main() -> None:
        reading, serving = memory("reading"), memory("serving")
        agent("reading").cancels = False
        for count in range(nixl.MAX_ABANDONED):
            assert reading.usable, count
            buffer = reading.take(SIZE)
            await left_alone(reading, serving, buffer)
            assert reading.abandoned(buffer)
        assert not reading.usable

    asyncio.run(main())


def test_a_pull_whose_read_cannot_be_cancelled_leaves_its_buffer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pulls go on with other memory, and through the socket where that happens too often."""
    monkeypatch.setattr(nixl, "MAX_ABANDONED", 1)

    async def main() -> None:
        reading, serving, source = memory("reading"), memory("serving"), Blocks(3)
        agent("reading").cancels = False
        with monkeypatch.context() as patch:
            patch.setattr(serving, "progress", lambda: None)
            patch.setattr(tcp, "TRANSFER_TIMEOUT_S", 0.1)
            with pytest.raises(HandoverError):
                await pulled_from(source, reading, serving)
        assert reading._idle == []
        assert await pulled_from(source, reading, serving) == (source.content.tobytes(), "tcp")

    asyncio.run(main())


async def pulled_from(
    source: Blocks, reading: RemoteMemory, serving: RemoteMemory
) -> tuple[bytes, str]:
    server = tcp.TransferServer(source, "127.0.0.1", 0, memory=serving)
    task = asyncio.create_task(server.serve())
    way = tcp.TcpConnector(shared_memory=False, memory=reading)
    try:
        async with way.pull("127.0.0.1", server.port, wanted(0, 3)) as found:
            return found.data.tobytes(), found.transport
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_memory_that_is_gone_is_a_failed_hand_over() -> None:
    async def main() -> None:
        reading, serving = memory("reading"), memory("serving")
        source = filled(serving, 1)
        agent("serving").deregister_memory(source.descriptors)
        with pytest.raises(HandoverError, match="no such memory"):
            await read(reading, serving, source)

    asyncio.run(main())


def test_a_worker_that_started_again_is_another_one() -> None:
    async def main() -> None:
        reading, first = memory("reading"), memory("first life")
        await read(reading, first, filled(first, 1))
        second = memory("second life")
        assert (await read(reading, second, filled(second, 2))).data[0] == 2

    asyncio.run(main())


def test_workers_that_were_forgotten_are_introduced_again() -> None:
    async def main() -> None:
        reading, serving = memory("reading"), memory("serving")
        source = filled(serving, 3)
        for number in range(nixl.MAX_PEERS + 1):
            other = memory(f"other-{number}")
            reading.give_back(await read(reading, other, filled(other, 1)))
            if number == 0:
                reading.give_back(await read(reading, serving, source))
        assert len(agent("reading").known) <= nixl.MAX_PEERS + 1
        assert "serving" not in agent("reading").known
        assert (await read(reading, serving, source)).data[0] == 3

    asyncio.run(main())


def test_idle_memory_is_used_again_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "MAX_IDLE_BYTES", 2 * SIZE)
    side = memory("idle")
    buffers = [side.take(100) for _ in range(4)]
    for buffer in buffers:
        side.give_back(buffer)
    assert len(agent("idle")._registered) == 2
    assert side.take(100) in buffers
    side.close()
    assert len(agent("idle")._registered) == 1
