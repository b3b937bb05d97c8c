"""The scheduler against the API: binding, confirming, failing, restarting, telling why."""

from __future__ import annotations

import asyncio
import collections
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from spinney.api.core import Event, Pod
from spinney.api.crd import crd_documents
from spinney.api.meta import find_condition
from spinney.api.podgang import PodGang
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.kube.transport import ApiRequest, ApiResponse, TransportError
from spinney.local.apiserver.server import ApiServer
from spinney.scheduler.scenario import fill, podgang, pods, scenario
from spinney.scheduler.setup import register
from spinney.sim.cluster import SimulatedCluster, SimulatedNode, simulate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.transport import Transport

    Scene = Callable[[SimulatedCluster], Awaitable[Any]]

NODES = [SimulatedNode(f"n{i}", {"rack": f"r{i // 2}"}, gpus=4) for i in range(4)]


class Faulty:
    """Answers requests that `refuse` picks with 503, or not at all; lets others in between."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.refuse: Callable[[ApiRequest], bool] = lambda _: False
        self.drop_replies: Callable[[ApiRequest], bool] = lambda _: False
        self.before: Callable[[ApiRequest], Awaitable[None]] | None = None

    async def send(self, request: ApiRequest) -> ApiResponse:
        if self.refuse(request):
            return ApiResponse(503, b'{"kind":"Status","code":503,"message":"busy"}')
        if self.before is not None:
            await self.before(request)
        response = await self._inner.send(request)
        if self.drop_replies(request):
            raise TransportError("the connection broke before the reply")
        return response

    async def close(self) -> None:
        await self._inner.close()


def play(scene: Scene, seed: int = 1, **more: Any) -> Any:
    def api(clock: Clock, ids: IdSource) -> Faulty:
        return Faulty(ApiServer(clock, ids, definitions=crd_documents()))

    return simulate(scene, seed=seed, nodes=NODES, api=api, **more)


def faults(cluster: SimulatedCluster) -> Faulty:
    found = cluster.transport._inner
    assert isinstance(found, Faulty)
    return found


async def create(cluster: SimulatedCluster, *gangs: dict[str, Any]) -> None:
    found = scenario({"gangs": list(gangs)})
    for line in found.gangs:
        gang = podgang(line)
        gang.metadata.uid, gang.metadata.creation_timestamp = "", None
        await cluster.client.create(gang)
        for group in line.groups:
            for pod in pods(group, 0, line):
                pod.metadata.uid, pod.metadata.creation_timestamp = "", None
                pod.spec.containers[0].image = "example.org/x:1"
                await cluster.client.create(pod)


def gang(name: str, count: int, gpus: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "groups": [{"name": "p", "pods": count, "gpus": gpus}], **more}


async def bound(cluster: SimulatedCluster) -> dict[str, str]:
    found = (await cluster.client.list(Pod, "default")).items
    return {pod.name: pod.spec.node_name for pod in found if pod.spec.node_name}


def bindings(cluster: SimulatedCluster) -> collections.Counter[str]:
    """Return how often each pod was bound with success."""
    writes = [w for w in cluster.transport.writes if w.path.endswith("/binding")]
    return collections.Counter(
        json.loads(w.body)["metadata"]["name"] for w in writes if w.status < 300
    )


async def until_bound(cluster: SimulatedCluster, count: int) -> None:
    async def all_bound() -> bool:
        return len(await bound(cluster)) == count

    await cluster.until(all_bound, within_s=60, what=f"{count} pods bound")


def test_a_gang_is_bound_into_one_rack_and_its_condition_says_so() -> None:
    async def scene(cluster: SimulatedCluster) -> tuple[dict[str, str], PodGang]:
        await create(cluster, gang("g", 8, required="rack"))
        await until_bound(cluster, 8)
        await asyncio.sleep(1)
        return await bound(cluster), await cluster.client.get(PodGang, "g", "default")

    nodes, found = play(scene)

    assert set(nodes.values()) == {"n0", "n1"}
    condition = find_condition(found.status.conditions, "Scheduled")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "Placed")
    assert found.status.placement_score == 1.0


def test_a_gang_that_does_not_fit_is_told_why_once_and_placed_when_room_comes() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await create(cluster, gang("first", 6, 2, required=None), gang("late", 3, 2))
        await until_bound(cluster, 6)
        await asyncio.sleep(1)
        late = await cluster.client.get(PodGang, "late", "default")
        condition = find_condition(late.status.conditions, "Scheduled")
        assert condition is not None
        assert (condition.status, condition.reason) == ("False", "Unschedulable")
        assert "needs 3 pods with 2 nvidia.com/gpu each" in condition.message
        for pod in (await cluster.client.list(Pod, "default")).items:
            told = find_condition(pod.status.conditions, "PodScheduled")
            assert told is not None
            assert told.status == ("True" if pod.spec.node_name else "False")
        await asyncio.sleep(30)
        writes = len(cluster.transport.writes)
        await asyncio.sleep(600)
        assert len(cluster.transport.writes) == writes, "writes at rest"
        events = (await cluster.client.list(Event, "default")).items
        assert [e.involved_object.name for e in events if e.type == "Warning"] == ["late"]

        await cluster.client.delete_collection(Pod, "default", labels="grove.io/podgang=first")
        await until_bound(cluster, 3)
        await asyncio.sleep(1)
        late = await cluster.client.get(PodGang, "late", "default")
        condition = find_condition(late.status.conditions, "Scheduled")
        assert condition is not None
        assert condition.status == "True"

    play(scene)


def test_a_busy_api_delays_bindings_and_repeats_none() -> None:
    async def scene(cluster: SimulatedCluster) -> collections.Counter[str]:
        tries: collections.Counter[str] = collections.Counter()

        def refuse(request: ApiRequest) -> bool:
            if not request.path.endswith("/binding"):
                return False
            tries[request.path] += 1
            return tries[request.path] <= 3

        faults(cluster).refuse = refuse
        await create(cluster, gang("g", 8, required="rack"))
        await until_bound(cluster, 8)
        return bindings(cluster)

    assert set(play(scene).values()) == {1}


def test_a_bind_that_fails_for_good_is_made_up_for_in_the_same_rack() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        tries: collections.Counter[str] = collections.Counter()

        def refuse(request: ApiRequest) -> bool:
            unlucky = "g-p-3" in request.path and request.path.endswith("/binding")
            tries["unlucky"] += unlucky
            return unlucky and tries["unlucky"] <= 6

        faults(cluster).refuse = refuse
        await create(cluster, gang("g", 8, required="rack"))
        await until_bound(cluster, 8)
        assert set(bindings(cluster).values()) == {1}
        return await bound(cluster)

    assert len({node in ("n0", "n1") for node in play(scene).values()}) == 1


def test_a_reply_that_is_lost_binds_nothing_twice() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        rng = random.Random(5)
        faults(cluster).drop_replies = lambda request: (
            request.path.endswith("/binding") and rng.random() < 0.5
        )
        await create(cluster, gang("g", 8, required="rack"), gang("h", 4))
        await until_bound(cluster, 12)
        return await bound(cluster)

    assert len(play(scene)) == 12


@pytest.mark.parametrize("seed", range(8))
def test_a_restart_at_any_moment_binds_nothing_twice_and_finishes_the_work(seed: int) -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        rng = random.Random(seed)
        faulty = faults(cluster)
        slow = rng.random() < 0.5
        faulty.refuse = lambda r: slow and r.path.endswith("/binding") and rng.random() < 0.3
        await create(cluster, *(gang(f"g{i}", 2, 2, required="rack") for i in range(4)))
        loop = asyncio.get_running_loop()
        for life in range(4):
            clock = LoopClock(loop)
            events = EventRecorder(cluster.client, clock, RandomIds(rng), "scheduler")
            runtime = Runtime(cluster.client, clock, rng=rng)
            register(runtime, RandomIds(rng), events)
            task = loop.create_task(runtime.run())
            await asyncio.sleep(60 if life == 3 else rng.uniform(0, 0.2))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert set(bindings(cluster).values()) == {1}
        for found in (await cluster.client.list(PodGang, "default")).items:
            condition = find_condition(found.status.conditions, "Scheduled")
            assert condition is not None
            assert condition.status == "True"
        return await bound(cluster)

    placed = play(scene, seed, programs=())

    assert len(placed) == 8
    for at in range(4):
        racks = {placed[f"g{at}-p-{n}"] in ("n0", "n1") for n in range(2)}
        assert len(racks) == 1


def test_other_writers_of_the_gangs_conditions_lose_nothing() -> None:
    async def scene(cluster: SimulatedCluster) -> PodGang:
        meddled = 0

        async def meddle(request: ApiRequest) -> None:
            """Write another condition just before the scheduler's own write arrives."""
            nonlocal meddled
            ours = request.path.endswith("podgangs/g/status") and b"Scheduled" in request.body
            if not ours or meddled == 2:
                return
            meddled += 1
            condition = {"type": "Initialized", "status": f"Turn{meddled}"}
            patch = {"status": {"conditions": [condition]}}
            await cluster.client.patch(PodGang, "g", patch, "default", subresource="status")

        faults(cluster).before = meddle
        await create(cluster, gang("g", 4))
        await asyncio.sleep(5)
        assert meddled == 2
        return await cluster.client.get(PodGang, "g", "default")

    conditions = {c.type: c.status for c in play(scene).status.conditions}

    assert conditions == {"Scheduled": "True", "Initialized": "Turn2"}


def test_what_is_said_of_a_pod_is_not_said_again_in_the_next_cycle() -> None:
    async def scene(cluster: SimulatedCluster) -> int:
        await create(cluster, gang("big", 3, 8))
        await asyncio.sleep(1)
        for turn in range(3):
            await create(cluster, gang(f"small{turn}", 1))
            await asyncio.sleep(1)
        return sum("big-p-0/status" in write.path for write in cluster.transport.writes)

    assert play(scene) == 1


def test_a_dead_node_takes_no_new_pods() -> None:
    async def scene(cluster: SimulatedCluster) -> dict[str, str]:
        await asyncio.sleep(0.1)
        await cluster.kubelets.fail_node("n0")
        await asyncio.sleep(0.1)
        await create(cluster, gang("g", 4))
        await until_bound(cluster, 4)
        return await bound(cluster)

    assert "n0" not in play(scene).values()


def test_an_assumed_pod_stays_where_it_was_sent_until_the_api_says_otherwise() -> None:
    document = {"nodes": [{"name": "n", "gpus": 1}], "pods": [{"name": "x", "gpus": 1}]}
    cache = fill(scenario(document))
    pod = next(pods(scenario(document).pods[0]))

    cache.assume(pod.key, "n")
    pod.metadata.labels = {"changed": "meanwhile"}
    cache.set_pod(pod)
    assumed = cache.pod(pod.key)
    assert assumed is not None
    assert (assumed.node, assumed.state, cache.confirmed(pod.key)) == ("n", "active", False)

    pod.spec.node_name = "n"
    cache.set_pod(pod)
    assert cache.confirmed(pod.key)

    cache.remove_pod(pod.key)
    assert (cache.snapshot().used == 0).all()


def test_the_cache_follows_changes_as_if_it_had_been_filled_anew() -> None:
    document = {
        "nodes": [{"name": f"n{i}", "gpus": 8, "count": 1} for i in range(3)],
        "gangs": [
            {
                "name": "g",
                "groups": [{"name": "p", "pods": 2, "gpus": 1, "on": ["n0", "n1"], "gated": 1}],
            }
        ],
        "pods": [{"name": "x", "pods": 0, "gpus": 2, "leaving": ["n2"]}],
    }
    cache = fill(scenario(document))
    fresh = cache.snapshot()
    rng = random.Random(3)
    every = [p for line in scenario(document).gangs for g in line.groups for p in pods(g, 0, line)]
    for _ in range(200):
        pod = rng.choice(every)
        rng.choice((lambda p=pod: cache.remove_pod(p.key), lambda p=pod: cache.set_pod(p)))()
        if rng.random() < 0.3:
            cache.assume(pod.key, "n1")
        if rng.random() < 0.3:
            cache.forget(pod.key)
        cache.snapshot()
    for pod in every:
        cache.remove_pod(pod.key)
        cache.set_pod(pod)

    after = cache.snapshot()

    assert (after.used == fresh.used).all()
    assert (after.leaving == fresh.leaving).all()
    assert after.pods == fresh.pods
    assert after.gangs == fresh.gangs
