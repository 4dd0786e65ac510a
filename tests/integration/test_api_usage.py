"""GET /v1/usage and GET /v1/requests/export: sums by day in the caller's zone, and files that add up to the ledger."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import ClientError
from aiohttp.test_utils import TestClient

from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.money import parse_usd
from lava_proxy.stores import request_export
from lava_proxy.stores.request_export import RequestExport, RequestFilter
from tests.engines import RunningEngines
from tests.integration.api_world import Shop, Stores, dependencies, open_shop, opened_stores, sell, served

Client = TestClient[Any, Any]
NOW = datetime.now(UTC)
TODAY = NOW.strftime("%Y-%m-%d")
SINCE = (NOW - timedelta(days=2)).strftime("%Y-%m-%d")
CALLS, OWN = 7, 2


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def acme(stores: Stores) -> Shop:
    """Seven calls by a meter, $0.03 each, and two of the merchant's own at cost."""
    shop = await open_shop(stores, "acme")
    for number in range(CALLS):
        await sell(stores, shop, flush=False, metadata={"feature": "=cmd" if number % 2 else "chat"})
    for _ in range(OWN):
        await sell(stores, shop, flush=False, by_meter=False)
    await stores.flush()
    return shop


@pytest.fixture(scope="module")
async def rival(stores: Stores) -> Shop:
    shop = await open_shop(stores, "rival")
    await sell(stores, shop)
    return shop


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores, clock=lambda: datetime.now(UTC))) as started:
        yield started


async def usage(client: Client, shop: Shop, **parameters: str) -> Any:
    async with client.get("/v1/usage", params={"start": SINCE, **parameters}, headers=shop.headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def refusal(client: Client, shop: Shop, path: str) -> str:
    async with client.get(path, headers=shop.headers) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, "invalid_parameter"), error
        message: str = error["message"]
        return message


async def exported(client: Client, shop: Shop, **parameters: str) -> str:
    async with client.get("/v1/requests/export", params=parameters, headers=shop.headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


async def test_every_day_of_the_window_is_there_with_its_sums(client: Client, acme: Shop) -> None:
    """32, 53: by all the names that clients of any version read, to the last decimal place."""
    found = await usage(client, acme)
    assert found["items"][0]["date"] == SINCE and len(found["items"]) in (3, 4)
    first = found["items"][0]
    assert (first["start"], first["end"]) == (f"{SINCE}T00:00:00Z", f"{SINCE}T23:59:59Z")
    assert first["total_requests"] == 0 and first["total_charge"] == "0.0000000000"
    cost = 4_500_001 * (CALLS + OWN)
    own, sold = 4_500_001 * OWN, 30_000_000 * CALLS

    def usd(nanos: int) -> str:
        return f"{Decimal(nanos) / 10**9:.10f}"

    assert found["totals"] == {
        "total_requests": CALLS + OWN,
        "total_errors": 0,
        "total_usage_tokens": 1500 * (CALLS + OWN),
        "total_input_tokens": 1000 * (CALLS + OWN),
        "total_output_tokens": 500 * (CALLS + OWN),
        "total_characters": 0,
        "total_seconds": 0,
        "total_cost": usd(cost),
        "total_charge": usd(sold + own),
        "total_usage_cost": usd(cost),
        "total_fee_amount": usd(sold),
        "total_service_charge_amount": usd(0),
        "total_request_cost": usd(sold + own + 4_500_001 * CALLS),
        "total_wallet_cost": usd(sold),
        "total_merchant_cost": usd(own + 4_500_001 * CALLS),
        "total_gross_volume": usd(sold),
        "total_net_volume": usd(sold - 4_500_001 * CALLS),
    }
    for name, total in found["totals"].items():
        items = [Decimal(str(item[name])) for item in found["items"]]
        assert sum(items) == Decimal(str(total)), name


async def test_totals_are_those_of_the_listed_requests(client: Client, acme: Shop) -> None:
    """32: the legacy split of each request, added up."""
    async with client.get("/v1/requests", params={"limit": "100"}, headers=acme.headers) as answer:
        listed = (await answer.json())["data"]
    totals = (await usage(client, acme))["totals"]
    for total, one in (
        ("total_request_cost", "total_request_cost"), ("total_wallet_cost", "total_wallet_cost"),
        ("total_merchant_cost", "total_merchant_cost"), ("total_cost", "cost"),
    ):  # fmt: skip
        assert Decimal(totals[total]) == sum(Decimal(request[one]) for request in listed), total
    assert Decimal(totals["total_fee_amount"]) == sum(Decimal(r["fee"]["amount"]) for r in listed if r.get("customer_id"))
    assert Decimal(totals["total_charge"]) == sum(Decimal(request["charge"]["amount"]) for request in listed)


@pytest.mark.parametrize("offset", ["+05:45", "-03:30", "+14:00", "-12:00"])
async def test_the_offset_of_the_start_is_the_zone_of_the_days(client: Client, acme: Shop, offset: str) -> None:
    """53: with the plus percent-encoded or not."""
    path = f"/v1/usage?start={SINCE}T00:00:00{offset}"
    async with client.get(path, headers=acme.headers) as answer:
        found = await answer.json()
    assert all(item["start"] == f"{item['date']}T00:00:00{offset}" for item in found["items"])
    assert all(item["end"] == f"{item['date']}T23:59:59{offset}" for item in found["items"])
    assert found["totals"]["total_requests"] == CALLS + OWN
    assert found == await usage(client, acme, start=f"{SINCE}T00:00:00{offset}")


@pytest.mark.parametrize(
    ("filters", "requests"),
    [
        ({"customer_id": "customer of acme"}, CALLS),
        ({"connection_id": "customer of acme", "meter_id": "chat"}, CALLS),
        ({"product_id": "chat"}, CALLS),
        ({"metadata_filters": '[["feature","chat"]]'}, 4),
        ({"metadata_filters": '[["feature","chat"]]', "customer_id": "customer of acme"}, 4),
        ({"customer_id": "nobody"}, 0),
        ({"customer_id": "customer of rival"}, 0),
        ({"customer_id": "con_0"}, 0),
        ({"meter_id": "nothing"}, 0),
        ({"end": SINCE}, 0),
    ],
    ids=str,
)
async def test_filters_narrow_what_is_counted(
    client: Client, acme: Shop, rival: Shop, filters: dict[str, str], requests: int
) -> None:
    found = await usage(client, acme, **filters)
    assert found["totals"]["total_requests"] == requests
    assert len(found["items"]) >= 1


async def test_the_same_time_twice_is_one_second_and_not_everything(client: Client, acme: Shop) -> None:
    """91: an empty window is zero."""
    found = await usage(client, acme, start=f"{SINCE}T07:00:00Z", end=f"{SINCE}T07:00:00Z")
    assert (len(found["items"]), found["totals"]["total_requests"], found["totals"]["total_charge"]) == (1, 0, "0.0000000000")


async def test_groups_and_what_they_leave_out_add_up_to_the_totals(client: Client, acme: Shop) -> None:
    """32: the largest first; null is the group of those that have no such thing."""
    found = await usage(client, acme, group_by="customer")
    assert [(g["group"], g["total_requests"]) for g in found["groups"]] == [(acme.customer.connection_id, CALLS), (None, OWN)]
    assert found["groups_rest"]["total_requests"] == 0
    found = await usage(client, acme, group_by="metadata:feature", group_limit="1")
    assert [(g["group"], g["total_requests"]) for g in found["groups"]] == [("chat", 4)]
    assert found["groups_rest"]["total_requests"] == 3 + OWN
    assert [g["group"] for g in (await usage(client, acme, group_by="model"))["groups"]] == ["gpt-4o-mini"]
    assert [g["group"] for g in (await usage(client, acme, group_by="provider", customer_id="nobody"))["groups"]] == []
    assert [g["group"] for g in (await usage(client, acme, group_by="meter"))["groups"]] == [acme.meter.meter_id, None]


async def test_buckets_can_be_hours_and_quarters(client: Client, acme: Shop) -> None:
    for bucket, count in (("hour", 24), ("15m", 96)):
        found = await usage(client, acme, end=SINCE, bucket=bucket)
        assert len(found["items"]) == count
        assert found["items"][-1]["end"] == f"{SINCE}T23:59:59Z"


async def test_usage_as_csv_has_the_same_figures(client: Client, acme: Shop) -> None:
    found = await usage(client, acme)
    async with client.get("/v1/usage", params={"start": SINCE, "format": "csv"}, headers=acme.headers) as answer:
        assert answer.content_type == "text/csv"
        rows = list(csv.DictReader(io.StringIO(await answer.text(), newline="")))
    assert [row["date"] for row in rows] == [item["date"] for item in found["items"]]
    assert sum(Decimal(row["total_charge"]) for row in rows) == Decimal(found["totals"]["total_charge"])
    params = {"start": SINCE, "format": "csv", "group_by": "metadata:feature"}
    async with client.get("/v1/usage", params=params, headers=acme.headers) as answer:
        rows = list(csv.DictReader(io.StringIO(await answer.text(), newline="")))
    assert {row["group"] for row in rows} == {"chat", "'=cmd", ""}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", ["start is required"]),
        ("start=", ["start is required"]),
        ("start=yesterday", ["start is 'yesterday': accepted is an ISO 8601 time"]),
        ("start=2026-01-02&end=2026-01-01", ["End is before start."]),
        ("start=2020-01-01&end=2026-01-01", ["400 days"]),
        ("start=2026-01-01T00:00:00%2B00:07", ["whole quarter hours"]),
        (
            "start=x&end=y&bucket=week&group_by=colour&group_limit=0&format=xml&metadata_filters=z&customer_id=%00&meter_id=a&product_id=b",
            [
                "start is 'x'", "end is 'y'", "bucket is 'week'", "group_by is 'colour'", "group_limit is '0'", "format is 'xml'",
                "metadata_filters is 'z'", "customer_id is", "meter_id and product_id",
            ],
        ),
        ("start=2026-01-01&group_by=metadata:", ["group_by is 'metadata:'"]),
    ],
)  # fmt: skip
async def test_everything_wrong_with_a_question_is_told_together(client: Client, acme: Shop, query: str, says: list[str]) -> None:
    message = await refusal(client, acme, f"/v1/usage?{query}")
    for part in says:
        assert part in message


async def test_usage_needs_a_key(client: Client) -> None:
    async with client.get("/v1/usage", params={"start": SINCE}) as answer:
        assert answer.status == 401
    async with client.get("/v1/requests/export") as answer:
        assert answer.status == 401


# -- exports


async def test_an_exports_charges_sum_to_the_ledger(client: Client, stores: Stores, acme: Shop, rival: Shop) -> None:
    """32, 53: to the nano-dollar, in both formats, page after page; nobody else's requests are in it."""
    ledger = await stores.pool.fetchval(
        "SELECT -sum(amount_nanos)::bigint FROM ledger_entry WHERE kind = 'settle' AND wallet_id = ANY($1::text[])",
        [acme.merchant.wallet_id, acme.customer.wallet_id],
    )
    rows = list(csv.DictReader(io.StringIO(await exported(client, acme), newline="")))
    lines = [json.loads(line) for line in (await exported(client, acme, format="ndjson")).splitlines()]
    assert [row["request_id"] for row in rows] == [line["request_id"] for line in lines] == sorted(acme.request_ids, reverse=True)
    assert sum(parse_usd(row["charge"]) for row in rows) == sum(parse_usd(one["charge"]["amount"]) for one in lines) == ledger
    assert {row["metadata"] for row in rows} == {'{"feature":"chat"}', '{"feature":"=cmd"}', ""}
    async with client.get(f"/v1/requests/{acme.request_ids[0]}", headers=acme.headers) as answer:
        assert await answer.json() == lines[0]


async def test_an_export_of_many_pages_misses_and_repeats_nothing(
    client: Client, acme: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in (1, 2, 3, CALLS + OWN, 100):
        monkeypatch.setattr(request_export, "PAGE_ROWS", rows)
        found = list(csv.DictReader(io.StringIO(await exported(client, acme), newline="")))
        assert [row["request_id"] for row in found] == sorted(acme.request_ids, reverse=True)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"customer_id": "customer of acme"}, CALLS),
        ({"meter_id": "chat", "status": "completed", "provider": "openai", "model": "gpt-4o-mini"}, CALLS),
        ({"metadata_filters": '[["feature","=cmd"]]'}, 3),
        ({"status": "error"}, 0),
        ({"provider": "anthropic"}, 0),
        ({"model": "other"}, 0),
        ({"customer_id": "customer of rival"}, 0),
        ({"start": SINCE}, CALLS + OWN),
        ({"start": SINCE, "end": SINCE}, 0),
        ({"end": "2020-01-01"}, 0),
    ],
    ids=str,
)
async def test_an_export_is_of_what_the_filters_say(client: Client, acme: Shop, filters: dict[str, str], count: int) -> None:
    assert len((await exported(client, acme, **filters)).splitlines()) == 1 + count
    assert len((await exported(client, acme, format="ndjson", **filters)).splitlines()) == count


async def test_a_wrong_export_question_is_answered_before_the_file_begins(client: Client, acme: Shop) -> None:
    query = "format=xls&status=new&start=x&end=y&customer_id=a&connection_id=b&metadata_filters=1&model="
    message = await refusal(client, acme, f"/v1/requests/export?{query}")
    for part in (
        "format is 'xls'",
        "status is 'new'",
        "start is 'x'",
        "end is 'y'",
        "customer_id and",
        "metadata_filters",
        "model is",
    ):
        assert part in message
    assert "End is before start" in await refusal(client, acme, "/v1/requests/export?start=2026-01-02&end=2026-01-01")


class FailingExport(RequestExport):
    """Postgres goes away after so many pages."""

    pages_left = 1

    async def page(self, *args: Any, **options: Any) -> list[dict[str, Any]]:
        if not self.pages_left:
            raise StoreError("Postgres cannot answer: gone", code="database_unavailable")
        self.pages_left -= 1
        return await super().page(*args, **options)


async def test_an_export_that_cannot_go_on_is_cut_and_not_taken_for_whole(
    stores: Stores, acme: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: with nothing sent yet it is a 503; later the connection breaks off."""
    monkeypatch.setattr(request_export, "PAGE_ROWS", 2)
    export = FailingExport(stores.pool)
    async with served(dependencies(stores, request_export=export)) as client:
        with pytest.raises(ClientError):
            await exported(client, acme)
        async with client.get("/v1/requests/export", headers=acme.headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "database_unavailable")


async def test_a_filtered_page_is_planned_for_what_is_looked_for(stores: Stores, acme: Shop) -> None:
    """A plan made for any model walks over ten million rows to find none of one that is not there."""
    pages, filters = RequestExport(stores.pool), RequestFilter(model="none", metadata={"feature": "chat"})
    statements = "SELECT * FROM pg_prepared_statements WHERE statement LIKE 'SELECT * FROM request WHERE%model%'"
    size = stores.pool.get_max_size()
    for _ in range(12 * size):  # from a connection's sixth on Postgres would choose
        assert await pages.page(acme.merchant.merchant_id, filters, before=None, limit=3) == []
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(size):
            connection = await stack.enter_async_context(stores.pool.acquire())
            found += [(row["generic_plans"], row["custom_plans"]) for row in await connection.fetch(statements)]
    assert sum(custom for _, custom in found) >= 12 * size and not any(generic for generic, _ in found)
