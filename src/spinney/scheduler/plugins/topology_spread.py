"""Topology spread constraints: pods of a kind evenly over the domains of a label.

A domain may take one more pod while it then has at most ``maxSkew`` more than the emptiest domain.
Domains without any node the pod could be on do not count, unless the constraint says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.plugins import UNBOUNDED
from spinney.scheduler.plugins.node_filters import NodeAffinity, Taints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.affinity import Spread
    from spinney.scheduler.session import PodClass, Session

_AFFINITY, _TAINTS = NodeAffinity(), Taints()


class TopologySpread:
    """The constraints that are rules."""

    name = "topology-spread"

    def room(self, session: Session, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return UNBOUNDED where the rules hold for one more pod, 0 elsewhere."""
        blocked = np.zeros(len(session.layout), np.bool_)
        for spread in cls.shape.spread:
            if spread.hard:
                blocked |= _uneven(session, cls, spread)
        return np.where(blocked[rows], np.int64(0), UNBOUNDED)

    def reasons(self, session: Session, cls: PodClass) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield one reason for each rule."""
        for spread in cls.shape.spread:
            if spread.hard:
                key = spread.term.topology_key
                yield f"excluded by the spread over {key}", _uneven(session, cls, spread)


class SpreadScore:
    """The constraints that are preferences: domains with fewer pods are better."""

    name = "topology-spread"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return 1 for nodes in the emptiest domains, 0 for those in the fullest or in none."""
        total, soft = np.zeros(len(rows)), 0
        for spread in cls.shape.spread:
            if spread.hard:
                continue
            codes = session.layout.domains(spread.term.topology_key).codes
            counts = _counts(session, spread, np.ones(len(codes), np.bool_))
            most = max(1, int(counts.max(initial=0)))
            mine = codes[rows]
            total += np.where(mine >= 0, 1.0 - counts[np.maximum(mine, 0)] / most, 0.0)
            soft += 1
        return total / max(1, soft)


def _uneven(session: Session, cls: PodClass, spread: Spread) -> NDArray[np.bool_]:
    """Return the nodes on which one more pod would make the skew too large."""
    layout = session.layout
    codes = layout.domains(spread.term.topology_key).codes
    eligible = codes >= 0
    if spread.honors_affinity:
        eligible &= _AFFINITY.allows(layout, cls.shape)
    if spread.honors_taints:
        eligible &= _TAINTS.allows(layout, cls.shape)
    counts = _counts(session, spread, eligible)
    domains = np.unique(codes[eligible])
    if not len(domains):
        return np.ones(len(codes), np.bool_)
    fewest = 0 if len(domains) < spread.min_domains else int(counts[domains].min())
    own = int(spread.term.matches(cls.namespace, cls.labels_map))
    full = counts + own - fewest > spread.max_skew
    return (codes < 0) | full[np.maximum(codes, 0)]


def _counts(session: Session, spread: Spread, eligible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many of the pods that count are in each domain."""
    domains = session.layout.domains(spread.term.topology_key)
    rows = [row for row in session.rows_matching(spread.term) if eligible[row]]
    codes = domains.codes[rows]
    return np.bincount(codes[codes >= 0], minlength=max(1, len(domains)))
