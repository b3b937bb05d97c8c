"""What the controllers bring about, for Prometheus, told from the objects themselves.

Counting what the informers show, not what reconcilers did, keeps reconcilers free of counting, and
counts what somebody else did as well. What was there before the process started counts in gauges
and not in counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from spinney.api.meta import find_condition, is_true
from spinney.clock import parse_rfc3339
from spinney.controllers.pod_state import is_finished, is_gated, is_ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from spinney.api.core import Pod
    from spinney.api.grove import PodClique, PodCliqueSet
    from spinney.api.meta import KubeObject
    from spinney.api.podgang import PodGang
    from spinney.clock import Clock
    from spinney.controllers.world import World
    from spinney.kube.informer import Change

T = TypeVar("T", bound="KubeObject")

READY_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Bounds of the buckets of the time from a pod's creation to Ready."""


class ControllerMetrics:
    """Counters, gauges and histograms on the registry that the program passes in."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._began_s = clock.now()
        self.terminations = Counter(
            "spinney_gang_terminations",
            "Parts made anew because they lacked their minimum for too long, by what went.",
            ("level",),
            registry=registry,
        )
        self.pods = Counter("spinney_pods", "What happened to pods.", ("event",), registry=registry)
        self.ready_seconds = Histogram(
            "spinney_pod_ready_seconds",
            "Time from a pod's creation to Ready.",
            buckets=READY_SECONDS,
            registry=registry,
        )
        self.replicas = Gauge(
            "spinney_podcliqueset_replicas",
            "Replicas of a set: wanted, available, updated.",
            ("namespace", "name", "state"),
            registry=registry,
        )
        self.gangs = Gauge(
            "spinney_podgangs", "Gangs in each phase.", ("phase",), registry=registry
        )
        self.breached = Gauge(
            "spinney_podcliques_breached",
            "Cliques that lack their minimum, by the reason they give.",
            ("reason",),
            registry=registry,
        )

    def observe(self, world: World) -> None:
        """Follow the objects of *world*."""
        world.pods.add_handler(self._pod)
        world.sets.add_handler(self._set)
        world.gangs.add_handler(_moves(self.gangs, _phase))
        world.cliques.add_handler(_moves(self.breached, _breach))

    def _pod(self, change: Change[Pod]) -> None:
        old, new = change.old, change.new
        if new is None:
            self.pods.labels("gone").inc()
            return
        if old is None:
            if _created_s(new) >= int(self._began_s):
                self.pods.labels("created").inc()
            return
        if is_gated(old) and not is_gated(new):
            self.pods.labels("released").inc()
        if is_finished(new) and not is_finished(old):
            self.pods.labels("ended").inc()
        if is_ready(new) and not is_ready(old):
            self.ready_seconds.observe(max(0.0, self._clock.now() - _created_s(new)))

    def _set(self, change: Change[PodCliqueSet]) -> None:
        pcs = change.object
        key = (pcs.namespace, pcs.name)
        if change.new is None:
            for state in ("wanted", "available", "updated"):
                self.replicas.remove(*key, state)
            return
        self.replicas.labels(*key, "wanted").set(pcs.spec.replicas or 0)
        self.replicas.labels(*key, "available").set(pcs.status.available_replicas)
        self.replicas.labels(*key, "updated").set(pcs.status.updated_replicas)


def _moves(gauge: Gauge, state: Callable[[T], str]) -> Callable[[Change[T]], None]:
    """Return a handler that counts objects in *gauge* by their state; empty counts nowhere."""

    def changed(change: Change[T]) -> None:
        before = state(change.old) if change.old is not None else ""
        after = state(change.new) if change.new is not None else ""
        if before == after:
            return
        if before:
            gauge.labels(before).dec()
        if after:
            gauge.labels(after).inc()

    return changed


def _phase(gang: PodGang) -> str:
    return gang.status.phase


def _breach(clique: PodClique) -> str:
    if not is_true(clique.status.conditions, "MinAvailableBreached"):
        return ""
    found = find_condition(clique.status.conditions, "MinAvailableBreached")
    return found.reason if found is not None else ""


def _created_s(pod: Pod) -> float:
    created = pod.metadata.creation_timestamp
    return parse_rfc3339(created) if created else 0.0
