"""Workers from the Kubernetes API: role and model are labels, readiness is a condition.

Invariant: a pod that is not Ready or that is being deleted is never available; a pod without an
address, a usable role or a port is not a worker at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.meta import is_true
from spinney.log import get_logger
from spinney.router.workers import Role, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.core import ContainerPort, Pod
    from spinney.kube.informer import Change, Informer

log = get_logger("router")

WORKER_SELECTOR = f"{names.ROLE} in (prefill,decode,both)"
"""Pods that can be workers."""
KV_EVENTS_PORT = "kv-events"
KV_REPLAY_PORT = "kv-replay"
"""Names of the container ports where a worker publishes KV events, and sends them again."""
_ENDED = ("Succeeded", "Failed")


def worker_of(pod: Pod) -> Worker | None:
    """Return the worker that *pod* is, or None when it is none (yet).

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
    host = f"[{pod.status.pod_ip}]" if ":" in pod.status.pod_ip else pod.status.pod_ip
    return Worker(
        name=pod.name,
        url=f"http://{host}:{port}",
        role=Role(role),
        models=frozenset((model,)) if model else frozenset(),
        ready=is_true(pod.status.conditions, "Ready"),
        draining=pod.deleting,
        uid=pod.metadata.uid,
        kv_events=_zmq(host, _port(pod, KV_EVENTS_PORT)),
        kv_replay=_zmq(host, _port(pod, KV_REPLAY_PORT)),
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
    """The workers of one namespace, as an informer of its pods reports them."""

    def __init__(self, informer: Informer[Pod]) -> None:
        self._informer = informer
        self._by_name: dict[str, Worker] = {}
        self._sorted: tuple[Worker, ...] = ()
        self._callbacks: list[Callable[[], None]] = []
        informer.add_handler(self._changed)

    def workers(self) -> tuple[Worker, ...]:
        """Return the workers known now, sorted by name."""
        return self._sorted

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have *callback* called after each change of a worker."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Watch the pods until cancelled."""
        await self._informer.run()

    def _changed(self, change: Change[Pod]) -> None:
        pod = change.new or change.old
        assert pod is not None
        before = self._by_name.pop(pod.name, None)
        after = worker_of(change.new) if change.new is not None else None
        if after is not None:
            self._by_name[pod.name] = after
        if before == after:
            return
        _log_change(pod.name, before, after)
        self._sorted = tuple(self._by_name[name] for name in sorted(self._by_name))
        for callback in self._callbacks:
            callback()


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
