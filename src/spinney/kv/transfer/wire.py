"""The messages of a pull: 4 bytes of length (big-endian), then MessagePack.

    reader                          serving side
      Pull            ────────►
                      ◄────────     Ready, or Refused and the end
      Opened          ────────►     only where Ready names a segment
                      ◄────────     the bytes, unless the segment was opened
      Done            ────────►

Invariant: one pull per connection; whoever sees anything else ends the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from spinney.kv.layout import KVLayout
from spinney.kv.lease import Failure, HandoverError

if TYPE_CHECKING:
    import socket

    import numpy as np
    from numpy.typing import NDArray

VERSION = 2
"""Raise it when messages, or the meaning of the bytes of a layout, change."""
MAX_MESSAGE_BYTES = 65_536
"""A longer message is a protocol error."""
STALL_TIMEOUT_S = 2.0
"""A peer whose bytes stand still so long counts as dead: it had them in memory."""


class Pull(msgspec.Struct, tag="pull"):
    """Asks for the KV of the tokens from *first* to before *end*.

    *layout* is the reader's; *host* its `host_identity` when it can map segments.
    """

    version: int
    handle: str
    layout: KVLayout
    prompt: str
    first: int
    end: int
    host: str


class Ready(msgspec.Struct, tag="ready"):
    """The blocks are copied out, of *layout*, and come next, inline or in *segment*."""

    num_bytes: int
    checksum: int
    segment: str | None
    layout: KVLayout


class Refused(msgspec.Struct, tag="refused"):
    """There will be no blocks: the negative acknowledgement."""

    failure: Failure
    message: str


class Opened(msgspec.Struct, tag="opened"):
    """Whether the reader could map the segment; if not, the bytes come inline."""

    ok: bool


class Done(msgspec.Struct, tag="done"):
    """How it ended at the reader: None when the blocks are in place."""

    failure: Failure | None


Message = Pull | Ready | Refused | Opened | Done
M = TypeVar("M", bound=msgspec.Struct)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


async def send(sock: socket.socket, message: Message) -> None:
    """Send one message."""
    payload = _ENCODER.encode(message)
    frame = len(payload).to_bytes(4, "big") + payload
    await asyncio.get_running_loop().sock_sendall(sock, frame)


async def receive(sock: socket.socket) -> Message:
    """Return the next message; raise HandoverError when there is none or it is malformed."""
    length = int.from_bytes(await _exactly(sock, 4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise HandoverError(
            Failure.PROTOCOL, f"a message of {length} bytes came; is the port the KV port?"
        )
    try:
        message: Message = _DECODER.decode(await _exactly(sock, length))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HandoverError(Failure.PROTOCOL, f"a message cannot be read: {error}") from None
    return message


async def expect(sock: socket.socket, kind: type[M]) -> M:
    """Return the next message, which has to be a *kind*; a Refused is raised as what it says."""
    message = await receive(sock)
    if isinstance(message, Refused):
        raise HandoverError(message.failure, message.message)
    if not isinstance(message, kind):
        raise HandoverError(
            Failure.PROTOCOL, f"{kind.__name__} was due, {type(message).__name__} came"
        )
    return message


async def receive_into(sock: socket.socket, data: NDArray[np.uint8]) -> None:
    """Fill *data* from *sock*.

    Raises HandoverError when the peer goes away before, TimeoutError when it sends nothing more.
    """
    loop = asyncio.get_running_loop()
    view = data.data
    filled = 0
    while filled < len(view):
        async with asyncio.timeout(STALL_TIMEOUT_S):
            count = await loop.sock_recv_into(sock, view[filled:])
        if count == 0:
            raise HandoverError(
                Failure.UNREACHABLE,
                f"the peer closed the connection after {filled} of {len(view)} bytes",
            )
        filled += count


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    parts = bytearray()
    while len(parts) < count:
        part = await loop.sock_recv(sock, count - len(parts))
        if not part:
            raise HandoverError(Failure.UNREACHABLE, "the peer closed the connection")
        parts += part
    return bytes(parts)
