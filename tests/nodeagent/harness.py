"""A node agent on the embedded API server: with fake programs in virtual time, or real ones."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinney.api.core import Pod
from spinney.api.meta import is_true
from spinney.clock import LoopClock, SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.errors import NotFoundError
from spinney.kube.events import EventRecorder
from spinney.kube.informer import Informer
from spinney.local.apiserver.server import ApiServer
from spinney.local.cluster_config import parse_nodes
from spinney.local.nodeagent import log_server
from spinney.local.nodeagent.agent import BOUND_PODS, NodeAgent
from spinney.local.nodeagent.fake_process import FakeProcesses
from spinney.local.nodeagent.launch import Launcher, surroundings
from spinney.local.nodeagent.linux import LinuxProcesses
from spinney.local.nodeagent.logs import LogStore
from spinney.local.nodeagent.probes import SocketNetwork
from spinney.local.nodeagent.runs import Policy
from spinney.local.nodeagent.state_dir import StateDir
from spinney.local.nodeagent.worker import Tools
from spinney.sim.loop import SimulatedLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from spinney.clock import Clock
    from spinney.kube.transport import ApiRequest, ApiResponse
    from spinney.local.nodeagent.fake_process import Program
    from spinney.local.nodeagent.probes import Network
    from spinney.local.nodeagent.process import ProcessRuntime

NODES = """
network: 127.77.0.0/16
racks:
- name: rack-0
  hosts: [{name: node-0, gpus: 4}, {name: node-1, gpus: 4}]
"""
FAST = Policy(backoff_base_s=0.05, backoff_max_s=0.2, start_retry_s=0.1, min_term_s=0.1)
DEADLINE_S = 15.0
PYTHON = sys.executable


def container(name: str = "main", *command: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "any", "command": list(command) or ["serve"], **fields}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = spec.pop("labels", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {
            "nodeName": spec.pop("nodeName", "node-0"),
            "containers": list(containers) or [container()],
            **spec,
        },
    }


class CountingServer(ApiServer):
    """Remembers the requests that change pods' statuses."""

    status_writes: list[str]

    async def send(self, request: ApiRequest) -> ApiResponse:
        if request.method == "PATCH" and request.path.endswith("/status"):
            self.status_writes = [*getattr(self, "status_writes", []), request.path]
        return await super().send(request)


class FakeNetwork:
    """Answers by host; 200 unless told otherwise. Each question is remembered with its time."""

    def __init__(self) -> None:
        self.status: dict[int, int] = {}
        self.asked: list[tuple[float, int, str]] = []

    async def http_status(
        self, host: str, port: int, path: str, headers: Mapping[str, str], *, tls: bool
    ) -> int:
        self.asked.append((asyncio.get_running_loop().time(), port, path))
        return self.status.get(port, 200)

    async def connect(self, host: str, port: int) -> None:
        self.asked.append((asyncio.get_running_loop().time(), port, ""))
        if self.status.get(port, 200) != 200:
            raise ConnectionRefusedError("refused")


@dataclass
class Bench:
    """An API and an agent under test."""

    root: Path
    clock: Clock
    api: CountingServer
    processes: Any
    network: Any
    policy: Policy = FAST
    find: Callable[[str, str, str], str | None] | None = None
    agent: NodeAgent | None = None
    ports: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    _stop: asyncio.Event | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def client(self) -> KubeClient:
        return KubeClient(self.api)

    async def start(self, processes: ProcessRuntime | None = None) -> None:
        """Start an agent; again after `stop` or `crash`, it is a new one on the same state."""
        nodes = parse_nodes(NODES, source="test")
        self.starts += 1
        # An agent kills what carries its id: agents that run side by side need different ones.
        seeded = random.Random(self.starts) if self.processes else None
        ids, rng = RandomIds(seeded), random.Random(1)
        state_dir = StateDir(self.root, ids)
        around = surroundings(
            {"PATH": "/usr/bin:/bin", "HOME": str(self.root)},
            str(Path(PYTHON).parent),
            kubeconfig="/somewhere/kubeconfig",
            api_host="127.0.0.1",
            api_port=6443,
        )
        around = replace(around, allocatable={n.name: n.capacity for n in nodes})
        if self.find is not None:
            around = replace(around, find=self.find)
        if processes is None:
            processes = self.processes or LinuxProcesses(state_dir.agent_id, ids.suffix(8))
        client = self.client
        events = EventRecorder(client, self.clock, ids, "nodeagent")
        tools = Tools(
            client,
            self.clock,
            rng,
            ids,
            state_dir,
            LogStore(state_dir.logs, self.clock),
            Launcher(client, state_dir, around),
            processes,
            self.network,
            events,
            self.policy,
        )
        pods = Informer(client, Pod, rng=rng, fields=BOUND_PODS)
        self.agent = NodeAgent(nodes, pods, tools)
        self._stop = asyncio.Event()
        app = log_server.LogServer(tools.logs, self.agent.find_uid, self.clock)
        self._task = asyncio.ensure_future(self._serve(self.agent, events, app, state_dir))

    async def _serve(
        self, agent: NodeAgent, events: EventRecorder, app: log_server.LogServer, state: StateDir
    ) -> None:
        assert self._stop is not None
        real = isinstance(self.network, SocketNetwork)
        sockets = log_server.listen_on(["127.77.0.1", "127.77.1.1"]) if real else []
        self.ports = {f"node-{i}": s.getsockname()[1] for i, s in enumerate(sockets)}
        try:
            async with asyncio.TaskGroup() as group:
                recording = group.create_task(events.run())
                stopped = asyncio.Event()
                if real:
                    group.create_task(log_server.serve(app, sockets, stopped))
                await agent.run(self._stop, self.ports)
                stopped.set()
                recording.cancel()
        finally:
            state.close()

    async def stop(self) -> None:
        """End the agent as SIGTERM does."""
        assert self._stop is not None
        assert self._task is not None
        self._stop.set()
        await self._task

    async def crash(self) -> None:
        """End the agent without its having a say."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def create(self, body: dict[str, Any]) -> Pod:
        await self.client.create(body, resource=Pod.RESOURCE)
        return await self.get(body["metadata"]["name"])

    async def get(self, name: str) -> Pod:
        return await self.client.get(Pod, name, "default")

    async def until(self, name: str, holds: Callable[[Pod], bool], within_s: float = 0) -> Pod:
        """Return the pod when *holds*; fail with its status after a deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (within_s or DEADLINE_S)
        while True:
            found = await self.get(name)
            if holds(found):
                return found
            assert loop.time() < deadline, f"still not so: {found.status}"
            await asyncio.sleep(0.02)

    async def until_gone(self, name: str, within_s: float = 0) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (within_s or DEADLINE_S)
        with contextlib.suppress(NotFoundError):
            while True:
                found = await self.get(name)
                assert loop.time() < deadline, f"still there: {found.status}"
                await asyncio.sleep(0.02)

    async def log(self, name: str, **options: Any) -> str:
        chunks = [c async for c in self.client.logs(name, "default", **options)]
        return b"".join(chunks).decode()


def is_ready(found: Pod) -> bool:
    return is_true(found.status.conditions, "Ready")


def phase(wanted: str) -> Callable[[Pod], bool]:
    return lambda found: found.status.phase == wanted


def waiting_reason(found: Pod) -> str:
    state = found.status.container_statuses[0].state if found.status.container_statuses else None
    return state.waiting.reason if state is not None and state.waiting is not None else ""


@contextlib.asynccontextmanager
async def _benched(bench: Bench) -> AsyncIterator[Bench]:
    await bench.start()
    try:
        yield bench
    finally:
        await bench.crash()
        await bench.api.close()


def in_virtual_time(
    root: Path,
    programs: dict[str, Program],
    story: Callable[[Bench], Awaitable[None]],
    *,
    seed: int | None = None,
) -> None:
    """Run *story* on a simulated loop, with Kubernetes' own times."""

    async def whole() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        api = CountingServer(clock, RandomIds(random.Random(7)))
        bench = Bench(root, clock, api, FakeProcesses(programs), FakeNetwork(), Policy())
        bench.find = lambda name, path, cwd: name if name in programs else None
        async with _benched(bench):
            await story(bench)

    rng = None if seed is None else random.Random(seed)
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(rng)) as runner:
        runner.run(whole())


def with_processes(root: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    """Run *story* with real processes, on real time."""

    async def whole() -> None:
        clock = SystemClock()
        api = CountingServer(clock, RandomIds())
        network: Network = SocketNetwork()
        async with asyncio.timeout(60), _benched(Bench(root, clock, api, None, network)) as bench:
            await story(bench)

    asyncio.run(whole())
