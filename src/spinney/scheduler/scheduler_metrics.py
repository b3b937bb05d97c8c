"""What the scheduler exports: how long cycles take, who waits and why, what was done.

Reasons are told in classes, so that a metric has few series: the text is on the gang.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spinney.scheduler.binder import BindReport
    from spinney.scheduler.verdict import Eviction, Verdict

_CYCLE_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_WAIT_S = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)

REASONS = ("queue", "topology", "filters", "room", "leaving", "waiting", "surplus")
"""``queue``: its queue may not have more. ``topology``: it would fit without a constraint, or at a
broader level. ``filters``: it would fit on nodes that it may not use. ``room``: the cluster is
too full. ``leaving``: its room is reserved, others are on their way out. ``waiting``: pods are
missing or gated. ``surplus``: only what is beyond its minimum waits."""


class SchedulerMetrics:
    """The scheduler's metrics on *registry*."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.cycle_seconds = Histogram(
            "spinney_scheduler_cycle_seconds",
            "Time from snapshot to decision.",
            buckets=_CYCLE_S,
            registry=registry,
        )
        self.round_seconds = Histogram(
            "spinney_scheduler_round_seconds",
            "Time of a cycle with its writes.",
            buckets=_CYCLE_S,
            registry=registry,
        )
        self.pending = Gauge(
            "spinney_scheduler_pending_gangs", "Gangs that wait.", ["reason"], registry=registry
        )
        self.binds = Counter(
            "spinney_scheduler_binds", "Bindings that were sent.", ["result"], registry=registry
        )
        self.conflicts = Counter(
            "spinney_scheduler_conflicts",
            "Bindings given up because another scheduler was faster.",
            registry=registry,
        )
        self.evictions = Counter(
            "spinney_scheduler_evictions",
            "Pods that were asked to leave.",
            ["action", "result"],
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "spinney_scheduler_gang_wait_seconds",
            "Time from a gang's creation until its minimum is on nodes.",
            buckets=_WAIT_S,
            registry=registry,
        )

    def count_binds(self, report: BindReport) -> None:
        """Count what became of some bindings."""
        self.binds.labels("bound").inc(len(report.bound))
        self.binds.labels("failed").inc(len(report.failed))
        self.conflicts.inc(report.conflicts)

    def count_evictions(self, asked: Iterable[Eviction], failed: Iterable[Eviction]) -> None:
        """Count pods that were asked to leave."""
        lost = {eviction.pod for eviction in failed}
        for eviction in asked:
            result = "failed" if eviction.pod in lost else "accepted"
            self.evictions.labels(eviction.action, result).inc()

    def show_pending(self, verdicts: Mapping[str, Verdict]) -> None:
        """Show how many gangs wait, by the class of their reason."""
        found = Tally(reason_class(verdict) for verdict in verdicts.values())
        for reason in REASONS:
            self.pending.labels(reason).set(found[reason])


def reason_class(verdict: Verdict) -> str:
    """Return the class of the reason why a gang waits; empty when all of it is placed."""
    if verdict.kind == "placed":
        return "surplus" if verdict.left else ""
    if verdict.kind in ("waiting", "pipelined"):
        return "waiting" if verdict.kind == "waiting" else "leaving"
    text = verdict.reason
    if text.startswith("queue "):
        return "queue"
    if "would fit without any" in text or "constraint" in text or " instead" in text:
        return "topology"
    return "filters" if "would fit if" in text or "would fit without" in text else "room"
