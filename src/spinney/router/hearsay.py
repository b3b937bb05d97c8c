"""Workers that other routers found dead: avoided on their word, until this one has looked itself.

What another router says makes this one ask the worker for its health, and avoid it until it has
answered or its time for that is over. If it answers, the word is not believed for a while; if not,
the worker has failed here too, with all that follows. Invariants: a word alone counts for no longer
than one such question takes; at most half of those that do the same are avoided on words, so that a
router that lies, or is cut off from the workers itself, takes nothing out that works; a router
tells others only what it found itself, so that no word goes round.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from spinney.router.limits import Limits
    from spinney.router.load import Faults
    from spinney.router.vigil import LifeProbe
    from spinney.router.workers import Worker

MOST_PROBES = 16
"""Workers that are asked at once because of what other routers said."""
MARGIN_S = 1.0
"""Added to the time that a worker has to answer, for the question to get its turn."""
REFUTED_S = 10.0
"""How long a router's word on a worker that answered counts for nothing."""

log = get_logger("router")


def may_be_avoided(worker: Worker, workers: Sequence[Worker], avoided: frozenset[str]) -> bool:
    """Whether *worker* may be avoided on a word, where *avoided* already are.

    Of the available workers that do the same for a model, half at most may be.
    """
    for model in worker.models or {""}:
        alike = [
            other
            for other in workers
            if other.available
            and (model in other.models or not model)
            and other.decodes == worker.decodes
        ]
        out = sum(other.name in avoided for other in alike if other.name != worker.name) + 1
        if 2 * out > len(alike):
            return False
    return True


class Hearsay:
    """What other routers say of workers. Does nothing with it unless it is run."""

    def __init__(
        self,
        probe: LifeProbe,
        faults: Faults,
        workers: Callable[[], tuple[Worker, ...]],
        limits: Limits,
    ) -> None:
        self._probe = probe
        self._faults = faults
        self._workers = workers
        self._limits = limits
        self._refuted: dict[tuple[str, str], float] = {}
        self._pending: dict[str, set[str]] = {}
        """The workers to ask, or that are asked, and the routers whose words are the reason."""
        self._unasked: asyncio.Queue[Worker] = asyncio.Queue()

    def heard(self, router: str, failing: Iterable[str], now_s: float) -> None:
        """Take in which workers *router* avoids because it found that they fail, all of them."""
        named = set(failing)
        for key in [key for key in self._refuted if key[0] == router and key[1] not in named]:
            del self._refuted[key]
        for worker, routers in self._pending.items():
            if worker not in named:
                routers.discard(router)  # What it says next of that one is another matter.
        if not named:
            return
        workers = self._workers()
        for each in workers:
            if each.name in named and each.available:
                self._consider(router, each, workers, now_s)

    def _consider(
        self, router: str, worker: Worker, workers: Sequence[Worker], now_s: float
    ) -> None:
        if self._refuted.get((router, worker.name), now_s) > now_s:
            return
        if worker.name in self._pending:
            self._pending[worker.name].add(router)
            return
        avoided = self._faults.avoided(now_s)
        if worker.name in avoided:
            return
        self._pending[worker.name] = {router}
        self._unasked.put_nowait(worker)  # Once for each worker there is: that is its bound.
        if may_be_avoided(worker, workers, avoided):
            self._faults.told(worker.name, now_s + self._limits.alive_deadline_s + MARGIN_S)
            log.info("worker avoided on another router's word", worker=worker.name, router=router)

    async def run(self) -> None:
        """Ask the workers that others speak of until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(MOST_PROBES):
                tasks.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            worker = await self._unasked.get()
            began_s = _now()
            alive = await self._probe.answers(worker, self._limits.alive_deadline_s)
            routers = self._pending.pop(worker.name)
            self._faults.untold(worker.name)
            now_s = _now()
            if alive:
                for router in routers:
                    self._refuted[router, worker.name] = now_s + REFUTED_S
            else:
                avoided_s = self._faults.failed(worker.name, now_s)
                log.warning(
                    "worker failed, as another router said",
                    worker=worker.name,
                    asked_s=round(now_s - began_s, 3),
                    avoided_s=round(avoided_s, 3),
                )


def _now() -> float:
    return asyncio.get_running_loop().time()
