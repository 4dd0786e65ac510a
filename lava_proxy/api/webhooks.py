"""/v1/webhooks: where a merchant's events are sent, the log of what was sent, a test and a replay."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import AfterValidator, Field

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import PageQuery
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.operations import Answer, Body, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.billing.webhook_trial import send_test
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.webhooks import EVENT_TYPES, DeliveryState, Vocabulary, WebhookStatus, event_name, newest_name
from lava_proxy.notify.webhook_client import URL_CHARS_MAX, WebhookClient, url_problem
from lava_proxy.stores.webhook_store import LoggedDelivery, Webhook, WebhookStore

NAME_CHARS_MAX = 255
_TAG = "Webhooks"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("accepted are printable characters")
    return text


def _url(text: str) -> str:
    """The form alone; whether http and private addresses are allowed is the installation's to say."""
    problem = url_problem(text, allow_private=True)
    if problem is not None:
        raise ValueError(problem)
    return text


def _known_events(events: list[str] | None) -> list[str] | None:
    """The newest names, each once, in the order of EVENT_TYPES."""
    if events is None:
        return None
    unknown = [name for name in events if newest_name(name) not in EVENT_TYPES]
    if unknown:
        raise ValueError(f"{unknown[0][:60]!r} is no event; known are {', '.join(EVENT_TYPES)} (or connection. for customer.)")
    selected = {newest_name(name) for name in events}
    return [name for name in EVENT_TYPES if name in selected]


Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX), AfterValidator(_printable)]
Url = Annotated[str, Field(min_length=1, max_length=URL_CHARS_MAX), AfterValidator(_url)]
Events = Annotated[list[str] | None, Field(min_length=1, max_length=100), AfterValidator(_known_events)]


class NewWebhook(Body):
    """`events` null: all, those of later versions included."""

    name: Name
    url: Url
    events: Events = None
    vocabulary: Vocabulary = "customer"
    status: WebhookStatus = "active"


class WebhookChanges(Body):
    """Only sent fields change."""

    name: Name = ""
    url: Url = ""
    events: Events = None
    vocabulary: Vocabulary = "customer"
    status: WebhookStatus = "active"


class WebhooksQuery(PageQuery):
    prefix: ClassVar[str] = "wh"


class DeliveryQuery(PageQuery):
    prefix: ClassVar[str] = "dlv"

    state: DeliveryState | None = None


class WebhookAnswer(Answer):
    webhook_id: str
    name: str
    url: str
    vocabulary: Vocabulary
    events: list[str] | None
    status: WebhookStatus
    disabled_reason: Literal["merchant", "gone", "failing"] | None
    created_at: str


class WebhookSecretAnswer(WebhookAnswer):
    """With the secret, which is shown only here."""

    webhook_secret: str


class RotatedAnswer(WebhookSecretAnswer):
    previous_secret_expires_at: str


class WebhookListAnswer(Answer):
    data: list[WebhookAnswer]
    has_more: bool


class DeletedAnswer(Answer):
    id: str
    deleted: Literal[True]


class DeliveryAnswer(Answer):
    delivery_id: str
    event_id: str
    event: str
    subject_id: str | None
    sequence: int
    state: DeliveryState
    tries: int
    next_try_at: str | None
    last_status_code: int | None
    last_error: str | None
    response_excerpt: str
    attempts: list[dict[str, Any]]
    created_at: str
    ended_at: str | None


class DeliveryListAnswer(Answer):
    data: list[DeliveryAnswer]
    has_more: bool


class Webhooks:
    """The webhook resource."""

    def __init__(self, store: WebhookStore, client: WebhookClient, clock: Callable[[], datetime], audit: Audit) -> None:
        self._store = store
        self._client = client
        self._audit = audit
        self._clock = clock

    def operations(self) -> list[Operation]:
        base, one = "/v1/webhooks", "/v1/webhooks/{webhook}"
        log = one + "/deliveries"
        return [
            Operation(
                method="GET", path=base, handler=self.many, tag=_TAG, summary="List webhooks", query=WebhooksQuery,
                answer=WebhookListAnswer,
            ),
            Operation(
                method="POST", path=base, handler=self.create, tag=_TAG, summary="Create a webhook", body=NewWebhook,
                answer=WebhookSecretAnswer, status=201,
            ),
            Operation(method="GET", path=one, handler=self.one, tag=_TAG, summary="Get a webhook", answer=WebhookAnswer),
            Operation(
                method="PATCH", path=one, handler=self.update, tag=_TAG, summary="Change a webhook", body=WebhookChanges,
                answer=WebhookAnswer,
            ),
            Operation(method="DELETE", path=one, handler=self.delete, tag=_TAG, summary="Delete a webhook", answer=DeletedAnswer),
            Operation(
                method="POST", path=one + "/rotate", handler=self.rotate, tag=_TAG,
                summary="Give a webhook a new secret; the old one signs beside it for 24 hours", answer=RotatedAnswer,
            ),
            Operation(
                method="POST", path=one + "/test", handler=self.test, tag=_TAG,
                summary="Send a webhook.test event now and answer with what became of it", answer=DeliveryAnswer,
            ),
            Operation(
                method="GET", path=log, handler=self.deliveries, tag=_TAG, summary="List a webhook's deliveries, newest first",
                query=DeliveryQuery, answer=DeliveryListAnswer,
            ),
            Operation(
                method="POST", path=log + "/{delivery}/replay", handler=self.replay, tag=_TAG,
                summary="Send a delivery again, with the same event id", answer=DeliveryAnswer,
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: WebhooksQuery) -> web.Response:
        """Newest first."""
        found = await self._store.webhooks(merchant_of(request).merchant_id, before=query.cursor, limit=query.limit + 1)
        return json_response(listing([webhook_object(webhook) for webhook in found], query.limit, "webhook_id"))

    async def create(self, request: web.Request, body: NewWebhook) -> web.Response:
        """With `webhook_secret`, which is shown only here and after a rotation."""
        self._check_url(body.url)
        made = await self._store.create(
            merchant_of(request).merchant_id,
            name=body.name,
            url=body.url,
            vocabulary=body.vocabulary,
            events=body.events,
            status=body.status,
            now=self._clock(),
        )
        return json_response(webhook_object(made) | {"webhook_secret": made.secret}, 201)

    async def one(self, request: web.Request) -> web.Response:
        return json_response(webhook_object(await self._found(request)))

    async def update(self, request: web.Request, body: WebhookChanges) -> web.Response:
        """Disabling ends what waits as failed; an endpoint that was enabled again is told what happens from then on."""
        changes = {name: getattr(body, name) for name in body.model_fields_set}
        if "url" in changes:
            self._check_url(body.url)
        if changes.get("events") is not None:
            changes["events"] = tuple(changes["events"])
        merchant_id, webhook_id = merchant_of(request).merchant_id, path_reference(request, "webhook")
        return json_response(webhook_object(await self._store.update(merchant_id, webhook_id, changes, self._clock())))

    async def delete(self, request: web.Request) -> web.Response:
        webhook = await self._found(request)
        webhook_id = webhook.webhook_id
        async with self._audit.transaction() as db:
            await self._store.delete(webhook.merchant_id, webhook_id, db=db)
            before = {"name": webhook.name, "url": webhook.url}
            await self._audit.note(db, request, "webhook.delete", webhook_id, before=before)
        return json_response({"id": webhook_id, "deleted": True})

    async def rotate(self, request: web.Request) -> web.Response:
        merchant_id, webhook_id = merchant_of(request).merchant_id, path_reference(request, "webhook")
        async with self._audit.transaction() as db:
            webhook, ends_at = await self._store.rotate(merchant_id, webhook_id, self._clock(), db=db)
            ends = {"previous_secret_expires_at": ends_at.isoformat()}
            await self._audit.note(db, request, "webhook.rotate", webhook_id, after=ends)
        shown = webhook_object(webhook) | {"webhook_secret": webhook.secret, "previous_secret_expires_at": timestamp(ends_at)}
        return json_response(shown)

    async def test(self, request: web.Request) -> web.Response:
        """One try, whatever the endpoint's status; a receiver's refusal is in the answer and disables nothing but by 410."""
        webhook = await self._found(request)
        logged = await send_test(self._store, self._client, webhook, self._clock)
        return json_response(delivery_object(logged, webhook.vocabulary))

    async def deliveries(self, request: web.Request, query: DeliveryQuery) -> web.Response:
        webhook = await self._found(request)
        found = await self._store.deliveries(
            webhook.merchant_id, webhook.webhook_id, before=query.cursor, limit=query.limit + 1, state=query.state
        )
        return json_response(listing([delivery_object(one, webhook.vocabulary) for one in found], query.limit, "delivery_id"))

    async def replay(self, request: web.Request) -> web.Response:
        """409 `webhook_disabled` for a disabled endpoint."""
        webhook = await self._found(request)
        delivery_id = path_reference(request, "delivery")
        logged = await self._store.replay(webhook.merchant_id, webhook.webhook_id, delivery_id, self._clock())
        return json_response(delivery_object(logged, webhook.vocabulary))

    async def _found(self, request: web.Request) -> Webhook:
        return await self._store.webhook(merchant_of(request).merchant_id, path_reference(request, "webhook"))

    def _check_url(self, url: str) -> None:
        problem = url_problem(url, allow_private=self._client.allow_private)
        if problem is not None:
            raise CallerError(f"url is {problem}; accepted is a public https address.", code="invalid_parameter")


def webhook_object(webhook: Webhook) -> dict[str, Any]:
    """The wire's object; the names of `events` are in the endpoint's vocabulary."""
    events = webhook.events
    return {
        "webhook_id": webhook.webhook_id,
        "name": webhook.name,
        "url": webhook.url,
        "vocabulary": webhook.vocabulary,
        "events": None if events is None else [event_name(name, webhook.vocabulary) for name in events],
        "status": webhook.status,
        "disabled_reason": webhook.disabled_reason,
        "created_at": timestamp(webhook.created_at),
    }


def delivery_object(logged: LoggedDelivery, vocabulary: Vocabulary) -> dict[str, Any]:
    """A line of the log."""
    return {
        "delivery_id": logged.delivery_id,
        "event_id": logged.event_id,
        "event": event_name(logged.event_type, vocabulary),
        "subject_id": logged.subject_id,
        "sequence": logged.sequence,
        "state": logged.state,
        "tries": logged.tries,
        "next_try_at": None if logged.next_try_at is None else timestamp(logged.next_try_at),
        "last_status_code": logged.last_status,
        "last_error": logged.last_error,
        "response_excerpt": logged.excerpt,
        "attempts": [
            {
                "at": timestamp(attempt.at),
                "try": attempt.number,
                "status_code": attempt.status,
                "error": attempt.error,
                "duration_ms": attempt.duration_ms,
            }
            for attempt in logged.attempts
        ],
        "created_at": timestamp(logged.created_at),
        "ended_at": None if logged.ended_at is None else timestamp(logged.ended_at),
    }
