"""Which domains could hold a demand, and in which order to try them.

`enough` is a necessary condition, computed for all domains of a level at once: it never excludes
a domain that could hold the demand, and for pods of one class without groups below it is exact.
The order leaves large domains whole: the tightest fit first, from the broadest level down.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.demand import make_demand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spinney.scheduler.demand import Batch, Demand
    from spinney.scheduler.session import Session
    from spinney.scheduler.snapshot import Layout

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]

_EPSILON = 1e-9
FOLLOWERS_LOOKED_AT = 8
"""Gangs scaled out from one that count for where it goes."""


@dataclass(frozen=True)
class Partition:
    """Nodes split into domains."""

    rows: Ints
    codes: Ints
    """The domain of each of `rows`."""
    count: int

    @functools.cached_property
    def _sorted(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.codes, kind="stable")
        starts = np.searchsorted(self.codes[order], np.arange(self.count + 1))
        return self.rows[order], starts

    def members(self, domain: int) -> Ints:
        """Return the nodes of *domain*, ascending."""
        rows, starts = self._sorted
        return rows[starts[domain] : starts[domain + 1]]

    def sums(self, values: NDArray[np.generic]) -> Floats:
        """Return the sum of *values*, one for each of `rows`, by domain."""
        return np.bincount(self.codes, values, self.count).astype(np.float64)

    def some_member(self, chosen: Ints) -> Ints:
        """Return one node of each of the domains *chosen*, none of which is empty."""
        rows, starts = self._sorted
        return rows[starts[chosen]]


def whole(rows: Ints) -> Partition:
    """Return *rows* as one domain."""
    return Partition(rows, np.zeros(len(rows), np.int64), 1)


def split(layout: Layout, rows: Ints, key: str, within: str = "") -> Partition:
    """Return *rows* split by *key*, and by *within* too; nodes without the labels are left out."""
    domains = layout.domains(key)
    codes, count = domains.codes[rows], len(domains)
    if within and within != key:
        outer = layout.domains(within).codes[rows]
        codes, count = _combined(outer, codes, count)
    kept = codes >= 0
    return (
        Partition(rows, codes, count) if kept.all() else Partition(rows[kept], codes[kept], count)
    )


def _combined(outer: Ints, inner: Ints, count: int) -> tuple[Ints, int]:
    """Number the pairs of *outer* and *inner*; those with a -1 in them are -1."""
    both = (outer >= 0) & (inner >= 0)
    parent = np.full(max(count, 1), -1, np.int64)
    parent[inner[both]] = outer[both]
    if (parent[inner[both]] == outer[both]).all():
        return np.where(both, inner, -1), count
    pairs, codes = np.unique(outer[both] * count + inner[both], return_inverse=True)
    result = np.full(len(outer), -1, np.int64)
    result[both] = codes
    return result, len(pairs)


def enough(session: Session, demand: Demand, part: Partition) -> Bools:
    """Tell for each domain whether it may have room for *demand*."""
    ok = np.ones(part.count, np.bool_)
    for cls, count in demand.totals:
        room = np.minimum(session.room_bound(cls)[part.rows], count)
        ok &= part.sums(room) >= count
    if len(demand.totals) > 1:
        ok &= _resources_suffice(session, demand, part)
    if not ok.any():
        return ok
    for child, alike in _kinds(demand.children):
        if child.required:
            ok &= _domains_within(session, child, part) >= alike
        elif child.constrained:
            ok &= enough(session, child, part)
    return ok


def _kinds(children: Sequence[Demand]) -> list[tuple[Demand, int]]:
    kinds: dict[int, tuple[Demand, int]] = {}
    for child in children:
        kinds[child.signature] = (child, kinds.get(child.signature, (child, 0))[1] + 1)
    return list(kinds.values())


def _resources_suffice(session: Session, demand: Demand, part: Partition) -> Bools:
    need = demand.need()
    ok = np.ones(part.count, np.bool_)
    usable = np.zeros(len(part.rows), np.bool_)
    for cls, _ in demand.totals:
        usable |= session.room_bound(cls)[part.rows] > 0
    for column in np.flatnonzero(need):
        free = np.where(usable, np.maximum(session.idle[part.rows, column], 0), 0)
        ok &= part.sums(free) >= need[column]
    return ok


def _domains_within(session: Session, child: Demand, part: Partition) -> Ints:
    """Return how many groups like *child* each domain may hold, by the child's own domains."""
    layout = session.layout
    codes = layout.domains(child.required).codes[part.rows]
    if child.held:
        pinned = np.unique(layout.domains(child.required).codes[list(child.held)])
        codes = np.where(np.isin(codes, pinned), codes, -1)
    inner, count = _combined(part.codes, codes, len(layout.domains(child.required)))
    kept = inner >= 0
    sub = Partition(part.rows[kept], inner[kept], count)
    fits = enough(session, child, sub)
    times = np.full(count, np.iinfo(np.int64).max)
    for cls, wanted in child.totals:
        room = session.room_bound(cls)[sub.rows]
        total = np.bincount(sub.codes, np.minimum(room, 1 << 32), count)
        np.minimum(times, (total // wanted).astype(np.int64), out=times)
    times = np.where(fits, np.maximum(times, 1), 0)
    owner = np.zeros(count, np.int64)
    owner[sub.codes] = part.codes[kept]
    return np.bincount(owner, np.minimum(times, 1 << 32), part.count).astype(np.int64)


def tightness(session: Session, demand: Demand, part: Partition) -> Floats:
    """Return what share of each domain's free amounts *demand* takes, of the scarcest resource."""
    need = demand.need()
    share = np.zeros(part.count)
    for column in np.flatnonzero(need):
        free = part.sums(np.maximum(session.idle[part.rows, column], 0))
        np.maximum(share, need[column] / np.maximum(free, _EPSILON), out=share)
    return share


def in_order(
    session: Session, demand: Demand, part: Partition, key: str, topology: str, rank: Ints | None
) -> list[int]:
    """Return the domains that may have room, the one to try first first."""
    able = np.flatnonzero(enough(session, demand, part))
    if len(able) < 2:
        return [int(d) for d in able]
    first = part.some_member(able)
    columns: list[NDArray[np.generic]] = [able]
    columns.append(-tightness(session, demand, part)[able])
    for level in reversed(session.layout.levels(key, topology)[:-1]):
        above = split(session.layout, part.rows, level)
        if not above.count:
            continue
        codes = session.layout.domains(level).codes[first]
        share = tightness(session, demand, above)
        columns.append(np.where(codes >= 0, -share[np.maximum(codes, 0)], 0.0))
    if rank is not None:
        best = np.full(part.count, np.iinfo(np.int64).max)
        np.minimum.at(best, part.codes, rank[part.rows])
        columns.append(best[able])
    if demand.followers:
        columns.append(-_room_for_followers(session, demand, part)[able])
    columns.append(-_held_count(session, demand, part)[able])
    return [int(able[at]) for at in np.lexsort(columns)]


def _room_for_followers(session: Session, demand: Demand, part: Partition) -> Ints:
    """Return how many of the demand's followers each domain may hold beside it, in their order."""
    found = np.zeros(part.count, np.int64)
    together: tuple[Batch, ...] = ()
    for batches in demand.followers[:FOLLOWERS_LOOKED_AT]:
        together += batches
        both = make_demand(demand.name, demand.required, "", (demand,), together, demand.held)
        fits = enough(session, both, part)
        found += fits
        if not fits.any():
            break
    return found


def _held_count(session: Session, demand: Demand, part: Partition) -> Floats:
    held = np.zeros(len(session.layout))
    held[list(demand.held)] = 1.0
    return part.sums(held[part.rows])


def fewest_domains(session: Session, demand: Demand, rows: Ints, key: str) -> Ints:
    """Return a rank for every node: filling low ranks first uses few domains of *key*.

    Domains that hold pods of the group come first, then the largest, until what is left fits into
    one: then the tightest such.
    """
    part = split(session.layout, rows, key)
    shares = capacity(session, demand, part)
    held = _held_count(session, demand, part)
    mine = np.flatnonzero(held > 0)
    mine = mine[np.lexsort((mine, -held[mine]))]
    others = np.flatnonzero(held <= 0)
    others = others[np.lexsort((others, -shares[others]))]
    chosen = np.concatenate((mine, _few(others, shares[others], 1.0 - float(shares[mine].sum()))))
    place = np.full(part.count, part.count, np.int64)
    place[chosen] = np.arange(len(chosen))
    rank = np.full(len(session.layout), part.count + 1, np.int64)
    rank[part.rows] = place[part.codes]
    return rank


def _few(ordered: Ints, shares: Floats, wanted: float) -> Ints:
    """Return domains *ordered* by falling *shares* so that the first few hold what is *wanted*."""
    if wanted <= _EPSILON or not len(ordered):
        return ordered
    left = wanted - np.concatenate(([0.0], np.cumsum(shares)[:-1]))
    enough_alone = shares >= left - _EPSILON
    if not enough_alone.any():
        return ordered
    last = int(np.argmax(enough_alone))
    tightest = int(np.flatnonzero(shares >= left[last] - _EPSILON)[-1])
    return np.concatenate(
        (ordered[:last], ordered[[tightest]], np.delete(ordered[last:], tightest - last))
    )


def capacity(session: Session, demand: Demand, part: Partition) -> Floats:
    """Return what share of *demand* each domain could take."""
    share = np.full(part.count, np.inf)
    for cls, count in demand.totals:
        room = np.minimum(session.room_bound(cls)[part.rows], count)
        np.minimum(share, part.sums(room) / count, out=share)
    if len(demand.totals) > 1:
        np.minimum(share, 1.0 / np.maximum(tightness(session, demand, part), _EPSILON), out=share)
    return share
