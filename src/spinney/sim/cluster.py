"""A whole cluster in simulated time: API, controllers, scheduler and modelled kubelets from a seed.

The programs are the production ones. They meet on one `SimulatedLoop`, whose seed also orders what
happens at the same instant; so one seed gives one history, byte for byte, and another seed another
interleaving of the same work. The API is handed in: any in-process `Transport` will do.
"""

from __future__ import annotations

import asyncio
import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from spinney.api.core import Node
from spinney.clock import LoopClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.controller import Runtime
from spinney.kube.events import EventRecorder
from spinney.scheduler.setup import register as register_scheduler
from spinney.sim.kubelet import KubeletModel, Kubelets
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.kube.transport import ApiRequest, ApiResponse, Transport

R = TypeVar("R")

POLL_S = 0.5
"""How often `SimulatedCluster.until` looks, in simulated seconds."""


class Register(Protocol):
    """Puts a program on a runtime."""

    def __call__(self, runtime: Runtime, ids: IdSource, events: EventRecorder) -> object:
        """Add its controllers to *runtime*."""
        ...


@dataclass(frozen=True, slots=True)
class SimulatedNode:
    """A node to make."""

    name: str
    labels: dict[str, str]
    gpus: int = 8
    cpu: str = "64"
    memory: str = "512Gi"


@dataclass(frozen=True, slots=True)
class Write:
    """One request that changed, or tried to change, the state."""

    at_s: float
    """Simulated time of the request."""
    method: str
    path: str
    body: bytes
    status: int
    """What the API answered."""


class RecordingTransport:
    """Passes requests on to *inner* and keeps the writes in the order in which they were sent."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.writes: list[Write] = []

    async def send(self, request: ApiRequest) -> ApiResponse:
        """Send *request*; see `spinney.kube.transport.Transport`."""
        if request.method == "GET":
            return await self._inner.send(request)
        at_s = asyncio.get_running_loop().time()
        response = await self._inner.send(request)
        self.writes.append(Write(at_s, request.method, request.path, request.body, response.status))
        return response

    async def close(self) -> None:
        """Close the inner transport."""
        await self._inner.close()


class SimulatedCluster:
    """The programs of one cluster. Lives on the running loop; made by `simulate`."""

    def __init__(
        self,
        api: Transport,
        clock: Clock,
        ids: IdSource,
        *,
        seed: int,
        nodes: Sequence[SimulatedNode],
        programs: Sequence[Register],
        kubelets: KubeletModel | None = None,
    ) -> None:
        self.transport = RecordingTransport(api)
        self.client = KubeClient(self.transport)
        self.clock = clock
        self.nodes = nodes
        self._ids = ids
        self._programs = programs
        self.runtime = Runtime(self.client, clock, rng=random.Random(f"runtime/{seed}"))
        self._recorders = [self._recorder("spinney")]
        for program in programs:
            program(self.runtime, ids, self._recorders[0])
        names = [node.name for node in nodes]
        self.kubelets = Kubelets(self.runtime, names, seed=seed, model=kubelets)

    def _recorder(self, component: str) -> EventRecorder:
        return EventRecorder(self.client, self.clock, self._ids, component)

    async def run(self) -> None:
        """Make the nodes and run all programs until cancelled."""
        for node in self.nodes:
            await self.client.create(_node(node))
        async with asyncio.TaskGroup() as group:
            for recorder in self._recorders:
                group.create_task(recorder.run())
            group.create_task(self.runtime.run())

    async def until(
        self, holds: Callable[[], Awaitable[bool]], *, within_s: float, what: str
    ) -> float:
        """Wait until *holds*; return the simulated time, or raise TimeoutError naming *what*."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while not await holds():
            if loop.time() >= deadline_s:
                raise TimeoutError(f"{what}: not so after {within_s:g} simulated seconds")
            await asyncio.sleep(POLL_S)
        return loop.time()

    def history(self) -> bytes:
        """Return all writes so far, one line of JSON each: equal for equal seeds."""
        return b"\n".join(msgspec.json.encode(_line(write)) for write in self.transport.writes)


def _line(write: Write) -> dict[str, Any]:
    return {
        "at": round(write.at_s, 6),
        "method": write.method,
        "path": write.path,
        "status": write.status,
        "body": write.body.decode(),
    }


def _node(node: SimulatedNode) -> Node:
    amounts = {"cpu": node.cpu, "memory": node.memory, "pods": "110"}
    amounts |= {"nvidia.com/gpu": str(node.gpus)} if node.gpus else {}
    return msgspec.convert(
        {
            "metadata": {
                "name": node.name,
                "labels": {"kubernetes.io/hostname": node.name, **node.labels},
            },
            "status": {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        Node,
    )


def simulate(
    scene: Callable[[SimulatedCluster], Awaitable[R]],
    *,
    seed: int,
    nodes: Sequence[SimulatedNode],
    api: Callable[[Clock, IdSource], Transport],
    programs: Sequence[Register] = (register_scheduler,),
    kubelets: KubeletModel | None = None,
) -> R:
    """Run *scene* against a cluster made from *seed*, in simulated time, and return its result.

    *api* makes the API; *programs* are put on it. Raises what the scene or a program raises.
    """

    async def main() -> R:
        clock = LoopClock(asyncio.get_running_loop())
        ids = RandomIds(random.Random(f"ids/{seed}"))
        server = api(clock, RandomIds(random.Random(f"api/{seed}")))
        cluster = SimulatedCluster(
            server, clock, ids, seed=seed, nodes=nodes, programs=programs, kubelets=kubelets
        )
        running = asyncio.get_running_loop().create_task(cluster.run())
        try:
            return await _first(scene(cluster), running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await server.close()

    order = random.Random(f"order/{seed}")
    with asyncio.Runner(loop_factory=functools.partial(SimulatedLoop, order)) as runner:
        return runner.run(main())


async def _first(scene: Awaitable[R], running: asyncio.Task[None]) -> R:
    """Return what *scene* does; raise at once when the cluster breaks meanwhile."""
    playing = asyncio.ensure_future(scene)
    await asyncio.wait({playing, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done() and not playing.done():
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        running.result()
        raise RuntimeError("the cluster ended before the scene")
    return playing.result()
