"""Reading a PodCliqueSet's template: which clique is where, how many are wanted, which revision.

Counts are read through here because absent values have defaults, and because a scale request below
the minimum is held at the minimum: the floor of every voluntary action. Zero is
not below the minimum, it is off.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api import names
from spinney.api.codec import without_nulls
from spinney.controllers.identity import clique_name, group_name, index_label, member_name
from spinney.controllers.update.plan import read_plan, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.grove import (
        PodClique,
        PodCliqueScalingGroup,
        PodCliqueSet,
        PodCliqueSetTemplate,
        PodCliqueTemplate,
        ScalingGroupTemplate,
    )
    from spinney.api.meta import KubeObject

HASH_BYTES = 5


@dataclass(frozen=True, slots=True)
class Count:
    """How many are wanted and how many are needed."""

    wanted: int
    """What the object's spec says."""
    minimum: int
    """``minAvailable``."""
    planned: int | None = None
    """How many an update in progress has, some perhaps on top of those wanted; None without one."""

    @property
    def target(self) -> int:
        """How many to keep: as planned, else as wanted, but not between zero and the minimum."""
        if self.planned is not None:
            return self.planned
        return self.settled

    @property
    def settled(self) -> int:
        """How many to keep when no update is in progress."""
        return 0 if self.wanted == 0 else max(self.wanted, self.minimum)

    @property
    def needed(self) -> int:
        """How many it takes to be whole: the minimum, or none where none is wanted."""
        return min(self.minimum, self.settled)

    @property
    def held(self) -> bool:
        """Whether the minimum keeps the count above what was asked for."""
        return self.settled != self.wanted

    @property
    def remark(self) -> str:
        """Say, after other words, that more are kept than were asked for; empty if not."""
        if not self.held:
            return ""
        return (
            f"; {self.wanted} are asked for, {self.settled} are kept because of minAvailable: "
            "scale to 0 to turn it off"
        )


def set_replicas(pcs: PodCliqueSet) -> int:
    """Return how many complete copies the set wants."""
    return pcs.spec.replicas or 0


def template_count(clique: PodCliqueTemplate) -> Count:
    """Return the count a clique starts with."""
    replicas = clique.spec.replicas or 1
    minimum = clique.spec.min_available
    return Count(replicas, replicas if minimum is None else minimum)


def clique_count(clique: PodClique) -> Count:
    """Return the count of a live clique."""
    replicas = 1 if clique.spec.replicas is None else clique.spec.replicas
    minimum = clique.spec.min_available
    return Count(replicas, max(replicas, 1) if minimum is None else minimum, _planned(clique))


def group_template_count(group: ScalingGroupTemplate) -> Count:
    """Return the count a scaling group starts with."""
    replicas = 1 if group.replicas is None else group.replicas
    return Count(replicas, 1 if group.min_available is None else group.min_available)


def group_count(group: PodCliqueScalingGroup) -> Count:
    """Return the count of a live scaling group."""
    spec = group.spec
    replicas = 1 if spec.replicas is None else spec.replicas
    minimum = 1 if spec.min_available is None else spec.min_available
    return Count(replicas, minimum, _planned(group))


def _planned(obj: KubeObject) -> int | None:
    plan = read_plan(obj.metadata.annotations)
    return None if plan is None else len(units_of(plan))


def find_clique(template: PodCliqueSetTemplate, name: str) -> PodCliqueTemplate | None:
    """Return the clique called *name*, or None."""
    return next((clique for clique in template.cliques if clique.name == name), None)


def role_of(pcs: PodCliqueSet, clique: PodClique) -> PodCliqueTemplate | None:
    """Return what the set says of a live *clique*, None if it no longer says anything.

    Names are compared, not taken apart.
    """
    replica = index_label(clique.labels, names.SET_REPLICA_INDEX)
    if replica is None:
        return None
    j = index_label(clique.labels, names.SCALING_GROUP_REPLICA_INDEX)
    for role in pcs.spec.template.cliques:
        group = group_of(pcs.spec.template, role.name)
        if group is None:
            name = clique_name(pcs.name, replica, role.name)
        else:
            name = member_name(group_name(pcs.name, replica, group.name), j or 0, role.name)
        if name == clique.name:
            return role
    return None


def group_of(template: PodCliqueSetTemplate, clique: str) -> ScalingGroupTemplate | None:
    """Return the scaling group that *clique* is a member of, or None."""
    groups = template.pod_clique_scaling_groups
    return next((group for group in groups if clique in group.clique_names), None)


def standalone_cliques(template: PodCliqueSetTemplate) -> Iterator[PodCliqueTemplate]:
    """Yield the cliques that are in no scaling group, in the template's order."""
    grouped = {name for g in template.pod_clique_scaling_groups for name in g.clique_names}
    return (clique for clique in template.cliques if clique.name not in grouped)


def member_cliques(
    template: PodCliqueSetTemplate, group: ScalingGroupTemplate
) -> list[PodCliqueTemplate]:
    """Return the cliques of *group*, in the template's order."""
    return [clique for clique in template.cliques if clique.name in group.clique_names]


def pod_template_hash(template: PodCliqueSetTemplate, clique: PodCliqueTemplate) -> str:
    """Return the revision of a clique's pods.

    It is taken over the JSON that the user wrote, sorted and without nulls, so that neither a
    newer version of Spinney nor the order of keys makes a new revision.
    """
    return _hash(_pod_template(template, clique))


def generation_hash(template: PodCliqueSetTemplate) -> str:
    """Return the revision of the whole set: it changes when that of any clique does."""
    return _hash([_pod_template(template, clique) for clique in template.cliques])


def _pod_template(template: PodCliqueSetTemplate, clique: PodCliqueTemplate) -> dict[str, Any]:
    return {
        "name": clique.name,
        "labels": clique.labels,
        "annotations": clique.annotations,
        "podSpec": clique.spec.pod_spec,
        "priorityClassName": template.priority_class_name,
    }


def _hash(value: Any) -> str:
    text = msgspec.json.encode(without_nulls(value), order="sorted")
    return hashlib.blake2b(text, digest_size=HASH_BYTES).hexdigest()
