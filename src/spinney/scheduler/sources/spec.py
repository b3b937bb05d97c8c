"""What a gang asks for, whichever API says it: a tree of groups with minimums and constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.scheduler.sources.timing import UNSAID, Timing

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """One node of the tree."""

    name: str
    """Unique in its gang."""
    required: str = ""
    preferred: str = ""
    minimum: int = 0
    """Of a leaf: pods. Of an inner group: children that have to have their own minimum; 0 means
    all of them."""
    children: tuple[GroupSpec, ...] = ()
    pods: tuple[str, ...] = ()
    """Keys of the pods that the leaf lists. Empty where pods say themselves where they belong."""

    def leaves(self) -> Iterator[GroupSpec]:
        """Yield the groups that hold pods."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()


@dataclass(frozen=True, slots=True)
class GangSpec:
    """A gang."""

    key: str
    root: GroupSpec
    priority_class: str = ""
    created: str = ""
    topology: str = ""
    """Name of the topology that its levels come from, if it says."""
    queue: str = ""
    """Empty where labels of the gang or its pods say it."""
    preemptible: bool | None = None
    """None where labels or the priority say it."""
    timing: Timing = UNSAID
    lists_pods: bool = False
    """Whether the pods of leaves are those listed; all of them have to exist at first."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Where a pod belongs, as the pod itself says."""

    gang: str = ""
    """Key of its gang; empty for a pod on its own."""
    group: str = ""
    """The leaf; empty where the gang lists its pods, or has one leaf only."""
    implied: GangSpec | None = None
    """The whole gang, where no object describes it but the labels of its pods do."""


def gang_name(key: str) -> str:
    """Return a gang's key as ``namespace/name``, whichever kind of object describes it."""
    namespace, _, name = key.partition("/")
    return f"{namespace}/{name.partition(':')[2] or name}"
