"""Inter-pod affinity and anti-affinity, required and preferred.

Required terms hold in both directions: a pod stays away from pods that its own terms exclude,
and from pods whose terms exclude it. A pod whose affinity term matches itself may be the first
one anywhere, as long as no matching pod exists yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.plugins import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.affinity import PodTerm
    from spinney.scheduler.session import PodClass, Session


class PodAffinity:
    """The required terms."""

    name = "pod-affinity"

    def room(self, session: Session, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return UNBOUNDED where the terms hold for one more pod, 0 elsewhere."""
        if not session.coupled(cls):
            return np.full(len(rows), UNBOUNDED)
        blocked = self._lonely(session, cls) | self._kept_away(session, cls)
        return np.where(blocked[rows], np.int64(0), UNBOUNDED)

    def reasons(self, session: Session, cls: PodClass) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield one reason for affinity and one for anti-affinity."""
        if session.coupled(cls):
            yield "not matching pod affinity", self._lonely(session, cls)
            yield "excluded by pod anti-affinity", self._kept_away(session, cls)

    @staticmethod
    def _lonely(session: Session, cls: PodClass) -> NDArray[np.bool_]:
        blocked = np.zeros(len(session.layout), np.bool_)
        for term in cls.shape.pod_affinity:
            rows = list(session.rows_matching(term))
            codes = session.layout.domains(term.topology_key).codes
            if not rows and term.matches(cls.namespace, cls.labels_map):
                blocked |= codes < 0
            else:
                blocked |= ~_same_domain(codes, rows)
        return blocked

    @staticmethod
    def _kept_away(session: Session, cls: PodClass) -> NDArray[np.bool_]:
        blocked = np.zeros(len(session.layout), np.bool_)
        for term in cls.shape.pod_anti_affinity:
            codes = session.layout.domains(term.topology_key).codes
            blocked |= _same_domain(codes, session.rows_matching(term))
        against: dict[PodTerm, list[int]] = {}
        for term, row in session.excluding(cls):
            against.setdefault(term, []).append(row)
        for term, rows in against.items():
            blocked |= _same_domain(session.layout.domains(term.topology_key).codes, rows)
        return blocked


def _same_domain(codes: NDArray[np.int64], rows: Iterable[int]) -> NDArray[np.bool_]:
    """Return which nodes share a domain with one of *rows*."""
    found = {int(codes[row]) for row in rows} - {-1}
    return np.isin(codes, sorted(found))


def preference(session: Session, cls: PodClass) -> NDArray[np.float64]:
    """Return the sum of weights of the preferred pod terms that hold, for each node."""
    total = np.zeros(len(session.layout))
    for weight, term in cls.shape.pod_preferred:
        codes = session.layout.domains(term.topology_key).codes
        total += weight * _same_domain(codes, session.rows_matching(term))
    return total
