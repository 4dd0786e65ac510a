"""A charge and its lines, and the graduated split both rate types share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.money import Nanos, round_half_even

POSITION_MAX = 2**53 - 1  # counters live where Lua reads them as doubles


class ChargeLine(NamedTuple):
    """The units one tier priced: exactly numerator/denominator (of the charge) nano-USD, shown as `cost_nanos`."""

    tier: Tier
    units: int
    numerator: int
    cost_nanos: Nanos


class Charge(NamedTuple):
    """What the customer pays: `amount_nanos`, rounded once; the lines' `cost_nanos` sum to it.

    `units` is what the meter's counter grows by. While the counter before the call is within position_lo..position_hi
    (inclusive), this very charge is right; a script may apply it without computing anything.
    """

    amount_nanos: Nanos
    units: int
    breakdown: tuple[ChargeLine, ...] = ()
    denominator: int = 1
    position_lo: int = 0
    position_hi: int = POSITION_MAX


NOTHING = Charge(amount_nanos=Nanos(0), units=0)


def split(tiers: Sequence[Tier], position: int, units: int) -> list[tuple[Tier, int]]:
    """The parts of `units` by tier when the counter stands at `position`: graduated, ascending, none empty."""
    parts = []
    end = position + units
    for index, tier in enumerate(tiers):
        until = tiers[index + 1].start if index + 1 < len(tiers) else end
        part = min(end, until) - max(position, tier.start)
        if part > 0:
            parts.append((tier, part))
    return parts


def span(tiers: Sequence[Tier], position: int, units: int) -> tuple[int, int]:
    """The inclusive range of counters for which `units` are priced as at `position`.

    Within one tier: as far as the units still fit; across a boundary: this position alone.
    """
    for index in range(len(tiers) - 1, -1, -1):
        start = tiers[index].start
        if start <= position:
            if index + 1 == len(tiers):
                return start, POSITION_MAX
            hi = tiers[index + 1].start - max(units, 1)
            return (start, hi) if position <= hi else (position, position)
    raise AssertionError("the first tier starts at 0")


def charge_of(parts: Sequence[tuple[Tier, int, int]], denominator: int, units: int, position_range: tuple[int, int]) -> Charge:
    """A charge from (tier, units, exact numerator) parts.

    The amount is the rounded sum. A line shows how far the rounded running sum has moved, so lines are never negative,
    are within a nano of their exact part, sum to the amount, and the last one carries what is left.
    """
    lines, running, shown = [], 0, 0
    for tier, part_units, numerator in parts:
        running += numerator
        rounded = round_half_even(running, denominator)
        lines.append(ChargeLine(tier, part_units, numerator, Nanos(rounded - shown)))
        shown = rounded
    return Charge(
        amount_nanos=Nanos(shown),
        units=units,
        breakdown=tuple(lines),
        denominator=denominator,
        position_lo=position_range[0],
        position_hi=position_range[1],
    )
