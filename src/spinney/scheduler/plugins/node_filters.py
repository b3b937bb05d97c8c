"""Filters that look at the node alone: cordoned, not ready, tainted, not asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.shapes import Shape
    from spinney.scheduler.snapshot import Layout, NodeInfo

_KEEPS_AWAY = ("NoSchedule", "NoExecute")
_UNSCHEDULABLE = ("node.kubernetes.io/unschedulable", "", "NoSchedule")


class Unschedulable:
    """Cordoned nodes take no pods, except those that tolerate the taint that stands for it."""

    name = "unschedulable"

    def allows(self, layout: Layout, shape: Shape) -> NDArray[np.bool_]:
        """Return which nodes are not cordoned."""
        if any(t.tolerates(*_UNSCHEDULABLE) for t in shape.tolerances):
            return np.ones(len(layout), np.bool_)
        return np.array([not node.unschedulable for node in layout.nodes], np.bool_)

    def reasons(self, layout: Layout, shape: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the one reason there is."""
        yield "unschedulable", ~self.allows(layout, shape)


class NotReady:
    """Nodes whose Ready condition is not True take no pods."""

    name = "not-ready"

    def allows(self, layout: Layout, shape: Shape) -> NDArray[np.bool_]:
        """Return which nodes are ready."""
        return np.array([node.ready for node in layout.nodes], np.bool_)

    def reasons(self, layout: Layout, shape: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the one reason there is."""
        yield "not ready", ~self.allows(layout, shape)


class Taints:
    """Tainted nodes take only pods that tolerate the taint."""

    name = "taints"

    def allows(self, layout: Layout, shape: Shape) -> NDArray[np.bool_]:
        """Return which nodes have no taint that the shape does not tolerate."""
        return np.array([self._untolerated(n, shape) is None for n in layout.nodes], np.bool_)

    def reasons(self, layout: Layout, shape: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield one reason for each taint."""
        found = [self._untolerated(node, shape) for node in layout.nodes]
        for taint in sorted({taint for taint in found if taint}):
            yield f"with taint {taint}", np.array([f == taint for f in found], np.bool_)

    @staticmethod
    def _untolerated(node: NodeInfo, shape: Shape) -> str | None:
        for key, value, effect in node.taints:
            if effect in _KEEPS_AWAY and not any(
                t.tolerates(key, value, effect) for t in shape.tolerances
            ):
                return f"{key}={value}" if value else key
        return None


class NodeAffinity:
    """Node selector and required node affinity."""

    name = "node-affinity"

    def allows(self, layout: Layout, shape: Shape) -> NDArray[np.bool_]:
        """Return which nodes the shape asks for."""
        if not shape.node_selector and shape.node_required is None:
            return np.ones(len(layout), np.bool_)
        return np.array([self._wanted(node, shape) for node in layout.nodes], np.bool_)

    def reasons(self, layout: Layout, shape: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the one reason there is."""
        yield "not matching the node selector or affinity", ~self.allows(layout, shape)

    @staticmethod
    def _wanted(node: NodeInfo, shape: Shape) -> bool:
        labels = node.labels
        if any(labels.get(key) != value for key, value in shape.node_selector):
            return False
        terms = shape.node_required
        return terms is None or any(term.matches(node.name, labels) for term in terms)


class Volumes:
    """Volumes that exist are reached by some nodes only."""

    name = "volumes"

    def allows(self, layout: Layout, shape: Shape) -> NDArray[np.bool_]:
        """Return the nodes that reach all of the shape's volumes."""
        if not shape.volumes:
            return np.ones(len(layout), np.bool_)
        return np.array(
            [
                all(any(t.matches(n.name, n.labels) for t in terms) for terms in shape.volumes)
                for n in layout.nodes
            ],
            np.bool_,
        )

    def reasons(self, layout: Layout, shape: Shape) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the one reason there is."""
        yield "not reaching its volumes or claimed devices", ~self.allows(layout, shape)
