"""What is asked of the engine, as values: prompts are token ids, texts and JSON are the server's.

Invariant: a `GenerateRequest` has been checked against the model's limits before it is made.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinney.errors import SpinneyError

if TYPE_CHECKING:
    from spinney.kv.lease import Handle


class FinishReason(enum.StrEnum):
    """Why a sequence ended; the words are OpenAI's, with *abort* and *error* as vLLM adds them."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class QueueFullError(SpinneyError):
    """As many requests wait as the engine lets wait; come again later."""


class DrainingError(SpinneyError):
    """The engine is about to stop and admits nothing; go to another one."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. ``temperature`` 0 is greedy; ``top_k`` 0 is off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    """How many alternatives to report beside the chosen token; None reports nothing."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        """Whether logits depend on the tokens so far or on a bias."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


@dataclass(frozen=True, slots=True)
class RemotePrefill:
    """Where the KV of the prompt can be pulled from, once, until *deadline_s* (epoch seconds)."""

    engine_id: str
    host: str
    port: int
    handle: Handle
    deadline_s: float | None
    patient: bool = False
    """Whether its prompt may still be being computed."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue.

    *lease_prompt* keeps the KV of `known` for a decode worker after the end. *follows* names a
    request of the same prompt whose prefill this one waits for, to find its blocks in the cache.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    remote: RemotePrefill | None = None
    lease_prompt: bool = False
    follows: str | None = None
    resumed: tuple[int, ...] = ()
    """Output tokens that another worker has told already: they count as output, untold here."""
    lease_as: Handle | None = None
    """The handle under which the KV is kept, where it was agreed on beforehand."""

    @property
    def known(self) -> tuple[int, ...]:
        """The tokens that were there at arrival: what a hand-over hands over."""
        return self.prompt + self.resumed


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of probabilities before penalties and temperature."""

    chosen: float
    top: tuple[tuple[int, float], ...]
