"""A hold that follows its stream, and how a stream ends when the balance cannot."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from lava_proxy import tasks
from tests.integration.gateway.fakes import Call, Client, chat_body, chat_events, event
from tests.integration.gateway.harness import CUSTOMER_NANOS, NANOS_PER_TOKEN, Gateway, chat_request

GOOGLE = "/v1/forward/google/v1beta/models/gemini-2.0-flash:streamGenerateContent"
MESSAGES = "/v1/forward/anthropic/v1/messages"
RESPONSES = "/v1/forward/openai/v1/responses"
OPEN_CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
TEXT = "word" * 1024  # about 1,024 tokens
HELD_TOKENS = 16_384 + 1_280  # of an open-ended call: the output assumed and the input's allowance


def chat_piece(text: str = TEXT) -> bytes:
    return event({"id": "c", "model": "gpt-4o-mini", "choices": [{"index": 0, "delta": {"content": text}}]})


async def leave(gateway: Gateway, tokens: int) -> tuple[Client, Call]:
    """A call in flight that holds all of the customer's money but so many tokens' worth."""
    client = await gateway.client()
    max_tokens = CUSTOMER_NANOS // NANOS_PER_TOKEN - tokens - 1_280
    client.send(gateway.request(chat_request(max_tokens=max_tokens)))
    return client, await gateway.provider.next_call()


async def release(held: tuple[Client, Call]) -> None:
    client, call = held
    call.answer(chat_body())
    assert (await client.response()).status == 200


async def _looks_end() -> None:
    """Until no look at a hold is under way (a look is two scripts)."""
    await tasks.drain("exchange-look", 5)


async def open_stream(gateway: Gateway, body: object = OPEN_CHAT, **options: Any) -> tuple[Client, Call]:
    client = await gateway.client()
    content_type = options.pop("content_type", b"text/event-stream")
    client.send(gateway.request(body, **options))
    call = await gateway.provider.next_call()
    call.begin(headers=[(b"content-type", content_type)])
    assert (await client.head()).status == 200
    return client, call


async def pour(client: Client, call: Call, piece: bytes, pieces: int) -> list[bytes]:
    """Send pieces until the gateway ends the answer, at most so many; what the client got."""
    got: list[bytes] = []
    for _ in range(pieces):
        if call.side.transport is not None:
            call.chunk(piece)
        data = await client.chunk()
        if not data:
            break
        got.append(data)
        await _looks_end()
    return got


async def test_a_stream_that_outgrows_its_hold_is_followed_while_the_balance_lasts(gateway: Gateway) -> None:
    """E5, E11: the hold grows with what was relayed, so that others cannot spend it, and the call ends as ever."""
    client, call = await open_stream(gateway)
    [exchange] = gateway.exchanges
    first = exchange._hold.amount_nanos
    assert first == HELD_TOKENS * NANOS_PER_TOKEN
    assert len(await pour(client, call, chat_piece(), 30)) == 30
    held = exchange._hold
    assert held.amount_nanos > held.used_nanos > first
    for sent in chat_events(prompt_tokens=10, completion_tokens=30_000)[-3:]:
        call.chunk(sent)
    call.end()
    while await client.chunk():
        pass
    row = await gateway.row()
    assert (row["outcome"], row["provenance"], row["charge_nanos"]) == ("completed", "provider_final", 30_010 * NANOS_PER_TOKEN)


STREAMS = {
    "chat": (OPEN_CHAT, {}, chat_piece()),
    "messages": (
        {"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
        {"target": MESSAGES},
        b"event: content_block_delta\n"
        + event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}),
    ),
    "responses": (
        {"model": "gpt-4o-mini", "input": "Hi", "stream": True},
        {"target": RESPONSES},
        b"event: response.output_text.delta\n" + event({"type": "response.output_text.delta", "delta": TEXT}),
    ),
    "google": (
        {"contents": [{"parts": [{"text": "Hi"}]}]},
        {"target": GOOGLE + "?alt=sse"},
        event({"candidates": [{"content": {"parts": [{"text": TEXT}], "role": "model"}}]}),
    ),
}


@pytest.mark.parametrize("family", STREAMS)
async def test_when_the_balance_cannot_follow_the_stream_ends_with_its_familys_own_error(gateway: Gateway, family: str) -> None:
    """E5, E2, D4: settled as delivered, no [DONE] made up, and other calls go on."""
    body, options, piece = STREAMS[family]
    held = await leave(gateway, HELD_TOKENS + 3_000)
    client, call = await open_stream(gateway, body, **options)
    got = await pour(client, call, piece, 60)
    tail = b"".join(got)[-2000:]
    await call.gone()
    last = tail[tail.rindex(b"data: ") + 6 :].decode()
    found = json.loads(last)
    if family in ("messages", "responses"):
        assert b"event: error\ndata: " in tail
    if family == "responses":
        assert (found["type"], found["code"]) == ("error", "balance_exhausted")
    elif family == "google":
        assert (found["error"]["code"], found["error"]["status"]) == (402, "FAILED_PRECONDITION")
    else:
        assert found["error"]["code"] == "balance_exhausted"
    assert b"[DONE]" not in tail
    await release(held)
    rows = await gateway.rows()
    [row] = [row for row in rows if row["outcome"] == "balance_exhausted"]
    assert (row["status"], row["provenance"], row["http_status"]) == ("error", "estimated", 200)
    spent_tokens = row["charge_nanos"] // NANOS_PER_TOKEN
    assert HELD_TOKENS < spent_tokens < HELD_TOKENS + 3_000 + 2_500, "it ran no further than a few kB past the balance"
    # The connection serves on.
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client.send(gateway.request())
    assert (await client.response()).status == 200


async def test_the_vendors_sdks_raise_their_own_errors_when_the_balance_cannot_follow(gateway: Gateway) -> None:
    """D2, D4: not an answer that looks whole."""
    held = await leave(gateway, HELD_TOKENS + 1_000)
    base = f"http://127.0.0.1:{gateway.port}/v1/forward"

    async def keep_sending(call: Call, piece: bytes) -> None:
        call.begin()
        while call.side.transport is not None:
            call.chunk(piece)
            await asyncio.sleep(0.001)

    def answer(call: Call) -> None:
        family = "messages" if "messages" in call.target else "responses" if "responses" in call.target else "chat"
        tasks.start("test-provider", keep_sending(call, STREAMS[family][2]))

    gateway.provider.answer = answer
    async with openai.AsyncOpenAI(api_key=gateway.token, base_url=f"{base}/openai/v1", max_retries=0) as sdk:
        with pytest.raises(openai.APIError) as chat_error:
            async for _ in await sdk.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], stream=True
            ):
                pass
        assert chat_error.value.code == "balance_exhausted"
        await gateway.fund(30_000 * NANOS_PER_TOKEN)
        with pytest.raises(openai.APIError) as responses_error:
            async for _ in await sdk.responses.create(model="gpt-4o-mini", input="Hi", stream=True):
                pass
        assert "used up" in str(responses_error.value)
    await gateway.fund(30_000 * NANOS_PER_TOKEN)
    async with anthropic.AsyncAnthropic(api_key=gateway.token, base_url=f"{base}/anthropic", max_retries=0) as claude:
        with pytest.raises(anthropic.APIStatusError) as claude_error:
            async for _ in await claude.messages.create(
                model="claude-test", max_tokens=None, messages=[{"role": "user", "content": "Hi"}], stream=True
            ):
                pass
        assert claude_error.value.status_code in (200, 402)
    await tasks.drain("test-provider", 5)
    await release(held)


async def test_a_dry_stream_ends_only_at_the_end_of_an_event(gateway: Gateway) -> None:
    """K1, D4: never inside a partial event."""
    client, call = await open_stream(gateway, {**OPEN_CHAT, "stream_options": {"include_usage": True}})
    half = chat_piece("the last")
    call.chunk(half[:20])
    assert await client.chunk() == half[:20]
    [exchange] = gateway.exchanges
    exchange._hold.is_dry = True
    exchange._plan_look(exchange._hold)
    call.chunk(half[20:40])
    assert await client.chunk() == half[20:40]
    call.chunk(half[40:] + half[:30])
    assert await client.chunk() == half[40:], "up to the event's end"
    assert b"balance_exhausted" in await client.chunk()
    assert await client.chunk() == b""
    await call.gone()
    assert (await gateway.row())["outcome"] == "balance_exhausted"


async def test_a_dry_stream_that_stays_inside_an_event_is_cut(gateway: Gateway) -> None:
    client, call = await open_stream(gateway)
    call.chunk(chat_piece("one"))
    await client.chunk()
    [exchange] = gateway.exchanges
    exchange._hold.is_dry = True
    exchange._plan_look(exchange._hold)
    gateway.check(seconds_later=4)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.chunk()
    assert (await gateway.row())["outcome"] == "balance_exhausted"


async def test_a_framing_without_an_error_event_is_cut(gateway: Gateway) -> None:
    """A JSON array cannot carry the error: only a cut is honest."""
    held = await leave(gateway, HELD_TOKENS + 1_000)
    client = await gateway.client()
    client.send(gateway.request({"contents": [{"parts": [{"text": "Hi"}]}]}, target=GOOGLE))
    call = await gateway.provider.next_call()
    call.begin(headers=[(b"content-type", b"application/json")])
    await client.head()
    piece = json.dumps({"candidates": [{"content": {"parts": [{"text": TEXT}], "role": "model"}}]}).encode()
    call.chunk(b"[" + piece)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        while True:
            await client.chunk()
            if call.side.transport is not None:
                call.chunk(b"," + piece)
            await _looks_end()
    await release(held)
    assert [row["outcome"] for row in await gateway.rows()].count("balance_exhausted") == 1


async def test_a_call_that_names_its_limit_is_not_cut_by_an_estimate(gateway: Gateway) -> None:
    """A text of long words is estimated above its tokens; its hold covers what the provider may generate."""
    held = await leave(gateway, 1_280 + 100 + 10)
    client, call = await open_stream(gateway, chat_request(stream=True))
    [exchange] = [one for one in gateway.exchanges if one._hold.call.stream]
    events = chat_events(words=10, completion_tokens=100, word="antidisestablishmentarianism " * 2)
    for sent in events[:-3]:
        call.chunk(sent)
        await client.chunk()
    await exchange.checkpoint()
    for sent in events[-3:]:
        call.chunk(sent)
    call.end()
    while await client.chunk():
        pass
    await release(held)
    assert {row["outcome"] for row in await gateway.rows()} == {"completed"}


async def test_a_top_up_while_a_stream_runs_lets_it_go_on(gateway: Gateway) -> None:
    held = await leave(gateway, HELD_TOKENS + 1_000)
    client, call = await open_stream(gateway)
    await pour(client, call, chat_piece(), 14)
    await gateway.fund(10**10)
    assert len(await pour(client, call, chat_piece(), 30)) == 30
    call.chunk(chat_events()[-1])
    call.end()
    while await client.chunk():
        pass
    await release(held)
    assert {row["outcome"] for row in await gateway.rows()} == {"completed"}


# -- a limit lowered to what the balance affords


async def test_where_the_merchant_wants_it_max_tokens_is_lowered_to_what_the_balance_affords(gateway: Gateway) -> None:
    """F8, E10: the hold covers the limit that was forwarded, and the balance is used to the last token."""
    await gateway.world.catalog.set_clamp_floor(gateway.merchant.merchant_id, 100)
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    body = chat_request(max_tokens=2_000_000)
    client.send(gateway.request(body))
    assert (await client.response()).status == 200
    [call] = gateway.provider.calls
    sent = call.json()
    assert 1_240_000 < sent["max_tokens"] < 1_250_000
    assert {**sent, "max_tokens": 2_000_000} == body
    row = await gateway.row()
    assert row["timings"]["max_tokens_clamped_to"] == sent["max_tokens"]
    assert row["charge_nanos"] == 15 * NANOS_PER_TOKEN


async def test_below_the_floor_a_call_is_refused_as_ever(gateway: Gateway) -> None:
    await gateway.world.catalog.set_clamp_floor(gateway.merchant.merchant_id, 1_900_000)
    client = await gateway.client()
    client.send(gateway.request(chat_request(max_tokens=2_000_000)))
    response = await client.response()
    assert (response.status, response.error_code) == (402, "insufficient_funds")
    assert gateway.provider.calls == []


async def test_a_stream_of_json_lines_that_runs_dry_ends_with_a_line_of_its_family(gateway: Gateway) -> None:
    """E5, D4: Ollama's clients read `error`; what was delivered is charged."""
    held = await leave(gateway, HELD_TOKENS)
    line = json.dumps({"model": "llama3", "message": {"role": "assistant", "content": TEXT}, "done": False}).encode() + b"\n"
    body = {"model": "llama3", "messages": [{"role": "user", "content": "Hi"}]}
    client, call = await open_stream(gateway, body, target="/v1/forward/ollama/api/chat", content_type=b"application/x-ndjson")
    got = await pour(client, call, line, 60)
    *whole, last = b"".join(got).splitlines()
    assert all(json.loads(piece)["done"] is False for piece in whole)
    assert "balance is used up" in json.loads(last)["error"]
    await release(held)
    rows = await gateway.rows()
    assert sorted(row["outcome"] for row in rows) == ["balance_exhausted", "completed"]
    assert all(row["charge_nanos"] > 0 for row in rows)
