"""Plans and what follows from them: credit a cycle, rollover, bundles, what happens beyond the credit, proration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast, get_args

from lava_proxy.domain.calendar import Interval, Period
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.money import NANOS_PER_CENT, NANOS_PER_USD, format_usd, parse_usd, round_half_even

Rollover = Literal["full", "none"]
LotClass = Literal["cycle", "bundle"]
OveragePolicy = Literal["charge", "auto_top_up", "block"]
SubscriptionStatus = Literal["active", "past_due", "cancelled"]

CARD_CENTS_MIN = 50  # a card is charged nothing or at least this (docs.stripe.com/currencies#minimum-and-maximum-charge-amounts)
PLAN_AMOUNT_NANOS_MAX = 10_000 * NANOS_PER_USD  # a cycle; the contract's bound
_OVERAGE_NANOS_MAX = 100_000 * NANOS_PER_USD


@dataclass(frozen=True, slots=True, kw_only=True)
class Overage:
    """What happens when usage passes the credit.

    block: calls are refused (402). auto_top_up: the bundle is bought, so that the next call passes. charge: calls go on down an
    overdraft line of `limit_nanos`; a debt of `threshold_nanos`, and any debt at the end of a cycle, is charged to the card for the
    whole gap, rounded up to `increment_nanos`, at most `monthly_cap_nanos` a calendar month (UTC), open charges included.
    """

    policy: OveragePolicy = "block"
    limit_nanos: int = 50 * NANOS_PER_USD
    threshold_nanos: int = 10 * NANOS_PER_USD
    increment_nanos: int = NANOS_PER_USD
    monthly_cap_nanos: int = 500 * NANOS_PER_USD

    def __post_init__(self) -> None:
        assert 0 < self.threshold_nanos <= self.limit_nanos and self.increment_nanos >= NANOS_PER_CENT
        assert self.increment_nanos % NANOS_PER_CENT == 0

    @property
    def overdraft_nanos(self) -> int:
        """How far below zero a reserve may go."""
        return self.limit_nanos if self.policy == "charge" else 0

    def charge_cents(self, debt_nanos: int, spent_nanos: int) -> int:
        """What to charge for a debt, when `spent_nanos` have been (or are being) charged this month; 0: the cap leaves nothing."""
        steps = -(-debt_nanos // self.increment_nanos)
        room = max(0, self.monthly_cap_nanos - spent_nanos)
        return min(steps * self.increment_nanos, room) // NANOS_PER_CENT


BLOCK = Overage()
_OVERAGE_AMOUNTS = ("limit", "threshold", "increment", "monthly_cap")


def parse_overage(document: Mapping[str, Any], present: Overage = BLOCK) -> Overage:
    """{"policy", "limit", "threshold", "increment", "monthly_cap"} (dollars as text) over what is present; else CallerError."""
    problems = [f"overage.{name} is not a field; accepted are policy, {', '.join(_OVERAGE_AMOUNTS)}." for name in document
                if name != "policy" and name not in _OVERAGE_AMOUNTS]  # fmt: skip
    policy = document.get("policy", present.policy)
    if policy not in get_args(OveragePolicy):
        problems.append(f"overage.policy is {policy!r}; accepted are {', '.join(get_args(OveragePolicy))}.")
    amounts = {name: getattr(present, f"{name}_nanos") for name in _OVERAGE_AMOUNTS}
    for name in _OVERAGE_AMOUNTS:
        if name in document:
            try:
                amounts[name] = parse_usd(str(document[name]))
            except ValueError as error:
                problems.append(f"overage.{name}: {error}.")
    if not problems:
        problems = _overage_problems(amounts)
    if problems:
        raise CallerError(" ".join(problems), code="invalid_parameter")
    return Overage(policy=policy, **{f"{name}_nanos": value for name, value in amounts.items()})


def _overage_problems(amounts: Mapping[str, int]) -> list[str]:
    found = [f"overage.{name} must be above 0 and at most $100,000." for name, nanos in amounts.items()
             if not 0 < nanos <= _OVERAGE_NANOS_MAX]  # fmt: skip
    if amounts["threshold"] > amounts["limit"]:
        found.append("overage.threshold must not be above overage.limit: the card would never be charged before calls are refused.")
    if amounts["increment"] % NANOS_PER_CENT:
        found.append("overage.increment must be whole cents.")
    return found


def overage_document(overage: Overage) -> dict[str, str]:
    """The JSON form that `parse_overage` reads."""
    return {"policy": overage.policy} | {name: format_usd(getattr(overage, f"{name}_nanos"), 9) for name in _OVERAGE_AMOUNTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a subscription was sold as: a snapshot, so that editing a plan changes no running cycle."""

    plan_id: str
    name: str
    period_amount_nanos: int
    included_credit_nanos: int
    billing_interval: Interval
    rollover_type: Rollover = "none"
    bundle_rollover_type: Rollover = "full"

    @property
    def is_free(self) -> bool:
        return self.period_amount_nanos == 0

    @property
    def ends(self) -> frozenset[LotClass]:
        """The classes of plan credit of which nothing is left after a renewal."""
        rules: tuple[tuple[LotClass, Rollover], ...] = (("cycle", self.rollover_type), ("bundle", self.bundle_rollover_type))
        return frozenset(kind for kind, rollover in rules if rollover == "none")

    def document(self) -> dict[str, Any]:
        """The JSON form that `parse_terms` reads; amounts are integer nanos."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def parse_terms(document: Mapping[str, Any]) -> Terms:
    """The snapshot as it was stored."""
    return Terms(**{name: cast(Any, document[name]) for name in Terms.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Credit that can be bought on top of a plan's own."""

    credit_bundle_id: str
    plan_id: str
    name: str
    cost_nanos: int
    credit_nanos: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A merchant's offer. Amount and interval never change; a dearer plan is another plan."""

    plan_id: str
    merchant_id: str
    terms: Terms
    overage: Overage | None  # None: the merchant's
    default_auto_top_up_bundle_id: str | None
    is_default: bool
    created_at: datetime
    meters: tuple[tuple[str, str], ...] = ()  # (meter_id, name) of those that draw on plan credit
    bundles: tuple[Bundle, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A connection on a plan. `cycle` is the period that runs; `anchor_at` is where its calendar began."""

    subscription_id: str
    merchant_id: str
    connection_id: str
    wallet_id: str
    terms: Terms
    status: SubscriptionStatus
    auto_top_up_bundle_id: str | None
    time_zone: str
    anchor_at: datetime
    cycle: Period
    due_at: datetime  # when the renewals look at it next: the cycle's end, or later while a card is tried
    pending: dict[str, Any] | None  # {"type": "cancellation"} or {"type": "downgrade", "plan_id": ...}; happens at the cycle's end
    started_at: datetime
    cancelled_at: datetime | None = None
    contact: dict[str, Any] = field(default_factory=dict)

    @property
    def cycle_id(self) -> str:
        """Names the cycle in tier counters: unique for the connection, for ever."""
        return cycle_name(self.subscription_id, self.cycle.start)


def cycle_name(subscription_id: str, start: datetime) -> str:
    """What a subscription's cycle is called in tier counters."""
    return f"{subscription_id}.{start.astimezone(UTC):%Y%m%dT%H%M%S}"


ChangeKind = Literal["start", "upgrade", "downgrade", "resume", "none"]
_CYCLES_PER_YEAR: dict[str, int] = {"day": 365, "week": 52, "month": 12, "year": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What moving to a plan means.

    start and upgrade happen now, with a new cycle; a downgrade waits for the cycle's end; resume takes a pending change back;
    none: the customer is on this plan already. `grant_nanos` is the credit of the cycle that begins now. `leftover_nanos`: what a
    card has to be charged beyond the price because it cannot be charged less; it goes to the customer's funds.
    """

    kind: ChangeKind
    amount_cents: int = 0
    grant_nanos: int = 0
    leftover_nanos: int = 0

    @property
    def happens_now(self) -> bool:
        return self.kind in ("start", "upgrade")


def change_to(plan: Terms, current: Subscription | None, at: datetime) -> Change:
    """What a change to a plan at a moment means and costs.

    Dearer over a year and not cheaper a cycle is an upgrade: a new cycle begins now at the new price, less the old price for the
    time of the old cycle that is left, by the microsecond. Its credit is the new plan's less the old plan's in the same proportion,
    and what the customer still has of the old cycle stays: nobody gets more credit than was paid for, and nothing that was paid for
    is lost. Anything else between paid plans is a downgrade: no money goes back, so it waits for the end of what was paid.
    """
    if current is None or (current.terms.is_free and not plan.is_free):
        return Change(kind="start", amount_cents=plan.period_amount_nanos // NANOS_PER_CENT, grant_nanos=plan.included_credit_nanos)
    old = current.terms
    if plan.plan_id == old.plan_id:
        return Change(kind="none" if current.pending is None else "resume")
    is_dearer = _yearly(plan) > _yearly(old) and plan.period_amount_nanos >= old.period_amount_nanos
    if not is_dearer and not old.is_free:
        return Change(kind="downgrade")
    due = plan.period_amount_nanos - unused_nanos(old.period_amount_nanos, current.cycle, at)
    cents = round_half_even(due, NANOS_PER_CENT)
    charged = max(cents, CARD_CENTS_MIN) if cents else 0
    return Change(
        kind="upgrade",
        amount_cents=charged,
        grant_nanos=max(0, plan.included_credit_nanos - unused_nanos(old.included_credit_nanos, current.cycle, at)),
        leftover_nanos=(charged - cents) * NANOS_PER_CENT,
    )


def _yearly(terms: Terms) -> int:
    return terms.period_amount_nanos * _CYCLES_PER_YEAR[terms.billing_interval]


def unused_nanos(amount_nanos: int, cycle: Period, at: datetime) -> int:
    """The part of a cycle's price for the time after `at`, over the whole length of that cycle; rounded half-even once."""
    if at <= cycle.start:
        return amount_nanos
    if at >= cycle.end:
        return 0
    whole, left = cycle.end - cycle.start, cycle.end - at
    return round_half_even(amount_nanos * _microseconds(left), _microseconds(whole))


def _microseconds(delta: timedelta) -> int:
    return delta // timedelta(microseconds=1)
