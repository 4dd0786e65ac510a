"""/auth/connect: a program on the visitor's machine asks for a secret key; the visitor says yes, and it gets a one-time code.

The program listens on a port of 127.0.0.1 and exchanges the code at POST /v1/auth/callback. `state` is its own and goes back to it.
"""

from __future__ import annotations

from urllib.parse import urlencode

from aiohttp import hdrs, web

from lava_proxy.domain.errors import CallerError
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.login_codes import Login, LoginCodes
from lava_proxy.web.dashboard.frame import View, session_of

_STATE_CHARS_MAX = 1000


class Connect:
    """The page and its answer."""

    def __init__(self, view: View, codes: LoginCodes, audit_log: AuditLog) -> None:
        self._view = view
        self._codes = codes
        self._audit_log = audit_log

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/auth/connect", self.page), web.get("/auth/cli", self.page), web.post("/auth/connect", self.approve)
        ]  # fmt: skip

    async def page(self, request: web.Request) -> web.StreamResponse:
        port, state = _asked(request)
        return self._view.page(request, "connect.html", "connect", port=port, state=state, form_target=f"http://127.0.0.1:{port}")

    async def approve(self, request: web.Request) -> web.StreamResponse:
        """On to the program with a code that is good once, for a minute."""
        port, state = _asked(request)
        session = session_of(request)
        merchant_id = session.merchant.merchant_id
        await self._audit_log.note(merchant_id, session.actor, "cli.connect", merchant_id, after={"port": port})
        code = await self._codes.create(Login(merchant_id=merchant_id, account_id=merchant_id))
        target = f"http://127.0.0.1:{port}/callback?{urlencode({'code': code, 'state': state})}"
        return web.Response(status=303, headers={hdrs.LOCATION: target, hdrs.CACHE_CONTROL: "no-store"})


def _asked(request: web.Request) -> tuple[int, str]:
    """The port and the state. Raises CallerError for what is none."""
    port, state = request.query.get("port", ""), request.query.get("state", "")
    problems = []
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        problems.append("port must be a number from 1 to 65535: the one that the program listens on.")
    if not 0 < len(state) <= _STATE_CHARS_MAX or not state.isprintable():
        problems.append(f"state must be 1 to {_STATE_CHARS_MAX} printable characters: the program's own.")
    if problems:
        raise CallerError(" ".join(problems), code="invalid_parameter")
    return int(port), state
