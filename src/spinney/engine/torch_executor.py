"""Runs a model with torch, on a CPU or a GPU, in float32, float16 or bfloat16.

All tokens of a batch go through each matrix in one product; prefill chunks attend one by one,
sequences that decode one token attend together. Where decode steps are captured, those sequences
run as one of them, and the rest of the batch apart. Invariants: the bytes of a block mean what
`KVLayout` says, so this executor and the NumPy one exchange blocks at equal dtype; what a batch is
composed of, and how its parts run, does not change which positions a token attends to.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney import log as logs
from spinney.engine.batch_layout import lay_out
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.decode_rows import part as parted
from spinney.engine.part import WHOLE, Part

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise ImportError(
        "the torch executor needs torch, which is not installed; install spinney[torch] "
        "or use the numpy executor",
        name="torch",
    ) from error

from spinney.engine.tensor.attention import choose_attention
from spinney.engine.tensor.decode_step import choose_decode_step
from spinney.engine.tensor.pool import KVPool, to_main_memory
from spinney.engine.tensor.replay import CaptureError
from spinney.engine.tensor.transformer import Transformer, usable_device, usable_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from spinney.engine.batch_layout import ChunkRows, GroupRows
    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Batch, ByteArray, FloatArray, SequenceStep
    from spinney.engine.tensor.transformer import Attend, TokenRows
    from spinney.kv.layout import KVLayout

log = logs.get_logger("engine")

QUERY_TILE = 512
"""Queries of a chunk that attend at once: bounds the mask, and the scores where they are stored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """Queries ``begin:end`` of the batch, all of one sequence, and the *visible* keys they need.

    *mask* is true where a query may look; None stands for the plain causal square.
    """

    begin: int
    end: int
    visible: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Several tokens of one sequence."""

    blocks: Tensor
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Sequences that decode one token each and attend together."""

    rows: Tensor
    attend: Attend


@dataclass(frozen=True, slots=True, eq=False)
class _Schedule:
    """Where the tokens of a batch go, worked out once for all layers."""

    rows: TokenRows
    chunks: tuple[_Chunk, ...]
    groups: tuple[_Group, ...]
    logit_rows: Tensor


class TorchExecutor:
    """See `spinney.engine.executor.Executor`.

    *device* is a torch device, such as ``cpu`` or ``cuda:0``; *dtype* a name in `DTYPES`. *threads*
    sets the threads of torch's CPU kernels, for the whole process. As one *part* of several it
    computes with its heads, and its blocks are those of its shard. Raises BadInputError for a
    device that is absent, an unknown dtype, and *options* that cannot be had.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_blocks: int,
        block_size: int,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | None = None,
        part: Part = WHOLE,
        options: DecodeOptions | None = None,
    ) -> None:
        options = options or DecodeOptions()
        self._layout = checkpoint.kv_layout(part, dtype, block_size)
        shape = self._layout.shard_shape(part.shard(self._layout))
        self._device, torch_dtype = usable_device(device), usable_dtype(dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        self._num_blocks = num_blocks
        self._model = Transformer(checkpoint.cut(part), part, self._device, torch_dtype)
        self._pool = KVPool(num_blocks, shape, torch_dtype, self._device)
        with self._at_work():
            self._attention = choose_attention(
                options.attention,
                self._model.config,
                self._pool.block_size,
                self._device,
                torch_dtype,
            )
            self._decode = choose_decode_step(options, self._model, self._pool, self._attention)

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block are."""
        return self._layout

    @property
    def num_blocks(self) -> int:
        """Blocks of KV memory."""
        return self._num_blocks

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads."""
        return self._model.weight_bytes

    @property
    def decodes_by(self) -> str:
        """How sequences decode, for a person to read."""
        how = "eager" if self._decode is None else "captured"
        return f"{how}, {self._attention.name}"

    def step(self, batch: Batch) -> FloatArray:
        """Run *batch*; see `Executor.step`."""
        with self._at_work():
            result: FloatArray = to_main_memory(self._logits(batch)).numpy()
        return result

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy blocks out; see `Executor.read_blocks`."""
        with self._at_work():
            self._pool.read(block_ids, out)

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Overwrite blocks; see `Executor.write_blocks`."""
        with self._at_work():
            self._pool.write(block_ids, data)

    def close(self) -> None:
        """Drop the KV pool, and what was captured with it."""
        self._decode = None
        self._pool.close()

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Compute without gradients, and where it is a GPU, with it as the current one."""
        on_gpu = self._device.type == "cuda"
        with (
            torch.inference_mode(),
            torch.cuda.device(self._device) if on_gpu else contextlib.nullcontext(),
        ):
            yield

    def _logits(self, batch: Batch) -> Tensor:
        parts = parted(batch)
        logits = self._captured(parts.decoding)
        if logits is None:
            return self._eager(batch)
        if parts.rest.sequences:
            logits = torch.cat((self._eager(parts.rest), logits))
        elif len(parts.order) == len(logits):
            return logits
        return logits[self._indices(parts.order)]

    def _captured(self, decoding: tuple[SequenceStep, ...]) -> Tensor | None:
        """Return the logits of *decoding* by a captured step; None where there is none for them."""
        if self._decode is None or not self._decode.takes(decoding):
            return None
        try:
            return self._decode.run(decoding)
        except CaptureError as error:
            log.error("decode steps are not captured any more", reason=str(error))
            self._decode = None
            return None

    def _eager(self, batch: Batch) -> Tensor:
        schedule = self._schedule(batch)

        def attend(pool: Tensor, query: Tensor) -> Tensor:
            attended = torch.empty_like(query)
            for chunk in schedule.chunks:
                self._attend_chunk(pool, chunk, query, attended)
            for group in schedule.groups:
                attended[group.rows] = group.attend(pool, query[group.rows])
            return attended

        hidden = self._model.hidden(schedule.rows, self._pool, attend)
        return self._model.logits(hidden[schedule.logit_rows])

    def _indices(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _schedule(self, batch: Batch) -> _Schedule:
        size = self._pool.block_size
        rows = lay_out(batch, size, self._attention.spread)
        at, blocks = self._indices(rows.positions), self._indices(rows.blocks)
        return _Schedule(
            self._model.rows(self._indices(rows.tokens), at, blocks, at % size),
            chunks=tuple(self._chunk(chunk) for chunk in rows.chunks),
            groups=tuple(self._group(group) for group in rows.groups),
            logit_rows=self._indices(rows.wanted),
        )

    def _chunk(self, chunk: ChunkRows) -> _Chunk:
        count, start = chunk.end - chunk.begin, chunk.start
        tiles = []
        for first in range(0, count, QUERY_TILE):
            last = min(first + QUERY_TILE, count)
            visible = start + last
            mask = None
            if visible != last - first:
                shape = (last - first, visible)
                ones = torch.ones(shape, dtype=torch.bool, device=self._device)
                mask = ones.tril_(start + first)
            tiles.append(_Tile(chunk.begin + first, chunk.begin + last, visible, mask))
        return _Chunk(self._indices(chunk.blocks), tuple(tiles))

    def _group(self, group: GroupRows) -> _Group:
        tables = torch.tensor(group.tables, dtype=torch.int32, device=self._device)
        lengths = torch.tensor(group.lengths, dtype=torch.int32, device=self._device)
        equal = None if group.ragged else group.longest
        return _Group(self._indices(group.rows), self._attention.over(tables, lengths, equal))

    def _attend_chunk(self, pool: Tensor, chunk: _Chunk, query: Tensor, out: Tensor) -> None:
        config = self._model.config
        repeats = config.num_heads // config.num_kv_heads
        # (blocks, 2, size, kv heads, dim) → (2, 1, heads, tokens, dim): each KV head serves the
        # query heads of its group.
        gathered = pool[chunk.blocks].permute(1, 3, 0, 2, 4).flatten(2, 3)
        keys, values = gathered.repeat_interleave(repeats, dim=1)[:, None]
        for tile in chunk.tiles:
            mixed = functional.scaled_dot_product_attention(
                query[tile.begin : tile.end].transpose(0, 1)[None],
                keys[:, :, : tile.visible],
                values[:, :, : tile.visible],
                attn_mask=tile.mask,
                is_causal=tile.mask is None,
            )
            out[tile.begin : tile.end] = mixed[0].transpose(0, 1)
