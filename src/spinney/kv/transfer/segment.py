"""Shared-memory segments: how blocks pass between two processes of one host in two copies.

The serving side makes a segment per pull, named by 128 random bits, readable by its own user only;
the reader maps it; the serving side unlinks it as soon as it is mapped. Invariant: a segment's
name is gone when its `Segment` is closed, on every path; bytes are reserved when it is made, so
writing never meets a full device.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIRECTORY = Path("/dev/shm")
"""Memory-backed files of Linux."""
_NAME = re.compile(r"spinney-kv-[0-9a-f]{32}")


class Segment:
    """A mapped segment; closing it unmaps it and, at the side that made it, removes the name."""

    def __init__(self, name: str, mapping: mmap.mmap, owned: bool) -> None:
        self.name = name
        self._mapping = mapping
        self._owned = owned
        self.data: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)

    def unlink(self) -> None:
        """Remove the name; mappings stay valid."""
        if self._owned:
            self._owned = False
            with contextlib.suppress(FileNotFoundError):
                (DIRECTORY / self.name).unlink()

    def close(self) -> None:
        """Unlink and unmap. `data` must not be used any more."""
        self.unlink()
        self.data = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            # Someone still holds a view: the mapping ends with that view.
            self._mapping.close()


def create(num_bytes: int) -> Segment | None:
    """Return a new segment, or None where shared memory is absent or full."""
    name = f"spinney-kv-{secrets.token_hex(16)}"
    try:
        descriptor = os.open(DIRECTORY / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
        return Segment(name, mmap.mmap(descriptor, num_bytes), owned=True)
    except OSError:
        (DIRECTORY / name).unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


def attach(name: str, num_bytes: int) -> Segment | None:
    """Return the peer's segment, or None when it is not visible here or not what was announced."""
    if _NAME.fullmatch(name) is None:
        return None
    try:
        descriptor = os.open(DIRECTORY / name, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_size != num_bytes:
            return None
        return Segment(name, mmap.mmap(descriptor, num_bytes, prot=mmap.PROT_READ), owned=False)
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
