"""WebSocket sessions through a real gateway: what is relayed, what is metered and charged, and how they end."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import websockets
from google import genai
from websockets.frames import Close, Opcode

from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.limits import KeyRules, Limits
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.stores.customer_store import CustomerStore
from lava_proxy.stores.secret_key_store import SecretKeyStore
from lava_proxy.wire.forward_token import mint
from lava_proxy.wire.websocket_frames import CLOSE, TEXT
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import PATIENCE_S, Response
from tests.integration.gateway.harness import CUSTOMER_NANOS, MERCHANT_NANOS, NANOS_PER_TOKEN, Gateway, with_upstream
from tests.integration.gateway.sockets import REALTIME, Peer, SocketProvider, connect, created, done, frame, upgrade
from tests.tls_front import TlsFront, tls_front

LIVE = "/v1/forward/google/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
RESPONSE_CREATE = {"type": "response.create"}


@pytest.fixture
async def provider() -> AsyncIterator[SocketProvider]:
    started = SocketProvider()
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
async def sold(start: StartGateway, provider: SocketProvider) -> Gateway:
    return await begin(start, provider)


async def begin(start: StartGateway, provider: SocketProvider, **options: Any) -> Gateway:
    url = f"http://127.0.0.1:{provider.port}"
    keys = {"openai": "sk-of-the-installation", "google": "google-of-the-installation"}
    return await start(overrides={"openai": url, "google": url}, env_keys=keys, **options)


async def refused(gateway: Gateway, target: str, **options: Any) -> Response:
    client = await gateway.client()
    client.send(upgrade(gateway, target, **options))
    response = await client.response("GET")
    assert await client.closed() == b""
    return response


# -- what is relayed


async def test_frames_pass_byte_for_byte_both_ways(sold: Gateway, provider: SocketProvider) -> None:
    """Masked, fragmented, control and large frames: nothing is written anew."""
    client, session, head = await connect(sold, provider)
    assert head.header(b"x-lava-request-id") is not None
    assert head.header(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    upwards = [
        frame(RESPONSE_CREATE, masked=True),
        frame(b"half ", masked=True, fin=False),
        frame(b"are you there", masked=True, opcode=Opcode.PING),
        frame(b"whole", masked=True, opcode=Opcode.CONT),
        frame(bytes(range(256)) * 400, masked=True, opcode=Opcode.BINARY),
    ]
    downwards = [
        frame(created()),
        frame(b'{"type":"response.output_text.delta","response_id":"resp_1","delta":"Gr\xc3\xbc', fin=False),
        frame(b"", opcode=Opcode.PONG),
        frame(b'\xc3\x9fe"}', opcode=Opcode.CONT),
        frame(done(1, 20, 10)),
        frame(bytes(range(256)) * 300, opcode=Opcode.BINARY),
    ]
    for sent, writer, reader in ((upwards, client, session), (downwards, session, client)):
        whole = b"".join(sent)
        for at in range(0, len(whole), 7_001):
            writer.write(whole[at : at + 7_001])
        assert await reader.exactly(len(whole)) == whole
    session.close()
    session.writer.close()
    await client.ended()
    assert (await sold.row())["charge_nanos"] == 30 * NANOS_PER_TOKEN


async def test_the_upgrade_carries_the_providers_key_and_nothing_of_ours(sold: Gateway, provider: SocketProvider) -> None:
    client, session, _ = await connect(sold, provider, REALTIME, "OpenAI-Beta: realtime=v1", 'x-lava-metadata: {"a":"b"}')
    assert session.target == "/v1/realtime?model=gpt-realtime"
    assert session.header(b"authorization") == b"Bearer sk-of-the-installation"
    assert (session.header(b"upgrade"), session.header(b"connection")) == (b"websocket", b"Upgrade")
    assert session.header(b"openai-beta") == b"realtime=v1"
    assert session.header(b"sec-websocket-extensions") is None, "compressed frames could not be read"
    assert session.header(b"x-lava-metadata") is None
    session.close()
    session.writer.close()
    await client.ended()
    row = await sold.row()
    assert (row["metadata"], row["http_status"], row["outcome"], row["charge_nanos"]) == ({"a": "b"}, 101, "completed", 0)


async def test_a_credential_in_the_subprotocol_is_taken_and_never_reaches_the_provider(
    sold: Gateway, provider: SocketProvider
) -> None:
    protocols = f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{sold.token}, openai-beta.realtime-v1"
    client, session, head = await connect(sold, provider, REALTIME, protocols, token=None)
    assert session.header(b"sec-websocket-protocol") == b"realtime, openai-beta.realtime-v1"
    assert session.header(b"authorization") == b"Bearer sk-of-the-installation"
    assert all(sold.token.encode() not in value for _, value in session.headers)
    assert head.header(b"sec-websocket-protocol") == b"realtime"
    assert sold.token.encode() not in head.raw_head
    session.close()
    session.writer.close()
    await client.ended()
    assert (await sold.row())["outcome"] == "completed"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/forward?u=wss://api.openai.com/v1/realtime?model=gpt-realtime",
        "/v1/forward?u=wss%3A%2F%2Fapi.openai.com%2Fv1%2Frealtime%3Fmodel%3Dgpt-realtime",
        "/v1/forward?u=https://api.openai.com/v1/realtime&model=gpt-realtime",
        "/v1/forward/wss://api.openai.com/v1/realtime?model=gpt-realtime",
        "/v1/forward/https://api.openai.com/v1/realtime?model=gpt-realtime",
        "/v1/forward/openai/realtime?model=gpt-realtime",
        "/v1/realtime?model=gpt-realtime",
        "/v1/realtime?model=openai/gpt-realtime",
    ],
)
async def test_every_form_of_the_url_reaches_the_session(sold: Gateway, provider: SocketProvider, target: str) -> None:
    mark = "&" if "?" in target else "?"
    if "%3A" in target:
        client, session, _ = await connect(sold, provider, target)
    else:
        client, session, _ = await connect(sold, provider, f"{target}{mark}key={sold.token}", token=None)
    assert session.target == "/v1/realtime?model=gpt-realtime"
    session.close()
    session.writer.close()
    await client.ended()
    row = await sold.row()
    assert (row["provider"], row["model"], row["api"]) == ("openai", "gpt-realtime", "realtime")


async def test_an_established_client_library_talks_through(sold: Gateway, provider: SocketProvider) -> None:
    """It offers compression and goes on without."""
    url = f"ws://127.0.0.1:{sold.port}{REALTIME}"
    async with websockets.connect(url, additional_headers={"Authorization": f"Bearer {sold.token}"}) as socket:
        session = await provider.next()
        await socket.send(json.dumps(RESPONSE_CREATE))
        assert await session.event() == RESPONSE_CREATE
        session.send(done(1, 7, 3))
        assert json.loads(await socket.recv())["type"] == "response.done"
        closing = asyncio.ensure_future(socket.close())
        assert (await session.message()).opcode == CLOSE
        session.close()
        session.writer.close()
        await closing
    row = await sold.row()
    assert (row["outcome"], row["charge_nanos"]) == ("completed", 10 * NANOS_PER_TOKEN)


async def test_what_the_client_sends_before_the_101_arrives_behind_it(sold: Gateway, provider: SocketProvider) -> None:
    client = await sold.client()
    early = frame(RESPONSE_CREATE, masked=True)
    client.send(upgrade(sold) + early)
    session = await provider.next()
    assert await session.exactly(len(early)) == early
    session.close()
    session.writer.close()
    await client.closed()
    await sold.settled()


async def test_a_side_that_does_not_read_holds_the_other_back(sold: Gateway, provider: SocketProvider) -> None:
    """K12: memory stays bounded, and everything arrives in the end."""
    client, session, _ = await connect(sold, provider)
    reading: Any = client.writer.transport
    reading.pause_reading()
    piece = frame(bytes(65_536), opcode=Opcode.BINARY)
    count = 400
    for _ in range(count):
        session.write(piece)
    [exchange] = sold.exchanges
    while exchange.client.writable:
        await asyncio.sleep(0)
    assert exchange.client.transport.get_write_buffer_size() < 2 << 20
    reading.resume_reading()
    assert await client.exactly(count * len(piece)) == piece * count
    session.close()
    session.writer.close()
    await client.ended()
    await sold.settled()


# -- refusals


async def test_a_provider_that_refuses_the_upgrade_is_relayed_and_costs_nothing(sold: Gateway, provider: SocketProvider) -> None:
    """D6: also a 200, which is no session."""
    for status, body in ((401, b'{"error":{"message":"no"}}'), (200, b"hello")):
        provider.answer = b"HTTP/1.1 %d Told\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
            status, len(body), body,
        )  # fmt: skip
        response = await refused(sold, REALTIME)
        assert (response.status, response.body) == (status, body)
        assert response.header(b"x-lava-request-id") is not None
    rows = await sold.rows()
    assert [(row["http_status"], row["charge_nanos"], row["billed"]) for row in rows] == [(401, 0, False), (200, 0, False)]


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v1/forward/elevenlabs/v1/text-to-speech/voice/stream-input?model_id=eleven_flash_v2_5", 400, "upgrade_not_supported"),
        ("/v1/forward/deepgram/v1/listen?model=nova-3", 400, "upgrade_not_supported"),
        ("/v1/forward/openai/v1/responses", 400, "upgrade_not_supported"),
        ("/v1/forward/openai/v1/realtime", 400, "model_required"),
        ("/v1/realtime", 400, "model_required"),
        ("/v1/realtime?model=nobodys-model", 400, "forward_model_invalid"),
    ],
)
async def test_a_session_that_could_not_be_billed_is_refused_before_anything_is_held(
    start: StartGateway, provider: SocketProvider, target: str, status: int, code: str
) -> None:
    keys = {"openai": "sk", "elevenlabs": "xi", "deepgram": "dg"}
    gateway = await start(overrides={"openai": f"http://127.0.0.1:{provider.port}"}, env_keys=keys)
    response = await refused(gateway, target)
    assert (response.status, response.error_code) == (status, code)
    assert provider.sessions == []
    assert await gateway.rows() == []


async def test_without_a_credential_or_money_there_is_no_session(sold: Gateway, provider: SocketProvider) -> None:
    assert (await refused(sold, REALTIME, token=None)).status == 401
    poor = await sold.world.catalog.create_connection(sold.merchant.merchant_id, reference_id="poor")
    await sold.funding.open_wallet(poor.wallet_id)
    response = await refused(sold, REALTIME, token=mint(sold.secret_key, poor.connection_id, "fixed"))
    assert (response.status, response.error_code) == (402, "insufficient_funds")
    assert provider.sessions == []


# -- money


async def test_usage_is_summed_over_the_responses_and_priced_by_modality(sold: Gateway, provider: SocketProvider) -> None:
    """A23, A24: per response and not cumulative; the transcription at its own model's price; one row."""
    token = mint(sold.secret_key, sold.connection.connection_id, "markup")
    client, session, head = await connect(sold, provider, token=token)
    session.send(created(audio={"input": {"transcription": {"model": "gpt-4o-transcribe"}}}))
    details = {
        "input_token_details": {
            "text_tokens": 40, "audio_tokens": 60, "cached_tokens": 30,
            "cached_tokens_details": {"text_tokens": 10, "audio_tokens": 20},
        },
        "output_token_details": {"text_tokens": 8, "audio_tokens": 42},
    }  # fmt: skip
    session.send(done(1, 100, 50, **details))
    session.send(done(1, 100, 50, **details))  # said twice, counted once
    usage = {
        "type": "tokens",
        "input_tokens": 30,
        "output_tokens": 12,
        "input_token_details": {"audio_tokens": 25, "text_tokens": 5},
    }
    session.send({"type": "conversation.item.input_audio_transcription.completed", "transcript": "hi", "usage": usage})
    session.send(done(2, 200, 80, **details))
    for _ in range(5):
        await client.message()
    session.close()
    session.writer.close()
    await client.ended()
    row = await sold.row()
    assert row["request_id"].encode() == head.header(b"x-lava-request-id")
    assert (row["model"], row["provenance"], row["response_id"]) == ("gpt-realtime-2025-08-28", "provider_final", "sess_1")
    assert row["usage"] == {
        "input_tokens": 300, "output_tokens": 130, "cached_input_tokens": 60, "cache_write_tokens": 0, "reasoning_tokens": 0,
        "input_audio_tokens": 120, "cached_input_audio_tokens": 40, "output_audio_tokens": 84,
        "other_models": {
            "gpt-4o-transcribe": {
                "input_tokens": 30, "output_tokens": 12, "cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0,
                "input_audio_tokens": 25,
            }
        },
    }  # fmt: skip
    # gpt-realtime per million: text $4, cached $0.40, audio $32, cached audio $0.40; out $16, audio $64. Transcription:
    # text $2.50, audio $6, out $10.
    cost = (
        (160 * 4_000 + 20 * 400) + (80 * 32_000 + 40 * 400) + (46 * 16_000 + 84 * 64_000) + (5 * 2_500 + 25 * 6_000 + 12 * 10_000)
    )
    assert row["cost_nanos"] == cost
    assert row["charge_nanos"] == cost * 12 // 10
    assert await sold.balance() == CUSTOMER_NANOS - row["charge_nanos"]


async def test_the_hold_follows_each_response(sold: Gateway, provider: SocketProvider) -> None:
    """E5: what a session has used is held before it goes on."""
    client, session, _ = await connect(sold, provider)
    [exchange] = sold.exchanges
    before = exchange.held_nanos
    session.send(done(1, 100_000, 20_000))
    await client.message()
    while exchange.held_nanos == before:
        await asyncio.sleep(0)
    assert exchange.held_nanos >= 120_000 * NANOS_PER_TOKEN
    session.close()
    session.writer.close()
    await client.ended()
    assert (await sold.row())["charge_nanos"] == 120_000 * NANOS_PER_TOKEN


async def test_a_session_that_the_balance_cannot_follow_ends_with_an_error_event_and_a_close(
    sold: Gateway, provider: SocketProvider
) -> None:
    """D2, D4: never inside a message; what was used is charged."""
    client, session, _ = await connect(sold, provider)
    session.send(created())
    await client.message()
    tokens = CUSTOMER_NANOS // NANOS_PER_TOKEN
    session.write(frame(done(1, tokens, 10)) + frame(b'{"type":"half', fin=False))
    assert (await client.event())["type"] == "response.done"
    [exchange] = sold.exchanges
    while not exchange._dry_at:
        await asyncio.sleep(0)
    session.write(frame(b'"}', opcode=Opcode.CONT))
    assert json.loads((await client.message()).payload) == {"type": "half"}
    error = await client.event()
    assert (error["type"], error["error"]["code"], error["error"]["type"]) == ("error", "balance_exhausted", "insufficient_quota")
    closing = await client.message()
    assert closing.opcode == CLOSE
    assert Close.parse(closing.payload).code == 1008
    assert "balance_exhausted" in Close.parse(closing.payload).reason
    assert (await session.message()).opcode == CLOSE
    assert await session.ended() == b""
    client.write(frame(Close(1008, "").serialize(), masked=True, opcode=Opcode.CLOSE))
    assert await client.ended() == b""
    row = await sold.row()
    assert (row["outcome"], row["status"], row["charge_nanos"]) == (
        "balance_exhausted",
        "error",
        CUSTOMER_NANOS + 10 * NANOS_PER_TOKEN,
    )


async def test_a_dry_session_inside_a_message_that_never_ends_is_cut(sold: Gateway, provider: SocketProvider) -> None:
    client, session, _ = await connect(sold, provider)
    session.write(frame(done(1, CUSTOMER_NANOS // NANOS_PER_TOKEN, 10)) + frame(b"endless" * 9, opcode=Opcode.BINARY)[:-3])
    await client.message()
    [exchange] = sold.exchanges
    while not exchange._dry_at:
        await asyncio.sleep(0)
    sold.check(seconds_later=4)
    assert not (await client.ended()).endswith(b"\x03\xf0"), "no CLOSE fits inside a frame"
    assert (await sold.row())["outcome"] == "balance_exhausted"


async def test_a_running_response_is_estimated_when_the_client_leaves(sold: Gateway, provider: SocketProvider) -> None:
    """C1, C2: the audio at 50 ms a token, the text at four bytes, the input as what went before."""
    client, session, _ = await connect(sold, provider)
    session.send(created())
    session.send(done(1, 1_000, 100))
    session.send({"type": "response.created", "response": {"id": "resp_2", "status": "in_progress"}})
    sound = base64.b64encode(bytes(24_000)).decode()  # half a second
    session.send({"type": "response.output_audio.delta", "event_id": "e", "response_id": "resp_2", "item_id": "i", "delta": sound})
    session.send({"type": "response.output_audio_transcript.delta", "response_id": "resp_2", "item_id": "i", "delta": "word" * 5})
    for _ in range(5):
        await client.message()
    client.writer.transport.abort()
    assert await session.ended() == b""
    row = await sold.row()
    assert (row["outcome"], row["provenance"]) == ("client_gone", "estimated")
    assert (row["usage"]["input_tokens"], row["usage"]["cached_input_tokens"]) == (1_000 + 1_100, 1_000)
    assert (row["usage"]["output_tokens"], row["usage"]["output_audio_tokens"]) == (100 + 10 + 5, 10)
    assert row["charge_nanos"] == (2_100 + 115) * NANOS_PER_TOKEN


async def test_a_provider_that_breaks_off_is_told_to_the_client_by_the_same_break(sold: Gateway, provider: SocketProvider) -> None:
    """D1, D7: no CLOSE is invented; what was reported is charged."""
    client, session, _ = await connect(sold, provider)
    session.send(done(1, 10, 5))
    await client.message()
    session.writer.transport.abort()
    assert await client.ended() == b""
    row = await sold.row()
    assert (row["outcome"], row["status"], row["charge_nanos"]) == ("upstream_broken", "error", 15 * NANOS_PER_TOKEN)


async def test_a_client_that_said_goodbye_and_closed_its_side_still_gets_the_rest(sold: Gateway, provider: SocketProvider) -> None:
    client, session, _ = await connect(sold, provider)
    client.write(frame(Close(1000, "").serialize(), masked=True, opcode=Opcode.CLOSE))
    client.writer.write_eof()
    assert (await session.message()).opcode == CLOSE
    sent = session.send(done(1, 10, 5))
    assert await client.exactly(len(sent)) == sent
    session.close()
    session.writer.close()
    await client.ended()
    row = await sold.row()
    assert (row["outcome"], row["charge_nanos"]) == ("completed", 15 * NANOS_PER_TOKEN)


async def test_a_provider_that_does_not_answer_a_goodbye_is_not_waited_for_long(sold: Gateway, provider: SocketProvider) -> None:
    client, session, _ = await connect(sold, provider)
    client.write(frame(Close(1000, "").serialize(), masked=True, opcode=Opcode.CLOSE))
    client.writer.write_eof()
    assert (await session.message()).opcode == CLOSE
    [exchange] = sold.exchanges
    while not exchange.deadline:
        await asyncio.sleep(0)
    sold.check(seconds_later=11)
    assert await session.ended() == b""
    assert (await sold.row())["outcome"] == "completed"


async def test_a_message_too_large_to_read_passes_and_marks_the_usage(start: StartGateway, provider: SocketProvider) -> None:
    """K12: bounded memory; the row says that it is not the provider's last word."""
    gateway = await begin(start, provider, adjust=with_upstream(websocket_message_bytes_max=2_000))
    client, session, _ = await connect(gateway, provider)
    harmless = session.send({"type": "conversation.item.retrieved", "item": "x" * 5_000})
    assert await client.exactly(len(harmless)) == harmless
    [exchange] = gateway.exchanges
    assert exchange.meter.reading().provenance == "provider_final"
    large = session.send({**done(1, 10, 5), "padding": "x" * 5_000})
    small = session.send(done(2, 10, 5))
    assert await client.exactly(len(large) + len(small)) == large + small
    session.close()
    session.writer.close()
    await client.ended()
    row = await gateway.row()
    assert (row["provenance"], row["charge_nanos"]) == ("estimated", 15 * NANOS_PER_TOKEN)


async def test_a_change_of_model_is_priced_as_such_or_ended(sold: Gateway, provider: SocketProvider) -> None:
    """A24: a session that turns to a dearer model pays its price; to one without a price, it ends."""
    token = mint(sold.secret_key, sold.connection.connection_id, "markup")
    client, session, _ = await connect(sold, provider, token=token)
    session.send(created("gpt-realtime-mini"))
    session.send(done(1, 1_000, 0))
    session.send({**created("gpt-realtime"), "type": "session.updated"})
    session.send(done(2, 1_000, 0))
    session.send({**created("nobody-knows"), "type": "session.updated"})
    for _ in range(5):
        await client.message()
    assert (await client.event())["error"]["code"] == "model_not_priced"
    assert (await client.message()).opcode == CLOSE
    row = await sold.row()
    assert (row["model"], row["cost_nanos"]) == ("gpt-realtime-mini", 1_000 * 600 + 1_000 * 4_000)


async def test_a_meter_by_the_minute_charges_the_time_connected(sold: Gateway, provider: SocketProvider) -> None:
    await sold.world.catalog.create_meter(
        sold.merchant.merchant_id, name="time", slug="time", rate_type="fixed", tier_type="minutes",
        tiers=(Tier(start=0, rate=NANOS_PER_USD),),
    )  # fmt: skip
    client, session, _ = await connect(sold, provider, token=mint(sold.secret_key, sold.connection.connection_id, "time"))
    session.send(created())
    await client.message()
    [exchange] = sold.exchanges
    exchange._first_byte_ns -= 90 * 10**9  # as if it had begun so much earlier
    session.close()
    session.writer.close()
    await client.ended()
    row = await sold.row()
    length = Decimal(str(row["usage"]["audio_seconds"]))
    assert 90 <= length < 100
    assert abs(row["charge_nanos"] - length * NANOS_PER_USD / 60) <= 1


# -- Gemini Live


async def test_a_live_session_is_held_back_until_its_setup_names_a_model_and_each_turn_counts(
    sold: Gateway, provider: SocketProvider
) -> None:
    """A21, A24: usage is per turn; told again within a turn, the last one counts."""
    token = mint(sold.secret_key, sold.connection.connection_id, "markup")
    client, session, _ = await connect(sold, provider, LIVE, f"x-goog-api-key: {token}", token=None)
    assert session.header(b"x-goog-api-key") == b"google-of-the-installation"
    setup = frame({"setup": {"model": "models/gemini-3.1-flash-live-preview"}}, masked=True)
    client.write(setup[:10])
    client.write(setup[10:] + frame({"realtimeInput": {}}, masked=True))
    assert (await session.event())["setup"]["model"] == "models/gemini-3.1-flash-live-preview"
    await session.event()

    def turn(prompt: int, response: int, **content: object) -> dict[str, Any]:
        audio = [{"modality": "AUDIO", "tokenCount": response}]
        usage = {"promptTokenCount": prompt, "responseTokenCount": response, "responseTokensDetails": audio, "totalTokenCount": 1}
        return {"serverContent": content, "usageMetadata": usage}

    messages = [
        {"setupComplete": {}},
        {"serverContent": {"modelTurn": {"parts": [{"text": "word"}]}}},
        turn(100, 10),
        turn(100, 20, turnComplete=True),
        turn(150, 30, turnComplete=True),
    ]
    for message in messages:
        session.send(message, opcode=Opcode.BINARY)
        await client.message()
    session.close()
    session.writer.close()
    await client.ended()
    row = await sold.row()
    assert (row["model"], row["api"], row["provenance"]) == (
        "gemini-3.1-flash-live-preview",
        LIVE.rpartition(".")[2],
        "provider_final",
    )
    assert (row["usage"]["input_tokens"], row["usage"]["output_audio_tokens"]) == (250, 50)
    assert row["cost_nanos"] == 250 * 750 + 50 * 12_000


@pytest.mark.parametrize(
    ("first", "close_code", "reason"),
    [
        ({"setup": {"model": "models/nobody-knows"}}, 1008, "model_not_priced"),
        ({"clientContent": {}}, 1007, "model_required"),
    ],
)
async def test_a_live_session_without_a_model_that_has_a_price_reaches_nobody(
    sold: Gateway, provider: SocketProvider, first: dict[str, Any], close_code: int, reason: str
) -> None:
    token = mint(sold.secret_key, sold.connection.connection_id, "markup")
    client, session, _ = await connect(sold, provider, LIVE, token=token)
    client.write(frame(first, masked=True))
    closing = Close.parse((await client.message()).payload)
    assert (closing.code, closing.reason.partition(":")[0]) == (close_code, reason)
    assert await session.ended() == b""
    row = await sold.row()
    assert (row["charge_nanos"], row["outcome"]) == (0, "gateway_stopped")


# -- keys with rules, time, shutdown


async def test_silence_from_both_sides_ends_a_session_and_a_ping_is_no_silence(sold: Gateway, provider: SocketProvider) -> None:
    """K4, K6: the time allowed is a setting."""
    client, session, _ = await connect(sold, provider)
    idle_s = sold.settings.upstream.websocket_idle_timeout_s
    ping = frame(b"", masked=True, opcode=Opcode.PING)
    client.write(ping)
    assert await session.exactly(len(ping)) == ping
    sold.check(seconds_later=idle_s + 1)
    [exchange] = sold.exchanges
    assert exchange._is_open, "the ping was traffic"
    sold.check(seconds_later=3 * idle_s)
    assert (await client.event())["error"]["code"] == "session_idle"
    assert Close.parse((await client.message()).payload).code == 1001
    assert (await sold.row())["outcome"] == "upstream_timeout"


async def test_a_long_session_is_not_ended_by_the_limit_of_a_call(sold: Gateway, provider: SocketProvider) -> None:
    """K3."""
    client, session, _ = await connect(sold, provider)
    [exchange] = sold.exchanges
    exchange._sent_at -= 2 * sold.settings.upstream.total_timeout_s
    sold.check(seconds_later=1)
    sent = session.send(done(1, 1, 1))
    assert await client.exactly(len(sent)) == sent
    session.close()
    session.writer.close()
    await client.ended()
    await sold.settled()


@pytest.mark.parametrize("end", ["revoked", "paused", "expired", "customer"])
async def test_a_session_ends_with_the_credential_that_opened_it(sold: Gateway, provider: SocketProvider, end: str) -> None:
    """A call ends by what it began with; a session has no end of its own, so a revoked key must be one."""
    catalog, merchant_id, token = sold.world.catalog, sold.merchant.merchant_id, ""
    if end in ("paused", "expired"):
        soon = datetime.now(UTC) + timedelta(seconds=2)
        rules = KeyRules(expires_at=soon if end == "expired" else None)
        key = await catalog.create_spend_key(merchant_id, name="k", rules=rules, limits=Limits())
        token = key.secret or ""
    client, session, _ = await connect(sold, provider, token=token)
    session.send(done(1, 10, 5))
    await client.message()
    generation = sold.worker._grants.generation
    if end == "revoked":
        keys = SecretKeyStore(sold.world.pool)
        [used] = await keys.many(merchant_id, before=None, limit=5)
        await keys.create(merchant_id, "another", live=True)
        await keys.revoke(merchant_id, used.secret_key_id)
    elif end == "paused":
        await catalog.update_spend_key(replace(key, status="paused"))
    elif end == "customer":
        await CustomerStore(sold.world.pool).delete(merchant_id, sold.connection.connection_id)
    async with asyncio.timeout(PATIENCE_S):
        while end != "expired" and sold.worker._grants.generation == generation:
            await asyncio.sleep(0)
        [exchange] = sold.exchanges
        while exchange._is_open:  # looked at once a second by the worker's timer
            sold.check(seconds_later=0)
            await asyncio.sleep(0)
    code = (await client.event())["error"]["code"]
    assert code == {
        "revoked": "invalid_secret_key", "paused": "spend_key_paused", "expired": "spend_key_expired",
        "customer": "connection_not_found",
    }[end]  # fmt: skip
    assert Close.parse((await client.message()).payload).code == 1008
    assert (await session.message()).opcode == CLOSE
    row = await sold.row()
    assert row["usage"]["output_tokens"] == 5 and row["provenance"] == "provider_final"


async def test_a_session_survives_a_change_that_does_not_concern_it_and_an_outage(
    sold: Gateway, provider: SocketProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, session, _ = await connect(sold, provider)
    grants, [exchange] = sold.worker._grants, sold.exchanges
    asked: list[bytes] = []

    async def away(credential: bytes) -> Any:
        asked.append(credential)
        raise StoreError("away")

    monkeypatch.setattr(type(grants), "resolve", lambda self, credential: away(credential))
    for _ in range(2):
        grants.forget()
        sold.check(seconds_later=0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(asked) == 2 and exchange._is_open, "asked again until somebody answers"
    monkeypatch.undo()
    sold.check(seconds_later=0)
    async with asyncio.timeout(PATIENCE_S):
        while exchange._admitted_at != grants.generation:
            await asyncio.sleep(0)
    sent = session.send(done(1, 1, 1))
    assert await client.exactly(len(sent)) == sent
    session.close()
    session.writer.close()
    await client.ended()
    await sold.settled()


async def test_our_shutdown_says_goodbye_and_settles(start: StartGateway, provider: SocketProvider) -> None:
    """G1: a session that does not end by itself is ended and charged."""
    gateway = await begin(start, provider, adjust=with_upstream(stop_timeout_s=1))
    client, session, _ = await connect(gateway, provider)
    session.send(done(1, 10, 5))
    await client.message()
    stopping = asyncio.ensure_future(gateway.stop())
    error = await client.event()
    assert error["error"]["code"] == "gateway_stopping"
    assert Close.parse((await client.message()).payload).code == 1001
    assert (await session.message()).opcode == CLOSE
    await asyncio.wait_for(stopping, PATIENCE_S)
    row = await gateway.row()
    assert (row["outcome"], row["charge_nanos"]) == ("gateway_stopped", 15 * NANOS_PER_TOKEN)


async def test_a_checkpoint_of_a_session_is_what_it_has_used(sold: Gateway, provider: SocketProvider) -> None:
    """A worker that dies leaves the session's usage beside its hold."""
    client, session, _ = await connect(sold, provider)
    session.send(done(1, 10, 5))
    await client.message()
    [exchange] = sold.exchanges
    while not exchange._hold.used_nanos:
        await asyncio.sleep(0)
    assert exchange._hold.used_nanos == 15 * NANOS_PER_TOKEN
    session.close()
    session.writer.close()
    await client.ended()
    await sold.settled()


async def test_an_upgrade_behind_another_request_waits_for_its_turn(sold: Gateway, provider: SocketProvider) -> None:
    sold.control.answer = lambda call: call.answer(b"{}")
    client = await sold.client()
    client.send(sold.request(method="GET", target="/v1/meters") + upgrade(sold))
    assert (await client.response("GET")).status == 200
    session = await provider.next()
    assert b"101" in await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    peer = Peer(client.reader, client.writer)
    session.send(done(1, 1, 1))
    assert (await peer.message()).opcode == TEXT
    session.close()
    session.writer.close()
    await peer.ended()
    assert await sold.balance(sold.merchant.wallet_id) == MERCHANT_NANOS
    await sold.settled()


async def test_a_provider_that_charges_by_the_hour_is_paid_for_the_time_connected(
    start: StartGateway, provider: SocketProvider
) -> None:
    """B1: usage in tokens that has no price does not make a session free."""
    gateway = await start(overrides={"xai": f"http://127.0.0.1:{provider.port}"}, env_keys={"xai": "xai-key"})
    token = mint(gateway.secret_key, gateway.connection.connection_id, "markup")
    client, session, _ = await connect(gateway, provider, "/v1/forward/xai/v1/realtime?model=grok-voice-latest", token=token)
    session.send(done(1, 10, 5))
    await client.message()
    [exchange] = gateway.exchanges
    exchange._first_byte_ns -= 3_600 * 10**9
    session.close()
    session.writer.close()
    await client.ended()
    row = await gateway.row()
    assert 4_800_000_000 <= row["cost_nanos"] < 4_900_000_000  # $4.80 an hour
    assert row["charge_nanos"] - row["cost_nanos"] * 12 // 10 in (0, 1)


async def test_a_spend_keys_models_are_checked_when_the_setup_names_one(sold: Gateway, provider: SocketProvider) -> None:
    rules = KeyRules(allowed_models=("google/gemini-3.1-*", "gpt-realtime-mini"))
    key = await sold.world.catalog.create_spend_key(sold.merchant.merchant_id, name="k", rules=rules, limits=Limits())
    assert key.secret is not None
    assert (await refused(sold, REALTIME, token=key.secret)).error_code == "forward_model_invalid"
    for model, is_allowed in (("gemini-3.1-flash-live-preview", True), ("gemini-live-2.5-flash", False)):
        client, session, _ = await connect(sold, provider, LIVE, token=key.secret)
        client.write(frame({"setup": {"model": f"models/{model}"}}, masked=True))
        if is_allowed:
            await session.event()
            session.close()
            session.writer.close()
        else:
            assert "forward_model_invalid" in Close.parse((await client.message()).payload).reason
            assert await session.ended() == b""
        await client.ended()
        await sold.settled()


@pytest.mark.parametrize(
    "target",
    [
        "/v1/forward/openai/v1/realtime/client_secrets",
        "/v1/forward/openai/v1/realtime/sessions",
        "/v1/forward/openai/v1/realtime/calls",
        "/v1/forward/openai/v1/realtime/c%6Cient_secrets/",
        "/v1/forward/openai/v1/realtime//client_secrets",
        "/v1/forward/openai/v1/realtime/client_secrets;x",
        "/v1/forward/openai/v1/realtime%2Fc%256Cient_secrets%20",
        "/v1/forward/openai/v1/Realtime\\Sessions".replace("\\", "%5C"),
        "/v1/forward/google/v1alpha/auth_tokens",
    ],
)
async def test_nothing_is_handed_out_that_leads_past_the_meter(sold: Gateway, provider: SocketProvider, target: str) -> None:
    """A provider's own short-lived key would be used unbilled."""
    client = await sold.client()
    client.send(sold.request({}, target=target))
    response = await client.response()
    assert (response.status, response.error_code) == (400, "forward_endpoint_not_supported")
    assert provider.sessions == []


async def test_googles_own_sdk_talks_live_through(sold: Gateway, provider: SocketProvider, tmp_path: Path) -> None:
    """Its setup, its names and its binary messages; it only speaks TLS. The usage is what it shows too."""
    with tls_front(tmp_path, sold.port) as front:
        await talk_live(sold, provider, front)
    row = await sold.row()
    assert (row["model"], row["outcome"]) == ("gemini-3.1-flash-live-preview", "completed")
    assert row["charge_nanos"] == 42 * NANOS_PER_TOKEN


async def talk_live(sold: Gateway, provider: SocketProvider, front: TlsFront) -> None:
    trusting = ssl.create_default_context(cafile=str(front.certificate))
    base_url = f"https://127.0.0.1:{front.port}/v1/forward/google"
    options = genai.types.HttpOptions(base_url=base_url, async_client_args={"ssl": trusting})
    client = genai.Client(api_key=sold.token, http_options=options)

    async def play() -> None:
        session = await provider.next()
        assert (await session.event())["setup"]["model"] == "models/gemini-3.1-flash-live-preview"
        session.send({"setupComplete": {}}, opcode=Opcode.BINARY)
        await session.message()
        content = {"modelTurn": {"parts": [{"text": "Hello."}]}, "turnComplete": True}
        usage = {"promptTokenCount": 30, "responseTokenCount": 12, "totalTokenCount": 42}
        session.send({"serverContent": content, "usageMetadata": usage}, opcode=Opcode.BINARY)
        assert (await session.message()).opcode == CLOSE
        session.close()
        session.writer.close()

    playing = asyncio.ensure_future(play())
    async with client.aio.live.connect(model="gemini-3.1-flash-live-preview", config={"response_modalities": ["TEXT"]}) as live:
        await live.send_client_content(turns={"role": "user", "parts": [{"text": "Hi"}]}, turn_complete=True)
        async for message in live.receive():
            if message.usage_metadata is not None:
                assert message.usage_metadata.total_token_count == 42
    await playing
