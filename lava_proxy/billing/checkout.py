"""A hosted checkout: who is at the page, what they would pay now, and paying it once.

    open ─▶ verified (a visit proved its phone) ─▶ paying ─▶ completed          at any time: expired after a day, or cancelled
                  ▲                                  │
                  └────────── declined ──────────────┘

What step a page shows is computed from the session, its cards and its charge each time, so a closed tab goes on where it was.
The session follows its charge in the charge's own transaction (checkout_progress.py): what is paid is completed, whoever notices
it, also after a crash. A payment is named by the session and its number (`charge_key`): a second click gets the same one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.checkout_progress import ATTEMPT_KEY, SESSION_KEY, CheckoutProgress, connection_id_of
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.billing.verification import Verification
from lava_proxy.domain.calendar import Interval
from lava_proxy.domain.checkout import TOP_UP_CENTS_MAX, TOP_UP_CENTS_MIN, CheckoutSession, Mode, SessionState, masked_phone
from lava_proxy.domain.errors import CallerError, Conflict, Forbidden, LavaError, NotFound
from lava_proxy.domain.money import NANOS_PER_CENT
from lava_proxy.domain.plans import Bundle, Change, Plan, Subscription
from lava_proxy.payments.processor import CardDetails, Processor, Setup, no_processor
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.charge_store import Charge, ChargeStore, PaymentMethod, Purpose
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.customer_store import CustomerChanges, CustomerStore
from lava_proxy.stores.ids import hash_of
from lava_proxy.stores.outbox import Outbox, WalletState
from lava_proxy.stores.plan_store import PlanStore

Step = Literal[
    "phone", "code", "amount", "card", "review", "authenticate", "processing", "done", "cancelled", "expired", "portal"
]  # fmt: skip
RECEIPTS_MAX = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What would be bought now. `amount_cents` 0: nothing is to be paid."""

    title: str
    amount_cents: int
    purpose: Purpose
    interval: Interval | None = None
    renewal_cents: int = 0  # what each later cycle costs
    credit_nanos: int = 0
    change: Change | None = None  # of a subscription

    @property
    def is_prorated(self) -> bool:
        return self.change is not None and self.change.kind == "upgrade" and self.amount_cents != self.renewal_cents


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a customer sees of theirs. `state` None: the wallet is being recovered."""

    state: WalletState | None
    subscription: Subscription | None
    cards: list[PaymentMethod]
    receipts: list[Charge]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the page shows to one visit."""

    step: Step
    session: CheckoutSession
    masked_phone: str | None = None  # where a code went or will go
    is_phone_fixed: bool = False  # the customer's number is on file
    purchase: Purchase | None = None
    card: PaymentMethod | None = None
    charge: Charge | None = None
    declined: str | None = None  # what the bank said to the payment before
    client_secret: str | None = None  # for the processor's own script to authenticate with
    account: Account | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One open page: `token` was made for it, `address` is where it is from."""

    token: str
    address: str = ""

    @property
    def hash(self) -> bytes:
        return hash_of(self.token)


Note = Callable[[Any, CheckoutSession], Awaitable[None]]


class Checkout:
    """Every step of checkouts and customer pages. Raises CallerError in words for who is paying, StoreError and UpstreamError."""

    def __init__(
        self,
        *,
        store: CheckoutStore,
        catalog: CatalogStore,
        customers: CustomerStore,
        plans: PlanStore,
        subscriptions: Subscriptions,
        funding: Funding,
        charge_store: ChargeStore,
        charges: Charges,
        cards: Cards,
        processor: Processor | None,
        verification: Verification,
        progress: CheckoutProgress,
        outbox: Outbox,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._customers = customers
        self._plans = plans
        self._subscriptions = subscriptions
        self._funding = funding
        self._charge_store = charge_store
        self._charges = charges
        self._cards = cards
        self._optional_processor = processor
        self._verification = verification
        self._progress = progress
        self._outbox = outbox
        self._clock = clock

    @property
    def _processor(self) -> Processor:
        if self._optional_processor is None:
            raise no_processor()
        return self._optional_processor

    @property
    def processor_name(self) -> str | None:
        return None if self._optional_processor is None else self._optional_processor.name

    # -- sessions, as the merchant makes them

    async def create(
        self,
        merchant_id: str,
        mode: Mode,
        *,
        origin_url: str,
        is_test: bool,
        customer: str | None = None,
        plan_id: str | None = None,
        credit_bundle_id: str | None = None,
        reference_id: str | None = None,
        note: Note | None = None,
    ) -> CheckoutSession:
        """A session, open for a day. `customer`: an id, reference id or connection secret.

        `note(db, session)` runs in the transaction that makes it.

        Raises NotFound naming what is not the merchant's, Conflict `bundle_needs_subscription`, and CallerError 501 where no
        messages can be sent or no cards be taken.
        """
        self._verification.check_available()
        connection, plan, bundle = await self._subjects(merchant_id, customer, plan_id, credit_bundle_id)
        if connection is None and reference_id is not None:
            named = await self._catalog.connection(merchant_id, reference_id)
            connection = named if named is not None and named.reference_id == reference_id else None
        if self._optional_processor is None and (plan is None or not plan.terms.is_free):
            raise no_processor()
        if bundle is not None and connection is not None:
            await self._check_bundle(connection, bundle.plan_id)
        async with self._store.transaction() as db:
            made = await self._store.create(
                merchant_id, mode, origin_url=origin_url, is_test=is_test, offer=_offer(plan, bundle), reference_id=reference_id,
                connection_id=None if connection is None else connection.connection_id, plan_id=plan_id,
                credit_bundle_id=credit_bundle_id, db=db,
            )  # fmt: skip
            if note is not None:
                await note(db, made)
        return made

    async def create_portal(
        self, connection: Connection, *, origin_url: str, is_test: bool, note: Note | None = None
    ) -> CheckoutSession:
        """A visit to a customer's own page. `note` as for `create`."""
        self._verification.check_available()
        async with self._store.transaction() as db:
            made = await self._store.create(
                connection.merchant_id,
                "portal",
                origin_url=origin_url,
                is_test=is_test,
                offer={},
                connection_id=connection.connection_id,
                db=db,
            )
            if note is not None:
                await note(db, made)
        return made

    async def _subjects(
        self, merchant_id: str, customer: str | None, plan_id: str | None, credit_bundle_id: str | None
    ) -> tuple[Connection | None, Plan | None, Bundle | None]:
        connection = None if customer is None else await self._catalog.connection(merchant_id, customer)
        plan = None if plan_id is None else await self._plans.plan(merchant_id, plan_id)
        bundle = None if credit_bundle_id is None else await self._plans.bundle(merchant_id, credit_bundle_id)
        missing = [
            f"No {what} of yours is {given[:60]!r}."
            for what, given, found in (
                ("customer", customer, connection),
                ("plan", plan_id, plan),
                ("credit bundle", credit_bundle_id, bundle),
            )
            if given is not None and found is None
        ]
        if missing:
            raise NotFound(" ".join(missing))
        return connection, plan, bundle

    async def _check_bundle(self, connection: Connection, plan_id: str) -> None:
        found = await self._plans.live_subscription(connection.connection_id)
        if found is None or found.terms.plan_id != plan_id:
            raise Conflict(
                "This bundle belongs to a plan that the customer is not subscribed to.", code="bundle_needs_subscription"
            )

    # -- what a page shows

    async def session(self, secret: str) -> CheckoutSession:
        """Raises NotFound for a link that leads nowhere."""
        found = await self._store.by_secret(secret)
        if found is None:
            raise NotFound("This link leads nowhere. Ask for a new one where you got it.", code="checkout_not_found")
        return found

    def state(self, session: CheckoutSession) -> SessionState:
        """A session's state now."""
        return session.state_at(self._clock())

    async def view(self, session: CheckoutSession, visit: Visit | None) -> View:
        """The step that this visit is at; without a visit, what anybody with the link may see."""
        state = self.state(session)
        if state == "completed":
            return View(step="done", session=session, charge=await self._paid(session))
        if state in ("cancelled", "expired"):
            return View(step="cancelled" if state == "cancelled" else "expired", session=session)
        if visit is None or session.visit_hash != visit.hash or session.person_id is None:
            return await self._entry(session, visit)
        return await self._inside(session, session.person_id)

    async def _entry(self, session: CheckoutSession, visit: Visit | None) -> View:
        """Before this visit has proved a phone."""
        on_file = await self._phone_on_file(session)
        sent_to = None if visit is None else await self._verification.pending_phone(_name(session, visit))
        shown = None if on_file is None else masked_phone(on_file)
        if sent_to is not None:
            return View(step="code", session=session, masked_phone=shown or sent_to, is_phone_fixed=on_file is not None)
        return View(step="phone", session=session, masked_phone=shown, is_phone_fixed=on_file is not None)

    async def _inside(self, session: CheckoutSession, person_id: str) -> View:
        charge = await self._charge_store.charge_of_occasion(session.charge_key)
        if charge is not None and charge.is_open:
            return await self._of_open(session, charge)
        if session.lets_choose_amount and session.amount_cents is None:
            if session.kind != "portal":
                return View(step="amount", session=session)
            return View(step="portal", session=session, account=await self.account(session))
        purchase = await self._purchase(session, await self._known_connection(session))
        cards = [] if self._optional_processor is None else await self._cards.list(person_id)
        card = next(iter(cards), None)
        step: Step = "card" if purchase.amount_cents and card is None else "review"
        return View(step=step, session=session, purchase=purchase, card=card, declined=await self._declined(session, card))

    async def _of_open(self, session: CheckoutSession, charge: Charge) -> View:
        if charge.state != "requires_action":
            return View(step="processing", session=session, charge=charge)
        client_secret = None
        if self._processor.name != "sandbox":
            client_secret = (await self._processor.payment(charge.processor_ref)).client_secret
        return View(step="authenticate", session=session, charge=charge, client_secret=client_secret)

    async def _declined(self, session: CheckoutSession, card: PaymentMethod | None) -> str | None:
        """What the bank said to the payment before, while the same card is to pay."""
        if session.attempt == 1 or card is None:
            return None
        before = await self._charge_store.charge_of_occasion(replace(session, attempt=session.attempt - 1).charge_key)
        if before is None or before.state != "declined" or before.payment_method_id != card.payment_method_id:
            return None
        return before.decline_message

    async def _paid(self, session: CheckoutSession) -> Charge | None:
        return None if session.charge_id is None else await self._charge_store.charge(session.charge_id)

    async def _phone_on_file(self, session: CheckoutSession) -> str | None:
        connection = await self._named_connection(session)
        if connection is None:
            return None
        return await self._store.phone_of_wallet(connection.wallet_id) or connection.contact.get("phone")

    # -- the phone

    async def send_code(self, session: CheckoutSession, visit: Visit, phone: str | None) -> None:
        """Send a code to the customer's phone on file, else to the one that was typed (E.164)."""
        self._check_live(session)
        target = await self._phone_on_file(session) or phone
        if target is None:
            raise CallerError("Enter your phone number.", code="phone_required", status=422)
        await self._verification.begin(_name(session, visit), session.checkout_session_id, target, visit.address)

    async def resend_code(self, session: CheckoutSession, visit: Visit) -> None:
        """Another code to the same phone; the one before ends."""
        await self.send_code(session, visit, await self._verification.pending_phone(_name(session, visit)))

    async def forget_phone(self, session: CheckoutSession, visit: Visit) -> None:
        """Back to typing a phone."""
        await self._verification.forget(_name(session, visit))

    async def check_code(self, session: CheckoutSession, visit: Visit, code: str) -> None:
        """Bind the session to this visit. A visit that has proved its phone already has done so again."""
        self._check_live(session)
        if session.visit_hash == visit.hash:
            return
        phone = await self._verification.check(_name(session, visit), code)
        person_id = await self._charge_store.person_of_phone(phone, self._clock())
        connection = await self._named_connection(session)
        if await self._phone_on_file(session) not in (None, phone):
            raise _phone_changed()
        async with self._charge_store.transaction() as db:
            if not await self._store.verify(session.checkout_session_id, person_id, visit.hash, db=db):
                raise _closed()
            # The person who proved the phone pays for the customer's wallet from now on.
            if connection is not None and not await self._charge_store.claim_wallet(db, connection.wallet_id, person_id):
                raise _phone_changed()
        if connection is not None and not connection.contact.get("phone"):
            await self._customers.change(
                connection.merchant_id, connection.connection_id, CustomerChanges(contact={"phone": phone})
            )

    # -- amount and cards

    async def choose_amount(self, session: CheckoutSession, visit: Visit, amount_cents: int | None) -> None:
        """What to add; None to choose anew."""
        self._check_inside(session, visit)
        if not session.lets_choose_amount:
            raise CallerError("The amount of this checkout is fixed.", code="amount_fixed", status=422)
        if amount_cents is not None and not TOP_UP_CENTS_MIN <= amount_cents <= TOP_UP_CENTS_MAX:
            raise CallerError(
                f"Choose an amount from ${TOP_UP_CENTS_MIN // 100} to ${TOP_UP_CENTS_MAX // 100:,}.",
                code="amount_out_of_bounds", status=422,
            )  # fmt: skip
        if not await self._store.choose_amount(session.checkout_session_id, amount_cents):
            raise Conflict("A payment is under way.", code="payment_under_way")

    async def begin_card(self, session: CheckoutSession, visit: Visit) -> Setup:
        """Where the processor's own form takes the card: what its script needs."""
        return await self._cards.begin(self._check_inside(session, visit))

    async def finish_card(self, session: CheckoutSession, visit: Visit, setup_ref: str) -> None:
        """The card that the processor's form took is the person's default now."""
        if await self._cards.finish(self._check_inside(session, visit), setup_ref) is None:
            raise CallerError("The card has not been stored yet; try again.", code="card_not_stored", status=422)

    async def add_card(self, session: CheckoutSession, visit: Visit, card: CardDetails) -> None:
        """A typed test card, where the sandbox takes the payments."""
        await self._cards.add(self._check_inside(session, visit), card)

    async def choose_card(self, session: CheckoutSession, visit: Visit, payment_method_id: str) -> None:
        await self._cards.set_default(self._check_inside(session, visit), payment_method_id)

    async def remove_card(self, session: CheckoutSession, visit: Visit, payment_method_id: str) -> None:
        await self._cards.remove(self._check_inside(session, visit), payment_method_id)

    # -- paying

    async def pay(self, session: CheckoutSession, visit: Visit, shown_cents: int, return_url: str) -> None:
        """Pay what the review showed, once. Raises Conflict `price_changed` when something else would be paid now."""
        person_id = self._check_inside(session, visit)
        connection = await self._known_connection(session)
        purchase = await self._purchase(session, connection)
        if purchase.amount_cents != shown_cents:
            raise Conflict("The amount has changed since it was shown. Check it and confirm again.", code="price_changed")
        if connection is None:
            connection = await self._make_connection(session, person_id)
        await self._store.set_connection(session.checkout_session_id, connection.connection_id)
        if purchase.amount_cents == 0:
            await self._take_unpaid(session, connection)
            return
        charge = await self._charges.open(
            wallet_id=connection.wallet_id, merchant_id=session.merchant_id, purpose=purchase.purpose,
            amount_cents=purchase.amount_cents, key=session.charge_key, on_session=True, return_url=self._return_url(return_url),
            price_snapshot={"title": purchase.title, **session.offer}, subject=await self._subject(session, connection, purchase),
        )  # fmt: skip
        if charge.occasion != session.charge_key:
            raise Conflict("Another payment of yours is being made. Try again in a minute.", code="payment_under_way")
        await self._charges.advance(charge.charge_id)

    async def refresh(self, session: CheckoutSession) -> None:
        """Ask what became of the payment: after authenticating, or while it is under way."""
        charge = await self._charge_store.charge_of_occasion(session.charge_key)
        if charge is not None and charge.is_open:
            await self._charges.refresh(charge.charge_id)
            await self._charges.advance(charge.charge_id)

    async def cancel(self, session: CheckoutSession) -> bool:
        """The customer does not want it; False when it is paid, or being paid. A customer's own page has nothing to cancel."""
        return session.kind == "portal" or await self._store.cancel(session.checkout_session_id)

    def _return_url(self, return_url: str) -> str | None:
        """The sandbox's bank leads back there; elsewhere the processor's script stays on our page."""
        return return_url if self._processor.name == "sandbox" else None

    async def _take_unpaid(self, session: CheckoutSession, connection: Connection) -> None:
        """A plan where nothing is due: free, a downgrade, or one that the customer has."""
        plan = await self._plan(session)
        await self._subscriptions.change_unpaid(connection, plan)
        async with self._charge_store.transaction() as db:
            await self._progress.complete(db, session.checkout_session_id, None)

    async def _subject(self, session: CheckoutSession, connection: Connection, purchase: Purchase) -> dict[str, Any]:
        """What the charge is for, as the effect of its purpose reads it, and whose session it pays."""
        common = {
            SESSION_KEY: session.checkout_session_id,
            ATTEMPT_KEY: session.attempt,
            "connection_id": connection.connection_id,
        }
        if session.plan_id is not None:
            return {**self._subscriptions.subject_of_change(connection, await self._plan(session)), **common}
        if session.credit_bundle_id is not None:
            return {**common, "credit_bundle_id": session.credit_bundle_id, **session.offer}
        return common

    async def _purchase(self, session: CheckoutSession, connection: Connection | None) -> Purchase:
        if session.plan_id is not None:
            plan = await self._plan(session)
            terms = plan.terms
            change = (
                Change(kind="start", amount_cents=terms.period_amount_nanos // NANOS_PER_CENT)
                if connection is None
                else await self._subscriptions.quote(connection.connection_id, plan)
            )
            return Purchase(
                title=terms.name, amount_cents=change.amount_cents, interval=terms.billing_interval, change=change,
                renewal_cents=terms.period_amount_nanos // NANOS_PER_CENT, credit_nanos=terms.included_credit_nanos,
                purpose="subscription_start" if change.kind == "start" else "plan_upgrade",
            )  # fmt: skip
        if session.credit_bundle_id is not None:
            if connection is None:
                raise NotFound("This customer has been removed.")
            await self._check_bundle(connection, session.offer["plan_id"])
            cents = session.offer["cost_nanos"] // NANOS_PER_CENT
            return Purchase(
                title=session.offer["name"], amount_cents=cents, purpose="bundle", credit_nanos=session.offer["credit_nanos"]
            )
        cents = session.amount_cents or 0
        return Purchase(title="Added to your balance", amount_cents=cents, purpose="top_up", credit_nanos=cents * NANOS_PER_CENT)

    async def _plan(self, session: CheckoutSession) -> Plan:
        """The plan that was for sale when the session was made, also when it has been archived since."""
        assert session.plan_id is not None
        plan = await self._plans.plan(session.merchant_id, session.plan_id, archived=True)
        assert plan is not None
        return plan

    # -- the customer

    async def _named_connection(self, session: CheckoutSession) -> Connection | None:
        if session.connection_id is None:
            return None
        found = await self._catalog.connection(session.merchant_id, session.connection_id)
        if found is None:
            raise NotFound("This customer has been removed; nothing can be bought for them.", code="customer_removed")
        return found

    async def _known_connection(self, session: CheckoutSession) -> Connection | None:
        """The session's customer, else who the person is at this merchant already."""
        named = await self._named_connection(session)
        if named is not None or session.person_id is None:
            return named
        found = await self._store.connection_of_person(session.merchant_id, session.person_id, session.reference_id)
        return None if found is None else await self._catalog.connection(session.merchant_id, found)

    async def _make_connection(self, session: CheckoutSession, person_id: str) -> Connection:
        """A new customer, told of when they have paid. The id is made from the session's: two clicks make one customer."""
        connection_id = connection_id_of(session.checkout_session_id)
        person = await self._charge_store.person(person_id, self.processor_name or "")
        with suppress(Conflict):
            await self._catalog.create_connection(
                session.merchant_id, reference_id=session.reference_id, contact={"phone": person.phone},
                connection_id=connection_id, announce=False,
            )  # fmt: skip
        made = await self._catalog.connection(session.merchant_id, connection_id)
        if made is None:
            raise Conflict("This customer was made elsewhere meanwhile. Open a new checkout.", code="reference_id_taken")
        async with self._charge_store.transaction() as db:
            if not await self._charge_store.claim_wallet(db, made.wallet_id, person_id):
                raise _phone_changed()  # who paid by this session a moment ago, before another person took it over
        await self._funding.open_wallet(made.wallet_id)
        return made

    # -- a customer's own page

    async def account(self, session: CheckoutSession) -> Account:
        """What the session's customer has: behind a proven phone only."""
        connection = await self._named_connection(session)
        assert connection is not None and session.person_id is not None
        state: WalletState | None = None
        with suppress(LavaError):
            found = (await self._outbox.wallet_states([connection.wallet_id]))[connection.wallet_id]
            state = None if found is None else found.at(self._clock())
        charges = await self._charge_store.charges(connection.wallet_id, limit=RECEIPTS_MAX)
        return Account(
            state=state,
            subscription=await self._plans.live_subscription(connection.connection_id),
            cards=[] if self._optional_processor is None else await self._cards.list(session.person_id),
            receipts=[charge for charge in charges if charge.state == "succeeded"],
        )

    async def receipt(self, session: CheckoutSession, visit: Visit, charge_id: str) -> Charge:
        """A paid charge of the session's customer. Raises NotFound for any other."""
        self._check_inside(session, visit)
        account = await self.account(session)
        found = next((charge for charge in account.receipts if charge.charge_id == charge_id), None)
        if found is None:
            raise NotFound("There is no such receipt.")
        return found

    async def cancel_plan(self, session: CheckoutSession, visit: Visit) -> None:
        """End the customer's plan with its cycle."""
        self._check_portal(session, visit)
        assert session.connection_id is not None
        found = await self._plans.live_subscription(session.connection_id)
        if found is not None:
            await self._subscriptions.cancel(session.merchant_id, found.subscription_id)

    async def keep_plan(self, session: CheckoutSession, visit: Visit) -> None:
        """Take a cancellation back that has not happened yet."""
        self._check_portal(session, visit)
        connection = await self._named_connection(session)
        assert connection is not None
        found = await self._plans.live_subscription(connection.connection_id)
        plan = None if found is None else await self._plans.plan(session.merchant_id, found.terms.plan_id, archived=True)
        if plan is not None:
            await self._subscriptions.change_unpaid(connection, plan)

    # -- who may act

    def _check_live(self, session: CheckoutSession) -> None:
        if self.state(session) in ("completed", "cancelled", "expired"):
            raise _closed()

    def _check_inside(self, session: CheckoutSession, visit: Visit) -> str:
        """The person of a session that is open and that this visit has proved its phone for."""
        self._check_live(session)
        if session.visit_hash != visit.hash or session.person_id is None:
            raise Forbidden("This checkout goes on in another window. Confirm your phone to go on here.", code="visit_not_verified")
        return session.person_id

    def _check_portal(self, session: CheckoutSession, visit: Visit) -> None:
        self._check_inside(session, visit)
        if session.kind != "portal":
            raise Forbidden("Plans are managed on the customer page.", code="not_a_customer_page")


def _offer(plan: Plan | None, bundle: Bundle | None) -> dict[str, Any]:
    """What is for sale, as it is now."""
    if plan is not None:
        return {"name": plan.terms.name, "terms": plan.terms.document()}
    if bundle is not None:
        return {
            "name": bundle.name, "plan_id": bundle.plan_id, "cost_nanos": bundle.cost_nanos, "credit_nanos": bundle.credit_nanos
        }  # fmt: skip
    return {}


def _name(session: CheckoutSession, visit: Visit) -> str:
    """Whose code: a code that one visit asked for is no use to another."""
    return f"{session.checkout_session_id}:{visit.hash.hex()}"


def _phone_changed() -> Conflict:
    """A number has come on file since the code was sent: a code that was asked for earlier is no way past it."""
    return Conflict(
        "Another phone number has been confirmed for this customer meanwhile. Ask for a code again.", code="phone_changed"
    )


def _closed() -> CallerError:
    return CallerError("This checkout is closed.", code="checkout_closed", status=409)
