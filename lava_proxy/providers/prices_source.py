"""genai-prices (and the operator's overrides) compiled into a domain PriceBook.

The package's data and matching rules are used, its arithmetic is not: Decimals, 17-130 us a price and an exception
where cached exceeds input. A price is resolved for one moment, copied into integers, and memoised by the book until
the next moment at which it could change. Loading the data takes about half a second, so it happens in
`load_price_book` only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lava_proxy.domain.money import NANOS_PER_USD, parse_usd
from lava_proxy.domain.prices import DatedPrice, Facts, ModelPrice, PriceBook, compile_price, facts_of, scaled, tier_and_facts

if TYPE_CHECKING:
    from genai_prices import types as genai

MODEL_CHARS_MAX = 256

# genai-prices' price key -> our unit. Both quote tokens per million, pages and searches per thousand, audio per hour.
UNIT_OF_PRICE_KEY: Mapping[str, str] = {
    "input_mtok": "input_tokens",
    "cache_read_mtok": "cached_input_tokens",
    "cache_write_mtok": "cache_write_tokens",
    "cache_write_1h_mtok": "cache_write_1h_tokens",
    "output_mtok": "output_tokens",
    "input_audio_mtok": "input_audio_tokens",
    "input_image_mtok": "input_image_tokens",
    "input_video_mtok": "input_video_tokens",
    "cache_audio_read_mtok": "cached_input_audio_tokens",
    "cache_image_read_mtok": "cached_input_image_tokens",
    "cache_video_read_mtok": "cached_input_video_tokens",
    "output_audio_mtok": "output_audio_tokens",
    "output_image_mtok": "output_image_tokens",
    "output_video_mtok": "output_video_tokens",
    "output_reasoning_mtok": "reasoning_tokens",
    "output_citation_mtok": "citation_tokens",
    "input_mchars": "input_characters",
    "audio_hours": "audio_seconds",
    "input_audio_hours": "audio_seconds",
    "input_document_kpages": "pages_processed",
    "rerank_searches_kcount": "search_units",
    "web_searches_kcount": "web_search_requests",
    "storage_searches_kcount": "file_search_calls",
    "requests_kcount": "requests",
}

# Override key -> (our unit, the least and the most dollars that can be meant). A price per token instead of per million
# is caught below, a price in cents or per billion above.
OVERRIDE_KEYS: Mapping[str, tuple[str, str, str]] = {
    **{
        key: (unit, "0.001", "10000")
        for key, unit in {
            "input": "input_tokens",
            "cached_input": "cached_input_tokens",
            "cache_write": "cache_write_tokens",
            "cache_write_1h": "cache_write_1h_tokens",
            "output": "output_tokens",
            "input_audio": "input_audio_tokens",
            "cached_input_audio": "cached_input_audio_tokens",
            "input_image": "input_image_tokens",
            "cached_input_image": "cached_input_image_tokens",
            "input_video": "input_video_tokens",
            "output_audio": "output_audio_tokens",
            "output_image": "output_image_tokens",
            "output_video": "output_video_tokens",
            "reasoning": "reasoning_tokens",
            "input_characters": "input_characters",
        }.items()
    },
    "audio_per_hour": ("audio_seconds", "0.001", "1000"),
    "pages_per_1k": ("pages_processed", "0.001", "10000"),
    "search_units_per_1k": ("search_units", "0.001", "10000"),
    "web_searches_per_1k": ("web_search_requests", "0.001", "10000"),
    "file_searches_per_1k": ("file_search_calls", "0.001", "10000"),
    "requests_per_1k": ("requests", "0.001", "10000"),
    "images_each": ("images", "0.0001", "100"),
    "video_per_second": ("video_seconds", "0.0001", "100"),
    "predict_per_second": ("predict_seconds", "0.000001", "100"),
}
OVERRIDE_FIELDS = {"provider", "model", "service_tier", "when", "times", "source", "date", *OVERRIDE_KEYS}
TIMES_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One operator's price: `model` is exact, or a prefix when it ends with `*`; it holds where all of `when` are facts of a call.

    `times` multiplies the token rates of whatever price is found otherwise; then there is no `price`.
    """

    provider: str
    model: str
    service_tier: str | None
    when: Facts
    price: ModelPrice | None
    times: Fraction | None
    canonical: str  # what the price version is hashed over

    def holds(self, price_id: str, name: str, tier: str | None, facts: Facts) -> bool:
        is_named = name.startswith(self.model[:-1]) if self.model.endswith("*") else name == self.model
        return is_named and self.provider == price_id and self.service_tier in (tier, None) and set(self.when) <= set(facts)

    @property
    def rank(self) -> tuple[bool, int, bool, int]:
        """The more is named, the higher: an exact model, a longer prefix, a tier, more facts."""
        return not self.model.endswith("*"), len(self.model), self.service_tier is not None, len(self.when)


def load_price_book(overrides: Sequence[Mapping[str, Any]] = ()) -> PriceBook:
    """The price book: the bundled genai-prices data under the operator's `[[price]]` tables of config/prices.toml.

    Raises ValueError when an override is malformed or absurd.
    """
    from genai_prices import __version__ as genai_version
    from genai_prices.data import providers

    compiled = parse_overrides(overrides)
    version = f"genai-prices {genai_version}"
    if compiled:
        text = "\n".join(sorted(override.canonical for override in compiled))
        version += "+" + hashlib.sha256(text.encode()).hexdigest()[:12]
    return PriceBook(version, GenaiSource(providers, compiled))


def parse_overrides(tables: Sequence[Mapping[str, Any]]) -> tuple[Override, ...]:
    """Overrides from parsed TOML. Raises ValueError with a sentence that names the stanza and the field."""
    overrides = tuple(_parse_override(index, table) for index, table in enumerate(tables, start=1))
    seen: set[tuple[str, str, str | None, Facts, bool]] = set()
    for override in overrides:
        key = (override.provider, override.model, override.service_tier, override.when, override.times is not None)
        if key in seen:
            raise ValueError(f"price {override.provider}/{override.model} is given twice")
        seen.add(key)
    return overrides


def _parse_override(index: int, table: Mapping[str, Any]) -> Override:
    where = f"price {index} ({table.get('provider', '?')}/{table.get('model', '?')})"
    if unknown := sorted(set(table) - OVERRIDE_FIELDS):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}")
    for name in ("provider", "model", "source"):
        if not isinstance(table.get(name), str) or not table[name].strip():
            raise ValueError(f"{where}: {name} is required, as text")
    if not isinstance(table.get("date"), (str, date)) or not table["date"]:
        raise ValueError(f"{where}: date is required: the day the price was read at its source")
    tier = table.get("service_tier")
    if tier is not None and not isinstance(tier, str):
        raise ValueError(f"{where}: service_tier must be text")
    if "*" in table["model"][:-1]:
        raise ValueError(f"{where}: a * is accepted only at the end of model")
    quotes = {OVERRIDE_KEYS[key][0]: _quote(where, key, table[key]) for key in OVERRIDE_KEYS if key in table}
    times = _times(where, table.get("times"))
    if not quotes and times is None:
        raise ValueError(f"{where}: gives no rate")
    if quotes and times is not None:
        raise ValueError(f"{where}: times multiplies the rates found otherwise, so no rates stand beside it")
    source = f"override: {table['source']} ({table['date']})"
    return Override(
        provider=table["provider"].lower(),
        model=table["model"].lower(),
        service_tier=tier.lower() if tier else None,
        when=_when(where, table.get("when", {})),
        price=compile_price(table["model"], source, quotes) if times is None else None,
        times=times,
        canonical=json.dumps({key: str(value) for key, value in table.items()}, sort_keys=True),
    )


def _when(where: str, when: object) -> Facts:
    """The facts under which a price holds."""
    if not isinstance(when, dict) or len(facts := facts_of(when)) < len(when):
        raise ValueError(f'{where}: when names facts of a call that the price depends on, such as {{ size = "1024x1792" }}')
    return facts


def _times(where: str, value: object) -> Fraction | None:
    if value is None:
        return None
    try:
        times = Fraction(Decimal(value)) if isinstance(value, str) else Fraction(0)
    except (InvalidOperation, ValueError, OverflowError):
        times = Fraction(0)
    if not 0 < times <= TIMES_MAX:
        raise ValueError(f'{where}: times must be a decimal number above 0 and at most {TIMES_MAX}, in a string, such as "1.1"')
    return times


def _quote(where: str, key: str, value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(f'{where}: {key} must be a decimal number of dollars in a string, such as "2.50"')
    try:
        nanos = parse_usd(value)
    except ValueError as error:
        raise ValueError(f"{where}: {key}: {error}") from None
    _, least, most = OVERRIDE_KEYS[key]
    if nanos < 0 or nanos > parse_usd(most):
        raise ValueError(f"{where}: {key} is ${value}; more than ${most} or less than nothing cannot be meant")
    if 0 < nanos < parse_usd(least):
        raise ValueError(f"{where}: {key} is ${value}; is that per token? Rates are per 1,000,000")
    return nanos


def model_ids(price_id: str) -> list[str]:
    """The names of a provider's models in genai-prices, those that are still served, in order."""
    from genai_prices.data import providers

    return sorted(
        {model.id for provider in providers if provider.id == price_id for model in provider.models if not model.deprecated}
    )


class GenaiSource:
    """Prices from genai-prices' provider list, the operator's overrides first."""

    def __init__(self, providers: Sequence[genai.Provider], overrides: Iterable[Override] = ()) -> None:
        self._providers = list(providers)
        self._overrides = tuple(overrides)

    def dated(self, price_id: str, model: str, service_tier: str | None, at: datetime) -> DatedPrice:
        """The price in force at `at` and its validity: an override by exact name, by longest prefix, then the data.

        Then it is multiplied by what the operator's tables say of these facts.
        """
        if not model or len(model) > MODEL_CHARS_MAX:
            return DatedPrice(None)
        price_id, name = price_id.lower(), _bare_name(model.lower())
        tier, facts = tier_and_facts(service_tier.lower() if service_tier else None)
        holding = [override for override in self._overrides if override.holds(price_id, name, tier, facts)]
        found = self._unscaled(holding, price_id, name, tier, facts, at)
        if found.price is None:
            return found
        price = found.price
        for override in holding:
            # A tier that the data itself has a price for is not multiplied a second time.
            if override.times is not None and not (override.service_tier and self._prices_tier(price_id, name, tier)):
                price = scaled(price, override.times)
        return replace(found, price=price)

    def _prices_tier(self, price_id: str, name: str, tier: str | None) -> bool:
        """Does the data have the model's price in this tier?"""
        provider = self._provider(price_id)
        info = provider.find_model(name, all_providers=self._providers) if provider is not None else None
        return info is not None and any(variant.when.get("service_tier") == tier for variant in info.price_variants or ())

    def _unscaled(
        self, holding: Sequence[Override], price_id: str, name: str, tier: str | None, facts: Facts, at: datetime
    ) -> DatedPrice:
        prices = [override for override in holding if override.price is not None]
        if prices:
            return DatedPrice(max(prices, key=lambda override: override.rank).price)
        provider = self._provider(price_id)
        info = provider.find_model(name, all_providers=self._providers) if provider is not None else None
        if provider is None or info is None:
            return DatedPrice(None)
        own = any(info is candidate for candidate in provider.models)
        # A tier's price is the provider's own; a model borrowed from another provider has only its standard one.
        price = _compile(provider, info, info.get_prices(at, _context(tier, facts) if own else None))
        return DatedPrice(price, *_validity(info, at))

    def _provider(self, price_id: str) -> genai.Provider | None:
        for provider in self._providers:
            if provider.id == price_id:
                return provider
        for provider in self._providers:
            if provider.provider_match is not None and provider.provider_match.is_match(price_id):
                return provider
        return None


def _bare_name(model: str) -> str:
    """A model without the resource path some APIs write before it: `models/x`, `publishers/p/models/x`, an ARN."""
    if model.startswith("arn:"):
        return model.rpartition("/")[2]
    if model.startswith(("models/", "publishers/", "projects/")):
        return model.rpartition("models/")[2]
    return model


def _context(tier: str | None, facts: Facts) -> dict[str, str] | None:
    """genai-prices' request context for a response's tier: a batch is a way of processing, "fast" also a speed."""
    context = dict(facts)
    if tier is not None:
        context["service_tier"] = tier
    if tier == "batch":
        context["processing"] = "batch"
    if tier == "fast":
        context["speed"] = "fast"
    return context or None


def _compile(provider: genai.Provider, info: genai.ModelInfo, prices: genai.ModelPrice) -> ModelPrice | None:
    quotes: dict[str, int] = {}
    brackets: dict[int, dict[str, int]] = {}
    for key, value in prices.__dict__.items():
        unit = UNIT_OF_PRICE_KEY.get(key)
        if unit is None or value is None:
            continue
        quotes[unit] = _nanos(getattr(value, "base", value))
        for tier in getattr(value, "tiers", ()):
            brackets.setdefault(tier.start, {})[unit] = _nanos(tier.price)
    if not quotes:
        # An empty table means either "free" or "not known"; only the names that say free are believed.
        if not info.id.endswith(":free") and info.id != "moderation":
            return None
        quotes = {"input_tokens": 0, "output_tokens": 0}
    return compile_price(
        info.id,
        f"genai-prices {provider.id}/{info.id}",
        quotes,
        _filled_up(brackets),
        # Groq bills at least ten seconds a transcription (https://console.groq.com/docs/speech-to-text).
        audio_us_min=10_000_000 if provider.id == "groq" and info.id.startswith("whisper-large-v3") else 0,
        # Gemini before 3 bills grounding per prompt, later ones per query (https://ai.google.dev/gemini-api/docs/pricing).
        searches_max=1 if info.id.startswith(("gemini-1", "gemini-2")) else None,
    )


def _filled_up(brackets: dict[int, dict[str, int]]) -> dict[int, dict[str, int]]:
    """Each unit keeps the rate of the last bracket that named it."""
    carried: dict[str, int] = {}
    filled = {}
    for start in sorted(brackets):
        carried = {**carried, **brackets[start]}
        filled[start] = carried
    return filled


def _nanos(dollars: Decimal) -> int:
    # A few upstream quotations are binary fractions written out; half a nano-USD per million tokens is nothing.
    return int((dollars * NANOS_PER_USD).to_integral_value(ROUND_HALF_EVEN))


def _validity(info: genai.ModelInfo, at: datetime) -> tuple[datetime | None, datetime | None]:
    """The moments around `at` at which another price may begin; None where the price is open."""
    from genai_prices.types import StartDateConstraint

    constraints = [c.constraint for c in info.prices if c.constraint] if isinstance(info.prices, list) else []
    constraints += [variant.constraint for variant in info.price_variants or () if variant.constraint]
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    moments: set[datetime] = set()
    for constraint in constraints:
        if isinstance(constraint, StartDateConstraint):
            day = constraint.start_date
            moments.add(datetime(day.year, day.month, day.day, tzinfo=UTC))
        else:
            moments.update((midnight, midnight + timedelta(days=1)))
            for clock in (constraint.start_time, constraint.end_time):
                moment = datetime.combine(midnight.date(), clock, tzinfo=clock.tzinfo or UTC).astimezone(UTC)
                moments.update(moment + timedelta(days=days) for days in (-1, 0, 1))
    before = [moment for moment in moments if moment <= at]
    after = [moment for moment in moments if moment > at]
    return max(before, default=None), min(after, default=None)
