"""What a set says about updates, with the defaults."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from spinney.controllers.update.coherent import Budget
from spinney.controllers.update.revisions import HISTORY_LIMIT

if TYPE_CHECKING:
    from spinney.api.grove import PodCliqueSet

PROGRESS_DEADLINE_S = 1800
MIN_CAPACITY_PERCENT = 75
MAX_UNAVAILABLE = "25%"
MAX_SURGE = 1


def kind(pcs: PodCliqueSet) -> str:
    """Return the type of the update strategy."""
    strategy = pcs.spec.update_strategy
    return strategy.type if strategy is not None else "RollingRecreate"


def is_on_delete(pcs: PodCliqueSet) -> bool:
    """Tell whether running pods wait for somebody to delete them."""
    return kind(pcs) == "OnDelete"


def is_paused(pcs: PodCliqueSet) -> bool:
    """Tell whether the update is to stand still."""
    strategy = pcs.spec.update_strategy
    return strategy is not None and strategy.paused


def deadline_s(pcs: PodCliqueSet) -> float:
    """Return how long an update may go without progress."""
    strategy = pcs.spec.update_strategy
    said = strategy.progress_deadline_seconds if strategy is not None else None
    return PROGRESS_DEADLINE_S if said is None else said


def history_limit(pcs: PodCliqueSet) -> int:
    """Return how many revisions are kept besides those in use."""
    strategy = pcs.spec.update_strategy
    said = strategy.revision_history_limit if strategy is not None else None
    return HISTORY_LIMIT if said is None else said


def budget(pcs: PodCliqueSet) -> Budget:
    """Return what a coherent update may cost."""
    strategy = pcs.spec.update_strategy
    said = strategy.coherent if strategy is not None else None
    if said is None:
        return Budget(Fraction(MIN_CAPACITY_PERCENT, 100), MAX_UNAVAILABLE, MAX_SURGE)
    percent = said.min_capacity_percent
    return Budget(
        Fraction(MIN_CAPACITY_PERCENT if percent is None else percent, 100),
        MAX_UNAVAILABLE if said.max_unavailable is None else said.max_unavailable,
        MAX_SURGE if said.max_surge is None else said.max_surge,
    )
