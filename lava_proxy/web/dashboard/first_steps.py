"""The first steps of a merchant, from an empty account to a call that a customer pays for, ticked off as they are done.

They stand on the overview until the last one is done, or until they are hidden.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from lava_proxy.providers.registry import Registry
from lava_proxy.stores.dashboard_store import DashboardStore, Progress
from lava_proxy.web.dashboard.frame import View, session_of

_COOKIE = "lava_steps"
_HIDDEN_S = 31_536_000
_LEAVE_POLLING = 286  # to htmx: show this, and ask no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`href` is empty while an earlier step is in the way."""

    name: str
    title: str
    text: str
    action: str
    href: str
    is_done: bool


class FirstSteps:
    """The card on the overview, the part that keeps it up to date, and the buttons that hide it and bring it back."""

    def __init__(
        self,
        view: View,
        store: DashboardStore,
        registry: Registry,
        *,
        own_keys: Collection[str] = (),
        sandboxed: Collection[str] = (),
    ) -> None:
        """`own_keys`: providers for which the installation has a key; `sandboxed`: those for which it answers itself."""
        self._view = view
        self._store = store
        self._own_keys = own_keys
        self._sandboxed = sandboxed
        attached = [provider.name for provider in registry.providers if provider.override is not None]
        self._attached = [name for name in attached if name not in sandboxed]

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/dashboard/steps", self.part), web.post("/dashboard/steps/hide", self.hide)]

    async def values(self, request: web.Request) -> dict[str, Any]:
        """What the overview shows of them: `steps` (none when there is nothing to show) and whether there would be some."""
        progress = await self._store.progress(session_of(request).merchant.merchant_id)
        is_hidden = request.cookies.get(_COOKIE) == "hidden" and request.query.get("steps") != "show"
        steps = () if progress.has_call or is_hidden else self._steps(progress)
        return {**_counted(steps), "has_hidden_steps": is_hidden and not progress.has_call}

    def note_shown(self, request: web.Request, response: web.StreamResponse) -> None:
        """Forget that they were hidden, where the visitor asks for them."""
        if request.query.get("steps") == "show":
            response.del_cookie(_COOKIE, path="/dashboard", httponly=True, samesite="Lax")

    async def part(self, request: web.Request) -> web.StreamResponse:
        """The card, when more is done than `done` says, else nothing; the last time when all of it is."""
        progress = await self._store.progress(session_of(request).merchant.merchant_id)
        steps = self._steps(progress)
        if progress.has_call:
            return self._view.part(request, "first_steps.html", status=_LEAVE_POLLING, **{**_counted(steps), "is_over": True})
        values = _counted(steps)
        if request.query.get("done") == str(values["steps_done"]):
            return web.Response(status=204)
        return self._view.part(request, "first_steps.html", **values)

    async def hide(self, request: web.Request) -> web.StreamResponse:
        """For this browser, until it asks for them again."""
        response = self._view.redirect(request, "/dashboard")
        response.set_cookie(_COOKIE, "hidden", max_age=_HIDDEN_S, path="/dashboard", httponly=True, samesite="Lax")
        return response

    def _steps(self, progress: Progress) -> tuple[Step, ...]:
        newest = f"/dashboard/customers/{progress.customer_id}" if progress.customer_id else ""
        payer = f"/dashboard/customers/{progress.funded_id}" if progress.funded_id else newest
        has_key = bool(progress.provider_keys or self._own_keys or self._sandboxed)
        return (
            Step(
                name="provider",
                title="A key for a provider",
                text=self._provider_text(progress),
                action="Store a key",
                href="/dashboard/keys#provider",
                is_done=has_key or progress.has_call,
            ),
            Step(
                name="meter",
                title="A meter: what you charge",
                text="So much for a million tokens, for a minute, for a call, or a part on top of what the provider takes.",
                action="Make a meter",
                href="/dashboard/meters/new",
                is_done=progress.has_meter or progress.has_call,
            ),
            Step(
                name="customer",
                title="A customer: who pays",
                text="Somebody with a balance of their own. Add one by hand; later your program does, or a checkout.",
                action="Add a customer",
                href="/dashboard/customers/new",
                is_done=progress.customer_id is not None or progress.has_call,
            ),
            Step(
                name="funds",
                title="Something to spend",
                text="A call that the balance does not cover is refused before it is made. Add to the balance by hand, or send "
                "the customer a checkout link.",
                action="Add to the balance",
                href=f"{newest}#adjust" if newest else "",
                is_done=progress.funded_id is not None or progress.has_call,
            ),
            Step(
                name="call",
                title="The first call",
                text="The customer's page has the code to paste, for curl, Python and Node. Follow the call under Requests.",
                action="Show the code",
                href=f"{payer}#token" if payer else "",
                is_done=progress.has_call,
            ),
        )

    def _provider_text(self, progress: Progress) -> str:
        if progress.provider_keys:
            return f"Stored: {', '.join(progress.provider_keys)}."
        if self._sandboxed:
            return f"The built-in sandbox answers for {_listed(self._sandboxed)}: no key is needed, and no model is really called."
        if self._own_keys:
            return f"This installation has a key for {_listed(self._own_keys)}."
        text = "Models are called with your own key. It is sealed when it is stored, and never shown again."
        if self._attached:
            text += f" Calls to {_listed(self._attached)} go to another address here, which may need none."
        return text


def _counted(steps: Collection[Step]) -> dict[str, Any]:
    undone = [step.name for step in steps if not step.is_done]
    return {"steps": steps, "steps_done": len(steps) - len(undone), "next_step": undone[0] if undone else "", "is_over": False}


def _listed(names: Collection[str]) -> str:
    """a, b and c."""
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last}" if others else last
