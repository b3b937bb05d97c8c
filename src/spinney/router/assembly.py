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
from spinney.router.hearsay import Hearsay
from spinney.router.load import Faults, Ledger
from spinney.router.metrics import RouterMetrics
from spinney.router.prefill_leg import PrefillLeg
from spinney.router.prefix_index import PrefixIndex
from spinney.router.prompt_lookup import PromptLookup
from spinney.router.recorder import Recorder
from spinney.router.replies import Replies
from spinney.router.retries import Retries
from spinney.router.serving import Serving
from spinney.router.sharing import Shared
from spinney.router.stories import Stories
from spinney.router.table import ModelProbe, WorkerTable
from spinney.router.ttft_targets import TtftTargets
from spinney.router.turns import Turns
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
    metrics: RouterMetrics
    shared: Shared
    """What it shares with other routers, where something tells them."""

    async def run(self) -> None:
        """Keep track of workers and their caches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.table.run())
            tasks.create_task(self.vigil.run())
            tasks.create_task(self.shared.hearsay.run())
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
    me: str = "",
) -> Router:
    """Return a router for the workers of *source*. Called on the loop that it will run on.

    *me* is its name among other routers.
    Without *subscribe* no KV events are followed; without *tokenizers* only prompts that come as
    token ids are looked up in what they tell.
    """
    ledger, faults, stories = Ledger(), Faults(limits), Stories(limits)
    metrics = RouterMetrics(registry, ledger)
    blocks = BlockIndex()
    feeds = EventFeeds(source, blocks, subscribe, metrics) if subscribe else None
    cache = _cache(blocks, feeds, limits)

    def forget(worker: str) -> None:
        cache.gone(worker)
        faults.succeeded(worker)

    table = WorkerTable(source, network, limits, forget)
    vigil = Vigil(network, faults, table.workers, limits)
    turns = Turns(me, limits, asyncio.get_running_loop().time)
    shared = Shared(ledger, faults, turns, Hearsay(network, faults, table.workers, limits))
    chooser = Chooser(table, ledger, faults, vigil, policy=policy, limits=limits, rng=rng)
    gates = Gates(table, limits, turns)
    seen = _Seen(limits, ledger, faults, cache, vigil, chooser, metrics, stories)
    serving = _serving(seen, network, gates, tokenizers or {})
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
    return Router(app, gates, table, ledger, cache, blocks, feeds, vigil, stories, metrics, shared)


def _cache(blocks: BlockIndex, feeds: EventFeeds | None, limits: Limits) -> CacheView:
    routed = PrefixIndex(limits.max_chunks_per_worker)
    if feeds is None:
        return CacheView(routed, blocks, ())
    return CacheView(routed, blocks, feeds.heard, feeds.resync)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What requests share: who is there, what they were given, and what was seen of them."""

    limits: Limits
    ledger: Ledger
    faults: Faults
    cache: CacheView
    vigil: Vigil
    chooser: Chooser
    metrics: RouterMetrics
    stories: Stories


def _serving(
    seen: _Seen, network: Network, gates: Gates, tokenizers: Mapping[str, PromptTokenizer]
) -> Serving:
    recorder = Recorder(seen.metrics, seen.stories)
    lookup = PromptLookup(seen.cache, tokenizers, seen.metrics)
    retries = Retries(seen.faults, seen.cache, recorder, limits=seen.limits)
    replies = Replies(seen.limits.idle_stream_deadline_s)
    targets = TtftTargets(seen.limits)
    calls = WorkerCalls(network, seen.limits.max_answer_bytes)
    prefill = PrefillLeg(
        calls,
        chooser=seen.chooser,
        ledger=seen.ledger,
        faults=seen.faults,
        vigil=seen.vigil,
        lookup=lookup,
        retries=retries,
        recorder=recorder,
        limits=seen.limits,
    )
    decode = DecodeLeg(
        calls,
        faults=seen.faults,
        vigil=seen.vigil,
        lookup=lookup,
        targets=targets,
        replies=replies,
        recorder=recorder,
        metrics=seen.metrics,
        limits=seen.limits,
    )
    attempts = Attempts(
        prefill, decode, ledger=seen.ledger, lookup=lookup, retries=retries, recorder=recorder
    )
    return Serving(
        gates,
        seen.chooser,
        attempts,
        targets=targets,
        lookup=lookup,
        retries=retries,
        replies=replies,
        recorder=recorder,
    )
