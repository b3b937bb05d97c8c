"""``spinney up``: start a local cluster and wait until its nodes are ready."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from typing import TYPE_CHECKING

import click

from spinney.api.core import Node
from spinney.cli.session import CommandError, Session, columns, pass_session
from spinney.errors import BadInputError
from spinney.kube.errors import ApiError
from spinney.kube.transport import TransportError
from spinney.local.cluster_config import read_nodes
from spinney.local.home import ClusterHome, process_started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spinney.kube.client import KubeClient

POLL_S = 0.1
DEFAULT_PORT = 6443


@click.command()
@click.option("--nodes", type=click.Path(exists=True, dir_okay=False), help="YAML file of nodes.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port of the API server on 127.0.0.1; 0 picks a free one.",
)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait until ready.")
@pass_session
def up(session: Session, nodes: str | None, port: int, timeout: float) -> None:
    """Start a local cluster: API server, controllers, scheduler and node agent.

    Its state is kept in ~/.spinney (or $SPINNEY_HOME); `spinney down` stops it, and another
    `spinney up` goes on where it was.

    \b
    Examples:
      spinney up
      spinney up --nodes my-racks.yaml
      KUBECONFIG=~/.spinney/kubeconfig kubectl get nodes
    """
    home = ClusterHome(session.home)
    _refuse_second(home)
    wanted = read_nodes(nodes)
    _refuse_taken_port(port)
    home.prepare()
    if nodes:
        shutil.copyfile(nodes, home.nodes)
    elif home.nodes.exists():
        home.nodes.unlink()
    home.kubeconfig.unlink(missing_ok=True)
    log = home.logs / "supervisor.log"
    click.echo(f"Starting a local cluster of {len(wanted)} nodes in {home.root} …")
    pid = session.launch(["supervise", "--port", str(port)], log)
    _wait_for_kubeconfig(home, pid, log, timeout)
    found = asyncio.run(_wait_for_nodes(session.connect, home, len(wanted), timeout))
    for line in columns(_node_rows(found)):
        click.echo(f"  {line}")
    click.echo(f"Ready. kubectl reaches it with: export KUBECONFIG={home.kubeconfig}")


def _refuse_second(home: ClusterHome) -> None:
    running = home.supervisor()
    if running:
        raise CommandError(
            f"a local cluster is already running in {home.root} (process {running.pid}). "
            f"Stop it with `spinney down`, or start another with SPINNEY_HOME set to a new folder."
        )


def _refuse_taken_port(port: int) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInputError(
                f"port {port} on 127.0.0.1 cannot be used: {error.strerror}. "
                f"Name another with --port, or --port 0 for any free one."
            ) from error


def _wait_for_kubeconfig(home: ClusterHome, pid: int, log: Path, timeout_s: float) -> None:
    async def wait() -> None:
        async with asyncio.timeout(timeout_s):
            while not home.kubeconfig.exists():
                if process_started(pid) is None:
                    raise CommandError(_died(log))
                await asyncio.sleep(POLL_S)

    try:
        asyncio.run(wait())
    except TimeoutError:
        raise CommandError(
            f"the API server did not start within {timeout_s:g} s; its log is {log}"
        ) from None


def _died(log: Path) -> str:
    tail = log.read_text(errors="replace").splitlines()[-8:]
    return "\n".join(["the cluster stopped while it started; the end of its log:", *tail])


async def _wait_for_nodes(
    connect: Callable[[], KubeClient], home: ClusterHome, wanted: int, timeout_s: float
) -> list[Node]:
    os.environ["KUBECONFIG"] = str(home.kubeconfig)
    client = connect()
    found: list[Node] = []
    try:
        async with asyncio.timeout(timeout_s):
            while len(found) < wanted:
                await asyncio.sleep(POLL_S)
                found = await _ready_nodes(client)
    except TimeoutError:
        raise CommandError(
            f"{len(found)} of {wanted} nodes are ready after {timeout_s:g} s; "
            f"the node agent's log is {home.logs / 'nodeagent.log'}"
        ) from None
    finally:
        await client.close()
    return found


async def _ready_nodes(client: KubeClient) -> list[Node]:
    try:
        nodes = (await client.list(Node)).items
    except (ApiError, TransportError):
        return []
    return [n for n in nodes if any(c.get("type") == "Ready" for c in n.status.conditions)]


def _node_rows(nodes: list[Node]) -> list[list[str]]:
    rows = [
        [
            node.name,
            node.labels.get("topology.kubernetes.io/rack", ""),
            str(node.status.allocatable.get("nvidia.com/gpu", 0)),
            next((a.address for a in node.status.addresses if a.type == "InternalIP"), ""),
        ]
        for node in nodes
    ]
    return [["NODE", "RACK", "GPUS", "ADDRESS"], *rows]
