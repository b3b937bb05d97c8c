"""CPU time of an informer per watch event: decoding, cache, two indexes and a handler.

    python benchmarks/informer.py [--events 30000] [--pods 3000]

Events are modifications of GPU pods of about 6 kB, as a real API server sends them. Three sources:
lines that are in memory already (the informer alone), the embedded API server in-process (from the
write to the handler, so its patch is included), and lines over HTTP on the loopback interface,
sent by another process. CPU time is this process's, user and system.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import socket
from typing import TYPE_CHECKING, Any

from spinney.api.core import Pod
from spinney.api.meta import ObjectMeta
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.client import KubeClient
from spinney.kube.http import HttpTransport
from spinney.kube.informer import Informer
from spinney.kube.transport import ApiRequest, ApiResponse
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def pod(number: int, version: int) -> dict[str, Any]:
    env = [{"name": f"VARIABLE_{n}", "value": f"value number {n}"} for n in range(20)]
    owned = {f"f:field{n}": {".": {}, "f:name": {}, "f:value": {}} for n in range(30)}
    container = {
        "name": "worker",
        "image": "registry.example.com/team/worker:1.2.3",
        "args": ["--model", "m", "--port", "8000"],
        "env": env,
        "resources": {"limits": {"nvidia.com/gpu": "8"}, "requests": {"nvidia.com/gpu": "8"}},
        "ports": [{"containerPort": 8000, "name": "http", "protocol": "TCP"}],
        "volumeMounts": [{"name": f"v{n}", "mountPath": f"/mnt/{n}"} for n in range(6)],
        "terminationMessagePath": "/dev/termination-log",
        "imagePullPolicy": "IfNotPresent",
    }
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"pod-{number:05}",
            "namespace": "default",
            "uid": f"00000000-0000-0000-0000-{number:012}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"grove.io/podgang": f"gang-{number % 50}", "app": "worker"},
            "managedFields": [{"manager": m, "fieldsV1": owned} for m in ("one", "two")],
        },
        "spec": {
            "nodeName": f"node-{number % 100}",
            "schedulerName": "spinney-scheduler",
            "containers": [container],
            "volumes": [{"name": f"v{n}", "emptyDir": {}} for n in range(6)],
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": "worker",
                    "ready": True,
                    "restartCount": 0,
                    "image": "i",
                    "imageID": "i@sha256:0",
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }
            ],
        },
    }


def event_lines(pods: int, events: int) -> list[bytes]:
    rng = random.Random(1)
    return [
        json.dumps(
            {"type": "MODIFIED", "object": pod(rng.randrange(pods), pods + version + 1)},
            separators=(",", ":"),
        ).encode()
        + b"\n"
        for version in range(events)
    ]


def list_body(pods: int) -> bytes:
    items = [pod(number, number + 1) for number in range(pods)]
    return json.dumps({"metadata": {"resourceVersion": str(pods)}, "items": items}).encode()


class InMemory:
    """Lists once, gives its lines, and is silent ever after."""

    def __init__(self, body: bytes, lines: list[bytes]) -> None:
        self.body = body
        self.lines = lines

    async def send(self, request: ApiRequest) -> ApiResponse:
        if "watch" in request.query:
            return ApiResponse(200, stream=self._stream())
        return ApiResponse(200, self.body)

    async def _stream(self) -> AsyncIterator[bytes]:
        for line in self.lines:
            yield line
        await asyncio.Event().wait()

    async def close(self) -> None: ...


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def informer_of(client: KubeClient) -> tuple[Informer[Pod], list[int]]:
    informer = Informer(client, Pod, rng=random.Random(1))
    informer.add_index("node", lambda p: [p.spec.node_name])
    informer.add_index("gang", lambda p: [p.metadata.labels.get("grove.io/podgang", "")])
    seen = [0]

    def count(_change: object) -> None:
        seen[0] += 1

    informer.add_handler(count)
    return informer, seen


async def reached(seen: list[int], wanted: int) -> None:
    while True:
        if seen[0] >= wanted:
            return
        await asyncio.sleep(0.001)


async def measure(client: KubeClient, pods: int, events: int) -> tuple[float, float]:
    """Return the CPU microseconds per listed pod and per event."""
    informer, seen = informer_of(client)
    start = cpu_s()
    task = asyncio.create_task(informer.run())
    await informer.wait_synced()
    listed = cpu_s()
    await reached(seen, pods + events)
    done = cpu_s()
    task.cancel()
    await asyncio.wait({task})
    return (listed - start) / pods * 1e6, (done - listed) / events * 1e6


async def in_memory(pods: int, events: int) -> None:
    transport = InMemory(list_body(pods), event_lines(pods, events))
    per_pod, per_event = await measure(KubeClient(transport), pods, events)
    line = len(transport.lines[0])
    print(f"in memory:   {per_event:6.1f} µs/event, list {per_pod:5.1f} µs/pod ({line} B/event)")


async def in_process(pods: int, events: int) -> None:
    server = ApiServer(SystemClock(), RandomIds())
    client = KubeClient(server)
    for number in range(pods):
        made = pod(number, 0)
        del made["metadata"]["resourceVersion"], made["metadata"]["uid"]
        await client.create(made, resource=Pod.RESOURCE)

    async def write() -> None:
        for number in range(events):
            patch = {"status": {"message": str(number)}}
            name = f"pod-{number % pods:05}"
            await client.patch(Pod.RESOURCE, name, patch, "default", subresource="status")

    start = cpu_s()
    await write()
    alone = cpu_s() - start
    informer, seen = informer_of(client)
    task = asyncio.create_task(informer.run())
    await informer.wait_synced()
    start = cpu_s()
    await asyncio.gather(write())
    await reached(seen, pods + events)
    both = cpu_s() - start
    task.cancel()
    await server.close()
    print(
        f"in process:  {(both - alone) / events * 1e6:6.1f} µs/event on top of the write, "
        f"which takes {alone / events * 1e6:.0f} µs"
    )


def serve(listener: socket.socket, body: bytes, lines: list[bytes]) -> None:
    """Answer one list and one watch per connection, without understanding them."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readuntil(b"\r\n\r\n"):
            if b"watch=true" not in request:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for line in lines:
                writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                await writer.drain()
            await asyncio.sleep(600)

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=listener)
        await server.serve_forever()

    asyncio.run(main())


async def over_http(pods: int, events: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    arguments = (listener, list_body(pods), event_lines(pods, events))
    process = multiprocessing.get_context("fork").Process(target=serve, args=arguments)
    process.start()
    listener.close()
    transport = HttpTransport(url)
    try:
        per_pod, per_event = await measure(KubeClient(transport), pods, events)
    finally:
        process.kill()
        process.join()
        await transport.close()
    print(f"over HTTP:   {per_event:6.1f} µs/event, list {per_pod:5.1f} µs/pod")


async def lookups(pods: int) -> None:
    informer, _ = informer_of(KubeClient(InMemory(list_body(pods), [])))
    task = asyncio.create_task(informer.run())
    await informer.wait_synced()
    start = cpu_s()
    rounds = 200
    for _ in range(rounds):
        informer.list()
    listed = cpu_s()
    for _ in range(rounds):
        for node in range(100):
            informer.by_index("node", f"node-{node}")
    indexed = cpu_s()
    informer.put("x", Pod(metadata=ObjectMeta(name="x")))
    task.cancel()
    print(
        f"reading:     list() {(listed - start) / rounds * 1e6:.0f} µs for {pods} pods, "
        f"by_index() {(indexed - listed) / rounds / 100 * 1e6:.1f} µs for {pods // 100}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--pods", type=int, default=3_000)
    given = parser.parse_args()
    asyncio.run(in_memory(given.pods, given.events))
    asyncio.run(over_http(given.pods, given.events))
    asyncio.run(in_process(min(given.pods, 1000), given.events // 5))
    asyncio.run(lookups(given.pods))


if __name__ == "__main__":
    main()
