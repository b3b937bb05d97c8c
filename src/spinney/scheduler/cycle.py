"""One scheduling cycle as a function: a snapshot in, bindings, evictions and verdicts out.

Nothing is read or written but the arguments. The shell performs what was decided; a what-if, or
a planner that asks whether a gang would fit, reads it. What a cycle has to remember for the next
one is a value too, part of its result.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spinney.scheduler.actions.allocate import allocate
from spinney.scheduler.actions.consolidate import consolidate
from spinney.scheduler.actions.evict_stale import evict_stale
from spinney.scheduler.actions.preempt import preempt
from spinney.scheduler.actions.reclaim import reclaim
from spinney.scheduler.memory import Memory
from spinney.scheduler.plugins.registry import check
from spinney.scheduler.queues.usage import UsageMemory
from spinney.scheduler.session import Session
from spinney.scheduler.verdict import Binding, Eviction, Pipelined, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.shapes import PodInfo
    from spinney.scheduler.snapshot import Snapshot
    from spinney.scheduler.statement import Placement

    Action = Callable[[Session, Mapping[str, Verdict]], Iterator[Verdict]]

ACTIONS: dict[str, Action] = {
    "allocate": allocate,
    "consolidate": consolidate,
    "reclaim": reclaim,
    "preempt": preempt,
    "evict-stale": evict_stale,
}
"""In the order in which a configuration usually has them: the gentlest first."""


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one cycle decided."""

    bindings: tuple[Binding, ...]
    """In the order of placing: pods of one gang together, minimums before surplus."""
    verdicts: Mapping[str, Verdict]
    """By gang."""
    evictions: tuple[Eviction, ...] = ()
    pipelined: tuple[Pipelined, ...] = ()
    """Pods for which room is kept that is not free yet, from before or by this cycle."""
    memory: Memory = field(default_factory=Memory)
    """What to give to the next cycle."""


def run_cycle(
    snapshot: Snapshot,
    config: SchedulerConfig,
    previous: Mapping[str, Verdict] | None = None,
    *,
    memory: Memory | None = None,
) -> CycleResult:
    """Decide for all gangs of *snapshot*; raise BadInputError for an unknown action or plugin.

    *memory* is what the last cycle left; *previous*, its verdicts alone, is the lesser form of it.
    """
    check("action", config.actions, ACTIONS)
    memory = memory or Memory(verdicts=previous or {})
    if memory.unchanged(snapshot.version, snapshot.now):
        return CycleResult((), memory.verdicts, pipelined=memory.pipelined, memory=memory)
    session = Session(snapshot, config, _with_usage(snapshot, config, memory))
    session.reservations.restore()
    for action in config.actions:
        for verdict in ACTIONS[action](session, memory.verdicts):
            session.verdicts[verdict.gang] = verdict
    kept = _remembered(session)
    return CycleResult(
        _bindings(session), session.verdicts, tuple(session.evictions), kept.pipelined, kept
    )


def _with_usage(snapshot: Snapshot, config: SchedulerConfig, memory: Memory) -> Memory:
    """Return *memory* with the queues' use of the cluster counted up to now."""
    if config.usage_half_life_s <= 0 or not snapshot.queues.shared:
        return memory
    usage = copy.deepcopy(memory.usage) or UsageMemory(config.usage_half_life_s)
    ledger = Session(snapshot, config).ledger
    assert ledger is not None
    usage.observe(snapshot.now, ledger.allocated, ledger.total)
    return replace(memory, usage=usage)


def _remembered(session: Session) -> Memory:
    placed = {key for key, verdict in session.verdicts.items() if verdict.kind == "placed"}
    since = session.memory.unplaced_since
    now = session.snapshot.now
    return replace(
        session.memory,
        verdicts=session.verdicts,
        reservations=tuple(session.reservations.kept.values()),
        pipelined=_pipelined(session),
        lapsed=session.reservations.lapsed,
        unplaced_since={
            key: since.get(key, now)
            for key, verdict in session.verdicts.items()
            if key not in placed and verdict.kind != "waiting"
        },
        version=session.snapshot.version,
        wake_at=session.wake_at,
    )


def _bindings(session: Session) -> tuple[Binding, ...]:
    nodes = session.layout.nodes
    return tuple(
        Binding(pod.key, pod.uid, nodes[row].name, pod.gang or pod.key, devices)
        for pod, row, devices in _with_devices(session, session.statement.placements, held=False)
    )


def _pipelined(session: Session) -> tuple[Pipelined, ...]:
    nodes, held = session.layout.nodes, session.statement.held
    placements = [placement for gang in held for placement in held[gang]]
    gang_of = {pod.key: gang for gang in held for p in held[gang] for pod in p.pods}
    return tuple(
        Pipelined(pod.key, nodes[row].name, gang_of[pod.key], devices)
        for pod, row, devices in _with_devices(session, placements, held=True)
    )


def _with_devices(
    session: Session, placements: Iterable[Placement], *, held: bool
) -> Iterator[tuple[PodInfo, int, tuple[str, ...]]]:
    """Yield pods with their node and the GPUs that they share."""
    counts: dict[tuple[int, int], int] = {}
    for placement in placements:
        cls = placement.cls
        for pod, row in zip(placement.pods, placement.rows.tolist(), strict=True):
            devices: tuple[str, ...] = ()
            if cls.shape.share is not None:
                number = counts.get((cls.number, row), 0)
                counts[cls.number, row] = number + 1
                devices = session.shares.names(cls, row, number, held=held)
            yield pod, row, devices
