"""Measured values over two axes, read between and beyond the points that were measured.

Between points a value is bilinear; beyond the last point of an axis the last slope goes on, and
before the first point the first value holds. Invariant: where the points never fall along an axis,
values between them do not either; far beyond them, lines of different slope may cross.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from spinney.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Grid:
    """``values[i][j]`` was measured at ``xs[i]``, ``ys[j]``; both axes rise strictly."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Raise BadInputError where axes and values do not fit each other."""
        for axis in (self.xs, self.ys):
            if not axis or any(a >= b for a, b in pairwise(axis)):
                raise BadInputError(f"the axis {list(axis)} of a profile has to rise strictly")
        if len(self.values) != len(self.xs) or any(len(r) != len(self.ys) for r in self.values):
            raise BadInputError(
                f"a profile's grid has {len(self.xs)} × {len(self.ys)} points by its axes; "
                f"give so many values, one row per point of the first axis"
            )
        if any(value < 0 for row in self.values for value in row):
            raise BadInputError("a profile's times are not negative")

    def at(self, x: float, y: float) -> float:
        """Return the value at (*x*, *y*); never negative."""
        i, u = _place(self.xs, x)
        j, v = _place(self.ys, y)
        low = self._along(i, j, v)
        if not u:
            return max(0.0, low)
        return max(0.0, low + u * (self._along(i + 1, j, v) - low))

    def _along(self, i: int, j: int, v: float) -> float:
        row = self.values[i]
        return row[j] if not v else row[j] + v * (row[j + 1] - row[j])

    def rising(self) -> Grid:
        """Return this grid with noise taken out: no value is below one before it."""
        best: list[tuple[float, ...]] = []
        for row in self.values:
            smooth: list[float] = []
            for j, value in enumerate(row):
                before = smooth[j - 1] if j else 0.0
                above = best[-1][j] if best else 0.0
                smooth.append(max(value, before, above))
            best.append(tuple(smooth))
        return Grid(self.xs, self.ys, tuple(best))


def _place(axis: tuple[float, ...], x: float) -> tuple[int, float]:
    """Return the point before *x* and how far *x* is to the next; over 1 beyond the axis."""
    if len(axis) == 1 or x <= axis[0]:
        return 0, 0.0
    i = min(bisect_right(axis, x) - 1, len(axis) - 2)
    return i, (x - axis[i]) / (axis[i + 1] - axis[i])
