"""What survives the agent: its identity, the runs of its pods, their files.

    agent-id                 names the agent to the marks on its processes
    lock                     held by the one agent that uses the directory
    pods/UID/run.json        what is known of the pod, written before and after each start
    pods/UID/scratch         working directory of its containers
    pods/UID/volumes/NAME    its volumes
    logs/UID/CONTAINER/N.log

A run is written before its process is forked and again with the process's id and start time. So
what an agent that was killed left running is found again, and no foreign process is taken for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from spinney.errors import SpinneyError
from spinney.local.nodeagent import guard
from spinney.local.nodeagent.linux import boot_id, kill_group_of
from spinney.local.nodeagent.runs import PodRun
from spinney.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from spinney.ids import IdSource

log = get_logger("nodeagent")


class StateDirError(SpinneyError):
    """The state directory cannot be used."""


class _Saved(msgspec.Struct, frozen=True):
    boot_id: str
    run: PodRun


class StateDir:
    """A directory that belongs to one agent at a time."""

    def __init__(self, root: Path, ids: IdSource) -> None:
        """Take the directory; raise StateDirError when another agent has it."""
        self.root = root
        (root / "pods").mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self.agent_id = self._identity(ids)
        self._boot_id = boot_id()

    @property
    def logs(self) -> Path:
        """Where logs are kept."""
        return self.root / "logs"

    def scratch(self, uid: str) -> Path:
        """Return the pod's working directory, made if need be."""
        path = self._pod(uid) / "scratch"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def volumes(self, uid: str) -> Path:
        """Return where the pod's volumes are."""
        return self._pod(uid) / "volumes"

    def save(self, run: PodRun) -> None:
        """Keep *run*; it replaces what was kept of this pod as a whole or not at all."""
        folder = self._pod(run.uid)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "run.json.new"
        fresh.write_bytes(msgspec.json.encode(_Saved(self._boot_id, durable(run))))
        os.replace(fresh, folder / "run.json")

    def load(self) -> dict[str, PodRun]:
        """Return the kept runs by pod uid; what cannot be read is logged and left out."""
        found = {}
        for path in sorted((self.root / "pods").glob("*/run.json")):
            try:
                saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
            except (msgspec.MsgspecError, OSError) as error:
                log.error("a saved run cannot be read", path=str(path), error=str(error))
                continue
            found[saved.run.uid] = saved.run
        return found

    def kill_leftovers(self) -> int:
        """Kill what an earlier agent of this directory left running; return how many it found."""
        found = 0
        for path in (self.root / "pods").glob("*/run.json"):
            try:
                saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
            except (msgspec.MsgspecError, OSError):
                continue
            if saved.boot_id == self._boot_id:
                live = [c for c in saved.run.containers if c.live]
                found += sum(kill_group_of(c.pid, c.pid_start) for c in live)
        found += len(guard.marked(f"{self.agent_id}/"))
        if not guard.sweep(f"{self.agent_id}/"):
            pids = guard.marked(f"{self.agent_id}/")
            raise StateDirError(f"processes {pids} of an earlier agent do not end")
        return found

    def remove(self, uid: str) -> None:
        """Forget a pod and remove its files, logs excepted."""
        shutil.rmtree(self._pod(uid), ignore_errors=True)

    def close(self) -> None:
        """Let another agent have the directory."""
        self._lock.close()

    def _pod(self, uid: str) -> Path:
        return self.root / "pods" / uid

    def _take_lock(self) -> BinaryIO:
        lock = (self.root / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StateDirError(
                f"{self.root} is in use by another node agent; stop it or choose another directory"
            ) from error
        return lock

    def _identity(self, ids: IdSource) -> str:
        path = self.root / "agent-id"
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(ids.uid())
            os.replace(fresh, path)
        return path.read_text().strip()


def durable(run: PodRun) -> PodRun:
    """Return *run* without what starts anew with the agent: probes, kills in progress."""
    containers = tuple(
        replace(c, startup=None, readiness=None, liveness=None, kill=None) for c in run.containers
    )
    return replace(run, containers=containers, stop=None)
