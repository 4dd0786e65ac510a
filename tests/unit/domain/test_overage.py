"""domain/overage.py: who may go how far below zero, and what is charged when."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lava_proxy.domain.overage import (
    bundle_cents,
    effective_overage,
    is_bundle_due,
    line_of,
    month_start,
    next_month_start,
    overage_cents,
)
from lava_proxy.domain.plans import BLOCK, Bundle, Overage

USD = 1_000_000_000
CHARGE = Overage(policy="charge", limit_nanos=50 * USD, threshold_nanos=10 * USD, increment_nanos=USD, monthly_cap_nanos=100 * USD)
BUNDLE = Bundle(
    credit_bundle_id="cb_1", plan_id="sc_1", name="Extra", cost_nanos=5 * USD, credit_nanos=8 * USD,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


def test_the_nearest_choice_decides_and_no_choice_blocks() -> None:
    assert effective_overage(BLOCK, CHARGE, CHARGE, has_bundle=True) is BLOCK
    assert effective_overage(None, CHARGE, BLOCK, has_bundle=True) is CHARGE
    assert effective_overage(None, None, CHARGE, has_bundle=False) is CHARGE
    assert effective_overage(None, None, None, has_bundle=False) is BLOCK
    assert effective_overage(None, None, None, has_bundle=True).policy == "auto_top_up"


def test_only_a_chargeable_card_opens_a_line() -> None:
    open_line = line_of(CHARGE, "", has_bundle=False)
    assert open_line is not None and (open_line.overdraft_nanos, open_line.debt_nanos_min) == (50 * USD, 10 * USD)
    limited = line_of(CHARGE, "suspended", has_bundle=False)
    assert limited is not None and limited.overdraft_nanos == 0
    top_up = line_of(Overage(policy="auto_top_up"), "", has_bundle=True)
    assert top_up is not None and (top_up.overdraft_nanos, top_up.balance_nanos_max) == (0, 0)
    assert line_of(Overage(policy="auto_top_up"), "", has_bundle=False) is None
    assert line_of(BLOCK, "", has_bundle=True) is None


@pytest.mark.parametrize(
    ("debt", "spent", "is_cycle_end", "cents"),
    [
        (0, 0, True, None),
        (10 * USD - 1, 0, False, None),
        (10 * USD, 0, False, 1000),
        (10 * USD + 1, 0, False, 1100),  # the whole gap, rounded up
        (37 * USD, 0, False, 3700),
        (1, 0, True, 100),
        (37 * USD, 80 * USD, False, 2000),  # what the month's cap leaves
        (37 * USD, 100 * USD, False, 0),
        (37 * USD, 100 * USD - 400_000_000, False, 0),  # less than a card can be charged
    ],
)
def test_the_whole_gap_is_charged_in_one(debt: int, spent: int, is_cycle_end: bool, cents: int | None) -> None:
    """60, 63: within the month's cap."""
    assert overage_cents(CHARGE, debt, spent, is_cycle_end=is_cycle_end) == cents


def test_a_card_is_never_charged_less_than_it_can_be() -> None:
    assert overage_cents(replace(CHARGE, increment_nanos=USD // 100), 1, 0, is_cycle_end=True) == 50


@pytest.mark.parametrize(
    ("is_low", "plan", "funds", "needed", "is_due"),
    [
        (True, 0, 0, 0, True),
        (True, 1, 0, 0, False),
        (True, 0, 1, 0, False),
        (False, 0, 0, 0, False),  # nothing was used: a new customer buys nothing
        (False, 0, -USD, 1, True),
        (False, 2 * USD, 0, 4 * USD, True),
        (False, 2 * USD, 0, 2 * USD, False),  # it is there by now
        (False, 2 * USD, 0, 10 * USD, True),
        (False, 2 * USD, 0, 10 * USD + 1, False),  # one bundle would not let it pass
    ],
)
def test_a_bundle_is_due_when_it_helps(is_low: bool, plan: int, funds: int, needed: int, is_due: bool) -> None:
    found = is_bundle_due(
        BUNDLE, is_low=is_low, plan_nanos=plan, funds_nanos=funds, spendable_nanos=max(plan, 0) + max(funds, 0), needed_nanos=needed
    )
    assert found is is_due


def test_a_bundle_fits_the_cap_wholly_or_not() -> None:
    assert bundle_cents(CHARGE, BUNDLE, 95 * USD) == 500
    assert bundle_cents(CHARGE, BUNDLE, 95 * USD + 1) == 0


def test_months_are_those_of_utc() -> None:
    late = datetime.fromisoformat("2026-12-31T23:30:00-02:00")
    assert month_start(late) == datetime(2027, 1, 1, tzinfo=UTC)
    assert next_month_start(datetime(2026, 12, 31, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert next_month_start(datetime(2026, 11, 1, tzinfo=UTC)) == datetime(2026, 12, 1, tzinfo=UTC)
