"""How far a gang is, told from its pods.

Counted from pods and not from conditions, so that it holds with any scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.api import names
from spinney.controllers.pod_state import is_live, is_ready, is_scheduled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spinney.api.core import Pod
    from spinney.api.podgang import PodGang


def counts(pods: Iterable[Pod], fulfils: Callable[[Pod], bool]) -> dict[str, int]:
    """Return how many live pods of each clique fulfil a condition."""
    found: dict[str, int] = {}
    for pod in pods:
        if is_live(pod) and fulfils(pod):
            clique = pod.labels.get(names.POD_CLIQUE, "")
            found[clique] = found.get(clique, 0) + 1
    return found


def has_minimum(gang: PodGang, pods: Iterable[Pod], fulfils: Callable[[Pod], bool]) -> bool:
    """Tell whether enough pods of each of the gang's cliques fulfil a condition."""
    found = counts(pods, fulfils)
    groups = gang.spec.pod_groups
    return bool(groups) and all(found.get(g.name, 0) >= g.min_replicas for g in groups)


def is_gang_scheduled(gang: PodGang, pods: Iterable[Pod]) -> bool:
    """Tell whether the gang's minimum has nodes."""
    return has_minimum(gang, pods, is_scheduled)


def is_gang_ready(gang: PodGang, pods: Iterable[Pod]) -> bool:
    """Tell whether the gang's minimum is ready."""
    return has_minimum(gang, pods, is_ready)
