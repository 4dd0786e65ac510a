"""/dashboard/customers: who pays, what they have left, and what a merchant does about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast
from urllib.parse import urlencode

from aiohttp import web

from lava_proxy.billing.charges import Charges
from lava_proxy.billing.customers import open_customer
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import CallerError, Conflict, LavaError, NotFound, StoreError
from lava_proxy.domain.limits import Limits, limits_document
from lava_proxy.domain.money import AMOUNT_NANOS_MAX
from lava_proxy.domain.plans import Overage, Subscription, overage_document
from lava_proxy.domain.usage_window import Moment, window_of
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.balance_store import BUNDLE_PRIORITY
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.charge_store import Charge, ChargeStore, MoneyBack
from lava_proxy.stores.customer_directory import CustomerDirectory, FoundCustomer, ShownStatus
from lava_proxy.stores.customer_store import CustomerChanges, CustomerStore
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.outbox import Outbox, WalletState
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.stores.usage_store import UsageFilter, UsageStore, UsageSums
from lava_proxy.stores.wallet_history import HistoryLine, WalletHistory
from lava_proxy.web.dashboard.acts import Acts, is_id
from lava_proxy.web.dashboard.charts import Chart, Series
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import (
    checked,
    limits_values,
    overage_values,
    read_limits,
    read_overage,
)
from lava_proxy.wire.texts import checked_email, checked_name, checked_phone, checked_reference_id, split_name

PAGE_ROWS = 50
LEDGER_ROWS = 25
CHART_DAYS = 30
REASON_CHARS_MAX = 200
_STATUSES = ("ok", "disabled", "limited")
_BASE = "/dashboard/customers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pots:
    """A wallet's money by where it comes from, what open calls hold included; nano-USD."""

    cycle_nanos: int
    bundle_nanos: int
    funds_nanos: int
    held_nanos: int
    debt_nanos: int
    available_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A line of the list; `state` None: the balance is not known at the moment."""

    customer: FoundCustomer
    state: WalletState | None
    subscription: Subscription | None

    @property
    def name(self) -> str:
        """What people call the customer: by name, else e-mail, phone, reference id, id."""
        contact = self.customer.contact
        known = (full_name(contact), contact.get("email"), contact.get("phone"), self.customer.reference_id)
        return next((str(text) for text in known if text), self.customer.connection_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A charge of the customer's card, and what was given back of it."""

    charge: Charge
    refunds: tuple[MoneyBack, ...]

    @property
    def is_of_credit(self) -> bool:
        """Did it buy a bundle or a plan's cycle, not funds or what was owed?"""
        return self.charge.purpose not in ("overage", "top_up")

    @property
    def left_cents(self) -> int:
        """What can still be refunded."""
        if self.charge.state != "succeeded":
            return 0
        return self.charge.captured_cents - sum(back.amount_cents for back in self.refunds if back.state != "failed")


class Customers:
    """The list, one customer, and every change of one."""

    def __init__(
        self,
        view: View,
        acts: Acts,
        *,
        catalog: CatalogStore,
        customers: CustomerStore,
        directory: CustomerDirectory,
        history: WalletHistory,
        plans: PlanStore,
        charge_store: ChargeStore,
        charges: Charges,
        funding: Funding,
        accounts: AccountStore,
        outbox: Outbox,
        usage: UsageStore,
    ) -> None:
        self._view = view
        self._acts = acts
        self._catalog = catalog
        self._customers = customers
        self._directory = directory
        self._history = history
        self._plans = plans
        self._charge_store = charge_store
        self._charges = charges
        self._funding = funding
        self._accounts = accounts
        self._outbox = outbox
        self._usage = usage

    def routes(self) -> list[web.RouteDef]:
        one = _BASE + "/{customer}"
        return [
            web.get(_BASE, self.many),
            web.get(_BASE + "/new", self.new),
            web.post(_BASE, self.create),
            web.get(one, self.one),
            web.get(one + "/ledger", self.ledger),
            web.post(one + "/details", self.change),
            web.post(one + "/limits", self.limit),
            web.post(one + "/overage", self.set_overage),
            web.post(one + "/adjust", self.adjust),
            web.post(one + "/refund", self.refund),
            web.post(one + "/status", self.switch),
            web.post(one + "/delete", self.delete),
        ]

    # -- the list

    async def many(self, request: web.Request) -> web.StreamResponse:
        """Newest first; searched by what people know of a customer."""
        merchant_id = session_of(request).merchant.merchant_id
        text, status = request.query.get("q", "").strip()[:255], request.query.get("status", "")
        before = request.query.get("cursor", "")
        shown_status = cast(ShownStatus, status) if status in _STATUSES else None
        text = text if text.isprintable() else ""
        found = await self._directory.search(
            merchant_id, text=text, status=shown_status, before=before if is_id(before, "con") else None, limit=PAGE_ROWS + 1
        )
        form = Form({"q": text, "status": shown_status or ""})
        kept = {"q": text, "status": shown_status or ""}
        values: dict[str, Any] = {
            "rows": await self._listed(found[:PAGE_ROWS]),
            "form": form,
            "is_searched": bool(text or shown_status),
            "first": _address(kept) if is_id(before, "con") else "",
            "next": _address({**kept, "cursor": found[PAGE_ROWS - 1].connection_id}) if len(found) > PAGE_ROWS else "",
        }
        if request.headers.get("HX-Target") == "customer-list":
            return self._view.part(request, "customers_list.html", **values)
        return self._view.page(request, "customers.html", "customers", **values)

    async def _listed(self, found: Sequence[FoundCustomer]) -> list[Listed]:
        states = await self._states([customer.wallet_id for customer in found])
        subscriptions = await self._plans.live_subscriptions([customer.connection_id for customer in found])
        return [
            Listed(customer=customer, state=states.get(customer.wallet_id), subscription=subscriptions.get(customer.connection_id))
            for customer in found
        ]

    # -- making one

    async def new(self, request: web.Request) -> web.StreamResponse:
        return self._view.page(request, "customer_new.html", "customers", form=Form())

    async def create(self, request: web.Request) -> web.StreamResponse:
        form = await Form.read(request)
        merchant_id = session_of(request).merchant.merchant_id
        reference_id, contact = _read_contact(form)

        async def note(db: Any, action: str, made: Connection) -> None:
            facts = {"before" if action == "customer.delete" else "after": _facts(made)}
            await self._acts.note(db, request, action, made.connection_id, **facts)

        if form.is_good:
            try:
                made = await open_customer(
                    self._catalog, self._customers, self._funding, merchant_id, reference_id=reference_id,
                    contact={key: value for key, value in contact.items() if value is not None}, note=note,
                )  # fmt: skip
            except Conflict as error:
                form.fail("reference_id", error.message)
            else:
                return self._view.redirect(request, f"{_BASE}/{made.connection_id}", "The customer has been created.")
        return self._view.page(request, "customer_new.html", "customers", form=form, status=422)

    # -- one

    async def one(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, await self._found(request))

    async def ledger(self, request: web.Request) -> web.StreamResponse:
        """More of the ledger, for the table to grow by."""
        customer = await self._found(request)
        lines, more = await self._lines(customer.wallet_id, _whole(request.query.get("before", "")))
        return self._view.part(request, "ledger_rows.html", customer=customer, lines=lines, more=more)

    async def change(self, request: web.Request) -> web.StreamResponse:
        customer, form = await self._found(request), await Form.read(request)
        reference_id, contact = _read_contact(form)
        if form.is_good:
            changes = CustomerChanges(contact=contact, columns={"reference_id": reference_id})
            try:
                async with self._acts.transaction() as db:
                    await self._customers.change(customer.merchant_id, customer.connection_id, changes, db=db)
                    after = await self._catalog.connection(customer.merchant_id, customer.connection_id, db=db)
                    await self._acts.note(
                        db, request, "customer.change", customer.connection_id, before=_facts(customer),
                        after=None if after is None else _facts(after),
                    )  # fmt: skip
            except Conflict as error:
                form.fail("reference_id", error.message)
            else:
                return self._back(request, customer, "The customer's details have been changed.")
        return await self._page(request, customer, details=form)

    async def limit(self, request: web.Request) -> web.StreamResponse:
        customer, form = await self._found(request), await Form.read(request)
        limits = read_limits(form)
        if not form.is_good:
            return await self._page(request, customer, limits=form)
        kept = None if limits == Limits(request_cycle=limits.request_cycle, spend_cycle=limits.spend_cycle) else limits
        async with self._acts.transaction() as db:
            await self._catalog.set_connection_limits(customer.merchant_id, customer.connection_id, kept, db=db)
            await self._acts.note(
                db, request, "customer.limit", customer.connection_id,
                before=limits_document(customer.limits or Limits()), after=limits_document(limits),
            )  # fmt: skip
        return self._back(request, customer, "The limits hold within a second.")

    async def set_overage(self, request: web.Request) -> web.StreamResponse:
        customer, form = await self._found(request), await Form.read(request)
        overage = read_overage(form, may_inherit=True)
        if not form.is_good:
            return await self._page(request, customer, overage=form)
        before = await self._own_overage(customer)
        async with self._acts.transaction() as db:
            await self._plans.set_connection_overage(customer.merchant_id, customer.connection_id, overage, db=db)
            await self._acts.note(
                db, request, "customer.overage", customer.connection_id,
                before=None if before is None else overage_document(before),
                after=None if overage is None else overage_document(overage),
            )  # fmt: skip
        return self._back(request, customer, "The overage policy has been changed.")

    async def adjust(self, request: web.Request) -> web.StreamResponse:
        """Money added or taken by hand. The form carries the adjustment's id, so that sending it twice is once."""
        customer, form = await self._found(request), await Form.read(request)
        direction = form.choice("direction", ("add", "take"))
        amount = form.usd("amount", least=1, most=AMOUNT_NANOS_MAX)
        reason = form.text("reason", chars_max=REASON_CHARS_MAX)
        adjust_id = form.value("adjust_id")
        if not is_id(adjust_id, "adj"):
            raise CallerError("This form is broken; load the page again. Nothing was changed.", code="invalid_parameter")
        if not form.is_good or amount is None or reason is None:
            return await self._page(request, customer, adjust=form)
        delta = amount if direction == "add" else -amount
        try:
            async with self._acts.transaction() as db:
                await self._funding.adjust(customer.merchant_id, customer.wallet_id, adjust_id, delta, reason, db=db)
                is_first = await self._accounts.note_adjustment(
                    db, adjust_id, merchant_id=customer.merchant_id, wallet_id=customer.wallet_id, amount_nanos=delta,
                    reason=reason, made_by="dashboard", at=self._acts.now(),
                )  # fmt: skip
                if is_first:
                    facts = {"adjust_id": adjust_id, "amount_nanos": delta, "reason": reason}
                    await self._acts.note(db, request, "customer.adjust", customer.connection_id, after=facts)
            with suppress(StoreError):  # ordered: the applier does it within a second of Redis being there
                await self._funding.apply_order(adjust_id)
        except CallerError as error:
            form.fail("amount", error.message)
            return await self._page(request, customer, adjust=form)
        if not is_first:
            return self._back(request, customer, "This adjustment had been made already; it was not made twice.")
        return self._back(request, customer, "The balance has been adjusted.")

    async def refund(self, request: web.Request) -> web.StreamResponse:
        """A payment given back to its card, in whole or in part; what it had bought is taken back from the wallet."""
        customer, form = await self._found(request), await Form.read(request)
        charge_id, refund_id = form.value("charge_id"), form.value("refund_id")
        payments = {payment.charge.charge_id: payment for payment in await self._payments(customer.wallet_id)}
        if charge_id not in payments or not is_id(refund_id, "ref"):
            raise NotFound("No payment of this customer has this id.")
        reason = form.text("refund_reason", chars_max=REASON_CHARS_MAX)
        cents = _cents(form, "refund_amount")
        if not form.is_good or reason is None:
            return await self._page(request, customer, refund=form)

        async def note(db: Any, back: MoneyBack) -> None:
            facts = {"refund_id": refund_id, "amount_cents": back.amount_cents, "reason": reason, "claims_used": back.claims_used}
            await self._acts.note(db, request, "payment.refund", charge_id, after=facts)

        try:
            await self._charges.refund(
                charge_id, cents, reason, refund_id=refund_id, claims_used=form.value("claims_used") == "yes", note=note
            )
        except LavaError as error:
            form.fail("refund_amount", error.message)
            return await self._page(request, customer, refund=form)
        if any(known.refund_id == refund_id for known in payments[charge_id].refunds):
            return self._back(request, customer, "This refund had been made already; it was not made twice.")
        return self._back(request, customer, "The payment is being refunded.")

    async def switch(self, request: web.Request) -> web.StreamResponse:
        customer, form = await self._found(request), await Form.read(request)
        status = form.choice("status", ("ok", "disabled"))
        if status is None:
            raise CallerError("A customer is ok or disabled.", code="invalid_parameter")
        action = "customer.enable" if status == "ok" else "customer.disable"
        before, after = {"status": customer.status}, {"status": status}
        new: Literal["ok", "disabled"] = "ok" if status == "ok" else "disabled"
        async with self._acts.transaction() as db:
            await self._directory.set_status(customer.merchant_id, customer.connection_id, new, db=db)
            await self._acts.note(db, request, action, customer.connection_id, before=before, after=after)
        said = "Calls are accepted again." if status == "ok" else "New calls are refused within a second; open ones end normally."
        return self._back(request, customer, said)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        customer = await self._found(request)
        async with self._acts.transaction() as db:
            await self._customers.delete(customer.merchant_id, customer.connection_id, db=db)
            await self._acts.note(db, request, "customer.delete", customer.connection_id, before=_facts(customer))
        return self._view.redirect(request, _BASE, "The customer has been deleted; requests and ledger are kept.")

    # -- helpers

    async def _found(self, request: web.Request) -> Connection:
        identifier = request.match_info["customer"]
        found = None
        if is_id(identifier, "con"):
            found = await self._catalog.connection(session_of(request).merchant.merchant_id, identifier)
        if found is None:
            raise NotFound("No customer of yours has this id.")
        return found

    def _back(self, request: web.Request, customer: Connection, notice: str) -> web.Response:
        return self._view.redirect(request, f"{_BASE}/{customer.connection_id}", notice)

    async def _page(
        self,
        request: web.Request,
        customer: Connection,
        *,
        details: Form | None = None,
        limits: Form | None = None,
        overage: Form | None = None,
        adjust: Form | None = None,
        refund: Form | None = None,
    ) -> web.Response:
        """The customer's page; a form that was refused stands in its place with what was typed."""
        state = (await self._states([customer.wallet_id])).get(customer.wallet_id)
        own = await self._own_overage(customer)
        subscription = await self._plans.live_subscription(customer.connection_id)
        lines, more = await self._lines(customer.wallet_id, None)
        chart, used = await self._used(customer)
        is_refused = any(form is not None for form in (details, limits, overage, adjust, refund))
        return self._view.page(
            request,
            "customer.html",
            "customers",
            status=422 if is_refused else 200,
            customer=customer,
            pots=None if state is None else pots_of(state),
            subscription=subscription,
            own_overage=own,
            effective=await self._effective(customer, own, subscription),
            chart=chart,
            calls=used.requests,
            charged_nanos=used.charge_nanos,
            lines=lines,
            more=more,
            cards=await self._cards(customer.wallet_id),
            hold_off=await self._charge_store.hold_off(customer.wallet_id),
            payments=await self._payments(customer.wallet_id),
            meters=await self._catalog.meters(customer.merchant_id, before=None, limit=100),
            details=details
            or Form({"name": full_name(customer.contact), "reference_id": customer.reference_id, **customer.contact}),
            limits=limits or Form(limits_values(customer.limits)),
            overage=overage or Form(overage_values(own)),
            adjust=adjust or Form({"direction": "add"}),
            refund=refund or Form(),
            adjust_id=adjust.value("adjust_id") if adjust is not None else new_id("adj"),
            refund_id=new_id("ref"),
        )

    async def _states(self, wallet_ids: Sequence[str]) -> dict[str, WalletState | None]:
        """Live balances; none at all while Redis cannot answer, for the page has more to show."""
        try:
            return await self._outbox.wallet_states(wallet_ids) if wallet_ids else {}
        except LavaError:
            return {}

    async def _own_overage(self, customer: Connection) -> Overage | None:
        return (await self._plans.connection_overages([customer.connection_id])).get(customer.connection_id)

    async def _effective(self, customer: Connection, own: Overage | None, subscription: Subscription | None) -> tuple[str, str]:
        """(policy, where it comes from) that holds for the customer now."""
        if own is not None:
            return own.policy, "set here"
        if subscription is not None:
            plan = await self._plans.plan(customer.merchant_id, subscription.terms.plan_id, archived=True)
            if plan is not None and plan.overage is not None:
                return plan.overage.policy, f"from the plan {plan.terms.name}"
        default = await self._acts.default_overage(customer.merchant_id)
        return default.policy, "your default"

    async def _used(self, customer: Connection) -> tuple[Chart, UsageSums]:
        """What the customer used lately, by the day and in all."""
        now = self._acts.now()
        start = (now - timedelta(days=CHART_DAYS - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
        window = window_of(Moment(at=start), None, now=now)
        found = await self._usage.series(customer.merchant_id, window, UsageFilter(connection_id=customer.connection_id))
        chart = Chart(
            label=f"Charged and what it cost a day, the last {CHART_DAYS} days",
            times=[at for at, _ in found],
            series=[
                Series(label="Charged", values=[sums.charge_nanos for _, sums in found], unit="nanos"),
                Series(label="Provider cost", values=[sums.cost_nanos for _, sums in found], unit="nanos"),
            ],
        )
        return chart, sum((sums for _, sums in found), UsageSums())

    async def _lines(self, wallet_id: str, before: int | None) -> tuple[list[HistoryLine], int | None]:
        """Lines of the ledger, and from below which number there are more."""
        found = await self._history.lines(wallet_id, before=before, limit=LEDGER_ROWS + 1)
        return found[:LEDGER_ROWS], found[LEDGER_ROWS - 1].wseq if len(found) > LEDGER_ROWS else None

    async def _cards(self, wallet_id: str) -> list[Any]:
        processor, person_id = self._charges.processor_name, await self._charge_store.wallet_person(wallet_id)
        if processor is None or person_id is None:
            return []
        return list(await self._charge_store.payment_methods(person_id, processor))

    async def _payments(self, wallet_id: str) -> list[Payment]:
        charges = await self._charge_store.charges(wallet_id, limit=20)
        return [Payment(charge=charge, refunds=tuple(await self._charge_store.refunds(charge.charge_id))) for charge in charges]


def pots_of(state: WalletState) -> Pots:
    """A wallet's pots. Lots of the plan pot are of a cycle or of bundles; their priority tells which."""
    plan_nanos = state.plan_available + state.plan_held
    bundle_nanos = sum(left for key, left in state.lots.items() if key[0] in "pq" and int(key.split(":")[1]) == BUNDLE_PRIORITY)
    return Pots(
        cycle_nanos=max(0, plan_nanos - bundle_nanos),
        bundle_nanos=bundle_nanos,
        funds_nanos=state.funds_available + state.funds_held,
        held_nanos=state.plan_held + state.funds_held,
        debt_nanos=state.debt,
        available_nanos=state.plan_available + state.funds_available,
    )


def full_name(contact: Mapping[str, Any]) -> str:
    """First and last name; "" where neither is known."""
    return " ".join(str(contact[key]) for key in ("first_name", "last_name") if contact.get(key))


def _form_of(customer: Connection) -> Form:
    return Form({"name": full_name(customer.contact), "reference_id": customer.reference_id, **customer.contact})


def _read_contact(form: Form) -> tuple[str | None, dict[str, str | None]]:
    """(reference id, contact) typed; None where a field is empty."""
    name = checked(form, "name", checked_name, is_required=False)
    first, last = split_name(name or "")
    contact = {
        "first_name": first,
        "last_name": last,
        "email": checked(form, "email", checked_email, is_required=False),
        "phone": checked(form, "phone", checked_phone, is_required=False),
    }
    return checked(form, "reference_id", checked_reference_id, is_required=False), contact


def _facts(customer: Connection) -> dict[str, Any]:
    return {"reference_id": customer.reference_id, "status": customer.status, **customer.contact}


def _cents(form: Form, name: str) -> int | None:
    """Whole cents typed; None for an empty field: all that is left."""
    nanos = form.usd(name, is_required=False, least=1)
    if nanos is not None and nanos % 10_000_000:
        form.fail(name, "Whole cents: cards know nothing smaller.")
    return None if nanos is None else nanos // 10_000_000


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _address(query: dict[str, str]) -> str:
    kept = {name: value for name, value in query.items() if value}
    return f"{_BASE}?{urlencode(kept)}" if kept else _BASE
