"""What protects a call from its provider and its own retries: breaker, time-outs, stale connections, comments, idempotency keys."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import openai
import pytest

from lava_proxy import telemetry
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Call, chat_body, chat_events, usage_event
from tests.integration.gateway.harness import CUSTOMER_NANOS, NANOS_PER_TOKEN, Gateway, chat_request, with_upstream
from tests.integration.gateway.test_endings import MESSAGES, expect_cut, stream

# -- the breaker


async def ask(gateway: Gateway) -> tuple[int, str | None, bytes | None]:
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    code = response.error_code if response.status in (502, 503, 504) and response.body else None
    return response.status, code, response.header(b"retry-after")


async def test_a_host_that_fails_in_a_row_is_left_alone_for_a_while(start: StartGateway) -> None:
    """K14: open: 503 with Retry-After, nothing reserved, nothing sent; then one call tries and closes it."""
    gateway = await start(adjust=with_upstream(breaker_failures_max=3, breaker_open_s=1))
    gateway.provider.answer = lambda call: call.answer(b"", status=500)
    for _ in range(3):
        assert (await ask(gateway))[0] == 500
    status, code, retry_after = await ask(gateway)
    assert (status, code, retry_after) == (503, "provider_unavailable", b"1")
    assert len(gateway.provider.calls) == 3
    assert len(await gateway.rows()) == 3, "a refused call has no row"
    gateway.worker._sweeper.cancel()
    gateway.worker._sweep()
    assert telemetry.BREAKER.labels("openai")._value.get() == 2
    breakers = gateway.worker._context.breakers
    breakers._hosts["127.0.0.1", gateway.provider.port].open_until = 1.0
    gateway.provider.answer = lambda call: call.answer(chat_body())
    assert (await ask(gateway))[0] == 200
    assert breakers._hosts == {}


async def test_a_host_that_cannot_be_reached_or_breaks_or_is_silent_counts_as_failing(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(breaker_failures_max=100))
    breakers = gateway.worker._context.breakers
    gateway.provider.answer = lambda call: call.reset()
    assert (await ask(gateway))[0] == 502
    gateway.provider.answer = None
    client = await gateway.client()
    client.send(gateway.request())
    await gateway.provider.next_call()
    gateway.check(seconds_later=601)
    assert (await client.response()).status == 504
    [host] = breakers._hosts.values()
    assert host.failures == 2


async def test_errors_with_a_body_are_answers_and_do_not_open_the_breaker(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(breaker_failures_max=2))
    for status in (500, 529, 429, 400, 503, 500):
        gateway.provider.answer = lambda call, status=status: call.answer(b'{"error":{}}', status=status)
        assert (await ask(gateway))[0] == status
    assert len(gateway.provider.calls) == 6


async def test_a_client_that_leaves_the_trial_lets_the_next_call_try(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(breaker_failures_max=1, breaker_open_s=1))
    gateway.provider.answer = lambda call: call.answer(b"", status=502)
    await ask(gateway)
    [host] = gateway.worker._context.breakers._hosts.values()
    host.open_until = 1.0
    gateway.provider.answer = None
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    assert host.is_trying
    client.reset()
    await call.gone()
    await gateway.settled()
    assert not host.is_trying


# -- time-outs and connections


async def test_a_call_has_a_total_time_out_apart_from_the_others(gateway: Gateway) -> None:
    """K2: a stream that never ends and never falls silent; what was delivered is settled."""
    client, call = await stream(gateway)
    for seconds in range(0, 7200, 200):
        call.chunk(chat_events()[1])
        await client.chunk()
        gateway.check(seconds_later=seconds)
    gateway.check(seconds_later=7201)
    await expect_cut(client)
    row = await gateway.row()
    assert (row["outcome"], row["provenance"]) == ("upstream_timeout", "estimated")


async def test_a_pooled_connection_that_has_ended_is_not_used_for_a_call(gateway: Gateway) -> None:
    """J8, J9: although the loop has not read its end yet: nothing was sent, so a fresh connection serves."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    assert (await ask(gateway))[0] == 200
    [host] = gateway.pool._hosts.values()
    [connection] = host.idle
    connection.idle_since -= 60
    connection.transport.pause_reading()  # its end stays unread
    [side] = gateway.provider.sides
    side.transport.abort()
    await side.gone.wait()
    assert (await ask(gateway))[0] == 200
    assert gateway.provider.connections_made == 2
    assert len(gateway.provider.calls) == 2


async def test_a_request_that_was_sent_is_never_sent_again(gateway: Gateway) -> None:
    """J10, L5, L6: the connection ended after the request's bytes: one POST, one error, nothing charged."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    assert (await ask(gateway))[0] == 200
    gateway.provider.answer = lambda call: call.close()
    assert (await ask(gateway))[:2] == (502, "upstream_closed")
    assert len(gateway.provider.calls) == 2
    assert [row["charge_nanos"] for row in await gateway.rows()] == [15 * NANOS_PER_TOKEN, 0]


async def test_what_was_delivered_stands_on_the_row_beside_what_was_billed(gateway: Gateway) -> None:
    """C12"""
    client, call = await stream(gateway)
    events = chat_events(words=3)
    for sent in events[:4]:
        call.chunk(sent)
        await client.chunk()
    call.reset()
    await expect_cut(client)
    row = await gateway.row()
    assert row["timings"]["delivered_bytes"] == sum(map(len, events[:4]))
    assert row["usage"]["output_tokens"] > 0


# -- comments before the first byte


async def silent_stream(start: StartGateway, **options: object) -> tuple[Gateway, object, Call]:
    gateway = await start(adjust=with_upstream(keepalive_comment_s=5))
    client = await gateway.client()
    body = options.pop("body", None) or chat_request(stream=True)
    client.send(gateway.request(body, **options))  # type: ignore[arg-type]
    call = await gateway.provider.next_call()
    gateway.check(seconds_later=4)
    gateway.check(seconds_later=6)
    head = await client.head()
    assert (head.status, head.header(b"content-type")) == (200, b"text/event-stream; charset=utf-8")
    assert await client.chunk() == b": keep-alive\n\n"
    return gateway, client, call


async def test_a_silent_provider_is_covered_by_comments_where_that_is_asked_for(start: StartGateway) -> None:
    """K1: then the provider's stream follows byte for byte."""
    gateway, client, call = await silent_stream(start)
    gateway.check(seconds_later=12)
    assert await client.chunk() == b": keep-alive\n\n"  # type: ignore[attr-defined]
    call.begin()
    events = chat_events()
    for sent in events:
        call.chunk(sent)
    call.end()
    received = b""
    while data := await client.chunk():  # type: ignore[attr-defined]
        received += data
    assert received == b"".join(one for one in events if one != usage_event(10, 5))
    row = await gateway.row()
    assert (row["outcome"], row["charge_nanos"]) == ("completed", 15 * NANOS_PER_TOKEN)


async def test_without_the_setting_nothing_is_sent_before_the_provider_speaks(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    gateway.check(seconds_later=100)
    call.begin(status=429)
    call.end()
    assert (await client.response()).status == 429


@pytest.mark.parametrize("family", ["openai", "anthropic"])
async def test_an_error_after_a_comment_is_an_event_of_the_stream(start: StartGateway, family: str) -> None:
    """K1: the status has gone out, so the family's error event tells, with the provider's own error in it."""
    options: dict[str, object] = {}
    if family == "anthropic":
        body = {"model": "claude-sonnet-4-5", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        options = {"target": MESSAGES, "body": body}
    gateway, client, call = await silent_stream(start, **options)
    call.answer(b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}', status=529)
    data = await client.chunk()  # type: ignore[attr-defined]
    assert data.startswith(b"event: error\ndata: " if family == "anthropic" else b"data: {")
    assert json.loads(data.split(b"data: ")[1])["error"]["message"] == "busy"
    assert await client.chunk() == b""  # type: ignore[attr-defined]
    row = await gateway.row()
    assert (row["outcome"], row["http_status"], row["charge_nanos"]) == ("provider_error", 529, 0)


async def test_a_provider_that_breaks_after_a_comment_is_told_as_an_event(start: StartGateway) -> None:
    gateway, client, call = await silent_stream(start)
    call.reset()
    assert json.loads((await client.chunk())[6:])["error"]["code"] == "upstream_closed"  # type: ignore[attr-defined]
    assert await client.chunk() == b""  # type: ignore[attr-defined]
    assert (await gateway.row())["charge_nanos"] == 0


# -- idempotency keys and the SDKs' own retries

KEY = ("Idempotency-Key: order-17",)


async def test_a_repeat_of_an_idempotency_key_is_told_of_the_first_call(gateway: Gateway) -> None:
    """L2, L3: while it runs and afterwards: its id, its status, its charge; no second call, no second charge."""
    client = await gateway.client()
    client.send(gateway.request(headers=KEY))
    call = await gateway.provider.next_call()
    again = await gateway.client()
    again.send(gateway.request(headers=KEY))
    running = await again.response()
    assert (running.status, running.error_code) == (409, "idempotency_key_used")
    assert (running.header(b"x-should-retry"), running.header(b"x-lava-first-status")) == (b"false", b"running")
    call.answer(chat_body())
    first = await client.response()
    await gateway.settled()
    again.send(gateway.request(headers=KEY))
    ended = await again.response()
    assert (ended.status, ended.header(b"x-lava-first-status")) == (409, b"ended")
    assert ended.header(b"x-lava-first-request-id") == first.header(b"x-lava-request-id")
    assert Decimal((ended.header(b"x-lava-first-charge") or b"").decode()) == Decimal(15 * NANOS_PER_TOKEN).scaleb(-9)
    row = await gateway.row()
    assert row["charge_nanos"] == 15 * NANOS_PER_TOKEN
    assert len(gateway.provider.calls) == 1


async def test_many_repeats_at_once_make_one_call(gateway: Gateway) -> None:
    """L1"""
    clients = [await gateway.client() for _ in range(20)]
    for client in clients:
        client.send(gateway.request(headers=KEY))
    call = await gateway.provider.next_call()
    while len(gateway.exchanges) > 1:
        await asyncio.sleep(0)
    call.answer(chat_body())
    statuses = sorted([(await client.response()).status for client in clients])
    assert statuses == [200] + [409] * 19
    assert len(await gateway.rows()) == 1


async def test_a_first_call_without_an_answer_gives_its_key_back(gateway: Gateway) -> None:
    """L1: the provider failed, nothing was delivered or billed: the same key may try again."""
    client = await gateway.client()
    for status in (500, 429, 200):
        gateway.provider.answer = lambda call, status=status: call.answer(chat_body(), status=status)
        client.send(gateway.request(headers=KEY))
        assert (await client.response()).status == status
        await gateway.settled()
    client.send(gateway.request(headers=KEY))
    assert (await client.response()).status == 409
    assert [row["charge_nanos"] for row in await gateway.rows()] == [0, 0, 15 * NANOS_PER_TOKEN]


async def test_a_refused_call_does_not_claim_its_key_and_keys_are_the_wallets_own(gateway: Gateway) -> None:
    """I13"""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    client.send(gateway.request(chat_request(max_tokens=2_000_000), headers=KEY))
    assert (await client.response()).status == 402
    for token in ("", gateway.secret_key):  # the customer's wallet, then the merchant's
        client.send(gateway.request(headers=KEY, token=token))
        assert (await client.response()).status == 200
        await gateway.settled()


@pytest.mark.parametrize("value", ["", "x" * 256])
async def test_an_idempotency_key_out_of_bounds_is_refused(gateway: Gateway, value: str) -> None:
    client = await gateway.client()
    client.send(gateway.request(headers=(f"Idempotency-Key: {value}",)))
    response = await client.response()
    assert (response.status, response.error_code) == (400, "invalid_idempotency_key")


@pytest.mark.parametrize("failure", ["500", "429", "reset", "nothing"])
@pytest.mark.parametrize("has_key", [False, True])
async def test_the_sdks_own_retries_are_billed_once(gateway: Gateway, failure: str, has_key: bool) -> None:
    """L1: openai retries by itself; the attempt that had no answer costs nothing."""

    def answer(call: Call) -> None:
        if len(gateway.provider.calls) > 1:
            call.answer(chat_body())
        elif failure == "reset":
            call.reset()
        elif failure == "nothing":
            call.close()
        else:
            headers = [(b"content-type", b"application/json"), (b"retry-after-ms", b"1")]
            call.answer(b'{"error":{"message":"no"}}', status=int(failure), headers=headers)

    gateway.provider.answer = answer
    headers = {"Idempotency-Key": "order-18"} if has_key else {}
    async with openai.AsyncOpenAI(
        api_key=gateway.token, base_url=f"http://127.0.0.1:{gateway.port}/v1/forward/openai/v1", default_headers=headers
    ) as sdk:
        found = await sdk.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], max_tokens=100)
    assert found.choices[0].message.content == "Hello."
    rows = await gateway.rows()
    assert [row["charge_nanos"] for row in rows] == [0, 15 * NANOS_PER_TOKEN]
    assert await gateway.balance() == CUSTOMER_NANOS - 15 * NANOS_PER_TOKEN
