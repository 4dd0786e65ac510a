"""/dashboard/plans: what is sold by the cycle, its bundles, who is on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from aiohttp import web

from lava_proxy.billing.subscriptions import Subscriptions, end_facts
from lava_proxy.domain.calendar import Interval
from lava_proxy.domain.errors import CallerError, Conflict, NotFound
from lava_proxy.domain.money import NANOS_PER_CENT
from lava_proxy.domain.plans import PLAN_AMOUNT_NANOS_MAX, Bundle, Plan, Rollover, Subscription, Terms, overage_document
from lava_proxy.stores.catalog_store import CatalogStore, Meter
from lava_proxy.stores.dashboard_store import DashboardStore
from lava_proxy.stores.plan_store import BundleDraft, PlanStore
from lava_proxy.web.dashboard.acts import Acts, is_id
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import checked, dollars, overage_values, read_overage
from lava_proxy.wire.texts import checked_name

PAGE_ROWS = 50
SUBSCRIPTION_ROWS = 25
_BASE = "/dashboard/plans"
_METERS_MAX = 100
_BUNDLES_MAX = 50
_INTERVALS = tuple((name, name) for name in get_args(Interval))
_ROLLOVERS = (("none", "Ends with the cycle"), ("full", "Carries over"))


class Plans:
    """The list, one plan with its editor, and subscriptions."""

    def __init__(
        self,
        view: View,
        acts: Acts,
        *,
        plans: PlanStore,
        subscriptions: Subscriptions,
        catalog: CatalogStore,
        store: DashboardStore,
    ) -> None:
        self._view = view
        self._store = store
        self._acts = acts
        self._plans = plans
        self._subscriptions = subscriptions
        self._catalog = catalog

    def routes(self) -> list[web.RouteDef]:
        one = _BASE + "/{plan}"
        return [
            web.get(_BASE, self.many),
            web.get(_BASE + "/new", self.new),
            web.get(_BASE + "/bundle", self.bundle_row),
            web.get(_BASE + "/subscriptions", self.subscriptions),
            web.post(_BASE + "/subscriptions/{subscription}/cancel", self.cancel),
            web.post(_BASE, self.create),
            web.get(one, self.one),
            web.post(one, self.change),
            web.post(one + "/archive", self.archive),
        ]

    async def many(self, request: web.Request) -> web.StreamResponse:
        merchant_id, before = session_of(request).merchant.merchant_id, request.query.get("cursor", "")
        cursor = before if is_id(before, "sc") else None
        found = await self._plans.plans(merchant_id, before=cursor, limit=PAGE_ROWS + 1)
        live = await self._plans.subscriptions(merchant_id, is_live=True, connection_id=None, before=None, limit=5)
        return self._view.page(
            request, "plans.html", "plans", plans=found[:PAGE_ROWS], first=_BASE if cursor else "",
            next=f"{_BASE}?cursor={found[PAGE_ROWS - 1].plan_id}" if len(found) > PAGE_ROWS else "",
            live=live, names=await self._store.customer_names(merchant_id, [one.connection_id for one in live]),
        )  # fmt: skip

    async def new(self, request: web.Request) -> web.StreamResponse:
        form = Form({"billing_interval": "month", "rollover_type": "none", "bundle_rollover_type": "full", **overage_values(None)})
        return await self._editor(request, form, None)

    async def bundle_row(self, request: web.Request) -> web.StreamResponse:
        """One more row for the editor."""
        text = request.query.get("n", "")
        index = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 1
        return self._view.part(request, "plan_bundle.html", row=("", "", "", ""), index=index)

    async def create(self, request: web.Request) -> web.StreamResponse:
        form = await Form.read(request)
        merchant_id = session_of(request).merchant.merchant_id
        name, amount = checked(form, "name", checked_name), _cents(form, "period_amount", most=PLAN_AMOUNT_NANOS_MAX)
        interval = form.choice("billing_interval", get_args(Interval))
        terms = self._terms(form, name, amount, interval)
        bundles, overage = _bundles(form, ()), read_overage(form, may_inherit=True)
        meter_ids = await self._meter_ids(form, merchant_id)
        if form.is_good and terms is not None:
            try:
                async with self._acts.transaction() as db:
                    made = await self._plans.create_plan(
                        merchant_id, terms, overage=overage, meter_ids=meter_ids, bundles=bundles, db=db
                    )
                    await self._acts.note(db, request, "plan.create", made.plan_id, after=_facts(made))
            except CallerError as error:
                form.fail("name", error.message)
            else:
                return self._view.redirect(request, f"{_BASE}/{made.plan_id}", "The plan has been created.")
        return await self._editor(request, form, None, status=422)

    async def one(self, request: web.Request) -> web.StreamResponse:
        plan = await self._found(request)
        return await self._editor(request, _form_of(plan), plan)

    async def change(self, request: web.Request) -> web.StreamResponse:
        """Running cycles keep what they were sold as; the next ones begin by the new terms. Amount and interval never change."""
        plan, form = await self._found(request), await Form.read(request)
        name = checked(form, "name", checked_name)
        terms = self._terms(form, name, plan.terms.period_amount_nanos, plan.terms.billing_interval)
        bundles, overage = _bundles(form, plan.bundles), read_overage(form, may_inherit=True)
        meter_ids = await self._meter_ids(form, plan.merchant_id)
        automatic = form.value("default_auto_top_up_bundle_id") or None
        if form.is_good and terms is not None:
            draft = replace(
                plan, terms=replace(terms, plan_id=plan.plan_id), overage=overage, default_auto_top_up_bundle_id=automatic
            )
            try:
                async with self._acts.transaction() as db:
                    changed = await self._plans.update_plan(draft, meter_ids=meter_ids, bundles=bundles, db=db)
                    await self._acts.note(db, request, "plan.change", plan.plan_id, before=_facts(plan), after=_facts(changed))
            except CallerError as error:
                form.fail("default_auto_top_up_bundle_id", error.message)
            else:
                said = "Saved. Running cycles keep what they were sold as; the next ones begin by these terms."
                return self._view.redirect(request, f"{_BASE}/{plan.plan_id}", said)
        return await self._editor(request, form, plan, status=422)

    async def archive(self, request: web.Request) -> web.StreamResponse:
        plan = await self._found(request)
        try:
            async with self._acts.transaction() as db:
                await self._plans.archive_plan(plan.merchant_id, plan.plan_id, db=db)
                await self._acts.note(db, request, "plan.archive", plan.plan_id, before=_facts(plan))
        except Conflict as error:
            return self._view.redirect(request, f"{_BASE}/{plan.plan_id}", error.message, "bad")
        return self._view.redirect(request, _BASE, "The plan is no longer sold; subscriptions to it go on.")

    # -- subscriptions

    async def subscriptions(self, request: web.Request) -> web.StreamResponse:
        merchant_id, before = session_of(request).merchant.merchant_id, request.query.get("cursor", "")
        status = request.query.get("status", "active")
        is_live = {"active": True, "cancelled": False}.get(status)
        cursor = before if is_id(before, "sub") else None
        found = await self._plans.subscriptions(
            merchant_id, is_live=is_live, connection_id=None, before=cursor, limit=SUBSCRIPTION_ROWS + 1
        )
        address = f"{_BASE}/subscriptions?status={status if is_live is not None else 'all'}"
        more = len(found) > SUBSCRIPTION_ROWS
        return self._view.page(
            request, "subscriptions.html", "plans", subscriptions=found[:SUBSCRIPTION_ROWS],
            names=await self._store.customer_names(merchant_id, [one.connection_id for one in found[:SUBSCRIPTION_ROWS]]),
            status_shown=status if is_live is not None else "all", first=address if cursor else "",
            next=f"{address}&cursor={found[SUBSCRIPTION_ROWS - 1].subscription_id}" if more else "",
        )  # fmt: skip

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """With its cycle where that was paid; at once where it was not."""
        subscription_id = request.match_info["subscription"]
        if not is_id(subscription_id, "sub"):
            raise NotFound("No subscription of yours has this id.")

        async def note(db: Any, ended: Subscription) -> None:
            await self._acts.note(db, request, "subscription.cancel", subscription_id, after=end_facts(ended))

        ended = await self._subscriptions.cancel(session_of(request).merchant.merchant_id, subscription_id, note=note)
        at_once = ended.status == "cancelled"
        said = "The subscription has ended." if at_once else "The subscription ends with its cycle."
        return self._view.redirect(request, f"{_BASE}/subscriptions", said)

    # -- helpers

    async def _found(self, request: web.Request) -> Plan:
        identifier = request.match_info["plan"]
        plan = None
        if identifier.startswith("sc_") and identifier.isascii() and identifier.isprintable() and len(identifier) <= 100:
            plan = await self._plans.plan(session_of(request).merchant.merchant_id, identifier)
        if plan is None:
            raise NotFound("No plan of yours has this id.")
        return plan

    async def _editor(self, request: web.Request, form: Form, plan: Plan | None, *, status: int = 200) -> web.Response:
        merchant_id = session_of(request).merchant.merchant_id
        return self._view.page(
            request, "plan.html", "plans", status=status, form=form, plan=plan, intervals=_INTERVALS, rollovers=_ROLLOVERS,
            meters=await self._meters(merchant_id), bundles=_typed_bundles(form),
            default_overage=(await self._acts.default_overage(merchant_id)).policy,
        )  # fmt: skip

    async def _meters(self, merchant_id: str) -> list[Meter]:
        return await self._catalog.meters(merchant_id, before=None, limit=_METERS_MAX)

    async def _meter_ids(self, form: Form, merchant_id: str) -> list[str]:
        known = {meter.meter_id for meter in await self._meters(merchant_id)}
        chosen = form.all("meters")
        if not known.issuperset(chosen):
            form.fail("meters", "One of these meters is not there any more; choose again.")
        return [identifier for identifier in chosen if identifier in known]

    def _terms(self, form: Form, name: str | None, amount_nanos: int | None, interval: str | None) -> Terms | None:
        rollover = form.choice("rollover_type", get_args(Rollover))
        bundle_rollover = form.choice("bundle_rollover_type", get_args(Rollover))
        credit = form.usd("included_credit", is_required=False, most=PLAN_AMOUNT_NANOS_MAX)
        if amount_nanos is not None and credit is not None and credit > amount_nanos:
            form.fail("included_credit", "At most what the cycle costs.")
        if name is None or amount_nanos is None or interval is None or not form.is_good:
            return None
        return Terms(
            plan_id="", name=name, period_amount_nanos=amount_nanos,
            included_credit_nanos=amount_nanos if credit is None else credit, billing_interval=cast(Interval, interval),
            rollover_type=cast(Rollover, rollover), bundle_rollover_type=cast(Rollover, bundle_rollover),
        )  # fmt: skip


def _cents(form: Form, name: str, *, most: int, least: int = 0) -> int | None:
    """An amount that a card is charged: whole cents."""
    nanos = form.usd(name, least=least, most=most)
    if nanos is not None and nanos % NANOS_PER_CENT:
        form.fail(name, "Whole cents: cards know nothing smaller.")
        return None
    return nanos


def _typed_bundles(form: Form) -> list[tuple[str, str, str, str]]:
    """(id, name, cost, credit) of the editor's rows; rows that are empty are left out."""
    columns = [form.all(name) for name in ("bundle_id", "bundle_name", "bundle_cost", "bundle_credit")]
    rows = [tuple(text.strip() for text in row) for row in zip(*columns, strict=False)]
    return [cast(tuple[str, str, str, str], row) for row in rows if any(row[1:]) or row[0]]


def _bundles(form: Form, present: tuple[Bundle, ...]) -> list[BundleDraft]:
    """The bundles typed; one of `present` that is missing, or whose row was emptied, is deleted."""
    drafts: list[BundleDraft] = []
    rows = _typed_bundles(form)
    if len(rows) > _BUNDLES_MAX:
        form.fail("bundles", f"At most {_BUNDLES_MAX} bundles.")
    known, kept = {bundle.credit_bundle_id for bundle in present}, set[str]()
    for number, (identifier, name, cost, credit) in enumerate(rows, 1):
        if not (name or cost or credit):
            continue
        if identifier and identifier not in known:
            form.fail("bundles", "One of these bundles is not there any more; load the page again.")
            continue
        row = Form({"name": name, "cost": cost, "credit": credit})
        checked(row, "name", checked_name)
        cost_nanos = _cents(row, "cost", least=NANOS_PER_CENT, most=PLAN_AMOUNT_NANOS_MAX)
        credit_nanos = row.usd("credit", least=1, most=PLAN_AMOUNT_NANOS_MAX)
        if row.errors or cost_nanos is None or credit_nanos is None:
            problems = " ".join(f"{field.capitalize()}: {said}" for field, said in row.errors.items())
            form.fail("bundles", f"Bundle {number}. {problems}")
            continue
        kept.add(identifier)
        drafts.append(BundleDraft(name=name, cost_nanos=cost_nanos, credit_nanos=credit_nanos, credit_bundle_id=identifier or None))
    return drafts + [
        BundleDraft(
            name=bundle.name, cost_nanos=bundle.cost_nanos, credit_nanos=bundle.credit_nanos,
            credit_bundle_id=bundle.credit_bundle_id, is_deleted=True,
        )
        for bundle in present
        if bundle.credit_bundle_id not in kept
    ]  # fmt: skip


def _form_of(plan: Plan) -> Form:
    terms = plan.terms
    form = Form(
        {
            "name": terms.name, "period_amount": dollars(terms.period_amount_nanos), "billing_interval": terms.billing_interval,
            "included_credit": dollars(terms.included_credit_nanos), "rollover_type": terms.rollover_type,
            "bundle_rollover_type": terms.bundle_rollover_type,
            "default_auto_top_up_bundle_id": plan.default_auto_top_up_bundle_id, **overage_values(plan.overage),
        }
    )  # fmt: skip
    form.lists = {
        "meters": [identifier for identifier, _ in plan.meters],
        "bundle_id": [bundle.credit_bundle_id for bundle in plan.bundles],
        "bundle_name": [bundle.name for bundle in plan.bundles],
        "bundle_cost": [dollars(bundle.cost_nanos) for bundle in plan.bundles],
        "bundle_credit": [dollars(bundle.credit_nanos) for bundle in plan.bundles],
    }
    return form


def _facts(plan: Plan) -> Mapping[str, Any]:
    return {
        **plan.terms.document(),
        "overage": None if plan.overage is None else overage_document(plan.overage),
        "default_auto_top_up_bundle_id": plan.default_auto_top_up_bundle_id,
        "meters": [name for _, name in plan.meters],
        "bundles": [
            {"name": bundle.name, "cost_nanos": bundle.cost_nanos, "credit_nanos": bundle.credit_nanos} for bundle in plan.bundles
        ],
    }
