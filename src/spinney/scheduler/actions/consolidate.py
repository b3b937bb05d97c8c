"""Consolidation: moving gangs closer together when that makes room for one more.

Nobody loses by it: a plan counts only if every pod that leaves has another place to run, and if
disruption budgets let them all leave at once. There has
to be enough free in sum, so only then is anything tried, and few gangs are moved for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.actions.displace import by_place, everyone_moves, find_plan, make_room
from spinney.scheduler.actions.victims import candidates, in_order, unit
from spinney.scheduler.gpu_share import GPU

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spinney.scheduler.actions.displace import Moves, Plan
    from spinney.scheduler.actions.victims import Unit
    from spinney.scheduler.actions.wishes import Wish
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict

MOST_SINGLES = 12
"""Candidates of which each alone, then each pair, is tried before longer lists."""


def consolidate(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Make room for preemptible gangs by moving others."""
    del previous

    def may(wish: Wish) -> bool:
        if not wish.gang.preemptible or session.refusal(wish.gang, wish.demand):
            return False
        return _enough_in_sum(session, wish.demand)

    def accept(units: Sequence[Unit], moves: Moves) -> bool:
        pods = (pod for one in units for pod in one.pods)
        return everyone_moves(units, moves) and session.budgets.allow(pods)

    def choose(wish: Wish) -> Plan | None:
        for units in _choices(session, wish):
            plan = find_plan(session, wish, units, accept)
            if plan is not None:
                return plan
        return None

    yield from make_room(session, "consolidate", may, choose)


def _enough_in_sum(session: Session, demand: Demand) -> bool:
    free = np.maximum(session.idle + session.leaving, 0)
    for row, devices in session.shares.devices.items():
        free[row, session.layout.column[GPU]] += sum(device.free for device in devices)
    need = demand.need()
    allowed = np.zeros(len(session.layout), np.bool_)
    for cls, _ in demand.totals:
        if cls.absent:
            return False
        allowed |= session.allowed(cls.shape)
    return bool((free[allowed].astype(np.float64).sum(axis=0) >= need).all())


def _choices(session: Session, wish: Wish) -> Iterator[Sequence[Unit]]:
    """Yield sets of gangs to move: single ones, pairs, then ever more of them.

    Where there are few they come in the order in which they would be displaced; of many, those on
    the nodes that are cheapest to clear come first.
    """
    units = in_order(session, _units(session, wish.gang))
    few, most = units[:MOST_SINGLES], session.config.consolidated_gangs
    order = units
    if len(units) > MOST_SINGLES:
        order = [one for part in by_place(session, wish.demand, units) for one in part]
        order = list(dict.fromkeys(order))
        few = order[:MOST_SINGLES]
    yield from ([one] for one in few)
    if len(order) <= MOST_SINGLES and most > 1:
        yield from ([a, b] for at, a in enumerate(few) for b in few[at + 1 :])
    size = 4 if len(order) > MOST_SINGLES else 3
    while size // 2 < min(len(order), most):
        yield order[: min(size, most)]
        size *= 2


def _units(session: Session, gang: Gang) -> Iterator[Unit]:
    for other in candidates(session, gang):
        pods = [pod for leaf in other.root.leaves() for pod in leaf.active]
        moved = any(pod.key in session.displaced for pod in pods)
        if not session.budgets.allow(pods):
            continue
        if other.satisfied and not moved and all(pod.ours for pod in pods):
            yield unit(session, other, pods)
