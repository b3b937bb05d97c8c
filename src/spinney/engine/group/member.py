"""A member's side of a group: it finds the leader, computes with it, and ends with it.

Invariants: it tries to join for a bounded time and says what it waits for; once joined, it ends as
soon as the leader ends, and as an error unless the leader said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
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
    receive,
    send,
    show_life,
)
from spinney.errors import BadInputError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spinney.engine.worker_thread import Turns

RETRY_S = 0.25
"""How often a leader that is not there yet is called."""
CALL_TIMEOUT_S = 5.0
"""How long one call may take, from the name to the answer."""

log = get_logger("group")


@dataclass(frozen=True, slots=True)
class Application:
    """What a member says of itself, and where: *resolve* returns the leader's address.

    *resolve* raises OSError while the address is not known.
    """

    rank: int
    ranks: int
    model: str
    arithmetic: str
    member: str
    resolve: Callable[[], Awaitable[str]]
    port: int
    timeout_s: float

    def hello(self, link: str) -> Hello:
        """Return the first message of *link*."""
        return Hello(VERSION, self.rank, self.ranks, self.model, self.arithmetic, self.member, link)


class Membership:
    """A place in a group. `build` is to be called next, then `run`."""

    def __init__(self, control: socket.socket, data: socket.socket, welcome: Welcome) -> None:
        self._control = control
        self.link = DataLink(data, "the leader")
        self.block_size = welcome.block_size
        self.num_blocks = welcome.num_blocks
        self.started = False
        self._leaving = False

    async def run(self, work: Callable[[], None], turns: Turns, start_timeout_s: float) -> None:
        """Do *work* until the leader ends the group; raise GroupLostError when it is gone.

        *work* uses `link` and returns, or raises GroupLostError, when that is cut.
        """
        try:
            await self._wait_for_start(start_timeout_s)
            async with asyncio.TaskGroup() as group:
                beats = group.create_task(show_life(self._control))
                working = group.create_task(self._work(work, turns))
                await self._listen()
                beats.cancel()
                self.link.cut()
                await working
        except* (OSError, TimeoutError) as errors:
            why = _reason(errors)
            raise GroupLostError(f"the leader of the group is gone: {why}") from None
        finally:
            self.link.cut()

    def leave(self) -> None:
        """Ask the leader to drain and end the group; may be called before the start."""
        self._leaving = True
        if self.started:
            asyncio.get_running_loop().create_task(self._say_leaving())

    def close(self) -> None:
        """Close the connections."""
        self._control.close()
        self.link.close()

    async def _say_leaving(self) -> None:
        with contextlib.suppress(OSError):
            await send(self._control, Leaving())

    async def _wait_for_start(self, timeout_s: float) -> None:
        await send(self._control, Built())
        async with asyncio.timeout(timeout_s):
            await expect(self._control, Start)
        self.started = True
        log.info("group started")
        if self._leaving:
            await self._say_leaving()

    async def _listen(self) -> None:
        while True:
            async with asyncio.timeout(DEAD_S):
                message = await receive(self._control)
            if isinstance(message, End):
                return
            if not isinstance(message, Beat):
                raise ConnectionError(f"{type(message).__name__} came, Beat was due")

    async def _work(self, work: Callable[[], None], turns: Turns) -> None:
        try:
            await turns.run(work)
        except GroupLostError:
            # The control link says why: whether the leader has ended the group or is gone.
            log.debug("the data link was cut")


async def join(application: Application) -> Membership:
    """Return a place in the group.

    Raises GroupLostError when the leader could not be found within the time given, BadInputError
    when it refuses for good.
    """
    waiting_for = "its address"
    try:
        async with asyncio.timeout(application.timeout_s):
            while True:
                try:
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        return await _call(application)
                except (OSError, TimeoutError) as error:
                    said = str(error) or f"no answer within {CALL_TIMEOUT_S:g} s"
                    if said != waiting_for:
                        log.info("waiting for the leader", reason=said)
                    waiting_for = said
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        raise GroupLostError(
            f"rank {application.rank} could not join within {application.timeout_s:g} s: "
            f"{waiting_for}; see that the leader runs and that --group-leader names it"
        ) from None


async def _call(application: Application) -> Membership:
    address = await application.resolve()
    control, welcome = await _say_hello(application, address, "control")
    try:
        data, _ = await _say_hello(application, address, "data")
    except BaseException:
        control.close()
        raise
    return Membership(control, data, welcome)


async def _say_hello(
    application: Application, address: str, link: str
) -> tuple[socket.socket, Welcome]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address, application.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        await send(sock, application.hello(link))
        answer = await receive(sock)
        if isinstance(answer, Refusal):
            if answer.again:
                raise ConnectionError(f"the leader has no place: {answer.message}")
            raise BadInputError(f"the leader refuses rank {application.rank}: {answer.message}")
        if not isinstance(answer, Welcome):
            raise ConnectionError(f"Welcome was due, {type(answer).__name__} came")
    except BaseException:
        sock.close()
        raise
    return sock, answer


def _reason(errors: BaseExceptionGroup[BaseException]) -> str:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return str(found) or f"nothing was heard of it for {DEAD_S:g} s"
