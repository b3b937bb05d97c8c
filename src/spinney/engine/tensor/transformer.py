"""The arithmetic of a model in torch, but for who attends to what.

Whoever calls it says where tokens sit and how they attend: prefill in chunks, decode over block
tables, a captured step of fixed shape. Invariants: nothing here depends on values that only a
device knows, so all of it can be captured, but for the sum over ranks, which goes through main
memory; what a layer computes depends on tensors only, so that one compiled layer serves as all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from spinney.engine.batch_layout import fuse
from spinney.engine.model import rope_tables
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from spinney.engine.batch_layout import FusedLayer
    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import FloatArray
    from spinney.engine.part import Part
    from spinney.engine.tensor.pool import KVPool

    Attend = Callable[[Tensor, Tensor], Tensor]
    """Takes one layer of the pool, `KVPool.layer`, and queries ``(tokens, heads, dim)``; returns
    what each query mixes of the values, in the queries' shape."""
    RunLayer = Callable[["Layer", Tensor, "TokenRows", Tensor, Attend], Tensor]
    """`Transformer.layer`, or what does the same."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The element types of weights, arithmetic and KV, by the names that `KVLayout` uses."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
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
class TokenRows:
    """Tokens to run: their ids, where their KV goes, and their rotation."""

    tokens: Tensor
    blocks: Tensor
    offsets: Tensor
    cos: Tensor
    sin: Tensor


class Transformer:
    """The weights of a *part* of a model on a device; *checkpoint* is that part's."""

    def __init__(self, checkpoint: Checkpoint, part: Part, device: Any, dtype: Any) -> None:
        config, weights = checkpoint.config, checkpoint.weights
        self.config = config
        self.part = part
        self.device = device
        self.dtype = dtype
        self._embed = self._place(weights.embed)
        self._layers = tuple(self._place_layer(fuse(layer, config)) for layer in weights.layers)
        self._norm = self._place(weights.norm)
        is_tied = weights.lm_head is weights.embed
        self._lm_head = self._embed if is_tied else self._place(weights.lm_head)
        cos, sin = rope_tables(config, config.max_position_embeddings)
        self._cos, self._sin = self._place(cos), self._place(sin)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads: all, but of a separate embedding only some rows."""
        layers = sum(
            value.nbytes
            for layer in self._layers
            for value in (getattr(layer, name) for name in layer.__slots__)
            if value is not None
        )
        return int(layers + self._norm.nbytes + self._lm_head.nbytes)

    def rows(self, tokens: Tensor, positions: Tensor, blocks: Tensor, offsets: Tensor) -> TokenRows:
        """Return what is the same in all layers for *tokens* that sit at *positions*."""
        return TokenRows(
            tokens=tokens,
            blocks=blocks,
            offsets=offsets,
            cos=self._cos[positions][:, None, :],
            sin=self._sin[positions][:, None, :],
        )

    def hidden(
        self, rows: TokenRows, pool: KVPool, attend: Attend, run: RunLayer | None = None
    ) -> Tensor:
        """Run tokens through all layers and store their KV; return ``(tokens, width)``.

        *run* is called for each layer; by default `layer`.
        """
        run = run or self.layer
        x = self._embed[rows.tokens]
        for index, layer in enumerate(self._layers):
            x = run(layer, x, rows, pool.layer(index), attend)
        return x

    def layer(
        self, layer: Layer, x: Tensor, rows: TokenRows, pool: Tensor, attend: Attend
    ) -> Tensor:
        """Run *x* through one *layer*; *pool* is that layer's, and gets the tokens' KV."""
        x = x + self._attention(layer, self._rms_norm(x, layer.input_norm), rows, pool, attend)
        return x + self._total(_swiglu(layer, self._rms_norm(x, layer.post_norm)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``(tokens, vocab)`` logits of what `hidden` returned."""
        return functional.linear(self._rms_norm(hidden, self._norm), self._lm_head)

    def _place(self, array: FloatArray) -> Tensor:
        # A copy of its own: the checkpoint's arrays may be read-only or mapped from a file.
        return torch.tensor(array, dtype=self.dtype, device=self.device)

    def _place_optional(self, array: FloatArray | None) -> Tensor | None:
        return None if array is None else self._place(array)

    def _place_layer(self, layer: FusedLayer) -> Layer:
        return Layer(
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

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _attention(
        self, layer: Layer, x: Tensor, rows: TokenRows, pool: Tensor, attend: Attend
    ) -> Tensor:
        config = self.config
        qkv = functional.linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, config.head_dim)
        kept = config.num_heads + config.num_kv_heads
        rotated = qkv[:, :kept]
        if layer.qk_norm is not None:
            rotated = functional.rms_norm(rotated, rotated.shape[-1:], None, config.rms_norm_eps)
            rotated = rotated * layer.qk_norm
        rotated = _rotate(rotated, rows.cos, rows.sin)
        query, key = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
        pool[rows.blocks, :, rows.offsets] = torch.stack((key, qkv[:, kept:]), dim=1)
        attended = attend(pool, query)
        out = self._total(functional.linear(attended.flatten(1), layer.o))
        return out if layer.o_bias is None else out + layer.o_bias

    def _total(self, partial: Tensor) -> Tensor:
        """Return the sum over all ranks; the sum itself is made in float32, in main memory."""
        if self.part.collective is None:
            return partial
        own = partial.to("cpu", torch.float32).contiguous()
        return torch.from_numpy(self.part.total(own.numpy())).to(self.device, self.dtype)


def usable_device(name: str) -> Any:
    """Return the torch device of that *name*; raise BadInputError when it is absent."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(
            f"device {name!r} cannot be used: {reason}; use cpu, or cuda where there is a GPU"
        ) from None
    return device


def usable_dtype(name: str) -> Any:
    """Return the torch element type of that *name*; raise BadInputError for an unknown one."""
    if name not in DTYPES:
        raise BadInputError(f"dtype is {name!r}; this executor computes in {', '.join(DTYPES)}")
    return DTYPES[name]


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _swiglu(layer: Layer, x: Tensor) -> Tensor:
    gate, up = functional.linear(x, layer.gate_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate) * up, layer.down)
