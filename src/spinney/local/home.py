"""The folder of a local cluster: its files, and which processes it runs.

``cluster.json`` says who supervises the cluster. A process is known by its id *and* its start
time, so that a recycled id is never taken for it, and never signalled.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    import signal


class ClusterHomeError(SpinneyError):
    """The local cluster's folder is not usable as it is."""


class Supervisor(msgspec.Struct):
    """Who keeps the cluster running, and where it listens."""

    pid: int
    started: int
    """Start time of the process in clock ticks since boot, from ``/proc/PID/stat``."""
    url: str = ""


@dataclass(frozen=True, slots=True)
class ClusterHome:
    """Paths of one local cluster."""

    root: Path

    @property
    def kubeconfig(self) -> Path:
        """How kubectl and Spinney's programs reach the API."""
        return self.root / "kubeconfig"

    @property
    def database(self) -> Path:
        """The API server's state."""
        return self.root / "state.db"

    @property
    def tls(self) -> Path:
        """Certificates and the token."""
        return self.root / "tls"

    @property
    def logs(self) -> Path:
        """Logs of the cluster's own processes."""
        return self.root / "logs"

    @property
    def agent(self) -> Path:
        """The node agent's state: pods' folders and logs."""
        return self.root / "agent"

    @property
    def nodes(self) -> Path:
        """The declaration of nodes that the cluster was started with."""
        return self.root / "nodes.yaml"

    @property
    def record(self) -> Path:
        """Who supervises the cluster."""
        return self.root / "cluster.json"

    @property
    def network(self) -> str:
        """Where nodes and pods have their addresses, unless the nodes file says.

        It follows from the folder, so that clusters that run side by side seldom share one.
        """
        return f"127.{10 + zlib.crc32(str(self.root).encode()) % 240}.0.0/16"

    def prepare(self) -> None:
        """Make the folder, readable by its owner only: it holds keys."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise ClusterHomeError(
                f"{self.root} cannot be used for the cluster's state: {error}. "
                f"Name another folder in SPINNEY_HOME."
            ) from error

    def supervisor(self) -> Supervisor | None:
        """Return the supervisor if it is alive, else None."""
        try:
            record = msgspec.json.decode(self.record.read_bytes(), type=Supervisor)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return record if process_started(record.pid) == record.started else None

    def write_supervisor(self, record: Supervisor) -> None:
        """Record *record*, whole or not at all."""
        draft = self.record.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(self.record)


def process_started(pid: int) -> int | None:
    """Return the start time of a live process in clock ticks since boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def signal_supervisor(record: Supervisor, number: signal.Signals) -> None:
    """Send a signal to the supervisor unless it has gone."""
    if process_started(record.pid) == record.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
