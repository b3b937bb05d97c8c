"""The leader's executor: its own part of the model, and the members' by command.

Invariant: every rank gets the same commands in the same order, so that all meet in the same sums.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from spinney.engine.group.data_link import Close, Read, Step, Write
from spinney.engine.group.messages import GroupLostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.engine.executor import Batch, ByteArray, Executor, FloatArray
    from spinney.engine.group.data_link import DataLink
    from spinney.kv.layout import KVLayout


class GroupExecutor:
    """See `spinney.engine.executor.Executor`. *own* is rank 0's part; *links* go to ranks 1, 2, …

    Its methods raise GroupLostError when a member is gone.
    """

    def __init__(self, own: Executor, links: tuple[DataLink, ...]) -> None:
        self._own = own
        self._links = links
        self._ranks = len(links) + 1

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block of all ranks are."""
        return self._own.layout

    @property
    def num_blocks(self) -> int:
        """Blocks of KV memory, the same at each rank."""
        return self._own.num_blocks

    def step(self, batch: Batch) -> FloatArray:
        """Run *batch* on all ranks; see `Executor.step`."""
        command = Step(
            [
                (list(sequence.token_ids), sequence.start, list(sequence.block_ids))
                for sequence in batch.sequences
            ]
        )
        for link in self._links:
            link.send(command)
        return self._own.step(batch)

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Gather blocks from the ranks; see `Executor.read_blocks`."""
        holders = [self._ranks_of(shard)[0] for shard in range(self.layout.shards)]
        for rank in holders[1:]:
            self._links[rank - 1].send(Read(list(block_ids)))
        self._own.read_blocks(block_ids, self._shard(out, 0, len(block_ids)))
        for shard, rank in enumerate(holders[1:], 1):
            self._links[rank - 1].receive_into(self._shard(out, shard, len(block_ids)))

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Give each rank its blocks; see `Executor.write_blocks`."""
        for shard in range(self.layout.shards):
            part = self._shard(data, shard, len(block_ids))
            for rank in self._ranks_of(shard):
                if rank == 0:
                    self._own.write_blocks(block_ids, part)
                else:
                    self._links[rank - 1].send(Write(list(block_ids), part.nbytes))
                    self._links[rank - 1].send_array(part)

    def close(self) -> None:
        """Release the members from their commands, and drop the own part."""
        for link in self._links:
            with contextlib.suppress(GroupLostError):
                link.send(Close())
        self._own.close()

    def _ranks_of(self, shard: int) -> list[int]:
        shards = self.layout.shards
        return [rank for rank in range(self._ranks) if rank * shards // self._ranks == shard]

    def _shard(self, data: ByteArray, shard: int, count: int) -> ByteArray:
        place = self.layout.shard_bytes(shard, count)
        return data[place.start : place.stop]
