"""A gang as a tree: who has to be placed with whom, how many of them, and how close.

The leaves of the tree are groups of pods with a minimum; inner groups tie leaves together by
a topology constraint. The tree has any depth; a PodGang fills three levels of it: the gang, its
topology constraint groups, its pod groups. A pod on its own is a gang of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spinney.scheduler.sources.podgang import constraint_keys, podgang_spec
from spinney.scheduler.sources.timing import UNSAID, Timing, timing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from spinney.api.podgang import PodGang
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.sources.spec import GangSpec, GroupSpec


@dataclass(frozen=True, slots=True)
class Group:
    """One node of a gang's tree: a leaf with pods, or an inner group with children."""

    name: str
    required: str = ""
    """Label key: all pods of the group have to be on nodes with one value of it."""
    preferred: str = ""
    children: tuple[Group, ...] = ()
    minimum: int = 0
    """Of a leaf: pods. Of an inner group: children that need their own minimum; 0 means all."""
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

    @property
    def needed(self) -> int:
        """Of an inner group: how many of its children have to have their minimum."""
        return min(self.minimum or len(self.children), len(self.children))

    @property
    def satisfied(self) -> bool:
        """Whether the group, and as many below it as it needs, have their minimum on nodes."""
        if not self.children:
            return self.missing == 0
        return sum(child.satisfied for child in self.children) >= self.needed

    @property
    def satisfiable(self) -> bool:
        """Whether the pods there are would do for the minimum."""
        if not self.children:
            return self.missing <= len(self.pending)
        return sum(child.satisfiable for child in self.children) >= self.needed

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
    timing: Timing = UNSAID
    followers: tuple[tuple[PodInfo, ...], ...] = ()
    """The pending pods of each gang that was scaled out from it: they have to go where it goes."""

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
        return self.root.satisfied


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
    followers: tuple[tuple[PodInfo, ...], ...] = (),
) -> Gang:
    """Return the tree of *podgang*.

    *base* is the gang it was scaled out from, whose own constraint holds for it too; *family*
    are the pods on nodes of the gangs that share that constraint, *followers* the pending ones of
    each gang that was scaled out from this one.
    """
    spec = podgang_spec(podgang)
    root = _listed(spec.root, pods)
    leaves = list(root.leaves())
    waiting = _short(leaves) or _absent(spec, leaves, pods)
    if base is None:
        root = replace(root, anchors=family)
    else:
        required, preferred = constraint_keys(base.spec.topology_constraint)
        if required and not family and not waiting:
            waiting = f"waits until its base gang {base.name} is placed"
        root = Group(base.key, required, preferred, (root,), anchors=family)
    created = podgang.metadata.creation_timestamp or ""
    return Gang(
        podgang.key,
        root,
        priority,
        created,
        topology,
        waiting=waiting,
        followers=followers,
        timing=timing_of(podgang.key, podgang.metadata.annotations),
    )


def tree_of(spec: GangSpec, pods: Iterable[PodInfo], *, priority: int) -> Gang:
    """Return the tree of a gang whose *pods* say themselves which leaf they belong to.

    A pod that names no leaf, or one that is not there, belongs to the only one if there is one.
    """
    names = [leaf.name for leaf in spec.root.leaves()]
    members: dict[str, list[PodInfo]] = {name: [] for name in names}
    for pod in pods:
        name = pod.group if pod.group in members else names[0]
        if pod.group in members or len(names) == 1:
            members[name].append(pod)
    root = _grown(spec.root, members)
    created = spec.created or min(
        (p.created for found in members.values() for p in found), default=""
    )
    return Gang(
        spec.key,
        root,
        priority,
        created,
        spec.topology,
        waiting="" if root.satisfiable else _short(list(root.leaves())),
        queue=spec.queue,
        preemptible=spec.preemptible,
        timing=spec.timing,
    )


def _listed(group: GroupSpec, pods: Mapping[str, PodInfo]) -> Group:
    """Return the tree with the pods that its leaves list."""
    listed = {
        leaf.name: [found for key in leaf.pods if (found := pods.get(key)) is not None]
        for leaf in group.leaves()
    }
    return _grown(group, listed)


def _grown(group: GroupSpec, members: Mapping[str, Sequence[PodInfo]]) -> Group:
    children = tuple(_grown(child, members) for child in group.children)
    found = () if children else members.get(group.name, ())
    mine = sorted(found, key=lambda p: (-p.rank, p.created, p.key))
    return Group(
        group.name,
        group.required,
        group.preferred,
        children,
        group.minimum,
        active=tuple(p for p in mine if p.state == "active"),
        pending=tuple(p for p in mine if p.state == "pending" and p.ours),
    )


def _short(leaves: Sequence[Group]) -> str:
    """Return which leaf has too few pods to ever have its minimum."""
    short = [leaf for leaf in leaves if leaf.missing > len(leaf.pending)]
    if not short:
        return ""
    have = len(short[0].active) + len(short[0].pending)
    return f"waits for pods of group {short[0].name}: {have} of {short[0].minimum} can be placed"


def _absent(spec: GangSpec, leaves: Sequence[Group], pods: Mapping[str, PodInfo]) -> str:
    """Return which listed pods do not exist yet. A gang that runs already is not held up."""
    if any(leaf.active for leaf in leaves):
        return ""
    listed = [key for leaf in spec.root.leaves() for key in leaf.pods]
    absent = [key for key in listed if key not in pods]
    if absent:
        return f"waits for {len(absent)} of {len(listed)} listed pods, such as {absent[0]}"
    return ""
