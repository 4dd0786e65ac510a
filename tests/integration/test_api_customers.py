"""Customers written over REST: made once by reference_id, changed field by field, deleted softly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import StoreError
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Shop, Stores, dependencies, open_shop, opened_stores, sell, served

Client = TestClient[Any, Any]
KEYS = {
    "customer_id", "reference_id", "status", "contact", "subscription", "metadata", "balance", "balance_available",
    "balance_held", "pots", "created_at", "overage",
}  # fmt: skip


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "writers")


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


async def send(client: Client, shop: Shop, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    sent = {**shop.headers, "Content-Type": "application/json", **headers}
    async with client.request(method, path, json=body, headers=sent) as answer:
        return answer.status, await answer.json()


async def made(client: Client, shop: Shop, **fields: Any) -> dict[str, Any]:
    status, found = await send(client, shop, "POST", "/v1/customers", fields)
    assert status == 201, found
    return dict(found)


async def test_a_new_customer_can_be_funded_and_read_at_once(client: Client, stores: Stores, shop: Shop) -> None:
    created = await made(
        client, shop, reference_id="u-1", email="ada@example.com", phone="+1 (415) 555-0123", name="Ada King Lovelace",
        metadata={"seats": 3, "rate": 0.125, "tags": ["a"]},
    )  # fmt: skip
    assert set(created) == KEYS
    assert created["contact"] == {
        "phone": "+14155550123", "email": "ada@example.com", "first_name": "Ada King", "last_name": "Lovelace",
    }  # fmt: skip
    assert (created["balance"], created["overage"], created["reference_id"]) == ("0.0000000000", None, "u-1")
    assert (created["subscription"]["name"], created["subscription"]["status"]) == ("Free", "active")
    assert created["metadata"] == {"seats": 3, "rate": 0.125, "tags": ["a"]}
    wallet = await stores.catalog.connection(shop.merchant.merchant_id, "u-1")
    assert wallet is not None
    await Funding(stores.catalog, stores.balances).fund(shop.merchant.merchant_id, wallet.wallet_id, 5 * USD, "test")
    for path in ("/v1/customers/u-1", f"/v1/customers/{created['customer_id']}"):
        assert await send(client, shop, "GET", path) == (
            200,
            created
            | {"balance": "5.0000000000", "balance_available": "5.0000000000"}
            | {"pots": created["pots"] | {"funds": {"available": "5.0000000000", "held": "0.0000000000"}}},
        )


async def test_a_customer_with_nothing_known_is_a_customer(client: Client, shop: Shop) -> None:
    created = await made(client, shop)
    assert created["reference_id"] is None and created["metadata"] is None
    assert set(created["contact"].values()) == {None}


async def test_the_same_reference_id_is_the_same_customer_also_when_many_ask_at_once(client: Client, shop: Shop) -> None:
    """The first is answered unchanged, 200."""
    answers = await asyncio.gather(
        *(send(client, shop, "POST", "/v1/customers", {"reference_id": "twin", "email": f"t{n}@example.com"}) for n in range(8))
    )
    assert sorted(status for status, _ in answers) == [200] * 7 + [201]
    assert len({found["customer_id"] for _, found in answers}) == 1
    assert len({found["contact"]["email"] for _, found in answers}) == 1


async def test_a_customer_whose_wallet_cannot_be_opened_is_not_left_behind(stores: Stores) -> None:
    """A repeat without reference_id would otherwise leave an unusable one each time."""

    class Unopened(Funding):
        async def open_wallet(self, wallet_id: str) -> None:
            raise StoreError("Redis cannot answer.")

    shop = await open_shop(stores, "unlucky")
    deps = dependencies(stores)
    async with served(replace(deps, funding=Unopened(stores.catalog, stores.balances))) as client:
        status, found = await send(client, shop, "POST", "/v1/customers", {"email": "a@example.com"})
        assert (status, found["error"]["code"]) == (503, "billing_unavailable")
        _, listed = await send(client, shop, "GET", "/v1/customers")
    assert [item["customer_id"] for item in listed["data"]] == [shop.customer.connection_id]


async def test_only_what_is_sent_changes_and_null_clears(client: Client, shop: Shop) -> None:
    created = await made(client, shop, reference_id="p-1", email="a@example.com", name="Ada L", metadata={"a": 1})
    path = f"/v1/customers/{created['customer_id']}"
    assert await send(client, shop, "PATCH", path, {}) == (200, created)
    status, found = await send(client, shop, "PATCH", path, {"phone": "+442079460958"})
    assert status == 200 and found == created | {"contact": created["contact"] | {"phone": "+442079460958"}}
    status, found = await send(client, shop, "PATCH", path, {"name": "Grace", "metadata": {"b": [1.50, None]}})
    assert (found["contact"]["first_name"], found["contact"]["last_name"]) == ("Grace", None)
    assert found["metadata"] == {"b": [1.5, None]} and found["contact"]["email"] == "a@example.com"
    cleared = {"name": None, "email": None, "phone": None, "metadata": None, "reference_id": None}
    status, found = await send(client, shop, "PATCH", path, cleared)
    assert status == 200 and set(found["contact"].values()) == {None}
    assert found["metadata"] is None and found["reference_id"] is None
    assert (await send(client, shop, "GET", "/v1/customers/p-1"))[0] == 404
    assert (await send(client, shop, "PATCH", path, {"reference_id": "p-2"}))[1]["reference_id"] == "p-2"
    assert (await send(client, shop, "GET", "/v1/customers/p-2"))[1]["customer_id"] == created["customer_id"]


async def test_a_reference_id_belongs_to_one_customer(client: Client, shop: Shop) -> None:
    await made(client, shop, reference_id="mine")
    other = await made(client, shop)
    status, found = await send(client, shop, "PATCH", f"/v1/customers/{other['customer_id']}", {"reference_id": "mine"})
    assert (status, found["error"]["code"]) == (409, "reference_id_taken")


@pytest.mark.parametrize("path", ["customers", "connections"])
async def test_a_deleted_customer_is_gone_its_requests_stay_and_its_reference_id_is_free(
    client: Client, stores: Stores, path: str
) -> None:
    shop = await open_shop(stores, f"deleted {path}")
    request_id = await sell(stores, shop)
    one = f"/v1/{path}/{shop.customer.connection_id}"
    status, found = await send(client, shop, "GET", one + "/subscription")
    assert (status, found["subscription"]["plan"]["name"]) == (200, "Free")
    assert await send(client, shop, "DELETE", one) == (200, {"success": True})
    for method, target in (("GET", one), ("DELETE", one), ("GET", one + "/subscription")):
        assert (await send(client, shop, method, target))[0] == 404
    assert (await send(client, shop, "PATCH", f"/v1/customers/{shop.customer.connection_id}", {}))[0] == 404
    assert (await send(client, shop, "GET", f"/v1/{path}"))[1]["data"] == []
    assert (await send(client, shop, "GET", f"/v1/requests/{request_id}"))[1]["charge"]["amount"] == "0.0300000000"
    again = await made(client, shop, reference_id=shop.customer.reference_id)
    assert again["customer_id"] != shop.customer.connection_id


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"reference_id": "con_mine"}, ["reference_id", "con_"]),
        ({"reference_id": ""}, ["reference_id"]),
        ({"reference_id": "a\0b"}, ["reference_id"]),
        ({"reference_id": 5}, ["reference_id"]),
        ({"phone": "555-0123"}, ["phone", "+14155550123"]),
        ({"phone": "+1"}, ["phone"]),
        ({"email": "nobody"}, ["email"]),
        ({"name": "x" * 256}, ["name", "255"]),
        ({"metadata": [1]}, ["metadata", "object"]),
        ({"metadata": {"a": "x" * 16_384}}, ["metadata", "16384"]),
        ({"metadata": {"a": "\0"}}, ["metadata"]),
        ({"metadata": {"a": 10**30}}, ["metadata", "digits"]),
        ({"nickname": "x"}, ["nickname", "not a field"]),
        ({"email": "x", "phone": "y", "name": 1, "surname": "z"}, ["email is 'x'", "phone is 'y'", "name is 1", "surname"]),
    ],
)
async def test_what_is_wrong_is_named_all_together_and_changes_nothing(
    client: Client, shop: Shop, body: dict[str, Any], words: list[str]
) -> None:
    before = await send(client, shop, "GET", "/v1/customers?limit=100")
    one = f"/v1/customers/{shop.customer.connection_id}"
    for method, path in (("POST", "/v1/customers"), ("PATCH", one)):
        status, found = await send(client, shop, method, path, body)
        assert (status, found["error"]["code"]) == (400, "invalid_parameter")
        for word in words:
            assert word in found["error"]["message"]
    assert await send(client, shop, "GET", "/v1/customers?limit=100") == before


async def test_numbers_no_database_can_hold_and_halves_of_characters_are_a_400(client: Client, shop: Shop) -> None:
    for raw in ('{"metadata":{"a":1e999999999}}', '{"metadata":{"a":"\\ud800"}}', '{"metadata":' + '{"a":' * 40 + "1" + "}" * 41):
        async with client.post("/v1/customers", data=raw, headers=shop.headers) as answer:
            assert answer.status == 400, await answer.text()


async def test_a_version_header_is_accepted_and_ignored(client: Client, shop: Shop) -> None:
    for version in ("2025-03-27.v1", "2025-04-28.v1", "nonsense"):
        status, found = await send(client, shop, "GET", "/v1/customers?limit=1", **{"X-Lava-API-Version": version})
        assert status == 200 and len(found["data"]) == 1


async def test_head_answers_as_get_does_without_a_body(client: Client, shop: Shop) -> None:
    for path in ("/v1/customers", f"/v1/customers/{shop.customer.connection_id}", "/v1/wallet", "/openapi.json"):
        async with client.head(path, headers=shop.headers) as answer:
            assert answer.status == 200 and await answer.read() == b""
