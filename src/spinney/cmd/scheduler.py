"""``spinney scheduler``: the scheduler alone, for a cluster that has its own API server.

A local cluster runs it inside its control plane. Several may run for one cluster: the one that
holds the lease works, and the next one goes on from what the API says.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

import click

from spinney.clock import SystemClock
from spinney.cmd.leading import Lease, lead, leading_options, read_leading
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.published import publish
from spinney.scheduler.setup import register
from spinney.scheduler.snapshot_file import read_config, write_config

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from spinney.cli.session import Session
    from spinney.kube.client import KubeClient

LEASE = "spinney-system/spinney-scheduler"


@click.command(
    context_settings={"show_default": True},
    epilog="Schedulers of several node pools need a lease each.",
)
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--print-config", is_flag=True, help="Print the configuration in force and exit.")
@leading_options(LEASE)
@click.pass_obj
def scheduler(
    session: Session, /, *, config_file: Path | None, print_config: bool, **options: Any
) -> None:
    """Place pods whose spec.schedulerName is spinney-scheduler, on any Kubernetes cluster."""
    config = SchedulerConfig() if config_file is None else read_config_file(config_file)
    if config.gpu_reservation == "auto":
        # A cluster of its own has a device plugin, which knows nothing of pods that share.
        config = replace(config, gpu_reservation="device")
    if print_config:
        click.echo(write_config(config), nl=False)
        return
    how = read_leading(options)
    client = session.connect()
    lead(client, how, lambda registry: _schedule(client, config, how.lease, registry))


def read_config_file(path: Path) -> SchedulerConfig:
    """Return the configuration in *path*; raise BadInputError when it cannot be read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from error
    return read_config(text, str(path))


async def _schedule(
    client: KubeClient, config: SchedulerConfig, lease: Lease, registry: CollectorRegistry
) -> None:
    clock, ids, rng = SystemClock(), RandomIds(), Random(SystemRandom().getrandbits(64))
    runtime = Runtime(client, clock, rng=rng, registry=registry)
    events = EventRecorder(client, clock, ids, "spinney-scheduler")
    register(runtime, ids, events, config, registry)
    # The ConfigMap that shows the configuration has the lease's name.
    await publish(client, config, namespace=lease.namespace, name=lease.name)
    async with asyncio.TaskGroup() as group:
        group.create_task(events.run())
        group.create_task(runtime.run())
