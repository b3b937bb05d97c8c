"""What a cycle decided about each gang."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VerdictKind = Literal["placed", "unplaced", "waiting"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A pod and the node it goes to."""

    pod: str
    """``namespace/name``."""
    uid: str
    node: str
    gang: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one gang fared. It doubles as the memory of why a gang did not fit."""

    gang: str
    kind: VerdictKind
    """``placed``: the minimum is on nodes, from before or by this cycle."""
    reason: str = ""
    """Why the gang, or what it has beyond its minimum, could not be placed."""
    left: tuple[str, ...] = ()
    """Pods that were tried and found no place."""
    signature: int = 0
    """What was asked for when it failed: the same question has the same answer..."""
    room_version: int = -1
    """...as long as no room was made. -1: ask again in any case."""
