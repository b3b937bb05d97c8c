"""The leader's side of a group: it waits for all members, and then watches them.

Invariants: it is complete or not at all, within a time that has a bound; once complete, the first
sign that a member is gone ends the wait of the thread that computes and is raised to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinney.engine.group.data_link import DataLink
from spinney.engine.group.messages import (
    DEAD_S,
    VERSION,
    Beat,
    Built,
    End,
    GroupLostError,
    Hello,
    Leaving,
    Refusal,
    Start,
    Welcome,
    expect,
    framed,
    receive,
    send,
    show_life,
)
from spinney.listener import listen
from spinney.log import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

HELLO_TIMEOUT_S = 5.0
"""Who connects and does not say who it is by then is no member."""

log = get_logger("group")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the members of a group have in common. *arithmetic* names the executor and its type."""

    ranks: int
    model: str
    arithmetic: str
    block_size: int
    num_blocks: int

    def objection(self, hello: Hello) -> Refusal | None:
        """Return why who says *hello* cannot be a member, whatever place is free."""
        if hello.version != VERSION:
            return Refusal(f"protocol {hello.version} is spoken, this is {VERSION}", False)
        if hello.ranks != self.ranks:
            return Refusal(
                f"a group of {hello.ranks} is joined, this one has {self.ranks} ranks; give "
                f"--tensor-parallel-size {self.ranks} to all",
                False,
            )
        if not 1 <= hello.rank < self.ranks:
            return Refusal(f"rank {hello.rank} is none of 1 to {self.ranks - 1}", False)
        if hello.model != self.model:
            return Refusal("another model is loaded; give all the same --model", False)
        if hello.arithmetic != self.arithmetic:
            return Refusal(
                f"it computes with {hello.arithmetic}, the leader with {self.arithmetic}", False
            )
        return None


@dataclass(slots=True, eq=False)
class _Seat:
    """A member's place."""

    member: str
    address: str
    control: socket.socket
    data: socket.socket | None = None
    built: bool = False

    def close(self) -> None:
        self.control.close()
        if self.data is not None:
            self.data.close()


@dataclass(slots=True, eq=False)
class GroupLeader:
    """Listens on ``host:port`` for the other ranks. Raises BadInputError when it cannot."""

    host: str
    port: int
    start_timeout_s: float
    _seats: dict[int, _Seat] = field(default_factory=dict)
    _links: tuple[DataLink, ...] = ()
    _refused: str = ""

    @property
    def links(self) -> tuple[DataLink, ...]:
        """The links to ranks 1, 2, …, once the group is complete."""
        return self._links

    async def form(self, terms: Terms) -> None:
        """Wait until all ranks are there.

        Raises GroupLostError, which names who is missing, when the start timeout is over.
        """
        listener = listen(self.host, self.port, advice="give a free --group-port")
        listener.setblocking(False)
        complete = asyncio.Event()
        log.info("group waits", ranks=terms.ranks, port=listener.getsockname()[1])
        try:
            async with asyncio.timeout(self.start_timeout_s), asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(listener, terms, complete))
                await complete.wait()
                accepting.cancel()
        except TimeoutError:
            self.close()
            raise GroupLostError(self._missing(terms)) from None
        finally:
            listener.close()
        self._links = tuple(self._link(rank) for rank in range(1, terms.ranks))
        log.info("group complete", ranks=terms.ranks)

    async def run(self, on_leaving: Callable[[], None]) -> None:
        """Watch the members until cancelled.

        Calls *on_leaving* when one was told to stop. Raises GroupLostError when one is gone.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for rank in self._seats:
                    group.create_task(self._watch(rank, on_leaving))
        except* GroupLostError as errors:
            # Whoever waits for that member in a step waits no longer.
            for link in self._links:
                link.cut()
            raise errors.exceptions[0] from None

    def dismiss(self) -> None:
        """Tell the members that it is over, in order. Without it, they end as having failed."""
        for seat in self._seats.values():
            with contextlib.suppress(OSError):
                seat.control.send(framed(End()))

    def close(self) -> None:
        """Close the connections."""
        for seat in self._seats.values():
            seat.close()
        for link in self._links:
            link.close()
        self._seats.clear()

    def _missing(self, terms: Terms) -> str:
        absent = [
            str(rank)
            for rank in range(1, terms.ranks)
            if rank not in self._seats or not self._seats[rank].built
        ]
        refused = f"; last refused: {self._refused}" if self._refused else ""
        return (
            f"a group of {terms.ranks} is wanted, rank {', '.join(absent)} has not come to "
            f"{self.host}:{self.port} within {self.start_timeout_s:g} s{refused}; see that its pod "
            f"runs and that its --group-leader is this one"
        )

    def _link(self, rank: int) -> DataLink:
        data = self._seats[rank].data
        assert data is not None, "a member that has built its part has a data link"
        return DataLink(data, f"rank {rank} at {self._seats[rank].address}")

    async def _accept(self, listener: socket.socket, terms: Terms, complete: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                sock, address = await loop.sock_accept(listener)
                sock.setblocking(False)
                group.create_task(self._seat(sock, str(address[0]), terms, complete))

    async def _seat(
        self, sock: socket.socket, address: str, terms: Terms, complete: asyncio.Event
    ) -> None:
        """Give whoever is at *sock* its place, and take it away again when it goes."""
        hello: Hello | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = await expect(sock, Hello)
            refusal = terms.objection(hello) or self._occupied(hello)
            if refusal is not None:
                self._refused = f"rank {hello.rank} at {address}: {refusal.message}"
                log.warning("member refused", reason=self._refused)
                await send(sock, refusal)
                return
            self._sit_down(hello, sock, address)
            await send(sock, Welcome(terms.block_size, terms.num_blocks))
            if hello.link == "control":
                await expect(sock, Built)
                self._seats[hello.rank].built = True
                if self._complete(terms):
                    complete.set()
                await receive(sock)
                raise ConnectionError("it was told to stop")
        except (OSError, TimeoutError) as error:
            self._leave(hello, sock, error)
        finally:
            if not any(sock in (seat.control, seat.data) for seat in self._seats.values()):
                sock.close()

    def _sit_down(self, hello: Hello, sock: socket.socket, address: str) -> None:
        if hello.link == "data":
            self._seats[hello.rank].data = sock
        else:
            self._seats[hello.rank] = _Seat(hello.member, address, sock)

    def _leave(self, hello: Hello | None, sock: socket.socket, error: Exception) -> None:
        seat = None if hello is None else self._seats.get(hello.rank)
        if hello is not None and seat is not None and sock in (seat.control, seat.data):
            del self._seats[hello.rank]
            log.warning("member gone before the start", rank=hello.rank, why=str(error))
            seat.close()

    def _occupied(self, hello: Hello) -> Refusal | None:
        seat = self._seats.get(hello.rank)
        if hello.link == "data":
            if seat is None or seat.member != hello.member:
                return Refusal("a data link comes after its control link", True)
            return None
        if seat is not None:
            return Refusal(f"rank {hello.rank} is taken, by {seat.address}", True)
        return None

    def _complete(self, terms: Terms) -> bool:
        built = [seat for seat in self._seats.values() if seat.built and seat.data is not None]
        return len(built) == terms.ranks - 1

    async def _watch(self, rank: int, on_leaving: Callable[[], None]) -> None:
        seat = self._seats[rank]
        try:
            await send(seat.control, Start())
            async with asyncio.TaskGroup() as group:
                group.create_task(show_life(seat.control))
                await _listen_to(seat.control, on_leaving)
        except* (OSError, TimeoutError) as errors:
            why = str(errors.exceptions[0]) or f"nothing was heard of it for {DEAD_S:g} s"
            raise GroupLostError(
                f"rank {rank} at {seat.address} is gone: {why}; the group ends with it"
            ) from None


async def _listen_to(control: socket.socket, on_leaving: Callable[[], None]) -> None:
    while True:
        async with asyncio.timeout(DEAD_S):
            message = await receive(control)
        if isinstance(message, Leaving):
            on_leaving()
        elif not isinstance(message, Beat):
            raise ConnectionError(f"{type(message).__name__} came, Beat was due")
