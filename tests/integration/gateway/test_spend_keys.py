"""Spend keys, connections' limits and model routes through a whole gateway: who may call what, and what a refusal looks like."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lava_proxy.billing.request_object import request_object
from lava_proxy.domain.limits import KeyRules, Limits
from lava_proxy.stores.catalog_store import SpendKey
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Response, chat_body, chat_events, usage_event
from tests.integration.gateway.harness import MERCHANT_NANOS, Gateway, chat_request

ROUTE = "/v1/chat/completions"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def new_key(gateway: Gateway, limits: Limits | None = None, *, status: str = "active", **rules: Any) -> SpendKey:
    return await gateway.world.catalog.create_spend_key(
        gateway.merchant.merchant_id, name="k", rules=KeyRules(**rules), limits=limits or Limits(), status=status
    )


async def ask(gateway: Gateway, token: str | None, target: str = ROUTE, body: object = None, **options: Any) -> Response:
    client = await gateway.client()
    method = options.get("method", "POST")
    client.send(gateway.request(body, target=target, token=token or "", **options))
    return await client.response(method)


async def counters(gateway: Gateway, scope_id: str, wallet_id: str | None = None) -> dict[str, int]:
    await gateway.settled()
    [found] = await gateway.world.outbox.scope_counters([(wallet_id or gateway.merchant.wallet_id, scope_id)])
    return {name: int(found.get(name, "0")) for name in ("open", "so", "rc", "tr", "ts")}


async def test_a_spend_key_pays_provider_cost_from_the_merchants_wallet_and_counts_it(gateway: Gateway) -> None:
    """The model route and the forward route are the same call."""
    gateway.provider.answer = lambda call: call.answer(chat_body(1_000, 500))
    key = await new_key(gateway, Limits(spend_nanos=10**9, requests_per_minute=100))
    for target in (ROUTE, "/v1/forward/openai/v1/chat/completions"):
        assert (await ask(gateway, key.secret, target)).status == 200
    rows = await gateway.rows()
    assert [row["endpoint"] for row in rows] == ["POST https://api.openai.com/v1/chat/completions"] * 2
    cost = 1_000 * 150 + 500 * 600
    assert [row["charge_nanos"] for row in rows] == [cost] * 2 == [row["cost_nanos"] for row in rows]
    assert await gateway.balance(gateway.merchant.wallet_id) == MERCHANT_NANOS - 2 * cost
    assert await counters(gateway, key.spend_key_id) == {"open": 0, "so": 0, "rc": 2, "tr": 2, "ts": 2 * cost}
    assert key.secret is not None and key.secret.encode() not in b"".join(call.head + call.body for call in gateway.provider.calls)


async def test_a_rate_limit_answers_429_with_when_to_come_back(gateway: Gateway) -> None:
    """K10: the refused call is not counted, holds nothing and is in no row."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    key = await new_key(gateway, Limits(requests_per_minute=6, request_burst=2))
    for _ in range(2):
        assert (await ask(gateway, key.secret)).status == 200
    refused = await ask(gateway, key.secret)
    assert (refused.status, refused.error_code) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    wait = int(refused.header(b"retry-after") or b"0")
    assert 1 <= wait <= 10
    assert (refused.header(b"x-ratelimit-limit"), refused.header(b"x-ratelimit-remaining")) == (b"6", b"0")
    assert int(refused.header(b"x-ratelimit-reset") or b"0") >= 1_700_000_000
    assert refused.header(b"x-lava-request-id") is not None
    assert len(await gateway.rows()) == 2
    assert (await counters(gateway, key.spend_key_id))["rc"] == 2


@pytest.mark.parametrize(
    ("limits", "code", "status"),
    [
        (Limits(request_count=1, request_cycle="total"), "request_limit_exceeded", 429),
        (Limits(tokens_per_minute=50), "token_limit_exceeded", 429),
        (Limits(spend_nanos=1, spend_cycle="daily"), "spend_limit_exceeded", 402),
    ],
)
async def test_what_waiting_does_not_mend_is_not_tried_again_by_the_sdks(
    gateway: Gateway, limits: Limits, code: str, status: int
) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    key = await new_key(gateway, limits)
    if limits.request_count:
        await ask(gateway, key.secret)
    refused = await ask(gateway, key.secret)
    assert (refused.status, refused.error_code, refused.header(b"x-should-retry")) == (status, code, b"false")


async def test_a_slot_is_free_again_however_a_call_ends(gateway: Gateway) -> None:
    """K8: normal end, error, client gone, provider gone: one at a time, and the next is let in."""
    key = await new_key(gateway, Limits(concurrent_calls=1))
    body = chat_request(stream=True)
    for ending in ("whole", "error", "client", "provider"):
        client = await gateway.client()
        client.send(gateway.request(body, target=ROUTE, token=key.secret))
        call = await gateway.provider.next_call()
        refused = await ask(gateway, key.secret)
        assert (refused.status, refused.error_code) == (429, "concurrency_limit_exceeded")
        assert refused.header(b"retry-after") == b"1" and refused.header(b"x-should-retry") is None
        if ending == "error":
            call.answer(b'{"error":{"message":"no"}}', 500)
        elif ending == "whole":
            call.stream([*chat_events(), usage_event(10, 5)])
        elif ending == "client":
            client.reset()
            await call.gone()
        else:
            call.begin()
            call.chunk(chat_events()[0])
            call.reset()
        if ending != "client":
            await client.response()
        await gateway.settled()
        assert (await counters(gateway, key.spend_key_id))["open"] == 0


async def test_a_caller_of_one_call_at_a_time_is_never_refused(gateway: Gateway) -> None:
    """E11: the next request may come before the last one's settle; a limit that a settle frees is looked at again."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    key = await new_key(gateway, Limits(concurrent_calls=1, spend_nanos=450_000, tokens_per_minute=1_000))
    client = await gateway.client()
    for _ in range(20):
        client.send(gateway.request(target=ROUTE, token=key.secret))
        response = await client.response()
        assert response.status == 200, response.body


async def test_a_burst_through_one_key_admits_what_its_limit_says(gateway: Gateway) -> None:
    """K9, E9: forty at once, five slots."""
    key = await new_key(gateway, Limits(concurrent_calls=5))
    clients = [await gateway.client() for _ in range(40)]
    for client in clients:
        client.send(gateway.request(target=ROUTE, token=key.secret))
    calls = [await gateway.provider.next_call() for _ in range(5)]
    refused = [asyncio.ensure_future(client.response()) for client in clients]
    done, _ = await asyncio.wait(refused, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 35:
        more, _ = await asyncio.wait([one for one in refused if one not in done], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert {one.result().status for one in done} == {429}
    for call in calls:
        call.answer(chat_body())
    assert sorted(response.status for response in await asyncio.gather(*refused)) == [200] * 5 + [429] * 35


async def test_rules_of_a_key_are_checked_before_anything_is_held(gateway: Gateway) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"status": "paused"}, 403, "spend_key_paused"),
        ({"expires_at": LONG_AGO}, 403, "spend_key_expired"),
        ({"allowed_models": ("gpt-4o",)}, 400, "forward_model_invalid"),
        ({"allowed_providers": ("groq",)}, 403, "provider_not_allowed"),
        ({"request_shape": "anthropic"}, 400, "request_shape_mismatch"),
    ]
    for rules, status, code in cases:
        refused = await ask(gateway, (await new_key(gateway, **rules)).secret)
        assert (refused.status, refused.error_code) == (status, code), rules
    assert (await ask(gateway, "lava_sk_nobody")).status == 401
    assert gateway.provider.calls == [] and await gateway.rows() == []


async def test_a_rotated_paused_or_deleted_key_ends_at_once(gateway: Gateway) -> None:
    """The catalogue's message reaches the gateway's cache."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    catalog, key = gateway.world.catalog, await new_key(gateway)
    assert (await ask(gateway, key.secret)).status == 200

    async def until(secret: str | None, status: int) -> None:
        async with asyncio.timeout(10):
            while (await ask(gateway, secret)).status != status:
                await asyncio.sleep(0)

    rotated = await catalog.rotate_spend_key(key.merchant_id, key.spend_key_id)
    assert rotated is not None
    await until(key.secret, 401)
    assert (await ask(gateway, rotated.secret)).status == 200
    await catalog.update_spend_key(replace(key, status="paused"))
    await until(rotated.secret, 403)
    await catalog.delete_spend_key(key.merchant_id, key.spend_key_id)
    await until(rotated.secret, 401)


async def test_a_customers_own_limits_hold_for_its_calls(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    connection = gateway.connection
    await gateway.world.catalog.set_connection_limits(
        connection.merchant_id, connection.connection_id, Limits(request_count=1, request_cycle="daily")
    )
    assert (await ask(gateway, gateway.token)).status == 200
    refused = await ask(gateway, gateway.token)
    assert (refused.status, refused.error_code) == (429, "request_limit_exceeded")
    assert "customer" in refused.json()["error"]["message"]
    assert (await counters(gateway, connection.connection_id, connection.wallet_id))["rc"] == 1


@pytest.mark.parametrize(
    ("route", "model", "sent"),
    [
        (ROUTE, "gpt-4o-mini", "gpt-4o-mini"),
        (ROUTE, "openai/gpt-4o-mini", "gpt-4o-mini"),
        (ROUTE, "groq/llama-3.3-70b-versatile", "llama-3.3-70b-versatile"),
    ],
)
async def test_a_model_route_reaches_the_models_provider(gateway: Gateway, route: str, model: str, sent: str) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    assert (await ask(gateway, None, route, chat_request(model=model))).status == 200
    [call] = gateway.provider.calls
    assert call.json() == chat_request(model=sent)
    assert call.target == ("/openai/v1/chat/completions" if "groq" in model else "/v1/chat/completions")
    assert (await gateway.row())["provider"] == ("groq" if "groq" in model else "openai")


async def test_messages_go_to_anthropic_and_refusals_come_in_its_dialect(start: StartGateway) -> None:
    gateway = await start(env_keys={"anthropic": "sk-ant"})
    answer = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [],
        "stop_reason": "end_turn", "usage": {"input_tokens": 10, "output_tokens": 5},
    }  # fmt: skip
    gateway.provider.answer = lambda call: call.answer(json.dumps(answer).encode())
    body = {"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
    key = await new_key(gateway, Limits(request_count=1), request_shape="anthropic")
    found = await ask(gateway, key.secret, "/v1/messages", body)
    assert (found.status, found.json()["id"]) == (200, "msg_1")
    [call] = gateway.provider.calls
    assert (call.target, call.header(b"x-api-key")) == ("/v1/messages", b"sk-ant")
    refused = await ask(gateway, key.secret, "/v1/messages", body)
    assert refused.status == 429 and refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    wrong = await ask(gateway, key.secret, "/v1/messages", {**body, "model": "gpt-4o"})
    assert (wrong.status, wrong.json()["type"]) == (400, "error") and "/v1/chat/completions" in wrong.json()["error"]["message"]


async def test_a_streamed_model_route_is_spliced_and_relayed_like_any_other(gateway: Gateway) -> None:
    key = await new_key(gateway)
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True), target=ROUTE, token=key.secret))
    call = await gateway.provider.next_call()
    assert call.json()["stream_options"] == {"include_usage": True}
    call.stream(chat_events())
    response = await client.response()
    assert response.status == 200 and b"[DONE]" in response.body
    assert (await gateway.row())["provenance"] == "provider_final"


async def test_a_call_with_a_spend_key_is_clamped_to_what_the_merchants_wallet_affords(gateway: Gateway) -> None:
    """F8, E10: the merchant's floor holds for its spend keys, and the row names the key."""
    await gateway.world.catalog.set_clamp_floor(gateway.merchant.merchant_id, 100)
    key = await new_key(gateway)
    gateway.provider.answer = lambda call: call.answer(chat_body())
    body = chat_request(model="gpt-4", max_tokens=2_000_000)  # $60 a million tokens: $120, of $100
    assert (await ask(gateway, key.secret, body=body)).status == 200
    [call] = gateway.provider.calls
    assert 1_600_000 < call.json()["max_tokens"] < 1_700_000
    row = await gateway.row()
    assert row["timings"]["max_tokens_clamped_to"] == call.json()["max_tokens"]
    assert request_object(row, None)["spend_key_id"] == key.spend_key_id
