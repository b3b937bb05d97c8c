from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.api.core import Pod
from spinney.api.grove import PodClique, PodCliqueSpec
from spinney.api.meta import ObjectMeta, find_condition
from spinney.controllers.podclique.backoff import LONGEST_DELAY_S, ReplacementBackoff
from spinney.controllers.podclique.decide import (
    Action,
    CreatePod,
    DeletePod,
    Observation,
    OpenGate,
    decide,
    removal_order,
)
from spinney.controllers.podclique.status import clique_status, has_reached, is_progress

NOW = "2026-01-01T00:00:00Z"


def clique(replicas: int = 2, minimum: int = 1) -> PodClique:
    return PodClique(
        metadata=ObjectMeta(
            name="s-0-a",
            namespace="default",
            uid="u",
            labels={"grove.io/pod-template-hash": "new", "app.kubernetes.io/part-of": "s"},
        ),
        spec=PodCliqueSpec(replicas=replicas, min_available=minimum),
    )


def pod(
    index: int,
    *,
    node: str = "n",
    phase: str = "Running",
    ready: bool = True,
    gated: bool = False,
    deleting: bool = False,
    revision: str = "new",
    created: str = NOW,
    started: bool = True,
    exit_code: int | None = None,
    name: str = "",
) -> Pod:
    import msgspec

    state: dict[str, Any] = {"running": {}} if exit_code is None else {}
    if exit_code is not None:
        state = {"terminated": {"exitCode": exit_code}}
    node = "" if gated else node
    raw = {
        "metadata": {
            "name": name or f"p{index}",
            "namespace": "default",
            "uid": name or f"uid{index}",
            "creationTimestamp": created,
            "labels": {
                "grove.io/podclique-pod-index": str(index),
                "grove.io/pod-template-hash": revision,
            },
        },
        "spec": {"nodeName": node},
        "status": {
            "phase": phase if node else "Pending",
            "conditions": [{"type": "Ready", "status": str(bool(ready and node))}],
            "containerStatuses": [
                {
                    "name": "main",
                    "ready": ready,
                    "restartCount": 0,
                    "image": "",
                    "imageID": "",
                    "started": started,
                    "state": state,
                }
            ]
            if node
            else [],
        },
    }
    if gated:
        raw["spec"]["schedulingGates"] = [{"name": "grove.io/podgang-pending-creation"}]
    if deleting:
        raw["metadata"]["deletionTimestamp"] = NOW
    return msgspec.convert(raw, Pod)


def observation(*pods: Pod, **changes: Any) -> Observation:
    values: dict[str, Any] = {
        "pods": pods,
        "listed": frozenset(),
        "base_scheduled": True,
        "may_replace_finished": True,
    }
    return Observation(**(values | changes))


def told(actions: list[Action]) -> list[str]:
    words = []
    for action in actions:
        match action:
            case CreatePod(index):
                words.append(f"create {index}")
            case DeletePod(gone):
                words.append(f"delete {gone.name}")
            case OpenGate(found):
                words.append(f"open {found.name}")
    return words


GATED = [pod(0, gated=True), pod(1, gated=True)]
BOTH = frozenset({"p0", "p1"})

TABLE = [
    pytest.param(2, observation(), ["create 0", "create 1"], id="nothing there"),
    pytest.param(2, observation(pod(0), pod(1)), [], id="as wanted"),
    pytest.param(2, observation(pod(1)), ["create 0"], id="the lowest free index is used"),
    pytest.param(
        2,
        observation(pod(0, deleting=True), pod(1)),
        ["create 0"],
        id="a pod on its way out is replaced at once, with its index",
    ),
    pytest.param(
        2,
        observation(pod(0, phase="Failed", ready=False), pod(1)),
        ["delete p0", "create 0"],
        id="a failed pod is replaced",
    ),
    pytest.param(
        2,
        observation(pod(0, phase="Failed", ready=False), pod(1), may_replace_finished=False),
        [],
        id="while the back-off lasts, the failed pod stays and nothing is made",
    ),
    pytest.param(
        1,
        observation(pod(0, phase="Failed"), pod(1), may_replace_finished=False),
        ["delete p0"],
        id="a failed pod that nobody needs goes without back-off",
    ),
    pytest.param(1, observation(pod(0), pod(1, ready=False)), ["delete p1"], id="scale in"),
    pytest.param(0, observation(pod(0), pod(1)), ["delete p1", "delete p0"], id="to zero"),
    pytest.param(2, observation(*GATED), [], id="not listed: gates stay shut"),
    pytest.param(2, observation(*GATED, listed=BOTH), ["open p0", "open p1"], id="listed"),
    pytest.param(
        2,
        observation(*GATED, listed=frozenset({"p1"})),
        ["open p1"],
        id="only what is listed is released",
    ),
    pytest.param(
        2,
        observation(*GATED, listed=BOTH, base_scheduled=False),
        [],
        id="a scaled gang waits for its base",
    ),
    pytest.param(2, observation(pod(0), pod(1), listed=BOTH), [], id="no gate, nothing to open"),
]


@pytest.mark.parametrize(("replicas", "seen", "want"), TABLE)
def test_decisions(replicas: int, seen: Observation, want: list[str]) -> None:
    assert told(decide(clique(replicas), seen)) == want


def test_scaling_below_the_minimum_keeps_the_minimum() -> None:
    three = observation(pod(0), pod(1), pod(2))
    assert told(decide(clique(1, minimum=2), three)) == ["delete p2"]
    status = clique_status(clique(1, minimum=2), [pod(0), pod(1)], [], NOW)
    breached = find_condition(status.conditions, "MinAvailableBreached")
    assert breached is not None
    assert "1 are asked for, 2 are kept because of minAvailable" in breached.message


def test_a_clique_on_its_way_out_is_left_alone() -> None:
    going = clique()
    going.metadata.deletion_timestamp = NOW
    assert decide(going, observation()) == []


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        pytest.param(pod(0, node="", ready=False), pod(1, phase="Unknown"), id="no node"),
        pytest.param(pod(0, phase="Pending", ready=True), pod(1, phase="Unknown"), id="pending"),
        pytest.param(pod(0, phase="Unknown", ready=True), pod(1, ready=False), id="unknown"),
        pytest.param(pod(0, ready=False), pod(1, revision="old"), id="not ready"),
        pytest.param(pod(0, revision="old", created=NOW), pod(1, created=NOW), id="old revision"),
        pytest.param(
            pod(0, created="2026-01-01T00:00:09Z"), pod(1, created=NOW), id="newer goes first"
        ),
        pytest.param(pod(3), pod(2), id="of one second, the higher index goes"),
    ],
)
def test_who_is_given_up_first(worse: Pod, better: Pod) -> None:
    assert [p.name for p in removal_order([better, worse], "new")] == [worse.name, better.name]
    assert [p.name for p in removal_order([worse, better], "new")] == [worse.name, better.name]


states = st.builds(
    pod,
    st.integers(0, 6),
    node=st.sampled_from(["", "n"]),
    phase=st.sampled_from(["Pending", "Running", "Failed", "Succeeded", "Unknown"]),
    ready=st.booleans(),
    gated=st.booleans(),
    deleting=st.booleans(),
    name=st.uuids().map(str),
)


@given(
    pods=st.lists(states, max_size=8),
    replicas=st.integers(0, 6),
    minimum=st.integers(1, 4),
    may=st.booleans(),
)
def test_no_decision_makes_too_many_pods_or_uses_an_index_twice(
    pods: list[Pod], replicas: int, minimum: int, may: bool
) -> None:
    from spinney.controllers.pod_state import is_finished, is_live

    todo = decide(clique(replicas, minimum), observation(*pods, may_replace_finished=may))
    gone = {a.pod.name for a in todo if isinstance(a, DeletePod)}
    made = [a.index for a in todo if isinstance(a, CreatePod)]
    stay = [p for p in pods if is_live(p) and p.name not in gone]
    target = 0 if replicas == 0 else max(replicas, minimum)
    assert len(stay) + len(made) <= target or not made
    assert len(made) == len(set(made))
    assert not set(made) & {int(p.labels["grove.io/podclique-pod-index"]) for p in stay}
    ready_before = [p for p in pods if is_live(p)]
    assert len(stay) >= min(len(ready_before), target)
    if may:
        assert len(stay) + len(made) == target
        assert not [p for p in pods if is_finished(p) and not p.deleting and p.name not in gone]


# Status


def breached(count: tuple[int, int], *pods: Pod) -> tuple[str, str]:
    status = clique_status(clique(*count), pods, [], NOW)
    found = find_condition(status.conditions, "MinAvailableBreached")
    assert found is not None
    return found.status, found.reason


STATUS = [
    pytest.param((2, 2), [pod(0), pod(1)], "False", "SufficientReadyPods", id="all ready"),
    pytest.param(
        (2, 2), [pod(0)], "True", "ScheduledReplicasBelowMinAvailable", id="one is missing"
    ),
    pytest.param(
        (2, 2),
        [pod(0), pod(1, gated=True)],
        "True",
        "ScheduledReplicasBelowMinAvailable",
        id="one is gated",
    ),
    pytest.param(
        (2, 2),
        [pod(0), pod(1, ready=False, started=False)],
        "False",
        "SufficientReadyPods",
        id="one still starts: no breach",
    ),
    pytest.param(
        (2, 2),
        [pod(0), pod(1, ready=False)],
        "True",
        "InsufficientReadyPods",
        id="one has started and does not serve",
    ),
    pytest.param(
        (2, 2),
        [pod(0), pod(1, ready=False, started=False, exit_code=1)],
        "True",
        "InsufficientReadyPods",
        id="one exited with an error",
    ),
    pytest.param((3, 1), [pod(0), pod(1, ready=False)], "False", "SufficientReadyPods", id="min 1"),
    pytest.param((0, 2), [], "False", "SufficientReadyPods", id="scaled to zero is no breach"),
]


@pytest.mark.parametrize(("count", "pods", "status", "reason"), STATUS)
def test_when_the_minimum_is_breached(
    count: tuple[int, int], pods: list[Pod], status: str, reason: str
) -> None:
    assert breached(count, *pods) == (status, reason)


def test_counts_leave_out_pods_on_their_way_out() -> None:
    pods = [
        pod(0),
        pod(1, deleting=True),
        pod(2, gated=True),
        pod(3, revision="old"),
        pod(4, phase="Failed"),
    ]
    status = clique_status(clique(3), pods, [], NOW)
    counts = (
        status.replicas,
        status.ready_replicas,
        status.scheduled_replicas,
        status.schedule_gated_replicas,
        status.updated_replicas,
    )
    assert counts == (3, 2, 2, 1, 2)
    assert status.hpa_pod_selector.endswith("grove.io/podclique=s-0-a")


def test_the_condition_says_which_pod_suffers_from_what() -> None:
    status = clique_status(clique(2, 2), [pod(0), pod(1, ready=False, exit_code=3)], [], NOW)
    found = find_condition(status.conditions, "MinAvailableBreached")
    assert found is not None
    assert found.message == ("1 of 2 needed pods are ready: p1 container main exited with code 3")


# Back-off


class Tick:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at


def test_replacements_that_end_as_well_come_later_and_later() -> None:
    tick = Tick()
    backoff = ReplacementBackoff(tick)
    waits = [backoff.wait_s("k", [f"u{n}"]) for n in range(9)]
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_DELAY_S, LONGEST_DELAY_S]
    tick.at = 10.0
    assert backoff.wait_s("k", ["u8"]) == LONGEST_DELAY_S - 10.0
    backoff.succeeded("k")
    assert backoff.wait_s("k", ["u9"]) == 0.0


def test_a_minimum_lost_before_it_was_written_counts_as_reached_and_its_loss_is_news() -> None:
    up, down = [pod(0), pod(1)], [pod(0), pod(1, node="")]
    fresh = clique(2, 2)
    assert has_reached(clique_status(fresh, up, [], NOW))
    assert is_progress(fresh, clique_status(fresh, [pod(0, ready=False), pod(1)], [], NOW))
    lost = clique_status(fresh, down, [], NOW, reached=True)
    assert has_reached(lost)
    assert not is_progress(fresh, lost)
    assert not has_reached(clique_status(clique(0, 2), [], [], NOW, reached=True))
