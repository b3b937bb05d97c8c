"""A snapshot of a live cluster, run offline, decides what the live scheduler then does."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.scheduler.test_scheduler_in_a_cluster import bound, create, play

from spinney.api.grove import ClusterTopologyBinding, ClusterTopologyBindingSpec, TopologyLevel
from spinney.api.meta import ObjectMeta
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.live import read_cluster
from spinney.scheduler.offline import OfflineCluster
from spinney.scheduler.scenario import objects
from spinney.scheduler.setup import register
from spinney.scheduler.snapshot_file import first_cycle_s, read, write
from spinney.scheduler.snapshot_writer import scenario_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from spinney.sim.cluster import SimulatedCluster

ALLOCATE = SchedulerConfig(actions=("allocate",))
"""Evicted pods of this file's gangs would not come back: they have no controller."""


@contextlib.asynccontextmanager
async def running_scheduler(cluster: SimulatedCluster, seconds: float) -> AsyncIterator[None]:
    """Run a scheduler of its own for *seconds*."""
    loop, rng = asyncio.get_running_loop(), random.Random(1)
    events = EventRecorder(cluster.client, LoopClock(loop), RandomIds(rng), "scheduler")
    runtime = Runtime(cluster.client, LoopClock(loop), rng=rng)
    register(runtime, RandomIds(rng), events, ALLOCATE)
    task = loop.create_task(runtime.run())
    await asyncio.sleep(seconds)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def some_gang(rng: random.Random, name: str) -> dict[str, Any]:
    groups = [
        {
            "name": f"p{at}",
            "pods": rng.randint(1, 3),
            "gpus": rng.randint(1, 3),
            "labels": {"app": rng.choice("ab")},
            "minimum": 1,
            "spec": rng.choice(
                ({}, {"nodeSelector": {"rack": "r0"}}, {"tolerations": [{"operator": "Exists"}]})
            ),
        }
        for at in range(rng.randint(1, 2))
    ]
    return {"name": name, "groups": groups, "required": rng.choice((None, "rack"))}


@pytest.mark.parametrize("seed", range(12))
def test_a_saved_state_is_scheduled_offline_as_the_live_scheduler_does_it(seed: int) -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        rng = random.Random(seed)
        await cluster.client.create(
            ClusterTopologyBinding(
                metadata=ObjectMeta(name="cluster"),
                spec=ClusterTopologyBindingSpec(levels=[TopologyLevel(domain="rack", key="rack")]),
            )
        )
        for round_ in range(2):
            for at in range(3):
                await create(cluster, some_gang(rng, f"g{round_}{at}"))
                await asyncio.sleep(rng.choice((0, 1.5)))
            text = write(scenario_of(await read_cluster(cluster.client), cluster.clock.now()))
            saved = read(text)
            offline = OfflineCluster(objects(saved), ALLOCATE, first_cycle_s(saved)).run(3)
            planned = {p.pod.partition("/")[2]: p.node for p in offline.pods if p.node}
            async with running_scheduler(cluster, 5):
                assert await bound(cluster) == planned, text

    play(scene, seed, programs=())
