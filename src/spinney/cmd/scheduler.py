"""``spinney scheduler``: the scheduler alone, for a cluster that has its own API server.

A local cluster runs it inside its control plane. Several may run for one cluster: the one that
holds the lease works, and the next one goes on from what the API says.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING

import click
import uvicorn
from prometheus_client import CollectorRegistry

from spinney.clock import SystemClock
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.kube.leader import LeaderElector
from spinney.listener import ListeningServer, listen
from spinney.log import configure, get_logger
from spinney.metrics import CONTENT_TYPE, exposition
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.published import publish
from spinney.scheduler.setup import register
from spinney.scheduler.snapshot_file import read_config, write_config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from spinney.cli.session import Session
    from spinney.kube.client import KubeClient

log = get_logger("scheduler")

LEASE = "spinney-system/spinney-scheduler"


@click.command(context_settings={"show_default": True})
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--print-config", is_flag=True, help="Print the configuration in force and exit.")
@click.option("--host", default="0.0.0.0", help="Address of /metrics and /healthz.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0 means any free one.")
@click.option("--leader-elect/--no-leader-elect", default=True, help="Work only with the lease.")
@click.option("--lease", default=LEASE, help="NAMESPACE/NAME of the lease; one for each pool.")
@click.option("--log-level", default="info")
@click.pass_obj
def scheduler(
    session: Session,
    *,
    config_file: Path | None,
    print_config: bool,
    host: str,
    port: int,
    leader_elect: bool,
    lease: str,
    log_level: str,
) -> None:
    """Place pods whose spec.schedulerName is spinney-scheduler, on any Kubernetes cluster."""
    config = SchedulerConfig() if config_file is None else read_config_file(config_file)
    if print_config:
        click.echo(write_config(config), nl=False)
        return
    namespace, slash, name = lease.partition("/")
    if not slash or not namespace or not name:
        raise BadInputError(f"--lease takes NAMESPACE/NAME, such as {LEASE}")
    configure(level=log_level)
    program = _Program(session.connect(), config, lease)
    elector = program.elector() if leader_elect else None
    asyncio.run(_run(program, elector, listen(host, port)))


def read_config_file(path: Path) -> SchedulerConfig:
    """Return the configuration in *path*; raise BadInputError when it cannot be read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from error
    return read_config(text, str(path))


@dataclass(slots=True)
class _Program:
    client: KubeClient
    config: SchedulerConfig
    lease: str
    """Namespace and name of the lease, and of the ConfigMap that shows the configuration."""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    """Of this turn as leader: the figures begin anew with the next."""

    def elector(self) -> LeaderElector:
        namespace, _, name = self.lease.partition("/")
        identity = socket.gethostname()
        return LeaderElector(self.client, SystemClock(), RandomIds(), name, namespace, identity)

    async def work(self) -> None:
        """Schedule until cancelled."""
        clock, ids, rng = SystemClock(), RandomIds(), Random(SystemRandom().getrandbits(64))
        self.registry = CollectorRegistry()
        runtime = Runtime(self.client, clock, rng=rng, registry=self.registry)
        events = EventRecorder(self.client, clock, ids, "spinney-scheduler")
        register(runtime, ids, events, self.config, self.registry)
        namespace, _, name = self.lease.partition("/")
        await publish(self.client, self.config, namespace=namespace, name=name)
        async with asyncio.TaskGroup() as group:
            group.create_task(events.run())
            group.create_task(runtime.run())

    async def answer(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve ``/metrics`` and ``/healthz``; an ASGI application."""
        del receive
        status, kind, body = 404, "text/plain", b"there are /metrics and /healthz\n"
        if scope["path"] == "/metrics":
            status, kind, body = 200, CONTENT_TYPE, exposition(self.registry)
        elif scope["path"] == "/healthz":
            status, body = 200, b"ok"
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _run(program: _Program, elector: LeaderElector | None, found: socket.socket) -> None:
    config = uvicorn.Config(
        program.answer,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    server = ListeningServer(config)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    log.info("figures are served", address="{}:{}".format(*found.getsockname()[:2]))
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve_until_stopped(found))
            work = program.work if elector is None else lambda: elector.run(program.work)
            working = group.create_task(_awaited(work))
            await done.wait()
            working.cancel()
            server.stop()
            await serving
    finally:
        await program.client.close()


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()
