"""The choice among many workers, as arrays: what `spinney.router.picker` says, in less time.

A choice has to look at every worker, since every one of them is better or worse than before by what
the others were given. Here that look is a few operations on arrays that follow the loads as they
change; only the workers that are shown or chosen are looked at one by one. Invariant: for the same
workers, loads, question and random state the choice is the one of `picker.pick`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, overload

import numpy as np

from spinney.perfmodel.step_model import Distance
from spinney.router.picker import (
    NO_PREFILL_WORKER,
    REVISIONS_DIFFER,
    SHOWN_CANDIDATES,
    Ask,
    Candidate,
    Choice,
    Nobody,
    Option,
    Terms,
    distance,
    picked,
    split_option,
    whole_option,
)
from spinney.router.workers import Role, Stage, Worker, may_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from random import Random

    from numpy.typing import NDArray

    from spinney.router.picker import Load, Policy, Roster

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

LEVELS = 3
"""Host, rack and zone."""
MARKED = 1 << 17
"""Numbers below this one are told apart by marking them, larger ones by sorting them."""


class Fleet:
    """The workers of one model: those that prefill first, then those that decode."""

    def __init__(self, roster: Roster, loads: Mapping[str, Load], policy: Policy) -> None:
        self.roster = roster
        self.policy = policy
        self.split = len(roster.prefillers)
        self.workers = [*roster.prefillers, *roster.decoders]
        self.at = {worker.name: at for at, worker in enumerate(self.workers)}
        size = len(self.workers)
        self.queued = np.full(size, float(policy.costs.queued(0)))
        self.sequences = np.zeros(size, np.int64)
        self.context = np.zeros(size, np.int64)
        for name, load in loads.items():
            self.note(name, load)
        self.name_order = np.argsort(np.argsort([worker.name for worker in self.workers]))
        self.serves_whole = np.array([w.role is Role.BOTH for w in roster.decoders], bool)
        self.paired = np.array([worker.only_paired for worker in self.workers], bool)
        self.alone = None if not self.paired[self.split :].any() else ~self.paired[self.split :]
        """Which decode workers need no prefill worker; None where all do without."""
        self.places = _Places(self.workers, self.split)
        self.pairs = _Revisions(roster.prefillers, roster.decoders)
        self._named: tuple[list[str], Ints] = ([], np.zeros(0, np.int64))

    def where(self, names: list[str]) -> Ints:
        """Return the numbers of the workers of these *names*, -1 for others.

        A beginning that many prompts share is found with the same workers in the same order each
        time: comparing names that are the same objects takes less time than looking them up.
        """
        if names != self._named[0]:
            where = np.fromiter(map(self.at.get, names, repeat(-1)), np.int64, len(names))
            self._named = (names, where)
        return self._named[1]

    def note(self, name: str, load: Load) -> None:
        """Take in what a worker has to do now."""
        at = self.at.get(name)
        if at is not None:
            self.queued[at] = self.policy.costs.queued(load.prefill_tokens)
            self.sequences[at] = load.decode_requests
            self.context[at] = load.context_tokens

    def pick(self, ask: Ask, avoided: frozenset[str], rng: Random) -> Choice | Nobody:
        """Return who serves *ask*; see `spinney.router.picker.pick`."""
        return _Look(self, ask, avoided, rng).choice()


class _Places:
    """Where workers are, as numbers: for each level the domain of each worker, or -1."""

    def __init__(self, workers: Sequence[Worker], split: int) -> None:
        placed = np.array([bool(worker.places) for worker in workers], bool)
        self.prefillers_placed, self.decoders_placed = placed[:split], placed[split:]
        self.any = bool(placed[:split].any() and placed[split:].any())
        self.prefillers: list[Ints] = []
        self.decoders: list[Ints] = []
        self._groups: list[tuple[Ints, Ints, int]] = []
        for level in range(LEVELS) if self.any else ():
            numbers: dict[str, int] = {}
            codes = [
                numbers.setdefault(worker.places[level], len(numbers))
                if worker.places and worker.places[level]
                else -1
                for worker in workers
            ]
            self.prefillers.append(np.array(codes[:split], np.int64))
            self.decoders.append(np.array(codes[split:], np.int64))
            self._groups.append(self._grouped(self.decoders[-1], len(numbers)))

    @staticmethod
    def _grouped(codes: Ints, count: int) -> tuple[Ints, Ints, int]:
        order = np.argsort(codes, kind="stable")
        order = order[np.searchsorted(codes[order], 0) :]
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        return order, starts, count

    def nearest(self, level: int, costs: Floats) -> Floats:
        """Return for each prefill worker the least of *costs* in its domain of *level*."""
        order, starts, count = self._groups[level]
        least = np.full(count + 1, np.inf)  # The last is for those whose domain is not known.
        if len(order):
            sorted_costs = costs[order]
            least[self.decoders[level][order[starts]]] = np.minimum.reduceat(sorted_costs, starts)
        return least[self.prefillers[level]]

    def distances(self, prefill: int) -> Ints:
        """Return how far each decode worker is from prefill worker number *prefill*."""
        far = np.full(len(self.decoders_placed), int(Distance.FAR))
        for level in reversed(range(LEVELS)):
            code = self.prefillers[level][prefill]
            if code >= 0:
                far[self.decoders[level] == code] = level
        return far


class _Revisions:
    """Which prefill workers may pair with which decode workers."""

    def __init__(self, prefillers: Sequence[Worker], decoders: Sequence[Worker]) -> None:
        self.kinds: list[tuple[Bools, Bools]] = []
        """The prefill workers of one kind of revision, and the decode workers for them."""
        stated = {worker.pairing: worker for worker in prefillers}
        self.all_pair = all(may_pair(one, d) for one in stated.values() for d in decoders)
        for pairing, one in stated.items() if not self.all_pair else ():
            of_kind = np.array([worker.pairing == pairing for worker in prefillers], bool)
            fitting = np.array([may_pair(one, worker) for worker in decoders], bool)
            self.kinds.append((of_kind, fitting))

    def fitting(self, prefill: int) -> Bools | None:
        """Return the decode workers for one prefill worker; None where all are."""
        return next((fit for of_kind, fit in self.kinds if of_kind[prefill]), None)


class _Look:
    """One request seen against all workers."""

    def __init__(self, fleet: Fleet, ask: Ask, avoided: frozenset[str], rng: Random) -> None:
        self.fleet, self.ask, self.rng = fleet, ask, rng
        self.costs = fleet.policy.costs
        self.rejected = Counter(fleet.roster.rejected)
        self.prefillers_in: Bools | None = None
        self.decoders_in: Bools | None = None
        self.prefillers = self.decoders = 0
        self.last_resort = self.needed = False
        self._filter(avoided)
        self.whole_in = self._in(fleet.alone) if fleet.alone is not None else None
        """Which of the decode workers that are left may prefill for themselves; None if all."""
        if self.decoders:
            self._filter_prefillers(avoided)
        self.hits, self.cached = self._beginnings()
        self.lengths, self.length = _distinct(self.cached)
        """The values in `cached`, and which of them each is: a cost is asked once for each."""
        self.prefill_costs = self._by_beginning(
            float(self.costs.prefill(ask.prompt_tokens, 0)),
            lambda lengths: self.costs.prefill_all(ask.prompt_tokens, lengths),
        )
        split = fleet.split
        self.queue = fleet.queued[split:]
        self.decode = np.asarray(
            self.costs.decode_all(fleet.sequences[split:], fleet.context[split:], ask.prompt_tokens)
        )
        self.decoding = self.queue + self.decode
        _leave_out(self.decoding, self.decoders_in)

    # Filter

    def _filter(self, avoided: frozenset[str]) -> None:
        fleet, ask = self.fleet, self.ask
        split, size = fleet.split, len(fleet.workers)
        self.decoders = size - split
        out = ask.tried_decode | avoided
        left, count = self._without(out, split, size)
        if count == 0 and self.decoders:
            self.last_resort = True
            left, count = self._without(ask.tried_decode, split, size)
            if not count:
                left, count = None, self.decoders
        elif count < self.decoders:
            self.rejected["failed-lately"] += self.decoders - count
        self.decoders, self.decoders_in = count, left

    def _filter_prefillers(self, avoided: frozenset[str]) -> None:
        """See `picker.splitting` and what follows it."""
        fleet, ask = self.fleet, self.ask
        needed = fleet.paired[: fleet.split]
        among = None if ask.splittable and not ask.local else needed
        total = fleet.split if among is None else int(np.count_nonzero(among))
        left, count = self._among(among, ask.tried_prefill | avoided)
        if not count and needed.any():
            if self.whole_in is None or self.whole_in.any():
                return
            self.needed = True
            left, count = self._among(needed, ask.tried_prefill)
            if not count:
                left, count = needed, int(np.count_nonzero(needed))
        elif count < total:
            self.rejected["prefill-failed-lately"] += total - count
        self.prefillers_in, self.prefillers = left, count

    def _among(self, some: Bools | None, out: Iterable[str]) -> tuple[Bools | None, int]:
        """Return which of *some* prefill workers are left without *out*, and their number."""
        left, count = self._without(out, 0, self.fleet.split)
        if some is None:
            return left, count
        both = some if left is None else some & left
        return both, int(np.count_nonzero(both))

    def _without(self, out: Iterable[str], begin: int, end: int) -> tuple[Bools | None, int]:
        """Return which workers from *begin* to *end* are left, None for all; and their number."""
        at = self.fleet.at
        places = {where for name in out if begin <= (where := at.get(name, -1)) < end}
        if not places:
            return None, end - begin
        left = np.ones(end - begin, bool)
        left[[where - begin for where in places]] = False
        return left, end - begin - len(places)

    # Score

    def _beginnings(self) -> tuple[Ints, Ints]:
        """Return who has a part of the prompt, and how many tokens of it as far as believed."""
        found = self.ask.cached
        where = self.fleet.where(list(found))
        counts = np.fromiter(found.values(), np.int64, len(found))
        weight = self.fleet.policy.prefix_weight
        if weight != 1.0:
            counts = np.rint(weight * counts).astype(np.int64)
        counts = np.minimum(counts, self.ask.prompt_tokens)
        known = (where >= 0) & (counts > 0)
        return (where, counts) if known.all() else (where[known], counts[known])

    def _by_beginning(self, without: float, costs: Callable[[Ints], Floats]) -> Floats:
        """Return for each worker what *costs* says of its part of the prompt, or *without* one."""
        found = np.full(len(self.fleet.workers), without)
        if len(self.hits):
            found[self.hits] = costs(self.lengths)[self.length]
        return found

    def _prefilling(self) -> Floats:
        """Return what it costs each prefill worker to compute the prompt for another."""
        split = self.fleet.split
        costs = self.fleet.queued[:split] + self.prefill_costs[:split]
        return _leave_out(costs, self.prefillers_in)

    def _wholes(self) -> Floats:
        """Return what it costs each decode worker to do both."""
        prefill = self.prefill_costs[self.fleet.split :]
        sequences = self.fleet.sequences[self.fleet.split :]
        stall = self.costs.stall_all(sequences, prefill)
        return _leave_out(self.queue + prefill + self.decode + stall, self.decoders_in)

    def _moving(self, far: Distance | None) -> Floats:
        """Return what it costs to move the KV of the prompt to each decode worker, over *far*."""
        return self._by_beginning(
            float(self.costs.transfer(self.ask.prompt_tokens, far)),
            lambda lengths: self.costs.transfer_all(self.ask.prompt_tokens - lengths, far),
        )[self.fleet.split :]

    def _uncached(self) -> Ints:
        """Return the prompt tokens that each decode worker would have to compute."""
        tokens = np.full(len(self.queue), self.ask.prompt_tokens, np.int64)
        hits = self.hits >= self.fleet.split
        tokens[self.hits[hits] - self.fleet.split] -= self.cached[hits]
        return tokens

    # Pick

    def choice(self) -> Choice | Nobody:
        if not self.decoders:
            return Nobody(dict(self.rejected))
        costs = self._prefilling() if self.prefillers else None
        option = self._cheapest(costs)
        if option is None:
            return Nobody(dict(self.rejected + Counter({NO_PREFILL_WORKER: self.decoders})))
        decode, prefill = option.decode, option.prefill
        if prefill is not None and self.needed:
            prefill = prefill.as_last_resort()
        if self.last_resort:
            decode = decode.as_last_resort()
        shown = [self._shown(Stage.DECODE, self.decoding)]
        if costs is not None:
            shown.insert(0, self._shown(Stage.PREFILL, costs))
        return Choice(
            option.mode,
            decode,
            prefill,
            option.why,
            Considered(tuple(shown)),
            dict(self.rejected),
            self.costs.unit,
            option.first_token,
        )

    def _cheapest(self, prefilling: Floats | None) -> Option | None:
        able, why = self._may_serve_whole()
        whole = self._whole(able, why) if able is None or able.any() else None
        if prefilling is None or (whole is not None and whole.why == "short-prompt"):
            return whole
        split = self._split(prefilling)
        if split is None:
            anybody = self.whole_in is None or self.whole_in.any()
            return whole or (self._whole(self.whole_in, REVISIONS_DIFFER) if anybody else None)
        return whole if whole is not None and whole.cost <= split.cost else split

    def _may_serve_whole(self) -> tuple[Bools | None, str]:
        """Return which decode workers may prefill for themselves, None for all; and why."""
        if self.ask.local:
            return self.whole_in, "fallback"
        if not self.ask.splittable:
            return self.whole_in, "not-splittable"
        if not self.prefillers:
            return self.whole_in, NO_PREFILL_WORKER
        below = self.fleet.policy.local_prefill_below_tokens
        if below:
            short = self._alone(self._uncached() < below)
            if short.any():
                return short, "short-prompt"
        if self.costs.weighs_modes:
            return self.whole_in, "cheaper-whole"
        return self._alone(self.fleet.serves_whole), "serves-whole"

    def _alone(self, some: Bools) -> Bools:
        return self._in(some if self.fleet.alone is None else some & self.fleet.alone)

    def _in(self, some: Bools) -> Bools:
        return some if self.decoders_in is None else some & self.decoders_in

    def _whole(self, able: Bools | None, why: str) -> Option:
        costs = self._wholes()
        among = self.decoders if able is None else int(np.count_nonzero(able))
        at = self._least(_leave_out(costs, able), self.fleet.split)
        terms = Terms(
            queue=float(self.queue[at]),
            prefill=float(self.prefill_costs[self.fleet.split + at]),
            decode=float(self.decode[at]),
            stall=float(
                self.costs.stall_all(
                    self.fleet.sequences[self.fleet.split + at : self.fleet.split + at + 1],
                    self.prefill_costs[self.fleet.split + at : self.fleet.split + at + 1],
                )[0]
            ),
        )
        worker = self.fleet.roster.decoders[at]
        return whole_option(picked(self.ask, worker, terms, among), terms, why)

    def _split(self, prefilling: Floats) -> Option | None:
        moving: dict[Distance | None, Floats] = {}
        sums = prefilling + self._reach(moving)
        prefill = self._least(sums, 0)
        if sums[prefill] == np.inf:
            return None
        costs, moved = self._from(prefill, moving)
        decode = self._least(costs, self.fleet.split)
        one, other = self.fleet.roster.prefillers[prefill], self.fleet.roster.decoders[decode]
        before = Terms(
            queue=float(self.fleet.queued[prefill]), prefill=float(self.prefill_costs[prefill])
        )
        after = Terms(
            queue=float(self.queue[decode]),
            decode=float(self.decode[decode]),
            transfer=float(moved[decode]),
        )
        near = distance(one, other) not in (None, Distance.FAR)
        return split_option(
            picked(self.ask, other, after, self.decoders, near=near),
            picked(self.ask, one, before, self.prefillers),
            before,
            after,
        )

    def _reach(self, moving: dict[Distance | None, Floats]) -> Floats:
        """Return what the best decode worker costs for what each prefill worker computes."""
        revisions = self.fleet.pairs
        if revisions.all_pair:
            return self._reach_among(self.decoding, moving)
        least = np.full(self.fleet.split, np.inf)
        for of_kind, fitting in revisions.kinds:
            among = _leave_out(self.decoding.copy(), fitting)
            least[of_kind] = self._reach_among(among, moving)[of_kind]
        return least

    def _reach_among(self, decoding: Floats, moving: dict[Distance | None, Floats]) -> Floats:
        places = self.fleet.places
        anywhere = decoding + self._moved(moving, None)
        least = np.full(self.fleet.split, anywhere.min())
        if not places.any:
            return least
        placed = places.decoders_placed
        far = decoding + self._moved(moving, Distance.FAR)
        nearest = np.full(self.fleet.split, np.where(placed, far, anywhere).min())
        for level in range(LEVELS):
            costs = decoding + self._moved(moving, Distance(level))
            np.minimum(nearest, places.nearest(level, costs), out=nearest)
        return np.where(places.prefillers_placed, nearest, least)

    def _moved(self, moving: dict[Distance | None, Floats], far: Distance | None) -> Floats:
        if far not in moving:
            moving[far] = self._moving(far)
        return moving[far]

    def _from(self, prefill: int, moving: dict[Distance | None, Floats]) -> tuple[Floats, Floats]:
        """Return what each decode worker costs for a prompt of *prefill*, and moving it there."""
        places = self.fleet.places
        moved = self._moved(moving, None)
        if places.any and places.prefillers_placed[prefill]:
            by_level = np.stack([self._moved(moving, far) for far in Distance])
            over = by_level[places.distances(prefill), np.arange(len(moved))]
            moved = np.where(places.decoders_placed, over, moved)
        costs = self.decoding + moved
        return _leave_out(costs, self.fleet.pairs.fitting(prefill)), moved

    def _least(self, costs: Floats, begin: int) -> int:
        """Return where the cheapest is; chance decides between equals, in the order of names."""
        at = int(costs.argmin())
        best = costs[at]
        if best == np.inf:
            return at
        tied = np.flatnonzero(costs == best)
        if len(tied) == 1:
            return at
        by_name = tied[np.argsort(self.fleet.name_order[begin + tied])]
        return int(self.rng.choice(by_name))

    # Why

    def _shown(self, stage: Stage, costs: Floats) -> Shown:
        """Return what is worth remembering of the cheapest workers."""
        prefills = stage is Stage.PREFILL
        begin = 0 if prefills else self.fleet.split
        among = self.prefillers if prefills else self.decoders
        at = _cheapest_few(costs, min(among, SHOWN_CANDIDATES))
        work = self.prefill_costs[at] if prefills else self.decode[at]
        names = tuple(self.fleet.workers[begin + each].name for each in at.tolist())
        cached = tuple(self.ask.cached.get(name, 0) for name in names)
        return Shown(
            stage,
            names,
            (self.fleet.queued[begin + at], work),
            cached,
            self.ask.prompt_tokens,
            self.fleet.policy.prefix_weight,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What becomes the candidates of one stage when somebody asks why."""

    stage: Stage
    names: tuple[str, ...]
    costs: tuple[Floats, Floats]
    """Of waiting, and of the work."""
    cached: tuple[int, ...]
    prompt_tokens: int
    prefix_weight: float

    def candidates(self) -> Iterator[Candidate]:
        """Yield them, the cheapest first."""
        for at, name in enumerate(self.names):
            queue, work = (float(costs[at]) for costs in self.costs)
            terms = (
                Terms(queue=queue, prefill=work)
                if self.stage is Stage.PREFILL
                else Terms(queue=queue, decode=work)
            )
            believed = min(self.prompt_tokens, round(self.prefix_weight * self.cached[at]))
            uncached = self.prompt_tokens - believed
            yield Candidate(name, self.stage, terms.total, uncached, self.cached[at], terms.named())


class Considered(Sequence[Candidate]):
    """The cheapest workers of each stage, put into words when they are asked for."""

    __slots__ = ("_shown",)

    def __init__(self, shown: tuple[Shown, ...]) -> None:
        self._shown = shown

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(len(stage.names) for stage in self._shown)

    @overload
    def __getitem__(self, at: int) -> Candidate: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, at: int | slice) -> Candidate | Sequence[Candidate]:
        """Return one or some of them."""
        return tuple(self)[at]

    def __iter__(self) -> Iterator[Candidate]:
        """Yield all."""
        for stage in self._shown:
            yield from stage.candidates()


class Fleets:
    """The fleets of all models, for as long as the workers stay the same."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._fleets: dict[str, Fleet] = {}
        self._rosters: object = None

    def of(self, model: str, roster: Roster, rosters: object, loads: Mapping[str, Load]) -> Fleet:
        """Return the fleet of *model*; *rosters* is another object when workers have changed."""
        if rosters is not self._rosters:
            self._fleets.clear()
            self._rosters = rosters
        found = self._fleets.get(model)
        if found is None or found.roster is not roster:
            found = self._fleets[model] = Fleet(roster, loads, self._policy)
        return found

    def note(self, name: str, load: Load) -> None:
        """Take in what a worker has to do now."""
        for fleet in self._fleets.values():
            fleet.note(name, load)


def _distinct(numbers: Ints) -> tuple[Ints, Ints]:
    """Return the values in *numbers*, none of them negative, and which of these each is."""
    most = int(numbers.max(initial=-1))
    if most >= MARKED:
        return np.unique(numbers, return_inverse=True)
    marked = np.zeros(most + 1, bool)
    marked[numbers] = True
    values = np.flatnonzero(marked)
    at = np.empty(most + 1, np.int64)
    at[values] = np.arange(len(values))
    return values, at[numbers]


def _leave_out(costs: Floats, left: Bools | None) -> Floats:
    """Make those infinitely costly that are not *left*; return *costs*."""
    if left is not None:
        costs[~left] = np.inf
    return costs


def _cheapest_few(costs: Floats, count: int) -> Ints:
    """Return where the *count* least of *costs* are, in their order."""
    found = np.argpartition(costs, count - 1)[:count] if count < len(costs) else None
    if found is None:
        return np.argsort(costs, kind="stable")
    return found[np.argsort(costs[found], kind="stable")]
