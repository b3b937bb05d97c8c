"""What to do about the pods of one clique: create, release, replace, remove.

At no time do more live pods than the target exist because of an action, and no two live pods of a
clique have the same index. A pod's gate opens only when its gang lists the pod, and the pod
of a scaled gang waits for the base gang to be scheduled first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api import names
from spinney.clock import parse_rfc3339
from spinney.controllers.identity import index_label
from spinney.controllers.pod_state import (
    is_finished,
    is_gated,
    is_live,
    is_ready,
    is_scheduled,
)
from spinney.controllers.template import clique_count
from spinney.controllers.update.plan import HOLE, ROLLOUT, read_plan
from spinney.controllers.update.rolling import pods_to_replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spinney.api.core import Pod
    from spinney.api.grove import PodClique
    from spinney.controllers.update.plan import Plan


DELETION_COSTS = ("spinney.dev/deletion-cost", "controller.kubernetes.io/pod-deletion-cost")
"""Annotations of a pod that say how much is lost with it; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Make the pod of an index."""

    index: int
    revision: str = ""
    """The hash of its template; that of the clique if empty."""


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Remove a pod, and why."""

    pod: Pod
    reason: str


@dataclass(frozen=True, slots=True)
class OpenGate:
    """Let the scheduler see a pod."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class MarkRevision:
    """Tell a running pod that its template is part of other revisions of the set too."""

    pod: Pod
    revision: str


Action = CreatePod | DeletePod | OpenGate | MarkRevision


@dataclass(frozen=True, slots=True)
class Observation:
    """What there is of a clique."""

    pods: Sequence[Pod]
    """All pods the clique controls, also those that end or have ended."""
    listed: frozenset[str]
    """Names of the pods that the gang lists."""
    base_scheduled: bool
    """Whether the gang that has to be scheduled first is; true where there is none."""
    may_replace_finished: bool
    """Whether the back-off after pods that ended is over."""


def decide(clique: PodClique, seen: Observation) -> list[Action]:
    """Return the actions that bring the clique's pods to where its spec wants them.

    Empty when they are there, or when they have to wait: for the gang, or for the back-off.
    """
    if clique.deleting:
        return []
    finished = [pod for pod in seen.pods if is_finished(pod) and not pod.deleting]
    live = [pod for pod in seen.pods if is_live(pod)]
    target = clique_count(clique).target
    if (plan := read_plan(clique.metadata.annotations)) is not None:
        actions, live = _as_planned(plan, live, finished, seen)
        return [*actions, *_released(live, seen), *_marks(clique, live)]
    actions = []
    kept = finished
    if seen.may_replace_finished or len(live) >= target:
        actions += [DeletePod(pod, "it has ended") for pod in sorted(finished, key=_by_name)]
        kept = []
    surplus = len(live) - target
    if surplus > 0:
        leaving = removal_order(live, _revision(clique))[:surplus]
        actions += [DeletePod(pod, "the clique was scaled in") for pod in leaving]
        staying = {pod.metadata.uid for pod in leaving}
        live = [pod for pod in live if pod.metadata.uid not in staying]
    elif ROLLOUT in clique.metadata.annotations:
        old = pods_to_replace(live, _revision(clique), target=target)
        actions += [DeletePod(pod, "it is of an older revision") for pod in old]
        gone = {pod.metadata.uid for pod in old}
        live = [pod for pod in live if pod.metadata.uid not in gone]
    missing = target - len(live) - len(kept)
    actions += [CreatePod(index) for index in free_indices([*live, *kept], missing)]
    return [*actions, *_released(live, seen), *_marks(clique, live)]


def _as_planned(
    plan: Plan, live: Sequence[Pod], finished: Sequence[Pod], seen: Observation
) -> tuple[list[Action], list[Pod]]:
    """Return what makes the pods be as *plan* has them, and the live pods that stay."""

    def fits(pod: Pod) -> bool:
        index = index_label(pod.labels, names.POD_INDEX)
        own = pod.labels.get(names.POD_TEMPLATE_HASH)
        return index is not None and index < len(plan) and plan[index] == own

    staying = [pod for pod in live if fits(pod)]
    kept = [] if seen.may_replace_finished else [pod for pod in finished if fits(pod)]
    held = {pod.metadata.uid for pod in [*staying, *kept]}
    actions: list[Action] = [
        DeletePod(pod, "it has ended" if pod in finished else "its place goes to another revision")
        for pod in sorted([*live, *finished], key=_by_name)
        if pod.metadata.uid not in held
    ]
    taken = {index_label(pod.labels, names.POD_INDEX) for pod in [*staying, *kept]}
    actions += [
        CreatePod(i, revision)
        for i, revision in enumerate(plan)
        if revision != HOLE and i not in taken
    ]
    return actions, staying


def _released(live: Sequence[Pod], seen: Observation) -> list[Action]:
    return [OpenGate(pod) for pod in sorted(live, key=_by_name) if _may_open(pod, seen)]


def _marks(clique: PodClique, live: Sequence[Pod]) -> list[Action]:
    revision = clique.labels.get(names.REVISION)
    if not revision:
        return []
    return [
        MarkRevision(pod, revision)
        for pod in sorted(live, key=_by_name)
        if pod.labels.get(names.POD_TEMPLATE_HASH) == _revision(clique)
        and pod.labels.get(names.REVISION) != revision
    ]


def _revision(clique: PodClique) -> str:
    return clique.labels.get(names.POD_TEMPLATE_HASH, "")


def free_indices(pods: Iterable[Pod], wanted: int) -> list[int]:
    """Return the *wanted* lowest pod indices that none of *pods* has."""
    taken = {index_label(pod.labels, names.POD_INDEX) for pod in pods}
    found: list[int] = []
    index = 0
    while len(found) < wanted:
        if index not in taken:
            found.append(index)
        index += 1
    return found


def removal_order(pods: Iterable[Pod], revision: str) -> list[Pod]:
    """Return *pods* in the order in which they are given up: those with least to lose first.

    Without a node before with one; pending, then unknown, then running; not ready before ready;
    of a lower `deletion_cost` before of a higher; of another revision before of *revision*; newer
    before older.
    """

    def rank(pod: Pod) -> tuple[object, ...]:
        phases = {"": 0, "Pending": 0, "Unknown": 1}
        created = pod.metadata.creation_timestamp
        return (
            is_scheduled(pod),
            phases.get(pod.status.phase, 2),
            is_ready(pod),
            deletion_cost(pod),
            pod.labels.get(names.POD_TEMPLATE_HASH) == revision,
            -(parse_rfc3339(created) if created else 0.0),
            # Of pods of one second the highest index goes, so that indices stay dense.
            -(index_label(pod.labels, names.POD_INDEX) or 0),
            pod.name,
        )

    return sorted(pods, key=rank)


def deletion_cost(pod: Pod) -> int:
    """Return what is lost with the pod, as an annotation on it says; 0 where none is a number."""
    for key in DELETION_COSTS:
        text = pod.metadata.annotations.get(key, "")
        if text.removeprefix("-").isdecimal():
            return int(text)
    return 0


def _may_open(pod: Pod, seen: Observation) -> bool:
    return is_gated(pod) and pod.name in seen.listed and seen.base_scheduled


def _by_name(pod: Pod) -> str:
    return pod.name
