"""Fees as laws: split independence, sums of parts, validity ranges, monotony, purity."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.catalog import MeterVersion, RateType, Tier
from lava_proxy.domain.fees import POSITION_MAX, Charge, ceiling_charge, charge
from lava_proxy.domain.money import Nanos, round_half_even
from lava_proxy.domain.prices import Cost
from lava_proxy.domain.usage import Usage, token_usage

starts = st.lists(st.integers(1, 20_000), max_size=4, unique=True).map(lambda found: [0, *sorted(found)])
rates = st.integers(0, 50_000_000)


@st.composite
def meters(draw: st.DrawFn, rate_type: RateType = "fixed") -> MeterVersion:
    tiers = tuple(Tier(start=start, rate=draw(rates)) for start in draw(starts))
    return MeterVersion(version_id=1, meter_id="m", slug="s", name="n", rate_type=rate_type, tier_type="tokens_1m", tiers=tiers)


def tokens(units: int) -> Usage:
    return token_usage(units, 0)


costs = st.builds(
    lambda numerator, denominator: Cost(numerator, denominator, Nanos(round_half_even(numerator, denominator))),
    st.integers(0, 10**9),
    st.sampled_from([1, 10, 1_000_000, 3_600_000_000]),
)


def exact(found: Charge) -> Fraction:
    return sum((Fraction(line.numerator, found.denominator) for line in found.breakdown), Fraction(0))


@given(meters(), st.lists(st.integers(0, 9_000), max_size=8), st.integers(0, 30_000))
def test_splitting_the_same_units_into_requests_changes_the_sum_by_rounding_only(
    meter: MeterVersion, parts: list[int], position: int
) -> None:
    """I30: graduated prices do not depend on how units are split, up to one rounding per request."""
    whole = charge(meter, tokens(sum(parts)), None, position)
    at, amount, total = position, 0, Fraction(0)
    for units in parts:
        found = charge(meter, tokens(units), None, at)
        at, amount, total = at + found.units, amount + found.amount_nanos, total + exact(found)
    assert total == exact(whole)
    assert at == position + whole.units
    assert abs(amount - whole.amount_nanos) <= Fraction(len(parts) + 1, 2)


@given(meters(), st.permutations([3, 700, 15_000]), st.integers(0, 30_000))
def test_the_order_of_requests_does_not_change_their_exact_sum(meter: MeterVersion, parts: list[int], position: int) -> None:
    """110: allocation is independent of order."""
    at, total = position, Fraction(0)
    for units in parts:
        found = charge(meter, tokens(units), None, at)
        at, total = at + found.units, total + exact(found)
    assert total == exact(charge(meter, tokens(15_703), None, position))


@given(meters(), st.integers(0, 40_000), st.integers(0, 40_000))
def test_parts_sum_to_the_amount_and_none_is_negative(meter: MeterVersion, units: int, position: int) -> None:
    """I29, 114: the shown parts are what was charged, each within a nano of its exact share."""
    found = charge(meter, tokens(units), None, position)
    assert sum(line.cost_nanos for line in found.breakdown) == found.amount_nanos
    assert sum(line.units for line in found.breakdown) == found.units == units
    assert found.amount_nanos == round_half_even(*exact(found).as_integer_ratio())
    for line in found.breakdown:
        assert line.cost_nanos >= 0 < line.units
        assert abs(line.cost_nanos - Fraction(line.numerator, found.denominator)) <= 1


@given(meters("percentage"), costs, st.integers(0, 40_000), st.booleans())
def test_percentage_parts_sum_too(meter: MeterVersion, cost: Cost, position: int, byok: bool) -> None:
    """I29: also with a cost that is not a whole number of nanos; nothing is lost between tiers."""
    found = charge(meter, Usage(), cost, position, byok=byok)
    assert sum(line.cost_nanos for line in found.breakdown) == found.amount_nanos
    assert found.units == cost.nanos
    assert all(line.cost_nanos >= 0 for line in found.breakdown)
    least = Fraction(cost.numerator, cost.denominator) * (0 if byok else 1)
    assert exact(found) >= least


@given(meters(), st.integers(0, 25_000), st.integers(0, 40_000), st.data())
def test_the_charge_holds_everywhere_in_its_range(meter: MeterVersion, units: int, position: int, data: st.DataObject) -> None:
    """I28: a script may apply the precomputed charge while the counter is inside the range."""
    found = charge(meter, tokens(units), None, position)
    assert found.position_lo <= position <= found.position_hi <= POSITION_MAX
    for other in (found.position_lo, found.position_hi, data.draw(st.integers(found.position_lo, found.position_hi))):
        assert charge(meter, tokens(units), None, other) == found
    for outside in (found.position_lo - 1, found.position_hi + 1):
        if units and 0 <= outside <= POSITION_MAX:
            again = charge(meter, tokens(units), None, outside)
            assert [line.tier for line in again.breakdown] != [line.tier for line in found.breakdown] or (
                [line.units for line in again.breakdown] != [line.units for line in found.breakdown]
            )


@given(meters("percentage"), costs, st.integers(0, 40_000), st.data())
def test_the_percentage_range_is_true_as_well(meter: MeterVersion, cost: Cost, position: int, data: st.DataObject) -> None:
    found = charge(meter, Usage(), cost, position)
    other = data.draw(st.integers(found.position_lo, found.position_hi))
    assert charge(meter, Usage(), cost, other) == found


@given(meters(), st.lists(st.integers(0, 40_000), min_size=2, max_size=6).map(sorted), st.integers(0, 40_000))
def test_more_units_never_cost_less(meter: MeterVersion, sizes: list[int], position: int) -> None:
    """I30: monotone."""
    amounts = [charge(meter, tokens(units), None, position).amount_nanos for units in sizes]
    assert all(less <= more for less, more in pairwise(amounts))


@given(meters(), st.integers(0, 9_000), st.integers(0, 9_000), st.integers(0, 30_000), st.integers(0, 30_000))
def test_the_hold_covers_the_charge_wherever_the_counter_moves(
    meter: MeterVersion, used: int, spare: int, position: int, moved: int
) -> None:
    hold = ceiling_charge(meter, tokens(used + spare), None, position)
    assert charge(meter, tokens(used), None, position + moved).amount_nanos <= hold


@given(meters("percentage"), costs, st.integers(0, 30_000), st.booleans())
def test_rating_the_same_row_again_gives_the_same_charge(meter: MeterVersion, cost: Cost, position: int, byok: bool) -> None:
    """I28: a pure function."""
    assert charge(meter, Usage(), cost, position, byok=byok) == charge(meter, Usage(), cost, position, byok=byok)
