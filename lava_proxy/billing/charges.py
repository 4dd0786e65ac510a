"""Charging a card exactly once: a state machine whose every step is committed before the next call to the processor.

    created ─▶ pi_created ─▶ confirming ─▶ succeeded | declined | requires_action | unknown
                   ▲                                      │              │            │
                   └──────── when a retry is due ─────────┘              └── asked ───┴─▶ succeeded | declined | canceled

- The payment is made unconfirmed and its reference stored; only then is it confirmed. A crash anywhere leaves either a payment
  that nobody confirms, or one whose fate can be asked for by its reference.
- Keys never change while the fate of an attempt is open: `pi:<charge>`, `cf:<charge>:<attempt>`; `attempt` grows only after a
  definitive refusal. A confirmation without an answer is never sent again: the payment is asked for, and one that stays
  unconfirmed is canceled at the processor, which settles that it never will be paid.
- Paid is paid: `succeeded`, whoever tells (the call's answer, a notice, a poll), credits under an id made from the payment's, in
  one transaction with the state. It is taken from every state, also from `declined` and `canceled`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import UUID, uuid5

import asyncpg
import structlog

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import CallerError, Conflict, LavaError, StoreError, UpstreamError
from lava_proxy.domain.money import format_usd, nanos_of_cents
from lava_proxy.domain.webhooks import CHARGE_FAILED
from lava_proxy.payments.processor import (
    CHARGE_KEY,
    Decline,
    Declined,
    Event,
    Outcome,
    Payment,
    Processor,
    RequiresAction,
    Succeeded,
    Unknown,
    no_processor,
    outcome_of,
)
from lava_proxy.stores.charge_store import Bought, Charge, ChargeStore, HoldOff, MoneyBack, Purpose, State
from lava_proxy.stores.ids import created_ms, new_id, ulid_of
from lava_proxy.stores.webhook_events import add_event

AMOUNT_CENTS_MIN = 50  # below, Stripe refuses dollars (docs.stripe.com/currencies#minimum-and-maximum-charge-amounts)
AMOUNT_CENTS_MAX = 99_999_999
HOLD_OFFS = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))  # after the first, second, third decline; then suspended
RETRIGGERED: frozenset[Purpose] = frozenset({"overage", "auto_top_up"})  # whose trigger asks again when the need is still there

_PAYMENTS = UUID("5d0f6f8e-6e0d-4b50-9a6e-5b0c2f6f7a11")  # names of credits and refunds are made from the processor's in here
_LEASE = timedelta(minutes=2)  # a confirmation without an answer for so long belongs to a dead process
_ASKS = (timedelta(seconds=5), timedelta(seconds=15), timedelta(minutes=1), timedelta(minutes=4))  # then cancel what is unconfirmed
_CREATE_FOR = timedelta(hours=1)  # an unconfirmed payment that cannot be made for so long is given up
_ACTION_POLL = timedelta(minutes=15)
_ACTION_FOR = timedelta(hours=24)  # so long a cardholder has to authenticate
_STEPS_MAX = 6
_REFUND_KEY_FOR = timedelta(hours=23)  # Stripe promises keys for 24
_NO_CARD = Decline(code="payment_method_required", decline_code="", message="There is no card to charge: add one.")
_ABSENT = Decline(
    code="authentication_required", decline_code="holder_absent", message="The card's holder did not approve the payment in time."
)
_log = structlog.get_logger("charges")

Effect = Callable[[Any, Charge], Awaitable[Sequence[str]]]
OnTransition = Callable[[Any, Charge, str, str], Awaitable[None]]


FUNDING: tuple[Purpose, ...] = ("overage", "auto_top_up", "top_up")
"""What a charge is for whose money becomes funds; others buy something else."""


class Adjust(Protocol):
    """Orders a signed change of a wallet in a transaction; idempotent by its id."""

    async def __call__(
        self, merchant_id: str, wallet_id: str, adjust_id: str, delta_nanos: int, reason: str, *, lot_id: str | None, db: Any
    ) -> object: ...


def payment_credit_id(charge: Charge) -> str:
    """The id of the credit that a charge's payment becomes, whoever tells of it: the charge's time, and a UUIDv5 of the payment."""
    return ulid_of("crd", created_ms(charge.charge_id), uuid5(_PAYMENTS, f"{charge.processor}:{charge.processor_ref}").bytes[:10])


def bundle_credit_id(charge: Charge) -> str:
    """The id of the credit that a paid bundle becomes."""
    return f"bun_{charge.charge_id}"


def cycle_credit_id(subscription_id: str, start: datetime) -> str:
    """The id of the order that begins a subscription's cycle, and names its credit."""
    return f"ren_{subscription_id}_{start.astimezone(UTC):%Y%m%d%H%M%S%f}"


def unused_credit_id(charge: Charge) -> str:
    """The id of the funds that a charge's money becomes where it buys nothing else."""
    return f"unu_{charge.charge_id}"


class Charges:
    """Takes money by card. Without a processor everything raises `payments_disabled`.

    `effects`: what a paid charge of a purpose is for; each runs in the transaction that marks it paid, and answers with the ids of
    the orders of money that it wrote, which are applied after it. Those of overage and top-ups (funds) are built in.
    `on_transition(db, charge, old, new)` runs in the transaction of each change of state.
    """

    def __init__(
        self,
        store: ChargeStore,
        processor: Processor | None,
        funding: Funding,
        clock: Callable[[], datetime],
        effects: Mapping[Purpose, Effect] | None = None,
        *,
        on_transition: OnTransition | None = None,
        adjust: Adjust | None = None,
    ) -> None:
        """`adjust`: takes back and gives back for refunds and disputes; None: as `funding` does."""
        self._store = store
        self._optional_processor = processor
        self._funding = funding
        self._clock = clock
        own: dict[Purpose, Effect] = dict.fromkeys(FUNDING, self._fund)
        self._effects = own | dict(effects or {})
        self._on_transition = on_transition
        self._adjust: Adjust = adjust or funding.adjust

    @property
    def _processor(self) -> Processor:
        if self._optional_processor is None:
            raise no_processor()
        return self._optional_processor

    @property
    def processor_name(self) -> str | None:
        """None where no processor is set up."""
        return None if self._optional_processor is None else self._optional_processor.name

    # -- opening

    async def open(
        self,
        *,
        wallet_id: str,
        merchant_id: str,
        purpose: Purpose,
        amount_cents: int,
        key: str | None = None,
        price_snapshot: Mapping[str, Any] | None = None,
        subject: Mapping[str, Any] | None = None,
        on_session: bool = False,
        payment_method_id: str | None = None,
        return_url: str | None = None,
        currency: str = "usd",
    ) -> Charge:
        """A charge to be advanced: the new one; or the one that `key` has; or the wallet's open one whatever it is for.

        `key` names the occasion (a checkout, a subscription's period), once for ever, and stands in the charge's `occasion`: who
        gets another's has to wait for its end. After a canceled charge the same key opens another, of whatever amount is due then.
        Raises CallerError: `payment_method_required` (402), `amount_out_of_bounds`, Conflict `charge_held_off` or
        `charge_suspended` after declines (off-session only), Conflict when the key was used for another charge.
        """
        processor = self._processor
        if purpose not in self._effects:
            raise ValueError(f"no effect is known for {purpose}: its money would buy nothing")
        if not AMOUNT_CENTS_MIN <= amount_cents <= AMOUNT_CENTS_MAX:
            raise CallerError("A card can be charged $0.50 to $999,999.99.", code="amount_out_of_bounds")
        now = self._clock()
        charge_id = new_id("chg")
        occasion = asked_key = key or charge_id
        known, under_way = await self._store.in_the_way(wallet_id, key)
        if known is not None:
            wanted = (wallet_id, purpose, amount_cents)
            if known.state != "canceled":
                if (known.wallet_id, known.purpose, known.amount_cents) != wanted:
                    raise Conflict("This key was used for another charge; nothing was charged.")
                return known
            if (known.wallet_id, known.purpose) != wanted[:2]:
                raise Conflict("This key was used for another charge; nothing was charged.")
            asked_key = f"{key}#{1 + (int(known.key.rpartition('#')[2]) if known.key != key else 1)}"
        if under_way is not None:
            return under_way
        payer = await self._store.payer(wallet_id, processor.name, payment_method_id)
        if not on_session:
            _check_hold_off(payer.hold_off, now)
        if payer.person_id is None or payer.payment_method_id is None:
            raise CallerError(_NO_CARD.message, code=_NO_CARD.code, status=402)
        charge = Charge(
            charge_id=charge_id, key=asked_key,
            occasion=occasion, wallet_id=wallet_id, merchant_id=merchant_id, person_id=payer.person_id,
            purpose=purpose, amount_cents=amount_cents, currency=currency, on_session=on_session,
            price_snapshot=dict(price_snapshot or {}), subject=dict(subject or {}), state="created", processor=processor.name,
            processor_ref="", payment_method_id=payer.payment_method_id, attempt=1, attempt_ref="", captured_cents=0,
            action_url=None, return_url=return_url, decline_code=None, decline_reason=None, decline_message=None, tries=0,
            next_try_at=now, created_at=now, updated_at=now,
        )  # fmt: skip
        made = await self._store.insert(charge)
        if made is None:  # another was quicker: by the same key, or for the same wallet
            of_key, under_way = await self._store.in_the_way(wallet_id, occasion)
            made = under_way if of_key is None or of_key.state == "canceled" else of_key
        if made is None:
            raise Conflict("Another charge of this wallet has just ended; ask again.", code="charge_in_progress")
        return made

    # -- advancing

    async def advance(self, charge: Charge | str) -> Charge:
        """Go as far as can be gone now; the charge as it stands. Safe at any time, by many at once, after any crash.

        `charge`: its id, or it as it was a moment ago: no step is taken that another has taken since.
        """
        if isinstance(charge, str):
            charge = await self._store.charge(charge)
        if charge.processor != self._processor.name:
            return charge  # another processor took it; it cannot be asked here
        for _ in range(_STEPS_MAX):
            moved = await self._step(charge)
            if moved.state == charge.state:
                return moved
            charge = moved
        return charge

    async def _step(self, charge: Charge) -> Charge:
        is_due = charge.next_try_at is not None and charge.next_try_at <= self._clock()
        if charge.state == "created":
            return await self._create(charge)
        if charge.state == "pi_created":
            return await self._confirm(charge)
        if charge.state in ("confirming", "unknown", "requires_action") and is_due:
            return await self._ask(charge)
        if charge.state == "declined" and is_due:
            return await self._reopen(charge)
        return charge

    async def refresh(self, charge_id: str) -> Charge:
        """Ask the processor now what became of a charge: after its holder came back from authenticating."""
        charge = await self._store.charge(charge_id)
        if charge.state in ("confirming", "unknown", "requires_action") and charge.processor == self._processor.name:
            charge = await self._ask(charge)
        return charge

    async def refresh_payment(self, payment_ref: str) -> Charge | None:
        """`refresh` by the processor's reference; None when the payment is not ours."""
        charge = await self._store.charge_of_payment(self._processor.name, payment_ref)
        return None if charge is None else await self.refresh(charge.charge_id)

    async def authenticate(self, charge_id: str, return_url: str) -> Charge:
        """Bring a holder's authentication about: `action_url` of the answer is the page for it, the processor's own.

        An off-session charge that its bank wants authenticated has no page yet; confirming it on session makes one.
        """
        await self.refresh(charge_id)
        async with self._store.transaction() as db:
            charge = await self._store.locked(db, charge_id)
            if charge.state != "requires_action":
                return charge
            if charge.action_url is not None:
                return await self._change(db, charge, return_url=charge.return_url or return_url)
            # The attempt before ended with the bank's wish: a definitive answer, so this is a new one.
            charge = await self._change(
                db, charge, state="confirming", attempt=charge.attempt + 1, on_session=True, return_url=return_url, tries=0,
                next_try_at=self._clock() + _LEASE,
            )  # fmt: skip
        return await self._send(charge, await self._method_ref(charge))

    async def _create(self, charge: Charge) -> Charge:
        """created -> pi_created -> confirming: the processor knows the payment; its reference is stored, then it is confirmed."""
        now = self._clock()
        if charge.created_at + _CREATE_FOR < now and charge.attempt == 1:
            return await self._cancel(charge)  # a payment made meanwhile is an orphan that nobody confirms
        key = f"pi:{charge.charge_id}" + (f":{charge.attempt}" if charge.attempt > 1 else "")
        try:
            customer_ref, method_ref = await self._store.refs_at_processor(charge)
            payment = await self._processor.create_payment(
                key=key,
                customer_ref=customer_ref or await self.customer_ref(charge.person_id),
                method_ref=method_ref,
                amount_cents=charge.amount_cents,
                currency=charge.currency,
                metadata={CHARGE_KEY: charge.charge_id, "wallet_id": charge.wallet_id, "purpose": charge.purpose},
            )
        except UpstreamError as error:
            # Perhaps it was made and only the answer was lost; the processor would repeat that loss for a day.
            found = await self._found(charge)
            if found is None:
                return await self._postpone(charge, error.message)
            payment = found
        except CallerError as error:
            return await self._decided(charge, Declined(decline=Decline(code=error.code, decline_code="", message=error.message)))
        async with self._store.transaction() as db:
            made = await self._change_unmoved(
                db, charge, state="pi_created", processor_ref=payment.payment_ref, tries=0, next_try_at=now + _LEASE
            )
            if made is None:
                return await self._store.locked(db, charge.charge_id)
            claimed = await self._change(db, made, state="confirming")
        return await self._send(claimed, method_ref)

    async def _found(self, charge: Charge) -> Payment | None:
        with suppress(UpstreamError):
            customer_ref = await self.customer_ref(charge.person_id)
            return await self._processor.find_payment(customer_ref, charge.charge_id, charge.created_at - timedelta(days=1))
        return None

    async def customer_ref(self, person_id: str) -> str:
        """The person's name at the processor, made when there is none."""
        person = await self._store.person(person_id, self._processor.name)
        if person.customer_ref is not None:
            return person.customer_ref
        made = await self._processor.create_customer(
            key=f"cus:{person_id}", phone=person.phone, email=person.email, metadata={"person_id": person_id}
        )
        return await self._store.set_customer_ref(person_id, self._processor.name, made)

    async def _method_ref(self, charge: Charge) -> str:
        """The card of this attempt, fixed with it; one that was removed since is the processor's to refuse."""
        return (await self._store.refs_at_processor(charge))[1]

    async def _confirm(self, charge: Charge) -> Charge:
        """pi_created -> confirming, by one process only, which then takes the money: another attempt on a known payment."""
        async with self._store.transaction() as db:
            claimed = await self._change_unmoved(db, charge, state="confirming", tries=0, next_try_at=self._clock() + _LEASE)
            if claimed is None:
                return await self._store.locked(db, charge.charge_id)
        return await self._send(claimed, await self._method_ref(claimed))

    async def _send(self, charge: Charge, method_ref: str) -> Charge:
        outcome = await self._processor.confirm_payment(
            charge.processor_ref,
            key=f"cf:{charge.charge_id}:{charge.attempt}",
            method_ref=method_ref,
            off_session=not charge.on_session,
            return_url=charge.return_url,
        )
        return await self._decided(charge, outcome)

    async def _ask(self, charge: Charge) -> Charge:
        """What became of a payment; the answer to that decides, and what stays unconfirmed is canceled."""
        try:
            payment = await self._processor.payment(charge.processor_ref)
        except LavaError as error:
            return await self._postpone(charge, error.message)
        outcome = outcome_of(payment)
        if isinstance(outcome, Declined) and _is_old(charge, payment):
            outcome = Unknown(reason="only an earlier attempt is known")
        if payment.status == "canceled":
            return await self._cancel(charge)
        if self._is_given_up(charge, outcome, payment):
            return await self._call_off(charge)
        return await self._decided(charge, outcome)

    def _is_given_up(self, charge: Charge, outcome: Outcome, payment: Payment) -> bool:
        if isinstance(outcome, Unknown):
            return payment.status != "processing" and charge.tries >= len(_ASKS)
        waits = isinstance(outcome, RequiresAction) and charge.state == "requires_action"
        return waits and charge.created_at + _ACTION_FOR < self._clock()

    async def _call_off(self, charge: Charge) -> Charge:
        """Cancel at the processor; it says when the payment was quicker."""
        try:
            payment = await self._processor.cancel_payment(charge.processor_ref)
        except LavaError as error:
            return await self._postpone(charge, error.message)
        if payment.status == "succeeded":
            return await self._decided(charge, Succeeded(payment=payment))
        if payment.status != "canceled":
            return await self._postpone(charge, payment.status)
        return await self._cancel(charge, because=_ABSENT if charge.state == "requires_action" else None)

    async def _reopen(self, charge: Charge) -> Charge:
        """declined -> another attempt on the same payment, with the card that is the default now."""
        cards = await self._store.payment_methods(charge.person_id, charge.processor)
        try:
            async with self._store.transaction() as db:
                current = await self._store.locked(db, charge.charge_id)
                if current.state != "declined" or current.next_try_at is None or current.attempt != charge.attempt:
                    return current
                if not cards:
                    return await self._change(db, current, next_try_at=None)
                return await self._change(
                    db, current, state="pi_created" if current.processor_ref else "created", attempt=current.attempt + 1,
                    payment_method_id=cards[0].payment_method_id, tries=0, next_try_at=self._clock() + _LEASE,
                )  # fmt: skip
        except asyncpg.UniqueViolationError:  # the wallet has another open charge: after it
            return await self._postpone(charge, "another charge is open")

    # -- deciding: one transaction for state, trace, card, hold-off and effect

    async def _decided(self, charge: Charge, outcome: Outcome, event: Event | None = None) -> Charge:
        async with self._store.transaction() as db:
            if event is not None and not await self._note(db, event):
                return await self._store.locked(db, charge.charge_id)
            current = await self._store.locked(db, charge.charge_id)
            if isinstance(outcome, Succeeded):
                changed, orders = await self._succeed(db, current, outcome.payment)
            else:
                changed, orders = await self._decide(db, current, outcome, charge.attempt), ()
        for order_id in orders:
            with suppress(LavaError):  # at once what the applier does within a second otherwise
                await self._funding.apply_order(order_id)
        return changed

    async def _decide(self, db: Any, current: Charge, outcome: Declined | RequiresAction | Unknown, attempt: int) -> Charge:
        if current.attempt != attempt or not current.is_open:
            return current  # news of an attempt that is over
        if isinstance(outcome, Declined):
            return await self._decline(db, current, outcome)
        if isinstance(outcome, RequiresAction):
            return await self._change(
                db, current, state="requires_action", action_url=outcome.action_url or current.action_url, tries=0,
                next_try_at=self._clock() + _ACTION_POLL,
            )  # fmt: skip
        if current.state == "requires_action":
            return await self._change(db, current, next_try_at=self._clock() + _ACTION_POLL)
        if current.state not in ("confirming", "unknown"):
            return current
        wait = _ASKS[min(current.tries, len(_ASKS) - 1)]
        return await self._change(db, current, state="unknown", tries=current.tries + 1, next_try_at=self._clock() + wait)

    async def _succeed(self, db: Any, current: Charge, payment: Payment) -> tuple[Charge, Sequence[str]]:
        """The one place where money that came in has its effect; the orders of money that were written for it."""
        if current.state == "succeeded":
            return current, ()
        if current.processor_ref not in ("", payment.payment_ref):
            _log.error(
                "A payment succeeded that its charge does not name",
                action="foreign_payment", charge_id=current.charge_id, payment_ref=payment.payment_ref,
            )  # fmt: skip
            return current, ()
        changed = await self._change(
            db, current, state="succeeded", processor_ref=payment.payment_ref, captured_cents=payment.captured_cents,
            action_url=None, decline_code=None, decline_reason=None, decline_message=None, next_try_at=None,
        )  # fmt: skip
        await self._store.note_paid(db, changed, RETRIGGERED)
        return changed, await self._effects[changed.purpose](db, changed)

    async def _decline(self, db: Any, current: Charge, outcome: Declined) -> Charge:
        now, decline = self._clock(), outcome.decline
        hold_off: HoldOff | None = None
        if not current.on_session:
            hold_off = await self._store.count_decline(db, current.wallet_id, now, HOLD_OFFS)
        retry_at = None if hold_off is None or hold_off.suspended else hold_off.next_try_at
        if current.payment_method_id is not None:
            code = decline.decline_code or decline.code
            await self._store.mark_card(db, current.payment_method_id, code, decline.message, now)
        declined = await self._change(
            db, current, state="declined", decline_code=decline.code, decline_reason=decline.decline_code or None,
            decline_message=decline.message, attempt_ref=outcome.attempt_ref or current.attempt_ref, action_url=None,
            next_try_at=retry_at,
        )  # fmt: skip
        await self._tell_failed(db, declined)
        return declined

    async def _tell_failed(self, db: Any, charge: Charge) -> None:
        """`charge.failed`, once for each attempt."""
        await add_event(
            db,
            merchant_id=charge.merchant_id,
            event_type=CHARGE_FAILED,
            at=self._clock(),
            connection_id=await self._store.customer_of(db, charge.wallet_id),
            subject_id=charge.charge_id,
            facts={"charge": _failure(charge)},
            transition=f"{charge.charge_id}:{charge.attempt}",
        )

    async def _cancel(self, charge: Charge, *, because: Decline | None = None) -> Charge:
        """It is certain that nothing is or will be paid; `because`: where that is somebody's doing, which is told.

        A holder who stays away from an automatic charge has declined it: else it would be opened again day after day.
        """
        async with self._store.transaction() as db:
            current = await self._store.locked(db, charge.charge_id)
            if not current.is_open or current.attempt != charge.attempt:
                return current
            facts: dict[str, Any] = {}
            if because is not None:
                facts = {"decline_code": because.code, "decline_reason": because.decline_code, "decline_message": because.message}
                if not current.on_session or current.purpose in RETRIGGERED:
                    await self._store.count_decline(db, current.wallet_id, self._clock(), HOLD_OFFS)
            changed = await self._change(db, current, state="canceled", action_url=None, next_try_at=None, **facts)
            if because is not None:
                await self._tell_failed(db, changed)
            return changed

    async def _postpone(self, charge: Charge, reason: str) -> Charge:
        """The processor cannot say now."""
        _log.warning("A charge waits for its processor", action="charge_waits", charge_id=charge.charge_id, reason=reason[:200])
        async with self._store.transaction() as db:
            current = await self._store.locked(db, charge.charge_id)
            if current.state != charge.state or current.next_try_at is None:
                return current
            wait = _ASKS[min(current.tries, len(_ASKS) - 1)]
            # `tries` stays below the number after which an unconfirmed payment is called off: nothing has been learnt.
            tries = min(current.tries + 1, len(_ASKS) - 1)
            return await self._change(db, current, tries=max(tries, current.tries), next_try_at=self._clock() + wait)

    async def _change(self, db: Any, charge: Charge, *, state: State | None = None, **changes: Any) -> Charge:
        """Changes of a locked charge."""
        changed = await self._change_unmoved(db, charge, state=state or charge.state, **changes)
        assert changed is not None, "a locked charge is as it was read"
        return changed

    async def _change_unmoved(self, db: Any, charge: Charge, *, state: State, **changes: Any) -> Charge | None:
        """Changes of a charge that is locked with them; None when it has moved on meanwhile."""
        changed = await self._store.change(db, charge, self._clock(), state=state, **changes)
        if changed is not None and changed.state != charge.state and self._on_transition is not None:
            await self._on_transition(db, changed, charge.state, changed.state)
        return changed

    # -- the effect of top-ups and overage

    async def _fund(self, db: Any, charge: Charge) -> Sequence[str]:
        """Funds of what was captured."""
        return [
            await self._funding.fund(
                charge.merchant_id, charge.wallet_id, nanos_of_cents(charge.captured_cents), charge.purpose,
                payment_credit_id(charge), db=db,
            )
        ]  # fmt: skip

    # -- notices

    async def take_event(self, event: Event) -> bool:
        """Let a processor's notice have its effect, once; False when it has had it. The object is asked for, not believed.

        Raises UpstreamError when the processor cannot be asked: the notice will be sent again.
        """
        if await self._store.event_known(self._processor.name, event.event_id):
            return False
        charge = None if event.payment_ref is None else await self._charge_of(event.payment_ref)
        if charge is None or event.subject not in ("payment", "refund", "dispute"):
            async with self._store.transaction() as db:
                return await self._note(db, event)
        if event.subject in ("refund", "dispute"):
            await self.sync_refunds(charge.charge_id, event)
            return True
        assert event.payment_ref is not None
        payment = await self._processor.payment(event.payment_ref)
        outcome = outcome_of(payment)
        if charge.state == "confirming" and not isinstance(outcome, Succeeded):
            # Who is confirming will know better in a moment, and this may be news of the attempt before.
            outcome = Unknown(reason="being confirmed")
        if payment.status == "canceled":
            await self._cancel(charge)
        if isinstance(outcome, Unknown) or (isinstance(outcome, Declined) and _is_old(charge, payment)):
            async with self._store.transaction() as db:
                return await self._note(db, event)
        await self._decided(charge, outcome, event)
        return True

    async def _charge_of(self, payment_ref: str) -> Charge | None:
        """The charge of a payment, also before its reference was stored; None for payments that are not ours."""
        found = await self._store.charge_of_payment(self._processor.name, payment_ref)
        if found is not None:
            return found
        payment = await self._processor.payment(payment_ref)
        if payment.charge_id is None:
            return None
        with suppress(CallerError):
            return await self._store.charge(payment.charge_id)
        return None

    async def _note(self, db: Any, event: Event) -> bool:
        return await self._store.add_event(db, self._processor.name, event.event_id, event.kind, event.object_ref, self._clock())

    # -- cards have changed

    async def card_changed(self, person_id: str) -> None:
        """A person's card was added or chosen: nothing is held off any more."""
        await self._store.retry_after_card_change(person_id, RETRIGGERED, self._clock())

    # -- money back

    async def refund(
        self,
        charge_id: str,
        amount_cents: int | None,
        reason: str,
        *,
        refund_id: str | None = None,
        claims_used: bool = False,
        note: Callable[[Any, MoneyBack], Awaitable[None]] | None = None,
    ) -> MoneyBack:
        """Give back a part of a charge, or (None) what is left of it; the same refund_id again refunds nothing more.

        Of a bundle or a plan's cycle the refund's share of the credit goes with it, as far as it has not been used; with
        `claims_used` the customer owes what is missing to the amount that their card gets. Funds always give back that amount.
        `note(db, refund)` runs in the transaction that orders the refund.

        Raises Conflict `charge_not_paid`, CallerError `refund_too_large`. An answer that is lost is asked for by the worker.
        """
        processor, now = self._processor, self._clock()
        refund_id = refund_id or new_id("ref")
        async with self._store.transaction() as db:
            charge = await self._store.locked(db, charge_id)
            rows = await self._store.refunds_locked(db, charge_id)
            known = next((row for row in rows if row.refund_id == refund_id), None)
            if charge.state != "succeeded":
                raise Conflict("Only a paid charge can be refunded.", code="charge_not_paid")
            left = charge.captured_cents - sum(_counted(row) for row in rows)
            amount = left if amount_cents is None else amount_cents
            if known is None:
                if not 0 < amount <= left:
                    raise CallerError(
                        f"At most ${left // 100}.{left % 100:02} of this charge can be refunded.", code="refund_too_large"
                    )
                known = MoneyBack(
                    refund_id=refund_id, charge_id=charge_id, kind="refund", processor=processor.name, processor_ref="",
                    amount_cents=amount, clawed_cents=0, state="requested", adjustments=0, reason=reason, created_at=now,
                    claims_used=claims_used,
                )  # fmt: skip
                await self._store.save_refund(db, known, now)
                if note is not None:
                    await note(db, known)
        await self._send_refund(charge, known)
        return next(row for row in await self._store.refunds(charge_id) if row.refund_id == refund_id)

    async def _send_refund(self, charge: Charge, back: MoneyBack) -> None:
        try:
            if back.state == "requested":
                await self._processor.refund(charge.processor_ref, back.amount_cents, refund_id=back.refund_id)
            await self.sync_refunds(charge.charge_id)
        except (UpstreamError, StoreError) as error:
            # The worker goes on with it, whether the processor has been told or not.
            _log.warning("A refund waits", action="refund_waits", refund_id=back.refund_id, reason=error.message)
        except CallerError as error:
            async with self._store.transaction() as db:
                await self._store.locked(db, charge.charge_id)
                await self._store.save_refund(db, replace(back, state="failed"), self._clock())
            raise CallerError(f"The processor refuses this refund: {error.message}", code="refund_refused") from error

    async def finish_refunds(self, charge_id: str) -> None:
        """What a crash or a lost answer left of refunds: asked for by our id, and sent again by the same key while that holds."""
        await self.sync_refunds(charge_id)
        charge = await self._store.charge(charge_id)
        for back in await self._store.refunds(charge_id):
            if back.state != "requested":
                continue
            if back.created_at + _REFUND_KEY_FOR > self._clock():
                with suppress(CallerError):
                    await self._send_refund(charge, back)
                continue
            async with self._store.transaction() as db:
                await self._store.locked(db, charge_id)
                await self._store.save_refund(db, replace(back, state="failed"), self._clock())

    async def sync_refunds(self, charge_id: str, event: Event | None = None) -> None:
        """Bring a wallet in line with what the processor says went back of a charge: by refunds, by disputes, each once.

        Over a charge never more is taken from the wallet than was captured: a refund after a dispute takes nothing again.
        """
        charge = await self._store.charge(charge_id)
        if charge.state != "succeeded" and charge.processor_ref:  # money back may be told of before money in
            await self._decided(charge, outcome_of(await self._processor.payment(charge.processor_ref)))
        found = [
            ("refund", refund.refund_ref, refund.refund_id, refund.amount_cents, refund.status)
            for refund in await self._processor.refunds(charge.processor_ref)
        ] + [
            ("dispute", dispute.dispute_ref, None, dispute.amount_cents, _OF_DISPUTE[dispute.status])
            for dispute in await self._processor.disputes(charge.processor_ref)
        ]
        async with self._store.transaction() as db:
            if event is not None and not await self._note(db, event):
                return
            charge = await self._store.locked(db, charge_id)
            rows = {row.refund_id: row for row in await self._store.refunds_locked(db, charge_id)}
            bought, left_nanos = await self._bought(charge), None
            # What is given back to the wallet first makes room for what is taken.
            for kind, ref, ours, amount, status in sorted(found, key=lambda item: item[4] != "failed"):
                refund_id = ours if ours in rows else f"ref_{uuid5(_PAYMENTS, f'{charge.processor}:{ref}').hex}"
                row = rows.get(refund_id) or MoneyBack(
                    refund_id=refund_id, charge_id=charge_id, kind="dispute" if kind == "dispute" else "refund",
                    processor=charge.processor, processor_ref=ref, amount_cents=amount, clawed_cents=0, state="pending",
                    adjustments=0, reason=f"{kind} at the processor", created_at=self._clock(), claims_used=kind == "dispute",
                )  # fmt: skip
                others = sum(other.clawed_cents for other in rows.values() if other.refund_id != refund_id)
                target = 0 if status == "failed" else min(amount, charge.captured_cents - others)
                row = replace(row, processor_ref=ref, state=_STATE[status])
                if left_nanos is None and target != row.clawed_cents:
                    left_nanos = await self._left(charge, bought, rows.values())
                rows[refund_id], left = await self._claw(db, charge, row, target, bought, left_nanos or 0)
                left_nanos = None if left_nanos is None else left

    async def _claw(
        self, db: Any, charge: Charge, back: MoneyBack, target_cents: int, bought: Bought, left_nanos: int
    ) -> tuple[MoneyBack, int]:
        """`left_nanos`: what is left of the lot that the charge bought; answered with what is left of it then."""
        if target_cents != back.clawed_cents:
            given = await self._store.given(db, back)
            owed = _owed(charge, bought, back, target_cents, given[0] + left_nanos)
            number = back.adjustments + 1
            for adjust_id, delta, lot_id in (
                (f"{back.refund_id}.{number}", given[0] - owed[0], bought.lot_id),
                (f"{back.refund_id}.{number}.funds", given[1] - owed[1], None),
            ):
                if delta:
                    reason = f"{back.kind} of {charge.charge_id}"
                    await self._adjust(charge.merchant_id, charge.wallet_id, adjust_id, delta, reason, lot_id=lot_id, db=db)
            left_nanos += given[0] - owed[0]
            back = replace(back, clawed_cents=target_cents, adjustments=number)
        await self._store.save_refund(db, back, self._clock())
        return back, left_nanos

    async def _left(self, charge: Charge, bought: Bought, before: Iterable[MoneyBack]) -> int:
        """What is left of the lot that a charge bought, once everything that was ordered of it `before` has been applied.

        Calls that use it between this and the order may leave a little less; that little comes of funds.
        """
        if not bought.is_exchanged or bought.lot_id is None:
            return 0
        for back in before:
            for number in range(1, back.adjustments + 1):
                with suppress(CallerError):  # nothing was ordered of the lot under this number
                    await self._funding.apply_order(f"{back.refund_id}.{number}")
        return await self._funding.left_of_lot(charge.wallet_id, bought.lot_id)

    async def _bought(self, charge: Charge) -> Bought:
        """What became of a charge's money."""
        own, unused = payment_credit_id(charge), unused_credit_id(charge)
        sold = [bundle_credit_id(charge)]
        sold += [cycle_credit_id(subscription_id, start) for subscription_id, start in await self._store.cycles_of(charge)]
        nanos = await self._store.credited_nanos([own, unused, *sold])
        if own in nanos:
            return Bought(lot_id=own, is_exchanged=False, lot_nanos=nanos[own])
        lot_id = next((one for one in sold if nanos.get(one)), None)
        if lot_id is None:
            return Bought(lot_id=unused if unused in nanos else None, is_exchanged=False, lot_nanos=nanos.get(unused, 0))
        return Bought(lot_id=lot_id, is_exchanged=True, lot_nanos=nanos[lot_id], funds_nanos=nanos.get(unused, 0))


def _failure(charge: Charge) -> dict[str, Any]:
    """What `charge.failed` says: whether and when it is tried again without anybody's doing, too."""
    return {
        "charge_id": charge.charge_id, "purpose": charge.purpose, "status": charge.state,
        "amount": format_usd(nanos_of_cents(charge.amount_cents), 2), "currency": charge.currency, "attempt": charge.attempt,
        "is_automatic": not charge.on_session, "decline_code": charge.decline_reason or charge.decline_code,
        "decline_message": charge.decline_message,
        "next_attempt_at": None if charge.next_try_at is None else charge.next_try_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def _owed(charge: Charge, bought: Bought, back: MoneyBack, cents: int, there_nanos: int) -> tuple[int, int]:
    """What a wallet gives for `cents` of a charge, all in all: of the lot that it bought (`there_nanos` at most), of its funds."""
    if not bought.is_exchanged:
        return nanos_of_cents(cents), 0
    lot_nanos = min(bought.lot_nanos * cents // charge.captured_cents, there_nanos)
    funds_nanos = bought.funds_nanos * cents // charge.captured_cents
    if back.claims_used:
        funds_nanos = max(funds_nanos, nanos_of_cents(cents) - lot_nanos)
    return lot_nanos, funds_nanos


_OF_DISPUTE = {"warning": "failed", "won": "failed", "open": "pending", "lost": "succeeded"}
_STATE: dict[str, Literal["pending", "done", "failed"]] = {"pending": "pending", "succeeded": "done", "failed": "failed"}


def _check_hold_off(hold_off: HoldOff | None, now: datetime) -> None:
    if hold_off is None:
        return
    if hold_off.suspended:
        raise Conflict("The card was declined too often; automatic charges wait for another card.", code="charge_suspended")
    if now < hold_off.next_try_at:
        raise Conflict(f"The card was declined; the next try is at {hold_off.next_try_at.isoformat()}.", code="charge_held_off")


def _is_old(charge: Charge, payment: Payment) -> bool:
    """Is a payment's decline that of an attempt before the present one?"""
    return charge.attempt > 1 and payment.attempt_ref in ("", charge.attempt_ref)


def _counted(back: MoneyBack) -> int:
    """What a refund takes of a charge's room."""
    return back.amount_cents if back.state == "requested" else back.clawed_cents
