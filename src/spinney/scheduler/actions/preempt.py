"""Preemption: a gang displaces gangs of lower priority in its own queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.scheduler.actions.displace import (
    candidates,
    find_plan,
    hopeless_without,
    make_room,
    may_fit,
    units_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.scheduler.actions.displace import Plan, Unit
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict


def preempt(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Make room for pending gangs at the cost of their queue's less important ones."""
    del previous

    def choose(gang: Gang, demand: Demand) -> Plan | None:
        victims = _victims(session, gang)
        if not may_fit(session, demand, victims):
            return None
        dear = any(cls.shape.looks_at_pods for cls, _ in demand.totals)
        if dear and hopeless_without(session, gang, victims):
            return None
        return find_plan(session, gang, victims)

    yield from make_room(session, "preempt", lambda gang, demand: True, choose)


def _victims(session: Session, gang: Gang) -> list[Unit]:
    """Return who may go: lowest priority first, then surplus before minimums, then the youngest."""
    tree = session.snapshot.queues
    queue = tree.resolve(gang.queue)
    safe_s = tree.min_runtime_s(gang.queue, reclaim=False)
    units = [
        unit
        for other in candidates(session, gang)
        if other.priority < gang.priority and tree.resolve(other.queue) == queue
        for unit in units_of(session, other, safe_s)
    ]
    units.sort(key=lambda unit: (unit.gang.created, unit.gang.key), reverse=True)
    return sorted(units, key=lambda unit: (unit.gang.priority, not unit.surplus))
