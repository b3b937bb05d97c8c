"""Pods' programs as Linux processes.

Each program leads a session and process group of its own. Three things end it with the agent,
however the agent ends: the kernel's parent-death signal (the first process of each container, at
once), the guard (every descendant, moments later) and the sweep at the next start.

The parent-death signal follows the *thread* that forked. `LinuxProcesses.start` therefore belongs
to the thread that runs the event loop and lives as long as the agent: the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spinney.local.nodeagent import guard
from spinney.local.nodeagent.process import ProcessExit, ProcessSpec, StartError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.local.nodeagent.process import Output, Stream

READ_BYTES = 65536
REAP_TIMEOUT_S = 5.0
"""How long a killed process may take to be gone when its owner no longer waits for it."""
_PR_SET_PDEATHSIG = 1
_START_TICKS_FIELD = 19
"""Of /proc/PID/stat, counted after the command's closing parenthesis."""

_libc = ctypes.CDLL(None, use_errno=True)

log = get_logger("nodeagent")


class LinuxProcesses:
    """Starts programs marked as children of one instance of one agent."""

    def __init__(self, agent_id: str, instance: str) -> None:
        self.prefix = f"{agent_id}/{instance}"

    def start(self, spec: ProcessSpec, output: Output) -> LinuxProcess:
        """Start *spec* in a session of its own; raise StartError."""
        mark = f"{self.prefix}/{spec.mark}"
        marked = replace(spec, env={**spec.env, guard.MARK: mark})
        return LinuxProcess(marked, output, mark if spec.sweep else "")


class LinuxProcess:
    """A running program."""

    def __init__(self, spec: ProcessSpec, output: Output, sweep_mark: str) -> None:
        self._output = output
        self._sweep_mark = sweep_mark
        out, out_write = _pipe()
        err, err_write = _pipe()
        try:
            self._popen = _spawn(spec, out_write, err_write)
        except StartError:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_write)
            os.close(err_write)
        self._ended = os.pidfd_open(self.pid)
        self.start_ticks = start_ticks(self.pid)
        self._streams: dict[int, Stream] = {out: "stdout", err: "stderr"}
        loop = asyncio.get_running_loop()
        for descriptor in self._streams:
            loop.add_reader(descriptor, self._read, descriptor)

    @property
    def pid(self) -> int:
        """The first process's id, also that of its group."""
        return self._popen.pid

    def signal(self, number: int) -> None:
        """Send a signal to all of the group; nothing happens when it is gone."""
        # Until the leader is reaped its id, and so the group's, belongs to nobody else.
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def wait(self) -> ProcessExit:
        """Return when the first process has ended and the rest of its group was killed."""
        try:
            await _readable(self._ended)
            self.signal(signal.SIGKILL)
            code = self._popen.wait()
            if self._sweep_mark:
                await _sweep(self._sweep_mark)
        finally:
            self._close()
        return ProcessExit(128 - code, -code) if code < 0 else ProcessExit(code)

    def _read(self, descriptor: int) -> bool:
        """Pass on what is there; return False when there is no more now."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        stream = self._streams[descriptor]
        if data:
            self._output(stream, data)
            return True
        self._forget(descriptor)
        return False

    def _forget(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        del self._streams[descriptor]
        os.close(descriptor)

    def _close(self) -> None:
        if self._popen.returncode is None:
            self.signal(signal.SIGKILL)
            self._popen.wait(REAP_TIMEOUT_S)
        for descriptor in list(self._streams):
            while descriptor in self._streams and self._read(descriptor):
                pass
            if descriptor in self._streams:
                self._forget(descriptor)
        os.close(self._ended)


class Guard:
    """The process that ends everything marked with *prefix* when this one is gone."""

    def __init__(self, prefix: str) -> None:
        program = [sys.executable, "-I", "-S", guard.__file__, prefix]
        self._popen = subprocess.Popen(
            program, stdin=subprocess.PIPE, start_new_session=True, env={"PATH": os.defpath}
        )

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._popen.pid

    async def watch(self) -> None:
        """Return when the guard has ended, which it does not while this process lives."""
        descriptor = os.pidfd_open(self.pid)
        try:
            await _readable(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let the guard sweep and end."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait(REAP_TIMEOUT_S)


def start_ticks(pid: int) -> int:
    """Return when *pid* started, in kernel ticks since boot; 0 if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[_START_TICKS_FIELD])


def boot_id() -> str:
    """Return what tells this boot of the machine from any other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kill_group_of(pid: int, started_ticks: int) -> bool:
    """Kill the group that *pid* leads if it is the process that started then; tell if it was."""
    if pid <= 0 or started_ticks <= 0 or start_ticks(pid) != started_ticks:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return True


def find_program(name: str, path: str, cwd: str) -> str | None:
    """Return the file that would run as *name*, or None."""
    if "/" in name:
        name = os.path.join(cwd, name)
    return shutil.which(name, path=path)


def _spawn(spec: ProcessSpec, out: int, err: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            spec.argv,
            env=dict(spec.env),
            cwd=spec.cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise StartError(f"cannot run {spec.argv[0]!r} in {spec.cwd}: {error}") from error


def _die_with(parent: int) -> Callable[[], None]:
    """Return what the child runs between fork and exec."""

    def ask_for_the_signal() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the request took hold.
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_the_signal


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    return read, write


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def _sweep(mark: str) -> None:
    """Kill what left the group but carries the mark."""
    for _ in range(guard.SWEEP_PASSES):
        if guard.kill_marked(mark) == 0:
            return
        await asyncio.sleep(guard.PASS_WAIT_S)
    log.error("processes of a container do not end", mark=mark, pids=guard.marked(mark))
