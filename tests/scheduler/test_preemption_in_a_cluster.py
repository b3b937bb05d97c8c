"""Evictions against the API: announced, whole, and the room is for whom it was made."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from tests.scheduler.test_scheduler_in_a_cluster import bound, create, faults, play, until_bound

from spinney.api.core import Event, Pod, PriorityClass
from spinney.api.meta import find_condition
from spinney.api.podgang import PodGang
from spinney.api.queue import Queue, QueueResource, QueueResources, QueueSpec
from spinney.scheduler.scenario import podgang, pods, scenario

if TYPE_CHECKING:
    from spinney.kube.transport import ApiRequest
    from spinney.sim.cluster import SimulatedCluster


def gang(name: str, count: int, gpus: int = 1, priority: int = 0, **more: Any) -> dict[str, Any]:
    group = {"name": "p", "pods": count, "gpus": gpus}
    return {"name": name, "groups": [group], "priority": priority, **more}


async def start(cluster: SimulatedCluster) -> None:
    """Fill the cluster with a gang of no importance."""
    important = PriorityClass(value=50)
    important.metadata.name = "p50"
    await cluster.client.create(important)
    await create(cluster, gang("low", 4, 4))
    await until_bound(cluster, 4)


def evictions(cluster: SimulatedCluster) -> list[str]:
    """Return the pods that were evicted with success."""
    writes = [w for w in cluster.transport.writes if w.path.endswith("/eviction")]
    return sorted(json.loads(w.body)["metadata"]["name"] for w in writes if w.status < 300)


def test_a_gang_of_lower_priority_leaves_whole_and_is_told_why() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await start(cluster)
        victim = await cluster.client.get(Pod, "low-p-0", "default")
        told: list[dict[str, Any]] = []

        async def listen(request: ApiRequest) -> None:
            if request.path.endswith("low-p-0/status") and b"DisruptionTarget" in request.body:
                told.append(json.loads(request.body)["status"]["conditions"][0])

        faults(cluster).before = listen
        await create(cluster, gang("high", 1, 2, priority=50))

        async def high_is_bound() -> bool:
            return "high-p-0" in await bound(cluster)

        await cluster.until(high_is_bound, within_s=120, what="the gang of high priority bound")
        assert victim.metadata.uid
        assert evictions(cluster) == [f"low-p-{n}" for n in range(4)]
        assert told[0]["status"] == "True"
        assert "makes room for default/high" in told[0]["message"]
        events = (await cluster.client.list(Event, "default")).items
        assert {e.involved_object.name for e in events if e.reason == "Evicted"} == {
            "low",
            *(f"low-p-{n}" for n in range(4)),
        }
        gang_of_low = await cluster.client.get(PodGang, "low", "default")
        target = find_condition(gang_of_low.status.conditions, "DisruptionTarget")
        assert target is not None
        assert (target.status, target.reason) == ("True", "PreemptionByScheduler")
        assert "makes room for default/high" in target.message

    play(scene)


def test_while_pods_leave_the_gang_says_that_its_room_is_reserved() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await start(cluster)
        told: list[str] = []

        async def listen(request: ApiRequest) -> None:
            if request.path.endswith("podgangs/high/status"):
                told.append(request.body.decode())

        faults(cluster).before = listen
        await create(cluster, gang("high", 1, 2, priority=50), gang("opportunist", 4, 4))
        await asyncio.sleep(120)
        assert "room is reserved; 4 pods of 1 gang leave" in told[0]
        assert sorted(await bound(cluster)) == ["high-p-0"]

    play(scene)


def test_a_failed_eviction_is_tried_again() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await start(cluster)
        refused = 0

        def refuse(request: ApiRequest) -> bool:
            nonlocal refused
            if request.path.endswith("/eviction") and refused < 3:
                refused += 1
                return True
            return False

        faults(cluster).refuse = refuse
        await create(cluster, gang("high", 1, 2, priority=50))

        async def high_is_bound() -> bool:
            return "high-p-0" in await bound(cluster)

        await cluster.until(high_is_bound, within_s=120, what="the gang of high priority bound")
        assert refused == 3
        await asyncio.sleep(60)
        assert sorted(await bound(cluster)) == ["high-p-0"]

    play(scene)


def test_a_limit_that_is_raised_lets_the_gang_in() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        share = QueueResource(0, 1, 4)
        queue = Queue(spec=QueueSpec(resources=QueueResources(gpu=share)))
        queue.metadata.name = "team"
        await cluster.client.create(queue)
        line = scenario({"gangs": [gang("g", 2, 4, queue="team")]}).gangs[0]
        made = podgang(line)
        made.metadata.uid, made.metadata.creation_timestamp = "", None
        await cluster.client.create(made)
        for pod in pods(line.groups[0], 0, line):
            pod.metadata.uid, pod.metadata.creation_timestamp = "", None
            pod.spec.containers[0].image = "example.org/x:1"
            await cluster.client.create(pod)

        async def refused() -> bool:
            found = await cluster.client.get(PodGang, "g", "default")
            told = find_condition(found.status.conditions, "Scheduled")
            return told is not None and "queue team is at its limit of 4 GPUs" in told.message

        await cluster.until(refused, within_s=60, what="the queue's limit in the condition")
        assert not await bound(cluster)
        body = {"spec": {"resources": {"gpu": {"limit": 8}}}}
        await cluster.client.patch(Queue, "team", body)
        await until_bound(cluster, 2)

    play(scene)
