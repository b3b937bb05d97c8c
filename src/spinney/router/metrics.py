"""What the router counts; docs/observability.md says what each name means.

Invariant: labels are bounded. Models are those that workers serve, workers those that are known,
tenants the first `MAX_TENANTS` that are named; all else is a word of ours.

Per-token figures are added up in plain lists and become Prometheus samples only when asked for:
an observation costs a tenth of what the library's own takes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from spinney.kv.lease import Failure
from spinney.router.workers import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client import Metric

    from spinney.router.load import Ledger
    from spinney.router.openai import HandoverReport
    from spinney.router.stories import Story
    from spinney.router.workers import Worker

_LONG_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_SHORT_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)
PREFIX = "spinney_router_"
MAX_MODELS = 64
"""Models that have figures of their own; further ones share those of `OTHER`."""
MAX_TENANTS = 32
"""Tenants by name that have counts of their own; further ones share those of `OTHER`."""
OTHER = "other"
_OUTCOMES = frozenset({"served", "pulled", "cached", "recomputed", "failed"})
_FAILURES = frozenset(failure.value for failure in Failure)


class FastHistogram:
    """A histogram without labels whose observations cost a bisection and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(float(bound) for bound in bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count *value* as seen *times* times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add it to *family* as Prometheus shows it."""
        bounds = [*(str(bound) for bound in self._bounds), "+Inf"]
        totals = accumulate(self._counts)
        family.add_metric(labels, list(zip(bounds, totals, strict=True)), self._sum)


class ModelFigures:
    """What is measured of the requests for one model."""

    __slots__ = (
        "cached_tokens",
        "duration",
        "input_tokens",
        "itl",
        "output_tokens",
        "prefill",
        "queue_wait",
        "ttft",
    )

    def __init__(self) -> None:
        self.ttft = FastHistogram(_LONG_S)
        self.itl = FastHistogram(_SHORT_S)
        self.duration = FastHistogram(_LONG_S)
        self.prefill = FastHistogram(_LONG_S)
        self.queue_wait = FastHistogram(_LONG_S)
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0

    def ended(self, story: Story, took_s: float) -> None:
        """Count a request that took *took_s*."""
        self.duration.observe(took_s)
        self.input_tokens += story.input_tokens or 0
        self.output_tokens += story.output_tokens or 0
        self.cached_tokens += max(0, story.cached_tokens or 0)


_HISTOGRAMS = (
    ("ttft", "ttft_seconds", "From a request's coming to the first byte of its answer"),
    ("itl", "itl_seconds", "Between two events of a stream"),
    ("duration", "request_seconds", "From a request's coming to its end"),
    ("prefill", "prefill_seconds", "Of prefills on prefill workers"),
    ("queue_wait", "queue_wait_seconds", "Of requests, for their turn"),
)
_COUNTS = (
    ("input_tokens", "Prompt tokens, as workers counted them"),
    ("output_tokens", "Tokens answered, as workers counted them"),
    ("cached_tokens", "Prompt tokens that workers found in their caches"),
)


class RouterMetrics(Collector):
    """All metrics of a router, registered with *registry*."""

    def __init__(self, registry: CollectorRegistry, ledger: Ledger) -> None:
        self.registry = registry
        self._ledger = ledger
        self._workers: Callable[[], tuple[Worker, ...]] = tuple
        self.streamed_events = 0
        self._models: dict[str, ModelFigures] = {}
        self._tenants: set[str] = set()
        self._handover_s = FastHistogram(_SHORT_S)
        self._waiting: Callable[[], dict[str, int]] = dict

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, documentation, labels, registry=registry)

        self.requests = counter(
            "requests", "Requests that ended, by path and how", "path", "outcome"
        )
        self.picks = counter("picks", "Workers picked, by stage and why they", "stage", "reason")
        self.retries = counter(
            "retries", "Further tries after a failure, by what failed and how", "stage", "cause"
        )
        self.migrations = counter(
            "migrations", "Streams that another worker went on with, by how", "outcome"
        )
        self.kv_events = counter("kv_events", "KV events of workers taken into the index")
        self.event_gaps = counter("kv_event_gaps", "Times a worker's KV events were lost for good")
        self.audits = counter(
            "cache_audits", "Workers' caches compared with what was thought", "outcome"
        )
        self.refusals = counter(
            "refusals", "Requests refused before they were served", "reason", "tenant"
        )
        self.peer_refusals = counter(
            "peer_refusals", "Requests refused on the port for other routers, by why", "reason"
        )
        self.handovers = counter(
            "handovers", "Prefills handed to a decode worker, by what came of them", "outcome"
        )
        self.local_prefills = counter(
            "local_prefills", "Prompts computed by a decode worker, by why", "reason"
        )
        self.prompt_tokens = counter(
            "prompt_tokens",
            "Prompt tokens of requests that came; estimated where there is no tokenizer",
        )
        self.handover_bytes = counter("handover_bytes", "KV bytes moved, as workers report them")
        self.handover_failures = counter(
            "handover_failures", "Hand-overs that brought no KV, by why", "reason"
        )
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return nothing: the families are known when they are collected."""
        return []

    def handover_ended(self, report: HandoverReport | None) -> None:
        """Count a hand-over that was served, and what the decode worker says of it."""
        outcome = report.outcome if report else "served"
        self.handovers.labels(outcome if outcome in _OUTCOMES else OTHER).inc()
        if report is not None:
            self.handover_bytes.inc(max(0, report.bytes_pulled))
            self._handover_s.observe(max(0.0, report.seconds))
            if report.failure:
                known = report.failure if report.failure in _FAILURES else OTHER
                self.handover_failures.labels(known).inc()

    def of(self, model: str) -> ModelFigures:
        """Return the figures of *model*, which is one that workers serve."""
        found = self._models.get(model)
        if found is None:
            key = model if len(self._models) < MAX_MODELS else OTHER
            found = self._models.setdefault(key, ModelFigures())
        return found

    def ended(self, story: Story, took_s: float) -> None:
        """Count a request that has ended; the model of one that was not served is not known."""
        self.requests.labels(story.path, story.outcome).inc()
        if story.attempts:
            self.of(story.model).ended(story, took_s)

    def refused(self, reason: str, tenant: str) -> None:
        """Count a request of *tenant* that was refused for *reason*."""
        if tenant and tenant not in self._tenants:
            if len(self._tenants) < MAX_TENANTS:
                self._tenants.add(tenant)
            else:
                tenant = OTHER
        self.refusals.labels(reason, tenant).inc()

    def watch(
        self, workers: Callable[[], tuple[Worker, ...]], waiting: Callable[[], dict[str, int]]
    ) -> None:
        """Report the workers, and how many requests wait by model, that these return."""
        self._workers = workers
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        """Yield what is counted outside the library."""
        yield from self._by_model()
        handovers = HistogramMetricFamily(
            PREFIX + "handover_seconds", "Of KV moves, as workers report them"
        )
        self._handover_s.add_to(handovers, [])
        yield handovers
        waiting = GaugeMetricFamily(
            PREFIX + "waiting_requests", "Requests that wait for their turn", labels=["model"]
        )
        for model, count in self._waiting().items():
            waiting.add_metric([model], count)
        yield waiting
        events = CounterMetricFamily(PREFIX + "streamed_events", "Events sent to clients")
        events.add_metric([], self.streamed_events)
        yield events
        yield from self._loads()
        yield _worker_states(self._workers())

    def _by_model(self) -> Iterator[Metric]:
        models = sorted(self._models.items())
        for field, name, documentation in _HISTOGRAMS:
            histogram = HistogramMetricFamily(PREFIX + name, documentation, labels=["model"])
            for model, figures in models:
                getattr(figures, field).add_to(histogram, [model])
            yield histogram
        for field, documentation in _COUNTS:
            counter = CounterMetricFamily(PREFIX + field, documentation, labels=["model"])
            for model, figures in models:
                counter.add_metric([model], getattr(figures, field))
            yield counter

    def _loads(self) -> Iterator[Metric]:
        requests = GaugeMetricFamily(
            "spinney_router_inflight_requests",
            "Requests at work, by worker and stage",
            labels=["worker", "stage"],
        )
        tokens = GaugeMetricFamily(
            "spinney_router_queued_prefill_tokens",
            "Prompt tokens not computed yet, by worker",
            labels=["worker"],
        )
        for name, load in sorted(self._ledger.loads().items()):
            requests.add_metric([name, Stage.PREFILL.value], load.prefill_requests)
            requests.add_metric([name, Stage.DECODE.value], load.decode_requests)
            tokens.add_metric([name], load.prefill_tokens)
        yield requests
        yield tokens


def _worker_states(workers: tuple[Worker, ...]) -> Metric:
    family = GaugeMetricFamily(
        "spinney_router_workers", "Workers known, by role and state", labels=["role", "state"]
    )
    tally = Tally(
        (
            worker.role.value,
            "draining" if worker.draining else "ready" if worker.ready else "unready",
        )
        for worker in workers
    )
    for (role, state), count in sorted(tally.items()):
        family.add_metric([role, state], count)
    return family
