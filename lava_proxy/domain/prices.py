"""Provider prices in exact integers: a price book knows what a model costs now, `cost` applies that to a usage.

Every compiled rate is an integer count of 1/COST_DENOMINATOR nano-USD per unit, so a cost is one sum of integer
products and is rounded once, at its end. The denominator keeps every usual quotation exact: per 1,000,000 tokens, per
1,000 pages, per hour of audio counted in microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import NamedTuple, Protocol

from lava_proxy.domain.money import AMOUNT_NANOS_MAX, NANOS_PER_USD, Nanos, round_half_even
from lava_proxy.domain.usage import TOKEN_KEYS, Usage

COST_DENOMINATOR = 3_600_000_000
TICKS_PER_NANO = 10  # xAI's cost_in_usd_ticks counts 1e-10 USD
MEMO_ENTRIES_MAX = 8192  # model names come from callers, so the memo must not grow with them

# How many units one quoted rate is for. Seconds are counted in microseconds, so an hour is 3.6e9 of them.
QUOTED_PER: Mapping[str, int] = {
    "input_tokens": 1_000_000,
    "cached_input_tokens": 1_000_000,
    "cache_write_tokens": 1_000_000,
    "cache_write_1h_tokens": 1_000_000,
    "output_tokens": 1_000_000,
    "input_audio_tokens": 1_000_000,
    "input_image_tokens": 1_000_000,
    "input_video_tokens": 1_000_000,
    "cached_input_audio_tokens": 1_000_000,
    "cached_input_image_tokens": 1_000_000,
    "cached_input_video_tokens": 1_000_000,
    "output_audio_tokens": 1_000_000,
    "output_image_tokens": 1_000_000,
    "output_video_tokens": 1_000_000,
    "reasoning_tokens": 1_000_000,
    "citation_tokens": 1_000_000,
    "input_characters": 1_000_000,
    "audio_seconds": 3_600_000_000,
    "video_seconds": 1_000_000,  # quoted by the second
    "predict_seconds": 1_000_000,
    "pages_processed": 1_000,
    "search_units": 1_000,
    "web_search_requests": 1_000,
    "file_search_calls": 1_000,
    "requests": 1_000,
    "images": 1,
}
PLAIN_UNITS = frozenset({"input_tokens", "cached_input_tokens", "cache_write_tokens", "cache_write_1h_tokens", "output_tokens"})
# Which unit of a usage counts web searches: what the provider reports first, then counts of items in the body.
WEB_SEARCH_UNITS = ("web_search_requests", "web_search_calls", "google_search_queries", "num_search_queries")
FLAT_UNITS = (
    "input_characters",
    "pages_processed",
    "search_units",
    "file_search_calls",
    "images",
    "video_seconds",
    "predict_seconds",
)
SECONDS = frozenset({"audio_seconds", "video_seconds", "predict_seconds"})
SURCHARGED = (*WEB_SEARCH_UNITS, "file_search_calls", "code_interpreter_calls")
"""Tools that are billed beside the tokens; one that a price has no rate for makes the cost too low."""
INPUT_MODALITIES = ("audio", "image", "video")
OUTPUT_SUBSETS = (
    "output_audio_tokens",
    "output_image_tokens",
    "output_video_tokens",
    "reasoning_tokens",
    "citation_tokens",
)


class CostLine(NamedTuple):
    """One line of a cost: `quantity` of `unit`, worth numerator/denominator of the cost it belongs to."""

    unit: str
    quantity: int
    numerator: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs at the provider: exactly numerator/denominator nano-USD; `nanos` is that, rounded once.

    `anomaly`: the usage contradicted itself (more cached than read, a negative count) and was clamped. `uncovered`: a
    reported unit has no rate, so the cost is too low. `reported`: the provider named it, no price of ours was used.
    """

    numerator: int
    denominator: int
    nanos: Nanos
    lines: tuple[CostLine, ...] = ()
    anomaly: bool = False
    uncovered: bool = False
    reported: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Compiled rates of one bracket, in 1/COST_DENOMINATOR nano-USD per unit; fallbacks are resolved.

    A kind of input token without a rate of its own costs what plain input costs, a 1 h cache write what a 5 min one
    does; a rate of zero is a rate. `special` holds the rest by unit name, only where quoted.
    """

    input: int
    cached: int
    cache_write: int
    cache_write_1h: int
    output: int
    special: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """A model's price at one moment. `quoted` names the units that have a rate.

    `brackets` (input tokens above which, rates), highest first: the whole request is priced by the one it reaches.
    `audio_us_min` is the least billed audio; `searches_max` the most web searches billed in one call.
    """

    model: str
    source: str
    base: Rates
    brackets: tuple[tuple[int, Rates], ...] = ()
    quoted: frozenset[str]
    audio_us_min: int = 0
    searches_max: int | None = None
    special_keys: frozenset[str] = field(init=False)  # usage keys that leave the short path of `cost`

    def __post_init__(self) -> None:
        keys = set(self.quoted - PLAIN_UNITS)
        if "web_search_requests" in keys:
            keys.update(WEB_SEARCH_UNITS)
        if "output_image_tokens" in keys:
            keys.add("images")
        object.__setattr__(self, "special_keys", frozenset(keys))


def compile_price(
    model: str,
    source: str,
    quotes: Mapping[str, int],
    brackets: Mapping[int, Mapping[str, int]] | None = None,
    *,
    audio_us_min: int = 0,
    searches_max: int | None = None,
) -> ModelPrice:
    """A ModelPrice from nano-USD quotations per QUOTED_PER units; a bracket replaces only the rates it names."""
    above = {start: {**quotes, **changed} for start, changed in (brackets or {}).items()}
    return ModelPrice(
        model=model,
        source=source,
        base=_compile_rates(quotes),
        brackets=tuple((start, _compile_rates(above[start])) for start in sorted(above, reverse=True)),
        quoted=frozenset(quotes),
        audio_us_min=audio_us_min,
        searches_max=searches_max,
    )


def _compile_rates(quotes: Mapping[str, int]) -> Rates:
    scaled = {unit: quote * (COST_DENOMINATOR // QUOTED_PER[unit]) for unit, quote in quotes.items()}
    plain = scaled.get("input_tokens", 0)
    write = scaled.get("cache_write_tokens", plain)
    return Rates(
        input=plain,
        cached=scaled.get("cached_input_tokens", plain),
        cache_write=write,
        cache_write_1h=scaled.get("cache_write_1h_tokens", write),
        output=scaled.get("output_tokens", 0),
        special={unit: rate for unit, rate in scaled.items() if unit not in PLAIN_UNITS},
    )


def scaled(price: ModelPrice, times: Fraction) -> ModelPrice:
    """The price with every rate of a token multiplied; what is billed by the piece stays."""

    def product(rate: int) -> int:
        return round_half_even(rate * times.numerator, times.denominator)

    def rates(one: Rates) -> Rates:
        return Rates(
            input=product(one.input),
            cached=product(one.cached),
            cache_write=product(one.cache_write),
            cache_write_1h=product(one.cache_write_1h),
            output=product(one.output),
            special={unit: product(rate) if unit.endswith("_tokens") else rate for unit, rate in one.special.items()},
        )

    brackets = tuple((start, rates(above)) for start, above in price.brackets)
    return replace(price, base=rates(price.base), brackets=brackets)


Facts = tuple[tuple[str, str], ...]
"""What a price depends on beside model, tier and time, as (name, value), sorted: ("inference_geo", "us"), ("size", "1024x1792")."""

_FACT = re.compile(r"[a-z0-9][a-z0-9._:-]{0,31}")
_NEUTRAL = frozenset({("speed", "standard"), ("inference_geo", "global"), ("inference_geo", "not_available")})


def facts_of(*named: Mapping[str, object] | Facts) -> Facts:
    """Facts from names and values, later ones winning; what is no short plain word, or means the usual price, is left out."""
    found = {name: value.lower() for some in named for name, value in dict(some).items() if isinstance(value, str)}
    return tuple(sorted(pair for pair in found.items() if _FACT.fullmatch(pair[1]) and pair not in _NEUTRAL))


def tier_with(service_tier: str | None, facts: Facts) -> str | None:
    """A service tier and facts as the one text that price sources and books know them by: `flex;speed=fast`."""
    return ";".join([service_tier or "", *(f"{name}={value}" for name, value in facts)]) if facts else service_tier


def tier_and_facts(tier: str | None) -> tuple[str | None, Facts]:
    """The two parts of `tier_with`."""
    if tier is None or ";" not in tier:
        return tier, ()
    plain, *pairs = tier.split(";")
    return plain or None, tuple((name, value) for name, _, value in (pair.partition("=") for pair in pairs))


def cost(price: ModelPrice, usage: Usage) -> Cost:
    """The provider's cost of a usage. Never negative: what contradicts itself is clamped and flagged."""
    units = usage.units
    get = units.get
    read, cached, written = get("input_tokens", 0), get("cached_input_tokens", 0), get("cache_write_tokens", 0)
    written_1h, generated = get("cache_write_1h_tokens", 0), get("output_tokens", 0)
    anomaly = False
    if not (
        type(read) is int
        and type(cached) is int
        and type(written) is int
        and type(written_1h) is int
        and type(generated) is int
        and cached >= 0 <= written
        and cached + written <= read
        and 0 <= written_1h <= written
        and generated >= 0
    ):
        read, cached, written, written_1h, generated = _clamped(usage)
        anomaly = True
    rates = price.base
    for start, above in price.brackets:
        if read > start:
            rates = above
            break
    if "requests" in rates.special or not price.special_keys.isdisjoint(units):
        return _cost_with_specials(price, rates, usage, (read, cached, written, written_1h, generated), anomaly)
    lines = _token_lines(rates, read - cached - written, cached, written, written_1h, generated)
    return _sum(lines, anomaly, _is_uncovered(price, usage, read, generated))


def _token_lines(rates: Rates, plain: int, cached: int, written: int, written_1h: int, generated: int) -> list[CostLine]:
    lines = []
    if plain:
        lines.append(CostLine("input_tokens", plain, plain * rates.input))
    if cached:
        lines.append(CostLine("cached_input_tokens", cached, cached * rates.cached))
    if written:
        # What the 1 h count does not name is a 5 min write, also when the two parts do not add up to the total.
        written_5m = written - written_1h
        if written_5m:
            lines.append(CostLine("cache_write_tokens", written_5m, written_5m * rates.cache_write))
        if written_1h:
            lines.append(CostLine("cache_write_1h_tokens", written_1h, written_1h * rates.cache_write_1h))
    if generated:
        lines.append(CostLine("output_tokens", generated, generated * rates.output))
    return lines


def _sum(lines: list[CostLine], anomaly: bool, uncovered: bool) -> Cost:
    numerator = 0
    for line in lines:
        numerator += line[2]
    assert numerator >= 0
    nanos = Nanos(round_half_even(numerator, COST_DENOMINATOR))
    return Cost(numerator, COST_DENOMINATOR, nanos, tuple(lines), anomaly, uncovered)


def _is_uncovered(price: ModelPrice, usage: Usage, read: int, generated: int) -> bool:
    quoted = price.quoted
    if len(usage.units) > len(TOKEN_KEYS) and any(
        usage.count(unit) > 0 and ("web_search_requests" if unit in WEB_SEARCH_UNITS else unit) not in quoted for unit in SURCHARGED
    ):
        return True
    if (read or generated) and "input_tokens" in quoted and (not generated or "output_tokens" in quoted):
        return False
    reported = {unit for unit in quoted if _quantity(usage, unit) > 0}
    if reported - PLAIN_UNITS:
        return False  # priced by another unit, e.g. audio by the hour: its tokens are information
    if (read and "input_tokens" not in quoted) or (generated and "output_tokens" not in quoted):
        return True
    return not reported and any(_quantity(usage, unit) > 0 for unit in QUOTED_PER)


def _clamped(usage: Usage) -> tuple[int, int, int, int, int]:
    read = max(0, usage.count("input_tokens"))
    cached = min(max(0, usage.count("cached_input_tokens")), read)
    written = min(max(0, usage.count("cache_write_tokens")), read - cached)
    written_1h = min(max(0, usage.count("cache_write_1h_tokens")), written)
    return read, cached, written, written_1h, max(0, usage.count("output_tokens"))


def _quantity(usage: Usage, unit: str) -> int:
    """A unit's amount as rates count it: an integer, seconds in microseconds, nothing negative."""
    if unit == "requests":
        return 1
    if unit in SECONDS:
        return max(0, microseconds(usage, unit))
    if unit == "web_search_requests":
        if unit in usage.unshown:
            return max(0, _unshown(usage, unit))
        return next((usage.count(name) for name in WEB_SEARCH_UNITS if usage.count(name) > 0), 0)
    return max(0, usage.count(unit))


def _unshown(usage: Usage, unit: str) -> int:
    value = usage.unshown.get(unit, 0)
    return value if isinstance(value, int) else 0


def microseconds(usage: Usage, unit: str) -> int:
    """Seconds of a usage as integer microseconds (half-even); 0 when absent or not a finite number."""
    value = usage.units.get(unit, 0)
    if isinstance(value, int):
        return value * 1_000_000
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < 12:
        return int((value * 1_000_000).to_integral_value(ROUND_HALF_EVEN))
    return 0


def _cost_with_specials(
    price: ModelPrice, rates: Rates, usage: Usage, counts: tuple[int, int, int, int, int], anomaly: bool
) -> Cost:
    """The long path: modalities, reasoning and citation rates, and units that are not tokens."""
    read, cached, written, written_1h, generated = counts
    special = rates.special
    lines: list[CostLine] = []
    seconds_us = _quantity(usage, "audio_seconds") if "audio_seconds" in special else 0

    plain, cached_left = read - cached - written, cached
    for modality in INPUT_MODALITIES:
        unit, cached_unit = f"input_{modality}_tokens", f"cached_input_{modality}_tokens"
        if unit not in special:
            if modality == "audio" and seconds_us:
                # Audio billed by the hour: its tokens are in input_tokens, but are not billed a second time.
                plain -= min(max(0, usage.count(unit)), plain)
            continue
        amount, from_cache = max(0, usage.count(unit)), max(0, usage.count(cached_unit), _unshown(usage, cached_unit))
        if from_cache > min(amount, cached_left):
            from_cache, anomaly = min(amount, cached_left), True
        # Few report where modality and cache overlap; what does not fit beside the cache must have come from it.
        from_cache = max(from_cache, min(amount - plain, cached_left)) if amount > plain else from_cache
        fresh = amount - from_cache
        if fresh > plain:
            fresh, anomaly = plain, True
        plain, cached_left = plain - fresh, cached_left - from_cache
        if fresh:
            lines.append(CostLine(unit, fresh, fresh * special[unit]))
        if from_cache:
            lines.append(CostLine(cached_unit, from_cache, from_cache * special.get(cached_unit, rates.cached)))

    text_out = generated
    for unit in OUTPUT_SUBSETS:
        amount = max(0, usage.count(unit)) if unit in special else 0
        if unit == "output_image_tokens" and unit in special and unit not in usage.units and usage.count("images"):
            amount = generated  # an images API, which may leave out that its output is images
        if amount > text_out:
            amount, anomaly = text_out, True
        if amount:
            text_out -= amount
            lines.append(CostLine(unit, amount, amount * special[unit]))

    for unit in FLAT_UNITS:
        amount = _quantity(usage, unit) if unit in special else 0
        if amount:
            lines.append(CostLine(unit, amount, amount * special[unit]))
    if seconds_us:
        seconds_us = max(seconds_us, price.audio_us_min)
        lines.append(CostLine("audio_seconds", seconds_us, seconds_us * special["audio_seconds"]))
    searches = _quantity(usage, "web_search_requests") if "web_search_requests" in special else 0
    if searches:
        searches = searches if price.searches_max is None else min(searches, price.searches_max)
        lines.append(CostLine("web_search_requests", searches, searches * special["web_search_requests"]))
    if "requests" in special:
        lines.append(CostLine("requests", 1, special["requests"]))
    lines[:0] = _token_lines(rates, plain, cached_left, written, written_1h, text_out)
    return _sum(lines, anomaly, _is_uncovered(price, usage, read, generated))


def ceiling_cost(price: ModelPrice, ceiling: Usage) -> Cost:
    """The most a call within `ceiling` can cost, for its hold.

    Input may turn out to be written to a cache, so it is priced at the dearer of the two; dear modalities and 1 h
    writes count only where the ceiling names them. Of the brackets it can reach, the dearest counts.
    """
    reachable = [price.base, *(rates for start, rates in price.brackets if ceiling.input_tokens > start)]
    return max((_ceiling_in(price, rates, ceiling) for rates in reachable), key=lambda found: found.numerator)


def _ceiling_in(price: ModelPrice, rates: Rates, ceiling: Usage) -> Cost:
    special, named = rates.special, ceiling.units
    inputs = [rates.input, rates.cache_write, *([rates.cache_write_1h] if "cache_write_1h_tokens" in named else [])]
    inputs += [special[unit] for m in INPUT_MODALITIES if (unit := f"input_{m}_tokens") in special and unit in named]
    outputs = [rates.output, *(special[u] for u in ("reasoning_tokens", "citation_tokens") if u in special)]
    outputs += [special[unit] for unit in OUTPUT_SUBSETS if unit in special and unit in named]
    read, generated = max(0, ceiling.input_tokens), max(0, ceiling.output_tokens)
    lines = [
        CostLine("input_tokens", read, read * max(inputs)),
        CostLine("output_tokens", generated, generated * max(outputs)),
    ]
    for unit in (*FLAT_UNITS, "audio_seconds", "web_search_requests", "requests"):
        if unit in special and (amount := _quantity(ceiling, unit)):
            amount = max(amount, price.audio_us_min) if unit == "audio_seconds" else amount
            lines.append(CostLine(unit, amount, amount * special[unit]))
    return _sum(lines, False, _is_uncovered(price, ceiling, read, generated))


def reported_cost(usage: Usage) -> Cost | None:
    """The cost the provider named itself: `cost_in_usd_ticks` (1e-10 USD) or `provider_cost_usd` (Decimal USD).

    None when there is none or it makes no sense (negative, not finite, more than a wallet can hold). Zero is a cost.
    """
    ticks = usage.units.get("cost_in_usd_ticks")
    if isinstance(ticks, int) and 0 <= ticks <= AMOUNT_NANOS_MAX * TICKS_PER_NANO:
        return _exact(ticks, TICKS_PER_NANO)
    dollars = usage.units.get("provider_cost_usd")
    if isinstance(dollars, int):
        dollars = Decimal(dollars)
    if not isinstance(dollars, Decimal) or not dollars.is_finite() or not 0 <= dollars <= AMOUNT_NANOS_MAX:
        return None
    if dollars * NANOS_PER_USD > AMOUNT_NANOS_MAX:
        return None
    # A hostile "1e-999999" must not become a denominator with a million digits.
    if _has_many_places(dollars):
        dollars = dollars.quantize(Decimal("1e-20"), ROUND_HALF_EVEN, Context(prec=60))
    numerator, denominator = dollars.as_integer_ratio()
    return _exact(numerator * NANOS_PER_USD, denominator)


def _has_many_places(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent < -20


def _exact(numerator: int, denominator: int) -> Cost:
    lines = (CostLine("reported_cost", 1, numerator),)
    return Cost(numerator, denominator, Nanos(round_half_even(numerator, denominator)), lines, reported=True)


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """A price and the moments between which it holds: from (inclusive) and until (exclusive), None = open."""

    price: ModelPrice | None
    valid_from: datetime | None = None
    valid_until: datetime | None = None


class PriceSource(Protocol):
    """Where a price book looks a price up the first time it is asked for."""

    def dated(self, price_id: str, model: str, service_tier: str | None, at: datetime) -> DatedPrice:
        """The price in force at an aware UTC time; DatedPrice(None) when the model is unknown. The tier may carry facts."""


class PriceBook:
    """Prices of every provider's models, memoised by (provider, model, tier) within their validity."""

    def __init__(self, version: str, source: PriceSource) -> None:
        self.version = version
        self._source = source
        self._memo: dict[tuple[str, str, str | None], DatedPrice] = {}

    def price_for(self, price_id: str, model: str, *, at: datetime, service_tier: str | None = None) -> ModelPrice | None:
        """The price in force at `at` (aware, UTC), or None when the model is unpriced. `service_tier`: see `tier_with`."""
        key = (price_id, model, service_tier)
        found = self._memo.get(key)
        if found is None or not _holds(found, at):
            found = self._source.dated(price_id, model, service_tier, at)
            if len(self._memo) >= MEMO_ENTRIES_MAX:
                self._memo.clear()
            self._memo[key] = found
        return found.price

    def cost_of(
        self, price_id: str, model: str | None, usage: Usage, *, at: datetime, service_tier: str | None = None
    ) -> Cost | None:
        """What a call cost: as the provider reported it, else by price with other models' share. None = unpriced."""
        if (reported := reported_cost(usage)) is not None:
            return reported
        price = self.price_for(price_id, model, at=at, service_tier=service_tier) if model else None
        if price is None:
            return None
        total = cost(price, usage)
        told = (usage.units.get("other_models"), usage.unshown.get("other_models"))
        for name, units in (pair for others in told if isinstance(others, Mapping) for pair in others.items()):
            if not isinstance(units, Mapping):
                continue
            # A helper model without a price of its own (an advisor too new for the table) is billed as the main one.
            other = self.price_for(price_id, str(name), at=at, service_tier=service_tier)
            total = _add(total, cost(other or price, Usage(units)), uncovered=other is None)
        return total


def _holds(found: DatedPrice, at: datetime) -> bool:
    since, until = found.valid_from, found.valid_until
    return (since is None or at >= since) and (until is None or at < until)


def _add(one: Cost, other: Cost, *, uncovered: bool) -> Cost:
    assert one.denominator == other.denominator == COST_DENOMINATOR
    numerator = one.numerator + other.numerator
    return Cost(
        numerator,
        COST_DENOMINATOR,
        Nanos(round_half_even(numerator, COST_DENOMINATOR)),
        one.lines + other.lines,
        one.anomaly or other.anomaly,
        one.uncovered or other.uncovered or uncovered,
    )
