"""What a gang says about time: how patient it is, and how patient others are with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spinney.api.quantity import parse_duration_s
from spinney.api.queue import PREEMPTION_DELAY, STALE_SINCE, STALENESS_GRACE
from spinney.clock import parse_rfc3339
from spinney.errors import BadInputError
from spinney.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

log = get_logger("scheduler")


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one gang."""

    stale_grace_s: float | None = None
    """How long it may run below its minimum, negative for ever; None: as configured."""
    stale_since_s: float | None = None
    """Since when it runs below its minimum, where another scheduler wrote that down."""
    preemption_delay_s: float = 0.0
    """How long it waits before others are displaced for it."""


UNSAID = Timing()


def timing_of(
    gang: str,
    annotations: Mapping[str, str],
    *,
    stale_grace: str | None = None,
    preemption_delay: str | None = None,
) -> Timing:
    """Return the times of *gang*; what its object's fields say wins over annotations.

    A time that is none is left out, and logged.
    """
    grace = _seconds(gang, stale_grace or annotations.get(STALENESS_GRACE, ""))
    delay = _seconds(gang, preemption_delay or annotations.get(PREEMPTION_DELAY, ""))
    return Timing(grace, _moment(gang, annotations.get(STALE_SINCE, "")), delay or 0.0)


def _seconds(gang: str, text: str) -> float | None:
    if not text:
        return None
    sign = -1.0 if text.startswith("-") else 1.0
    try:
        return sign * parse_duration_s(text.removeprefix("-"))
    except BadInputError as error:
        log.warning("duration is left out", gang=gang, error=str(error))
        return None


def _moment(gang: str, text: str) -> float | None:
    if not text:
        return None
    try:
        return parse_rfc3339(text)
    except ValueError as error:
        log.warning("time is left out", gang=gang, error=str(error))
        return None
