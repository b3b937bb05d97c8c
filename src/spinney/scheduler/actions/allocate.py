"""Places pending gangs: minimums first, one transaction each; then what they have beyond it.

Gangs come in order of priority, age, name. Within one priority every gang's minimum comes
before any gang's surplus; then each gang that has just its minimum gets one pod more, and then, in
order, all that still fits. A gang that does not fit leaves no trace, so it never holds room
that another waits for: interleaved arrivals cannot deadlock.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinney.scheduler import search
from spinney.scheduler.actions.alike import place_alike_in_turns, place_together
from spinney.scheduler.actions.turns import Turns
from spinney.scheduler.demand import floor_demand, growth_demand, optional_groups
from spinney.scheduler.reservations import claim, spots_of
from spinney.scheduler.verdict import Verdict
from spinney.scheduler.why import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spinney.scheduler.actions.turns import Stage, Turn
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.memory import Reservation, Spot
    from spinney.scheduler.queues.ledger import Ledger
    from spinney.scheduler.queues.model import Amounts
    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.verdict import VerdictKind


@dataclass(slots=True)
class _Growth:
    """What a gang has beyond its minimum, and how far it got."""

    gang: Gang
    left: dict[str, list[PodInfo]] = field(default_factory=dict)
    """By leaf."""
    failed: dict[tuple[str, int], Demand | None] = field(default_factory=dict)
    """Leaf and class of which not even one more pod fits, or a whole group; with what was asked
    for, if its pods exist."""
    closed: list[PodInfo] = field(default_factory=list)
    """Pods of groups that the gang can do without and that do not fit, and pods for which room
    is kept that is not free yet."""
    groups_done: bool = False
    """Whether all groups that the gang can do without were tried."""
    refusal: str = ""
    """Why the gang's queue takes on no more of it."""
    reason: str = ""
    """Why the first of what does not fit does not."""


def allocate(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Place what fits of the snapshot's gangs on *session* and yield one verdict for each.

    *previous* are verdicts of the last cycle: a gang that asks the same as when it failed, with
    no room made since, is not tried again.
    """
    failures = _Failures(session, previous)
    gangs = session.snapshot.gangs
    if session.ledger is not None:
        yield from _allocate_in_turns(session, session.ledger, gangs, failures)
        return
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


def _allocate_in_turns(
    session: Session, ledger: Ledger, gangs: Sequence[Gang], failures: _Failures
) -> Iterator[Verdict]:
    """Let queues take turns, one gang's minimum, or one pod beyond a minimum, at a time."""
    turns = Turns(ledger)
    growths: dict[str, _Growth] = {}
    for gang in gangs:
        settled = failures.settled(gang)
        if settled is None and gang.waiting:
            settled = Verdict(gang.key, "waiting", gang.waiting)
        if settled is None and (problem := ledger.tree.problem(gang.queue)):
            settled = failures.refused(gang, problem)
        if settled is not None:
            yield settled
        else:
            turns.push(gang, 0, _floor_amount(session, gang))
    beyond: Turn | None = None
    while turn := beyond or turns.take():
        alike, beyond = place_alike_in_turns(session, ledger, turns, turn)
        yield from (Verdict(gang.key, "placed") for gang in alike)
        if alike:
            continue
        beyond = None
        gang = turn.gang
        if turn.stage == 0:
            verdict = _allocate_floor(session, gang, failures)
            if verdict is not None:
                yield verdict
                continue
            growth = growths[gang.key] = _surplus(session, gang)
        else:
            growth = growths[gang.key]
            if not _grow_once(session, growth, failures, most=1):
                yield _growth_verdict(growth, failures)
                continue
        if growth.left:
            stage: Stage = 1 if turn.stage == 0 and _at_floor(gang) else 2
            turns.push(gang, stage, session.pods_amount(next(iter(growth.left.values()))[:1]))
        else:
            yield Verdict(gang.key, "placed")


def _floor_amount(session: Session, gang: Gang) -> Amounts:
    leaves = gang.root.leaves()
    return session.pods_amount(pod for leaf in leaves for pod in leaf.pending[: leaf.missing])


def _run_key(session: Session, gang: Gang) -> object:
    """Return a key that is equal for neighbours which are placed in one go: single, alike pods."""
    if not gang.lone or gang.waiting:
        return gang.key
    cls = session.class_of(gang.root.pending[0])
    return gang.key if session.coupled(cls) else cls.number


def _allocate_alike(session: Session, gangs: list[Gang], failures: _Failures) -> Iterator[Verdict]:
    """Place single pods that no filter can tell apart: as many as fit, the oldest first."""
    session.drains.make_way(gangs[0])
    cls = session.class_of(gangs[0].root.pending[0])
    fit = min(len(gangs), int(session.room(cls).clip(max=len(gangs)).sum()))
    if fit:
        place_together(session, gangs[:fit])
    for gang in gangs[:fit]:
        yield Verdict(gang.key, "placed")
    for gang in gangs[fit:]:
        verdict = _allocate_floor(session, gang, failures)
        yield verdict or Verdict(gang.key, "placed")


def _allocate_floor(session: Session, gang: Gang, failures: _Failures) -> Verdict | None:
    """Place the gang's minimum; None when it is on nodes now."""
    if gang.waiting:
        return Verdict(gang.key, "waiting", gang.waiting)
    settled = failures.settled(gang)
    if settled is not None:
        return settled
    session.drains.make_way(gang)
    reserved = session.reservations.release(gang.key)
    demand = floor_demand(session, gang)
    if demand is None:
        if reserved is not None:
            claim(session, gang, reserved)
        return None
    refusal = session.refusal(gang, demand)
    if refusal:
        return failures.refused(gang, refusal)
    known = None if reserved else failures.known(gang.key, demand)
    if known is None:
        outcome = search.place(session, demand, gang.topology)
        if outcome == "placed":
            session.enter(gang, demand)
            return None
        if _pipeline(session, gang, demand, reserved):
            return failures.verdict(gang, "pipelined", demand, PIPELINED)
        known = failures.explained(demand, outcome, gang)
    return failures.verdict(gang, "unplaced", demand, known)


PIPELINED = "would fit once the pods that are being deleted are gone; the room is reserved"


def _pipeline(session: Session, gang: Gang, demand: Demand, reserved: Reservation | None) -> bool:
    """Reserve room for *demand* where pods are leaving; False when that does not make enough."""
    spots = _spots_once_free(session, gang, demand)
    if spots is None:
        return False
    session.reservations.make(gang, spots, reserved.until if reserved else None)
    return True


def _spots_once_free(session: Session, gang: Gang, demand: Demand) -> tuple[Spot, ...] | None:
    """Return where *demand* fits once the pods that are leaving are gone; None for nowhere."""
    if gang.key in session.reservations.lapsed or not session.leaving.any():
        return None
    start = session.statement.checkpoint()
    with session.without_leaving():
        if search.place(session, demand, gang.topology) != "placed":
            return None
        return spots_of(session, session.statement.take_out(start))


class _Failures:
    """What is known not to fit, from this cycle and from the last."""

    def __init__(self, session: Session, previous: Mapping[str, Verdict]) -> None:
        self._session = session
        self._previous = previous
        self._reasons: dict[int, str] = {}

    def settled(self, gang: Gang) -> Verdict | None:
        """Return the last verdict on the very same gang, if no room was made since."""
        last = self._previous.get(gang.key)
        version = self._session.snapshot.room_version
        if last is None or last.tree is not gang or last.room_version != version:
            return None
        kept = gang.key in self._session.reservations.kept
        return last if kept == (last.kind == "pipelined") and last.kind != "placed" else None

    def refused(self, gang: Gang, reason: str) -> Verdict:
        """Return the verdict on a gang that its queue may not take on."""
        return Verdict(gang.key, "unplaced", reason, _pending(gang))

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

    def explained(self, demand: Demand, outcome: search.Outcome, gang: Gang) -> str:
        """Return why *demand* was not placed, and remember it."""
        reason = explain(self._session, demand, outcome, gang.topology)
        self._reasons[demand.signature] = reason
        return reason

    def verdict(
        self,
        gang: Gang,
        kind: VerdictKind,
        demand: Demand,
        reason: str,
        left: tuple[str, ...] | None = None,
    ) -> Verdict:
        """Return the verdict that remembers this failure; *left* are all pending pods or some."""
        version = -1 if self._moves(demand) else self._session.snapshot.room_version
        pods = _pending(gang) if left is None else left
        return Verdict(gang.key, kind, reason, pods, demand.signature, version, gang)

    def _moves(self, demand: Demand) -> bool:
        """Tell whether placing other pods may make room: then no failure lasts."""
        return any(self._session.coupled(cls) for cls, _ in demand.totals)


def _pending(gang: Gang) -> tuple[str, ...]:
    return tuple(pod.key for leaf in gang.root.leaves() for pod in leaf.pending)


# Beyond the minimum


def _grow(session: Session, gangs: Iterable[Gang], failures: _Failures) -> Iterator[Verdict]:
    growing = [_surplus(session, gang) for gang in gangs]
    for growth in growing:
        while _grow_group(session, growth, failures):
            pass
    for growth in growing:
        if growth.left and _at_floor(growth.gang):
            _grow_once(session, growth, failures, most=1)
    for growth in growing:
        while growth.left and _grow_once(session, growth, failures, most=None):
            pass
        yield _growth_verdict(growth, failures)


def _grow_group(session: Session, growth: _Growth, failures: _Failures) -> bool:
    """Place a group that the gang can do without: its whole minimum. False when none fits."""
    if growth.groups_done:
        return False
    tried = {name for name, cls in growth.failed if cls == _WHOLE_GROUP}
    for group, demand in optional_groups(session, growth.gang):
        if group.name in tried:
            continue
        leaves = [leaf.name for leaf in group.leaves() if leaf.name in growth.left]
        failed: Demand | None = None
        if demand is not None:
            if _placed_beyond(session, growth, demand, failures):
                _leave_out(session, growth, leaves)
                return True
            failed = demand
        else:
            growth.refusal = f"group {group.name} has fewer pods than its minimum"
        for name in leaves:
            growth.closed += growth.left.pop(name)
        growth.failed[group.name, _WHOLE_GROUP] = failed
    growth.groups_done = True
    return False


_WHOLE_GROUP = -1


def _placed_beyond(
    session: Session, growth: _Growth, demand: Demand, failures: _Failures, *, last: bool = True
) -> bool:
    """Place *demand*, which is beyond the gang's minimum, if its queue and the nodes let it.

    If it is the *last* try, the reason is found out.
    """
    session.drains.make_way(growth.gang)
    refusal = session.refusal(growth.gang, demand)
    if refusal:
        growth.refusal = refusal
        return False
    known = failures.known(growth.gang.key, demand)
    if known is None:
        outcome = search.place(session, demand, growth.gang.topology)
        if outcome == "placed":
            session.enter(growth.gang, demand)
            return True
        if last:
            known = failures.explained(demand, outcome, growth.gang)
    growth.reason = growth.reason or known or ""
    return False


def _leave_out(session: Session, growth: _Growth, leaves: Iterable[str]) -> None:
    for name in leaves:
        placed = [p for p in growth.left[name] if p.key in session.statement.node_of]
        _remove(growth, name, placed)


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
    if _grow_group(session, growth, failures):
        return True
    for leaf in sorted(_open_leaves(session, growth), key=lambda leaf: _grown(session, leaf)):
        while pods := _next_alike(session, growth, leaf):
            if len(growth.left) > 1 or most is not None:
                pods = pods[:1]
            if _grow_by(session, growth, leaf, pods, failures):
                return True
    return False


def _grow_by(
    session: Session, growth: _Growth, leaf: Group, pods: list[PodInfo], failures: _Failures
) -> bool:
    """Place *pods*, alike, of *leaf*, or the first half of them, and so on down to one."""
    while pods:
        demand = growth_demand(session, growth.gang, tuple(pods))
        if _placed_beyond(session, growth, demand, failures, last=len(pods) == 1):
            _remove(growth, leaf.name, pods)
            return True
        if len(pods) == 1 and _pipeline_growth(session, growth, demand):
            _remove(growth, leaf.name, pods)
            growth.closed += pods
            return True
        if len(pods) == 1:
            growth.failed[leaf.name, session.class_of(pods[0]).number] = demand
        pods = pods[: len(pods) // 2]
    return False


def _pipeline_growth(session: Session, growth: _Growth, demand: Demand) -> bool:
    """Keep room where pods are leaving for one pod beyond the minimum."""
    gang = growth.gang
    if session.refusal(gang, demand):
        return False
    spots = _spots_once_free(session, gang, demand)
    if spots is None:
        return False
    kept = session.reservations.kept.get(gang.key)
    before, until = (kept.spots, kept.until) if kept is not None else ((), None)
    session.reservations.make(gang, (*before, *spots), until)
    return True


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
    left = tuple(pod.key for pods in (*growth.left.values(), growth.closed) for pod in pods)
    if not left:
        return Verdict(growth.gang.key, "placed")
    demand = next((found for found in growth.failed.values() if found is not None), None)
    if demand is None:
        return Verdict(growth.gang.key, "placed", growth.refusal or PIPELINED, left)
    reason = growth.refusal or growth.reason
    return failures.verdict(growth.gang, "placed", demand, reason, left)
