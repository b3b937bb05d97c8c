"""What the controllers count, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class ControllerMetrics:
    """Counters and gauges on the registry that the program passes in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.terminations = Counter(
            "spinney_gang_terminations",
            "Parts made anew because they lacked their minimum for too long, by what went.",
            ("level",),
            registry=registry,
        )
        self.pods_created = Counter("spinney_pods_created", "Pods created.", registry=registry)
        self.pods_deleted = Counter(
            "spinney_pods_deleted", "Pods asked to go, by reason.", ("reason",), registry=registry
        )
        self.gates_opened = Counter(
            "spinney_pod_gates_opened", "Pods released to their scheduler.", registry=registry
        )
        self.replicas = Gauge(
            "spinney_podcliqueset_replicas",
            "Replicas of a set.",
            ("namespace", "name", "state"),
            registry=registry,
        )

    def set_replicas(self, namespace: str, name: str, **counts: int) -> None:
        """Tell how many replicas of a set are in each state."""
        for state, count in counts.items():
            self.replicas.labels(namespace, name, state).set(count)

    def forget_set(self, namespace: str, name: str) -> None:
        """Drop the series of a set that is gone."""
        self.replicas.remove_by_labels({"namespace": namespace, "name": name})
