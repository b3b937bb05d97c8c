"""Puts a router together from what the outside gives it: workers, network, clock, chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from spinney.router.app import RouterApp
from spinney.router.load import Faults, Ledger
from spinney.router.metrics import RouterMetrics
from spinney.router.prefix_index import PrefixIndex
from spinney.router.serving import Serving
from spinney.router.stories import Stories
from spinney.router.table import ModelProbe, WorkerTable
from spinney.router.upstream import Upstream

if TYPE_CHECKING:
    from random import Random

    from prometheus_client import CollectorRegistry

    from spinney.clock import Clock
    from spinney.ids import IdSource
    from spinney.router.limits import Limits
    from spinney.router.picker import Policy
    from spinney.router.workers import WorkerSource


class Network(Upstream, ModelProbe, Protocol):
    """All that a router asks of workers."""


@dataclass(frozen=True, slots=True)
class Router:
    """A router whose ``table`` has to be run while ``app`` serves."""

    app: RouterApp
    table: WorkerTable
    ledger: Ledger


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
) -> Router:
    """Return a router for the workers of *source*. Called on the loop that it will run on."""
    ledger, faults, stories = Ledger(), Faults(limits), Stories(limits)
    index = PrefixIndex(limits.max_chunks_per_worker)
    metrics = RouterMetrics(registry, ledger)

    def forget(worker: str) -> None:
        index.forget(worker)
        faults.succeeded(worker)

    table = WorkerTable(source, network, limits, forget)
    metrics.watch(table.workers)
    serving = Serving(
        table,
        network,
        limits=limits,
        policy=policy,
        rng=rng,
        metrics=metrics,
        ledger=ledger,
        index=index,
        faults=faults,
        stories=stories,
    )
    app = RouterApp(
        serving,
        table,
        limits=limits,
        stories=stories,
        metrics=metrics,
        registry=registry,
        clock=clock,
        ids=ids,
    )
    return Router(app, table, ledger)
