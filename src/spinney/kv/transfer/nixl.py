"""KV blocks by NIXL: the reader reads the serving side's memory, by RDMA where there is any.

NIXL moves the bytes and nothing else; what is asked, granted, refused and reported goes over the
same TCP connection as with `spinney.kv.transfer.tcp`. There is no progress thread, which would keep
a core busy: who has a transfer under way calls `RemoteMemory.progress` or polls.
Invariants: memory that the other side may still write to or read from is neither freed nor used
again; an agent is used by one thread at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.errors import BadInputError
from spinney.kv.lease import Failure, HandoverError
from spinney.kv.transfer.connector import room
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

NAME = "nixl"
"""How this way of moving bytes is called on the wire and in reports."""
POLL_S = 0.0002
"""How long a side that waits for the other sleeps between two looks."""
MAX_PEERS = 64
"""Agents of other workers that are remembered; who is forgotten is introduced again."""
MAX_IDLE_BYTES = 256 * 1024 * 1024
"""Registered memory that is kept for reuse: registering costs more than copying."""
SMALLEST_BYTES = 1024 * 1024
"""Sizes are rounded up to this times a power of two, so that few sizes serve all."""
MAX_ABANDONED = 16
"""Buffers under transfers that could not be cancelled; after so many, TCP is used instead."""

log = get_logger("kv-transfer")


def installed() -> bool:
    """Tell whether NIXL can be imported."""
    return importlib.util.find_spec("nixl") is not None


class Offer(msgspec.Struct):
    """Where a reader finds the bytes: an agent, what it takes to talk to it, and an address."""

    agent: str
    metadata: bytes
    address: int


@dataclass(slots=True, eq=False)
class Registered:
    """Memory that NIXL may read and write."""

    data: NDArray[np.uint8]
    descriptors: Any

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self.data.ctypes.data)


class RemoteMemory:
    """This process as NIXL sees it; *name* has to be its alone.

    Raises BadInputError without NIXL.
    """

    def __init__(self, name: str) -> None:
        try:
            from nixl._api import nixl_agent, nixl_agent_config
        except ImportError as error:
            raise BadInputError(
                f"NIXL cannot be used: {error}; install spinney[nixl], or leave --kv-nixl out"
            ) from None
        config = nixl_agent_config(enable_prog_thread=False, num_threads=0, backends=["UCX"])
        self._name = name
        self._agent: Any = nixl_agent(name, config)
        self._lock = threading.Lock()
        self._idle: list[Registered] = []
        self._abandoned: list[Registered] = []
        self._transfers = 0
        self._peers: OrderedDict[str, bytes] = OrderedDict()

    @property
    def usable(self) -> bool:
        """Whether transfers could be cancelled often enough to go on."""
        return len(self._abandoned) < MAX_ABANDONED

    def take(self, num_bytes: int) -> Registered:
        """Return registered memory of so many bytes or more; raise HandoverError without any."""
        size = _rounded(num_bytes)
        with self._lock:
            for at, buffer in enumerate(self._idle):
                if buffer.data.nbytes == size:
                    return self._idle.pop(at)
            data = room(size)
            with _as_handover_errors():
                found = self._agent.register_memory([(data.ctypes.data, size, 0, "")], "DRAM")
            return Registered(data, found)

    def give_back(self, buffer: Registered) -> None:
        """Keep *buffer* for the next one; nobody may use it any more."""
        with self._lock:
            self._idle.append(buffer)
            while sum(idle.data.nbytes for idle in self._idle) > MAX_IDLE_BYTES:
                self._agent.deregister_memory(self._idle.pop(0).descriptors)

    def offer(self, buffer: Registered) -> bytes:
        """Return what a reader needs to read *buffer*."""
        with self._lock, _as_handover_errors():
            metadata = self._agent.get_agent_metadata()
        return msgspec.msgpack.encode(Offer(self._name, metadata, buffer.address))

    def progress(self) -> None:
        """Let transfers that others have started here go on."""
        with self._lock:
            self._agent.get_new_notifs()

    async def read(self, raw: bytes, buffer: Registered, num_bytes: int) -> None:
        """Read what is offered in *raw* into *buffer*; raise HandoverError when that fails.

        When it is cancelled, the transfer is, too; where that cannot be, *buffer* is `abandoned`.
        """
        try:
            offer = msgspec.msgpack.decode(raw, type=Offer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HandoverError(Failure.PROTOCOL, f"an offer cannot be read: {error}") from None
        with self._lock, _as_handover_errors():
            self._introduce(offer)
            here = self._agent.get_xfer_descs([(buffer.address, num_bytes, 0)], "DRAM")
            there = self._agent.get_xfer_descs([(offer.address, num_bytes, 0)], "DRAM")
            transfer = self._agent.initialize_xfer("READ", here, there, offer.agent)
            self._transfers += 1
        try:
            await self._finish(transfer)
        finally:
            self._end(transfer, buffer)

    def close(self) -> None:
        """Give memory back; nothing may be under way."""
        with self._lock:
            while self._idle:
                self._agent.deregister_memory(self._idle.pop().descriptors)

    def abandoned(self, buffer: Registered) -> bool:
        """Tell whether *buffer* may still be written to."""
        return any(buffer is other for other in self._abandoned)

    async def _finish(self, transfer: Any) -> None:
        with self._lock, _as_handover_errors():
            state = self._agent.transfer(transfer)
        while state == "PROC":
            await asyncio.sleep(POLL_S)
            with self._lock, _as_handover_errors():
                state = self._agent.check_xfer_state(transfer)
        if state != "DONE":
            raise HandoverError(
                Failure.UNREACHABLE, f"NIXL ended the transfer as {state}; compute the prompt again"
            )

    def _end(self, transfer: Any, buffer: Registered) -> None:
        with self._lock:
            self._transfers -= 1
            try:
                self._agent.release_xfer_handle(transfer)
            except Exception as error:  # noqa: BLE001 - NIXL's own, of no common kind
                self._abandoned.append(buffer)
                log.warning("a NIXL transfer cannot be cancelled", reason=repr(error))

    def _introduce(self, offer: Offer) -> None:
        """Make the agent that offers known here, with the memory it has registered by now."""
        if self._peers.get(offer.agent) == offer.metadata:
            self._peers.move_to_end(offer.agent)
            return
        # On top of what is known: to remove an agent ends the transfers from it.
        self._agent.add_remote_agent(offer.metadata)
        self._peers[offer.agent] = offer.metadata
        self._peers.move_to_end(offer.agent)
        while len(self._peers) > MAX_PEERS and not self._transfers:
            self._agent.remove_remote_agent(self._peers.popitem(last=False)[0])


@contextlib.contextmanager
def _as_handover_errors() -> Iterator[None]:
    try:
        yield
    except HandoverError:
        raise
    except Exception as error:  # noqa: BLE001 - NIXL's own, of no common kind
        raise HandoverError(
            Failure.UNREACHABLE, f"NIXL: {error!r}; compute the prompt again"
        ) from None


def _rounded(num_bytes: int) -> int:
    size = SMALLEST_BYTES
    while size < num_bytes:
        size *= 2
    return size
