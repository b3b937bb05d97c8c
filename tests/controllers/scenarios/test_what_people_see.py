"""What a person or a dashboard sees: one line of a set, events, metrics."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from tests.controllers.farm import NS, pcs
from tests.controllers.scenarios import stage as stages
from tests.controllers.scenarios.stage import play, role

from spinney.api.core import Event
from spinney.api.grove import PodCliqueSet
from spinney.api.meta import find_condition

if TYPE_CHECKING:
    import pytest
    from tests.controllers.scenarios.stage import Stage


def test_one_line_of_a_set_tells_which_role_does_not_serve_and_why() -> None:
    async def line(stage: Stage) -> str:
        found = find_condition((await stage.set()).status.conditions, "Available")
        assert found is not None
        return f"{found.status} {found.message}"

    async def scene(stage: Stage) -> None:
        await stage.apply(pcs(role("front", 1, 1), role("work", 2, 2)))
        await stage.ready(3)
        await stage.settle()
        assert await line(stage) == "True all roles of 1 of 1 replicas serve"
        await stage.kill("s-0-work")
        await stage.settle()
        told = await line(stage)
        assert told.startswith("False 0 of 1 replicas serve: work of replica 0: 1 of 2 needed pods")
        assert "has no node" in told

    play(scene, 3)


def test_each_decision_is_one_event_and_rest_is_silent() -> None:
    async def scene(stage: Stage) -> None:
        await stage.apply(pcs(role("front", 1, 1), role("work", 2, 2)))
        await stage.ready(3)
        await stage.settle(30)
        events = [e for e in (await stage.client.list(Event, NS)).items if e.source.component]
        assert [e.count for e in events if e.count != 1] == []
        writes = len(stage.cluster.transport.writes)
        await asyncio.sleep(600)
        assert len(stage.cluster.transport.writes) == writes

    play(scene, 3)


def test_metrics_tell_of_pods_gangs_and_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    register = functools.partial(stages.controllers, registry=registry)
    monkeypatch.setattr(stages, "controllers", register)

    def value(metric: str, /, **labels: str) -> float | None:
        return registry.get_sample_value(metric, labels)

    async def scene(stage: Stage) -> None:
        await stage.apply(pcs(role("front", 1, 1), role("work", 2, 2), terminationDelay="10s"))
        await stage.ready(3)
        await stage.settle()
        assert value("spinney_pods_total", event="created") == 3
        assert value("spinney_pods_total", event="released") == 3
        assert value("spinney_pod_ready_seconds_count") == 3
        assert value("spinney_podgangs", phase="Running") == 1
        available = {"namespace": NS, "name": "s", "state": "available"}
        assert value("spinney_podcliqueset_replicas", **available) == 1
        await stage.kill("s-0-work")
        await stage.settle()
        breach = "ScheduledReplicasBelowMinAvailable"
        assert value("spinney_podcliques_breached", reason=breach) == 1
        assert value("spinney_podcliqueset_replicas", **available) == 0
        await stage.settle()
        assert value("spinney_gang_terminations_total", level="set") == 1
        await stage.client.delete(PodCliqueSet, "s", NS)
        await stage.settle()
        assert value("spinney_podcliqueset_replicas", **available) is None

    play(scene, 3)
