"""The time of one step of a model, by measurement or by arithmetic.

A step is one forward pass over prompt chunks and decoding sequences together. Invariant of both
ways: an empty step takes no time, any other takes some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from spinney.perfmodel.grid import Grid


@dataclass(frozen=True, slots=True)
class Chunk:
    """*tokens* consecutive prompt tokens whose KV begins at position *start*."""

    tokens: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one forward pass computes.

    *decodes* sequences add one token each; *decode_context* is the sum of their lengths in tokens.
    """

    prefills: tuple[Chunk, ...] = ()
    decodes: int = 0
    decode_context: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.prefills and not self.decodes


class StepTimes(Protocol):
    """Tells the time of a step."""

    def step_s(self, shape: StepShape) -> float:
        """Return seconds; zero for an empty step."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredTimes:
    """Interpolates measurements: seconds of a chunk by (tokens, start), of a decode step by
    (sequences, mean length in tokens).

    What a mixed step costs is the sum of its parts less *fixed_s* (launches, calls, one read of the
    weights) for every part but the first: parts of one step share it.
    """

    prefill: Grid
    decode: Grid
    fixed_s: float

    def step_s(self, shape: StepShape) -> float:
        """Return seconds; see `StepTimes`."""
        parts = [self.prefill.at(chunk.tokens, chunk.start) for chunk in shape.prefills]
        if shape.decodes:
            parts.append(self.decode.at(shape.decodes, shape.decode_context / shape.decodes))
        if not parts:
            return 0.0
        return max(max(parts), sum(parts) - self.fixed_s * (len(parts) - 1))


@dataclass(frozen=True, slots=True)
class Roofline:
    """The larger of compute time and memory time of a transformer, plus a fixed overhead.

    Compute: ``2 × active_parameters`` operations per token (one multiplication and one addition per
    weight; Kaplan et al., "Scaling Laws for Neural Language Models", 2020, table 1) and
    ``4 × attention_width × layers`` per token and per position it attends to (scores and weighted
    sum; *attention_width* is heads × head dimension).
    Memory: all weights once per step, the KV of every position attended to once per sequence
    (Pope et al., "Efficiently Scaling Transformer Inference", 2022, section 2).
    Their maximum is the roofline of Williams, Waterman and Patterson, 2009. The two efficiencies
    are the attained share of the peaks. *flops* in 1/s, *bandwidth* in bytes/s, sizes in bytes.
    """

    active_parameters: float
    weight_bytes: float
    layers: int
    attention_width: int
    kv_bytes_per_token: float
    flops: float
    bandwidth: float
    compute_efficiency: float
    memory_efficiency: float
    overhead_s: float

    def step_s(self, shape: StepShape) -> float:
        """Return seconds; see `StepTimes`."""
        if shape.empty:
            return 0.0
        tokens = shape.decodes + sum(chunk.tokens for chunk in shape.prefills)
        attended = shape.decode_context + sum(_attended(chunk) for chunk in shape.prefills)
        kv_tokens = shape.decode_context + sum(c.start + c.tokens for c in shape.prefills)
        operations = 2 * self.active_parameters * tokens
        operations += 4 * self.attention_width * self.layers * attended
        moved = self.weight_bytes + self.kv_bytes_per_token * kv_tokens
        compute_s = operations / (self.flops * self.compute_efficiency)
        memory_s = moved / (self.bandwidth * self.memory_efficiency)
        return max(compute_s, memory_s) + self.overhead_s


def _attended(chunk: Chunk) -> float:
    """Return how many positions the tokens of *chunk* attend to, summed: a causal triangle."""
    return chunk.tokens * chunk.start + chunk.tokens * (chunk.tokens + 1) / 2
