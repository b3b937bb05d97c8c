"""Hand-overs agreed on beforehand: prefill and decode worker are called at the same time.

Whoever calls them gives both the same *room*, a number nobody can guess, and the address where the
prefill worker serves KV. The decode worker asks there at once, and is kept waiting until the prompt
is computed; it is SGLang's way. With tickets, by contrast, the decode worker is called afterwards.
Invariant: whoever waits for a room is told as soon as it is certain that there is KV or that there
will be none, and after `ARRIVAL_S` when nobody has asked for that prompt.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.errors import SpinneyError
from spinney.kv.lease import REMEMBERED_ENDS, Failure, Handle, HandoverError

if TYPE_CHECKING:
    from spinney.kv.lease import LeaseTable

ARRIVAL_S = 10.0
"""How long a reader waits for the request of its prompt, which was sent when its own was."""
PATIENCE_S = 120.0
"""How long a reader waits for its prompt to be computed, signs of life provided."""
_PREFIX = "room-"


class RoomTakenError(SpinneyError):
    """A room serves once."""


def room_handle(room: int) -> Handle:
    """Return the handle that both sides give to *room*."""
    return Handle(f"{_PREFIX}{room}")


def is_room(handle: Handle) -> bool:
    """Tell whether *handle* may be asked for before it is granted."""
    return handle.startswith(_PREFIX)


class Rooms:
    """The rooms of a prefill worker, beside its leases."""

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases
        self._expected: set[Handle] = set()
        self._unwanted: dict[Handle, None] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._expected)

    def expect(self, handle: Handle) -> None:
        """Note that the prompt of *handle* will be computed; raise RoomTakenError when it was."""
        unwanted = handle in self._unwanted
        self._unwanted.pop(handle, None)
        if handle in self._expected or (self._leases.knows(handle) and not unwanted):
            raise RoomTakenError(f"bootstrap_room {handle.removeprefix(_PREFIX)} was used before")
        self._expected.add(handle)
        self._wake()

    def settled(self, handle: Handle) -> None:
        """Note that there is a lease of *handle*, or that there will be none."""
        self._expected.discard(handle)
        if not self._leases.knows(handle):
            self._leases.end_unused(handle)
        self._wake()

    def unwanted(self, handle: Handle) -> None:
        """Note that the reader of *handle* needs no KV, having all or having refused its request.

        Its prompt may still be asked for here, later: it is computed, and nothing is kept.
        """
        if handle not in self._expected:
            self._unwanted[handle] = None
            if len(self._unwanted) > REMEMBERED_ENDS:
                del self._unwanted[next(iter(self._unwanted))]
        self.settled(handle)

    async def settle(self, handle: Handle) -> None:
        """Wait until it is certain whether there is KV for *handle*.

        Raises HandoverError when nobody has asked for that prompt within `ARRIVAL_S`.
        """
        try:
            async with asyncio.timeout(ARRIVAL_S):
                while not self._leases.knows(handle) and handle not in self._expected:
                    await self._changed.wait()
        except TimeoutError:
            raise HandoverError(
                Failure.UNKNOWN,
                f"nobody has asked for the prompt of {handle} within {ARRIVAL_S:g} s; was the "
                f"request sent to both workers?",
            ) from None
        while not self._leases.knows(handle):
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
