"""domain/ledger.py: a wallet as its entries tell it, and each thing that does not fit is noted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lava_proxy.domain.ledger import Entry, replay


def credit(wseq: int, amount: int, balance: int, lot: str, debt: int = 0) -> Entry:
    plan = amount if lot.startswith("p") else 0
    return Entry(
        wseq=wseq, kind="credit", request_id=f"crd_{wseq}", amount_nanos=amount, balance_nanos=balance, plan_nanos=plan,
        funds_nanos=amount - plan, debt_nanos=debt, lot_key=lot,
    )  # fmt: skip


def settle(wseq: int, charge: int, balance: int, *, plan: int = 0, debt: int = 0) -> Entry:
    return Entry(
        wseq=wseq, kind="settle", request_id=f"req_{wseq}", amount_nanos=-charge, balance_nanos=balance, plan_nanos=plan,
        funds_nanos=charge - plan, debt_nanos=debt,
    )  # fmt: skip


STORY = [
    credit(1, 100, 100, "f:500:2:1:b"),
    credit(2, 50, 150, "p:500:1:1:a"),
    settle(3, 60, 90, plan=50),
    credit(4, 10, 100, "f:500:1:1:c"),
    settle(5, 15, 85),
    settle(6, 100, -15, debt=15),
    credit(7, 20, 5, "f:500:9:1:d"),
]


def test_a_story_that_fits_gives_balances_lots_and_debt() -> None:
    """I1, I4, I17, I18: lots burn in order within their pot; debt is paid first."""
    wallet = replay(STORY)
    assert wallet.faults == []
    assert (wallet.balance_nanos, wallet.plan_nanos, wallet.funds_nanos, wallet.debt_nanos) == (5, 0, 5, 0)
    assert wallet.lots == {"f:500:9:1:d": 5}
    assert (wallet.credited_nanos, wallet.settled_nanos, wallet.wseq) == (180, 175, 7)
    assert replay(STORY[:5]).lots == {"f:500:2:1:b": 85}
    assert wallet.credited_nanos - wallet.settled_nanos == wallet.balance_nanos


@pytest.mark.parametrize(
    "spoiled",
    [
        STORY[:2] + STORY[3:],
        [STORY[0], STORY[0]],
        [replace(STORY[0], balance_nanos=101)],
        [*STORY[:2], replace(STORY[2], plan_nanos=49)],
        [*STORY[:5], replace(STORY[5], debt_nanos=0)],
        [replace(STORY[0], wseq=2)],
    ],
    ids=["a gap", "twice", "a wrong balance", "pots that do not sum", "a wrong debt", "not from one"],
)
def test_what_does_not_fit_is_noted_and_not_raised(spoiled: list[Entry]) -> None:
    """I4"""
    assert replay(spoiled).faults


CYCLE, NEXT, BUNDLE = "p:400:9:1:a", "p:400:9:2:b", "p:450:9:1:c"


def renew(wseq: int, grant: int, balance: int, lot: str | None, *, ended: int = 0, pinned: int = 0, ends: str = "c") -> Entry:
    return Entry(
        wseq=wseq, kind="renew", request_id=f"ren_{wseq}", amount_nanos=grant - ended, balance_nanos=balance, plan_nanos=grant,
        funds_nanos=0, debt_nanos=0, flags=ends, lot_key=lot, pinned_nanos=pinned,
    )  # fmt: skip


def expire(wseq: int, ended: int, balance: int, lot: str, pinned: int = 0) -> Entry:
    plan = ended if lot[0] in "pq" else 0
    return Entry(
        wseq=wseq, kind="expire", request_id=f"exp_{wseq}", amount_nanos=-ended, balance_nanos=balance, plan_nanos=plan,
        funds_nanos=ended - plan, debt_nanos=0, lot_key=lot, pinned_nanos=pinned,
    )  # fmt: skip


def adjust(wseq: int, delta: int, balance: int, lot: str | None, debt: int = 0, plan: int = 0) -> Entry:
    return Entry(
        wseq=wseq, kind="adjust", request_id=f"adj_{wseq}", amount_nanos=delta, balance_nanos=balance, plan_nanos=plan,
        funds_nanos=abs(delta) - plan, debt_nanos=debt, lot_key=lot,
    )  # fmt: skip


# A cycle with a call open over its renewal: 20 of the old lot are pinned, 15 used, 5 end with the call.
PLANS = [
    renew(1, 100, 100, CYCLE),
    credit(2, 40, 140, BUNDLE),
    renew(3, 60, 120, NEXT, ended=80, pinned=20),
    replace(settle(4, 15, 105, plan=15), opened_wseq=2),
    expire(5, 5, 100, "q:000000000003", pinned=-5),
    replace(settle(6, 10, 90, plan=10), opened_wseq=3),
    expire(7, 40, 50, BUNDLE),
    credit(8, 30, 80, "f:500:9:1:d"),
    adjust(9, -20, 60, "f:500:9:1:d"),
    adjust(10, 5, 65, "f:500:9:2:e"),
    adjust(11, -25, 40, "f:500:9:2:e", debt=10),
]


def test_renewals_expiries_and_adjustments_replay_to_the_same_lots() -> None:
    """I20, I22, I17: what a call kept of an ended lot is burnt by it alone; other lots are not touched."""
    wallet = replay(PLANS)
    assert wallet.faults == []
    assert (wallet.balance_nanos, wallet.plan_nanos, wallet.funds_nanos, wallet.debt_nanos) == (40, 50, -10, 10)
    assert wallet.lots == {NEXT: 50}
    assert replay(PLANS[:3]).lots == {"q:000000000003": 20, BUNDLE: 40, NEXT: 60}
    assert replay(PLANS[:4]).lots == {"q:000000000003": 5, BUNDLE: 40, NEXT: 60}
    assert wallet.credited_nanos - wallet.settled_nanos == wallet.balance_nanos


@pytest.mark.parametrize(
    "spoiled",
    [
        [*PLANS[:2], replace(PLANS[2], flags="cb")],
        [*PLANS[:2], replace(PLANS[2], pinned_nanos=19)],
        [*PLANS[:4], replace(PLANS[4], pinned_nanos=-4)],
        [*PLANS[:4], replace(PLANS[4], amount_nanos=-6, pinned_nanos=-6)],
        [*PLANS[:6], replace(PLANS[6], lot_key=CYCLE)],
        [*PLANS[:6], replace(PLANS[6], amount_nanos=-39)],
        [*PLANS[:10], replace(PLANS[10], plan_nanos=25, funds_nanos=0)],
    ],
    ids=[
        "another class",
        "a pin too small",
        "two amounts",
        "more than pinned",
        "another lot",
        "not all of it",
        "a plan lot it is not",
    ],
)
def test_an_end_that_does_not_fit_its_lot_is_noted(spoiled: list[Entry]) -> None:
    """I20"""
    assert any(fault.startswith("I20: ") for fault in replay(spoiled).faults)
