"""What went wrong in other gateways, where no test of one of our parts would show it."""

from __future__ import annotations

import asyncio
import copy
import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lava_proxy.settings import Settings
from lava_proxy.wire.aws_event_stream import encode_frame
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Call, Client, chat_body, chat_events, event, google_events
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, chat_request, with_upstream
from tests.integration.gateway.test_following import GOOGLE, MESSAGES, RESPONSES

WORDS = 8
CONVERSE = "/v1/forward/bedrock/model/anthropic.claude-3-haiku-20240307-v1:0/converse-stream"
FRAMES = b"application/vnd.amazon.eventstream"


def named(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **members})


def messages_events() -> list[bytes]:
    """An Anthropic stream: 10 tokens in, 5 out."""
    text = [named("content_block_delta", index=0, delta={"type": "text_delta", "text": "word "}) for _ in range(WORDS)]
    start = {"id": "msg_1", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 10, "output_tokens": 1}}
    return [
        named("message_start", message=start),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *text,
        named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
        named("message_stop"),
    ]


def responses_events() -> list[bytes]:
    """A Responses stream: 10 tokens in, 5 out, said by its last event."""
    response = {"id": "resp_1", "model": "gpt-4o-mini", "status": "in_progress"}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return [
        named("response.created", response=response),
        *(named("response.output_text.delta", delta="word ") for _ in range(WORDS)),
        named("response.completed", response={**response, "status": "completed", "usage": usage}),
    ]


STREAMS: dict[str, tuple[Any, dict[str, Any], Callable[[], list[bytes]]]] = {
    "chat": (chat_request(stream=True, stream_options={"include_usage": True}), {}, lambda: chat_events(WORDS)),
    "messages": (
        {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], "stream": True},
        {"target": MESSAGES},
        messages_events,
    ),
    "responses": (
        {"model": "gpt-4o-mini", "max_output_tokens": 100, "input": "Hi", "stream": True}, {"target": RESPONSES}, responses_events
    ),
    "google": (
        {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 100}},
        {"target": GOOGLE + "?alt=sse"},
        lambda: google_events(WORDS, completion_tokens=5),
    ),
}  # fmt: skip


async def begun(gateway: Gateway, body: object, content_type: bytes = b"text/event-stream", **options: Any) -> tuple[Client, Call]:
    client = await gateway.client()
    client.send(gateway.request(body, **options))
    call = await gateway.provider.next_call()
    call.begin(headers=[(b"content-type", content_type)])
    assert (await client.head()).status == 200
    return client, call


def finish(call: Call, events: list[bytes]) -> None:
    for sent in events:
        call.chunk(sent)
    call.end()


@pytest.mark.parametrize("family", STREAMS)
@pytest.mark.parametrize("place", ["before the first", "after the first", "in the middle", "before the last", "after the last"])
async def test_a_client_may_leave_any_familys_stream_at_any_chunk_and_pays_for_it_once(
    gateway: Gateway, family: str, place: str
) -> None:
    """C1, C2, C8: one row, charged for something, never for more than all of it; nothing stays open at the provider."""
    body, options, events_of = STREAMS[family]
    events = events_of()
    after = {"before": 0, "after": 1, "in": len(events) // 2}[place.split()[0]]
    if place.endswith("last"):
        after = len(events) - (1 if place.startswith("before") else 0)
    client, call = await begun(gateway, body, **options)
    for sent in events[:after]:
        call.chunk(sent)
        await client.chunk()
    client.reset()
    if family == "google":  # read on to its usage, because Google bills to the end
        finish(call, events[after:])
    else:
        await call.gone()
        await gateway.provider.nobody()
    row = await gateway.row()
    usage = row["usage"]
    assert row["charge_nanos"] == (usage["input_tokens"] + usage["output_tokens"]) * NANOS_PER_TOKEN > 0
    assert row["status"] == "completed"
    assert row["outcome"] == "client_gone" or family == "google", "read to its end, it may have ended before the reset was read"
    said_all = family == "google" or after == len(events) or (family in ("chat", "messages") and place == "before the last")
    if said_all:
        assert (row["provenance"], row["charge_nanos"]) == ("provider_final", 15 * NANOS_PER_TOKEN)
    else:
        assert row["provenance"] == "estimated"
        assert usage["output_tokens"] <= 4 * WORDS, "no more than was relayed"


async def test_an_id_that_a_provider_gives_twice_makes_two_rows(gateway: Gateway) -> None:
    """A16, A15: rows, charges and answers go by our ids; a provider's may repeat or be missing."""
    for completion_tokens in (5, 7):
        client, call = await begun(gateway, chat_request(stream=True))
        finish(call, chat_events(completion_tokens=completion_tokens))
        while await client.chunk():
            pass
    client = await gateway.client()
    gateway.provider.answer = lambda call: call.answer(chat_body(completion_tokens=9).replace(b'"id": "chatcmpl-1", ', b""))
    client.send(gateway.request())
    assert (await client.response()).status == 200
    rows = await gateway.rows()
    ids = [row["request_id"] for row in rows]
    assert len(set(ids)) == 3 and all(request_id.startswith("req_") for request_id in ids)
    assert [row["charge_nanos"] for row in rows] == [tokens * NANOS_PER_TOKEN for tokens in (15, 17, 19)]
    assert [row["response_id"] for row in rows] == ["chatcmpl-1", "chatcmpl-1", None]


async def test_calls_that_wait_in_vain_for_a_full_pool_do_not_make_their_provider_look_broken(start: StartGateway) -> None:
    """H2: in another gateway a wait for a pool opened the breaker for a minute."""
    gateway = await start(adjust=with_upstream(pool_per_host_max=1, pool_wait_s=0.01, breaker_failures_max=2))
    busy, refused = await gateway.client(), await gateway.client()
    busy.send(gateway.request())
    call = await gateway.provider.next_call()
    for _ in range(4):
        refused.send(gateway.request())
        assert (await refused.response()).error_code == "pool_exhausted"
    call.answer(chat_body())
    assert (await busy.response()).status == 200
    assert gateway.worker._context.breakers._hosts == {}
    gateway.provider.answer = lambda call: call.answer(chat_body())
    refused.send(gateway.request())
    assert (await refused.response()).status == 200


def patient_openai(settings: Settings) -> Settings:
    table: Any = copy.deepcopy(dict(settings.providers_table))
    table["providers"]["openai"]["idle_timeout_s"] = 500
    return replace(settings, providers_table=table)


async def test_how_long_a_stream_may_be_silent_is_its_providers_own(start: StartGateway) -> None:
    """D10, K6: minutes pass while a tool's arguments are made; the stanza says how many, and others keep theirs."""
    gateway = await start(adjust=patient_openai)
    chat, _, _ = STREAMS["chat"]
    patient, call = await begun(gateway, chat)
    body, options, _ = STREAMS["messages"]
    cut, other = await begun(gateway, body, **options)
    gateway.check(seconds_later=0)  # has seen the heads
    gateway.check(seconds_later=301)
    await other.gone()
    finish(call, chat_events())
    while await patient.chunk():
        pass
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await cut.chunk()
    assert sorted(row["outcome"] for row in await gateway.rows()) == ["completed", "upstream_timeout"]


async def test_a_binary_stream_passes_byte_for_byte_also_where_a_frame_is_damaged(start: StartGateway) -> None:
    """I12: its reader, not we, tells the client of a broken checksum; what was delivered is charged."""
    gateway = await start(env_keys={"bedrock": "a-bedrock-key"})
    word = b'{"contentBlockIndex":0,"delta":{"text":"word "}}'
    said = [b'{"role":"assistant"}', *[word] * 6, b'{"stopReason":"end_turn"}']
    kinds = ["messageStart", *["contentBlockDelta"] * 6, "messageStop"]
    frames = [
        bytearray(encode_frame({":event-type": kind, ":content-type": "application/json", ":message-type": "event"}, payload))
        for kind, payload in zip(kinds, said, strict=True)
    ]
    frames[4][-6] ^= 1
    body = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig": {"maxTokens": 50}}
    client, call = await begun(gateway, body, FRAMES, target=CONVERSE)
    got = b""
    for frame in frames:
        call.chunk(bytes(frame))
        got += await client.chunk()
    call.end()
    assert not await client.chunk()
    assert got == b"".join(frames)
    row = await gateway.row()
    assert row["provenance"] == "estimated" and row["charge_nanos"] > 0


async def test_thousands_of_calls_leave_nothing_behind(gateway: Gateway) -> None:
    """K11, K13: no call is remembered once it has ended; caches are by credential and head, not by call."""
    gateway.provider.answer = lambda call: call.stream(chat_events()) if b'"stream"' in call.body else call.answer(chat_body())
    client = await gateway.client()

    async def calls(number: int) -> int:
        for index in range(number):
            client.send(gateway.request(chat_request(stream=True) if index % 2 else None))
            assert (await client.response()).status == 200
        await gateway.settled()
        gateway.provider.calls.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    await calls(100)
    tracemalloc.start()
    try:
        before = await calls(200)
        after = await calls(1000)
    finally:
        tracemalloc.stop()
    assert after - before < 200_000, "200 bytes a call would be a leak"
    await gateway.world.flush()


async def test_many_large_streams_are_not_kept_while_they_pass(gateway: Gateway) -> None:
    """K12, K13: 48 MB pass in sixteen streams at once; no more of them is held than a few reads' worth."""
    piece = event({"id": "c", "model": "gpt-4o-mini", "choices": [{"index": 0, "delta": {"content": "x" * 65_536}}]})
    streams = [await begun(gateway, chat_request(stream=True, max_tokens=50_000)) for _ in range(16)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(48):
            for _, call in streams:
                call.chunk(piece)
            for client, _ in streams:
                received = 0
                while received < len(piece):
                    received += len(await client.chunk())
        held = tracemalloc.get_traced_memory()[0] - before
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    for client, call in streams:
        finish(call, chat_events()[-3:])
        while await client.chunk():
            pass
    assert held < 3_000_000 and peak < 12_000_000, (held, peak)
