"""How ages and other values look in the tables of ``kubectl get``."""

from __future__ import annotations

from spinney.clock import parse_rfc3339

UNKNOWN = "<unknown>"
NONE = "<none>"


def age(stamp: str | None, now: float) -> str:
    """Return how long ago *stamp* was, as kubectl writes it: ``12s``, ``5m30s``, ``3d4h``."""
    if not stamp:
        return UNKNOWN
    try:
        return duration(now - parse_rfc3339(stamp))
    except ValueError:
        return UNKNOWN


def duration(seconds_f: float) -> str:
    """Return a duration in at most two units, coarser the longer it is."""
    seconds = int(seconds_f)
    if seconds < 0:
        return "0s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    years = days // 365
    return _two(years, "y", days % 365, "d") if years < 8 else f"{years}y"


def _two(big: int, big_unit: str, small: int, small_unit: str) -> str:
    return f"{big}{big_unit}{small}{small_unit}" if small else f"{big}{big_unit}"
