"""Dividing an amount among queues: guarantees first, then what is left by priority and weight.

Pure arithmetic on integers and fractions: the same claims give the same shares, to the last
thousandth, in whatever order they are given. A share is never more than was asked for, and the
shares never add up to more than there is plus the guarantees.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from spinney.scheduler.queues.model import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Claim:
    """What one queue brings to the division of one resource."""

    name: str
    quota: int
    """Guaranteed; `UNLIMITED` for all there is."""
    limit: int
    request: int
    """What its gangs use and want together."""
    weight: Fraction = Fraction(1)
    """0 takes no surplus."""
    priority: int = 0
    created: str = ""
    usage: Fraction = Fraction(0)
    """What it used in the past, as a share of the cluster; 0 where the past does not count."""

    @property
    def requestable(self) -> int:
        """What it asks for, as far as its limit goes."""
        return self.request if self.limit == UNLIMITED else min(self.limit, self.request)


def divide(
    total: int, claims: Sequence[Claim], *, unit: int = 1, history: Fraction = Fraction(0)
) -> dict[str, int]:
    """Return the share of each claim in *total*, by name.

    First everyone gets the smaller of quota and request. What is left goes to the highest
    priority until all of it are content, then to the next: in proportion to weight, less so
    for who used more than its weight in the past, by the factor *history*. Amounts that are
    divided come in whole multiples of *unit*; what that leaves at the end goes one by one, again
    by priority, to whom the fractions owe most.
    """
    shares = {}
    for claim in claims:
        quota = total if claim.quota == UNLIMITED else claim.quota
        shares[claim.name] = min(quota, claim.requestable)
    left = total - sum(shares.values())
    ordered = sorted(claims, key=lambda c: (-c.priority, c.created, c.name))
    buckets = [list(group) for _, group in itertools.groupby(ordered, key=lambda c: c.priority)]
    owed: dict[str, Fraction] = {}
    for bucket in buckets:
        left = _divide_bucket(left, bucket, shares, unit, history, owed)
    for bucket in buckets:
        left = _divide_rest(left, bucket, shares, unit, owed)
    return shares


def _divide_bucket(
    left: int,
    bucket: list[Claim],
    shares: dict[str, int],
    unit: int,
    history: Fraction,
    owed: dict[str, Fraction],
) -> int:
    """Divide *left* in rounds until nobody asks for less than falls to it; return what is left.

    *owed* is told the fractions that the last round did not give out.
    """
    again = True
    while left > 0 and again:
        hungry = [c for c in bucket if c.weight > 0 and shares[c.name] < c.requestable]
        slices = _slices(left, hungry, history)
        again = False
        for claim in hungry:
            lacks, due = claim.requestable - shares[claim.name], slices[claim.name]
            content = lacks <= due
            given = lacks if content else int(due // unit) * unit
            shares[claim.name] += given
            left -= given
            again |= content and lacks < due
            if content:
                owed.pop(claim.name, None)
            else:
                owed[claim.name] = due - given
    return left


def _slices(left: int, hungry: list[Claim], history: Fraction) -> dict[str, Fraction]:
    """Return what of *left* falls to each claim before rounding."""
    total = sum((c.weight for c in hungry), Fraction(0))
    scores: dict[str, Fraction] = {}
    for claim in hungry:
        weight = claim.weight / total
        scores[claim.name] = max(Fraction(0), weight + history * (weight - claim.usage))
    whole = sum(scores.values(), Fraction(0))
    if not whole:
        return {c.name: left * c.weight / total for c in hungry}
    return {name: left * score / whole for name, score in scores.items()}


def _divide_rest(
    left: int, bucket: list[Claim], shares: dict[str, int], unit: int, owed: dict[str, Fraction]
) -> int:
    turn = sorted(
        (c for c in bucket if c.name in owed), key=lambda c: (-owed[c.name], c.created, c.name)
    )
    for claim in turn:
        if left <= 0:
            break
        more = min(unit, left, claim.requestable - shares[claim.name])
        shares[claim.name] += more
        left -= more
    return left
