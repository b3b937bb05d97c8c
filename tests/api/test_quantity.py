"""Quantities and durations as numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinney.api.quantity import milli, parse_duration_s, parse_quantity
from spinney.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", "0"),
        ("2", "2"),
        ("500m", "0.5"),
        ("1.5Gi", "1610612736"),
        ("1Ki", "1024"),
        ("1k", "1000"),
        ("100n", "1e-7"),
        ("250u", "0.00025"),
        ("1E", "1e18"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("12e-1", "1.2"),
        (".5", "0.5"),
        ("5.", "5"),
        ("-2", "-2"),
        ("+2", "2"),
        ("1Ei", "1152921504606846976"),
        (3, "3"),
        (0.25, "0.25"),
    ],
)
def test_a_quantity_is_a_number(text: str | float, want: str) -> None:
    assert parse_quantity(text) == Decimal(want)


@pytest.mark.parametrize("text", ["", "x", "1mi", "1 Gi", "1KiB", "--1", "1e", "i", "0x10", "1,5"])
def test_what_is_no_quantity_is_bad_input(text: str) -> None:
    with pytest.raises(BadInputError, match="is no quantity"):
        parse_quantity(text)


def test_thousandths_are_rounded_up() -> None:
    assert [milli(text) for text in ("1", "250m", "0.0001", "1500u", "0")] == [1000, 250, 1, 2, 0]


@given(whole=st.integers(0, 10**6), suffix=st.sampled_from(["", "k", "Ki", "M", "Mi", "G", "Gi"]))
def test_whole_quantities_are_exact(whole: int, suffix: str) -> None:
    unit = int(parse_quantity(f"1{suffix}"))
    assert parse_quantity(f"{whole}{suffix}") == whole * unit
    assert milli(f"{whole}{suffix}") == whole * unit * 1000


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", 0),
        ("4h", 14400),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("-5s", -5),
        ("+5s", 5),
        ("1m0.5s", 60.5),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("7ns", 7e-9),
    ],
)
def test_a_duration_is_seconds(text: str, want: float) -> None:
    assert parse_duration_s(text) == pytest.approx(want)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "1h30", "1d", "h1", "-", "--5s", "+-5s"])
def test_what_is_no_duration_is_bad_input(text: str) -> None:
    with pytest.raises(BadInputError, match="is no duration"):
        parse_duration_s(text)
