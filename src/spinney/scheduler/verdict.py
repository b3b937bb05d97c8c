"""What a cycle decided about each gang."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from spinney.scheduler.gangs import Gang

VerdictKind = Literal["placed", "pipelined", "unplaced", "waiting"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A pod and the node it goes to."""

    pod: str
    """``namespace/name``."""
    uid: str
    node: str
    gang: str
    devices: tuple[str, ...] = ()
    """The GPUs of the node that it shares, where it takes parts of some."""


@dataclass(frozen=True, slots=True)
class Pipelined:
    """A pod and the node on which room is kept for it."""

    pod: str
    node: str
    gang: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Eviction:
    """A pod that has to leave, and why."""

    pod: str
    """``namespace/name``."""
    uid: str
    node: str
    gang: str
    action: str
    """The action that decided it: ``reclaim``, ``preempt``, ``consolidate``, ``evict-stale``."""
    made_for: str
    """The gang that gets the room; empty for none."""
    message: str
    moves_to: str = ""
    """The node on which room is kept for it, if it may come back at once."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one gang fared. It doubles as the memory of why a gang did not fit."""

    gang: str
    kind: VerdictKind
    """``placed``: the minimum is on nodes, from before or by this cycle. ``pipelined``: room is
    kept for it that others are still leaving."""
    reason: str = ""
    """Why the gang, or what it has beyond its minimum, could not be placed."""
    left: tuple[str, ...] = ()
    """Pods that were tried and found no place."""
    signature: int = 0
    """What was asked for when it failed: the same question has the same answer..."""
    room_version: int = -1
    """...as long as no room was made. -1: ask again in any case."""
    tree: Gang | None = field(default=None, compare=False, repr=False)
    """The gang as it was when this was found."""
