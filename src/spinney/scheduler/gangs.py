"""A gang as a tree: who has to be placed with whom, how many of them, and how close.

The leaves of the tree are groups of pods with a minimum; inner groups tie leaves together by
a topology constraint. The tree has any depth; a PodGang fills three levels of it: the gang, its
topology constraint groups, its pod groups. A pod on its own is a gang of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from spinney.api.podgang import GangPodGroup, GangTopologyConstraint, PodGang
    from spinney.scheduler.shapes import PodInfo


@dataclass(frozen=True, slots=True)
class Group:
    """One node of a gang's tree: a leaf with pods, or an inner group with children."""

    name: str
    required: str = ""
    """Label key: all pods of the group have to be on nodes with one value of it."""
    preferred: str = ""
    children: tuple[Group, ...] = ()
    minimum: int = 0
    active: tuple[PodInfo, ...] = ()
    """Pods on nodes already: they count, and they pin the domain."""
    pending: tuple[PodInfo, ...] = ()
    """Pods to place, in the order in which they are chosen."""
    anchors: tuple[PodInfo, ...] = ()
    """Pods of related gangs that pin the domain and do not count."""

    @property
    def missing(self) -> int:
        """How many pods the minimum lacks."""
        return max(0, self.minimum - len(self.active))

    def leaves(self) -> Iterator[Group]:
        """Yield the groups that hold pods."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()


@dataclass(frozen=True, slots=True)
class Gang:
    """What is placed as one."""

    key: str
    root: Group
    priority: int = 0
    created: str = ""
    topology: str = ""
    """Name of the ClusterTopologyBinding its levels come from, if it says."""
    lone: bool = False
    """Whether it is a single pod without a PodGang; the key is then the pod's."""
    waiting: str = ""
    """Why it is not to be looked at yet; empty when it is."""
    queue: str = ""
    """The queue it is charged to; empty until one is looked up from labels."""
    preemptible: bool | None = None
    """Whether it may be displaced; None until that is looked up from labels and priority."""

    @property
    def order(self) -> tuple[int, str, str]:
        """Sort key: priority, then age, then name."""
        return (-self.priority, self.created, self.key)

    @property
    def stands(self) -> bool:
        """Whether any of its pods is on a node."""
        return any(leaf.active for leaf in self.root.leaves())

    @property
    def satisfied(self) -> bool:
        """Whether every group has its minimum on nodes."""
        return all(leaf.missing == 0 for leaf in self.root.leaves())


def lone_gang(pod: PodInfo, priority: int) -> Gang:
    """Return the gang of one that *pod* is."""
    leaf = Group(pod.key, minimum=1, pending=(pod,))
    return Gang(pod.key, leaf, priority, pod.created, lone=True)


def whole_gang(key: str, pods: Sequence[PodInfo], priority_of: Callable[[PodInfo], int]) -> Gang:
    """Return *pods*, all on nodes, as a gang that needs every one of them."""
    active = tuple(sorted(pods, key=lambda pod: (pod.created, pod.key)))
    leaf = Group(key, minimum=len(active), active=active)
    priority = max(priority_of(pod) for pod in active)
    return Gang(key, leaf, priority, active[0].created, lone=key == active[0].key)


def gang_of(
    podgang: PodGang,
    pods: Mapping[str, PodInfo],
    *,
    priority: int,
    topology: str = "",
    base: PodGang | None = None,
    family: tuple[PodInfo, ...] = (),
) -> Gang:
    """Return the tree of *podgang*.

    *base* is the gang it was scaled out from, whose own constraint holds for it too; *family*
    are the pods on nodes of the gangs that share that constraint.
    """
    leaves = {group.name: _leaf(group, pods) for group in podgang.spec.pod_groups}
    root = _tree(podgang, leaves)
    waiting = _waiting(podgang, leaves, pods)
    if base is None:
        root = replace(root, anchors=family)
    else:
        required, preferred = _keys(base.spec.topology_constraint)
        if required and not family and not waiting:
            waiting = f"waits until its base gang {base.name} is placed"
        root = Group(base.key, required, preferred, (root,), anchors=family)
    created = podgang.metadata.creation_timestamp or ""
    return Gang(podgang.key, root, priority, created, topology, waiting=waiting)


def _tree(podgang: PodGang, leaves: dict[str, Group]) -> Group:
    grouped: dict[str, str] = {}
    for config in podgang.spec.topology_constraint_group_configs:
        grouped.update((name, config.name) for name in config.pod_group_names if name in leaves)
    children = []
    for config in podgang.spec.topology_constraint_group_configs:
        members = tuple(leaves[n] for n, owner in grouped.items() if owner == config.name)
        if members:
            required, preferred = _keys(config.topology_constraint)
            children.append(Group(config.name, required, preferred, members))
    children += [leaf for name, leaf in leaves.items() if name not in grouped]
    required, preferred = _keys(podgang.spec.topology_constraint)
    return Group(podgang.key, required, preferred, tuple(children))


def _leaf(group: GangPodGroup, pods: Mapping[str, PodInfo]) -> Group:
    found = [pods.get(f"{ref.namespace}/{ref.name}") for ref in group.pod_references]
    members = sorted((p for p in found if p is not None), key=lambda p: (p.created, p.key))
    required, preferred = _keys(group.topology_constraint)
    return Group(
        group.name,
        required,
        preferred,
        minimum=group.min_replicas,
        active=tuple(p for p in members if p.state == "active"),
        pending=tuple(p for p in members if p.state == "pending" and p.ours),
    )


def _keys(constraint: GangTopologyConstraint | None) -> tuple[str, str]:
    pack = constraint.pack_constraint if constraint else None
    return ((pack.required or ""), (pack.preferred or "")) if pack else ("", "")


def _waiting(podgang: PodGang, leaves: dict[str, Group], pods: Mapping[str, PodInfo]) -> str:
    """Return why the gang cannot be judged yet. One that runs already is not held up."""
    short = [g for g in leaves.values() if g.missing > len(g.pending)]
    if short:
        first = short[0]
        have = len(first.active) + len(first.pending)
        return f"waits for pods of group {first.name}: {have} of {first.minimum} can be placed"
    if any(leaf.active for leaf in leaves.values()):
        return ""
    listed = [f"{r.namespace}/{r.name}" for g in podgang.spec.pod_groups for r in g.pod_references]
    absent = [key for key in listed if key not in pods]
    if absent:
        return f"waits for {len(absent)} of {len(listed)} listed pods, such as {absent[0]}"
    return ""
