"""A program beside an API server: it works while it holds a lease, and always tells how it is.

Several may run for one cluster. The one that holds the lease works, the others wait; ``/metrics``
and ``/healthz`` are answered by all.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import uvicorn
from prometheus_client import CollectorRegistry

from spinney.clock import SystemClock
from spinney.errors import BadInputError
from spinney.ids import RandomIds
from spinney.kube.leader import LeaderElector
from spinney.listener import ListeningServer, listen
from spinney.log import configure, get_logger
from spinney.metrics import CONTENT_TYPE, exposition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spinney.kube.client import KubeClient

log = get_logger("leading")


@dataclass(frozen=True, slots=True)
class Lease:
    """Where the lease is."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Leading:
    """How a program listens and leads."""

    host: str
    port: int
    lease: Lease
    elects: bool
    """False: work at once, without the lease."""


def leading_options(lease: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command the flags of `read_leading`."""
    options = (
        click.option("--host", default="0.0.0.0", help="Address of /metrics and /healthz."),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=8080, help="0 means any free one."
        ),
        click.option(
            "--leader-elect/--no-leader-elect", default=True, help="Work only with the lease."
        ),
        click.option("--lease", default=lease, help="NAMESPACE/NAME of the lease."),
        click.option("--log-level", default="info"),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def read_leading(options: dict[str, Any]) -> Leading:
    """Return what the flags of `leading_options` say, and set logging up; raise BadInputError."""
    namespace, slash, name = options["lease"].partition("/")
    if not slash or not namespace or not name:
        raise BadInputError(
            f"--lease takes NAMESPACE/NAME, such as spinney-system/main, not {options['lease']!r}"
        )
    configure(level=options["log_level"])
    lease = Lease(namespace, name)
    return Leading(options["host"], options["port"], lease, elects=options["leader_elect"])


@dataclass(slots=True)
class _Figures:
    """The figures of this turn as leader: they begin anew with the next."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

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


def lead(
    client: KubeClient, how: Leading, work: Callable[[CollectorRegistry], Awaitable[None]]
) -> None:
    """Run *work* while this process leads, until SIGTERM or SIGINT.

    *work* is given the registry of its figures and runs until cancelled; it is started anew when
    the lease was lost and came back. Raises BadInputError when the address cannot be listened on.
    """
    asyncio.run(_lead(client, how, work, listen(how.host, how.port)))


async def _lead(
    client: KubeClient,
    how: Leading,
    work: Callable[[CollectorRegistry], Awaitable[None]],
    found: socket.socket,
) -> None:
    figures = _Figures()
    config = uvicorn.Config(
        figures.answer, interface="asgi3", lifespan="off", log_config=None, access_log=False
    )
    server = ListeningServer(config)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    log.info("figures are served", address="{}:{}".format(*found.getsockname()[:2]))

    async def turn() -> None:
        figures.registry = CollectorRegistry()
        await work(figures.registry)

    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve_until_stopped(found))
            working = group.create_task(_elected(client, how, turn))
            await done.wait()
            working.cancel()
            server.stop()
            await serving
    finally:
        await client.close()


async def _elected(client: KubeClient, how: Leading, turn: Callable[[], Awaitable[None]]) -> None:
    if not how.elects:
        await turn()
        return
    lease, ids = how.lease, RandomIds()
    # Two processes of one host are two.
    identity = f"{socket.gethostname()}_{ids.uid()[:8]}"
    elector = LeaderElector(client, SystemClock(), ids, lease.name, lease.namespace, identity)
    await elector.run(turn)
