"""One thread that computes, so that the loop can go on talking.

A forward pass of a large prompt takes longer than a client or a probe should wait for the loop,
and NumPy and torch release the GIL while they multiply. All deciding stays in the loop; the
thread gets functions and gives back values. Invariant: functions run one at a time, in the order
of the calls, also those whose caller no longer waits: a write queued earlier lands earlier.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

STOP_TIMEOUT_S = 10.0
"""How long `WorkerThread.stop` waits for the function that runs."""

_Job = tuple["Callable[[], Any]", "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Turns(Protocol):
    """Runs functions that use the executor one at a time, in the order of the calls."""

    async def run(self, function: Callable[[], T]) -> T:
        """Return what *function* returns, or raise what it raises."""
        ...

    def stop(self) -> None:
        """Let what is queued finish; nothing may be run after it."""
        ...


class WorkerThread:
    """Runs functions for coroutines. It starts with the first one."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._started = False

    async def run(self, function: Callable[[], T]) -> T:
        """Return what *function* returns, or raise what it raises."""
        if not self._started:
            self._started = True
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((function, future, loop))
        return await future

    def stop(self) -> None:
        """Let the queued functions finish and end the thread."""
        self._jobs.put(None)
        if self._started:
            self._thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future, loop = job
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - it is raised at the caller
                _tell(loop, _fail, future, error)
            else:
                _tell(loop, _succeed, future, result)


def _tell(
    loop: asyncio.AbstractEventLoop,
    how: Callable[[asyncio.Future[Any], Any], None],
    future: asyncio.Future[Any],
    what: object,
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(how, future, what)


def _succeed(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
