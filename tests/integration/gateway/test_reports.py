"""POST /v1/requests and /v1/requests/batch over HTTP, on real Redis and Postgres."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.settings import Settings
from lava_proxy.wire.forward_token import mint
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Response, chat_body
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway

SINGLE, BATCH = "/v1/requests", "/v1/requests/batch"


def report(gateway: Gateway, request_id: str, **members: Any) -> dict[str, Any]:
    return {
        "request_id": request_id, "customer_id": gateway.connection.connection_id, "meter_slug": "fixed", **members
    }  # fmt: skip


async def post(
    gateway: Gateway, body: object, target: str = SINGLE, *, token: str | None = "", headers: tuple[str, ...] = ()
) -> Response:
    client = await gateway.client()
    credential = gateway.secret_key if token == "" else token
    client.send(gateway.request(body, target=target, token=credential, headers=headers))
    return await client.response()


def shown(response: Response) -> Any:
    return json.loads(response.body, parse_float=Decimal)


async def test_a_report_is_charged_and_answered_as_a_request(gateway: Gateway) -> None:
    """A3: both vocabularies in one object, exact amounts, and the caller's id everywhere."""
    body = report(gateway, "order 1/é", input_tokens=1000, output_tokens=500, metadata={"feature": "chat"}, model="m", x=1)
    response = await post(gateway, body)
    assert response.status == 200, response.body
    answer = shown(response)
    assert answer["request_id"] == "order 1/é" and answer["status"] == "completed"
    assert answer["charge"]["amount"] == "0.0300000000" and answer["cost"] == "0.0000000000"
    assert answer["customer_id"] == answer["connection_id"] == gateway.connection.connection_id
    assert answer["meter_slug"] == "fixed" and answer["product_id"] == answer["meter_id"] == gateway.meter.meter_id
    assert answer["model_usage"]["total_tokens"] == 1500 and answer["total_wallet_cost"] == "0.0300000000"
    assert answer["metadata"] == {"feature": "chat"} and answer["provenance"] == "reported"
    header = response.header(b"x-lava-request-id")
    assert header is not None and header.startswith(b"req_")  # the caller's id has letters that no header carries
    row = await gateway.row()
    assert (row["request_key"], row["request_id"].encode()) == ("order 1/é", header)
    assert row["charge_nanos"] == 1500 * NANOS_PER_TOKEN


async def test_a_header_safe_id_is_in_the_header(gateway: Gateway) -> None:
    response = await post(gateway, report(gateway, "req_mine-1", input_tokens=1))
    assert response.header(b"x-lava-request-id") == b"req_mine-1"


async def test_a_repeat_gets_the_same_bytes_before_and_after_the_flush(gateway: Gateway) -> None:
    """I11, L7: one debit, one answer, whoever knows it: the script, the outbox or Postgres."""
    body = report(
        gateway, "again", input_tokens=7, input_seconds=1.25, metadata={"zz": "1", "a": "2"}, model="gpt-4o-mini", provider="openai"
    )
    first = await post(gateway, body)
    from_outbox = await post(gateway, dict(reversed(body.items())))
    await gateway.world.flush()
    from_postgres = await post(gateway, body)
    assert first.status == 200 and first.body == from_outbox.body == from_postgres.body
    assert shown(first)["model_usage"]["input_seconds"] == Decimal("1.25")
    assert (await gateway.row())["charge_nanos"] == 7 * NANOS_PER_TOKEN


async def test_the_same_id_with_other_content_is_a_conflict_and_changes_nothing(gateway: Gateway) -> None:
    """I11, I12, 46: before the flush and after it, also where another customer's wallet would pay."""
    catalog, funding = gateway.world.catalog, gateway.funding
    other = await catalog.create_connection(gateway.merchant.merchant_id)
    await funding.open_wallet(other.wallet_id)
    await post(gateway, report(gateway, "one", input_tokens=7))
    wrong = [report(gateway, "one", input_tokens=8), {**report(gateway, "one", input_tokens=7), "customer_id": other.connection_id}]
    for flush in (False, True):
        if flush:
            await gateway.world.flush()
        for body in wrong:
            response = await post(gateway, body)
            assert (response.status, shown(response)["error"]["code"]) == (409, "request_id_conflict")
    assert await gateway.balance(other.wallet_id) == 0
    assert (await gateway.row())["charge_nanos"] == 7 * NANOS_PER_TOKEN


async def test_the_id_of_a_call_through_the_gateway_is_taken(gateway: Gateway) -> None:
    """I10: a call and a report of one id are not charged both."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    called = await post(gateway, None, "/v1/forward/openai/v1/chat/completions", token=gateway.token)
    call_id = (called.header(b"x-lava-request-id") or b"").decode()
    await gateway.settled()
    await gateway.world.flush()
    response = await post(gateway, report(gateway, call_id, input_tokens=5))
    assert (response.status, shown(response)["error"]["code"]) == (409, "request_id_conflict")


async def test_every_name_of_a_customer_and_a_meter_means_the_same_report(gateway: Gateway) -> None:
    """47: a repeat is the same request, by whichever names it comes."""
    connection, meter = gateway.connection, gateway.meter
    full = await gateway.world.catalog.connection(gateway.merchant.merchant_id, connection.connection_id)
    stored = await gateway.world.catalog.meter(gateway.merchant.merchant_id, meter.meter_id)
    assert full is not None and full.secret and stored is not None and stored.secret
    said = {"request_id": "r", "input_tokens": 4}
    bodies = [
        {**said, "customer_id": connection.connection_id, "meter_slug": "fixed"},
        {**said, "connection_id": "customer-1", "meter_id": meter.meter_id},
        {**said, "connection_secret": full.secret, "product_secret": stored.secret},
    ]
    answers = [(await post(gateway, body)).body for body in bodies]
    assert len(set(answers)) == 1
    assert (await gateway.row())["charge_nanos"] == 4 * NANOS_PER_TOKEN


async def test_a_batch_answers_for_each_of_its_items(gateway: Gateway) -> None:
    """37, 33: results in order; what is wrong with one never harms another."""
    items = [
        report(gateway, "a", input_tokens=1),
        report(gateway, "b", input_tokens=-1),
        report(gateway, "a", input_tokens=2),
        report(gateway, "c", input_tokens=3),
        report(gateway, "d", input_tokens=3) | {"customer_id": "con_nobody"},
        report(gateway, "a", input_tokens=1),
        "no report",
        report(gateway, "e", input_tokens=10**12) | {"meter_slug": "nothing"},
    ]
    response = await post(gateway, {"requests": items}, BATCH)
    assert response.status == 200
    results = shown(response)["results"]
    assert [result["status"] for result in results] == [200, 400, 409, 200, 404, 200, 400, 404]
    codes = [result["error"]["code"] for result in results if "error" in result]
    assert codes == ["invalid_parameter", "request_id_conflict", "connection_not_found", "invalid_json", "meter_not_found"]
    assert results[0] == results[5]
    rows = await gateway.rows()
    assert sorted((row["request_key"], row["charge_nanos"]) for row in rows) == [
        ("a", NANOS_PER_TOKEN), ("c", 3 * NANOS_PER_TOKEN)
    ]  # fmt: skip


async def test_a_replayed_batch_of_old_and_new_reports_charges_the_new_ones(gateway: Gateway) -> None:
    """33: mixed_replay_batch."""
    first = [report(gateway, f"r{n}", input_tokens=n) for n in range(1, 41)]
    await post(gateway, {"requests": first[:20]}, BATCH)
    await gateway.world.flush()
    await post(gateway, {"requests": first[:30]}, BATCH)
    response = await post(gateway, {"requests": first}, BATCH)
    assert [result["request"]["request_id"] for result in shown(response)["results"]] == [f"r{n}" for n in range(1, 41)]
    rows = await gateway.rows()
    assert len(rows) == 40 and sum(row["charge_nanos"] for row in rows) == sum(range(1, 41)) * NANOS_PER_TOKEN


async def test_a_batch_may_come_as_lines(gateway: Gateway) -> None:
    lines = [json.dumps(report(gateway, "a", input_tokens=1)), "", "{broken", json.dumps(report(gateway, "b", input_tokens=1))]
    body = "\r\n".join(lines).encode()
    client = await gateway.client()
    client.send(
        gateway.request(body, target=BATCH, token=gateway.secret_key).replace(b"application/json", b"application/x-ndjson", 1)
    )
    results = shown(await client.response())["results"]
    assert [result["status"] for result in results] == [200, 400, 200]
    assert results[1]["error"]["code"] == "invalid_json"


async def test_what_is_no_batch_is_refused_whole(gateway: Gateway) -> None:
    cases: list[tuple[object, str]] = [
        (b"{", "invalid_json"), ([], "invalid_json"), ({"requests": {}}, "invalid_json"), ({"requests": []}, "batch_size"),
        ({"requests": [report(gateway, str(n)) for n in range(1001)]}, "batch_size"),
    ]  # fmt: skip
    for body, code in cases:
        response = await post(gateway, body, BATCH)
        assert (response.status, shown(response)["error"]["code"]) == (400, code)
    assert await gateway.rows() == []


async def test_bodies_are_bounded(start: StartGateway) -> None:
    def adjust(settings: Settings) -> Settings:
        return replace(settings, reports=replace(settings.reports, body_bytes_max=300, batch_bytes_max=400))

    gateway = await start(adjust=adjust)
    long = report(gateway, "a", metadata={"k": "v" * 250})
    for body, target in ((long, SINGLE), ({"requests": [long, long]}, BATCH)):
        response = await post(gateway, body, target)
        assert (response.status, shown(response)["error"]["code"]) == (413, "body_too_large")


async def test_credentials_are_checked_as_on_every_route(gateway: Gateway) -> None:
    """51: another merchant's customers and meters are not found; spend keys do not report."""
    body = report(gateway, "a", input_tokens=1)
    stranger = await gateway.world.catalog.create_merchant("Stranger")
    strange_key = await gateway.world.catalog.create_secret_key(stranger.merchant_id, "k")
    for token, status, code in (
        (None, 401, "invalid_token"), ("aks_live_wrong", 401, "invalid_secret_key"), ("lava_sk_x", 403, "forbidden"),
        ("!!", 401, "invalid_token"), (strange_key, 404, "connection_not_found"),
    ):  # fmt: skip
        response = await post(gateway, body, token=token)
        assert (response.status, shown(response)["error"]["code"]) == (status, code), token
    assert (await post(gateway, body, token=mint(gateway.secret_key, gateway.connection.connection_id, "fixed"))).status == 200


async def test_a_revoked_key_and_a_disabled_customer_report_no_more(gateway: Gateway) -> None:
    """F8: what is remembered of the catalogue is dropped within a second of a change."""
    assert (await post(gateway, report(gateway, "a", input_tokens=1))).status == 200
    pool = gateway.world.pool
    await pool.execute("UPDATE connection SET status = 'disabled' WHERE connection_id = $1", gateway.connection.connection_id)
    assert await _until(gateway, 403) == "connection_disabled"
    await pool.execute("UPDATE connection SET status = 'deleted' WHERE connection_id = $1", gateway.connection.connection_id)
    assert await _until(gateway, 404) == "connection_not_found"
    await pool.execute("UPDATE connection SET status = 'ok' WHERE connection_id = $1", gateway.connection.connection_id)
    assert await _until(gateway, 200) == ""
    await pool.execute("UPDATE meter SET archived_at = now() WHERE meter_id = $1", gateway.meter.meter_id)
    assert await _until(gateway, 404) == "meter_not_found"
    await pool.execute("UPDATE secret_key SET revoked_at = now() WHERE merchant_id = $1", gateway.merchant.merchant_id)
    assert await _until(gateway, 401) == "invalid_secret_key"


async def _until(gateway: Gateway, status: int) -> str:
    """The error code of the first answer with this status, within the second that a change may take."""
    async with asyncio.timeout(5):
        while True:
            response = await post(gateway, report(gateway, "a", input_tokens=1))
            if response.status == status:
                return str(shown(response).get("error", {}).get("code", ""))
            await asyncio.sleep(0.02)


async def test_percentage_meters_need_a_cost_and_take_it_from_the_report_or_the_prices(gateway: Gateway) -> None:
    """20 % on top of what the provider took."""
    markup = {"meter_slug": "markup", "input_tokens": 1_000_000}
    for members, code in (({}, "cost_required"), ({"model": "nobody-knows", "provider": "openai"}, "model_not_priced")):
        response = await post(gateway, report(gateway, "a", **markup, **members))
        assert (response.status, shown(response)["error"]["code"]) == (400, code)
    told = shown(await post(gateway, report(gateway, "told", **markup, cost="0.0025")))
    assert (told["cost"], told["charge"]["amount"]) == ("0.0025000000", "0.0030000000")
    priced = shown(await post(gateway, report(gateway, "priced", **markup, model="gpt-4o-mini", provider="openai")))
    assert (priced["cost"], priced["charge"]["amount"]) == ("0.1500000000", "0.1800000000")
    assert priced["provider"] == "openai" and priced["provider_key_type"] == "stored" and priced["price_version"]


async def test_a_meter_by_the_request_charges_a_report_without_quantities(gateway: Gateway) -> None:
    catalog = gateway.world.catalog
    await catalog.create_meter(
        gateway.merchant.merchant_id, name="Fee", slug="fee", rate_type="fixed", tier_type="requests",
        tiers=(Tier(start=0, rate=2 * NANOS_PER_USD),),
    )  # fmt: skip
    answer = shown(await post(gateway, report(gateway, "month 1", meter_slug="fee", input_tokens=0)))
    assert answer["charge"]["amount"] == "2.0000000000"


async def test_a_balance_may_go_below_nothing_and_the_row_says_so(gateway: Gateway) -> None:
    """I15: the usage has happened; there is no check, and the row is flagged."""
    answer = shown(await post(gateway, report(gateway, "big", input_tokens=2_000_000)))
    assert answer["charge"]["amount"] == "40.0000000000" and answer["flags"] == "b"
    assert await gateway.balance() == -15 * NANOS_PER_USD


async def test_amounts_that_no_wallet_can_hold_are_refused(gateway: Gateway) -> None:
    response = await post(gateway, report(gateway, "huge", input_tokens=10**12))
    assert (response.status, shown(response)["error"]["code"]) == (400, "amount_out_of_bounds")
    assert await gateway.rows() == []


async def test_pipelined_reports_are_answered_in_order_on_one_connection(gateway: Gateway) -> None:
    client = await gateway.client()
    for n in range(5):
        client.send(gateway.request(report(gateway, f"p{n}", input_tokens=1), target=SINGLE, token=gateway.secret_key))
    assert [shown(await client.response())["request_id"] for _ in range(5)] == [f"p{n}" for n in range(5)]


async def test_a_report_whose_client_has_gone_is_debited(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request(report(gateway, "gone", input_tokens=3), target=SINGLE, token=gateway.secret_key))
    await client.writer.drain()
    client.writer.close()
    async with asyncio.timeout(5):
        while not await gateway.rows():
            await asyncio.sleep(0.02)
    assert (await gateway.row())["request_key"] == "gone"


async def test_other_methods_and_paths_go_to_the_control_process(gateway: Gateway) -> None:
    gateway.control.answer = lambda call: call.answer(b'{"data": []}')
    client = await gateway.client()
    client.send(gateway.request(target=SINGLE, method="GET", token=gateway.secret_key))
    assert shown(await client.response("GET")) == {"data": []}


async def test_a_full_outbox_makes_reports_wait(gateway: Gateway) -> None:
    """41: what cannot be written down is not acknowledged."""
    gateway.worker._outbox_full = True
    response = await post(gateway, report(gateway, "a", input_tokens=1))
    assert (response.status, shown(response)["error"]["code"]) == (503, "outbox_full")
    assert response.header(b"retry-after") == b"1"
    gateway.worker._outbox_full = False
