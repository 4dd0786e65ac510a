"""providers/prices_source.py against genai-prices' own arithmetic, and the operator's overrides."""

from __future__ import annotations

import random
import tomllib
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as GenaiUsage
from genai_prices import calc_price
from genai_prices.data import providers

from lava_proxy.domain.prices import PriceBook, cost
from lava_proxy.domain.usage import token_usage
from lava_proxy.providers.prices_source import load_price_book

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
BOOK = load_price_book()
CONFIG = Path(__file__).parents[3] / "config" / "prices.toml"


def nanos(price_id: str, model: str, at: datetime = AT, tier: str | None = None, **units: int) -> int:
    price = BOOK.price_for(price_id, model, at=at, service_tier=tier)
    assert price is not None, f"{price_id}/{model} is unpriced"
    counts = {name: units.pop(name, 0) for name in ("input_tokens", "output_tokens", "cached", "cache_write")}
    usage = token_usage(
        counts["input_tokens"],
        counts["output_tokens"],
        cached=counts["cached"],
        cache_write=counts["cache_write"],
        **units,
    )
    return cost(price, usage).nanos


def theirs(price_id: str, model: str, at: datetime, context: dict[str, str] | None, **units: int) -> int:
    found = calc_price(GenaiUsage(**units), model, provider_id=price_id, genai_request_timestamp=at, price_context=context)
    return int((found.total_price * 10**9).to_integral_value(ROUND_HALF_EVEN))


def test_known_answers() -> None:
    assert nanos("google", "gemini-2.5-pro", input_tokens=100_000, output_tokens=1_000) == 135_000_000
    assert nanos("google", "gemini-2.5-pro", input_tokens=300_000, output_tokens=1_000) == 765_000_000
    one_hour = nanos("anthropic", "claude-sonnet-4-5", input_tokens=1_000, cache_write=1_000, cache_write_1h_tokens=1_000)
    assert one_hour == 6_000_000
    assert nanos("anthropic", "claude-sonnet-4-5", input_tokens=1_000, cache_write=1_000) == 3_750_000
    standard = nanos("openai", "gpt-5.4", input_tokens=1_000, output_tokens=100)
    for tier in ("flex", "batch"):
        assert nanos("openai", "gpt-5.4", tier=tier, input_tokens=1_000, output_tokens=100) * 2 == standard
    searched = nanos("openai", "gpt-4o", input_tokens=0, web_search_requests=2)
    assert searched == 20_000_000


def test_a_price_change_is_honoured_by_the_time_of_the_call() -> None:
    before = datetime(2026, 8, 20, 23, 59, 59, tzinfo=UTC)
    after = datetime(2026, 8, 21, tzinfo=UTC)
    old, new = (nanos("openai", "gpt-5.6-sol", at=at, input_tokens=1_000_000) for at in (before, after))
    assert old != new
    assert (old, new) == tuple(theirs("openai", "gpt-5.6-sol", at, None, input_tokens=1_000_000) for at in (before, after))


@pytest.mark.parametrize("hour", range(24))
def test_prices_by_the_time_of_day(hour: int) -> None:
    for minute in (0, 29, 30, 59):
        at = AT.replace(hour=hour, minute=minute)
        for model in ("deepseek-chat", "deepseek-flash", "deepseek-reasoner"):
            ours = nanos("deepseek", model, at=at, input_tokens=10**6, output_tokens=10**6, cached=10**5)
            assert ours == theirs("deepseek", model, at, None, input_tokens=10**6, output_tokens=10**6, cache_read_tokens=10**5)


def test_every_priced_model_of_the_table_costs_what_the_table_says() -> None:
    """A1: one price per usage, equal to the source's own arithmetic to the nano, for every model that has one."""
    chance = random.Random(20261120)
    compared = 0
    for provider in providers:
        for model in provider.models:
            ref = model.id
            if provider.find_model(ref, all_providers=providers) is None:
                continue
            read = chance.choice([1, 999, 31_337, 250_001, 600_000])
            units = {
                "input_tokens": read,
                "output_tokens": chance.randrange(100_000),
                "cache_read_tokens": chance.randrange(read),
            }
            units["cache_write_tokens"] = chance.randrange(read - units["cache_read_tokens"] + 1)
            units["cache_write_1h_tokens"] = chance.randrange(units["cache_write_tokens"] + 1)
            at = chance.choice([AT, datetime(2025, 3, 1, 2, tzinfo=UTC), datetime(2026, 8, 21, tzinfo=UTC)])
            price = BOOK.price_for(provider.id, ref, at=at)
            quoted = model.get_prices(at).__dict__.values()
            if price is None:
                assert not any(value is not None for value in quoted)
                continue
            usage = token_usage(
                read,
                units["output_tokens"],
                cached=units["cache_read_tokens"],
                cache_write=units["cache_write_tokens"],
                cache_write_1h_tokens=units["cache_write_1h_tokens"],
            )
            # Quotations like 0.08333333333333334 are kept to nano-USD per million, so they may differ by one nano.
            is_fraction = any("E-1" in format(v, "E") or len(str(v)) > 12 for v in quoted if isinstance(v, Decimal))
            expected = theirs(provider.id, ref, at, None, **units)
            assert abs(cost(price, usage).nanos - expected) <= int(is_fraction), f"{provider.id}/{ref}"
            compared += 1
    assert compared > 2_000


def test_service_tiers_cost_what_the_table_says() -> None:
    compared = 0
    for provider in providers:
        for model in provider.models:
            whens = {tuple(variant.when.items()) for variant in model.price_variants or ()}
            for when in whens:
                context = dict(when)
                tier = context.get("service_tier") or context.get("processing") or context.get("speed")
                if tier is None or len(context) > 1 or provider.find_model(model.id) is not model:
                    continue
                if tier == "batch":
                    context = {"service_tier": "batch", "processing": "batch"}
                units = {"input_tokens": 12_345, "output_tokens": 678}
                assert nanos(provider.id, model.id, tier=tier, **units) == theirs(provider.id, model.id, AT, context, **units), (
                    f"{provider.id}/{model.id}/{tier}"
                )
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("units", "genai_units"),
    [
        ({"input_audio_tokens": 300}, {"input_audio_tokens": 300}),
        ({"output_audio_tokens": 70}, {"output_audio_tokens": 70}),
        (
            {"cached": 200, "input_audio_tokens": 300, "cached_input_audio_tokens": 150},
            {"cache_read_tokens": 200, "input_audio_tokens": 300, "cache_audio_read_tokens": 150},
        ),
    ],
)
def test_audio_tokens_cost_what_the_table_says(units: dict[str, int], genai_units: dict[str, int]) -> None:
    for model in ("gpt-4o-audio-preview", "gpt-realtime"):
        ours = nanos("openai", model, input_tokens=1_000, output_tokens=100, **units)
        assert ours == theirs("openai", model, AT, None, input_tokens=1_000, output_tokens=100, **genai_units)


@pytest.mark.parametrize(
    ("price_id", "model", "resolved"),
    [
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:org::abc", "ft:gpt-4o-mini"),
        ("openai", "gpt-realtime-translate", "gpt-realtime-translate"),
        ("google", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("google", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("azure", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openrouter", "openai/gpt-4o", "openai/gpt-4o"),
    ],
)
def test_dated_and_prefixed_model_names_resolve(price_id: str, model: str, resolved: str) -> None:
    """B5, B6: aliases and dates find their model; an exact name is not taken by another's prefix."""
    price = BOOK.price_for(price_id, model, at=AT)
    assert price is not None
    assert price.model == resolved


@pytest.mark.parametrize(("price_id", "model"), [("openai", "auto"), ("nobody", "gpt-4o"), ("openai", ""), ("openai", "g" * 300)])
def test_unknown_models_and_providers_are_unpriced(price_id: str, model: str) -> None:
    """B6, B9: no price is None."""
    assert BOOK.price_for(price_id, model, at=AT) is None


def override(**changes: Any) -> dict[str, Any]:
    table = {"provider": "openai", "model": "gpt-9", "source": "contract", "date": "2026-11-01", "input": "2.50"}
    return {name: value for name, value in (table | changes).items() if value is not None}


def priced_input(book: PriceBook, model: str, tier: str | None = None) -> int | None:
    price = book.price_for("openai", model, at=AT, service_tier=tier)
    return cost(price, token_usage(1_000_000, 0)).nanos if price else None


def test_an_override_wins_and_the_exact_one_before_the_longest_prefix() -> None:
    """B5: exact before prefix."""
    tables = [
        override(model="gpt-*", input="1"),
        override(model="gpt-9*", input="2"),
        override(model="gpt-9-mini", input="3"),
        override(model="gpt-9*", service_tier="flex", input="4"),
    ]
    book = load_price_book(tables)
    assert priced_input(book, "gpt-4o") == 1_000_000_000
    assert priced_input(book, "gpt-9-nano") == 2_000_000_000
    assert priced_input(book, "GPT-9-mini") == 3_000_000_000
    assert priced_input(book, "gpt-9-nano", "flex") == 4_000_000_000
    assert priced_input(book, "o3") == priced_input(BOOK, "o3")


def test_the_version_names_the_source_and_changes_with_the_overrides() -> None:
    assert BOOK.version.startswith("genai-prices ")
    versions = {BOOK.version, *(load_price_book([override(input=rate)]).version for rate in ("1", "2"))}
    assert len(versions) == 3
    assert load_price_book([override(), override(model="x")]).version == load_price_book([override(model="x"), override()]).version


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (override(input="10000.01"), r"more than \$10000"),
        (override(input="0.0000025"), "per token"),
        (override(input="-1"), "cannot be meant"),
        (override(input=2), "string"),
        (override(input="two"), "input: not a decimal"),
        (override(input=None), "no rate"),
        (override(source=None), "source is required"),
        (override(date=None), "date is required"),
        (override(provider=""), "provider is required"),
        (override(model="gpt*9"), "only at the end"),
        (override(inptu="1"), "unknown field 'inptu'"),
        (override(service_tier=1), "service_tier"),
    ],
)
def test_an_absurd_override_is_refused_at_load(table: dict[str, Any], sentence: str) -> None:
    """B8: a price entered per token or in another currency unit does not start."""
    with pytest.raises(ValueError, match=sentence):
        load_price_book([table])


def test_the_same_override_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        load_price_book([override(), override()])


def test_a_free_override_is_a_price() -> None:
    """B3: zero is a rate."""
    assert priced_input(load_price_book([override(input="0")]), "gpt-9") == 0


def test_the_shipped_overrides_load() -> None:
    book = load_price_book(tomllib.loads(CONFIG.read_text())["price"])
    price = book.price_for("cohere", "rerank-v3.5", at=AT)
    assert price is not None
    assert cost(price, token_usage(0, 0, search_units=3)).nanos == 6_000_000
