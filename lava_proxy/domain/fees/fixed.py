"""Fixed rates: dollars per million tokens or characters, per minute or per request, whatever the provider costs."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import assert_never

from lava_proxy.domain.catalog import MICROSECONDS_PER_MINUTE, MeterVersion, TierType
from lava_proxy.domain.fees.charge_lines import NOTHING, Charge, ChargeLine, charge_of, span, split
from lava_proxy.domain.money import Nanos, round_half_even
from lava_proxy.domain.prices import SURCHARGED, Cost, microseconds
from lava_proxy.domain.usage import Usage

UNITS_PER_RATE: Mapping[TierType, int] = {
    "tokens_1m": 1_000_000,
    "characters_1m": 1_000_000,
    "minutes": MICROSECONDS_PER_MINUTE,
    "requests": 1,
}

_BY_THE_PIECE = (*SURCHARGED, "image_generation_calls")
_WHOLE_WORK = (
    "input_tokens", "output_tokens", "input_characters", "audio_seconds", "video_seconds", "predict_seconds", "images",
    "pages_processed", "search_units",
)  # fmt: skip


def fixed_units(meter: MeterVersion, usage: Usage) -> int:
    """How many of the meter's units a usage is: tokens, characters, microseconds or requests. Never negative."""
    match meter.tier_type:
        case "tokens_1m":
            output = max(0, usage.output_tokens)
            return output if meter.token_basis == "output" else output + max(0, usage.input_tokens)
        case "characters_1m":
            return max(0, usage.count("input_characters")) + max(0, usage.count("output_characters"))
        case "minutes":
            if "input_seconds" in usage.units or "output_seconds" in usage.units:
                return max(0, microseconds(usage, "input_seconds")) + max(0, microseconds(usage, "output_seconds"))
            return max(0, microseconds(usage, "audio_seconds")) + max(0, microseconds(usage, "video_seconds"))
        case "requests":
            return 1
        case _:
            assert_never(meter.tier_type)


def unseen_units(meter: MeterVersion, usage: Usage) -> tuple[str, ...]:
    """What a call used that this meter cannot count: tools billed by the piece, and all of it where none is in its unit.

    Characters beside tokens, or tokens beside seconds, are the same work told twice, so they are not named.
    """
    if meter.tier_type == "requests":
        return ()
    names = _BY_THE_PIECE if fixed_units(meter, usage) else (*_BY_THE_PIECE, *_WHOLE_WORK)
    units = usage.units
    return tuple(name for name in names if name in units and _is_used(units[name]))


def _is_used(value: object) -> bool:
    return isinstance(value, int | Decimal) and value > 0


def charge_fixed(meter: MeterVersion, usage: Usage, cost: Cost | None, position: int, byok: bool) -> Charge:
    """Units times the rate of the tier they fall in. The provider's cost and whose key was used make no difference."""
    units = fixed_units(meter, usage)
    if not units:
        return NOTHING
    if len(meter.tiers) == 1:  # nothing to split, and right at every position
        tier = meter.tiers[0]
        denominator = UNITS_PER_RATE[meter.tier_type]
        amount = Nanos(round_half_even(units * tier.rate, denominator))
        return Charge(
            amount_nanos=amount,
            units=units,
            breakdown=(ChargeLine(tier, units, units * tier.rate, amount),),
            denominator=denominator,
        )
    parts = [(tier, part, part * tier.rate) for tier, part in split(meter.tiers, position, units)]
    return charge_of(parts, UNITS_PER_RATE[meter.tier_type], units, span(meter.tiers, position, units))
