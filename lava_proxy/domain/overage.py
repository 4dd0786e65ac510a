"""What is due of a wallet beyond its credit: whether its card is charged, for how much, and which line it may go down. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from lava_proxy.domain.money import NANOS_PER_CENT
from lava_proxy.domain.plans import BLOCK, Bundle, Overage

LimitedReason = Literal["", "no_card", "suspended", "requires_action"]

CARD_CENTS_MIN = 50  # less cannot be charged to a card
_FAR_NANOS = 9_000_000_000_000_000  # a debt that no wallet has


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Where a wallet is noticed, and how far below zero its calls may go."""

    policy: Literal["charge", "auto_top_up"]
    debt_nanos_min: int
    balance_nanos_max: int
    overdraft_nanos: int
    limited_reason: LimitedReason


def effective_overage(own: Overage | None, of_plan: Overage | None, of_merchant: Overage | None, *, has_bundle: bool) -> Overage:
    """The connection's policy, else its plan's, else the merchant's.

    A subscription with an automatic bundle buys it where no policy was chosen anywhere; otherwise nothing chosen is `block`.
    """
    for chosen in (own, of_plan, of_merchant):
        if chosen is not None:
            return chosen
    return Overage(policy="auto_top_up") if has_bundle else BLOCK


def line_of(overage: Overage, limited: LimitedReason, *, has_bundle: bool) -> Line | None:
    """The line that a policy gives; None where calls beyond the credit are simply refused."""
    if overage.policy == "charge":
        return Line(
            policy="charge", debt_nanos_min=overage.threshold_nanos, balance_nanos_max=-_FAR_NANOS,
            overdraft_nanos=0 if limited else overage.overdraft_nanos, limited_reason=limited,
        )  # fmt: skip
    if overage.policy == "auto_top_up" and has_bundle:
        return Line(policy="auto_top_up", debt_nanos_min=_FAR_NANOS, balance_nanos_max=0, overdraft_nanos=0, limited_reason=limited)
    return None


def overage_cents(overage: Overage, debt_nanos: int, spent_nanos: int, *, is_cycle_end: bool) -> int | None:
    """What to charge for a debt now: None: nothing is due; 0: the month's cap leaves nothing.

    Due is a debt of the threshold, and at a cycle's end any debt. Never less than a card can be charged.
    """
    if debt_nanos <= 0 or (debt_nanos < overage.threshold_nanos and not is_cycle_end):
        return None
    room_cents = max(0, overage.monthly_cap_nanos - spent_nanos) // NANOS_PER_CENT
    cents = max(overage.charge_cents(debt_nanos, spent_nanos), CARD_CENTS_MIN)
    return cents if cents <= room_cents else 0


def bundle_cents(overage: Overage, bundle: Bundle, spent_nanos: int) -> int:
    """What buying a bundle costs; 0 when the month's cap does not allow it."""
    return bundle.cost_nanos // NANOS_PER_CENT if bundle.cost_nanos + spent_nanos <= overage.monthly_cap_nanos else 0


def is_bundle_due(
    bundle: Bundle, *, is_low: bool, plan_nanos: int, funds_nanos: int, spendable_nanos: int, needed_nanos: int
) -> bool:
    """Is the automatic bundle to be bought? `plan_nanos`, `funds_nanos`: with what open calls hold; `spendable_nanos`: without.

    When everything is used up; and when a call was refused that one bundle more would let pass. A call that asks for more than that
    buys nothing: it would be refused again, and buy again.
    """
    is_used_up = plan_nanos <= 0 and funds_nanos <= 0
    if is_used_up:
        return is_low or needed_nanos > 0
    return spendable_nanos < needed_nanos <= spendable_nanos + bundle.credit_nanos


def month_start(at: datetime) -> datetime:
    """The first instant of a moment's UTC calendar month."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month_start(at: datetime) -> datetime:
    """The first instant of the month after."""
    start = month_start(at)
    return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
