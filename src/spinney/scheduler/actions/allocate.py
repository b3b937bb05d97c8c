"""Places pending gangs: minimums first, one transaction each; then what they have beyond it.

Gangs come in order of priority, age, name. Within one priority every gang's minimum comes
before any gang's surplus; then each gang that has just its minimum gets one pod more, and then, in
order, all that still fits. A gang that does not fit leaves no trace, so it never holds room
that another waits for: interleaved arrivals cannot deadlock.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spinney.scheduler import search
from spinney.scheduler.demand import floor_demand, growth_demand
from spinney.scheduler.verdict import Verdict
from spinney.scheduler.why import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.shapes import PodInfo


@dataclass(slots=True)
class _Growth:
    """What a gang has beyond its minimum, and how far it got."""

    gang: Gang
    left: dict[str, list[PodInfo]] = field(default_factory=dict)
    """By leaf."""
    failed: dict[tuple[str, int], tuple[Demand, search.Outcome]] = field(default_factory=dict)
    """Leaf and class of which not even one more pod fits."""


def allocate(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Place what fits of the snapshot's gangs on *session* and yield one verdict for each.

    *previous* are verdicts of the last cycle: a gang that asks the same as when it failed, with
    no room made since, is not tried again.
    """
    failures = _Failures(session, previous)
    gangs = session.snapshot.gangs
    for _, band in itertools.groupby(gangs, key=lambda gang: gang.priority):
        yield from _allocate_band(session, list(band), failures)


def _allocate_band(
    session: Session, gangs: Sequence[Gang], failures: _Failures
) -> Iterator[Verdict]:
    placed: list[Gang] = []
    for _, run in itertools.groupby(gangs, key=lambda gang: _run_key(session, gang)):
        members = list(run)
        if len(members) > 1 and members[0].lone:
            yield from _allocate_alike(session, members, failures)
            continue
        for gang in members:
            verdict = _allocate_floor(session, gang, failures)
            if verdict is None:
                placed.append(gang)
            else:
                yield verdict
    yield from _grow(session, placed, failures)


def _run_key(session: Session, gang: Gang) -> object:
    """Return a key that is equal for neighbours which are placed in one go: single, alike pods."""
    if not gang.lone or gang.waiting:
        return gang.key
    cls = session.class_of(gang.root.pending[0])
    return gang.key if session.coupled(cls) else cls.number


def _allocate_alike(session: Session, gangs: list[Gang], failures: _Failures) -> Iterator[Verdict]:
    """Place single pods that no filter can tell apart: as many as fit, the oldest first."""
    cls = session.class_of(gangs[0].root.pending[0])
    fit = min(len(gangs), int(session.room(cls).clip(max=len(gangs)).sum()))
    if fit:
        pods = tuple(gang.root.pending[0] for gang in gangs[:fit])
        outcome = search.place(session, growth_demand(session, _together(gangs[0], pods), pods))
        assert outcome == "placed", "equal pods were counted to fit and do not"
    for gang in gangs[:fit]:
        yield Verdict(gang.key, "placed")
    for gang in gangs[fit:]:
        verdict = _allocate_floor(session, gang, failures)
        assert verdict is not None, "a pod fits where none of its class did"
        yield verdict


def _together(gang: Gang, pods: tuple[PodInfo, ...]) -> Gang:
    return replace(gang, root=replace(gang.root, pending=pods))


def _allocate_floor(session: Session, gang: Gang, failures: _Failures) -> Verdict | None:
    """Place the gang's minimum; None when it is on nodes now."""
    if gang.waiting:
        return Verdict(gang.key, "waiting", gang.waiting)
    demand = floor_demand(session, gang)
    if demand is None:
        return None
    known = failures.known(gang.key, demand)
    if known is None:
        outcome = search.place(session, demand, gang.topology)
        if outcome == "placed":
            return None
        known = failures.explained(demand, outcome, gang.topology)
    left = tuple(pod.key for leaf in gang.root.leaves() for pod in leaf.pending)
    return failures.verdict(gang.key, "unplaced", demand, known, left)


class _Failures:
    """What is known not to fit, from this cycle and from the last."""

    def __init__(self, session: Session, previous: Mapping[str, Verdict]) -> None:
        self._session = session
        self._previous = previous
        self._reasons: dict[int, str] = {}

    def known(self, gang: str, demand: Demand) -> str | None:
        """Return why *demand* cannot be placed if that is known, None if it has to be tried."""
        if self._moves(demand):
            return None
        found = self._reasons.get(demand.signature)
        if found is not None:
            return found
        last = self._previous.get(gang)
        now = self._session.snapshot.room_version
        if last is None or last.signature != demand.signature or last.room_version != now:
            return None
        return last.reason

    def explained(self, demand: Demand, outcome: search.Outcome, topology: str) -> str:
        """Return why *demand* was not placed, and remember it."""
        reason = explain(self._session, demand, outcome, topology)
        self._reasons[demand.signature] = reason
        return reason

    def verdict(
        self, gang: str, kind: str, demand: Demand, reason: str, left: tuple[str, ...]
    ) -> Verdict:
        """Return the verdict that remembers this failure."""
        version = -1 if self._moves(demand) else self._session.snapshot.room_version
        assert kind in ("placed", "unplaced")
        return Verdict(
            gang,
            "placed" if kind == "placed" else "unplaced",
            reason,
            left,
            demand.signature,
            version,
        )

    def _moves(self, demand: Demand) -> bool:
        """Tell whether placing other pods may make room: then no failure lasts."""
        return any(self._session.coupled(cls) for cls, _ in demand.totals)


# Beyond the minimum


def _grow(session: Session, gangs: Iterable[Gang], failures: _Failures) -> Iterator[Verdict]:
    growing = [_surplus(session, gang) for gang in gangs]
    for growth in growing:
        if growth.left and _at_floor(growth.gang):
            _grow_once(session, growth, failures, most=1)
    for growth in growing:
        while growth.left and _grow_once(session, growth, failures, most=None):
            pass
        yield _growth_verdict(growth, failures)


def _surplus(session: Session, gang: Gang) -> _Growth:
    growth = _Growth(gang)
    for leaf in gang.root.leaves():
        left = [pod for pod in leaf.pending if pod.key not in session.statement.node_of]
        if left:
            growth.left[leaf.name] = left
    return growth


def _at_floor(gang: Gang) -> bool:
    return all(len(leaf.active) <= leaf.minimum for leaf in gang.root.leaves())


def _grow_once(session: Session, growth: _Growth, failures: _Failures, *, most: int | None) -> bool:
    """Place some pods of the leaf that has grown least; False when none of any leaf fits."""
    for leaf in sorted(_open_leaves(session, growth), key=lambda leaf: _grown(session, leaf)):
        pods = _next_alike(session, growth, leaf)
        if len(growth.left) > 1 or most is not None:
            pods = pods[:1]
        while pods:
            demand = growth_demand(session, growth.gang, tuple(pods))
            known = failures.known(growth.gang.key, demand) if len(pods) == 1 else None
            outcome: search.Outcome = "impossible"
            if known is None:
                outcome = search.place(session, demand, growth.gang.topology)
            if outcome == "placed":
                _remove(growth, leaf.name, pods)
                return True
            if len(pods) == 1:
                cls = session.class_of(pods[0])
                growth.failed[leaf.name, cls.number] = (demand, outcome)
                if known is None:
                    failures.explained(demand, outcome, growth.gang.topology)
            pods = pods[: len(pods) // 2]
    return False


def _open_leaves(session: Session, growth: _Growth) -> list[Group]:
    leaves = growth.gang.root.leaves()
    return [g for g in leaves if g.name in growth.left and _next_alike(session, growth, g)]


def _grown(session: Session, leaf: Group) -> tuple[float, str]:
    placed = sum(pod.key in session.statement.node_of for pod in leaf.pending)
    return ((len(leaf.active) + placed) / max(1, leaf.minimum), leaf.name)


def _next_alike(session: Session, growth: _Growth, leaf: Group) -> list[PodInfo]:
    """Return the pods to try next: those like the first whose class has not failed."""
    by_class: dict[int, tuple[PodClass, list[PodInfo]]] = {}
    for pod in growth.left[leaf.name]:
        cls = session.class_of(pod)
        if (leaf.name, cls.number) not in growth.failed:
            by_class.setdefault(cls.number, (cls, []))[1].append(pod)
    return next((pods for _, pods in by_class.values()), [])


def _remove(growth: _Growth, leaf: str, pods: list[PodInfo]) -> None:
    gone = {pod.key for pod in pods}
    growth.left[leaf] = [pod for pod in growth.left[leaf] if pod.key not in gone]
    if not growth.left[leaf]:
        del growth.left[leaf]


def _growth_verdict(growth: _Growth, failures: _Failures) -> Verdict:
    left = tuple(pod.key for pods in growth.left.values() for pod in pods)
    if not left:
        return Verdict(growth.gang.key, "placed")
    demand, _ = next(iter(growth.failed.values()))
    reason = failures.known(growth.gang.key, demand) or ""
    return failures.verdict(growth.gang.key, "placed", demand, reason, left)
