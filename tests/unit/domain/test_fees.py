"""domain/fees: worked examples of the meters, and tiers as the wire spells them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from lava_proxy.domain.catalog import MeterVersion, RateType, Tier, TierType
from lava_proxy.domain.fees import POSITION_MAX, Charge, ceiling_charge, charge, format_tier, parse_tiers
from lava_proxy.domain.money import Nanos
from lava_proxy.domain.prices import Cost
from lava_proxy.domain.usage import Usage, token_usage

USD = 1_000_000_000


def meter(rate_type: RateType = "fixed", tier_type: TierType = "tokens_1m", *tiers: tuple[str, str]) -> MeterVersion:
    parsed = parse_tiers(rate_type, tier_type, [{"start": start, "rate": rate} for start, rate in tiers])
    return MeterVersion(version_id=1, meter_id="m", slug="s", name="n", rate_type=rate_type, tier_type=tier_type, tiers=parsed)


def cost(nanos: int) -> Cost:
    return Cost(nanos, 1, Nanos(nanos))


GRADUATED = meter("fixed", "tokens_1m", ("0", "5"), ("1000000", "3"), ("10000000", "1"))


def test_five_million_tokens_over_three_tiers_are_17_dollars() -> None:
    found = charge(GRADUATED, token_usage(4_000_000, 1_000_000), None, 0)
    assert found.amount_nanos == 17 * USD
    assert [(line.units, line.cost_nanos) for line in found.breakdown] == [(1_000_000, 5 * USD), (4_000_000, 12 * USD)]
    assert (found.units, found.position_lo, found.position_hi) == (5_000_000, 0, 0)


def test_three_requests_of_the_same_moment_do_not_each_see_all_of_them() -> None:
    """52: the position before each request decides, so 200 units are billed once as 200, not three times."""
    steps = meter("fixed", "requests", ("0", "0"), ("2", "1"))
    amounts = [charge(steps, Usage(), None, position).amount_nanos for position in range(3)]
    assert amounts == [0, 0, USD]


def test_half_a_nano_goes_to_the_even_neighbour() -> None:
    """111: rounding is half-even and happens once."""
    half = meter("fixed", "tokens_1m", ("0", "0.0005"))
    assert [charge(half, token_usage(n, 0), None, 0).amount_nanos for n in (1, 2, 3, 5)] == [0, 1, 2, 2]


def test_output_only_meters_count_output() -> None:
    """I31: the output basis is never more than input+output."""
    output_only = replace(meter("fixed", "tokens_1m", ("0", "20")), token_basis="output")
    assert charge(output_only, token_usage(1_000, 1_000), None, 0).amount_nanos == 20_000_000
    assert charge(replace(output_only, token_basis="input+output"), token_usage(1_000, 1_000), None, 0).units == 2_000


@pytest.mark.parametrize(
    ("tier_type", "rate", "usage", "amount", "units"),
    [
        (
            "characters_1m",
            "15",
            Usage({"input_characters": 900_000, "output_characters": 100_000}),
            15 * USD,
            1_000_000,
        ),
        ("minutes", "0.06", Usage({"audio_seconds": Decimal("30.5")}), 30_500_000, 30_500_000),
        ("minutes", "0.06", Usage({"input_seconds": 30, "output_seconds": Decimal("0.5")}), 30_500_000, 30_500_000),
        ("requests", "20", Usage(), 20 * USD, 1),
    ],
)
def test_other_units(tier_type: TierType, rate: str, usage: Usage, amount: int, units: int) -> None:
    found = charge(meter("fixed", tier_type, ("0", rate)), usage, None, 0)
    assert (found.amount_nanos, found.units) == (amount, units)


def test_twenty_percent_is_cost_plus_a_fifth_and_with_own_key_the_fifth_alone() -> None:
    twenty = meter("percentage", "tokens_1m", ("0", "20"))
    assert charge(twenty, Usage(), cost(58_100_000), 0).amount_nanos == 69_720_000
    assert charge(twenty, Usage(), cost(58_100_000), 0, byok=True).amount_nanos == 11_620_000
    assert charge(twenty, Usage(), cost(58_100_000), 0).units == 58_100_000


def test_percentage_tiers_are_thresholds_on_cumulative_provider_cost() -> None:
    tiered = meter("percentage", "tokens_1m", ("0", "20"), ("10", "10"))
    found = charge(tiered, Usage(), cost(4 * USD), 8 * USD)
    assert found.amount_nanos == 2 * USD * 12 // 10 + 2 * USD * 11 // 10


def test_the_percentage_is_taken_from_the_exact_cost() -> None:
    tripled = meter("percentage", "tokens_1m", ("0", "200"))
    a_third = Cost(1, 3, Nanos(0))
    found = charge(tripled, Usage(), a_third, 0)
    assert (found.amount_nanos, found.units) == (1, 0)


@pytest.mark.parametrize("rate_type", ["percentage", None])
def test_a_needed_cost_that_is_unknown_is_an_error_and_not_zero(rate_type: RateType | None) -> None:
    """B6: unpriced must not mean free."""
    version = meter(rate_type, "tokens_1m", ("0", "20")) if rate_type else None
    with pytest.raises(ValueError, match="cost"):
        charge(version, token_usage(1, 1), None, 0)


def test_without_a_meter_the_wallet_pays_the_cost_unless_the_caller_brought_the_key() -> None:
    assert charge(None, token_usage(1, 1), cost(77), 0).amount_nanos == 77
    assert charge(None, token_usage(1, 1), cost(77), 0, byok=True).amount_nanos == 0


def test_what_is_not_billable_is_nothing_whatever_the_unit() -> None:
    for version in (meter("fixed", "requests", ("0", "5")), GRADUATED, None):
        assert charge(version, token_usage(9, 9), None, 5, billable=False) == Charge(amount_nanos=Nanos(0), units=0)


def test_zero_usage_is_nothing_except_per_request() -> None:
    assert charge(GRADUATED, token_usage(0, 0), None, 5).amount_nanos == 0
    assert charge(meter("percentage", "tokens_1m", ("0", "5")), Usage(), cost(0), 5).amount_nanos == 0
    assert charge(meter("fixed", "requests", ("0", "5")), Usage(), None, 0).amount_nanos == 5 * USD


def test_a_negative_usage_is_never_a_credit() -> None:
    """112: negative aggregates do not turn a charge into a credit."""
    assert charge(GRADUATED, token_usage(-1_000_000, -1), None, 0).amount_nanos == 0
    assert charge(meter("fixed", "minutes", ("0", "5")), Usage({"audio_seconds": Decimal(-60)}), None, 0).amount_nanos == 0


def test_the_range_ends_where_the_request_would_cross_a_boundary() -> None:
    found = charge(GRADUATED, token_usage(100, 0), None, 2_000_000)
    assert (found.position_lo, found.position_hi) == (1_000_000, 10_000_000 - 100)
    last = charge(GRADUATED, token_usage(100, 0), None, 10_000_000)
    assert (last.position_lo, last.position_hi) == (10_000_000, POSITION_MAX)
    single = charge(meter("fixed", "tokens_1m", ("0", "5")), token_usage(100, 0), None, 7)
    assert (single.position_lo, single.position_hi) == (0, POSITION_MAX)


def test_the_ceiling_takes_the_dearest_tier_ahead() -> None:
    rising = meter("fixed", "tokens_1m", ("0", "1"), ("1000", "9"), ("2000", "2"))
    ceiling = token_usage(100, 0)
    assert ceiling_charge(rising, ceiling, None, 0) == 900_000
    assert ceiling_charge(rising, ceiling, None, 5_000) == 200_000
    assert ceiling_charge(None, ceiling, cost(55), 0) == 55
    assert ceiling_charge(meter("percentage", "tokens_1m", ("0", "100")), ceiling, cost(55), 0) == 110


@pytest.mark.parametrize(
    ("rate_type", "tier_type", "start", "rate", "tier"),
    [
        ("fixed", "tokens_1m", "1000000", "0.0028", Tier(start=1_000_000, rate=2_800_000)),
        ("fixed", "minutes", 60, "0.5", Tier(start=3_600_000_000, rate=500_000_000)),
        ("fixed", "requests", Decimal(100), Decimal("0.25"), Tier(start=100, rate=250_000_000)),
        ("percentage", "tokens_1m", "1000", "20", Tier(start=1_000 * USD, rate=200_000)),
        ("percentage", "tokens_1m", "1", "1.9", Tier(start=USD, rate=19_000)),
    ],
)
def test_tiers_are_read_from_the_wire_and_written_back(
    rate_type: RateType, tier_type: TierType, start: object, rate: object, tier: Tier
) -> None:
    parsed = parse_tiers(rate_type, tier_type, [{"start": "0", "rate": "0"}, {"start": start, "rate": rate}])
    assert parsed[1] == tier
    written = format_tier(rate_type, tier_type, tier)
    assert written == {"start": int(str(start)), "rate": str(rate), "type": tier_type}
    assert format_tier(rate_type, tier_type, parsed[0])["rate"] == "0"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([], "at least one"),
        ("0", "list"),
        (None, "list"),
        ([5], r"tiers\[0\] must be an object"),
        ([{"start": "1", "rate": "1"}], r"tiers\[0\].start must be"),
        ([{"start": "0", "rate": "1"}, {"start": "0", "rate": "1"}], r"tiers\[1\].start must be greater"),
        ([{"start": "0", "rate": "-1"}], r"tiers\[0\].rate must not be negative"),
        ([{"start": "0"}], r"tiers\[0\].rate must be a decimal"),
        ([{"start": "0", "rate": True}], r"tiers\[0\].rate"),
        ([{"start": "0", "rate": 0.5}], r"tiers\[0\].rate"),
        ([{"start": "0.5", "rate": "1"}], r"tiers\[0\].start must be a whole number"),
        ([{"start": "0", "rate": "1e30"}], r"tiers\[0\].rate"),
        ([{"start": "0", "rate": "0.0000000001"}], r"tiers\[0\].rate"),
        ([{"start": "0", "rate": "NaN"}], r"tiers\[0\].rate"),
        ([{"start": "0", "rate": "10000000"}], r"tiers\[0\].rate is too large"),
        ([{"start": str(n), "rate": "1"} for n in range(101)], "at most 100"),
    ],
)
def test_a_bad_tier_is_refused_with_the_fields_name(raw: object, sentence: str) -> None:
    """113: amounts are validated where they come in."""
    with pytest.raises(ValueError, match=sentence):
        parse_tiers("fixed", "tokens_1m", raw)
