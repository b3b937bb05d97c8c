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
from spinney.scheduler.actions.drain import drain
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
    "drain": drain,
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
    session.drains.restore()
    known = _open_again(memory.verdicts) if session.drains.gone else memory.verdicts
    for action in config.actions:
        for verdict in ACTIONS[action](session, known):
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
        verdicts=_open_again(session.verdicts) if session.drains.any_ended else session.verdicts,
        reservations=(*session.reservations.kept.values(), *session.drains.lasting()),
        pipelined=_pipelined(session),
        lapsed=session.reservations.lapsed,
        unplaced_since={
            key: since.get(key, now)
            for key, verdict in session.verdicts.items()
            if key not in placed and verdict.kind != "waiting"
        },
        passed_since=_passed(session),
        drained=session.drains.in_vain(),
        undrainable=_known_undrainable(session),
        version=-1 if session.drains.any_ended else session.snapshot.version,
        wake_at=session.wake_at,
    )


def _known_undrainable(session: Session) -> dict[str, int]:
    before = session.memory.undrainable
    kinds = {key: verdict.kind for key, verdict in session.verdicts.items()}
    kept = {key: asked for key, asked in before.items() if kinds.get(key) == "unplaced"}
    return {**kept, **session.undrainable}


def _passed(session: Session) -> dict[str, float]:
    """Return the gangs that still wait for room while one that comes later has been placed."""
    waiting = {key for key, verdict in session.verdicts.items() if verdict.kind == "unplaced"}
    bound = {p.gang or p.key for placed in session.statement.placements for p in placed.pods}
    gangs = session.snapshot.gangs if waiting and (bound or session.memory.passed_since) else ()
    last = max((gang.order for gang in gangs if gang.key in bound), default=None)
    since, now = session.memory.passed_since, session.snapshot.now
    return {
        gang.key: now if gang.key in session.drains.gone else since.get(gang.key, now)
        for gang in gangs
        if gang.key in waiting and (gang.key in since or (last is not None and gang.order < last))
    }


def _open_again(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Return *verdicts* such that no failure is taken to last."""
    return {key: replace(verdict, room_version=-1) for key, verdict in verdicts.items()}


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
