"""The next step of a coherent update: which units of which role may change their revision now.

Prefill of one revision serves only with decode of the same revision. So what a replica can serve
is, per revision, its weakest role's share, and the sum of that over revisions. No step takes
that below the floor; where a failure has, no step takes it lower still. Steps wait for what
earlier ones started, so a revision whose pods never get ready stops at its budget.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from spinney.controllers.update.plan import Plan

MAX_REVISIONS = 6
"""Revisions at a time for which capacity is told exactly; with more it is told too low."""
_EXACT_SHARED = 2


@dataclass(frozen=True, slots=True)
class Role:
    """One role of a replica: its units by index, as planned, and which of them serve as planned."""

    name: str
    wanted: int
    minimum: int
    """``minAvailable``: with fewer ready units no ready one is taken away."""
    target: str
    """The hash that all units are to be of."""
    plan: Plan
    ready: tuple[bool, ...]
    """As long as *plan*; false also while the unit is still of another revision."""
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each hash the set's revisions it is part of; one that is not named is one of its own."""
    paired: bool = True
    """Whether it works only with other roles of its revision; a router works with all."""
    leaving: bool = False
    """Whether there are still units beyond the plan."""

    @property
    def settled(self) -> bool:
        """Whether it is as wanted, and serves."""
        return self.plan == (self.target,) * self.wanted and all(self.ready)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the user allows an update to cost."""

    floor: Fraction = Fraction(3, 4)
    max_unavailable: int | str = "25%"
    max_surge: int | str = 1

    def surge(self, role: Role) -> int:
        """Return how many units the role may have on top of those wanted."""
        return _amount(self.max_surge, role.wanted, math.ceil)

    def unavailable(self, role: Role) -> int:
        """Return how many of the wanted units may be missing; one where nothing else is allowed."""
        found = _amount(self.max_unavailable, role.wanted, math.floor)
        return found if found or self.surge(role) else 1


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next."""

    plans: Mapping[str, Plan]
    """The plan of each role from now on."""
    capacity: Fraction
    """What serves when the step has been taken, before anything new is ready; wanted is 1."""
    done: bool
    blocked: str = ""
    """Why no step can ever be taken with this budget; empty if one can, or is under way."""


def capacity(roles: Sequence[Role]) -> Fraction:
    """Return the share of the wanted end-to-end capacity that serves.

    Above 1 where units on top of the wanted serve. 1 where no role is wanted. Exact while at most
    two roles have templates that several revisions share; else it may be told too low.
    """
    return _capacity(roles, _paired_capacity)


def _capacity(
    roles: Sequence[Role], paired_capacity: Callable[[Sequence[Role]], Fraction]
) -> Fraction:
    counted = [role for role in roles if role.wanted]
    if not counted:
        return Fraction(1)
    found = [_share(role, sum(role.ready)) for role in counted if not role.paired]
    if paired := [role for role in counted if role.paired]:
        found.append(paired_capacity(paired))
    return min(found)


def step(roles: Sequence[Role], budget: Budget, *, paused: bool = False) -> Step:
    """Return the furthest step that *budget* allows from here.

    With *paused* no unit changes its revision; the plans only follow the wanted counts.
    """
    work = [_fitted(role) for role in roles]
    if not paused:
        work = [_surged(role, budget) for role in work]
    moved = True
    while moved:
        moved = False
        for candidate in _candidates(work, budget, paused=paused):
            changed = _replaced(work, candidate)
            if _allowed(work, changed, candidate, budget):
                work, moved = changed, True
                break
    same = all(new.plan == old.plan for new, old in zip(work, roles, strict=True))
    done = same and all(role.settled and not role.leaving for role in work)
    waiting = any(not all(role.ready) for role in work)
    if same and _is_overtaken(work) and not (done or paused or waiting):
        work = _regathered(work, budget)
        same = all(new.plan == old.plan for new, old in zip(work, roles, strict=True))
    blocked = "" if done or paused or waiting or not same else _why_blocked(work, budget)
    return Step({role.name: role.plan for role in work}, capacity(work), done, blocked)


def _amount(value: int | str, whole: int, rounded: object) -> int:
    if isinstance(value, int):
        return max(0, value)
    percent = value.rstrip("%")
    # Admission refuses what is no number; where it did not run, it allows nothing.
    exact = Fraction(int(percent) * whole, 100) if percent.isdecimal() else Fraction(0)
    return math.ceil(exact) if rounded is math.ceil else math.floor(exact)


def _share(role: Role, units: int) -> Fraction:
    return Fraction(units, role.wanted)


_Served = dict[frozenset[str], Fraction]
"""Of a role: the share of ready units that are of exactly these revisions of the set."""


def _served(role: Role) -> _Served:
    found: _Served = {}
    for pod_hash, ready in zip(role.plan, role.ready, strict=True):
        if ready:
            own = frozenset(role.sets.get(pod_hash) or (f"={pod_hash}",))
            found[own] = found.get(own, Fraction(0)) + Fraction(1, role.wanted)
    return found


def _complete(served: Sequence[_Served]) -> tuple[list[str], list[_Served]]:
    """Return the revisions that every role has units of, and the shares told by these alone."""
    each = [frozenset[str]().union(*one) for one in served]
    common = frozenset.intersection(*each)
    told: list[_Served] = []
    for one in served:
        kept: _Served = {}
        for own, share in one.items():
            if left := own & common:
                kept[left] = kept.get(left, Fraction(0)) + share
        told.append(kept)
    return sorted(common), told


def _paired_capacity(roles: Sequence[Role]) -> Fraction:
    revisions, served = _complete([_served(role) for role in roles])
    shared = [one for one in served if any(len(own) > 1 for own in one)]
    if len(shared) <= _EXACT_SHARED and len(revisions) <= MAX_REVISIONS:
        return _most(revisions, served)
    return _at_least(revisions, served)


def _paired_bound(roles: Sequence[Role]) -> Fraction:
    revisions, served = _complete([_served(role) for role in roles])
    if len(revisions) <= MAX_REVISIONS:
        return _most(revisions, served)
    return min(sum(one.values(), Fraction(0)) for one in served)


def _most(revisions: Sequence[str], served: Sequence[_Served]) -> Fraction:
    """Return the most that can be served: no role has more for some revisions than units of them.

    The least, over all ways to give each revision to one role, of what roles have of what they were
    given. For two roles whose units are split over revisions at will this is exact (it is the
    intersection of two polymatroids), for more it is a bound. Roles whose units are each of one
    revision are one role: they have of each revision what the weakest has.
    """
    weakest: _Served = {}
    split = [one for one in served if any(len(own) > 1 for own in one)]
    plain = [one for one in served if one not in split]
    if plain:
        for revision in revisions:
            own = frozenset((revision,))
            weakest[own] = min(one.get(own, Fraction(0)) for one in plain)
        split.append(weakest)
    if not revisions:
        return Fraction(0)
    return min(
        sum(
            (
                share
                for k, one in enumerate(split)
                for own, share in one.items()
                if any(who == k and r in own for r, who in zip(revisions, given, strict=True))
            ),
            Fraction(0),
        )
        for given in itertools.product(range(len(split)), repeat=len(revisions))
    )


def _at_least(revisions: Sequence[str], served: Sequence[_Served]) -> Fraction:
    """Return what is served when units of several revisions all count for the first of them."""
    total = Fraction(0)
    for revision in revisions:
        total += min(
            sum((share for own, share in one.items() if min(own) == revision), Fraction(0))
            for one in served
        )
    return total


def _with(role: Role, plan: Iterable[str], ready: Iterable[bool]) -> Role:
    return replace(role, plan=tuple(plan), ready=tuple(ready))


def _fitted(role: Role) -> Role:
    """Return the role with as many units as wanted at least; none at all if it is off."""
    if not role.wanted:
        return _with(role, (), ())
    return _grown(role, role.wanted)


def _grown(role: Role, length: int) -> Role:
    more = max(0, length - len(role.plan))
    return _with(role, role.plan + (role.target,) * more, role.ready + (False,) * more)


def _is_overtaken(work: Sequence[Role]) -> bool:
    """Tell whether a role has units of several old revisions: of updates that did not end."""
    return any(len({*role.plan} - {role.target}) > 1 for role in work)


def _is_rolling(role: Role) -> bool:
    return any(pod_hash != role.target for pod_hash in role.plan)


def _surged(role: Role, budget: Budget) -> Role:
    return _grown(role, role.wanted + budget.surge(role)) if _is_rolling(role) else role


def _candidates(work: Sequence[Role], budget: Budget, *, paused: bool) -> Iterator[Role]:
    """Yield roles as they would be after one more unit changed, what costs least first."""
    order = sorted(work, key=lambda role: (_new_share(role), role.name))
    for role in order:
        surge = budget.surge(role) if _is_rolling(role) else 0
        if len(role.plan) > role.wanted + surge:
            yield _with(role, role.plan[:-1], role.ready[:-1])
    if paused:
        return
    for serving in (False, True):
        for role in order:
            yield from _flips(work, role, serving=serving)


def _flips(work: Sequence[Role], role: Role, *, serving: bool) -> Iterator[Role]:
    """Yield *role* with one unit of each old revision changed, that first which leaves most."""
    first: dict[str, int] = {}
    for i, pod_hash in enumerate(role.plan):
        if pod_hash != role.target and role.ready[i] == serving:
            first.setdefault(pod_hash, i)
    found = [_flipped(role, i) for i in first.values()]
    if len(found) > 1:
        left = [capacity(_replaced(work, new)) for new in found]
        found = [found[k] for k in sorted(range(len(found)), key=lambda k: -left[k])]
    yield from found


def _flipped(role: Role, i: int, to: str | None = None) -> Role:
    plan, ready = list(role.plan), list(role.ready)
    plan[i], ready[i] = to or role.target, False
    return _with(role, plan, ready)


def _regathered(work: Sequence[Role], budget: Budget) -> list[Role]:
    """Return *work*, which is stuck, with one unit back in an old revision where it can pair.

    An update that was overtaken by another leaves units of many revisions, each of which holds a
    part of the capacity, so that none may go. Where one old revision has all of it, the units of
    the others are free to go ahead. Unchanged where nothing would bring one nearer to that.
    """
    best, found = _gathered(work), list(work)
    for role in work:
        old = sorted({*role.plan, *role.sets} - {role.target})
        for i, pod_hash in enumerate(role.plan):
            for to in old:
                new = _flipped(role, i, to)
                changed = _replaced(work, new)
                then = _gathered(_replaced(work, replace(new, ready=role.ready)))
                if to == pod_hash or then <= best:
                    continue
                if _allowed(work, changed, new, budget, back=True):
                    best, found = then, changed
    return found


def _gathered(work: Sequence[Role]) -> tuple[Fraction, Fraction]:
    """Return the most that one old revision has: of its weakest role, and of all roles together."""
    paired = [role for role in work if role.paired and role.wanted]
    served = [_served(role) for role in paired]
    old = {r for one in served for own in one for r in own}
    old -= {r for role in paired for r in role.sets.get(role.target) or (f"={role.target}",)}
    has = [
        [
            min(Fraction(1), sum((s for own, s in one.items() if r in own), Fraction(0)))
            for one in served
        ]
        for r in sorted(old)
    ]
    none = Fraction(0)
    return max(((min(shares), sum(shares, none)) for shares in has), default=(none, none))


def _new_share(role: Role, *, serving: bool = False) -> Fraction:
    pairs = zip(role.plan, role.ready, strict=True)
    new = sum(pod_hash == role.target and (ready or not serving) for pod_hash, ready in pairs)
    return min(Fraction(1), Fraction(new, max(1, role.wanted)))


def _in_flight(role: Role) -> int:
    pairs = zip(role.plan, role.ready, strict=True)
    return sum(pod_hash == role.target and not ready for pod_hash, ready in pairs)


def _allowed(
    before: Sequence[Role], after: Sequence[Role], new: Role, budget: Budget, *, back: bool = False
) -> bool:
    """Tell whether a role may become *new*; with *back* it goes to an old revision, not ahead."""
    old = next(role for role in before if role.name == new.name)
    if len(new.plan) == len(old.plan) and not back:
        limit = max(1, budget.unavailable(old) + budget.surge(old))
        # Also a unit that does not serve is left to its revision until the others' new ones are
        # there for it: with its like it may serve again, alone in the new one it cannot.
        if _in_flight(old) >= limit or (old.paired and not _leads(before, old)):
            return False
        overtaken = old.paired and _is_overtaken(before)
        if overtaken and not _is_followed(after, new, budget, _least(before, budget)):
            return False
    return _affordable(after, old, new, budget, _least(before, budget))


def _least(before: Sequence[Role], budget: Budget) -> Fraction:
    """Return what capacity has to be left. An estimate of what there was is taken high."""
    return min(budget.floor, _capacity(before, _paired_bound))


def _affordable(
    after: Sequence[Role], old: Role, new: Role, budget: Budget, least: Fraction
) -> bool:
    if sum(new.ready) == sum(old.ready):
        return True
    if sum(old.ready) < min(old.minimum, old.wanted):
        return False
    if sum(new.ready) < old.wanted - budget.unavailable(old):
        return False
    return capacity(after) >= least


def _is_followed(after: Sequence[Role], new: Role, budget: Budget, least: Fraction) -> bool:
    """Tell whether the roles that *new* gets ahead of can catch up, as units become ready.

    A unit that nothing can follow pairs with nothing; it would only be missing among the old ones.
    """
    there = [_arrived(role) for role in after]
    ahead = _new_share(new)
    while behind := [r for r in there if r.paired and r.wanted and _new_share(r) < ahead]:
        possible = (
            flip
            for role in behind
            for serving in (False, True)
            for flip in _flips(there, role, serving=serving)
            if _affordable(_replaced(there, flip), role, flip, budget, least)
        )
        following = next(possible, None)
        if following is None:
            return False
        there = _replaced(there, _arrived(following))
    return True


def _arrived(role: Role) -> Role:
    """Return the role as it is when its units of the target are ready."""
    pairs = zip(role.plan, role.ready, strict=True)
    return _with(role, role.plan, (ready or own == role.target for own, ready in pairs))


def _replaced(work: Sequence[Role], new: Role) -> list[Role]:
    return [new if role.name == new.name else role for role in work]


def _leads(work: Sequence[Role], own: Role) -> bool:
    """Tell whether a role may go ahead: the new units it has are matched by those of the others."""
    others = [role for role in work if role.paired and role.wanted and role.name != own.name]
    return all(_new_share(own) <= _new_share(role, serving=True) for role in others)


def _why_blocked(work: Sequence[Role], budget: Budget) -> str:
    left = [f"{role.name} ({role.wanted})" for role in work if _is_rolling(role)]
    percent = float(budget.floor * 100)
    return (
        f"no unit of {', '.join(left)} can be replaced while {percent:g}% of the capacity is kept: "
        "raise maxSurge or maxUnavailable, or lower minCapacityPercent"
    )
