"""What the scheduler says on the objects of gangs, once for each decision, and what it measures."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.scheduler.test_bind_claims import make, make_pod
from tests.scheduler.test_scheduler_in_a_cluster import bound, create, gang, play, until_bound

from spinney.api.core import Event, Pod
from spinney.api.meta import find_condition
from spinney.api.podgang import PodGang
from spinney.api.podgroup import PodGroup, UpstreamPodGroup
from spinney.api.queue import Queue
from spinney.scheduler.said import (
    Said,
    is_said_placed,
    kai_reason,
    same_but_for_figures,
    with_disruption,
    with_said,
)
from spinney.scheduler.scheduler_metrics import reason_class
from spinney.scheduler.setup import register
from spinney.scheduler.verdict import Verdict

if TYPE_CHECKING:
    from spinney.sim.cluster import SimulatedCluster

NOW = "2026-01-01T00:00:00Z"


async def kai_group(cluster: SimulatedCluster, name: str, pods: int, **spec: Any) -> None:
    await make(cluster, PodGroup, name, spec={"minMember": pods, **spec})
    container = {
        "name": "main",
        "image": "example.org/x:1",
        "resources": {"requests": {"nvidia.com/gpu": 4}},
    }
    for at in range(pods):
        metadata = {"annotations": {"pod-group-name": name}}
        await make_pod(cluster, f"{name}-{at}", metadata=metadata, containers=[container])


async def events(cluster: SimulatedCluster, name: str) -> list[tuple[str, str]]:
    """Return the reasons of events on *name*, each with a word of its message."""
    found = (await cluster.client.list(Event, "default")).items
    words = {"reserved": "reserved", "placed 2 pods": "placed", "": "no room"}
    return sorted(
        (event.reason, next(words[text] for text in words if text in event.message))
        for event in found
        if event.involved_object.name == name
    )


def test_a_kai_pod_group_says_why_it_is_pending_until_it_is_placed() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await create(cluster, gang("first", 4, 4))
        await until_bound(cluster, 4)
        await kai_group(cluster, "kai", 2)
        await asyncio.sleep(2)
        found = await cluster.client.get(PodGroup, "kai", "default")
        (condition,) = found.status.scheduling_conditions
        assert condition.type == "UnschedulableOnNodePool"
        assert (condition.status, condition.reason) == ("True", "PodSchedulingErrors")
        assert (condition.node_pool, condition.transition_id) == ("default", "1")
        assert "needs 2 pods with 4 nvidia.com/gpu each" in condition.message
        await cluster.client.delete_collection(Pod, "default", labels="grove.io/podgang=first")
        await until_bound(cluster, 2)
        await asyncio.sleep(2)
        found = await cluster.client.get(PodGroup, "kai", "default")
        assert found.status.scheduling_conditions == []
        assert await events(cluster, "kai") == [
            ("FailedScheduling", "no room"),
            ("FailedScheduling", "reserved"),
            ("Scheduled", "placed"),
        ]

    play(scene)


def test_a_kai_pod_group_over_its_queues_limit_says_so_in_kais_words() -> None:
    async def scene(cluster: SimulatedCluster) -> str:
        gpu = {"quota": 4, "limit": 4}
        await make(cluster, Queue, "team", spec={"resources": {"gpu": gpu}})
        await kai_group(cluster, "kai", 2, queue="team")
        await asyncio.sleep(2)
        found = await cluster.client.get(PodGroup, "kai", "default")
        return found.status.scheduling_conditions[0].reason

    assert play(scene) == "OverLimit"


def test_queues_say_what_they_have_and_want_and_nothing_more_often_than_it_changes() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        gpu = {"quota": 4, "limit": 12}
        await make(cluster, Queue, "team", spec={"resources": {"gpu": gpu}})
        for at in range(3):
            await kai_group(cluster, f"kai{at}", 1, queue="team")
        await kai_group(cluster, "late", 2, queue="team")
        await asyncio.sleep(10)
        status = (await cluster.client.get(Queue, "team")).status
        assert status.allocated["nvidia.com/gpu"] == "12"
        assert status.requested["nvidia.com/gpu"] == "20"
        over = next(c for c in status.conditions if c.type == "OverQuota")
        assert (over.status, over.message) == ("True", "8 GPUs beyond its quota")
        assert over.last_transition_time
        writes = [w for w in cluster.transport.writes if w.path.endswith("queues/team/status")]
        assert 1 <= len(writes) <= 4
        await asyncio.sleep(300)
        again = [w for w in cluster.transport.writes if w.path.endswith("queues/team/status")]
        assert len(again) == len(writes)

    play(scene)


def test_a_gang_that_waits_for_long_says_for_what_and_is_not_called_unschedulable() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        metadata = {"annotations": {"pod-group-name": "late"}}
        for at in range(2):
            await make_pod(cluster, f"late-{at}", metadata=metadata)
        await asyncio.sleep(5)
        writes = len(cluster.transport.writes)
        await asyncio.sleep(15)
        pod = await cluster.client.get(Pod, "late-1", "default")
        condition = find_condition(pod.status.conditions, "PodScheduled")
        assert condition is not None
        assert (condition.reason, condition.message) == (
            "Waiting",
            "waits for PodGroup default/late",
        )
        assert len(cluster.transport.writes) == writes + 3, "two conditions and one event"
        await make(cluster, PodGroup, "late", spec={"minMember": 3})
        await asyncio.sleep(30)
        found = await cluster.client.get(PodGroup, "late", "default")
        (said,) = found.status.scheduling_conditions
        assert "waits for pods of group" in said.message
        await make_pod(cluster, "late-2", metadata=metadata)
        await until_bound(cluster, 3)
        await asyncio.sleep(1)
        found = await cluster.client.get(PodGroup, "late", "default")
        assert found.status.scheduling_conditions == []

    play(scene)


def test_a_pod_on_its_own_is_reported_where_it_went() -> None:
    async def scene(cluster: SimulatedCluster) -> list[tuple[str, str]]:
        await make_pod(cluster, "alone")
        await until_bound(cluster, 1)
        await asyncio.sleep(1)
        found = (await cluster.client.list(Event, "default")).items
        return [(e.reason, e.message) for e in found if e.involved_object.name == "alone"]

    assert ("Scheduled", "placed on n0") in play(scene)


def test_a_gang_of_labels_alone_is_reported_in_one_event() -> None:
    async def scene(cluster: SimulatedCluster) -> int:
        container = {
            "name": "main",
            "image": "example.org/x:1",
            "resources": {"requests": {"nvidia.com/gpu": 8}},
        }
        metadata = {
            "labels": {"batch.kubernetes.io/job-name": "j"},
            "annotations": {"kai.scheduler/batch-min-member": "3"},
        }
        for at in range(3):
            await make_pod(cluster, f"j-{at}", metadata=metadata, containers=[container])
        await asyncio.sleep(2)
        found = (await cluster.client.list(Event, "default")).items
        assert await bound(cluster) == {}
        return len([event for event in found if event.reason == "FailedScheduling"])

    assert play(scene) == 1


@pytest.mark.parametrize("kind", [PodGang, PodGroup, UpstreamPodGroup])
def test_what_is_said_already_is_not_said_again(kind: Any) -> None:
    obj = msgspec.convert({"metadata": {"name": "g", "namespace": "default"}}, kind)
    pending = with_said(obj, Said(placed=False, message="no room"), NOW)

    assert pending is not None
    assert not is_said_placed(pending)
    assert with_said(pending, Said(placed=False, message="no room"), "later") is None
    assert with_said(pending, Said(placed=False, message="other"), "later") is not None
    placed = with_said(pending, Said(placed=True, message="on nodes", score=1.0), NOW)
    assert placed is not None
    assert is_said_placed(placed)
    assert with_said(placed, Said(placed=True, message="on nodes", score=1.0), "later") is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("best domain r1 has 8 GPUs free", "best domain r2 has 4 GPUs free", True),
        ("0/4 nodes: 3 insufficient cpu", "1/4 nodes: 2 insufficient cpu", True),
        ("queue a is at its limit of 1.5Gi", "queue b is at its limit of 2Gi", False),
        ("would fit in one zone instead", "would fit in one block instead", False),
    ],
)
def test_other_figures_are_no_news(one: str, other: str, same: bool) -> None:
    assert (same_but_for_figures(one) == same_but_for_figures(other)) == same


def test_a_gang_whose_figures_change_is_reported_once_and_says_the_last_ones() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await create(cluster, gang("big", 9, 2))
        await asyncio.sleep(1)
        for at in range(3):
            await create(cluster, gang(f"small{at}", 1))
            await asyncio.sleep(1)
            await cluster.client.delete(Pod, f"small{at}-p-0", "default")
            await asyncio.sleep(60)
            await create(cluster, gang(f"stays{at}", 1))
            await asyncio.sleep(1)
        assert await events(cluster, "big") == [("FailedScheduling", "no room")]

    play(scene)


@pytest.mark.parametrize("kind", [PodGang, UpstreamPodGroup])
def test_a_disruption_is_over_when_the_gang_is_placed_again(kind: Any) -> None:
    obj = msgspec.convert({"metadata": {"name": "g", "namespace": "default"}}, kind)
    placed = with_said(obj, Said(placed=True, message="on nodes"), NOW)
    assert placed is not None
    disrupted = with_disruption(placed, "for another", NOW)
    assert disrupted is not None
    assert with_disruption(disrupted, "for a third", NOW) is None
    again = with_said(disrupted, Said(placed=True, message="on nodes"), NOW)

    assert again is not None
    assert not isinstance(again, PodGroup)
    states = {c.type: c.status for c in again.status.conditions}
    assert states["DisruptionTarget"] == "False"
    assert with_said(again, Said(placed=True, message="on nodes"), NOW) is None


def test_an_upstream_group_has_upstreams_condition() -> None:
    obj = msgspec.convert({"metadata": {"name": "g", "namespace": "default"}}, UpstreamPodGroup)
    found = with_said(obj, Said(placed=False, message="no room"), NOW)

    assert isinstance(found, UpstreamPodGroup)
    (condition,) = found.status.conditions
    assert (condition.type, condition.status) == ("PodGroupScheduled", "False")
    assert (condition.reason, condition.message) == ("Unschedulable", "no room")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("queue a is at its limit of 4 GPUs", "OverLimit"),
        ("queue a has no quota left for non-preemptible gangs: 1 of 4", "NonPreemptibleOverQuota"),
        ("queue a does not exist", "QueueDoesNotExist"),
        ("needs 3 pods", "PodSchedulingErrors"),
    ],
)
def test_kais_reasons(message: str, reason: str) -> None:
    assert kai_reason(message) == reason


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Verdict("g", "placed"), ""),
        (Verdict("g", "placed", "full", ("p",)), "surplus"),
        (Verdict("g", "waiting", "waits"), "waiting"),
        (Verdict("g", "pipelined", "reserved"), "leaving"),
        (Verdict("g", "unplaced", "queue a is at its limit of 4"), "queue"),
        (Verdict("g", "unplaced", "needs 1 pod; would fit in one zone instead"), "topology"),
        (Verdict("g", "unplaced", "would fit without the rack constraint"), "topology"),
        (Verdict("g", "unplaced", "would fit if cordoned nodes were used"), "filters"),
        (Verdict("g", "unplaced", "would fit without the node selector or affinity"), "filters"),
        (Verdict("g", "unplaced", "not even the whole cluster would do"), "room"),
    ],
)
def test_reasons_are_counted_in_classes(verdict: Verdict, reason: str) -> None:
    assert reason_class(verdict) == reason


def test_cycles_bindings_and_who_waits_for_what_are_measured() -> None:
    registry = CollectorRegistry()

    async def scene(cluster: SimulatedCluster) -> None:
        await create(
            cluster, gang("g", 4), gang("far-too-big", 5, 8), gang("wide", 8, 2, required="rack")
        )
        await until_bound(cluster, 4)
        await asyncio.sleep(2)

    play(scene, programs=(functools.partial(register, registry=registry),))

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"spinney_scheduler_{name}", labels) or 0.0

    assert value("binds_total", result="bound") == 4
    assert value("binds_total", result="failed") == 0
    assert value("cycle_seconds_count") >= 1
    assert value("gang_wait_seconds_count") == 1
    assert value("pending_gangs", reason="room") == 2
