"""The official SDKs on the model routes with spend keys: no provider in the URL, typed errors for every refusal."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.daemon import Daemon

MESSAGES: Any = [{"role": "user", "content": "Say hello."}]


def new_key(daemon: Daemon, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = daemon.cli("spend-key", "create", "--merchant", daemon.info["merchant_id"], "--name", "sdk", *options)
    return made


def openai_client(daemon: Daemon, key: str, max_retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=daemon.base_url, api_key=key, max_retries=max_retries)


def anthropic_client(daemon: Daemon, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=daemon.base_url.removesuffix("/v1/"), api_key=key, max_retries=0)


def test_openai_reaches_every_model_route_with_a_spend_key(daemon: Daemon) -> None:
    """Charged at provider cost to the merchant, counted to the key."""
    key = new_key(daemon, "--spend", "5.00/daily")
    with openai_client(daemon, key["key"]) as client:
        raw = client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=MESSAGES)
        chat, row = raw.parse(), daemon.row(raw.headers["x-lava-request-id"])
        assert (row["provider"], row["model"]) == ("openai", "gpt-4o-mini") and row["cost"] != "0.0000000000"
        assert chat.usage is not None
        assert "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(model="openai/gpt-4o-mini", messages=MESSAGES, stream=True)
        )
        assert client.responses.create(model="gpt-4o-mini", input="Say hello.").output_text
        assert client.embeddings.create(model="text-embedding-3-small", input="hello").data
        assert "gpt-4o-mini" in {model.id for model in client.models.list()}
        assert client.models.retrieve("gpt-4o-mini").owned_by == "openai"
    shown = daemon.get(f"spend_keys/{key['spend_key_id']}")
    assert shown["total_requests"] == shown["current_requests"] == 4
    assert shown["total_spend"] == shown["current_spend"] != "0.0000000000"


def test_anthropic_reaches_messages_with_a_key_of_its_shape(daemon: Daemon) -> None:
    key = new_key(daemon, "--shape", "anthropic")["key"]
    with anthropic_client(daemon, key) as client:
        answer = client.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=MESSAGES)
        assert answer.usage.output_tokens > 0
        with client.messages.stream(model="claude-haiku-4-5", max_tokens=50, messages=MESSAGES) as stream:
            assert stream.get_final_message().usage.output_tokens > 0
        assert all(model.id.startswith("claude-") for model in client.models.list())
        with pytest.raises(anthropic.BadRequestError, match="/v1/chat/completions"):
            client.messages.create(model="gpt-4o-mini", max_tokens=50, messages=MESSAGES)


def test_each_refusal_is_the_sdks_own_error(daemon: Daemon) -> None:
    """401, 402, 403, 400 and 429."""

    def refused(error: type[openai.APIStatusError], code: str, *options: str, model: str = "gpt-4o-mini", calls: int = 1) -> Any:
        with openai_client(daemon, new_key(daemon, *options)["key"]) as client:
            for _ in range(calls - 1):
                client.chat.completions.create(model=model, messages=MESSAGES)
            with pytest.raises(error) as caught:
                client.chat.completions.create(model=model, messages=MESSAGES)
        assert caught.value.code == code
        return caught.value

    refused(openai.PermissionDeniedError, "spend_key_expired", "--expires-at", "2020-01-01T00:00:00Z")
    refused(openai.PermissionDeniedError, "provider_not_allowed", "--provider", "groq")
    refused(openai.BadRequestError, "forward_model_invalid", "--model", "o3")
    refused(openai.BadRequestError, "forward_model_not_supported", model="claude-haiku-4-5")
    assert refused(openai.APIStatusError, "spend_limit_exceeded", "--spend", "0.000000001/total").status_code == 402
    rate = refused(openai.RateLimitError, "rate_limit_exceeded", "--rpm", "2", calls=3)
    assert rate.response.headers["x-ratelimit-limit"] == "2" and int(rate.response.headers["retry-after"]) > 0
    with openai_client(daemon, "lava_sk_nobody") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)


def test_an_sdk_waits_as_long_as_a_rate_limit_says(daemon: Daemon) -> None:
    """Its own retry, after our Retry-After, is let in."""
    key = new_key(daemon, "--rpm", "60", "--burst", "1")["key"]
    with openai_client(daemon, key, max_retries=3) as client:
        for _ in range(2):
            assert client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES).choices
