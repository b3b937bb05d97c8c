"""A cluster of scenario lines that lives on from cycle to cycle, and what must hold in each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.memory import Memory
from spinney.scheduler.scenario import NAMESPACE, fill, pods, scenario

if TYPE_CHECKING:
    from spinney.api.core import Pod
    from spinney.scheduler.snapshot import Snapshot

START = 1_767_225_600.0 + 86_400.0
"""A day after the time stamps that scenarios start from."""


class World:
    """Nodes, queues and gangs; every `cycle` decides, and `settle` lets it come true."""

    def __init__(self, document: dict[str, Any], config: SchedulerConfig | None = None) -> None:
        found = scenario(document)
        self.cache = fill(found)
        self.config = config or SchedulerConfig()
        self.now = START
        self.memory = Memory()
        self.pods: dict[str, Pod] = {}
        for at, line in enumerate(found.gangs):
            for group in line.groups:
                self.pods.update((pod.key, pod) for pod in pods(group, at, line))
        for at, single in enumerate(found.pods):
            self.pods.update((p.key, p) for p in pods(single, len(found.gangs) + at))
        self.snapshot: Snapshot
        self.result: CycleResult

    def cycle(self) -> CycleResult:
        """Run one cycle, and check what holds of every one."""
        self.snapshot = self.cache.snapshot(self.now)
        self.result = run_cycle(self.snapshot, self.config, memory=self.memory)
        self.memory = self.result.memory
        check(self.snapshot, self.result)
        return self.result

    def settle(self) -> None:
        """Let pods run where they were bound, and those evicted wait again under their names."""
        for binding in self.result.bindings:
            self._set(binding.pod, binding.node)
        for eviction in self.result.evictions:
            self._set(eviction.pod, "")
        self.now += 1

    def leave(self) -> None:
        """Like `settle`, but those evicted are only on their way out."""
        for binding in self.result.bindings:
            self._set(binding.pod, binding.node)
        for eviction in self.result.evictions:
            pod = self.pods[eviction.pod]
            meta = replace(pod.metadata, deletion_timestamp="2026-01-02T00:00:00Z")
            self.cache.set_pod(replace(pod, metadata=meta))
        self.now += 1

    def _set(self, key: str, node: str) -> None:
        pod = self.pods[key]
        gates = [] if node else pod.spec.scheduling_gates
        spec = replace(pod.spec, node_name=node, scheduling_gates=gates)
        self.pods[key] = replace(pod, spec=spec)
        self.cache.set_pod(self.pods[key])

    def rounds(self, count: int) -> list[CycleResult]:
        """Run *count* cycles, each coming true before the next."""
        found = []
        for _ in range(count):
            found.append(self.cycle())
            self.settle()
        return found

    # What happened, without the namespace

    @property
    def bound(self) -> dict[str, str]:
        return {_short(b.pod): b.node for b in self.result.bindings}

    @property
    def evicted(self) -> dict[str, str]:
        """Pods that leave, with the node they move to."""
        return {_short(e.pod): e.moves_to for e in self.result.evictions}

    @property
    def pipelined(self) -> dict[str, str]:
        return {_short(p.pod): p.node for p in self.result.pipelined}

    @property
    def running(self) -> dict[str, str]:
        return {_short(k): p.spec.node_name for k, p in self.pods.items() if p.spec.node_name}

    def reason(self, gang: str) -> str:
        return self.result.verdicts[f"{NAMESPACE}/{gang}"].reason

    def kind(self, gang: str) -> str:
        return self.result.verdicts[f"{NAMESPACE}/{gang}"].kind


def _short(key: str) -> str:
    return key.removeprefix(f"{NAMESPACE}/")


def check(snapshot: Snapshot, result: CycleResult) -> None:
    """Assert: no oversubscription, whole gangs, limits, and room for whom it is made."""
    _check_room(snapshot, result)
    _check_whole(snapshot, result)
    _check_limits(snapshot, result)
    pipelined = Counter(p.gang for p in result.pipelined)
    for eviction in result.evictions:
        if eviction.made_for:
            assert pipelined[eviction.made_for], f"{eviction.made_for} got no room"


def _check_room(snapshot: Snapshot, result: CycleResult) -> None:
    layout = snapshot.layout
    now = snapshot.used.copy()
    for binding in result.bindings:
        vector = layout.vector(snapshot.pods[binding.pod].shape.requests)
        now[layout.index[binding.node]] += vector
    touched = {layout.index[b.node] for b in result.bindings}
    assert all((now[row] <= layout.allocatable[row]).all() for row in touched), "oversubscribed"
    later = now - snapshot.leaving
    for eviction in result.evictions:
        vector = layout.vector(snapshot.pods[eviction.pod].shape.requests)
        later[layout.index[eviction.node]] -= vector
    rows = set()
    for kept in result.pipelined:
        if kept.pod in snapshot.pods:
            rows.add(layout.index[kept.node])
            vector = layout.vector(snapshot.pods[kept.pod].shape.requests)
            later[layout.index[kept.node]] += vector
    assert all((later[row] <= layout.allocatable[row]).all() for row in rows), "promised twice"


def _check_whole(snapshot: Snapshot, result: CycleResult) -> None:
    gone = {e.pod for e in result.evictions}
    for gang in snapshot.standing:
        leaves = list(gang.root.leaves())
        lost = [p for leaf in leaves for p in leaf.active if p.key in gone]
        if not lost:
            continue
        assert not any(p.key in gone for leaf in leaves for p in leaf.pending)
        left = [sum(p.key not in gone for p in leaf.active) for leaf in leaves]
        whole = not any(left)
        enough = all(n >= leaf.minimum for n, leaf in zip(left, leaves, strict=True))
        assert whole or enough, f"half of {gang.key} is evicted"


def _check_limits(snapshot: Snapshot, result: CycleResult) -> None:
    if not snapshot.queues.shared or not result.bindings:
        return
    bound = {b.pod for b in result.bindings}
    grown = {p.key for g in snapshot.gangs for leaf in g.root.leaves() for p in leaf.pending}
    grown &= bound
    for name, queue in snapshot.queues.queues.items():
        mine = [g for g in snapshot.standing if name in snapshot.queues.path(g.queue)]
        new = [g for g in snapshot.gangs if name in snapshot.queues.path(g.queue)]
        for bound_to, firm in ((queue.limit[0], False), (queue.quota[0], True)):
            if bound_to < 0:
                continue
            have = sum(
                _gpus(p)
                for g in mine
                if not (firm and g.preemptible)
                for leaf in g.root.leaves()
                for p in leaf.active
            )
            more = sum(
                _gpus(p)
                for g in new
                if not (firm and g.preemptible)
                for leaf in g.root.leaves()
                for p in leaf.pending
                if p.key in grown
            )
            assert not more or have + more <= bound_to, f"{name} is over its bound"


def _gpus(pod: Any) -> int:
    return int(dict(pod.shape.requests).get("nvidia.com/gpu", 0))
