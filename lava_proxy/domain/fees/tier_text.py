"""Tiers as the wire spells them: `start` counts whole tokens, characters, minutes, requests or dollars; `rate` is text.

A rate is dollars per 1,000,000 tokens or characters, per minute, per request; "20" of a percentage meter is 20 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from lava_proxy.domain.catalog import MICROSECONDS_PER_MINUTE, PPM_PER_PERCENT, RateType, Tier, TierType
from lava_proxy.domain.fees.charge_lines import POSITION_MAX
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, NANOS_PER_USD, format_usd, parse_decimal_units

TIERS_MAX = 100
PERCENT_MAX = 10_000  # a hundred times the cost; more is a rate typed in the wrong unit


def parse_tiers(rate_type: RateType, tier_type: TierType, raw: object) -> tuple[Tier, ...]:
    """Tiers from a request's `tiers`: a list of {"start", "rate"}, each text, int or Decimal.

    Raises ValueError with a sentence that names the field.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        raise ValueError("tiers must be a list of at least one object with start and rate")
    if len(raw) > TIERS_MAX:
        raise ValueError(f"tiers has {len(raw)} entries; at most {TIERS_MAX} are accepted")
    tiers = tuple(_parse_tier(rate_type, tier_type, index, item) for index, item in enumerate(raw))
    if tiers[0].start != 0:
        raise ValueError('tiers[0].start must be "0"')
    for index in range(1, len(tiers)):
        if tiers[index].start <= tiers[index - 1].start:
            raise ValueError(f"tiers[{index}].start must be greater than the start before it")
    return tiers


def format_tier(rate_type: RateType, tier_type: TierType, tier: Tier) -> dict[str, Any]:
    """{"start": int, "rate": decimal text, "type"}: what parse_tiers reads back to the same tier."""
    start = tier.start // _units_per_start(rate_type, tier_type)
    return {"start": start, "rate": _rate_text(rate_type, tier.rate), "type": tier_type}


def _rate_text(rate_type: RateType, rate: int) -> str:
    text = format_usd(rate, 9) if rate_type == "fixed" else format_usd(rate * (NANOS_PER_USD // PPM_PER_PERCENT), 9)
    return text.rstrip("0").rstrip(".")


def _units_per_start(rate_type: RateType, tier_type: TierType) -> int:
    if rate_type == "percentage":
        return NANOS_PER_USD
    return MICROSECONDS_PER_MINUTE if tier_type == "minutes" else 1


def _parse_tier(rate_type: RateType, tier_type: TierType, index: int, item: object) -> Tier:
    if not isinstance(item, Mapping):
        raise ValueError(f"tiers[{index}] must be an object with start and rate")
    start = _number(item.get("start"), f"tiers[{index}].start", 1)
    start *= _units_per_start(rate_type, tier_type)
    if not 0 <= start <= POSITION_MAX:
        raise ValueError(f"tiers[{index}].start must be between 0 and what a counter can hold")
    rate = _number(item.get("rate"), f"tiers[{index}].rate", NANOS_PER_USD if rate_type == "fixed" else PPM_PER_PERCENT)
    if rate < 0:
        raise ValueError(f"tiers[{index}].rate must not be negative")
    if rate > (AMOUNT_NANOS_MAX if rate_type == "fixed" else PERCENT_MAX * PPM_PER_PERCENT):
        raise ValueError(f"tiers[{index}].rate is too large")
    return Tier(start=start, rate=rate)


def _number(value: object, name: str, units_per_one: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise ValueError(f"{name} must be a decimal number in a string")
    try:
        # Never spelt out: 1e999999999 would take a gigabyte.
        return parse_decimal_units(value if isinstance(value, str) else str(value), units_per_one)
    except ValueError as error:
        kind = "a whole number" if units_per_one == 1 else "a decimal number"
        raise ValueError(f"{name} must be {kind}: {error}") from None
