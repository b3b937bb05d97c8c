"""The scheduler's frozen view: what nodes have, what is taken, and who waits.

A `Layout` is the part that changes rarely: the nodes in order of name, their labels and capacity as
columns. A `Snapshot` adds what is used and who is pending. Neither changes once made, so a
question "what if" is the production code run on one of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.gpu_share import gpu_memory_mib
from spinney.scheduler.queues.model import QueueTree
from spinney.scheduler.shapes import PODS, SHARED_GPU, amounts

GPU = "nvidia.com/gpu"

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from spinney.api.core import Node
    from spinney.scheduler.budgets import Budget
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.shapes import PodInfo, Requests, Shape


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as the scheduler sees it; heartbeats do not change it."""

    name: str
    labels: Mapping[str, str]
    allocatable: Requests
    taints: tuple[tuple[str, str, str], ...] = ()
    """Key, value, effect."""
    unschedulable: bool = False
    ready: bool = True


def node_info(node: Node, devices: Mapping[str, int] | None = None) -> NodeInfo:
    """Return what scheduling needs of *node*; raise BadInputError for a quantity that is none.

    *devices* are what it has beside its allocatable, in thousandths.
    """
    ready = next((c for c in node.status.conditions if c.get("type") == "Ready"), None)
    return NodeInfo(
        node.name,
        node.labels,
        tuple(sorted({**_allocatable_of(node), **(devices or {})}.items())),
        tuple((t.key, t.value, t.effect) for t in node.spec.taints),
        node.spec.unschedulable,
        ready is None or ready.get("status") == "True",
    )


def _allocatable_of(node: Node) -> dict[str, int]:
    found = amounts(node.status.allocatable)
    return found | ({SHARED_GPU: found[GPU]} if GPU in found else {})


@dataclass(frozen=True, slots=True)
class Domains:
    """The nodes split by one level of the topology."""

    key: str
    codes: NDArray[np.int64]
    """Domain number of each node, -1 where the node lacks the label."""
    names: tuple[str, ...]
    """Label value of each domain; numbers are in order of the path from the top."""
    starts: NDArray[np.int64]
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def members(self, domain: int) -> NDArray[np.int64]:
        """Return the nodes of *domain*, ascending."""
        return self.order[self.starts[domain] : self.starts[domain + 1]]


class Layout:
    """Nodes, capacity and topology; immutable, with derived columns made on first use."""

    def __init__(
        self,
        nodes: Iterable[NodeInfo],
        topologies: Mapping[str, tuple[str, ...]] | None = None,
        extra_resources: Iterable[str] = (),
    ) -> None:
        self.nodes: tuple[NodeInfo, ...] = tuple(sorted(nodes, key=lambda n: n.name))
        self.index = {node.name: row for row, node in enumerate(self.nodes)}
        self.topologies = dict(topologies or {})
        names = {name for node in self.nodes for name, _ in node.allocatable}
        self.resources: tuple[str, ...] = tuple(sorted({*names, *extra_resources, PODS}))
        self.column = {name: at for at, name in enumerate(self.resources)}
        self.allocatable = _allocatable(self.nodes, self.column)
        self.allocatable.flags.writeable = False
        self.rows = np.arange(len(self.nodes), dtype=np.int64)
        self._domains: dict[str, Domains] = {}
        self.room_by_shape: dict[tuple[str, Shape], NDArray[np.bool_]] = {}
        """What filters that look at nodes only have found; see `spinney.scheduler.plugins`."""

    def __len__(self) -> int:
        return len(self.nodes)

    @functools.cached_property
    def gpu_memory_mib(self) -> int:
        """The memory of the smallest GPUs there are; 0 where no node says it."""
        known = (gpu_memory_mib(node.labels) for node in self.nodes)
        return min((memory for memory in known if memory), default=0)

    @functools.cached_property
    def capacity(self) -> int:
        """A number that stays the same while what all nodes have in all does."""
        return hash((self.resources, self.allocatable.tobytes()))

    def vector(self, requests: Requests) -> NDArray[np.int64]:
        """Return *requests* as a row over `resources`; a resource no node has is left out."""
        row = np.zeros(len(self.resources), np.int64)
        for name, amount in requests:
            at = self.column.get(name)
            if at is not None:
                row[at] = amount
        return row

    def levels(self, key: str, topology: str = "") -> tuple[str, ...]:
        """Return the label keys from the broadest level down to *key*."""
        named = self.topologies.get(topology, ())
        candidates = [named, *(levels for _, levels in sorted(self.topologies.items()))]
        for levels in candidates:
            if key in levels:
                return levels[: levels.index(key) + 1]
        return (key,)

    def domains(self, key: str) -> Domains:
        """Return the nodes split by *key*, and by the levels above it.

        Two racks with one name in two zones are two domains.
        """
        found = self._domains.get(key)
        if found is None:
            found = self._domains[key] = _split(self.nodes, key, self.levels(key))
        return found


def _allocatable(nodes: Sequence[NodeInfo], column: Mapping[str, int]) -> NDArray[np.int64]:
    table = np.zeros((len(nodes), len(column)), np.int64)
    for row, node in enumerate(nodes):
        for name, amount in node.allocatable:
            table[row, column[name]] = amount
    return table


def _split(nodes: Sequence[NodeInfo], key: str, levels: Sequence[str]) -> Domains:
    paths = [
        tuple(node.labels.get(level, "") for level in levels) if key in node.labels else None
        for node in nodes
    ]
    distinct = sorted({path for path in paths if path is not None})
    number = {path: at for at, path in enumerate(distinct)}
    codes = np.array([-1 if p is None else number[p] for p in paths], np.int64)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct) + 1))
    return Domains(key, codes, tuple(path[-1] for path in distinct), starts, order)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one scheduling cycle decides from."""

    layout: Layout
    used: NDArray[np.int64]
    """Taken on each node, in thousandths, pods that are leaving included."""
    leaving: NDArray[np.int64]
    """The part of `used` that pods hold which are being deleted."""
    pods: Mapping[str, PodInfo] = field(default_factory=dict)
    gangs: tuple[Gang, ...] = ()
    """Gangs with pods to place, in the order in which they are tried."""
    apart: tuple[str, ...] = ()
    """Keys of the pods on nodes that keep others away by anti-affinity."""
    room_version: int = 0
    """Rises whenever something may fit that did not before."""
    standing: tuple[Gang, ...] = ()
    """Gangs with pods on nodes, in no particular order."""
    queues: QueueTree = field(default_factory=QueueTree)
    version: int = 0
    """Rises with every change of anything."""
    now: float = 0.0
    """Seconds since the epoch."""
    sharing: tuple[str, ...] = ()
    """Keys of the pods on nodes that have parts of GPUs."""
    shared_devices: tuple[tuple[int, int], ...] = ()
    """Nodes with how many GPUs are shared there, which count as used."""
    short: tuple[Gang, ...] = ()
    """Those of `standing` that run below their minimum."""
    budgets: tuple[Budget, ...] = ()
    """Disruption budgets."""
