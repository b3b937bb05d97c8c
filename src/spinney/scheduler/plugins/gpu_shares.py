"""Parts of GPUs: which nodes have room for one more sharer, and which had better take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinney.scheduler.plugins import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spinney.scheduler.session import PodClass, Session


class GpuShares:
    """A part of a GPU has to be left on a shared one, or a whole one to share."""

    name = "gpu-shares"

    def room(self, session: Session, cls: PodClass, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many more sharers each node takes."""
        if cls.shape.share is None:
            return np.full(len(rows), UNBOUNDED)
        return session.shares.room(cls.shape.share, rows)

    def reasons(self, session: Session, cls: PodClass) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the one reason there is."""
        if cls.shape.share is not None:
            what = "without that part of a GPU free"
            yield what, self.room(session, cls, session.layout.rows) == 0


class GpuSharing:
    """Prefers nodes with room on GPUs that are shared already."""

    name = "gpu-sharing"

    def score(
        self, session: Session, cls: PodClass, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return 1 for nodes on which no whole GPU has to be broken up."""
        if cls.shape.share is None:
            return np.zeros(len(rows))
        return session.shares.has_room_shared(cls.shape.share, rows).astype(np.float64)
