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

    Stacks = dict[str, list[Unit]]
    """By queue: what may be displaced of it, what goes first at the end."""

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
    pools: dict[str, Stacks] = {}
    families: dict[str, set[str]] = {}

    def may(wish: Wish) -> bool:
        return _entitled(ledger, wish.gang, wish.amount)

    def choose(wish: Wish) -> Plan | None:
        queue = ledger.tree.path(wish.gang.queue)[0]
        if queue not in pools:
            pools[queue] = _stacks(session, ledger, queue)
        if not families:
            families.update(_families(session))
        spared = families.get(family(wish.gang), set())
        return _choose(session, ledger, wish, _Pool(session, pools[queue], spared))

    def explain(wish: Wish) -> str:
        return _returned(session, ledger, wish)

    yield from make_room(session, "reclaim", may, choose, explain)


def _families(session: Session) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for gang in session.snapshot.standing:
        found.setdefault(family(gang), set()).add(gang.key)
    return found


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


def _stacks(session: Session, ledger: Ledger, queue: str) -> Stacks:
    """Return what the gangs of *queue* may displace of other queues."""
    found: dict[str, list[Unit]] = {}
    for other in session.snapshot.standing:
        path = ledger.tree.path(other.queue)
        meeting = ledger.tree.meet(queue, other.queue)
        if other.preemptible and path and meeting is not None:
            safe_s = ledger.tree.min_runtime_s(meeting[1], reclaim=True)
            found.setdefault(path[0], []).extend(units_of(session, other, safe_s))
    return {name: in_order(session, units)[::-1] for name, units in found.items()}


def _choose(session: Session, ledger: Ledger, wish: Wish, pool: _Pool) -> Plan | None:
    # Where pods look at each other a search is dear: one that fails with all gone saves the others.
    dear = any(cls.shape.looks_at_pods for cls, _ in wish.demand.totals)
    if dear and hopeless_without(session, wish, list(_Taking(ledger, wish).every(pool))):
        return None
    plan = find_plan(session, wish, _Taking(ledger, wish).run(pool))
    if plan is not None:
        return plan
    everyone = list(_Taking(ledger, wish).every(pool))
    if not everyone or (not dear and hopeless_without(session, wish, everyone)):
        return None
    for units in by_place(session, wish.demand, everyone):
        plan = find_plan(session, wish, _Taking(ledger, wish).permitted(surplus_first(units)))
        if plan is not None:
            return plan
    return _with_movers(session, ledger, wish, pool)


def _returned(session: Session, ledger: Ledger, wish: Wish) -> str:
    """Return which queue would have to give how much back, of what it has beyond its quota, for
    *wish* to fit; empty where no single one has enough, where its own queue is full, or where
    pods look at each other, which is dear to try."""
    dear = any(cls.shape.looks_at_pods for cls, _ in wish.demand.totals)
    if dear or session.refusal(wish.gang, wish.demand):
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
        for unit in in_order(session, units):
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


def _with_movers(session: Session, ledger: Ledger, wish: Wish, pool: _Pool) -> Plan | None:
    """Return a plan in which some go elsewhere of whom nothing could be taken."""

    def accept(units: Sequence[Unit], moves: Moves) -> bool:
        moved = {spot.pod.key for spots in moves.values() for spot in spots}
        lost = [u for u in units if not all(pod.key in moved for pod in u.pods)]
        return len(list(_Taking(ledger, wish).permitted(lost))) == len(lost)

    order = itertools.islice(_Taking(ledger, wish).every(pool), MOST_MOVERS)
    return find_plan(session, wish, order, accept)


class _Pool:
    """What may be displaced for one gang: not its own family, nor what is displaced already."""

    def __init__(self, session: Session, stacks: Stacks, spared: set[str]) -> None:
        self.stacks = stacks
        self._displaced = session.displaced
        self._spared = spared | session.promised

    def usable(self, queue: str) -> list[Unit]:
        """Return the units of *queue*, of which those at the end are not displaced yet."""
        units = self.stacks[queue]
        while units and units[-1].pods[0].key in self._displaced:
            units.pop()
        return units

    def before(self, queue: str, place: int) -> tuple[int, Unit] | None:
        """Return the next unit of *queue* before *place*, with where it is; None for no more."""
        units = self.stacks[queue]
        for at in range(place - 1, -1, -1):
            found = units[at]
            if found.gang.key not in self._spared and found.pods[0].key not in self._displaced:
                return at, found
        return None


class _Taking:
    """Takes units one by one, each from the queue that would be served last."""

    def __init__(self, ledger: Ledger, wish: Wish) -> None:
        self._ledger = ledger
        self._gang = wish.gang
        self._amount = wish.amount
        self._left = dict(ledger.allocated)
        self._spared: set[str] = set()
        self._keys: dict[str, tuple[Amounts, tuple[object, ...]]] = {}

    def run(self, pool: _Pool) -> Iterator[Unit]:
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

    def every(self, pool: _Pool) -> Iterator[Unit]:
        """Yield all of *pool*, from queue to queue as what was yielded and taken is gone."""
        tree = self._ledger.tree
        places = {queue: len(units) for queue in pool.stacks if (units := pool.usable(queue))}
        waiting: dict[str, int] = {}
        for queue in places:
            for name in tree.path(queue):
                waiting[name] = waiting.get(name, 0) + 1
        while places:
            at = ""
            while below := [c for c in tree.children.get(at, ()) if waiting.get(c)]:
                at = max(below, key=self._key) if len(below) > 1 else below[0]
            found = pool.before(at, places[at])
            if found is not None:
                places[at], unit = found
                yield unit
                continue
            del places[at]
            for name in tree.path(at):
                waiting[name] -= 1

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
