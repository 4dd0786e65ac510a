"""Money on a calendar: starting, changing, renewing and ending a plan. Each cycle is begun once, however often it is asked for.

Nothing here talks to a card. A paid step is opened as a charge by the caller, with what it is for in its `subject`; when it has
been captured, the effects below run in the charge's own transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.calendar import Period, period, period_at
from lava_proxy.domain.errors import Conflict, NotFound
from lava_proxy.domain.plans import NANOS_PER_CENT, Change, Plan, Subscription, Terms, change_to
from lava_proxy.stores.catalog_store import Connection
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.plan_store import PlanStore

# A renewal that waits for its card is looked at again so often; the charge itself follows its own back-off.
_RETRY = timedelta(hours=1)
# A cycle that was not paid for so long after its start ends the subscription.
PAST_DUE_MAX = timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A cycle that must be paid before it begins: what the renewals open a charge for."""

    subscription: Subscription
    terms: Terms
    amount_cents: int
    subject: dict[str, Any]


class Subscriptions:
    """Decides and applies changes of subscriptions. Raises NotFound and Conflict for callers, StoreError when Postgres is away."""

    def __init__(self, plans: PlanStore, funding: Funding, clock: Callable[[], datetime]) -> None:
        self._plans = plans
        self._funding = funding
        self._clock = clock

    # -- changes that a caller asks for

    async def quote(self, connection_id: str, plan: Plan) -> Change:
        """What it would mean and cost now to put a connection on a plan."""
        return change_to(plan.terms, await self._plans.live_subscription(connection_id), self._clock())

    async def change_unpaid(self, connection: Connection, plan: Plan, *, time_zone: str = "UTC", db: Any = None) -> Subscription:
        """Put a connection on a plan where nothing is due now: a free start, a downgrade, taking back a pending change.

        Raises Conflict (payment_required) where something is due: that goes by checkout.
        """
        if db is None:
            async with self._plans.transaction() as opened:
                return await self.change_unpaid(connection, plan, time_zone=time_zone, db=opened)
        now = self._clock()
        current = await self._plans.live_subscription(connection.connection_id, db=db, lock=True)
        change = change_to(plan.terms, current, now)
        if change.amount_cents:
            raise Conflict(
                f"The plan {plan.terms.name!r} has to be paid: create a checkout session for it.", code="payment_required"
            )
        if change.kind in ("start", "upgrade"):
            return await self._begin_plan(db, connection, plan.terms, current, at=now, charge_id="", change=change, zone=time_zone)
        assert current is not None
        if change.kind == "none":
            return current
        pending = {"type": "downgrade", "plan_id": plan.plan_id} if change.kind == "downgrade" else None
        changed = replace(current, pending=pending)
        await self._plans.update_subscription(db, changed)
        return changed

    def subject_of_change(self, connection: Connection, plan: Plan, *, time_zone: str = "UTC") -> dict[str, Any]:
        """What the charge of a start or an upgrade is for; `started` reads it when the charge has been captured."""
        return {
            "connection_id": connection.connection_id,
            "plan_id": plan.plan_id,
            "terms": plan.terms.document(),
            "time_zone": time_zone,
            "at": self._clock().isoformat(),
        }

    async def cancel(self, merchant_id: str, subscription_id: str) -> Subscription:
        """End a subscription with its cycle; at once where the cycle was not paid. Cancelling again changes nothing."""
        async with self._plans.transaction() as db:
            found = await self._locked(db, merchant_id, subscription_id)
            if found.status == "cancelled" or (found.pending or {}).get("type") == "cancellation":
                return found
            if found.terms.is_free or found.status == "past_due":
                return await self._end(db, found, self._clock())
            changed = replace(found, pending={"type": "cancellation"})
            await self._plans.update_subscription(db, changed)
            return changed

    async def set_auto_top_up(self, merchant_id: str, subscription_id: str, credit_bundle_id: str | None) -> Subscription:
        """The bundle to buy when the credit runs out; None for none. Raises NotFound for a bundle of another plan."""
        async with self._plans.transaction() as db:
            found = await self._locked(db, merchant_id, subscription_id)
            if found.status == "cancelled":
                raise Conflict("This subscription has been cancelled.", code="subscription_cancelled")
            if credit_bundle_id is not None:
                bundle = await self._plans.bundle(merchant_id, credit_bundle_id)
                if bundle is None or bundle.plan_id != found.terms.plan_id:
                    raise NotFound("The plan of this subscription has no such bundle.", code="bundle_not_found")
            changed = replace(found, auto_top_up_bundle_id=credit_bundle_id)
            await self._plans.update_subscription(db, changed)
            return changed

    # -- effects of captured charges, inside their transaction

    async def started(self, db: Any, connection: Connection, subject: Mapping[str, Any], charge_id: str) -> Subscription:
        """A start or an upgrade has been paid."""
        at = datetime.fromisoformat(subject["at"])
        terms = Terms(**subject["terms"])
        current = await self._plans.live_subscription(connection.connection_id, db=db, lock=True)
        change = change_to(terms, current, at)
        return await self._begin_plan(
            db, connection, terms, current, at=at, charge_id=charge_id, change=change, zone=subject["time_zone"]
        )

    async def renewed(self, db: Any, merchant_id: str, subject: Mapping[str, Any], charge_id: str) -> Subscription:
        """The next cycle has been paid."""
        found = await self._locked(db, merchant_id, subject["subscription_id"])
        cycle = Period(
            index=subject["index"], start=datetime.fromisoformat(subject["start"]), end=datetime.fromisoformat(subject["end"])
        )
        anchor = datetime.fromisoformat(subject["anchor"])
        return await self._begin_cycle(db, found, Terms(**subject["terms"]), anchor, cycle, charge_id)

    async def bundle_bought(self, db: Any, merchant_id: str, wallet_id: str, subject: Mapping[str, Any], credit_id: str) -> None:
        """A bundle has been paid: its credit joins the plan's, for the cycle or for good as the plan says."""
        found = await self._plans.live_subscription(subject["connection_id"], db=db)
        ends_with_cycle = found is not None and "bundle" in found.terms.ends
        await self._funding.grant_bundle(
            merchant_id, wallet_id, subject["credit_nanos"], "bundle", credit_id,
            expires_at=found.cycle.end if found is not None and ends_with_cycle else None, db=db,
        )  # fmt: skip

    # -- the calendar

    async def advance_due(self, limit: int) -> tuple[int, list[Due]]:
        """Begin what can begin without a card, of up to `limit` due subscriptions: (how many were seen, which must be paid)."""
        now = self._clock()
        unpaid: list[Due] = []
        async with self._plans.transaction() as db:
            found = await self._plans.due(db, now, limit)
            for subscription in found:
                due = await self._advance(db, subscription, now)
                if due is not None:
                    unpaid.append(due)
        return len(found), unpaid

    async def _advance(self, db: Any, subscription: Subscription, now: datetime) -> Due | None:
        pending = subscription.pending or {}
        overdue = subscription.status == "past_due" and now - subscription.cycle.end > PAST_DUE_MAX
        if pending.get("type") == "cancellation" or overdue:
            await self._end(db, subscription, subscription.cycle.end if not overdue else now)
            return None
        terms, anchor = await self._next_terms(db, subscription, pending)
        zone = _zone(subscription.time_zone)
        # Cycles that were missed altogether are not made up for: only the one that runs now begins.
        cycle = period_at(anchor, terms.billing_interval, now, zone)
        if terms.is_free:
            await self._begin_cycle(db, subscription, terms, anchor, cycle, "")
            return None
        await self._plans.update_subscription(db, replace(subscription, due_at=now + _RETRY))
        subject = {
            "subscription_id": subscription.subscription_id, "connection_id": subscription.connection_id,
            "terms": terms.document(), "anchor": anchor.isoformat(), "index": cycle.index, "start": cycle.start.isoformat(),
            "end": cycle.end.isoformat(),
        }  # fmt: skip
        return Due(
            subscription=subscription, terms=terms, amount_cents=terms.period_amount_nanos // NANOS_PER_CENT, subject=subject
        )

    async def mark_past_due(self, db: Any, merchant_id: str, subscription_id: str) -> None:
        """The card of a renewal was declined; it is tried again."""
        found = await self._locked(db, merchant_id, subscription_id)
        if found.status == "active" and found.cycle.end <= self._clock():
            await self._plans.update_subscription(db, replace(found, status="past_due"))

    async def _next_terms(self, db: Any, subscription: Subscription, pending: Mapping[str, Any]) -> tuple[Terms, datetime]:
        """What the next cycle is sold as, and its calendar's anchor: edits of the plan and downgrades take effect here."""
        if pending.get("type") == "downgrade":
            plan = await self._plans.plan(subscription.merchant_id, pending["plan_id"], archived=True, db=db)
            assert plan is not None
            return plan.terms, subscription.cycle.end
        plan = await self._plans.plan(subscription.merchant_id, subscription.terms.plan_id, archived=True, db=db)
        assert plan is not None
        return plan.terms, subscription.anchor_at

    async def _begin_plan(
        self, db: Any, connection: Connection, terms: Terms, current: Subscription | None, *, at: datetime, charge_id: str,
        change: Change, zone: str,
    ) -> Subscription:  # fmt: skip
        """A plan's first cycle, now."""
        cycle = period(at, terms.billing_interval, 0, _zone(zone))
        if current is None:
            made = Subscription(
                subscription_id=new_id("sub"), merchant_id=connection.merchant_id, connection_id=connection.connection_id,
                wallet_id=connection.wallet_id, terms=terms, status="active", auto_top_up_bundle_id=None, time_zone=zone,
                anchor_at=at, cycle=cycle, due_at=cycle.end, pending=None, started_at=at, contact=connection.contact,
            )  # fmt: skip
            await self._plans.insert_subscription(db, made)
            return await self._begin_cycle(db, made, terms, at, cycle, charge_id, ends=frozenset())
        if change.leftover_nanos:
            await self._funding.fund(
                connection.merchant_id, connection.wallet_id, change.leftover_nanos, "proration",
                f"pro_{current.subscription_id}_{_stamp(at)}", db=db,
            )  # fmt: skip
        moved = replace(current, time_zone=zone, auto_top_up_bundle_id=None)
        return await self._begin_cycle(db, moved, terms, at, cycle, charge_id, ends=current.terms.ends - {"bundle"})

    async def _begin_cycle(
        self,
        db: Any,
        subscription: Subscription,
        terms: Terms,
        anchor: datetime,
        cycle: Period,
        charge_id: str,
        *,
        ends: frozenset[Any] | None = None,
    ) -> Subscription:
        """The one place where a cycle begins: guarded by its row, its credit and the end of the old in one event."""
        if ends is None:
            ends = subscription.terms.ends
        begun = replace(subscription, terms=terms, anchor_at=anchor, cycle=cycle, due_at=cycle.end, status="active", pending=None)
        is_first = await self._plans.begin_period(
            db, begun, amount_nanos=terms.period_amount_nanos, granted_nanos=terms.included_credit_nanos, charge_id=charge_id
        )
        if not is_first:
            return subscription
        plan = await self._plans.plan(begun.merchant_id, terms.plan_id, archived=True, db=db)
        if begun.auto_top_up_bundle_id is None and plan is not None and terms.plan_id != subscription.terms.plan_id:
            begun = replace(begun, auto_top_up_bundle_id=plan.default_auto_top_up_bundle_id)
        await self._plans.update_subscription(db, begun)
        if terms.included_credit_nanos or ends:
            await self._funding.renew_cycle(
                begun.merchant_id, begun.wallet_id, f"ren_{begun.subscription_id}_{_stamp(cycle.start)}",
                grant_nanos=terms.included_credit_nanos, ends=ends, reason="plan",
                expires_at=cycle.end if "cycle" in terms.ends else None, db=db,
            )  # fmt: skip
        return begun

    async def _end(self, db: Any, subscription: Subscription, at: datetime) -> Subscription:
        """Cancelled: what is left of the cycle's credit ends; bundles stay, and can be spent again on a later subscription."""
        ended = replace(subscription, status="cancelled", pending=None, cancelled_at=at)
        await self._plans.update_subscription(db, ended)
        await self._funding.renew_cycle(
            ended.merchant_id, ended.wallet_id, f"end_{ended.subscription_id}", grant_nanos=0, ends=frozenset({"cycle"}),
            reason="plan_ended", db=db,
        )  # fmt: skip
        return ended

    async def _locked(self, db: Any, merchant_id: str, subscription_id: str) -> Subscription:
        found = await self._plans.subscription(merchant_id, subscription_id, db=db, lock=True)
        if found is None:
            raise NotFound("No subscription of yours has this id.")
        return found


def _stamp(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y%m%d%H%M%S%f}"


def _zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)
