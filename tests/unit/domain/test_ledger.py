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
