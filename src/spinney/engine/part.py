"""Which part of a model one of several ranks computes: tensor parallelism over heads.

A rank has some KV heads with the query heads that belong to them, and a share of the inner width of
the MLP; what it computes of the residual stream is a partial sum, and the ranks add theirs up twice
per layer. Embedding, norms and output matrix are whole on every rank. Invariant: after each sum all
ranks hold the same bits, so that they go on alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from spinney.errors import BadInputError
from spinney.kv.layout import rank_heads

if TYPE_CHECKING:
    from spinney.engine.executor import FloatArray
    from spinney.engine.model import LayerWeights, ModelConfig
    from spinney.kv.layout import KVLayout


class Collective(Protocol):
    """The ranks, as one of them sees them."""

    def total(self, partial: FloatArray) -> FloatArray:
        """Return the sum of every rank's *partial*, the same bits at each; may reuse *partial*.

        Every rank has to call it, in the same order and with the same shape. Raises GroupLostError
        when a rank is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Rank *rank* of *ranks*; *collective* is None where there is but one."""

    rank: int = 0
    ranks: int = 1
    collective: Collective | None = None

    def total(self, partial: FloatArray) -> FloatArray:
        """Return the sum over all ranks; see `Collective.total`."""
        return partial if self.collective is None else self.collective.total(partial)

    def shard(self, layout: KVLayout) -> int:
        """Return which shard of *layout* this rank holds."""
        return self.rank * layout.shards // self.ranks

    def cut_of(self, config: ModelConfig) -> Cut:
        """Return what this rank has of a model; raise BadInputError when it cannot be shared so."""
        check_ranks(config, self.ranks)
        heads = rank_heads(config.num_kv_heads, self.ranks, self.rank)
        queries = _queries(config, self.ranks, self.rank)
        inner = slice(
            self.rank * config.intermediate_size // self.ranks,
            (self.rank + 1) * config.intermediate_size // self.ranks,
        )
        own = replace(
            config,
            num_heads=len(queries),
            num_kv_heads=len(heads),
            intermediate_size=inner.stop - inner.start,
        )
        dim = config.head_dim
        return Cut(own, _wide(queries, dim), _wide(heads, dim), inner)


WHOLE = Part()
"""The whole model."""


def check_ranks(config: ModelConfig, ranks: int) -> None:
    """Raise BadInputError unless *ranks* can share the model."""
    rank_heads(config.num_kv_heads, ranks, 0)
    if ranks > config.num_kv_heads and config.num_heads % ranks:
        raise BadInputError(
            f"--tensor-parallel-size {ranks}: so many ranks cannot share {config.num_heads} heads "
            f"evenly; give a divisor of {config.num_heads}"
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows of the query, key and MLP matrices that a rank has, and what that makes of a model."""

    config: ModelConfig
    query: slice
    kv: slice
    inner: slice

    def layer(self, whole: LayerWeights) -> LayerWeights:
        """Return copies of the rank's part of *whole*, so that the rest need not be kept."""

        def some(array: FloatArray | None, rows: slice) -> FloatArray | None:
            return None if array is None else array[rows].copy()

        return replace(
            whole,
            q=whole.q[self.query].copy(),
            k=whole.k[self.kv].copy(),
            v=whole.v[self.kv].copy(),
            o=whole.o[:, self.query].copy(),
            q_bias=some(whole.q_bias, self.query),
            k_bias=some(whole.k_bias, self.kv),
            v_bias=some(whole.v_bias, self.kv),
            gate=whole.gate[self.inner].copy(),
            up=whole.up[self.inner].copy(),
            down=whole.down[:, self.inner].copy(),
        )


def _queries(config: ModelConfig, ranks: int, rank: int) -> range:
    """Return the query heads of *rank*: all that its KV heads serve, or its share of one's."""
    if ranks > config.num_kv_heads:
        count = config.num_heads // ranks
        return range(rank * count, (rank + 1) * count)
    group = config.num_heads // config.num_kv_heads
    heads = rank_heads(config.num_kv_heads, ranks, rank)
    return range(heads.start * group, heads.stop * group)


def _wide(heads: range, dim: int) -> slice:
    return slice(heads.start * dim, heads.stop * dim)
