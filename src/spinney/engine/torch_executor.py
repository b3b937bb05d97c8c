"""Runs a model with torch, on a CPU or a GPU, in float32, float16 or bfloat16.

The KV pool is one tensor in the order in which blocks travel, so a block leaves and arrives as one
copy. All tokens of a batch go through each matrix in one product; prefill chunks attend one by one,
sequences that decode one token attend together over their gathered blocks. Invariants: the bytes of
a block mean what `KVLayout` says, so this executor and the NumPy one exchange blocks at equal
dtype; what a batch is composed of does not change which positions a token attends to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spinney.engine.batch_layout import fuse, lay_out
from spinney.engine.model import rope_tables
from spinney.engine.part import WHOLE, Part
from spinney.errors import BadInputError

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise ImportError(
        "the torch executor needs torch, which is not installed; install spinney[torch] "
        "or use the numpy executor",
        name="torch",
    ) from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from spinney.engine.batch_layout import ChunkRows, FusedLayer, GroupRows
    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Batch, ByteArray, FloatArray
    from spinney.kv.layout import KVLayout

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The element types of weights, arithmetic and KV, by the names that `KVLayout` uses."""
QUERY_TILE = 512
"""Queries of a chunk that attend at once: bounds the mask, and the scores where they are stored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """Weights of one layer, ``(out, in)``, fused where the input is shared."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


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
    blocks: Tensor
    mask: Tensor | None
    longest: int


@dataclass(frozen=True, slots=True, eq=False)
class _Schedule:
    """Where the tokens of a batch go, worked out once for all layers."""

    tokens: Tensor
    blocks: Tensor
    offsets: Tensor
    cos: Tensor
    sin: Tensor
    chunks: tuple[_Chunk, ...]
    groups: tuple[_Group, ...]
    logit_rows: Tensor


class TorchExecutor:
    """See `spinney.engine.executor.Executor`.

    *device* is a torch device, such as ``cpu`` or ``cuda:0``; *dtype* a name in `DTYPES`. *threads*
    sets the threads of torch's CPU kernels, for the whole process. As one *part* of several it
    computes with its heads, and its blocks are those of its shard. Raises BadInputError for a
    device that is absent or an unknown dtype.
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
    ) -> None:
        self._layout = checkpoint.kv_layout(part, dtype, block_size)
        self._block_shape = self._layout.shard_shape(part.shard(self._layout))
        self._part = part
        checkpoint = checkpoint.cut(part)
        config, weights = checkpoint.config, checkpoint.weights
        self._config = config
        self._device = _device(device)
        self._dtype = _dtype(dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        self._num_blocks = num_blocks
        self._embed = self._place(weights.embed)
        self._layers = tuple(self._place_layer(fuse(layer, config)) for layer in weights.layers)
        self._norm = self._place(weights.norm)
        is_tied = weights.lm_head is weights.embed
        self._lm_head = self._embed if is_tied else self._place(weights.lm_head)
        cos, sin = rope_tables(config, config.max_position_embeddings)
        self._cos, self._sin = self._place(cos), self._place(sin)
        self._pool = torch.zeros(
            (num_blocks, *self._block_shape), dtype=self._dtype, device=self._device
        )

    @property
    def layout(self) -> KVLayout:
        """What the bytes of a block are."""
        return self._layout

    @property
    def num_blocks(self) -> int:
        """Blocks of KV memory."""
        return self._num_blocks

    def step(self, batch: Batch) -> FloatArray:
        """Run *batch*; see `Executor.step`."""
        with torch.inference_mode():
            schedule = self._schedule(batch)
            x = self._embed[schedule.tokens]
            for index, layer in enumerate(self._layers):
                normed = self._rms_norm(x, layer.input_norm)
                x = x + self._attention(index, layer, normed, schedule)
                x = x + self._total(_swiglu(layer, self._rms_norm(x, layer.post_norm)))
            last = self._rms_norm(x[schedule.logit_rows], self._norm)
            logits = functional.linear(last, self._lm_head).to("cpu", torch.float32)
        result: FloatArray = logits.numpy()
        return result

    def read_blocks(self, block_ids: Sequence[int], out: ByteArray) -> None:
        """Copy blocks out; see `Executor.read_blocks`."""
        self._check_size(block_ids, out)
        with torch.inference_mode():
            chosen = self._pool[self._indices(block_ids)]
            torch.from_numpy(out.reshape(-1)).copy_(chosen.view(torch.uint8).reshape(-1))

    def write_blocks(self, block_ids: Sequence[int], data: ByteArray) -> None:
        """Overwrite blocks; see `Executor.write_blocks`."""
        self._check_size(block_ids, data)
        # Torch takes only arrays that it could write to.
        flat = data.reshape(-1) if data.flags.writeable else data.reshape(-1).copy()
        with torch.inference_mode():
            values = torch.from_numpy(flat).to(self._device).view(self._dtype)
            blocks = values.view(len(block_ids), *self._block_shape)
            self._pool[self._indices(block_ids)] = blocks

    def close(self) -> None:
        """Drop the KV pool."""
        self._pool = torch.empty(0, dtype=self._dtype, device=self._device)

    def _check_size(self, block_ids: Sequence[int], data: ByteArray) -> None:
        wanted = len(block_ids) * self._pool[0].nbytes
        if data.nbytes != wanted:
            raise ValueError(
                f"{len(block_ids)} blocks are {wanted} bytes, the buffer has {data.nbytes}"
            )

    def _place(self, array: FloatArray) -> Tensor:
        # A copy of its own: the checkpoint's arrays may be read-only or mapped from a file.
        return torch.tensor(array, dtype=self._dtype, device=self._device)

    def _place_optional(self, array: FloatArray | None) -> Tensor | None:
        return None if array is None else self._place(array)

    def _place_layer(self, layer: FusedLayer) -> _Layer:
        return _Layer(
            input_norm=self._place(layer.input_norm),
            qkv=self._place(layer.qkv),
            qkv_bias=self._place_optional(layer.qkv_bias),
            qk_norm=self._place_optional(layer.qk_norm),
            o=self._place(layer.o),
            o_bias=self._place_optional(layer.o_bias),
            post_norm=self._place(layer.post_norm),
            gate_up=self._place(layer.gate_up),
            down=self._place(layer.down),
        )

    def _indices(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _schedule(self, batch: Batch) -> _Schedule:
        rows = lay_out(batch, self._layout.block_size)
        at = self._indices(rows.positions)
        return _Schedule(
            tokens=self._indices(rows.tokens),
            blocks=self._indices(rows.blocks),
            offsets=at % self._layout.block_size,
            cos=self._cos[at][:, None, :],
            sin=self._sin[at][:, None, :],
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
        mask = None
        if group.ragged:
            at = torch.arange(group.longest, device=self._device)
            mask = (at[None, :] < self._indices(group.lengths)[:, None])[:, None, None, :]
        rows, tables = self._indices(group.rows), self._indices(group.tables)
        return _Group(rows, tables, mask, group.longest)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)

    def _attention(self, index: int, layer: _Layer, x: Tensor, schedule: _Schedule) -> Tensor:
        config = self._config
        qkv = functional.linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, config.head_dim)
        kept = config.num_heads + config.num_kv_heads
        rotated = qkv[:, :kept]
        if layer.qk_norm is not None:
            rotated = functional.rms_norm(rotated, rotated.shape[-1:], None, config.rms_norm_eps)
            rotated = rotated * layer.qk_norm
        rotated = _rotate(rotated, schedule.cos, schedule.sin)
        query, key = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
        pool = self._pool[:, index]
        pool[schedule.blocks, :, schedule.offsets] = torch.stack((key, qkv[:, kept:]), dim=1)
        attended = torch.empty_like(query)
        for chunk in schedule.chunks:
            self._attend_chunk(pool, chunk, query, attended)
        for group in schedule.groups:
            self._attend_group(pool, group, query, attended)
        out = self._total(functional.linear(attended.flatten(1), layer.o))
        return out if layer.o_bias is None else out + layer.o_bias

    def _total(self, partial: Tensor) -> Tensor:
        """Return the sum over all ranks; the sum itself is made in float32, in main memory."""
        if self._part.collective is None:
            return partial
        own = partial.to("cpu", torch.float32).contiguous()
        return torch.from_numpy(self._part.total(own.numpy())).to(self._device, self._dtype)

    def _attend_chunk(self, pool: Tensor, chunk: _Chunk, query: Tensor, out: Tensor) -> None:
        repeats = self._config.num_heads // self._config.num_kv_heads
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

    def _attend_group(self, pool: Tensor, group: _Group, query: Tensor, out: Tensor) -> None:
        heads, dim, count = self._config.num_kv_heads, self._config.head_dim, len(group.rows)
        gathered = pool[group.blocks].permute(2, 0, 4, 1, 3, 5).flatten(3, 4)
        keys, values = gathered[:, :, :, : group.longest]
        # The query heads of a KV head stand where a kernel expects positions: none of the keys
        # has to be repeated.
        grouped = query[group.rows].view(count, heads, -1, dim)
        mixed = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=group.mask)
        out[group.rows] = mixed.reshape(count, -1, dim)


def _device(name: str) -> Any:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(
            f"device {name!r} cannot be used: {reason}; use cpu, or cuda where there is a GPU"
        ) from None
    return device


def _dtype(name: str) -> Any:
    if name not in DTYPES:
        raise BadInputError(f"dtype is {name!r}; this executor computes in {', '.join(DTYPES)}")
    return DTYPES[name]


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _swiglu(layer: _Layer, x: Tensor) -> Tensor:
    gate, up = functional.linear(x, layer.gate_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate) * up, layer.down)
