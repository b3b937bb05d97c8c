"""What the engine counts, under the names vLLM uses; hand-over figures under our own.

Invariant: a name that is also vLLM's means what it means there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from spinney.engine.core import EngineCore
    from spinney.engine.sequence import Finished, Handover, Sequence

_LABELS = ("model_name", "engine")
NEWS_WEIGHT = 0.2
"""What the last pull counts for in the bandwidth."""
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20)
_ITL = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 1, 2.5, 5)
_LONG = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_SHORT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class EngineMetrics:
    """The metrics of one engine, registered in *registry*."""

    def __init__(self, registry: CollectorRegistry, *, model_name: str, engine_id: str) -> None:
        self._registry = registry
        self._values = {"model_name": model_name, "engine": engine_id}
        self._speeds: dict[str, float] = {}
        self._seen = {"preemptions": 0, "queries": 0, "hits": 0, "expired": 0}
        self._queue_metrics()
        self._token_metrics()
        self._time_metrics()
        self._handover_metrics()

    def started(self, core: EngineCore) -> None:
        """Publish what does not change: the size of the cache."""
        size, blocks = core.block_size, core.pool.capacity
        info = Gauge(
            "vllm:cache_config_info",
            "Configuration of the KV cache.",
            (*_LABELS, "block_size", "num_gpu_blocks", "kv_cache_size_tokens"),
            registry=self._registry,
        )
        info.labels(
            **self._values,
            block_size=str(size),
            num_gpu_blocks=str(blocks),
            kv_cache_size_tokens=str(size * blocks),
        ).set(1)

    def step_done(self, core: EngineCore, num_tokens: int) -> None:
        """Take in the state after a step of *num_tokens*; 0 when nothing ran."""
        self._running.set(core.num_running)
        self._waiting.set(core.num_waiting)
        self._usage.set(core.pool.held / core.pool.capacity)
        self._leases.set(len(core.leases))
        if num_tokens:
            self._iteration_tokens.observe(num_tokens)
        counters, seen = core.counters, self._seen
        for key, counter, value in (
            ("preemptions", self._preemptions, counters.preemptions),
            ("queries", self._prefix_queries, counters.prefix_queries),
            ("hits", self._prefix_hits, counters.prefix_hits),
            ("expired", self._leases_expired, counters.leases_expired),
        ):
            if value > seen[key]:
                counter.inc(value - seen[key])
                seen[key] = value

    def tokens_out(self, sequence: Sequence, count: int, gap_s: float | None) -> None:
        """*count* tokens came; *gap_s* is the time since the one before, None for the first."""
        self._generation_tokens.inc(count)
        if gap_s is not None:
            self._itl.observe(gap_s)
            return
        times = sequence.times
        if times.first_token is not None:
            self._ttft.observe(times.first_token - times.arrived)
        self._prompt_done(sequence)

    def finished(self, sequence: Sequence, end: Finished, now_s: float) -> None:
        """A sequence ended."""
        self._success.labels(**self._values, finished_reason=end.reason).inc()
        times, tokens = sequence.times, len(sequence.output)
        self._request_prompt_tokens.observe(len(sequence.prompt))
        self._request_generation_tokens.observe(tokens)
        self._e2e.observe(now_s - times.arrived)
        if times.admitted is None or times.first_token is None or times.last_token is None:
            return
        self._queue_time.observe(times.admitted - times.arrived)
        self._prefill_time.observe(times.first_token - times.admitted)
        self._decode_time.observe(times.last_token - times.first_token)
        self._inference_time.observe(times.last_token - times.admitted)
        if tokens > 1:
            self._tpot.observe((times.last_token - times.first_token) / (tokens - 1))

    def rejected(self) -> None:
        """A request was refused because the queue is full."""
        self._rejections.inc()

    def handover_done(self, handover: Handover) -> None:
        """The decode side of a hand-over ended."""
        self._handovers.labels(**self._values, outcome=handover.outcome).inc()
        if handover.failure is not None:
            self._handover_failures.labels(**self._values, reason=handover.failure).inc()
        if handover.num_bytes:
            self._pulled_bytes.inc(handover.num_bytes)
            self._pull_seconds.observe(handover.seconds)
            self._measure(handover)

    def _measure(self, handover: Handover) -> None:
        transport, speed = (
            handover.transport or "",
            handover.num_bytes / max(1e-9, handover.seconds),
        )
        before = self._speeds.get(transport, speed)
        self._speeds[transport] = now = before + NEWS_WEIGHT * (speed - before)
        self._bandwidth.labels(**self._values, transport=transport).set(now)

    def served(self, num_bytes: int, failure: str | None) -> None:
        """The prefill side of a hand-over ended."""
        self._served_bytes.inc(num_bytes)
        outcome = "delivered" if failure is None else failure
        self._served.labels(**self._values, outcome=outcome).inc()

    def _prompt_done(self, sequence: Sequence) -> None:
        prompt = len(sequence.prompt)
        cached, pulled = sequence.cached_tokens, sequence.pulled_tokens
        computed = prompt - cached - pulled
        self._prompt_tokens.inc(prompt)
        for source, count in (
            ("local_compute", computed),
            ("local_cache_hit", cached),
            ("external_kv_transfer", pulled),
        ):
            self._prompt_by_source.labels(**self._values, source=source).inc(count)
        for source, count in (("device", cached), ("p2p", pulled)):
            self._cached_by_source.labels(**self._values, source=source).inc(count)
        self._computed_per_request.observe(computed)
        if sequence.request.remote is not None:
            self._external_queries.inc(prompt - cached)
            self._external_hits.inc(pulled)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(**self._values)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, (*_LABELS, label), registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self._registry).labels(**self._values)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, text, _LABELS, buckets=buckets, registry=self._registry)
        return metric.labels(**self._values)

    def _queue_metrics(self) -> None:
        self._running = self._gauge("vllm:num_requests_running", "Requests that hold KV blocks.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait.")
        self._usage = self._gauge("vllm:kv_cache_usage_perc", "Share of KV blocks held, 0 to 1.")
        self._preemptions = self._counter("vllm:num_preemptions", "Requests preempted.")
        self._rejections = self._counter("vllm:admission_rejections", "Requests refused: full.")
        self._success = self._labelled(
            "vllm:request_success", "Requests ended, by reason.", "finished_reason"
        )

    def _token_metrics(self) -> None:
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._prefix_queries = self._counter(
            "vllm:prefix_cache_queries", "Tokens looked up in the prefix cache."
        )
        self._prefix_hits = self._counter(
            "vllm:prefix_cache_hits", "Tokens found in the prefix cache."
        )
        self._external_queries = self._counter(
            "vllm:external_prefix_cache_queries", "Tokens wanted from another worker."
        )
        self._external_hits = self._counter(
            "vllm:external_prefix_cache_hits", "Tokens whose KV came from another worker."
        )
        self._prompt_by_source = self._labelled(
            "vllm:prompt_tokens_by_source", "Prompt tokens by where their KV is from.", "source"
        )
        self._cached_by_source = self._labelled(
            "vllm:prompt_tokens_cached_by_source", "Prompt tokens not computed here.", "source"
        )
        self._iteration_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens per step.", _SIZES
        )
        self._request_prompt_tokens = self._histogram(
            "vllm:request_prompt_tokens", "Prompt tokens per request.", _SIZES
        )
        self._request_generation_tokens = self._histogram(
            "vllm:request_generation_tokens", "Tokens generated per request.", _SIZES
        )
        self._computed_per_request = self._histogram(
            "vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed here.", _SIZES
        )

    def _time_metrics(self) -> None:
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT
        )
        self._itl = self._histogram("vllm:inter_token_latency_seconds", "Token to token.", _ITL)
        self._tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per token.", _ITL
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to the end.", _LONG
        )
        self._queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "Arrival to admission.", _LONG
        )
        self._prefill_time = self._histogram(
            "vllm:request_prefill_time_seconds", "Admission to first token.", _LONG
        )
        self._decode_time = self._histogram(
            "vllm:request_decode_time_seconds", "First to last token.", _LONG
        )
        self._inference_time = self._histogram(
            "vllm:request_inference_time_seconds", "Admission to last token.", _LONG
        )

    def _handover_metrics(self) -> None:
        self._handovers = self._labelled(
            "spinney:kv_handovers", "Hand-overs at the decode side, by outcome.", "outcome"
        )
        self._handover_failures = self._labelled(
            "spinney:kv_handover_failures", "Hand-overs that gave no KV, by reason.", "reason"
        )
        self._pulled_bytes = self._counter("spinney:kv_pulled_bytes", "KV bytes pulled.")
        self._pull_seconds = self._histogram(
            "spinney:kv_pull_seconds", "Call for KV to KV in place.", _SHORT
        )
        self._bandwidth = Gauge(
            "spinney:kv_pull_bandwidth_bytes_per_second",
            "KV bytes pulled per second of pulling: a mean in which recent pulls weigh more.",
            (*_LABELS, "transport"),
            registry=self._registry,
        )
        self._served_bytes = self._counter("spinney:kv_served_bytes", "KV bytes given away.")
        self._served = self._labelled(
            "spinney:kv_served_pulls", "Pulls served here, by outcome.", "outcome"
        )
        self._leases = self._gauge("spinney:kv_leases", "Hand-overs waiting to be pulled.")
        self._leases_expired = self._counter(
            "spinney:kv_leases_expired", "Leases nobody pulled in time."
        )
