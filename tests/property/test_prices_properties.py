"""Costs as laws: never negative, every token priced once, lines sum to the total, the ceiling is a ceiling."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.money import round_half_even
from lava_proxy.domain.prices import QUOTED_PER, ceiling_cost, compile_price, cost
from lava_proxy.domain.usage import Usage

TOKEN_UNITS = [unit for unit in QUOTED_PER if unit.endswith("_tokens")]
quotes = st.dictionaries(st.sampled_from(list(QUOTED_PER)), st.integers(0, 10**12)).map(
    lambda found: {"input_tokens": 2_500_000_000, "output_tokens": 10_000_000_000, **found}
)
amounts = st.integers(-1_000, 3_000_000)
usages = st.dictionaries(st.sampled_from(list(QUOTED_PER)), amounts).map(Usage)
brackets = st.dictionaries(st.integers(0, 2_000_000), quotes, max_size=2)


@given(quotes, brackets, usages)
def test_a_cost_is_never_negative_and_its_lines_sum_to_it(
    rates: dict[str, int], above: dict[int, dict[str, int]], usage: Usage
) -> None:
    """A5: whatever a provider reports."""
    found = cost(compile_price("m", "t", rates, above), usage)
    assert found.nanos >= 0
    assert sum(line.numerator for line in found.lines) == found.numerator
    assert found.nanos == round_half_even(found.numerator, found.denominator)
    assert all(line.quantity > 0 and line.numerator >= 0 for line in found.lines)


@given(quotes, usages)
def test_every_token_is_priced_exactly_once(rates: dict[str, int], usage: Usage) -> None:
    """A6: no part of the input is priced as two kinds of token."""
    rates.pop("audio_seconds", None)
    found = cost(compile_price("m", "t", rates), usage)
    inside = [line for line in found.lines if line.unit in TOKEN_UNITS]
    outputs = ("output_", "reasoning", "citation")
    read = sum(line.quantity for line in inside if not line.unit.startswith(outputs))
    generated = sum(line.quantity for line in inside if line.unit.startswith(outputs))
    assert (read, generated) == (max(0, usage.input_tokens), max(0, usage.output_tokens))


@given(quotes, brackets, st.integers(0, 10**6), st.integers(0, 10**6), st.data())
def test_the_ceiling_covers_any_call_within_it(
    rates: dict[str, int], above: dict[int, dict[str, int]], read: int, generated: int, data: st.DataObject
) -> None:
    rates = {unit: rate for unit, rate in rates.items() if unit in ("input_tokens", "cache_write_tokens", "output_tokens")}
    above = {start: {u: r for u, r in found.items() if u in rates} for start, found in above.items()}
    price = compile_price("m", "t", rates, above)
    most = ceiling_cost(price, Usage({"input_tokens": read, "output_tokens": generated})).nanos
    used = data.draw(st.integers(0, read))
    usage = {
        "input_tokens": used,
        "output_tokens": data.draw(st.integers(0, generated)),
        "cache_write_tokens": data.draw(st.integers(0, used)),
    }
    assert cost(price, Usage(usage)).nanos <= most
