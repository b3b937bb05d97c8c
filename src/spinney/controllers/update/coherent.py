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
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spinney.controllers.update.plan import Plan

MAX_PAIRINGS = 64
"""Ways to count units that are of several revisions that are tried; fewer make the estimate of
capacity lower, never higher."""


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
    """Return the share of the wanted end-to-end capacity that serves, counted up to 1 per role.

    Above 1 where units on top of the wanted serve. 1 where no role is wanted.
    """
    counted = [role for role in roles if role.wanted]
    if not counted:
        return Fraction(1)
    free = [_share(role, sum(role.ready)) for role in counted if not role.paired]
    paired = [role for role in counted if role.paired]
    if not paired:
        return min(free)
    best = max(_paired_capacity(paired, pairing) for pairing in _pairings(paired))
    return min([*free, best])


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
            changed = [candidate if role.name == candidate.name else role for role in work]
            if _allowed(work, changed, candidate, budget):
                work, moved = changed, True
                break
    same = all(new.plan == old.plan for new, old in zip(work, roles, strict=True))
    done = same and all(role.settled and not role.leaving for role in work)
    waiting = any(not all(role.ready) for role in work)
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


def _pairings(roles: Sequence[Role]) -> Iterator[dict[tuple[str, str], str]]:
    """Yield ways to count each role's hashes as units of one of the revisions they are part of."""
    keys = [(role.name, pod_hash) for role in roles for pod_hash in sorted(set(role.plan))]
    sets = {role.name: role.sets for role in roles}
    options = [sets[name].get(pod_hash) or (f"={pod_hash}",) for name, pod_hash in keys]
    for chosen in itertools.islice(itertools.product(*options), MAX_PAIRINGS):
        yield dict(zip(keys, chosen, strict=True))


def _paired_capacity(roles: Sequence[Role], pairing: Mapping[tuple[str, str], str]) -> Fraction:
    counts: list[dict[str, int]] = []
    for role in roles:
        found: dict[str, int] = {}
        for pod_hash, ready in zip(role.plan, role.ready, strict=True):
            if ready:
                revision = pairing[role.name, pod_hash]
                found[revision] = found.get(revision, 0) + 1
        counts.append(found)
    revisions = sorted(set(itertools.chain.from_iterable(counts)))
    return sum(
        (
            min(
                _share(role, found.get(revision, 0))
                for role, found in zip(roles, counts, strict=True)
            )
            for revision in revisions
        ),
        Fraction(0),
    )


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
            tried = {role.target}
            for i, pod_hash in enumerate(role.plan):
                if pod_hash not in tried and role.ready[i] == serving:
                    tried.add(pod_hash)
                    yield _flipped(role, i)


def _flipped(role: Role, i: int) -> Role:
    plan, ready = list(role.plan), list(role.ready)
    plan[i], ready[i] = role.target, False
    return _with(role, plan, ready)


def _new_share(role: Role, *, serving: bool = False) -> Fraction:
    pairs = zip(role.plan, role.ready, strict=True)
    new = sum(pod_hash == role.target and (ready or not serving) for pod_hash, ready in pairs)
    return min(Fraction(1), Fraction(new, max(1, role.wanted)))


def _in_flight(role: Role) -> int:
    pairs = zip(role.plan, role.ready, strict=True)
    return sum(pod_hash == role.target and not ready for pod_hash, ready in pairs)


def _allowed(before: Sequence[Role], after: Sequence[Role], new: Role, budget: Budget) -> bool:
    old = next(role for role in before if role.name == new.name)
    if len(new.plan) == len(old.plan):
        limit = max(1, budget.unavailable(old) + budget.surge(old))
        # Also a unit that does not serve is left to its revision until the others' new ones are
        # there for it: with its like it may serve again, alone in the new one it cannot.
        if _in_flight(old) >= limit or (old.paired and not _leads(before, old)):
            return False
    if sum(new.ready) == sum(old.ready):
        return True
    if sum(old.ready) < min(old.minimum, old.wanted):
        return False
    if sum(new.ready) < old.wanted - budget.unavailable(old):
        return False
    return capacity(after) >= min(budget.floor, capacity(before))


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
