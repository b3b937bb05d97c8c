"""What questions to the scheduler are about: a cluster or a file, and a configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from spinney.cli.session import Session
    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.scenario import Objects

config_option = click.option(
    "--config",
    "config_file",
    help="Scheduler configuration, YAML or JSON. Default: the cluster's; with --snapshot, none.",
)


def config_of(config_file: str | None) -> SchedulerConfig:
    """Return the configuration in *config_file*, or the default one."""
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
    from spinney.scheduler.published import published
    from spinney.scheduler.scenario import objects
    from spinney.scheduler.snapshot_file import first_cycle_s, read

    if snapshot_file is None:
        state = live_objects(session)
        config = config_of(config_file) if config_file else session.run(published)
        return state, session.clock.now(), config
    found = read(text_of(snapshot_file), snapshot_file)
    return objects(found), first_cycle_s(found), config_of(config_file)


def text_of(path: str) -> str:
    """Return what is in the file *path*, or in standard input for ``-``."""
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from error
