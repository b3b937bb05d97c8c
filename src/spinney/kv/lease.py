"""KV blocks promised to another worker: single-use handles with a deadline.

A prefill worker grants a lease when a prompt is computed; the decode worker presents the handle
once and gets the blocks. Invariant: a lease ends exactly once (claimed, expired, released), its
owner gets the blocks back exactly at that end, and whoever comes later is told why there is
nothing. All of it is a function of the calls and of *now*; nothing here waits.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from spinney.kv.block_pool import BlockId

Handle = NewType("Handle", str)
"""Opaque and unguessable: whoever has it may read the blocks, once."""

REMEMBERED_ENDS = 4096
"""Ended leases whose end is remembered, to answer 'used' or 'expired' instead of 'unknown'."""


class Failure(enum.StrEnum):
    """Why a hand-over gave nothing. Each is final for its handle."""

    UNKNOWN = "unknown_handle"
    USED = "handle_used"
    EXPIRED = "lease_expired"
    RELEASED = "lease_released"
    LAYOUT = "layout_mismatch"
    PROMPT = "prompt_mismatch"
    CHECKSUM = "checksum_mismatch"
    UNREACHABLE = "peer_unreachable"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol_error"
    BUSY = "too_many_pulls"
    MEMORY = "out_of_memory"
    DRAINING = "draining"


class HandoverError(SpinneyError):
    """KV blocks could not be had; *failure* says why. The prompt has to be computed again."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Lease:
    """Blocks kept for one reader until *deadline_s* (seconds since the epoch)."""

    handle: Handle
    blocks: tuple[BlockId, ...]
    prompt_digest: str
    num_tokens: int
    deadline_s: float


class LeaseTable:
    """The leases of one worker."""

    def __init__(self) -> None:
        self._leases: OrderedDict[Handle, Lease] = OrderedDict()
        self._ends: OrderedDict[Handle, Failure] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def blocks(self) -> int:
        """Blocks under lease, those shared by several leases counted once per lease."""
        return sum(len(lease.blocks) for lease in self._leases.values())

    def knows(self, handle: Handle) -> bool:
        """Tell whether there is or was a lease of *handle*, as far as is remembered."""
        return handle in self._leases or handle in self._ends

    def end_unused(self, handle: Handle) -> None:
        """Note that there will be no lease of *handle*, which was announced."""
        assert handle not in self._leases, "a lease that is there is ended otherwise"
        self._remember(handle, Failure.RELEASED)

    def grant(self, lease: Lease) -> None:
        """Add *lease*, whose blocks the caller holds until the lease ends."""
        assert lease.handle not in self._leases, "a handle is granted once"
        self._leases[lease.handle] = lease

    def claim(self, handle: Handle, prompt_digest: str, now_s: float) -> Lease:
        """End the lease of *handle* and return it.

        Raises HandoverError when there is no such lease any more, or it is for another prompt (in
        which case it goes on: a wrong question must not take the blocks from the right one).
        """
        lease = self._leases.get(handle)
        if lease is None:
            end = self._ends.get(handle, Failure.UNKNOWN)
            raise HandoverError(end, f"hand-over {handle}: {_ENDS[end]}; compute the prompt again")
        if now_s >= lease.deadline_s:
            # Left in the table: the next `expire` returns its blocks to their owner.
            raise HandoverError(
                Failure.EXPIRED,
                f"hand-over {handle}: the lease ended {now_s - lease.deadline_s:.3f} s ago; "
                f"compute the prompt again",
            )
        if prompt_digest != lease.prompt_digest:
            raise HandoverError(
                Failure.PROMPT,
                f"hand-over {handle}: it holds the KV of prompt {lease.prompt_digest}, "
                f"{prompt_digest} was asked for; send the same prompt to both workers",
            )
        self._end(handle, Failure.USED)
        return lease

    def expire(self, now_s: float) -> list[Lease]:
        """End and return the leases whose deadline has come."""
        over = [lease for lease in self._leases.values() if now_s >= lease.deadline_s]
        for lease in over:
            self._end(lease.handle, Failure.EXPIRED)
        return over

    def release(self, handle: Handle) -> Lease | None:
        """End the lease of *handle* unused and return it; None when there is none."""
        lease = self._leases.get(handle)
        if lease is not None:
            self._end(handle, Failure.RELEASED)
        return lease

    def release_all(self) -> list[Lease]:
        """End and return all leases."""
        leases = list(self._leases.values())
        for lease in leases:
            self._end(lease.handle, Failure.RELEASED)
        return leases

    def next_deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return min((lease.deadline_s for lease in self._leases.values()), default=None)

    def _end(self, handle: Handle, end: Failure) -> None:
        del self._leases[handle]
        self._remember(handle, end)

    def _remember(self, handle: Handle, end: Failure) -> None:
        self._ends[handle] = end
        while len(self._ends) > REMEMBERED_ENDS:
            self._ends.popitem(last=False)


_ENDS: dict[Failure, str] = {
    Failure.UNKNOWN: "this worker never granted it, or was restarted since",
    Failure.USED: "it was used before, and a handle serves once",
    Failure.EXPIRED: "its lease has expired",
    Failure.RELEASED: "its lease was released",
}
