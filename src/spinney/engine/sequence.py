"""One prompt on its way through the engine, and what its reader is told.

Invariant: a sequence holds blocks exactly in the states PULLING and RUNNING; in FINISHED it holds
none (a lease may), and nothing is told of it afterwards.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinney.kv.block_hash import hash_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from spinney.engine.request import FinishReason, GenerateRequest, Logprobs
    from spinney.engine.text import Detokenizer, StopStrings
    from spinney.kv.block_hash import BlockHash
    from spinney.kv.block_pool import BlockId
    from spinney.kv.lease import Lease


class State(enum.Enum):
    """Where a sequence is."""

    WAITING = enum.auto()
    PULLING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Outcome(enum.StrEnum):
    """How a hand-over went, seen from the decode side."""

    PULLED = "pulled"
    CACHED = "cached"
    RECOMPUTED = "recomputed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Handover:
    """What a hand-over moved and how long it took, from the call to the blocks being in place."""

    outcome: Outcome
    engine_id: str
    transport: str | None = None
    num_blocks: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    failure: str | None = None
    message: str | None = None


@dataclass(slots=True)
class Times:
    """Readings of the service's timer, in seconds."""

    arrived: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """A token was chosen. *text* is what may be shown now: it can lag behind the tokens."""

    token: int
    text: str
    logprobs: Logprobs | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last thing told of a sequence. *text* is what was held back before."""

    reason: FinishReason
    text: str = ""
    stop: str | int | None = None
    lease: Lease | None = None
    handover: Handover | None = None
    cached_tokens: int = 0
    error: Exception | None = None


Update = TokenUpdate | Finished


def _nobody() -> None:
    """Nobody reads along."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request. *index* rises with arrival and is unique."""

    index: int
    request: GenerateRequest
    detokenizer: Detokenizer
    stops: StopStrings
    rng: np.random.Generator
    times: Times
    state: State = State.WAITING
    output: list[int] = field(default_factory=list)
    blocks: list[BlockId] = field(default_factory=list)
    hashes: list[BlockHash] = field(default_factory=list)
    num_computed: int = 0
    num_registered: int = 0
    in_flight: bool = False
    aborted: bool = False
    remote_done: bool = False
    cached_tokens: int = 0
    pulled_tokens: int = 0
    handover: Handover | None = None
    trace: str = ""
    """The ``traceparent`` to pull under, empty when nobody traces."""
    end_reason: FinishReason | None = None
    updates: deque[Update] = field(default_factory=deque)
    on_update: Callable[[], None] = _nobody

    def tell(self, update: Update) -> None:
        """Queue *update* for the reader and wake it."""
        self.updates.append(update)
        self.on_update()

    @property
    def request_id(self) -> str:
        """The caller's name for it."""
        return self.request.request_id

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the prompt."""
        return self.request.prompt

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def needs_pull(self) -> bool:
        """Whether its KV is still to be fetched from another worker."""
        return self.request.remote is not None and not self.remote_done

    @property
    def prefilled(self) -> bool:
        """Whether the KV of its prompt is in the pool, or it has ended."""
        return bool(self.output) or self.state is State.FINISHED

    def tokens(self, begin: int, end: int) -> list[int]:
        """Return tokens *begin* to *end* - 1 of prompt and output."""
        prompt = self.request.prompt
        if begin >= len(prompt):
            return self.output[begin - len(prompt) : end - len(prompt)]
        return [*prompt[begin:end], *self.output[: max(0, end - len(prompt))]]

    def extend_hashes(self, block_size: int) -> list[BlockHash]:
        """Return the hashes of all full blocks of the tokens so far."""
        if (len(self.hashes) + 1) * block_size <= self.num_tokens:
            self.hashes = hash_blocks(
                self.tokens(0, self.num_tokens), block_size, known=self.hashes
            )
        return self.hashes
