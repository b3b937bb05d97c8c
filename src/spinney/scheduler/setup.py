"""Puts the scheduler on a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from spinney.ids import IdSource
    from spinney.kube.controller import Runtime
    from spinney.kube.events import EventRecorder
    from spinney.scheduler.config import SchedulerConfig


def register(
    runtime: Runtime,
    ids: IdSource,
    events: EventRecorder,
    config: SchedulerConfig | None = None,
    registry: CollectorRegistry | None = None,
) -> Scheduler:
    """Add the scheduler to *runtime*, whose ``run`` then schedules; its metrics are on *registry*.

    *ids* is taken for the sake of one signature with the controllers: placing makes no identities.
    """
    del ids
    return Scheduler(runtime, events, config, registry)
