"""One pair of workers per kind, shared by the suite."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.contract.worker_process import KINDS, Kind, Worker

from spinney.kv.transfer import nixl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Pair:
    """A prefill and a decode worker of one kind."""

    kind: Kind
    prefill: Worker
    decode: Worker


def vllm_missing() -> bool:
    return shutil.which("vllm") is None


VLLM = pytest.param(
    "vllm",
    marks=[pytest.mark.vllm, pytest.mark.skipif(vllm_missing(), reason="vllm is not installed")],
)


NIXL = pytest.param(
    "engine-nixl",
    marks=pytest.mark.skipif(not nixl.installed(), reason="nixl is not installed"),
)


@pytest.fixture(scope="session", params=["engine", NIXL, "mock", VLLM])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    workers = [Worker(kind, role, folder) for role in ("prefill", "decode")]
    try:
        for worker in workers:
            worker.wait_ready()
        yield Pair(kind, *workers)
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture
def worker(pair: Pair) -> Worker:
    return pair.decode


@pytest.fixture
def start(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Worker]]:
    """Starts further workers of the kind under test, for tests that end them."""
    started: list[Worker] = []

    def begin(role: str, *flags: str) -> Worker:
        started.append(Worker(pair.kind, role, tmp_path_factory.mktemp(role), flags))
        return started[-1].wait_ready()

    yield begin
    for worker in started:
        worker.kill()
