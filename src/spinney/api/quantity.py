"""Quantities (``500m``, ``1.5Gi``) and durations (``1h30m``) as numbers."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from spinney.errors import BadInputError

_FACTORS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
_QUANTITY = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([numkKMGTPE]?i?)$")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_quantity(value: str | int | float) -> Decimal:
    """Return the number *value* stands for; raise BadInputError if it is no quantity."""
    if not isinstance(value, str):
        return Decimal(str(value))
    found = _QUANTITY.match(value.strip())
    if found is None or found[2] not in _FACTORS:
        raise BadInputError(f"{value!r} is no quantity; write a number such as 2, 500m or 1.5Gi")
    try:
        return Decimal(found[1]) * _FACTORS[found[2]]
    except InvalidOperation as error:
        raise BadInputError(f"{value!r} is no quantity") from error


def milli(value: str | int | float) -> int:
    """Return *value* in thousandths, rounded up: the exact integer arithmetic of scheduling."""
    return int((parse_quantity(value) * 1000).to_integral_value(rounding="ROUND_CEILING"))


def parse_duration_s(text: str) -> float:
    """Return the seconds in a Go duration such as ``4h``, ``1h30m`` or ``250ms``."""
    negative = text.startswith("-")
    body = text[1:] if text[:1] in ("+", "-") else text
    parts = _DURATION_PART.findall(body)
    if body != "0" and (not parts or "".join(n + u for n, u in parts) != body):
        raise BadInputError(f"{text!r} is no duration; write one such as 30s, 10m or 1h30m")
    total = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return -total if negative else total
