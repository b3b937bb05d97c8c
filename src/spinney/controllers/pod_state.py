"""What a pod's status says of it, in the words the controllers decide by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.meta import find_condition, is_true

if TYPE_CHECKING:
    from spinney.api.core import ContainerStatus, Pod

FINAL_PHASES = ("Failed", "Succeeded")


def is_finished(pod: Pod) -> bool:
    """Tell whether the pod has ended for good: its node will not start it again."""
    return pod.status.phase in FINAL_PHASES


def is_live(pod: Pod) -> bool:
    """Tell whether the pod counts: it has not ended and nobody asked for its deletion."""
    return not pod.deleting and not is_finished(pod)


def is_scheduled(pod: Pod) -> bool:
    """Tell whether the pod has a node."""
    return bool(pod.spec.node_name)


def is_ready(pod: Pod) -> bool:
    """Tell whether the pod serves: it is live and its Ready condition is true."""
    return is_live(pod) and is_true(pod.status.conditions, "Ready")


def is_gated(pod: Pod) -> bool:
    """Tell whether the pod still waits for its gang."""
    return any(gate.name == names.POD_GANG_GATE for gate in pod.spec.scheduling_gates)


def exited_with_error(pod: Pod) -> bool:
    """Tell whether a container that does not run now last ended with an error."""
    return any(_exit_error(status) for status in _statuses(pod))


def started_but_not_ready(pod: Pod) -> bool:
    """Tell whether a container has come up and does not serve, as one that still loads has not."""
    return any(status.started and not status.ready for status in pod.status.container_statuses)


def why_not_ready(pod: Pod) -> str:
    """Say in a few words what a pod is waiting for or suffers from; empty when it is Ready."""
    if is_ready(pod):
        return ""
    if pod.deleting:
        return "is being deleted"
    if is_finished(pod):
        return f"has {pod.status.phase.lower()}" + _detail(pod.status.reason, pod.status.message)
    if is_gated(pod):
        return "waits for its gang to be complete"
    if not is_scheduled(pod):
        return _why_not_scheduled(pod)
    return _why_not_started(pod)


def _why_not_scheduled(pod: Pod) -> str:
    scheduled = find_condition(pod.status.conditions, "PodScheduled")
    if scheduled is None or scheduled.status == "True":
        return "waits for the scheduler"
    return "has no node" + _detail(scheduled.reason, scheduled.message)


def _why_not_started(pod: Pod) -> str:
    for status in _statuses(pod):
        waiting = status.state.waiting
        if waiting is not None and waiting.reason not in ("", "PodInitializing"):
            return f"container {status.name} waits" + _detail(waiting.reason, waiting.message)
        ended = status.state.terminated
        if ended is not None and ended.exit_code != 0:
            return f"container {status.name} exited with code {ended.exit_code}"
    for status in pod.status.init_container_statuses:
        if status.state.running is not None and not status.ready:
            return f"init container {status.name} is running"
    for status in pod.status.container_statuses:
        if status.started and not status.ready:
            return f"container {status.name} is not ready"
    return "is starting"


def _exit_error(status: ContainerStatus) -> bool:
    if status.state.running is not None:
        return False
    ended = status.state.terminated or status.last_state.terminated
    return ended is not None and ended.exit_code != 0


def _statuses(pod: Pod) -> list[ContainerStatus]:
    return [*pod.status.init_container_statuses, *pod.status.container_statuses]


def _detail(reason: str, message: str) -> str:
    text = ": ".join(part for part in (reason, message) if part)
    return f" ({text})" if text else ""
