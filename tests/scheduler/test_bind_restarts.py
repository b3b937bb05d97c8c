"""The scheduler dies before any of its writes, and another one goes on."""

from __future__ import annotations

import asyncio
import collections
import functools
import json
import random
from typing import TYPE_CHECKING

from tests.scheduler.test_bind_claims import claim, claimed, make_pod, offer_devices, uses
from tests.scheduler.test_scheduler_in_a_cluster import (
    bindings,
    bound,
    create,
    faults,
    gang,
    play,
    until_bound,
)

from spinney.api.core import Pod, PriorityClass
from spinney.api.meta import find_condition
from spinney.api.podgang import PodGang
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import run_cycle
from spinney.scheduler.nominations import recovered, wanted
from spinney.scheduler.scenario import fill, scenario
from spinney.scheduler.setup import register
from spinney.scheduler.shapes import gpu_groups
from spinney.sim.kubelet import KubeletModel

if TYPE_CHECKING:
    from spinney.kube.transport import ApiRequest, ApiResponse, Transport
    from spinney.sim.cluster import SimulatedCluster

NEVER = 10_000
WITHIN_S = 16.0
KUBELET = KubeletModel(stop_s=(1.0, 3.0))


class Mortal:
    """The API as one process sees it that dies before its write number *at*.

    To die after a write is to die before the next one. What is under way meanwhile is done.
    """

    def __init__(self, inner: Transport, at: int) -> None:
        self._inner = inner
        self._at = at
        self.writes = 0
        self.dead = asyncio.Event()

    async def send(self, request: ApiRequest) -> ApiResponse:
        if request.method != "GET":
            if self.writes == self._at:
                self.dead.set()
            self.writes += 1
        if self.dead.is_set():
            await asyncio.Event().wait()
        return await self._inner.send(request)

    async def close(self) -> None:
        await self._inner.close()


async def live(
    cluster: SimulatedCluster, api: Mortal, seconds: float, config: SchedulerConfig | None = None
) -> None:
    """Run one scheduler until *api* says it is dead, or *seconds* are over."""
    loop, rng = asyncio.get_running_loop(), random.Random(3)
    client, clock = KubeClient(api), LoopClock(loop)
    events = EventRecorder(client, clock, RandomIds(rng), "scheduler")
    runtime = Runtime(client, clock, rng=rng)
    register(runtime, RandomIds(rng), events, config or SchedulerConfig(stale_grace_s=5.0))
    running = [loop.create_task(runtime.run()), loop.create_task(events.run())]
    try:
        async with asyncio.timeout(seconds):
            await api.dead.wait()
    except TimeoutError:
        pass
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def audit(cluster: SimulatedCluster) -> None:
    """Assert again and again that no node has more pods than GPUs."""
    while True:
        used: collections.Counter[str] = collections.Counter()
        for pod in (await cluster.client.list(Pod, "default")).items:
            asked = pod.spec.containers[0].resources.requests.get("nvidia.com/gpu", 0)
            used[pod.spec.node_name] += int(asked) if pod.spec.node_name else 0
        assert max(used.values(), default=0) <= 4, used
        await asyncio.sleep(1.0)


def play_lives(at: int) -> int:
    """Let a scheduler die before write *at*, another one finish; return the first one's writes."""

    async def scene(cluster: SimulatedCluster) -> int:
        important = PriorityClass(value=50)
        important.metadata.name = "p50"
        await cluster.client.create(important)
        await create(cluster, gang("low", 4, 4))
        await live(cluster, Mortal(cluster.transport, NEVER), 8)
        assert len(await bound(cluster)) == 4
        watching = asyncio.get_running_loop().create_task(audit(cluster))
        await create(cluster, gang("high", 2, 4, required="rack", priority=50))
        await create(cluster, gang("thief", 1, 2), gang("big", 3, 4, required="rack"))
        first = Mortal(cluster.transport, at)
        await live(cluster, first, 20)
        await live(cluster, Mortal(cluster.transport, NEVER), WITHIN_S)
        await check(cluster)
        assert not watching.done(), watching.exception()
        watching.cancel()
        return first.writes

    written: int = play(scene, 1, programs=(), kubelets=KUBELET)
    return written


async def check(cluster: SimulatedCluster) -> None:
    """Assert that the important gang has its room, whole, and that others are told of it."""
    nodes = await bound(cluster)
    assert {nodes[f"high-p-{n}"] for n in range(2)} in ({"n0", "n1"}, {"n2", "n3"})
    assert set(bindings(cluster).values()) == {1}, "bound twice"
    evicted = {
        json.loads(write.body)["metadata"]["name"]
        for write in cluster.transport.writes
        if write.path.endswith("/eviction") and write.status < 300
    }
    assert evicted <= {f"low-p-{n}" for n in range(4)}
    assert await says(cluster, "high") == "True"
    assert await says(cluster, "big") == "False"
    assert (await says(cluster, "thief") == "True") == ("thief-p-0" in nodes)


async def says(cluster: SimulatedCluster, name: str) -> str:
    found = await cluster.client.get(PodGang, name, "default")
    condition = find_condition(found.status.conditions, "Scheduled")
    assert condition is not None
    return condition.status


def test_a_scheduler_that_dies_before_any_of_its_writes_loses_no_room_and_binds_nothing_twice() -> (
    None
):
    at = 0
    while play_lives(at) > at:
        at += 1
    assert at > 20, "there are fewer writes than there were; does the scene still evict and bind?"


def test_one_that_dies_while_it_settles_claims_gives_no_device_to_two() -> None:
    async def scene(cluster: SimulatedCluster, at: int) -> int:
        await offer_devices(cluster)
        for number in range(4):
            await claim(cluster, f"c{number}")
            await make_pod(cluster, f"p{number}", resourceClaims=uses(f"c{number}"))
        await create(
            cluster, {"name": "s", "groups": [{"name": "p", "pods": 3, "gpuFraction": 0.5}]}
        )
        first = Mortal(cluster.transport, at)
        await live(cluster, first, 10)
        await live(cluster, Mortal(cluster.transport, NEVER), 10)
        nodes, given, parts = await bound(cluster), set(), collections.Counter[tuple[str, str]]()
        assert len(nodes) == 7
        for number in range(4):
            found = await claimed(cluster, f"c{number}")
            assert found.status.allocation is not None
            (device,) = found.status.allocation["devices"]["results"]
            assert device["pool"] == nodes[f"p{number}"]
            assert [user["name"] for user in found.status.reserved_for] == [f"p{number}"]
            given.add((device["pool"], device["device"]))
        assert len(given) == 4
        for pod in (await cluster.client.list(Pod, "default")).items:
            for gpu in gpu_groups(pod):
                parts[pod.spec.node_name, gpu] += 1
        assert sum(parts.values()) == 3
        assert max(parts.values()) <= 2
        assert set(bindings(cluster).values()) == {1}
        return first.writes

    at = 0
    while play(functools.partial(scene, at=at), programs=()) > at:
        at += 3
    assert at > 15


def test_room_that_is_kept_is_read_back_from_the_pods() -> None:
    document = {
        "levels": ["rack"],
        "nodes": [
            {"name": "n0", "gpus": 4, "labels": {"rack": "r"}},
            {"name": "n1", "gpus": 4, "labels": {"rack": "r"}},
        ],
        "pods": [{"name": "victim", "gpus": 4, "pods": 0, "leaving": ["n1"]}],
        "gangs": [
            {"name": "older", "groups": [{"name": "p", "gpus": 4}]},
            {
                "name": "made-for",
                "required": "rack",
                "groups": [
                    {"name": "p", "gpus": 4, "pods": [{"nominated": "n0"}, {"nominated": "n1"}]}
                ],
            },
        ],
    }
    cache, config = fill(scenario(document)), SchedulerConfig()
    snapshot = cache.snapshot(1.0)

    memory = recovered(snapshot, cache.nominated, config)
    result = run_cycle(snapshot, config, memory=memory)
    forgetful = run_cycle(snapshot, config)

    assert not result.bindings
    assert {(p.pod, p.node) for p in result.pipelined} == {
        ("default/made-for-p-0", "n0"),
        ("default/made-for-p-1", "n1"),
    }
    assert wanted(result.memory, snapshot) == cache.nominated
    assert [binding.gang for binding in forgetful.bindings] == ["default/older"]


def test_a_pod_is_told_its_node_while_others_leave_it_and_no_longer_than_that() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        important = PriorityClass(value=50)
        important.metadata.name = "p50"
        await cluster.client.create(important)
        await create(cluster, gang("low", 4, 4))
        await until_bound(cluster, 4)
        told: list[bool] = []

        async def listen(request: ApiRequest) -> None:
            if request.path.endswith("/eviction"):
                told.append(bool(await nominated(cluster, "high-p-0")))

        faults(cluster).before = listen
        await create(cluster, gang("high", 1, 4, required="rack", priority=50))
        await asyncio.sleep(1)
        assert told == [True] * 4, "evicted before it was written for whom"
        assert await nominated(cluster, "high-p-0")
        await asyncio.sleep(10)
        assert not await nominated(cluster, "high-p-0"), "the reservation is over"

    config = SchedulerConfig(reservation_s=5.0)
    program = functools.partial(register, config=config)
    play(scene, programs=(program,), kubelets=KubeletModel(stop_s=(60.0, 60.0)))


async def nominated(cluster: SimulatedCluster, name: str) -> str:
    return (await cluster.client.get(Pod, name, "default")).status.nominated_node_name
