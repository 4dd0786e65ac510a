"""The official Python SDKs, unmodified, against `lava-proxy dev`: answers arrive, and the debit is right to the nano-dollar."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors

from tests.daemon import Daemon

# $0.02 per 1K tokens: 20,000 nano-dollars a token.
NANOS_PER_TOKEN = 20_000
QUESTION = "Say hello."


class Seen:
    """The request ids of answers, read by an httpx hook."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, response: Any) -> None:
        self.ids.append(response.headers["x-lava-request-id"])


def check_debit(daemon: Daemon, before: int, request_id: str, input_tokens: int, output_tokens: int) -> None:
    """The balance fell by exactly the metered charge, and the row says the same."""
    row = daemon.row(request_id)
    expected = (input_tokens + output_tokens) * NANOS_PER_TOKEN
    assert row["usage"]["input_tokens"] == input_tokens
    assert row["usage"]["output_tokens"] == output_tokens
    assert row["provenance"] == "provider_final"
    assert row["charge"]["amount"] == f"0.{expected * 10:010d}"
    assert before - daemon.balance_nanos() == expected


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key=daemon.token("fixed"), max_retries=0) as made:
        yield made


def test_openai_chat_is_charged_exactly(daemon: Daemon, client: openai.OpenAI) -> None:
    before = daemon.balance_nanos()
    raw = client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}])
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    check_debit(daemon, before, raw.headers["x-lava-request-id"], answer.usage.prompt_tokens, answer.usage.completion_tokens)


def test_openai_chat_stream_without_usage_asked_for_is_charged_and_shows_no_usage_chunk(
    daemon: Daemon, client: openai.OpenAI
) -> None:
    """I14: the usage chunk is ours, so the client does not see it."""
    before = daemon.balance_nanos()
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    chunks = list(raw.parse())
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    row = daemon.row(raw.headers["x-lava-request-id"])
    check_debit(daemon, before, row["request_id"], row["usage"]["input_tokens"], row["usage"]["output_tokens"])


def test_openai_chat_stream_with_usage_asked_for_passes_it_on(daemon: Daemon, client: openai.OpenAI) -> None:
    before = daemon.balance_nanos()
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = next(chunk.usage for chunk in raw.parse() if chunk.usage is not None)
    check_debit(daemon, before, raw.headers["x-lava-request-id"], usage.prompt_tokens, usage.completion_tokens)


def test_streamed_and_whole_answers_of_equal_usage_cost_the_same(daemon: Daemon, client: openai.OpenAI) -> None:
    """A1: one price for both forms."""
    charges = []
    for stream in (False, True):
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}], stream=stream
        )
        if stream:
            list(raw.parse())  # type: ignore[call-overload]
        charges.append(daemon.row(raw.headers["x-lava-request-id"])["charge"]["amount"])
    assert charges[0] == charges[1]


def test_openai_responses_are_charged_exactly(daemon: Daemon, client: openai.OpenAI) -> None:
    before = daemon.balance_nanos()
    raw = client.responses.with_raw_response.create(model="gpt-4o-mini", input=QUESTION)
    answer = raw.parse()
    assert answer.usage is not None
    check_debit(daemon, before, raw.headers["x-lava-request-id"], answer.usage.input_tokens, answer.usage.output_tokens)


def test_openai_responses_stream_is_charged_exactly(daemon: Daemon, client: openai.OpenAI) -> None:
    """A3: the terminal event's usage."""
    before = daemon.balance_nanos()
    raw = client.responses.with_raw_response.create(model="gpt-4o-mini", input=QUESTION, stream=True)
    final = next(event for event in raw.parse() if event.type == "response.completed")
    assert final.response.usage is not None
    check_debit(
        daemon, before, raw.headers["x-lava-request-id"], final.response.usage.input_tokens, final.response.usage.output_tokens
    )


def test_openai_embeddings_are_charged_exactly(daemon: Daemon, client: openai.OpenAI) -> None:
    before = daemon.balance_nanos()
    raw = client.embeddings.with_raw_response.create(model="text-embedding-3-small", input=QUESTION)
    check_debit(daemon, before, raw.headers["x-lava-request-id"], raw.parse().usage.prompt_tokens, 0)


@pytest.mark.parametrize("base", ["forward?u=https://api.openai.com/v1/", "forward/https://api.openai.com/v1"])
def test_openai_client_works_with_every_base_url_form(daemon: Daemon, base: str) -> None:
    with openai.OpenAI(base_url=daemon.base_url + base, api_key=daemon.token("fixed"), max_retries=0) as client:
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}])
        assert answer.choices[0].message.content


def test_anthropic_messages_are_charged_exactly(daemon: Daemon) -> None:
    seen = Seen()
    with anthropic.Anthropic(
        base_url=daemon.base_url + "forward/anthropic", api_key=daemon.token("fixed"), max_retries=0
    ) as client:
        before = daemon.balance_nanos()
        raw = client.messages.with_raw_response.create(
            model="claude-haiku-4-5", max_tokens=100, messages=[{"role": "user", "content": QUESTION}]
        )
        answer = raw.parse()
        check_debit(daemon, before, raw.headers["x-lava-request-id"], answer.usage.input_tokens, answer.usage.output_tokens)
        before = daemon.balance_nanos()
        with client.messages.stream(
            model="claude-haiku-4-5", max_tokens=100, messages=[{"role": "user", "content": QUESTION}]
        ) as stream:
            final = stream.get_final_message()
            seen(stream.response)
        check_debit(daemon, before, seen.ids[0], final.usage.input_tokens, final.usage.output_tokens)


@pytest.mark.parametrize("base", ["forward/google", "forward/https://generativelanguage.googleapis.com"])
def test_gemini_is_charged_exactly(daemon: Daemon, base: str) -> None:
    client = genai.Client(api_key=daemon.token("fixed"), http_options=genai.types.HttpOptions(base_url=daemon.base_url + base))
    try:
        before = daemon.balance_nanos()
        answer = client.models.generate_content(model="gemini-2.5-flash", contents=QUESTION)
        usage = answer.usage_metadata
        assert usage is not None and usage.prompt_token_count and usage.candidates_token_count
        request_id = answer.sdk_http_response.headers["x-lava-request-id"]  # type: ignore[union-attr, index]
        check_debit(daemon, before, request_id, usage.prompt_token_count, usage.candidates_token_count)
        before = daemon.balance_nanos()
        chunks = list(client.models.generate_content_stream(model="gemini-2.5-flash", contents=QUESTION))
        last = chunks[-1].usage_metadata
        assert last is not None and last.prompt_token_count and last.candidates_token_count
        request_id = chunks[-1].sdk_http_response.headers["x-lava-request-id"]  # type: ignore[union-attr, index]
        check_debit(daemon, before, request_id, last.prompt_token_count, last.candidates_token_count)
    finally:
        client.close()


def test_markup_meter_charges_provider_cost_plus_a_fifth(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key=daemon.token("markup"), max_retries=0) as client:
        before = daemon.balance_nanos()
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}]
        )
        usage = raw.parse().usage
        assert usage is not None
        # gpt-4o-mini: $0.15 in, $0.60 out per 1M tokens = 150 and 600 nano-dollars a token.
        cost = usage.prompt_tokens * 150 + usage.completion_tokens * 600
        row = daemon.row(raw.headers["x-lava-request-id"])
        assert row["cost"] == f"0.{cost * 10:010d}"
        assert before - daemon.balance_nanos() == cost * 6 // 5


def test_the_self_token_charges_the_merchants_own_wallet_at_cost(daemon: Daemon) -> None:
    with openai.OpenAI(
        base_url=daemon.base_url + "forward/openai/v1", api_key=daemon.info["self_forward_token"], max_retries=0
    ) as client:
        before, wallet = daemon.balance_nanos(), Decimal(daemon.get("wallet")["balance"])
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}])
        assert daemon.balance_nanos() == before
        assert Decimal(daemon.get("wallet")["balance"]) < wallet


def test_sdks_raise_their_own_typed_errors_with_our_sentence(daemon: Daemon) -> None:
    token = daemon.token("fixed")[:-8]
    with openai.OpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key="aks_live_unknown", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="unknown or has been revoked"):
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}])
    with anthropic.Anthropic(base_url=daemon.base_url + "forward/anthropic", api_key="aks_live_unknown", max_retries=0) as client2:
        with pytest.raises(anthropic.AuthenticationError, match="unknown or has been revoked"):
            client2.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=[{"role": "user", "content": QUESTION}])
    google = genai.Client(
        api_key="aks_live_unknown", http_options=genai.types.HttpOptions(base_url=daemon.base_url + "forward/google")
    )
    with pytest.raises(genai_errors.ClientError, match="unknown or has been revoked") as caught:
        google.models.generate_content(model="gemini-2.5-flash", contents=QUESTION)
    assert caught.value.code == 401
    google.close()
    with openai.OpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key=token, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_customer_without_funds_gets_402_and_is_not_charged(daemon: Daemon) -> None:
    made = daemon.cli("customer", "create", "--merchant", daemon.info["merchant_id"], "--funds", "0.00001")
    token = daemon.cli_token(made["connection_id"], "fixed")
    with openai.OpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key=token, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError, match="does not cover") as caught:
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}])
    assert caught.value.status_code == 402
    assert daemon.balance_nanos(made["connection_id"]) == 10_000


def test_200_concurrent_calls_on_a_balance_for_37_admit_exactly_37(daemon: Daemon) -> None:
    """E1, I16: through the whole stack, two gateway workers."""
    import asyncio

    daemon.cli(
        "meter",
        "create",
        "--merchant",
        daemon.info["merchant_id"],
        "--name",
        "Per request",
        "--slug",
        "per-request",
        "--tier-type",
        "requests",
        "--tier",
        "0.01",
    )
    made = daemon.cli("customer", "create", "--merchant", daemon.info["merchant_id"], "--funds", "0.37")
    token = daemon.cli_token(made["connection_id"], "per-request")

    async def storm() -> list[int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def call() -> int:
                response = await client.post(
                    daemon.base_url + "forward/openai/v1/chat/completions",
                    headers={"Authorization": f"Bearer {token}", "x-sandbox-delay-ms": "50"},
                    json={"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": QUESTION}]},
                )
                return response.status_code

            return await asyncio.gather(*(call() for _ in range(200)))

    statuses = asyncio.run(storm())
    assert sorted(set(statuses)) == [200, 402]
    assert statuses.count(200) == 37
    assert daemon.balance_nanos(made["connection_id"]) == 0
    daemon.audit()
