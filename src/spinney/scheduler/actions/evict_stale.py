"""Eviction of stale gangs: one that runs below its minimum does no work and holds room.

A gang has a grace period in which its missing pods may come back. One of which a pod has ended
well is on its way out by itself and is left alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spinney.scheduler.actions.displace import displace
from spinney.scheduler.actions.victims import unit
from spinney.scheduler.verdict import Eviction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.session import Session
    from spinney.scheduler.verdict import Verdict


def evict_stale(session: Session, previous: Mapping[str, Verdict]) -> Iterator[Verdict]:
    """Displace gangs that were below their minimum for longer than their grace. No verdicts."""
    del previous
    now = session.snapshot.now
    since: dict[str, float] = {}
    displaced = {eviction.gang for eviction in session.evictions}
    for gang in session.snapshot.short:
        if gang.key in displaced or not _broken(session, gang):
            continue
        known, said = session.memory.stale_since.get(gang.key, now), gang.timing.stale_since_s
        since[gang.key] = known if said is None else min(known, said)
        given = gang.timing.stale_grace_s
        grace_s = session.config.stale_grace_s if given is None else given
        if grace_s < 0:
            continue
        if now - since[gang.key] < grace_s:
            session.wake(since[gang.key] + grace_s)
            continue
        _evict(session, gang, now - since[gang.key])
    session.memory = replace(session.memory, stale_since=since)
    yield from ()


def _broken(session: Session, gang: Gang) -> bool:
    if gang.satisfied or gang.key in session.reservations.kept:
        return False
    placed = session.statement.node_of
    coming = any(pod.key in placed for leaf in gang.root.leaves() for pod in leaf.pending)
    return not coming and not _succeeded(session, gang)


def _succeeded(session: Session, gang: Gang) -> bool:
    pods = session.snapshot.pods.values()
    return any(pod.gang == gang.key and pod.succeeded for pod in pods)


def _evict(session: Session, gang: Gang, stale_s: float) -> None:
    pods = tuple(pod for leaf in gang.root.leaves() for pod in leaf.active if pod.ours)
    short = next(leaf for leaf in gang.root.leaves() if leaf.missing)
    message = (
        f"group {short.name} of {gang.key} has {len(short.active)} of {short.minimum} pods "
        f"for {stale_s:.0f} s"
    )
    session.evictions += [
        Eviction(pod.key, pod.uid, pod.node, gang.key, "evict-stale", "", message) for pod in pods
    ]
    displace(session, [unit(session, gang, pods)])
