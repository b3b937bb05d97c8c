"""One scheduling cycle at work: a snapshot, what was placed on it so far, and answers about room.

The session owns the numbers that change. Filters and scores read them; `Statement` changes them.
Questions are asked per class of pods and for all nodes at once, and answers are kept until a
node changes.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.budgets import Budgets
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.drains import Drains
from spinney.scheduler.gpu_share import GPU, SharedGpus
from spinney.scheduler.memory import Memory
from spinney.scheduler.plugins import UNBOUNDED
from spinney.scheduler.plugins.registry import (
    COUPLING,
    NODE_FILTERS,
    ROOM_FILTERS,
    SCORES,
    check,
)
from spinney.scheduler.queues.ledger import Ledger, pods_amount
from spinney.scheduler.queues.model import NOTHING, Amounts, plus, shape_amount, times
from spinney.scheduler.reservations import Reservations
from spinney.scheduler.shapes import SHARED_GPU
from spinney.scheduler.statement import Statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from spinney.scheduler.actions.victims import Unit
    from spinney.scheduler.affinity import PodTerm
    from spinney.scheduler.demand import Demand
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.shapes import PodInfo, Shape
    from spinney.scheduler.snapshot import Layout, Snapshot
    from spinney.scheduler.verdict import Eviction, Verdict

_ORDINARY = ("cpu", "memory", "pods", "ephemeral-storage")


def is_device(resource: str) -> bool:
    """Tell whether *resource* is an extended one: counted devices such as GPUs."""
    return resource not in _ORDINARY and not resource.startswith("hugepages-")


@dataclass(frozen=True, slots=True, eq=False)
class PodClass:
    """Pods that no filter can tell apart. Made by one session, for that session."""

    number: int
    shape: Shape
    namespace: str
    labels: tuple[tuple[str, str], ...]
    """Only the labels that some pod term looks at."""
    labels_map: Mapping[str, str]
    vector: NDArray[np.int64]
    columns: tuple[tuple[int, int], ...]
    """Column and amount of each resource requested."""
    absent: tuple[str, ...]
    """Resources requested that no node has."""
    main: int
    """Column of the resource that is packed tightest."""
    wants_devices: bool
    salt: int
    identity: int
    """The same for the same class in every session of this process."""
    amount: Amounts
    """What one pod counts for in a queue."""

    @property
    def size(self) -> tuple[int, int]:
        """Sorts classes by how hard one pod is to place: devices first, then CPU or the like."""
        return (int(self.wants_devices), int(self.vector[self.main]))


class Session:
    """A snapshot with tentative placements."""

    def __init__(
        self,
        snapshot: Snapshot,
        config: SchedulerConfig | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.config = config or SchedulerConfig()
        self.memory = memory or Memory()
        self.reservations = Reservations(self)
        self.drains = Drains(self)
        self.budgets = Budgets(self)
        self.undrainable: dict[str, int] = {}
        """Gangs for which no node could be drained, with what was asked."""
        self.evictions: list[Eviction] = []
        self.verdicts: dict[str, Verdict] = {}
        """How gangs fared so far."""
        self.units: dict[str, list[Unit]] = {}
        """By gang: what may be displaced of it."""
        self.displaced: set[str] = set()
        """Pods that this cycle decided to displace."""
        self.promised: set[str] = set()
        """Gangs for which this cycle made room, or found another place."""
        self.wake_at: float | None = None
        """When time alone may change what this cycle finds."""
        self.snapshot = snapshot
        self.layout: Layout = snapshot.layout
        self.idle: NDArray[np.int64] = snapshot.layout.allocatable - snapshot.used
        self.leaving: NDArray[np.int64] = snapshot.leaving.copy()
        """What will be free and is kept for nobody: of pods that are being deleted, or that this
        cycle decided to displace."""
        self.shares = SharedGpus(self.layout, self.idle, self.config.gpu_order == "spread")
        self.shares.start(snapshot)
        self.statement = Statement(self.idle, self.shares, self.leaving)
        check("filter", self.config.filters, {**NODE_FILTERS, **ROOM_FILTERS})
        check("score", [name for name, _ in self.config.scores], SCORES)
        self._room_filters = [ROOM_FILTERS[f] for f in self.config.filters if f in ROOM_FILTERS]
        self._classes: dict[tuple[Shape, str, tuple[tuple[str, str], ...]], PodClass] = {}
        self._amounts: dict[int, Amounts] = {}
        self._room: dict[int, NDArray[np.int64]] = {}
        self._seen: dict[int, int] = {}
        """Class number to the length of the statement's touch log that its room reflects."""
        self._coupled: dict[int, bool] = {}
        self._ignored: frozenset[str] = frozenset()
        self._all_free = False
        """Whether `idle` has what is leaving, too."""

    # Queues and time

    @functools.cached_property
    def ledger(self) -> Ledger | None:
        """The account of all queues; None where there are none."""
        if not self.snapshot.queues.shared:
            return None
        weight = Fraction(self.config.usage_weight)
        return Ledger(self.snapshot, usage=self.memory.usage, history=weight)

    def refusal(self, gang: Gang, demand: Demand) -> str:
        """Return why the gang's queue may not take *demand* on; empty when it may."""
        return self.ledger.refusal(gang, self.amount(demand)) if self.ledger else ""

    def enter(self, gang: Gang, demand: Demand) -> None:
        """Charge *demand*, which is placed now, to the gang's queue."""
        if self.ledger:
            self.ledger.enter(gang, self.amount(demand))

    def amount(self, demand: Demand) -> Amounts:
        """Return what *demand* counts for in a queue."""
        total = NOTHING
        for cls, count in demand.totals:
            total = plus(total, times(cls.amount, count))
        return total

    def pods_amount(self, pods: Iterable[PodInfo]) -> Amounts:
        """Return what *pods* count for in a queue."""
        return pods_amount(pods, self.layout.gpu_memory_mib, self._amounts)

    def wake(self, at: float) -> None:
        """Note that at the time *at* a cycle may find something else."""
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    # Classes

    def class_of(self, pod: PodInfo) -> PodClass:
        """Return the class of *pod*."""
        keys = self._label_keys
        labels = tuple(sorted((k, v) for k, v in pod.labels.items() if k in keys)) if keys else ()
        at = (pod.shape, pod.namespace if keys else "", labels)
        found = self._classes.get(at)
        if found is None:
            found = self._classes[at] = self._new_class(pod.shape, at[1], labels)
        return found

    def _new_class(
        self, shape: Shape, namespace: str, labels: tuple[tuple[str, str], ...]
    ) -> PodClass:
        column = self.layout.column
        vector = self.layout.vector(shape.requests)
        devices = [name for name, _ in shape.requests if is_device(name)]
        known = [name for name in (*devices, "cpu", "memory", "pods") if name in column]
        main = next((n for n in known if vector[column[n]] > 0), "pods")
        number = len(self._classes)
        return PodClass(
            number,
            shape,
            namespace,
            labels,
            dict(labels),
            vector,
            tuple((column[n], amount) for n, amount in shape.requests if n in column),
            tuple(name for name, _ in shape.requests if name not in column),
            column[main],
            bool(devices),
            (number * 2 + 1) * 0xD6E8FEB86659FD93,
            hash((shape, namespace, labels)),
            shape_amount(shape, self.layout.gpu_memory_mib),
        )

    @functools.cached_property
    def terms(self) -> tuple[PodTerm, ...]:
        """All pod terms that matter in this cycle."""
        pods = self.snapshot.pods
        asking = [pods[key].shape for key in self.snapshot.apart]
        for gang in self.snapshot.gangs:
            asking += [p.shape for leaf in gang.root.leaves() for p in leaf.pending]
        terms: dict[PodTerm, None] = {}
        for shape in {id(s): s for s in asking if s.looks_at_pods}.values():
            weighted = [term for _, term in shape.pod_preferred]
            weighted += [spread.term for spread in shape.spread]
            terms.update(dict.fromkeys((*shape.pod_affinity, *shape.pod_anti_affinity, *weighted)))
        return tuple(terms)

    @functools.cached_property
    def _label_keys(self) -> frozenset[str]:
        return frozenset(e.key for term in self.terms for e in term.selector or ())

    # Room

    def allowed(self, shape: Shape) -> NDArray[np.bool_]:
        """Return the nodes that the filters which look at nodes only let *shape* onto."""
        result = np.ones(len(self.layout), np.bool_)
        for name in self.config.filters:
            plugin = NODE_FILTERS.get(name)
            if plugin is None or name in self._ignored:
                continue
            at = (name, shape)
            found = self.layout.room_by_shape.get(at)
            if found is None:
                found = self.layout.room_by_shape[at] = plugin.allows(self.layout, shape)
            result &= found
        return result

    def room(self, cls: PodClass) -> NDArray[np.int64]:
        """Return how many more pods of *cls* each node takes. Not to be changed by the caller.

        Other pods' positions count only as far as they are placed: see `coupled`.
        """
        bound = self.room_bound(cls)
        if not self.coupled(cls):
            return bound
        for plugin in self._room_filters:
            if plugin.name in COUPLING and plugin.name not in self._ignored:
                bound = np.minimum(bound, plugin.room(self, cls, self.layout.rows))
        return bound

    def room_bound(self, cls: PodClass) -> NDArray[np.int64]:
        """Return `room` without inter-pod affinity: what it can be at most, later on."""
        touched = self.statement.touched
        seen = self._seen.get(cls.number, -1)
        if seen == len(touched):
            return self._room[cls.number]
        changed = None if seen < 0 else _distinct(touched[seen:], len(self.layout))
        if changed is None:
            self._room[cls.number] = self._count_room(cls, self.layout.rows)
        else:
            self._room[cls.number][changed] = self._count_room(cls, changed)
        self._seen[cls.number] = len(touched)
        return self._room[cls.number]

    def _count_room(self, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        room = np.where(self.allowed(cls.shape)[rows], UNBOUNDED, np.int64(0))
        for plugin in self._room_filters:
            if plugin.name not in COUPLING:
                np.minimum(room, plugin.room(self, cls, rows), out=room)
        return room

    @contextlib.contextmanager
    def ignoring(self, name: str) -> Iterator[None]:
        """Answer as if the node filter *name*, or pod affinity, did not exist."""
        ignored, self._ignored = self._ignored, self._ignored | {name}
        self._forget_room()
        try:
            yield
        finally:
            self._ignored = ignored
            self._forget_room()

    @contextlib.contextmanager
    def without_leaving(self) -> Iterator[None]:
        """Answer as if the pods that are being deleted, or displaced, were gone."""
        self.idle += self.leaving
        self._forget_room()
        self._all_free = True
        try:
            with self.shares.without_leaving():
                yield
        finally:
            self._all_free = False
            self.idle -= self.leaving
            self._forget_room()

    def _forget_room(self) -> None:
        self._room.clear()
        self._seen.clear()

    def left_of_main(self, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how much of the resource by which *cls* is packed is or will be free on *rows*.

        What is left of shared GPUs counts for pods with whole GPUs as well as for sharers.
        """
        column = self.layout.column
        if not cls.wants_devices and cls.shape.share is None and "cpu" in column:
            return self._free_in_the_end(column["cpu"], rows)
        gpu, shared = column.get(GPU, -1), column.get(SHARED_GPU, -1)
        if cls.shape.share is None and cls.main != gpu:
            return self._free_in_the_end(cls.main, rows)
        left = self.shares.spare[rows]
        if gpu >= 0:
            left = left + self._free_in_the_end(gpu, rows)
        if shared >= 0 and not self._all_free:
            left = left + self.leaving[rows, shared]
        return left

    def _free_in_the_end(self, column: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        idle: NDArray[np.int64] = self.idle[rows, column]
        if not self._all_free:
            idle = idle + self.leaving[rows, column]
        return idle

    def score(self, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weighted sum of all scores for *rows*."""
        total = np.zeros(len(rows))
        for name, weight in self.config.scores:
            total += weight * SCORES[name].score(self, cls, rows)
        return total

    @functools.cached_property
    def has_devices(self) -> NDArray[np.bool_]:
        """Which nodes have devices of any kind."""
        columns = [at for name, at in self.layout.column.items() if is_device(name)]
        return np.asarray((self.layout.allocatable[:, columns] > 0).any(axis=1))

    def refusals(self, cls: PodClass) -> list[tuple[str, int]]:
        """Return why nodes take no pod of *cls*, with how many; each node counts once."""
        left = np.ones(len(self.layout), np.bool_)
        counts: dict[str, int] = {}
        for name in self.config.filters:
            node_filter, room_filter = NODE_FILTERS.get(name), ROOM_FILTERS.get(name)
            if node_filter is not None:
                found = node_filter.reasons(self.layout, cls.shape)
            else:
                assert room_filter is not None
                found = room_filter.reasons(self, cls)
            for reason, nodes in found:
                excluded = int((left & nodes).sum())
                left &= ~nodes
                if excluded:
                    counts[reason] = counts.get(reason, 0) + excluded
        return list(counts.items())

    # Other pods

    def coupled(self, cls: PodClass) -> bool:
        """Tell whether where other pods are decides where pods of *cls* may go."""
        if not self.terms or self._ignored.issuperset(COUPLING):
            return False
        found = self._coupled.get(cls.number)
        if found is None:
            shape = cls.shape
            mine = bool(shape.pod_affinity or shape.pod_anti_affinity or shape.spread)
            found = mine or any(t.matches(cls.namespace, cls.labels_map) for t in self.terms)
            self._coupled[cls.number] = found
        return found

    @functools.cached_property
    def _standing(self) -> list[tuple[PodInfo, int]]:
        index = self.layout.index
        return [
            (pod, index[pod.node])
            for pod in self.snapshot.pods.values()
            if pod.state in ("active", "leaving") and pod.node in index
        ]

    def placed(self) -> Iterator[tuple[PodInfo, int]]:
        """Yield the pods that this cycle placed, or keeps room for, with their nodes."""
        held = (placement for kept in self.statement.held.values() for placement in kept)
        for placement in (*self.statement.placements, *held):
            yield from zip(placement.pods, placement.rows.tolist(), strict=True)

    def _staying(self) -> Iterator[tuple[PodInfo, int]]:
        """Yield the pods on nodes with their nodes; without those that are leaving, if asked so."""
        for pod, row in self._standing:
            if not (self._all_free and pod.state == "leaving"):
                yield pod, row

    def _everyone(self) -> Iterator[tuple[PodInfo, int]]:
        yield from self._staying()
        yield from self.placed()

    def rows_matching(self, term: PodTerm) -> Iterator[int]:
        """Yield the nodes of pods that *term* matches, placed ones included."""
        for pod, row in self._everyone():
            if term.matches(pod.namespace, pod.labels):
                yield row

    def excluding(self, cls: PodClass) -> Iterator[tuple[PodTerm, int]]:
        """Yield anti-affinity terms of pods on nodes that keep *cls* away, with the node."""
        index, pods = self.layout.index, self.snapshot.pods
        apart = [
            (pods[k], index[pods[k].node])
            for k in self.snapshot.apart
            if pods[k].node in index and not (self._all_free and pods[k].state == "leaving")
        ]
        for pod, row in (*apart, *self.placed()):
            for term in pod.shape.pod_anti_affinity:
                if term.matches(cls.namespace, cls.labels_map):
                    yield term, row

    def host_ports(self) -> dict[int, set[tuple[str, int]]]:
        """Return the host ports taken on each node that has some taken."""
        taken: dict[int, set[tuple[str, int]]] = {}
        leaving = {"leaving"} if self._all_free else set[str]()
        _collect_ports(taken, ((p, row) for p, row in self._with_ports if p.state not in leaving))
        _collect_ports(taken, self.placed())
        return taken

    @functools.cached_property
    def _with_ports(self) -> list[tuple[PodInfo, int]]:
        return [(pod, row) for pod, row in self._standing if pod.shape.host_ports]


def _collect_ports(
    taken: dict[int, set[tuple[str, int]]], pods: Iterable[tuple[PodInfo, int]]
) -> None:
    for pod, row in pods:
        if pod.shape.host_ports:
            taken.setdefault(row, set()).update(pod.shape.host_ports)


def _distinct(touched: list[NDArray[np.int64]], nodes: int) -> NDArray[np.int64] | None:
    """Return the nodes in *touched*, or None when going over all of them is as cheap."""
    if sum(len(rows) for rows in touched) * 4 > nodes:
        return None
    return np.unique(np.concatenate(touched))
