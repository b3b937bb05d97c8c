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

import numpy as np

from spinney.kv.layout import incompatibility
from spinney.kv.lease import Failure, HandoverError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from numpy.typing import NDArray

    from spinney.kv.layout import KVLayout
    from spinney.kv.lease import Handle
    from spinney.kv.reshard import Span


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Which KV is wanted: that of *handle*'s prompt for the tokens of *span*.

    *layout* is the reader's; the serving side compares it with its own, and *prompt*, a digest,
    with what it computed. An empty *span* only ends the lease.
    """

    handle: Handle
    layout: KVLayout
    prompt: str
    span: Span
    patience_s: float | None = None
    """How long the serving side may take, signs of life provided; None: as long as a step takes."""
    trace: str = ""
    """The W3C ``traceparent`` it is a part of, empty when nobody traces."""


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """The serving side's blocks that hold the span, valid until the context that gave them ends.

    *layout* is the serving side's, checked: the bytes are as many as it implies.
    """

    data: NDArray[np.uint8]
    checksum: int
    transport: str
    layout: KVLayout


@dataclass(frozen=True, slots=True)
class Taken:
    """What a source put where it was told: of which layout, and the checksum of the bytes."""

    layout: KVLayout
    checksum: int


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

    async def take(
        self, request: PullRequest, allocate: Callable[[int], NDArray[np.uint8]]
    ) -> Taken:
        """Check *request*, copy the blocks into ``allocate(bytes)``, end the lease.

        *allocate* is called once at most, from any thread: making room for many bytes takes time.
        It raises HandoverError when there is no room. Raises HandoverError to refuse.
        """
        ...

    def ended(self, request: PullRequest, num_bytes: int, failure: str | None) -> None:
        """Learn how a pull that `take` granted went on; *failure* is None when it went well."""
        ...


def checksum(data: NDArray[np.uint8]) -> int:
    """Return the CRC-32 of *data*: about 4 GB/s, and the GIL is released meanwhile."""
    return zlib.crc32(data.data)


def room(num_bytes: int) -> NDArray[np.uint8]:
    """Return memory of this process; raise HandoverError when there is not so much."""
    try:
        return np.empty(num_bytes, np.uint8)
    except MemoryError:
        raise HandoverError(
            Failure.MEMORY, f"{num_bytes} bytes of KV find no memory; compute the prompt again"
        ) from None


def check_compatible(source: KVLayout, reader: KVLayout) -> None:
    """Raise HandoverError, which says what differs, when *reader* cannot use *source*'s blocks."""
    wrong = incompatibility(source, reader)
    if wrong is not None:
        raise HandoverError(
            Failure.LAYOUT,
            f"KV cannot be handed over: {wrong}; run the same model and element type on both sides",
        )


def expected_bytes(request: PullRequest, source: KVLayout) -> int:
    """Return how many bytes the answer to *request* has, when it comes from *source*."""
    if request.span.first >= request.span.end:
        return 0
    return len(request.span.blocks(source.block_size)) * source.block_bytes
