"""What a request to the embedded API server costs, and how fast its watches are.

    .venv/bin/python benchmarks/apiserver.py [--pods 3000] [--seed 1] [--only memory,sqlite,...]

Objects are realistic GPU pods of about 3 KB. CPU is that of the server's process; over HTTPS the
clients run in a process of their own and are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.transport import MERGE_PATCH, ApiRequest
from spinney.local.apiserver import tls
from spinney.local.apiserver.http import HttpServer
from spinney.local.apiserver.persistence import SqlitePersistence
from spinney.local.apiserver.server import ApiServer

PODS = "/api/v1/namespaces/default/pods"
CONNECTIONS = 16


def pod(index: int) -> dict[str, Any]:
    container = {
        "name": "worker",
        "image": "registry.example.com/llm/worker:1.4.2",
        "command": ["spinney", "engine", "serve"],
        "args": ["--model", "/models/llama", "--role", "decode", "--port", "$(PORT)"],
        "env": [{"name": f"SETTING_{i}", "value": f"value-{i}"} for i in range(12)],
        "ports": [{"name": "http", "containerPort": 8000}],
        "resources": {"limits": {"nvidia.com/gpu": "1", "cpu": "8", "memory": "64Gi"}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}},
        "volumeMounts": [{"name": f"v{i}", "mountPath": f"/mnt/{i}"} for i in range(3)],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"chat-{index // 8}-decode-{index}",
            "namespace": "default",
            "labels": {
                "app.kubernetes.io/managed-by": "grove-operator",
                "grove.io/podclique": f"chat-{index // 8}-decode",
                "grove.io/podgang": f"chat-{index // 8}",
                "grove.io/podcliqueset-replica-index": "0",
                "spinney.dev/role": "decode",
            },
        },
        "spec": {
            "schedulerName": "spinney-scheduler",
            "schedulingGates": [{"name": "grove.io/podgang-pending-creation"}],
            "containers": [container],
            "volumes": [{"name": f"v{i}", "emptyDir": {}} for i in range(3)],
            "nodeSelector": {"nvidia.com/gpu.product": "H100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
    }


def status(index: int) -> bytes:
    return msgspec.json.encode(
        {"status": {"phase": "Running", "podIP": f"127.1.{index // 250}.{index % 250 + 1}"}}
    )


async def in_process(api: ApiServer, pods: int) -> None:
    bodies = [msgspec.json.encode(pod(i)) for i in range(pods)]
    names = [pod(i)["metadata"]["name"] for i in range(pods)]
    await measure("create", [api.send(ApiRequest("POST", PODS, {}, body)) for body in bodies], 201)
    await measure(
        "patch status",
        [
            api.send(
                ApiRequest("PATCH", f"{PODS}/{n}/status", {}, status(i), content_type=MERGE_PATCH)
            )
            for i, n in enumerate(names)
        ],
        200,
    )
    await measure("get", [api.send(ApiRequest("GET", f"{PODS}/{n}")) for n in names], 200)
    await measure("list all", [api.send(ApiRequest("GET", PODS)) for _ in range(10)], 200)
    await measure("delete", [api.send(ApiRequest("DELETE", f"{PODS}/{n}")) for n in names], 200)


async def measure(what: str, requests: list[Any], want: int) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    for request in requests:
        response = await request
        assert response.status == want, response.body
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report(what, len(requests), wall, cpu)


def report(what: str, count: int, wall: float, cpu: float) -> None:
    print(f"  {what:28} {count / wall:9.0f} /s {cpu / count * 1e6:9.0f} µs CPU each")


async def watching(watchers: int, pods: int) -> None:
    """Deliver the changes of *pods* status patches to each of *watchers*."""
    api = ApiServer(SystemClock(), RandomIds(random.Random(1)))
    await api.send(ApiRequest("POST", PODS, {}, msgspec.json.encode(pod(0))))
    name = pod(0)["metadata"]["name"]
    version = str(api.store.revision)
    query = {"watch": "true", "resourceVersion": version}
    streams = [(await api.send(ApiRequest("GET", PODS, query))).stream for _ in range(watchers)]

    async def read(stream: Any) -> None:
        for _ in range(pods):
            await anext(stream)
        await stream.aclose()

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(pods):
        await api.send(
            ApiRequest("PATCH", f"{PODS}/{name}/status", {}, status(i), content_type=MERGE_PATCH)
        )
    await asyncio.gather(*readers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report(f"events to {watchers} watchers", pods * watchers, wall, cpu)
    await api.close()


# Over HTTPS


def serve(directory: Path, ready: Any, stop: Any, used: Any) -> None:
    async def main() -> None:
        api = ApiServer(
            SystemClock(), RandomIds(), persistence=SqlitePersistence(directory / "state.db")
        )
        found = tls.credentials(directory / "pki", time.time())
        server = HttpServer(api, found, "127.0.0.1", 0)
        running = asyncio.create_task(server.run())
        ready.put((server.port, found.token))
        while stop.empty():
            used.value = time.process_time()
            await asyncio.sleep(0.005)
        server.stop()
        await running
        await api.close()

    uvloop.run(main())


async def over_https(directory: Path, pods: int) -> None:
    context = multiprocessing.get_context("spawn")
    ready, stop, used = context.Queue(), context.Queue(), context.Value("d", 0.0)
    process = context.Process(target=serve, args=(directory, ready, stop, used))
    process.start()
    port, token = ready.get(timeout=30)
    trust = ssl.create_default_context(cafile=str(directory / "pki/ca.crt"))
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=CONNECTIONS + 20, ssl=trust)
    base = f"https://127.0.0.1:{port}"
    async with aiohttp.ClientSession(base, headers=headers, connector=connector) as session:
        bodies = [msgspec.json.encode(pod(i)) for i in range(pods)]
        await over(session, "create, 16 connections", used, bodies)
        for watchers in (1, 10):
            await watched(session, watchers, used, pods)
    stop.put(True)
    process.join(10)


async def over(session: Any, what: str, used: Any, bodies: list[bytes]) -> None:
    waiting = iter(bodies)

    async def client() -> None:
        for body in waiting:
            async with session.post(PODS, data=body) as reply:
                assert reply.status == 201, await reply.text()
                await reply.read()

    await asyncio.sleep(0.05)
    wall, cpu = time.perf_counter(), used.value
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    wall = time.perf_counter() - wall
    await asyncio.sleep(0.05)
    report(what, len(bodies), wall, used.value - cpu)


async def watched(session: Any, watchers: int, used: Any, pods: int) -> None:
    async with session.get(f"{PODS}?limit=1") as reply:
        version = (await reply.json())["metadata"]["resourceVersion"]

    async def read(started: asyncio.Event) -> None:
        url = f"{PODS}?watch=true&resourceVersion={version}"
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as reply:
            started.set()
            seen = 0
            async for chunk in reply.content.iter_any():
                seen += chunk.count(b"\n")
                if seen >= pods:
                    return

    events = [asyncio.Event() for _ in range(watchers)]
    readers = [asyncio.create_task(read(event)) for event in events]
    for event in events:
        await event.wait()
    names = iter([pod(i)["metadata"]["name"] for i in range(pods)])
    patch = {"content-type": MERGE_PATCH}
    body = b'{"metadata":{"labels":{"round":"%d"}}}' % watchers

    async def client() -> None:
        for name in names:
            async with session.patch(f"{PODS}/{name}", data=body, headers=patch) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()

    await asyncio.sleep(0.05)
    wall, cpu = time.perf_counter(), used.value
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    await asyncio.gather(*readers)
    wall = time.perf_counter() - wall
    await asyncio.sleep(0.05)
    report(f"events to {watchers} watchers", pods * watchers, wall, used.value - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="memory,sqlite,watch,https")
    options = parser.parse_args()
    chosen = options.only.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        if "memory" in chosen:
            print("in-process, memory")
            api = ApiServer(SystemClock(), RandomIds(random.Random(options.seed)))
            asyncio.run(in_process(api, options.pods))
        if "sqlite" in chosen:
            print("in-process, SQLite")
            api = ApiServer(
                SystemClock(),
                RandomIds(random.Random(options.seed)),
                persistence=SqlitePersistence(Path(scratch) / "a.db"),
            )
            asyncio.run(in_process(api, options.pods))
        if "watch" in chosen:
            print("watch, in-process")
            asyncio.run(watching(1, options.pods))
            asyncio.run(watching(10, options.pods))
        if "https" in chosen:
            print("over HTTPS, SQLite")
            asyncio.run(over_https(Path(scratch), options.pods))


if __name__ == "__main__":
    main()
