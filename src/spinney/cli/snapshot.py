"""``spinney snapshot``: the cluster's scheduling state as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spinney.cli.session import Session, pass_session
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.scenario import Objects


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


config_option = click.option(
    "--config",
    "config_file",
    help="Scheduler configuration, YAML or JSON. Default: the cluster's; with --snapshot, none.",
)


def config_of(config_file: str | None) -> SchedulerConfig:
    """Return the configuration in *config_file*, or the default one."""
    from spinney.cli.schedule import text_of
    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.snapshot_file import read_config

    return read_config(text_of(config_file), config_file) if config_file else SchedulerConfig()


def live_objects(session: Session) -> Objects:
    """Return the scheduling state of the cluster that *session* means."""
    from spinney.scheduler.live import read_cluster

    return session.run(read_cluster)


def situation_of(
    session: Session, snapshot_file: str | None, config_file: str | None
) -> tuple[Objects, float, SchedulerConfig]:
    """Return the state in *snapshot_file*, or of the cluster without one, its time, and the
    configuration by which it is scheduled."""
    from spinney.cli.schedule import text_of
    from spinney.scheduler.published import published
    from spinney.scheduler.scenario import objects
    from spinney.scheduler.snapshot_file import first_cycle_s, read

    if snapshot_file is None:
        state = live_objects(session)
        config = config_of(config_file) if config_file else session.run(published)
        return state, session.clock.now(), config
    found = read(text_of(snapshot_file), snapshot_file)
    return objects(found), first_cycle_s(found), config_of(config_file)
