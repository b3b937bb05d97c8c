"""Hand-overs for which prefill and decode worker are called at the same time, as SGLang has them.

A worker's pod says which way it has: the annotation ``spinney.dev/kv-handover`` is *ticket*, where
it says nothing, *rendezvous* or *sglang*; only workers of one way are paired. With a rendezvous
both get the client's request with the prefill worker's address and a *room*, and find each other.
SGLang's own workers refuse what has no room, so that all they serve goes through a pair of them.
Invariant: a room is told to one pair of workers for one attempt, and cannot be guessed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from spinney.router.upstream import WorkerFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from spinney.router.workers import Worker

FIELDS = ("bootstrap_host", "bootstrap_port", "bootstrap_room")
"""What a request says of its meeting. They never come from a client: they name an address."""
ROOM_BITS = 63
GRACE_S = 1.0
"""How long the prefill worker's answer may come after the decode worker's."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def secret_room() -> int:
    """Return a room that nobody can guess; never 0, which SGLang takes for none yet."""
    return SystemRandom().randrange(1, 1 << ROOM_BITS)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the two workers of an attempt find each other."""

    host: str
    port: int
    room: int

    def decode_body(self, body: bytes) -> bytes:
        """Return the request for the decode worker."""
        return msgspec.json.encode(self._told(body))

    def prefill_body(self, body: bytes) -> bytes:
        """Return the request for the prefill worker, which answers when the prompt is computed."""
        members = self._told(body)
        members.pop("stream_options", None)
        return msgspec.json.encode(members | {"stream": False})

    def _told(self, body: bytes) -> dict[str, Any]:
        members: dict[str, Any] = dict(_members.decode(body))
        return members | dict(zip(FIELDS, (self.host, self.port, self.room), strict=True))


def meeting_at(prefill: Worker, rooms: Callable[[], int]) -> Meeting | None:
    """Return where KV of *prefill* is met; None when it gives tickets."""
    if not prefill.bootstrap_port:
        return None
    host = urlsplit(prefill.url).hostname or ""
    return Meeting(host, prefill.bootstrap_port, rooms())


@asynccontextmanager
async def beside(
    prefilling: Coroutine[Any, Any, None], matters: Callable[[], bool]
) -> AsyncIterator[None]:
    """Let *prefilling* run while what is inside does.

    When it fails and still *matters*, what is inside is cancelled and its WorkerFailure is raised:
    the decode worker would wait for nothing. When what is inside ends first, it gets `GRACE_S`.
    """

    async def watched() -> None:
        try:
            await prefilling
        except WorkerFailure:
            if matters():
                raise

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watched())
            yield
            await asyncio.wait((task,), timeout=GRACE_S)
            task.cancel()
    except BaseExceptionGroup as failures:
        # One of the two went wrong, and the other was cancelled for it.
        found: BaseException = failures
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from None
