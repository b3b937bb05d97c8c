"""Who wants room that others may have to leave: minimums, and growth beyond them.

Gangs come in the order in which they would be placed: queues in turn, priority, minimums before
growth, age. A gang grows by one step in a cycle: one pod, or one group that it can do without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spinney.scheduler.actions.turns import Turns
from spinney.scheduler.demand import floor_demand, growth_demand, optional_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.scheduler.actions.turns import Stage
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.queues.model import Amounts
    from spinney.scheduler.session import Session
    from spinney.scheduler.shapes import PodInfo


@dataclass(frozen=True, slots=True)
class Wish:
    """What one gang lacks: its minimum, or *pods* beyond it."""

    gang: Gang
    """With the pods that this cycle placed counted as on nodes."""
    demand: Demand
    """As the session that was asked states it."""
    amount: Amounts
    """What it counts for in a queue."""
    pods: tuple[PodInfo, ...] = ()

    def on(self, session: Session) -> Demand | None:
        """Return the same as a demand on another session."""
        if self.pods:
            return growth_demand(session, self.gang, self.pods)
        return floor_demand(session, self.gang)


def wish_of(session: Session, gang: Gang) -> Wish | None:
    """Return what *gang* lacks next; None when that is nothing or room is kept for it."""
    if gang.waiting or not _unserved(session, gang):
        return None
    tree = as_placed(session, gang)
    demand = floor_demand(session, tree)
    if demand is not None:
        return Wish(tree, demand, session.amount(demand))
    pods = _growth(session, tree)
    if not pods:
        return None
    demand = growth_demand(session, tree, pods)
    return Wish(tree, demand, session.amount(demand), pods)


def _unserved(session: Session, gang: Gang) -> bool:
    verdict = session.verdicts.get(gang.key)
    if verdict is None:
        return gang.key not in session.reservations.kept
    return verdict.kind == "unplaced" or (verdict.kind == "placed" and bool(verdict.left))


def as_placed(session: Session, gang: Gang) -> Gang:
    """Return *gang* with the pods that this cycle placed as active ones."""
    if not any(pod.key in session.statement.node_of for pod in _pending(gang.root)):
        return gang
    return replace(gang, root=_as_placed(session, gang.root))


def _as_placed(session: Session, group: Group) -> Group:
    nodes, placed = session.layout.nodes, session.statement.node_of
    new = [pod for pod in group.pending if pod.key in placed]
    return replace(
        group,
        children=tuple(_as_placed(session, child) for child in group.children),
        active=(
            *group.active,
            *(replace(pod, node=nodes[placed[pod.key]].name, state="active") for pod in new),
        ),
        pending=tuple(pod for pod in group.pending if pod.key not in placed),
    )


def _pending(group: Group) -> Iterator[PodInfo]:
    for leaf in group.leaves():
        yield from leaf.pending


def _growth(session: Session, gang: Gang) -> tuple[PodInfo, ...]:
    """Return the pods of the next step beyond the minimum: a whole group, or one pod."""
    kept = session.reservations.kept.get(gang.key)
    promised = {spot.pod.key for spot in kept.spots} if kept is not None else set[str]()
    closed: set[str] = set()
    for group, demand in optional_groups(session, gang):
        closed.update(leaf.name for leaf in group.leaves())
        if demand is not None:
            return _pods(demand)
    leaves = [leaf for leaf in gang.root.leaves() if leaf.name not in closed]
    for leaf in sorted(leaves, key=lambda leaf: (_ratio(leaf), leaf.name)):
        left = [pod for pod in leaf.pending if pod.key not in promised]
        if left:
            return (left[0],)
    return ()


def _pods(demand: Demand) -> tuple[PodInfo, ...]:
    own = [pod for batch in demand.batches for pod in batch.pods]
    return (*own, *(pod for child in demand.children for pod in _pods(child)))


def _ratio(leaf: Group) -> float:
    return len(leaf.active) / max(1, leaf.minimum)


def in_turn(session: Session) -> Iterator[Gang]:
    """Yield the gangs that lack something in their order, which what comes to pass changes."""
    gangs = [g for g in session.snapshot.gangs if not g.waiting and _unserved(session, g)]
    if session.ledger is None:
        stages = {gang.key: _stage(session, gang) for gang in gangs}
        yield from sorted(gangs, key=lambda g: (-g.priority, stages[g.key], g.created, g.key))
        return
    turns = Turns(session.ledger)
    for gang in gangs:
        if not session.ledger.tree.problem(gang.queue):
            turns.push(gang, _stage(session, gang), session.pods_amount(_next(session, gang)))
    while turn := turns.take():
        yield turn.gang


def _next(session: Session, gang: Gang) -> list[PodInfo]:
    """Return the pods of about the next step of *gang*: enough to put it in order."""
    placed, leaves = session.statement.node_of, list(gang.root.leaves())
    lacking = [pod for leaf in leaves for pod in leaf.pending[: leaf.missing]]
    found = [pod for pod in lacking if pod.key not in placed]
    if found:
        return found
    return [p for leaf in leaves for p in leaf.pending if p.key not in placed][:1]


def _stage(session: Session, gang: Gang) -> Stage:
    """Return how far along the gang is: below its minimum, at it, or above it."""
    placed = session.statement.node_of
    found: Stage = 1
    for leaf in gang.root.leaves():
        have = len(leaf.active) + sum(pod.key in placed for pod in leaf.pending)
        if have < leaf.minimum:
            return 0
        if have > leaf.minimum:
            found = 2
    return found
