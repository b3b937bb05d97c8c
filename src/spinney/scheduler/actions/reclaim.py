"""Reclaim: a queue below its fair share takes back what queues beside it have beyond theirs.

Whether a victim may be taken is decided where the two queues' paths through the tree part. It may
if its side has more than its fair share of something wanted while the taker's side stays within its
own; or if its side has more than its quota while the taker's side stays within its own quota. Since
the taker never ends up above what it has a right to, nothing can be taken back from it for the same
reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.scheduler.actions.displace import (
    by_place,
    candidates,
    find_plan,
    hopeless_without,
    make_room,
    may_fit,
    units_of,
)
from spinney.scheduler.queues.model import Amounts, minus, plus, within
from spinney.scheduler.session import demand_amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spinney.scheduler.actions.displace import Plan, Unit
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.queues.ledger import Ledger
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict


def reclaim(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Make room for gangs of queues that have less than is theirs."""
    del previous
    ledger = session.ledger
    if ledger is None:
        return

    def may(gang: Gang, demand: Demand) -> bool:
        return _entitled(ledger, gang, demand_amount(demand))

    def choose(gang: Gang, demand: Demand) -> Plan | None:
        return _choose(session, ledger, gang, demand)

    yield from make_room(session, "reclaim", may, choose)


def _entitled(ledger: Ledger, gang: Gang, amount: Amounts) -> bool:
    """Tell whether the gang's queue stays within its fair share, and its quota where it must."""
    queue = ledger.tree.path(gang.queue)[0]
    if not within(plus(ledger.allocated[queue], amount), ledger.shares[queue], amount):
        return False
    quota = ledger.tree.queues[queue].quota
    return gang.preemptible is not False or within(plus(ledger.firm[queue], amount), quota, amount)


def _choose(session: Session, ledger: Ledger, gang: Gang, demand: Demand) -> Plan | None:
    amount = demand_amount(demand)
    pool: dict[str, list[Unit]] = {}
    for other in candidates(session, gang):
        queue = ledger.tree.path(other.queue)[:1]
        meeting = ledger.tree.meet(gang.queue, other.queue)
        if queue and meeting is not None:
            safe_s = ledger.tree.min_runtime_s(meeting[1], reclaim=True)
            pool.setdefault(queue[0], []).extend(units_of(session, other, safe_s))
    for units in pool.values():
        _put_in_order(units)
    everyone = [unit for _, units in sorted(pool.items()) for unit in reversed(units)]
    if not everyone or not may_fit(session, demand, everyone):
        return None
    # Where pods look at each other a search is dear: one that fails with all gone saves the others.
    dear = any(cls.shape.looks_at_pods for cls, _ in demand.totals)
    if dear and hopeless_without(session, gang, everyone):
        return None
    for keep_share in (True, False):
        taken = _Taking(ledger, gang, amount, keep_share=keep_share).run(pool)
        plan = find_plan(session, gang, taken)
        if plan is not None:
            return plan
    if not dear and hopeless_without(session, gang, everyone):
        return None
    for units in by_place(session, demand, everyone):
        taken = _Taking(ledger, gang, amount, keep_share=False).in_order(units)
        plan = find_plan(session, gang, taken)
        if plan is not None:
            return plan
    return None


def _put_in_order(units: list[Unit]) -> None:
    """Sort so that the last is to go first: low priority, surplus, youth."""
    units.reverse()
    units.sort(key=lambda u: (u.gang.created, u.gang.key))
    units.sort(key=lambda u: (-u.gang.priority, u.surplus))


class _Taking:
    """Takes units one by one from whichever queue has most beyond its due."""

    def __init__(self, ledger: Ledger, gang: Gang, amount: Amounts, *, keep_share: bool) -> None:
        self._ledger = ledger
        self._gang = gang
        self._amount = amount
        self._keep_share = keep_share
        """Whether a victim's side has to keep its fair share even after the loss."""
        self._left = dict(ledger.allocated)
        self._spared: set[str] = set()

    def run(self, pool: Mapping[str, list[Unit]]) -> Iterator[Unit]:
        """Yield what may be taken, in order; *pool* is not changed."""
        stacks = {queue: list(units) for queue, units in pool.items() if units}
        while stacks:
            queue = max(stacks, key=lambda q: (self._excess(q), q))
            unit = stacks[queue].pop()
            if not stacks[queue]:
                del stacks[queue]
            if self._take(unit):
                yield unit

    def in_order(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Yield what may be taken of *units*, surplus of a gang before what it needs."""
        ordered = sorted(units, key=lambda unit: not unit.surplus)
        last = {unit.gang.key: at for at, unit in enumerate(units)}
        ordered.sort(key=lambda unit: last[unit.gang.key])
        for unit in ordered:
            if self._take(unit):
                yield unit

    def _take(self, unit: Unit) -> bool:
        """Take *unit* if that may be; a gang's minimum goes only after all of its surplus."""
        queue = self._ledger.tree.path(unit.gang.queue)[0]
        if unit.gang.key in self._spared or not self._may_take(queue, unit):
            self._spared.add(unit.gang.key)
            return False
        for name in self._ledger.tree.path(queue):
            self._left[name] = minus(self._left[name], unit.amount)
        return True

    def _excess(self, queue: str) -> float:
        """Return the largest part the queue still has of what it is entitled to."""
        right = self._ledger.may_have(queue)
        pairs = zip(self._left[queue], right, self._amount, strict=True)
        return max((mine / max(1, due) for mine, due, asked in pairs if asked > 0), default=0.0)

    def _may_take(self, queue: str, unit: Unit) -> bool:
        ledger = self._ledger
        meeting = ledger.tree.meet(self._gang.queue, queue)
        assert meeting is not None, "reclaim inside one queue"
        mine, theirs = meeting
        asked = _both(self._amount, unit.amount)
        if not any(asked):
            return False
        share, quota = ledger.shares[theirs], ledger.tree.queues[theirs].quota
        after = minus(self._left[theirs], unit.amount)
        if self._keep_share:
            fair = within(share, after, asked)
        else:
            fair = not within(self._left[theirs], share, asked)
        if fair and self._stays_within(mine, quota=False):
            return True
        return not within(self._left[theirs], quota, asked) and self._stays_within(mine, quota=True)

    def _stays_within(self, top: str, *, quota: bool) -> bool:
        """Tell whether the taker's queues up to *top* stay within share or quota."""
        ledger = self._ledger
        for name in ledger.tree.path(self._gang.queue):
            bound = ledger.tree.queues[name].quota if quota else ledger.shares[name]
            if not within(plus(self._left[name], self._amount), bound, self._amount):
                return False
            if name == top:
                return True
        return True


def _both(a: Amounts, b: Amounts) -> Amounts:
    return (min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2]))
