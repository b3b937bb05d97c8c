"""``spinney snapshot``: the cluster's scheduling state as a file."""

from __future__ import annotations

from pathlib import Path

import click

from spinney.cli.session import Session, pass_session
from spinney.cli.situation import live_objects
from spinney.errors import BadInputError


@click.command()
@click.option("-f", "--filename", default="-", help="Where to write; standard output unless given.")
@pass_session
def snapshot(session: Session, filename: str) -> None:
    """Save what the scheduler sees of the cluster: nodes, queues, gangs and pods.

    The file has no images, environment or secrets. docs/scheduler-snapshot.md describes it.

    \b
    Examples:
      spinney snapshot > now.yaml
      spinney schedule --snapshot now.yaml
    """
    from spinney.scheduler.snapshot_file import write
    from spinney.scheduler.snapshot_writer import scenario_of

    text = write(scenario_of(live_objects(session), session.clock.now()))
    if filename == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(filename).write_text(text)
    except OSError as error:
        raise BadInputError(f"{filename}: cannot be written: {error}") from error
