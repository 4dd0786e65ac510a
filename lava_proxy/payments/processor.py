"""What a card processor does for us, and the values it answers with; billing knows processors only through this.

A charge takes three calls: a *payment* is created unconfirmed, its reference is stored, and then it is confirmed. So a payment
whose fate is unknown always has a reference under which its fate can be asked for. Amounts are integer cents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal, Protocol

from lava_proxy.domain.errors import CallerError

PaymentStatus = Literal["unconfirmed", "processing", "requires_action", "declined", "succeeded", "canceled"]
EventSubject = Literal["payment", "refund", "dispute", "setup", "payment_method", "other"]

CHARGE_KEY = "charge_id"  # in a payment's metadata: which of our charges it belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class CardMethod:
    """A stored card. The number is the processor's alone."""

    processor_ref: str
    customer_ref: str | None
    brand: str
    last4: str
    expiry_month: int
    expiry_year: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CardDetails:
    """A card as it is typed in; taken only by processors that need no certified form (the sandbox)."""

    number: str = field(repr=False)
    expiry_month: int
    expiry_year: int
    cvc: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A card being stored without a payment; the client finishes it with the secret."""

    setup_ref: str
    customer_ref: str
    client_secret: str = field(repr=False)
    is_done: bool
    method_ref: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """Why a card was refused: the processor's code, the bank's reason, and a sentence for people."""

    code: str
    decline_code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment as it stands at the processor. `attempt_ref` names the last try on a card: it tells an old decline."""

    payment_ref: str
    status: PaymentStatus
    amount_cents: int
    captured_cents: int
    currency: str
    customer_ref: str | None
    method_ref: str | None
    charge_id: str | None
    created_at: datetime
    attempt_ref: str = ""
    decline: Decline | None = None
    action_url: str | None = None
    client_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    payment: Payment


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    decline: Decline
    attempt_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiresAction:
    """The cardholder must authenticate: at `action_url` where the processor hosts a page, else with the client secret."""

    action_url: str | None
    client_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """No answer that can be relied on: a time-out, a 5xx, a 409, a dropped connection. Money may have moved: ask, never resend."""

    reason: str


Outcome = Succeeded | Declined | RequiresAction | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Money given back; `refund_id` is ours when we asked for it."""

    refund_ref: str
    refund_id: str | None
    payment_ref: str
    amount_cents: int
    status: Literal["pending", "succeeded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A cardholder's objection. `lost` and `open` take the money away, `won` gives it back; a `warning` moves nothing."""

    dispute_ref: str
    payment_ref: str
    amount_cents: int
    status: Literal["warning", "open", "won", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A verified notice: something became of an object. What became of it must be asked for; a notice may be old or come twice."""

    event_id: str
    kind: str
    subject: EventSubject
    object_ref: str
    payment_ref: str | None
    created_at: datetime


class Processor(Protocol):
    """A card processor.

    Calls that move no money raise UpstreamError (`processor_unavailable`) when the processor cannot answer and CallerError when
    it refuses what was asked. `confirm_payment` never raises for either: its answer is an Outcome. Each `key` makes a call
    idempotent: the same key with the same arguments does the thing once and answers the same.
    """

    @property
    def name(self) -> str: ...

    async def create_customer(self, *, key: str, phone: str, email: str | None, metadata: Mapping[str, str]) -> str:
        """The processor's reference of a new customer."""

    async def create_setup(self, customer_ref: str) -> Setup:
        """Begin to store a card for off-session use."""

    async def setup(self, setup_ref: str) -> Setup: ...

    async def add_card(self, setup: Setup, card: CardDetails) -> CardMethod:
        """Finish a setup with a typed card. CallerError where the processor wants its own form, or refuses the card."""

    async def attach_method(self, customer_ref: str, method_ref: str) -> CardMethod:
        """Make a card the customer's."""

    async def methods(self, customer_ref: str) -> list[CardMethod]: ...

    async def method(self, method_ref: str) -> CardMethod | None:
        """None when the processor knows it no more."""

    async def set_default_method(self, customer_ref: str, method_ref: str) -> None: ...

    async def detach_method(self, method_ref: str) -> None:
        """Forget a card; fine when it is forgotten already."""

    async def create_payment(
        self, *, key: str, customer_ref: str, method_ref: str, amount_cents: int, currency: str, metadata: Mapping[str, str]
    ) -> Payment:
        """A payment that is not confirmed: nothing is taken."""

    async def confirm_payment(
        self, payment_ref: str, *, key: str, method_ref: str, off_session: bool, return_url: str | None
    ) -> Outcome:
        """Take the money."""

    async def payment(self, payment_ref: str) -> Payment: ...

    async def find_payment(self, customer_ref: str, charge_id: str, since: datetime) -> Payment | None:
        """The payment of one of our charges, when the answer to its creation was lost."""

    async def cancel_payment(self, payment_ref: str) -> Payment:
        """Make sure that a payment never succeeds; as it stands afterwards: `succeeded` when it had been quicker."""

    async def payments_of_day(self, day: date) -> list[Payment]:
        """Every payment created on a UTC day, finished or not."""

    async def refund(self, payment_ref: str, amount_cents: int, *, refund_id: str) -> Refund:
        """Give money back; idempotent by our id."""

    async def refunds(self, payment_ref: str) -> list[Refund]: ...

    async def disputes(self, payment_ref: str) -> list[Dispute]: ...

    def event(self, body: bytes, signature: str) -> Event:
        """A notice out of a webhook's raw body; CallerError `invalid_signature` unless the processor signed it lately."""

    async def authenticate(self, payment_ref: str, *, approve: bool) -> Payment:
        """What a cardholder does at their bank. Only the sandbox has it; others raise CallerError."""

    async def close(self) -> None: ...


def outcome_of(payment: Payment) -> Outcome:
    """What a payment's state says of its last attempt; Unknown while it is still under way or was never confirmed."""
    if payment.status == "succeeded":
        return Succeeded(payment=payment)
    if payment.status == "requires_action":
        return RequiresAction(action_url=payment.action_url, client_secret=payment.client_secret)
    if payment.status == "declined" and payment.decline is not None:
        return Declined(decline=payment.decline, attempt_ref=payment.attempt_ref)
    return Unknown(reason=f"the payment is {payment.status}")


def no_processor() -> CallerError:
    """What every payment is answered with where no processor is set up."""
    return CallerError(
        "This installation takes no cards: set [payments] processor to stripe or sandbox.", code="payments_disabled", status=501
    )
