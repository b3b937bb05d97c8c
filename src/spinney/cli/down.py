"""``spinney down``: stop the local cluster and everything it runs."""

from __future__ import annotations

import asyncio
import shutil
import signal

import click

from spinney.cli.session import CommandError, Session, pass_session
from spinney.local.home import ClusterHome, Supervisor, process_started, signal_supervisor

POLL_S = 0.1


@click.command()
@click.option("--delete-state", is_flag=True, help="Also forget all objects, logs and keys.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds until it is killed.")
@pass_session
def down(session: Session, delete_state: bool, timeout: float) -> None:
    """Stop the local cluster: pods first, then its own processes.

    Its objects are kept and come back with the next `spinney up`, unless --delete-state is given.
    """
    home = ClusterHome(session.home)
    running = home.supervisor()
    if running is None:
        click.echo(f"No local cluster is running in {home.root}.")
    else:
        click.echo("Stopping pods and the cluster …")
        signal_supervisor(running, signal.SIGTERM)
        asyncio.run(_wait_gone(running, timeout))
        click.echo("Stopped.")
    home.record.unlink(missing_ok=True)
    home.kubeconfig.unlink(missing_ok=True)
    if delete_state and home.root.exists():
        shutil.rmtree(home.root)
        click.echo(f"Deleted {home.root}.")


async def _wait_gone(running: Supervisor, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            # A process that is not our child can only be asked after.
            while process_started(running.pid) == running.started:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        signal_supervisor(running, signal.SIGKILL)
        raise CommandError(
            f"the cluster did not stop within {timeout_s:g} s and was killed; "
            f"its pods' processes end with it"
        ) from None
