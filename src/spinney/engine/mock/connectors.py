"""How the mock moves KV: by another connector, in modelled time; or within one process.

Invariant: a pull takes at least what the performance model says of the modelled bytes, and its
failures come as fast as the carrying connector's.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np

from spinney.kv.lease import Failure, HandoverError
from spinney.kv.transfer.connector import Pulled, room

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from spinney.kv.transfer.connector import BlockSource, Connector, PullRequest
    from spinney.perfmodel.step_model import Distance, StepModel


class ModelledConnector:
    """Adds to *carrier* the time that the KV of a real model would take over *distance*."""

    def __init__(
        self,
        carrier: Connector,
        model: StepModel,
        *,
        block_size: int,
        distance: Distance,
        speed_up: float = 1.0,
    ) -> None:
        self._carrier = carrier
        self._model = model
        self._block_size = block_size
        self._distance = distance
        self._speed_up = speed_up

    @asynccontextmanager
    async def pull(self, host: str, port: int, request: PullRequest) -> AsyncIterator[Pulled]:
        """Fetch blocks; see `Connector.pull`."""
        loop = asyncio.get_running_loop()
        # What travels are whole blocks.
        count = len(request.span.blocks(self._block_size))
        size = self._model.kv_bytes(count * self._block_size)
        due = loop.time() + self._model.transfer_s(size, self._distance) / self._speed_up
        async with self._carrier.pull(host, port, request) as pulled:
            await asyncio.sleep(max(0.0, due - loop.time()))
            yield pulled


class MemoryConnector:
    """Pulls from workers of the same process, which stand in *sources* by host and port."""

    def __init__(self, sources: dict[tuple[str, int], BlockSource]) -> None:
        self._sources = sources

    @asynccontextmanager
    async def pull(self, host: str, port: int, request: PullRequest) -> AsyncIterator[Pulled]:
        """Fetch blocks; see `Connector.pull`."""
        source = self._sources.get((host, port))
        if source is None:
            raise HandoverError(
                Failure.UNREACHABLE, f"{host}:{port}: no such worker; compute the prompt again"
            )
        data: NDArray[np.uint8] = np.empty(0, np.uint8)

        def allocate(count: int) -> NDArray[np.uint8]:
            nonlocal data
            data = room(count)
            return data

        try:
            async with asyncio.timeout(request.patience_s):
                taken = await source.take(request, allocate)
        except TimeoutError:
            raise HandoverError(
                Failure.TIMEOUT, f"{host}:{port} did not answer in time; compute the prompt again"
            ) from None
        failure: str | None = Failure.UNREACHABLE
        try:
            yield Pulled(data, taken.checksum, "memory", taken.layout)
            failure = None
        except HandoverError as error:
            failure = error.failure
            raise
        finally:
            source.ended(request, int(data.nbytes), failure)
