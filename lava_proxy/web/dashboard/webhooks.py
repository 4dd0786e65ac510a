"""/dashboard/webhooks: where events are sent, what became of each, a test and a replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from aiohttp import web

from lava_proxy.billing.webhook_trial import send_test
from lava_proxy.domain.errors import Conflict, NotFound
from lava_proxy.domain.webhooks import EVENT_TYPES, DeliveryState, Outgoing, Vocabulary, event_name
from lava_proxy.notify.webhook_client import WebhookClient, url_problem
from lava_proxy.stores.webhook_store import Webhook, WebhookStore
from lava_proxy.web.dashboard.acts import Acts, is_id
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import checked
from lava_proxy.wire.texts import checked_name

DELIVERY_ROWS = 25
_BASE = "/dashboard/webhooks"
_LISTED_MAX = 100


class Webhooks:
    """The list, one endpoint with its log."""

    def __init__(self, view: View, acts: Acts, *, store: WebhookStore, client: WebhookClient) -> None:
        self._view = view
        self._acts = acts
        self._store = store
        self._client = client

    def routes(self) -> list[web.RouteDef]:
        one = _BASE + "/{webhook}"
        return [
            web.get(_BASE, self.many),
            web.get(_BASE + "/new", self.new),
            web.post(_BASE, self.create),
            web.get(one, self.one),
            web.post(one, self.change),
            web.post(one + "/status", self.switch),
            web.post(one + "/rotate", self.rotate),
            web.post(one + "/test", self.test),
            web.post(one + "/delete", self.delete),
            web.post(one + "/deliveries/{delivery}/replay", self.replay),
        ]

    async def many(self, request: web.Request) -> web.StreamResponse:
        merchant_id = session_of(request).merchant.merchant_id
        found = await self._store.webhooks(merchant_id, before=None, limit=_LISTED_MAX)
        return self._view.page(request, "webhooks.html", "webhooks", webhooks=found)

    async def new(self, request: web.Request) -> web.StreamResponse:
        form = Form({"vocabulary": "customer", "all_events": "yes"})
        return self._view.page(request, "webhook_new.html", "webhooks", form=form, event_types=EVENT_TYPES)

    async def create(self, request: web.Request) -> web.StreamResponse:
        """The secret is on this one answer and nowhere else."""
        form = await Form.read(request)
        read = self._read(form)
        if read is not None:
            try:
                async with self._acts.transaction() as db:
                    made = await self._store.create(
                        session_of(request).merchant.merchant_id, status="active", now=self._acts.now(), db=db, **read
                    )
                    await self._acts.note(db, request, "webhook.create", made.webhook_id, after=_facts(made))
            except Conflict as error:
                form.fail("url", error.message)
            else:
                return await self._page(request, made, shown=made.secret)
        return self._view.page(request, "webhook_new.html", "webhooks", form=form, event_types=EVENT_TYPES, status=422)

    async def one(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request, await self._found(request))

    async def change(self, request: web.Request) -> web.StreamResponse:
        webhook, form = await self._found(request), await Form.read(request)
        read = self._read(form)
        if read is None:
            return await self._page(request, webhook, form=form)
        async with self._acts.transaction() as db:
            changed = await self._store.update(webhook.merchant_id, webhook.webhook_id, read, self._acts.now(), db=db)
            await self._acts.note(
                db, request, "webhook.change", webhook.webhook_id, before=_facts(webhook), after=_facts(changed)
            )  # fmt: skip
        return self._back(request, webhook, "The endpoint has been changed.")

    async def switch(self, request: web.Request) -> web.StreamResponse:
        webhook, form = await self._found(request), await Form.read(request)
        status = form.choice("status", ("active", "disabled"))
        if status is None:
            raise NotFound("An endpoint is active or disabled.")
        action = "webhook.enable" if status == "active" else "webhook.disable"
        before, after = {"status": webhook.status}, {"status": status}
        async with self._acts.transaction() as db:
            await self._store.update(webhook.merchant_id, webhook.webhook_id, after, self._acts.now(), db=db)
            await self._acts.note(db, request, action, webhook.webhook_id, before=before, after=after)
        said = "Events are sent from now on." if status == "active" else "Nothing is sent any more; what waited has ended."
        return self._back(request, webhook, said)

    async def rotate(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._found(request)
        async with self._acts.transaction() as db:
            rotated, ends_at = await self._store.rotate(webhook.merchant_id, webhook.webhook_id, self._acts.now(), db=db)
            ends = {"previous_secret_expires_at": ends_at.isoformat()}
            await self._acts.note(db, request, "webhook.rotate", webhook.webhook_id, after=ends)
        return await self._page(request, rotated, shown=rotated.secret, previous_ends_at=ends_at)

    async def test(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._found(request)

        async def note(db: Any, outgoing: Outgoing) -> None:
            await self._acts.note(db, request, "webhook.test", webhook.webhook_id, after={"delivery_id": outgoing.delivery_id})

        logged = await send_test(self._store, self._client, webhook, self._acts.now, note=note)
        if logged.state == "delivered":
            return self._back(request, webhook, f"The receiver took the test event and answered {logged.last_status}.")
        why = logged.last_error or f"it answered {logged.last_status}"
        return self._view.redirect(request, f"{_BASE}/{webhook.webhook_id}", f"The test event did not arrive: {why}.", "bad")

    async def replay(self, request: web.Request) -> web.StreamResponse:
        webhook, delivery_id = await self._found(request), request.match_info["delivery"]
        if not is_id(delivery_id, "dlv"):
            raise NotFound("No delivery of this endpoint has this id.")
        try:
            async with self._acts.transaction() as db:
                await self._store.replay(webhook.merchant_id, webhook.webhook_id, delivery_id, self._acts.now(), db=db)
                await self._acts.note(db, request, "webhook.replay", webhook.webhook_id, after={"delivery_id": delivery_id})
        except Conflict as error:
            return self._view.redirect(request, f"{_BASE}/{webhook.webhook_id}", error.message, "bad")
        return self._back(request, webhook, "The event is being sent again, with the same id.")

    async def delete(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._found(request)
        async with self._acts.transaction() as db:
            await self._store.delete(webhook.merchant_id, webhook.webhook_id, db=db)
            await self._acts.note(db, request, "webhook.delete", webhook.webhook_id, before=_facts(webhook))
        return self._view.redirect(request, _BASE, "The endpoint has been deleted, with its log.")

    # -- helpers

    async def _found(self, request: web.Request) -> Webhook:
        identifier = request.match_info["webhook"]
        if not is_id(identifier, "wh"):
            raise NotFound("No webhook of yours has this id.")
        return await self._store.webhook(session_of(request).merchant.merchant_id, identifier)

    def _back(self, request: web.Request, webhook: Webhook, notice: str) -> web.Response:
        return self._view.redirect(request, f"{_BASE}/{webhook.webhook_id}", notice)

    async def _page(self, request: web.Request, webhook: Webhook, *, form: Form | None = None, **shown: Any) -> web.Response:
        before, state = request.query.get("cursor", ""), request.query.get("state", "")
        cursor = before if is_id(before, "dlv") else None
        kept = cast(DeliveryState, state) if state in get_args(DeliveryState) else None
        found = await self._store.deliveries(
            webhook.merchant_id, webhook.webhook_id, before=cursor, limit=DELIVERY_ROWS + 1, state=kept
        )
        address, more = f"{_BASE}/{webhook.webhook_id}", len(found) > DELIVERY_ROWS
        filtered = f"?state={kept}" if kept else "?"
        values: dict[str, Any] = {"shown": None, "previous_ends_at": None, **shown}
        return self._view.page(
            request,
            "webhook.html",
            "webhooks",
            status=422 if form is not None else 200,
            webhook=webhook,
            form=form or _form_of(webhook),
            event_types=EVENT_TYPES,
            event_name=event_name,
            deliveries=found[:DELIVERY_ROWS],
            state=kept or "",
            first=address if cursor else "",
            next=f"{address}{filtered}&cursor={found[DELIVERY_ROWS - 1].delivery_id}" if more else "",
            **values,
        )

    def _read(self, form: Form) -> dict[str, Any] | None:
        """name, url, vocabulary, events as typed; None when something was wrong."""
        name, vocabulary = checked(form, "name", checked_name), form.choice("vocabulary", get_args(Vocabulary))
        url = form.text("url", chars_max=2048)
        if url is not None:
            problem = url_problem(url, allow_private=self._client.allow_private)
            if problem is not None:
                form.fail("url", f"This is {problem}; a public https address is needed.")
        chosen = form.all("events")
        events = None if form.value("all_events") == "yes" else tuple(one for one in EVENT_TYPES if one in chosen)
        if events == ():
            form.fail("events", "Choose at least one event, or all of them.")
        return {"name": name, "url": url, "vocabulary": vocabulary, "events": events} if form.is_good else None


def _form_of(webhook: Webhook) -> Form:
    form = Form(
        {
            "name": webhook.name, "url": webhook.url, "vocabulary": webhook.vocabulary,
            "all_events": "yes" if webhook.events is None else "no",
        }
    )  # fmt: skip
    form.lists["events"] = list(webhook.events or ())
    return form


def _facts(webhook: Webhook) -> Mapping[str, Any]:
    return {
        "name": webhook.name, "url": webhook.url, "vocabulary": webhook.vocabulary, "status": webhook.status,
        "events": None if webhook.events is None else list(webhook.events),
    }  # fmt: skip
