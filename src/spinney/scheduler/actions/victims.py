"""Who may be displaced, in which pieces and in which order.

What is displaced is a pod above a minimum, a group that its gang can do without, or all that a gang
has besides; never half of a minimum. A gang comes to the end of its surplus before its minimum is
touched, so whatever set of units is taken in this order, a gang is whole or gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.clock import parse_rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from spinney.scheduler.gangs import Gang, Group
    from spinney.scheduler.queues.model import Amounts
    from spinney.scheduler.session import Session
    from spinney.scheduler.shapes import PodInfo


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """What is displaced together: surplus, or what a gang has besides surplus."""

    gang: Gang
    pods: tuple[PodInfo, ...]
    surplus: bool
    amount: Amounts


def unit(session: Session, gang: Gang, pods: Iterable[PodInfo], *, surplus: bool = False) -> Unit:
    """Return *pods* of *gang* as one unit."""
    found = tuple(pods)
    return Unit(gang, found, surplus, session.pods_amount(found))


def candidates(session: Session, gang: Gang) -> Iterator[Gang]:
    """Yield the gangs on nodes that may be displaced for *gang* as far as they themselves go."""
    mine = family(gang)
    for other in session.snapshot.standing:
        if other.preemptible and other.key not in session.promised and family(other) != mine:
            yield other


def family(gang: Gang) -> str:
    """Return the key that gangs which share a base gang have in common."""
    for leaf in gang.root.leaves():
        for pod in (*leaf.active, *leaf.pending):
            return pod.base_gang or pod.gang or pod.key
    return gang.key


def units_of(session: Session, gang: Gang, protected_s: float) -> list[Unit]:
    """Return what may be displaced of *gang*, surplus first; its minimum not for *protected_s*."""
    found = session.units.get(gang.key)
    if found is None:
        found = session.units[gang.key] = _all_units(session, gang)
    if found and not found[-1].surplus and _protected(session, found[-1].pods, protected_s):
        return found[:-1]
    return found


def _all_units(session: Session, gang: Gang) -> list[Unit]:
    active = [pod for leaf in gang.root.leaves() for pod in leaf.active]
    if not all(pod.ours for pod in active):
        return []
    if gang.satisfied:
        surplus, rest = _divided(gang.root)
    else:
        surplus, rest = [], active
    gone = session.displaced
    units = [unit(session, gang, pods, surplus=True) for pods in surplus if pods[0].key not in gone]
    rest = [pod for pod in rest if pod.key not in gone]
    return [*units, unit(session, gang, rest)] if rest else units


def _divided(group: Group) -> tuple[list[tuple[PodInfo, ...]], list[PodInfo]]:
    """Return what *group*, which has its minimum, can do without, in the order in which it goes,
    and the rest."""
    if not group.children:
        eldest = sorted(group.active, key=_kept_order)
        singles: list[tuple[PodInfo, ...]] = [(p,) for p in reversed(eldest[group.minimum :])]
        return singles, eldest[: group.minimum]
    singles = []
    blocks: list[tuple[PodInfo, ...]] = []
    floors: list[list[PodInfo]] = []
    for child in group.children:
        if not child.satisfied:
            blocks.append(tuple(pod for leaf in child.leaves() for pod in leaf.active))
            continue
        more, floor = _divided(child)
        singles += more
        floors.append(floor)
    floors.sort(key=lambda pods: max((_kept_order(pod) for pod in pods), default=_FIRST))
    blocks += [tuple(pods) for pods in reversed(floors[group.needed :])]
    kept = [pod for pods in floors[: group.needed] for pod in pods]
    singles.sort(key=lambda pods: _kept_order(pods[0]), reverse=True)
    return [*singles, *(pods for pods in blocks if pods)], kept


_FIRST = (0, "", "", "")


def _kept_order(pod: PodInfo) -> tuple[int, str, str, str]:
    """Sort key: what is kept longest comes first."""
    return (-pod.rank, pod.created, pod.started, pod.key)


def _protected(session: Session, pods: Sequence[PodInfo], protected_s: float) -> bool:
    if protected_s <= 0:
        return False
    safe_until = max(_started_s(pod) for pod in pods) + protected_s
    if safe_until > session.snapshot.now:
        session.wake(safe_until)
        return True
    return False


def _started_s(pod: PodInfo) -> float:
    try:
        return parse_rfc3339(pod.started)
    except ValueError:
        return 0.0


def in_order(session: Session, units: Iterable[Unit]) -> list[Unit]:
    """Return *units* of one queue in the order in which they go: the least important gang first,
    of equals surplus before minimums, of equals whom no disruption budget protects, of equals the
    youngest gang."""
    ordered = sorted(units, key=lambda u: (u.gang.created, u.gang.key), reverse=True)
    if session.snapshot.budgets:
        ordered.sort(key=lambda u: not session.budgets.allow(u.pods))
    ordered.sort(key=lambda u: (u.gang.priority, not u.surplus))
    return ordered


def surplus_first(units: Sequence[Unit]) -> list[Unit]:
    """Return *units*, each gang's together where its last one is, surplus before the minimum."""
    last = {one.gang.key: at for at, one in enumerate(units)}
    return sorted(units, key=lambda one: (last[one.gang.key], not one.surplus))


def whole_gangs(chosen: Iterable[Unit], units: Sequence[Unit]) -> list[Unit]:
    """Return *chosen* and, where a minimum is among them, the gang's surplus in *units*."""
    picked = set(map(id, chosen))
    whole = {u.gang.key for u in units if id(u) in picked and not u.surplus}
    return [u for u in units if id(u) in picked or u.gang.key in whole]


def needs(floor: Unit, surplus: Unit) -> bool:
    """Tell whether *floor* may go only together with *surplus*: else half a gang would stay."""
    return not floor.surplus and surplus.surplus and floor.gang.key == surplus.gang.key


def by_gang(units: Iterable[Unit]) -> list[tuple[Gang, tuple[PodInfo, ...]]]:
    """Return the gangs of *units* in their order of placing, each with all of its pods in them."""
    found: dict[str, tuple[Gang, list[PodInfo]]] = {}
    for one in units:
        found.setdefault(one.gang.key, (one.gang, []))[1].extend(one.pods)
    ordered = sorted(found.values(), key=lambda pair: pair[0].order)
    return [(gang, tuple(pods)) for gang, pods in ordered]
