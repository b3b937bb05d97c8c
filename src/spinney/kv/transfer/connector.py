"""What moving KV blocks means, whatever carries them.

The decode side pulls: it presents a handle, checks what comes, and says how it ended. Invariants of
every connector:

- a handle is spent by the first pull that names it rightly, also when that pull then fails;
- the caller of `Connector.pull` gets all the bytes, or a HandoverError at once when the peer
  refuses or is gone, and by its deadlines when the peer is silent;
- the serving side copies the blocks out before it sends, so a slow reader pins no block.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import numpy as np
    from numpy.typing import NDArray

    from spinney.kv.lease import Handle


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Which blocks are wanted: those of *handle*'s prompt from index *first_block* on.

    *layout* and *prompt* are digests the serving side compares with its own. *num_blocks* is how
    many blocks the reader has room for; zero of them only ends the lease. *num_bytes*, which does
    not travel, is their size: another one announced is a protocol error.
    """

    handle: Handle
    layout: str
    prompt: str
    first_block: int
    num_blocks: int
    num_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """The bytes of the blocks in order, valid until the context that gave them ends."""

    data: NDArray[np.uint8]
    checksum: int
    transport: str


class Connector(Protocol):
    """The reading side."""

    def pull(
        self, host: str, port: int, request: PullRequest
    ) -> AbstractAsyncContextManager[Pulled]:
        """Fetch blocks. Entering raises HandoverError when they cannot be had.

        An exception inside the context is reported to the serving side as a failure. The caller
        checks `Pulled.checksum` with `verify` where it has a thread for it.
        """
        ...


class BlockSource(Protocol):
    """The worker behind the serving side."""

    async def take(self, request: PullRequest, allocate: Callable[[int], NDArray[np.uint8]]) -> int:
        """Check *request*, copy the blocks into ``allocate(bytes)``, end the lease.

        *allocate* is called once at most, from any thread: making room for many bytes takes time.
        Returns the checksum of the bytes. Raises HandoverError to refuse.
        """
        ...

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        """Learn how a pull that `take` granted went on; *failure* is None when it went well."""
        ...


def checksum(data: NDArray[np.uint8]) -> int:
    """Return the CRC-32 of *data*: about 4 GB/s, and the GIL is released meanwhile."""
    return zlib.crc32(data.data)
