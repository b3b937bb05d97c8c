"""One scheduling cycle as a function: a snapshot in, bindings and verdicts out.

Nothing is read or written but the arguments. The shell performs the bindings; a what-if, or
a planner that asks whether a gang would fit, reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.scheduler.actions.allocate import allocate
from spinney.scheduler.plugins.registry import check
from spinney.scheduler.session import Session
from spinney.scheduler.verdict import Binding, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spinney.scheduler.config import SchedulerConfig
    from spinney.scheduler.snapshot import Snapshot

    Action = Callable[[Session, Mapping[str, Verdict]], Iterator[Verdict]]

ACTIONS: dict[str, Action] = {"allocate": allocate}


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one cycle decided."""

    bindings: tuple[Binding, ...]
    """In the order of placing: pods of one gang together, minimums before surplus."""
    verdicts: Mapping[str, Verdict]
    """By gang; also the memory to give to the next cycle."""


def run_cycle(
    snapshot: Snapshot,
    config: SchedulerConfig,
    previous: Mapping[str, Verdict] | None = None,
) -> CycleResult:
    """Decide for all gangs of *snapshot*; raise BadInputError for an unknown action or plugin."""
    check("action", config.actions, ACTIONS)
    session = Session(snapshot, config)
    verdicts: dict[str, Verdict] = {}
    for action in config.actions:
        for verdict in ACTIONS[action](session, previous or {}):
            verdicts[verdict.gang] = verdict
    return CycleResult(_bindings(session), verdicts)


def _bindings(session: Session) -> tuple[Binding, ...]:
    nodes = session.layout.nodes
    return tuple(
        Binding(pod.key, pod.uid, nodes[row].name, pod.gang or pod.key)
        for placement in session.statement.placements
        for pod, row in zip(placement.pods, placement.rows.tolist(), strict=True)
    )
