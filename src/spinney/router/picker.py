"""Who serves this request: filter → score → pick, over a frozen view.

The decision is a function of its arguments; the same view, ask and random state give the same
choice. Prefill and decode are chosen together. All scores are in prompt tokens: the work a worker
has before it and the work this request would add.

Invariant: a choice never names a worker that is not ready, is draining, serves another model or
has another role than the stage needs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from heapq import nsmallest
from typing import TYPE_CHECKING

from spinney.router.workers import Role, Stage, Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from random import Random


@dataclass(frozen=True, slots=True)
class Load:
    """What the router has given a worker and not seen the end of."""

    prefill_requests: int = 0
    prefill_tokens: int = 0
    """Prompt tokens still to be computed there, as far as known."""
    decode_requests: int = 0
    context_tokens: int = 0
    """Prompt tokens of the requests that decode there."""


IDLE = Load()


@dataclass(frozen=True, slots=True)
class View:
    """All that a choice is made from."""

    workers: tuple[Worker, ...]
    loads: Mapping[str, Load] = field(default_factory=dict)
    avoided: frozenset[str] = frozenset()
    """Workers that failed a short while ago."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the choice has to know of a request."""

    model: str
    prompt_tokens: int
    cached: Mapping[str, int] = field(default_factory=dict)
    """Prompt tokens that a worker has probably computed before, by its name."""
    splittable: bool = True
    """Whether one hand-over of KV blocks can carry it; several sequences cannot be carried."""
    tried_prefill: frozenset[str] = frozenset()
    tried_decode: frozenset[str] = frozenset()
    """Workers that failed this very request."""
    local: bool = False
    """Whether the decode worker has to prefill, whatever prefill workers there are."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How work is weighed."""

    local_prefill_below_tokens: int = 0
    """Prompts with fewer uncached tokens on the decode worker are prefilled there."""
    decode_request_tokens: float = 16.0
    """What one decoding sequence weighs, in prefill tokens."""
    context_token_weight: float = 1 / 16
    """What one token of a decoding sequence's context weighs, in prefill tokens."""
    prefix_weight: float = 1.0
    """How much a cached token is believed in, from 0 to 1."""


class Mode(StrEnum):
    """How a request is served."""

    DISAGGREGATED = "disaggregated"
    AGGREGATED = "aggregated"
    """By one worker of role ``both``."""
    LOCAL_PREFILL = "local-prefill"
    """By a decode worker that computes the prompt too."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could have been picked, and what speaks for and against it."""

    worker: str
    stage: Stage
    cost: float
    uncached_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Pick:
    """One worker for one stage, and why it and no other."""

    worker: Worker
    cost: float
    reason: str
    """``only-one``, ``prefix``, ``least-work`` or ``last-resort``."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who serves a request."""

    mode: Mode
    decode: Pick
    prefill: Pick | None
    why_mode: str
    candidates: tuple[Candidate, ...] = ()
    """The cheapest `SHOWN_CANDIDATES` of each stage."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """How many workers each filter took out."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """No worker can serve the request now."""

    rejected: Mapping[str, int]


SHOWN_CANDIDATES = 8


def pick(ask: Ask, view: View, policy: Policy, rng: Random) -> Choice | Nobody:
    """Return who serves *ask*; *rng* is asked only to break ties."""
    eligible, rejected = _filter(ask, view.workers)
    decoders, last_resort = _decoders(eligible, ask, view, rejected)
    if not decoders:
        return Nobody(dict(rejected))
    may_split = ask.splittable and not ask.local
    prefillers = _prefillers(eligible, ask, view, rejected) if may_split else []
    table = _Table(ask, view, policy, rng)
    option = _cheapest(table, decoders, prefillers)
    decode = replace(option.decode, reason="last-resort") if last_resort else option.decode
    shown = (*table.shown(Stage.PREFILL, prefillers), *table.shown(Stage.DECODE, decoders))
    return Choice(option.mode, decode, option.prefill, option.why, shown, dict(rejected))


def pick_prefill(ask: Ask, view: View, policy: Policy, rng: Random) -> Pick | None:
    """Return another prefill worker for *ask*, or None when there is none left."""
    eligible, rejected = _filter(ask, view.workers)
    prefillers = _prefillers(eligible, ask, view, rejected)
    return _Table(ask, view, policy, rng).least(prefillers, Cost.PREFILL) if prefillers else None


# Filter


def _filter(ask: Ask, workers: Iterable[Worker]) -> tuple[list[Worker], Counter[str]]:
    rejected: Counter[str] = Counter()
    kept = []
    for worker in workers:
        if ask.model not in worker.models:
            rejected["model"] += 1
        elif worker.draining:
            rejected["draining"] += 1
        elif not worker.ready:
            rejected["not-ready"] += 1
        else:
            kept.append(worker)
    return kept, rejected


def _decoders(
    eligible: list[Worker], ask: Ask, view: View, rejected: Counter[str]
) -> tuple[list[Worker], bool]:
    """Return who can decode; those that failed lately or before only when there is nobody else."""
    found = [worker for worker in eligible if worker.decodes]
    fresh = [w for w in found if w.name not in ask.tried_decode and w.name not in view.avoided]
    if fresh:
        if len(fresh) < len(found):
            rejected["failed-lately"] += len(found) - len(fresh)
        return fresh, False
    untried = [worker for worker in found if worker.name not in ask.tried_decode]
    return untried or found, bool(found)


def _prefillers(
    eligible: list[Worker], ask: Ask, view: View, rejected: Counter[str]
) -> list[Worker]:
    found = [worker for worker in eligible if worker.role is Role.PREFILL]
    kept = [w for w in found if w.name not in ask.tried_prefill and w.name not in view.avoided]
    if len(kept) < len(found):
        rejected["prefill-failed-lately"] += len(found) - len(kept)
    return kept


# Score


class Cost(StrEnum):
    """What is asked of a worker."""

    PREFILL = "prefill"
    DECODE = "decode"
    WHOLE = "whole"


class _Table:
    """The costs of workers for one request, in prompt tokens; lower is better."""

    __slots__ = ("_ask", "_loads", "_policy", "_rng")

    def __init__(self, ask: Ask, view: View, policy: Policy, rng: Random) -> None:
        self._ask = ask
        self._loads = view.loads
        self._policy = policy
        self._rng = rng

    def uncached(self, worker: Worker) -> int:
        """Return the prompt tokens that *worker* would have to compute."""
        cached = self._ask.cached.get(worker.name)
        if not cached:
            return self._ask.prompt_tokens
        return max(0, self._ask.prompt_tokens - round(self._policy.prefix_weight * cached))

    def cost(self, worker: Worker, of: Cost) -> float:
        """Return the work before *worker* and the work that this request adds."""
        load = self._loads.get(worker.name, IDLE)
        if of is Cost.PREFILL:
            return load.prefill_tokens + self.uncached(worker)
        policy = self._policy
        decode = (
            load.decode_requests * policy.decode_request_tokens
            + load.context_tokens * policy.context_token_weight
            + load.prefill_tokens  # Prefills interrupt the sequences that decode.
        )
        return decode if of is Cost.DECODE else decode + self.uncached(worker)

    def may_serve_whole(
        self, decoders: list[Worker], prefillers: list[Worker]
    ) -> tuple[list[Worker], str]:
        """Return the workers that may prefill for themselves, and why they may."""
        if self._ask.local:
            return decoders, "fallback"
        if not self._ask.splittable:
            return decoders, "not-splittable"
        if not prefillers:
            return decoders, "no-prefill-worker"
        below = self._policy.local_prefill_below_tokens
        short = [worker for worker in decoders if self.uncached(worker) < below]
        if short:
            return short, "short-prompt"
        return [worker for worker in decoders if worker.role is Role.BOTH], "serves-whole"

    def least(self, workers: list[Worker], of: Cost) -> Pick:
        """Return the cheapest of *workers*, which must not be empty."""
        costs = [self.cost(worker, of) for worker in workers]
        best = min(costs)
        tied = sorted(
            (worker for worker, cost in zip(workers, costs, strict=True) if cost == best),
            key=lambda worker: worker.name,
        )
        worker = tied[0] if len(tied) == 1 else self._rng.choice(tied)
        return Pick(worker, best, self._reason(worker, len(workers), of))

    def _reason(self, worker: Worker, among: int, of: Cost) -> str:
        if among == 1:
            return "only-one"
        if of is not Cost.DECODE and self._ask.cached.get(worker.name):
            return "prefix"
        return "least-work"

    def shown(self, stage: Stage, workers: list[Worker]) -> Iterator[Candidate]:
        """Yield what is worth remembering of the cheapest *workers*."""
        of = Cost.PREFILL if stage is Stage.PREFILL else Cost.DECODE
        costs = ((self.cost(worker, of), index) for index, worker in enumerate(workers))
        for cost, index in nsmallest(SHOWN_CANDIDATES, costs):
            worker = workers[index]
            uncached, cached = self.uncached(worker), self._ask.cached.get(worker.name, 0)
            yield Candidate(worker.name, stage, cost, uncached, cached)


# Pick


@dataclass(frozen=True, slots=True)
class _Option:
    mode: Mode
    why: str
    decode: Pick
    prefill: Pick | None
    cost: float


def _cheapest(table: _Table, decoders: list[Worker], prefillers: list[Worker]) -> _Option:
    """Return the cheaper of serving whole and splitting; whole where they cost the same."""
    whole = _whole(table, decoders, prefillers)
    if not prefillers or (whole is not None and whole.why == "short-prompt"):
        assert whole is not None
        return whole
    prefill = table.least(prefillers, Cost.PREFILL)
    decode = table.least(decoders, Cost.DECODE)
    cost = prefill.cost + decode.cost
    if whole is not None and whole.cost <= cost:
        return whole
    return _Option(Mode.DISAGGREGATED, "split", decode, prefill, cost)


def _whole(table: _Table, decoders: list[Worker], prefillers: list[Worker]) -> _Option | None:
    """Return who would best serve the whole request, if somebody may."""
    able, why = table.may_serve_whole(decoders, prefillers)
    if not able:
        return None
    best = table.least(able, Cost.WHOLE)
    both = best.worker.role is Role.BOTH
    mode = Mode.AGGREGATED if both else Mode.LOCAL_PREFILL
    return _Option(
        mode, "serves-whole" if both and why != "short-prompt" else why, best, None, best.cost
    )
