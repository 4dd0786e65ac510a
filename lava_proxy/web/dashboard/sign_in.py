"""Sign-in: with a secret key, or by /dashboard/enter/{code} with a one-time link; and out again, here or everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import unquote

from aiohttp import hdrs, web

from lava_proxy.domain.errors import LimitExceeded, StoreError
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.call_counts import WINDOW_S, CallCounts
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.dashboard_store import DashboardStore
from lava_proxy.stores.secret_key_store import SecretKeyStore
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import SESSION_COOKIE, Guard, View, session_of
from lava_proxy.web.pages import Pages
from lava_proxy.wire.public_address import client_address

# Keys are 320 random bits, so nobody guesses one; the bound keeps those who try from costing anything. It is an address' own:
# nobody can keep others from signing in.
FAILURES_PER_MINUTE = 30
_KEY_CHARS_MAX = 200
_NEXT = re.compile(r"/(dashboard|auth/connect)([/?][^\\]*)?")


class SignIn:
    """Begins and ends sessions."""

    def __init__(
        self,
        pages: Pages,
        view: View,
        guard: Guard,
        sessions: DashboardSessions,
        keys: SecretKeyStore,
        counts: CallCounts,
        audit_log: AuditLog,
        store: DashboardStore,
        command: Callable[[str], str],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`command` makes of arguments a command of this program to paste on the server."""
        self._pages = pages
        self._store = store
        self._command = command
        self._view = view
        self._guard = guard
        self._sessions = sessions
        self._keys = keys
        self._counts = counts
        self._audit_log = audit_log
        self._clock = clock

    def open_routes(self) -> list[web.RouteDef]:
        """For everybody."""
        return [
            web.get("/dashboard/sign-in", self.page),
            web.post("/dashboard/sign-in", self.with_key),
            web.get("/dashboard/enter/{code}", self.with_link),
        ]

    def routes(self) -> list[web.RouteDef]:
        """For the signed-in."""
        return [web.post("/dashboard/sign-out", self.out), web.post("/dashboard/sign-out-everywhere", self.out_everywhere)]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Those who are signed in go on at once."""
        target = _next_of(request.query.get("next", ""))
        if await self._guard.session(request) is not None:
            return web.Response(status=303, headers={hdrs.LOCATION: target})
        return await self._page(request, Form({"next": target}))

    async def with_key(self, request: web.Request) -> web.StreamResponse:
        """A session of the key's merchant; it ends with the key."""
        self._guard.check_origin(request)
        form = await Form.read(request)
        target = _next_of(form.value("next"))
        secret = form.value("secret_key").strip()
        found = None
        if not secret:
            form.fail("secret_key", "Paste a secret key; it begins with aks_.")
        elif secret.startswith("lava_sk_"):
            form.fail("secret_key", "This is a spend key, which only makes model calls; a secret key begins with aks_.")
        elif await self._too_many(request, count=False):
            raise LimitExceeded("Too many sign-ins failed in the last minute; wait a moment.", retry_after_s=WINDOW_S)
        else:
            found = await self._keys.by_secret(secret) if len(secret) <= _KEY_CHARS_MAX and secret.isprintable() else None
            if found is None:
                await self._too_many(request, count=True)
                form.fail("secret_key", "This key is not known here, or it was revoked.")
        if found is None:
            form.values.pop("secret_key", None)
            return await self._page(request, form, status=422)
        merchant_id, key = found
        await self._leave(request)
        token = await self._sessions.begin(merchant_id, secret_key_id=key.secret_key_id, key_hint=key.hint)
        return self._welcome(request, token, target)

    async def with_link(self, request: web.Request) -> web.StreamResponse:
        """A session of the merchant that the link was made for; a second use finds nothing."""
        code = request.match_info["code"]
        merchant_id = await self._sessions.take_link(code) if len(code) <= _KEY_CHARS_MAX else None
        if merchant_id is None:
            form = Form({"next": "/dashboard"})
            form.fail("link", "This link was used or is too old. Make another one as it says below, or use a key.")
            return await self._page(request, form, status=410)
        await self._leave(request)
        return self._welcome(request, await self._sessions.begin(merchant_id), "/dashboard")

    async def out(self, request: web.Request) -> web.StreamResponse:
        await self._leave(request)
        return self._left(request)

    async def out_everywhere(self, request: web.Request) -> web.StreamResponse:
        """All sessions of this merchant end, also those of others."""
        session = session_of(request)
        merchant_id = session.merchant.merchant_id
        await self._audit_log.note(merchant_id, session.actor, "session.end_all", merchant_id)
        await self._sessions.end_all(merchant_id)
        return self._left(request)

    async def _page(self, request: web.Request, form: Form, *, status: int = 200) -> web.Response:
        """On a new installation there is nobody to sign in as: then it says how to begin."""
        try:
            is_new = not await self._store.has_merchant()
        except StoreError:  # keys are not known now either, which the form will say
            is_new = False
        command = self._command('merchant create --name "My company"' if is_new else "dashboard link")
        values = {"form": form, "csrf": "", "is_new": is_new, "command": command}
        return self._pages.page(request, "dashboard/sign_in.html", values, status=status)

    async def _leave(self, request: web.Request) -> None:
        """End the session that the browser had: a new one gets a new token."""
        token = request.cookies.get(SESSION_COOKIE)
        if token:
            await self._sessions.end(token)

    def _welcome(self, request: web.Request, token: str, target: str) -> web.Response:
        response = web.Response(status=303, headers={hdrs.LOCATION: target})
        self._guard.admit(request, response, token)
        return response

    def _left(self, request: web.Request) -> web.Response:
        response = self._view.redirect(request, "/dashboard/sign-in")
        self._guard.dismiss(request, response)
        return response

    async def _too_many(self, request: web.Request, *, count: bool) -> bool:
        """Have too many failed from there in this minute? Not known while Redis is away, when nobody gets in anyway."""
        name, now_s = f"sign-in-failed:{client_address(request.headers)}", int(self._clock().timestamp())
        if count:
            await self._counts.count(name, now_s)
            return False
        return (await self._counts.read(name, now_s)) >= FAILURES_PER_MINUTE


def _next_of(text: str) -> str:
    """Where to go afterwards: a page of ours, whatever the address said."""
    is_ours = _NEXT.fullmatch(text) and text.isprintable() and len(text) <= 2000
    # Browsers resolve dot segments, also escaped ones, and what is left may be another site's address.
    segments = unquote(text.partition("?")[0]).split("/")[1:]
    return text if is_ours and not {".", ".."}.intersection(segments) and "" not in segments[:-1] else "/dashboard"
