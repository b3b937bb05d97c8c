"""Workers as processes, of every kind that speaks the contract, and a small client for them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Any

from spinney.engine.assembly import model_directory

ANSWER_S = 60.0
MODEL = "demo"
REMOTE_DECODE = {"do_remote_decode": True, "do_remote_prefill": False}


@dataclass(frozen=True)
class Kind:
    """How to start one kind of worker, and how KV comes to it on one host.

    *start_s* is how long it may take to be ready.
    """

    name: str
    start_s: float
    block: int = 16
    kv_metric: str = "vllm:kv_cache_usage_perc"
    flags: tuple[str, ...] = ()
    transport: str = "shared-memory"

    def command(self, role: str, port: int, folder: Path, *flags: str) -> list[str]:
        name = f"{self.name}-{role}"
        if self.name == "vllm":
            return vllm_command(role, port, name, folder, self.block)
        return [
            *(sys.executable, "-m", "spinney.cmd.main", self.name, "--log-json"),
            *("--port", str(port), "--role", role, "--engine-id", name),
            *("--kv-lease", "2"),
            *("--kv-events-endpoint", f"ipc://{folder}/{role}-events"),
            *("--kv-events-replay-endpoint", f"ipc://{folder}/{role}-replay"),
            *("--kv-events-topic", f"kv@{name}", *self.flags, *flags),
        ]


BY_NIXL = ("--no-kv-shared-memory", "--kv-nixl")

KINDS = {
    "engine": Kind("engine", 20),
    "engine-nixl": Kind("engine", 20, flags=BY_NIXL, transport="nixl"),
    "mock": Kind("mock", 20, flags=("--speed-up", "4")),
    # vLLM on a CPU takes blocks of multiples of 32.
    "vllm": Kind("vllm", 180, block=32, transport="nixl"),
}


def vllm_command(role: str, port: int, name: str, folder: Path, block: int) -> list[str]:
    transfer = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
        "kv_buffer_device": "cpu",
        "engine_id": name,
        "kv_load_failure_policy": "recompute",
    }
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{folder}/{role}-events",
        "replay_endpoint": f"ipc://{folder}/{role}-replay",
        "topic": f"kv@{name}",
    }
    return [
        *("vllm", "serve", str(model_directory(MODEL)), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--block-size", str(block)),
        # Without it, SIGTERM aborts what runs.
        *("--shutdown-timeout", "25"),
        *("--kv-transfer-config", json.dumps(transfer)),
        *("--kv-events-config", json.dumps(events)),
    ]


def vllm_environment() -> dict[str, str]:
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "UCX_TLS": "tcp,self,sm",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
    }


def free_port() -> int:
    """Return a port that nobody listens on, and that no connection is given by chance.

    The kernel takes the near ends of connections from its ephemeral range, so a process that starts
    again on its port must have one from below.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = SystemRandom().randrange(10_000, first_ephemeral)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port between 10000 and {first_ephemeral}")


@dataclass
class Reply:
    """An HTTP answer; *headers* in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, its closing [DONE] checked and left out."""
        parts = [part for part in self.body.decode().split("\n\n") if part.strip()]
        assert all(part.startswith("data: ") for part in parts)
        assert parts[-1] == "data: [DONE]"
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


@dataclass
class Worker:
    """A running worker process."""

    kind: Kind
    role: str
    folder: Path
    flags: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.log = self.folder / f"{self.role}-{self.port}.log"
        environment = {**os.environ, "NO_COLOR": "1"}
        if self.kind.name == "vllm":
            environment |= vllm_environment()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.kind.command(self.role, self.port, self.folder, *self.flags),
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def topic(self) -> str:
        return f"kv@{self.kind.name}-{self.role}"

    def wait_ready(self) -> Worker:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.call("GET", "/health").status == 200
            except OSError:
                return False

        wait_for(ready, f"{self.kind.name} is ready: {self.log}", self.kind.start_s)
        return self

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)) as link:
            raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            link.request(method, path, raw, {"content-type": "application/json", **headers})
            answer = link.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())

    def post(self, path: str, **body: Any) -> Reply:
        return self.call("POST", path, {"model": MODEL} | body)

    def complete(self, prompt: Any, count: int, **fields: Any) -> Any:
        """Return a greedy completion's JSON, with token ids."""
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "return_token_ids": True}
        reply = self.post("/v1/completions", **(body | fields))
        assert reply.status == 200, reply.body
        return reply.json

    def prefill(self, prompt: list[int]) -> Any:
        """Return the ticket of *prompt*."""
        answer = self.complete(prompt, 1, kv_transfer_params=REMOTE_DECODE)
        return answer["kv_transfer_params"]

    def metrics(self) -> dict[str, float]:
        """Return samples by name, summed over labels."""
        found: dict[str, float] = {}
        for line in self.call("GET", "/metrics").body.decode().splitlines():
            if line and not line.startswith("#"):
                name = re.split(r"[{ ]", line, maxsplit=1)[0]
                found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    def aborted(self) -> float:
        """Return how many requests have ended by their clients' leaving."""
        lines = self.call("GET", "/metrics").body.decode().splitlines()
        name = "vllm:request_success_total{"
        found = [line for line in lines if line.startswith(name) and '="abort"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def wait_idle(self) -> None:
        """Wait until no request runs or waits and no KV block is held."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", self.kind.kv_metric)

        def idle() -> bool:
            metrics = self.metrics()
            return all(metrics[name] == 0 for name in names)

        wait_for(idle, f"nothing is held: {names}", 20)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End it with all the processes it has started, which it may have left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def wait_for(condition: Any, what: str, seconds: float = 10.0) -> None:
    until = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def send_raw(port: int, body: dict[str, Any]) -> socket.socket:
    """Send a completion request and return the connection without reading the answer."""
    raw = json.dumps({"model": MODEL} | body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: w\r\ncontent-length: {len(raw)}\r\n"
    head += "content-type: application/json\r\n\r\n"
    link = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
    link.sendall(head.encode() + raw)
    return link


def tokens(answer: Any) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids
