"""Whatever a provider sends, in whatever shape and split: a meter reads it and raises nothing."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lava_proxy.domain.usage import TOKEN_KEYS
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.endpoints import FETCH_APIS, MEDIA_APIS, TOKEN_APIS
from lava_proxy.providers.model_apis import ModelApis
from lava_proxy.providers.usage_chunk import UsageChunkFilter
from lava_proxy.wire.aws_event_stream import encode_frame
from lava_proxy.wire.content_coding import decoder

FAMILY = ModelApis()
APIS = tuple(sorted(TOKEN_APIS | MEDIA_APIS | FETCH_APIS))
KEYS = st.sampled_from(
    "usage x_groq choices error model id type response delta message output iterations cost total_cost prompt_tokens "
    "completion_tokens total_tokens input_tokens output_tokens prompt_tokens_details completion_tokens_details cached_tokens "
    "reasoning_tokens audio_tokens cache_creation cache_read_input_tokens server_tool_use web_search_requests status text "
    "usageMetadata promptTokenCount candidatesTokenCount thoughtsTokenCount promptTokensDetails modality tokenCount "
    "candidates groundingMetadata webSearchQueries promptFeedback finishReason predictions embeddings statistics token_count "
    "billed_units meta tokens cached_tokens search_units images image_tokens results inputTokens outputTokens cacheDetails "
    "trace guardrail bytes prompt_token_count generation_token_count inputTextTokenCount tokenCount metrics predict_time "
    "amazon-bedrock-invocationMetrics amazon-bedrock-trace amazon-bedrock-guardrailAction inputTokenCount is_finished "
    "event_type stop_reason done eval_count prompt_eval_count input_token_count generated_token_count model_id object "
    "duration seconds prompt_audio_seconds metadata usage_info pages_processed data b64_json bytesBase64Encoded "
    "service_tier server_side_tool_usage_details cost_in_usd_ticks action finish_reason content interaction total_input_tokens "
    "total_tokens total_thought_tokens input_tokens_by_modality cached_tokens_by_modality grounding_tool_count count item "
    "base_resp status_code cacheTokensDetails groundingChunks maps serverToolUsage is_byok cost_details upstream_inference_cost "
    "num_sources_used channels event_type mimeType gcsUri input_token_count".split()
)
NAMES = st.sampled_from(
    "response.completed response.failed error message_start message_delta message_stop web_search_call search compaction "
    "advisor_message message TEXT AUDIO stop chat.completion.done message-end stream-end thread.run INTERVENED "
    "speech.audio.done image_generation.completed thread.run.completed not_finished interaction.completed in_progress "
    "response.output_item.done google_search thread.run web_search_call".split()
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, 10**15, 10**40, -5, 1e300, 0.1]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=5))
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=8)),
    max_leaves=30,
)
EVENTS = st.lists(st.tuples(NAMES, st.dictionaries(KEYS, DOCUMENTS, min_size=1, max_size=6)), min_size=1, max_size=5)


def check(api: str, name: str, body: bytes, step: int, content_type: str = "") -> None:
    meter = FAMILY.meter(
        Provider(name=name, family="openai", hosts=(), base="https://x.test"),
        Call(api=api, model="m", stream=True, body=b""),
        200,
        content_type,
        "",
    )
    for start in range(0, len(body), step):
        meter.feed(body[start : start + step])
    reading = meter.reading()
    assert meter.reading() == reading
    assert reading.output_text_bytes >= 0
    if reading.usage is not None:
        for key in TOKEN_KEYS:
            assert reading.usage.count(key) >= 0
        json.dumps(reading.usage.units, default=_decimal)


def framed(payloads: list[bytes]) -> bytes:
    return b"".join(encode_frame({":event-type": "chunk", ":message-type": "event"}, payload) for payload in payloads)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("framing", ["document", "array", "sse", "crlf", "lines", "frames", "chunks"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS, api=st.sampled_from(APIS), data=st.data())
def test_the_reading_does_not_depend_on_the_splits(
    framing: str, coding: str, events: list[tuple[str, Any]], api: str, data: st.DataObject
) -> None:
    """A20, I1, I2: each framing, each API, any split; and looking in between changes nothing."""
    documents = [json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") for _, document in events]
    content_type = {"lines": "application/x-ndjson", "frames": "application/vnd.amazon.eventstream"}.get(framing, "")
    end = b"\r\n" if framing == "crlf" else b"\n"
    named = zip([name.encode() for name, _ in events], documents, strict=True)
    body = {
        "document": lambda: documents[0],
        "array": lambda: b"[" + b",".join(documents) + b"]",
        "lines": lambda: b"".join(document + b"\n" for document in documents),
        "frames": lambda: framed(documents),
        "chunks": lambda: framed([b'{"bytes":"%s"}' % b64encode(document) for document in documents]),
    }.get(framing, lambda: b"".join(b"event: " + n + end + b"data: " + d + end + end for n, d in named))()
    if coding == "gzip":
        body = gzip.compress(body, 1)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[a:b] for a, b in pairwise([0, *cuts, len(body)])]
    readings = []
    for fed, is_looked_at in (([body], False), (pieces, True), ([body[i : i + 1] for i in range(len(body))], False)):
        call = Call(api=api, model="m", stream=True, body=b"")
        meter = FAMILY.meter(
            Provider(name="openai", family="openai", hosts=(), base="https://x.test"), call, 200, content_type, coding
        )
        for piece in fed:
            meter.feed(piece)
            if is_looked_at:
                meter.reading()
        readings.append(meter.reading())
    assert readings[0] == readings[1] == readings[2]


def _decimal(value: object) -> str:
    assert isinstance(value, Decimal)
    return str(value)


@pytest.mark.parametrize("name", ["openai", "google", "vercel-gateway"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS, api=st.sampled_from(APIS), step=st.sampled_from([1, 7, 10**6]))
def test_strange_json_is_read_in_every_framing(name: str, events: list[tuple[str, Any]], api: str, step: int) -> None:
    """A5: and never gives a negative count."""
    documents = [json.dumps(document).encode() for _, document in events]
    streamed = b"".join(b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps(d).encode()) for kind, d in events)
    for body in (documents[0], b"[" + b",".join(documents) + b"]", streamed):
        check(api, name, body, step)
    check(api, name, b"\n".join(documents) + b"\n", step, "application/x-ndjson")
    check(api, name, framed(documents), step, "application/vnd.amazon.eventstream")
    check(api, name, framed([b'{"bytes":"%s"}' % b64encode(document) for document in documents]), step)


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=300), api=st.sampled_from(APIS), step=st.integers(1, 50))
def test_strange_bytes_are_read(body: bytes, api: str, step: int) -> None:
    check(api, "openai", body, step)
    for coding in ("gzip", "deflate", "br", "zstd"):
        decoding = decoder(coding)
        assert decoding is not None
        decoding.decode(body)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                b"data: ",
                b'{"choices":[],"usage":{"a":1}}',
                b'{"choices":[{"x":1}]}',
                b'{"choices":[]}',
                b"\n",
                b"\r",
                b"\r\n",
                b": c",
                b"[DONE]",
            ]
        ),
        max_size=14,
    ),
    step=st.integers(1, 9),
)
def test_the_filter_does_not_depend_on_the_splits_and_takes_at_most_one_event(pieces: list[bytes], step: int) -> None:
    """I14"""
    body = b"data: x\n\n" + b"".join(pieces)
    whole, split = UsageChunkFilter(), UsageChunkFilter()
    at_once = whole.feed(body) + whole.finish()
    in_pieces = b"".join(split.feed(body[start : start + step]) for start in range(0, len(body), step)) + split.finish()
    assert in_pieces == at_once
    if at_once != body:
        length = len(body) - len(at_once)
        cut = next(i for i in range(len(body)) if body[:i] + body[i + length :] == at_once)
        assert b'"usage":{"a":1}' in body[max(cut - 3, 0) : cut + length + 3]
