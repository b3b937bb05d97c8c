"""Single pods that no filter can tell apart, of one queue or many, placed in one go.

Queues still take turns: who is placed, and who is not any more, is decided pod by pod. Only the
nodes are looked for once for all of them, since equal pods fill nodes in the same way whoever's
they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spinney.scheduler import search
from spinney.scheduler.demand import growth_demand
from spinney.scheduler.gangs import Group

if TYPE_CHECKING:
    from spinney.scheduler.actions.turns import Turn, Turns
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.queues.ledger import Ledger
    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.shapes import PodInfo


def place_alike_in_turns(
    session: Session, ledger: Ledger, turns: Turns, first: Turn
) -> tuple[list[Gang], Turn | None]:
    """Place the gang of *first* and those whose turn comes next, as long as they are single pods
    like it and their queues may have them. Return them, and the turn that was taken beyond them.

    Nobody is placed where the gang of *first* is no such pod or there is no room for two.
    """
    cls = _class_of(session, first)
    if cls is None:
        return [], first
    room = int(session.room(cls).clip(max=len(session.snapshot.gangs)).sum())
    gangs: list[Gang] = []
    turn: Turn | None = first
    while turn is not None and len(gangs) < room and _class_of(session, turn) is cls:
        if ledger.refusal(turn.gang, cls.amount):
            break
        ledger.enter(turn.gang, cls.amount)
        gangs.append(turn.gang)
        turn = turns.take()
    if gangs:
        place_together(session, gangs)
    return gangs, turn


def _class_of(session: Session, turn: Turn) -> PodClass | None:
    gang = turn.gang
    if turn.stage or gang.waiting or session.drains.any or gang.key in session.reservations.kept:
        return None
    pod = single_pod(gang)
    if pod is None:
        return None
    cls = session.class_of(pod)
    return None if session.coupled(cls) else cls


def single_pod(gang: Gang) -> PodInfo | None:
    """Return the one pod that *gang* consists of, if nothing says where in the topology it goes."""
    if gang.followers:
        return None
    group = gang.root
    while True:
        if group.required or group.preferred or group.anchors or len(group.children) > 1:
            return None
        if not group.children:
            break
        group = group.children[0]
    alone = len(group.pending) == group.minimum == 1 and not group.active
    return group.pending[0] if alone else None


def place_together(session: Session, gangs: list[Gang]) -> None:
    """Place single pods of one class of which it is known that all fit."""
    pods = tuple(pod for gang in gangs if (pod := single_pod(gang)) is not None)
    together = replace(gangs[0], root=Group(gangs[0].key, pending=pods))
    outcome = search.place(session, growth_demand(session, together, pods))
    assert outcome == "placed", "equal pods were counted to fit and do not"
