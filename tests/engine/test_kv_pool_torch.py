"""Blocks go in and out of torch's memory piece by piece, and the scratch block stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from spinney.engine.tensor.pool import KVPool, Staging  # noqa: E402

pytestmark = pytest.mark.torch

SHAPE = (2, 2, 4, 1, 8)
BLOCK_BYTES = 2 * 2 * 4 * 8 * 4
BLOCKS = 12
CPU = torch.device("cpu")


def pool(staging_bytes: int | None) -> KVPool:
    return KVPool(BLOCKS, SHAPE, torch.float32, CPU, staging_bytes)


@given(
    staging=st.sampled_from([None, 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, 100 * BLOCK_BYTES]),
    chosen=st.permutations(range(BLOCKS)),
    count=st.integers(0, BLOCKS),
    is_writeable=st.booleans(),
)
def test_blocks_come_back_as_they_were_written_whatever_the_pieces(
    staging: int | None, chosen: list[int], count: int, is_writeable: bool
) -> None:
    blocks, memory = chosen[:count], pool(staging)
    before = memory.memory.clone()
    data = np.random.default_rng(count).integers(0, 256, count * BLOCK_BYTES, np.uint8)
    data.flags.writeable = is_writeable
    memory.write(blocks, data)
    out = np.zeros_like(data)
    memory.read(blocks, out)
    np.testing.assert_array_equal(out, data)
    for at, block in enumerate(blocks):
        raw = memory.memory[block].reshape(-1).view(torch.uint8).numpy()
        np.testing.assert_array_equal(raw, data[at * BLOCK_BYTES :][:BLOCK_BYTES])
    untouched = [*chosen[count:], memory.scratch]
    assert torch.equal(memory.memory[untouched], before[untouched])


@pytest.mark.parametrize("staging", [None, BLOCK_BYTES], ids=["direct", "staged"])
def test_the_scratch_block_can_be_neither_read_nor_written(staging: int | None) -> None:
    memory = pool(staging)
    data = np.zeros(BLOCK_BYTES, np.uint8)
    with pytest.raises(IndexError):
        memory.read([memory.scratch], data)
    with pytest.raises(IndexError):
        memory.write([memory.scratch], data)


class StrictMark:
    """What is behind this mark is under way from `set` until `wait`."""

    def __init__(self) -> None:
        self.under_way = False

    def set(self) -> None:
        assert not self.under_way, "a buffer was used again while it was being copied"
        self.under_way = True

    def wait(self) -> None:
        self.under_way = False


def test_no_buffer_is_used_again_before_its_copy_is_done() -> None:
    staging = Staging(16, CPU)
    marks = [StrictMark(), StrictMark()]
    staging._marks = [*marks]
    pieces = [torch.full((16,), at, dtype=torch.uint8) for at in range(5)]
    out = np.zeros(80, np.uint8)
    staging.fetch(pieces, out)
    assert out.tolist() == [at for at in range(5) for _ in range(16)]
    assert not any(mark.under_way for mark in marks)

    for _ in range(2):
        sent = [piece.tolist() for piece in staging.send(out[:70], 16)]
        assert [at for piece in sent for at in piece] == out[:70].tolist()
    assert all(mark.under_way for mark in marks), "a write waits for what nobody asks for"
