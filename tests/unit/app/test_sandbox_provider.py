"""The sandbox speaks the vendors' protocols well enough for their official SDKs, and fails on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import anthropic
import openai
import pytest
from google import genai
from google.genai import types as genai_types

from lava_proxy.app import sandbox_provider
from lava_proxy.app.sandbox_provider import SandboxServer

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
FAST = {"x-sandbox-delay-ms": "0"}

# google-genai subclasses aiohttp's session, which aiohttp discourages; not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")


@pytest.fixture(scope="module")
async def sandbox() -> AsyncIterator[SandboxServer]:
    server = await sandbox_provider.serve()
    yield server
    await server.close()


@pytest.fixture(scope="module")
async def openai_client(sandbox: SandboxServer) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(api_key="sk-sandbox", base_url=f"{sandbox.base_url}/v1", default_headers=FAST, max_retries=0)
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def anthropic_client(sandbox: SandboxServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    client = anthropic.AsyncAnthropic(api_key="sandbox", base_url=sandbox.base_url, default_headers=FAST, max_retries=0)
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def gemini_client(sandbox: SandboxServer) -> AsyncIterator[genai.Client]:
    options = genai_types.HttpOptions(base_url=sandbox.base_url, headers=FAST)
    client = genai.Client(api_key="sandbox", http_options=options)
    yield client
    await client.aio.aclose()
    client.close()


@pytest.fixture
async def http(sandbox: SandboxServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sandbox.base_url, headers=FAST) as session:
        yield session


async def test_openai_sdk_reads_a_whole_chat_completion(openai_client: openai.AsyncOpenAI) -> None:
    said = await openai_client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert said.model == "gpt-4o-mini"
    assert said.id.startswith("chatcmpl-")
    assert QUESTION in said.choices[0].message.content
    assert said.choices[0].finish_reason == "stop"
    assert said.usage.prompt_tokens == -(-len(QUESTION) // 4)
    assert said.usage.completion_tokens == -(-len(said.choices[0].message.content) // 4)


async def test_openai_sdk_reads_a_chat_stream_and_its_usage_chunk(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = await openai_client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert text == whole.choices[0].message.content
    assert len(chunks) > len(text.split())
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


async def test_a_chat_stream_has_no_usage_unless_asked(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
    assert all(chunk.usage is None and chunk.choices for chunk in [chunk async for chunk in stream])


async def test_openai_sdk_reads_legacy_completions_both_ways(openai_client: openai.AsyncOpenAI) -> None:
    whole = await openai_client.completions.create(model="davinci-002", prompt=QUESTION, max_tokens=1000)
    stream = await openai_client.completions.create(model="davinci-002", prompt=QUESTION, max_tokens=1000, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == whole.choices[0].text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


async def test_openai_sdk_reads_responses_both_ways(openai_client: openai.AsyncOpenAI) -> None:
    whole = await openai_client.responses.create(model="gpt-4.1", input=QUESTION, instructions="Be brief.")
    assert QUESTION in whole.output_text
    stream = await openai_client.responses.create(model="gpt-4.1", input=MESSAGES, instructions="Be brief.", stream=True)
    events = [event async for event in stream]
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.usage == whole.usage


async def test_openai_sdk_stream_helper_accumulates_a_response(openai_client: openai.AsyncOpenAI) -> None:
    async with openai_client.responses.stream(model="gpt-4.1", input=QUESTION) as stream:
        final = await stream.get_final_response()
    assert QUESTION in final.output_text and final.usage.output_tokens > 0


async def test_openai_sdk_reads_embeddings_in_both_encodings(openai_client: openai.AsyncOpenAI) -> None:
    packed = await openai_client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    plain = await openai_client.embeddings.create(model="text-embedding-3-small", input="a", encoding_format="float", dimensions=8)
    assert [len(item.embedding) for item in packed.data] == [1536, 1536]
    assert packed.data[0].embedding != packed.data[1].embedding
    assert len(plain.data[0].embedding) == 8 and packed.usage.prompt_tokens == 2


async def test_max_tokens_cuts_the_answer_and_says_so(
    openai_client: openai.AsyncOpenAI, anthropic_client: anthropic.AsyncAnthropic, gemini_client: genai.Client
) -> None:
    chat = await openai_client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=5)
    assert chat.choices[0].finish_reason == "length" and chat.usage.completion_tokens == 5
    message = await anthropic_client.messages.create(model="m", messages=MESSAGES, max_tokens=5)
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 5
    response = await openai_client.responses.create(model="m", input=QUESTION, max_output_tokens=16)
    assert response.status == "incomplete" and response.usage.output_tokens == 16
    config = genai_types.GenerateContentConfig(max_output_tokens=5)
    content = await gemini_client.aio.models.generate_content(model="m", contents=QUESTION, config=config)
    assert content.candidates[0].finish_reason == "MAX_TOKENS" and content.usage_metadata.candidates_token_count == 5


async def test_anthropic_sdk_reads_a_message_both_ways(anthropic_client: anthropic.AsyncAnthropic) -> None:
    asked = {"model": "claude-haiku-4-5", "max_tokens": 500, "messages": MESSAGES, "system": "Be brief."}
    whole = await anthropic_client.messages.create(**asked)
    assert QUESTION in whole.content[0].text and whole.stop_reason == "end_turn"
    async with anthropic_client.messages.stream(**asked) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )


async def test_anthropic_sdk_counts_tokens_as_a_message_does(anthropic_client: anthropic.AsyncAnthropic) -> None:
    counted = await anthropic_client.messages.count_tokens(model="claude-haiku-4-5", messages=MESSAGES)
    message = await anthropic_client.messages.create(model="claude-haiku-4-5", messages=MESSAGES, max_tokens=9)
    assert counted.input_tokens == message.usage.input_tokens


async def test_gemini_sdk_reads_content_both_ways(gemini_client: genai.Client) -> None:
    models = gemini_client.aio.models
    whole = await models.generate_content(model="gemini-2.5-flash", contents=QUESTION)
    assert QUESTION in whole.text and whole.candidates[0].finish_reason == "STOP"
    chunks = [c async for c in await models.generate_content_stream(model="gemini-2.5-flash", contents=QUESTION)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].usage_metadata == whole.usage_metadata
    assert chunks[0].usage_metadata.candidates_token_count is None


async def test_gemini_sdk_counts_and_embeds(gemini_client: genai.Client) -> None:
    models = gemini_client.aio.models
    counted = await models.count_tokens(model="gemini-2.5-flash", contents=QUESTION)
    embedded = await models.embed_content(model="gemini-embedding-001", contents=["a", "b"])
    assert counted.total_tokens == -(-len(QUESTION) // 4)
    assert len(embedded.embeddings[0].values) == 768


async def test_a_gemini_stream_without_sse_is_one_json_array(http: aiohttp.ClientSession) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}
    async with http.post("/v1beta/models/gemini-2.5-flash:streamGenerateContent", json=body) as response:
        array = json.loads(await response.read())
    assert len(array) > 3 and array[-1]["usageMetadata"]["candidatesTokenCount"] > 0


async def test_gemini_events_end_their_lines_with_crlf(http: aiohttp.ClientSession) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}
    async with http.post("/v1beta/models/m:streamGenerateContent?alt=sse", json=body) as response:
        raw = await response.read()
    assert raw.count(b"\n") == raw.count(b"\r\n") and raw.endswith(b"\r\n\r\n")


async def test_every_sdk_lists_models(
    openai_client: openai.AsyncOpenAI, anthropic_client: anthropic.AsyncAnthropic, gemini_client: genai.Client
) -> None:
    assert "gpt-4o-mini" in [model.id async for model in openai_client.models.list()]
    assert "claude-haiku-4-5" in [model.id async for model in anthropic_client.models.list()]
    assert "models/gemini-2.5-flash" in [model.name async for model in await gemini_client.aio.models.list()]


async def test_the_same_request_gets_the_same_answer_under_any_prefix(http: aiohttp.ClientSession) -> None:
    answers = []
    for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
        async with http.post(path, json={"model": "m", "messages": MESSAGES}) as response:
            answers.append({**await response.json(), "created": 0})
    assert answers[0] == answers[1]


async def test_an_error_status_comes_in_each_familys_shape(
    openai_client: openai.AsyncOpenAI, anthropic_client: anthropic.AsyncAnthropic, http: aiohttp.ClientSession
) -> None:
    fail = {"x-sandbox-fail": "status=429"}
    with pytest.raises(openai.RateLimitError) as limited:
        await openai_client.chat.completions.create(model="m", messages=MESSAGES, extra_headers=fail)
    assert limited.value.type == "rate_limit_error"
    with pytest.raises(anthropic.RateLimitError):
        await anthropic_client.messages.create(model="m", messages=MESSAGES, max_tokens=1, extra_headers=fail)
    async with http.post("/v1beta/models/m:generateContent", json={}, headers=fail) as response:
        assert (await response.json())["error"]["status"] == "RESOURCE_EXHAUSTED"


async def test_a_cut_stream_breaks_after_the_asked_number_of_chunks(http: aiohttp.ClientSession) -> None:
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    received = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.post("/v1/chat/completions", json=body, headers={"x-sandbox-fail": "cut-after=3"}) as response:
            async for piece in response.content.iter_any():
                received += piece
    assert received.count(b"data: ") == 3


async def test_a_cut_whole_answer_is_shorter_than_it_says(http: aiohttp.ClientSession) -> None:
    body = {"model": "m", "messages": MESSAGES}
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.post("/v1/chat/completions", json=body, headers={"x-sandbox-fail": "cut-after=0"}) as response:
            await response.read()


async def test_a_stalled_stream_sends_one_chunk_and_waits(http: aiohttp.ClientSession) -> None:
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    async with http.post("/v1/chat/completions", json=body, headers={"x-sandbox-fail": "stall"}) as response:
        assert (await response.content.readany()).count(b"data: ") == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.content.readany()


@pytest.mark.parametrize(
    ("path", "body", "mark"),
    [
        ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream": True}, b'data: {"error"'),
        ("/v1/messages", {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 99}, b"event: error"),
        ("/v1/responses", {"model": "m", "input": QUESTION, "stream": True}, b"event: response.failed"),
        ("/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "hi"}]}]}, b'"code":503'),
    ],
)
async def test_an_error_event_ends_the_stream(http: aiohttp.ClientSession, path: str, body: dict[str, object], mark: bytes) -> None:
    async with http.post(path, json=body, headers={"x-sandbox-fail": "error-event"}) as response:
        raw = await response.read()
    assert response.status == 200 and mark in raw
    assert b"[DONE]" not in raw and b"message_stop" not in raw and b"response.completed" not in raw


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {}),
        (b"[]", {}),
        (b"{}", {}),
        (b'{"model":"m","messages":[]}', {"x-sandbox-fail": "explode"}),
        (b'{"model":"m","messages":[]}', {"x-sandbox-delay-ms": "-1"}),
    ],
)
async def test_what_cannot_be_read_is_a_400_that_says_why(
    http: aiohttp.ClientSession, body: bytes, headers: dict[str, str]
) -> None:
    async with http.post("/v1/chat/completions", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"]


async def test_an_unknown_path_is_a_404(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/unheard-of", json={}) as response:
        assert response.status == 404


async def test_the_answer_can_be_made_long(http: aiohttp.ClientSession) -> None:
    body = {"model": "m", "messages": MESSAGES}
    async with http.post("/v1/chat/completions", json=body, headers={"x-sandbox-words": "5000"}) as response:
        assert len((await response.json())["choices"][0]["message"]["content"].split()) == 5000
