"""Money on a calendar: starting, changing, renewing and ending a plan. Each cycle is begun once, however often it is asked for.

Nothing here talks to a card. A paid step is opened as a charge by the caller, with what it is for in its `subject`; when it has
been captured, an effect (`effects`) runs in the charge's own transaction. Money that came in for a step that cannot be taken any
more (the subscription has ended or moved on meanwhile) becomes funds of the customer: paid is paid.

What a change costs and grants is `domain/plans.change_to`. Locks are taken in one order: charge, connection, subscription.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from lava_proxy.billing.charges import Effect, bundle_credit_id, cycle_credit_id, unused_credit_id
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.calendar import Period, period, period_at
from lava_proxy.domain.errors import Conflict, LavaError, NotFound
from lava_proxy.domain.money import NANOS_PER_CENT, nanos_of_cents
from lava_proxy.domain.plans import Bundle, Change, LotClass, Plan, Subscription, Terms, change_to, parse_terms
from lava_proxy.domain.webhooks import (
    SUBSCRIPTION_CANCELLED,
    SUBSCRIPTION_CHANGED,
    SUBSCRIPTION_CREATED,
    SUBSCRIPTION_RENEWED,
)
from lava_proxy.stores.catalog_store import Connection
from lava_proxy.stores.charge_store import Charge, Purpose
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.plan_store import PeriodStart, PlanStore
from lava_proxy.stores.webhook_events import add_event

PAST_DUE_MAX = timedelta(days=14)
"""A cycle that was not paid for so long after its start ends the subscription."""

_RETRY = timedelta(minutes=5)  # a renewal that waits for its charge is looked at again so often
_PAST_DUE_RETRY = timedelta(hours=1)  # the charge itself follows its own back-off
_SECOND = timedelta(seconds=1)
_EventType = Literal["subscription.created", "subscription.renewed", "subscription.changed", "subscription.cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A cycle that must be paid before it begins: what the renewals open a charge for. `key` names the occasion, for ever."""

    subscription: Subscription
    amount_cents: int
    key: str
    subject: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beginning:
    """A cycle that is to begin: the subscription with it, and what it was before."""

    after: Subscription
    before: Subscription | None
    grant_nanos: int
    ends: frozenset[LotClass]
    event_type: _EventType
    charge_id: str = ""
    drop_cycles: tuple[str, ...] = ()

    @property
    def needs_order(self) -> bool:
        """Is there credit to give or to end? A cycle of a plan without credit is a date only."""
        had_credit = self.before is not None and self.before.terms.included_credit_nanos > 0
        return self.grant_nanos > 0 or ("cycle" in self.ends and had_credit) or "bundle" in self.ends


class Subscriptions:
    """Decides and applies changes of subscriptions. Raises NotFound and Conflict for callers, StoreError when Postgres is away."""

    def __init__(self, plans: PlanStore, funding: Funding, clock: Callable[[], datetime]) -> None:
        """`clock`: business time."""
        self._plans = plans
        self._funding = funding
        self._clock = clock

    # -- changes that a caller asks for

    async def quote(self, connection_id: str, plan: Plan) -> Change:
        """What it would mean and cost now to put a connection on a plan."""
        return change_to(plan.terms, await self._plans.live_subscription(connection_id), self._clock())

    async def change_unpaid(self, connection: Connection, plan: Plan, *, time_zone: str = "UTC", db: Any = None) -> Subscription:
        """Put a connection on a plan where nothing is due now: a free start, a downgrade, taking back a pending change.

        Raises Conflict (payment_required) where something is due: that goes by checkout. NotFound when the customer was deleted.
        """
        if db is None:
            async with self._plans.transaction() as opened:
                changed = await self.change_unpaid(connection, plan, time_zone=time_zone, db=opened)
            await self.apply_cycle(changed)
            return changed
        if not await self._plans.lock_connection(db, connection.connection_id):
            raise NotFound("This customer has been deleted.")
        now = self._clock()
        current = await self._plans.live_subscription(connection.connection_id, db=db, lock=True)
        change = change_to(plan.terms, current, now)
        if change.amount_cents:
            raise Conflict(
                f"The plan {plan.terms.name!r} has to be paid: create a checkout session for it.", code="payment_required"
            )
        if change.happens_now:
            return await self._begin_plan(db, connection, plan.terms, current, change, time_zone)
        assert current is not None
        pending = {"type": "downgrade", "plan_id": plan.plan_id} if change.kind == "downgrade" else None
        return await self._set_pending(db, current, pending)

    def subject_of_change(self, connection: Connection, plan: Plan, *, time_zone: str = "UTC") -> dict[str, Any]:
        """What the charge of a start or an upgrade (for the `amount_cents` of `quote`) is for; the effects read it."""
        return {
            "connection_id": connection.connection_id,
            "plan_id": plan.plan_id,
            "terms": plan.terms.document(),
            "time_zone": time_zone,
            "at": self._clock().isoformat(),
        }

    def subject_of_bundle(self, connection_id: str, bundle: Bundle) -> dict[str, Any]:
        """What the charge of a bundle (for its cost) is for; the effects read it."""
        return {
            "connection_id": connection_id,
            "plan_id": bundle.plan_id,
            "credit_bundle_id": bundle.credit_bundle_id,
            "name": bundle.name,
            "credit_nanos": bundle.credit_nanos,
        }

    async def cancel(
        self,
        merchant_id: str,
        subscription_id: str,
        *,
        note: Callable[[Any, Subscription], Awaitable[None]] | None = None,
    ) -> Subscription:
        """End a subscription with its cycle; at once where the cycle was not paid. Cancelling again changes nothing.

        `note(db, ended)` runs in the transaction that changes it.
        """
        async with self._plans.transaction() as db:
            found = await self._locked(db, merchant_id, subscription_id)
            if found.status == "cancelled":
                return found
            if not found.terms.is_free and found.status == "active":
                ended = await self._set_pending(db, found, {"type": "cancellation"})
            else:
                ended = await self._end(db, found, self._clock())
            if note is not None and ended != found:
                await note(db, ended)
        if ended.status == "cancelled":
            await self._apply(_end_id(ended))
        return ended

    async def set_auto_top_up(self, merchant_id: str, subscription_id: str, credit_bundle_id: str | None) -> Subscription:
        """The bundle to buy when the credit runs out; None for none. Raises NotFound for a bundle of another plan."""
        async with self._plans.transaction() as db:
            found = await self._locked(db, merchant_id, subscription_id)
            if found.status == "cancelled":
                raise Conflict("This subscription has been cancelled.", code="subscription_cancelled")
            if credit_bundle_id is not None:
                bundle = await self._plans.bundle(merchant_id, credit_bundle_id, db=db)
                if bundle is None or bundle.plan_id != found.terms.plan_id:
                    raise NotFound("The plan of this subscription has no such bundle.", code="bundle_not_found")
            changed = replace(found, auto_top_up_bundle_id=credit_bundle_id)
            await self._plans.update_subscriptions(db, [changed])
            return changed

    async def _set_pending(self, db: Any, current: Subscription, pending: dict[str, Any] | None) -> Subscription:
        if current.pending == pending:
            return current
        changed = replace(current, pending=pending)
        if current.status == "past_due":
            await self._plans.stop_renewal_charges(db, current.wallet_id)  # of the terms that were to be renewed
            changed = replace(changed, due_at=self._clock())
        await self._plans.update_subscriptions(db, [changed])
        await self._tell(db, SUBSCRIPTION_CHANGED, changed)
        return changed

    # -- effects of captured charges, inside their transaction

    def effects(self) -> dict[Purpose, Effect]:
        """What captured charges of these purposes do, for `billing/charges.py`."""
        return {
            "subscription_start": self.started,
            "plan_upgrade": self.started,
            "subscription_renewal": self.renewed,
            "bundle": self.bundle_bought,
            "auto_top_up": self.bundle_bought,
        }

    async def started(self, db: Any, charge: Charge) -> Sequence[str]:
        """A start or an upgrade has been paid: it is priced as of its quote and begins now."""
        subject, terms = charge.subject, parse_terms(charge.subject["terms"])
        if not await self._plans.lock_connection(db, subject["connection_id"]):
            return await self._to_funds(db, charge, charge.captured_cents)
        current = await self._plans.live_subscription(subject["connection_id"], db=db, lock=True)
        quoted_at = datetime.fromisoformat(subject["at"])
        is_same_cycle = current is None or current.cycle.start <= quoted_at
        change = change_to(terms, current, quoted_at if is_same_cycle else self._clock())
        if not change.happens_now or change.amount_cents > charge.captured_cents:
            return await self._to_funds(db, charge, charge.captured_cents)
        owner = _Owner(subject["connection_id"], charge.merchant_id, charge.wallet_id)
        begun = await self._begin_plan(db, owner, terms, current, change, subject["time_zone"], charge.charge_id)
        excess = charge.captured_cents - change.amount_cents + change.leftover_nanos // NANOS_PER_CENT
        return [_event_id(begun), *await self._to_funds(db, charge, excess)]

    async def renewed(self, db: Any, charge: Charge) -> Sequence[str]:
        """The next cycle has been paid. One that has passed while its card was tried is not the one that begins."""
        subject = charge.subject
        found = await self._plans.subscription(charge.merchant_id, subject["subscription_id"], db=db, lock=True)
        if found is None or found.status == "cancelled" or found.cycle.end != datetime.fromisoformat(subject["after"]):
            return await self._to_funds(db, charge, charge.captured_cents)
        terms, anchor = parse_terms(subject["terms"]), datetime.fromisoformat(subject["anchor"])
        cycle = period_at(anchor, terms.billing_interval, max(self._clock(), found.cycle.end), ZoneInfo(found.time_zone))
        top_up = found.auto_top_up_bundle_id
        if terms.plan_id != found.terms.plan_id:
            top_up = (await self._plans.offers(db, [terms.plan_id]))[terms.plan_id].auto_top_up_bundle_id
        beginning = _renewal(found, terms, anchor, cycle, top_up, charge.charge_id)
        if not await self._begin(db, [beginning]):
            return await self._to_funds(db, charge, charge.captured_cents)
        return [_event_id(beginning.after)]

    async def bundle_bought(self, db: Any, charge: Charge) -> Sequence[str]:
        """A bundle has been paid: its credit joins the plan's, for the cycle or for good as the plan says."""
        found = await self._plans.live_subscription(charge.subject["connection_id"], db=db, lock=True)
        if found is None:
            return await self._to_funds(db, charge, charge.captured_cents)
        return [
            await self._funding.grant_bundle(
                charge.merchant_id, charge.wallet_id, int(charge.subject["credit_nanos"]), "bundle", bundle_credit_id(charge),
                expires_at=found.cycle.end if "bundle" in found.terms.ends else None, db=db,
            )
        ]  # fmt: skip

    async def on_transition(self, db: Any, charge: Charge, old: str, new: str) -> None:
        """For `Charges`: a renewal whose card was declined, or wants its holder, is past due; it is tried again."""
        if charge.purpose == "subscription_renewal" and new in ("declined", "requires_action"):
            await self.mark_past_due(charge.merchant_id, charge.subject["subscription_id"], db=db)

    async def _to_funds(self, db: Any, charge: Charge, cents: int) -> Sequence[str]:
        """What was paid and buys nothing else; the order's id, if there is anything."""
        if cents <= 0:
            return ()
        nanos, order_id = nanos_of_cents(cents), unused_credit_id(charge)
        return [await self._funding.fund(charge.merchant_id, charge.wallet_id, nanos, "unused_payment", order_id, db=db)]

    # -- the calendar

    async def advance_due(self, limit: int) -> tuple[int, list[Due]]:
        """Begin what can begin without a card, of up to `limit` due subscriptions: (how many were seen, which must be paid).

        Several may run at once: each subscription is seen by one of them.
        """
        now = self._clock()
        unpaid: list[Due] = []
        beginnings: list[_Beginning] = []
        ended: list[Subscription] = []
        async with self._plans.transaction() as db:
            found = await self._plans.due(db, now, limit)
            offers = await self._plans.offers(db, {_next_plan_id(subscription) for subscription in found})
            for subscription in found:
                if _is_over(subscription, now):
                    is_wanted = (subscription.pending or {}).get("type") == "cancellation"
                    ended.append(await self._end(db, subscription, subscription.cycle.end if is_wanted else now))
                    continue
                offer = offers[_next_plan_id(subscription)]
                anchor = (
                    subscription.cycle.end if (subscription.pending or {}).get("type") == "downgrade" else subscription.anchor_at
                )
                # Cycles that were missed altogether are not made up for: only the one that runs now begins.
                cycle = period_at(anchor, offer.terms.billing_interval, now, ZoneInfo(subscription.time_zone))
                if offer.terms.is_free:
                    is_same_plan = offer.terms.plan_id == subscription.terms.plan_id
                    top_up = subscription.auto_top_up_bundle_id if is_same_plan else offer.auto_top_up_bundle_id
                    beginnings.append(_renewal(subscription, offer.terms, anchor, cycle, top_up))
                else:
                    unpaid.append(_due(subscription, offer.terms, anchor))
            await self._begin(db, beginnings)
            await self._plans.postpone(
                db, [(due.subscription.subscription_id, _next_look(due.subscription, now)) for due in unpaid]
            )
        for beginning in beginnings:
            if beginning.needs_order:
                await self.apply_cycle(beginning.after)
        for subscription in ended:
            await self._apply(_end_id(subscription))
        return len(found), unpaid

    async def mark_past_due(self, merchant_id: str, subscription_id: str, *, db: Any = None) -> None:
        """The card of a renewal was declined, or there is none; the subscription goes on for a while."""
        if db is None:
            async with self._plans.transaction() as opened:
                return await self.mark_past_due(merchant_id, subscription_id, db=opened)
        found = await self._locked(db, merchant_id, subscription_id)
        now = self._clock()
        if found.status == "cancelled" or found.cycle.end > now:
            return
        changed = replace(found, status="past_due")
        await self._plans.update_subscriptions(db, [replace(changed, due_at=_next_look(changed, now))])
        if found.status == "active":
            await self._tell(db, SUBSCRIPTION_CHANGED, changed)

    async def apply_cycle(self, subscription: Subscription) -> None:
        """Give the credit of a subscription's committed cycle now; the applier does it within a second otherwise."""
        await self._apply(_event_id(subscription))

    async def _apply(self, order_id: str) -> None:
        with suppress(LavaError):  # there was no credit to give, or Redis is away: the applier's turn
            await self._funding.apply_order(order_id)

    # -- how cycles begin and end

    async def _begin_plan(
        self, db: Any, owner: Connection | _Owner, terms: Terms, current: Subscription | None, change: Change, zone: str,
        charge_id: str = "",
    ) -> Subscription:  # fmt: skip
        """A plan's first cycle, now. What is left of the old plan's credit stays as long as it would have."""
        # Whole seconds, which is what lots expire by; and later than any cycle before, which names the cycle.
        at = self._clock().replace(microsecond=0)
        if current is not None:
            at = max(at, current.cycle.start.replace(microsecond=0) + _SECOND)
        offer = (await self._plans.offers(db, [terms.plan_id]))[terms.plan_id]
        cycle = period(at, terms.billing_interval, 0, ZoneInfo(zone))
        if current is None:
            after = Subscription(
                subscription_id=new_id("sub"), merchant_id=owner.merchant_id, connection_id=owner.connection_id,
                wallet_id=owner.wallet_id, terms=terms, status="active", auto_top_up_bundle_id=offer.auto_top_up_bundle_id,
                time_zone=zone, anchor_at=at, cycle=cycle, due_at=cycle.end, pending=None, started_at=at,
                contact=getattr(owner, "contact", {}),
            )  # fmt: skip
            await self._plans.insert_subscription(db, after)
        else:
            await self._plans.stop_renewal_charges(db, current.wallet_id)
            after = replace(
                current, terms=terms, status="active", auto_top_up_bundle_id=offer.auto_top_up_bundle_id, time_zone=zone,
                anchor_at=at, cycle=cycle, due_at=cycle.end, pending=None,
                started_at=at if change.kind == "start" else current.started_at,
            )  # fmt: skip
        event_type: _EventType = SUBSCRIPTION_CREATED if change.kind == "start" else SUBSCRIPTION_CHANGED
        beginning = _Beginning(
            after=after,
            before=current,
            grant_nanos=change.grant_nanos,
            ends=frozenset(),
            event_type=event_type,
            charge_id=charge_id,
        )
        begun = await self._begin(db, [beginning])
        assert begun, "a plan's first cycle is later than any before it"
        return after

    async def _begin(self, db: Any, beginnings: list[_Beginning]) -> list[_Beginning]:
        """The one place where cycles begin: guarded by their rows, their credit and the end of the old in one event each.

        Those that had not begun before.
        """
        if not beginnings:
            return []
        starts = [
            PeriodStart(
                subscription=beginning.after, amount_nanos=beginning.after.terms.period_amount_nanos if beginning.charge_id else 0,
                granted_nanos=beginning.grant_nanos, charge_id=beginning.charge_id,
            )
            for beginning in beginnings
        ]  # fmt: skip
        first = await self._plans.begin_periods(db, starts)
        begun = [beginning for beginning in beginnings if beginning.after.subscription_id in first]
        await self._plans.update_subscriptions(db, [beginning.after for beginning in begun])
        for beginning in begun:
            after = beginning.after
            if beginning.needs_order:
                await self._funding.renew_cycle(
                    after.merchant_id, after.wallet_id, _event_id(after), grant_nanos=beginning.grant_nanos, ends=beginning.ends,
                    reason="plan", expires_at=after.cycle.end if "cycle" in after.terms.ends else None,
                    drop_cycles=beginning.drop_cycles, db=db,
                )  # fmt: skip
            if beginning.event_type != SUBSCRIPTION_RENEWED or not after.terms.is_free:
                await self._tell(db, beginning.event_type, after)
        return begun

    async def _end(self, db: Any, subscription: Subscription, at: datetime) -> Subscription:
        """Cancelled: what is left of the cycle's credit ends; bundles stay, and can be spent again on a later subscription."""
        ended = replace(subscription, status="cancelled", pending=None, cancelled_at=at)
        await self._plans.update_subscriptions(db, [ended])
        await self._plans.stop_renewal_charges(db, ended.wallet_id)
        if not ended.terms.is_free:
            await self._funding.renew_cycle(
                ended.merchant_id, ended.wallet_id, _end_id(ended), grant_nanos=0, ends=frozenset({"cycle"}), reason="plan_ended",
                db=db,
            )  # fmt: skip
        await self._tell(db, SUBSCRIPTION_CANCELLED, ended)
        return ended

    async def _tell(self, db: Any, event_type: _EventType, subscription: Subscription) -> None:
        await add_event(
            db, merchant_id=subscription.merchant_id, event_type=event_type, at=self._clock(),
            connection_id=subscription.connection_id, subject_id=subscription.subscription_id, facts=_facts(subscription),
        )  # fmt: skip

    async def _locked(self, db: Any, merchant_id: str, subscription_id: str) -> Subscription:
        found = await self._plans.subscription(merchant_id, subscription_id, db=db, lock=True)
        if found is None:
            raise NotFound("No subscription of yours has this id.")
        return found


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose subscription is paid."""

    connection_id: str
    merchant_id: str
    wallet_id: str


def _renewal(
    before: Subscription, terms: Terms, anchor: datetime, cycle: Period, auto_top_up_bundle_id: str | None, charge_id: str = ""
) -> _Beginning:  # fmt: skip
    """The next cycle of a subscription on what it is sold as from now on."""
    after = replace(
        before, terms=terms, status="active", anchor_at=anchor, cycle=cycle, due_at=cycle.end, pending=None,
        auto_top_up_bundle_id=auto_top_up_bundle_id,
    )  # fmt: skip
    return _Beginning(
        after=after, before=before, grant_nanos=terms.included_credit_nanos, ends=before.terms.ends,
        event_type=SUBSCRIPTION_RENEWED, charge_id=charge_id, drop_cycles=_cycles_over(before),
    )  # fmt: skip


def _due(subscription: Subscription, terms: Terms, anchor: datetime) -> Due:
    """The key is the cycle that ends, not the one that begins: one charge, however long its card is tried."""
    ends_at = subscription.cycle.end
    return Due(
        subscription=subscription,
        amount_cents=terms.period_amount_nanos // NANOS_PER_CENT,
        key=f"ren:{subscription.subscription_id}:{_stamp(ends_at)}:{terms.plan_id}",
        subject={
            "subscription_id": subscription.subscription_id, "connection_id": subscription.connection_id,
            "terms": terms.document(), "anchor": anchor.isoformat(), "after": ends_at.isoformat(),
        },
    )  # fmt: skip


def _next_plan_id(subscription: Subscription) -> str:
    pending: Mapping[str, Any] = subscription.pending or {}
    return str(pending["plan_id"]) if pending.get("type") == "downgrade" else subscription.terms.plan_id


def _is_over(subscription: Subscription, now: datetime) -> bool:
    is_unpaid = subscription.status == "past_due" and now - subscription.cycle.end >= PAST_DUE_MAX
    return is_unpaid or (subscription.pending or {}).get("type") == "cancellation"


def _next_look(subscription: Subscription, now: datetime) -> datetime:
    if subscription.status == "active":
        return now + _RETRY
    return min(now + _PAST_DUE_RETRY, max(now + _SECOND, subscription.cycle.end + PAST_DUE_MAX))


def _cycles_over(before: Subscription) -> tuple[str, ...]:
    """The cycle before the one that ends now: calls of the latter may still be open, of the former none is."""
    if before.cycle.index == 0:
        return ()
    older = period(before.anchor_at, before.terms.billing_interval, before.cycle.index - 1, ZoneInfo(before.time_zone))
    return (replace(before, cycle=older).cycle_id,)


def _facts(subscription: Subscription) -> dict[str, Any]:
    """What an event of a subscription says of it."""
    terms, cycle = subscription.terms, subscription.cycle
    return {
        "subscription": {
            "subscription_id": subscription.subscription_id, "plan_id": terms.plan_id, "name": terms.name,
            "status": public_status(subscription), "is_past_due": subscription.status == "past_due",
            "cycle_start_at": _text(cycle.start), "cycle_end_at": _text(cycle.end),
            "pending_change": None if subscription.pending is None else subscription.pending["type"],
        }
    }  # fmt: skip


def end_facts(ended: Subscription) -> dict[str, str]:
    """What the audit log says of a cancellation: the status it left, and when the subscription ends or ended."""
    return {"status": ended.status, "ends_at": (ended.cancelled_at or ended.cycle.end).isoformat()}


def public_status(subscription: Subscription) -> Literal["active", "cancelled"]:
    """As the API says it: a subscription whose card is being tried is active."""
    return "cancelled" if subscription.status == "cancelled" else "active"


def _event_id(subscription: Subscription) -> str:
    return cycle_credit_id(subscription.subscription_id, subscription.cycle.start)


def _end_id(subscription: Subscription) -> str:
    return f"end_{subscription.subscription_id}"


def _stamp(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y%m%d%H%M%S%f}"


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
