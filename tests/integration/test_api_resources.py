"""The REST resources over real stores: what they show, to whom, and what they refuse."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.domain.catalog import Tier
from lava_proxy.stores.ids import created_ms, new_id
from lava_proxy.wire.forward_token import mint
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Shop, Stores, dependencies, open_shop, opened_stores, sell, served

Client = TestClient[Any, Any]


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def acme(stores: Stores) -> Shop:
    """Twelve calls, the even ones of feature chat."""
    shop = await open_shop(stores, "acme")
    for number in range(12):
        await sell(stores, shop, flush=False, metadata={"feature": "chat" if number % 2 == 0 else "search", "v": str(number)})
    await stores.flush()
    return shop


@pytest.fixture(scope="module")
async def rival(stores: Stores) -> Shop:
    shop = await open_shop(stores, "rival")
    await sell(stores, shop)
    return shop


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


async def fetch(client: Client, path: str, shop: Shop, **parameters: str) -> Any:
    async with client.get(path, params=parameters, headers=shop.headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def refused(
    client: Client, path: str, shop: Shop | None = None, method: str = "GET", **options: Any
) -> tuple[int, dict[str, Any]]:
    """The status and the error of an answer that must be the envelope."""
    headers = shop.headers if shop else {}
    async with client.request(method, path, headers=options.pop("headers", headers), **options) as answer:
        body = await answer.json()
        assert set(body) == {"error"} and set(body["error"]) == {"message", "code", "status"}
        assert body["error"]["status"] == answer.status and body["error"]["message"]
        return answer.status, body["error"]


# -- requests


async def test_a_request_has_its_exact_amounts_in_both_vocabularies(client: Client, acme: Shop) -> None:
    found = await fetch(client, f"/v1/requests/{acme.request_ids[0]}", acme)
    line = {
        "tier": {"start": 0, "rate": "20", "type": "tokens_1m"},
        "tokens": 1500,
        "characters": 0,
        "seconds": 0,
        "cost": "0.0300000000",
    }
    assert found["charge"] == {"amount": "0.0300000000", "rate_type": "fixed", "breakdown": [line]}
    assert found["fee"] == found["charge"] | {"token_basis": "input+output"}
    assert found["cost"] == "0.0045000010"
    assert found["model_usage"]["total_tokens"] == 1500 and found["model_usage"]["total_cost"] == "0.0045000010"
    assert (found["total_wallet_cost"], found["total_merchant_cost"]) == ("0.0300000000", "0.0045000010")
    assert found["customer_id"] == found["connection_id"] == acme.customer.connection_id
    assert found["meter_id"] == found["product_id"] == acme.meter.meter_id
    assert (found["status"], found["outcome"], found["provenance"]) == ("completed", "completed", "provider_final")
    assert found["billed"] is True and found["price_version"] == "test-1" and found["timings"] == {"total_us": 1200}
    assert found["metadata"] == {"feature": "search", "v": "11"}
    assert len(found["created_at"]) == len("2026-01-31T08:35:42Z") and found["created_at"].endswith("Z")


async def test_usage_is_shown_with_the_digits_that_were_stored(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "digits")
    usage = {
        "provider_cost_usd": Decimal("0.000000123456789012"),
        "audio_seconds": Decimal("1.50"),
        "other_models": {"x": {"n": 1}},
    }
    request_id = await sell(stores, shop, usage=usage)
    async with client.get(f"/v1/requests/{request_id}", headers=shop.headers) as answer:
        text = await answer.text()
    assert '"provider_cost_usd":0.000000123456789012' in text
    found = json.loads(text, parse_float=Decimal)
    assert found["usage"]["other_models"] == {"x": {"n": 1}}
    assert found["model_usage"]["total_seconds"] == Decimal("1.5")


async def test_a_call_on_the_merchants_own_wallet_has_no_customer_and_no_meter(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "own")
    found = await fetch(client, f"/v1/requests/{await sell(stores, shop, by_meter=False)}", shop)
    assert not {"customer_id", "connection_id", "meter_id", "product_id", "meter_slug"} & set(found)
    assert found["charge"] == {"amount": "0.0045000010", "rate_type": None, "breakdown": []}
    assert (found["total_wallet_cost"], found["total_merchant_cost"]) == ("0.0000000000", "0.0045000010")


async def test_an_archived_tier_is_shown_as_it_was_charged(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "archived")
    request_id = await sell(stores, shop)
    await stores.pool.execute("UPDATE meter SET archived_at = now() WHERE meter_id = $1", shop.meter.meter_id)
    found = await fetch(client, f"/v1/requests/{request_id}", shop)
    assert found["charge"]["breakdown"][0]["tier"]["rate"] == "20"
    assert [r["request_id"] for r in (await fetch(client, "/v1/requests", shop, meter_id=shop.meter.meter_id))["data"]] == [
        request_id
    ]


async def test_pages_follow_each_other_newest_first_without_gap_or_repeat(client: Client, acme: Shop) -> None:
    seen, cursor = [], {}
    while True:
        page = await fetch(client, "/v1/requests", acme, limit="5", **cursor)
        seen += [item["request_id"] for item in page["data"]]
        if not page["has_more"]:
            break
        assert page["next_cursor"] == seen[-1] and len(page["data"]) == 5
        cursor = {"cursor": page["next_cursor"]}
    assert "next_cursor" not in page
    assert seen == sorted(acme.request_ids, reverse=True)


async def test_a_page_has_ten_items_unless_told_otherwise_and_an_exact_fit_ends_the_list(client: Client, acme: Shop) -> None:
    assert len((await fetch(client, "/v1/requests", acme))["data"]) == 10
    whole = await fetch(client, "/v1/requests", acme, limit="12", unknown="ignored", cursor="")
    assert (len(whole["data"]), whole["has_more"]) == (12, False)


@pytest.mark.parametrize("name", ["customer_id", "connection_id"])
async def test_requests_are_filtered_by_customer_id_and_reference(client: Client, acme: Shop, name: str) -> None:
    for reference in (acme.customer.connection_id, acme.customer.reference_id or ""):
        assert len((await fetch(client, "/v1/requests", acme, limit="100", **{name: reference}))["data"]) == 12
    for nobody in ("nobody", new_id("con")):
        assert (await fetch(client, "/v1/requests", acme, **{name: nobody})) == {"data": [], "has_more": False}


@pytest.mark.parametrize("name", ["meter_id", "product_id"])
async def test_requests_are_filtered_by_meter_id_and_slug(client: Client, acme: Shop, name: str) -> None:
    for reference in (acme.meter.meter_id, "chat"):
        assert len((await fetch(client, "/v1/requests", acme, limit="100", **{name: reference}))["data"]) == 12
    assert (await fetch(client, "/v1/requests", acme, **{name: "no-such-meter"}))["data"] == []


async def test_requests_are_filtered_by_all_metadata_pairs(client: Client, acme: Shop) -> None:
    chat = await fetch(client, "/v1/requests", acme, metadata_filters='[["feature","chat"]]')
    assert {item["metadata"]["feature"] for item in chat["data"]} == {"chat"} and len(chat["data"]) == 6
    both = await fetch(client, "/v1/requests", acme, metadata_filters='[["feature","chat"],["v","4"]]')
    assert [item["metadata"] for item in both["data"]] == [{"feature": "chat", "v": "4"}]
    assert (await fetch(client, "/v1/requests", acme, metadata_filters='[["feature","search"],["v","4"]]'))["data"] == []
    assert len((await fetch(client, "/v1/requests", acme, metadata_filters="[]"))["data"]) == 10


async def test_all_problems_of_a_query_are_told_together(client: Client, acme: Shop) -> None:
    status, error = await refused(
        client, "/v1/requests?limit=0&cursor=%00x&metadata_filters=%7B%7D&customer_id=a&connection_id=b", acme
    )
    assert (status, error["code"]) == (400, "invalid_parameter")
    for word in ("limit is '0'", "1 to 100", "cursor is", "metadata_filters is '{}'", "customer_id and connection_id"):
        assert word in error["message"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=101",
        "limit=-1",
        "limit=1.0",
        "limit=",
        "limit=%C2%B2",
        "cursor=con_01HZZZZZZZZZZZZZZZZZZZZZZZ",
        "cursor=req_x",
        "cursor=req_01HZZZZZZZZZZZZZZZZZZZZZ%00Z",
        "metadata_filters=",
        "metadata_filters=[[1,2]]",
        'metadata_filters=[["a"]]',
        'metadata_filters=[["a","b","c"]]',
        'metadata_filters=[["a","\\u0000"]]',
        'metadata_filters=[["a","\\ud800"]]',
        'metadata_filters=[["a-b","c"]]',
        'metadata_filters=[["a","1"],["a","2"]]',
        'metadata_filters={"a":"b"}',
        "metadata_filters=[" + ",".join(['["a","b"]'] * 101) + "]",
        "customer_id=",
        "customer_id=%00",
        "customer_id=" + "x" * 256,
        "meter_id=%ff%fe%0a",
    ],
)
async def test_a_bad_parameter_is_a_400_that_names_it(client: Client, acme: Shop, query: str) -> None:
    status, error = await refused(client, f"/v1/requests?{query}", acme)
    assert status == 400
    assert query.partition("=")[0] in error["message"]


async def test_a_request_that_has_just_ended_is_waited_for(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "hasty")
    request_id = await sell(stores, shop, flush=False)
    asked = asyncio.ensure_future(fetch(client, f"/v1/requests/{request_id}", shop))
    done, _ = await asyncio.wait([asked], timeout=0.1)
    assert not done
    await stores.flush()
    assert (await asked)["request_id"] == request_id


async def test_a_report_is_found_by_the_id_that_its_merchant_gave_it(client: Client, stores: Stores) -> None:
    """L7, 47: shown under it, found by it (waited for a moment) and by ours; pages go on by ours."""
    shop = await open_shop(stores, "reporter")
    ours = [await sell(stores, shop, flush=False, request_key=f"order {n}", fingerprint="f") for n in range(3)]
    asked = asyncio.ensure_future(fetch(client, "/v1/requests/order%202", shop))
    done, _ = await asyncio.wait([asked], timeout=0.1)
    assert not done
    await stores.flush()
    assert (await asked)["request_id"] == "order 2"
    assert (await fetch(client, f"/v1/requests/{ours[2]}", shop))["request_id"] == "order 2"
    page = await fetch(client, "/v1/requests?limit=2", shop)
    assert [row["request_id"] for row in page["data"]] == ["order 2", "order 1"] and page["next_cursor"] == ours[1]
    rest = await fetch(client, f"/v1/requests?limit=2&cursor={page['next_cursor']}", shop)
    assert [row["request_id"] for row in rest["data"]] == ["order 0"]


async def test_an_id_with_an_old_time_in_it_is_waited_for_while_the_ledger_is_behind(client: Client, stores: Stores) -> None:
    """L7: a merchant may choose an id that looks like one of ours from long ago; what is acknowledged is found all the same."""
    shop = await open_shop(stores, "antiquarian")
    chosen = "req_0000000000AAAAAAAAAAAAAAAA"
    await sell(stores, shop, flush=False, request_key=chosen, fingerprint="f")
    asked = asyncio.ensure_future(fetch(client, f"/v1/requests/{chosen}", shop))
    done, _ = await asyncio.wait([asked], timeout=0.3)
    assert not done
    await stores.flush()
    assert (await asked)["request_id"] == chosen


@pytest.mark.parametrize("request_id", ["req_0000000000AAAAAAAAAAAAAAAA", "req_%00", "x" * 300, "order 1"])
async def test_an_id_that_cannot_be_coming_is_not_waited_for(client: Client, acme: Shop, request_id: str) -> None:
    started = asyncio.get_running_loop().time()
    status, error = await refused(client, f"/v1/requests/{request_id}", acme)
    assert (status, error["code"]) == (404, "not_found")
    assert asyncio.get_running_loop().time() - started < 1


async def test_an_id_that_is_no_text_is_not_found(client: Client, acme: Shop) -> None:
    assert (await refused(client, "/v1/requests/%ED%A0%80", acme))[0] == 404


# -- whose is it


async def test_another_merchants_things_are_not_there(client: Client, acme: Shop, rival: Shop) -> None:
    """A merchant who knows another's ids and secrets learns nothing by them, filters included."""
    assert acme.customer.secret
    for path in (
        f"/v1/requests/{acme.request_ids[0]}",
        f"/v1/customers/{acme.customer.connection_id}",
        f"/v1/customers/{acme.customer.reference_id}",
        f"/v1/connections/{acme.customer.connection_id}",
        f"/v1/connections/{acme.customer.secret}",
        f"/v1/meters/{acme.meter.meter_id}",
    ):
        assert (await refused(client, path, rival))[0] == 404, path
    assert (await fetch(client, "/v1/requests", rival, customer_id=acme.customer.connection_id))["data"] == []
    assert (await fetch(client, "/v1/requests", rival, meter_id=acme.meter.meter_id))["data"] == []
    assert [item["request_id"] for item in (await fetch(client, "/v1/requests", rival))["data"]] == rival.request_ids
    older = await fetch(client, "/v1/requests", rival, cursor=acme.request_ids[0])
    assert not {item["request_id"] for item in older["data"]} & set(acme.request_ids)
    for path, key in (("/v1/customers", "customer_id"), ("/v1/connections", "connection_id"), ("/v1/meters", "meter_id")):
        (only,) = (await fetch(client, path, rival))["data"]
        assert only[key] in (rival.customer.connection_id, rival.meter.meter_id)


async def test_the_same_slug_and_reference_name_each_merchants_own(client: Client, acme: Shop, rival: Shop) -> None:
    assert (await fetch(client, "/v1/meters/chat", rival))["meter_id"] == rival.meter.meter_id
    assert (await fetch(client, "/v1/meters/chat", acme))["meter_id"] == acme.meter.meter_id


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic abc",
        "Bearer aks_live_unknown",
        "Bearer %%%",
        "Bearer e30=",
        "Bearer \xff\xfe",
        "Bearer " + "a" * 8000,
    ],
)
async def test_a_missing_or_unknown_key_is_a_401(client: Client, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/v1/requests", "/v1/wallet", "/v1/no-such-thing", "/v1/plans"):
        status, error = await refused(client, path, headers=headers)
        assert (status, error["code"]) == (401, "invalid_token")


async def test_a_401_says_how_to_sign_in_and_repeats_nothing_of_the_key(client: Client) -> None:
    async with client.get("/v1/wallet", headers={"Authorization": "Bearer aks_live_topsecretvalue"}) as answer:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "topsecretvalue" not in await answer.text()


async def test_a_forward_token_works_by_its_secret_key(client: Client, acme: Shop) -> None:
    for token in (mint(acme.key), mint(acme.key, acme.customer.connection_id, "chat")):
        async with client.get("/v1/wallet", headers={"Authorization": f"bearer  {token}"}) as answer:
            assert (await answer.json())["wallet_id"] == acme.merchant.wallet_id


async def test_a_spend_key_is_refused_here(client: Client) -> None:
    assert (await refused(client, "/v1/wallet", headers={"Authorization": "Bearer lava_sk_x"}))[0] == 403


async def test_a_revoked_key_ends_at_once(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "revoked")
    await fetch(client, "/v1/wallet", shop)
    (key,) = await stores.catalog.secret_keys(shop.merchant.merchant_id)
    await stores.catalog.revoke_secret_key(key["secret_key_id"])
    assert (await refused(client, "/v1/wallet", shop))[0] == 401


# -- customers, connections, meters, wallet


async def test_a_customer_has_a_live_balance_by_pot(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "live")
    await sell(stores, shop, flush=False)
    await stores.balances.reserve(shop.customer.wallet_id, new_id("req"), 2 * USD, row=b"{}", lease_ms=60_000)
    for reference in (shop.customer.connection_id, "customer%20of%20live"):
        found = await fetch(client, f"/v1/customers/{reference}", shop)
        assert found["balance"] == "24.9700000000"
        assert (found["balance_available"], found["balance_held"]) == ("22.9700000000", "2.0000000000")
        assert found["pots"]["funds"] == {"available": "22.9700000000", "held": "2.0000000000"}
        assert found["pots"]["plan"] == {"available": "0.0000000000", "held": "0.0000000000"}
        assert found["contact"] == {"phone": None, "email": "buyer@live.example", "first_name": None, "last_name": None}
        assert found["customer_id"] == shop.customer.connection_id and found["reference_id"] == "customer of live"
        assert found["metadata"] == {"team": "red"} and found["subscription"]["name"] == "Free"


async def test_lists_of_customers_and_connections_page_and_show_no_secret(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "many")
    ids = [shop.customer.connection_id]
    for number in range(4):
        connection = await stores.catalog.create_connection(shop.merchant.merchant_id, reference_id=f"c{number}")
        await stores.balances.open_wallet(connection.wallet_id)
        ids.append(connection.connection_id)
    for path, key in (("/v1/customers", "customer_id"), ("/v1/connections", "connection_id")):
        first = await fetch(client, path, shop, limit="3")
        second = await fetch(client, path, shop, limit="3", cursor=first["next_cursor"])
        assert [item[key] for item in first["data"] + second["data"]] == sorted(ids, reverse=True)
        assert first["has_more"] and not second["has_more"] and "next_cursor" not in second
        assert "cons_live_" not in json.dumps(first) + json.dumps(second)
        assert (await refused(client, f"{path}?cursor={shop.meter.meter_id}", shop))[0] == 400


async def test_a_connection_has_both_older_vocabularies_and_its_secret_only_alone(client: Client, acme: Shop) -> None:
    found = await fetch(client, f"/v1/connections/{acme.customer.secret}", acme)
    assert found["connection_id"] == acme.customer.connection_id
    assert found["connection_secret"] == acme.customer.secret
    assert found["has_lava_credit_balance"] is True
    assert found["wallet"]["balance"] == "24.6400000000" and found["wallet"]["autopay_enabled"] is False
    assert found["wallet"]["email"] == found["customer"]["email"] == "buyer@acme.example"
    cycle = (await fetch(client, f"/v1/connections/{acme.customer.connection_id}/subscription", acme))["subscription"]
    assert (found["previous_usage_reset"], found["next_usage_reset"]) == (cycle["cycle_start_at"], cycle["cycle_end_at"])
    (listed,) = (await fetch(client, "/v1/connections", acme, reference_id="customer of acme"))["data"]
    assert listed["connection_id"] == acme.customer.connection_id and "connection_secret" not in listed
    assert (await fetch(client, "/v1/connections", acme, reference_id=acme.customer.connection_id))["data"] == []


async def test_a_wallet_that_redis_does_not_know_is_503_alone_and_null_in_a_list(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "unopened")
    connection = await stores.catalog.create_connection(shop.merchant.merchant_id, reference_id="unopened")
    for path in ("/v1/customers/unopened", "/v1/connections/unopened"):
        async with client.get(path, headers=shop.headers) as answer:
            assert answer.status == 503 and answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "recovering"
    newest = (await fetch(client, "/v1/customers", shop))["data"][0]
    assert newest["customer_id"] == connection.connection_id and newest["balance"] is None


async def test_a_deleted_customer_is_gone_but_its_requests_stay(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "leaver")
    request_id = await sell(stores, shop)
    await stores.pool.execute("UPDATE connection SET status = 'deleted' WHERE connection_id = $1", shop.customer.connection_id)
    assert (await refused(client, f"/v1/customers/{shop.customer.connection_id}", shop))[0] == 404
    assert (await fetch(client, "/v1/customers", shop))["data"] == []
    kept = await fetch(client, "/v1/requests", shop, customer_id=shop.customer.connection_id)
    assert [item["request_id"] for item in kept["data"]] == [request_id]


async def test_a_meter_is_shown_by_id_and_slug_without_its_secret(client: Client, stores: Stores, acme: Shop) -> None:
    for reference in (acme.meter.meter_id, "chat"):
        found = await fetch(client, f"/v1/meters/{reference}", acme)
        assert found["tiers"] == [
            {"start": 0, "rate": "20", "type": "tokens_1m"},
            {"start": 1_000_000, "rate": "15", "type": "tokens_1m"},
        ]
        assert (found["meter_id"], found["meter_slug"], found["rate_type"]) == (acme.meter.meter_id, "chat", "fixed")
        assert found["base_cost_payer"] == "merchant" and "prds_" not in json.dumps(found)
    assert (await refused(client, "/v1/meters/nothing", acme))[0] == 404


async def test_meters_page(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "metered")
    percent = await stores.catalog.create_meter(
        shop.merchant.merchant_id, name="Markup", slug="markup", rate_type="percentage", tier_type="tokens_1m",
        tiers=(Tier(start=0, rate=125_000),),
    )  # fmt: skip
    first = await fetch(client, "/v1/meters", shop, limit="1")
    second = await fetch(client, "/v1/meters", shop, limit="1", cursor=first["next_cursor"])
    pair = [first["data"][0], second["data"][0]]
    assert [meter["meter_id"] for meter in pair] == sorted([percent.meter_id, shop.meter.meter_id], reverse=True)
    assert [m["tiers"][0]["rate"] for m in pair if m["rate_type"] == "percentage"] == ["12.5"]


async def test_the_wallet_shows_the_merchants_own_money(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "walleted")
    assert (await fetch(client, "/v1/wallet", shop))["balance"] == "100.50"
    await sell(stores, shop, by_meter=False)
    found = await fetch(client, "/v1/wallet", shop)
    assert (found["wallet_id"], found["balance"]) == (shop.merchant.wallet_id, "100.495499999")


# -- refusals of the front door


async def test_what_is_not_built_yet_says_so(client: Client, acme: Shop) -> None:
    for method, path in (
        ("POST", "/v1/flex/checkout_sessions"),
        ("GET", "/v1/flex/customers"),
        ("POST", "/v1/flex/checkout_sessions"),
    ):
        status, error = await refused(client, path, acme, method)
        assert (status, error["code"]) == (501, "not_implemented") and "not built" in error["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/services")])
async def test_what_is_not_built_and_public_needs_no_key(client: Client, method: str, path: str) -> None:
    assert (await refused(client, path, method=method))[0] == 501


async def test_an_unknown_path_is_a_404_and_another_method_a_405_in_the_envelope(client: Client, acme: Shop) -> None:
    assert (await refused(client, "/v1/nonsense", acme))[0] == 404
    assert (await refused(client, "/nonsense"))[0] == 404
    async with client.delete("/v1/requests", headers=acme.headers) as answer:
        assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD, POST"
        assert (await answer.json())["error"]["code"] == "method_not_allowed"
    assert (await refused(client, "/v1/wallet", acme, "OPTIONS"))[0] == 405


async def test_a_body_above_a_mebibyte_is_refused_announced_or_not(client: Client, acme: Shop) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65_536

    for body in (io.BytesIO(b"x" * (2**20 + 1)), pieces()):
        status, error = await refused(client, "/v1/meters", acme, "POST", data=body)
        assert (status, error["code"]) == (413, "request_too_large")


async def test_every_answer_is_unsniffed_uncached_and_tells_no_software(client: Client, acme: Shop) -> None:
    for path in ("/v1/wallet", "/v1/nonsense", "/healthz", "/"):
        async with client.get(path, headers=acme.headers) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "aiohttp" not in str(answer.headers).lower() and "python" not in str(answer.headers).lower()


async def test_no_answer_to_a_get_is_empty(client: Client, acme: Shop) -> None:
    for path in ("/v1/requests", "/v1/customers", "/v1/meters", "/v1/wallet", "/v1/connections"):
        async with client.get(path, headers=acme.headers) as answer:
            assert answer.status == 200 and answer.content_type == "application/json" and await answer.read()


def test_the_ids_of_the_calls_are_in_the_order_they_were_made(acme: Shop) -> None:
    times = [created_ms(request_id) for request_id in acme.request_ids]
    assert times == sorted(times, reverse=True)
