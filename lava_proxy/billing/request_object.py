"""A stored request as answers show it: the newest vocabulary plus the keys older clients read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from lava_proxy.domain.catalog import MeterVersion, Tier
from lava_proxy.domain.fees import format_tier
from lava_proxy.domain.money import format_usd

MICROSECONDS_PER_SECOND = 1_000_000

_usd = lru_cache(maxsize=4096)(format_usd)  # one object shows the same amount in several places
_ZERO = format_usd(0)


def timestamp(at: datetime) -> str:
    """ISO 8601 in UTC to the second, such as 2026-01-31T08:35:42Z."""
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    return f"{utc.year:04d}-{utc.month:02d}-{utc.day:02d}T{utc.hour:02d}:{utc.minute:02d}:{utc.second:02d}Z"


def seconds(microseconds: int) -> int | Decimal:
    """Exact seconds: a whole number where it is one."""
    whole, rest = divmod(microseconds, MICROSECONDS_PER_SECOND)
    return whole if not rest else (Decimal(microseconds) / MICROSECONDS_PER_SECOND).normalize()


def request_object(row: Mapping[str, Any], version: MeterVersion | None) -> dict[str, Any]:
    """The Request of a ledger row; `version` is the meter version the row names, None when it was charged without a meter.

    A report shows the id that its caller chose.

    Amounts are decimal dollars with ten places. `usage` is what the provider reported (or what was estimated, by
    `provenance`), unchanged. Keys that a request does not have (a model, a customer) are absent, not null.
    """
    charge = {
        "amount": _usd(row["charge_nanos"]),
        "rate_type": version.rate_type if version else None,
        "breakdown": _breakdown(row, version),
    }
    return {
        "request_id": row.get("request_key") or row["request_id"],
        "status": row["status"],
        **_present(row, version),
        "provider": row["provider"],
        "provider_key_type": row["provider_key_type"],
        "endpoint": row["endpoint"],
        "model_usage": _model_usage(row, version),
        "cost": _usd(row["cost_nanos"]),
        "charge": charge,
        "metadata": row["metadata"] or {},
        "timestamp": timestamp(row["completed_at"]),
        "created_at": timestamp(row["created_at"]),
        "outcome": row["outcome"],
        "provenance": row["provenance"],
        "billed": row["billed"],
        "usage": row["usage"],
        "flags": row["flags"],
        "http_status": row["http_status"],
        "streamed": row["streamed"],
        "service_tier": row["service_tier"],
        "price_version": row["price_version"],
        "timings": row["timings"],
        **_legacy(row, version, charge),
    }


def _present(row: Mapping[str, Any], version: MeterVersion | None) -> dict[str, Any]:
    """The optional keys, by all their names."""
    optional = {
        "customer_id": row["connection_id"],
        "connection_id": row["connection_id"],
        "meter_id": row["meter_id"],
        "meter_slug": version.slug if version else None,
        "product_id": row["meter_id"],
        "model": row["model"],
        "response_id": row["response_id"],
        "spend_key_id": row["spend_key_id"],
    }
    return {key: value for key, value in optional.items() if value is not None}


def _model_usage(row: Mapping[str, Any], version: MeterVersion | None) -> dict[str, Any]:
    """Tokens, characters and seconds, zero where the provider reported none. The cost is not split by direction."""
    usage = row["usage"]
    input_seconds, output_seconds = _amount(usage, "input_seconds"), _amount(usage, "output_seconds")
    if not input_seconds and not output_seconds:
        # Providers report the length of one recording: heard by a transcription, made by a speech call.
        if row["api"] == "speech":
            output_seconds = _amount(usage, "audio_seconds")
        else:
            input_seconds = _amount(usage, "audio_seconds")
    found: dict[str, Any] = {}
    for unit in ("tokens", "characters"):
        found[f"input_{unit}"] = _amount(usage, f"input_{unit}")
        found[f"output_{unit}"] = _amount(usage, f"output_{unit}")
        found[f"total_{unit}"] = found[f"input_{unit}"] + found[f"output_{unit}"]
    found |= {"input_seconds": input_seconds, "output_seconds": output_seconds, "total_seconds": input_seconds + output_seconds}
    found |= {"input_cost": _ZERO, "output_cost": _ZERO, "total_cost": _usd(row["cost_nanos"])}
    return found | {"payer": "wallet" if _is_cost_passed_on(row, version) and row["connection_id"] else "merchant"}


def _amount(usage: Mapping[str, Any], unit: str) -> int | Decimal:
    value = usage.get(unit, 0)
    return value if isinstance(value, int | Decimal) else 0


def _breakdown(row: Mapping[str, Any], version: MeterVersion | None) -> list[dict[str, Any]]:
    """One line a tier. A percentage tier prices no unit of usage but `provider_cost`, dollars of the provider's cost."""
    if version is None:
        return []
    return [_line(version, *line) for line in row["breakdown"].get("charge", ())]


def _line(version: MeterVersion, start: int, rate: int, units: int, cost_nanos: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "tier": format_tier(version.rate_type, version.tier_type, Tier(start=start, rate=rate)),
        "tokens": 0,
        "characters": 0,
        "seconds": 0,
        "cost": _usd(cost_nanos),
    }
    if version.rate_type == "percentage":
        line["provider_cost"] = _usd(units)
    elif version.tier_type == "tokens_1m":
        line["tokens"] = units
    elif version.tier_type == "characters_1m":
        line["characters"] = units
    elif version.tier_type == "minutes":
        line["seconds"] = seconds(units)
    return line


def _is_cost_passed_on(row: Mapping[str, Any], version: MeterVersion | None) -> bool:
    """Does the charge contain the provider's cost? Not with a fixed rate, nor when the caller's own key was used."""
    is_by_cost = version is None or version.rate_type == "percentage"
    return is_by_cost and row["charge_nanos"] > 0 and row["provider_key_type"] != "unmanaged"


def _legacy(row: Mapping[str, Any], version: MeterVersion | None, charge: Mapping[str, Any]) -> dict[str, Any]:
    """Fee and totals as older clients know them: the fee is what comes on top of a cost that was passed on.

    The merchant bears a cost that was not passed on, unless the caller's own key has paid it.
    """
    charged, cost = row["charge_nanos"], row["cost_nanos"]
    passed_on = _is_cost_passed_on(row, version)
    borne = cost if not passed_on and row["provider_key_type"] != "unmanaged" else 0
    wallet = charged if row["connection_id"] else 0
    merchant = borne + (0 if row["connection_id"] else charged)
    fee = max(0, charged - cost) if passed_on else charged
    return {
        "fee": {
            "amount": _usd(fee),
            "rate_type": charge["rate_type"],
            "token_basis": version.token_basis if version else "input+output",
            "breakdown": charge["breakdown"],
        },
        "service_charge": {"amount": _ZERO, "payer": "merchant"},
        "total_request_cost": _usd(wallet + merchant),
        "total_wallet_cost": _usd(wallet),
        "total_merchant_cost": _usd(merchant),
    }
