"""Preemption: a gang displaces gangs of lower priority in its own queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.scheduler.actions.displace import (
    find_plan,
    hopeless_without,
    make_room,
    may_fit,
)
from spinney.scheduler.actions.victims import candidates, in_order, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.scheduler.actions.displace import Plan
    from spinney.scheduler.actions.victims import Unit
    from spinney.scheduler.actions.wishes import Wish
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict


def preempt(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Make room for pending gangs at the cost of their queue's less important ones."""
    del previous

    def choose(wish: Wish) -> Plan | None:
        victims = _victims(session, wish.gang)
        if not victims or not may_fit(session, wish.demand, victims):
            return None
        dear = any(cls.shape.looks_at_pods for cls, _ in wish.demand.totals)
        if dear and hopeless_without(session, wish, victims):
            return None
        return find_plan(session, wish, victims)

    yield from make_room(session, "preempt", lambda wish: True, choose)


def _victims(session: Session, gang: Gang) -> list[Unit]:
    """Return who may go, in order."""
    tree = session.snapshot.queues
    queue = tree.resolve(gang.queue)
    safe_s = tree.min_runtime_s(gang.queue, reclaim=False)
    return in_order(
        session,
        (
            unit
            for other in candidates(session, gang)
            if other.priority < gang.priority and tree.resolve(other.queue) == queue
            for unit in units_of(session, other, safe_s)
        ),
    )
