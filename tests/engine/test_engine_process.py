"""Engines as processes: what a user starts, what SIGTERM does, what a killed peer does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from spinney.kv.event_stream import subscribe
from spinney.kv.events import BlockStored, KVEventBatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e
START_S = 20


class Process:
    """One ``spinney engine``."""

    def __init__(self, model: Path, tmp_path: Path, name: str, *flags: str) -> None:
        self.log = tmp_path / f"{name}.log"
        code = "from spinney.cmd.engine import engine; engine()"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    code,
                    "--model",
                    str(model),
                    "--port",
                    "0",
                    "--engine-id",
                    name,
                    "--log-json",
                    *flags,
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "NO_COLOR": "1"},
            )
        self.url = ""

    def wait_ready(self) -> Process:
        until = time.perf_counter() + START_S
        while time.perf_counter() < until:
            found = re.search(r'"url": ?"([^"]+)"', self.log.read_text())
            if found:
                self.url = found.group(1)
                return self
            assert self.popen.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"not ready after {START_S} s: {self.log.read_text()}")

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def wait_metric(self, name: str, value: float) -> None:
        until = time.perf_counter() + 10
        while not any(
            line.startswith(name + "{") and float(line.rsplit(" ", 1)[1]) == value
            for line in self.text("/metrics").splitlines()
        ):
            assert time.perf_counter() < until, f"{name} does not become {value}"

    def status(self, path: str) -> int:
        try:
            self.call(path)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def complete(self, prompt: list[int], count: int, **fields: Any) -> Any:
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "return_token_ids": True}
        return self.call("/v1/completions", body | fields)

    def prefill(self, prompt: list[int]) -> Any:
        params = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None}
        answer = self.complete(prompt, 1, kv_transfer_params=params)
        return answer["kv_transfer_params"]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(timeout)


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Iterator[Any]:
    started: list[Process] = []

    def begin(name: str, *flags: str) -> Process:
        started.append(Process(tiny_model, tmp_path, name, *flags))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(10)


def tokens(answer: Any) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


def test_two_processes_give_the_tokens_of_one_and_survive_each_others_death(start: Any) -> None:
    prefill, decode = start("p", "--role", "prefill"), start("d", "--role", "decode")
    prefill.wait_ready()
    decode.wait_ready()
    prompts = [[(n * 31 + k * 7) % 400 + 4 for k in range(20 + 25 * n)] for n in range(8)]
    expected = [tokens(prefill.complete(prompt, 16)) for prompt in prompts]

    def both(prompt: list[int]) -> Any:
        params = prefill.prefill(prompt)
        return decode.complete(prompt, 16, kv_transfer_params=params)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(both, prompts))
    assert [tokens(answer) for answer in answers] == expected
    assert {a["kv_transfer_params"]["outcome"] for a in answers} == {"pulled"}
    assert {a["kv_transfer_params"]["transport"] for a in answers} == {"shared-memory"}

    fresh = [9, 8, 7] * 30
    params = prefill.prefill(fresh)
    prefill.popen.kill()
    prefill.popen.wait(10)
    answer = decode.complete(fresh, 4, kv_transfer_params=params)
    report = answer["kv_transfer_params"]
    assert (report["outcome"], report["failure"]) == ("recomputed", "peer_unreachable")
    assert report["seconds"] < 0.2
    assert decode.call("/health")["status"] == "ok"
    assert decode.stop() == 0


def test_sigterm_finishes_running_work_and_exits_with_0(start: Any) -> None:
    engine = start("e").wait_ready()
    body = {"prompt": [5], "max_tokens": 400, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(engine.url + "/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as stream:
        assert stream.readline().startswith(b"data: ")
        engine.popen.send_signal(signal.SIGTERM)
        until = time.perf_counter() + 10
        while engine.status("/health") != 503:
            assert time.perf_counter() < until, "it does not drain"
        rest = stream.read()
    assert b'"finish_reason":"length"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert engine.popen.wait(15) == 0


def test_events_are_published_where_asked(start: Any, tmp_path: Path) -> None:
    events, replay = f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay"
    engine = start(
        "e",
        "--kv-events-endpoint",
        events,
        "--kv-events-replay-endpoint",
        replay,
        "--kv-events-topic",
        "kv@e",
    ).wait_ready()
    prompt = list(range(10, 50))
    engine.complete(prompt, 1)

    async def first() -> Any:
        stream = subscribe(
            events,
            replay,
            "kv@e",
        )
        async with asyncio.timeout(10):
            batch = await anext(stream)
        await stream.aclose()
        return batch

    batch = asyncio.run(first())
    assert isinstance(batch, KVEventBatch)
    stored = batch.events[0]
    assert isinstance(stored, BlockStored)
    assert (stored.block_size, stored.token_ids) == (16, prompt[:32])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/nowhere"], "no such model directory"),
        (["--max-model-len", "99999"], "the model has 1024 positions"),
        (["--num-blocks", "3"], "give at least 64 blocks"),
        (["--max-num-batched-tokens", "2"], "every running sequence needs a token per step"),
        (["--kv-port", "1", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
    ],
    ids=["model", "length", "blocks", "step", "address"],
)
def test_what_cannot_work_is_said_and_nothing_starts(
    start: Any, flags: list[str], message: str
) -> None:
    process = start("e", *flags)
    assert process.popen.wait(START_S) != 0
    assert message in process.log.read_text()


def test_help_shows_examples_and_loads_no_numpy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from spinney.cmd.engine import engine; "
        "print(CliRunner().invoke(engine, ['--help']).output); "
        "assert 'numpy' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert "Examples:" in done.stdout
    assert "--role" in done.stdout


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_closed_connection_frees_the_blocks(start: Any, stream: bool) -> None:
    engine = start("e").wait_ready()
    body = {"prompt": [5], "max_tokens": 1000, "ignore_eos": True, "stream": stream}
    raw = json.dumps(body).encode()
    address = engine.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: e\r\ncontent-length: {len(raw)}\r\n\r\n"
        client.sendall(head.encode() + raw)
        engine.wait_metric("vllm:num_requests_running", 1)
    engine.wait_metric("vllm:num_requests_running", 0)
    engine.wait_metric("vllm:kv_cache_usage_perc", 0)
    assert 'finished_reason="abort"' in engine.text("/metrics")
