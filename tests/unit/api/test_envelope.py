"""api/envelope.py and api/formats.py: bodies, the envelope, short forms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.api.connections import month_of
from lava_proxy.api.envelope import BODY_BYTES_MAX, answer_errors, bound_body, error_response, json_response, read_object
from lava_proxy.api.formats import listing, seconds, short_usd, timestamp
from lava_proxy.domain.errors import LavaError, LimitExceeded, StoreError


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    async def echo(request: web.Request) -> web.Response:
        return json_response(await read_object(request))

    async def fail(request: web.Request) -> web.Response:
        raise {"store": StoreError("Away."), "limit": LimitExceeded("Slowly."), "ours": LavaError("Odd.")}[
            request.match_info["how"]
        ]

    application = web.Application(middlewares=[answer_errors, bound_body], client_max_size=BODY_BYTES_MAX)
    application.add_routes([web.post("/echo", echo), web.get("/fail/{how}", fail)])
    async with TestClient(TestServer(application)) as started:
        yield started


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"NaN", b"\xff", b'{"a":}', b"[" * 5000])
async def test_a_body_that_is_no_json_object_is_a_400(client: TestClient[Any, Any], body: bytes) -> None:
    async with client.post("/echo", data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_is_not_of_its_coding_is_a_400(client: TestClient[Any, Any], coding: str) -> None:
    """The caller's mistake, and no fault of ours to log."""
    async with client.post("/echo", data=b'{"a": 1}', headers={"Content-Encoding": coding}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_body")
        assert answer.headers["Connection"] == "close", "a gateway must not send the next request on it"


async def test_a_json_object_is_read(client: TestClient[Any, Any]) -> None:
    async with client.post("/echo", data=b'{"a": [1]}') as answer:
        assert (answer.status, await answer.json()) == (200, {"a": [1]})


@pytest.mark.parametrize(("how", "status", "retry"), [("store", 503, "1"), ("limit", 429, "1"), ("ours", 500, None)])
async def test_our_errors_keep_their_status_and_busy_ones_say_when(
    client: TestClient[Any, Any], how: str, status: int, retry: str | None
) -> None:
    async with client.get(f"/fail/{how}") as answer:
        assert answer.status == status and answer.headers.get("Retry-After") == retry
        assert (await answer.json())["error"]["status"] == status


def test_an_error_body_has_exactly_three_keys() -> None:
    assert error_response(404, "not_found", "Näh.").body == '{"error":{"message":"Näh.","code":"not_found","status":404}}'.encode()


def test_decimals_are_numbers_with_their_digits() -> None:
    assert json_response({"a": Decimal("1E-12"), "b": Decimal("1.50")}).body == b'{"a":0.000000000001,"b":1.50}'


def test_a_list_tells_of_more_only_when_there_is_more() -> None:
    items = [{"id": "b"}, {"id": "a"}]
    assert listing(items, 1, "id") == {"data": [{"id": "b"}], "has_more": True, "next_cursor": "b"}
    assert listing(items, 2, "id") == {"data": items, "has_more": False}
    assert listing([], 2, "id") == {"data": [], "has_more": False}


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(50_000_000_000, "50.00"), (1, "0.000000001"), (-1_500_000_000, "-1.50"), (10**10 + 10, "10.00000001"), (0, "0.00")],
)
def test_a_short_amount_is_exact_with_two_places_at_least(nanos: int, text: str) -> None:
    assert short_usd(nanos) == text


@pytest.mark.parametrize(
    ("microseconds", "found"), [(0, 0), (60_000_000, 60), (1_500_000, Decimal("1.5")), (1, Decimal("0.000001"))]
)
def test_seconds_are_exact(microseconds: int, found: int | Decimal) -> None:
    assert seconds(microseconds) == found


def test_times_of_other_zones_are_shown_in_utc() -> None:
    assert timestamp(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00Z"


def test_a_month_begins_and_ends_in_utc() -> None:
    start, end = month_of(datetime(2026, 12, 31, 23, tzinfo=timezone(-timedelta(hours=2))))
    assert (timestamp(start), timestamp(end)) == ("2027-01-01T00:00:00Z", "2027-02-01T00:00:00Z")
    start, end = month_of(datetime(2026, 12, 5, tzinfo=UTC))
    assert (timestamp(start), timestamp(end)) == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")
