"""The hosted checkout and the customer's own page: /embed/checkout/{secret} in a merchant's frame, /checkout/{secret} as a page.

No cookies: a frame of another site has none. The secret in the address leads to the session; each open page has a visit's token,
which its script sends as a header with every step, so another site cannot act for it and another visit cannot take it over.
A step is posted as a form and answered by the next step's HTML, computed from the session as it stands.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from lava_proxy.billing.checkout import Checkout, View, Visit
from lava_proxy.domain.branding import Branding, theme_on
from lava_proxy.domain.checkout import CheckoutSession
from lava_proxy.domain.errors import CallerError, Forbidden, LavaError, LimitExceeded
from lava_proxy.domain.money import NANOS_PER_CENT, parse_decimal_units
from lava_proxy.domain.phones import parse_phone, region_of
from lava_proxy.payments.processor import CardDetails
from lava_proxy.stores.call_counts import CallCounts
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.web.pages import Pages
from lava_proxy.web.posted import posted_form
from lava_proxy.wire.public_address import base_url, client_address

VISIT_HEADER = "X-Lava-Visit"
STEPS_PER_MINUTE = 90  # of one session, polling included
ADDRESS_PER_MINUTE = 900  # pages and steps: behind one address may be a whole office, or a mobile network
_VISIT = re.compile(r"[A-Za-z0-9_-]{32,64}")
_EXPIRY = re.compile(r"\s*([0-9]{1,2})\s*[/-]?\s*((?:20)?[0-9]{2})\s*")
_CENTURY = 2000

# Which field of its step an error belongs to; others are said above the form.
_FIELD_OF = {
    "phone_required": "phone", "invalid_phone": "phone", "phone_not_reachable": "phone", "code_wrong": "code",
    "amount_out_of_bounds": "amount", "invalid_amount": "amount", "test_cards_only": "number", "card_declined": "number",
    "invalid_expiry": "expiry",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CardForm:
    """How cards are typed in: `script_url` and `key` of the processor's own form, or neither for the sandbox's."""

    script_url: str = ""
    key: str = ""

    @property
    def origin(self) -> str:
        parts = urlsplit(self.script_url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True)
class _Step:
    """One posted step: its session, the visit that posts it, what was typed."""

    request: web.Request
    session: CheckoutSession
    visit: Visit
    form: Mapping[str, Any]

    def text(self, name: str) -> str:
        value = self.form.get(name, "")
        return value if isinstance(value, str) else ""


class CheckoutPages:
    """The pages of checkouts. `public_url`: where pages are reached, ending in /; None: what the browser used."""

    def __init__(
        self,
        pages: Pages,
        checkout: Checkout,
        store: CheckoutStore,
        counts: CallCounts,
        *,
        card_form: CardForm | None,
        public_url: str | None,
        dev: bool,
        clock: Callable[[], datetime],
    ) -> None:
        self._pages = pages
        self._checkout = checkout
        self._store = store
        self._counts = counts
        self._card_form = card_form or CardForm()
        self._public_url = public_url
        self._dev = dev
        self._clock = clock
        self._actions: dict[str, Callable[[_Step], Awaitable[View | None]]] = {
            "state": self._nothing, "phone": self._send_code, "resend": self._resend, "phone-change": self._forget_phone,
            "code": self._check_code, "amount": self._choose_amount, "amount-change": self._change_amount, "card": self._add_card,
            "card-form": self._show_card_form, "card-choose": self._choose_card, "card-remove": self._remove_card, "pay": self._pay,
            "refresh": self._refresh, "cancel": self._cancel, "plan-cancel": self._cancel_plan, "plan-keep": self._keep_plan,
        }  # fmt: skip

    def routes(self) -> list[web.RouteDef]:
        embed = "/embed/checkout/{secret}"
        return [
            web.get(embed, self.framed),
            web.get("/checkout/{secret}", self.plain),
            web.get(embed + "/theme.css", self.theme),
            web.get(embed + "/returned", self.returned),
            web.post(embed + "/card-begin", self.begin_card),
            web.post(embed + "/receipt", self.receipt),
            web.post(embed + "/{action}", self.act),
        ]

    # -- the page

    async def framed(self, request: web.Request) -> web.Response:
        """The page inside the merchant's."""
        return await self._page(request, is_framed=True)

    async def plain(self, request: web.Request) -> web.Response:
        """The page by itself."""
        return await self._page(request, is_framed=False)

    async def _page(self, request: web.Request, *, is_framed: bool) -> web.Response:
        session = await self._session(request)
        view = await self._checkout.view(session, None)
        branding = await self._store.branding(session.merchant_id)
        values = self._values(request, view, branding) | {
            "is_framed": is_framed,
            "visit": secrets.token_urlsafe(32),
            "card_form": self._card_form,
        }
        ancestors = session.origin if is_framed else "'none'"
        return self._pages.page(request, "checkout.html", values, headers=self._headers(ancestors))

    async def theme(self, request: web.Request) -> web.Response:
        """The merchant's colour as a style sheet: the policy allows no inline styles."""
        session = await self._session(request)
        colour = (await self._store.branding(session.merchant_id)).colour
        rules = []
        for dark in (False, True):
            theme = theme_on(colour, dark=dark)
            rule = f":root{{--accent:{theme.accent};--on-accent:{theme.on_accent};--link:{theme.link}}}"
            rules.append(f"@media (prefers-color-scheme:dark){{{rule}}}" if dark else rule)
        return web.Response(text="".join(rules), content_type="text/css", headers={hdrs.CACHE_CONTROL: "private, max-age=60"})

    async def returned(self, request: web.Request) -> web.Response:
        """Where the test bank leads back to, inside our page, which sees it load and goes on."""
        session = await self._session(request)
        headers = self._headers(f"'self' {session.origin}")
        return self._pages.page(request, "checkout_returned.html", {}, headers=headers)

    # -- steps

    async def act(self, request: web.Request) -> web.Response:
        """One step: what was typed is taken, and the page's next step answered."""
        action = self._actions.get(request.match_info["action"])
        if action is None:
            raise web.HTTPNotFound
        step = await self._step(request)
        try:
            view = await action(step)
        except CallerError as error:
            return await self._refused(step, error)
        if view is None:
            view = await self._checkout.view(await self._checkout.session(step.session.secret), step.visit)
        return await self._fragment(step, view)

    async def begin_card(self, request: web.Request) -> web.Response:
        """What the processor's own form needs to take a card."""
        step = await self._step(request)
        setup = await self._checkout.begin_card(step.session, step.visit)
        return web.json_response({"client_secret": setup.client_secret, "setup_ref": setup.setup_ref})

    async def receipt(self, request: web.Request) -> web.Response:
        """One payment, to print."""
        step = await self._step(request)
        charge = await self._checkout.receipt(step.session, step.visit, step.text("charge"))
        view = View(step="portal", session=step.session, charge=charge)
        return await self._fragment(step, view, template="checkout_receipt.html")

    async def _nothing(self, step: _Step) -> View | None:
        return None

    async def _send_code(self, step: _Step) -> View | None:
        typed = step.text("phone").strip()
        phone: str | None = None
        if typed:
            try:
                phone = parse_phone(typed, region_of(step.request.headers.get(hdrs.ACCEPT_LANGUAGE, "")))
            except ValueError:
                raise CallerError(
                    "Enter a phone number with its country code, such as +1 415 555 0123.", code="invalid_phone", status=422
                ) from None
        await self._checkout.send_code(step.session, step.visit, phone)
        return None

    async def _resend(self, step: _Step) -> View | None:
        await self._checkout.resend_code(step.session, step.visit)
        return None

    async def _forget_phone(self, step: _Step) -> View | None:
        await self._checkout.forget_phone(step.session, step.visit)
        return None

    async def _check_code(self, step: _Step) -> View | None:
        await self._checkout.check_code(step.session, step.visit, step.text("code"))
        return None

    async def _choose_amount(self, step: _Step) -> View | None:
        await self._checkout.choose_amount(step.session, step.visit, _cents(step.text("amount")))
        return None

    async def _change_amount(self, step: _Step) -> View | None:
        await self._checkout.choose_amount(step.session, step.visit, None)
        return None

    async def _add_card(self, step: _Step) -> View | None:
        if step.text("setup_ref"):
            await self._checkout.finish_card(step.session, step.visit, step.text("setup_ref"))
        else:
            await self._checkout.add_card(step.session, step.visit, _card(step))
        return None

    async def _show_card_form(self, step: _Step) -> View | None:
        view = await self._checkout.view(step.session, step.visit)
        return replace(view, step="card", declined=None) if view.step in ("review", "card", "portal") else view

    async def _choose_card(self, step: _Step) -> View | None:
        await self._checkout.choose_card(step.session, step.visit, step.text("card"))
        return None

    async def _remove_card(self, step: _Step) -> View | None:
        await self._checkout.remove_card(step.session, step.visit, step.text("card"))
        return None

    async def _pay(self, step: _Step) -> View | None:
        shown = step.text("amount_cents")
        cents = int(shown) if re.fullmatch(r"[0-9]{1,9}", shown) else -1
        base = base_url(step.request.headers, step.request.host, self._public_url)
        await self._checkout.pay(step.session, step.visit, cents, f"{base}embed/checkout/{step.session.secret}/returned")
        return None

    async def _refresh(self, step: _Step) -> View | None:
        await self._checkout.refresh(step.session)
        return None

    async def _cancel(self, step: _Step) -> View | None:
        await self._checkout.cancel(step.session)
        return None

    async def _cancel_plan(self, step: _Step) -> View | None:
        await self._checkout.cancel_plan(step.session, step.visit)
        return None

    async def _keep_plan(self, step: _Step) -> View | None:
        await self._checkout.keep_plan(step.session, step.visit)
        return None

    # -- answers

    async def _refused(self, step: _Step, error: CallerError) -> web.Response:
        """The step as it stands now, with what was wrong."""
        view = await self._checkout.view(await self._checkout.session(step.session.secret), step.visit)
        field = _FIELD_OF.get(error.code, "")
        if field in ("number", "expiry") and view.step in ("review", "portal"):
            view = replace(view, step="card", declined=None)
        status = error.status if error.status in (409, 429) else 422
        message = _spoken(error)
        return await self._fragment(
            step, view, error=message, field=field, typed=step.text(field) if field != "number" else "", status=status
        )

    async def _fragment(
        self, step: _Step, view: View, *, template: str = "checkout_step.html", error: str = "", field: str = "", typed: str = "",
        status: int = 200,
    ) -> web.Response:  # fmt: skip
        branding = await self._store.branding(view.session.merchant_id)
        values = self._values(step.request, view, branding) | {
            "error": error, "field": field, "typed": typed, "is_framed": step.request.headers.get("X-Lava-Framed") == "1",
            "card_form": self._card_form,
        }  # fmt: skip
        return self._pages.page(step.request, template, values, status=status, headers=self._headers("'none'"))

    def _values(self, request: web.Request, view: View, branding: Branding) -> dict[str, Any]:
        return {
            "view": view, "session": view.session, "branding": branding, "error": "", "field": "", "typed": "", "dev": self._dev,
            "processor": self._checkout.processor_name or "", "now": self._clock(), "cents": NANOS_PER_CENT,
        }  # fmt: skip

    def _headers(self, ancestors: str) -> dict[str, str]:
        form = self._card_form
        script = connect = frame = ""
        if form.script_url:
            script, connect = f" {form.origin}", f" {form.origin} https://api.stripe.com"
            frame = f" {form.origin} https://js.stripe.com https://hooks.stripe.com"
        return {
            "Content-Security-Policy": (
                f"default-src 'none'; script-src 'self'{script}; style-src 'self'; img-src 'self' data:;"
                f" connect-src 'self'{connect};"
                f" frame-src 'self'{frame}; form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}"
            ),
            "Cross-Origin-Opener-Policy": "unsafe-none",
        }

    # -- who asks

    async def _session(self, request: web.Request) -> CheckoutSession:
        await self._count(f"checkout:{client_address(request.headers)}", ADDRESS_PER_MINUTE)
        secret = request.match_info["secret"]
        return await self._checkout.session(secret[:100])

    async def _step(self, request: web.Request) -> _Step:
        """Raises Forbidden unless the post comes from our own page."""
        if urlsplit(request.headers.get(hdrs.ORIGIN, "")).netloc.lower() not in self._own_hosts(request):
            raise Forbidden("This page answers only itself.", code="foreign_origin")
        token = request.headers.get(VISIT_HEADER, "")
        if not _VISIT.fullmatch(token):
            raise Forbidden("Open the checkout again: this page has lost its visit.", code="visit_missing")
        session = await self._session(request)
        await self._count(f"checkout:{session.checkout_session_id}", STEPS_PER_MINUTE)
        visit = Visit(token=token, address=client_address(request.headers))
        return _Step(request, session, visit, await posted_form(request))

    def _own_hosts(self, request: web.Request) -> set[str]:
        hosts = {request.host.lower()}
        if self._public_url is not None:
            hosts.add(urlsplit(self._public_url).netloc.lower())
        return hosts

    async def _count(self, name: str, per_minute: int) -> None:
        counted = await self._counts.count(name, int(time.time()))
        if counted is not None and counted > per_minute:
            raise LimitExceeded("Too many requests; wait a minute.", code="rate_limited", retry_after_s=60)


def _cents(text: str) -> int:
    """A typed amount of dollars."""
    try:
        return parse_decimal_units(text.strip().removeprefix("$").replace(",", "").strip(), 100)
    except ValueError:
        raise CallerError("Enter an amount in dollars, such as 25 or 25.50.", code="invalid_amount", status=422) from None


def _card(step: _Step) -> CardDetails:
    found = _EXPIRY.fullmatch(step.text("expiry"))
    if found is None:
        raise CallerError("Enter the expiry as month and year, such as 12/34.", code="invalid_expiry", status=422)
    year = int(found.group(2))
    return CardDetails(
        number=step.text("number"), expiry_month=int(found.group(1)), expiry_year=year if year > 99 else _CENTURY + year,
        cvc=step.text("cvc"),
    )  # fmt: skip


def _spoken(error: LavaError) -> str:
    """For who is paying, not for who integrates."""
    if error.code == "test_cards_only":
        return "This is test mode: use a test card, such as 4242 4242 4242 4242. Nothing was stored."
    return error.message
