"""The connection on which two ranks compute together: commands, blocks of KV, partial sums.

It blocks, because it is used from the thread that computes, in lockstep: the leader's step is every
member's step. There are no deadlines here: a step takes as long as it takes, and who is gone is
noticed on the control link, whose owner calls `DataLink.cut`. Invariant: whoever waits on a link
that was cut, or whose other end is gone, gets a GroupLostError.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.group.messages import GroupLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.engine.executor import ByteArray, Executor, FloatArray


class Step(msgspec.Struct, tag="step"):
    """Run a batch: tokens, first position, block table of each sequence."""

    sequences: list[tuple[list[int], int, list[int]]]


class Read(msgspec.Struct, tag="read"):
    """Send the bytes of blocks of the rank's shard."""

    blocks: list[int]


class Write(msgspec.Struct, tag="write"):
    """Store the bytes that follow in blocks of the rank's shard."""

    blocks: list[int]
    num_bytes: int


class Close(msgspec.Struct, tag="close"):
    """There will be no more commands."""


Command = Step | Read | Write | Close

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Command)


class DataLink:
    """One end of the connection; *peer* names the other. *sock* is made blocking."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._peer = peer
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock

    def send(self, command: Command) -> None:
        """Send a command."""
        payload = _ENCODER.encode(command)
        with self._lost():
            self._sock.sendall(len(payload).to_bytes(4, "big") + payload)

    def receive(self) -> Command:
        """Wait for the next command."""
        head = np.empty(4, np.uint8)
        self.receive_into(head)
        payload = np.empty(int.from_bytes(head.tobytes(), "big"), np.uint8)
        self.receive_into(payload)
        command: Command = _DECODER.decode(payload.tobytes())
        return command

    def send_array(self, array: ByteArray | FloatArray) -> None:
        """Send the bytes of *array*, which is contiguous."""
        with self._lost():
            self._sock.sendall(array.data.cast("B"))

    def receive_into(self, array: ByteArray | FloatArray) -> None:
        """Fill *array*, which is contiguous."""
        view = array.data.cast("B")
        with self._lost():
            while len(view):
                count = self._sock.recv_into(view)
                if count == 0:
                    raise ConnectionError("the connection was closed")
                view = view[count:]

    def cut(self) -> None:
        """End the connection under whoever uses it; callable from any thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._sock.close()

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GroupLostError(f"{self._peer} is gone: {error}; the group ends with it") from None


class LeaderSum:
    """The leader's `Collective`: it adds up what the members send, in the order of their ranks."""

    def __init__(self, links: tuple[DataLink, ...]) -> None:
        self._links = links
        self._buffer: FloatArray = np.empty(0, np.float32)

    def total(self, partial: FloatArray) -> FloatArray:
        """Return the sum; see `Collective.total`."""
        if self._buffer.size < partial.size:
            self._buffer = np.empty(partial.size, np.float32)
        other = self._buffer[: partial.size].reshape(partial.shape)
        for link in self._links:
            link.receive_into(other)
            partial += other
        for link in self._links:
            link.send_array(partial)
        return partial


class MemberSum:
    """A member's `Collective`: it sends its part to the leader and gets the sum."""

    def __init__(self, link: DataLink) -> None:
        self._link = link

    def total(self, partial: FloatArray) -> FloatArray:
        """Return the sum; see `Collective.total`."""
        self._link.send_array(partial)
        self._link.receive_into(partial)
        return partial


def obey(link: DataLink, executor: Executor, block_bytes: int) -> None:
    """Do what the leader commands until it closes; raise GroupLostError when it is gone.

    *block_bytes* is the size of a block of this rank's shard.
    """
    while True:
        match link.receive():
            case Step(sequences):
                steps = tuple(SequenceStep(*sequence, False) for sequence in sequences)
                executor.step(Batch(steps))
            case Read(blocks):
                data = np.empty(len(blocks) * block_bytes, np.uint8)
                executor.read_blocks(blocks, data)
                link.send_array(data)
            case Write(blocks, num_bytes):
                data = np.empty(num_bytes, np.uint8)
                link.receive_into(data)
                executor.write_blocks(blocks, data)
            case Close():
                return
