"""/dashboard/checkouts: links at which customers pay; a checkout tried in a frame; links to a customer's own page."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import web

from lava_proxy.billing.checkout import Checkout
from lava_proxy.billing.checkout_links import CheckoutLinks, page_url, token_of
from lava_proxy.domain.checkout import CheckoutSession, Mode, origin_of
from lava_proxy.domain.errors import CallerError, LavaError, NotFound
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.web.dashboard.acts import Acts, is_id
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import checked, sentence
from lava_proxy.wire.public_address import base_url
from lava_proxy.wire.texts import checked_email, checked_reference_id

PAGE_ROWS = 50
_BASE = "/dashboard/checkouts"
_PLANS_MAX = 100
_CLOSED = ("completed", "cancelled", "expired")


class Offers:
    """Checkouts as merchants make them. `public_url`: where browsers find this installation, ending in /."""

    def __init__(
        self,
        view: View,
        acts: Acts,
        *,
        checkout: Checkout,
        store: CheckoutStore,
        links: CheckoutLinks,
        catalog: CatalogStore,
        plans: PlanStore,
        public_url: str,
    ) -> None:
        self._view = view
        self._acts = acts
        self._checkout = checkout
        self._store = store
        self._links = links
        self._catalog = catalog
        self._plans = plans
        self._public_url = public_url

    def routes(self) -> list[web.RouteDef]:
        one = _BASE + "/{session}"
        return [
            web.get(_BASE, self.many),
            web.get(_BASE + "/new", self.new),
            web.post(_BASE, self.create),
            web.get(one, self.one),
            web.get(one + "/frame", self.frame),
            web.post(one + "/email", self.send),
            web.post("/dashboard/customers/{customer}/portal", self.create_portal),
        ]

    async def many(self, request: web.Request) -> web.StreamResponse:
        """Newest first."""
        merchant_id, before = session_of(request).merchant.merchant_id, request.query.get("cursor", "")
        cursor = before if _is_session_id(before) else None
        found = await self._store.sessions(merchant_id, reference_id=None, before=cursor, limit=PAGE_ROWS + 1)
        last = found[PAGE_ROWS - 1].checkout_session_id if len(found) > PAGE_ROWS else ""
        return self._view.page(
            request, "checkouts.html", "plans", sessions=[(one, self._checkout.state(one)) for one in found[:PAGE_ROWS]],
            first=_BASE if cursor else "", next=f"{_BASE}?cursor={last}" if last else "",
        )  # fmt: skip

    # -- making one

    async def new(self, request: web.Request) -> web.StreamResponse:
        customer = await self._customer(request, request.query.get("customer", ""))
        plan = request.query.get("plan", "")
        form = Form(
            {
                "offer": f"plan:{plan}" if plan else "",
                "email": "" if customer is None else customer.contact.get("email"),
            }
        )
        return await self._editor(request, form, customer)

    async def create(self, request: web.Request) -> web.StreamResponse:
        """A session, its link sent where an address was typed; or shown in a frame of the dashboard, to try it."""
        form = await Form.read(request)
        customer = await self._customer(request, form.value("customer"))
        is_trial = form.value("then") == "frame"
        email = None if is_trial else checked(form, "email", checked_email, is_required=False)
        reference_id = checked(form, "reference_id", checked_reference_id, is_required=False)
        origin_url = self._own_origin(request) if is_trial else self._origin(form, request)
        chosen = form.choice("offer", [value for value, _ in await self._offers(request, customer)])
        if email is not None and not self._links.can_send:
            form.fail("email", "No e-mail can be sent here: LAVA_SMTP_URL and LAVA_EMAIL_FROM are not set.")
        if not form.is_good or chosen is None:
            return await self._editor(request, form, customer, status=422)
        kind, _, subject = chosen.partition(":")

        async def note(db: Any, made: CheckoutSession) -> None:
            await self._acts.note(db, request, "checkout.create", made.checkout_session_id, after=_facts(made))

        try:
            made = await self._checkout.create(
                session_of(request).merchant.merchant_id, _mode(kind), origin_url=origin_url, is_test=self._is_test,
                customer=None if customer is None else customer.connection_id, plan_id=subject if kind == "plan" else None,
                credit_bundle_id=subject if kind == "bundle" else None, reference_id=reference_id, note=note,
            )  # fmt: skip
        except CallerError as error:
            form.fail("offer", error.message)
            return await self._editor(request, form, customer, status=422)
        address = f"{_BASE}/{made.checkout_session_id}"
        if is_trial:
            return self._view.redirect(request, f"{address}/frame")
        if email is None:
            return self._view.redirect(request, address, "The link has been made.")
        return await self._sent(request, made, email)

    # -- one

    async def one(self, request: web.Request) -> web.StreamResponse:
        session = await self._found(request)
        return await self._page(request, session)

    async def send(self, request: web.Request) -> web.StreamResponse:
        session, form = await self._found(request), await Form.read(request)
        email = checked(form, "email", checked_email)
        if email is not None and self._checkout.state(session) in _CLOSED:
            form.fail("email", "This checkout is closed; make another.")
        if email is None or not form.is_good:
            return await self._page(request, session, form, status=422)
        return await self._sent(request, session, email)

    async def frame(self, request: web.Request) -> web.StreamResponse:
        """The checkout as a merchant's page shows it, in a frame of ours."""
        session = await self._found(request)
        return self._view.page(
            request, "checkout_frame.html", "plans", session=session, state=self._checkout.state(session),
            is_ours=session.origin == origin_of(self._own_origin(request)),
        )  # fmt: skip

    async def create_portal(self, request: web.Request) -> web.StreamResponse:
        """A link to the customer's own page: shown here only, behind it a code to the phone."""
        customer = await self._customer(request, request.match_info["customer"])
        if customer is None:
            raise NotFound("No customer of yours has this id.")
        base, connection_id = self._links.base(request.headers, request.host), customer.connection_id

        async def note(db: Any, made: CheckoutSession) -> None:
            await self._acts.note(db, request, "customer.page_link", connection_id)

        try:
            session = await self._checkout.create_portal(customer, origin_url=base, is_test=self._is_test, note=note)
        except CallerError as error:
            return self._view.redirect(request, f"/dashboard/customers/{customer.connection_id}", error.message, "bad")
        return self._view.page(
            request, "portal_link.html", "customers", customer=customer, session=session, url=page_url(base, session)
        )

    # -- helpers

    @property
    def _is_test(self) -> bool:
        return self._checkout.processor_name == "sandbox"

    def _own_origin(self, request: web.Request) -> str:
        """Our own address as this browser sees it: only a page from there may hold the frame."""
        is_public = urlsplit(self._public_url).netloc.lower() == request.host.lower()
        return self._public_url if is_public else base_url(request.headers, request.host, None)

    def _origin(self, form: Form, request: web.Request) -> str:
        """The page that may embed the checkout, as typed; our own where nothing was."""
        typed = form.value("origin_url").strip()
        if not typed:
            return self._own_origin(request)
        try:
            origin_of(typed)
        except ValueError as error:
            form.fail("origin_url", sentence(error))
        return typed

    async def _offers(self, request: web.Request, customer: Connection | None) -> list[tuple[str, str]]:
        """(value, text) of everything that can be sold to the customer, or to a new one."""
        merchant_id = session_of(request).merchant.merchant_id
        found = [("topup", "Funds, as much as they like") if customer else ("onboarding", "Funds, as much as a new customer likes")]
        if customer is not None:
            subscription = await self._plans.live_subscription(customer.connection_id)
            plan = None if subscription is None else await self._plans.plan(merchant_id, subscription.terms.plan_id)
            found += [(f"bundle:{one.credit_bundle_id}", f"Bundle {one.name}") for one in (plan.bundles if plan else ())]
        plans = await self._plans.plans(merchant_id, before=None, limit=_PLANS_MAX)
        return [*((f"plan:{plan.plan_id}", f"Plan {plan.terms.name}") for plan in plans), *found]

    async def _customer(self, request: web.Request, identifier: str) -> Connection | None:
        """None where none is named. Raises NotFound for one that is not the merchant's."""
        if not identifier:
            return None
        found = None
        if is_id(identifier, "con"):
            found = await self._catalog.connection(session_of(request).merchant.merchant_id, identifier)
        if found is None:
            raise NotFound("No customer of yours has this id.")
        return found

    async def _found(self, request: web.Request) -> CheckoutSession:
        identifier, found = request.match_info["session"], None
        if _is_session_id(identifier):
            found = await self._store.session(session_of(request).merchant.merchant_id, identifier)
        if found is None:
            raise NotFound("No checkout of yours has this id.")
        return found

    async def _sent(self, request: web.Request, session: CheckoutSession, email: str) -> web.Response:
        """The link's page, after the link was sent, or with what kept it from being sent."""
        address = f"{_BASE}/{session.checkout_session_id}"
        # Mail cannot be taken back: the entry comes first, and one of its own says that nothing was sent.
        await self._acts.note(None, request, "checkout.send", session.checkout_session_id, after={"email": email})
        try:
            await self._links.send(session, email, self._links.base(request.headers, request.host))
        except LavaError as error:
            facts = {"email": email, "error": error.code}
            await self._acts.note(None, request, "checkout.send_failed", session.checkout_session_id, after=facts)
            return await self._page(request, session, _failed("email", email, error), status=422)
        return self._view.redirect(request, address, f"The link has been sent to {email}.")

    async def _editor(self, request: web.Request, form: Form, customer: Connection | None, *, status: int = 200) -> web.Response:
        return self._view.page(
            request, "checkout_new.html", "plans" if customer is None else "customers", status=status, form=form,
            customer=customer, offers=await self._offers(request, customer), can_send=self._links.can_send,
        )  # fmt: skip

    async def _page(
        self, request: web.Request, session: CheckoutSession, form: Form | None = None, *, status: int = 200
    ) -> web.Response:
        base = self._links.base(request.headers, request.host)
        customer = None
        if session.connection_id is not None:
            customer = await self._catalog.connection(session.merchant_id, session.connection_id)
        state = self._checkout.state(session)
        return self._view.page(
            request, "checkout_link.html", "plans", status=status, session=session, state=state, is_closed=state in _CLOSED,
            url=page_url(base, session), token=token_of(session, base), customer=customer, can_send=self._links.can_send,
            form=form or Form({"email": "" if customer is None else customer.contact.get("email")}),
            is_ours=session.origin == origin_of(self._own_origin(request)),
        )  # fmt: skip


def _mode(kind: str) -> Mode:
    return cast(Mode, {"plan": "subscription", "bundle": "credit_bundle"}.get(kind, kind))


def _facts(session: CheckoutSession) -> dict[str, Any]:
    return {
        "mode": session.kind, "customer_id": session.connection_id, "offer": session.offer.get("name"), "origin": session.origin,
    }  # fmt: skip


def _is_session_id(text: str) -> bool:
    return is_id(text, "cs")


def _failed(name: str, value: str, error: LavaError) -> Form:
    form = Form({name: value})
    form.fail(name, error.message)
    return form
