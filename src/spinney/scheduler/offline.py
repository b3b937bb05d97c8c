"""Scheduling cycles without a cluster: the production code over a state that lives in memory.

After each cycle its decisions take effect before the next: bound pods run; pods that were
being deleted are gone; evicted ones are gone too and come back as pending, as their controller
would make them anew. Nothing else changes but the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from spinney.clock import rfc3339
from spinney.scheduler.cache import Cache
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.cycle import CycleResult, run_cycle
from spinney.scheduler.nominations import recovered
from spinney.scheduler.scenario import allocated
from spinney.scheduler.session import Session
from spinney.scheduler.shapes import GPU_GROUP
from spinney.scheduler.sources.spec import gang_name
from spinney.scheduler.topology.placement_score import placement_score

if TYPE_CHECKING:
    from spinney.api.core import Pod
    from spinney.scheduler.gangs import Gang
    from spinney.scheduler.scenario import Objects
    from spinney.scheduler.verdict import Binding, Eviction, Pipelined, Verdict


class _Line(msgspec.Struct, rename="camel"):
    pass


class Bound(_Line):
    """A pod that a cycle put on a node, or keeps room for there."""

    pod: str
    node: str
    gang: str
    gpus: list[str]
    """The GPUs of the node that it shares, where it takes parts of some."""


class Evicted(_Line):
    """A pod that a cycle takes off its node."""

    pod: str
    node: str
    gang: str
    action: str
    made_for: str
    """The gang that gets the room; empty for none."""
    moves_to: str
    """The node that it moves to; empty when it has to wait."""
    reason: str


class Pending(_Line):
    """Pods of one gang that stay without a node, and why."""

    gang: str
    kind: str
    """``pending``: the minimum does not fit; ``surplus``: what is beyond it does not;
    ``pipelined``: room is kept that is not free yet; ``waiting``: it is not to be judged yet."""
    reason: str
    pods: list[str]


class CycleLine(_Line):
    """What one cycle decided."""

    cycle: int
    bindings: list[Bound]
    evictions: list[Evicted]
    pipelined: list[Bound]
    pending: list[Pending]


class PodState(_Line):
    """Where a pod is after the last cycle."""

    pod: str
    gang: str
    state: str
    """``bound``, ``pipelined`` and ``evicted`` are decisions of the last cycle."""
    node: str
    gpus: list[str]
    """The GPUs of the node that it shares, where it takes parts of some."""


class GangState(_Line):
    """How a gang fares after the last cycle."""

    gang: str
    state: str
    """``placed``, ``pipelined``, ``pending`` or ``waiting``."""
    reason: str
    on_nodes: int
    """Pods on nodes, the last cycle's bindings included and its evictions not."""
    placement_score: float | None
    """From above 0 to 1, the best there is; none without pods on nodes."""


class Report(_Line):
    """What ``spinney schedule`` prints."""

    cycles: list[CycleLine]
    gangs: list[GangState]
    pods: list[PodState]


@dataclass(slots=True)
class OfflineCluster:
    """A cluster's state, and the scheduler that works on it."""

    objects: Objects
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    now_s: float = 0.0
    period_s: float = 1.0
    cache: Cache = field(init=False)
    _pods: dict[str, Pod] = field(init=False)
    _last: CycleResult | None = None

    def __post_init__(self) -> None:
        self.cache = Cache(self.config.scheduler_names, self.config.pool_label)
        self.objects.put_into(self.cache)
        self._pods = {pod.key: pod for pod in self.objects.pods}

    def run(self, cycles: int) -> Report:
        """Run *cycles* cycles and return what each decided and how things are after the last."""
        lines = []
        for number in range(1, cycles + 1):
            if number > 1:
                self.settle()
            snapshot = self.cache.snapshot(self.now_s)
            memory = (
                self._last.memory
                if self._last
                else recovered(snapshot, self.cache.nominated, self.config)
            )
            self._last = run_cycle(snapshot, self.config, memory=memory)
            lines.append(_cycle_line(number, self._last))
        pods = [self._pod_state(key) for key in sorted(self._pods)]
        for binding in self._last.bindings if self._last else ():
            self._start(binding)
        self._allocate()
        return Report(lines, self._gang_states(), pods)

    def settle(self) -> None:
        """Let the last cycle's decisions take effect, and a period pass."""
        assert self._last is not None
        for binding in self._last.bindings:
            self._start(binding)
        for key in [key for key, pod in self._pods.items() if pod.deleting]:
            del self._pods[key]
            self.cache.remove_pod(key)
        for key in self.cache.idle_reservations():
            del self._pods[key]
            self.cache.remove_pod(key)
        for eviction in self._last.evictions:
            self._come_back(eviction)
        self._allocate()
        self.now_s += self.period_s

    def _start(self, binding: Binding) -> None:
        pod = self._pods[binding.pod]
        status = replace(pod.status, start_time=rfc3339(self.now_s))
        labels = pod.labels | {f"{GPU_GROUP}/{name}": name for name in binding.devices}
        metadata = replace(pod.metadata, labels=labels)
        spec = replace(pod.spec, node_name=binding.node)
        self._set(replace(pod, metadata=metadata, spec=spec, status=status))

    def _come_back(self, eviction: Eviction) -> None:
        pod = self._pods[eviction.pod]
        self.cache.remove_pod(pod.key)
        labels = {k: v for k, v in pod.labels.items() if not k.startswith(GPU_GROUP)}
        metadata = replace(pod.metadata, uid=f"{pod.metadata.uid}'", labels=labels)
        status = replace(pod.status, start_time=None)
        spec = replace(pod.spec, node_name="")
        self._set(replace(pod, metadata=metadata, spec=spec, status=status))

    def _allocate(self) -> None:
        """Let resource claims be where the pods are that use them."""
        if self.objects.claims:
            for claim in allocated(self.objects.claims, self._pods.values()):
                self.cache.set_resource_claim(claim)

    def _set(self, pod: Pod) -> None:
        self._pods[pod.key] = pod
        self.cache.set_pod(pod)

    def _pod_state(self, key: str) -> PodState:
        pod, info, last = self._pods[key], self.cache.pod(key), self._last
        gang = gang_name(info.gang if info and info.gang else key)
        decided: dict[str, tuple[str, str, tuple[str, ...]]] = {}
        on = info.gpu_groups if info else ()
        if last:
            decided |= {b.pod: ("bound", b.node, b.devices) for b in last.bindings}
            decided |= {p.pod: ("pipelined", p.node, p.devices) for p in last.pipelined}
            decided |= {e.pod: ("evicted", e.node, on) for e in last.evictions}
        if key in decided:
            state, node, devices = decided[key]
            return PodState(key, gang, state, node, list(devices))
        if pod.status.phase in ("Succeeded", "Failed"):
            return PodState(key, gang, pod.status.phase.lower(), pod.spec.node_name, [])
        words = {"active": "running"}
        state = words.get(info.state, info.state) if info else "other"
        return PodState(key, gang, state, pod.spec.node_name, list(on))

    def _gang_states(self) -> list[GangState]:
        snapshot = self.cache.snapshot(self.now_s)
        session = Session(snapshot, self.config)
        trees = {gang.key: gang for gang in (*snapshot.gangs, *snapshot.standing)}
        verdicts = self._last.verdicts if self._last else {}
        evicted = {e.pod for e in self._last.evictions} if self._last else set()
        return [
            _gang_state(session, tree, verdicts.get(key), evicted)
            for key, tree in sorted(trees.items(), key=lambda found: gang_name(found[0]))
        ]


def _gang_state(
    session: Session, tree: Gang, verdict: Verdict | None, evicted: set[str]
) -> GangState:
    standing = [p.key for leaf in tree.root.leaves() for p in leaf.active]
    words = {"unplaced": "pending"}
    state = words.get(verdict.kind, verdict.kind) if verdict else ""
    if not state:
        state = "placed" if tree.satisfied else "pending"
    return GangState(
        gang_name(tree.key),
        state,
        verdict.reason if verdict else "",
        len([key for key in standing if key not in evicted]),
        placement_score(session, tree) if standing else None,
    )


def _cycle_line(number: int, result: CycleResult) -> CycleLine:
    return CycleLine(
        number,
        [_bound(binding) for binding in result.bindings],
        [
            Evicted(
                e.pod,
                e.node,
                gang_name(e.gang),
                e.action,
                gang_name(e.made_for) if e.made_for else "",
                e.moves_to,
                e.message,
            )
            for e in result.evictions
        ],
        [_bound(found) for found in result.pipelined],
        [_pending(verdict) for _, verdict in sorted(result.verdicts.items()) if _stays(verdict)],
    )


def _bound(found: Binding | Pipelined) -> Bound:
    return Bound(found.pod, found.node, gang_name(found.gang), list(found.devices))


def _stays(verdict: Verdict) -> bool:
    return verdict.kind != "placed" or bool(verdict.left)


def _pending(verdict: Verdict) -> Pending:
    words = {"unplaced": "pending", "placed": "surplus"}
    kind = words.get(verdict.kind, verdict.kind)
    return Pending(gang_name(verdict.gang), kind, verdict.reason, sorted(verdict.left))
