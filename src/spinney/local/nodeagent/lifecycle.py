"""What to do next with a pod: the lifecycle of its containers as one pure function.

`decide` is asked after every event and whenever the time it named has come. It returns the next
run and the actions that take it there; asked again at once, it returns none (or `FinishPod` again).
The rules:

- init containers run one after the other, sidecars among them stay up; then all containers start;
- a container starts only when its last attempt is gone, its back-off is over and the pod's restart
  policy wants another;
- a container is asked to end (preStop, SIGTERM) before it is made to (SIGKILL), and not made to
  before its grace is over;
- a pod that is to end stops its containers, then its sidecars from the last to the first.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spinney.local.nodeagent.runs import (
    ContainerRun,
    Kill,
    PodRun,
    Policy,
    ProbeKind,
    container_spec,
    grace_s,
    is_sidecar,
    probe_spec,
    stopping,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.api.core import Container, Pod

TERMINAL_PHASES = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Start the container's next attempt."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Ask the container once."""

    name: str
    kind: ProbeKind
    attempt: int


@dataclass(frozen=True, slots=True)
class RunPreStop:
    """Run the container's preStop hook, for *timeout_s* at most."""

    name: str
    attempt: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class SignalContainer:
    """Send a signal to all processes of the container."""

    name: str
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class FinishPod:
    """Nothing of the pod is left to run: let go of it."""


Action = StartContainer | RunProbe | RunPreStop | SignalContainer | FinishPod


@dataclass(frozen=True, slots=True)
class Decision:
    """The next run, what to do for it, and when to ask again if nothing happens before."""

    run: PodRun
    actions: tuple[Action, ...]
    wake_at: float | None


@dataclass(slots=True)
class _Draft:
    """A decision being made."""

    pod: Pod
    run: PodRun
    now: float
    policy: Policy
    actions: list[Action]
    wake_at: float | None = None

    def do(self, container: ContainerRun, *actions: Action) -> None:
        self.run = self.run.put(container)
        self.actions.extend(actions)

    def wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def decide(pod: Pod, run: PodRun, now: float, policy: Policy) -> Decision:
    """Return what brings *run* to what *pod* asks for at *now*, in seconds since the epoch."""
    if pod.deleting:
        run = stopping(run, "deleted", grace_s(pod), now) if _sooner(pod, run, now) else run
    elif run.stop is None and pod.status.phase in TERMINAL_PHASES:
        run = stopping(run, "ended", grace_s(pod), now)
    draft = _Draft(pod, run, now, policy, [])
    if run.stop is not None:
        _stop_pod(draft)
    elif is_over(pod, run):
        _stop_sidecars(draft, now + grace_s(pod), "PodCompleted")
    else:
        _start_due(draft)
    _probe_due(draft)
    _kill_due(draft)
    return Decision(draft.run, tuple(draft.actions), draft.wake_at)


def wants_restart(pod: Pod, container: Container, code: int) -> bool:
    """Tell whether the restart policy wants another attempt after one ended with *code*."""
    policy = pod.spec.restart_policy
    if container in pod.spec.init_containers:
        return is_sidecar(container) or (code != 0 and policy != "Never")
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def is_initialized(pod: Pod, run: PodRun) -> bool:
    """Tell whether init containers are done and sidecars were up once."""
    if any(run.get(c.name).attempt >= 0 for c in pod.spec.containers):
        return True
    return all(_passed(c, run.get(c.name)) for c in pod.spec.init_containers)


def is_over(pod: Pod, run: PodRun) -> bool:
    """Tell whether no container will run again: all are done, or initialisation failed for good."""
    for spec in pod.spec.init_containers:
        container = run.get(spec.name)
        if is_sidecar(spec) or container.live or container.exit is None:
            continue
        if container.exit.code != 0 and not wants_restart(pod, spec, container.exit.code):
            return True
    return all(_done(pod, c, run.get(c.name)) for c in pod.spec.containers)


def _done(pod: Pod, spec: Container, container: ContainerRun) -> bool:
    if container.live or container.exit is None:
        return False
    return not wants_restart(pod, spec, container.exit.code)


def _passed(spec: Container, container: ContainerRun) -> bool:
    if is_sidecar(spec):
        return container.started
    return not container.live and container.exit is not None and container.exit.code == 0


# Starting


def _start_due(draft: _Draft) -> None:
    pod = draft.pod
    ready = is_initialized(pod, draft.run)
    for spec in pod.spec.init_containers:
        container = draft.run.get(spec.name)
        if is_sidecar(spec) or not ready:
            _start(draft, spec, container)
        if not ready and not _passed(spec, container):
            return
    for spec in pod.spec.containers:
        _start(draft, spec, draft.run.get(spec.name))


def _start(draft: _Draft, spec: Container, container: ContainerRun) -> None:
    if container.live:
        return
    if container.exit and not wants_restart(draft.pod, spec, container.exit.code):
        return
    if container.not_before > draft.now:
        draft.wake(container.not_before)
        return
    starting = replace(container, stage="starting", reason="", message="")
    draft.do(starting, StartContainer(spec.name, container.attempt + 1))


# Probing


def _probe_due(draft: _Draft) -> None:
    for container in draft.run.containers:
        if container.stage != "running":
            continue
        spec = container_spec(draft.pod, container.name)
        if container.kill is not None or draft.run.stop is not None:
            # Readiness is asked to the end: it is how a draining server says that it drains.
            if container.started:
                _probe(draft, spec, "readiness")
            continue
        verdict = _failed_verdict(container)
        if verdict:
            probe = probe_spec(spec, verdict)
            own = probe.termination_grace_period_seconds if probe else None
            grace = grace_s(draft.pod) if own is None else float(own)
            _end(draft, spec, container, draft.now + grace, "Unhealthy")
            continue
        for kind in _active_probes(container):
            _probe(draft, spec, kind)


def _failed_verdict(container: ContainerRun) -> ProbeKind | None:
    if container.startup is not None and container.startup.healthy is False:
        return "startup"
    if container.liveness is not None and container.liveness.healthy is False:
        return "liveness"
    return None


def _active_probes(container: ContainerRun) -> Iterable[ProbeKind]:
    """A startup probe comes alone; after its success it is over and the others begin."""
    if not container.started:
        return ("startup",)
    return ("readiness", "liveness")


def _probe(draft: _Draft, spec: Container, kind: ProbeKind) -> None:
    container = draft.run.get(spec.name)
    state, probe = container.probe(kind), probe_spec(spec, kind)
    if state is None or probe is None or state.in_flight:
        return
    if state.next_at > draft.now:
        draft.wake(state.next_at)
        return
    asked = replace(state, in_flight=True, next_at=draft.now + max(1, probe.period_seconds))
    draft.do(container.with_probe(kind, asked), RunProbe(spec.name, kind, container.attempt))


# Stopping


def _sooner(pod: Pod, run: PodRun, now: float) -> bool:
    stop = run.stop
    if stop is None or stop.reason in ("shutdown", "ended"):
        return True
    # The grace that deletion leaves counts from when it is seen; only less of it is news.
    return stop.reason == "deleted" and now + grace_s(pod) < stop.deadline_at


def _stop_pod(draft: _Draft) -> None:
    stop = draft.run.stop
    assert stop is not None
    for spec in draft.pod.spec.containers:
        _end(draft, spec, draft.run.get(spec.name), stop.deadline_at, stop.reason)
    for spec in draft.pod.spec.init_containers:
        if not is_sidecar(spec):
            _end(draft, spec, draft.run.get(spec.name), stop.deadline_at, stop.reason)
    _stop_sidecars(draft, stop.deadline_at, stop.reason)
    if not draft.run.live and stop.reason != "ended":
        draft.actions.append(FinishPod())


def _stop_sidecars(draft: _Draft, deadline_at: float, reason: str) -> None:
    """End sidecars from the last to the first, each when nothing that may need it is left."""
    sidecars = [c for c in draft.pod.spec.init_containers if is_sidecar(c)]
    others = {c.name for c in draft.run.containers} - {c.name for c in sidecars}
    if any(draft.run.get(name).live for name in others):
        if draft.now < deadline_at:
            draft.wake(deadline_at)
            return
        # Out of time: all that is left ends together.
        for spec in sidecars:
            _end(draft, spec, draft.run.get(spec.name), deadline_at, reason)
        return
    for spec in reversed(sidecars):
        container = draft.run.get(spec.name)
        if container.live:
            _end(draft, spec, container, deadline_at, reason)
            return


def _end(
    draft: _Draft, spec: Container, container: ContainerRun, deadline_at: float, reason: str
) -> None:
    """Begin to end a live attempt, or shorten the time it has left."""
    if not container.live:
        return
    forced = draft.run.stop is not None and draft.run.stop.forced
    if container.kill is None:
        hook = (spec.lifecycle or {}).get("preStop")
        kill = Kill(reason, deadline_at, "todo" if hook else "none", forced)
    elif deadline_at < container.kill.deadline_at or forced != container.kill.forced:
        kill = replace(container.kill, deadline_at=deadline_at, forced=forced)
    else:
        return
    draft.run = draft.run.put(replace(container, kill=kill))


def _kill_due(draft: _Draft) -> None:
    for container in draft.run.containers:
        if container.stage == "running" and container.kill is not None:
            _kill(draft, container, container.kill)


def _kill(draft: _Draft, container: ContainerRun, kill: Kill) -> None:
    now, left_s = draft.now, kill.deadline_at - draft.now
    if kill.kill_at is not None:
        return
    if kill.forced or (kill.term_at is not None and now >= _forced_at(kill)):
        forced = SignalContainer(container.name, signal.SIGKILL, kill.reason)
        draft.do(replace(container, kill=replace(kill, kill_at=now)), forced)
    elif kill.term_at is not None:
        draft.wake(_forced_at(kill))
    elif left_s > 0 and kill.pre_stop == "todo":
        hook = RunPreStop(container.name, container.attempt, left_s)
        draft.do(replace(container, kill=replace(kill, pre_stop="running")), hook)
        draft.wake(kill.deadline_at)
    elif left_s > 0 and kill.pre_stop == "running":
        draft.wake(kill.deadline_at)
    else:
        late = left_s <= 0 or kill.pre_stop != "none"
        not_before = now + draft.policy.min_term_s if late else 0.0
        asked = replace(kill, term_at=now, not_before=not_before)
        term = SignalContainer(container.name, signal.SIGTERM, kill.reason)
        draft.do(replace(container, kill=asked), term)
        draft.wake(_forced_at(asked))


def _forced_at(kill: Kill) -> float:
    """Return when SIGKILL is due."""
    return max(kill.deadline_at, kill.not_before)
