"""The messages of a pull: a header, then MessagePack.

    reader                          serving side
      Pull            ────────►
                      ◄────────     Later, while the prompt is being computed
                      ◄────────     Ready, or Refused and the end
      Opened          ────────►     only where Ready names a segment or has an offer
                      ◄────────     the bytes, unless the reader has got them that way
      Done            ────────►

The header is three big-endian numbers of 4 bytes: the length of the message, its CRC-32, and the
CRC-32 of those two; so a damaged length is noticed at once, and not by waiting for bytes that never
come. Invariant: one pull per connection; whoever sees anything else ends the connection.
"""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import TYPE_CHECKING, TypeVar
from zlib import crc32

import msgspec

from spinney.kv.layout import KVLayout
from spinney.kv.lease import Failure, HandoverError

if TYPE_CHECKING:
    import socket

    import numpy as np
    from numpy.typing import NDArray

VERSION = 3
"""Raise it when messages, or the meaning of the bytes of a layout, change.

A field that may be missing is no change: who does not know it reads on, and who does takes its
default."""
MAX_MESSAGE_BYTES = 65_536
"""A longer message is a protocol error."""
STALL_TIMEOUT_S = 2.0
"""A peer whose bytes stand still so long counts as dead: it had them in memory."""


class Pull(msgspec.Struct, tag="pull", omit_defaults=True):
    """Asks for the KV of the tokens from *first* to before *end*.

    *layout* is the reader's; *host* its `host_identity` when it can map segments; *reads* names how
    it can read memory of another host, if it can; *patient*: the prompt may be under way yet;
    *trace* is the ``traceparent`` that it pulls under.
    """

    version: int
    handle: str
    layout: KVLayout
    prompt: str
    first: int
    end: int
    host: str
    reads: str
    patient: bool
    trace: str = ""


class Ready(msgspec.Struct, tag="ready"):
    """The blocks are copied out, into *segment*, or where *offer* says; else they come next."""

    num_bytes: int
    checksum: int
    segment: str | None
    layout: KVLayout
    offer: bytes | None = None


class Later(msgspec.Struct, tag="later"):
    """A sign of life: the blocks are not there yet."""


class Refused(msgspec.Struct, tag="refused"):
    """There will be no blocks: the negative acknowledgement."""

    failure: Failure
    message: str


class Opened(msgspec.Struct, tag="opened"):
    """Whether the reader got the bytes so; if not, they come inline."""

    ok: bool


class Done(msgspec.Struct, tag="done"):
    """How it ended at the reader: None when the blocks are in place."""

    failure: Failure | None


Message = Pull | Ready | Later | Refused | Opened | Done
M = TypeVar("M", bound=msgspec.Struct)

_SIZES = Struct(">II")
_CHECK = Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def frame(message: Message) -> bytes:
    """Return the bytes of *message*, header included."""
    payload = _ENCODER.encode(message)
    sizes = _SIZES.pack(len(payload), crc32(payload))
    return sizes + _CHECK.pack(crc32(sizes)) + payload


async def send(sock: socket.socket, message: Message) -> None:
    """Send one message."""
    await asyncio.get_running_loop().sock_sendall(sock, frame(message))


async def receive(sock: socket.socket) -> Message:
    """Return the next message; raise HandoverError when there is none or it is malformed."""
    header = await _exactly(sock, _SIZES.size + _CHECK.size)
    length, check = _SIZES.unpack_from(header)
    whole = _CHECK.unpack_from(header, _SIZES.size) == (crc32(header[: _SIZES.size]),)
    if not whole or length > MAX_MESSAGE_BYTES:
        raise HandoverError(
            Failure.PROTOCOL, "what came is no message, or damaged; is the port the KV port?"
        )
    payload = await _exactly(sock, length)
    if crc32(payload) != check:
        raise HandoverError(Failure.PROTOCOL, "a message came damaged")
    try:
        message: Message = _DECODER.decode(payload)
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
