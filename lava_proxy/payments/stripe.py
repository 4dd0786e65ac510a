"""Stripe through its official SDK, imported when the first processor is made (it takes half a second).

The SDK's own retries are off: what must be repeated is repeated by billing, which has stored what it was about to do. Stripe's v1
API repeats the stored answer of a key, a 500 too, and for 24 h only (docs.stripe.com/api/idempotent_requests, read 2026-11), so an
unknown fate is asked for by `payment`, never by sending again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import aiohttp

from lava_proxy.domain.errors import CallerError, UpstreamError
from lava_proxy.payments.processor import (
    CHARGE_KEY,
    CardDetails,
    CardMethod,
    Decline,
    Declined,
    Dispute,
    Event,
    EventSubject,
    Outcome,
    Payment,
    PaymentStatus,
    Refund,
    RequiresAction,
    Setup,
    Unknown,
    outcome_of,
)

SIGNATURE_TOLERANCE_S = 300  # as Stripe's own libraries
_REFUND_KEY = "refund_id"
_NEEDS_HOLDER = "authentication_required"
_UNEXPECTED_STATE = "payment_intent_unexpected_state"
_STATUSES: dict[str, PaymentStatus] = {
    "requires_confirmation": "unconfirmed",
    "requires_action": "requires_action",
    "processing": "processing",
    "requires_capture": "processing",
    "canceled": "canceled",
    "succeeded": "succeeded",
}
_SUBJECTS: tuple[tuple[str, EventSubject], ...] = (
    ("payment_intent.", "payment"),
    ("charge.dispute.", "dispute"),
    ("charge.refund", "refund"),
    ("refund.", "refund"),
    ("setup_intent.", "setup"),
    ("payment_method.", "payment_method"),
)

T = TypeVar("T")


class StripeProcessor:
    """Speaks for one Stripe account. `webhook_secrets`: one, or several while they are exchanged."""

    name = "stripe"

    def __init__(
        self,
        secret_key: str,
        *,
        webhook_secrets: tuple[str, ...] = (),
        api_base: str | None = None,
        timeout_s: int = 30,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        import stripe

        self._stripe = stripe
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=timeout_s))
        self._client = stripe.StripeClient(
            secret_key,
            http_client=self._http,
            max_network_retries=0,
            base_addresses={"api": api_base} if api_base else {},
        ).v1
        self._webhook_secrets = webhook_secrets
        self._now_s = now_s

    # -- customers and cards

    async def create_customer(self, *, key: str, phone: str, email: str | None, metadata: Mapping[str, str]) -> str:
        params: dict[str, Any] = {"metadata": dict(metadata)}
        params |= {name: value for name, value in (("phone", phone), ("email", email)) if value}
        made = await self._asked(lambda: self._client.customers.create_async(params=params, options={"idempotency_key": key}))  # type: ignore[arg-type]
        return str(made["id"])

    async def create_setup(self, customer_ref: str) -> Setup:
        params: Any = {"customer": customer_ref, "usage": "off_session", "payment_method_types": ["card"]}
        return _setup(await self._asked(lambda: self._client.setup_intents.create_async(params=params)))

    async def setup(self, setup_ref: str) -> Setup:
        return _setup(await self._asked(lambda: self._client.setup_intents.retrieve_async(setup_ref)))

    async def add_card(self, setup: Setup, card: CardDetails) -> CardMethod:
        raise CallerError("Card numbers are entered in Stripe's form and never sent here.", code="card_form_required")

    async def attach_method(self, customer_ref: str, method_ref: str) -> CardMethod:
        attach = self._client.payment_methods.attach_async
        return _method(await self._asked(lambda: attach(method_ref, params={"customer": customer_ref})))

    async def methods(self, customer_ref: str) -> list[CardMethod]:
        params: Any = {"customer": customer_ref, "type": "card", "limit": 100}
        return [_method(found) async for found in self._paged(lambda: self._client.payment_methods.list_async(params=params))]

    async def method(self, method_ref: str) -> CardMethod | None:
        try:
            found = await self._asked(lambda: self._client.payment_methods.retrieve_async(method_ref))
        except CallerError:
            return None
        return _method(found) if found.get("customer") else None

    async def set_default_method(self, customer_ref: str, method_ref: str) -> None:
        params: Any = {"invoice_settings": {"default_payment_method": method_ref}}
        await self._asked(lambda: self._client.customers.update_async(customer_ref, params=params))

    async def detach_method(self, method_ref: str) -> None:
        try:
            await self._asked(lambda: self._client.payment_methods.detach_async(method_ref))
        except CallerError:
            if await self.method(method_ref) is not None:
                raise

    # -- payments

    async def create_payment(
        self, *, key: str, customer_ref: str, method_ref: str, amount_cents: int, currency: str, metadata: Mapping[str, str]
    ) -> Payment:
        params: Any = {
            "amount": amount_cents, "currency": currency, "customer": customer_ref, "payment_method": method_ref,
            "payment_method_types": ["card"], "metadata": dict(metadata),
        }  # fmt: skip
        create = self._client.payment_intents.create_async
        return _payment(await self._asked(lambda: create(params=params, options={"idempotency_key": key})))

    async def confirm_payment(
        self, payment_ref: str, *, key: str, method_ref: str, off_session: bool, return_url: str | None
    ) -> Outcome:
        params: Any = {"payment_method": method_ref}
        if off_session:
            params["off_session"] = True
        elif return_url:
            params["return_url"] = return_url
        confirm = self._client.payment_intents.confirm_async
        try:
            answer = await confirm(payment_ref, params=params, options={"idempotency_key": key})
            return outcome_of(_payment(answer.to_dict()))
        except self._stripe.CardError as error:
            return _refused(error)
        except self._stripe.InvalidRequestError as error:
            # Paid, canceled or under way by another hand: its state says which. Anything else can never be confirmed.
            if error.code == _UNEXPECTED_STATE or error.http_status == 409:
                return Unknown(reason=str(error.code))
            return Declined(
                decline=Decline(code=error.code or "invalid_request", decline_code="", message=error.user_message or "Refused.")
            )
        except (self._stripe.StripeError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return Unknown(reason=type(error).__name__)

    async def payment(self, payment_ref: str) -> Payment:
        return _payment(await self._asked(lambda: self._client.payment_intents.retrieve_async(payment_ref)))

    async def find_payment(self, customer_ref: str, charge_id: str, since: datetime) -> Payment | None:
        params: Any = {"customer": customer_ref, "created": {"gte": int(since.timestamp())}, "limit": 100}
        async for found in self._paged(lambda: self._client.payment_intents.list_async(params=params)):
            if found.get("metadata", {}).get(CHARGE_KEY) == charge_id:
                return _payment(found)
        return None

    async def cancel_payment(self, payment_ref: str) -> Payment:
        try:
            return _payment(await self._asked(lambda: self._client.payment_intents.cancel_async(payment_ref)))
        except CallerError:  # paid or canceled already
            return await self.payment(payment_ref)

    async def payments_of_day(self, day: date) -> list[Payment]:
        first = datetime(day.year, day.month, day.day, tzinfo=UTC)
        bounds = {"gte": int(first.timestamp()), "lt": int((first + timedelta(days=1)).timestamp())}
        params: Any = {"created": bounds, "limit": 100}
        return [_payment(found) async for found in self._paged(lambda: self._client.payment_intents.list_async(params=params))]

    async def authenticate(self, payment_ref: str, *, approve: bool) -> Payment:
        raise CallerError("Only the cardholder's bank can do this.", code="not_in_sandbox_mode")

    # -- money back

    async def refund(self, payment_ref: str, amount_cents: int, *, refund_id: str) -> Refund:
        params: Any = {"payment_intent": payment_ref, "amount": amount_cents, "metadata": {_REFUND_KEY: refund_id}}
        create = self._client.refunds.create_async
        return _refund(await self._asked(lambda: create(params=params, options={"idempotency_key": f"rf:{refund_id}"})))

    async def refunds(self, payment_ref: str) -> list[Refund]:
        params: Any = {"payment_intent": payment_ref, "limit": 100}
        return [_refund(found) async for found in self._paged(lambda: self._client.refunds.list_async(params=params))]

    async def disputes(self, payment_ref: str) -> list[Dispute]:
        params: Any = {"payment_intent": payment_ref, "limit": 100}
        return [_dispute(found) async for found in self._paged(lambda: self._client.disputes.list_async(params=params))]

    # -- notices

    def event(self, body: bytes, signature: str) -> Event:
        """See Processor.event; the signature covers the raw bytes, and one older or newer than 300 s is refused."""
        if not any(self._is_signed(body, signature, secret) for secret in self._webhook_secrets):
            raise CallerError("The Stripe-Signature header does not fit this body.", code="invalid_signature")
        stamp = next(int(part[2:]) for part in signature.split(",") if part.startswith("t="))
        if abs(self._now_s() - stamp) > SIGNATURE_TOLERANCE_S:
            raise CallerError("The Stripe-Signature header is too old; nothing was done.", code="invalid_signature")
        try:
            return _event(self._stripe.Webhook.construct_event_without_verification(body).to_dict())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CallerError("The body is not a Stripe event.", code="invalid_event") from error

    def _is_signed(self, body: bytes, signature: str, secret: str) -> bool:
        try:
            return bool(self._stripe.WebhookSignature.verify_header(body, signature, secret, None))
        except (self._stripe.SignatureVerificationError, UnicodeDecodeError):
            return False

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    # -- plumbing

    async def _asked(self, call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """An answer as plain values, errors translated."""
        with self._translated():
            return dict((await call()).to_dict())

    async def _paged(self, call: Callable[[], Awaitable[Any]]) -> AsyncIterator[dict[str, Any]]:
        with self._translated():
            async for found in (await call()).auto_paging_iter():
                yield dict(found.to_dict())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._stripe.CardError as error:
            raise CallerError(error.user_message or "The card was declined.", code=error.code, status=402) from error
        except self._stripe.InvalidRequestError as error:
            if error.http_status == 409:
                raise _unavailable(error) from error
            raise CallerError(error.user_message or "Stripe refuses this.", code=error.code or "refused_by_processor") from error
        except (self._stripe.StripeError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> UpstreamError:
    return UpstreamError(f"Stripe does not answer as it should: {type(error).__name__}", code="processor_unavailable")


def _refused(error: Any) -> Outcome:
    """A 402: declined, or the bank wants its holder."""
    facts = (error.json_body or {}).get("error", {})
    intent = facts.get("payment_intent") or {}
    if facts.get("code") == _NEEDS_HOLDER or facts.get("decline_code") == _NEEDS_HOLDER:
        return RequiresAction(action_url=None, client_secret=intent.get("client_secret"))
    return Declined(decline=_decline(facts), attempt_ref=_ref(intent.get("latest_charge")) or facts.get("charge") or "")


def _decline(facts: Mapping[str, Any]) -> Decline:
    return Decline(
        code=facts.get("code") or "card_declined",
        decline_code=facts.get("decline_code") or "",
        message=facts.get("message") or "Your card was declined.",
    )


def _payment(facts: Mapping[str, Any]) -> Payment:
    error = facts.get("last_payment_error")
    status = _STATUSES.get(facts["status"])
    if status is None:  # requires_payment_method: refused, waiting for its holder, or never tried
        status = "unconfirmed" if not error else "requires_action" if error.get("code") == _NEEDS_HOLDER else "declined"
    action = facts.get("next_action") or {}
    return Payment(
        payment_ref=facts["id"],
        status=status,
        amount_cents=facts["amount"],
        captured_cents=_captured(facts),
        currency=facts["currency"],
        customer_ref=_ref(facts.get("customer")),
        method_ref=_ref(facts.get("payment_method")),
        charge_id=(facts.get("metadata") or {}).get(CHARGE_KEY),
        created_at=datetime.fromtimestamp(facts["created"], UTC),
        attempt_ref=_ref(facts.get("latest_charge")) or "",
        decline=_decline(error) if error else None,
        action_url=(action.get("redirect_to_url") or {}).get("url"),
        client_secret=facts.get("client_secret"),
    )


def _captured(facts: Mapping[str, Any]) -> int:
    if facts["status"] != "succeeded":
        return 0
    received = facts.get("amount_received")
    return int(facts["amount"] if received is None else received)


def _ref(value: Any) -> str | None:
    """An id, whether the object came whole or as its id."""
    found = value.get("id") if isinstance(value, Mapping) else value
    return None if found is None else str(found)


def _setup(facts: Mapping[str, Any]) -> Setup:
    return Setup(
        setup_ref=facts["id"],
        customer_ref=_ref(facts["customer"]) or "",
        client_secret=facts["client_secret"],
        is_done=facts["status"] == "succeeded",
        method_ref=_ref(facts.get("payment_method")),
    )


def _method(facts: Mapping[str, Any]) -> CardMethod:
    card = facts.get("card") or {}
    return CardMethod(
        processor_ref=facts["id"],
        customer_ref=_ref(facts.get("customer")),
        brand=card.get("brand") or "unknown",
        last4=card.get("last4") or "",
        expiry_month=int(card.get("exp_month") or 1),
        expiry_year=int(card.get("exp_year") or 1970),
    )


def _refund(facts: Mapping[str, Any]) -> Refund:
    failed = facts.get("status") in ("failed", "canceled")
    return Refund(
        refund_ref=facts["id"],
        refund_id=(facts.get("metadata") or {}).get(_REFUND_KEY),
        payment_ref=_ref(facts.get("payment_intent")) or "",
        amount_cents=facts["amount"],
        status="failed" if failed else "succeeded" if facts.get("status") == "succeeded" else "pending",
    )


def _dispute(facts: Mapping[str, Any]) -> Dispute:
    status = facts["status"]
    return Dispute(
        dispute_ref=facts["id"],
        payment_ref=_ref(facts.get("payment_intent")) or "",
        amount_cents=facts["amount"],
        # A warning or a prevented dispute has moved no money.
        status=status if status in ("won", "lost") else "open" if status in ("needs_response", "under_review") else "warning",
    )


def _event(facts: Mapping[str, Any]) -> Event:
    kind, thing = facts["type"], facts["data"]["object"]
    subject: EventSubject = next((subject for prefix, subject in _SUBJECTS if kind.startswith(prefix)), "other")
    payment_ref = thing["id"] if subject == "payment" else _ref(thing.get("payment_intent"))
    return Event(
        event_id=facts["id"],
        kind=kind,
        subject=subject,
        object_ref=str(thing.get("id") or ""),
        payment_ref=payment_ref,
        created_at=datetime.fromtimestamp(facts["created"], UTC),
    )
