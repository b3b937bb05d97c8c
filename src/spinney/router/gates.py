"""The gate to each model's workers, made when there is somebody to wait for.

Invariant: where no worker decodes a model there is no gate to wait at; such a request goes on and
is told at once that nobody serves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spinney.router.admission import Gate

if TYPE_CHECKING:
    from spinney.router.limits import Limits
    from spinney.router.table import WorkerTable
    from spinney.router.turns import Turns


class Gates:
    """The gates of all models that workers of *table* serve."""

    def __init__(self, table: WorkerTable, limits: Limits, turns: Turns | None = None) -> None:
        """*turns* is where routers count together what they let in."""
        self._table = table
        self._turns = turns
        self._limits = limits
        self._gates: dict[str, Gate] = {}

    def of(self, model: str) -> Gate | None:
        """Return the gate to the workers of *model*; None when there are none now."""
        if not self._capacity(model):
            return None
        found = self._gates.get(model)
        if found is None:
            turns = self._turns
            door = turns.door(model) if turns is not None and turns.needed else None
            found = self._gates[model] = Gate(self._limits, lambda: self._capacity(model), door)
        return found

    def waiting(self) -> dict[str, int]:
        """Return how many requests wait for their turn, by model."""
        return {model: gate.waiting for model, gate in self._gates.items()}

    def look(self) -> None:
        """Let in who waits, when there are other workers than before."""
        for gate in self._gates.values():
            gate.look()

    def _capacity(self, model: str) -> int:
        return len(self._table.roster(model).decoders) * self._limits.max_running_per_worker
