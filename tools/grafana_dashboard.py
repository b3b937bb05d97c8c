"""Writes docs/grafana-dashboard.json: the panels below, in two columns.

    python tools/grafana_dashboard.py

A test compares the two, and every name in a query with the metrics that there are.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "docs" / "grafana-dashboard.json"
R = "spinney_router_"
WINDOW = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """*queries* are pairs of a legend and an expression."""

    title: str
    unit: str
    about: str
    queries: tuple[tuple[str, str], ...]


def rate(name: str, by: str = "", where: str = "") -> str:
    """Return the rate of counter *name*, summed, *by* labels if any."""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({name}{where}{WINDOW}))"


def quantiles(name: str, by: str = "model") -> tuple[tuple[str, str], ...]:
    """Return the queries for median and tails of histogram *name*."""
    buckets = rate(f"{name}_bucket", f"le, {by}", f'{{{by}=~"$model"}}')
    shown = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    return tuple(
        (f"{word} {{{{{by}}}}}", f"histogram_quantile({part}, {buckets})") for part, word in shown
    )


def model(name: str) -> str:
    """Return the rate of counter *name* by model."""
    return rate(name, "model", '{model=~"$model"}')


PANELS = (
    Panel(
        "Time to first token",
        "s",
        "From a request's coming to the router to the first byte of its answer.",
        quantiles(f"{R}ttft_seconds"),
    ),
    Panel(
        "Inter-token latency",
        "s",
        "Between two events of a stream, at the router.",
        quantiles(f"{R}itl_seconds"),
    ),
    Panel(
        "Requests by outcome",
        "reqps",
        "All that ended.",
        (("{{outcome}}", rate(f"{R}requests_total", "outcome")),),
    ),
    Panel(
        "Refusals",
        "reqps",
        "Requests that were told to come later.",
        (("{{reason}} {{tenant}}", rate(f"{R}refusals_total", "reason, tenant")),),
    ),
    Panel(
        "Tokens",
        "short",
        "Per second, as workers count them.",
        (
            ("in {{model}}", model(f"{R}input_tokens_total")),
            ("cached {{model}}", model(f"{R}cached_tokens_total")),
            ("out {{model}}", model(f"{R}output_tokens_total")),
        ),
    ),
    Panel(
        "Share of prompts found in caches",
        "percentunit",
        "Cached over all prompt tokens.",
        (
            (
                "{{model}}",
                f"{model(f'{R}cached_tokens_total')} / {model(f'{R}input_tokens_total')}",
            ),
        ),
    ),
    Panel(
        "Waiting and at work",
        "short",
        "Requests now.",
        (
            ("waiting {{model}}", f'sum by (model) ({R}waiting_requests{{model=~"$model"}})'),
            ("{{stage}}", f"sum by (stage) ({R}inflight_requests)"),
        ),
    ),
    Panel(
        "Queue wait",
        "s",
        "Of requests, for their turn.",
        quantiles(f"{R}queue_wait_seconds"),
    ),
    Panel(
        "Picks",
        "ops",
        "Why workers were chosen.",
        (("{{stage}} {{reason}}", rate(f"{R}picks_total", "stage, reason")),),
    ),
    Panel(
        "Prompts computed by decode workers",
        "ops",
        "By why they were not handed over.",
        (("{{reason}}", rate(f"{R}local_prefills_total", "reason")),),
    ),
    Panel(
        "Hand-overs",
        "ops",
        "By what came of them; failures by why.",
        (
            ("{{outcome}}", rate(f"{R}handovers_total", "outcome")),
            ("failed: {{reason}}", rate(f"{R}handover_failures_total", "reason")),
        ),
    ),
    Panel(
        "Hand-over bandwidth",
        "Bps",
        "KV bytes over the seconds in which they moved.",
        (
            (
                "bytes/s while moving",
                f"{rate(f'{R}handover_bytes_total')} / {rate(f'{R}handover_seconds_sum')}",
            ),
        ),
    ),
    Panel(
        "Retries and migrations",
        "ops",
        "Further tries, and streams that moved to another worker.",
        (
            ("{{stage}} {{cause}}", rate(f"{R}retries_total", "stage, cause")),
            ("migration {{outcome}}", rate(f"{R}migrations_total", "outcome")),
        ),
    ),
    Panel(
        "Workers",
        "short",
        "As the router knows them.",
        (("{{role}} {{state}}", f"sum by (role, state) ({R}workers)"),),
    ),
    Panel(
        "KV blocks held",
        "percentunit",
        "By engine.",
        (("{{engine}}", "max by (engine) (vllm:kv_cache_usage_perc)"),),
    ),
    Panel(
        "Requests in engines",
        "short",
        "Running and waiting.",
        (
            ("running {{engine}}", "sum by (engine) (vllm:num_requests_running)"),
            ("waiting {{engine}}", "sum by (engine) (vllm:num_requests_waiting)"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "spinney-serving",
        "title": "Spinney: serving",
        "tags": ["spinney", "llm"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _models()]},
        "panels": [_panel(at, panel) for at, panel in enumerate(PANELS)],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _models() -> dict[str, Any]:
    query = f"label_values({R}ttft_seconds_count, model)"
    return {
        "name": "model",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$source"},
        "query": {"query": query, "refId": "models"},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _panel(at: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "$source"}
    return {
        "id": at + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": {"x": 12 * (at % 2), "y": 8 * (at // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + n), "datasource": source, "legendFormat": legend, "expr": query}
            for n, (legend, query) in enumerate(panel.queries)
        ],
    }


def written() -> str:
    """Return the file as it should be."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(written())
    sys.stdout.write(f"{DOCUMENT} is up to date\n")
