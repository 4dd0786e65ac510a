"""Gemini: cumulative usage, thoughts, arrays, images, embeddings."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from lava_proxy.domain.usage import Provenance, Reading, token_usage
from lava_proxy.providers.base import Provider
from lava_proxy.providers.model_apis import ModelApis

FAMILY = ModelApis()
GOOGLE = Provider(name="google", family="google", hosts=(), base="https://generativelanguage.googleapis.com")


def read(body: bytes | list[bytes], method: str = "streamGenerateContent", encoding: str = "") -> Reading:
    call = FAMILY.inspect(GOOGLE, "POST", f"/v1beta/models/gemini-x:{method}", "alt=sse", "application/json", b"{}")
    meter = FAMILY.meter(GOOGLE, call, 200, "application/json", encoding)
    for piece in [body] if isinstance(body, bytes) else body:
        meter.feed(piece)
    return meter.reading()


def chunk(text: str = "Hi", *, finish: str | None = None, **metadata: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "usageMetadata": metadata, "modelVersion": "g-1", "responseId": "r-1"}


STREAM = [
    chunk(promptTokenCount=9, totalTokenCount=9),
    chunk(promptTokenCount=9, candidatesTokenCount=4, thoughtsTokenCount=10, totalTokenCount=23),
    chunk(finish="STOP", promptTokenCount=87, candidatesTokenCount=6, thoughtsTokenCount=30, totalTokenCount=123),
]
EXPECTED = token_usage(87, 36, reasoning=30)


def as_sse(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + json.dumps(c).encode() + b"\r\n\r\n" for c in chunks)


def as_array(chunks: list[dict[str, Any]]) -> bytes:
    return b"[" + b"\r\n,\r\n".join(json.dumps(c, indent=2).encode() for c in chunks) + b"\r\n]"


@pytest.mark.parametrize("body", [as_sse(STREAM), as_array(STREAM)], ids=["SSE", "array"])
def test_the_last_usage_counts_as_a_whole_at_every_split(body: bytes) -> None:
    """A21, A22: usage is cumulative (and not monotonic), thoughts are output."""
    whole = read(body)
    assert whole.usage == EXPECTED
    assert (whole.model, whole.response_id, whole.terminal) == ("g-1", "r-1", True)
    assert whole.provenance is Provenance.PROVIDER_FINAL
    assert whole.output_text_bytes == 6
    for cut in range(0, len(body), 3):
        assert read([body[:cut], body[cut:]]) == whole


def test_a_gzip_array_with_flush_points_is_followed() -> None:
    """J3: what Google sends when gzip was asked for."""
    compressor = zlib.compressobj(wbits=31)
    pieces = [compressor.compress(as_array(STREAM[:2])[:-1]) + compressor.flush(zlib.Z_SYNC_FLUSH)]
    assert read(pieces, encoding="gzip").usage == token_usage(9, 14, reasoning=10)
    assert read(gzip.compress(as_array(STREAM)), encoding="gzip").usage == EXPECTED


def test_a_broken_stream_keeps_the_last_count_as_partial() -> None:
    """C2: the early count is the provider's."""
    body = as_sse(STREAM[:2]) + as_sse(STREAM[2:])[:-80]
    reading = read(body[: len(as_sse(STREAM[:2])) + 40])
    assert reading.usage == token_usage(9, 14, reasoning=10)
    assert reading.provenance is Provenance.PROVIDER_PARTIAL


def test_a_blocked_prompt_is_an_end_with_its_input() -> None:
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8}}
    reading = read(json.dumps(body).encode(), method="generateContent")
    assert (reading.usage, reading.provenance) == (token_usage(8, 0), Provenance.PROVIDER_FINAL)


def test_a_first_chunk_that_only_names_the_traffic_type_is_no_usage() -> None:
    assert read(as_sse([chunk(trafficType="ON_DEMAND")])).usage is None


def test_tool_use_modalities_and_searches_are_units() -> None:
    metadata = {
        "promptTokenCount": 9,
        "toolUsePromptTokenCount": 61,
        "candidatesTokenCount": 27,
        "cachedContentTokenCount": 4,
        "totalTokenCount": 97,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2}, {"modality": "AUDIO", "tokenCount": 7}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 20}],
    }
    last = chunk(finish="STOP", **metadata)
    last["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    expected = token_usage(
        70,
        27,
        cached=4,
        input_audio_tokens=7,
        output_image_tokens=20,
        tool_use_prompt_tokens=61,
        google_search_queries=2,
    )
    assert read(as_sse([last])).usage == expected
    assert read(json.dumps(last).encode(), method="generateContent").usage == expected


def test_an_inline_image_of_megabytes_does_not_hide_usage() -> None:
    """I3: as a document, as an event, as an array element."""
    image = chunk(finish="STOP", promptTokenCount=9, candidatesTokenCount=1290, totalTokenCount=1299)
    image["candidates"][0]["content"]["parts"].insert(0, {"inlineData": {"data": "A" * (3 << 20)}})
    for body in (json.dumps(image).encode(), as_sse([image]), as_array([image])):
        reading = read([body[start : start + 50_000] for start in range(0, len(body), 50_000)])
        assert reading.usage == token_usage(9, 1290)
        assert (reading.terminal, reading.model) == (True, "g-1")


def test_an_error_element_is_seen() -> None:
    """A17: after 200, in the array."""
    body = as_array([STREAM[0], {"error": {"code": 503, "message": "x", "text": "y" * 900}}])
    reading = read(body)
    assert (reading.error, reading.output_text_bytes) == (True, 2)
    assert reading.usage == token_usage(9, 0)


def test_embeddings_report_a_prompt_or_nothing() -> None:
    body = b'{"embedding":{"values":[0.1]},"usageMetadata":{"promptTokenCount":4,"promptTokenDetails":[]}}'
    assert read(body, method="embedContent").usage == token_usage(4, 0)
    assert read(b'{"embedding":{"values":[0.1]}}', method="embedContent").usage is None


def test_vertex_predictions_are_summed() -> None:
    prediction = {"embeddings": {"values": [0.1], "statistics": {"token_count": 10}}}
    body = json.dumps({"predictions": [prediction, prediction]}).encode()
    assert read(body, method="predict").usage == token_usage(20, 0)
