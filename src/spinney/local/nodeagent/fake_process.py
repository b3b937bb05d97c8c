"""Programs that are coroutines: a `ProcessRuntime` for virtual time.

It keeps the real one's promises: a signal reaches a program that listens and ends one that does
not, SIGKILL ends any, and ``wait`` returns when it has ended.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from spinney.local.nodeagent.process import ProcessExit, StartError

if TYPE_CHECKING:
    from spinney.local.nodeagent.process import Output, ProcessSpec, Stream

Program = Callable[["FakeProcess"], Awaitable[int]]
"""Returns its exit code."""


class FakeProcess:
    """A program in the running loop."""

    def __init__(self, spec: ProcessSpec, output: Output, pid: int, program: Program) -> None:
        self.spec = spec
        self.pid = pid
        self.start_ticks = pid
        self.born_at = asyncio.get_running_loop().time()
        self.signals: list[tuple[float, int]] = []
        """When each signal came, in the loop's time."""
        self.terminated = asyncio.Event()
        """Set by SIGTERM for a program that `listens`."""
        self.listens = False
        self._output = output
        self._signal = 0
        self._task = asyncio.ensure_future(program(self))

    @property
    def alive(self) -> bool:
        """Whether the program still runs."""
        return not self._task.done()

    def write(self, data: bytes, stream: Stream = "stdout") -> None:
        """Write as the program."""
        self._output(stream, data)

    def signal(self, number: int) -> None:
        """Deliver a signal."""
        if not self.alive:
            return
        self.signals.append((asyncio.get_running_loop().time(), number))
        if number == signal.SIGTERM and self.listens:
            self.terminated.set()
            return
        self._signal = number
        self._task.cancel()

    async def wait(self) -> ProcessExit:
        """Return when the program has ended."""
        try:
            await asyncio.wait([self._task])
        finally:
            if self.alive:
                self._signal = signal.SIGKILL
                self._task.cancel()
        if self._task.cancelled():
            return ProcessExit(128 + self._signal, self._signal)
        return ProcessExit(self._task.result())


class FakeProcesses:
    """Runs the program that *programs* has for the first argument."""

    def __init__(self, programs: dict[str, Program]) -> None:
        self.programs = programs
        self.started: list[FakeProcess] = []
        self.fail_next = ""
        """When set, the next start fails with this message."""

    def start(self, spec: ProcessSpec, output: Output) -> FakeProcess:
        """Start the program called ``argv[0]``; raise StartError if there is none."""
        if self.fail_next:
            message, self.fail_next = self.fail_next, ""
            raise StartError(message)
        program = self.programs.get(spec.argv[0])
        if program is None:
            raise StartError(f"no program is called {spec.argv[0]!r}")
        process = FakeProcess(spec, output, len(self.started) + 1, program)
        self.started.append(process)
        return process

    def alive(self) -> list[FakeProcess]:
        """Return the programs that run."""
        return [process for process in self.started if process.alive]


async def forever(process: FakeProcess) -> int:
    """Run until a signal ends it."""
    await asyncio.Event().wait()
    return 0


def ends_after(seconds: float, code: int = 0) -> Program:
    """Return a program that ends by itself."""

    async def program(process: FakeProcess) -> int:
        await asyncio.sleep(seconds)
        return code

    return program


def drains_for(seconds: float, code: int = 0) -> Program:
    """Return a program that takes *seconds* to end after SIGTERM."""

    async def program(process: FakeProcess) -> int:
        process.listens = True
        await process.terminated.wait()
        await asyncio.sleep(seconds)
        return code

    return program
