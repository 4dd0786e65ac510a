"""/v1/spend_keys and /v1/models over real stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.domain.limits import Scope
from lava_proxy.providers.model_list import ListedModel
from lava_proxy.stores.balance_store import ScopeUse
from lava_proxy.stores.catalog_store import SpendKey
from lava_proxy.stores.ids import new_id
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, Shop, Stores, dependencies, open_shop, opened_stores, served

Client = TestClient[Any, Any]
KEYS = {
    "spend_key_id", "name", "key_preview", "wallet_id", "status", "request_shape", "allowed_models", "allowed_providers",
    "spend_limit", "request_limit", "rate_limit", "token_limit", "concurrency_limit", "expires_at", "current_spend",
    "total_spend", "current_requests", "total_requests", "last_used_at", "created_at",
}  # fmt: skip
MODELS = (
    ListedModel(model="gpt-4o", providers=("openai",), shape="openai"),
    ListedModel(model="gpt-4o-mini", providers=("openai",), shape="openai"),
    ListedModel(model="grok-4", providers=("xai", "grok"), shape="openai"),
    ListedModel(model="claude-x", providers=("anthropic", "claude"), shape="anthropic"),
)


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "keyed")


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores, models=MODELS)) as started:
        yield started


async def send(client: Client, shop: Shop | None, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    sent = headers or (shop.headers if shop else {})
    async with client.request(method, path, json=body, headers={"Content-Type": "application/json", **sent}) as answer:
        return answer.status, await answer.json()


async def made(client: Client, shop: Shop, **fields: Any) -> dict[str, Any]:
    status, found = await send(client, shop, "POST", "/v1/spend_keys", {"name": "team", **fields})
    assert status == 201, found
    return dict(found)


async def test_a_key_is_made_shown_listed_changed_rotated_and_deleted(client: Client, stores: Stores, shop: Shop) -> None:
    """The secret is shown at creation and rotation only; the old one ends at once."""
    created = await made(client, shop, spend_limit={"amount": "10", "cycle": "daily"}, rate_limit={"rpm": 60, "burst": None})
    assert set(created) == {*KEYS, "key"} and created["key"].startswith("lava_sk_")
    assert created["key_preview"] == created["key"][:16] + "****"
    assert (created["status"], created["request_shape"], created["wallet_id"]) == ("active", "openai", shop.merchant.wallet_id)
    assert created["spend_limit"] == {"amount": "10.00", "cycle": "daily"} and created["rate_limit"] == {"rpm": 60, "burst": None}
    assert (created["current_spend"], created["total_requests"], created["last_used_at"]) == ("0.0000000000", 0, None)
    path = f"/v1/spend_keys/{created['spend_key_id']}"
    shown = {name: value for name, value in created.items() if name != "key"}
    assert await send(client, shop, "GET", path) == (200, shown)
    status, page = await send(client, shop, "GET", "/v1/manage/spend_keys?limit=1")
    assert status == 200 and page["data"] == [shown]
    status, changed = await send(
        client, shop, "PUT", path, {"status": "paused", "spend_limit": None, "allowed_models": ["gpt-*"], "concurrency_limit": 3,
                                    "expires_at": "2027-01-01T02:00:00+02:00"},
    )  # fmt: skip
    assert status == 200
    assert changed == shown | {"status": "paused", "spend_limit": None, "allowed_models": ["gpt-*"], "concurrency_limit": 3,
                               "expires_at": "2027-01-01T00:00:00Z"}  # fmt: skip
    status, rotated = await send(client, shop, "POST", path + "/rotate")
    assert status == 200 and rotated["key"] != created["key"] and rotated["rate_limit"] == created["rate_limit"]
    assert await stores.catalog.spend_key_by_secret(created["key"]) is None
    assert await stores.catalog.spend_key_by_secret(rotated["key"]) is not None
    assert await send(client, shop, "DELETE", path) == (200, {"success": True})
    assert (await send(client, shop, "GET", path))[0] == 404
    assert (await send(client, shop, "DELETE", path))[0] == 404


async def use(stores: Stores, key: SpendKey, charge: int, days_ago: int = 0) -> None:
    request_id, at = new_id("req"), CLOCK - timedelta(days=days_ago)
    scope = ScopeUse(scope=Scope(scope_id=key.spend_key_id, limits=key.limits), tokens=0, at=at)
    await stores.balances.reserve(key.wallet_id, request_id, charge + 5, row=b"{}", lease_ms=60_000, scopes=(scope,))
    await stores.balances.settle(key.wallet_id, request_id, charge, row=b"{}", keep_ms=1_000)


async def test_counters_are_those_of_the_present_cycle_and_of_all_time(client: Client, stores: Stores, shop: Shop) -> None:
    """Spend by the day, calls by the month (where no limit says otherwise); the moment is the call's."""
    created = await made(client, shop, spend_limit={"amount": "1.00", "cycle": "daily"})
    key = await stores.catalog.spend_key_by_secret(created["key"])
    assert key is not None
    path = f"/v1/spend_keys/{key.spend_key_id}"
    await use(stores, key, 40, days_ago=1)
    _, found = await send(client, shop, "GET", path)
    assert (found["current_spend"], found["total_spend"]) == ("0.0000000000", "0.0000000400")
    await use(stores, key, 7)
    _, found = await send(client, shop, "GET", path)
    assert (found["current_spend"], found["total_spend"]) == ("0.0000000070", "0.0000000470")
    assert (found["current_requests"], found["total_requests"]) == (2, 2)
    assert found["last_used_at"] == "2026-12-31T23:59:59Z"
    await send(client, shop, "DELETE", path)
    assert await stores.outbox.scope_counters([(key.wallet_id, key.spend_key_id)]) == [{}]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "k", "status": "off"}, "status"),
        ({"name": "k", "request_shape": "google"}, "request_shape"),
        ({"name": "k", "allowed_models": "gpt-4o"}, "allowed_models"),
        ({"name": "k", "allowed_providers": [1]}, "allowed_providers"),
        ({"name": "k", "spend_limit": {"amount": 5, "cycle": "daily"}}, "spend_limit"),
        ({"name": "k", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "k", "expires_at": 5}, "expires_at"),
    ],
)
async def test_what_is_not_accepted_is_named(client: Client, shop: Shop, body: dict[str, Any], word: str) -> None:
    status, found = await send(client, shop, "POST", "/v1/spend_keys", body)
    assert (status, found["error"]["code"]) == (400, "invalid_parameter") and word in found["error"]["message"]


async def test_another_merchants_key_is_not_there(client: Client, stores: Stores, shop: Shop) -> None:
    created = await made(client, shop)
    rival = await open_shop(stores, "keyless")
    path = f"/v1/spend_keys/{created['spend_key_id']}"
    for method, suffix in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/rotate")):
        assert (await send(client, rival, method, path + suffix, {}))[0] == 404
    assert (await send(client, rival, "GET", "/v1/spend_keys"))[1]["data"] == []
    assert (await send(client, shop, "GET", path))[0] == 200


async def test_a_spend_key_administers_nothing(client: Client, shop: Shop) -> None:
    created = await made(client, shop)
    status, _ = await send(client, None, "GET", "/v1/spend_keys", Authorization=f"Bearer {created['key']}")
    assert status == 403


async def test_models_are_those_the_caller_may_call(client: Client, shop: Shop) -> None:
    """By secret key all; by spend key what its rules and its shape let through, wherever the SDK puts the key."""
    status, found = await send(client, shop, "GET", "/v1/models")
    assert status == 200 and found["object"] == "list" and [item["id"] for item in found["data"]] == [m.model for m in MODELS]
    assert found["data"][0].items() >= {"id": "gpt-4o", "object": "model", "created": 0, "owned_by": "openai"}.items()
    for rules, expected in (
        ({}, ["gpt-4o", "gpt-4o-mini", "grok-4"]),
        ({"request_shape": "anthropic"}, ["claude-x"]),
        ({"allowed_models": ["gpt-4o", "xai/*"]}, ["gpt-4o", "grok-4"]),
        ({"allowed_providers": ["grok"]}, ["grok-4"]),
    ):
        key = (await made(client, shop, **rules))["key"]
        for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
            _, found = await send(client, None, "GET", "/v1/models", **headers)
            assert [item["id"] for item in found["data"]] == expected
    assert (await send(client, shop, "GET", "/v1/models/grok-4"))[1]["owned_by"] == "xai"
    assert (await send(client, shop, "GET", "/v1/models/none/such"))[1]["error"]["code"] == "model_not_found"


async def test_models_need_a_key_that_works(client: Client, shop: Shop) -> None:
    assert (await send(client, None, "GET", "/v1/models"))[0] == 401
    assert (await send(client, None, "GET", "/v1/models", Authorization="Bearer lava_sk_nobody"))[0] == 401
    for fields, status in (({"status": "paused"}, 403), ({"expires_at": "2026-01-01T00:00:00Z"}, 403)):
        key = (await made(client, shop, **fields))["key"]
        assert (await send(client, None, "GET", "/v1/models", Authorization=f"Bearer {key}"))[0] == status
