"""The control plane of a local cluster: API server, controllers and scheduler on one loop.

Controllers and scheduler talk to the API in-process, through the same handler that serves kubectl
over HTTPS. The kubeconfig is written when the API answers, so that its file is the sign that the
cluster is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from dataclasses import replace
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING

import click
from prometheus_client import CollectorRegistry

from spinney import log
from spinney.api.names import SPINNEY_SCHEDULER
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.local.home import ClusterHome, Supervisor, process_started
from spinney.local.lifeline import die_with_parent

if TYPE_CHECKING:
    from spinney.kube.client import KubeClient
    from spinney.local.apiserver.server import ApiServer
    from spinney.scheduler.config import SchedulerConfig

HOST = "127.0.0.1"
TOPOLOGY = "cluster"
TOPOLOGY_LEVELS = (
    ("zone", "topology.kubernetes.io/zone"),
    ("rack", "topology.kubernetes.io/rack"),
    ("host", "kubernetes.io/hostname"),
)

SCHEDULER_NAMES = (SPINNEY_SCHEDULER, "kai-scheduler", "default-scheduler")
"""A local cluster has one scheduler; it places what is written for others too."""

_log = log.get_logger("control-plane")


@click.command("control-plane")
@click.option("--home", type=click.Path(file_okay=False), required=True, help="Folder of state.")
@click.option("--port", type=int, default=0, help="Port of the API server; 0 picks a free one.")
@click.option("--log-level", default="info", show_default=True)
def control_plane(home: str, port: int, log_level: str) -> None:
    """Run the API server, the controllers and the scheduler of a local cluster.

    `spinney up` starts it; alone it serves a cluster without nodes.
    """
    log.configure(level=log_level)
    die_with_parent(signal.SIGTERM)
    folder = ClusterHome(Path(home))
    folder.prepare()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(folder, port))


async def _run(home: ClusterHome, port: int) -> None:
    from spinney.api.crd import crd_documents
    from spinney.api.grove_admission import GroveAdmission
    from spinney.api.grove_policy import placed_by_spinney
    from spinney.local.apiserver.http import HttpServer
    from spinney.local.apiserver.persistence import SqlitePersistence
    from spinney.local.apiserver.server import ApiServer
    from spinney.local.apiserver.tls import credentials, write_kubeconfig
    from spinney.metrics import exposition

    clock, config = SystemClock(), _scheduler_config(home)
    api = ApiServer(
        clock,
        RandomIds(),
        persistence=SqlitePersistence(home.database),
        hooks=[GroveAdmission(placed_by_spinney(SCHEDULER_NAMES))],
        definitions=crd_documents(),
    )
    try:
        found = credentials(home.tls, clock.now())
        registry = CollectorRegistry()
        metrics = functools.partial(exposition, registry)
        server = HttpServer(api, found, HOST, port or _last_port(home), metrics=metrics)
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, done.set)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.run())
            working = group.create_task(_work(api, config, registry))
            _record(home, server.url)
            write_kubeconfig(home.kubeconfig, server.url, found)
            _log.info("the API answers", url=server.url)
            await done.wait()
            working.cancel()
            server.stop()
            await serving
    finally:
        await api.close()


async def _work(api: ApiServer, config: SchedulerConfig, registry: CollectorRegistry) -> None:
    """Run what acts on the API, until cancelled."""
    from spinney.controllers import setup as controllers
    from spinney.kube.client import KubeClient
    from spinney.kube.controller import Runtime
    from spinney.kube.events import EventRecorder
    from spinney.scheduler import setup as scheduler
    from spinney.scheduler.published import publish

    clock, ids, rng = SystemClock(), RandomIds(), Random(SystemRandom().getrandbits(64))
    client = KubeClient(api)
    await _create_topology(client)
    runtime = Runtime(client, clock, rng=rng, registry=registry)
    recorders = [
        EventRecorder(client, clock, ids, component)
        for component in ("spinney-controllers", "spinney-scheduler")
    ]
    controllers.register(runtime, ids, recorders[0], registry=registry)
    scheduler.register(runtime, ids, recorders[1], config, registry)
    await publish(client, config)
    async with asyncio.TaskGroup() as group:
        for recorder in recorders:
            group.create_task(recorder.run())
        group.create_task(runtime.run())


def _scheduler_config(home: ClusterHome) -> SchedulerConfig:
    """Return what ``scheduler.yaml`` in the cluster's folder says, for all the names it serves."""
    from spinney.cmd.scheduler import read_config_file
    from spinney.scheduler.config import SchedulerConfig

    path = home.root / "scheduler.yaml"
    config = read_config_file(path) if path.exists() else SchedulerConfig()
    return replace(config, scheduler_names=SCHEDULER_NAMES)


async def _create_topology(client: KubeClient) -> None:
    from spinney.api.grove import (
        ClusterTopologyBinding,
        ClusterTopologyBindingSpec,
        TopologyLevel,
    )
    from spinney.api.meta import ObjectMeta
    from spinney.kube.errors import AlreadyExistsError

    levels = [TopologyLevel(domain=domain, key=key) for domain, key in TOPOLOGY_LEVELS]
    with contextlib.suppress(AlreadyExistsError):
        await client.create(
            ClusterTopologyBinding(
                metadata=ObjectMeta(name=TOPOLOGY), spec=ClusterTopologyBindingSpec(levels=levels)
            )
        )


def _last_port(home: ClusterHome) -> int:
    """Return the port that clients know from the kubeconfig, if it was restarted; else 0."""
    record = home.supervisor()
    if record is None or not record.url:
        return 0
    return int(record.url.rpartition(":")[2])


def _record(home: ClusterHome, url: str) -> None:
    """Write where the API is into the supervisor's record, or a record of our own."""
    record = home.supervisor()
    if record is None:
        started = process_started(os.getpid())
        assert started is not None
        record = Supervisor(os.getpid(), started)
    home.write_supervisor(Supervisor(record.pid, record.started, url))
