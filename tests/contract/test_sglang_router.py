"""SGLang's own router before our workers, where it is installed (``pip install sglang-router``).

It calls prefill and decode worker at once, streams from both, and gives each prompt a room.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.worker_process import KINDS, MODEL, Worker, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("smg") is None, reason="sglang-router is not installed"),
]
LENGTH = 8


class Gateway:
    """SGLang's router, and the workers behind it."""

    def __init__(self, kind: str, folder: Any) -> None:
        kv_port = free_port()
        prefill = Worker(KINDS[kind], "prefill", folder, ("--kv-port", str(kv_port)))
        self.workers = [prefill, Worker(KINDS[kind], "decode", folder)]
        self.decode = self.workers[1]
        self.port = free_port()
        self._log = (folder / "smg.log").open("wb")
        pair = [f"http://127.0.0.1:{worker.port}" for worker in self.workers]
        flags = {"--host": "127.0.0.1", "--port": self.port, "--prometheus-port": free_port()}
        flags |= {"--policy": "round_robin", "--worker-startup-check-interval": 1}
        words = [str(word) for flag in flags.items() for word in flag]
        words += ["--pd-disaggregation", "--prefill", pair[0], str(kv_port), "--decode", pair[1]]
        for worker in self.workers:
            worker.wait_ready()
        self._process = subprocess.Popen(
            ["smg", "launch", *words],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"NO_PROXY": "*"},
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        for worker in self.workers:
            worker.kill()

    def get(self, path: str, body: Any = None) -> bytes:
        url, data = f"http://127.0.0.1:{self.port}{path}", body and json.dumps(body).encode()
        asked = urllib.request.Request(url, data, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return bytes(answer.read())

    def ready(self) -> bool:
        try:
            return b"ready" in self.get("/readiness")
        except OSError:
            return False

    def ask(self, path: str, **fields: Any) -> list[str]:
        """Return the texts of the choices."""
        body = {"model": MODEL, "max_tokens": LENGTH, "temperature": 0}
        raw = self.get(path, body | fields)
        return texts(raw, stream=bool(fields.get("stream")))


def texts(raw: bytes, *, stream: bool) -> list[str]:
    found: dict[int, str] = {}
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")]
    for part in lines if stream else [raw]:
        for choice in json.loads(part)["choices"]:
            said = choice.get("delta") or choice.get("message") or choice
            index = choice["index"]
            found[index] = found.get(index, "") + (said.get("text") or said.get("content") or "")
    return [found[index] for index in sorted(found)]


@pytest.fixture(scope="module", params=["engine", "mock"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    made = Gateway(request.param, tmp_path_factory.mktemp(request.param))
    try:
        wait_for(made.ready, "SGLang's router has found its workers", 30)
        yield made
    finally:
        made.stop()


def handovers(gateway: Gateway, outcome: str) -> float:
    lines = gateway.decode.call("GET", "/metrics").body.decode().splitlines()
    found = [line for line in lines if f'outcome="{outcome}"' in line and "_handovers_" in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def pulled(gateway: Gateway) -> float:
    return handovers(gateway, "pulled")


def text(seed: int) -> str:
    return f"{seed} of the birds in the wood " * 20


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_completions_are_those_of_one_worker_and_their_kv_is_pulled(
    gateway: Gateway, stream: bool
) -> None:
    before = pulled(gateway)
    told = gateway.ask("/v1/completions", prompt=text(stream), stream=stream)
    assert pulled(gateway) == before + 1
    alone = gateway.decode.complete(text(stream), LENGTH)
    assert told == [alone["choices"][0]["text"]]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_chats_are_those_of_one_worker_and_their_kv_is_pulled(
    gateway: Gateway, stream: bool
) -> None:
    before = pulled(gateway)
    chat = [{"role": "user", "content": text(10 + stream)}]
    told = gateway.ask("/v1/chat/completions", messages=chat, stream=stream)
    assert pulled(gateway) == before + 1
    body = {"messages": chat, "max_tokens": LENGTH, "temperature": 0}
    alone = gateway.decode.post("/v1/chat/completions", **body)
    assert told == texts(alone.body, stream=False)


def test_several_prompts_have_a_room_each_and_several_choices_one(gateway: Gateway) -> None:
    before = pulled(gateway)
    several = [text(20), text(21)]
    assert len(gateway.ask("/v1/completions", prompt=several)) == 2
    assert pulled(gateway) == before + 2
    assert len(gateway.ask("/v1/completions", prompt=text(22), n=2)) == 2
    assert pulled(gateway) == before + 3


def test_what_is_short_or_cached_is_no_failed_hand_over(gateway: Gateway) -> None:
    for prompt in ("short", text(30), text(30)):
        gateway.ask("/v1/completions", prompt=prompt)
    assert handovers(gateway, "cached") > 0
    assert handovers(gateway, "recomputed") == 0


def test_it_finds_out_which_model_the_workers_have(gateway: Gateway) -> None:
    known = [card["id"] for card in json.loads(gateway.get("/v1/models"))["data"]]
    assert known == [MODEL]
