"""The decider alone: what it does next, and what it never does."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinney.api import codec
from spinney.api.core import Pod
from spinney.local.nodeagent import lifecycle, runs
from spinney.local.nodeagent.lifecycle import (
    Decision,
    FinishPod,
    RunPreStop,
    RunProbe,
    SignalContainer,
    StartContainer,
    decide,
)
from spinney.local.nodeagent.pod_status import status_of
from spinney.local.nodeagent.runs import PodRun, Policy

POLICY = Policy()
NOW = 1_000_000.0
DELETED_AT = "2030-01-01T00:00:00Z"


def make_pod(
    *names: str,
    init: list[dict[str, Any]] | None = None,
    deleting: float | None = None,
    main: dict[str, Any] | None = None,
    **spec: Any,
) -> Pod:
    containers = [{"name": n, "command": ["serve"], **(main or {})} for n in names or ("main",)]
    meta: dict[str, Any] = {"name": "p", "namespace": "default", "uid": "u"}
    if deleting is not None:
        meta |= {"deletionTimestamp": DELETED_AT, "deletionGracePeriodSeconds": int(deleting)}
    body = {"metadata": meta, "spec": {"containers": containers, **spec}}
    if init:
        body["spec"]["initContainers"] = [{"command": ["init"], **c} for c in init]
    return codec.from_dict(Pod, body)


class World:
    """A pod whose programs do what a test says, without any clock."""

    def __init__(self, pod: Pod, now: float = NOW) -> None:
        self.pod = pod
        self.now = now
        self.run: PodRun = runs.new_run(pod, "127.0.0.2", "127.0.0.1", now)
        self.last: Decision | None = None

    def decide(self) -> list[Any]:
        self.last = decide(self.pod, self.run, self.now, POLICY)
        self.run = self.last.run
        again = decide(self.pod, self.run, self.now, POLICY)
        assert set(again.actions) <= {FinishPod()}, "asked again at once, there is something new"
        return list(self.last.actions)

    def start(self, name: str = "main") -> None:
        spec = runs.container_spec(self.pod, name)
        self.run = runs.started(self.run, spec, f"id-{name}", 7, 7, self.now)

    def exit(self, name: str = "main", code: int = 0) -> None:
        self.run = runs.exited(self.run, name, code, 0, self.now, POLICY)

    def probe(self, kind: runs.ProbeKind, ok: bool, name: str = "main") -> None:
        spec = runs.container_spec(self.pod, name)
        attempt = self.run.get(name).attempt
        self.run = runs.probed(self.run, spec, kind, attempt, ok, "", self.now)

    def phase(self) -> str:
        return status_of(self.pod, self.run, self.now).phase


def started_names(actions: list[Any]) -> list[str]:
    return [a.name for a in actions if isinstance(a, StartContainer)]


def signals(actions: list[Any]) -> list[tuple[str, int]]:
    return [(a.name, a.number) for a in actions if isinstance(a, SignalContainer)]


def test_init_containers_run_one_by_one_then_all_containers_at_once() -> None:
    world = World(make_pod("a", "b", init=[{"name": "i1"}, {"name": "i2"}]))
    assert started_names(world.decide()) == ["i1"]
    world.start("i1")
    assert started_names(world.decide()) == []
    world.exit("i1")
    assert started_names(world.decide()) == ["i2"]
    world.start("i2")
    world.exit("i2")
    assert world.phase() == "Pending"
    assert started_names(world.decide()) == ["a", "b"]
    world.start("a")
    world.start("b")
    assert world.phase() == "Running"


def test_a_sidecar_lets_the_next_start_once_it_has_started_and_stays_up() -> None:
    probe = {"exec": {"command": ["ok"]}, "failureThreshold": 2}
    sidecar = {"name": "side", "restartPolicy": "Always", "startupProbe": probe}
    world = World(make_pod(init=[sidecar], restartPolicy="Never"))
    assert started_names(world.decide()) == ["side"]
    world.start("side")
    assert world.decide() == [RunProbe("side", "startup", 0)]
    world.probe("startup", True, "side")
    assert started_names(world.decide()) == ["main"]
    world.start()
    world.exit("side", 1)
    assert started_names(world.decide()) == ["side"], "it restarts though the pod's policy is Never"
    world.start("side")
    world.exit("main", 0)
    assert signals(world.decide()) == [("side", signal.SIGTERM)], "nobody is left to serve"
    world.exit("side", 143)
    assert world.phase() == "Succeeded"
    assert world.decide() == []


@pytest.mark.parametrize(
    ("policy", "code", "again", "phase"),
    [
        pytest.param("Always", 0, True, "Running", id="always restarts a success"),
        pytest.param("Always", 1, True, "Running", id="always restarts a failure"),
        pytest.param("OnFailure", 0, False, "Succeeded", id="on failure keeps a success"),
        pytest.param("OnFailure", 1, True, "Running", id="on failure restarts a failure"),
        pytest.param("Never", 0, False, "Succeeded", id="never keeps a success"),
        pytest.param("Never", 1, False, "Failed", id="never keeps a failure"),
    ],
)
def test_the_restart_policy_decides_over_another_attempt(
    policy: str, code: int, again: bool, phase: str
) -> None:
    world = World(make_pod(restartPolicy=policy))
    world.decide()
    world.start()
    world.exit(code=code)
    assert world.phase() == phase
    assert started_names(world.decide()) == (["main"] if again else [])


def test_a_failed_init_container_ends_a_pod_that_never_restarts() -> None:
    world = World(make_pod(init=[{"name": "i"}], restartPolicy="Never"))
    world.decide()
    world.start("i")
    world.exit("i", 2)
    assert world.decide() == []
    assert world.phase() == "Failed"


def test_back_off_doubles_from_the_second_restart_to_its_limit_and_is_forgotten() -> None:
    world = World(make_pod())
    waits = []
    for _ in range(8):
        world.decide()
        world.start()
        world.exit(code=1)
        waits.append(world.run.get("main").not_before - world.now)
        if waits[-1]:
            assert started_names(world.decide()) == []
            assert world.last is not None
            assert world.last.wake_at == world.now + waits[-1]
            waiting = status_of(world.pod, world.run, world.now).container_statuses[0].state
            assert waiting.waiting is not None
            assert waiting.waiting.reason == "CrashLoopBackOff"
        world.now += waits[-1]
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    world.decide()
    world.start()
    world.now += POLICY.backoff_reset_s
    world.exit(code=1)
    assert world.run.get("main").not_before == world.now


def probes(**fields: Any) -> dict[str, Any]:
    return {"exec": {"command": ["ok"]}, **fields}


def test_probes_begin_after_their_delay_and_repeat_each_period() -> None:
    main = {"readinessProbe": probes(initialDelaySeconds=5, periodSeconds=3)}
    world = World(make_pod(main=main))
    world.decide()
    world.start()
    assert world.decide() == []
    assert world.last is not None
    assert world.last.wake_at == NOW + 5
    for at in (5, 8, 11):
        world.now = NOW + at
        assert world.decide() == [RunProbe("main", "readiness", 0)]
        world.probe("readiness", True)
        assert world.decide() == []


def test_a_slow_answer_delays_the_next_question() -> None:
    world = World(make_pod(main={"readinessProbe": probes(periodSeconds=1)}))
    world.decide()
    world.start()
    world.decide()
    world.now += 5
    assert world.decide() == []
    world.probe("readiness", True)
    assert world.decide() == [RunProbe("main", "readiness", 0)]


def test_readiness_flips_exactly_at_its_thresholds() -> None:
    main = {"readinessProbe": probes(successThreshold=2, failureThreshold=3, periodSeconds=1)}
    world = World(make_pod(main=main))
    world.decide()
    world.start()
    answers = [True, True, False, False, True, False, False, False, True, True]
    wanted = [False, True, True, True, True, True, True, False, False, True]
    found = []
    for ok in answers:
        world.decide()
        world.probe("readiness", ok)
        found.append(world.run.get("main").ready)
        world.now += 1
    assert found == wanted


def test_liveness_waits_for_startup_and_its_failure_restarts_the_container() -> None:
    main = {
        "startupProbe": probes(failureThreshold=30, periodSeconds=1),
        "livenessProbe": probes(failureThreshold=2, periodSeconds=1),
    }
    world = World(make_pod(main=main))
    world.decide()
    world.start()
    for _ in range(5):
        assert world.decide() == [RunProbe("main", "startup", 0)]
        world.probe("startup", False)
        world.now += 1
    world.decide()
    world.probe("startup", True)
    for _ in range(2):
        assert world.decide() == [RunProbe("main", "liveness", 0)]
        world.probe("liveness", False)
        world.now += 1
    assert signals(world.decide()) == [("main", signal.SIGTERM)]
    world.now += 30
    assert signals(world.decide()) == [("main", signal.SIGKILL)]
    world.exit(code=137)
    assert started_names(world.decide()) == ["main"]


def test_a_startup_probe_that_gives_up_kills_with_its_own_grace() -> None:
    main = {
        "startupProbe": probes(failureThreshold=1, terminationGracePeriodSeconds=3),
    }
    world = World(make_pod(main=main, restartPolicy="Never"))
    world.decide()
    world.start()
    world.decide()
    world.probe("startup", False)
    assert signals(world.decide()) == [("main", signal.SIGTERM)]
    assert world.last is not None
    assert world.last.wake_at == NOW + 3


def test_answers_for_an_attempt_that_is_over_change_nothing() -> None:
    world = World(make_pod(main={"livenessProbe": probes(failureThreshold=1)}))
    world.decide()
    world.start()
    world.decide()
    world.exit(code=1)
    world.decide()
    world.start()
    spec = runs.container_spec(world.pod, "main")
    assert runs.probed(world.run, spec, "liveness", 0, False, "", NOW) == world.run


def test_deletion_runs_the_hook_then_terminates_then_kills() -> None:
    hook = {"lifecycle": {"preStop": {"exec": {"command": ["drain"]}}}}
    world = World(make_pod(main=hook))
    world.decide()
    world.start()
    world.pod = make_pod(main=hook, deleting=20)
    assert world.decide() == [RunPreStop("main", 0, 20.0)]
    world.now += 5
    assert world.decide() == []
    world.run = runs.pre_stop_done(world.run, "main", 0)
    assert signals(world.decide()) == [("main", signal.SIGTERM)]
    world.now = NOW + 19.9
    assert world.decide() == []
    world.now = NOW + 20
    assert signals(world.decide()) == [("main", signal.SIGKILL)]
    world.exit(code=137)
    assert world.decide() == [FinishPod()]
    assert world.phase() == "Failed"


def test_a_hook_that_uses_up_the_grace_leaves_a_last_moment() -> None:
    hook = {"lifecycle": {"preStop": {"exec": {"command": ["drain"]}}}}
    world = World(make_pod(main=hook))
    world.decide()
    world.start()
    world.pod = make_pod(main=hook, deleting=10)
    world.decide()
    world.now += 10
    assert signals(world.decide()) == [("main", signal.SIGTERM)]
    world.now += POLICY.min_term_s
    assert signals(world.decide()) == [("main", signal.SIGKILL)]


def test_less_grace_on_a_second_deletion_counts() -> None:
    world = World(make_pod())
    world.decide()
    world.start()
    world.pod = make_pod(deleting=600)
    assert signals(world.decide()) == [("main", signal.SIGTERM)]
    world.now += 1
    world.pod = make_pod(deleting=0)
    assert signals(world.decide()) == [("main", signal.SIGKILL)]


def test_sidecars_end_after_the_containers_and_in_reverse() -> None:
    init = [{"name": n, "restartPolicy": "Always"} for n in ("s1", "s2")]
    world = World(make_pod(init=init))
    for name in ("s1", "s2", "main"):
        world.decide()
        world.start(name)
    world.pod = make_pod(init=init, deleting=30)
    assert signals(world.decide()) == [("main", signal.SIGTERM)]
    world.exit("main", 143)
    assert signals(world.decide()) == [("s2", signal.SIGTERM)]
    world.exit("s2", 143)
    assert signals(world.decide()) == [("s1", signal.SIGTERM)]
    world.exit("s1", 143)
    assert world.decide() == [FinishPod()]


def test_readiness_is_asked_until_the_end() -> None:
    main = {"readinessProbe": probes(periodSeconds=1), "livenessProbe": probes(periodSeconds=1)}
    world = World(make_pod(main=main))
    world.decide()
    world.start()
    world.decide()
    for kind in ("readiness", "liveness"):
        world.probe(kind, True)
    world.pod = make_pod(main=main, deleting=30)
    world.now += 1
    asked = [a for a in world.decide() if isinstance(a, RunProbe)]
    assert asked == [RunProbe("main", "readiness", 0)]


def test_a_container_that_cannot_start_is_tried_again_without_counting_an_attempt() -> None:
    world = World(make_pod())
    world.decide()
    world.run = runs.cannot_start(world.run, "main", "ImageNotRunnable", "why", NOW, POLICY)
    assert world.decide() == []
    assert world.last is not None
    assert world.last.wake_at == NOW + POLICY.start_retry_s
    status = status_of(world.pod, world.run, NOW).container_statuses[0]
    assert status.state.waiting is not None
    assert (status.state.waiting.reason, status.restart_count) == ("ImageNotRunnable", 0)
    world.now += POLICY.start_retry_s
    assert world.decide() == [StartContainer("main", 0)]


def test_after_a_crash_of_the_agent_attempts_count_and_never_means_never() -> None:
    for policy, phase, again in (("Always", "Running", ["main"]), ("Never", "Failed", [])):
        world = World(make_pod(restartPolicy=policy))
        world.decide()
        world.start()
        world.run = runs.restored(world.run, world.now)
        assert world.phase() == phase
        assert started_names(world.decide()) == again
        # Also when it crashed between the intention to start and the start.
        world = World(make_pod(restartPolicy=policy))
        world.decide()
        world.run = runs.restored(world.run, world.now)
        assert started_names(world.decide()) == again


def test_a_pod_is_taken_over_from_its_status_alone() -> None:
    world = World(make_pod("a", "b", restartPolicy="Never"))
    world.decide()
    world.start("a")
    world.start("b")
    world.exit("b", 0)
    world.pod.status = status_of(world.pod, world.run, NOW)
    world.run = runs.run_from_status(world.pod, "127.0.0.9", "127.0.0.1", NOW)
    assert world.decide() == []
    ended = {c.name: c.exit.code for c in world.run.containers if c.exit}
    assert ended == {"a": runs.LOST_EXIT_CODE, "b": 0}
    assert world.phase() == "Failed"


def test_the_status_of_an_unchanged_run_does_not_change_with_time() -> None:
    world = World(make_pod(init=[{"name": "i"}]))
    world.decide()
    world.start("i")
    first = status_of(world.pod, world.run, NOW)
    world.pod.status = first
    assert status_of(world.pod, world.run, NOW + 1000) == first


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "cannot", "exit0", "exit1", "probe+", "probe-", "wait", "crash"]),
        st.integers(0, 3),
    ),
    max_size=40,
)


class Checked(World):
    """A world that checks every action and lets programs do anything a program can."""

    def __init__(self, grace: int, policy: str, sidecar: bool) -> None:
        self.fields: dict[str, Any] = {
            "init": [{"name": "i", **({"restartPolicy": "Always"} if sidecar else {})}],
            "main": {"livenessProbe": probes(failureThreshold=1, periodSeconds=1)},
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": grace,
        }
        super().__init__(make_pod("a", "b", **self.fields))
        self.grace, self.policy = grace, policy
        self.starting: set[str] = set()
        self.running: set[str] = set()
        self.attempts: dict[str, int] = {}
        self.term_at: dict[str, float] = {}
        self.deleted_at = float("inf")

    @property
    def alive(self) -> set[str]:
        return self.running | self.starting

    def delete(self) -> None:
        self.deleted_at = self.now
        self.pod = make_pod("a", "b", **self.fields, deleting=self.grace)

    def act(self) -> None:
        for action in self.decide():
            match action:
                case StartContainer(name, attempt):
                    assert name not in self.alive, "two attempts at once"
                    assert attempt == self.attempts.get(name, -1) + 1
                    assert not self.pod.deleting
                    assert attempt == 0 or self.policy != "Never" or name == "i"
                    self.starting.add(name)
                case SignalContainer(name, signal.SIGTERM):
                    assert name in self.running
                    self.term_at[name] = self.now
                case SignalContainer(name, signal.SIGKILL):
                    if self.grace == 0 and self.pod.deleting:
                        continue
                    assert name in self.term_at, "killed without being asked"
                    asked = min(self.term_at[name], self.deleted_at)
                    assert self.now >= asked + self.grace, "killed before its grace was over"
                case FinishPod():
                    assert self.pod.deleting
                    assert not self.alive

    def happen(self, event: str, index: int) -> None:
        names = sorted(self.alive)
        name = names[index % len(names)] if names else ""
        match event:
            case "start" if name in self.starting:
                self.begin(name)
            case "cannot" if name in self.starting:
                self.run = runs.cannot_start(self.run, name, "R", "", self.now, POLICY)
                self.starting.remove(name)
            case "exit0" | "exit1" if name in self.running:
                self.exit(name, int(event[-1]))
                self.running.remove(name)
                self.term_at.pop(name, None)
            case "probe+" | "probe-" if name in ("a", "b") and name in self.running:
                self.probe("liveness", event == "probe+", name)
            case "crash" if not self.pod.deleting:
                self.crash()
            case "wait":
                assert self.last is not None
                self.now = max(self.now + 0.5, self.last.wake_at or 0)

    def begin(self, name: str) -> None:
        self.attempts[name] = self.attempts.get(name, -1) + 1
        self.start(name)
        self.starting.remove(name)
        self.running.add(name)

    def crash(self) -> None:
        for lost in self.starting:
            self.attempts[lost] = self.attempts.get(lost, -1) + 1
        self.run = runs.restored(self.run, self.now)
        self.running.clear()
        self.starting.clear()
        self.term_at.clear()


@settings(max_examples=150, deadline=None)
@given(
    events=EVENTS,
    policy=st.sampled_from(["Always", "OnFailure", "Never"]),
    delete_after=st.integers(0, 40),
    grace=st.integers(0, 60),
    sidecar=st.booleans(),
)
def test_whatever_happens_the_rules_hold(
    events: list[tuple[str, int]], policy: str, delete_after: int, grace: int, sidecar: bool
) -> None:
    """One attempt at a time, Never once, attempts count up, no SIGKILL before the grace is over."""
    world = Checked(grace, policy, sidecar)
    for step, (event, index) in enumerate(events):
        if step == delete_after:
            world.delete()
        world.act()
        world.happen(event, index)
    for container in world.run.containers:
        assert container.live == (container.name in world.alive)


def test_the_state_survives_being_written_down() -> None:
    world = World(make_pod("a", init=[{"name": "i"}]))
    world.decide()
    world.start("i")
    world.exit("i", 0)
    world.decide()
    world.start("a")
    text = msgspec.json.encode(world.run)
    assert msgspec.json.decode(text, type=PodRun) == world.run
    assert replace(world.run, name="q") != world.run
    assert lifecycle.is_initialized(world.pod, world.run)
