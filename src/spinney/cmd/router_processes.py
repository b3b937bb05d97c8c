"""The processes of one router: started together, started again when one dies, ended together.

The sockets are made before the processes and kept by the parent, so that connections which wait at
the socket of a process that died are taken by its successor. Invariant: processes do not outlive
their parent; they drain when it is gone, however it ended.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.log import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from spinney.clock import Clock

AGAIN_S = 1.0
"""Before a process that died is started again; doubled while it dies soon after its start."""
AGAIN_MOST_S = 30.0
SOON_S = 10.0
GIVE_UP_AFTER = 6
"""Deaths soon after the start, in a row, after which all is ended."""
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = STOPPING | {signal.SIGCHLD}

log = get_logger("router")


@dataclass(frozen=True, slots=True)
class Seat:
    """What one process of a router is given."""

    number: int
    listener: socket.socket
    peers: socket.socket | None = None
    """Where it listens to other routers and processes."""
    peer_ports: tuple[int, ...] = ()
    """Of all processes, its own too."""
    parent: int = -1
    """A pipe that ends when the parent does."""
    secret: bytes = b""
    """By which routers and processes know each other."""


@dataclass(slots=True)
class _Child:
    pid: int = 0
    began_s: float = 0.0
    due_s: float = 0.0
    short_lives: int = 0


class Supervisor:
    """Runs *work* in *count* processes."""

    def __init__(self, count: int, work: Callable[[int, int], None], clock: Clock) -> None:
        """*work* is called with the number of the process and the pipe to its parent."""
        self._work = work
        self._clock = clock
        self._children = [_Child() for _ in range(count)]
        self._stopping = False
        self._code = 0
        self._pipe = os.pipe()

    def run(self) -> int:
        """Return the exit code once all have ended after a signal."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in range(len(self._children)):
            self._start(number)
        while any(child.pid for child in self._children) or not self._stopping:
            told = signal.sigtimedwait(_SIGNALS, self._next_s())
            if told is not None and told.si_signo in STOPPING:
                self._stop(told.si_signo)
            self._reap()
            self._start_due()
        return self._code

    def _next_s(self) -> float:
        now_s = self._clock.now()
        due = [child.due_s - now_s for child in self._children if not child.pid]
        return max(0.0, min(due, default=SOON_S))

    def _stop(self, number: int) -> None:
        self._stopping = True
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)

    def _start_due(self) -> None:
        if self._stopping:
            return
        now_s = self._clock.now()
        for number, child in enumerate(self._children):
            if not child.pid and child.due_s <= now_s:
                self._start(number)

    def _start(self, number: int) -> None:
        child = self._children[number]
        child.began_s = self._clock.now()
        child.pid = os.fork()
        if not child.pid:
            self._be_child(number)

    def _be_child(self, number: int) -> None:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(self._pipe[1])
            self._work(number, self._pipe[0])
            code = 0
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for number, child in enumerate(self._children):
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid = 0
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                self._code = self._code or abs(code)
                continue
            self._died(number, child, code)

    def _died(self, number: int, child: _Child, code: int) -> None:
        now_s = self._clock.now()
        child.short_lives = child.short_lives + 1 if now_s - child.began_s < SOON_S else 0
        again_s = min(AGAIN_MOST_S, AGAIN_S * 2.0 ** max(0, child.short_lives - 1))
        child.due_s = now_s + again_s
        log.warning("router process died", process=number, code=code, again_s=again_s)
        if child.short_lives >= GIVE_UP_AFTER:
            log.error("router process does not stay; giving up", process=number)
            self._code = 1
            self._stop(signal.SIGTERM)
