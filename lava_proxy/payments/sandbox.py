"""The processor of `dev`: test cards only, no network, its state in Postgres, answers and idempotency as Stripe's.

The well-known test numbers decide what happens (docs.stripe.com/testing, read 2026-11): 4242… pays, …0002 is refused when it is
stored, …0341 is stored and refused when charged, …9995 has no funds, …3155 needs its holder at each use. Any other number is
refused before anything is kept, and of a test number only brand, last four digits and expiry are.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import asyncpg

from lava_proxy.domain.errors import CallerError, Conflict, NotFound, UpstreamError
from lava_proxy.payments.processor import (
    CHARGE_KEY,
    CardDetails,
    CardMethod,
    Decline,
    Declined,
    Dispute,
    Event,
    Outcome,
    Payment,
    Refund,
    Setup,
    Unknown,
    outcome_of,
)

Behaviour = Literal["pays", "refused", "refused_when_charged", "no_funds", "needs_holder"]

_CARDS: dict[str, tuple[str, Behaviour]] = {
    "4242424242424242": ("visa", "pays"),
    "5555555555554444": ("mastercard", "pays"),
    "378282246310005": ("amex", "pays"),
    "4000000000000002": ("visa", "refused"),
    "4000000000000341": ("visa", "refused_when_charged"),
    "4000000000009995": ("visa", "no_funds"),
    "4000002500003155": ("visa", "needs_holder"),
}
_DECLINES: dict[Behaviour, Decline] = {
    "refused": Decline(code="card_declined", decline_code="generic_decline", message="Your card was declined."),
    "refused_when_charged": Decline(code="card_declined", decline_code="generic_decline", message="Your card was declined."),
    "no_funds": Decline(code="card_declined", decline_code="insufficient_funds", message="Your card has insufficient funds."),
}
_NOT_AUTHENTICATED = Decline(
    code="payment_intent_authentication_failure",
    decline_code="",
    message="The card could not be charged because its holder was not authenticated.",
)


# The key's answer is what makes a payment one: it is written first, and not without the customer.
_CREATE_PAYMENT = """WITH customer AS (SELECT object_ref FROM sandbox_object WHERE object_ref = $5 AND kind = 'customer'),
answer AS (INSERT INTO sandbox_answer (key, fingerprint, object_ref, created_at)
  SELECT $1, $2, $3, $4 FROM customer ON CONFLICT DO NOTHING RETURNING object_ref)
INSERT INTO sandbox_object SELECT object_ref, 'payment', $5, $6, $4 FROM answer RETURNING true"""
# A payment, a card, and the answer that a key got before, under the name ''.
_READ_PAYMENT = """SELECT object_ref, customer_ref, facts, created_at FROM sandbox_object
WHERE object_ref = $1 AND kind = 'payment' OR object_ref = $2 AND kind = 'method'
UNION ALL SELECT '', '', jsonb_build_object('fingerprint', fingerprint, 'decline', decline), created_at
FROM sandbox_answer WHERE key = $3"""
# The payment as it was read and the key unused, or nothing is written: whoever is second reads again.
_CONFIRM_PAYMENT = """WITH changed AS (
  UPDATE sandbox_object SET facts = $3 WHERE object_ref = $1 AND facts = $2 RETURNING object_ref)
INSERT INTO sandbox_answer SELECT $4, $5, object_ref, $6, $7 FROM changed RETURNING true"""
_CONFIRM_TRIES_MAX = 20


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    object_ref: str
    customer_ref: str
    facts: dict[str, Any]
    created_at: datetime


class SandboxProcessor:
    """Keeps its objects in `sandbox_object` and the answers of its keys in `sandbox_answer`."""

    name = "sandbox"

    def __init__(self, pool: Any, *, clock: Callable[[], datetime] = _utc_now, base_url: str = "") -> None:
        self._pool = pool
        self._clock = clock
        self._base_url = base_url.rstrip("/")

    # -- customers and cards

    async def create_customer(self, *, key: str, phone: str, email: str | None, metadata: Mapping[str, str]) -> str:
        facts = {"phone": phone, "email": email, "metadata": dict(metadata)}
        async with self._keyed(key, ["customer", facts]) as (db, known):
            if known is not None:
                return str(known["object_ref"])
            ref = _new_ref("cus")
            await self._insert(db, ref, "customer", ref, facts)
            await self._answer(db, key, ["customer", facts], ref)
            return ref

    async def create_setup(self, customer_ref: str) -> Setup:
        async with self._transaction() as db:
            await self._get(db, "customer", customer_ref)
            ref = _new_ref("seti")
            facts = {"secret": f"{ref}_secret_{secrets.token_hex(12)}", "is_done": False, "method_ref": None}
            await self._insert(db, ref, "setup", customer_ref, facts)
        return _setup(_Row(object_ref=ref, customer_ref=customer_ref, facts=facts, created_at=self._clock()))

    async def setup(self, setup_ref: str) -> Setup:
        async with self._transaction() as db:
            return _setup(await self._get(db, "setup", setup_ref))

    async def add_card(self, setup: Setup, card: CardDetails) -> CardMethod:
        brand, behaviour = _checked(card, self._clock())
        if behaviour == "refused":
            raise CallerError(_DECLINES[behaviour].message, code="card_declined", status=402)
        async with self._transaction() as db:
            row = await self._get(db, "setup", setup.setup_ref, lock=True)
            if row.facts["is_done"]:
                return _method(await self._get(db, "method", row.facts["method_ref"]))
            facts = {
                "brand": brand, "last4": _digits(card.number)[-4:], "month": card.expiry_month, "year": card.expiry_year,
                "behaviour": behaviour, "is_detached": False,
            }  # fmt: skip
            ref = _new_ref("pm")
            await self._insert(db, ref, "method", row.customer_ref, facts)
            await self._update(db, row, {"is_done": True, "method_ref": ref})
            return _method(await self._get(db, "method", ref))

    async def attach_method(self, customer_ref: str, method_ref: str) -> CardMethod:
        async with self._transaction() as db:
            row = await self._get(db, "method", method_ref)
            if row.customer_ref != customer_ref or row.facts["is_detached"]:
                raise CallerError("This card belongs to another customer or was removed; add it again.", code="card_not_usable")
            return _method(row)

    async def methods(self, customer_ref: str) -> list[CardMethod]:
        async with self._transaction() as db:
            rows = await db.fetch(
                "SELECT object_ref, customer_ref, facts, created_at FROM sandbox_object"
                " WHERE customer_ref = $1 AND kind = 'method' ORDER BY created_at DESC, object_ref",
                customer_ref,
            )
        return [_method(_Row(**row)) for row in rows if not row["facts"]["is_detached"]]

    async def method(self, method_ref: str) -> CardMethod | None:
        async with self._transaction() as db:
            row = await self._find(db, "method", method_ref)
        return None if row is None or row.facts["is_detached"] else _method(row)

    async def set_default_method(self, customer_ref: str, method_ref: str) -> None:
        async with self._transaction() as db:
            customer = await self._get(db, "customer", customer_ref, lock=True)
            await self._update(db, customer, {"default_method": method_ref})

    async def detach_method(self, method_ref: str) -> None:
        async with self._transaction() as db:
            row = await self._find(db, "method", method_ref, lock=True)
            if row is not None:
                await self._update(db, row, {"is_detached": True})

    # -- payments

    async def create_payment(
        self, *, key: str, customer_ref: str, method_ref: str, amount_cents: int, currency: str, metadata: Mapping[str, str]
    ) -> Payment:
        arguments = ["payment", customer_ref, method_ref, amount_cents, currency, dict(metadata)]
        ref, now = _new_ref("pi"), self._clock()
        facts = {
            "status": "unconfirmed", "amount": amount_cents, "captured": 0, "currency": currency, "method_ref": method_ref,
            "metadata": dict(metadata), "attempt_ref": "", "decline": None, "secret": f"{ref}_secret_{secrets.token_hex(12)}",
        }  # fmt: skip
        async with self._connection() as db:
            if await db.fetchval(_CREATE_PAYMENT, key, _fingerprint(arguments), ref, now, customer_ref, facts):
                return self._payment(_Row(object_ref=ref, customer_ref=customer_ref, facts=facts, created_at=now))
            known = await self._known(db, key, arguments)
            if known is None:
                raise _unknown("customer", customer_ref)
            return self._payment(await self._get(db, "payment", known["object_ref"]))

    async def confirm_payment(
        self, payment_ref: str, *, key: str, method_ref: str, off_session: bool, return_url: str | None
    ) -> Outcome:
        arguments = ["confirm", payment_ref, method_ref, off_session, return_url]
        try:
            async with self._connection() as db:
                for _ in range(_CONFIRM_TRIES_MAX):
                    outcome = await self._try_to_confirm(db, payment_ref, method_ref, key, arguments)
                    if outcome is not None:
                        return outcome
        except (UpstreamError, CallerError) as error:
            return Unknown(reason=error.message)
        return Unknown(reason="others change this payment all the time")

    async def _try_to_confirm(
        self, db: Any, payment_ref: str, method_ref: str, key: str, arguments: list[Any]
    ) -> Outcome | None:  # fmt: skip
        """What becomes of a payment as it stands; None when another changed it, or used the key, between reading and writing."""
        rows = {row["object_ref"]: row for row in await db.fetch(_READ_PAYMENT, payment_ref, method_ref, key)}
        answer, found, card = (rows.get(name) for name in ("", payment_ref, method_ref))
        if found is None:
            raise _unknown("payment", payment_ref)
        row = _row(found)
        if answer is not None:
            _check_fingerprint(answer["facts"]["fingerprint"], arguments)
            return _repeated(answer["facts"]["decline"]) or outcome_of(self._payment(row))
        if row.facts["status"] not in ("unconfirmed", "declined", "requires_action"):
            return Unknown(reason=f"the payment is {row.facts['status']}")
        changes = _attempt(None if card is None else _row(card), row)
        changed = replace(row, facts=row.facts | changes)
        declined = changes["decline"] and {"attempt_ref": changes["attempt_ref"], **changes["decline"]}
        try:
            done = await db.fetchval(
                _CONFIRM_PAYMENT, payment_ref, row.facts, changed.facts, key, _fingerprint(arguments), declined, self._clock()
            )
        except asyncpg.UniqueViolationError:
            return None
        return outcome_of(self._payment(changed)) if done else None

    async def payment(self, payment_ref: str) -> Payment:
        async with self._transaction() as db:
            return self._payment(await self._get(db, "payment", payment_ref))

    async def find_payment(self, customer_ref: str, charge_id: str, since: datetime) -> Payment | None:
        async with self._transaction() as db:
            rows = await db.fetch(
                "SELECT object_ref, customer_ref, facts, created_at FROM sandbox_object"
                " WHERE customer_ref = $1 AND kind = 'payment' ORDER BY created_at DESC",
                customer_ref,
            )
        found = (_Row(**row) for row in rows if row["facts"]["metadata"].get(CHARGE_KEY) == charge_id)
        return next((self._payment(row) for row in found), None)

    async def cancel_payment(self, payment_ref: str) -> Payment:
        async with self._transaction() as db:
            row = await self._get(db, "payment", payment_ref, lock=True)
            if row.facts["status"] != "succeeded":
                row = await self._update(db, row, {"status": "canceled"})
            return self._payment(row)

    async def payments_of_day(self, day: date) -> list[Payment]:
        first = datetime(day.year, day.month, day.day, tzinfo=UTC)
        async with self._transaction() as db:
            rows = await db.fetch(
                "SELECT object_ref, customer_ref, facts, created_at FROM sandbox_object"
                " WHERE kind = 'payment' AND created_at >= $1 AND created_at < $2 ORDER BY created_at",
                first,
                first + timedelta(days=1),
            )
        return [self._payment(_Row(**row)) for row in rows]

    async def authenticate(self, payment_ref: str, *, approve: bool) -> Payment:
        """What the holder says at the bank; changes nothing unless the payment waits for it."""
        async with self._transaction() as db:
            row = await self._get(db, "payment", payment_ref, lock=True)
            if row.facts["status"] == "requires_action":
                paid = {"status": "succeeded", "captured": row.facts["amount"], "decline": None}
                row = await self._update(db, row, paid if approve else _declined(_NOT_AUTHENTICATED))
            return self._payment(row)

    # -- money back

    async def refund(self, payment_ref: str, amount_cents: int, *, refund_id: str) -> Refund:
        arguments = ["refund", payment_ref, amount_cents]
        async with self._keyed(f"rf:{refund_id}", arguments) as (db, known):
            if known is not None:
                return _refund(await self._get(db, "refund", known["object_ref"]))
            payment = await self._get(db, "payment", payment_ref, lock=True)
            given = sum(found.amount_cents for found in await self._refunds(db, payment))
            if payment.facts["captured"] - given < amount_cents:
                raise CallerError("More would be refunded than is left of the payment.", code="refund_too_large")
            ref = _new_ref("re")
            facts = {"payment_ref": payment_ref, "amount": amount_cents, "refund_id": refund_id}
            await self._insert(db, ref, "refund", payment.customer_ref, facts)
            await self._answer(db, f"rf:{refund_id}", arguments, ref)
            return _refund(await self._get(db, "refund", ref))

    async def refunds(self, payment_ref: str) -> list[Refund]:
        async with self._transaction() as db:
            return await self._refunds(db, await self._get(db, "payment", payment_ref))

    async def _refunds(self, db: Any, payment: _Row) -> list[Refund]:
        rows = await db.fetch(
            "SELECT object_ref, customer_ref, facts, created_at FROM sandbox_object"
            " WHERE customer_ref = $1 AND kind = 'refund' ORDER BY created_at, object_ref",
            payment.customer_ref,
        )
        return [_refund(_Row(**row)) for row in rows if row["facts"]["payment_ref"] == payment.object_ref]

    async def disputes(self, payment_ref: str) -> list[Dispute]:
        """Nobody objects to play money."""
        return []

    def event(self, body: bytes, signature: str) -> Event:
        raise CallerError("The sandbox processor sends no notices.", code="invalid_signature")

    async def close(self) -> None:
        """Nothing of its own is open."""

    # -- plumbing

    def _payment(self, row: _Row) -> Payment:
        facts = row.facts
        waits = facts["status"] == "requires_action"
        return Payment(
            payment_ref=row.object_ref,
            status=facts["status"],
            amount_cents=facts["amount"],
            captured_cents=facts["captured"],
            currency=facts["currency"],
            customer_ref=row.customer_ref,
            method_ref=facts["method_ref"],
            charge_id=facts["metadata"].get(CHARGE_KEY),
            created_at=row.created_at,
            attempt_ref=facts["attempt_ref"],
            decline=None if facts["decline"] is None else Decline(**facts["decline"]),
            action_url=f"{self._base_url}/sandbox/bank/{row.object_ref}" if waits else None,
            client_secret=facts["secret"],
        )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self._connection() as db, db.transaction():
            yield db

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """For statements that each stand alone."""
        try:
            async with self._pool.acquire(timeout=10) as db:
                yield db
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise UpstreamError(
                f"The sandbox processor cannot answer: {type(error).__name__}", code="processor_unavailable"
            ) from error

    @asynccontextmanager
    async def _keyed(self, key: str, arguments: list[Any]) -> AsyncIterator[tuple[Any, dict[str, Any] | None]]:
        """A transaction that no other of the same key runs beside, and the answer the key got before."""
        async with self._transaction() as db:
            await db.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"sandbox:{key}")
            yield db, await self._known(db, key, arguments)

    async def _known(self, db: Any, key: str, arguments: list[Any]) -> dict[str, Any] | None:
        """The answer that a key got before. Raises Conflict when that was to other arguments."""
        known = await db.fetchrow("SELECT fingerprint, object_ref, decline FROM sandbox_answer WHERE key = $1", key)
        if known is None:
            return None
        _check_fingerprint(known["fingerprint"], arguments)
        return dict(known)

    async def _answer(self, db: Any, key: str, arguments: list[Any], object_ref: str) -> None:
        await db.execute(
            "INSERT INTO sandbox_answer (key, fingerprint, object_ref, created_at) VALUES ($1, $2, $3, $4)",
            key, _fingerprint(arguments), object_ref, self._clock(),
        )  # fmt: skip

    async def _insert(self, db: Any, ref: str, kind: str, customer_ref: str, facts: dict[str, Any]) -> None:
        await db.execute("INSERT INTO sandbox_object VALUES ($1, $2, $3, $4, $5)", ref, kind, customer_ref, facts, self._clock())

    async def _update(self, db: Any, row: _Row, changes: dict[str, Any]) -> _Row:
        changed = replace(row, facts=row.facts | changes)
        await db.execute("UPDATE sandbox_object SET facts = $2 WHERE object_ref = $1", row.object_ref, changed.facts)
        return changed

    async def _find(self, db: Any, kind: str, ref: str, *, lock: bool = False) -> _Row | None:
        row = await db.fetchrow(
            "SELECT object_ref, customer_ref, facts, created_at FROM sandbox_object WHERE object_ref = $1 AND kind = $2"
            + (" FOR UPDATE" if lock else ""),
            ref,
            kind,
        )
        return None if row is None else _Row(**row)

    async def _get(self, db: Any, kind: str, ref: str, *, lock: bool = False) -> _Row:
        row = await self._find(db, kind, ref, lock=lock)
        if row is None:
            raise _unknown(kind, ref)
        return row


def _new_ref(prefix: str) -> str:
    return f"{prefix}_sbx_{secrets.token_hex(12)}"


def _unknown(kind: str, ref: str) -> NotFound:
    return NotFound(f"The sandbox processor knows no {kind} {ref[:60]!r}.")


def _row(found: Mapping[str, Any]) -> _Row:
    return _Row(**{name: found[name] for name in _Row.__slots__})


def _check_fingerprint(known: str, arguments: list[Any]) -> None:
    if known != _fingerprint(arguments):
        raise Conflict("This key was used with other arguments.", code="idempotency_error")


def _fingerprint(arguments: list[Any]) -> str:
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()


def _digits(number: str) -> str:
    return number.replace(" ", "").replace("-", "")


def _checked(card: CardDetails, now: datetime) -> tuple[str, Behaviour]:
    """Brand and behaviour of a test card. Raises CallerError for any other number and an impossible expiry."""
    known = _CARDS.get(_digits(card.number))
    if known is None:
        raise CallerError(
            "This installation is in sandbox mode and takes test cards only, such as 4242 4242 4242 4242; nothing was stored.",
            code="test_cards_only",
        )
    month = (card.expiry_year, card.expiry_month)
    if not 1 <= card.expiry_month <= 12 or not (now.year, now.month) <= month <= (now.year + 50, 12):
        raise CallerError("The expiry must be a month that is not over, such as 12/2034.", code="invalid_expiry")
    return known


def _attempt(method: _Row | None, row: _Row) -> dict[str, Any]:
    """What a confirmation makes of a payment."""
    attempt_ref = _new_ref("ch")
    if method is None or method.facts["is_detached"] or method.customer_ref != row.customer_ref:
        gone = Decline(code="payment_method_not_available", decline_code="", message="The card has been removed.")
        return {"attempt_ref": attempt_ref, **_declined(gone)}
    used = {"attempt_ref": attempt_ref, "method_ref": method.object_ref}
    behaviour: Behaviour = method.facts["behaviour"]
    if behaviour == "needs_holder":
        return used | {"status": "requires_action", "decline": None}
    if behaviour in _DECLINES:
        return used | _declined(_DECLINES[behaviour])
    return used | {"status": "succeeded", "captured": row.facts["amount"], "decline": None}


def _declined(decline: Decline) -> dict[str, Any]:
    return {
        "status": "declined",
        "decline": {"code": decline.code, "decline_code": decline.decline_code, "message": decline.message},
    }


def _repeated(answer: dict[str, str] | None) -> Outcome | None:
    """A refusal that a key got before; it is repeated, also when the payment has been paid since by another attempt."""
    if answer is None:
        return None
    attempt_ref = answer.pop("attempt_ref")
    return Declined(decline=Decline(**answer), attempt_ref=attempt_ref)


def _setup(row: _Row) -> Setup:
    return Setup(
        setup_ref=row.object_ref, customer_ref=row.customer_ref, client_secret=row.facts["secret"], is_done=row.facts["is_done"],
        method_ref=row.facts["method_ref"],
    )  # fmt: skip


def _method(row: _Row) -> CardMethod:
    facts = row.facts
    return CardMethod(
        processor_ref=row.object_ref, customer_ref=row.customer_ref, brand=facts["brand"], last4=facts["last4"],
        expiry_month=facts["month"], expiry_year=facts["year"],
    )  # fmt: skip


def _refund(row: _Row) -> Refund:
    facts = row.facts
    return Refund(
        refund_ref=row.object_ref, refund_id=facts["refund_id"], payment_ref=facts["payment_ref"], amount_cents=facts["amount"],
        status="succeeded",
    )  # fmt: skip
