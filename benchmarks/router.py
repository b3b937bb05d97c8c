"""What the router costs: the same trivial workers asked through it and directly.

    python benchmarks/router.py [--streams 1,32,256] [--tokens 64] [--seconds 5]

Router, workers and clients are processes of their own; the router gets a core for itself where
there are two. "Flooded" workers send their tokens as fast as they can, "paced" ones one every
--pace-ms. CPU is the router's own (user and system), per token that reached a client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

HANDLE = {"do_remote_prefill": True, "remote_block_ids": [[1, 2, 3]], "remote_engine_id": "p"}
PROMPT = "a prompt of moderate length, " * 8
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 20.0
ROUTER = "import sys; from spinney.cmd.router import router; router(sys.argv[1:])"


# The workers


def event(index: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f" token{index}"}, "finish_reason": None}
    chunk = {"id": "cmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"


async def worker(scope: Any, receive: Any, send: Any) -> None:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    if scope["path"] == "/health":
        await whole(send, {"status": "ok"})
        return
    if scope["path"] == "/v1/models":
        await whole(send, {"object": "list", "data": [{"id": "m"}]})
        return
    body = json.loads(b"".join(parts))
    if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
        await whole(send, {"id": "p", "choices": [], "kv_transfer_params": HANDLE})
        return
    pace_s = body.get("pace_ms", 0) / 1000
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    chunk = event(1)
    due_s = asyncio.get_running_loop().time()
    for _ in range(body["max_tokens"]):
        if pace_s:
            due_s += pace_s
            await asyncio.sleep(due_s - asyncio.get_running_loop().time())
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def whole(send: Any, answer: Any) -> None:
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve_worker(port: int) -> None:
    import uvicorn
    import uvloop

    from spinney.listener import ListeningServer, listen

    config = uvicorn.Config(
        worker, loop="none", http="httptools", ws="none", lifespan="off", log_config=None,
        access_log=False,
    )  # fmt: skip
    uvloop.run(ListeningServer(config).serve_until_stopped(listen("127.0.0.1", port)))


# The clients


@dataclass
class Sample:
    ttft_s: list[float]
    tokens: int = 0
    requests: int = 0
    errors: int = 0
    seconds: float = 0.0


class Client(asyncio.Protocol):
    """One connection that asks again as soon as an answer is complete; it only counts bytes."""

    def __init__(self, request: bytes, sample: Sample, token: bytes, end_s: float) -> None:
        self.request, self.sample, self.token, self.end_s = request, sample, token, end_s
        self.done = asyncio.get_running_loop().create_future()
        self.first = True
        self.tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.began_s, self.first, self.tail = time.perf_counter(), True, b""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.first and self.token in data:
            self.first = False
            self.sample.ttft_s.append(time.perf_counter() - self.began_s)
        self.sample.tokens += data.count(self.token)
        self.tail = (self.tail + data)[-64:]
        if self.tail.endswith(b"0\r\n\r\n"):
            self.sample.requests += 1
            self.sample.errors += b"[DONE]" not in self.tail
            if time.perf_counter() < self.end_s:
                self.ask()
            else:
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or time.perf_counter() < self.end_s:
            self.sample.errors += 1
        if not self.done.done():
            self.done.set_result(None)


async def load(port: int, streams: int, seconds: float, body: dict[str, Any]) -> Sample:
    sent = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(sent)}\r\n\r\n"
    )
    sample = Sample([])
    began_s = time.perf_counter()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(streams):
        _, client = await loop.create_connection(
            lambda: Client(head.encode() + sent, sample, b'"delta"', began_s + seconds),
            "127.0.0.1",
            port,
        )
        clients.append(client)
    await asyncio.wait_for(asyncio.gather(*(c.done for c in clients)), seconds + 60)
    sample.seconds = time.perf_counter() - began_s
    return sample


def run_load(port: int, streams: int, seconds: float, body: dict[str, Any]) -> Sample:
    import uvloop

    return uvloop.run(load(port, streams, seconds, body))


# The measurement


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port} after {START_S} s")


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def row(name: str, streams: int, sample: Sample, router_s: float, resident_mb: float) -> str:
    ttft_ms = [1000 * each for each in sorted(sample.ttft_s)] or [0.0]
    p99 = ttft_ms[min(len(ttft_ms) - 1, int(0.99 * len(ttft_ms)))]
    cost = f"{1e6 * router_s / max(1, sample.tokens):8.1f}" if router_s else " " * 8
    per_request = f"{1e6 * router_s / max(1, sample.requests):9.0f}" if router_s else " " * 9
    return (
        f"{name:28}{streams:8}{sample.requests / sample.seconds:10.0f}"
        f"{sample.tokens / sample.seconds:10.0f}{cost}{per_request}"
        f"{statistics.median(ttft_ms):9.2f}{p99:9.2f}{resident_mb:8.0f}{sample.errors:7}"
    )


HEADER = (
    f"{'':28}{'streams':>8}{'req/s':>10}{'tokens/s':>10}{'µs/tok':>8}{'µs/req':>9}"
    f"{'TTFT p50':>9}{'p99 ms':>9}{'MB':>8}{'errors':>7}"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", default="1,32,256")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pace-ms", type=float, default=6.0)
    parser.add_argument("--serve-worker", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_worker:
        serve_worker(options.serve_worker)
        return
    ports = {name: free_port() for name in ("prefill", "decode", "both", "split", "whole")}
    processes = [
        subprocess.Popen([sys.executable, __file__, "--serve-worker", str(ports[name])])
        for name in ("prefill", "decode", "both")
    ]
    try:
        url = "http://127.0.0.1:"
        split = [f"prefill={url}{ports['prefill']}", f"decode={url}{ports['decode']}"]
        routers = {
            "split": start_router(ports["split"], split),
            "whole": start_router(ports["whole"], [f"both={url}{ports['both']}"]),
        }
        processes += routers.values()
        for port in ports.values():
            wait_for(port)
        time.sleep(1)
        measure(options, ports, routers)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)


def start_router(port: int, workers: list[str]) -> subprocess.Popen[bytes]:
    flags = [flag for worker in workers for flag in ("--worker", worker)]
    process = subprocess.Popen(
        [sys.executable, "-c", ROUTER, "--port", str(port), "--model", "m", *flags],
        stderr=subprocess.DEVNULL,
    )
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(process.pid, {cores[-1]})
    return process


def measure(options: argparse.Namespace, ports: dict[str, int], routers: dict[str, Any]) -> None:
    body = {
        "model": "m",
        "stream": True,
        "max_tokens": options.tokens,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    ways = [("direct to a worker", "both"), ("router, aggregated", "whole"),
            ("router, disaggregated", "split")]  # fmt: skip
    for kind, extra in (("flooded", {}), (f"paced {options.pace_ms} ms", None)):
        print(f"\n{kind}, {options.tokens} tokens a request\n{HEADER}")
        sent = body | ({"pace_ms": options.pace_ms} if extra is None else extra)
        for streams in map(int, options.streams.split(",")):
            for name, way in ways:
                router = routers.get(way)
                before_s = cpu_s(router.pid) if router else 0.0
                sample = run_load(ports[way], streams, options.seconds, sent)
                used_s = cpu_s(router.pid) - before_s if router else 0.0
                resident = memory_mb(router.pid) if router else 0.0
                print(row(name, streams, sample, used_s, resident), flush=True)


if __name__ == "__main__":
    main()
