"""Who serves this request: filter → score → pick, over a frozen view.

The decision is a function of its arguments; the same view, ask and random state give the same
choice. Prefill and decode are chosen together, as the pair of the lowest sum. All scores are in one
unit, that of `Policy.costs`: the work a worker has before it and the work this request would add.

Invariant: a choice never names a worker that is not ready, is draining, serves another model or
has another role than the stage needs, and never two workers of different revisions.

What stands here looks at every pair of workers and is the specification; `spinney.router.fleet`
makes the same choice of many workers in less time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from heapq import nsmallest
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from spinney.perfmodel.step_model import Distance
from spinney.router.costs import Costs, TokenCosts
from spinney.router.workers import Role, Stage, Worker, may_pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
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
class Roster:
    """The workers that can serve one model now."""

    decoders: list[Worker]
    prefillers: list[Worker]
    rejected: Counter[str]
    """How many were taken out, by why."""


@dataclass(frozen=True, slots=True)
class View:
    """All that a choice is made from."""

    workers: tuple[Worker, ...]
    loads: Mapping[str, Load] = field(default_factory=dict)
    avoided: frozenset[str] = frozenset()
    """Workers that failed a short while ago."""
    rosters: MutableMapping[str, Roster] = field(default_factory=dict, compare=False, repr=False)
    """By model, what follows from *workers* alone: found once, for all views of the same ones."""

    def roster(self, model: str) -> Roster:
        """Return who can serve *model*."""
        found = self.rosters.get(model)
        if found is None:
            found = _roster(model, self.workers)
            if found.decoders or found.prefillers:  # Clients may make up any number of names.
                self.rosters[model] = found
        return found


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
    prefix_weight: float = 1.0
    """How much a cached token is believed in, from 0 to 1."""
    costs: Costs = field(default_factory=TokenCosts)


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
    terms: Mapping[str, float]
    """What the cost is the sum of; ``transfer`` is known of a pair only, and stands at the pick."""


LAST_RESORT = "last-resort"


@dataclass(frozen=True, slots=True)
class Pick:
    """One worker for one stage, and why it and no other."""

    worker: Worker
    cost: float
    reason: str
    """``only-one``, ``prefix``, ``least-work``, ``near`` or ``last-resort``."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What the cost is the sum of."""

    def as_last_resort(self) -> Pick:
        """Return it as picked for want of a better one."""
        return replace(self, reason=LAST_RESORT)


@dataclass(frozen=True, slots=True)
class Choice:
    """Who serves a request."""

    mode: Mode
    decode: Pick
    prefill: Pick | None
    why_mode: str
    candidates: Sequence[Candidate] = ()
    """The cheapest `SHOWN_CANDIDATES` of each stage."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """How many workers each filter took out."""
    unit: str = "tokens"
    first_token: float = 0.0
    """What it costs until the first token, in that unit: queue, prefill and transfer."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """No worker can serve the request now."""

    rejected: Mapping[str, int]


SHOWN_CANDIDATES = 8
NO_PREFILL_WORKER = "no-prefill-worker"
REVISIONS_DIFFER = "revisions-differ"
"""Why a decode worker prefills: no prefill worker is of a revision that a decode worker is of."""


def pick(ask: Ask, view: View, policy: Policy, rng: Random) -> Choice | Nobody:
    """Return who serves *ask*; *rng* is asked only to break ties."""
    roster = view.roster(ask.model)
    rejected = Counter(roster.rejected)
    decoders, last_resort = _decoders(roster.decoders, ask, view, rejected)
    if not decoders:
        return Nobody(dict(rejected))
    prefillers, needed = _prefillers(splitting(ask, roster.prefillers), ask, view, rejected)
    if needed and any(not worker.only_paired for worker in decoders):
        prefillers = []  # There is a better resort: somebody who needs none.
    table = _Table(ask, view, policy, rng)
    option = _cheapest(table, decoders, prefillers)
    if option is None:
        return Nobody(dict(rejected + Counter({NO_PREFILL_WORKER: len(decoders)})))
    decode = option.decode.as_last_resort() if last_resort else option.decode
    shown = (*table.shown(Stage.PREFILL, prefillers), *table.shown(Stage.DECODE, decoders))
    return Choice(
        option.mode,
        decode,
        option.prefill.as_last_resort() if option.prefill and needed else option.prefill,
        option.why,
        shown,
        dict(rejected),
        policy.costs.unit,
        option.first_token,
    )


def pick_prefill(
    ask: Ask, view: View, policy: Policy, rng: Random, decode: Worker | None = None
) -> Pick | None:
    """Return another prefill worker for *ask*, or None when there is none left.

    It may pair with *decode*, where that is chosen already.
    """
    found = view.roster(ask.model).prefillers
    able = [worker for worker in found if decode is None or may_pair(worker, decode)]
    prefillers, _ = _prefillers(able, ask, view, Counter())
    if not prefillers:
        return None
    table = _Table(ask, view, policy, rng)
    costs = [table.prefill(worker).total for worker in prefillers]
    at = table.least(prefillers, costs)
    return table.pick(prefillers[at], table.prefill(prefillers[at]), len(prefillers))


# Filter


def _roster(model: str, workers: Iterable[Worker]) -> Roster:
    roster = Roster([], [], Counter())
    for worker in workers:
        if model not in worker.models:
            roster.rejected["model"] += 1
        elif worker.draining:
            roster.rejected["draining"] += 1
        elif not worker.ready:
            roster.rejected["not-ready"] += 1
        elif worker.decodes:
            roster.decoders.append(worker)
        else:
            roster.prefillers.append(worker)
    return roster


def _decoders(
    found: list[Worker], ask: Ask, view: View, rejected: Counter[str]
) -> tuple[list[Worker], bool]:
    """Return who can decode; those that failed lately or before only when there is nobody else."""
    out = ask.tried_decode | view.avoided
    fresh = [worker for worker in found if worker.name not in out] if out else found
    if fresh:
        if len(fresh) < len(found):
            rejected["failed-lately"] += len(found) - len(fresh)
        return fresh, False
    untried = [worker for worker in found if worker.name not in ask.tried_decode]
    return untried or found, bool(found)


def splitting(ask: Ask, prefillers: list[Worker]) -> list[Worker]:
    """Return the prefill workers that *ask* may go through: all, or those nobody can do without."""
    if ask.splittable and not ask.local:
        return prefillers
    return [worker for worker in prefillers if worker.only_paired]


def _prefillers(
    found: list[Worker], ask: Ask, view: View, rejected: Counter[str]
) -> tuple[list[Worker], bool]:
    """Return who can prefill, and whether they failed lately.

    Those come only where there is nobody else, and where they cannot be done without.
    """
    out = ask.tried_prefill | view.avoided
    kept = [worker for worker in found if worker.name not in out] if out else found
    if not kept and (needed := [worker for worker in found if worker.only_paired]):
        untried = [worker for worker in needed if worker.name not in ask.tried_prefill]
        return untried or needed, True
    if len(kept) < len(found):
        rejected["prefill-failed-lately"] += len(found) - len(kept)
    return kept, False


# Score


class Terms(NamedTuple):
    """What a worker costs a request, by where it comes from."""

    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    stall: float = 0.0
    transfer: float = 0.0

    @property
    def total(self) -> float:
        """What it costs in all."""
        return self.queue + self.prefill + self.decode + self.stall + self.transfer

    def named(self) -> dict[str, float]:
        """Return what it consists of."""
        return {name: round(cost, 3) for name, cost in self._asdict().items() if cost}


class _Table:
    """The costs of workers for one request; lower is better."""

    __slots__ = ("_ask", "_cached", "_costs", "_loads", "_policy", "_rng")

    def __init__(self, ask: Ask, view: View, policy: Policy, rng: Random) -> None:
        self._ask = ask
        self._loads = view.loads
        self._policy = policy
        self._costs = policy.costs
        self._rng = rng
        weight, most = policy.prefix_weight, ask.prompt_tokens
        self._cached = {
            name: min(most, round(weight * count)) for name, count in ask.cached.items() if count
        }

    def uncached(self, worker: Worker) -> int:
        """Return the prompt tokens that *worker* would have to compute."""
        return self._ask.prompt_tokens - self._cached.get(worker.name, 0)

    def prefill(self, worker: Worker) -> Terms:
        """Return what it costs to have *worker* compute the prompt for another."""
        queued = self._loads.get(worker.name, IDLE).prefill_tokens
        cached = self._cached.get(worker.name, 0)
        costs = self._costs
        return Terms(costs.queued(queued), costs.prefill(self._ask.prompt_tokens, cached))

    def decode(self, worker: Worker) -> Terms:
        """Return what it costs to have *worker* decode, once it has the prompt."""
        load = self._loads.get(worker.name, IDLE)
        costs = self._costs
        # Prefills that wait there interrupt the sequences that decode.
        return Terms(
            queue=costs.queued(load.prefill_tokens),
            decode=costs.decode(load.decode_requests, load.context_tokens, self._ask.prompt_tokens),
        )

    def whole(self, worker: Worker) -> Terms:
        """Return what it costs to have *worker* do both."""
        load = self._loads.get(worker.name, IDLE)
        prefill = self._costs.prefill(self._ask.prompt_tokens, self._cached.get(worker.name, 0))
        stall = self._costs.stall(load.decode_requests, prefill)
        return self.decode(worker)._replace(prefill=prefill, stall=stall)

    def transfer(self, worker: Worker, distance: Distance | None) -> float:
        """Return what it costs to move to *worker* what it has not cached."""
        return self._costs.transfer(self.uncached(worker), distance)

    def pair(self, before: Worker, after: Worker) -> float:
        """Return what it costs *after* to decode what *before* has computed."""
        if not may_pair(before, after):
            return inf
        return self.decode(after).total + self.transfer(after, distance(before, after))

    def may_serve_whole(
        self, decoders: list[Worker], prefillers: list[Worker]
    ) -> tuple[list[Worker], str]:
        """Return the workers that may prefill for themselves, and why they may."""
        decoders = [worker for worker in decoders if not worker.only_paired]
        if self._ask.local:
            return decoders, "fallback"
        if not self._ask.splittable:
            return decoders, "not-splittable"
        if not prefillers:
            return decoders, NO_PREFILL_WORKER
        below = self._policy.local_prefill_below_tokens
        if below:
            short = [worker for worker in decoders if self.uncached(worker) < below]
            if short:
                return short, "short-prompt"
        if self._costs.weighs_modes:
            return decoders, "cheaper-whole"
        return [worker for worker in decoders if worker.role is Role.BOTH], "serves-whole"

    def least(self, workers: list[Worker], costs: list[float]) -> int:
        """Return where the cheapest of *workers* is; chance decides between equals."""
        best = min(costs)
        if costs.count(best) == 1:
            return costs.index(best)
        tied = [at for at, cost in enumerate(costs) if cost == best]
        return self._rng.choice(sorted(tied, key=lambda at: workers[at].name))

    def pick(self, worker: Worker, terms: Terms, among: int, *, near: bool = False) -> Pick:
        """Return *worker* as picked, and why."""
        return picked(self._ask, worker, terms, among, near=near)

    def shown(self, stage: Stage, workers: list[Worker]) -> Iterator[Candidate]:
        """Yield what is worth remembering of the cheapest *workers*."""
        terms_of = self.prefill if stage is Stage.PREFILL else self.decode
        costs = ((terms_of(worker).total, index) for index, worker in enumerate(workers))
        for cost, index in nsmallest(SHOWN_CANDIDATES, costs):
            worker = workers[index]
            uncached, cached = self.uncached(worker), self._ask.cached.get(worker.name, 0)
            named = terms_of(worker).named()
            yield Candidate(worker.name, stage, cost, uncached, cached, named)


# Pick


def picked(ask: Ask, worker: Worker, terms: Terms, among: int, *, near: bool = False) -> Pick:
    """Return *worker* as picked of *among* workers, and why."""
    if among == 1:
        reason = "only-one"
    elif terms.prefill and ask.cached.get(worker.name):
        reason = "prefix"
    else:
        reason = "near" if near else "least-work"
    return Pick(worker, terms.total, reason, terms.named())


@dataclass(frozen=True, slots=True)
class Option:
    """A way to serve a request, and what it costs."""

    mode: Mode
    why: str
    decode: Pick
    prefill: Pick | None
    cost: float
    first_token: float


def _cheapest(table: _Table, decoders: list[Worker], prefillers: list[Worker]) -> Option | None:
    """Return the cheaper of serving whole and splitting; whole where they cost the same.

    None where every decode worker needs a prefill worker, and none pairs.
    """
    whole = _whole(table, decoders, prefillers)
    if not prefillers or (whole is not None and whole.why == "short-prompt"):
        return whole
    split = _split(table, decoders, prefillers)
    if split is None:
        alone = [worker for worker in decoders if not worker.only_paired]
        return whole or (_whole_among(table, alone, REVISIONS_DIFFER) if alone else None)
    return whole if whole is not None and whole.cost <= split.cost else split


def _whole(table: _Table, decoders: list[Worker], prefillers: list[Worker]) -> Option | None:
    """Return who would best serve the whole request, if somebody may."""
    able, why = table.may_serve_whole(decoders, prefillers)
    return _whole_among(table, able, why) if able else None


def _whole_among(table: _Table, able: list[Worker], why: str) -> Option:
    at = table.least(able, [table.whole(worker).total for worker in able])
    worker, terms = able[at], table.whole(able[at])
    return whole_option(table.pick(worker, terms, len(able)), terms, why)


def whole_option(picked: Pick, terms: Terms, why: str) -> Option:
    """Return the way on which the decode worker prefills."""
    both = picked.worker.role is Role.BOTH
    return Option(
        Mode.AGGREGATED if both else Mode.LOCAL_PREFILL,
        "serves-whole" if both and why != "short-prompt" else why,
        picked,
        None,
        terms.total,
        terms.queue + terms.prefill,
    )


def _split(table: _Table, decoders: list[Worker], prefillers: list[Worker]) -> Option | None:
    """Return the pair of the lowest sum, transfer included; None where no two may pair."""
    costs = [[table.pair(before, after) for after in decoders] for before in prefillers]
    sums = [table.prefill(worker).total + min(costs[at]) for at, worker in enumerate(prefillers)]
    if min(sums) == inf:
        return None
    first = table.least(prefillers, sums)
    prefill, decode = prefillers[first], decoders[table.least(decoders, costs[first])]
    far = distance(prefill, decode)
    before = table.prefill(prefill)
    after = table.decode(decode)._replace(transfer=table.transfer(decode, far))
    return split_option(
        table.pick(decode, after, len(decoders), near=far not in (None, Distance.FAR)),
        table.pick(prefill, before, len(prefillers)),
        before,
        after,
    )


def split_option(decode: Pick, prefill: Pick, before: Terms, after: Terms) -> Option:
    """Return the way that goes through two workers."""
    return Option(
        Mode.DISAGGREGATED,
        "split",
        decode,
        prefill,
        before.total + after.total,
        before.total + after.transfer + after.queue,
    )


def distance(one: Worker, other: Worker) -> Distance | None:
    """Return the smallest domain that two workers share; None where a place is not known."""
    if not one.places or not other.places:
        return None
    for far, (here, there) in enumerate(zip(one.places, other.places, strict=True)):
        if here and here == there:
            return Distance(far)
    return Distance.FAR
