"""Percentage rates: the provider's cost plus a share of it; tiers are thresholds on cumulative provider cost."""

from __future__ import annotations

from lava_proxy.domain.catalog import MeterVersion
from lava_proxy.domain.fees.charge_lines import NOTHING, Charge, charge_of, span, split
from lava_proxy.domain.prices import Cost
from lava_proxy.domain.usage import Usage

PPM = 1_000_000


def charge_percentage(meter: MeterVersion, usage: Usage, cost: Cost | None, position: int, byok: bool) -> Charge:
    """cost x (1 + rate), or cost x rate when the customer already paid the provider with their own key.

    The counter grows by the cost rounded to nanos; the amount is computed from the exact cost. Raises ValueError when
    the cost is not known.
    """
    if cost is None:
        raise ValueError("a percentage meter needs the provider's cost, which is not known")
    if not cost.numerator:
        return NOTHING
    passed_on = 0 if byok else PPM
    if cost.nanos:
        pieces = split(meter.tiers, position, cost.nanos)
    else:
        # Less than half a nano: it moves no counter, but a share of it may still round to something.
        pieces = [(next(tier for tier in reversed(meter.tiers) if tier.start <= position), 0)]
    parts, left = [], cost.numerator
    for index, (tier, nanos) in enumerate(pieces):
        # Boundaries are whole nanos, so all pieces but the last are exact; the last one takes the fraction.
        piece = left if index + 1 == len(pieces) else nanos * cost.denominator
        left -= piece
        parts.append((tier, nanos, piece * (passed_on + tier.rate)))
    return charge_of(parts, cost.denominator * PPM, cost.nanos, span(meter.tiers, position, cost.nanos))
