"""The frame around every page of the dashboard: who is signed in, what is refused, how pages and parts of them are rendered."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

import orjson
from aiohttp import hdrs, web

from lava_proxy.domain.errors import Forbidden, NotFound
from lava_proxy.stores.audit_log import Actor
from lava_proxy.stores.catalog_store import CatalogStore, Merchant
from lava_proxy.stores.dashboard_sessions import LIFE_S, DashboardSession, DashboardSessions
from lava_proxy.stores.secret_key_store import SecretKeyStore
from lava_proxy.web.pages import Pages
from lava_proxy.web.posted import posted_form

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Tone = Literal["good", "bad"]

NAVIGATION: tuple[tuple[str, str, str], ...] = (
    ("", "Overview", "home"),
    ("requests", "Requests", "list"),
    ("customers", "Customers", "users"),
    ("meters", "Meters", "gauge"),
    ("plans", "Plans", "receipt"),
    ("keys", "Keys", "key"),
    ("webhooks", "Webhooks", "webhook"),
    ("settings", "Settings", "settings"),
    ("audit", "Audit log", "history"),
)
"""(path below /dashboard, title, icon), in the order of the menu."""

SESSION_COOKIE = "lava_session"
_NOTICE_COOKIE = "lava_notice"
_NOTICE_S = 30
_SIGN_IN = "/dashboard/sign-in"
_TOKEN_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who looks at the page. `csrf` goes with every change; `actor` into the audit log."""

    merchant: Merchant
    csrf: str
    actor: Actor
    record: DashboardSession


_SESSION: web.RequestKey[Session] = web.RequestKey("dashboard_session", Session)


def session_of(request: web.Request) -> Session:
    """Whose page this is; handlers behind `Guard.protect` always have one."""
    return request[_SESSION]


def is_part(request: web.Request) -> bool:
    """Does htmx ask, for a part of a page?"""
    return request.headers.get("HX-Request") == "true"


class Guard:
    """Lets the signed-in in. `public_url` is how browsers may know this installation beside the host that they ask for."""

    def __init__(self, sessions: DashboardSessions, catalog: CatalogStore, keys: SecretKeyStore, public_url: str) -> None:
        self._sessions = sessions
        self._catalog = catalog
        self._keys = keys
        self._public = urlsplit(public_url)

    def protect(self, routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
        """The same routes for the signed-in only; others are asked to sign in and come back."""
        return [web.route(route.method, route.path, self._guarded(cast(Handler, route.handler))) for route in routes]

    def _guarded(self, handler: Handler) -> Handler:
        async def run(request: web.Request) -> web.StreamResponse:
            session = await self.session(request)
            if session is None:
                return _to_sign_in(request)
            if request.method not in ("GET", "HEAD"):
                await self._check_change(request, session)
            request[_SESSION] = session
            return await handler(request)

        return run

    async def session(self, request: web.Request) -> Session | None:
        """The living session of a request's cookie. One that began with a secret key ends with it."""
        token = request.cookies.get(SESSION_COOKIE, "")
        if not 0 < len(token) <= _TOKEN_CHARS_MAX or not token.isascii():
            return None
        record = await self._sessions.find(token)
        if record is None:
            return None
        key_id = record.secret_key_id
        if key_id is not None and not await self._keys.is_valid(record.merchant_id, key_id):
            await self._sessions.end(token)
            return None
        try:
            merchant = await self._catalog.merchant(record.merchant_id)
        except NotFound:
            return None
        name = f"Key {record.key_hint}" if key_id is not None else "One-time link"
        return Session(
            merchant=merchant,
            csrf=record.csrf,
            actor=Actor(kind="session", id=key_id or record.session_id, name=name),
            record=record,
        )

    def check_origin(self, request: web.Request) -> None:
        """Raises Forbidden for a change that another site's page asks for. Programs send no Origin; browsers do."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and urlsplit(origin).netloc not in (request.host, self._public.netloc):
            raise Forbidden("This form was sent from another site; nothing was changed.", code="wrong_origin")

    def admit(self, request: web.Request, response: web.StreamResponse, token: str) -> None:
        """Put a session's cookie on an answer."""
        response.set_cookie(
            SESSION_COOKIE, token, max_age=LIFE_S, path="/", httponly=True, samesite="Lax", secure=self.is_secure(request)
        )

    def dismiss(self, request: web.Request, response: web.StreamResponse) -> None:
        """Take the session's cookie away."""
        response.del_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="Lax", secure=self.is_secure(request))

    def is_secure(self, request: web.Request) -> bool:
        """Do browsers come by https? TLS ends in front of us, so the public address or the proxy says it."""
        return self._public.scheme == "https" or request.headers.get("X-Forwarded-Proto", "").lower() == "https"

    async def _check_change(self, request: web.Request, session: Session) -> None:
        self.check_origin(request)
        sent = request.headers.get("X-CSRF-Token")
        if sent is None:
            field = (await posted_form(request)).get("csrf", "")
            sent = field if isinstance(field, str) else ""
        if not hmac.compare_digest(sent.encode("utf-8", "replace"), session.csrf.encode()):
            raise Forbidden("This form is from another session; load the page again. Nothing was changed.", code="wrong_csrf_token")


class View:
    """Renders the dashboard's pages for the signed-in."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def page(
        self, request: web.Request, template: str, slug: str, *, status: int = 200, form_target: str = "", **values: Any
    ) -> web.Response:
        """A whole page; `template` lies under templates/dashboard, `slug` is the entry of NAVIGATION that it belongs to."""
        notice = _notice_of(request)
        response = self._pages.page(
            request,
            f"dashboard/{template}",
            {**self._common(request), "page": slug, "notice": notice, **values},
            status=status,
            form_target=form_target,
        )
        if notice is not None:
            response.del_cookie(_NOTICE_COOKIE, path="/dashboard")
        return response

    def part(
        self, request: web.Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
    ) -> web.Response:
        """A part of a page, for htmx to put in its place."""
        return self._pages.page(
            request, f"dashboard/{template}", {**self._common(request), "page": None, **values}, status=status, headers=headers
        )

    def redirect(self, request: web.Request, path: str, notice: str | None = None, tone: Tone = "good") -> web.Response:
        """After a change: on to a page, which then shows the notice once. htmx is told so in its own header."""
        is_htmx = is_part(request)
        response = web.Response(status=204 if is_htmx else 303, headers={"HX-Redirect" if is_htmx else hdrs.LOCATION: path})
        if notice is not None:
            value = base64.urlsafe_b64encode(orjson.dumps([tone, notice])).decode()
            response.set_cookie(_NOTICE_COOKIE, value, max_age=_NOTICE_S, path="/dashboard", httponly=True, samesite="Lax")
        return response

    def _common(self, request: web.Request) -> dict[str, Any]:
        session = session_of(request)
        return {"merchant": session.merchant, "csrf": session.csrf, "navigation": NAVIGATION}


def _notice_of(request: web.Request) -> tuple[Tone, str] | None:
    """What a redirect wanted to be said here."""
    value = request.cookies.get(_NOTICE_COOKIE)
    if value is None:
        return None
    try:
        tone, text = orjson.loads(base64.urlsafe_b64decode(value))
    except (ValueError, TypeError):  # cookies are the visitor's
        return None
    return ("bad" if tone == "bad" else "good", str(text)[:500])


def _to_sign_in(request: web.Request) -> web.Response:
    """To the sign-in page, and back afterwards to the page that was asked for."""
    target = _SIGN_IN
    if request.method == "GET" and not is_part(request):
        target = f"{_SIGN_IN}?next={quote(request.path_qs)}"
    if is_part(request):
        return web.Response(status=204, headers={"HX-Redirect": target})
    return web.Response(status=303, headers={hdrs.LOCATION: target})
