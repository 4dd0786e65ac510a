"""The Python client against the running daemon; the one for asyncio is the same words and is driven through its own edges."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import OpenAI

from lava_proxy.client import AsyncLavaClient, InvalidRequestError, LavaClient, NotFoundError
from tests.daemon import Daemon, until
from tests.e2e import lava_sdk
from tests.e2e.lava_sdk import has_shape, page_of


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[LavaClient]:
    with LavaClient(daemon.info["secret_key"], base_url=daemon.base_url) as client:
        yield client


def test_a_shop_from_the_first_customer_to_the_last_request(daemon: Daemon, client: LavaClient) -> None:
    """L7: reports, alone and in batches, are charged once."""
    first_price, price = [{"start": "0", "rate": "20"}], {"start": "0", "rate": "10"}
    meter = client.meters.create(name="Python client", rate_type="fixed", tier_type="tokens_1m", tiers=first_price)
    changed = client.meters.update(meter["meter_id"], tiers=[price])
    assert changed["tiers"] == [{"start": 0, "rate": "10", "type": "tokens_1m"}]
    customer = client.customers.create(reference_id="py/1", email="ada@example.com", idempotency_key="py-customer")
    assert client.customers.create(reference_id="py/1", email="ada@example.com", idempotency_key="py-customer") == customer
    assert client.customers.retrieve("py/1") == has_shape(customer, lava_sdk.CUSTOMER)
    assert client.customers.update("py/1", email=None, name="Ada Lovelace")["contact"]["email"] is None
    assert client.customers.subscription("py/1") is None or customer["subscription"] is not None

    report: Any = {"customer_id": "py/1", "meter_slug": meter["meter_slug"], "input_tokens": 1000, "metadata": {"job": "py"}}
    made: Any = client.requests.report(request_id="py-0", input_seconds=Decimal("1.5"), **report)
    assert client.requests.report(request_id="py-0", input_seconds=Decimal("1.5"), **report) == made
    assert has_shape(json.loads(json.dumps(made, default=float)), lava_sdk.REQUEST)["charge"]["amount"] == "0.0100000000"
    batch: Any = [{**report, "request_id": request_id} for request_id in ("py-1", "py-2", "")]
    results = client.requests.report_many(batch)
    assert [one["status"] for one in results] == [200, 200, 400] and "request_id" in results[2]["error"]["message"]
    rows = until(lambda: rows_of(client) if len(rows_of(client)) == 3 else None, "three rows")
    assert sorted(rows) == ["py-0", "py-1", "py-2"] and rows[-1] == "py-0"  # those of a batch have one moment
    assert rows == [row["request_id"] for row in client.requests.list(customer_id="py/1")["data"]]
    assert client.requests.retrieve("py-1")["metadata"] == {"job": "py"}
    lines = client.requests.export(format="ndjson", customer_id="py/1").splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == rows
    day = made["created_at"][:10]
    usage = client.usage.retrieve(start=f"{day}T00:00:00Z", customer_id="py/1", group_by="meter")
    assert (usage["totals"]["total_charge"], usage["groups"][0]["group"]) == ("0.0300000000", meter["meter_id"])
    assert client.usage.csv(start=f"{day}T00:00:00Z", customer_id="py/1").startswith("date,start,end,total_requests")
    assert client.customers.delete("py/1") == {"success": True}
    assert client.meters.delete(meter["meter_id"]) == {"id": meter["meter_id"], "deleted": True}
    with pytest.raises(NotFoundError) as told:
        client.customers.retrieve("py/1")
    assert (told.value.status, told.value.code) == (404, "not_found")


def rows_of(client: LavaClient) -> list[str]:
    return [row["request_id"] for row in client.requests.iterate(customer_id="py/1", metadata_filters={"job": "py"})]


def test_its_token_pays_for_a_call_of_the_official_sdk(daemon: Daemon, client: LavaClient) -> None:
    token = client.generate_forward_token(customer_id=daemon.info["connection_id"], meter_slug="fixed")
    openai = OpenAI(base_url=client.provider_url("openai") + "/v1", api_key=token, max_retries=0)
    answer = openai.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}])
    row = client.requests.retrieve(answer.headers["x-lava-request-id"])
    assert row["customer_id"] == daemon.info["connection_id"] and row["model"] == "gpt-4o-mini"
    assert row["model_usage"]["total_tokens"] > 0


def test_keys_webhooks_wallet_and_models(client: LavaClient) -> None:
    key = client.secret_keys.create(name="Python")
    with LavaClient(key["secret_key"], base_url=client.base_url) as other:
        assert has_shape(other.wallet(), {"wallet_id": str, "balance": lava_sdk.ANY_DOLLARS})
    assert key["secret_key_id"] in {each["secret_key_id"] for each in client.secret_keys.iterate()}
    assert has_shape(client.secret_keys.list(limit=1), page_of(lava_sdk.SECRET_KEY))
    assert client.secret_keys.delete(key["secret_key_id"])["deleted"]

    spend = client.spend_keys.create(name="Python", spend_limit={"amount": "5.00", "cycle": "daily"})
    assert client.spend_keys.update(spend["spend_key_id"], spend_limit=None)["spend_limit"] is None
    assert client.spend_keys.rotate(spend["spend_key_id"])["key"] != spend["key"]
    assert has_shape(client.spend_keys.retrieve(spend["spend_key_id"]), lava_sdk.SPEND_KEY)
    assert next(iter(client.spend_keys.iterate())) == client.spend_keys.list(limit=1)["data"][0]
    assert client.spend_keys.delete(spend["spend_key_id"]) == {"success": True}

    webhook = client.webhooks.create(name="Python", url="http://127.0.0.1:9/hooks", events=["customer.created"])
    assert client.webhooks.update(webhook["webhook_id"], name="Renamed")["name"] == "Renamed"
    assert client.webhooks.rotate(webhook["webhook_id"])["webhook_secret"] != webhook["webhook_secret"]
    assert client.webhooks.test(webhook["webhook_id"])["last_status_code"] is None  # nobody listens there
    [delivery] = client.webhooks.deliveries(webhook["webhook_id"])["data"]
    assert client.webhooks.replay(webhook["webhook_id"], delivery["delivery_id"])["event_id"] == delivery["event_id"]
    assert client.webhooks.retrieve(webhook["webhook_id"])["events"] == ["customer.created"]
    assert webhook["webhook_id"] in {each["webhook_id"] for each in client.webhooks.iterate()}
    assert client.webhooks.delete(webhook["webhook_id"])["id"] == webhook["webhook_id"]

    assert {"openai", "anthropic"} <= {model["owned_by"] for model in client.models.list()}
    with pytest.raises(InvalidRequestError, match="name") as told:
        client.secret_keys.create(name="")
    assert told.value.code == "invalid_parameter"


def test_the_client_for_asyncio_lists_creates_and_closes(daemon: Daemon) -> None:
    async def work() -> None:
        async with AsyncLavaClient(daemon.info["secret_key"], base_url=daemon.base_url) as client:
            made = await asyncio.gather(*(client.customers.create(reference_id=f"aio-{n}") for n in range(3)))
            found = [customer["customer_id"] async for customer in client.customers.iterate()]
            assert {customer["customer_id"] for customer in made} <= set(found)
            assert (await client.usage.retrieve(start="2026-11-01T00:00:00Z", end="2026-11-02T00:00:00Z"))["items"][0]["date"]
        with pytest.raises(RuntimeError, match="closed"):
            await client.wallet()
        mine = httpx.AsyncClient()
        async with AsyncLavaClient(daemon.info["secret_key"], base_url=daemon.base_url, http=mine) as client:
            assert (await client.wallet())["wallet_id"]
        assert not mine.is_closed
        await mine.aclose()

    asyncio.run(work())
