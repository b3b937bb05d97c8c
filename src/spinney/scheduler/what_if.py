"""Questions about placing, answered by the production cycle on a copy of the state.

`would_fit` asks whether gangs that do not exist yet would be placed now, and where; `room_for` how
many copies of them. `why`, `why_pod` and `why_queue` ask how something stands and, if it waits, for
the smallest reason. None changes what it is given: a planner may ask as often as it likes, with
the state of `spinney.scheduler.live.read_cluster` or of a snapshot file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.copies import copy_of, together
from spinney.scheduler.offline import OfflineCluster, Report
from spinney.scheduler.queues.ledger import Ledger
from spinney.scheduler.queues.model import NOTHING, RESOURCES, UNLIMITED
from spinney.scheduler.sources.pods import membership
from spinney.scheduler.sources.spec import gang_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.api.core import Pod
    from spinney.scheduler.offline import GangState
    from spinney.scheduler.scenario import Objects

MAX_CYCLES = 8
"""Cycles that a what-if runs: gangs that wait for a base gang are placed a cycle later."""


class Spot(msgspec.Struct, rename="camel"):
    """Pods that one node takes."""

    node: str
    pods: list[str]


class GangFit(msgspec.Struct, rename="camel"):
    """How one gang would fare."""

    gang: str
    fits: bool
    """Whether its minimum would be placed."""
    placed: int
    """Pods that would be on nodes."""
    wanted: int
    placement_score: float | None
    nodes: list[Spot]
    reason: str
    """Why not, or why not all of it, with the smallest change that would help."""
    displacing: list[str]
    """Pods that would leave for it, were it created: by queues' shares or priority."""


class FitReport(msgspec.Struct, rename="camel"):
    """Whether everything would fit, gang by gang."""

    fits: bool
    gangs: list[GangFit]


def would_fit(
    state: Objects, wanted: Objects, now_s: float, config: SchedulerConfig | None = None
) -> FitReport:
    """Return how the gangs and pods of *wanted* would fare on *state*.

    They are tried on what is free now; pods of *state* that wait are left out, and so are gangs of
    *state* that *wanted* has anew. Where that is
    not enough, another try with all actions tells who would have to leave, or what would help.
    """
    config = config or SchedulerConfig()
    free = replace(config, actions=("allocate",))
    merged = _merged(state, wanted, config.scheduler_names[0])
    report = _run(merged, now_s, free)
    keys = {pod.key for pod in wanted.pods}
    gangs_wanted = _gang_names(wanted)
    leaving: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    if not all(_found(report, name).state == "placed" for name in gangs_wanted):
        tried = OfflineCluster(merged, config, now_s).run(1)
        reasons = {g.gang: g.reason for g in tried.gangs if g.state == "pending"}
        for eviction in tried.cycles[0].evictions:
            leaving.setdefault(eviction.made_for, []).append(eviction.pod)
    gangs = [
        _fit(report, name, keys, leaving.get(name, []), reasons.get(name, ""))
        for name in gangs_wanted
    ]
    return FitReport(all(gang.fits for gang in gangs), gangs)


def _merged(state: Objects, wanted: Objects, scheduler: str) -> Objects:
    again = {gang.key for gang in wanted.gangs}
    standing = [
        pod for pod in state.pods if pod.spec.node_name and membership(pod).gang not in again
    ]
    return replace(
        state,
        classes=[*state.classes, *wanted.classes],
        queues=[*state.queues, *wanted.queues],
        gangs=[*(gang for gang in state.gangs if gang.key not in again), *wanted.gangs],
        groups=[*state.groups, *wanted.groups],
        upstream=[*state.upstream, *wanted.upstream],
        workloads=[*state.workloads, *wanted.workloads],
        min_member=[*state.min_member, *wanted.min_member],
        leader_worker_sets=[*state.leader_worker_sets, *wanted.leader_worker_sets],
        pods=[*standing, *(_ungated(pod, scheduler) for pod in wanted.pods)],
    )


def _ungated(pod: Pod, scheduler: str) -> Pod:
    """Return *pod* as one that is ours to place, whoever is to place it and when."""
    spec = msgspec.structs.replace(pod.spec, scheduling_gates=[], scheduler_name=scheduler)
    return msgspec.structs.replace(pod, spec=spec)


def _run(objects: Objects, now_s: float, config: SchedulerConfig) -> Report:
    """Run cycles until one places nothing."""
    cluster = OfflineCluster(objects, config, now_s)
    report = cluster.run(1)
    for _ in range(MAX_CYCLES - 1):
        if not report.cycles[-1].bindings:
            break
        more = cluster.run(1)
        report = Report([*report.cycles, *more.cycles], more.gangs, more.pods)
    return report


def _found(report: Report, gang: str) -> GangState:
    return next(found for found in report.gangs if found.gang == gang)


def _fit(report: Report, gang: str, keys: set[str], leaving: list[str], why_not: str) -> GangFit:
    found = _found(report, gang)
    mine = [pod for pod in report.pods if pod.gang == gang and pod.pod in keys]
    on_nodes = [pod for pod in mine if pod.state in ("bound", "running")]
    return GangFit(
        gang,
        found.state == "placed",
        len(on_nodes),
        len(mine),
        found.placement_score,
        spots((pod.node, pod.pod) for pod in on_nodes),
        found.reason if found.state == "placed" else why_not or found.reason,
        sorted(leaving),
    )


def spots(placed: Iterable[tuple[str, str]]) -> list[Spot]:
    """Return nodes with their pods, both in order of name, from pairs of them."""
    by_node: dict[str, list[str]] = {}
    for node, pod in sorted(placed):
        by_node.setdefault(node, []).append(pod)
    return [Spot(node, pods) for node, pods in by_node.items()]


# How many more


class Room(msgspec.Struct, rename="camel"):
    """How many copies of some gangs would be placed."""

    fits: int
    of: int
    """How many were asked for."""
    reason: str
    """Why not one more; empty when all fit."""


def room_for(
    state: Objects, wanted: Objects, most: int, now_s: float, config: SchedulerConfig | None = None
) -> Room:
    """Return how many copies of *wanted*, at most *most*, would be placed on *state* together.

    A copy counts when all of its gangs have their minimum. Only what is free now is used.
    """
    copies = [copy_of(wanted, number) for number in range(most)]
    every = together(copies)
    config = replace(config or SchedulerConfig(), actions=("allocate",))
    report = _run(_merged(state, every, config.scheduler_names[0]), now_s, config)
    states = {found.gang: found for found in report.gangs}
    fits, reason = 0, ""
    for found in copies:
        mine = [states[gang] for gang in _gang_names(found)]
        missing = next((gang for gang in mine if gang.state != "placed"), None)
        fits += missing is None
        reason = reason or (missing.reason if missing is not None else "")
    return Room(fits, most, reason)


def _gang_names(wanted: Objects) -> list[str]:
    return sorted({gang_name(membership(pod).gang or pod.key) for pod in wanted.pods})


# How things stand


class Why(msgspec.Struct, rename="camel"):
    """How one gang stands."""

    gang: str
    state: str
    """``placed``, ``pipelined``, ``pending`` or ``waiting``, by a fresh try."""
    reason: str
    """The smallest reason where it is not placed, or not all of it is."""
    said: str
    """What the scheduler wrote on the gang or its pods, where that differs."""
    nodes: list[Spot]
    placement_score: float | None
    would_go: list[Spot]
    """Where its pods would go in the next cycle."""
    displacing: list[str]


class WhyPod(msgspec.Struct, rename="camel"):
    """How one pod stands."""

    pod: str
    state: str
    """``running``, ``leaving``, ``pending``, ``gated``, ``bound`` or ``pipelined`` by the next
    cycle, ``succeeded``, ``failed``, or ``other``: it is not for this scheduler to place."""
    node: str
    reason: str
    gang: Why | None
    """Its gang; none for pods that this scheduler does not place."""


class QueueResourceLine(msgspec.Struct, rename="camel"):
    """One resource of a queue, in GPUs, cores or bytes; quota and limit are -1 for no bound."""

    resource: str
    quota: float
    limit: float
    fair_share: float
    in_use: float
    wanted: float
    """What its gangs use and want together."""


class WaitingGang(msgspec.Struct, rename="camel"):
    """A gang of a queue that is not placed."""

    gang: str
    state: str
    reason: str


class WhyQueue(msgspec.Struct, rename="camel"):
    """How one queue stands."""

    queue: str
    parent: str
    children: list[str]
    priority: int
    problem: str
    """Why it takes no gangs; empty when it does."""
    resources: list[QueueResourceLine]
    placed: int
    """Gangs of it, and of those below it, that have their minimum."""
    waiting: list[WaitingGang]


def why(
    state: Objects, gangs: Iterable[str], now_s: float, config: SchedulerConfig | None = None
) -> list[Why]:
    """Return how the *gangs*, given as ``namespace/name``, stand on *state*, by a fresh try."""
    report = OfflineCluster(state, config or SchedulerConfig(), now_s).run(1)
    known = {found.gang: found for found in report.gangs}
    return [_why(state, report, known[name]) for name in gangs if name in known]


def why_pod(
    state: Objects, pod: Pod, now_s: float, config: SchedulerConfig | None = None
) -> WhyPod:
    """Return how *pod* of *state* stands, by a fresh try."""
    config = config or SchedulerConfig()
    report = OfflineCluster(state, config, now_s).run(1)
    found = next(line for line in report.pods if line.pod == pod.key)
    known = {gang.gang: gang for gang in report.gangs}
    gang = _why(state, report, known[found.gang]) if found.gang in known else None
    reason = _not_ours(pod, config) or (gang.reason if gang and not found.node else "")
    return WhyPod(pod.key, found.state, found.node, reason, gang)


def _not_ours(pod: Pod, config: SchedulerConfig) -> str:
    """Return why this scheduler leaves a pod without a node alone."""
    if pod.spec.node_name or pod.status.phase in ("Succeeded", "Failed"):
        return ""
    if pod.spec.scheduler_name not in config.scheduler_names:
        mine = " or ".join(config.scheduler_names)
        return f"it is for {pod.spec.scheduler_name} to place: spec.schedulerName is not {mine}"
    if pod.deleting:
        return "it is being deleted"
    if pod.spec.scheduling_gates:
        gates = ", ".join(gate.name for gate in pod.spec.scheduling_gates)
        return f"it has the scheduling gate {gates}"
    return ""


def why_queue(
    state: Objects, queue: str, now_s: float, config: SchedulerConfig | None = None
) -> WhyQueue | None:
    """Return how *queue* stands on *state*; None when there is no such queue.

    The figures are those of now; who waits is found by a fresh try.
    """
    config = config or SchedulerConfig()
    cluster = OfflineCluster(state, config, now_s)
    snapshot = cluster.cache.snapshot(now_s)
    tree = snapshot.queues
    if queue not in tree.queues or not tree.shared:
        return None
    info, ledger = tree.queues[queue], Ledger(snapshot)
    gangs = {
        gang_name(gang.key)
        for gang in (*snapshot.gangs, *snapshot.standing)
        if queue in tree.path(gang.queue) or gang.queue == queue
    }
    states = [found for found in cluster.run(1).gangs if found.gang in gangs]
    share = ledger.shares.get(queue, NOTHING)
    rows = zip(
        RESOURCES,
        info.quota,
        info.limit,
        share,
        ledger.allocated[queue],
        ledger.requested[queue],
        strict=True,
    )
    return WhyQueue(
        queue,
        info.parent,
        list(tree.children.get(queue, ())),
        info.priority,
        tree.problem(queue),
        [QueueResourceLine(name, *map(_units, values)) for name, *values in rows],
        sum(found.state == "placed" for found in states),
        [
            WaitingGang(found.gang, found.state, found.reason)
            for found in states
            if found.state != "placed"
        ],
    )


def _units(milli: int) -> float:
    return -1.0 if milli == UNLIMITED else milli / 1000


def _why(state: Objects, report: Report, found: GangState) -> Why:
    mine = [pod for pod in report.pods if pod.gang == found.gang]
    said = _said(state, found.gang, {pod.pod for pod in mine})
    evicted = [e.pod for e in report.cycles[0].evictions if e.made_for == found.gang]
    return Why(
        found.gang,
        found.state,
        found.reason,
        "" if said == found.reason else said,
        spots((pod.node, pod.pod) for pod in mine if pod.state in ("running", "leaving")),
        found.placement_score,
        spots((pod.node, pod.pod) for pod in mine if pod.state in ("bound", "pipelined")),
        sorted(evicted),
    )


def _said(state: Objects, gang: str, pods: set[str]) -> str:
    conditions = [c for found in state.gangs if found.key == gang for c in found.status.conditions]
    for pod in state.pods:
        if pod.key in pods:
            conditions += pod.status.conditions
    return next(
        (
            c.message
            for c in conditions
            if c.type in ("Scheduled", "PodScheduled") and c.status == "False" and c.message
        ),
        "",
    )
