"""The sockets of KV events: publish with replay, subscribe without losing one.

Publishing never blocks the worker: ZeroMQ drops messages for a reader that does not keep up, the
reader sees the gap in the numbers and asks the replay endpoint. Invariant of a subscriber: what it
yields is gapless, or it yields a `Gap` first, after which the reader knows nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import zmq
import zmq.asyncio

from spinney.errors import BadInputError
from spinney.kv.events import END_OF_REPLAY, EventLog, KVEventBatch, decode_batch
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from spinney.kv.events import KVEvent

SEND_HIGH_WATER_MARK = 100_000
"""Messages ZeroMQ queues for one reader before it drops."""
REPLAY_TIMEOUT_S = 2.0
"""How long a subscriber waits for the next frame of a replay before it gives up on it."""
LAST_SEQUENCE = 1 << 63
"""Above every sequence number."""

log = get_logger("kv-events")


class EventSink(Protocol):
    """Where a worker's KV events go."""

    async def publish(self, now_s: float, events: list[KVEvent]) -> None:
        """Take *events* as one message, if there are any."""
        ...

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled, or return where there are none."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class EventPublisher:
    """Publishes on *endpoint* and answers replays on *replay_endpoint*; both are bound."""

    def __init__(self, endpoint: str, replay_endpoint: str | None, topic: str = "") -> None:
        self._context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._topic = topic.encode()
        self._log = EventLog()
        self._events = self._bind(zmq.PUB, endpoint)
        self._replay = None if replay_endpoint is None else self._bind(zmq.ROUTER, replay_endpoint)
        self.endpoint = _address(self._events)
        self.replay_endpoint = None if self._replay is None else _address(self._replay)

    async def publish(self, now_s: float, events: list[KVEvent]) -> None:
        """Send *events* as one message, if there are any."""
        if not events:
            return
        sequence, payload = self._log.append(KVEventBatch(now_s, events, 0))
        await self._events.send_multipart([self._topic, sequence.to_bytes(8, "big"), payload])

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        if self._replay is None:
            return
        while True:
            frames = await self._replay.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                log.warning("replay request refused", frames=len(frames))
                continue
            client, start = frames[0], int.from_bytes(frames[2], "big")
            for sequence, payload in self._log.since(start):
                number = sequence.to_bytes(8, "big")
                await self._replay.send_multipart([client, b"", self._topic, number, payload])
            await self._replay.send_multipart([client, b"", b"", END_OF_REPLAY, b""])

    def close(self) -> None:
        """Close the sockets; what was not sent is dropped."""
        self._context.destroy(linger=0)

    def _bind(self, kind: int, endpoint: str) -> zmq.asyncio.Socket:
        socket: zmq.asyncio.Socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise BadInputError(
                f"KV event endpoint {endpoint}: {error}; give a free one, as tcp://*:5557"
            ) from None
        return socket


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages are lost for good: forget what the publisher said before."""


async def subscribe(
    endpoint: str,
    replay_endpoint: str | None,
    topic: str = "",
    *,
    context: zmq.asyncio.Context | None = None,
) -> AsyncGenerator[KVEventBatch | Gap, None]:
    """Yield the messages of *endpoint* in order, from the publisher's first kept one on.

    A message that cannot be decoded counts as lost. Runs until closed; a publisher that is away
    or restarts is waited for. Subscriptions can share a *context*, and with it a thread.
    """
    shared = context is not None
    context = context or zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    try:
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(endpoint)
        expected = 0
        for sequence, payload in await _replay(context, replay_endpoint, 0, LAST_SEQUENCE):
            if sequence > expected:
                yield Gap()
            yield _decoded(payload)
            expected = sequence + 1
        while True:
            frames = await socket.recv_multipart()
            sequence = int.from_bytes(frames[1], "big")
            if sequence == expected - 1:
                # Sent while the replay at the start was under way, which had it too.
                continue
            if sequence < expected:
                # The publisher has started again from 0.
                yield Gap()
                expected = 0
            if sequence > expected:
                missed = await _replay(context, replay_endpoint, expected, sequence)
                if not missed or missed[0][0] > expected:
                    yield Gap()
                for _, payload in missed:
                    yield _decoded(payload)
            yield _decoded(frames[2])
            expected = sequence + 1
    finally:
        socket.close(linger=0)
        if not shared:
            context.destroy(linger=0)


def _decoded(payload: bytes) -> KVEventBatch | Gap:
    try:
        return decode_batch(payload)
    except msgspec.DecodeError as error:
        log.warning("KV event cannot be read", error=str(error))
        return Gap()


async def _replay(
    context: zmq.asyncio.Context, endpoint: str | None, begin: int, end: int
) -> list[tuple[int, bytes]]:
    """Return messages *begin* to *end* - 1, or those that are still kept."""
    if endpoint is None:
        return []
    socket = context.socket(zmq.DEALER)
    found: list[tuple[int, bytes]] = []
    try:
        socket.connect(endpoint)
        await socket.send_multipart([b"", begin.to_bytes(8, "big")])
        while True:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                frames: list[Any] = await socket.recv_multipart()
            if frames[-2] == END_OF_REPLAY:
                break
            sequence = int.from_bytes(frames[-2], "big")
            if begin <= sequence < end:
                found.append((sequence, frames[-1]))
    except TimeoutError:
        log.warning("KV event replay timed out", endpoint=endpoint)
    finally:
        socket.close(linger=0)
    return found


def _address(socket: zmq.asyncio.Socket) -> str:
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes), "an endpoint is bytes"
    return bound.decode().rstrip("\0")
