"""Others on the same nodes: another scheduler, a second one of ours, an API that refuses a pod."""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.scheduler.test_scheduler_in_a_cluster import (
    bindings,
    bound,
    create,
    faults,
    gang,
    play,
    until_bound,
)

from spinney.api.core import Pod
from spinney.api.meta import find_condition
from spinney.api.podgang import PodGang
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.kube.leader import LeaderElector
from spinney.kube.transport import TransportError
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.setup import register

if TYPE_CHECKING:
    from spinney.kube.transport import ApiRequest, ApiResponse, Transport
    from spinney.sim.cluster import SimulatedCluster


async def squat(cluster: SimulatedCluster, name: str, node: str, gpus: int) -> None:
    """Put a pod of another scheduler on *node*."""
    raw = {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "schedulerName": "default-scheduler",
            "containers": [
                {
                    "name": "main",
                    "image": "example.org/x:1",
                    "resources": {"requests": {"nvidia.com/gpu": gpus}},
                }
            ],
        },
    }
    await cluster.client.create(msgspec.convert(raw, Pod))


def test_a_gang_whose_room_another_scheduler_took_goes_elsewhere_as_a_whole() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        taken = False
        refused = asyncio.Event()

        def refuse(request: ApiRequest) -> bool:
            if taken or not request.path.endswith("/binding"):
                return False
            refused.set()
            return True

        faults(cluster).refuse = refuse

        async def meddle() -> None:
            """Take room while the gang's first binding is refused because the API is busy."""
            nonlocal taken
            await refused.wait()
            await squat(cluster, "squatter", "n1", 1)
            await asyncio.sleep(0.02)
            taken = True

        meddling = asyncio.get_running_loop().create_task(meddle())
        await create(cluster, gang("g", 8, required="rack"))
        await until_bound(cluster, 9)
        await meddling
        assert set(bindings(cluster).values()) == {1}
        return await bound(cluster)

    placed = play(scene)

    assert {placed[f"g-p-{n}"] for n in range(8)} == {"n2", "n3"}


def test_half_a_gang_that_cannot_be_completed_is_evicted_and_not_left() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        unlucky = True

        def refuse(request: ApiRequest) -> bool:
            return unlucky and request.path.endswith("g-p-3/binding")

        faults(cluster).refuse = refuse
        await create(cluster, gang("g", 4, 2, required="rack"))
        await asyncio.sleep(3)
        half = await bound(cluster)
        assert 0 < len(half) < 4
        rack = {node in ("n0", "n1") for node in half.values()}
        assert len(rack) == 1
        for node in ("n0", "n1") if rack == {True} else ("n2", "n3"):
            free = 4 - 2 * sum(at == node for at in half.values())
            if free:
                await squat(cluster, f"squatter-{node}", node, free)
        unlucky = False
        await asyncio.sleep(60)
        left = [name for name in await bound(cluster) if name.startswith("g-")]
        assert left == [], "half a gang stays"

    config = SchedulerConfig(stale_grace_s=20.0)
    play(scene, programs=(functools.partial(register, config=config),))


@pytest.mark.parametrize("seed", range(6))
def test_two_schedulers_at_once_bind_nothing_twice_and_leave_whole_gangs(seed: int) -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        loop, rng = asyncio.get_running_loop(), random.Random(seed)
        tasks = []
        for name in ("one", "other"):
            clock, ids = LoopClock(loop), RandomIds(random.Random(f"{name}/{seed}"))
            events = EventRecorder(cluster.client, clock, ids, name)
            runtime = Runtime(cluster.client, clock, rng=random.Random(f"{name}{seed}"))
            register(runtime, ids, events)
            tasks.append(loop.create_task(runtime.run()))
        faults(cluster).before = functools.partial(slow, rng)
        await asyncio.sleep(rng.uniform(0, 0.2))
        for at in range(4):
            await create(cluster, gang(f"g{at}", 4, required="rack"))
            await asyncio.sleep(rng.choice((0.0, 0.1)))
        await until_bound(cluster, 16)
        await asyncio.sleep(5)
        for found in (await cluster.client.list(PodGang, "default")).items:
            condition = find_condition(found.status.conditions, "Scheduled")
            assert condition is not None
            assert condition.status == "True"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert set(bindings(cluster).values()) == {1}
        return await bound(cluster)

    placed = play(scene, seed, programs=())

    for at in range(4):
        assert len({placed[f"g{at}-p-{n}"] in ("n0", "n1") for n in range(4)}) == 1


async def slow(rng: random.Random, request: ApiRequest) -> None:
    """Let each request take a while of its own."""
    if request.method != "GET":
        await asyncio.sleep(rng.uniform(0.001, 0.02))


def test_a_pod_that_another_scheduler_bound_first_is_left_where_it_is() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        async def steal(request: ApiRequest) -> None:
            if request.path.endswith("g-p-0/binding"):
                faults(cluster).before = None
                await cluster.client.bind("g-p-0", "default", "n3")

        faults(cluster).before = steal
        await create(cluster, gang("g", 4, required="rack"))
        await until_bound(cluster, 4)
        assert set(bindings(cluster).values()) == {1}
        return await bound(cluster)

    placed: dict[str, Any] = play(scene)

    assert placed["g-p-0"] == "n3"
    assert set(placed.values()) <= {"n2", "n3"}, "the others are beside it"


def test_room_that_another_scheduler_made_for_its_pod_is_left_to_it() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        await squat(cluster, "theirs", "", 4)
        promise = {"status": {"nominatedNodeName": "n0"}}
        await cluster.client.patch(Pod, "theirs", promise, "default", subresource="status")
        await create(cluster, gang("g", 3, 4))
        await until_bound(cluster, 3)
        return await bound(cluster)

    assert set(play(scene).values()) == {"n1", "n2", "n3"}


class Cut:
    """The API as one process sees it, which may be cut off for a while."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.off = False
        self.bindings = 0
        self.cut_at = -1

    async def send(self, request: ApiRequest) -> ApiResponse:
        if request.path.endswith("/binding"):
            self.off = self.off or self.bindings == self.cut_at
            self.bindings += 1
        if self.off:
            raise TransportError("the network is down")
        response = await self._inner.send(request)
        if self.off:
            raise TransportError("the network went down before the reply")
        return response

    async def close(self) -> None:
        await self._inner.close()


async def candidate(cluster: SimulatedCluster, api: Cut, name: str) -> None:
    """Schedule whenever the lease is held."""
    loop = asyncio.get_running_loop()
    clock, client = LoopClock(loop), KubeClient(api)
    ids = RandomIds(random.Random(name))

    async def work() -> None:
        events = EventRecorder(client, clock, ids, name)
        runtime = Runtime(client, clock, rng=random.Random(name))
        register(runtime, ids, events)
        await runtime.run()

    await LeaderElector(client, clock, ids, "scheduler", "default", name).run(work)


@pytest.mark.parametrize("cut_at", [0, 1, 3, 7])
def test_a_leader_that_is_cut_off_while_it_binds_is_followed_and_nothing_is_bound_twice(
    cut_at: int,
) -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        loop = asyncio.get_running_loop()
        one, other = Cut(cluster.transport), Cut(cluster.transport)
        one.cut_at = cut_at
        tasks = [loop.create_task(candidate(cluster, one, "one"))]
        await asyncio.sleep(1)
        tasks.append(loop.create_task(candidate(cluster, other, "other")))
        await create(cluster, gang("g", 8, required="rack"), gang("h", 8, required="rack"))
        await asyncio.sleep(5)
        assert one.off
        assert len(await bound(cluster)) < 16
        await until_bound(cluster, 16)
        assert other.bindings
        one.off, one.cut_at = False, -1
        await asyncio.sleep(30)
        assert set(bindings(cluster).values()) == {1}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await bound(cluster)

    placed = play(scene, programs=())

    for name in "gh":
        assert len({placed[f"{name}-p-{n}"] in ("n0", "n1") for n in range(8)}) == 1
