"""billing/request_object.py: a ledger row in both vocabularies, amounts exact."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from lava_proxy.billing.request_object import request_object
from lava_proxy.billing.rows import breakdown_text, json_text
from lava_proxy.domain import fees
from lava_proxy.domain.catalog import MICROSECONDS_PER_MINUTE, MeterVersion, RateType, Tier, TierType
from lava_proxy.domain.money import Nanos
from lava_proxy.domain.prices import Cost
from lava_proxy.domain.usage import Usage

USD = 1_000_000_000


def meter(rate_type: RateType, tier_type: TierType, *tiers: tuple[int, int]) -> MeterVersion:
    return MeterVersion(
        version_id=1,
        meter_id="prd_1",
        slug="chat",
        name="Chat",
        rate_type=rate_type,
        tier_type=tier_type,
        tiers=tuple(Tier(start=start, rate=rate) for start, rate in tiers),
    )


def row(**changes: Any) -> dict[str, Any]:
    """A row as the ledger store returns it."""
    values = {
        "request_id": "req_1",
        "connection_id": "con_1",
        "meter_id": "prd_1",
        "meter_version": 1,
        "status": "completed",
        "outcome": "completed",
        "provenance": "provider_final",
        "provider": "openai",
        "provider_key_type": "managed",
        "model": "gpt-4o-mini",
        "endpoint": "POST https://api.openai.com/v1/chat/completions",
        "api": "chat",
        "streamed": False,
        "response_id": "chatcmpl-1",
        "spend_key_id": None,
        "http_status": 200,
        "billed": True,
        "usage": {},
        "cost_nanos": 0,
        "charge_nanos": 0,
        "breakdown": {},
        "price_version": "p1",
        "service_tier": None,
        "flags": "",
        "metadata": None,
        "timings": None,
        "created_at": datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC),
        "completed_at": datetime(2026, 1, 2, 3, 4, 7, tzinfo=UTC),
    }
    assert not set(changes) - set(values)
    return values | changes


def charged(
    version: MeterVersion | None, usage: dict[str, Any], *, position: int = 0, cost_nanos: int = 0, byok: bool = False
) -> Any:
    """The Request of a call rated by the product's own rules."""
    cost = Cost(nanos=Nanos(cost_nanos), numerator=cost_nanos, denominator=1) if cost_nanos else None
    charge = fees.charge(version, Usage(usage), cost, position, byok=byok)
    found = request_object(
        row(
            usage=usage,
            cost_nanos=cost_nanos,
            charge_nanos=charge.amount_nanos,
            breakdown=json.loads(breakdown_text(charge, cost), parse_float=Decimal),
            provider_key_type="unmanaged" if byok else "managed",
        ),
        version,
    )
    return json.loads(json_text(found), parse_float=Decimal)


def test_the_seventeen_dollar_example_is_two_lines() -> None:
    """5M tokens with tiers 0 -> $5, 1M -> $3, 10M -> $1 cost $17 (lines $5 and $12)."""
    version = meter("fixed", "tokens_1m", (0, 5 * USD), (1_000_000, 3 * USD), (10_000_000, USD))
    found = charged(version, {"input_tokens": 4_000_000, "output_tokens": 1_000_000})
    assert found["charge"]["amount"] == "17.0000000000"
    lines = found["charge"]["breakdown"]
    assert [(line["tier"], line["tokens"], line["cost"]) for line in lines] == [
        ({"start": 0, "rate": "5", "type": "tokens_1m"}, 1_000_000, "5.0000000000"),
        ({"start": 1_000_000, "rate": "3", "type": "tokens_1m"}, 4_000_000, "12.0000000000"),
    ]
    assert found["model_usage"]["total_tokens"] == 5_000_000


def test_percentage_totals_are_those_of_the_documented_example() -> None:
    """Cost 0.0581 and 10 %: fee 0.00581, total 0.06391, all of it the customer's."""
    found = charged(meter("percentage", "tokens_1m", (0, 100_000)), {"input_tokens": 10}, cost_nanos=58_100_000)
    assert found["cost"] == found["model_usage"]["total_cost"] == "0.0581000000"
    assert found["charge"]["amount"] == found["total_request_cost"] == found["total_wallet_cost"] == "0.0639100000"
    assert (found["fee"]["amount"], found["total_merchant_cost"]) == ("0.0058100000", "0.0000000000")
    assert found["charge"]["breakdown"][0]["tier"]["rate"] == "10"
    assert found["charge"]["breakdown"][0]["provider_cost"] == "0.0581000000"
    assert found["model_usage"]["payer"] == "wallet"


def test_a_percentage_with_the_callers_own_key_is_the_fee_alone() -> None:
    found = charged(meter("percentage", "tokens_1m", (0, 200_000)), {"input_tokens": 10}, cost_nanos=1_000_000, byok=True)
    assert found["charge"]["amount"] == found["fee"]["amount"] == found["total_request_cost"] == "0.0002000000"
    assert found["total_merchant_cost"] == "0.0000000000" and found["model_usage"]["payer"] == "merchant"


def test_a_fixed_rate_leaves_the_cost_with_the_merchant() -> None:
    found = charged(meter("fixed", "requests", (0, USD // 10)), {}, cost_nanos=40_000_000)
    assert (found["total_wallet_cost"], found["total_merchant_cost"], found["total_request_cost"]) == (
        "0.1000000000",
        "0.0400000000",
        "0.1400000000",
    )
    (line,) = found["charge"]["breakdown"]
    assert (line["tokens"], line["characters"], line["seconds"]) == (0, 0, 0)


def test_minutes_are_reported_in_exact_seconds() -> None:
    found = charged(meter("fixed", "minutes", (0, 6 * USD), (MICROSECONDS_PER_MINUTE, USD)), {"audio_seconds": Decimal("90.25")})
    assert [line["seconds"] for line in found["charge"]["breakdown"]] == [60, Decimal("30.25")]
    assert found["charge"]["breakdown"][1]["tier"] == {"start": 1, "rate": "1", "type": "minutes"}
    usage = found["model_usage"]
    assert (usage["input_seconds"], usage["output_seconds"], usage["total_seconds"]) == (Decimal("90.25"), 0, Decimal("90.25"))


def test_characters_are_counted_by_direction() -> None:
    found = charged(meter("fixed", "characters_1m", (0, USD)), {"input_characters": 30, "output_characters": 12})
    assert found["charge"]["breakdown"][0]["characters"] == 42
    assert found["model_usage"]["total_characters"] == 42


def test_speech_seconds_are_output() -> None:
    usage = request_object(row(api="speech", usage={"audio_seconds": Decimal("2.5")}), None)["model_usage"]
    assert (usage["input_seconds"], usage["output_seconds"]) == (0, Decimal("2.5"))


@pytest.mark.parametrize("missing", ["connection_id", "meter_id", "model", "response_id"])
def test_what_a_request_does_not_have_is_absent(missing: str) -> None:
    found = request_object(row(**{missing: None}), None)
    aliases = {"connection_id": {"connection_id", "customer_id"}, "meter_id": {"meter_id", "product_id", "meter_slug"}}
    assert not aliases.get(missing, {missing}) & set(found)


def test_an_unbilled_row_shows_nothing_charged() -> None:
    found = request_object(
        row(status="error", outcome="upstream_timeout", provenance="none", billed=False), meter("fixed", "requests", (0, USD))
    )
    assert found["charge"] == {"amount": "0.0000000000", "rate_type": "fixed", "breakdown": []}
    assert found["total_request_cost"] == "0.0000000000" and found["metadata"] == {}
    assert (found["billed"], found["outcome"]) == (False, "upstream_timeout")


def test_times_are_utc_to_the_second() -> None:
    found = request_object(row(), None)
    assert (found["created_at"], found["timestamp"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:04:07Z")


def test_no_float_is_in_a_request() -> None:
    def floats(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [found for item in value.values() for found in floats(item)]
        if isinstance(value, list):
            return [found for item in value for found in floats(item)]
        return [value] if isinstance(value, float) else []

    assert (
        floats(request_object(row(usage={"audio_seconds": Decimal("0.1"), "x": {"y": 1}}), meter("fixed", "minutes", (0, USD))))
        == []
    )


def test_the_spend_key_of_a_call_is_named_and_absent_where_there_was_none() -> None:
    assert request_object(row(spend_key_id="spk_1"), None)["spend_key_id"] == "spk_1"
    assert "spend_key_id" not in request_object(row(spend_key_id=None), None)
