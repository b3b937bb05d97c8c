"""One arena for the directed tests, on one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from tests.faults.arena import Arena

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
SEED = 11


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as found:
        yield found


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("arena"), SEED)
    runner.run(arena.__aenter__())
    yield arena
    runner.run(arena.__aexit__())


@pytest.fixture
def arena(runner: asyncio.Runner, shared: Arena) -> Iterator[Arena]:
    """The arena, whole again after each test, with nothing held and nothing wrong."""
    shared.tally.reset()
    yield shared
    runner.run(shared.restore())
    runner.run(shared.settle())
    runner.run(shared.forgive())
    assert shared.tally.wrong == []
