"""Finding a place for a whole demand: domains first, then nodes, with backtracking.

The search keeps a list of goals. A goal is a group that needs a domain, or a batch of equal pods
that needs nodes. The first goal is answered by one of its options, in order of preference;
what that leaves is the next goal. When a goal has no option left, everything since is rolled
back and the goal before tries its next one. States that were found hopeless are not visited
twice, so that equal groups are not tried in every order.

The search runs in two passes. *Greedy* fills a domain best-fit, with one way to do it, and honours
preferences. Where that fails and another filling might have worked, *exhaustive* tries every
distribution of pods over the nodes of small domains and looks at hard constraints only. Each pass
has a bound; the result says whether it was hit, for then nothing is proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from spinney.scheduler.topology import domains

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.demand import Demand
    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.shapes import PodInfo

    Ints = NDArray[np.int64]

Outcome = Literal["placed", "impossible", "gave up"]
"""``impossible`` is proven; ``gave up`` is not."""


@dataclass(frozen=True, slots=True, eq=False)
class _Area:
    """Nodes to choose from."""

    rows: Ints
    rank: Ints | None
    """For every node of the cluster; low ranks are filled first."""
    key: int
    """Equal for equal areas of one search."""


@dataclass(frozen=True, slots=True, eq=False)
class _GroupGoal:
    demand: Demand
    area: _Area

    @property
    def key(self) -> int:
        return hash((self.demand.signature, self.area.key))


@dataclass(frozen=True, slots=True, eq=False)
class _BatchGoal:
    cls: PodClass
    pods: tuple[PodInfo, ...]
    area: _Area

    @property
    def key(self) -> int:
        return hash((self.cls.number, len(self.pods), self.area.key))


@dataclass(frozen=True, slots=True, eq=False)
class _Shelf:
    """The nodes over which one batch is distributed, in an order where equal ones are adjacent."""

    cls: PodClass
    rows: list[int]
    room: list[int]
    room_after: list[int]
    like_last: list[bool]
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class _NodeGoal:
    """Decides how many of *pods* go to the node *at* of the shelf."""

    shelf: _Shelf
    pods: tuple[PodInfo, ...]
    at: int
    most: int
    """No more than on the last node, if it was equal: equal nodes are filled in one order."""

    @property
    def key(self) -> int:
        return hash((self.shelf.key, len(self.pods), self.at, self.most))


_Goal = _GroupGoal | _BatchGoal | _NodeGoal


@dataclass(frozen=True, slots=True, eq=False)
class _Goals:
    """A linked list: tails are shared between branches."""

    first: _Goal
    rest: _Goals | None
    key: int


def _push(goal: _Goal, rest: _Goals | None) -> _Goals:
    return _Goals(goal, rest, hash((goal.key, rest.key if rest else 0)))


class _OutOfStepsError(Exception):
    """The bound of the pass is reached."""


def place(
    session: Session, demand: Demand, topology: str = "", *, steps: int | None = None
) -> Outcome:
    """Place all of *demand* on *session*, or nothing.

    *topology* names the binding whose levels lie between preferred and required. *steps* bounds
    both passes where the configuration is more patient.
    """
    outcome = _place(session, demand, topology, steps)
    for other in demand.alternatives:
        if outcome == "placed":
            break
        found = _place(session, other, topology, steps)
        outcome = found if found == "placed" or outcome == "impossible" else outcome
    return outcome


def _place(session: Session, demand: Demand, topology: str, steps: int | None) -> Outcome:
    start = session.statement.checkpoint()
    config = session.config
    domain_steps = config.domain_steps if steps is None else min(steps, config.domain_steps)
    node_steps = config.node_steps if steps is None else min(steps, config.node_steps)
    greedy = _Pass(session, demand, topology, domain_steps, exhaustive=False)
    outcome = greedy.run()
    if outcome == "gave up":
        session.statement.rollback(start)
        exhaustive = _Pass(session, demand, topology, node_steps, exhaustive=True)
        outcome = exhaustive.run()
    if outcome != "placed":
        session.statement.rollback(start)
    return outcome


class _Pass:
    """One run of the search in one mode."""

    def __init__(
        self, session: Session, demand: Demand, topology: str, steps: int, *, exhaustive: bool
    ) -> None:
        self._session = session
        self._demand = demand
        self._constraints = sorted(_constraint_keys(demand))
        self._topology = topology
        self._steps = steps
        self._exhaustive = exhaustive
        self._held = np.array(sorted(_held_nodes(demand)), np.int64)
        classes = [cls for cls, _ in demand.totals]
        self._symmetric = not any(c.shape.share or session.coupled(c) for c in classes)
        """Whether domains with equal nodes are the same to all pods."""
        self._proof = True
        """Whether a failure so far means that there is no placement."""
        self._dead: set[tuple[int, int]] = set()
        """Goals with the state in which they cannot be fulfilled."""

    def run(self) -> Outcome:
        """Place the demand, or leave whatever was tried last for the caller to roll back."""
        rows = self._session.layout.rows
        goals: _Goals | None = _push(_GroupGoal(self._demand, _Area(rows, None, 0)), None)
        stack: list[tuple[int, _Goals, Iterator[_Goals | None], int]] = []
        try:
            while goals is not None:
                found = self._open(goals, stack)
                if found is False:
                    return "impossible" if self._proof else "gave up"
                goals = found
        except _OutOfStepsError:
            return "gave up"
        return "placed"

    def _open(
        self, goals: _Goals, stack: list[tuple[int, _Goals, Iterator[_Goals | None], int]]
    ) -> _Goals | Literal[False] | None:
        """Answer the first of *goals*, or change an earlier answer. False when all are used up."""
        statement = self._session.statement
        if (goals.key, statement.fingerprint) not in self._dead:
            options = self._options(goals.first, goals.rest)
            stack.append((statement.checkpoint(), goals, options, statement.fingerprint))
        while stack:
            checkpoint, opened, options, fingerprint = stack[-1]
            statement.rollback(checkpoint)
            try:
                return next(options)
            except StopIteration:
                self._dead.add((opened.key, fingerprint))
                stack.pop()
                self._steps -= 1
                if self._steps < 0:
                    raise _OutOfStepsError from None
        return False

    def _options(self, goal: _Goal, rest: _Goals | None) -> Iterator[_Goals | None]:
        if isinstance(goal, _GroupGoal):
            return self._group(goal, rest)
        if isinstance(goal, _NodeGoal):
            return self._node(goal, rest)
        if self._session.coupled(goal.cls):
            return self._one_by_one(goal, rest)
        return self._batch(goal, rest)

    # Groups

    def _group(self, goal: _GroupGoal, rest: _Goals | None) -> Iterator[_Goals | None]:
        for area in self._areas(goal.demand, goal.area):
            goals = rest
            for batch in reversed(goal.demand.batches):
                goals = _push(_BatchGoal(batch.cls, batch.pods, area), goals)
            for child in reversed(goal.demand.children):
                goals = _push(_GroupGoal(child, area), goals)
            yield goals

    def _areas(self, demand: Demand, area: _Area) -> Iterator[_Area]:
        """Yield where the group may go, best first."""
        session, layout = self._session, self._session.layout
        rows = self._pinned(demand, area.rows)
        keys = self._keys(demand)
        for key in keys:
            part = domains.split(layout, rows, key, demand.required)
            failed: set[object] = set()
            for at in domains.in_order(session, demand, part, key, self._topology, area.rank):
                members = part.members(at)
                if failed and self._look(members, key) in failed:
                    continue
                rank = area.rank
                if demand.preferred and key != demand.preferred and not self._exhaustive:
                    rank = domains.fewest_domains(session, demand, members, demand.preferred)
                yield _Area(members, rank, hash((area.key, demand.required, key, at)))
                if (look := self._look(members, key)) is not None:
                    failed.add(look)
        if demand.required:
            return
        if not domains.enough(session, demand, domains.whole(rows)).all():
            return
        if demand.preferred:
            rank = domains.fewest_domains(session, demand, rows, demand.preferred)
            yield _Area(rows, rank, hash((area.key, demand.preferred)))
        else:
            yield area

    def _look(self, members: Ints, key: str) -> object:
        """Return all by which this search could tell a domain of *key* from another one.

        What fails in one fails in those that look the same. None where that cannot be said: where
        pods look at each other, or the domain is split by another constraint.
        """
        session = self._session
        if not self._symmetric:
            return None
        above = []
        for other in self._constraints:
            codes = session.layout.domains(other).codes[members]
            if other != key and len(codes) and (codes != codes[0]).any():
                return None
            above.append(int(codes[0]) if other != key and len(codes) else -1)
        room = [session.room_bound(cls)[members] for cls, _ in self._demand.totals]
        held = np.isin(members, self._held).astype(np.int64)
        nodes = np.column_stack((session.idle[members], *room, held))
        return (tuple(above), nodes[np.lexsort(nodes.T)].tobytes())

    def _pinned(self, demand: Demand, rows: Ints) -> Ints:
        """Return the nodes of the domains that the group's pods are in already."""
        if not demand.required or not demand.held:
            return rows
        codes = self._session.layout.domains(demand.required).codes
        mine = np.unique(codes[list(demand.held)])
        return rows[np.isin(codes[rows], mine[mine >= 0])]

    def _keys(self, demand: Demand) -> list[str]:
        """Return the levels at which to look for one domain, narrow to broad."""
        required = [demand.required] if demand.required else []
        if self._exhaustive or not demand.preferred:
            return required
        levels = self._session.layout.levels(demand.preferred, self._topology)
        if demand.required in levels:
            return list(reversed(levels[levels.index(demand.required) :]))
        if demand.required in (demand.preferred, ""):
            return list(reversed(levels))
        below = self._session.layout.levels(demand.required, self._topology)
        return required if demand.preferred in below else [demand.preferred, *required]

    # Batches

    def _batch(self, goal: _BatchGoal, rest: _Goals | None) -> Iterator[_Goals | None]:
        rows = self._fill(goal)
        if rows is None:
            return
        self._session.statement.place(goal.cls, goal.pods, rows)
        yield rest
        if rest is None:
            return
        if not self._exhaustive:
            self._proof = False
            return
        shelf = self._shelf(goal)
        if shelf is None:
            self._proof = False
        else:
            yield from self._node(_NodeGoal(shelf, goal.pods, 0, len(goal.pods)), rest)

    def _fill(self, goal: _BatchGoal) -> Ints | None:
        """Return the node for each pod, the best nodes filled first; None when room lacks."""
        rows, wanted = goal.area.rows, len(goal.pods)
        room = np.minimum(self._session.room(goal.cls)[rows], wanted)
        if int(room.sum()) < wanted:
            return None
        fits = room > 0
        rows, room = rows[fits], room[fits]
        order = self._order(goal, rows)
        total = np.cumsum(room[order])
        last = int(np.searchsorted(total, wanted))
        counts = room[order[: last + 1]].copy()
        counts[last] -= total[last] - wanted
        return np.repeat(rows[order[: last + 1]], counts)

    def _order(self, goal: _BatchGoal, rows: Ints) -> Ints:
        score = -self._session.score(goal.cls, rows)
        if goal.area.rank is None:
            return np.argsort(score, kind="stable")
        return np.lexsort((score, goal.area.rank[rows]))

    def _one_by_one(self, goal: _BatchGoal, rest: _Goals | None) -> Iterator[_Goals | None]:
        """Options for a class whose room depends on where pods are: one pod, each node it could."""
        pod, others = goal.pods[:1], goal.pods[1:]
        rows = goal.area.rows
        rows = rows[self._session.room(goal.cls)[rows] > 0]
        after = _push(_BatchGoal(goal.cls, others, goal.area), rest) if others else rest
        for row in rows[self._order(goal, rows)].tolist():
            self._session.statement.place(goal.cls, pod, np.array([row], np.int64))
            yield after
        self._proof = False

    # Nodes, one at a time

    def _shelf(self, goal: _BatchGoal) -> _Shelf | None:
        """Return the nodes to distribute over, or None when they are too many to try."""
        session = self._session
        room = session.room(goal.cls)
        rows = goal.area.rows[room[goal.area.rows] > 0]
        if len(rows) > session.config.exhaustive_nodes:
            return None
        look = self._looks(rows)
        best = {int(rows[at]): place for place, at in enumerate(self._order(goal, rows))}
        first: dict[tuple[object, ...], int] = {}
        for row in sorted(best, key=lambda r: best[r]):
            first.setdefault(look[row], best[row])
        ordered = sorted(best, key=lambda r: (first[look[r]], r))
        counts = [int(room[row]) for row in ordered]
        after = np.cumsum([0, *reversed(counts)])[::-1][1:].tolist()
        alike = [at > 0 and look[row] == look[ordered[at - 1]] for at, row in enumerate(ordered)]
        key = hash((goal.key, tuple(ordered), tuple(alike)))
        return _Shelf(goal.cls, ordered, counts, after, alike, key)

    def _looks(self, rows: Ints) -> dict[int, tuple[object, ...]]:
        """Return for each node all by which this search could tell it from another."""
        session = self._session
        room = [session.room_bound(cls)[rows].tolist() for cls, _ in self._demand.totals]
        codes = [session.layout.domains(key).codes[rows].tolist() for key in self._constraints]
        idle = [row.tobytes() for row in session.idle[rows]]
        shared = [session.shares.look(row) for row in rows.tolist()]
        return dict(zip(rows.tolist(), zip(idle, shared, *room, *codes, strict=True), strict=True))

    def _node(self, goal: _NodeGoal, rest: _Goals | None) -> Iterator[_Goals | None]:
        shelf, at, wanted = goal.shelf, goal.at, len(goal.pods)
        if at == len(shelf.rows):
            return
        most = min(shelf.room[at], wanted)
        if shelf.like_last[at]:
            most = min(most, goal.most)
        row = shelf.rows[at]
        for count in range(most, -1, -1):
            left = goal.pods[count:]
            if len(left) > shelf.room_after[at]:
                return
            if count:
                here = np.full(count, row, np.int64)
                self._session.statement.place(shelf.cls, goal.pods[:count], here)
            yield _push(_NodeGoal(shelf, left, at + 1, count), rest) if left else rest


def _held_nodes(demand: Demand) -> set[int]:
    return set(demand.held).union(*(_held_nodes(child) for child in demand.children))


def _constraint_keys(demand: Demand) -> set[str]:
    found = {demand.required} if demand.required else set()
    return found.union(*(_constraint_keys(child) for child in demand.children))
