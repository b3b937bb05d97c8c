"""What work costs on a worker: in milliseconds of a performance model, or in prompt tokens.

Both kinds answer the same questions with numbers that may be added up and compared, so that the
choice does not know which it has. Pure arithmetic; what a model says of a step is remembered, since
it is asked for every worker of every choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from spinney.perfmodel.step_model import Distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

REMEMBERED = 65_536
"""Answers of the model that are kept; then they are asked for anew."""
TABLE_CELLS = 1 << 21
"""Answers about decoding that are kept by position too, eight bytes each."""
CONTEXT_STEP = 256
"""Contexts are rounded up to so many tokens, so that few questions differ."""
DECODE_HORIZON = 64
"""Output tokens over which a slower decode is counted."""
STALL_WEIGHT = 0.1
"""What a millisecond counts in which a prompt holds up another sequence that decodes."""


class Costs(Protocol):
    """What is asked of a cost model."""

    @property
    def unit(self) -> str:
        """``ms`` or ``tokens``."""
        ...

    @property
    def weighs_modes(self) -> bool:
        """Whether serving whole and splitting can be compared, whatever the workers' roles."""
        ...

    def prefill(self, tokens: int, cached: int) -> float:
        """Return what it costs to compute *tokens* of which the first *cached* are there."""
        ...

    def prefill_all(self, tokens: int, cached: Ints) -> Floats:
        """Return `prefill` for many workers at once; every element of *cached* may cost a call."""
        ...

    def queued(self, tokens: int) -> float:
        """Return what it costs to wait for *tokens* of other prompts."""
        ...

    def decode(self, sequences: int, context_tokens: int, added_tokens: int) -> float:
        """Return what decoding costs beside *sequences*; *added_tokens* come with this one."""
        ...

    def decode_all(self, sequences: Ints, context_tokens: Ints, added_tokens: int) -> Floats:
        """Return `decode` for many workers at once."""
        ...

    def transfer(self, tokens: int, distance: Distance | None) -> float:
        """Return what it costs to move the KV of *tokens*; None is an unknown distance.

        A farther distance never costs less than a nearer one.
        """
        ...

    def transfer_all(self, tokens: Ints, distance: Distance | None) -> Floats:
        """Return `transfer` for many workers at once; every element of *tokens* may cost a call."""
        ...

    def stall(self, sequences: int, prefill: float) -> float:
        """Return what it costs the *sequences* that decode where a prompt of *prefill* runs."""
        ...

    def stall_all(self, sequences: Ints, prefill: Floats) -> Floats:
        """Return `stall` for many workers at once."""
        ...


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """In prompt tokens, without a model."""

    decode_request_tokens: float = 16.0
    """What one decoding sequence weighs."""
    context_token_weight: float = 1 / 16
    """What one token of a decoding sequence's context weighs."""
    transfer_weights: Mapping[Distance, float] = field(
        default_factory=lambda: {
            Distance.HOST: 0.0,
            Distance.RACK: 1 / 64,
            Distance.ZONE: 1 / 16,
            Distance.FAR: 1 / 4,
        }
    )
    """What moving one token's KV weighs."""

    @property
    def unit(self) -> str:
        """See `Costs`."""
        return "tokens"

    @property
    def weighs_modes(self) -> bool:
        """Tokens do not tell whether a prompt is better computed here or there."""
        return False

    def prefill(self, tokens: int, cached: int) -> float:
        """See `Costs`."""
        return max(0, tokens - cached)

    def prefill_all(self, tokens: int, cached: Ints) -> Floats:
        """See `Costs`."""
        return np.maximum(0, tokens - cached).astype(np.float64)

    def queued(self, tokens: int) -> float:
        """See `Costs`."""
        return tokens

    def decode(self, sequences: int, context_tokens: int, added_tokens: int) -> float:
        """See `Costs`: what this one adds is the same everywhere, and left out."""
        return sequences * self.decode_request_tokens + context_tokens * self.context_token_weight

    def decode_all(self, sequences: Ints, context_tokens: Ints, added_tokens: int) -> Floats:
        """See `Costs`."""
        return sequences * self.decode_request_tokens + context_tokens * self.context_token_weight

    def transfer(self, tokens: int, distance: Distance | None) -> float:
        """See `Costs`."""
        return 0.0 if distance is None else tokens * self.transfer_weights[distance]

    def transfer_all(self, tokens: Ints, distance: Distance | None) -> Floats:
        """See `Costs`."""
        weight = 0.0 if distance is None else self.transfer_weights[distance]
        return tokens.astype(np.float64) * weight

    def stall(self, sequences: int, prefill: float) -> float:
        """See `Costs`."""
        return 0.0

    def stall_all(self, sequences: Ints, prefill: Floats) -> Floats:
        """See `Costs`."""
        return np.zeros(len(sequences))


class StepTimes(Protocol):
    """What is asked of a performance model; `spinney.perfmodel.step_model.StepModel` is one."""

    @property
    def chunk_tokens(self) -> int: ...  # noqa: D102

    def prefill_s(self, tokens: int, cached: int = 0) -> float: ...  # noqa: D102

    def decode_step_s(self, batch: int, context_tokens: int) -> float: ...  # noqa: D102

    def transfer_s(self, bytes_: float, distance: Distance = ...) -> float: ...  # noqa: D102

    def kv_bytes(self, tokens: int) -> float: ...  # noqa: D102


class ModelCosts:
    """In milliseconds, as a performance model says."""

    def __init__(self, model: StepTimes) -> None:
        self._model = model
        self._queue_ms_per_token = 1000 * model.prefill_s(model.chunk_tokens) / model.chunk_tokens
        self._prefills: dict[tuple[int, int], float] = {}
        self._decodes: dict[tuple[int, int], float] = {}
        self._transfers: tuple[dict[int, float], ...] = tuple({} for _ in Distance)
        """By distance, then by tokens: the hash of an enum's member takes longer than the rest."""
        self._table: Floats = np.full((1, 1), np.nan)
        """The same by position, as far as `TABLE_CELLS` allows; NaN is not asked yet."""

    @property
    def unit(self) -> str:
        """See `Costs`."""
        return "ms"

    @property
    def weighs_modes(self) -> bool:
        """See `Costs`."""
        return True

    def prefill(self, tokens: int, cached: int) -> float:
        """See `Costs`."""
        key = (tokens, cached)
        found = self._prefills.get(key)
        if found is None:
            if len(self._prefills) >= REMEMBERED:
                self._prefills.clear()
            found = self._prefills[key] = 1000 * self._model.prefill_s(tokens, cached)
        return found

    def prefill_all(self, tokens: int, cached: Ints) -> Floats:
        """See `Costs`."""
        return np.array([self.prefill(tokens, each) for each in cached.tolist()], np.float64)

    def queued(self, tokens: int) -> float:
        """See `Costs`."""
        return tokens * self._queue_ms_per_token

    def decode(self, sequences: int, context_tokens: int, added_tokens: int) -> float:
        """See `Costs`: the time of `DECODE_HORIZON` steps with this sequence among the others."""
        key = (sequences + 1, -(-(context_tokens + added_tokens) // CONTEXT_STEP))
        found = self._decodes.get(key)
        if found is None:
            if len(self._decodes) >= REMEMBERED:
                self._decodes.clear()
            step_s = self._model.decode_step_s(key[0], key[1] * CONTEXT_STEP)
            found = self._decodes[key] = 1000 * DECODE_HORIZON * step_s
        return found

    def decode_all(self, sequences: Ints, context_tokens: Ints, added_tokens: int) -> Floats:
        """See `Costs`."""
        if not len(sequences):
            return np.zeros(0)
        rows = sequences + 1
        columns = -(-(context_tokens + added_tokens) // CONTEXT_STEP)
        if not self._reaches(int(rows.max()), int(columns.max())):
            asked = zip(sequences.tolist(), context_tokens.tolist(), strict=True)
            return np.array([self.decode(*each, added_tokens) for each in asked])
        found: Floats = self._table[rows, columns]
        for at in np.flatnonzero(np.isnan(found)).tolist():
            cost = self.decode(int(sequences[at]), int(context_tokens[at]), added_tokens)
            found[at] = self._table[rows[at], columns[at]] = cost
        return found

    def _reaches(self, row: int, column: int) -> bool:
        """Have the table reach *row* and *column*; tell whether it may."""
        rows, columns = self._table.shape
        if row < rows and column < columns:
            return True
        wanted = (max(rows, 1 << row.bit_length()), max(columns, 1 << column.bit_length()))
        if wanted[0] * wanted[1] > TABLE_CELLS:
            return False
        table = np.full(wanted, np.nan)
        table[:rows, :columns] = self._table
        self._table = table
        return True

    def transfer(self, tokens: int, distance: Distance | None) -> float:
        """See `Costs`: an unknown distance is as far as any."""
        far = Distance.FAR if distance is None else distance
        known = self._transfers[far]
        found = known.get(tokens)
        if found is None:
            if len(known) >= REMEMBERED:
                known.clear()
            moved = self._model.transfer_s(self._model.kv_bytes(tokens), far)
            found = known[tokens] = 1000 * moved
        return found

    def transfer_all(self, tokens: Ints, distance: Distance | None) -> Floats:
        """See `Costs`."""
        return np.array([self.transfer(each, distance) for each in tokens.tolist()], np.float64)

    def stall(self, sequences: int, prefill: float) -> float:
        """See `Costs`."""
        return STALL_WEIGHT * sequences * prefill

    def stall_all(self, sequences: Ints, prefill: Floats) -> Floats:
        """See `Costs`."""
        return STALL_WEIGHT * sequences * prefill
