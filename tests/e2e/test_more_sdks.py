"""More official Python SDKs, unmodified, through the real daemon to a provider that knows what it has charged.

Every SDK gets the same tests: both forms of an answer, a fixed and a percentage meter, and its own exception for every
refusal. What is particular to an SDK stands in its class.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, ClassVar
from unittest import mock
from urllib.parse import urlsplit

import boto3
import cohere
import groq
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from cohere.core.api_error import ApiError as CohereApiError
from elevenlabs.client import ElevenLabs
from elevenlabs.core import ApiError as ElevenLabsApiError
from mistralai.client import Mistral
from mistralai.client.errors import SDKError as MistralError

from tests.daemon import Daemon, running
from tests.e2e import sdk_provider
from tests.e2e.sdk_provider import CACHE_WRITE_TOKENS, CACHED_TOKENS, INPUT_TOKENS, KEYS, OUTPUT_TOKENS, SPEECH, TEXT, SdkProvider
from tests.tls_front import TlsFront, tls_front

# $0.02 per 1K tokens: 20,000 nano-dollars a token.
NANOS_PER_TOKEN = 20_000
# $100 per 1M characters.
NANOS_PER_CHARACTER = 100_000
QUESTION = "Say hello."
SPOKEN = "Grüß Gott, 世界! 🌍"


class Seen:
    """An httpx client for an SDK, and the request ids of the answers that it got."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.client = httpx.Client(timeout=30, event_hooks={"response": [self._note]})

    def _note(self, response: httpx.Response) -> None:
        self.ids.append(response.headers["x-lava-request-id"])

    @property
    def last(self) -> str:
        return self.ids[-1]


class Sdk:
    """What the tests need of an SDK. `ask` returns the text, the answer's usage (input, output) and the request's id."""

    provider: str
    host: str  # that the SDK calls when it is not told otherwise
    model: str
    error: type[Exception] = Exception
    by_status: ClassVar[Mapping[int, type[Exception] | str]] = {}
    cost_nanos: int  # of one answer, from the provider's price list
    units: ClassVar[Mapping[str, int]] = {}  # beside input and output tokens, what the row must say
    usages = (INPUT_TOKENS, OUTPUT_TOKENS)  # as the SDK shows them

    def __init__(self) -> None:
        self.path = f"forward/{self.provider}"  # of the base URL

    def ask(self, base: str, token: str, model: str, *, stream: bool, retries: int = 0) -> tuple[str, tuple[int, int], str]:
        raise NotImplementedError

    def status_and_text(self, error: Any) -> tuple[int, str]:
        return error.status_code, str(error)

    def is_typed(self, error: Exception, status: int) -> bool:
        wanted = self.by_status.get(status, self.error)
        return isinstance(wanted, type) and isinstance(error, wanted)


class MistralSdk(Sdk):
    host = "api.mistral.ai"
    provider, model = "mistral", "mistral-small-latest"
    error = MistralError
    # $0.15 in, $0.015 cached, $0.60 out per 1M tokens.
    cost_nanos = (INPUT_TOKENS - CACHED_TOKENS) * 150 + CACHED_TOKENS * 15 + OUTPUT_TOKENS * 600
    units: ClassVar[Mapping[str, int]] = {"cached_input_tokens": CACHED_TOKENS}

    def ask(self, base: str, token: str, model: str, *, stream: bool, retries: int = 0) -> tuple[str, tuple[int, int], str]:
        seen = Seen()
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        with (
            seen.client,
            Mistral(
                api_key=token,
                server_url=base + self.path,
                client=seen.client,
                async_client=httpx.AsyncClient(),  # one of its own it would close in an event loop, whenever it is collected
            ) as client,
        ):
            if not stream:
                answer = client.chat.complete(model=model, messages=messages)
                usage, text = answer.usage, str(answer.choices[0].message.content)
            else:
                with client.chat.stream(model=model, messages=messages) as events:
                    chunks = [event.data for event in events]
                usage = next(chunk.usage for chunk in chunks if chunk.usage)
                text = "".join(str(chunk.choices[0].delta.content or "") for chunk in chunks)
        return text, (usage.prompt_tokens, usage.completion_tokens), seen.last


class GroqSdk(Sdk):
    host = "api.groq.com"
    provider, model = "groq", "llama-3.3-70b-versatile"
    error = groq.APIStatusError
    by_status: ClassVar[Mapping[int, type[Exception] | str]] = {
        401: groq.AuthenticationError,
        429: groq.RateLimitError,
        503: groq.InternalServerError,
    }
    cost_nanos = INPUT_TOKENS * 590 + OUTPUT_TOKENS * 790  # $0.59 in, $0.79 out

    def ask(self, base: str, token: str, model: str, *, stream: bool, retries: int = 0) -> tuple[str, tuple[int, int], str]:
        with groq.Groq(api_key=token, base_url=base + self.path, max_retries=retries) as client:
            raw: Any = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": QUESTION}], stream=stream
            )
            if not stream:
                answer = raw.parse()
                usage, text = answer.usage, answer.choices[0].message.content
            else:
                chunks = list(raw.parse())
                usage = next(chunk.x_groq.usage for chunk in chunks if chunk.x_groq and chunk.x_groq.usage)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return text, (usage.prompt_tokens, usage.completion_tokens), raw.headers["x-lava-request-id"]


class CohereSdk(Sdk):
    """The v1 client, whose streams are JSON lines."""

    host = "api.cohere.com"
    provider, model = "cohere", "command-a-03-2025"
    error = CohereApiError
    by_status: ClassVar[Mapping[int, type[Exception] | str]] = {
        401: cohere.UnauthorizedError,
        429: cohere.TooManyRequestsError,
        503: cohere.ServiceUnavailableError,
    }
    cost_nanos = INPUT_TOKENS * 2_500 + OUTPUT_TOKENS * 10_000  # $2.50 in, $10 out

    def ask(self, base: str, token: str, model: str, *, stream: bool, retries: int = 0) -> tuple[str, tuple[int, int], str]:
        seen = Seen()
        with seen.client:
            options = {
                "api_key": token, "base_url": base + self.path, "httpx_client": seen.client, "max_retries": retries,
            }  # fmt: skip
            text, meta = self._ask(options, model, stream)
        return text, (meta.billed_units.input_tokens, meta.billed_units.output_tokens), seen.last

    def _ask(self, options: Mapping[str, Any], model: str, stream: bool) -> tuple[str, Any]:
        client = cohere.Client(**options)
        if not stream:
            answer = client.chat(model=model, message=QUESTION)
            return answer.text, answer.meta
        events: list[Any] = list(client.chat_stream(model=model, message=QUESTION))
        return "".join(event.text for event in events if event.event_type == "text-generation"), events[-1].response.meta


class CohereV2Sdk(CohereSdk):
    def _ask(self, options: Mapping[str, Any], model: str, stream: bool) -> tuple[str, Any]:
        client = cohere.ClientV2(**options)
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        if not stream:
            answer: Any = client.chat(model=model, messages=messages)
            return answer.message.content[0].text, answer.usage
        events: list[Any] = list(client.chat_stream(model=model, messages=messages))
        text = "".join(event.delta.message.content.text for event in events if event.type == "content-delta")
        return text, next(event.delta.usage for event in events if event.type == "message-end")


class ConverseSdk(Sdk):
    """boto3 with an API key: the forward token stands where AWS' own bearer key would. It sends one over TLS only."""

    _session = boto3.Session()
    tls: TlsFront
    _environment = Lock()  # boto3 takes the key from there alone, at every call

    host = "bedrock-runtime.eu-central-1.amazonaws.com"
    provider, model = "bedrock", "us.amazon.nova-micro-v1:0"
    error = ClientError
    by_status: ClassVar[Mapping[int, type[Exception] | str]] = {
        401: "AccessDeniedException",
        402: "ServiceQuotaExceededException",
        429: "ThrottlingException",
        503: "ServiceUnavailableException",
    }
    # $0.035 in, $0.00875 cached, $0.14 out.
    cost_nanos = (INPUT_TOKENS - CACHED_TOKENS) * 35 + CACHED_TOKENS * 875 // 100 + OUTPUT_TOKENS * 140
    units: ClassVar[Mapping[str, int]] = {
        "cached_input_tokens": CACHED_TOKENS,
        "uncached_input_tokens": INPUT_TOKENS - CACHED_TOKENS,
    }
    usages = (INPUT_TOKENS - CACHED_TOKENS, OUTPUT_TOKENS)

    def ask(self, base: str, token: str, model: str, *, stream: bool, retries: int = 0) -> tuple[str, tuple[int, int], str]:
        with self._environment, mock.patch.dict(os.environ, {"AWS_BEARER_TOKEN_BEDROCK": token}):
            client = self._session.client(
                "bedrock-runtime",
                region_name="us-east-1",
                endpoint_url=f"https://127.0.0.1:{self.tls.port}/v1/{self.path}",
                verify=str(self.tls.certificate),
                config=Config(retries={"total_max_attempts": retries + 1, "mode": "standard"}),
            )
            try:
                return self._ask(client, model, stream)
            finally:
                client.close()

    def _ask(self, client: Any, model: str, stream: bool) -> tuple[str, tuple[int, int], str]:
        messages = [{"role": "user", "content": [{"text": QUESTION}]}]
        if not stream:
            answer = client.converse(modelId=model, messages=messages)
            text, usage = answer["output"]["message"]["content"][0]["text"], answer["usage"]
        else:
            answer = client.converse_stream(modelId=model, messages=messages)
            events = list(answer["stream"])
            text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
            usage = next(event["metadata"]["usage"] for event in events if "metadata" in event)
        return text, (usage["inputTokens"], usage["outputTokens"]), answer["ResponseMetadata"]["HTTPHeaders"]["x-lava-request-id"]

    def status_and_text(self, error: Any) -> tuple[int, str]:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Message"]

    def is_typed(self, error: Exception, status: int) -> bool:
        # boto3 makes its exceptions at run time, by the service's description; an unknown code stays a bare ClientError.
        return type(error).__name__ == self.by_status[status]


class InvokeSdk(ConverseSdk):
    model = "eu.anthropic.claude-haiku-4-5-20251001-v1:0"
    # $1.10 in, $0.11 cache read, $1.375 cache write, $5.50 out.
    cost_nanos = (
        (INPUT_TOKENS - CACHED_TOKENS - CACHE_WRITE_TOKENS) * 1_100
        + CACHED_TOKENS * 110
        + CACHE_WRITE_TOKENS * 1_375
        + OUTPUT_TOKENS * 5_500
    )
    units: ClassVar[Mapping[str, int]] = {"cached_input_tokens": CACHED_TOKENS, "cache_write_tokens": CACHE_WRITE_TOKENS}
    usages = (INPUT_TOKENS - CACHED_TOKENS - CACHE_WRITE_TOKENS, OUTPUT_TOKENS)

    def _ask(self, client: Any, model: str, stream: bool) -> tuple[str, tuple[int, int], str]:
        body = json.dumps(
            {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 1000, "messages": [{"role": "user", "content": QUESTION}]}
        )
        if not stream:
            answer = client.invoke_model(modelId=model, body=body)
            message = json.loads(answer["body"].read())
            text, usage = message["content"][0]["text"], message["usage"]
        else:
            answer = client.invoke_model_with_response_stream(modelId=model, body=body)
            events = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
            text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
            usage = events[0]["message"]["usage"] | next(event["usage"] for event in events if event["type"] == "message_delta")
        return text, (usage["input_tokens"], usage["output_tokens"]), answer["ResponseMetadata"]["HTTPHeaders"]["x-lava-request-id"]


class ElevenLabsSdk(Sdk):
    """Speech: billed by the character, so `ask` reports no tokens. A voice stands where others have a model."""

    host = "api.elevenlabs.io"
    provider, model = "elevenlabs", "JBFqnCBsd6RMkjVDRZzb"
    error = ElevenLabsApiError

    def ask(self, base: str, token: str, model: str, *, stream: bool, retries: int = 0) -> tuple[str, tuple[int, int], str]:
        seen = Seen()
        with seen.client:
            client = ElevenLabs(api_key=token, base_url=base + self.path, httpx_client=seen.client)
            call = client.text_to_speech.stream if stream else client.text_to_speech.convert
            sound = b"".join(call(model, text=SPOKEN, model_id="eleven_multilingual_v2", request_options={"max_retries": retries}))
        assert sound == SPEECH
        return TEXT, (0, 0), seen.last


SDKS = {
    "mistral": MistralSdk(),
    "groq": GroqSdk(),
    "cohere-v1": CohereSdk(),
    "cohere-v2": CohereV2Sdk(),
    "bedrock-converse": ConverseSdk(),
    "bedrock-invoke": InvokeSdk(),
    "elevenlabs": ElevenLabsSdk(),
}
TOKEN_SDKS = {name: sdk for name, sdk in SDKS.items() if name != "elevenlabs"}
each_sdk = pytest.mark.parametrize("sdk", SDKS.values(), ids=SDKS)
each_token_sdk = pytest.mark.parametrize("sdk", TOKEN_SDKS.values(), ids=TOKEN_SDKS)
both_forms = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def provider() -> Iterator[SdkProvider]:
    with SdkProvider().serving() as serving:
        yield serving


@pytest.fixture(scope="module")
def daemon(provider: SdkProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One whose calls to these providers go to ours, with the operator's keys."""
    keys = {
        "MISTRAL_API_KEY": KEYS["mistral"],
        "COHERE_API_KEY": KEYS["cohere"],
        "GROQ_API_KEY": KEYS["groq"],
        "AWS_BEARER_TOKEN_BEDROCK": KEYS["bedrock"],
        "ELEVENLABS_API_KEY": KEYS["elevenlabs"],
    }
    with running(tmp_path_factory.mktemp("sdks"), "--workers", "1", *provider.overrides(), environment=keys) as started:
        with tls_front(tmp_path_factory.mktemp("tls"), urlsplit(started.base_url).port or 0) as ConverseSdk.tls:
            yield started


@pytest.fixture(scope="module")
def speech_token(daemon: Daemon) -> str:
    daemon.cli(
        "meter", "create", "--merchant", daemon.info["merchant_id"], "--name", "Speech", "--slug", "speech",
        "--tier-type", "characters_1m", "--tier", "100",
    )  # fmt: skip
    return daemon.cli_token(daemon.info["connection_id"], "speech")


@pytest.fixture(scope="module")
def cent_meter(daemon: Daemon) -> str:
    """A cent a call, whatever the call is."""
    made = daemon.cli(
        "meter", "create", "--merchant", daemon.info["merchant_id"], "--name", "A cent", "--slug", "cent",
        "--tier-type", "requests", "--tier", "0.01",
    )  # fmt: skip
    return str(made["meter_slug"])


@pytest.fixture(scope="module")
def poor_token(daemon: Daemon, cent_meter: str) -> str:
    """Of a customer with a hundredth of a cent."""
    made = daemon.cli("customer", "create", "--merchant", daemon.info["merchant_id"], "--funds", "0.0001")
    return daemon.cli_token(made["connection_id"], cent_meter)


@pytest.fixture(scope="module")
def used_up_token(daemon: Daemon, cent_meter: str) -> str:
    """Of a customer with money and one call, which has been made."""
    merchant = daemon.info["merchant_id"]
    made = daemon.cli("customer", "create", "--merchant", merchant, "--funds", "1.00")
    daemon.cli("customer", "limit", "--merchant", merchant, made["connection_id"], "--requests", "1/total")
    token = daemon.cli_token(made["connection_id"], cent_meter)
    SDKS["groq"].ask(daemon.base_url, token, SDKS["groq"].model, stream=False)
    return token


def dollars(nanos: int) -> str:
    return f"{nanos // 10**9}.{nanos % 10**9:09d}0"


@contextmanager
def debited(daemon: Daemon, nanos: int) -> Iterator[None]:
    """The customer's balance falls by exactly so much."""
    before = daemon.balance_nanos()
    yield
    assert before - daemon.balance_nanos() == nanos


def check_row(row: dict[str, Any], charge_nanos: int, units: Mapping[str, int]) -> None:
    assert row["provenance"] == "provider_final"
    assert row["charge"]["amount"] == dollars(charge_nanos)
    assert {name: row["usage"].get(name) for name in units} == dict(units)


@each_token_sdk
@both_forms
def test_an_answer_is_charged_exactly_by_a_fixed_meter(daemon: Daemon, sdk: Sdk, stream: bool) -> None:
    """A1: whole or streamed, the same tokens cost the same."""
    charge = (INPUT_TOKENS + OUTPUT_TOKENS) * NANOS_PER_TOKEN
    with debited(daemon, charge):
        text, usages, request_id = sdk.ask(daemon.base_url, daemon.token("fixed"), sdk.model, stream=stream)
        assert text == TEXT
        assert usages == sdk.usages
        row = daemon.row(request_id)
    check_row(row, charge, {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, **sdk.units})


@each_token_sdk
@both_forms
def test_an_answer_is_charged_by_a_percentage_meter_as_the_price_list_says(daemon: Daemon, sdk: Sdk, stream: bool) -> None:
    charge = sdk.cost_nanos * 6 // 5
    assert charge * 5 == sdk.cost_nanos * 6, "the numbers of this test must need no rounding"
    with debited(daemon, charge):
        _, _, request_id = sdk.ask(daemon.base_url, daemon.token("markup"), sdk.model, stream=stream)
        row = daemon.row(request_id)
    assert row["cost"] == dollars(sdk.cost_nanos)
    check_row(row, charge, {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS})


@both_forms
def test_speech_is_charged_by_the_character(daemon: Daemon, speech_token: str, stream: bool) -> None:
    charge = len(SPOKEN) * NANOS_PER_CHARACTER
    with debited(daemon, charge):
        _, _, request_id = SDKS["elevenlabs"].ask(daemon.base_url, speech_token, SDKS["elevenlabs"].model, stream=stream)
        row = daemon.row(request_id)
    check_row(row, charge, {"input_characters": len(SPOKEN)})


def test_a_reranking_is_charged_by_its_search_units(daemon: Daemon) -> None:
    seen = Seen()
    cost = 3 * 2_000_000  # $2 per 1,000
    with seen.client, debited(daemon, cost * 6 // 5):
        client = cohere.ClientV2(
            daemon.token("markup"), base_url=daemon.base_url + "forward/cohere", httpx_client=seen.client, max_retries=0
        )
        answer = client.rerank(model="rerank-v3.5", query=QUESTION, documents=["one", "two"])
        assert len(answer.results) == 2
        row = daemon.row(seen.last)
    assert row["cost"] == dollars(cost)
    check_row(row, cost * 6 // 5, {"search_units": 3})


# Cohere's SDK takes every /v1 out of a base URL that names its host, so it is pointed to the alias.
@pytest.mark.parametrize("sdk", [pytest.param(sdk, id=name) for name, sdk in SDKS.items() if sdk.provider != "cohere"])
@both_forms
def test_the_providers_own_url_after_ours_is_a_base_url_too(
    daemon: Daemon, speech_token: str, sdk: Sdk, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "path", f"forward/https://{sdk.host}")
    token = speech_token if sdk.provider == "elevenlabs" else daemon.token("fixed")
    text, _, request_id = sdk.ask(daemon.base_url, token, sdk.model, stream=stream)
    assert text == TEXT
    assert daemon.row(request_id)["provenance"] == "provider_final"


@each_sdk
def test_the_provider_gets_its_own_key_and_nothing_of_ours(
    daemon: Daemon, provider: SdkProvider, speech_token: str, sdk: Sdk
) -> None:
    """J6: wherever the SDK repeats its credential."""
    token = speech_token if sdk.provider == "elevenlabs" else daemon.token("fixed")
    provider.calls.clear()
    sdk.ask(daemon.base_url, token, sdk.model, stream=False)
    (call,) = provider.calls
    sent = "\n".join(f"{name}: {value}" for name, value in call.headers.items())
    assert token not in sent
    assert "x-lava" not in sent
    assert token.encode() not in call.raw
    assert sent.count(KEYS[sdk.provider]) == 1


def refused(sdk: Sdk, ask: Callable[[], object], status: int, sentence: str) -> None:
    with pytest.raises(sdk.error) as caught:
        ask()
    assert sdk.is_typed(caught.value, status), f"{type(caught.value)} for {status}"
    found, text = sdk.status_and_text(caught.value)
    assert found == status
    assert sentence in text


@each_sdk
@both_forms
def test_an_unknown_token_raises_the_sdks_own_error_with_our_sentence(daemon: Daemon, sdk: Sdk, stream: bool) -> None:
    refused(sdk, lambda: sdk.ask(daemon.base_url, "aks_live_unknown", sdk.model, stream=stream), 401, "unknown or has been revoked")


@each_sdk
@both_forms
def test_missing_funds_raise_the_sdks_own_error_and_the_provider_is_not_called(
    daemon: Daemon, provider: SdkProvider, poor_token: str, sdk: Sdk, stream: bool
) -> None:
    provider.calls.clear()
    refused(sdk, lambda: sdk.ask(daemon.base_url, poor_token, sdk.model, stream=stream), 402, "does not cover")
    assert provider.calls == []


@each_sdk
@both_forms
def test_a_reached_limit_raises_the_sdks_own_error_and_the_provider_is_not_called(
    daemon: Daemon, provider: SdkProvider, used_up_token: str, sdk: Sdk, stream: bool
) -> None:
    provider.calls.clear()
    refused(sdk, lambda: sdk.ask(daemon.base_url, used_up_token, sdk.model, stream=stream), 429, "limit")
    assert provider.calls == []


@each_sdk
@both_forms
@pytest.mark.parametrize("status", [429, 503])
def test_a_providers_refusal_arrives_as_the_sdks_own_error_and_costs_nothing(
    daemon: Daemon, speech_token: str, sdk: Sdk, stream: bool, status: int
) -> None:
    token = speech_token if sdk.provider == "elevenlabs" else daemon.token("fixed")
    with debited(daemon, 0):
        refused(
            sdk, lambda: sdk.ask(daemon.base_url, token, f"status-{status}", stream=stream), status, f"{sdk.provider} says {status}"
        )


@pytest.mark.parametrize("name", ["groq", "cohere-v1", "cohere-v2", "bedrock-converse"])  # the others repeat nothing by themselves
def test_an_sdks_own_retry_after_a_refusal_is_charged_once(daemon: Daemon, provider: SdkProvider, name: str) -> None:
    """L1: the refused attempt costs nothing."""
    provider.calls.clear()
    with debited(daemon, (INPUT_TOKENS + OUTPUT_TOKENS) * NANOS_PER_TOKEN):
        SDKS[name].ask(daemon.base_url, daemon.token("fixed"), f"flaky-{name}", stream=False, retries=2)
    assert len(provider.calls) == 2


def test_without_redis_every_sdk_raises_its_own_503_and_the_books_stay_right(daemon: Daemon, speech_token: str) -> None:
    redis = daemon.pid("valkey-server")
    balance = daemon.balance_nanos()
    os.kill(redis, signal.SIGSTOP)
    try:

        def fails(sdk: Sdk) -> None:
            token = speech_token if sdk.provider == "elevenlabs" else daemon.token("fixed")
            refused(sdk, lambda: sdk.ask(daemon.base_url, token, sdk.model, stream=False), 503, "")

        with ThreadPoolExecutor(len(SDKS)) as threads:
            list(threads.map(fails, SDKS.values()))
    finally:
        os.kill(redis, signal.SIGCONT)
    daemon.audit()
    assert daemon.balance_nanos() == balance


assert sdk_provider.KEYS.keys() == {sdk.provider for sdk in SDKS.values()}
