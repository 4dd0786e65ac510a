"""What the API takes and answers, as typed dicts with the wire's own names. Amounts are decimal dollars as text, times ISO 8601.

Answers may have keys beyond these: newer versions add some.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Generic, Literal, NotRequired, Required, TypedDict, TypeVar

T = TypeVar("T")
RateType = Literal["fixed", "percentage"]
TierType = Literal["tokens_1m", "characters_1m", "minutes", "requests"]
TokenBasis = Literal["input+output", "output"]
LimitCycle = Literal["daily", "weekly", "monthly", "total"]
Interval = Literal["day", "week", "month", "year"]
Rollover = Literal["full", "none"]
Number = int | Decimal


class Page(TypedDict, Generic[T]):
    """A page of a list, newest first; `next_cursor` is there when `has_more`."""

    data: list[T]
    has_more: bool
    next_cursor: NotRequired[str]


class Done(TypedDict):
    success: bool


class Deleted(TypedDict):
    id: str
    deleted: bool


class Contact(TypedDict):
    phone: str | None
    email: str | None
    first_name: str | None
    last_name: str | None


class SubscriptionSummary(TypedDict):
    subscription_id: str
    plan_id: str
    name: str
    status: str


class Customer(TypedDict):
    customer_id: str
    reference_id: str | None
    status: str
    contact: Contact
    subscription: SubscriptionSummary | None
    metadata: dict[str, Any] | None
    balance: str | None
    balance_available: str | None
    balance_held: str | None
    created_at: str


class CustomerFields(TypedDict, total=False):
    """Only sent fields change; null clears one."""

    reference_id: str | None
    email: str | None
    phone: str | None
    name: str | None
    metadata: dict[str, Any] | None


class Tier(TypedDict):
    """As it is answered; `type` is the meter's unit."""

    start: int
    rate: str
    type: TierType


class NewTier(TypedDict):
    """`start` and `rate` as decimal text: {"start": "0", "rate": "20"}."""

    start: str
    rate: str


class Meter(TypedDict):
    meter_id: str
    meter_slug: str
    name: str
    rate_type: RateType
    tier_type: TierType
    tiers: list[Tier]
    token_basis: TokenBasis
    created_at: str


class MeterFields(TypedDict, total=False):
    name: str
    tiers: list[NewTier]
    token_basis: TokenBasis


class NewMeter(TypedDict, total=False):
    name: Required[str]
    rate_type: Required[RateType]
    tier_type: Required[TierType]
    tiers: Required[list[NewTier]]
    meter_slug: str
    token_basis: TokenBasis


class BreakdownLine(TypedDict):
    tier: Tier
    tokens: int
    characters: int
    seconds: Number
    cost: str


class Charge(TypedDict):
    amount: str
    rate_type: RateType | None
    breakdown: list[BreakdownLine]


class ModelUsage(TypedDict):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_characters: int
    output_characters: int
    total_characters: int
    input_seconds: Number
    output_seconds: Number
    total_seconds: Number
    input_cost: str
    output_cost: str
    total_cost: str


class Request(TypedDict):
    request_id: str
    status: Literal["pending", "completed", "error"]
    customer_id: NotRequired[str]
    meter_id: NotRequired[str]
    provider: str
    provider_key_type: Literal["managed", "unmanaged", "stored"]
    model: NotRequired[str]
    endpoint: str
    response_id: NotRequired[str]
    model_usage: ModelUsage
    cost: str
    charge: Charge
    metadata: dict[str, str]
    timestamp: str
    created_at: str


class Report(TypedDict, total=False):
    """Usage of a call that went elsewhere. `request_id` is yours: the same one is charged once."""

    request_id: Required[str]
    customer_id: Required[str]
    meter_slug: Required[str]
    input_tokens: int
    output_tokens: int
    input_characters: int
    output_characters: int
    input_seconds: Number
    output_seconds: Number
    cost: str
    model: str
    provider: str
    metadata: dict[str, str]


class ErrorFacts(TypedDict):
    message: str
    code: str
    status: int


class ReportResult(TypedDict):
    """One of a batch: `request` when it was charged (status 200), else `error`."""

    status: int
    request: NotRequired[Request]
    error: NotRequired[ErrorFacts]


class UsageSums(TypedDict):
    total_requests: int
    total_usage_tokens: int
    total_cost: str
    total_charge: str


class UsageBucket(UsageSums):
    date: str
    start: str
    end: str


class UsageGroup(UsageSums):
    group: str | None


class Usage(TypedDict):
    items: list[UsageBucket]
    totals: UsageSums
    groups: NotRequired[list[UsageGroup]]
    groups_rest: NotRequired[UsageSums]


class UsageFilters(TypedDict, total=False):
    end: str
    customer_id: str
    meter_id: str
    bucket: Literal["day", "hour", "15m"]
    group_by: str
    group_limit: int


class Webhook(TypedDict):
    webhook_id: str
    name: str
    url: str
    vocabulary: Literal["customer", "connection"]
    events: list[str] | None
    status: Literal["active", "disabled"]
    disabled_reason: str | None
    created_at: str
    webhook_secret: NotRequired[str]
    """After creating and rotating only."""


class WebhookFields(TypedDict, total=False):
    name: str
    url: str
    events: list[str] | None
    vocabulary: Literal["customer", "connection"]
    status: Literal["active", "disabled"]


class Delivery(TypedDict):
    delivery_id: str
    event_id: str
    event: str
    subject_id: str | None
    sequence: int
    state: Literal["pending", "delivered", "failed"]
    tries: int
    next_try_at: str | None
    last_status_code: int | None
    last_error: str | None
    attempts: list[dict[str, Any]]
    created_at: str
    ended_at: str | None


class SecretKey(TypedDict):
    secret_key_id: str
    name: str
    secret_key_hint: str
    created_at: str
    secret_key: NotRequired[str]
    """After creating only."""


class SpendLimit(TypedDict):
    amount: str
    cycle: LimitCycle


class RequestLimit(TypedDict):
    count: int
    cycle: LimitCycle


class RateLimit(TypedDict):
    rpm: int
    burst: NotRequired[int | None]


class SpendKeyFields(TypedDict, total=False):
    name: str
    status: Literal["active", "paused"]
    request_shape: Literal["openai", "anthropic"]
    allowed_models: list[str] | None
    allowed_providers: list[str] | None
    spend_limit: SpendLimit | None
    request_limit: RequestLimit | None
    rate_limit: RateLimit | None
    expires_at: str | None


class SpendKey(TypedDict):
    spend_key_id: str
    key_preview: str
    wallet_id: str
    name: str
    status: Literal["active", "paused"]
    request_shape: Literal["openai", "anthropic"]
    allowed_models: list[str] | None
    allowed_providers: list[str] | None
    spend_limit: SpendLimit | None
    request_limit: RequestLimit | None
    rate_limit: RateLimit | None
    expires_at: str | None
    current_spend: str
    total_spend: str
    current_requests: int
    total_requests: int
    last_used_at: str | None
    created_at: str
    key: NotRequired[str]
    """After creating and rotating only."""


class Wallet(TypedDict):
    wallet_id: str
    balance: str


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Bundle(TypedDict):
    credit_bundle_id: str
    name: str
    cost: str
    credit_amount: str


class CreditBundle(Bundle):
    plan_id: str
    created_at: str


class NewBundle(TypedDict, total=False):
    """With `credit_bundle_id` it changes that one, with `is_deleted` it ends it."""

    credit_bundle_id: str
    name: str
    cost: str
    credit_amount: str
    is_deleted: bool


class LinkedMeter(TypedDict):
    meter_id: str
    name: str


class Plan(TypedDict):
    plan_id: str
    merchant_id: str
    name: str
    period_amount: str
    included_credit: str
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    default_auto_top_up_bundle_id: str | None
    linked_meters: list[LinkedMeter]
    credit_bundles: list[Bundle]
    created_at: str


class NewPlan(TypedDict, total=False):
    name: Required[str]
    period_amount: Required[str]
    billing_interval: Required[Interval]
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    included_credit: str
    meter_ids: list[str]
    credit_bundles: list[NewBundle]
    default_auto_top_up_bundle_index: int | None


class PlanFields(TypedDict, total=False):
    name: str
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    included_credit: str
    default_auto_top_up_bundle_id: str | None
    meter_ids: list[str]
    credit_bundles: list[NewBundle]


class PlanTerms(TypedDict):
    name: str
    period_amount: str
    included_credit: str
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover


class Credits(TypedDict):
    total_remaining: str
    cycle_remaining: str
    bundle_remaining: str


class PendingChange(TypedDict):
    type: Literal["cancellation", "downgrade"]
    effective_at: str | None
    plan_id: NotRequired[str]


class Subscription(TypedDict):
    subscription_id: str
    plan_id: str
    customer_id: NotRequired[str]
    status: Literal["active", "cancelled"]
    auto_top_up_bundle_id: str | None
    started_at: str
    cancelled_at: str | None
    cycle_start_at: str | None
    cycle_end_at: str | None
    plan: PlanTerms
    credits: Credits
    pending_change: PendingChange | None


class MaybeSubscription(TypedDict):
    subscription: Subscription | None


class NewCheckout(TypedDict, total=False):
    checkout_mode: Required[Literal["subscription", "credit_bundle", "topup", "onboarding"]]
    origin_url: Required[str]
    plan_id: str
    customer_id: str
    credit_bundle_id: str
    reference_id: str


class CheckoutSession(TypedDict):
    checkout_session_id: str
    checkout_session_token: str
    checkout_mode: str
    origin_url: str
    customer_id: NotRequired[str | None]
    plan_id: NotRequired[str | None]
    created_at: str
    completed_at: NotRequired[str | None]
