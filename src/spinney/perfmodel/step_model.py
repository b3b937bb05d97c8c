"""What a router, a planner, a twin and a mock engine ask about time.

Pure arithmetic over a profile: no clock, no state. Units are seconds, tokens and bytes. Invariants:
times are not negative, and within the range a profile was measured in, a larger step or transfer
never takes less time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from spinney.perfmodel.step_times import Chunk, StepShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spinney.perfmodel.step_times import StepTimes


class Distance(IntEnum):
    """The smallest topology domain two workers share; `FAR` where they share none."""

    HOST = 0
    RACK = 1
    ZONE = 2
    FAR = 3


@dataclass(frozen=True, slots=True)
class Link:
    """Time to move bytes: *latency_s* for the exchange of messages, then *bytes_per_s*."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class StepModel:
    """The times of one model on one kind of worker.

    *analytic* tells that no measurement stands behind the step times. *chunk_tokens* is how many
    prompt tokens go into one step at most. *links* has at least the farthest distance that occurs;
    a missing one is as slow as the next farther.
    """

    name: str
    times: StepTimes
    links: Mapping[Distance, Link]
    kv_bytes_per_token: float
    chunk_tokens: int
    analytic: bool

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """Return the time to compute a prompt of *tokens*, its first *cached* ones being there.

        At least the last token is computed. The prompt is alone in its steps: waiting and sharing
        are the caller's to add. Costs a microsecond or two per step: who asks for many workers asks
        once per distinct *cached*.
        """
        if tokens <= 0:
            return 0.0
        at = max(0, min(cached, tokens - 1))
        seconds = 0.0
        while at < tokens:
            count = min(self.chunk_tokens, tokens - at)
            seconds += self.times.step_s(StepShape((Chunk(count, at),)))
            at += count
        return seconds

    def decode_step_s(self, batch: int, context_tokens: int) -> float:
        """Return the time in which each of *batch* sequences gets one token.

        *context_tokens* is the sum of their lengths, prompt and output.
        """
        if batch <= 0:
            return 0.0
        return self.times.step_s(StepShape((), batch, max(batch, context_tokens)))

    def transfer_s(self, bytes_: float, distance: Distance = Distance.HOST) -> float:
        """Return the time to move *bytes_* of KV; nothing takes no time."""
        if bytes_ <= 0:
            return 0.0
        link = next(self.links[far] for far in Distance if far >= distance and far in self.links)
        return link.latency_s + bytes_ / link.bytes_per_s

    def kv_bytes(self, tokens: int) -> float:
        """Return how many bytes the KV of *tokens* has."""
        return self.kv_bytes_per_token * tokens

    def step_s(self, shape: StepShape) -> float:
        """Return the time of a step that computes prompts and decodes together."""
        return self.times.step_s(shape)
