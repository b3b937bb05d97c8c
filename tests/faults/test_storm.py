"""Many seeded faults at once: every request ends rightly or cleanly, and nothing is held after."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.faults.arena import Arena
from tests.faults.storm import Storm

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("faults"),
    # A link that is cut before its first step leaves its writer to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_every_request_in_a_storm_ends_rightly_or_cleanly(tmp_path: Path) -> None:
    async def main() -> Arena:
        async with Arena(tmp_path, seed=5) as arena:
            storm = asyncio.ensure_future(Storm(arena, pause_s=(0.1, 0.4)).run())
            await arena.run(300, clients=12, leaving=0.1)
            storm.cancel()
            await asyncio.gather(storm, return_exceptions=True)
            await arena.settle()
            return arena

    tally = asyncio.run(main()).tally
    assert tally.wrong == []
    assert tally.total == 300
    assert tally.ended["ok"] > 200
    assert sum(tally.faults.values()) > 5
