"""What of a gang is to be placed now, as a tree of batches of equal pods.

The minimum of a gang is one demand; a pod beyond the minimum is another. Both keep the gang's
tree, with its constraints and the nodes that its pods hold already.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.shapes import PodInfo

MAX_CHOICES = 64
"""Ways to choose children of groups that need only some; further ones are not tried."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pods of one class that go under the same constraints."""

    cls: PodClass
    pods: tuple[PodInfo, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """One group's share of what is to be placed."""

    name: str
    required: str
    preferred: str
    children: tuple[Demand, ...]
    batches: tuple[Batch, ...]
    held: tuple[int, ...]
    """Nodes that pods of the group are on."""
    totals: tuple[tuple[PodClass, int], ...]
    """How many pods of which class, children included; the hardest class first."""
    signature: int
    """Equal for demands that differ in the names of pods and groups only."""
    alternatives: tuple[Demand, ...] = ()
    """Other demands that would do as well, where a group needs only some of its children."""
    followers: tuple[tuple[Batch, ...], ...] = ()
    """What has to go to the same domain afterwards: one that holds it too is the better one."""

    @property
    def pods(self) -> int:
        """How many pods are to be placed."""
        return sum(count for _, count in self.totals)

    def need(self) -> NDArray[np.int64]:
        """Return the sum of all requests."""
        total = np.zeros_like(self.totals[0][0].vector)
        for cls, count in self.totals:
            total += cls.vector * count
        return total

    @property
    def constrained(self) -> bool:
        """Whether the group or one below it has a required domain."""
        return bool(self.required) or any(child.constrained for child in self.children)


def floor_demand(session: Session, gang: Gang) -> Demand | None:
    """Return what the gang's minimum lacks, or None when it lacks nothing.

    Where a group needs only some of its children there are several ways; the demand is the first
    and has the others as its alternatives.
    """
    found: dict[int, Demand] = {}
    for leaves in itertools.islice(_choices(session, gang.root), MAX_CHOICES):
        demand = _floor(session, gang, leaves)
        if demand is not None:
            followers = tuple(_batches(session, pods) for pods in gang.followers)
            found.setdefault(demand.signature, replace(demand, followers=followers))
    if len(found) < 2:
        return next(iter(found.values()), None)
    first, *others = found.values()
    signature = hash(tuple(found))
    return replace(first, alternatives=tuple(others), signature=signature)


def _floor(session: Session, gang: Gang, leaves: frozenset[str]) -> Demand | None:
    def pick(leaf: Group) -> tuple[PodInfo, ...]:
        if leaf.name not in leaves:
            return ()
        placed = sum(pod.key in session.statement.node_of for pod in leaf.pending)
        left = [pod for pod in leaf.pending if pod.key not in session.statement.node_of]
        return tuple(left[: max(0, leaf.missing - placed)])

    return _demand(session, gang.root, pick)


def _choices(session: Session, group: Group) -> Iterator[frozenset[str]]:
    """Yield sets of leaves whose minimums together are the group's, the easiest first.

    Of children that ask for the same it matters only how many are chosen, so the first are.
    """
    if not group.children:
        yield frozenset((group.name,))
        return
    lacking = [child for child in group.children if not child.satisfied and child.satisfiable]
    wanted = max(0, group.needed - sum(child.satisfied for child in group.children))
    kinds = [lacking] if wanted == len(lacking) else _kinds(session, lacking)
    for chosen in _picks(kinds, wanted):
        options = [tuple(itertools.islice(_choices(session, c), MAX_CHOICES)) for c in chosen]
        for parts in itertools.product(*options):
            yield frozenset().union(*parts)


def _kinds(session: Session, children: Iterable[Group]) -> list[list[Group]]:
    """Return *children*, those that ask for the same together, the easiest to place first."""
    found: dict[object, list[Group]] = {}
    for child in children:
        found.setdefault(_kind(session, child), []).append(child)
    return sorted(
        found.values(), key=lambda alike: (not _may_fit(session, alike[0]), _lacks(alike[0]))
    )


def _lacks(group: Group) -> int:
    return sum(leaf.missing for leaf in group.leaves())


def _kind(session: Session, group: Group) -> object:
    lacking = group.pending[: group.missing]
    return (
        group.required,
        group.preferred,
        group.minimum,
        tuple(session.class_of(pod).number for pod in lacking),
        _held(session, group),
        tuple(_kind(session, child) for child in group.children),
    )


def _may_fit(session: Session, group: Group) -> bool:
    """Tell whether each pod that the group certainly needs fits some node by itself."""
    if group.children and group.needed < len(group.children):
        return True
    if group.children:
        return all(_may_fit(session, child) for child in group.children)
    classes = {session.class_of(pod).number: pod for pod in group.pending[: group.missing]}
    return all(session.room_bound(session.class_of(pod)).any() for pod in classes.values())


def _picks(kinds: Sequence[list[Group]], wanted: int) -> Iterator[list[Group]]:
    """Yield all ways to choose *wanted* groups, as many of the first kinds as possible first."""
    if wanted == 0:
        yield []
        return
    if not kinds or sum(map(len, kinds)) < wanted:
        return
    first, *others = kinds
    for count in range(min(wanted, len(first)), -1, -1):
        for rest in _picks(others, wanted - count):
            yield [*first[:count], *rest]


def growth_demand(session: Session, gang: Gang, pods: tuple[PodInfo, ...]) -> Demand:
    """Return *pods*, of one leaf, as a demand under the gang's constraints."""
    chosen = {pod.key for pod in pods}

    def pick(leaf: Group) -> tuple[PodInfo, ...]:
        return tuple(pod for pod in leaf.pending if pod.key in chosen)

    found = _demand(session, gang.root, pick)
    assert found is not None, "growth of no pods"
    return found


def optional_groups(session: Session, gang: Gang) -> Iterator[tuple[Group, Demand | None]]:
    """Yield the groups that the gang can do without and that lack their minimum, each with it.

    The gang's own minimum has to be placed. Such a group is placed whole before it may grow;
    None stands for one whose pods do not do for its minimum.
    """
    for group in list(_unsatisfied(session, gang.root)):
        if not group.satisfiable:
            yield group, None
            continue
        demands = (_floor(session, gang, leaves) for leaves in _choices(session, group))
        first = next((found for found in demands if found is not None), None)
        if first is not None:
            yield group, first


def _unsatisfied(session: Session, group: Group) -> Iterator[Group]:
    for child in group.children:
        if _has_minimum(session, child):
            yield from _unsatisfied(session, child)
        else:
            yield child


def _has_minimum(session: Session, group: Group) -> bool:
    if group.children:
        return sum(_has_minimum(session, child) for child in group.children) >= group.needed
    placed = sum(pod.key in session.statement.node_of for pod in group.pending)
    return len(group.active) + placed >= group.minimum


def _demand(
    session: Session, group: Group, pick: Callable[[Group], tuple[PodInfo, ...]]
) -> Demand | None:
    children = tuple(
        found for child in group.children if (found := _demand(session, child, pick)) is not None
    )
    batches = () if group.children else _batches(session, pick(group))
    if not children and not batches:
        return None
    return make_demand(
        group.name, group.required, group.preferred, children, batches, _held(session, group)
    )


def make_demand(
    name: str,
    required: str,
    preferred: str,
    children: tuple[Demand, ...],
    batches: tuple[Batch, ...],
    held: tuple[int, ...],
) -> Demand:
    """Return a demand with its totals, its children and batches ordered from hard to easy."""
    children = tuple(sorted(children, key=_hardness, reverse=True))
    counts: dict[int, tuple[PodClass, int]] = {}
    for cls, count in _counts(children, batches):
        counts[cls.number] = (cls, counts.get(cls.number, (cls, 0))[1] + count)
    totals = tuple(sorted(counts.values(), key=lambda t: _class_order(t[0])))
    signature = hash(
        (
            required,
            preferred,
            tuple(child.signature for child in children),
            tuple((b.cls.identity, len(b.pods)) for b in batches),
            held,
        )
    )
    return Demand(name, required, preferred, children, batches, held, totals, signature)


def _counts(children: Iterable[Demand], batches: Iterable[Batch]) -> Iterable[tuple[PodClass, int]]:
    for child in children:
        yield from child.totals
    for batch in batches:
        yield batch.cls, len(batch.pods)


def _hardness(demand: Demand) -> tuple[bool, bool, bool, int, int]:
    """Sort key: what follows no other pods, what is pinned, constrained, large."""
    independent = not any(cls.shape.pod_affinity for cls, _ in demand.totals)
    main = demand.totals[0][0].main
    wanted = int(demand.need()[main])
    return (independent, bool(demand.held), demand.constrained, wanted, demand.pods)


def _class_order(cls: PodClass) -> tuple[bool, int, int, int]:
    """Sort key: large pods first; those that follow other pods last."""
    devices, amount = cls.size
    return (bool(cls.shape.pod_affinity), -devices, -amount, cls.number)


def _batches(session: Session, pods: tuple[PodInfo, ...]) -> tuple[Batch, ...]:
    by_class: dict[int, tuple[PodClass, list[PodInfo]]] = {}
    for pod in pods:
        cls = session.class_of(pod)
        by_class.setdefault(cls.number, (cls, []))[1].append(pod)
    ordered = sorted(by_class.values(), key=lambda found: _class_order(found[0]))
    return tuple(Batch(cls, tuple(members)) for cls, members in ordered)


def _held(session: Session, group: Group) -> tuple[int, ...]:
    rows: set[int] = set()
    _collect_held(session, group, rows)
    return tuple(sorted(rows))


def _collect_held(session: Session, group: Group, rows: set[int]) -> None:
    index, statement = session.layout.index, session.statement
    for pod in (*group.active, *group.anchors):
        if pod.node in index:
            rows.add(index[pod.node])
    for found in (statement.node_of, statement.kept_for):
        rows.update(found[pod.key] for pod in group.pending if pod.key in found)
    for child in group.children:
        _collect_held(session, child, rows)
