"""What a gang says of itself, from its pods and from what others have written on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from spinney.api.core import ContainerStatus, Pod, PodSpec, PodStatus
from spinney.api.meta import Condition, ObjectMeta, find_condition
from spinney.api.podgang import GangPodGroup, NamespacedName, PodGang, PodGangSpec
from spinney.controllers.backends.renderers import backend_of
from spinney.controllers.podgang.status import gang_status

if TYPE_CHECKING:
    from spinney.api.podgang import PodGangStatus

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"


def pod(name: str, state: str, clique: str = "a") -> Pod:
    found = Pod(
        metadata=ObjectMeta(name=name, labels={"grove.io/podclique": clique}),
        spec=PodSpec(node_name="" if state == "pending" else "n1"),
        status=PodStatus(phase="Running"),
    )
    if state in ("Failed", "Succeeded"):
        found.status.phase = state
    if state == "ready":
        found.status.conditions = [Condition(type="Ready", status="True")]
    if state == "loading":
        found.status.container_statuses = [_container(started=False)]
    if state == "broken":
        found.status.container_statuses = [_container(started=True)]
    return found


def _container(*, started: bool) -> ContainerStatus:
    return ContainerStatus(
        name="main", ready=False, restart_count=0, image="i", image_id="i", started=started
    )


def gang(*, scheduler: str = "spinney-scheduler", listed: bool = True) -> PodGang:
    refs = [NamespacedName(namespace="default", name="p")] if listed else []
    group = GangPodGroup(name="a", min_replicas=2, pod_references=refs)
    return PodGang(
        metadata=ObjectMeta(name="s-0", labels={"grove.io/scheduler-name": scheduler}),
        spec=PodGangSpec(pod_groups=[group]),
    )


def told(status: PodGangStatus) -> dict[str, str]:
    return {c.type: f"{c.status}/{c.reason}" for c in status.conditions}


@pytest.mark.parametrize(
    ("states", "phase"),
    [
        pytest.param((), "Pending", id="none"),
        pytest.param(("pending", "pending"), "Pending", id="no-node"),
        pytest.param(("loading", "pending"), "Pending", id="below-minimum"),
        pytest.param(("loading", "loading", "pending"), "Starting", id="minimum-on-nodes"),
        pytest.param(("ready", "ready", "pending"), "Running", id="minimum-ready"),
        pytest.param(("ready", "Failed"), "Failed", id="one-failed"),
        pytest.param(("ready", "ready", "Failed"), "Running", id="one-failed-above-minimum"),
        pytest.param(("Succeeded", "Succeeded"), "Succeeded", id="all-done"),
    ],
)
def test_the_phase_tells_how_far_the_gang_is(states: tuple[str, ...], phase: str) -> None:
    pods = [pod(f"p{at}", state) for at, state in enumerate(states)]
    assert gang_status(gang(), pods, NOW).phase == phase


def test_a_gang_is_unhealthy_when_it_loses_a_minimum_that_it_had() -> None:
    found = gang()
    found.status = gang_status(found, [pod("p0", "pending"), pod("p1", "pending")], NOW)
    assert "Unhealthy" not in told(found.status), "it has not run yet"
    found.status = gang_status(found, [pod("p0", "loading"), pod("p1", "loading")], NOW)
    assert told(found.status)["Unhealthy"] == "False/MinimumHealthy"
    for state in ("pending", "broken", "Failed"):
        lost = gang_status(found, [pod("p0", "ready"), pod("p1", state)], LATER)
        assert told(lost)["Unhealthy"] == "True/MinimumLost"
        condition = find_condition(lost.conditions, "Unhealthy")
        assert condition is not None
        assert condition.message == "fewer pods are sound than needed: a 1 of 2"
        assert condition.last_transition_time == LATER


def test_what_the_scheduler_wrote_is_kept() -> None:
    found = gang()
    theirs = [
        Condition(type="Scheduled", status="False", reason="Unschedulable", message="no room"),
        Condition(type="DisruptionTarget", status="True", reason="PreemptionByScheduler"),
    ]
    found.status.conditions = list(theirs)
    found.status.placement_score = 0.5
    after = gang_status(found, [pod("p0", "ready"), pod("p1", "ready")], NOW)
    assert after.conditions[:2] == theirs
    assert after.placement_score == 0.5


def test_initialized_stays_once_all_pods_were_listed() -> None:
    found = gang(listed=False)
    found.status = gang_status(found, [], NOW)
    assert told(found.status)["Initialized"] == "False/PodGangPodsCreationPending"
    found.status = gang_status(gang(), [], NOW)
    found.spec.pod_groups[0].pod_references = []
    assert told(gang_status(found, [], NOW))["Initialized"] == "True/PodGangPodsCreated"


def test_a_scheduler_without_gangs_is_named_and_scheduled_is_counted_from_pods() -> None:
    found = gang(scheduler="default-scheduler")
    plain = backend_of("default-scheduler")
    waiting = gang_status(found, [pod("p0", "loading"), pod("p1", "pending")], NOW, plain)
    assert told(waiting)["Scheduled"] == "False/Pending"
    assert told(waiting)["GangScheduling"] == "False/NotSupported"
    placed = gang_status(found, [pod("p0", "loading"), pod("p1", "loading")], NOW, plain)
    assert told(placed)["Scheduled"] == "True/Placed"


def test_our_own_scheduler_writes_scheduled_itself() -> None:
    ours = gang_status(gang(), [pod("p0", "ready")], NOW, backend_of("spinney-scheduler"))
    assert not {"Scheduled", "GangScheduling"} & told(ours).keys()
