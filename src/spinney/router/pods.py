"""Workers from the Kubernetes API: role and model are labels, readiness is a condition.

Invariant: a pod that is not Ready or that is being deleted is never available; a pod without an
address, a usable role or a port is not a worker at all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.meta import is_true
from spinney.kube.informer import Change
from spinney.log import get_logger
from spinney.router.workers import Role, Way, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.core import ContainerPort, Node, Pod
    from spinney.kube.informer import Informer

log = get_logger("router")

WORKER_SELECTOR = f"{names.ROLE} in (prefill,decode,both)"
"""Pods that can be workers."""
KV_EVENTS_PORT = "kv-events"
KV_REPLAY_PORT = "kv-replay"
"""Names of the container ports where a worker publishes KV events, and sends them again."""
KV_HANDOVER = "spinney.dev/kv-handover"
"""Annotation: *ticket*, *rendezvous* or *sglang*; see `spinney.router.workers.Way`."""
KV_BOOTSTRAP_PORT = "kv-bootstrap"
"""Name of the container port where a prefill worker's KV is met."""
DEFAULT_BOOTSTRAP_PORT = 8998
"""SGLang's."""
_ENDED = ("Succeeded", "Failed")


PLACE_LABELS = (
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
)
"""Labels of a node that say where its pods are, from near to far."""


def places_of(node: Node | None) -> tuple[str, str, str] | tuple[()]:
    """Return where the pods of *node* are; see `Worker.places`."""
    if node is None:
        return ()
    host, rack, zone = (node.labels.get(label, "") for label in PLACE_LABELS)
    return (host, rack, zone) if host or rack or zone else ()


def worker_of(pod: Pod, node: Node | None = None) -> Worker | None:
    """Return the worker that *pod* is, or None when it is none (yet). *node* is where it runs.

    The model is the annotation ``spinney.dev/model`` where there is one (a label cannot hold the
    slash of ``org/name``), else the label of that name, else unknown.
    """
    role = pod.labels.get(names.ROLE, "")
    port = _http_port(pod)
    if role not in tuple(Role) or not pod.status.pod_ip or port is None:
        return None
    if pod.status.phase in _ENDED:
        return None
    model = pod.metadata.annotations.get(names.MODEL) or pod.labels.get(names.MODEL)
    said = pod.metadata.annotations.get(KV_HANDOVER)
    way = Way(said) if said in tuple(Way) else Way.TICKET
    bootstrap = _port(pod, KV_BOOTSTRAP_PORT) or DEFAULT_BOOTSTRAP_PORT
    host = f"[{pod.status.pod_ip}]" if ":" in pod.status.pod_ip else pod.status.pod_ip
    return Worker(
        name=pod.name,
        url=f"http://{host}:{port}",
        role=Role(role),
        models=frozenset((model,)) if model else frozenset(),
        ready=is_true(pod.status.conditions, "Ready"),
        draining=pod.deleting,
        uid=pod.metadata.uid,
        places=places_of(node),
        kv_events=_zmq(host, _port(pod, KV_EVENTS_PORT)),
        kv_replay=_zmq(host, _port(pod, KV_REPLAY_PORT)),
        revisions=frozenset(filter(None, pod.labels.get(names.REVISION, "").split("."))),
        way=way,
        bootstrap_port=bootstrap if way is not Way.TICKET and role != Role.DECODE else 0,
    )


def _http_port(pod: Pod) -> int | None:
    first = next((port.container_port for port in _ports(pod)), None)
    return _port(pod, names.HTTP_PORT) or first


def _port(pod: Pod, name: str) -> int | None:
    return next((port.container_port for port in _ports(pod) if port.name == name), None)


def _ports(pod: Pod) -> list[ContainerPort]:
    return [port for container in pod.spec.containers for port in container.ports]


def _zmq(host: str, port: int | None) -> str:
    return f"tcp://{host}:{port}" if port else ""


class PodWorkers:
    """The workers of one namespace, as an informer of its pods reports them.

    With an informer of nodes it is known how far workers are from each other.
    """

    def __init__(self, informer: Informer[Pod], nodes: Informer[Node] | None = None) -> None:
        self._informer = informer
        self._nodes = nodes
        self._by_name: dict[str, Worker] = {}
        self._sorted: tuple[Worker, ...] = ()
        self._callbacks: list[Callable[[], None]] = []
        informer.add_handler(self._changed)
        if nodes is not None:
            nodes.add_handler(self._node_changed)

    def workers(self) -> tuple[Worker, ...]:
        """Return the workers known now, sorted by name."""
        return self._sorted

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have *callback* called after each change of a worker."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Watch the pods, and the nodes, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._informer.run())
            if self._nodes is not None:
                tasks.create_task(self._nodes.run())

    def _node_changed(self, change: Change[Node]) -> None:
        if places_of(change.old) == places_of(change.new):
            return
        for pod in self._informer.list():
            if pod.spec.node_name == change.object.name:
                self._changed(Change(pod, pod))

    def _changed(self, change: Change[Pod]) -> None:
        pod = change.object
        before = self._by_name.pop(pod.name, None)
        after = worker_of(pod, self._node(pod)) if change.new is not None else None
        if after is not None:
            self._by_name[pod.name] = after
        if before == after:
            return
        _log_change(pod.name, before, after)
        self._sorted = tuple(self._by_name[name] for name in sorted(self._by_name))
        for callback in self._callbacks:
            callback()

    def _node(self, pod: Pod) -> Node | None:
        return self._nodes.get(pod.spec.node_name) if self._nodes is not None else None


PEERS_PORT = "peers"
"""Name of the container port where a router listens to other routers."""
ROUTER_SELECTOR = f"{names.ROLE}=router"


class PodPeers:
    """The other routers of one namespace: running pods of role ``router`` with a port for peers."""

    def __init__(self, informer: Informer[Pod]) -> None:
        self._informer = informer

    def endpoints(self) -> list[str]:
        """Return the URLs at which routers share their load; our own is among them."""
        found = (
            (pod.status.pod_ip, _port(pod, PEERS_PORT))
            for pod in self._informer.list()
            if not pod.deleting and pod.status.phase not in _ENDED
        )
        return sorted(
            f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"
            for ip, port in found
            if ip and port
        )

    async def run(self) -> None:
        """Watch the pods until cancelled."""
        await self._informer.run()


def _log_change(name: str, before: Worker | None, after: Worker | None) -> None:
    if after is None:
        log.info("worker gone", worker=name)
    elif before is None or before.available != after.available:
        log.info(
            "worker available" if after.available else "worker not available",
            worker=name,
            role=after.role.value,
            url=after.url,
            draining=after.draining,
        )
