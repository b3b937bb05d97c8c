"""``spinney status``: the whole cluster on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spinney.api.core import Node, Pod
from spinney.api.grove import PodCliqueSet
from spinney.api.meta import find_condition, is_true
from spinney.api.names import MODEL, PART_OF, ROLE
from spinney.api.podgang import PodGang
from spinney.cli.completion import FRONT_ROLES, endpoint
from spinney.cli.session import Session, columns, pass_session
from spinney.local.home import ClusterHome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.kube.client import KubeClient


@click.command()
@pass_session
def status(session: Session) -> None:
    """Show nodes, services, their pods and what is pending and why."""
    home = ClusterHome(session.home)
    running = home.supervisor()
    if running:
        click.echo(f"Local cluster in {home.root}, process {running.pid}, {running.url}")

    async def work(client: KubeClient) -> None:
        nodes = (await client.list(Node)).items
        pods = (await client.list(Pod)).items
        sets = (await client.list(PodCliqueSet)).items
        gangs = (await client.list(PodGang)).items
        for line in status_lines(nodes, pods, sets, gangs):
            click.echo(line)

    session.run(work)


def status_lines(
    nodes: Sequence[Node],
    pods: Sequence[Pod],
    sets: Sequence[PodCliqueSet],
    gangs: Sequence[PodGang],
) -> list[str]:
    """Return the screen: nodes with the GPUs in use, services, pods, pending gangs."""
    lines = ["", *columns([["NODE", "RACK", "GPUS USED", "PODS"], *_node_rows(nodes, pods)])]
    if not sets:
        return [*lines, "", "No service yet: try `spinney apply -f examples/disaggregated/`"]
    for pcs in sets:
        mine = [
            p for p in pods if p.labels.get(PART_OF) == pcs.name and p.namespace == pcs.namespace
        ]
        ready = sum(is_true(p.status.conditions, "Ready") for p in mine)
        lines += ["", f"Service {pcs.key}: {ready} of {len(mine)} pods ready"]
        lines += [f"  {line}" for line in columns([_POD_HEADER, *_pod_rows(mine)])]
        lines += [f"  OpenAI's API: {url}/v1" for url in _fronts(mine)]
    pending = [line for gang in gangs for line in _pending(gang)]
    return [*lines, *(["", "Pending:", *pending] if pending else [])]


_POD_HEADER = ["POD", "ROLE", "MODEL", "NODE", "ADDRESS", "STATE"]


def _node_rows(nodes: Sequence[Node], pods: Sequence[Pod]) -> list[list[str]]:
    rows = []
    for node in nodes:
        here = [p for p in pods if p.spec.node_name == node.name]
        gpus = sum(_gpus(pod) for pod in here if pod.status.phase not in ("Succeeded", "Failed"))
        have = node.status.allocatable.get("nvidia.com/gpu", 0)
        rack = node.labels.get("topology.kubernetes.io/rack", "")
        rows.append([node.name, rack, f"{gpus} of {have}", str(len(here))])
    return rows


def _fronts(pods: Sequence[Pod]) -> list[str]:
    """Return where clients are answered: at routers, or at whole workers where there is none."""
    ready = [p for p in pods if is_true(p.status.conditions, "Ready") and not p.deleting]
    for role in FRONT_ROLES:
        found = [endpoint(p) for p in ready if p.labels.get(ROLE) == role and _listens(p)]
        if found:
            return found
    return []


def _listens(pod: Pod) -> bool:
    return bool(pod.status.pod_ip) and any(c.ports for c in pod.spec.containers)


def _gpus(pod: Pod) -> int:
    return sum(int(c.resources.limits.get("nvidia.com/gpu", 0)) for c in pod.spec.containers)


def _pod_rows(pods: Sequence[Pod]) -> list[list[str]]:
    return [
        [
            pod.name,
            pod.labels.get(ROLE, ""),
            pod.labels.get(MODEL, ""),
            pod.spec.node_name,
            pod.status.pod_ip,
            _state(pod),
        ]
        for pod in pods
    ]


def _state(pod: Pod) -> str:
    if pod.deleting:
        return "Terminating"
    if is_true(pod.status.conditions, "Ready"):
        return "Ready"
    if pod.spec.scheduling_gates:
        return "Waiting for its gang"
    waiting = [
        s.state.waiting.reason
        for s in (*pod.status.init_container_statuses, *pod.status.container_statuses)
        if s.state.waiting and s.state.waiting.reason
    ]
    return waiting[0] if waiting else pod.status.phase or "Pending"


def _pending(gang: PodGang) -> list[str]:
    found = find_condition(gang.status.conditions, "Scheduled")
    if found is None or found.status == "True":
        return []
    return [f"  gang {gang.key}: {found.message or found.reason}"]
