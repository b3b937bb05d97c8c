"""Damaged messages and half-dead peers: whatever the bytes are, a pull ends as a failure."""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.kv.layout import KVLayout
from spinney.kv.lease import Failure, Handle, HandoverError
from spinney.kv.reshard import Span
from spinney.kv.transfer import wire
from spinney.kv.transfer.connector import PullRequest
from spinney.kv.transfer.tcp import TcpConnector
from spinney.kv.transfer.wire import Ready, frame, receive

LAYOUT = KVLayout("m", "float32", 1, 1, 8, 1)
"""Tokens of 64 bytes, one per block."""
READY = Ready(64, 12345, "1:2:3:4", LAYOUT)


def read(raw: bytes, *, ends: bool = True) -> object:
    async def main() -> object:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            there.sendall(raw)
            if ends:
                there.shutdown(socket.SHUT_WR)
            return await receive(here)

    return asyncio.run(main())


@given(st.integers(0, 8 * len(frame(READY)) - 1))
def test_a_flipped_bit_anywhere_is_a_failure_at_once(bit: int) -> None:
    raw = bytearray(frame(READY))
    raw[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(HandoverError) as caught:
        # Nothing follows, and nobody waits for it: the connection stays open.
        read(bytes(raw), ends=False)
    assert caught.value.failure is Failure.PROTOCOL


@given(st.binary(max_size=200))
def test_noise_gives_a_failure(noise: bytes) -> None:
    with pytest.raises(HandoverError):
        read(b"\x00" + noise)


def pull(answer: bytes, count: int = 1) -> HandoverError:
    """Return the failure of a pull that is answered with *answer* and then with silence."""

    async def main() -> HandoverError:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            request = PullRequest(Handle("h"), LAYOUT, "prompt", Span(0, count))
            pulling = asyncio.ensure_future(ended(listener.getsockname()[1], request))
            peer, _ = await loop.sock_accept(listener)
            with peer:
                await loop.sock_sendall(peer, answer)
                return await pulling

    return asyncio.run(main())


async def ended(port: int, request: PullRequest) -> HandoverError:
    with pytest.raises(HandoverError) as caught:
        async with TcpConnector(shared_memory=False).pull("127.0.0.1", port, request):
            raise AssertionError("there is nothing to read")
    return caught.value


@pytest.mark.parametrize("announced", [0, 63, 65, 2**62, -1])
def test_a_size_that_was_not_asked_for_is_refused_before_memory_is_taken(announced: int) -> None:
    raw = frame(Ready(announced, 1, None, LAYOUT))
    assert pull(raw).failure is Failure.PROTOCOL


def test_bytes_that_stand_still_end_a_pull_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "STALL_TIMEOUT_S", 0.05)
    raw = frame(Ready(64, 1, None, LAYOUT)) + bytes(10)
    assert pull(raw).failure is Failure.TIMEOUT


def test_bytes_that_trickle_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "STALL_TIMEOUT_S", 0.2)

    async def main() -> bytes:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            data = np.zeros(6, np.uint8)
            reading = asyncio.ensure_future(wire.receive_into(here, data))
            for value in b"spinny":
                await asyncio.sleep(0.06)
                there.send(bytes([value]))
            await reading
            return data.tobytes()

    assert asyncio.run(main()) == b"spinny"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in ("layers", "kv_heads", "head_dim", "block_size", "ranks")
        for value in (0, -1, 2**62)
        if (field, value) != ("ranks", 2**62)  # All may have the one head.
    ],
)
def test_a_layout_that_cannot_be_is_refused_before_memory_is_taken(field: str, value: int) -> None:
    ready = Ready(64, 1, None, dataclasses.replace(LAYOUT, **{field: value}))
    failure = pull(frame(ready)).failure
    assert failure in (Failure.LAYOUT, Failure.PROTOCOL)


def test_more_bytes_than_there_is_memory_are_a_failure_and_no_end() -> None:
    ready = Ready(64 << 40, 1, None, LAYOUT)
    assert pull(frame(ready), 1 << 40).failure is Failure.MEMORY
