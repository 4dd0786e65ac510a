"""domain/money.py: decimal strings in and out, and the one rounding rule."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.money import (
    cents_covering,
    cents_of_nanos,
    format_usd,
    nanos_of_cents,
    parse_decimal_units,
    parse_usd,
    round_half_even,
)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("25.00", 25_000_000_000),
        ("0.000000001", 1),
        ("-1.5", -1_500_000_000),
        ("1e-9", 1),
        ("9000000", 9_000_000 * 10**9),
    ],
)
def test_dollars_are_read_exactly(text: str, nanos: int) -> None:
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1_000",
        "abc",
        "1,5",
        "NaN",
        "Infinity",
        "-Infinity",
        "0.0000000001",
        "1e19",
        "1e999999999",
        "1e-999999999",
        "1.00000000000000000000000000000000001",
        "0x10",
        "\u0663",
        "1" * 41,
    ],
)
def test_what_is_no_plain_exact_amount_is_refused(text: str) -> None:
    """111, 113: nothing is truncated, nothing guessed."""
    with pytest.raises(ValueError):
        parse_usd(text)


@given(numerator=st.integers(-(10**30), 10**30), denominator=st.integers(1, 10**20))
def test_rounding_is_to_the_nearest_and_ties_go_to_the_even_one(numerator: int, denominator: int) -> None:
    """111: one pinned mode."""
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(nanos=st.integers(-(10**18), 10**18), places=st.integers(9, 12))
def test_what_is_written_with_nine_places_or_more_is_read_back(nanos: int, places: int) -> None:
    text = format_usd(nanos, places)
    assert parse_decimal_units(text, 10**9) == nanos
    assert len(text.partition(".")[2]) == places


@pytest.mark.parametrize(
    ("nanos", "places", "text"),
    [(0, 10, "0.0000000000"), (-1, 10, "-0.0000000010"), (1_500_000_000, 0, "2"), (2_500_000_000, 0, "2"), (25_000_000, 2, "0.02"),
     (-5_000_000_000, 2, "-5.00"), (999_999_999, 2, "1.00")],
)  # fmt: skip
def test_amounts_are_written_as_plain_decimals(nanos: int, places: int, text: str) -> None:
    assert format_usd(nanos, places) == text


@given(st.integers(-(10**12), 10**12))
def test_cents_are_exact_both_ways_and_cover_what_they_must(nanos: int) -> None:
    """60: the fewest cents that close a gap."""
    cents = cents_covering(nanos)
    assert nanos_of_cents(cents) >= nanos > nanos_of_cents(cents - 1)
    assert cents_of_nanos(nanos_of_cents(cents)) == cents
    if nanos % 10_000_000:
        with pytest.raises(ValueError, match="whole number of cents"):
            cents_of_nanos(nanos)
