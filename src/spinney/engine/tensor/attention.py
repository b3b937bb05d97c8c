"""How sequences that decode attend over their blocks: gathered, or read where they lie.

Gathering copies all KV that a step attends to and then uses torch's own attention: every device can
do that. The kernel reads each block once, in place; it needs a GPU and Triton, and what it says is
compared with the gathered answer before it is relied on. Invariant: both return the same numbers up
to rounding, whatever lies beyond a sequence's length.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from spinney import log as logs
from spinney.engine.batch_layout import GATHER_SPREAD
from spinney.engine.tensor.pool import KVPool
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from torch import Tensor

    from spinney.engine.model import ModelConfig
    from spinney.engine.tensor.paged_kernel import PagedKernel
    from spinney.engine.tensor.transformer import Attend

TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far the kernel may be from the gathered answer to the check's values, which are about 1."""

log = logs.get_logger("engine")


class PagedAttention(Protocol):
    """A way for sequences that decode one token each to attend over their blocks."""

    name: str
    spread: float
    """How much longer the longest may be for sequences to attend together."""
    wide_tables_cost: bool
    """Whether the width of the tables is paid for, not only the lengths."""

    def over(self, tables: Tensor, lengths: Tensor, equal: int | None = None) -> Attend:
        """Return how to attend over the blocks in *tables*, ``(sequences, width)``.

        Of each, the first so many tokens that *lengths* says; both are int32. *equal* is what they
        all say, where that is known.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Attends over the first *equal* tokens of the blocks in *tables*, or where *mask* is true."""

    kv_heads: int
    tables: Tensor
    mask: Tensor | None
    equal: int | None

    def __call__(self, pool: Tensor, query: Tensor) -> Tensor:
        """See `Attend`."""
        # (sequences, width, size, kv heads, dim) → (sequences, kv heads, tokens, dim): keys apart
        # from values, so that what is gathered need not be copied again to be in order.
        keys, values = (
            pool[:, kind][self.tables].flatten(1, 2)[:, : self.equal].transpose(1, 2)
            for kind in (0, 1)
        )
        # The query heads of a KV head stand where a kernel expects positions: none of the keys has
        # to be repeated.
        grouped = query.reshape(len(query), self.kv_heads, -1, query.shape[-1])
        mixed = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask)
        return mixed.reshape(query.shape)


@dataclass(frozen=True, slots=True, eq=False)
class InPlace:
    """Attends by a kernel over as many tokens of *tables* as *lengths* says."""

    kernel: PagedKernel
    tables: Tensor
    lengths: Tensor

    def __call__(self, pool: Tensor, query: Tensor) -> Tensor:
        """See `Attend`."""
        return self.kernel.attend(pool, query, self.tables, self.lengths)


class GatherAttention:
    """See `PagedAttention`: gathers, then calls torch's attention."""

    name = "gather"
    spread = GATHER_SPREAD
    wide_tables_cost = True

    def __init__(self, kv_heads: int, block_size: int) -> None:
        self._kv_heads = kv_heads
        self._block_size = block_size

    def over(self, tables: Tensor, lengths: Tensor, equal: int | None = None) -> Attend:
        """See `PagedAttention.over`."""
        mask = None
        if equal is None:
            at = torch.arange(tables.shape[1] * self._block_size, device=tables.device)
            mask = (at[None, :] < lengths[:, None])[:, None, None, :]
        return Gathered(self._kv_heads, tables, mask, equal)


class KernelAttention:
    """See `PagedAttention`: reads the blocks where they lie. *programs* are wanted at one time."""

    name = "kernel"
    spread = math.inf
    wide_tables_cost = False

    def __init__(self, kv_heads: int, block_size: int, programs: int) -> None:
        # Only here, so that everything else works without Triton.
        from spinney.engine.tensor.paged_kernel import PagedKernel

        self._kernel = PagedKernel(kv_heads, block_size, programs)

    def over(self, tables: Tensor, lengths: Tensor, equal: int | None = None) -> Attend:
        """See `PagedAttention.over`."""
        return InPlace(self._kernel, tables, lengths)


def choose_attention(
    wanted: str, config: ModelConfig, block_size: int, device: Any, dtype: Any
) -> PagedAttention:
    """Return the attention that is *wanted*, one of `PAGED_ATTENTION`.

    ``auto`` is the kernel on a GPU where it can be had and gives the gathered answer. Raises
    BadInputError when ``kernel`` is wanted and it cannot, or does not.
    """
    gather = GatherAttention(config.num_kv_heads, block_size)
    if wanted == "gather" or (wanted == "auto" and device.type != "cuda"):
        return gather
    found = _kernel(config, block_size, device, dtype)
    if not isinstance(found, str):
        return found
    if wanted == "kernel":
        raise BadInputError(
            f"--paged-attention kernel: {found}; use --paged-attention gather, which works on "
            f"every device"
        )
    log.warning("decode gathers its blocks", reason=found)
    return gather


def _kernel(config: ModelConfig, block_size: int, device: Any, dtype: Any) -> KernelAttention | str:
    """Return the kernel, tried out, or why there is none."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"device {device} is no GPU"
    if find_spec("triton") is None:
        return "Triton is not installed (torch for CUDA brings it)"
    try:
        kernel = KernelAttention(config.num_kv_heads, block_size, 2 * _processors(device))
        off = _disagreement(kernel, config, block_size, device, dtype)
    except Exception as error:  # noqa: BLE001 - a compiler for GPUs fails in many ways
        return f"the kernel does not run on {device}: {str(error).strip().splitlines()[0]}"
    if not off <= TOLERANCES[dtype]:
        return f"the kernel is off by {off:.3g} on {device}"
    return kernel


def _processors(device: Any) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _disagreement(
    kernel: KernelAttention, config: ModelConfig, block_size: int, device: Any, dtype: Any
) -> float:
    """Return how far *kernel* is from the gathered answer for a few ragged sequences."""
    heads, dim, width = config.num_kv_heads, config.head_dim, 8
    pool = KVPool(2 * width, (1, 2, block_size, heads, dim), dtype, device)
    noise = torch.Generator().manual_seed(1)
    pool.memory.copy_(torch.randn(pool.memory.shape, generator=noise))
    query = torch.randn((2, config.num_heads, dim), generator=noise).to(device, dtype)
    order = torch.randperm(2 * width, generator=noise).to(device, torch.int32)
    lengths = torch.tensor([1, width * block_size - 1], dtype=torch.int32, device=device)
    answers = [
        attention.over(order.view(2, width), lengths)(pool.layer(0), query).float()
        for attention in (kernel, GatherAttention(heads, block_size))
    ]
    return float((answers[0] - answers[1]).abs().max())
