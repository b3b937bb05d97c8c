"""Drains: a gang that others pass for too long gets nodes that nobody else is placed on any more.

One at a time in each queue, the one passed first of the highest priority. It gets the nodes
where the least has to end before it fits: running pods are taken to end by themselves, except
those of other schedulers. Where they do not, it gets other nodes next time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spinney.scheduler.actions.displace import by_place, room_when_gone
from spinney.scheduler.actions.victims import unit
from spinney.scheduler.actions.wishes import as_placed, wish_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.scheduler.actions.victims import Unit
    from spinney.scheduler.actions.wishes import Wish
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.memory import Spot
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict

MOST_TRIED = 4
"""Gangs of one queue for which nodes are looked for in one cycle."""


def drain(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Start a drain in every queue that needs one; yield verdicts that say which nodes it is."""
    del previous
    if session.config.drain_after_s <= 0:
        return
    tried: dict[str, int] = {}
    served = session.drains.queues()
    for gang in _overdue(session):
        queue = session.snapshot.queues.resolve(gang.queue)
        if gang.key not in session.drains:
            if queue in served or tried.get(queue, 0) >= MOST_TRIED:
                continue
            session.drains.make_way(gang)
            wish = _servable(session, gang)
            if wish is None:
                continue
            tried[queue] = tried.get(queue, 0) + 1
            spots = _soonest(session, wish)
            if not spots:
                if not served:
                    session.undrainable[gang.key] = _question(session, wish)
                continue
            session.drains.start(gang, spots)
            served.add(queue)
        yield _told(session, session.verdicts[gang.key])


def _overdue(session: Session) -> list[Gang]:
    """Return the gangs that others passed for too long, the most important and longest first."""
    now, after_s = session.snapshot.now, session.config.drain_after_s
    since = session.memory.passed_since
    found = []
    for gang in session.snapshot.gangs:
        verdict = session.verdicts.get(gang.key)
        if verdict is None or verdict.kind != "unplaced" or gang.key not in since:
            continue
        due = since[gang.key] + after_s
        if gang.key in session.drains.gone:
            continue
        if due > now:
            session.wake(due)
        else:
            found.append(gang)
    return sorted(found, key=lambda g: (-g.priority, since[g.key], g.order))


def _servable(session: Session, gang: Gang) -> Wish | None:
    """Return what *gang* lacks, if room is what it waits for and may ever be found."""
    if gang.key in session.reservations.kept or gang.key in session.reservations.lapsed:
        return None
    wish = wish_of(session, gang)
    if wish is None or session.refusal(gang, wish.demand):
        return None
    if any(cls.shape.share is not None or cls.absent for cls, _ in wish.demand.totals):
        return None
    known = session.memory.undrainable.get(gang.key)
    if known == _question(session, wish):
        session.undrainable[gang.key] = known
        return None
    return wish


def _question(session: Session, wish: Wish) -> int:
    """Return a number that is the same while the answer is, where no node has such room."""
    return hash((wish.demand.signature, session.layout.capacity))


def _soonest(session: Session, wish: Wish) -> tuple[Spot, ...]:
    """Return where *wish* would go with as few pods gone as need be; nothing for nowhere."""
    tried = session.memory.drained.get(wish.gang.key, frozenset())

    def late(one: Unit) -> bool:
        return one.pods[0].node in tried

    places = [
        sorted(units, key=late) for units in by_place(session, wish.demand, _running(session))
    ]
    for units in sorted(places, key=lambda units: any(map(late, units))):
        _, spots = room_when_gone(session, wish, units)
        if spots:
            return spots
    return ()


def _running(session: Session) -> list[Unit]:
    """Return the pods that take room, this cycle's included, each on its own."""
    placed = session.statement.node_of
    gangs = {gang.key: gang for gang in session.snapshot.standing}
    if placed:
        gangs |= {gang.key: as_placed(session, gang) for gang in session.snapshot.gangs}
    return [
        unit(session, gang, (pod,))
        for gang in gangs.values()
        for leaf in gang.root.leaves()
        for pod in leaf.active
        if pod.ours and pod.key not in session.displaced
    ]


def _told(session: Session, verdict: Verdict) -> Verdict:
    names = session.drains.names(verdict.gang)
    nodes = names[0] if len(names) == 1 else f"{len(names)} nodes such as {names[0]}"
    text = f"what becomes free on {nodes} is kept for it"
    if text in verdict.reason:
        return verdict
    return replace(verdict, reason=f"{verdict.reason}; {text}")
