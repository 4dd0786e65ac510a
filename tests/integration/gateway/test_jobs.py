"""Jobs that are started by one call and read by others (background responses, predictions): charged once by their own id."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from lava_proxy.stores.balance_store import partition_of, tag
from lava_proxy.stores.hot_redis import Ambiguous
from lava_proxy.wire.forward_token import mint
from lava_proxy.workers.credit_applier import CreditApplier
from tests.integration.gateway.fakes import Call, event
from tests.integration.gateway.harness import CUSTOMER_NANOS, NANOS_PER_TOKEN, Gateway

RESPONSES = "/v1/forward/openai/v1/responses"
ITEM = f"{RESPONSES}/resp_1"
CHARGE = 50 * NANOS_PER_TOKEN  # of `finished`


def response(status: str, *, background: bool = True, usage: tuple[int, int] | None = None, **members: object) -> dict[str, Any]:
    counted = None if usage is None else {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage)}
    return {
        "id": "resp_1", "object": "response", "model": "gpt-4o-mini", "status": status, "background": background, "output": [],
        "usage": counted, **members,
    }  # fmt: skip


def finished(status: str = "completed", **members: object) -> dict[str, Any]:
    return response(status, usage=(20, 30), **members)  # type: ignore[arg-type]


def answers(gateway: Gateway, *bodies: dict[str, Any]) -> None:
    """The provider's answers, in order; the last one for ever."""
    left = list(bodies)

    def answer(call: Call) -> None:
        call.answer(json.dumps(left.pop(0) if len(left) > 1 else left[0]).encode())

    gateway.provider.answer = answer


async def start(gateway: Gateway, **members: object) -> None:
    client = await gateway.client()
    client.send(gateway.request({"model": "gpt-4o-mini", "input": "Hi", "background": True, **members}, target=RESPONSES))
    assert (await client.response()).status == 200


async def fetch(gateway: Gateway, target: str = ITEM, **options: Any) -> int:
    client = await gateway.client()
    client.send(gateway.request(target=target, method="GET", **options))
    status = (await client.response("GET")).status
    await gateway.settled()
    return status


def charges(rows: list[dict[str, Any]]) -> list[tuple[str, bool, int]]:
    return [(row["api"], row["billed"], row["charge_nanos"]) for row in rows]


async def test_a_background_response_is_charged_by_the_read_that_first_shows_its_usage(gateway: Gateway) -> None:
    """B7, A15, I10: not when it is queued, not while it runs, once when it is done, and never again."""
    answers(gateway, response("queued"), response("in_progress"), finished())
    await start(gateway)
    for _ in range(4):
        assert await fetch(gateway) == 200
    rows = await gateway.rows()
    assert charges(rows) == [
        ("responses", False, 0),
        ("responses_retrieve", False, 0),
        ("responses_retrieve", True, CHARGE),
        ("responses_retrieve", False, 0),
        ("responses_retrieve", False, 0),
    ]
    assert rows[0]["breakdown"] == {"unseen": ["job"]}
    assert (rows[2]["usage"]["input_tokens"], rows[2]["usage"]["output_tokens"], rows[3]["usage"]) == (20, 30, {})
    assert await gateway.balance() == CUSTOMER_NANOS - CHARGE


@pytest.mark.parametrize("status", ["cancelled", "failed", "incomplete"])
async def test_a_background_response_that_did_not_complete_costs_what_it_reports(gateway: Gateway, status: str) -> None:
    """A3: its usage is billed whatever its end."""
    answers(gateway, response("queued"), finished(status))
    await start(gateway)
    await fetch(gateway)
    await fetch(gateway)
    assert await gateway.balance() == CUSTOMER_NANOS - CHARGE


async def test_a_cancel_that_shows_the_usage_is_the_one_that_is_charged(gateway: Gateway) -> None:
    answers(gateway, response("queued"), finished("cancelled"))
    await start(gateway)
    client = await gateway.client()
    client.send(gateway.request({}, target=f"{ITEM}/cancel"))
    assert (await client.response()).status == 200
    await gateway.settled()
    await fetch(gateway)
    rows = await gateway.rows()
    assert [row["charge_nanos"] for row in rows] == [0, CHARGE, 0]


async def test_reading_a_response_that_was_not_made_in_background_is_free(gateway: Gateway) -> None:
    """A15: its POST was charged."""
    answers(gateway, finished(background=False))
    await start(gateway, background=False)
    await fetch(gateway)
    assert charges(await gateway.rows()) == [("responses", True, CHARGE), ("responses_retrieve", False, 0)]


async def test_a_background_stream_is_charged_once_whoever_reads_its_end(gateway: Gateway) -> None:
    """A3, A15: the POST streams to its usage; a resumed stream and a plain read of the same response are free."""
    events = [
        event({"type": "response.created", "response": response("queued")}),
        event({"type": "response.output_text.delta", "delta": "Hello"}),
        event({"type": "response.completed", "response": finished()}),
    ]
    gateway.provider.answer = lambda call: call.stream(events)
    await start(gateway, stream=True)
    assert await fetch(gateway, f"{ITEM}?stream=true&starting_after=1") == 200
    assert [charge for _, _, charge in charges(await gateway.rows())] == [CHARGE, 0]


async def test_a_client_that_leaves_a_background_stream_does_not_read_it_for_free(gateway: Gateway) -> None:
    """C2, C3: leaving does not stop the provider, so the stream is read on to its usage."""
    client = await gateway.client()
    client.send(gateway.request({"model": "gpt-4o-mini", "input": "Hi", "background": True, "stream": True}, target=RESPONSES))
    call = await gateway.provider.next_call()
    call.begin()
    call.chunk(event({"type": "response.created", "response": response("queued")}))
    call.chunk(event({"type": "response.output_text.delta", "delta": "Hello"}))
    await client.head()
    await client.chunk()
    await client.chunk()
    client.reset()
    while not any(exchange.client_left for exchange in gateway.exchanges):
        await asyncio.sleep(0)
    call.chunk(event({"type": "response.completed", "response": finished()}))
    call.end()
    row = await gateway.row()
    assert (row["outcome"], row["charge_nanos"]) == ("client_gone", CHARGE)


async def test_a_background_stream_that_breaks_is_charged_by_a_later_read(gateway: Gateway) -> None:
    """C11, A15: what it delivered is not charged twice, once as an estimate and once as reported."""
    client = await gateway.client()
    client.send(gateway.request({"model": "gpt-4o-mini", "input": "Hi", "background": True, "stream": True}, target=RESPONSES))
    call = await gateway.provider.next_call()
    call.begin()
    call.chunk(event({"type": "response.created", "response": response("queued")}))
    await client.head()
    await client.chunk()
    call.reset()
    await gateway.settled()
    answers(gateway, finished())
    await fetch(gateway)
    assert charges(await gateway.rows()) == [("responses", False, 0), ("responses_retrieve", True, CHARGE)]


async def test_many_reads_at_once_are_one_charge(gateway: Gateway) -> None:
    answers(gateway, finished())
    assert await asyncio.gather(*[fetch(gateway) for _ in range(20)]) == [200] * 20
    assert sum(charge for _, _, charge in charges(await gateway.rows())) == CHARGE


async def test_a_read_that_redis_has_forgotten_is_given_back_by_the_ledger(gateway: Gateway) -> None:
    """29, 35, I10: Postgres knows for ever that a response was charged."""
    answers(gateway, finished())
    part = tag(partition_of(gateway.connection.wallet_id))
    others = {key async for key in gateway.world.redis.scan_iter(f"{part}:b:*")}  # of wallets that earlier tests made in it
    await fetch(gateway)
    forgotten = [key async for key in gateway.world.redis.scan_iter(f"{part}:b:*") if key not in others]
    assert len(forgotten) == 1
    await gateway.world.redis.delete(*forgotten)
    await fetch(gateway)
    await gateway.world.flush()
    anomalies = await gateway.world.pool.fetch(
        "SELECT kind, facts FROM anomaly WHERE wallet_id = $1", gateway.connection.wallet_id
    )  # fmt: skip
    assert [row["kind"] for row in anomalies] == ["second_debit"]
    rows = await gateway.rows()  # the second read delivered an answer, so it has a row: of a call that used nothing itself
    assert sorted((row["billed"], row["charge_nanos"], row["cost_nanos"] > 0) for row in rows) == [
        (False, 0, False), (True, CHARGE, True),
    ]  # fmt: skip
    await CreditApplier(gateway.world.catalog, gateway.funding).run_once()
    assert await gateway.balance() == CUSTOMER_NANOS - CHARGE


async def test_another_customer_who_reads_it_second_is_given_the_charge_back(gateway: Gateway) -> None:
    """I10: the name of a job is the merchant's, whoever reads; the first reader pays."""
    other = await gateway.world.catalog.create_connection(gateway.merchant.merchant_id, reference_id="customer-2")
    await gateway.funding.open_wallet(other.wallet_id)
    await gateway.funding.fund(gateway.merchant.merchant_id, other.wallet_id, CUSTOMER_NANOS, "test")
    answers(gateway, finished())
    await fetch(gateway)
    await gateway.world.flush()
    await fetch(gateway, token=mint(gateway.secret_key, other.connection_id, "fixed"))
    await gateway.world.flush()
    await CreditApplier(gateway.world.catalog, gateway.funding).run_once()
    assert await gateway.balance() == CUSTOMER_NANOS - CHARGE
    assert await gateway.balance(other.wallet_id) == CUSTOMER_NANOS


async def test_an_empty_wallet_reads_nothing_and_a_small_one_is_held_whole(gateway: Gateway) -> None:
    """E4: before the read nobody knows what it will cost: a hold of at most what the wallet has."""
    other = await gateway.world.catalog.create_connection(gateway.merchant.merchant_id, reference_id="customer-3")
    await gateway.funding.open_wallet(other.wallet_id)
    token = mint(gateway.secret_key, other.connection_id, "fixed")
    answers(gateway, finished())
    assert await fetch(gateway, token=token) == 402
    assert gateway.provider.calls == []
    await gateway.funding.fund(gateway.merchant.merchant_id, other.wallet_id, 2 * CHARGE, "test")
    assert await fetch(gateway, token=token) == 200
    assert await gateway.balance(other.wallet_id) == CHARGE


async def test_a_percentage_meter_charges_the_cost_of_what_was_fetched(gateway: Gateway) -> None:
    """The model is known when it is read: 20 tokens at $0.15 and 30 at $0.60 a million, and 20 % on top."""
    answers(gateway, finished())
    await fetch(gateway, token=mint(gateway.secret_key, gateway.connection.connection_id, "markup"))
    row = await gateway.row()
    assert (row["cost_nanos"], row["charge_nanos"]) == (20 * 150 + 30 * 600, (20 * 150 + 30 * 600) * 12 // 10)


async def test_the_first_charge_of_a_repeated_settle_stands(gateway: Gateway) -> None:
    """2, I7: a lost reply of the settle that charged a job does not make its own repeat free or double."""
    answers(gateway, finished())
    real, lost = gateway.hot.run, []

    async def lossy(keys: list[bytes], args: list[bytes]) -> Any:
        reply = await real(keys, args)
        if args[0] == b"B" and not lost:
            lost.append(reply[0])
            raise Ambiguous("lost")
        return reply

    gateway.hot.run = lossy  # type: ignore[method-assign]
    await fetch(gateway)
    assert lost == [b"S"]
    assert (await gateway.row())["charge_nanos"] == CHARGE
