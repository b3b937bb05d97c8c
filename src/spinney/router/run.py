"""One request on its way, and what it has found: no deciding, no waiting.

Invariant: what holds for one attempt only is in its `Attempt`, so that none takes over what another
one came to.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from spinney.router import openai
from spinney.router.admission import Claim
from spinney.router.picker import Ask, Choice, Mode
from spinney.router.request_trace import RequestTrace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import msgspec

    from spinney.router.migration import Journal
    from spinney.router.relay import Headers, Reply
    from spinney.router.rendezvous import Meeting
    from spinney.router.stories import Story
    from spinney.router.workers import Worker
    from spinney.tracing import Span


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED_BY_WORKER = "refused-by-worker"
    """The worker found fault with the request (4xx)."""
    BAD_REQUEST = "bad-request"
    UNKNOWN_MODEL = "unknown-model"
    NO_WORKER = "no-worker"
    REFUSED = "refused"
    """There is no room, or it would be too late."""
    FAILED = "failed"
    """No worker could serve it, and the client was told."""
    BROKEN_OFF = "broken-off"
    """It failed in the middle of the stream."""
    DISCONNECTED = "disconnected"
    """The client went away."""
    CLIENT_STALLED = "client-stalled"
    DRAINING = "draining"


@dataclass(slots=True)
class Attempt:
    """One choice of workers, and what came of it so far."""

    number: int = 0
    """From 1 on; 0 before the first choice."""
    local: bool = False
    """Whether the decode worker has to compute the prompt itself."""
    desperate: bool = False
    """Whether its decode worker failed lately, and there is none that did not."""
    chosen_s: float = 0.0
    """By the loop's clock."""
    expected: float = 0.0
    """What the first token was thought to cost then."""
    asked_s: float = 0.0
    """When the worker was chosen that is asked now."""
    answering: bool = False
    """Whether the decode worker has begun to answer."""


@dataclass(slots=True)
class Run:
    """One request on its way."""

    id: str
    inbound: openai.Inbound
    headers: Mapping[str, str]
    """What goes on to the workers."""
    reply: Reply
    story: Story
    came_s: float
    """By the loop's clock."""
    claim: Claim = field(default_factory=Claim)
    trace: RequestTrace = field(default_factory=RequestTrace)
    found: dict[str, int] = field(default_factory=dict)
    """Prompt tokens that each worker seems to have computed before."""
    cached: dict[str, int] = field(default_factory=dict)
    """The same, as far as each is trusted."""
    tried_prefill: set[str] = field(default_factory=set)
    tried_decode: set[str] = field(default_factory=set)
    attempt: Attempt = field(default_factory=Attempt)
    """The present one."""
    counted: int = 0
    """Attempts that count: those that reached a worker and failed there."""
    resumes_locally: bool = False
    """Whether a worker refused the hand-over of a stream that goes on."""
    journal: Journal | None = None
    """What the client has of its stream, for another worker to go on from."""
    migrations: int = 0
    turned_away: int = 0
    """Workers that were to go on with its stream and did not even begin."""
    told: Sequence[int] = ()
    """Output tokens that the client has and the next worker goes on from."""
    estimated: openai.Inbound | None = None
    """What came, with its length as estimated before it was tokenised."""

    def age_s(self) -> float:
        """Return how long ago it came."""
        return asyncio.get_running_loop().time() - self.came_s

    @property
    def known_tokens(self) -> int:
        """What has to be computed before the next token: the prompt, and what was sent."""
        return self.inbound.prompt_tokens + len(self.told)

    @property
    def body(self) -> bytes:
        """What came, to be gone on with from what was sent."""
        return openai.resume_body(self.inbound.body, self.told) if self.told else self.inbound.body

    def break_point(self) -> Sequence[int]:
        """Return the output tokens that another worker can go on from; none, if from the start."""
        if self.journal is None or not self.reply.started:
            return ()
        self.journal.read()
        return () if self.journal.finished else self.journal.tokens[:]

    def ask(self) -> Ask:
        """Return what the picker has to know."""
        return Ask(
            model=self.inbound.model,
            prompt_tokens=self.known_tokens,
            cached=self.cached,
            splittable=self.inbound.splittable,
            tried_prefill=frozenset(self.tried_prefill),
            tried_decode=frozenset(self.tried_decode),
            local=self.attempt.local,
        )

    def settle(self) -> None:
        """Note what came of it, also where its stream broke off or its client went away."""
        self.story.attempts, self.story.migrations = self.attempt.number, self.migrations
        if not self.reply.finished:
            self.count_sent()

    def count_sent(self) -> None:
        """Note how many tokens the client has of a stream whose worker did not say it."""
        if self.story.output_tokens is None and self.journal is not None:
            self.journal.read()
            self.story.output_tokens = len(self.journal.tokens) or None

    def all_is_sent(self) -> bool:
        """Return whether nothing but the end of the stream was missing when it broke off."""
        if self.journal is None:
            return False
        self.journal.read()
        return self.journal.finished and (self.journal.usage_sent or not self.inbound.wants_usage)

    def upstream_headers(self, span: Span) -> dict[str, str]:
        """Return the headers of what is asked within *span*; each attempt has an id of its own."""
        number = self.attempt.number
        suffix = f".{number}" if number > 1 else ""
        return span.carry({**self.headers, "x-request-id": self.id + suffix})


@dataclass(frozen=True, slots=True)
class Handover:
    """A prompt that a prefill worker has computed. For one use."""

    worker: Worker
    handle: msgspec.Raw
    took_s: float
    meeting: Meeting | None = None
    """Where the decode worker finds it, in place of a handle."""

    def decode_body(self, body: bytes) -> bytes:
        """Return the request for the decode worker."""
        if self.meeting is not None:
            return self.meeting.decode_body(body)
        return openai.decode_body(body, self.handle)


@dataclass(frozen=True, slots=True)
class Served:
    """Who serves an attempt, as the client is told."""

    decode: Worker
    handover: Handover | None
    mode: Mode

    @property
    def prefill_name(self) -> str:
        """Whose hand-over it is; empty without one."""
        return self.handover.worker.name if self.handover else ""

    def headers(self) -> Headers:
        """Return the ``x-spinney-*`` headers of the answer."""
        told = {"x-spinney-mode": self.mode.value, "x-spinney-decode-worker": self.decode.name}
        if self.handover:
            told["x-spinney-prefill-worker"] = self.handover.worker.name
            told["x-spinney-prefill-ms"] = f"{self.handover.took_s * 1000:.1f}"
        return [(name.encode(), value.encode()) for name, value in told.items()]


def mode_of(choice: Choice, handover: Handover | None) -> Mode:
    """Return how an attempt is served: also where a prompt could not be handed over."""
    if choice.prefill is None or handover is not None:
        return choice.mode
    return Mode.LOCAL_PREFILL


def request_id_headers(request_id: str) -> Headers:
    """Return the headers by which an answer says which request it is to."""
    value = request_id.encode()
    return [(b"x-request-id", value), (b"x-spinney-request-id", value)]
