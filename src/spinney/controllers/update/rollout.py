"""Where a set's update is and what it does next, replica by replica.

One replica of the set is updated at a time. Cliques of the others keep the pod template they
have, so that a pod that fails there is replaced by its like; what is made anew is always of the
target. In the replica at hand cliques and groups are told to roll, or get the next plan.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from spinney.api import names
from spinney.api.meta import is_true
from spinney.controllers import identity
from spinney.controllers.cliques import is_available, is_updated, trouble
from spinney.controllers.pod_state import is_live, is_ready
from spinney.controllers.podclique.status import MIN_AVAILABLE_BREACHED
from spinney.controllers.template import (
    clique_count,
    group_count,
    set_replicas,
    standalone_cliques,
)
from spinney.controllers.update import coherent, strategy
from spinney.controllers.update.plan import HOLE, PLAN, ROLLOUT, read_plan, units_of, write_plan
from spinney.controllers.update.progress import Seen
from spinney.controllers.update.rolling import SetReplica, next_replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from spinney.api.core import Pod
    from spinney.api.grove import (
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        PodCliqueSetUpdateProgress,
        ScalingGroupTemplate,
    )
    from spinney.controllers.template import Count
    from spinney.controllers.update.plan import Plan
    from spinney.controllers.update.revisions import Revision

Mode = Literal["roll", "hold", "stop", "in place"]
"""Of a replica: replace its units; leave it as it is; replace no more; only change templates."""
ROUTER = "router"
_UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Parts:
    """The live parts of a set that an update works on."""

    cliques: Mapping[str, PodClique]
    """All of them by name, also those of scaling groups."""
    groups: Mapping[str, PodCliqueScalingGroup]
    pods: Callable[[PodClique], Sequence[Pod]]
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """Plans that have been written and are not in the copies above yet, by name."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the parts of a set are to be told."""

    target: Revision
    modes: Mapping[int, Mode]
    plans: Mapping[str, Plan]
    """Plans of cliques and groups, by full name; others have none."""
    shared: Mapping[str, str]
    """By pod-template hash, the label of a role that is the same in the revisions replaced."""
    seen: Seen

    def label(self, pod_hash: str) -> str:
        """Return the revision label of pods with this hash of the target."""
        return self.shared.get(pod_hash, self.target.id)


def plan_rollout(
    pcs: PodCliqueSet,
    target: Revision,
    stored: Sequence[Revision],
    parts: Parts,
    progress: PodCliqueSetUpdateProgress | None,
) -> Rollout:
    """Return what the update does next; *pcs* has the templates of *target*."""
    cliques = _by_replica(parts)
    replicas = [
        _replica(pcs, target, parts, i, cliques.get(i, ())) for i in range(set_replicas(pcs))
    ]
    now = progress.currently_updating if progress is not None else []
    current = None
    if progress is not None and not strategy.is_on_delete(pcs):
        current = next_replica(replicas, now[0].replica_index if now else None)
    replaced = progress.replaced_revisions if progress is not None else []
    live = [target, *(r for r in stored if r.id in replaced and r.id != target.id)]
    shared = _shared(target, live)
    plans: dict[str, Plan] = {}
    capacity = blocked = ""
    if current is not None and strategy.kind(pcs) == "Coherent":
        roles = _roles(pcs, target, live, parts, current)
        budget = strategy.budget(pcs)
        step = coherent.step([role for role, *_ in roles], budget, paused=strategy.is_paused(pcs))
        plans = {
            full: places.spread(step.plans[role.name])
            for role, full, places in roles
            if not step.done and _rolls(role, full, parts)
        }
        blocked = step.blocked
        capacity = (
            f"; capacity {float(step.capacity * 100):.0f}%, floor {float(budget.floor * 100):.0f}%"
        )
    modes = {r.index: _mode(pcs, r, current) for r in replicas}
    seen = _seen(pcs, target, parts, replicas, current, capacity, blocked)
    return Rollout(target, modes, plans, shared, seen)


def in_place(pcs: PodCliqueSet, target: Revision) -> Rollout:
    """Return the rollout of a set of which nothing is known: templates follow at once."""
    modes: dict[int, Mode] = dict.fromkeys(range(set_replicas(pcs)), "in place")
    seen = Seen(target, 0, set_replicas(pcs), None, 0, 0, 0, 0, 0, 0)
    return Rollout(target, modes, {}, {}, seen)


def _mode(pcs: PodCliqueSet, replica: SetReplica, current: int | None) -> Mode:
    if strategy.is_on_delete(pcs):
        return "in place"
    if not replica.outdated:
        return "roll"
    if strategy.is_paused(pcs):
        planned = strategy.kind(pcs) == "Coherent"
        return "roll" if planned and replica.begun and replica.index == current else "stop"
    return "roll" if replica.index == current else "hold"


def _shared(target: Revision, live: Sequence[Revision]) -> dict[str, str]:
    """Return the labels of roles whose template is part of several revisions."""
    found = {}
    for name, role in target.roles.items():
        own = [r for r in live if name in r.roles and r.roles[name].hash == role.hash]
        if len(own) > 1:
            found[role.hash] = ".".join(r.id for r in sorted(own, key=lambda r: r.number))
    return found


def _by_replica(parts: Parts) -> dict[int, list[PodClique]]:
    found: dict[int, list[PodClique]] = {}
    for clique in parts.cliques.values():
        replica = identity.index_label(clique.labels, names.SET_REPLICA_INDEX)
        if replica is not None and not clique.deleting:
            found.setdefault(replica, []).append(clique)
    return found


def _parts_of(parts: Parts, replica: int) -> list[PodClique]:
    return [
        clique
        for clique in parts.cliques.values()
        if identity.index_label(clique.labels, names.SET_REPLICA_INDEX) == replica
        and not clique.deleting
    ]


def is_behind(parts: Parts, target: Revision) -> bool:
    """Tell whether anything is of another revision than *target*, or has a plan.

    A template that is changed there and back in the middle of a step leaves plans behind, and a set
    whose status never told of the change.
    """
    hashes = frozenset(target.hashes.values())
    return (
        bool(parts.plans)
        or any(_is_outdated(clique, hashes) for clique in parts.cliques.values())
        or any(PLAN in group.metadata.annotations for group in parts.groups.values())
    )


def _is_outdated(clique: PodClique, hashes: frozenset[str]) -> bool:
    own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    reported = clique.status.current_pod_template_hash
    return own not in hashes or reported not in ("", own) or PLAN in clique.metadata.annotations


def _replica(
    pcs: PodCliqueSet, target: Revision, parts: Parts, i: int, cliques: Sequence[PodClique]
) -> SetReplica:
    hashes = frozenset(target.hashes.values())
    groups = _groups_of(pcs, parts, i)
    planned = any(PLAN in group.metadata.annotations for _, group in groups if group is not None)
    outdated = [clique for clique in cliques if _is_outdated(clique, hashes)]
    standalone = [
        parts.cliques.get(identity.clique_name(pcs.name, i, role.name))
        for role in standalone_cliques(pcs.spec.template)
    ]
    return SetReplica(
        index=i,
        outdated=bool(outdated) or planned,
        settled=not outdated
        and not planned
        and all(c is not None and _is_settled(c) for c in standalone)
        and all(group is not None and _group_settled(group, target) for _, group in groups),
        begun=planned
        or any(c.labels.get(names.POD_TEMPLATE_HASH) in hashes for c in outdated)
        or any(c.labels.get(names.REVISION) == target.id for c in cliques),
        scheduled=any(clique.status.scheduled_replicas for clique in cliques),
        breached=any(is_true(c.status.conditions, MIN_AVAILABLE_BREACHED) for c in cliques),
    )


def _is_settled(clique: PodClique) -> bool:
    own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    return is_updated(clique, own) and is_available(clique, clique_count(clique).target)


def _group_settled(group: PodCliqueScalingGroup, target: Revision) -> bool:
    count = group_count(group)
    return is_group_updated(group, target) and group.status.available_replicas >= count.target


def is_group_updated(group: PodCliqueScalingGroup, target: Revision) -> bool:
    """Tell whether all replicas of *group* are of the revision, and are meant to stay."""
    return (
        PLAN not in group.metadata.annotations
        and group.status.current_pod_clique_set_generation_hash == target.id
        and group.status.updated_replicas >= group_count(group).target
    )


def _groups_of(
    pcs: PodCliqueSet, parts: Parts, replica: int
) -> list[tuple[ScalingGroupTemplate, PodCliqueScalingGroup | None]]:
    return [
        (template, parts.groups.get(identity.group_name(pcs.name, replica, template.name)))
        for template in pcs.spec.template.pod_clique_scaling_groups
    ]


def _seen(
    pcs: PodCliqueSet,
    target: Revision,
    parts: Parts,
    replicas: Sequence[SetReplica],
    current: int | None,
    capacity: str,
    blocked: str,
) -> Seen:
    hashes = frozenset(target.hashes.values())
    own = [c for c in parts.cliques.values() if names.SCALING_GROUP not in c.labels]
    fresh = [c for c in parts.cliques.values() if c.labels.get(names.POD_TEMPLATE_HASH) in hashes]
    waits = ""
    if current is not None:
        short = [
            c
            for c in sorted(_parts_of(parts, current), key=lambda c: c.name)
            if c.status.ready_replicas < clique_count(c).target
        ]
        waits = "; ".join(f"{c.name}: {trouble(c)}" for c in short[:2])
    return Seen(
        target=target,
        outdated=sum(replica.outdated for replica in replicas),
        replicas=len(replicas),
        current=current,
        updated_pods=sum(
            c.status.updated_replicas
            for c in fresh
            if c.status.observed_generation >= c.metadata.generation
        ),
        total_pods=sum(c.status.replicas for c in parts.cliques.values()),
        updated_cliques=sum(
            (own_hash := c.labels.get(names.POD_TEMPLATE_HASH, "")) in hashes
            and is_updated(c, own_hash)
            for c in own
        ),
        total_cliques=len(own),
        updated_groups=sum(is_group_updated(g, target) for g in parts.groups.values()),
        total_groups=len(parts.groups),
        capacity=capacity,
        blocked=blocked,
        waits=waits,
    )


# Coherent updates


def _rolls(role: coherent.Role, full: str, parts: Parts) -> bool:
    """Tell whether a role has or needs a plan; one that stays as it is needs none."""
    obj = parts.cliques.get(full) or parts.groups.get(full)
    has = obj is not None and PLAN in obj.metadata.annotations
    return has or full in parts.plans or any(h != role.target for h in role.plan)


def _roles(
    pcs: PodCliqueSet, target: Revision, live: Sequence[Revision], parts: Parts, replica: int
) -> list[tuple[coherent.Role, str, Places]]:
    """Return the roles of a replica as the planner sees them, with the names of their objects.

    The planner knows no holes: its plans are by place.
    """
    found: list[tuple[coherent.Role, str, Places]] = []
    for role in standalone_cliques(pcs.spec.template):
        full = identity.clique_name(pcs.name, replica, role.name)
        clique = parts.cliques.get(full)
        if clique is None or clique.deleting:
            continue
        plan = parts.plans.get(full) or read_plan(clique.metadata.annotations)
        units = _pod_units(parts.pods(clique))
        router = role.labels.get(names.ROLE) == ROUTER
        sets = _sets(live, [role.name])
        count, own = clique_count(clique), target.hashes[role.name]
        places = Places.of(plan, units, count.settled)
        seen = _role(role.name, count, own, plan, units, sets, places, paired=not router)
        found.append((seen, full, places))
    for template, group in _groups_of(pcs, parts, replica):
        if group is None or group.deleting:
            continue
        units = _replica_units(group, template, parts)
        plan = parts.plans.get(group.name) or read_plan(group.metadata.annotations)
        sets = _sets(live, template.clique_names)
        own, count = target.group_hash(template.clique_names), group_count(group)
        places = Places.of(plan, units, count.settled)
        seen = _role(template.name, count, own, plan, units, sets, places)
        found.append((seen, group.name, places))
    return found


def _sets(live: Sequence[Revision], roles: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for revision in live:
        own = revision.group_hash(roles)
        found[own] = (*found.get(own, ()), revision.id)
    return found


_Units = dict[int, tuple[str, bool]]
"""By index: the hash of a unit, and whether it serves."""


@dataclass(frozen=True, slots=True)
class Places:
    """Which index the unit at each place of a role has."""

    indices: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan | None, units: _Units, wanted: int) -> Places:
        """Return the places of *plan*, or where there is none, of the *units* there are."""
        if plan is not None:
            return cls(tuple(i for i, own in enumerate(plan) if own != HOLE))
        free = (i for i in itertools.count() if i not in units)
        missing = itertools.islice(free, max(0, wanted - len(units)))
        return cls(tuple(sorted([*sorted(units)[:wanted], *missing])))

    def spread(self, plan: Plan) -> Plan:
        """Return *plan*, which is by place, by index; more units get the lowest free indices."""
        free = (i for i in itertools.count() if i not in self.indices)
        more = itertools.islice(free, max(0, len(plan) - len(self.indices)))
        by_index = dict(zip([*self.indices, *more], plan, strict=False))
        return tuple(by_index.get(i, HOLE) for i in range(max(by_index, default=-1) + 1))


def _role(
    name: str,
    count: Count,
    target: str,
    plan: Plan | None,
    units: _Units,
    sets: Mapping[str, tuple[str, ...]],
    places: Places,
    *,
    paired: bool = True,
) -> coherent.Role:
    if plan is None:
        plan = tuple(units.get(i, (target, False))[0] for i in places.indices)
    else:
        plan = units_of(plan)
    pairs = zip(places.indices, plan, strict=True)
    ready = tuple(units.get(i) == (own, True) for i, own in pairs)
    # Pods of what is not stored are of one revision, as far as anybody knows: they count together.
    known = {own: sets.get(own, (_UNKNOWN,)) for own in plan}
    shared = len(sets) == 1 and len(next(iter(sets.values()))) > 1
    leaving = any(i not in places.indices for i in units)
    return coherent.Role(
        name,
        count.settled,
        count.minimum,
        target,
        plan,
        ready,
        known,
        paired and not shared,
        leaving,
    )


def _pod_units(pods: Iterable[Pod]) -> _Units:
    units: _Units = {}
    for pod in pods:
        index = identity.index_label(pod.labels, names.POD_INDEX)
        if index is not None and is_live(pod):
            units[index] = (pod.labels.get(names.POD_TEMPLATE_HASH, ""), is_ready(pod))
    return units


def _replica_units(
    group: PodCliqueScalingGroup, template: ScalingGroupTemplate, parts: Parts
) -> _Units:
    units: _Units = {}
    for j in range(group_count(group).target):
        members = [
            parts.cliques.get(identity.member_name(group.name, j, name))
            for name in template.clique_names
        ]
        live = [c for c in members if c is not None and not c.deleting]
        if len(live) == len(members):
            own = "-".join(map(running_hash, live))
            units[j] = (own, all(_serves(c, parts.pods(c)) for c in live))
    return units


def running_hash(clique: PodClique) -> str:
    """Return the hash of the clique's pods: with OnDelete the template goes ahead of them."""
    return clique.status.current_pod_template_hash or clique.labels.get(names.POD_TEMPLATE_HASH, "")


def _serves(clique: PodClique, pods: Iterable[Pod]) -> bool:
    own = running_hash(clique)
    ready = sum(is_ready(p) and p.labels.get(names.POD_TEMPLATE_HASH) == own for p in pods)
    return ready >= clique_count(clique).needed


def told(rollout: Rollout, full: str) -> dict[str, str]:
    """Return the annotations by which the clique or group *full* is told what to do."""
    if full in rollout.plans:
        return {PLAN: write_plan(rollout.plans[full])}
    return {ROLLOUT: rollout.target.id}
