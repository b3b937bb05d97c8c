"""Writes the tables of metrics in docs/observability.md from the metrics that there are.

    python tools/metrics_table.py

A test compares the two. What a metric says of itself is its help text.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry

from spinney.clock import SystemClock
from spinney.controllers.metrics import ControllerMetrics
from spinney.engine.engine_metrics import EngineMetrics
from spinney.kube.controller import Runtime
from spinney.router.load import Ledger
from spinney.router.metrics import RouterMetrics
from spinney.scheduler.scheduler_metrics import SchedulerMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.kube.client import KubeClient

DOCUMENT = Path(__file__).parents[1] / "docs" / "observability.md"
_PARTS: dict[str, Callable[[CollectorRegistry], Any]] = {
    "router": lambda registry: RouterMetrics(registry, Ledger()),
    "workers": lambda registry: EngineMetrics(registry, model_name="m", engine_id="e"),
    "scheduler": SchedulerMetrics,
    "controllers": lambda registry: (
        ControllerMetrics(registry, SystemClock()),
        Runtime(cast("KubeClient", None), SystemClock(), rng=random.Random(0), registry=registry),
    ),
}


def families(part: str) -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return name as exposed, type, labels and help of each metric of *part*."""
    registry = CollectorRegistry()
    kept = _PARTS[part](registry)
    found = []
    for collector in tuple(registry._collector_to_names):
        for family in collector.collect():
            labels = getattr(family, "_labelnames", ()) or getattr(collector, "_labelnames", ())
            name = family.name + ("_total" if family.type == "counter" else "")
            found.append((name, family.type, tuple(labels), family.documentation.rstrip(".")))
    del kept
    return sorted(found)


def series() -> dict[str, frozenset[str]]:
    """Return every name that a query can use, with its labels."""
    found = {}
    for part in _PARTS:
        for name, kind, labels, _ in families(part):
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            for suffix in suffixes:
                more = {"le"} if suffix == "_bucket" else set()
                found[name + suffix] = frozenset(labels) | more
    return found


def table(part: str) -> str:
    """Return the table of *part* in Markdown."""
    lines = ["| name | type | labels | |", "|---|---|---|---|"]
    for name, kind, labels, text in families(part):
        lines.append(f"| `{name}` | {kind} | {', '.join(labels)} | {text} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """Return the document *text* with the tables as they should be."""
    for part in _PARTS:
        place = re.compile(rf"(<!-- metrics: {part} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise SystemExit(f"{DOCUMENT}: there is no place for the metrics of the {part}")
        text = place.sub(lambda found, part=part: found[1] + table(part) + found[2], text)
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
    sys.stdout.write(f"{DOCUMENT} is up to date\n")
