"""The client for asyncio: `AsyncLavaClient` and its resources.

`sync_client.py` is made from this file, word by word, by tests/client_twin.py: change this one and run that.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self, Unpack, cast
from urllib.parse import quote

import httpx

from lava_proxy.client import objects as o
from lava_proxy.client.errors import ConnectionFailed, api_error
from lava_proxy.client.retries import RETRIES_MAX, may_repeat, wait_after_answer, wait_after_failure
from lava_proxy.wire.forward_token import mint

TIMEOUT_S = 60
PAGE_ITEMS = 100  # what `iterate` asks for at a time: the most that the API gives


class AsyncLavaClient:
    """Everything that a secret key may do. `base_url` ends in `/v1/`, as the daemon prints it; a missing slash is added.

    Refusals raise the classes of `errors.py`. 429 and 503 are tried again `retries_max` times, as Retry-After says; so are requests
    that got no answer. Use it as a context manager, or close it. `http` (an own httpx client) stays open.
    """

    def __init__(
        self,
        secret_key: str,
        *,
        base_url: str,
        retries_max: int = RETRIES_MAX,
        timeout_s: int = TIMEOUT_S,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        if not secret_key:
            raise ValueError("a secret key (aks_...) is needed")
        self.base_url = base_url if base_url.endswith("/") else base_url + "/"
        self._secret_key = secret_key
        self._retries_max = retries_max
        self._http = http or httpx.AsyncClient(timeout=timeout_s)
        self._is_ours = http is None
        self.customers = Customers(self)
        self.meters = Meters(self)
        self.requests = Requests(self)
        self.usage = UsageResource(self)
        self.webhooks = Webhooks(self)
        self.secret_keys = SecretKeys(self)
        self.spend_keys = SpendKeys(self)
        self.models = Models(self)
        self.plans = Plans(self)
        self.subscriptions = Subscriptions(self)
        self.credit_bundles = CreditBundles(self)
        self.checkout_sessions = CheckoutSessions(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._is_ours:
            await self._http.aclose()

    def generate_forward_token(
        self,
        *,
        customer_id: str | None = None,
        meter_slug: str | None = None,
        provider_key: str | None = None,
        disable_billing: bool | None = None,
    ) -> str:
        """What a provider's SDK takes as its API key. Without a customer your own wallet pays. It contains your secret key."""
        if customer_id is not None and meter_slug is None:
            raise ValueError("customer_id needs meter_slug: the meter is the price")
        return mint(self._secret_key, customer_id, meter_slug, provider_key, disable_billing)

    def provider_url(self, provider: str) -> str:
        """The address under which a provider's own paths are: `provider_url("openai") + "/v1"` is OpenAI's base URL."""
        return f"{self.base_url}forward/{quote(provider, safe='')}"

    async def wallet(self) -> o.Wallet:
        """Your own wallet, which bare keys, spend keys and tokens without a customer draw on."""
        return cast(o.Wallet, await self.call("GET", "wallet"))

    async def call(
        self, method: str, path: str, *, body: object = None, query: Mapping[str, object] | None = None, key: str | None = None
    ) -> Any:
        """The JSON of any operation; numbers with a point as Decimals. `key`: the Idempotency-Key (default for POST: a new one)."""
        content = await self._content(method, path, body=body, query=query, key=key)
        return json.loads(content, parse_float=Decimal)

    async def text(self, path: str, query: Mapping[str, object]) -> str:
        """A download, such as CSV."""
        return (await self._content("GET", path, body=None, query=query, key=None)).decode()

    async def _content(self, method: str, path: str, *, body: object, query: Mapping[str, object] | None, key: str | None) -> bytes:
        headers = {"Authorization": f"Bearer {self._secret_key}"}
        content = None if body is None else json.dumps(body, default=_plain).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        if method == "POST":
            headers["Idempotency-Key"] = key or str(uuid.uuid4())
        parameters = {name: str(value) for name, value in (query or {}).items() if value is not None}
        retries = 0
        while True:
            try:
                answer = await self._http.request(
                    method, self.base_url + path, params=parameters or None, content=content, headers=headers
                )
            except httpx.TransportError as error:
                has_connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if retries >= self._retries_max or not may_repeat(method, has_connected):
                    raise ConnectionFailed(f"{method} {path}: {type(error).__name__}: {error}") from error
                wait_ms = wait_after_failure(retries, random.randint(0, 1000))
            else:
                if answer.is_success:
                    return answer.content
                told_ms = wait_after_answer(answer.status_code, answer.headers, answer.content, retries, random.randint(0, 1000))
                if told_ms is None or retries >= self._retries_max:
                    raise api_error(answer.status_code, answer.content)
                wait_ms = told_ms
            retries += 1
            await asyncio.sleep(wait_ms / 1000)

    async def iterate(self, path: str, query: Mapping[str, object]) -> AsyncIterator[Any]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            page = await self.call("GET", path, query={**query, "limit": PAGE_ITEMS, "cursor": cursor})
            for item in page["data"]:
                yield item
            cursor = page.get("next_cursor")
            if not cursor:
                return


async def exchange_auth_code(code: str, *, base_url: str) -> dict[str, str]:
    """A secret key (and ids) for the one-time code of a sign-in in the browser; it is good for a minute."""
    address = f"{base_url.rstrip('/')}/auth/callback"
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as http:
        try:
            answer = await http.post(address, json={"code": code})
        except httpx.TransportError as error:
            raise ConnectionFailed(f"POST auth/callback: {type(error).__name__}: {error}") from error
    if not answer.is_success:
        raise api_error(answer.status_code, answer.content)
    return cast(dict[str, str], answer.json())


class Resource:
    """One kind of thing."""

    def __init__(self, client: AsyncLavaClient) -> None:
        self._client = client


class Customers(Resource):
    """Who pays."""

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[o.CustomerFields]) -> o.Customer:
        """The one with this `reference_id` where there is one."""
        return cast(o.Customer, await self._client.call("POST", "customers", body=fields, key=idempotency_key))

    async def list(self, *, cursor: str | None = None, limit: int | None = None) -> o.Page[o.Customer]:
        return cast(o.Page[o.Customer], await self._client.call("GET", "customers", query={"cursor": cursor, "limit": limit}))

    def iterate(self) -> AsyncIterator[o.Customer]:
        return self._client.iterate("customers", {})

    async def retrieve(self, customer: str) -> o.Customer:
        """By its id or reference_id."""
        return cast(o.Customer, await self._client.call("GET", f"customers/{_part(customer)}"))

    async def update(self, customer: str, **fields: Unpack[o.CustomerFields]) -> o.Customer:
        """Only the given fields change; None clears one."""
        return cast(o.Customer, await self._client.call("PATCH", f"customers/{_part(customer)}", body=fields))

    async def delete(self, customer: str) -> o.Done:
        return cast(o.Done, await self._client.call("DELETE", f"customers/{_part(customer)}"))

    async def subscription(self, customer: str) -> o.Subscription | None:
        answer = await self._client.call("GET", f"customers/{_part(customer)}/subscription")
        return cast(o.MaybeSubscription, answer)["subscription"]


class Meters(Resource):
    """Prices."""

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[o.NewMeter]) -> o.Meter:
        return cast(o.Meter, await self._client.call("POST", "meters", body=fields, key=idempotency_key))

    async def list(self, *, cursor: str | None = None, limit: int | None = None) -> o.Page[o.Meter]:
        return cast(o.Page[o.Meter], await self._client.call("GET", "meters", query={"cursor": cursor, "limit": limit}))

    def iterate(self) -> AsyncIterator[o.Meter]:
        return self._client.iterate("meters", {})

    async def retrieve(self, meter: str) -> o.Meter:
        """By its id or slug."""
        return cast(o.Meter, await self._client.call("GET", f"meters/{_part(meter)}"))

    async def update(self, meter: str, **fields: Unpack[o.MeterFields]) -> o.Meter:
        """New calls are charged by the new price."""
        return cast(o.Meter, await self._client.call("PATCH", f"meters/{_part(meter)}", body=fields))

    async def delete(self, meter: str) -> o.Deleted:
        return cast(o.Deleted, await self._client.call("DELETE", f"meters/{_part(meter)}"))


class Requests(Resource):
    """What each call used, cost and was charged; and reports of calls that went elsewhere."""

    async def report(self, **report: Unpack[o.Report]) -> o.Request:
        """Charge usage that did not pass the gateway; a repeat of the same `request_id` gets the first answer."""
        return cast(o.Request, await self._client.call("POST", "requests", body=report))

    async def report_many(self, reports: Sequence[o.Report]) -> list[o.ReportResult]:
        """One result a report, in their order: a bad one does not stop the others."""
        answer = await self._client.call("POST", "requests/batch", body={"requests": list(reports)})
        return cast("list[o.ReportResult]", answer["results"])

    async def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata_filters: Mapping[str, str] | None = None,
    ) -> o.Page[o.Request]:
        """Newest first. A call appears a moment after it has ended."""
        query = {"cursor": cursor, "limit": limit, **_filters(customer_id, meter_id, metadata_filters)}
        return cast(o.Page[o.Request], await self._client.call("GET", "requests", query=query))

    def iterate(
        self,
        *,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata_filters: Mapping[str, str] | None = None,
    ) -> AsyncIterator[o.Request]:
        return self._client.iterate("requests", _filters(customer_id, meter_id, metadata_filters))

    async def retrieve(self, request_id: str) -> o.Request:
        return cast(o.Request, await self._client.call("GET", f"requests/{_part(request_id)}"))

    async def export(
        self,
        *,
        format: Literal["csv", "ndjson"] = "csv",
        start: str | None = None,
        end: str | None = None,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata_filters: Mapping[str, str] | None = None,
    ) -> str:
        """All of them as one text."""
        query = {"format": format, "start": start, "end": end, **_filters(customer_id, meter_id, metadata_filters)}
        return await self._client.text("requests/export", query)


class UsageResource(Resource):
    """Sums."""

    async def retrieve(
        self, *, start: str, metadata_filters: Mapping[str, str] | None = None, **filters: Unpack[o.UsageFilters]
    ) -> o.Usage:
        """By day (or `bucket`), in the time zone of `start`'s offset."""
        query = {"start": start, **_filters(None, None, metadata_filters), **filters}
        return cast(o.Usage, await self._client.call("GET", "usage", query=query))

    async def csv(self, *, start: str, metadata_filters: Mapping[str, str] | None = None, **filters: Unpack[o.UsageFilters]) -> str:
        query = {"start": start, **_filters(None, None, metadata_filters), **filters, "format": "csv"}
        return await self._client.text("usage", query)


class Webhooks(Resource):
    """Where events are sent. `verify_webhook` checks what a receiver gets."""

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[o.WebhookFields]) -> o.Webhook:
        """With `webhook_secret`, which is shown this once."""
        return cast(o.Webhook, await self._client.call("POST", "webhooks", body=fields, key=idempotency_key))

    async def list(self, *, cursor: str | None = None, limit: int | None = None) -> o.Page[o.Webhook]:
        return cast(o.Page[o.Webhook], await self._client.call("GET", "webhooks", query={"cursor": cursor, "limit": limit}))

    def iterate(self) -> AsyncIterator[o.Webhook]:
        return self._client.iterate("webhooks", {})

    async def retrieve(self, webhook_id: str) -> o.Webhook:
        return cast(o.Webhook, await self._client.call("GET", f"webhooks/{_part(webhook_id)}"))

    async def update(self, webhook_id: str, **fields: Unpack[o.WebhookFields]) -> o.Webhook:
        return cast(o.Webhook, await self._client.call("PATCH", f"webhooks/{_part(webhook_id)}", body=fields))

    async def delete(self, webhook_id: str) -> o.Deleted:
        return cast(o.Deleted, await self._client.call("DELETE", f"webhooks/{_part(webhook_id)}"))

    async def rotate(self, webhook_id: str) -> o.Webhook:
        """With the new `webhook_secret`; the old one signs beside it for a day."""
        return cast(o.Webhook, await self._client.call("POST", f"webhooks/{_part(webhook_id)}/rotate"))

    async def test(self, webhook_id: str) -> o.Delivery:
        """Send `webhook.test` now; what became of it."""
        return cast(o.Delivery, await self._client.call("POST", f"webhooks/{_part(webhook_id)}/test"))

    async def deliveries(
        self, webhook_id: str, *, cursor: str | None = None, limit: int | None = None, state: str | None = None
    ) -> o.Page[o.Delivery]:
        query = {"cursor": cursor, "limit": limit, "state": state}
        path = f"webhooks/{_part(webhook_id)}/deliveries"
        return cast(o.Page[o.Delivery], await self._client.call("GET", path, query=query))

    async def replay(self, webhook_id: str, delivery_id: str) -> o.Delivery:
        path = f"webhooks/{_part(webhook_id)}/deliveries/{_part(delivery_id)}/replay"
        return cast(o.Delivery, await self._client.call("POST", path))


class SecretKeys(Resource):
    """Keys that act for the merchant."""

    async def create(self, *, name: str, idempotency_key: str | None = None) -> o.SecretKey:
        """With `secret_key`, which is shown this once."""
        return cast(o.SecretKey, await self._client.call("POST", "secret_keys", body={"name": name}, key=idempotency_key))

    async def list(self, *, cursor: str | None = None, limit: int | None = None) -> o.Page[o.SecretKey]:
        return cast(o.Page[o.SecretKey], await self._client.call("GET", "secret_keys", query={"cursor": cursor, "limit": limit}))

    def iterate(self) -> AsyncIterator[o.SecretKey]:
        return self._client.iterate("secret_keys", {})

    async def delete(self, secret_key_id: str) -> o.Deleted:
        return cast(o.Deleted, await self._client.call("DELETE", f"secret_keys/{_part(secret_key_id)}"))


class SpendKeys(Resource):
    """Keys with limits that draw on the merchant's own wallet."""

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[o.SpendKeyFields]) -> o.SpendKey:
        """With `key`, which is shown this once."""
        return cast(o.SpendKey, await self._client.call("POST", "spend_keys", body=fields, key=idempotency_key))

    async def list(self, *, cursor: str | None = None, limit: int | None = None) -> o.Page[o.SpendKey]:
        return cast(o.Page[o.SpendKey], await self._client.call("GET", "spend_keys", query={"cursor": cursor, "limit": limit}))

    def iterate(self) -> AsyncIterator[o.SpendKey]:
        return self._client.iterate("spend_keys", {})

    async def retrieve(self, spend_key_id: str) -> o.SpendKey:
        return cast(o.SpendKey, await self._client.call("GET", f"spend_keys/{_part(spend_key_id)}"))

    async def update(self, spend_key_id: str, **fields: Unpack[o.SpendKeyFields]) -> o.SpendKey:
        """Only the given fields change; None lifts a limit."""
        return cast(o.SpendKey, await self._client.call("PUT", f"spend_keys/{_part(spend_key_id)}", body=fields))

    async def rotate(self, spend_key_id: str) -> o.SpendKey:
        """With the new `key`; the old one ends at once."""
        return cast(o.SpendKey, await self._client.call("POST", f"spend_keys/{_part(spend_key_id)}/rotate"))

    async def delete(self, spend_key_id: str) -> o.Done:
        return cast(o.Done, await self._client.call("DELETE", f"spend_keys/{_part(spend_key_id)}"))


class Models(Resource):
    """What the model routes serve."""

    async def list(self) -> list[o.Model]:
        return cast("list[o.Model]", (await self._client.call("GET", "models"))["data"])


class Plans(Resource):
    """What customers subscribe to."""

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[o.NewPlan]) -> o.Plan:
        return cast(o.Plan, await self._client.call("POST", "plans", body=fields, key=idempotency_key))

    async def list(self, *, cursor: str | None = None, limit: int | None = None) -> o.Page[o.Plan]:
        return cast(o.Page[o.Plan], await self._client.call("GET", "plans", query={"cursor": cursor, "limit": limit}))

    def iterate(self) -> AsyncIterator[o.Plan]:
        return self._client.iterate("plans", {})

    async def retrieve(self, plan_id: str) -> o.Plan:
        return cast(o.Plan, await self._client.call("GET", f"plans/{_part(plan_id)}"))

    async def update(self, plan_id: str, **fields: Unpack[o.PlanFields]) -> o.Plan:
        return cast(o.Plan, await self._client.call("PATCH", f"plans/{_part(plan_id)}", body=fields))

    async def delete(self, plan_id: str) -> o.Deleted:
        return cast(o.Deleted, await self._client.call("DELETE", f"plans/{_part(plan_id)}"))


class Subscriptions(Resource):
    """Who has which plan."""

    async def create(self, *, customer_id: str, plan_id: str, idempotency_key: str | None = None) -> o.Subscription:
        """To a free plan; one that costs something goes through a checkout session."""
        body = {"customer_id": customer_id, "plan_id": plan_id}
        answer = await self._client.call("POST", "subscriptions", body=body, key=idempotency_key)
        return cast(o.Subscription, answer["subscription"])

    async def list(
        self,
        *,
        status: Literal["active", "cancelled", "all"] | None = None,
        customer_id: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> o.Page[o.Subscription]:
        query = {"status": status, "customer_id": customer_id, "cursor": cursor, "limit": limit}
        return cast(o.Page[o.Subscription], await self._client.call("GET", "subscriptions", query=query))

    def iterate(
        self, *, status: Literal["active", "cancelled", "all"] | None = None, customer_id: str | None = None
    ) -> AsyncIterator[o.Subscription]:
        return self._client.iterate("subscriptions", {"status": status, "customer_id": customer_id})

    async def update(self, subscription_id: str, *, auto_top_up_bundle_id: str | None) -> o.Done:
        """The bundle that is bought when credit runs out; None: none."""
        body = {"auto_top_up_bundle_id": auto_top_up_bundle_id}
        return cast(o.Done, await self._client.call("PATCH", f"subscriptions/{_part(subscription_id)}", body=body))

    async def cancel(self, subscription_id: str) -> o.Done:
        """At the end of its cycle."""
        return cast(o.Done, await self._client.call("DELETE", f"subscriptions/{_part(subscription_id)}"))


class CreditBundles(Resource):
    """Extra credit that plans sell."""

    async def list(
        self, *, plan_id: str | None = None, cursor: str | None = None, limit: int | None = None
    ) -> o.Page[o.CreditBundle]:
        query = {"plan_id": plan_id, "cursor": cursor, "limit": limit}
        return cast(o.Page[o.CreditBundle], await self._client.call("GET", "credit_bundles", query=query))

    def iterate(self, *, plan_id: str | None = None) -> AsyncIterator[o.CreditBundle]:
        return self._client.iterate("credit_bundles", {"plan_id": plan_id})

    async def retrieve(self, credit_bundle_id: str) -> o.CreditBundle:
        return cast(o.CreditBundle, await self._client.call("GET", f"credit_bundles/{_part(credit_bundle_id)}"))


class CheckoutSessions(Resource):
    """Pages on which customers pay."""

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[o.NewCheckout]) -> o.CheckoutSession:
        """Give `checkout_session_token` to the checkout library in the browser."""
        answer = await self._client.call("POST", "checkout_sessions", body=fields, key=idempotency_key)
        return cast(o.CheckoutSession, answer)

    async def list(
        self, *, reference_id: str | None = None, cursor: str | None = None, limit: int | None = None
    ) -> o.Page[o.CheckoutSession]:
        query = {"reference_id": reference_id, "cursor": cursor, "limit": limit}
        return cast(o.Page[o.CheckoutSession], await self._client.call("GET", "checkout_sessions", query=query))

    def iterate(self, *, reference_id: str | None = None) -> AsyncIterator[o.CheckoutSession]:
        return self._client.iterate("checkout_sessions", {"reference_id": reference_id})

    async def retrieve(self, checkout_session_id: str) -> o.CheckoutSession:
        return cast(o.CheckoutSession, await self._client.call("GET", f"checkout_sessions/{_part(checkout_session_id)}"))


def _part(reference: str) -> str:
    """An id as one part of a path, whatever letters it has."""
    if not reference:
        raise ValueError("an id is needed")
    return quote(reference, safe="")


def _filters(customer_id: str | None, meter_id: str | None, metadata: Mapping[str, str] | None) -> dict[str, object]:
    found: dict[str, object] = {"customer_id": customer_id, "meter_id": meter_id}
    if metadata:
        found["metadata_filters"] = json.dumps([[key, value] for key, value in metadata.items()])
    return found


def _plain(value: object) -> object:
    """Decimals (seconds; dollars are text) as numbers: a float of up to 15 digits is written with those digits."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
