"""/dashboard/audit: who changed what, newest first."""

from __future__ import annotations

from urllib.parse import urlencode

from aiohttp import web

from lava_proxy.domain.usage_window import parse_moment
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of

PAGE_ROWS = 50
_FILTERS = ("who", "action", "object", "from", "to")


class AuditPage:
    """The list; entries cannot be changed."""

    def __init__(self, view: View, audit_log: AuditLog) -> None:
        self._view = view
        self._audit_log = audit_log

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/dashboard/audit", self.page)]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Filtered by who did it, what was done, to what, and when."""
        merchant_id = session_of(request).merchant.merchant_id
        given = {name: value for name in (*_FILTERS, "before") if (value := request.query.get(name, "").strip())}
        form = Form({name: given.get(name, "") for name in _FILTERS})
        for name, value in given.items():
            if len(value) > 255 or not value.isprintable():
                form.fail(name, "At most 255 printable characters.")
        moments = {}
        for name in ("from", "to"):
            if name in given and form.is_good:
                try:
                    moment = parse_moment(given[name])
                    moments[name] = moment.at if name == "from" else moment.after
                except ValueError as error:
                    form.fail(name, f"This is no time: {error}.")
        entries = []
        if form.is_good:
            entries = await self._audit_log.many(
                merchant_id, before=given.get("before"), limit=PAGE_ROWS + 1, actor_name=given.get("who"),
                action=given.get("action"), object_id=given.get("object"), start=moments.get("from"), end=moments.get("to"),
            )  # fmt: skip
        before = given.pop("before", None)
        shown = entries[:PAGE_ROWS]
        more = urlencode({**given, "before": shown[-1].audit_id}) if len(entries) > PAGE_ROWS else ""
        return self._view.page(
            request, "audit.html", "audit", status=200 if form.is_good else 422, form=form, entries=shown,
            actions=_choices(await self._audit_log.actions(merchant_id)), actors=await self._audit_log.actor_names(merchant_id),
            is_filtered=bool(given),
            next=f"/dashboard/audit?{more}" if more else "", first=f"/dashboard/audit?{urlencode(given)}" if before else "",
        )  # fmt: skip


def _choices(actions: list[str]) -> list[tuple[str, str]]:
    """(value, text) of what can be asked for: each kind of object with its actions behind it."""
    found: list[tuple[str, str]] = []
    for action in actions:
        kind = action.partition(".")[0]
        if (kind, f"{kind}: anything") not in found:
            found.append((kind, f"{kind}: anything"))
        found.append((action, action))
    return found
