"""Disruption budgets, as far as a cycle has to know them before it asks anybody to leave.

Gangs that only move, for the good of others, do not move where a budget forbids it. Who has to
leave, by share or priority, leaves in any case; but of equals those go first whom no budget
protects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.errors import BadInputError
from spinney.scheduler.affinity import Expression, label_selector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spinney.api.policy import PodDisruptionBudget
    from spinney.scheduler.session import Session
    from spinney.scheduler.shapes import PodInfo


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget."""

    key: str
    """``namespace/name``."""
    selector: tuple[Expression, ...]
    """Empty: all pods of the namespace."""
    needed: int | str | None = None
    """Pods that have to run, or a percentage of all."""
    spared: int | str = 1
    """Pods that may be missing, where *needed* is not given."""

    def covers(self, pod: PodInfo) -> bool:
        """Tell whether *pod* counts."""
        if pod.namespace != self.key.partition("/")[0]:
            return False
        return all(expression.matches(pod.labels) for expression in self.selector)


def budget_of(found: PodDisruptionBudget) -> Budget:
    """Return *found* as the scheduler sees it; raise BadInputError for an amount that is none."""
    spec = found.spec
    spared = 1 if spec.max_unavailable is None else spec.max_unavailable
    for amount in (spec.min_available, spared):
        if isinstance(amount, str) and not amount.removesuffix("%").isdecimal():
            raise BadInputError(f"disruption budget {found.key}: {amount!r} is no number of pods")
    return Budget(found.key, label_selector(spec.selector), spec.min_available, spared)


def _amount(value: int | str, of: int) -> int:
    """Return a number of pods; a percentage is rounded up."""
    if isinstance(value, int):
        return value
    number = int(value.removesuffix("%"))
    return -(-number * of // 100) if value.endswith("%") else number


class Budgets:
    """What budgets still allow in one cycle."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._left: dict[str, int] = {}
        """By budget; without what this cycle displaces."""

    def allow(self, pods: Iterable[PodInfo]) -> bool:
        """Tell whether all of *pods* may leave, beside those that this cycle displaces already."""
        budgets = self._session.snapshot.budgets
        if not budgets:
            return True
        leaving = list(pods)
        gone = [self._session.snapshot.pods.get(key) for key in self._session.displaced]
        for budget in budgets:
            mine = sum(budget.covers(pod) for pod in leaving)
            if not mine:
                continue
            before = sum(pod is not None and budget.covers(pod) for pod in gone)
            if mine + before > self._allowed(budget):
                return False
        return True

    def _allowed(self, budget: Budget) -> int:
        known = self._left.get(budget.key)
        if known is not None:
            return known
        pods = [pod for pod in self._session.snapshot.pods.values() if pod.state != "ended"]
        covered = [pod for pod in pods if budget.covers(pod)]
        running = sum(pod.state == "active" for pod in covered)
        if budget.needed is not None:
            needed = _amount(budget.needed, len(covered))
        else:
            needed = len(covered) - _amount(budget.spared, len(covered))
        found = self._left[budget.key] = max(0, running - needed)
        return found
