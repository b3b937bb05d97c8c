"""Which part of a set's replica lost its minimum for so long that it is made anew, or when it will.

All that counts is written in the status of cliques: since when the minimum is breached, and whether
it was ever reached. So a restart forgets nothing, and a clique made anew starts a new history:
what has never run is never terminated, it waits for capacity.

A replica of a scaling group is made anew by itself while enough others are whole. Otherwise, and
when a standalone clique breaks, the whole replica of the set goes: its parts are of no use alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.api.meta import find_condition, is_true
from spinney.api.quantity import parse_duration_s
from spinney.clock import parse_rfc3339
from spinney.controllers import identity
from spinney.controllers.podclique.status import MIN_AVAILABLE_BREACHED, MIN_AVAILABLE_REACHED
from spinney.controllers.template import group_count, set_replicas, standalone_cliques

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spinney.api.grove import PodClique, PodCliqueScalingGroup, PodCliqueSet

DEFAULT_DELAY = "4h"
"""Grove's ``terminationDelay`` where a set has none."""
WARN_AFTER_S = 60.0
"""Age of a breach at which it is announced, or half the delay if that is shorter."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A part that lacks its minimum, and when it is made anew if it still does."""

    name: str
    """The clique or scaling group that broke, or the group's replica."""
    warn_s: float
    """When it is old enough to be told of."""
    due_s: float
    offenders: tuple[PodClique, ...]
    """The cliques whose breach it is."""
    cliques: tuple[PodClique, ...]
    """What goes: the offenders come last, so that after an interruption the rest still follows."""
    group: str = ""
    """The scaling group of which only a replica goes; empty when the set's replica does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make anew now, and what later."""

    now: tuple[Breach, ...] = ()
    later: tuple[Breach, ...] = ()

    def next_s(self, now_s: float) -> float | None:
        """Return when to look again even if nothing changes."""
        times = (at for breach in self.later for at in (breach.warn_s, breach.due_s) if at > now_s)
        return min(times, default=None)


def decide(
    pcs: PodCliqueSet,
    replica: int,
    groups: Mapping[str, PodCliqueScalingGroup],
    cliques: Sequence[PodClique],
    now_s: float,
) -> Plan:
    """Return what of a *replica* of the set is to be made anew.

    *groups* and *cliques* are all of that replica. While the replica is updated, or one of its
    standalone cliques is yet to be made again, nothing is decided.
    """
    live = [clique for clique in cliques if not clique.deleting]
    if pcs.deleting or replica >= set_replicas(pcs) or is_updating(pcs, replica):
        return Plan()
    if _missing(pcs, replica, live):
        return Plan()
    delay_s = parse_duration_s(pcs.spec.template.termination_delay or DEFAULT_DELAY)
    whole = _standalone(live, delay_s)
    parts: list[Breach] = []
    for _, group in sorted(groups.items()):
        if not group.deleting and group_count(group).target:
            of_all, of_some = _group(group, live, delay_s, now_s)
            whole += of_all
            parts += of_some
    whole.sort(key=lambda breach: (breach.due_s, breach.name))
    if whole and whole[0].due_s <= now_s:
        return Plan(now=(whole[0],))
    return Plan(
        now=tuple(breach for breach in parts if breach.due_s <= now_s),
        later=tuple(breach for breach in (*whole, *parts) if breach.due_s > now_s),
    )


def is_updating(pcs: PodCliqueSet, replica: int) -> bool:
    """Tell whether a rolling update is at work on the replica."""
    progress = pcs.status.update_progress
    if progress is None or progress.update_ended_at is not None:
        return False
    return any(
        current.replica_index == replica and current.update_ended_at is None
        for current in progress.currently_updating
    )


def breached_since_s(clique: PodClique) -> float | None:
    """Return since when the clique lacks a minimum that it once had; None if it does not."""
    if not is_true(clique.status.conditions, MIN_AVAILABLE_REACHED):
        return None
    return _breached_s(clique)


def _breached_s(clique: PodClique) -> float | None:
    found = find_condition(clique.status.conditions, MIN_AVAILABLE_BREACHED)
    if found is None or found.status != "True" or not found.last_transition_time:
        return None
    return parse_rfc3339(found.last_transition_time)


def _missing(pcs: PodCliqueSet, replica: int, live: Sequence[PodClique]) -> bool:
    there = {clique.name for clique in live}
    return any(
        identity.clique_name(pcs.name, replica, role.name) not in there
        for role in standalone_cliques(pcs.spec.template)
    )


def _standalone(live: Sequence[PodClique], delay_s: float) -> list[Breach]:
    found = []
    for clique in live:
        since_s = breached_since_s(clique)
        if names.SCALING_GROUP not in clique.labels and since_s is not None:
            found.append(_breach(clique.name, since_s, delay_s, (clique,), live))
    return found


def _group(
    group: PodCliqueScalingGroup, live: Sequence[PodClique], delay_s: float, now_s: float
) -> tuple[list[Breach], list[Breach]]:
    """Return breaches that take the whole replica of the set, and those that take a part."""
    count = group_count(group)
    replicas = _replicas(group, live, count.target)
    broken = {j: found for j, cliques in replicas.items() if (found := _broken(cliques))}
    if not broken:
        return [], []
    size = len(group.spec.clique_names)
    unwhole = {
        j: since_s
        for j, cliques in replicas.items()
        if (since_s := _unwhole_since_s(cliques, size, now_s)) is not None
    }
    if count.target - len(unwhole) >= count.needed:
        return [], [
            _breach(
                f"{group.name}-{j}",
                min(since_s for _, since_s in found),
                delay_s,
                tuple(clique for clique, _ in found),
                replicas[j],
                group.name,
            )
            for j, found in sorted(broken.items())
        ]
    # The group is broken since the replica broke that was one too many. Replicas that never ran
    # count there, but alone they are no reason to end what runs.
    too_many = sorted(unwhole.values())[count.target - count.needed]
    lost_s = min(since_s for found in broken.values() for _, since_s in found)
    offenders = tuple(clique for found in broken.values() for clique, _ in found)
    return [_breach(group.name, max(too_many, lost_s), delay_s, offenders, live)], []


def _replicas(
    group: PodCliqueScalingGroup, live: Sequence[PodClique], target: int
) -> dict[int, list[PodClique]]:
    found: dict[int, list[PodClique]] = {j: [] for j in range(target)}
    for clique in live:
        j = identity.index_label(clique.labels, names.SCALING_GROUP_REPLICA_INDEX)
        if clique.labels.get(names.SCALING_GROUP) == group.name and j in found:
            found[j].append(clique)
    return found


def _broken(cliques: Sequence[PodClique]) -> list[tuple[PodClique, float]]:
    return [(c, since_s) for c in cliques if (since_s := breached_since_s(c)) is not None]


def _unwhole_since_s(cliques: Sequence[PodClique], size: int, now_s: float) -> float | None:
    """Return since when a replica of a group is not whole; None when it is."""
    if len(cliques) < size:
        return now_s
    reported = [find_condition(c.status.conditions, MIN_AVAILABLE_BREACHED) for c in cliques]
    if any(condition is None for condition in reported):
        return now_s
    return min((s for c in cliques if (s := _breached_s(c)) is not None), default=None)


def _breach(
    name: str,
    since_s: float,
    delay_s: float,
    offenders: tuple[PodClique, ...],
    cliques: Sequence[PodClique],
    group: str = "",
) -> Breach:
    last = {clique.name for clique in offenders}
    ordered = sorted(cliques, key=lambda clique: (clique.name in last, clique.name))
    warn_s = since_s + min(delay_s / 2, WARN_AFTER_S)
    return Breach(name, warn_s, since_s + delay_s, offenders, tuple(ordered), group)
