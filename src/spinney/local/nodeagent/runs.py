"""What the node agent knows of a pod it runs: values, and how each event changes them.

`PodRun` is the whole memory of one pod: it is what `spinney.local.nodeagent.lifecycle.decide` reads
and returns, what the state directory keeps across a restart of the agent, and what the pod's
status is made from. Its events (started, exited, probed, …) are functions from one run to the next.

Invariant: a container has at most one live attempt. ``starting`` and ``running`` are live; an
attempt leaves them only by an event that says its processes are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from spinney.clock import parse_rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.core import Container, ContainerStatus, Pod, Probe

Stage = Literal["waiting", "starting", "running", "exited"]
ProbeKind = Literal["startup", "readiness", "liveness"]
PROBE_KINDS: tuple[ProbeKind, ...] = ("startup", "readiness", "liveness")
StopReason = Literal["deleted", "vanished", "shutdown", "ended"]

DEFAULT_GRACE_S = 30.0
LOST_EXIT_CODE = 137
"""The exit code of an attempt whose end nobody saw: as if killed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The agent's own times. The defaults are Kubernetes'."""

    backoff_base_s: float = 10.0
    backoff_max_s: float = 300.0
    backoff_reset_s: float = 600.0
    """An attempt that ran this long is a success: the next back-off starts anew."""
    start_retry_s: float = 10.0
    """How soon a container that could not be started (a missing ConfigMap, …) is tried again."""
    min_term_s: float = 2.0
    """What a process gets between SIGTERM and SIGKILL when its preStop hook, or those it had to
    wait for, used up the grace."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How one attempt ended."""

    code: int
    signal: int
    reason: str
    message: str
    started_at: float
    finished_at: float
    container_id: str


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """Where one probe of the current attempt stands."""

    next_at: float
    in_flight: bool = False
    streak: int = 0
    """Consecutive successes; failures when negative."""
    healthy: bool | None = None
    """The verdict, once a threshold was reached."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Kill:
    """An attempt is being ended: preStop, then SIGTERM, then SIGKILL at the deadline."""

    reason: str
    deadline_at: float
    pre_stop: Literal["none", "todo", "running", "done"]
    forced: bool = False
    """No grace was given: SIGKILL at once."""
    term_at: float | None = None
    not_before: float = 0.0
    """SIGKILL comes no sooner, also past the deadline: SIGTERM came late."""
    kill_at: float | None = None


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One container of a pod."""

    name: str
    stage: Stage = "waiting"
    attempt: int = -1
    """Number of the newest attempt, from 0; equals the restart count once there was one."""
    container_id: str = ""
    pid: int = 0
    pid_start: int = 0
    """When the process started, in the kernel's ticks since boot: a pid alone may be reused."""
    started_at: float = 0.0
    exit: Exit | None = None
    last_exit: Exit | None = None
    backoff_s: float = 0.0
    not_before: float = 0.0
    reason: str = ""
    message: str = ""
    """Why it could not be started."""
    kill: Kill | None = None
    startup: ProbeRun | None = None
    readiness: ProbeRun | None = None
    liveness: ProbeRun | None = None

    @property
    def live(self) -> bool:
        """Whether an attempt is running or about to."""
        return self.stage in ("starting", "running")

    @property
    def restarts(self) -> int:
        """Attempts after the first."""
        return max(0, self.attempt)

    @property
    def started(self) -> bool:
        """Running, and past its startup probe."""
        return self.stage == "running" and (self.startup is None or self.startup.healthy is True)

    @property
    def ready(self) -> bool:
        """Started, and found ready by its readiness probe."""
        return self.started and (self.readiness is None or self.readiness.healthy is True)

    def probe(self, kind: ProbeKind) -> ProbeRun | None:
        """Return the state of a probe; None if the container has no such probe."""
        return {
            "startup": self.startup,
            "readiness": self.readiness,
            "liveness": self.liveness,
        }[kind]

    def with_probe(self, kind: ProbeKind, probe: ProbeRun) -> ContainerRun:
        """Return a copy with one probe replaced."""
        match kind:
            case "startup":
                return replace(self, startup=probe)
            case "readiness":
                return replace(self, readiness=probe)
            case _:
                return replace(self, liveness=probe)


@dataclass(frozen=True, slots=True)
class Stop:
    """The pod has to end, by *deadline_at* at the latest."""

    reason: StopReason
    deadline_at: float
    forced: bool = False
    """No grace was given."""


@dataclass(frozen=True, slots=True)
class PodRun:
    """Everything the agent remembers of one pod."""

    uid: str
    namespace: str
    name: str
    ip: str
    host_ip: str
    started_at: float
    containers: tuple[ContainerRun, ...]
    """Init containers in order, then containers, as in the spec."""
    stop: Stop | None = None

    def get(self, name: str) -> ContainerRun:
        """Return the container called *name*; names are unique in a pod."""
        return next(c for c in self.containers if c.name == name)

    def put(self, container: ContainerRun) -> PodRun:
        """Return a copy with the container of that name replaced."""
        placed = tuple(container if c.name == container.name else c for c in self.containers)
        return replace(self, containers=placed)

    @property
    def live(self) -> bool:
        """Whether any attempt is live."""
        return any(c.live for c in self.containers)


# The spec, as the agent reads it


def all_containers(pod: Pod) -> Iterator[Container]:
    """Yield init containers in order, then containers."""
    yield from pod.spec.init_containers
    yield from pod.spec.containers


def container_spec(pod: Pod, name: str) -> Container:
    """Return the container called *name*."""
    return next(c for c in all_containers(pod) if c.name == name)


def is_sidecar(container: Container) -> bool:
    """Tell whether an init container stays up beside the containers."""
    return container.restart_policy == "Always"


def probe_spec(container: Container, kind: ProbeKind) -> Probe | None:
    """Return how *kind* is probed."""
    return {
        "startup": container.startup_probe,
        "readiness": container.readiness_probe,
        "liveness": container.liveness_probe,
    }[kind]


def grace_s(pod: Pod) -> float:
    """Seconds between SIGTERM and SIGKILL that the pod asks for."""
    asked = pod.metadata.deletion_grace_period_seconds if pod.deleting else None
    if asked is None:
        asked = pod.spec.termination_grace_period_seconds
    return DEFAULT_GRACE_S if asked is None else float(asked)


# Events


def new_run(pod: Pod, ip: str, host_ip: str, now: float) -> PodRun:
    """Return the run of a pod of which nothing has been started."""
    meta = pod.metadata
    containers = tuple(ContainerRun(c.name) for c in all_containers(pod))
    return PodRun(meta.uid, meta.namespace, meta.name, ip, host_ip, now, containers)


def started(
    run: PodRun, spec: Container, container_id: str, pid: int, pid_start: int, now: float
) -> PodRun:
    """A process runs: a new attempt begins, with fresh probes."""
    old = run.get(spec.name)
    assert old.stage == "starting", f"{spec.name} started while {old.stage}"
    fresh = ContainerRun(
        name=old.name,
        stage="running",
        attempt=old.attempt + 1,
        container_id=container_id,
        pid=pid,
        pid_start=pid_start,
        started_at=now,
        last_exit=old.exit or old.last_exit,
        backoff_s=old.backoff_s,
        kill=old.kill,
    )
    for kind in PROBE_KINDS:
        probe = probe_spec(spec, kind)
        if probe is not None:
            fresh = fresh.with_probe(kind, ProbeRun(now + probe.initial_delay_seconds))
    return run.put(fresh)


def cannot_start(
    run: PodRun, name: str, reason: str, message: str, now: float, policy: Policy
) -> PodRun:
    """Nothing was started; it is tried again in a while. No attempt is counted."""
    old = run.get(name)
    back: Stage = "exited" if old.exit else "waiting"
    later = now + policy.start_retry_s
    return run.put(
        replace(old, stage=back, reason=reason, message=message, not_before=later, kill=None)
    )


def exited(
    run: PodRun,
    name: str,
    code: int,
    signal: int,
    now: float,
    policy: Policy,
    *,
    reason: str = "",
    message: str = "",
) -> PodRun:
    """The attempt ended and all its processes are gone; the next may start after a back-off."""
    old = run.get(name)
    ran_s = now - old.started_at
    waited_s = 0.0 if ran_s >= policy.backoff_reset_s else old.backoff_s
    # The first restart is immediate; the one after it waits the base, then ever twice as long.
    next_s = min(max(policy.backoff_base_s, 2 * waited_s), policy.backoff_max_s)
    ended = Exit(
        code=code,
        signal=signal,
        reason=reason or ("Completed" if code == 0 else "Error"),
        message=message,
        started_at=old.started_at,
        finished_at=now,
        container_id=old.container_id,
    )
    fresh = ContainerRun(
        name=name,
        stage="exited",
        attempt=old.attempt,
        container_id=old.container_id,
        started_at=old.started_at,
        exit=ended,
        last_exit=old.last_exit,
        backoff_s=next_s,
        not_before=now + waited_s,
    )
    return run.put(fresh)


def probed(
    run: PodRun, spec: Container, kind: ProbeKind, attempt: int, ok: bool, message: str, now: float
) -> PodRun:
    """A probe has answered; answers for an attempt that is over change nothing."""
    container = run.get(spec.name)
    state, probe = container.probe(kind), probe_spec(spec, kind)
    if container.stage != "running" or container.attempt != attempt or not state or not probe:
        return run
    streak = max(state.streak, 0) + 1 if ok else min(state.streak, 0) - 1
    healthy = state.healthy
    if streak >= probe.success_threshold:
        healthy = True
    elif -streak >= probe.failure_threshold:
        healthy = False
    placed = replace(state, in_flight=False, streak=streak, healthy=healthy, message=message)
    return run.put(container.with_probe(kind, placed))


def pre_stop_done(run: PodRun, name: str, attempt: int) -> PodRun:
    """The preStop hook is over, whatever came of it."""
    container = run.get(name)
    if container.attempt != attempt or container.kill is None:
        return run
    return run.put(replace(container, kill=replace(container.kill, pre_stop="done")))


def stopping(run: PodRun, reason: StopReason, grace: float, now: float) -> PodRun:
    """The pod has to end; of several demands the one with the least time counts."""
    wanted = Stop(reason, now + grace, grace <= 0)
    if run.stop is not None:
        kept = run.stop.reason in ("deleted", "vanished")
        first = run.stop.reason if kept else reason
        forced = run.stop.forced or wanted.forced
        wanted = Stop(first, min(run.stop.deadline_at, wanted.deadline_at), forced)
    return replace(run, stop=wanted)


# Taking up a pod again


def restored(saved: PodRun, now: float) -> PodRun:
    """Return what a run is after the agent itself ended: every live attempt ended with it."""
    containers = tuple(_lost(c, now) if c.live else replace(c, kill=None) for c in saved.containers)
    return replace(saved, containers=containers, stop=None)


def _lost(container: ContainerRun, now: float) -> ContainerRun:
    # An attempt that was about to start counts as one: it may have run.
    attempt = container.attempt + (1 if container.stage == "starting" else 0)
    ended = Exit(
        code=LOST_EXIT_CODE,
        signal=9,
        reason="Error",
        message="ended with the node agent that ran it",
        started_at=container.started_at or now,
        finished_at=now,
        container_id=container.container_id,
    )
    return ContainerRun(
        name=container.name,
        stage="exited",
        attempt=attempt,
        container_id=container.container_id,
        started_at=container.started_at or now,
        exit=ended,
        last_exit=container.exit or container.last_exit,
        backoff_s=container.backoff_s,
    )


def run_from_status(pod: Pod, ip: str, host_ip: str, now: float) -> PodRun:
    """Return the run of a pod that an agent without memory takes over, from its status."""
    status = pod.status
    known = {s.name: s for s in (*status.init_container_statuses, *status.container_statuses)}
    run = new_run(pod, ip, host_ip, _seconds(status.start_time, now))
    for container in run.containers:
        found = known.get(container.name)
        if found is not None:
            run = run.put(_from_status(found, now))
    return run


def _from_status(status: ContainerStatus, now: float) -> ContainerRun:
    run = ContainerRun(status.name, attempt=status.restart_count - 1)
    if status.state.running is not None:
        since = _seconds(status.state.running.started_at, now)
        live = replace(run, attempt=status.restart_count, stage="running", started_at=since)
        return _lost(replace(live, container_id=status.container_id), now)
    ended = status.state.terminated or status.last_state.terminated
    if ended is None:
        return run
    since = _seconds(ended.started_at, now)
    until = _seconds(ended.finished_at, now)
    end = Exit(
        ended.exit_code, ended.signal, ended.reason, ended.message, since, until, ended.container_id
    )
    return replace(run, attempt=status.restart_count, stage="exited", started_at=since, exit=end)


def _seconds(text: str | None, default: float) -> float:
    try:
        return parse_rfc3339(text) if text else default
    except ValueError:
        return default
