"""Shared-memory segments: how blocks pass between two processes of one host without a socket.

A segment is an anonymous file in memory. It has no name in any file system: the reader opens it
through the maker's entry in ``/proc``, which works for the same user in the same process namespace,
and checks that what it opened is what was meant. Fresh memory costs more than all copies together,
so a maker keeps its segments and uses them again.
Invariants: when a process ends, however it ends, its segments are gone; a segment is used again
only after its reader said that it is done; bytes are reserved when it is made, so writing never
meets a full device.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROCESSES = Path("/proc")
MAX_IDLE_BYTES = 256 * 1024 * 1024
"""What a `SegmentPool` keeps for reuse at most."""
SMALLEST_BYTES = 1024 * 1024
"""Sizes are rounded up to this times a power of two, so that few sizes serve all."""
_FLAGS = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
"""All pages at once: one by one they cost more than the copy."""


class Segment:
    """A mapped segment. *address* lets another process of this host find it."""

    def __init__(self, address: str, mapping: mmap.mmap, descriptor: int | None = None) -> None:
        self.address = address
        self._mapping = mapping
        self._descriptor = descriptor
        self.data: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self._mapping)

    def close(self) -> None:
        """Unmap it; at the side that made it, forget it. `data` must not be used any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.data = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            # Someone still holds a view: the mapping ends with that view.
            self._mapping.close()


class SegmentPool:
    """Makes segments and keeps them for reuse, at most `MAX_IDLE_BYTES` of them."""

    def __init__(self) -> None:
        self._idle: list[Segment] = []

    def take(self, num_bytes: int) -> Segment | None:
        """Return a segment of at least *num_bytes*; None where shared memory is absent or full."""
        size = _rounded(num_bytes)
        for at, segment in enumerate(self._idle):
            if segment.num_bytes == size:
                return self._idle.pop(at)
        return create(size)

    def give_back(self, segment: Segment) -> None:
        """Keep *segment* for the next one; its reader must be done with it."""
        self._idle.append(segment)
        while sum(idle.num_bytes for idle in self._idle) > MAX_IDLE_BYTES:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Forget all kept segments."""
        while self._idle:
            self._idle.pop().close()


def create(num_bytes: int) -> Segment | None:
    """Return a new segment, or None where shared memory is absent or full."""
    try:
        descriptor = os.memfd_create("spinney-kv", os.MFD_CLOEXEC)
    except (OSError, AttributeError):
        return None
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
        mapping = mmap.mmap(descriptor, num_bytes, flags=_FLAGS)
    except OSError:
        os.close(descriptor)
        return None
    state = os.fstat(descriptor)
    address = f"{os.getpid()}:{descriptor}:{state.st_dev}:{state.st_ino}"
    return Segment(address, mapping, descriptor)


def attach(address: str, num_bytes: int) -> Segment | None:
    """Return the first *num_bytes* of the peer's segment; None when it cannot be seen here.

    Elsewhere the same numbers may name another file: device and inode tell.
    """
    parts = address.split(":")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        return None
    process, number, device, inode = (int(part) for part in parts)
    try:
        descriptor = os.open(PROCESSES / f"{process}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        state = os.fstat(descriptor)
        if (state.st_dev, state.st_ino) != (device, inode) or state.st_size < num_bytes:
            return None
        mapping = mmap.mmap(descriptor, num_bytes, flags=_FLAGS, prot=mmap.PROT_READ)
        return Segment(address, mapping)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def host_identity() -> str:
    """Return a text that two processes share only when they run on one booted machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _rounded(num_bytes: int) -> int:
    size = SMALLEST_BYTES
    while size < num_bytes:
        size *= 2
    return size
