"""OpenAI's Realtime API with the official SDK, unmodified, against `lava-proxy dev`: sessions over a WebSocket, charged exactly."""

from __future__ import annotations

import json

import openai
import websockets

from tests.daemon import Daemon

# $0.02 per 1K tokens: 20,000 nano-dollars a token.
NANOS_PER_TOKEN = 20_000


async def talk(daemon: Daemon, base_url: str, model: str) -> tuple[str, list[int]]:
    """A session of two responses; (its request id, the tokens that each response reported)."""
    reported = []
    async with openai.AsyncOpenAI(base_url=base_url, api_key=daemon.token("fixed")) as client:
        async with client.realtime.connect(model=model) as connection:
            request_id = connection._connection.response.headers["x-lava-request-id"]
            await connection.session.update(
                session={"type": "realtime", "output_modalities": ["text"], "instructions": "Be brief."}
            )
            for question in ("Say hello.", "And again."):
                content = [{"type": "input_text", "text": question}]
                await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
                await connection.response.create()
                text = ""
                async for event in connection:
                    assert event.type != "error", event
                    if event.type == "response.output_text.delta":
                        text += event.delta
                    if event.type == "response.done":
                        assert event.response.usage is not None
                        reported.append(event.response.usage.total_tokens or 0)
                        break
                assert question in text
    return request_id, reported


async def test_a_realtime_session_of_two_responses_is_charged_exactly_once(daemon: Daemon) -> None:
    """A23: the sum of both, on one row, to the nano-dollar."""
    for base_url, model in (
        (daemon.base_url + "forward/openai/v1", "gpt-realtime"),
        (daemon.base_url.rstrip("/"), "gpt-realtime-mini"),
    ):
        before = daemon.balance_nanos()
        request_id, reported = await talk(daemon, base_url, model)
        assert len(reported) == 2
        assert min(reported) > 0
        row = daemon.row(request_id)
        assert (row["model"], row["provenance"], row["outcome"]) == (model, "provider_final", "completed")
        assert row["usage"]["input_tokens"] + row["usage"]["output_tokens"] == sum(reported)
        assert before - daemon.balance_nanos() == sum(reported) * NANOS_PER_TOKEN


async def test_a_browsers_credential_in_the_subprotocol_opens_a_session(daemon: Daemon) -> None:
    url = daemon.base_url.replace("http", "ws", 1) + "forward/openai/v1/realtime?model=gpt-realtime"
    # A subprotocol takes no "=" and no "/": browsers refuse them, so the token is written as base64url without padding.
    token = daemon.token("fixed").rstrip("=").replace("+", "-").replace("/", "_")
    protocols = [websockets.Subprotocol(name) for name in ("realtime", f"openai-insecure-api-key.{token}")]
    async with websockets.connect(url, subprotocols=protocols) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(await socket.recv())["type"] == "session.created"
        await socket.send(json.dumps({"type": "nonsense"}))
        assert json.loads(await socket.recv())["type"] == "error"


async def test_the_sdk_sees_a_refusal_with_its_reason(daemon: Daemon) -> None:
    client = openai.AsyncOpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key="nobody")
    async with client:
        try:
            async with client.realtime.connect(model="gpt-realtime"):
                raise AssertionError("a session without a credential")
        except websockets.InvalidStatus as refused:
            assert refused.response.status_code == 401
            assert b"error" in refused.response.body
