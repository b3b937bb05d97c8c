"""The seam between the node agent and processes.

A `ProcessRuntime` starts programs; the real one is `spinney.local.nodeagent.linux`, one for virtual
time is `spinney.local.nodeagent.fake_process`. Whoever starts a process awaits its ``wait``:
when that returns, no process of the group is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from collections.abc import Mapping

Stream = Literal["stdout", "stderr"]
Output = Callable[[Stream, bytes], None]
"""Takes what a process writes, in order, as it comes; never blocks."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    mark: str
    """Names the container attempt; every descendant can be recognised by it."""
    sweep: bool = True
    """Whether the program's end ends everything with its mark, also outside its group."""


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How the first process of a group ended."""

    code: int
    """As a shell tells it: 128 + number when a signal ended it."""
    signal: int = 0


class StartError(SpinneyError):
    """The program could not be started."""


class Process(Protocol):
    """A running program with its own group."""

    @property
    def pid(self) -> int:
        """The first process's id."""
        ...

    @property
    def start_ticks(self) -> int:
        """When it started, in kernel ticks since boot."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to all of the group; nothing happens when it is gone."""
        ...

    async def wait(self) -> ProcessExit:
        """Return when the first process has ended and the rest of its group was killed.

        To be awaited once. Cancelling it kills the group.
        """
        ...


class ProcessRuntime(Protocol):
    """Starts programs."""

    def start(self, spec: ProcessSpec, output: Output) -> Process:
        """Start *spec* in a session of its own; raise StartError."""
        ...
