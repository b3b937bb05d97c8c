"""Puts a router together from what the outside gives it: workers, network, clock, chance."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from spinney.kv.prefix_index import BlockIndex
from spinney.router.app import RouterApp
from spinney.router.attempts import Attempts
from spinney.router.cache_view import CacheView
from spinney.router.choosing import Chooser
from spinney.router.decode_leg import DecodeLeg
from spinney.router.event_feeds import EventFeeds
from spinney.router.gates import Gates
from spinney.router.load import Faults, Ledger
from spinney.router.metrics import RouterMetrics
from spinney.router.prefill_leg import PrefillLeg
from spinney.router.prefix_index import PrefixIndex
from spinney.router.prompt_lookup import PromptLookup
from spinney.router.recorder import Recorder
from spinney.router.replies import Replies
from spinney.router.retries import Retries
from spinney.router.serving import Serving
from spinney.router.stories import Stories
from spinney.router.table import ModelProbe, WorkerTable
from spinney.router.ttft_targets import TtftTargets
from spinney.router.upstream import Upstream
from spinney.router.vigil import LifeProbe, Vigil
from spinney.router.worker_call import WorkerCalls
from spinney.tracing import NO_TRACER, Tracer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from prometheus_client import CollectorRegistry

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.router.event_feeds import Subscribe
    from spinney.router.limits import Limits
    from spinney.router.peer_app import Siblings
    from spinney.router.picker import Policy
    from spinney.router.prompt_tokens import PromptTokenizer
    from spinney.router.workers import WorkerSource


class Network(Upstream, ModelProbe, LifeProbe, Protocol):
    """All that a router asks of workers."""


@dataclass(frozen=True, slots=True)
class Router:
    """A router that has to be run while ``app`` serves."""

    app: RouterApp
    gates: Gates
    table: WorkerTable
    ledger: Ledger
    cache: CacheView
    blocks: BlockIndex
    feeds: EventFeeds | None
    vigil: Vigil
    stories: Stories
    registry: CollectorRegistry

    async def run(self) -> None:
        """Keep track of workers and their caches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.table.run())
            tasks.create_task(self.vigil.run())
            if self.feeds is not None:
                tasks.create_task(self.feeds.run())


def assemble(
    source: WorkerSource,
    network: Network,
    *,
    limits: Limits,
    policy: Policy,
    rng: Random,
    clock: Clock,
    ids: IdSource,
    registry: CollectorRegistry,
    subscribe: Subscribe | None = None,
    tokenizers: Mapping[str, PromptTokenizer] | None = None,
    tracer: Tracer = NO_TRACER,
    siblings: Siblings | None = None,
) -> Router:
    """Return a router for the workers of *source*. Called on the loop that it will run on.

    Without *subscribe* no KV events are followed; without *tokenizers* only prompts that come as
    token ids are looked up in what they tell.
    """
    ledger, faults, stories = Ledger(), Faults(limits), Stories(limits)
    metrics = RouterMetrics(registry, ledger)
    blocks = BlockIndex()
    feeds = EventFeeds(source, blocks, subscribe, metrics) if subscribe else None
    routed = PrefixIndex(limits.max_chunks_per_worker)
    cache = (
        CacheView(routed, blocks, feeds.heard, feeds.resync)
        if feeds
        else (CacheView(routed, blocks, ()))
    )

    def forget(worker: str) -> None:
        cache.gone(worker)
        faults.succeeded(worker)

    table = WorkerTable(source, network, limits, forget)
    vigil = Vigil(network, faults, table.workers, limits)
    chooser = Chooser(table, ledger, faults, vigil, policy=policy, limits=limits, rng=rng)
    gates = Gates(table, limits)
    serving = _serving(
        network,
        gates,
        chooser,
        limits=limits,
        vigil=vigil,
        metrics=metrics,
        ledger=ledger,
        cache=cache,
        tokenizers=tokenizers or {},
        faults=faults,
        stories=stories,
    )
    metrics.watch(table.workers, gates.waiting)
    source.on_change(gates.look)
    app = RouterApp(
        serving,
        table,
        limits=limits,
        stories=stories,
        metrics=metrics,
        registry=registry,
        clock=clock,
        ids=ids,
        tracer=tracer,
        siblings=siblings,
    )
    return Router(app, gates, table, ledger, cache, blocks, feeds, vigil, stories, registry)


def _serving(
    network: Network,
    gates: Gates,
    chooser: Chooser,
    *,
    limits: Limits,
    vigil: Vigil,
    metrics: RouterMetrics,
    ledger: Ledger,
    cache: CacheView,
    tokenizers: Mapping[str, PromptTokenizer],
    faults: Faults,
    stories: Stories,
) -> Serving:
    """Return what carries requests to the workers that *chooser* chooses."""
    calls = WorkerCalls(network, limits.max_answer_bytes)
    recorder = Recorder(metrics, stories)
    lookup = PromptLookup(cache, tokenizers, metrics)
    retries = Retries(faults, cache, recorder, limits=limits)
    replies = Replies(limits.idle_stream_deadline_s)
    targets = TtftTargets(limits)
    prefill = PrefillLeg(
        calls,
        chooser=chooser,
        ledger=ledger,
        faults=faults,
        vigil=vigil,
        lookup=lookup,
        retries=retries,
        recorder=recorder,
        limits=limits,
    )
    decode = DecodeLeg(
        calls,
        faults=faults,
        vigil=vigil,
        lookup=lookup,
        targets=targets,
        replies=replies,
        recorder=recorder,
        metrics=metrics,
        limits=limits,
    )
    attempts = Attempts(
        prefill, decode, ledger=ledger, lookup=lookup, retries=retries, recorder=recorder
    )
    return Serving(
        gates,
        chooser,
        attempts,
        targets=targets,
        lookup=lookup,
        retries=retries,
        replies=replies,
        recorder=recorder,
    )
