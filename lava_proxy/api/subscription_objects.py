"""Plans, bundles and subscriptions as answers show them: the newest vocabulary and the keys of the older ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from lava_proxy.api.fields import Amount, Timestamp
from lava_proxy.api.formats import short_usd, timestamp
from lava_proxy.api.operations import Answer
from lava_proxy.billing.subscriptions import public_status
from lava_proxy.domain.calendar import Interval
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.money import format_usd
from lava_proxy.domain.plans import (
    Bundle,
    Overage,
    OveragePolicy,
    Plan,
    Rollover,
    Subscription,
    Terms,
    overage_document,
    parse_overage,
)
from lava_proxy.stores.outbox import WalletState
from lava_proxy.stores.plan_store import Offer


def _overage(value: object) -> Overage:
    if not isinstance(value, dict):
        raise ValueError('accepted is an object such as {"policy": "charge", "limit": "50.00"}')
    try:
        return parse_overage(value)
    except CallerError as error:
        raise ValueError(error.message) from None


OverageField = Annotated[
    Overage,
    PlainValidator(_overage),
    WithJsonSchema(
        {
            "type": "object",
            "description": "What happens when usage passes the credit; amounts are dollars. What is left out has its default.",
            "properties": {
                "policy": {"enum": ["block", "charge", "auto_top_up"], "default": "block"},
                "limit": {"type": "string", "default": "50.00", "description": "How far the balance may go below zero."},
                "threshold": {"type": "string", "default": "10.00", "description": "A debt of so much is charged at once."},
                "increment": {"type": "string", "default": "1.00", "description": "Charges are rounded up to it; whole cents."},
                "monthly_cap": {"type": "string", "default": "500.00", "description": "Most that is charged a UTC month."},
            },
            "additionalProperties": False,
            "examples": [{"policy": "charge", "limit": "50.00", "threshold": "10.00"}],
        }
    ),
]
"""What happens beyond the credit."""


class OverageAnswer(Answer):
    policy: OveragePolicy
    limit: Amount
    threshold: Amount
    increment: Amount
    monthly_cap: Amount


class BundleAnswer(Answer):
    credit_bundle_id: str
    plan_id: str
    name: str
    cost: Amount
    credit_amount: Amount
    created_at: Timestamp


class PlanBundle(Answer):
    credit_bundle_id: str
    name: str
    cost: Amount
    credit_amount: Amount


class LinkedMeter(Answer):
    meter_id: str
    name: str


class PlanAnswer(Answer):
    plan_id: str
    subscription_config_id: str
    merchant_id: str
    name: str
    period_amount: Amount
    included_credit: Amount
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    default_auto_top_up_bundle_id: str | None
    linked_meters: list[LinkedMeter]
    credit_bundles: list[PlanBundle]
    overage: Annotated[OverageAnswer | None, Field(description="Null: the merchant's own.")]
    is_default: bool
    created_at: Timestamp


class SoldPlan(Answer):
    name: str
    period_amount: Amount
    included_credit: Amount
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover


class Credits(Answer):
    total_remaining: Amount
    cycle_remaining: Amount
    bundle_remaining: Amount


class PendingChange(Answer):
    type: Literal["cancellation", "downgrade"]
    effective_at: Timestamp | None
    plan_id: Annotated[str, Field(default="", description="Of a downgrade, as are those below.")]
    name: Annotated[str, Field(default="")]
    period_amount: Annotated[Amount, Field(default="0.00")]
    included_credit: Annotated[Amount, Field(default="0.00")]


class SubscriptionBase(Answer):
    subscription_id: str
    plan_id: str
    subscription_config_id: str
    status: Literal["active", "cancelled"]
    is_past_due: Annotated[bool, Field(description="The cycle has not been paid yet; the card is tried again.")]
    auto_top_up_bundle_id: str | None
    started_at: Timestamp
    cancelled_at: Timestamp | None
    cycle_start_at: Timestamp | None
    cycle_end_at: Timestamp | None
    plan: SoldPlan
    credits: Annotated[Credits | None, Field(description="Live; null while the wallet is being recovered.")]
    pending_change: PendingChange | None


class SubscribedCustomer(Answer):
    phone: str | None
    email: str | None
    first_name: str | None
    last_name: str | None


class SubscriptionAnswer(SubscriptionBase):
    customer_id: str
    connection_id: str
    customer: SubscribedCustomer


class OneSubscription(Answer):
    subscription: SubscriptionBase | None


class CurrentSubscription(Answer):
    subscription_id: str
    plan_id: str
    subscription_config_id: str
    name: str
    status: Literal["active", "cancelled"]


def plan_object(plan: Plan) -> dict[str, Any]:
    terms = plan.terms
    return {
        "plan_id": plan.plan_id,
        "subscription_config_id": plan.plan_id,
        "merchant_id": plan.merchant_id,
        **sold_plan_object(terms),
        "default_auto_top_up_bundle_id": plan.default_auto_top_up_bundle_id,
        "linked_meters": [{"meter_id": meter_id, "name": name} for meter_id, name in plan.meters],
        "credit_bundles": [
            {key: value for key, value in bundle_object(bundle).items() if key in PlanBundle.model_fields}
            for bundle in plan.bundles
        ],
        "overage": overage_object(plan.overage),
        "is_default": plan.is_default,
        "created_at": timestamp(plan.created_at),
    }


def overage_object(overage: Overage | None) -> dict[str, str] | None:
    if overage is None:
        return None
    document = overage_document(overage)
    amounts = {name: short_usd(getattr(overage, f"{name}_nanos")) for name in document if name != "policy"}
    return {"policy": overage.policy, **amounts}


def bundle_object(bundle: Bundle) -> dict[str, Any]:
    return {
        "credit_bundle_id": bundle.credit_bundle_id,
        "plan_id": bundle.plan_id,
        "subscription_config_id": bundle.plan_id,
        "name": bundle.name,
        "cost": short_usd(bundle.cost_nanos),
        "credit_amount": short_usd(bundle.credit_nanos),
        "created_at": timestamp(bundle.created_at),
    }


def sold_plan_object(terms: Terms) -> dict[str, Any]:
    """What a cycle costs and brings."""
    return {
        "name": terms.name,
        "period_amount": short_usd(terms.period_amount_nanos),
        "included_credit": short_usd(terms.included_credit_nanos),
        "billing_interval": terms.billing_interval,
        "rollover_type": terms.rollover_type,
        "bundle_rollover_type": terms.bundle_rollover_type,
    }


def subscription_object(
    subscription: Subscription, state: WalletState | None, offers: Mapping[str, Offer]
) -> dict[str, Any]:  # fmt: skip
    """`offers`: of the plans that pending changes lead to."""
    is_live, cycle = subscription.status != "cancelled", subscription.cycle
    contact = {key: subscription.contact.get(key) for key in SubscribedCustomer.model_fields}
    return {
        "subscription_id": subscription.subscription_id,
        "plan_id": subscription.terms.plan_id,
        "subscription_config_id": subscription.terms.plan_id,
        "status": public_status(subscription),
        "is_past_due": subscription.status == "past_due",
        "auto_top_up_bundle_id": subscription.auto_top_up_bundle_id,
        "started_at": timestamp(subscription.started_at),
        "cancelled_at": None if subscription.cancelled_at is None else timestamp(subscription.cancelled_at),
        "cycle_start_at": timestamp(cycle.start) if is_live else None,
        "cycle_end_at": timestamp(cycle.end) if is_live else None,
        "plan": sold_plan_object(subscription.terms),
        "credits": credits_object(state),
        "pending_change": _pending_change(subscription, offers),
        "customer_id": subscription.connection_id,
        "connection_id": subscription.connection_id,
        "customer": contact,
    }


def credits_object(state: WalletState | None) -> dict[str, str] | None:
    """What can be spent of the plan's credit, by class; what open calls hold is taken from the cycle's first, as it will be."""
    if state is None:
        return None
    in_bundles = sum(left for key, left in state.lots.items() if key.startswith(_BUNDLE_LOTS))
    bundle = min(in_bundles, state.plan_available)
    return {
        "total_remaining": format_usd(state.plan_available),
        "cycle_remaining": format_usd(state.plan_available - bundle),
        "bundle_remaining": format_usd(bundle),
    }


_BUNDLE_LOTS = "p:450:"


def current_subscription(subscription: Subscription | None) -> dict[str, Any] | None:
    """As it stands inside a customer."""
    if subscription is None:
        return None
    return {
        "subscription_id": subscription.subscription_id,
        "plan_id": subscription.terms.plan_id,
        "subscription_config_id": subscription.terms.plan_id,
        "name": subscription.terms.name,
        "status": public_status(subscription),
    }


def _pending_change(subscription: Subscription, offers: Mapping[str, Offer]) -> dict[str, Any] | None:
    pending = subscription.pending
    if pending is None:
        return None
    change: dict[str, Any] = {"type": pending["type"], "effective_at": timestamp(subscription.cycle.end)}
    if pending["type"] == "downgrade":
        terms = offers[pending["plan_id"]].terms
        change |= {
            "plan_id": terms.plan_id,
            "name": terms.name,
            "period_amount": short_usd(terms.period_amount_nanos),
            "included_credit": short_usd(terms.included_credit_nanos),
        }
    return change
