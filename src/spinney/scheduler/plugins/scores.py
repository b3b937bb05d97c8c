"""Which node to take of those that would do: fill what is in use, keep GPUs for who needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.plugins.pod_affinity import preference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spinney.scheduler.session import PodClass, Session


class BinPack:
    """Prefers the node with the least left of what the pod needs most: its devices, else CPU."""

    name = "bin-pack"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return 1 for the fullest of *rows*, 0 for the emptiest."""
        return 1.0 - _scaled(session.left_of_main(cls, rows).astype(np.float64))


class SpreadOut:
    """Prefers the node with most left: the opposite of `BinPack`."""

    name = "spread"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return 1 for the emptiest of *rows*, 0 for the fullest."""
        return _scaled(session.left_of_main(cls, rows).astype(np.float64))


class ResourceType:
    """Keeps pods that need no device off nodes that have some."""

    name = "resource-type"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return 1 for nodes without devices when the pod asks for none."""
        if cls.wants_devices:
            return np.zeros(len(rows))
        return (~session.has_devices[rows]).astype(np.float64)


class NominatedNode:
    """Prefers the node that the API names for the pod: room was made there for it."""

    name = "nominated-node"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return 1 for the node named, if there is one."""
        found = session.layout.index.get(cls.shape.nominated, -1)
        return np.asarray(rows == found, np.float64)


class PreferredAffinity:
    """Preferred terms of node affinity and inter-pod affinity, by their weights."""

    name = "preferred-affinity"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the weights that hold, scaled over *rows*."""
        total = np.zeros(len(rows))
        nodes = session.layout.nodes
        for weight, term in cls.shape.node_preferred:
            holds = [term.matches(nodes[r].name, nodes[r].labels) for r in rows.tolist()]
            total += weight * np.array(holds, np.float64)
        if cls.shape.pod_preferred:
            total += preference(session, cls)[rows]
        return _scaled(total)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return *values* stretched to 0..1; all zeros when they are equal."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return np.zeros(len(values)) if high == low else (values - low) / (high - low)
