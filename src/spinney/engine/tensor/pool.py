"""The memory of KV blocks on a torch device, and how blocks get in and out.

Blocks lie as they travel, so one arrives or leaves as one copy. Behind the last block is one more,
the scratch block, which padding reads and writes. Invariants: a block id is in ``0 … num_blocks-1``
for everybody but padding; copies to and from a GPU go through pinned memory piece by piece and wait
for their own marks in its work, never for the whole device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from spinney.engine.executor import ByteArray

STAGING_BYTES = 8 << 20
"""Size of each of two pinned buffers, unless one block is larger."""


class Mark(Protocol):
    """A place in a device's work that can be waited for."""

    def set(self) -> None:
        """Put the mark behind all that is queued now."""
        ...

    def wait(self) -> None:
        """Wait until everything before the mark is done; at once if it was never set."""
        ...


class _StreamMark:
    """A mark in the current stream of a GPU, which need not be the current GPU."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._event = torch.cuda.Event()

    def set(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        self._event.synchronize()


class _NoMark:
    """The mark of a device that is done when it returns."""

    def set(self) -> None:
        pass

    def wait(self) -> None:
        pass


def mark(device: Any) -> Mark:
    """Return a mark for the work of *device*."""
    return _StreamMark(device) if device.type == "cuda" else _NoMark()


class Staging:
    """Two buffers between arrays and a device: while one is copied, the other is filled."""

    def __init__(self, nbytes: int, device: Any) -> None:
        pinned = device.type == "cuda"
        self._device = device
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned) for _ in "ab"]
        self._marks = [mark(device) for _ in "ab"]

    def fetch(self, pieces: Iterable[Tensor], out: ByteArray) -> None:
        """Copy the bytes of *pieces*, one after another, to *out*; they stand there on return."""
        begin = 0
        waiting: tuple[int, int, int] | None = None
        for turn, piece in enumerate(pieces):
            which, end = turn % 2, begin + piece.nbytes
            raw = piece.reshape(-1).view(torch.uint8)
            self._buffers[which][: piece.nbytes].copy_(raw, non_blocking=True)
            self._marks[which].set()
            if waiting is not None:
                self._land(*waiting, out)
            waiting, begin = (which, begin, end), end
        if waiting is not None:
            self._land(*waiting, out)

    def send(self, data: ByteArray, nbytes: int) -> Iterator[Tensor]:
        """Yield *data* on the device in pieces of *nbytes*, to be used by the current stream."""
        for turn, begin in enumerate(range(0, data.nbytes, nbytes)):
            which, size = turn % 2, min(nbytes, data.nbytes - begin)
            buffer = self._buffers[which][:size]
            # What left this buffer two pieces ago, or in an earlier call, may be on its way still.
            self._marks[which].wait()
            buffer.numpy()[:] = data[begin : begin + size]
            piece = torch.empty(size, dtype=torch.uint8, device=self._device)
            piece.copy_(buffer, non_blocking=True)
            self._marks[which].set()
            yield piece

    def _land(self, which: int, begin: int, end: int, out: ByteArray) -> None:
        self._marks[which].wait()
        out[begin:end] = self._buffers[which][: end - begin].numpy()


class KVPool:
    """*num_blocks* blocks of *shape* ``(layers, 2, size, kv heads, dim)``, and the scratch block.

    *staging_bytes* sizes the buffers between it and main memory; None takes `STAGING_BYTES` on a
    GPU, and elsewhere copies directly.
    """

    def __init__(
        self,
        num_blocks: int,
        shape: tuple[int, int, int, int, int],
        dtype: Any,
        device: Any,
        staging_bytes: int | None = None,
    ) -> None:
        self.scratch = num_blocks
        """The id of the scratch block."""
        self.memory = torch.zeros((num_blocks + 1, *shape), dtype=dtype, device=device)
        self.block_size = shape[2]
        self._shape = shape
        self._block_bytes = self.memory[0].nbytes
        if staging_bytes is None and device.type == "cuda":
            staging_bytes = STAGING_BYTES
        self._piece_blocks = max(1, (staging_bytes or 0) // self._block_bytes)
        self._has_staging = staging_bytes is not None
        self._staging: Staging | None = None

    def layer(self, index: int) -> Tensor:
        """Return the blocks of one layer, ``(blocks, 2, size, kv heads, dim)``."""
        return self.memory[:, index]

    def read(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy blocks into *out*."""
        self._check_size(block_ids, out)
        blocks, count, total = self._own(), self._piece_blocks, len(block_ids)
        chosen, flat = self._indices(block_ids), out.reshape(-1)
        if self._has_staging:
            pieces = (blocks[chosen[at : at + count]] for at in range(0, total, count))
            self._stage().fetch(pieces, flat)
        else:
            raw = blocks[chosen].view(torch.uint8).reshape(-1)
            torch.from_numpy(flat).copy_(raw)

    def write(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Overwrite blocks with *data*, which may change after the call."""
        self._check_size(block_ids, data)
        blocks, chosen, at = self._own(), self._indices(block_ids), 0
        for piece in self._arriving(data.reshape(-1)):
            values = piece.view(self.memory.dtype).view(-1, *self._shape)
            blocks[chosen[at : at + len(values)]] = values
            at += len(values)

    def close(self) -> None:
        """Give the memory back."""
        self.memory = torch.empty(0, dtype=self.memory.dtype, device=self.memory.device)
        self._staging = None

    def _own(self) -> Tensor:
        """Return the blocks without the scratch block, which never travels."""
        return self.memory[: self.scratch]

    def _arriving(self, flat: ByteArray) -> Iterable[Tensor]:
        if not flat.size:
            return ()
        if self._has_staging:
            return self._stage().send(flat, self._piece_blocks * self._block_bytes)
        # Torch takes only arrays that it could write to.
        values = torch.from_numpy(flat if flat.flags.writeable else flat.copy())
        return (values.to(self.memory.device),)

    def _stage(self) -> Staging:
        if self._staging is None:
            # Made late, because pinned memory is dear: only where blocks do travel.
            nbytes = self._piece_blocks * self._block_bytes
            self._staging = Staging(nbytes, self.memory.device)
        return self._staging

    def _indices(self, block_ids: Sequence[int]) -> Tensor:
        return torch.tensor(block_ids, dtype=torch.int64, device=self.memory.device)

    def _check_size(self, block_ids: Sequence[int], data: ByteArray) -> None:
        wanted = len(block_ids) * self._block_bytes
        if data.nbytes != wanted:
            raise ValueError(
                f"{len(block_ids)} blocks are {wanted} bytes, the buffer has {data.nbytes}"
            )


def to_main_memory(values: Tensor) -> Tensor:
    """Return *values* as float32 in main memory, waiting for no other work than theirs."""
    if values.device.type != "cuda":
        return values.to("cpu", torch.float32)
    # Torch keeps pinned memory that is given back, for the next of that size.
    out = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
    out.copy_(values.float(), non_blocking=True)
    done = mark(values.device)
    done.set()
    done.wait()
    return out
