"""What the merchant's customer pays: `charge(meter, usage, cost, position)`. One file a rate type, the table is here.

Read charge_lines.py for the values and the graduated split, fixed.py and percentage.py for the two rate types,
tier_text.py for tiers as the wire spells them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from lava_proxy.domain.catalog import MeterVersion, RateType, Tier
from lava_proxy.domain.fees.charge_lines import NOTHING, POSITION_MAX, Charge, ChargeLine
from lava_proxy.domain.fees.fixed import charge_fixed, fixed_units, unseen_units
from lava_proxy.domain.fees.percentage import charge_percentage
from lava_proxy.domain.fees.tier_text import format_tier, parse_tiers
from lava_proxy.domain.money import Nanos
from lava_proxy.domain.prices import Cost
from lava_proxy.domain.usage import Usage

__all__ = [
    "NOTHING",
    "POSITION_MAX",
    "Charge",
    "ChargeLine",
    "ceiling_charge",
    "charge",
    "fixed_units",
    "format_tier",
    "parse_tiers",
    "unseen_units",
]

_BY_RATE_TYPE: Mapping[RateType, Callable[[MeterVersion, Usage, Cost | None, int, bool], Charge]] = {
    "fixed": charge_fixed,
    "percentage": charge_percentage,
}


def charge(
    meter: MeterVersion | None,
    usage: Usage,
    cost: Cost | None,
    position: int,
    *,
    byok: bool = False,
    billable: bool = True,
) -> Charge:
    """What one call is charged. A pure function of its arguments: the same row re-rates to the same amount.

    `position` is the meter's counter before this call (see Tier for its unit). Without a meter the wallet pays the
    provider's cost, nothing when the caller brought the provider's key. Not billable: nothing, whatever the unit.
    Raises ValueError when a provider cost is needed and None.
    """
    assert 0 <= position <= POSITION_MAX
    if not billable:
        return NOTHING
    if meter is None:
        return _provider_cost(cost, byok)
    return _BY_RATE_TYPE[meter.rate_type](meter, usage, cost, position, byok)


def ceiling_charge(
    meter: MeterVersion | None,
    usage_ceiling: Usage,
    cost_ceiling: Cost | None,
    position: int,
    *,
    byok: bool = False,
) -> Nanos:
    """The most a call within its ceilings can be charged, for its hold.

    Other calls move the counter while this one is in flight, so every unit is priced at the dearest tier from
    `position` on. (A cycle that ends meanwhile starts again at the first tier; if that one is dearer, the settle takes
    the difference.) Raises ValueError when a provider cost is needed and None.
    """
    if meter is None:
        return _provider_cost(cost_ceiling, byok).amount_nanos
    ends = [tier.start for tier in meter.tiers[1:]] + [POSITION_MAX + 1]
    dearest = max(tier.rate for tier, end in zip(meter.tiers, ends, strict=True) if end > position)
    flat = replace(meter, tiers=(Tier(start=0, rate=dearest),))
    return charge(flat, usage_ceiling, cost_ceiling, 0, byok=byok).amount_nanos


def _provider_cost(cost: Cost | None, byok: bool) -> Charge:
    if byok:
        return NOTHING
    if cost is None:
        raise ValueError("without a meter the charge is the provider's cost, which is not known")
    return Charge(amount_nanos=cost.nanos, units=0, denominator=cost.denominator)
