"""Money is an integer count of nano-USD; decimal strings at the edges; rounding happens here and nowhere else.

$0.0028 per million tokens is 2.8 nanos a token, so micro-dollars are too coarse. A wallet, hold or credit is bounded by
AMOUNT_NANOS_MAX because Redis' Lua counts in doubles, exact to 2^53 nanos = $9,007,199.
"""

from __future__ import annotations

from decimal import Context, Decimal, InvalidOperation
from typing import NewType

Nanos = NewType("Nanos", int)

NANOS_PER_USD = 1_000_000_000
_PLACES_MAX = 40
_EXACT = Context(prec=100)
NANOS_PER_CENT = 10_000_000
AMOUNT_NANOS_MAX = Nanos(9_000_000 * NANOS_PER_USD)


def round_half_even(numerator: int, denominator: int) -> int:
    """The nearest integer to numerator/denominator, ties to even. The one rounding rule. Denominator > 0."""
    assert denominator > 0
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient & 1):
        return quotient + 1
    return quotient


def parse_decimal_units(text: str, units_per_one: int) -> int:
    """The exact integer count of 1/units_per_one in a plain decimal string such as "25.00".

    Raises ValueError when the text is not a plain decimal number or has more precision than a unit can hold.
    """
    if len(text) > 40 or not text.isascii() or "_" in text or text != text.strip():
        raise ValueError(f"not a decimal number: {text[:60]!r}")
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not a decimal number: {text[:60]!r}") from None
    if not value.is_finite():
        raise ValueError(f"not a finite number: {text!r}")
    if value.adjusted() > 18:
        raise ValueError(f"number too large: {text!r}")
    if value and value.adjusted() < -_PLACES_MAX:
        raise ValueError(f"more decimal places than can be kept exactly: {text!r}")
    # The usual 28 digits would round a long number to one that can be kept.
    scaled = _EXACT.multiply(value, units_per_one)
    integral = scaled.to_integral_value(context=_EXACT)
    if scaled != integral:
        raise ValueError(f"more decimal places than can be kept exactly: {text!r}")
    return int(integral)


def parse_usd(text: str) -> Nanos:
    """Nano-USD of a decimal dollar string, exact to 9 places. Raises ValueError otherwise."""
    return Nanos(parse_decimal_units(text, NANOS_PER_USD))


def format_usd(nanos: int, places: int = 10) -> str:
    """A decimal dollar string with `places` fraction digits (the wire contract's computed amounts have ten).

    Exact for places >= 9; fewer places round half-even.
    """
    if places >= 9:
        scaled = nanos * 10 ** (places - 9)
    else:
        scaled = round_half_even(nanos, 10 ** (9 - places))
    sign = "-" if scaled < 0 else ""
    digits = str(abs(scaled)).rjust(places + 1, "0")
    if places == 0:
        return sign + digits
    return f"{sign}{digits[:-places]}.{digits[-places:]}"


def nanos_of_cents(cents: int) -> Nanos:
    """What a card processor's amount is worth; exact."""
    return Nanos(cents * NANOS_PER_CENT)


def cents_of_nanos(nanos: int) -> int:
    """An amount in whole cents. Raises ValueError when it has a fraction of a cent: a card cannot be charged that."""
    cents, rest = divmod(nanos, NANOS_PER_CENT)
    if rest:
        raise ValueError(f"not a whole number of cents: {format_usd(nanos)}")
    return cents


def cents_covering(nanos: int) -> int:
    """The fewest whole cents that are not below an amount: what a card is charged to close a gap."""
    return -(-nanos // NANOS_PER_CENT)
