"""POST with an Idempotency-Key is done once; and how often a key may ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.api.authentication import authentication
from lava_proxy.api.envelope import answer_errors, json_response
from lava_proxy.api.idempotency import idempotency
from lava_proxy.api.rate_limit import add_rate_limit_headers, rate_limit
from lava_proxy.domain.errors import CallerError
from lava_proxy.stores import key_rotation
from lava_proxy.stores.call_counts import CallCounts
from lava_proxy.stores.idempotent_answers import GIVEN_UP, KEPT, IdempotentAnswers
from lava_proxy.stores.outbox import connect
from lava_proxy.stores.vault import Vault, new_master_key
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, Shop, Stores, dependencies, open_shop, opened_stores, served

Client = TestClient[Any, Any]
POST = ("POST", "/v1/spend_keys")


@dataclass(slots=True)
class Clock:
    now: datetime = CLOCK

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "repeater")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(stores: Stores, clock: Clock) -> AsyncIterator[Client]:
    deps = dependencies(stores)
    answers = IdempotentAnswers(stores.pool, stores.vault, clock)
    async with served(replace(deps, merchant_stores=replace(deps.merchant_stores, idempotent_answers=answers))) as started:
        yield started


async def send(
    client: Client, shop: Shop, key: str, body: object, method: str = "POST", path: str = "/v1/spend_keys"
) -> tuple[int, Any, bool]:
    headers = shop.headers | {"Idempotency-Key": key}
    async with client.request(method, path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers.get("Idempotent-Replayed") == "true"


async def count_of(client: Client, shop: Shop) -> int:
    async with client.get("/v1/spend_keys?limit=100", headers=shop.headers) as answer:
        return len((await answer.json())["data"])


async def test_a_repeat_gets_the_first_answer_with_its_secret_and_makes_nothing(client: Client, stores: Stores, shop: Shop) -> None:
    """L2: the kept answer shows a secret, so it is sealed."""
    status, first, replayed = await send(client, shop, "k-1", {"name": "once"})
    assert (status, replayed) == (201, False)
    for _ in range(2):
        assert await send(client, shop, "k-1", {"name": "once"}) == (201, first, True)
    assert await count_of(client, shop) == 1
    sealed = await stores.pool.fetchval("SELECT answer_sealed FROM idempotent_answer WHERE idempotency_key = 'k-1'")
    assert first["key"].encode() not in sealed


async def test_repeats_at_once_do_it_once(client: Client, shop: Shop) -> None:
    answers = await asyncio.gather(*(send(client, shop, "rush", {"name": "once"}) for _ in range(10)))
    assert await count_of(client, shop) == 1
    assert {status for status, _, _ in answers} <= {201, 409}
    assert {found["error"]["code"] for status, found, _ in answers if status == 409} <= {"idempotency_running"}
    assert len({found["key"] for status, found, _ in answers if status == 201}) == 1


async def test_another_request_under_the_same_key_is_a_conflict(client: Client, shop: Shop) -> None:
    await send(client, shop, "k-2", {"name": "one"})
    for body, path in (
        ({"name": "two"}, "/v1/spend_keys"),
        ({"name": "one"}, "/v1/secret_keys"),
        ({"name": "one"}, "/v1/spend_keys?x=1"),
    ):
        status, found, _ = await send(client, shop, "k-2", body, path=path)
        assert (status, found["error"]["code"]) == (409, "idempotency_conflict")
    assert await count_of(client, shop) == 1


async def test_keys_belong_to_their_merchant(client: Client, stores: Stores, shop: Shop) -> None:
    rival = await open_shop(stores, "same key")
    _, first, _ = await send(client, shop, "shared", {"name": "n"})
    status, second, replayed = await send(client, rival, "shared", {"name": "n"})
    assert (status, replayed) == (201, False) and first["key"] != second["key"]


async def test_a_refusal_is_not_kept_so_a_mended_request_may_use_the_key(client: Client, shop: Shop) -> None:
    assert (await send(client, shop, "k-3", {"name": ""}))[0] == 400
    assert (await send(client, shop, "k-3", {"name": "mended"}))[0] == 201


async def test_a_key_is_forgotten_after_a_day(client: Client, stores: Stores, shop: Shop, clock: Clock) -> None:
    await send(client, shop, "k-4", {"name": "n"})
    clock.now += KEPT - timedelta(seconds=1)
    assert (await send(client, shop, "k-4", {"name": "n"}))[2]
    clock.now += timedelta(seconds=1)
    assert (await send(client, shop, "k-4", {"name": "n"}))[2] is False
    assert await count_of(client, shop) == 2
    clock.now += 2 * KEPT
    await send(client, shop, "k-5", {"name": "n"})
    assert await stores.pool.fetchval("SELECT count(*) FROM idempotent_answer") == 1


async def test_a_claim_whose_process_died_is_taken_over_after_a_while(stores: Stores, shop: Shop, clock: Clock) -> None:
    """And the first, should it live after all, does not write over the second's answer."""
    answers = IdempotentAnswers(stores.pool, stores.vault, clock)
    first = await answers.claim(shop.merchant.merchant_id, "k", b"h")
    with pytest.raises(CallerError, match="still being worked on"):
        await answers.claim(shop.merchant.merchant_id, "k", b"h")
    clock.now += GIVEN_UP
    second = await answers.claim(shop.merchant.merchant_id, "k", b"h")
    assert isinstance(first, str) and isinstance(second, str) and first != second
    await answers.drop(shop.merchant.merchant_id, "k", first)
    with pytest.raises(CallerError, match="still being worked on"):
        await answers.claim(shop.merchant.merchant_id, "k", b"h")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_what_is_no_key_is_a_400(client: Client, shop: Shop, key: str) -> None:
    status, found, _ = await send(client, shop, key, {"name": "n"})
    assert (status, found["error"]["code"]) == (400, "invalid_idempotency_key")


async def test_other_methods_ignore_the_header(client: Client, shop: Shop) -> None:
    for _ in range(2):
        status, _, replayed = await send(client, shop, "k-6", None, "GET", "/v1/wallet")
        assert (status, replayed) == (200, False)


async def test_a_failure_of_ours_gives_the_key_back(stores: Stores, shop: Shop, clock: Clock) -> None:
    tries = 0

    async def fail_once(request: web.Request) -> web.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a bug")
        return json_response({"tries": tries})

    answers = IdempotentAnswers(stores.pool, stores.vault, clock)
    application = web.Application(middlewares=[answer_errors, authentication(stores.catalog), idempotency(answers)])
    application.add_routes([web.post("/v1/spend_keys", fail_once)])
    async with TestClient(TestServer(application)) as client:
        assert [(await send(client, shop, "k-7", {}))[0] for _ in range(3)] == [500, 200, 200]
    assert tries == 2


async def test_kept_answers_open_under_a_new_master_key(stores: Stores, shop: Shop, clock: Clock) -> None:
    old, new = new_master_key(), new_master_key()
    answers = IdempotentAnswers(stores.pool, Vault(old), clock)
    await stores.pool.execute("DELETE FROM idempotent_answer")
    claim = await answers.claim(shop.merchant.merchant_id, "k", b"h")
    assert isinstance(claim, str)
    (column,) = [column for column in key_rotation.SEALED if column.table == "idempotent_answer"]
    row = await stores.pool.fetchrow("SELECT * FROM idempotent_answer")
    assert row is not None
    assert Vault(new, (old,)).open(row["answer_sealed"], column.context_of(row)) == ""


# -- how often a key may ask


async def test_every_answer_tells_how_many_requests_are_left_and_the_next_is_a_429(stores: Stores, shop: Shop) -> None:
    async with served(dependencies(stores, requests_per_minute=3)) as client:
        left = []
        for path in ("/v1/wallet", "/v1/nothing", "/v1/customers?limit=0", "/v1/wallet", "/v1/wallet"):
            async with client.get(path, headers=shop.headers) as answer:
                left.append((answer.status, answer.headers["X-RateLimit-Remaining"]))
                assert answer.headers["X-RateLimit-Limit"] == "3" and int(answer.headers["X-RateLimit-Reset"]) % 60 == 0
                last = dict(answer.headers), await answer.json()
        assert left == [(200, "2"), (404, "1"), (400, "0"), (429, "0"), (429, "0")]
        assert 0 < int(last[0]["Retry-After"]) <= 60 and last[1]["error"]["code"] == "rate_limited"
        async with client.get("/v1/wallet", headers={"Authorization": "Bearer aks_live_unknown"}) as answer:
            assert answer.status == 401 and "X-RateLimit-Limit" not in answer.headers


async def test_the_count_begins_again_with_the_minute_and_each_key_has_its_own(stores: Stores, shop: Shop) -> None:
    now = 6_000_059.0
    application = web.Application(
        middlewares=[answer_errors, authentication(stores.catalog), rate_limit(CallCounts(stores.redis), 1, lambda: now)]
    )
    application.on_response_prepare.append(add_rate_limit_headers)

    async def answer_ok(request: web.Request) -> web.Response:
        return json_response({"ok": True})

    application.add_routes([web.get("/v1/wallet", answer_ok)])
    other = await stores.catalog.create_secret_key(shop.merchant.merchant_id, "other")
    async with TestClient(TestServer(application)) as client:

        async def ask(key: str) -> tuple[int, str]:
            async with client.get("/v1/wallet", headers={"Authorization": f"Bearer {key}"}) as answer:
                return answer.status, answer.headers["X-RateLimit-Reset"]

        assert [await ask(shop.key), await ask(shop.key), await ask(other)] == [
            (200, "6000060"), (429, "6000060"), (200, "6000060"),
        ]  # fmt: skip
        now += 1
        assert await ask(shop.key) == (200, "6000120")


async def test_without_redis_requests_are_answered_uncounted(stores: Stores, shop: Shop) -> None:
    away = connect("redis://127.0.0.1:1/0")
    deps = dependencies(stores)
    counts = replace(deps.merchant_stores, call_counts=CallCounts(away))
    async with served(replace(deps, merchant_stores=counts)) as client:
        for _ in range(2):
            async with client.get("/v1/meters", headers=shop.headers) as answer:
                assert answer.status == 200 and "X-RateLimit-Limit" not in answer.headers
    await away.aclose()
