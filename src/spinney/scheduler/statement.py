"""A log of tentative placements that can be taken back.

All of a gang's minimum is placed or nothing: the search places, looks, and rolls back to a
checkpoint. Rolling back restores the numbers exactly; they are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spinney.scheduler.gpu_share import SharedGpus
    from spinney.scheduler.session import PodClass
    from spinney.scheduler.shapes import PodInfo

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Pods of one class put on nodes."""

    cls: PodClass
    pods: tuple[PodInfo, ...]
    rows: NDArray[np.int64]
    """The node of each pod."""


class Statement:
    """Placements over *idle*, which it changes in place.

    Room that is kept for a gang is taken of *coming*, what pods hold that are leaving, as far as
    that goes: the gang has to wait for it anyway, and what is idle may serve others meanwhile.
    """

    def __init__(
        self,
        idle: NDArray[np.int64],
        shares: SharedGpus | None = None,
        coming: NDArray[np.int64] | None = None,
    ) -> None:
        self.idle = idle
        self.coming = np.zeros_like(idle) if coming is None else coming
        self.shares = shares
        """The GPUs that pods share, changed along with *idle*."""
        self.placements: list[Placement] = []
        self.touched: list[NDArray[np.int64]] = []
        """Nodes changed, by placing or by rolling back, in order; it only grows."""
        self.node_of: dict[str, int] = {}
        """Pod key to node, for the pods placed."""
        self.held: dict[str, tuple[Placement, ...]] = {}
        """By gang: room that is kept for it; its pods are not placed by this."""
        self.kept_for: dict[str, int] = {}
        """Pod key to the node on which room is kept for it."""
        self._lent: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
        """By gang: what of its room is not idle yet, by node."""
        self.fingerprint = 0
        """Equal for equal states, however reached; other states almost surely have another one."""
        self._salt = _salts(len(idle))

    def checkpoint(self) -> int:
        """Return where the log is now."""
        return len(self.placements)

    def place(self, cls: PodClass, pods: tuple[PodInfo, ...], rows: NDArray[np.int64]) -> None:
        """Put each pod on the node of the same position in *rows*."""
        self.placements.append(Placement(cls, pods, rows))
        self._apply(cls, rows, 1)
        self.node_of.update((pod.key, row) for pod, row in zip(pods, rows.tolist(), strict=True))

    def rollback(self, checkpoint: int) -> None:
        """Take back everything since *checkpoint*."""
        while len(self.placements) > checkpoint:
            last = self.placements.pop()
            self._apply(last.cls, last.rows, -1)
            for pod in last.pods:
                del self.node_of[pod.key]

    def hold(self, gang: str, placements: tuple[Placement, ...]) -> None:
        """Keep the room of *placements* for *gang*, on top of what is kept for it already."""
        lent = self._lent.setdefault(gang, [])
        for placement in placements:
            self._apply(placement.cls, placement.rows, 1, held=True)
            rows = placement.rows.tolist()
            self.kept_for.update((p.key, row) for p, row in zip(placement.pods, rows, strict=True))
            for row in rows:
                part = np.minimum(placement.cls.vector, np.maximum(self.coming[row], 0))
                if part.any():
                    lent.append((row, part))
                    self.coming[row] -= part
                    self.idle[row] += part
        self.held[gang] = (*self.held.get(gang, ()), *placements)

    def release(self, gang: str) -> tuple[Placement, ...]:
        """Let go of the room that is kept for *gang*, and return what that was."""
        released = self.held.pop(gang, ())
        for placement in released:
            self._apply(placement.cls, placement.rows, -1, held=True)
            for pod in placement.pods:
                self.kept_for.pop(pod.key, None)
        for row, part in self._lent.pop(gang, ()):
            self.coming[row] += part
            self.idle[row] -= part
        return released

    def take_out(self, checkpoint: int) -> tuple[Placement, ...]:
        """Take back everything since *checkpoint* and return it."""
        taken = tuple(self.placements[checkpoint:])
        self.rollback(checkpoint)
        return taken

    def _apply(
        self, cls: PodClass, rows: NDArray[np.int64], sign: int, *, held: bool = False
    ) -> None:
        np.subtract.at(self.idle, rows, cls.vector * sign)
        if cls.shape.share is not None and self.shares is not None:
            self.shares.change(cls, rows, sign, held=held)
        self.touched.append(rows)
        change = int(self._salt[rows].sum(dtype=np.uint64)) * cls.salt
        self.fingerprint = (self.fingerprint + sign * change) & _MASK


def _salts(count: int) -> NDArray[np.uint64]:
    """Return *count* well-mixed numbers (splitmix64), the same ones every time."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
