"""domain/prices.py: exact costs, clamping, ceilings, reported costs and the memo."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from lava_proxy.domain.prices import (
    COST_DENOMINATOR,
    DatedPrice,
    PriceBook,
    ceiling_cost,
    compile_price,
    cost,
    reported_cost,
)
from lava_proxy.domain.usage import Usage, token_usage

USD = 1_000_000_000
SONNET = compile_price(
    "claude-sonnet",
    "test",
    {
        "input_tokens": 3 * USD,
        "cached_input_tokens": USD * 3 // 10,
        "cache_write_tokens": USD * 375 // 100,
        "cache_write_1h_tokens": 6 * USD,
        "output_tokens": 15 * USD,
        "web_search_requests": 10 * USD,
    },
)
AUDIO = compile_price(
    "gpt-audio",
    "test",
    {
        "input_tokens": 4 * USD,
        "cached_input_tokens": USD * 4 // 10,
        "input_audio_tokens": 32 * USD,
        "cached_input_audio_tokens": USD * 4 // 10,
        "output_tokens": 16 * USD,
        "output_audio_tokens": 64 * USD,
    },
)
AT = datetime(2026, 11, 20, tzinfo=UTC)


def test_cache_writes_are_counted_once() -> None:
    """A6: 3 uncached, 12,304 written, 550 out is $0.054399."""
    found = cost(SONNET, token_usage(3 + 12_304, 550, cache_write=12_304))
    assert found.nanos == 9_000 + 46_140_000 + 8_250_000
    assert not found.anomaly


def test_cached_tokens_cost_the_cached_rate_and_are_not_input_again() -> None:
    """A4: cached tokens are a subset of input, priced at their own rate."""
    found = cost(SONNET, token_usage(1_000_000, 0, cached=900_000))
    assert found.nanos == 300_000_000 + 270_000_000


def test_what_the_1h_count_leaves_is_a_5_min_write() -> None:
    """A7: total write 22,397 of which 1,000 are 1 h; the remainder is priced at the 5 min rate, not at zero."""
    found = cost(SONNET, token_usage(30_000, 0, cache_write=22_397, cache_write_1h_tokens=1_000))
    by_unit = {line.unit: line.quantity for line in found.lines}
    assert by_unit == {"input_tokens": 7_603, "cache_write_tokens": 21_397, "cache_write_1h_tokens": 1_000}


def test_a_1h_write_costs_the_1h_rate() -> None:
    """A8: 4,803 tokens of ephemeral_1h at $6."""
    found = cost(SONNET, token_usage(4_803, 0, cache_write=4_803, cache_write_1h_tokens=4_803))
    assert found.nanos == 4_803 * 6_000


@pytest.mark.parametrize(
    "usage",
    [
        token_usage(1, 0, cached=965_602),
        token_usage(10, 5, cached=161),
        token_usage(2_168, 7, cached=2_161, cache_write=2_161),
        token_usage(-5, -7, cached=-3, cache_write=-1),
        token_usage(10, 1, cache_write=5, cache_write_1h_tokens=9),
    ],
)
def test_a_usage_that_contradicts_itself_is_clamped_flagged_and_never_negative(usage: Usage) -> None:
    """A5: more cached than read must not become a credit."""
    found = cost(SONNET, usage)
    assert found.nanos >= 0
    assert found.anomaly
    tokens = sum(line.quantity for line in found.lines if line.unit != "output_tokens")
    assert tokens == max(0, usage.input_tokens)


def test_audio_tokens_have_their_own_rates() -> None:
    found = cost(AUDIO, token_usage(1_000, 500, input_audio_tokens=400, output_audio_tokens=300))
    assert found.nanos == 600 * 4_000 + 400 * 32_000 + 200 * 16_000 + 300 * 64_000


def test_audio_that_does_not_fit_beside_the_cache_came_from_the_cache() -> None:
    found = cost(AUDIO, token_usage(1_000, 0, cached=800, input_audio_tokens=400))
    by_unit = {line.unit: line.quantity for line in found.lines}
    assert by_unit == {"cached_input_tokens": 600, "input_audio_tokens": 200, "cached_input_audio_tokens": 200}
    assert not found.anomaly


def test_a_bracket_prices_the_whole_request() -> None:
    price = compile_price(
        "pro",
        "test",
        {"input_tokens": USD, "output_tokens": 10 * USD},
        {200_000: {"input_tokens": 2 * USD, "output_tokens": 15 * USD}},
    )
    assert cost(price, token_usage(200_000, 1_000)).nanos == 200_000 * 1_000 + 1_000 * 10_000
    assert cost(price, token_usage(200_001, 1_000)).nanos == 200_001 * 2_000 + 1_000 * 15_000


def test_a_zero_rate_is_a_price_and_an_absent_one_is_not() -> None:
    """B3: rate 0 is not the same as no rate."""
    free = compile_price("free", "test", {"input_tokens": 0, "output_tokens": 0})
    assert cost(free, token_usage(10, 10)).nanos == 0
    assert not cost(free, token_usage(10, 10)).uncovered
    by_the_hour = compile_price("whisper", "test", {"audio_seconds": USD * 36 // 100})
    assert not cost(by_the_hour, Usage({"audio_seconds": 1})).uncovered
    assert cost(by_the_hour, token_usage(10, 0)).uncovered
    input_only = compile_price("embed", "test", {"input_tokens": USD})
    assert cost(input_only, token_usage(1, 1)).uncovered
    assert cost(SONNET, Usage({"images": 1})).uncovered


def test_a_call_with_tokens_and_seconds_is_charged_by_what_has_a_rate() -> None:
    """B5: a token-priced transcription is not priced per second times nothing."""
    tokens = compile_price("gpt-transcribe", "test", {"input_tokens": USD, "output_tokens": 2 * USD})
    assert cost(tokens, token_usage(100, 10, audio_seconds=Decimal("9.5"))).nanos == 120_000
    hours = compile_price("whisper-1", "test", {"audio_seconds": USD * 36 // 100})
    found = cost(hours, token_usage(100, 10, audio_seconds=Decimal("9.5")))
    assert (found.nanos, found.uncovered) == (950_000, False)


def test_seconds_are_exact_to_the_microsecond_and_have_a_minimum_where_the_provider_has() -> None:
    price = compile_price("w", "test", {"audio_seconds": USD * 36 // 100}, audio_us_min=10_000_000)
    assert cost(price, Usage({"audio_seconds": Decimal("0.1")})).nanos == 1_000_000
    assert cost(price, Usage({"audio_seconds": Decimal("36.000001")})).nanos == 3_600_000
    assert cost(price, Usage({"audio_seconds": 0})).nanos == 0


def test_searches_and_requests_are_priced_per_thousand() -> None:
    found = cost(SONNET, token_usage(0, 0, web_search_requests=2, web_search_calls=7))
    assert found.nanos == 20_000_000
    assert cost(compile_price("sonar", "t", {"requests": 12 * USD, "input_tokens": 0}), token_usage(1, 0)).nanos == 12_000_000


def test_the_ceiling_is_never_less_than_what_the_call_can_cost() -> None:
    ceiling = token_usage(10_000, 1_000)
    most = ceiling_cost(SONNET, ceiling).nanos
    assert most == 10_000 * 3_750 + 1_000 * 15_000
    assert cost(SONNET, token_usage(10_000, 1_000, cache_write=10_000)).nanos <= most
    assert ceiling_cost(SONNET, token_usage(10_000, 0, cache_write_1h_tokens=1)).nanos == 10_000 * 6_000


@pytest.mark.parametrize(
    ("units", "nanos"),
    [
        ({"provider_cost_usd": Decimal("0.0018585")}, 1_858_500),
        ({"provider_cost_usd": Decimal("0.0000000005")}, 0),
        ({"provider_cost_usd": Decimal("0.0000000015")}, 2),
        ({"provider_cost_usd": Decimal(0)}, 0),
        ({"provider_cost_usd": 2}, 2 * USD),
        ({"cost_in_usd_ticks": 11_706_000}, 1_170_600),
        ({"provider_cost_usd": Decimal("1e-99999")}, 0),
    ],
)
def test_the_providers_own_bill_wins(units: dict[str, Decimal | int], nanos: int) -> None:
    """A13: a cost the provider reports is taken as it is, and an explicit zero is a zero."""
    found = reported_cost(Usage(units))
    assert found is not None
    assert (found.nanos, found.reported) == (nanos, True)


@pytest.mark.parametrize("value", [Decimal(-1), Decimal("NaN"), Decimal("Infinity"), Decimal("1e30"), {"x": 1}])
def test_a_reported_cost_that_makes_no_sense_is_not_taken(value: Decimal) -> None:
    assert reported_cost(Usage({"provider_cost_usd": value})) is None
    assert reported_cost(Usage({"cost_in_usd_ticks": -1})) is None


class OneDayPrices:
    def __init__(self) -> None:
        self.asked = 0

    def dated(self, price_id: str, model: str, service_tier: str | None, at: datetime) -> DatedPrice:
        self.asked += 1
        if model == "unknown":
            return DatedPrice(None)
        day = datetime(at.year, at.month, at.day, tzinfo=UTC)
        rate = compile_price(model, "t", {"input_tokens": at.day * USD, "output_tokens": 0})
        return DatedPrice(rate, day, day.replace(day=at.day + 1))


def test_a_price_is_looked_up_again_only_when_it_can_have_changed() -> None:
    source = OneDayPrices()
    book = PriceBook("1", source)
    first = book.price_for("p", "m", at=AT)
    assert book.price_for("p", "m", at=AT.replace(hour=23)) is first
    assert source.asked == 1
    later = book.price_for("p", "m", at=AT.replace(day=21))
    assert later is not None and later.base.input == 21 * USD * 3_600


def test_an_unknown_model_is_unpriced() -> None:
    """B6: no price is None, not zero."""
    book = PriceBook("1", OneDayPrices())
    assert book.price_for("p", "unknown", at=AT) is None
    assert book.cost_of("p", "unknown", token_usage(1, 1), at=AT) is None
    assert book.cost_of("p", None, token_usage(1, 1), at=AT) is None


def test_the_memo_is_bounded() -> None:
    source = OneDayPrices()
    book = PriceBook("1", source)
    for number in range(9_000):
        book.price_for("p", f"m{number}", at=AT)
    assert len(book._memo) <= 8_192


def test_other_models_of_the_same_call_are_added_at_their_own_price() -> None:
    book = PriceBook("1", OneDayPrices())
    usage = token_usage(1_000_000, 0, other_models={"advisor": {"input_tokens": 500_000}, "unknown": {"input_tokens": 1}})
    found = book.cost_of("p", "m", usage, at=AT)
    assert found is not None
    assert found.nanos == 30 * USD + 20_000
    assert found.uncovered
    assert found.denominator == COST_DENOMINATOR
