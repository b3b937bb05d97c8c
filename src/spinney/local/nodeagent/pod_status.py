"""A pod's status, as a function of its run.

The same run gives the same status, whenever it is asked, so a status that differs from the one
written last is news and one that does not is not. Conditions that others own are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import core
from spinney.api.meta import Condition, is_true, with_condition
from spinney.clock import rfc3339
from spinney.local.nodeagent.lifecycle import is_initialized, is_over, wants_restart
from spinney.local.nodeagent.runs import (
    ContainerRun,
    Exit,
    PodRun,
    all_containers,
    is_sidecar,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def status_of(pod: core.Pod, run: PodRun, now: float) -> core.PodStatus:
    """Return the whole status of *pod*; *now* is only the time of conditions that change."""
    inits = [_container_status(pod, run, c) for c in pod.spec.init_containers]
    mains = [_container_status(pod, run, c) for c in pod.spec.containers]
    phase = phase_of(pod, run)
    return msgspec.structs.replace(
        pod.status,
        phase=phase,
        conditions=_conditions(pod, run, phase, now),
        host_ip=run.host_ip,
        pod_ip=run.ip,
        pod_ips=[core.PodIP(ip=run.ip)],
        start_time=rfc3339(run.started_at),
        init_container_statuses=inits,
        container_statuses=mains,
        qos_class=pod.status.qos_class or _qos_class(pod),
    )


def phase_of(pod: core.Pod, run: PodRun) -> str:
    """Return the pod's phase; Succeeded and Failed are final."""
    if pod.status.phase in ("Succeeded", "Failed"):
        return pod.status.phase
    mains = [run.get(c.name) for c in pod.spec.containers]
    ended_for_good = run.stop is not None and run.stop.reason in ("deleted", "vanished")
    if not run.live and (is_over(pod, run) or ended_for_good):
        return "Succeeded" if all(_succeeded(c) for c in mains) else "Failed"
    if not is_initialized(pod, run) or any(c.attempt < 0 for c in mains):
        return "Pending"
    return "Running"


def _succeeded(container: ContainerRun) -> bool:
    return container.exit is not None and container.exit.code == 0


def _container_status(pod: core.Pod, run: PodRun, spec: core.Container) -> core.ContainerStatus:
    container = run.get(spec.name)
    state, last = _states(pod, run, spec, container)
    return core.ContainerStatus(
        name=spec.name,
        ready=_is_ready(pod, spec, container),
        restart_count=container.restarts,
        image=spec.image,
        image_id="",
        state=state,
        last_state=_terminated(last),
        container_id=container.container_id,
        started=container.started,
    )


def _is_ready(pod: core.Pod, spec: core.Container, container: ContainerRun) -> bool:
    """An init container is ready when it is done, any other while it serves."""
    if spec in pod.spec.init_containers and not is_sidecar(spec):
        return not container.live and _succeeded(container)
    return container.ready


def _states(
    pod: core.Pod, run: PodRun, spec: core.Container, container: ContainerRun
) -> tuple[core.ContainerState, Exit | None]:
    """Return the state now and how the attempt before it ended."""
    if container.stage == "running":
        since = rfc3339(container.started_at)
        running = core.ContainerStateRunning(started_at=since)
        return core.ContainerState(running=running), container.last_exit
    over = run.stop is not None or is_over(pod, run)
    last = container.exit
    again = last is not None and wants_restart(pod, spec, last.code) and not over
    if last is not None and not again:
        return _terminated(last), container.last_exit
    reason, message = _why_waiting(pod, run, container)
    waiting = core.ContainerStateWaiting(reason=reason, message=message)
    return core.ContainerState(waiting=waiting), last


def _why_waiting(pod: core.Pod, run: PodRun, container: ContainerRun) -> tuple[str, str]:
    if container.reason:
        return container.reason, container.message
    if container.stage == "starting" or container.exit is None:
        own = {c.name for c in pod.spec.init_containers}
        blocked = container.name not in own and not is_initialized(pod, run)
        return ("PodInitializing" if blocked else "ContainerCreating"), ""
    wait_s = container.not_before - container.exit.finished_at
    if wait_s <= 0:
        return "ContainerCreating", ""
    return (
        "CrashLoopBackOff",
        f"back-off {wait_s:g}s restarting failed container={container.name} "
        f"pod={run.name}_{run.namespace}({run.uid})",
    )


def _terminated(ended: Exit | None) -> core.ContainerState:
    if ended is None:
        return core.ContainerState()
    return core.ContainerState(
        terminated=core.ContainerStateTerminated(
            exit_code=ended.code,
            signal=ended.signal,
            reason=ended.reason,
            message=ended.message,
            started_at=rfc3339(ended.started_at),
            finished_at=rfc3339(ended.finished_at),
            container_id=ended.container_id,
        )
    )


def _conditions(pod: core.Pod, run: PodRun, phase: str, now: float) -> list[Condition]:
    over = phase in ("Succeeded", "Failed")
    initialized = is_initialized(pod, run)
    serving = [c for c in all_containers(pod) if is_sidecar(c) or c not in pod.spec.init_containers]
    unready = [c.name for c in serving if not run.get(c.name).ready]
    if over:
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
        ready = Condition(type="Ready", status="False", reason=reason)
    elif unready:
        ready = _false("Ready", "ContainersNotReady", "containers not ready", unready)
    else:
        ready = Condition(type="Ready", status="True")
    pending = [
        c.name
        for c in pod.spec.init_containers
        if not is_sidecar(c) and not _succeeded(run.get(c.name))
    ]
    wanted = [
        Condition(type="PodReadyToStartContainers", status="False" if over else "True"),
        Condition(type="Initialized", status="True")
        if initialized
        else _false("Initialized", "ContainersNotInitialized", "init containers open", pending),
        msgspec.structs.replace(ready, type="ContainersReady"),
        ready,
    ]
    conditions: list[Condition] = list(pod.status.conditions)
    if not is_true(conditions, "PodScheduled"):
        wanted.insert(0, Condition(type="PodScheduled", status="True"))
    for condition in wanted:
        conditions = with_condition(conditions, condition, rfc3339(now))
    return conditions


def _false(kind: str, reason: str, text: str, names: Iterable[str]) -> Condition:
    message = f"{text}: {', '.join(names)}"
    return Condition(type=kind, status="False", reason=reason, message=message)


def _qos_class(pod: core.Pod) -> str:
    wants = [c.resources for c in all_containers(pod)]
    if not any(w.requests or w.limits for w in wants):
        return "BestEffort"
    return "Guaranteed" if all(_is_guaranteed(w) for w in wants) else "Burstable"


def _is_guaranteed(resources: core.ResourceRequirements) -> bool:
    keys: Sequence[str] = ("cpu", "memory")
    return all(
        key in resources.limits
        and resources.requests.get(key, resources.limits[key]) == resources.limits[key]
        for key in keys
    )
