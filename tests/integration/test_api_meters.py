"""Meters written over REST: made with a slug of their own, changed by versions, archived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.engines import RunningEngines
from tests.integration.api_world import Shop, Stores, dependencies, open_shop, opened_stores, sell, served

Client = TestClient[Any, Any]
TIERS = [{"start": "0", "rate": "20"}, {"start": "1000000", "rate": "15.5"}]
CHAT = {"name": "Chat", "rate_type": "fixed", "tier_type": "tokens_1m", "tiers": TIERS}


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "pricer")


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


async def send(client: Client, shop: Shop, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with client.request(method, path, json=body, headers=shop.headers) as answer:
        return answer.status, await answer.json()


async def made(client: Client, shop: Shop, **fields: Any) -> dict[str, Any]:
    status, found = await send(client, shop, "POST", "/v1/meters", CHAT | fields)
    assert status == 201, found
    return dict(found)


async def test_a_meter_is_made_with_text_and_shown_with_numbers(client: Client, stores: Stores, shop: Shop) -> None:
    """Input: `start` is text and the unit is said once; output: `start` is a number and each tier repeats the unit."""
    created = await made(client, shop, meter_slug="gpt", token_basis="output")
    assert created["tiers"] == [
        {"start": 0, "rate": "20", "type": "tokens_1m"},
        {"start": 1_000_000, "rate": "15.5", "type": "tokens_1m"},
    ]
    assert (created["meter_slug"], created["token_basis"], created["product_id"]) == ("gpt", "output", created["meter_id"])
    assert created["meter_secret"] == created["product_secret"] and created["meter_secret"].startswith("prds_")
    shown = {name: value for name, value in created.items() if name not in ("meter_secret", "product_secret")}
    for reference in ("gpt", created["meter_id"], created["meter_secret"]):
        assert await send(client, shop, "GET", f"/v1/meters/{reference}") == (200, shown)
    status, found = await send(client, shop, "POST", "/v1/meters", CHAT | {"meter_slug": "gpt"})
    assert (status, found["error"]["code"]) == (409, "meter_slug_taken")


async def test_a_slug_comes_from_the_name_and_is_its_own(client: Client, shop: Shop) -> None:
    names = ("Café & Bar: 2nd!", "Café & Bar: 2nd!", "café   BAR 2nd", "!!!", "prd_x")
    slugs = [(await made(client, shop, name=name))["meter_slug"] for name in names]
    assert slugs == ["caf-bar-2nd", "caf-bar-2nd-2", "caf-bar-2nd-3", "meter", "meter-prd-x"]


async def test_many_meters_of_one_name_made_at_once_have_different_slugs(client: Client, shop: Shop) -> None:
    answers = await asyncio.gather(*(send(client, shop, "POST", "/v1/meters", CHAT | {"name": "Rush"}) for _ in range(5)))
    slugs = [found["meter_slug"] for status, found in answers if status == 201]
    assert slugs and len(set(slugs)) == len(slugs)
    assert {status for status, _ in answers} <= {201, 409}


async def test_a_new_price_holds_for_new_calls_and_old_requests_keep_theirs(client: Client, stores: Stores, shop: Shop) -> None:
    """I28: a row rates again to its amount by the version it names."""
    request_id = await sell(stores, shop)
    before = await send(client, shop, "GET", f"/v1/requests/{request_id}")
    path = f"/v1/meters/{shop.meter.meter_id}"
    status, found = await send(client, shop, "PATCH", path, {"tiers": [{"start": "0", "rate": "40"}], "name": "Dear"})
    assert status == 200 and found["tiers"] == [{"start": 0, "rate": "40", "type": "tokens_1m"}]
    assert (found["name"], found["meter_slug"]) == ("Dear", "chat")
    meter = await stores.catalog.meter(shop.merchant.merchant_id, "chat")
    assert meter is not None and meter.version.version_id > shop.meter.version.version_id
    assert meter.version.tiers[0].rate == 40 * 10**9
    assert await send(client, shop, "GET", f"/v1/requests/{request_id}") == before


async def test_a_change_that_changes_nothing_makes_no_version(client: Client, stores: Stores, shop: Shop) -> None:
    path = f"/v1/meters/{shop.meter.meter_id}"
    _, whole = await send(client, shop, "GET", path)
    same = {name: whole[name] for name in ("name", "tiers", "token_basis", "meter_slug", "rate_type", "tier_type")}
    for body in ({}, same):
        assert await send(client, shop, "PATCH", path, body) == (200, whole)
    assert await stores.pool.fetchval("SELECT count(*) FROM meter_version WHERE meter_id = $1", shop.meter.meter_id) == 1


async def test_changes_at_once_lose_none(client: Client, stores: Stores, shop: Shop) -> None:
    path = f"/v1/meters/{shop.meter.meter_id}"
    bodies = ({"name": "New"}, {"tiers": [{"start": "0", "rate": "7"}]}, {"token_basis": "output"})
    answers = await asyncio.gather(*(send(client, shop, "PATCH", path, body) for body in bodies * 3))
    assert {status for status, _ in answers} == {200}
    _, found = await send(client, shop, "GET", path)
    assert (found["name"], found["tiers"][0]["rate"], found["token_basis"]) == ("New", "7", "output")


async def test_what_makes_a_meter_what_it_is_does_not_change(client: Client, shop: Shop) -> None:
    path = f"/v1/meters/{shop.meter.meter_id}"
    body = {"meter_slug": "other", "rate_type": "percentage", "name": "Not this either"}
    status, found = await send(client, shop, "PATCH", path, body)
    assert (status, found["error"]["code"]) == (400, "immutable_field")
    assert "meter_slug and rate_type cannot be changed" in found["error"]["message"]
    assert (await send(client, shop, "GET", path))[1]["name"] == "Chat"


async def test_an_archived_meter_is_not_listed_and_its_slug_stays_taken(client: Client, shop: Shop) -> None:
    path = f"/v1/meters/{shop.meter.meter_id}"
    assert await send(client, shop, "DELETE", path) == (200, {"id": shop.meter.meter_id, "deleted": True})
    for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        assert (await send(client, shop, method, path, body))[0] == 404
    assert (await send(client, shop, "GET", "/v1/meters"))[1]["data"] == []
    status, found = await send(client, shop, "POST", "/v1/meters", CHAT | {"meter_slug": "chat"})
    assert (status, found["error"]["code"]) == (409, "meter_slug_taken")
    assert (await made(client, shop))["meter_slug"] == "chat-2"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, ["name"]),
        ({"rate_type": "both", "tier_type": "bytes"}, ["rate_type", "tier_type", "tokens_1m"]),
        ({"tiers": []}, ["tiers"]),
        ({"tiers": "20"}, ["tiers"]),
        ({"tiers": [{"start": "5", "rate": "1"}]}, ["tiers[0].start"]),
        ({"tiers": [{"start": "0", "rate": "1"}, {"start": "0", "rate": "2"}]}, ["tiers[1].start"]),
        ({"tiers": [{"start": "0", "rate": "-1"}]}, ["tiers[0].rate", "negative"]),
        ({"tiers": [{"start": "0", "rate": "9" * 30}]}, ["tiers[0].rate"]),
        ({"tiers": [{"start": "0", "rate": "0.0000000001"}]}, ["tiers[0].rate", "decimal places"]),
        ({"tiers": [{"start": "0", "rate": True}]}, ["tiers[0].rate"]),
        ({"tiers": [{"start": "0", "rate": "1"}] * 101}, ["101"]),
        ({"token_basis": "input"}, ["token_basis"]),
        ({"meter_slug": "a b"}, ["meter_slug"]),
        ({"meter_slug": "prd_mine"}, ["meter_slug", "prd_"]),
        ({"colour": 1}, ["colour", "not a field"]),
    ],
)
async def test_what_is_no_meter_is_refused_with_all_its_problems(
    client: Client, shop: Shop, fields: dict[str, Any], words: list[str]
) -> None:
    status, found = await send(client, shop, "POST", "/v1/meters", CHAT | fields)
    assert (status, found["error"]["code"]) == (400, "invalid_parameter")
    for word in words:
        assert word in found["error"]["message"]
    assert len((await send(client, shop, "GET", "/v1/meters"))[1]["data"]) == 1


@pytest.mark.parametrize("number", ["1e999999999", "-1e999999999", "1e-999999999", "9" * 4000, "1e400"])
async def test_a_number_that_no_counter_holds_is_refused_quickly(client: Client, shop: Shop, number: str) -> None:
    """Written out, the first would take a gigabyte."""
    for tier in (f'{{"start":0,"rate":{number}}}', f'{{"start":{number},"rate":1}}'):
        raw = f'{{"name":"n","rate_type":"fixed","tier_type":"requests","tiers":[{tier}]}}'
        async with asyncio.timeout(5), client.post("/v1/meters", data=raw, headers=shop.headers) as answer:
            assert answer.status == 400, await answer.text()
