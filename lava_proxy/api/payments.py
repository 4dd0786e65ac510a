"""How cards, charges and refunds look in answers, and what the resources about them share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.fields import Amount, Text, Timestamp, Usd
from lava_proxy.api.formats import short_usd, timestamp
from lava_proxy.api.idempotency import idempotency_key_of
from lava_proxy.api.operations import Answer, Body
from lava_proxy.billing.accounts import Accounts
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.domain.money import nanos_of_cents
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.charge_store import Charge, ChargeStore, MoneyBack, PaymentMethod

_PROCESSING = frozenset({"created", "pi_created", "confirming", "unknown"})
_FOR = {
    "overage": "Usage beyond the credit",
    "auto_top_up": "Credit bundle, bought automatically",
    "top_up": "Funds",
    "bundle": "Credit bundle",
    "subscription_start": "Subscription",
    "subscription_renewal": "Subscription, next cycle",
    "plan_upgrade": "Change of plan",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentServices:
    """What the resources about cards and money work with. `public_url`: where a bank leads cardholders back to."""

    charges: Charges
    charge_store: ChargeStore
    cards: Cards
    accounts: Accounts
    account_store: AccountStore
    public_url: str = "http://127.0.0.1/"


class FundBody(Body):
    payment_method_id: Annotated[Text | None, Field(description="A stored card; the default one when left out.")] = None
    amount: Annotated[Usd, Field(description="Dollars, 10 to 10000, in whole cents.")]


class FundAnswer(Answer):
    status: Annotated[str, Field(description="completed, requires_action, or processing while the bank has not answered.")]
    payment_id: str
    balance: str | None = None
    redirect_url: Annotated[str | None, Field(description="The bank's page, where the card's holder must approve.")] = None


class PaymentMethodAnswer(Answer):
    payment_method_id: str
    last4: str
    expiry_month: int
    expiry_year: int
    brand: str
    is_default: bool
    has_error: bool
    error_code: str | None
    error_message: str | None
    error_at: Timestamp | None


class PaymentMethods(Answer):
    data: list[PaymentMethodAnswer]


class ReceiptAnswer(Answer):
    number: str
    description: str
    amount: Amount
    currency: str
    paid_at: Timestamp
    paid_with: str
    refunded: Amount


class ChargeAnswer(Answer):
    charge_id: str
    purpose: str
    status: Annotated[str, Field(description="processing, requires_action, succeeded, declined or canceled.")]
    amount: Amount
    captured: Amount
    refunded: Amount
    currency: str
    decline_code: str | None
    decline_message: str | None
    redirect_url: str | None
    receipt: ReceiptAnswer | None
    created_at: Timestamp


class RefundAnswer(Answer):
    refund_id: str
    charge_id: str
    status: str
    amount: Amount
    reason: str
    created_at: Timestamp


def payment_method_object(card: PaymentMethod) -> dict[str, Any]:
    """A card by what people know it by; never its number."""
    names = (
        "payment_method_id", "last4", "expiry_month", "expiry_year", "brand", "is_default", "has_error", "error_code",
        "error_message",
    )  # fmt: skip
    return {name: getattr(card, name) for name in names} | {"error_at": timestamp(card.error_at) if card.error_at else None}


def charge_object(charge: Charge, refunded_cents: int, card: PaymentMethod | None) -> dict[str, Any]:
    """A charge, with a receipt when it was paid."""
    receipt = None
    if charge.state == "succeeded":
        receipt = {
            "number": charge.charge_id,
            "description": _FOR[charge.purpose],
            "amount": _usd(charge.captured_cents),
            "currency": charge.currency,
            "paid_at": timestamp(charge.updated_at),
            "paid_with": "card" if card is None else f"{card.brand} ending in {card.last4}",
            "refunded": _usd(refunded_cents),
        }
    return {
        "charge_id": charge.charge_id,
        "purpose": charge.purpose,
        "status": "processing" if charge.state in _PROCESSING else charge.state,
        "amount": _usd(charge.amount_cents),
        "captured": _usd(charge.captured_cents),
        "refunded": _usd(refunded_cents),
        "currency": charge.currency,
        "decline_code": charge.decline_reason or charge.decline_code,
        "decline_message": charge.decline_message,
        "redirect_url": charge.action_url,
        "receipt": receipt,
        "created_at": timestamp(charge.created_at),
    }


def refund_object(back: MoneyBack) -> dict[str, Any]:
    """`status`: pending, done or failed."""
    return {
        "refund_id": back.refund_id,
        "charge_id": back.charge_id,
        "status": "pending" if back.state == "requested" else back.state,
        "amount": _usd(back.amount_cents),
        "reason": back.reason,
        "created_at": timestamp(back.created_at),
    }


def fund_object(charge: Charge, balance_nanos: int | None) -> dict[str, Any]:
    """What came of charging a card for funds."""
    found: dict[str, Any] = {"payment_id": charge.charge_id}
    if charge.state == "succeeded":
        found["status"] = "completed"
        if balance_nanos is not None:
            found["balance"] = short_usd(balance_nanos)
    elif charge.state == "requires_action":
        found |= {"status": "requires_action", "redirect_url": charge.action_url}
    else:
        found["status"] = "processing"
    return found


def once_key(request: web.Request, prefix: str, *parts: str) -> str | None:
    """An id for what a POST does, out of its Idempotency-Key: the same for ever, whatever dies in between. None without a key."""
    key = idempotency_key_of(request)
    if key is None:
        return None
    digest = hashlib.blake2b("\0".join((merchant_of(request).merchant_id, key, *parts)).encode(), digest_size=16)
    return f"{prefix}_{digest.hexdigest()}"


def _usd(cents: int) -> str:
    return short_usd(nanos_of_cents(cents))
