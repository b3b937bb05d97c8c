"""Builds what a verb works with: the real clock, the real cluster, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spinney.cli.session import CommandError, Session
from spinney.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kube.client import KubeClient

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where a pod finds who it is."""
KUBECONFIG = "kubeconfig"
"""The file in the local cluster's home that names it."""


def build_session(kubeconfig: str | None) -> Session:
    """Return the session of this process; *kubeconfig* is what the user named, if anything."""
    home = spinney_home()
    return Session(
        home=home,
        connect=lambda: _connect(kubeconfig, home),
        clock=SystemClock(),
        launch=launch,
    )


def spinney_home() -> Path:
    """Return where the local cluster keeps its state: ``$SPINNEY_HOME`` or ``~/.spinney``."""
    return Path(os.environ.get("SPINNEY_HOME") or Path.home() / ".spinney").absolute()


def launch(arguments: Sequence[str], log: Path) -> int:
    """Start ``spinney ARGUMENTS`` in a session of its own, so that it outlives this terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "spinney.cmd.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return process.pid


def _connect(named: str | None, home: Path) -> KubeClient:
    from spinney.kube.client import KubeClient
    from spinney.kube.http import HttpTransport

    if named:
        return KubeClient(HttpTransport.from_kubeconfig(named))
    in_a_pod = os.environ.get("KUBERNETES_SERVICE_HOST") and SERVICE_ACCOUNT.is_file()
    if os.environ.get("KUBECONFIG") or in_a_pod:
        return KubeClient(HttpTransport.from_environment())
    for path in (home / KUBECONFIG, Path.home() / ".kube" / "config"):
        if path.exists():
            return KubeClient(HttpTransport.from_kubeconfig(str(path)))
    raise CommandError(
        f"no cluster: KUBECONFIG is not set, and neither {home / KUBECONFIG} nor ~/.kube/config "
        f"exists. Start a local cluster with `spinney up`, or name one with --kubeconfig."
    )
