"""Chooses workers for requests, and waits a while where none is well.

Invariant: a request waits only where every worker that could serve it failed lately or is gone, and
never beyond the time it was given.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.router.fleet import Fleets
from spinney.router.load import view_of
from spinney.router.picker import Nobody, View, pick, pick_prefill

if TYPE_CHECKING:
    from random import Random

    from spinney.router.limits import Limits
    from spinney.router.load import Faults, Ledger
    from spinney.router.picker import Ask, Choice, Pick, Policy
    from spinney.router.table import WorkerTable
    from spinney.router.vigil import Vigil
    from spinney.router.workers import Worker


FEW = 4
"""Workers among which looking at every pair takes less time than making arrays."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A choice, and how it came about."""

    choice: Choice | Nobody
    desperate: bool
    """Whether it is a worker that failed lately and has not come back."""
    waited_s: float


class Chooser:
    """Chooses among the workers of *table*."""

    def __init__(
        self,
        table: WorkerTable,
        ledger: Ledger,
        faults: Faults,
        vigil: Vigil,
        *,
        policy: Policy,
        limits: Limits,
        rng: Random,
    ) -> None:
        self._table = table
        self._ledger = ledger
        self._faults = faults
        self._vigil = vigil
        self._policy = policy
        self._limits = limits
        self._rng = rng
        self._fleets = Fleets(policy)
        ledger.on_change(self._fleets.note)

    def view(self) -> View:
        """Return what a choice would be made from now."""
        return view_of(self._table, self._ledger, self._faults, _now())

    async def choose(self, ask: Ask, *, most_s: float, patient: bool) -> Chosen:
        """Return who serves *ask*, having waited for at most *most_s* where all failed lately.

        A *patient* request waits too where there is nobody at all.
        """
        began_s = _now()
        until_s, waited_s = began_s + min(most_s, self._limits.return_wait_s), 0.0
        while True:
            now_s = _now()
            avoided = self._faults.avoided(now_s)
            choice = self._pick(ask, avoided)
            if isinstance(choice, Nobody):
                desperate, wait = False, patient
            else:
                picks = (choice.decode, choice.prefill)
                wait = desperate = any(each and each.worker.name in avoided for each in picks)
            if not wait or now_s >= until_s:
                return Chosen(choice, desperate, waited_s)
            await self._vigil.returned(until_s)
            waited_s = _now() - began_s

    def another_prefill(self, ask: Ask, decode: Worker) -> Pick | None:
        """Return another prefill worker for *ask*, or None when there is none left."""
        return pick_prefill(ask, self.view(), self._policy, self._rng, decode)

    def _pick(self, ask: Ask, avoided: frozenset[str]) -> Choice | Nobody:
        table = self._table
        roster = table.roster(ask.model)
        if len(roster.prefillers) + len(roster.decoders) <= FEW:
            seen = View(table.workers(), self._ledger.loads_now(), avoided, table.rosters)
            return pick(ask, seen, self._policy, self._rng)
        fleet = self._fleets.of(ask.model, roster, table.rosters, self._ledger.loads_now())
        return fleet.pick(ask, avoided, self._rng)


def _now() -> float:
    return asyncio.get_running_loop().time()
