"""What decides where one pod may run (filters) and where it had better run (scores).

A filter says for each node how many more pods of a class it would take, and names what is
missing. A score is a number from 0 to 1 for each node. Both work on all nodes at once, and are
chosen by name in `spinney.scheduler.config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.session import PodClass, Session
    from spinney.scheduler.shapes import Shape
    from spinney.scheduler.snapshot import Layout

UNBOUNDED = np.int64(1 << 40)
"""The room of a node on which a filter puts no limit."""


class NodeFilter(Protocol):
    """A filter that looks at the nodes and the pod's shape only: its answers are kept."""

    name: str

    def allows(self, layout: Layout, shape: Shape) -> NDArray[np.bool_]:
        """Return for each node whether a pod of *shape* may run there."""
        ...

    def reasons(self, layout: Layout, shape: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield reasons with the nodes that each excludes."""
        ...


class RoomFilter(Protocol):
    """A filter whose answer changes as pods are placed."""

    name: str

    def room(self, session: Session, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many more pods of *cls* each of *rows* takes, up to `UNBOUNDED`."""
        ...

    def reasons(self, session: Session, cls: PodClass) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield reasons with the nodes, of all, that each excludes."""
        ...


class Score(Protocol):
    """A preference among nodes that would do."""

    name: str

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return a number from 0 to 1 for each of *rows*; more is better."""
        ...
