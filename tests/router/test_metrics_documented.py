"""docs/observability.md and the dashboard name exactly the metrics that there are."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from tools import grafana_dashboard, metrics_table

from spinney.router.run import Outcome

UNITS = ("_seconds", "_bytes_total", "_tokens_total", "_total", "_requests", "_tokens", "_workers")
DOCUMENT = metrics_table.DOCUMENT.read_text()


def test_every_metric_is_documented_and_nothing_else_is():
    assert metrics_table.written(DOCUMENT) == DOCUMENT, "run: python tools/metrics_table.py"


def test_names_in_the_text_are_those_of_metrics():
    known = metrics_table.series()
    named = set(re.findall(r"\b(?:spinney_[a-z_]+|(?:spinney|vllm):[a-z_]+)\b", DOCUMENT))
    tables = {name for part in metrics_table._PARTS for name, *_ in metrics_table.families(part)}
    assert named - set(known) - tables == set()


@pytest.mark.parametrize("part", ["router", "workers", "scheduler", "controllers"])
def test_every_metric_says_what_it_is_and_histograms_have_units_and_rising_buckets(part):
    for name, kind, labels, text in metrics_table.families(part):
        assert len(text) > 5, name
        assert len(labels) <= 4, name
        if kind == "histogram" and not name.startswith("vllm:"):
            assert name.endswith("_seconds"), name
    if part == "router":
        for name, *_ in metrics_table.families(part):
            assert name.endswith(UNITS), name


def test_the_dashboard_is_the_one_that_is_generated():
    found = grafana_dashboard.DOCUMENT.read_text()
    assert found == grafana_dashboard.written(), "run: python tools/grafana_dashboard.py"


def test_alerts_name_metrics_labels_and_words_that_there_are():
    known = metrics_table.series()
    (group,) = yaml.safe_load(
        (metrics_table.DOCUMENT.parent / "prometheus-alerts.yaml").read_text()
    )["groups"]
    outcomes = {outcome.value for outcome in Outcome}
    for rule in group["rules"]:
        query = rule["expr"]
        found = re.findall(r"((?:spinney_|spinney:)[a-z_]+)(?:\{([^}]*)\})?", query)
        assert found, query
        for name, wanted in found:
            assert name in known, query
            matched = dict(re.findall(r'([a-z]+)=~?"([^"]*)"', wanted))
            assert set(matched) <= known[name], query
            if name == "spinney_router_requests_total" and matched:
                assert set(matched["outcome"].split("|")) <= outcomes
        assert query.count("(") == query.count(")")
        assert rule["annotations"]["summary"]


def test_queries_of_the_dashboard_use_metrics_and_labels_that_there_are():
    known = metrics_table.series()
    board = json.loads(grafana_dashboard.DOCUMENT.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [v["definition"] for v in board["templating"]["list"] if "definition" in v]
    assert len(queries) > 25
    for query in queries:
        names = set(re.findall(r"(?:spinney_|vllm:|spinney:)[a-z_]+", query))
        assert names, query
        assert names <= set(known), f"{query}: {names - set(known)}"
        labels = set(re.findall(r"by \(([^)]*)\)", query))
        used = {label.strip() for group in labels for label in group.split(",")}
        used |= set(re.findall(r"[{,]([a-z_]+)=~", query))
        for name in names:
            assert used <= known[name], f"{query}: {name} has {known[name]}"
        assert query.count("(") == query.count(")"), query
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
