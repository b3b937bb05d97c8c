"""Consolidation: moving gangs closer together when that makes room for one more.

Nobody loses by it: a plan counts only if every pod that leaves has another place to run. There has
to be enough free in sum, so only then is anything tried, and few gangs are moved for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.actions.displace import Unit, by_place, candidates, find_plan, make_room
from spinney.scheduler.queues.ledger import pods_amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spinney.scheduler.actions.displace import Plan
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict

MOST_SINGLES = 12
"""Candidates of which each alone, then each pair, is tried before longer lists."""


def consolidate(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Make room for preemptible gangs by moving others."""
    del previous

    def may(gang: Gang, demand: Demand) -> bool:
        if not gang.preemptible or session.refusal(gang, demand):
            return False
        return _enough_in_sum(session, demand)

    def choose(gang: Gang, demand: Demand) -> Plan | None:
        for units in _choices(session, gang, demand):
            plan = find_plan(session, gang, units, all_move=True)
            if plan is not None:
                return plan
        return None

    yield from make_room(session, "consolidate", may, choose)


def _enough_in_sum(session: Session, demand: Demand) -> bool:
    free = np.maximum(session.idle + session.leaving, 0)
    need = demand.need()
    allowed = np.zeros(len(session.layout), np.bool_)
    for cls, _ in demand.totals:
        if cls.absent:
            return False
        allowed |= session.allowed(cls.shape)
    return bool((free[allowed].astype(np.float64).sum(axis=0) >= need).all())


def _choices(session: Session, gang: Gang, demand: Demand) -> Iterator[Sequence[Unit]]:
    """Yield sets of gangs to move: single ones, pairs, then all on the nodes cheapest to clear."""
    units = list(_units(session, gang))
    order = [unit for part in by_place(session, demand, units) for unit in part]
    order = list(dict.fromkeys(order))
    few = order[:MOST_SINGLES]
    yield from ([unit] for unit in few)
    if len(order) <= MOST_SINGLES:
        yield from ([a, b] for at, a in enumerate(few) for b in few[at + 1 :])
    most = session.config.consolidated_gangs
    size = 4 if len(order) > MOST_SINGLES else 3
    while size // 2 < min(len(order), most):
        yield order[: min(size, most)]
        size *= 2


def _units(session: Session, gang: Gang) -> Iterator[Unit]:
    for other in candidates(session, gang):
        pods = tuple(pod for leaf in other.root.leaves() for pod in leaf.active)
        if all(pod.ours for pod in pods) and other.satisfied:
            yield Unit(other, pods, False, pods_amount(pods))
