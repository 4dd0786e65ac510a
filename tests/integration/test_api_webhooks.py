"""/v1/webhooks over real stores and a real receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from standardwebhooks import Webhook as StandardWebhook

from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.settings import Webhooks as WebhookSettings
from lava_proxy.workers.webhook_sender import WebhookSender
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, Shop, Stores, dependencies, open_shop, opened_stores, served
from tests.webhook_receiver import Receiver, running_receiver

Client = TestClient[Any, Any]
KEYS = {"webhook_id", "name", "url", "vocabulary", "events", "status", "disabled_reason", "created_at"}
SETTINGS = WebhookSettings(
    timeout_s=1, lease_s=30, concurrency_max=64, endpoint_concurrency_max=8, keep_days=30, allow_private=1
)  # fmt: skip


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "hooked")


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as started:
        yield started


@pytest.fixture(autouse=True)
async def no_endpoints_left(stores: Stores) -> AsyncIterator[None]:
    yield
    await stores.pool.execute("DELETE FROM webhook")


async def send(client: Client, shop: Shop, method: str, path: str = "", body: object = None) -> tuple[int, Any]:
    async with client.request(method, f"/v1/webhooks{path}", json=body, headers=shop.headers) as answer:
        return answer.status, await answer.json()


async def made(client: Client, shop: Shop, url: str = "https://shop.example/hooks", **fields: Any) -> dict[str, Any]:
    status, found = await send(client, shop, "POST", body={"name": "orders", "url": url, **fields})
    assert status == 201, found
    return dict(found)


def sender_of(stores: Stores) -> WebhookSender:
    return WebhookSender(stores.webhooks, stores.webhook_client, SETTINGS, clock=lambda: CLOCK, jitter=lambda: 500)


async def test_a_webhook_is_made_shown_changed_and_deleted(client: Client, shop: Shop) -> None:
    """What stock SDKs send is `name` and `url`; the secret is shown once."""
    webhook = await made(client, shop)
    secret = webhook.pop("webhook_secret")
    assert secret.startswith("whsec_") and set(webhook) == KEYS
    assert (webhook["vocabulary"], webhook["events"], webhook["status"]) == ("customer", None, "active")
    path = f"/{webhook['webhook_id']}"
    assert await send(client, shop, "GET", path) == (200, webhook)
    assert await send(client, shop, "GET") == (200, {"data": [webhook], "has_more": False})
    status, changed = await send(
        client, shop, "PATCH", path, {"events": ["connection.deleted", "customer.created"], "vocabulary": "connection"}
    )
    assert status == 200 and changed == webhook | {
        "events": ["connection.created", "connection.deleted"], "vocabulary": "connection",
    }  # fmt: skip
    assert (await send(client, shop, "PATCH", path, {"status": "disabled"}))[1]["disabled_reason"] == "merchant"
    status, changed = await send(client, shop, "PATCH", path, {"status": "active", "events": None, "name": "n"})
    assert (changed["status"], changed["disabled_reason"], changed["events"], changed["name"]) == ("active", None, None, "n")
    assert await send(client, shop, "PATCH", path, {}) == (200, changed)
    assert await send(client, shop, "DELETE", path) == (200, {"id": webhook["webhook_id"], "deleted": True})
    for method, at in (("GET", path), ("DELETE", path), ("PATCH", path), ("POST", path + "/rotate"), ("POST", path + "/test")):
        assert (await send(client, shop, method, at, {}))[0] == 404


async def test_a_secret_is_sealed_in_the_store(client: Client, shop: Shop, stores: Stores) -> None:
    webhook = await made(client, shop)
    rows = await stores.pool.fetch("SELECT secret_sealed FROM webhook_secret")
    assert all(webhook["webhook_secret"].encode() not in row["secret_sealed"] for row in rows)


async def test_the_fourth_webhook_is_refused_also_when_all_come_at_once(client: Client, shop: Shop) -> None:
    body = {"name": "w", "url": "https://shop.example/"}
    answers = await asyncio.gather(*(send(client, shop, "POST", body=body) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [201] * 3 + [409] * 5
    assert {answer["error"]["code"] for status, answer in answers if status == 409} == {"webhook_limit"}
    status, page = await send(client, shop, "GET", "?limit=2")
    assert status == 200 and len(page["data"]) == 2 and page["has_more"] is True
    rest = (await send(client, shop, "GET", f"?limit=2&cursor={page['next_cursor']}"))[1]
    assert len(rest["data"]) == 1 and rest["has_more"] is False


async def test_another_merchant_sees_nothing_of_it(client: Client, shop: Shop, stores: Stores) -> None:
    webhook = await made(client, shop)
    other = await open_shop(stores, f"other {webhook['webhook_id']}")
    path = f"/{webhook['webhook_id']}"
    for method, at in (
        ("GET", path), ("PATCH", path), ("DELETE", path), ("POST", path + "/rotate"), ("POST", path + "/test"),
        ("GET", path + "/deliveries"), ("POST", path + "/deliveries/dlv_1/replay"),
    ):  # fmt: skip
        assert (await send(client, other, method, at, {"name": "mine"} if method == "PATCH" else None))[0] == 404, (method, at)
    assert (await send(client, other, "GET"))[1]["data"] == []
    assert (await send(client, shop, "GET", path))[1]["name"] == "orders"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, ["name is required", "url is required"]),
        ({"name": "", "url": "ftp://x"}, ["name is ''", "url is 'ftp://x'"]),
        ({"name": "n", "url": "https://u:p@shop.example/"}, ["user information"]),
        ({"name": "n", "url": "https://x/" + "a" * 2048}, ["2048"]),
        ({"name": "n\0", "url": "https://x/"}, ["printable"]),
        ({"name": "n", "url": "https://x/", "events": ["customer.exploded"]}, ["'customer.exploded' is no event"]),
        ({"name": "n", "url": "https://x/", "events": []}, ["events"]),
        (
            {"name": "n", "url": "https://x/", "vocabulary": "klingon", "status": "on"},
            ["vocabulary is 'klingon'", "status is 'on'"],
        ),
        ({"name": "n", "url": "https://x/", "colour": "red"}, ["colour is not a field"]),
        ({"name": "n", "url": None}, ["url is None"]),
    ],
)
async def test_bad_input_is_refused_with_every_problem_and_changes_nothing(
    client: Client, shop: Shop, body: dict[str, Any], said: list[str]
) -> None:
    status, answer = await send(client, shop, "POST", body=body)
    assert (status, answer["error"]["code"]) == (400, "invalid_parameter")
    for part in said:
        assert part in answer["error"]["message"]
    assert (await send(client, shop, "GET"))[1]["data"] == []


async def test_http_and_private_receivers_need_the_installations_word(stores: Stores, shop: Shop) -> None:
    strict = WebhookClient(timeout_s=1, connections_max=1, allow_private=False, clock=lambda: CLOCK)
    async with served(dependencies(stores, webhook_client=strict)) as client:
        for url in ("http://shop.example/", "https://127.0.0.1/", "https://[::1]:8443/"):
            status, answer = await send(client, shop, "POST", body={"name": "n", "url": url})
            assert (status, answer["error"]["code"]) == (400, "invalid_parameter"), url
            assert "public https" in answer["error"]["message"]
        webhook = await made(client, shop)
        assert (await send(client, shop, "PATCH", f"/{webhook['webhook_id']}", {"url": "http://10.0.0.1/"}))[0] == 400
        assert (await send(client, shop, "GET", f"/{webhook['webhook_id']}"))[1]["url"] == webhook["url"]


async def test_a_receiver_at_a_link_local_address_is_refused_also_where_private_ones_are_allowed(
    client: Client, shop: Shop
) -> None:
    for url in ("http://169.254.169.254/latest/meta-data", "http://[fe80::1]:8080/", "http://2852039166/"):
        status, answer = await send(client, shop, "POST", body={"name": "n", "url": url})
        assert (status, answer["error"]["code"]) == (400, "invalid_parameter"), url


async def test_a_test_is_sent_now_and_answers_what_became_of_it(client: Client, shop: Shop, receiver: Receiver) -> None:
    webhook = await made(client, shop, receiver.url)
    path = f"/{webhook['webhook_id']}"
    status, answer = await send(client, shop, "POST", path + "/test")
    assert (status, answer["event"], answer["state"], answer["last_status_code"]) == (200, "webhook.test", "delivered", 200)
    [received] = receiver.received
    assert received.name == "webhook.test" and received.is_signed_with(webhook["webhook_secret"])
    assert received.body["id"] == answer["event_id"] and received.body["data"]["webhook_id"] == webhook["webhook_id"]
    receiver.always = 500
    answer = (await send(client, shop, "POST", path + "/test"))[1]
    assert (answer["state"], answer["last_error"], answer["response_excerpt"]) == (
        "failed",
        "The receiver answered 500.",
        "status 500",
    )
    receiver.always = "reset"
    answer = (await send(client, shop, "POST", path + "/test"))[1]
    assert (answer["state"], answer["last_status_code"], len(answer["attempts"])) == ("failed", None, 1)
    assert (await send(client, shop, "GET", path))[1]["status"] == "active"
    assert len(receiver.received) == 3


async def test_a_rotation_shows_the_new_secret_once_and_both_sign_for_a_day(client: Client, shop: Shop, receiver: Receiver) -> None:
    webhook = await made(client, shop, receiver.url)
    path = f"/{webhook['webhook_id']}"
    status, rotated = await send(client, shop, "POST", path + "/rotate")
    assert status == 200 and rotated["webhook_secret"] != webhook["webhook_secret"]
    assert rotated["previous_secret_expires_at"] == "2027-01-01T23:59:59Z"
    await send(client, shop, "POST", path + "/test")
    [received] = receiver.received
    for secret in (webhook["webhook_secret"], rotated["webhook_secret"]):
        StandardWebhook(secret).verify(received.raw, received.headers)
    assert received.is_signed_with(rotated["webhook_secret"])
    assert "webhook_secret" not in (await send(client, shop, "GET", path))[1]


async def test_the_log_is_paged_filtered_and_replayed(client: Client, shop: Shop, stores: Stores, receiver: Receiver) -> None:
    webhook = await made(client, shop, receiver.url)
    path = f"/{webhook['webhook_id']}/deliveries"
    receiver.faults = [500]
    customers = [await stores.catalog.create_connection(shop.merchant.merchant_id) for _ in range(3)]
    sender = sender_of(stores)
    await sender.run_once()
    await sender.drain()
    page = (await send(client, shop, "GET", path + "?limit=2"))[1]
    rest = (await send(client, shop, "GET", f"{path}?limit=2&cursor={page['next_cursor']}"))[1]
    items = page["data"] + rest["data"]
    assert [item["subject_id"] for item in items] and rest["has_more"] is False
    assert {item["subject_id"] for item in items} == {customer.connection_id for customer in customers}
    [waiting] = (await send(client, shop, "GET", path + "?state=pending"))[1]["data"]
    assert (waiting["event"], waiting["tries"], waiting["last_status_code"]) == ("customer.created", 1, 500)
    assert waiting["next_try_at"] == "2027-01-01T00:00:04Z" and waiting["ended_at"] is None
    assert [(one["try"], one["status_code"]) for one in waiting["attempts"]] == [(1, 500)]
    status, again = await send(client, shop, "POST", f"{path}/{waiting['delivery_id']}/replay")
    assert (status, again["state"], again["tries"]) == (200, "pending", 0)
    await sender.run_once()
    await sender.drain()
    assert receiver.ids().count(waiting["event_id"]) == 2
    assert (await send(client, shop, "GET", path + "?state=pending"))[1]["data"] == []
    assert (await send(client, shop, "POST", path + "/dlv_nope/replay"))[0] == 404
    await send(client, shop, "PATCH", f"/{webhook['webhook_id']}", {"status": "disabled"})
    status, answer = await send(client, shop, "POST", f"{path}/{waiting['delivery_id']}/replay")
    assert (status, answer["error"]["code"]) == (409, "webhook_disabled")
    for query in ("limit=0", "limit=x", "state=lost", "cursor=con_1"):
        status, answer = await send(client, shop, "GET", f"{path}?{query}")
        assert (status, answer["error"]["code"]) == (400, "invalid_parameter") and query.partition("=")[0] in answer["error"][
            "message"
        ]


async def test_disabling_ends_what_waits_and_deleting_takes_the_log_along(
    client: Client, shop: Shop, stores: Stores, receiver: Receiver
) -> None:
    webhook = await made(client, shop, receiver.url)
    path = f"/{webhook['webhook_id']}"
    await stores.catalog.create_connection(shop.merchant.merchant_id)
    await send(client, shop, "PATCH", path, {"status": "disabled"})
    [ended] = (await send(client, shop, "GET", path + "/deliveries"))[1]["data"]
    assert (ended["state"], ended["last_error"], ended["tries"]) == ("failed", "the webhook was disabled", 0)
    await send(client, shop, "PATCH", path, {"status": "active"})
    sender = sender_of(stores)
    await sender.run_once()
    await sender.drain()
    assert receiver.received == []
    await send(client, shop, "DELETE", path)
    for table in ("delivery", "webhook_secret"):
        assert await stores.pool.fetchval(f"SELECT count(*) FROM {table}") == 0
