"""Reclaim: a queue below its fair share takes back what queues beside it have beyond theirs.

Whether a victim may be taken is decided where the two queues' paths through the tree part. It may
while its side has more than it is entitled to; or while its side has more than its quota and the
taker's side stays within its own quota. The taker's own queue stays within its fair share, so
nothing can be taken back from it for the same reason. A victim that finds another place loses
nothing and may be of any queue.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from spinney.scheduler.actions.displace import (
    by_place,
    find_plan,
    hopeless_without,
    make_room,
    room_when_gone,
)
from spinney.scheduler.actions.victims import family, in_order, surplus_first, units_of
from spinney.scheduler.queues.ledger import amounts_text
from spinney.scheduler.queues.model import NOTHING, Amounts, minus, plus, within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spinney.scheduler.actions.displace import Moves, Plan
    from spinney.scheduler.actions.victims import Unit
    from spinney.scheduler.actions.wishes import Wish
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.queues.ledger import Ledger
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict

    Pool = Mapping[str, Sequence[Unit]]
    """By queue: what may be displaced of it, what goes first in front."""

MOST_QUEUES = 4
"""Queues that are looked at for what they would have to give back."""
MOST_MOVERS = 64
"""Units that are looked at where some of the victims have to find another place."""


def reclaim(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Make room for gangs of queues that have less than is theirs."""
    del previous
    ledger = session.ledger
    if ledger is None:
        return
    pools: dict[str, Pool] = {}

    def may(wish: Wish) -> bool:
        return _entitled(ledger, wish.gang, wish.amount)

    def choose(wish: Wish) -> Plan | None:
        queue = ledger.tree.path(wish.gang.queue)[0]
        if queue not in pools:
            pools[queue] = _pool(session, ledger, queue)
        return _choose(session, ledger, wish, _present(session, wish, pools[queue]))

    def explain(wish: Wish) -> str:
        return _returned(session, ledger, wish)

    yield from make_room(session, "reclaim", may, choose, explain)


def _entitled(ledger: Ledger, gang: Gang, amount: Amounts) -> bool:
    """Tell whether the gang's queue stays within its fair share, and its quota where it must."""
    queue = ledger.tree.path(gang.queue)[0]
    if not within(plus(ledger.allocated[queue], amount), ledger.shares[queue]):
        return False
    quota = ledger.tree.queues[queue].quota
    return gang.preemptible is not False or within(plus(ledger.firm[queue], amount), quota)


def may_reclaim(ledger: Ledger, wish: Wish, units: Iterable[Unit]) -> list[Unit]:
    """Return what may be taken of *units*, in their order, for *wish*; nothing if its queue has
    all that is its due."""
    if not _entitled(ledger, wish.gang, wish.amount):
        return []
    return list(_Taking(ledger, wish).permitted(units))


def _pool(session: Session, ledger: Ledger, queue: str) -> Pool:
    """Return what the gangs of *queue* may displace of other queues."""
    found: dict[str, list[Unit]] = {}
    for other in session.snapshot.standing:
        path = ledger.tree.path(other.queue)
        meeting = ledger.tree.meet(queue, other.queue)
        if other.preemptible and path and meeting is not None:
            safe_s = ledger.tree.min_runtime_s(meeting[1], reclaim=True)
            found.setdefault(path[0], []).extend(units_of(session, other, safe_s))
    return {name: in_order(units) for name, units in found.items()}


def _present(session: Session, wish: Wish, pool: Pool) -> Pool:
    """Return *pool* without what was displaced meanwhile and what may not go for *wish*."""
    mine = family(wish.gang)
    out = {key for key in (*session.promised, mine) if key}
    out |= {gang.key for gang in session.snapshot.standing if family(gang) == mine}
    gone = session.displaced
    return {
        queue: [u for u in units if u.gang.key not in out and u.pods[0].key not in gone]
        for queue, units in pool.items()
    }


def _choose(session: Session, ledger: Ledger, wish: Wish, pool: Pool) -> Plan | None:
    everyone = list(_Taking(ledger, wish).every(pool))
    if not everyone:
        return None
    # Where pods look at each other a search is dear: one that fails with all gone saves the others.
    dear = any(cls.shape.looks_at_pods for cls, _ in wish.demand.totals)
    if dear and hopeless_without(session, wish, everyone):
        return None
    plan = find_plan(session, wish, _Taking(ledger, wish).run(pool))
    if plan is not None:
        return plan
    if not dear and hopeless_without(session, wish, everyone):
        return None
    for units in by_place(session, wish.demand, everyone):
        plan = find_plan(session, wish, _Taking(ledger, wish).permitted(surplus_first(units)))
        if plan is not None:
            return plan
    return _with_movers(session, ledger, wish, pool)


def _returned(session: Session, ledger: Ledger, wish: Wish) -> str:
    """Return which queue would have to give how much back, of what it has beyond its quota, for
    *wish* to fit; empty where no single one has enough, or where the wish's own queue is full."""
    if session.refusal(wish.gang, wish.demand):
        return ""
    found: list[tuple[Amounts, str]] = []
    for queue, units in sorted(_beyond_quota(session, ledger, wish).items()):
        chosen, _ = room_when_gone(session, wish, units)
        if chosen:
            found.append((_sum(chosen), queue))
    if not found:
        return ""
    amount, queue = min(found)
    return f"after queue {queue} returns {amounts_text(amount)}"


def _beyond_quota(session: Session, ledger: Ledger, wish: Wish) -> dict[str, list[Unit]]:
    """Return what other queues have beyond their quotas, those with most of it first."""
    mine = ledger.tree.path(wish.gang.queue)[0]
    found: dict[str, list[Unit]] = {}
    for other in session.snapshot.standing:
        path = ledger.tree.path(other.queue)
        if path and path[0] != mine:
            found.setdefault(path[0], []).extend(units_of(session, other, 0))
    beyond = {}
    for queue, units in found.items():
        left, taken = ledger.allocated[queue], []
        for unit in in_order(units):
            if within(left, ledger.tree.queues[queue].quota, wish.amount):
                break
            left = minus(left, unit.amount)
            taken.append(unit)
        if taken:
            beyond[queue] = taken
    most = sorted(beyond, key=lambda q: (_negative(_sum(beyond[q])), q))[:MOST_QUEUES]
    return {queue: beyond[queue] for queue in most}


def _sum(units: Iterable[Unit]) -> Amounts:
    total = NOTHING
    for unit in units:
        total = plus(total, unit.amount)
    return total


def _negative(amount: Amounts) -> Amounts:
    return minus(NOTHING, amount)


def _with_movers(session: Session, ledger: Ledger, wish: Wish, pool: Pool) -> Plan | None:
    """Return a plan in which some go elsewhere of whom nothing could be taken."""

    def accept(units: Sequence[Unit], moves: Moves) -> bool:
        moved = {spot.pod.key for spots in moves.values() for spot in spots}
        lost = [u for u in units if not all(pod.key in moved for pod in u.pods)]
        return len(list(_Taking(ledger, wish).permitted(lost))) == len(lost)

    order = itertools.islice(_Taking(ledger, wish).every(pool), MOST_MOVERS)
    return find_plan(session, wish, order, accept)


class _Taking:
    """Takes units one by one, each from the queue that would be served last."""

    def __init__(self, ledger: Ledger, wish: Wish) -> None:
        self._ledger = ledger
        self._gang = wish.gang
        self._amount = wish.amount
        self._left = dict(ledger.allocated)
        self._spared: set[str] = set()
        self._keys: dict[str, tuple[Amounts, tuple[object, ...]]] = {}

    def run(self, pool: Pool) -> Iterator[Unit]:
        """Yield what may be taken, in order; *pool* is not changed."""
        return self.permitted(self.every(pool))

    def permitted(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """Yield what may be taken of *units*; a gang's minimum only after all of its surplus."""
        for unit in units:
            queue = self._ledger.tree.path(unit.gang.queue)[0]
            if unit.gang.key in self._spared or not self._may_take(queue, unit):
                self._spared.add(unit.gang.key)
                continue
            for name in self._ledger.tree.path(queue):
                self._left[name] = minus(self._left[name], unit.amount)
            yield unit

    def every(self, pool: Pool) -> Iterator[Unit]:
        """Yield all of *pool*, from queue to queue as what was yielded and taken is gone."""
        tree = self._ledger.tree
        stacks = {queue: list(reversed(units)) for queue, units in pool.items() if units}
        waiting: dict[str, int] = {}
        for queue, units in stacks.items():
            for name in tree.path(queue):
                waiting[name] = waiting.get(name, 0) + len(units)
        while stacks:
            at = ""
            while below := [c for c in tree.children.get(at, ()) if waiting.get(c)]:
                at = max(below, key=self._key) if len(below) > 1 else below[0]
            yield stacks[at].pop()
            for name in tree.path(at):
                waiting[name] -= 1
            if not stacks[at]:
                del stacks[at]

    def _key(self, queue: str) -> tuple[object, ...]:
        left = self._left[queue]
        known = self._keys.get(queue)
        if known is None or known[0] != left:
            key = self._ledger.order_key(queue, NOTHING, have=left)
            known = self._keys[queue] = (left, key)
        return known[1]

    def _may_take(self, queue: str, unit: Unit) -> bool:
        ledger, asked = self._ledger, self._amount
        meeting = ledger.tree.meet(self._gang.queue, queue)
        assert meeting is not None, "reclaim inside one queue"
        mine, theirs = meeting
        if not any(a and b for a, b in zip(asked, unit.amount, strict=True)):
            return False
        left, quota = self._left[theirs], ledger.tree.queues[theirs].quota
        with_mine = plus(self._left[mine], asked)
        if within(left, ledger.entitled(theirs), asked):
            kept_quota = within(with_mine, ledger.tree.queues[mine].quota, asked)
            if not kept_quota or within(left, quota, asked):
                return False
        return not self._outgrows(mine, with_mine, theirs, minus(left, unit.amount))

    def _outgrows(self, mine: str, have: Amounts, theirs: str, left: Amounts) -> bool:
        """Tell whether *mine*, beyond its share, would have more of its share than *theirs*."""
        shares = self._ledger.shares
        for at, asked in enumerate(self._amount):
            my_share, their_share = shares[mine][at], shares[theirs][at]
            if not asked or have[at] <= my_share or their_share <= 0:
                continue
            if have[at] * their_share >= left[at] * my_share:
                return True
        return False
