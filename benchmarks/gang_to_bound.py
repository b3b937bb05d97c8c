"""From pod creation to binding, through the API: ``python benchmarks/gang_to_bound.py``.

The scheduler and the embedded API server run in one process on a real event loop; every request
takes 5 ms longer (``--latency-ms``). Measured in wall-clock seconds as a watcher of the API sees:

* one gang of 512 pods, 8 GPUs each, on 512 nodes, from the first pod's creation to the last
  binding;
* 1,000 gangs of 4 pods, a GPU each, that arrive over 30 seconds: from a gang's last pod to its
  last binding, median and 99th percentile.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from spinney.api.core import Node, Pod
from spinney.api.crd import crd_documents
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.local.apiserver.server import ApiServer
from spinney.log import configure
from spinney.scheduler.scenario import nodes, podgang, pods, scenario
from spinney.scheduler.setup import register

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from spinney.kube.informer import Change
    from spinney.kube.transport import ApiRequest, ApiResponse
    from spinney.scheduler.snapshot_format import GangLine

CREATORS = 32
"""Objects that the measurement itself creates at a time."""
WITHIN_S = 300.0


class Slow:
    """An API behind a network: each request takes *latency_s* longer."""

    def __init__(self, inner: ApiServer, latency_s: float) -> None:
        self._inner = inner
        self._latency_s = latency_s
        self.first_binding_s = 0.0
        self.requests = 0

    async def send(self, request: ApiRequest) -> ApiResponse:
        self.requests += 1
        if not self.first_binding_s and request.path.endswith("/binding"):
            self.first_binding_s = time.perf_counter()
        await asyncio.sleep(self._latency_s)
        return await self._inner.send(request)

    async def close(self) -> None:
        await self._inner.close()


@dataclass
class Seen:
    """When a watcher of the API saw pods come and be bound."""

    created: dict[str, float] = field(default_factory=dict)
    bound: dict[str, float] = field(default_factory=dict)

    def changed(self, change: Change[Pod]) -> None:
        pod = change.object
        self.created.setdefault(pod.name, time.perf_counter())
        if pod.spec.node_name:
            self.bound.setdefault(pod.name, time.perf_counter())

    async def all_bound(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.bound) < count:  # noqa: ASYNC110 - a measurement, not a program
                await asyncio.sleep(0.002)


@dataclass
class Stand:
    """A cluster that is measured."""

    client: KubeClient
    api: Slow
    seen: Seen
    registry: CollectorRegistry


async def stand(latency_s: float, count: int) -> tuple[Stand, list[asyncio.Task[None]]]:
    """Start an API with *count* nodes and a scheduler, and wait until it is at rest."""
    clock, ids, rng = SystemClock(), RandomIds(), Random(1)
    server = ApiServer(clock, ids, definitions=crd_documents())
    api = Slow(server, latency_s)
    found = scenario({"nodes": [line(at, count) for at in range(max(1, count // 8))]})
    setup = KubeClient(server)
    for node in nodes(found):
        await setup.create(node)
    client, registry = KubeClient(api), CollectorRegistry()
    events = EventRecorder(client, clock, ids, "scheduler")
    runtime, seen = Runtime(client, clock, rng=rng), Seen()
    runtime.informer(Pod).add_handler(seen.changed)
    register(runtime, ids, events, registry=registry)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(runtime.run()), loop.create_task(events.run())]
    await runtime.informer(Node).wait_synced()
    await asyncio.sleep(0.5)
    return Stand(KubeClient(api), api, seen, registry), tasks


def line(rack: int, count: int) -> dict[str, Any]:
    labels = {"rack": f"r{rack}", "block": f"b{rack // 8}", "zone": "z"}
    return {"name": f"n{rack:04}", "count": min(8, count), "gpus": 8, "labels": labels}


def gang(name: str, count: int, gpus: int, **more: Any) -> GangLine:
    group = {"name": "p", "pods": count, "gpus": gpus}
    return scenario({"gangs": [{"name": name, "groups": [group], **more}]}).gangs[0]


async def create(client: KubeClient, found: GangLine) -> None:
    """Create the gang and its pods, as a controller does."""
    obj = podgang(found)
    obj.metadata.uid, obj.metadata.creation_timestamp = "", None
    await client.create(obj)
    slots = asyncio.Semaphore(CREATORS)

    async def one(pod: Pod) -> None:
        pod.metadata.uid, pod.metadata.creation_timestamp = "", None
        pod.spec.containers[0].image = "example.org/x:1"
        async with slots:
            await client.create(pod)

    await together(one(pod) for group in found.groups for pod in pods(group, 0, found))


async def together(work: Iterable[Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for found in work:
            group.create_task(_awaited(found))


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def one_large_gang(latency_s: float, count: int) -> None:
    found, tasks = await stand(latency_s, count)
    cpu_s, started_s = time.process_time(), time.perf_counter()
    await create(found.client, gang("g", count, 8, preferred="rack"))
    created_s = time.perf_counter()
    await found.seen.all_bound(count)
    cpu_s = time.process_time() - cpu_s
    done_s, first_s = max(found.seen.bound.values()), min(found.seen.bound.values())
    decided_s = found.registry.get_sample_value("spinney_scheduler_cycle_seconds_sum") or 0.0
    print(f"one gang of {count} pods on {count} nodes, {latency_s * 1000:g} ms a request")
    print(f"  first pod created to last one bound   {done_s - started_s:8.2f} s")
    print(f"    creating the pods                   {created_s - started_s:8.2f} s")
    print(f"    last created to first binding sent  {found.api.first_binding_s - created_s:8.2f} s")
    print(f"      of which deciding                 {decided_s:8.2f} s")
    print(f"    first binding sent to first seen    {first_s - found.api.first_binding_s:8.2f} s")
    print(f"    first bound to last bound           {done_s - first_s:8.2f} s")
    print(f"  CPU of all, the API included          {cpu_s:8.2f} s")
    await stop(tasks)


async def many_gangs(latency_s: float, gangs: int, over_s: float) -> None:
    found, tasks = await stand(latency_s, 512)
    loop = asyncio.get_running_loop()
    start_s, cpu_s = loop.time(), time.process_time()
    rng, size = Random(2), 4

    async def arrive(at: int) -> None:
        await asyncio.sleep(start_s + over_s * at / gangs - loop.time())
        required = rng.choice(("rack", None))
        await create(found.client, gang(f"g{at:04}", size, 1, required=required))

    await together(arrive(at) for at in range(gangs))
    await found.seen.all_bound(gangs * size)
    waits = sorted(_wait_s(found.seen, f"g{at:04}", size) for at in range(gangs))
    cycles = found.registry.get_sample_value("spinney_scheduler_cycle_seconds_count") or 0
    print(f"{gangs} gangs of {size} over {over_s:g} s, {latency_s * 1000:g} ms a request")
    print(f"  last pod seen to last one bound, p50  {statistics.median(waits):8.3f} s")
    print(f"                                   p99  {waits[int(len(waits) * 0.99)]:8.3f} s")
    print(f"  cycles                                {cycles:8.0f}")
    print(f"  CPU of all, the API included          {time.process_time() - cpu_s:8.2f} s")
    await stop(tasks)


def _wait_s(seen: Seen, name: str, size: int) -> float:
    members = [f"{name}-p-{at}" for at in range(size)]
    return max(seen.bound[m] for m in members) - max(seen.created[m] for m in members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=5.0)
    parser.add_argument("--pods", type=int, default=512)
    parser.add_argument("--gangs", type=int, default=1000)
    parser.add_argument("--over-s", type=float, default=30.0)
    options = parser.parse_args()
    configure(level="error")
    latency_s = options.latency_ms / 1000
    asyncio.run(one_large_gang(latency_s, options.pods))
    asyncio.run(many_gangs(latency_s, options.gangs, options.over_s))


if __name__ == "__main__":
    main()
