"""The workers with the models they serve.

A source may not know a worker's models; then the worker itself is asked, until it answers. Until
then it serves none: an unknown model is not a missing one.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from spinney.log import get_logger
from spinney.router.picker import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.router.limits import Limits
    from spinney.router.picker import Roster
    from spinney.router.workers import Worker, WorkerSource

log = get_logger("router")


class ModelProbe(Protocol):
    """Asks a worker what it serves."""

    async def models(self, worker: Worker) -> frozenset[str]:
        """Return the names of its models; empty when it cannot tell now. Raises nothing."""
        ...


class WorkerTable:
    """What a source knows of workers, completed by what the workers say themselves."""

    def __init__(
        self,
        source: WorkerSource,
        probe: ModelProbe,
        limits: Limits,
        forget: Callable[[str], None] = lambda _name: None,
    ) -> None:
        """*forget* is called with the name of each worker that is gone or was replaced."""
        self._source = source
        self._probe = probe
        self._limits = limits
        self._forget = forget
        self._told: dict[tuple[str, str, str], frozenset[str]] = {}
        self._identities: dict[str, tuple[str, str, str]] = {}
        self._workers: tuple[Worker, ...] = ()
        self.rosters: dict[str, Roster] = {}
        """What choices found out of the workers there are now; another one after each change."""
        self._changed = asyncio.Event()
        source.on_change(self._refresh)
        self._refresh()

    def workers(self) -> tuple[Worker, ...]:
        """Return all workers, sorted by name."""
        return self._workers

    def roster(self, model: str) -> Roster:
        """Return who can serve *model* now; the same object until a worker changes."""
        return View(self._workers, rosters=self.rosters).roster(model)

    def models(self) -> list[str]:
        """Return the names of all models, of workers that are not available too; sorted."""
        return sorted({model for worker in self._workers for model in worker.models})

    def available_models(self) -> list[str]:
        """Return the names of the models that a worker can answer for now; sorted."""
        able = (worker for worker in self._workers if worker.available and worker.decodes)
        return sorted({model for worker in able for model in worker.models})

    def complete(self) -> bool:
        """Tell whether there are workers and the models of all are known."""
        return bool(self._workers) and all(worker.models for worker in self._workers)

    async def run(self) -> None:
        """Keep the table current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._source.run())
            tasks.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            self._changed.clear()
            unknown = [w for w in self._workers if w.available and not w.models]
            answers = await asyncio.gather(*(self._probe.models(worker) for worker in unknown))
            for worker, models in zip(unknown, answers, strict=True):
                if models:
                    self._told[_identity(worker)] = models
                    log.info("worker told its models", worker=worker.name, models=sorted(models))
            if any(answers):
                self._refresh()
            await self._wait(again=len(unknown) > sum(map(bool, answers)))

    async def _wait(self, *, again: bool) -> None:
        try:
            async with asyncio.timeout(self._limits.probe_period_s if again else None):
                await self._changed.wait()
        except TimeoutError:
            return

    def _refresh(self) -> None:
        workers = self._source.workers()
        identities = {worker.name: _identity(worker) for worker in workers}
        for name, identity in self._identities.items():
            if identities.get(name) != identity:
                self._told.pop(identity, None)
                self._forget(name)
        self._identities = identities
        self.rosters = {}
        self._workers = tuple(
            worker if worker.models else replace(worker, models=self._told.get(key, frozenset()))
            for worker, key in zip(workers, identities.values(), strict=True)
        )
        self._changed.set()


def _identity(worker: Worker) -> tuple[str, str, str]:
    return worker.name, worker.url, worker.uid
