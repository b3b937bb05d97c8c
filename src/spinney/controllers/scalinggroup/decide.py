"""Which cliques a scaling group has: all of its roles in every replica, the highest leave first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.controllers import cliques, identity
from spinney.controllers.actions import Delete
from spinney.controllers.template import clique_count, group_count
from spinney.controllers.update.plan import ROLLOUT, read_plan, read_shared
from spinney.controllers.update.revisions import at, of_template
from spinney.controllers.update.rolling import GroupReplica, replicas_to_replace
from spinney.controllers.update.rollout import running_hash
from spinney.controllers.update.strategy import is_on_delete

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from spinney.api.grove import (
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        ScalingGroupTemplate,
    )
    from spinney.controllers.actions import Action
    from spinney.controllers.template import Count
    from spinney.controllers.update.plan import Plan
    from spinney.controllers.update.revisions import Revision


def template_of(pcs: PodCliqueSet, group: PodCliqueScalingGroup) -> ScalingGroupTemplate | None:
    """Return what the set says of *group*, None if it no longer says anything."""
    replica = identity.index_label(group.labels, names.SET_REPLICA_INDEX)
    if replica is None:
        return None
    for template in pcs.spec.template.pod_clique_scaling_groups:
        if identity.group_name(pcs.name, replica, template.name) == group.name:
            return template
    return None


def live_counts(
    pcs: PodCliqueSet, replica: int, groups: Mapping[str, PodCliqueScalingGroup]
) -> dict[str, Count]:
    """Return the counts of a replica's live scaling groups by their names in the template."""
    found = {}
    for template in pcs.spec.template.pod_clique_scaling_groups:
        live = groups.get(identity.group_name(pcs.name, replica, template.name))
        if live is not None:
            found[template.name] = group_count(live)
    return found


def decide(
    pcs: PodCliqueSet,
    group: PodCliqueScalingGroup,
    siblings: Mapping[str, PodCliqueScalingGroup],
    existing: Mapping[str, PodClique],
    target: Revision | None = None,
    stored: Sequence[Revision] = (),
) -> list[Action]:
    """Return what brings the group's *existing* cliques, by name, to its replica count.

    *siblings* are the scaling groups of the same replica of the set, this one included. *target*
    is the revision its pods are to be of, that of the template if None; *stored* has older ones.
    """
    template = template_of(pcs, group)
    replica = identity.index_label(group.labels, names.SET_REPLICA_INDEX)
    if group.deleting or pcs.deleting or template is None or replica is None:
        return []
    target = of_template(pcs.spec.template) if target is None else target
    counts = live_counts(pcs, replica, siblings)

    def as_of(revision: Revision, indices: Sequence[int]) -> list[PodClique]:
        view = pcs if revision is target else at(pcs, revision)
        made = cliques.members(view, group, template, replica, counts, indices, revision.hashes)
        return _marked(made, group, revision, target)

    plan = read_plan(group.metadata.annotations)
    if plan is not None:
        return _as_planned(plan, template, existing, [target, *stored], as_of)
    wanted = as_of(target, range(group_count(group).target))
    if not is_on_delete(pcs):
        going = _replaced(group, existing, target)
        if going:
            return [Delete(c) for c in existing.values() if _index(c) in going and not c.deleting]
        wanted = [_as_running(clique, existing.get(clique.name)) for clique in wanted]
    return cliques.reconcile(wanted, existing)


def _as_planned(
    plan: Plan,
    template: ScalingGroupTemplate,
    existing: Mapping[str, PodClique],
    known: Sequence[Revision],
    as_of: Callable[[Revision, Sequence[int]], list[PodClique]],
) -> list[Action]:
    """Return what makes each replica be of the revision that *plan* has for it.

    A replica whose revision is not known any more is left as it is.
    """
    wanted: list[PodClique] = []
    kept: dict[str, PodClique] = {}
    gone: list[Action] = []
    for j, want in enumerate(plan):
        there = {name: c for name, c in existing.items() if _index(c) == j}
        have = set(map(running_hash, there.values()))
        if have <= set(want.split("-")):
            kept |= there
            revision = next((r for r in known if r.group_hash(template.clique_names) == want), None)
            wanted += as_of(revision, [j]) if revision is not None else list(there.values())
        else:
            gone += [Delete(c) for _, c in sorted(there.items()) if not c.deleting]
    beyond = {n: c for n, c in existing.items() if (_index(c) or 0) >= len(plan)}
    return [*gone, *cliques.reconcile(wanted, {**kept, **beyond})]


def _replaced(
    group: PodCliqueScalingGroup, existing: Mapping[str, PodClique], target: Revision
) -> set[int]:
    """Return the replicas a rolling update replaces now: none before the group's turn."""
    if group.metadata.annotations.get(ROLLOUT) != target.id:
        return set()
    hashes = set(target.hashes.values())
    count = group_count(group)
    by_index: dict[int, list[PodClique]] = {}
    for clique in existing.values():
        by_index.setdefault(_index(clique) or 0, []).append(clique)
    if len(by_index) > count.target:
        return set()
    found = [
        GroupReplica(
            index=j,
            updated=all(c.deleting or _is_of(c, hashes) for c in members),
            available=len(members) == len(group.spec.clique_names)
            and all(cliques.is_available(c, clique_count(c).needed) for c in members),
            holds=all(c.status.scheduled_replicas >= clique_count(c).needed for c in members),
        )
        for j, members in sorted(by_index.items())
    ]
    missing = range(len(found), count.target)
    found += [GroupReplica(-1 - j, updated=True, available=False, holds=False) for j in missing]
    return set(replicas_to_replace(found))


def _is_of(clique: PodClique, hashes: Collection[str]) -> bool:
    """Tell whether a clique and all its pods are of one of the *hashes*."""
    own = clique.labels.get(names.POD_TEMPLATE_HASH, "")
    return own in hashes and clique.status.current_pod_template_hash in ("", own)


def _as_running(wanted: PodClique, found: PodClique | None) -> PodClique:
    """Return *wanted*, with the template of the running clique: replicas are replaced whole."""
    own = names.POD_TEMPLATE_HASH
    if found is None or found.labels.get(own) == wanted.labels.get(own):
        return wanted
    return cliques.held(found, wanted)


def _marked(
    made: Sequence[PodClique],
    group: PodCliqueScalingGroup,
    revision: Revision,
    target: Revision,
) -> list[PodClique]:
    """Return cliques with the label of the revisions their pods are of.

    The group says in which other revisions the roles have the same template.
    """
    if revision is not target:
        return [cliques.marked(clique, revision.id) for clique in made]
    shared = read_shared(group.metadata.annotations)
    return [
        cliques.marked(
            clique, shared.get(clique.labels.get(names.POD_TEMPLATE_HASH, ""), revision.id)
        )
        for clique in made
    ]


def _index(clique: PodClique) -> int | None:
    return identity.index_label(clique.labels, names.SCALING_GROUP_REPLICA_INDEX)
