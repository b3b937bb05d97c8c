"""How good a gang's placement is: 1.0 is the best the topology allows.

For each group with a preferred level it is the fewest domains of that level that could hold the
group's pods if the cluster were empty, over the number they are spread over. Groups weigh by their
pods; a group without a preference has nothing to lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.topology.domains import Partition, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.session import PodClass, Session


@dataclass(frozen=True, slots=True)
class _Standing:
    """A group's pods on nodes."""

    group: Group
    rows: tuple[int, ...]
    classes: tuple[tuple[PodClass, int], ...]


def placement_score(session: Session, gang: Gang) -> float:
    """Return the score of the pods of *gang* that are on nodes, from above 0 to 1."""
    weight, total = 0, 0.0
    for standing in _groups(session, gang.root):
        pods = len(standing.rows)
        if not pods:
            continue
        weight += pods
        total += pods * _share(session, standing)
    return round(total / weight, 4) if weight else 1.0


def _share(session: Session, standing: _Standing) -> float:
    key = standing.group.preferred
    if not key:
        return 1.0
    codes = session.layout.domains(key).codes[list(standing.rows)]
    used = len(set(codes.tolist()))
    return min(1.0, _fewest(session, standing, key) / used)


def _fewest(session: Session, standing: _Standing, key: str) -> int:
    part = split(session.layout, session.layout.rows, key)
    if not part.count:
        return 1
    capacity = np.sort(_empty_capacity(session, standing, part))[::-1]
    return int(np.searchsorted(np.cumsum(capacity), 1.0 - 1e-9)) + 1


def _empty_capacity(
    session: Session, standing: _Standing, part: Partition
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return what share of the group each domain could hold if it were empty."""
    room = session.layout.allocatable[part.rows]
    capacity = np.full(part.count, np.inf)
    need = np.zeros(room.shape[1], np.int64)
    for cls, count in standing.classes:
        need += cls.vector * count
        fits = np.full(len(part.rows), count, np.int64)
        for column, amount in cls.columns:
            fits = np.minimum(fits, room[:, column] // amount)
        fits = np.where(session.allowed(cls.shape)[part.rows], fits, 0)
        np.minimum(capacity, part.sums(fits) / count, out=capacity)
    for at in np.flatnonzero(need):
        np.minimum(capacity, part.sums(room[:, at]) / need[at], out=capacity)
    return capacity


def _groups(session: Session, group: Group) -> Iterator[_Standing]:
    rows, classes = _standing(session, group)
    yield _Standing(group, rows, classes)
    for child in group.children:
        yield from _groups(session, child)


def _standing(
    session: Session, group: Group
) -> tuple[tuple[int, ...], tuple[tuple[PodClass, int], ...]]:
    index, placed = session.layout.index, session.statement.node_of
    rows: list[int] = []
    counts: dict[int, tuple[PodClass, int]] = {}
    for leaf in group.leaves():
        for pod in (*leaf.active, *leaf.pending):
            row = placed.get(pod.key, index.get(pod.node, -1))
            if row < 0:
                continue
            rows.append(row)
            cls = session.class_of(pod)
            counts[cls.number] = (cls, counts.get(cls.number, (cls, 0))[1] + 1)
    return tuple(rows), tuple(counts.values())
