"""``spinney nodeagent``: runs the pods of this machine's nodes until SIGTERM or SIGINT.

It ends its pods' processes, with their grace but within a bound, and exits with 0. The main thread
runs the event loop: the kernel ends pods' processes with the thread that started them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import yaml

from spinney.api.core import Pod
from spinney.clock import SystemClock
from spinney.errors import BadInputError, SpinneyError
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.events import EventRecorder
from spinney.kube.http import HttpTransport
from spinney.kube.informer import Informer
from spinney.local.cluster_config import DEFAULT_NETWORK, read_nodes
from spinney.local.lifeline import die_with_parent
from spinney.local.nodeagent import log_server
from spinney.local.nodeagent.agent import BOUND_PODS, NodeAgent
from spinney.local.nodeagent.launch import Launcher, surroundings
from spinney.local.nodeagent.linux import Guard, LinuxProcesses
from spinney.local.nodeagent.logs import LogStore
from spinney.local.nodeagent.probes import SocketNetwork
from spinney.local.nodeagent.runs import Policy
from spinney.local.nodeagent.state_dir import StateDir
from spinney.local.nodeagent.worker import Tools
from spinney.log import configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.local.cluster_config import NodeDeclaration

log = get_logger("nodeagent")

_DEFAULTS = Policy()


@click.command(context_settings={"show_default": True})
@click.option(
    "--kubeconfig",
    required=True,
    envvar="KUBECONFIG",
    type=click.Path(dir_okay=False),
    help="The cluster whose pods to run; pods get it too.",
)
@click.option(
    "--nodes",
    "nodes_file",
    type=click.Path(dir_okay=False),
    help="YAML file that declares the nodes. [default: two racks of two hosts with four GPUs each]",
)
@click.option(
    "--network",
    default=DEFAULT_NETWORK,
    help="Where nodes and pods have their addresses, unless the nodes file says.",
)
@click.option(
    "--state-dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where pods' files, logs and the agent's memory are kept.",
)
@click.option(
    "--restart-backoff",
    type=click.FloatRange(min=0.01),
    default=_DEFAULTS.backoff_base_s,
    help="Seconds before the second restart of a container; they double from there.",
)
def nodeagent(
    kubeconfig: str,
    nodes_file: str | None,
    network: str,
    state_dir: Path,
    restart_backoff: float,
) -> None:
    """Run the pods that are bound to this machine's nodes as processes."""
    configure()
    die_with_parent(signal.SIGTERM)
    nodes = read_nodes(nodes_file, network)
    policy = Policy(backoff_base_s=restart_backoff)
    asyncio.run(_run(Path(kubeconfig).absolute(), nodes, state_dir.absolute(), policy))


def api_address(kubeconfig: Path) -> tuple[str, int]:
    """Return host and port of the kubeconfig's current cluster; raise BadInputError."""
    try:
        body = yaml.safe_load(kubeconfig.read_text())
        contexts = {c["name"]: c["context"] for c in body["contexts"]}
        clusters = {c["name"]: c["cluster"] for c in body["clusters"]}
        server = clusters[contexts[body["current-context"]]["cluster"]]["server"]
        url = urlsplit(server)
        return url.hostname or "", url.port or 443
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(
            f"kubeconfig {kubeconfig}: a current context with a server wanted, found {error!r}"
        ) from error


async def _run(
    kubeconfig: Path, nodes: Sequence[NodeDeclaration], root: Path, policy: Policy
) -> None:
    ids, clock = RandomIds(), SystemClock()
    api_host, api_port = api_address(kubeconfig)
    state_dir = StateDir(root, ids)
    transport = HttpTransport.from_kubeconfig(str(kubeconfig))
    client = KubeClient(transport, field_manager="spinney-nodeagent")
    processes = LinuxProcesses(state_dir.agent_id, ids.suffix(8))
    around = surroundings(
        os.environ,
        str(Path(sys.executable).parent),
        kubeconfig=str(kubeconfig),
        api_host=api_host,
        api_port=api_port,
    )
    around = replace(around, allocatable={n.name: n.capacity for n in nodes})
    events = EventRecorder(client, clock, ids, "nodeagent")
    tools = Tools(
        client=client,
        clock=clock,
        rng=random.Random(),
        ids=ids,
        state_dir=state_dir,
        logs=LogStore(state_dir.logs, clock),
        launcher=Launcher(client, state_dir, around),
        processes=processes,
        network=SocketNetwork(),
        events=events,
        policy=policy,
    )
    try:
        await _serve(nodes, tools, events, processes.prefix)
    finally:
        await transport.close()
        state_dir.close()


async def _serve(
    nodes: Sequence[NodeDeclaration], tools: Tools, events: EventRecorder, prefix: str
) -> None:
    stop, stopped = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    pods = Informer(tools.client, Pod, rng=tools.rng, fields=BOUND_PODS)
    agent = NodeAgent(nodes, pods, tools)
    logs = log_server.LogServer(tools.logs, agent.find_uid, tools.clock)
    sockets = log_server.listen_on([node.address for node in nodes])
    ports = {n.name: s.getsockname()[1] for n, s in zip(nodes, sockets, strict=True)}
    guard = Guard(prefix)
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(log_server.serve(logs, sockets, stopped))
            helpers = [
                group.create_task(events.run()),
                group.create_task(_keep_guarded(guard)),
            ]
            log.info("node agent runs", nodes=len(nodes), state_dir=str(tools.state_dir.root))
            await agent.run(stop, ports)
            stopped.set()
            for helper in helpers:
                helper.cancel()
            await serving
    finally:
        guard.close()
    log.info("node agent ends")


async def _keep_guarded(guard: Guard) -> None:
    """Fail when the guard ends: without it a killed agent would leave processes behind."""
    await guard.watch()
    raise SpinneyError("the guard process ended; the agent ends too, to be started again with one")
