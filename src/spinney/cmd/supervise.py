"""Keeps a local cluster's two processes running: the control plane and the node agent.

They are separate so that either can die alone. The API server's state is on disk and pods are the
agent's children, so a control plane that is killed comes back with all objects while pods run on;
an agent that is killed takes its pods with it and starts them again. When the supervisor itself
goes, both follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from spinney import log
from spinney.cmd.session import spinney_home
from spinney.local.home import ClusterHome, ClusterHomeError, Supervisor, process_started

if TYPE_CHECKING:
    from pathlib import Path

RESTART_BASE_S = 0.2
RESTART_MAX_S = 10.0
STEADY_S = 30.0
"""A process that ran so long is restarted at once; before, with growing delays."""
MAX_EARLY_DEATHS = 5
"""A control plane that dies so often before it is up will not come up by itself."""
AGENT_STOP_S = 45.0
CONTROL_PLANE_STOP_S = 10.0

_log = log.get_logger("supervisor")


@dataclass(slots=True)
class _Child:
    """A process to keep running."""

    name: str
    arguments: list[str]
    log: Path
    stop_s: float
    process: asyncio.subprocess.Process | None = None
    stopping: bool = False

    async def run(self) -> None:
        """Start it, and again when it ends; raise ClusterHomeError if it cannot stay up."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self.stopping:
            began = loop.time()
            code = await self._run_once()
            if self.stopping:
                return
            ran_s = loop.time() - began
            deaths = 0 if ran_s > STEADY_S else deaths + 1
            if deaths >= MAX_EARLY_DEATHS:
                raise ClusterHomeError(
                    f"{self.name} ended {deaths} times within {STEADY_S:g} s of its start, "
                    f"last with code {code}; its log is {self.log}"
                )
            delay_s = min(RESTART_MAX_S, RESTART_BASE_S * 2**deaths) if deaths else 0.0
            _log.warning("process ended", name=self.name, code=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _run_once(self) -> int:
        with self.log.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "spinney.cmd.main",
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        _log.info("process started", name=self.name, pid=self.process.pid)
        return await self.process.wait()

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL after its time."""
        self.stopping = True
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self.stop_s):
                await process.wait()
        except TimeoutError:
            _log.warning("process did not end in time", name=self.name, waited_s=self.stop_s)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@click.command(hidden=True)
@click.option("--port", type=int, default=0, help="Port of the API server; 0 picks a free one.")
def supervise(port: int) -> None:
    """Run the local cluster in this process's foreground."""
    log.configure()
    home = ClusterHome(spinney_home())
    home.prepare()
    if home.supervisor():
        raise ClusterHomeError(f"a local cluster is already running in {home.root}")
    started = process_started(os.getpid())
    assert started is not None
    home.write_supervisor(Supervisor(os.getpid(), started))
    asyncio.run(_supervise(home, port))


async def _supervise(home: ClusterHome, port: int) -> None:
    control_plane = _Child(
        "control-plane",
        ["control-plane", "--home", str(home.root), "--port", str(port)],
        home.logs / "control-plane.log",
        CONTROL_PLANE_STOP_S,
    )
    nodes = ["--nodes", str(home.nodes)] if home.nodes.exists() else []
    agent = _Child(
        "nodeagent",
        [
            "nodeagent",
            "--kubeconfig",
            str(home.kubeconfig),
            "--state-dir",
            str(home.agent),
            "--network",
            home.network,
            *nodes,
        ],
        home.logs / "nodeagent.log",
        AGENT_STOP_S,
    )
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(control_plane.run())
            keep_agent = group.create_task(_run_after(home.kubeconfig, agent))
            await done.wait()
            # Pods end first, while there is still an API to report it to.
            await agent.stop()
            await control_plane.stop()
            keep_agent.cancel()
    finally:
        for child in (agent, control_plane):
            await child.stop()


async def _run_after(kubeconfig: Path, agent: _Child) -> None:
    # The control plane writes it, as another process, when its API answers.
    while not kubeconfig.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await agent.run()
