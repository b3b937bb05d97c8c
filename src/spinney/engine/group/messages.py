"""What the processes of a group say to each other.

A message is 4 bytes of length (big-endian), then MessagePack. Each member has two connections to
the leader. The control link is for joining and for signs of life:

    member                          leader
      Hello           ────────►
                      ◄────────     Welcome, or Refusal and the end
      Built           ────────►     when weights and KV memory are there
                      ◄────────     Start, when all are
      Beat            ◄───────►     Beat, until the end of either
      Leaving         ────────►     it was told to stop: the leader drains, for all
                      ◄────────     End

The data link carries steps, blocks and partial sums; see `spinney.engine.group.data_link`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    import socket

VERSION = 1
"""Raise it when messages, on either link, change."""
MAX_MESSAGE_BYTES = 65_536
"""A longer message on a control link is not of this protocol."""
BEAT_S = 0.5
DEAD_S = 10.0
"""Who has said nothing for so long counts as dead: its host may have gone without a word.

That a process died is known at once, by its connection.
"""


class GroupLostError(SpinneyError):
    """A process of the group is gone; the others end as well and are started again."""


class Hello(msgspec.Struct, tag="hello"):
    """Asks for the place of *rank*. *member* pairs the two links of one process."""

    version: int
    rank: int
    ranks: int
    model: str
    arithmetic: str
    member: str
    link: str = "control"


class Welcome(msgspec.Struct, tag="welcome"):
    """The place is given, with the sizes of the KV memory."""

    block_size: int
    num_blocks: int


class Refusal(msgspec.Struct, tag="refusal"):
    """The place is not given; whether it is worth asking *again*."""

    message: str
    again: bool


class Built(msgspec.Struct, tag="built"):
    """The member can compute."""


class Start(msgspec.Struct, tag="start"):
    """The group is complete: from now on both sides show signs of life."""


class Beat(msgspec.Struct, tag="beat"):
    """A sign of life."""


class Leaving(msgspec.Struct, tag="leaving"):
    """The member was told to stop."""


class End(msgspec.Struct, tag="end"):
    """The group ends in order."""


Message = Hello | Welcome | Refusal | Built | Start | Beat | Leaving | End
M = TypeVar("M", bound=msgspec.Struct)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def framed(message: Message) -> bytes:
    """Return the bytes of *message*."""
    payload = _ENCODER.encode(message)
    return len(payload).to_bytes(4, "big") + payload


async def send(sock: socket.socket, message: Message) -> None:
    """Send one message on a control link."""
    await asyncio.get_running_loop().sock_sendall(sock, framed(message))


async def receive(sock: socket.socket) -> Message:
    """Return the next message; raise OSError when there is none, or it is none of these."""
    length = int.from_bytes(await _exactly(sock, 4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise ConnectionError(f"a message of {length} bytes came: no member of a group speaks here")
    try:
        message: Message = _DECODER.decode(await _exactly(sock, length))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConnectionError(f"a message cannot be read: {error}") from None
    return message


async def expect(sock: socket.socket, kind: type[M]) -> M:
    """Return the next message, which has to be a *kind*; raise OSError otherwise."""
    message = await receive(sock)
    if not isinstance(message, kind):
        raise ConnectionError(f"{kind.__name__} was due, {type(message).__name__} came")
    return message


async def show_life(sock: socket.socket) -> None:
    """Send beats until cancelled, or until the other end is gone."""
    while True:
        await send(sock, Beat())
        await asyncio.sleep(BEAT_S)


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    parts = bytearray()
    while len(parts) < count:
        part = await loop.sock_recv(sock, count - len(parts))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)
