"""Questions about placing, answered by the production cycle on a copy of the state.

`would_fit` asks whether gangs that do not exist yet would be placed now, and where. `why` asks how
a gang stands and, if it waits, for the smallest reason. Neither changes what it is given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from spinney.api import names
from spinney.scheduler.config import SchedulerConfig
from spinney.scheduler.offline import OfflineCluster, Report, gang_name
from spinney.scheduler.sources.pods import membership

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.api.core import Pod
    from spinney.scheduler.offline import Evicted, GangState
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
    not enough, another try with all actions tells who would have to leave.
    """
    config = config or SchedulerConfig()
    free = replace(config, actions=("allocate",))
    merged = _merged(state, wanted)
    report = _run(merged, now_s, free)
    keys = {pod.key for pod in wanted.pods}
    gangs_wanted = sorted({gang_name(membership(pod).gang or pod.key) for pod in wanted.pods})
    leaving: dict[str, list[str]] = {}
    if not all(_found(report, name).state == "placed" for name in gangs_wanted):
        for eviction in _displaced(merged, now_s, config):
            leaving.setdefault(eviction.made_for, []).append(eviction.pod)
    gangs = [_fit(report, name, keys, leaving.get(name, [])) for name in gangs_wanted]
    return FitReport(all(gang.fits for gang in gangs), gangs)


def _merged(state: Objects, wanted: Objects) -> Objects:
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
        pods=[*standing, *(_ungated(pod) for pod in wanted.pods)],
    )


def _ungated(pod: Pod) -> Pod:
    """Return *pod* as one that is ours to place, whoever is to place it and when."""
    spec = msgspec.structs.replace(
        pod.spec, scheduling_gates=[], scheduler_name=names.SPINNEY_SCHEDULER
    )
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


def _displaced(objects: Objects, now_s: float, config: SchedulerConfig) -> list[Evicted]:
    return OfflineCluster(objects, config, now_s).run(1).cycles[0].evictions


def _found(report: Report, gang: str) -> GangState:
    return next(found for found in report.gangs if found.gang == gang)


def _fit(report: Report, gang: str, keys: set[str], leaving: list[str]) -> GangFit:
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
        found.reason,
        sorted(leaving),
    )


def spots(placed: Iterable[tuple[str, str]]) -> list[Spot]:
    """Return nodes with their pods, both in order of name, from pairs of them."""
    by_node: dict[str, list[str]] = {}
    for node, pod in sorted(placed):
        by_node.setdefault(node, []).append(pod)
    return [Spot(node, pods) for node, pods in by_node.items()]


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


def why(
    state: Objects, gangs: Iterable[str], now_s: float, config: SchedulerConfig | None = None
) -> list[Why]:
    """Return how the *gangs*, given as ``namespace/name``, stand on *state*, by a fresh try."""
    report = OfflineCluster(state, config or SchedulerConfig(), now_s).run(1)
    known = {found.gang: found for found in report.gangs}
    return [_why(state, report, known[name]) for name in gangs if name in known]


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
