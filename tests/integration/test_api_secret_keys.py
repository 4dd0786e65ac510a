"""Secret keys over REST, wallet keys of older clients, and the exchange of a sign-in code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.stores.login_codes import VALID_S, Login, LoginCodes
from tests.engines import RunningEngines
from tests.integration.api_world import Shop, Stores, dependencies, open_shop, opened_stores, served

Client = TestClient[Any, Any]


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "keyholder")


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


async def send(client: Client, key: str | None, method: str, path: str, body: object = None) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with client.request(method, path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_key_is_shown_once_listed_by_its_hint_and_ends_when_deleted(client: Client, shop: Shop) -> None:
    status, made = await send(client, shop.key, "POST", "/v1/secret_keys", {"name": "deploy"})
    assert status == 201 and set(made) == {"secret_key_id", "name", "secret_key_hint", "created_at", "secret_key"}
    secret = made["secret_key"]
    assert secret.startswith("aks_live_") and made["secret_key_hint"] == f"{secret[:9]}...{secret[-4:]}"
    _, listed = await send(client, secret, "GET", "/v1/secret_keys")
    assert [key["name"] for key in listed["data"]] == ["deploy", "keyholder"] and secret not in str(listed)
    assert listed["data"][0] == {name: value for name, value in made.items() if name != "secret_key"}
    path = f"/v1/secret_keys/{made['secret_key_id']}"
    assert await send(client, shop.key, "DELETE", path) == (200, {"id": made["secret_key_id"], "deleted": True})
    assert (await send(client, secret, "GET", "/v1/wallet"))[0] == 401
    assert (await send(client, shop.key, "DELETE", path))[0] == 404
    assert len((await send(client, shop.key, "GET", "/v1/secret_keys"))[1]["data"]) == 1


async def test_a_key_may_delete_itself_but_the_last_one_stays(client: Client, shop: Shop) -> None:
    _, listed = await send(client, shop.key, "GET", "/v1/secret_keys")
    own = f"/v1/secret_keys/{listed['data'][0]['secret_key_id']}"
    status, found = await send(client, shop.key, "DELETE", own)
    assert (status, found["error"]["code"]) == (409, "last_secret_key")
    _, second = await send(client, shop.key, "POST", "/v1/secret_keys", {"name": "second"})
    assert (await send(client, shop.key, "DELETE", own))[0] == 200
    assert (await send(client, shop.key, "GET", "/v1/wallet"))[0] == 401
    assert (await send(client, second["secret_key"], "GET", "/v1/wallet"))[0] == 200


async def test_of_the_last_two_keys_only_one_can_be_deleted_at_once(client: Client, shop: Shop) -> None:
    await send(client, shop.key, "POST", "/v1/secret_keys", {"name": "second"})
    _, listed = await send(client, shop.key, "GET", "/v1/secret_keys")
    paths = [f"/v1/secret_keys/{key['secret_key_id']}" for key in listed["data"]]
    answers = await asyncio.gather(*(send(client, shop.key, "DELETE", path) for path in paths * 3))
    assert [status for status, _ in answers].count(200) == 1
    assert {status for status, _ in answers} <= {200, 401, 404, 409}


async def test_a_test_key_makes_test_keys(client: Client, stores: Stores, shop: Shop) -> None:
    """SDKs choose their host by the prefix."""
    key = await stores.catalog.create_secret_key(shop.merchant.merchant_id, "t", live=False)
    assert (await send(client, key, "POST", "/v1/secret_keys", {"name": "n"}))[1]["secret_key"].startswith("aks_test_")


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": None}, {"name": "a\nb"}, {"name": "a", "live": True}])
async def test_a_key_needs_a_name_and_nothing_else(client: Client, shop: Shop, body: dict[str, Any]) -> None:
    status, found = await send(client, shop.key, "POST", "/v1/secret_keys", body)
    assert (status, found["error"]["code"]) == (400, "invalid_parameter")


async def test_wallet_keys_are_an_empty_list_and_none_of_them_is_there(client: Client, shop: Shop) -> None:
    """Clients of two older versions manage them; secret keys do their work."""
    assert await send(client, shop.key, "GET", "/v1/wallet_keys") == (200, {"data": [], "has_more": False})
    for method, path in (("DELETE", "/v1/wallet_keys/wk_1"), ("POST", "/v1/wallet_keys/wk_1/rotate")):
        status, found = await send(client, shop.key, method, path)
        assert (status, found["error"]["code"]) == (404, "not_found")


async def test_a_sign_in_code_is_exchanged_once_for_a_key_that_works(client: Client, stores: Stores, shop: Shop) -> None:
    codes = LoginCodes(stores.redis)
    code = await codes.create(Login(merchant_id=shop.merchant.merchant_id, account_id="acc_1"))
    answers = await asyncio.gather(*(send(client, None, "POST", "/v1/auth/callback", {"code": code}) for _ in range(5)))
    (found,) = [found for status, found in answers if status == 200]
    assert {status for status, _ in answers} == {200, 401}
    assert found.items() >= {
        "wallet_id": shop.merchant.wallet_id, "merchant_id": shop.merchant.merchant_id, "account_id": "acc_1",
    }.items()  # fmt: skip
    assert "wallet_key" not in found
    _, listed = await send(client, found["secret_key"], "GET", "/v1/secret_keys")
    assert listed["data"][0]["secret_key_id"] == found["secret_key_id"]
    assert {error["error"]["code"] for status, error in answers if status == 401} == {"invalid_code"}


async def test_a_sign_in_code_ends_after_a_minute_and_is_stored_by_its_hash(stores: Stores, shop: Shop) -> None:
    code = await LoginCodes(stores.redis).create(Login(merchant_id=shop.merchant.merchant_id, account_id="acc_1"))
    (name,) = [key async for key in stores.redis.scan_iter("login:*")]
    assert code.encode() not in name and 0 < await stores.redis.ttl(name) <= VALID_S == 60


@pytest.mark.parametrize("body", [{}, {"code": ""}, {"code": 5}, {"code": "x\0"}, {"code": "y" * 300}])
async def test_what_is_no_code_is_a_400(client: Client, body: dict[str, Any]) -> None:
    assert (await send(client, None, "POST", "/v1/auth/callback", body))[0] == 400
