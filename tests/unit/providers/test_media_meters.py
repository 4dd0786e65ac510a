"""Speech, transcriptions, images, pages, rerankings: what is asked, what is reported, and what is held and charged for it."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from lava_proxy.domain.prices import PriceBook, ceiling_cost
from lava_proxy.domain.usage import Provenance, Usage, token_usage
from lava_proxy.providers.base import Call
from lava_proxy.providers.estimate import estimate
from lava_proxy.providers.media_requests import IMAGE_OUTPUT_TOKENS, PAGES_MAX, REMOTE_AUDIO_SECONDS_MAX
from lava_proxy.providers.prices_source import load_price_book
from tests.unit.providers.meter_help import asked, form, provider, read

FORMAT = struct.pack("<HHIIHH", 1, 1, 8_000, 16_000, 2, 16)
WAV = b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + FORMAT + b"data\x00\x7d\x00\x00" + b"\x01" * 32_000  # 2 seconds
SSE = "text/event-stream"


def upload(path: str = "/v1/audio/transcriptions", file: bytes = WAV, **fields: str) -> Call:
    body, content_type = form(**fields, file=file)
    return asked(path, body, content_type=content_type)


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, api",
    [
        ("/v1/audio/speech", "speech"),
        ("/v1/text-to-speech/voice1", "speech"),
        ("/v1/text-to-speech/voice1/stream", "speech"),
        ("/v1/text-to-speech/voice1/stream/with-timestamps", "speech"),
        ("/v1/speak", "speech"),
        ("/v1/sound-generation", "sound"),
        ("/v1/audio/transcriptions", "transcriptions"),
        ("/v1/audio/translations", "translations"),
        ("/v1/speech-to-text", "transcriptions"),
        ("/v1/stt", "transcriptions"),
        ("/v1/listen", "listen"),
        ("/v1/images/generations", "images"),
        ("/v1/images", "images"),
        ("/v1beta/models/imagen-4.0-generate-001:predict", "imagen"),
        ("/v1/rerank", "rerank"),
        ("/v2/rerank", "rerank"),
        ("/v1/ocr", "ocr"),
    ],
)
def test_the_path_names_the_api(path: str, api: str) -> None:
    call = asked(path, {"text": "hello", "input": "hello"})
    assert (call.api, call.billable) == (api, True)
    assert any(value > 0 for value in call.ceiling.units.values())


def test_speech_is_asked_by_the_character() -> None:
    """B1: characters, not bytes."""
    call = asked("/v1/audio/speech", {"model": "tts-1", "input": "héllo", "instructions": "slowly"})
    assert (call.model, call.asked.units["input_characters"], call.ceiling.units["input_characters"]) == ("tts-1", 5, 5)
    assert 0 < call.asked.output_tokens < call.ceiling.output_tokens
    voiced = asked("/v1/text-to-speech/v", {"model_id": "eleven_v3", "text": "héllo"}, query="output_format=mp3")
    assert (voiced.model, voiced.asked, voiced.ceiling) == (
        "eleven_v3",
        Usage({"input_characters": 5}),
        Usage({"input_characters": 5}),
    )
    dialogue = asked("/v1/text-to-dialogue", {"inputs": [{"text": "ab"}, {"text": "cde"}, 7]})
    assert dialogue.asked == Usage({"input_characters": 5})
    assert asked("/v1/audio/speech", b"\x00", content_type="audio/wav").asked == Usage()


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/stt"])
def test_a_readable_file_is_as_long_as_its_header_says(path: str) -> None:
    """B2"""
    call = upload(path, model="whisper-1", stream="true", prompt="names")
    assert (call.model, call.stream) == ("whisper-1", True)
    assert call.ceiling.units["audio_seconds"] == call.asked.units["audio_seconds"] == Decimal(2)
    assert call.ceiling.output_tokens > 100


def test_an_unreadable_file_is_held_by_its_bytes() -> None:
    """B2: 16 kbit/s for the hold, the usual bit rate for the estimate."""
    call = upload(file=b"\x1aE\xdf\xa3" + b"\x00" * 79_996)
    assert (call.ceiling.units["audio_seconds"], call.asked.units["audio_seconds"]) == (Decimal(40), Decimal(10))


def test_audio_comes_as_a_body_as_base64_and_as_a_link_too() -> None:
    raw = asked("/v1/listen", WAV, query="model=nova-3", content_type="audio/wav")
    assert (raw.model, raw.asked) == ("nova-3", Usage({"audio_seconds": Decimal(2)}))
    encoded = asked("/v1/audio/transcriptions", {"model": "m", "input_audio": {"data": b64encode(WAV).decode(), "format": "wav"}})
    assert encoded.asked.units["audio_seconds"] == Decimal(2)
    linked = asked("/v1/listen", {"url": "https://a.test/a.wav"})
    assert linked.ceiling == Usage({"audio_seconds": REMOTE_AUDIO_SECONDS_MAX})


def test_images_are_asked_by_number() -> None:
    call = asked("/v1/images/generations", {"model": "dall-e-3", "prompt": "a cat", "n": 3})
    assert (call.ceiling.units["images"], call.asked.units["images"]) == (3, 3)
    body, content_type = form(model="gpt-image-1", n="2", prompt="x", image=b"png")
    edited = asked("/v1/images/edits", body, content_type=content_type)
    assert (edited.model, edited.ceiling.units["images"]) == ("gpt-image-1", 2)
    assert edited.ceiling.count("input_image_tokens") > edited.asked.count("input_image_tokens") > 0
    for wrong in (0, -1, "x", 10**9, None, 1.5):
        assert 1 <= asked("/v1/images", {"n": wrong}).ceiling.count("images") <= 128
    imagen = asked("/v1/models/imagen-4:predict", {"instances": [{"prompt": "x"}], "parameters": {"sampleCount": 2}})
    assert (imagen.model, imagen.ceiling) == ("imagen-4", Usage({"images": 2}))


@pytest.mark.parametrize(
    "fields, most",
    [
        ({"pages": [0, 1, 5]}, 3),
        ({"pages": "0-4,7"}, 6),
        ({"document": {"type": "image_url", "image_url": "https://a.test"}}, 1),
        ({"document": {"type": "document_url", "document_url": "https://a.test/a.pdf"}}, PAGES_MAX),
        ({"document": {"type": "document_url", "document_url": "data:application/pdf;base64," + "A" * 40_000}}, 8),
    ],
)
def test_pages_are_held_for_what_the_document_can_hold(fields: dict[str, Any], most: int) -> None:
    assert asked("/v1/ocr", {"model": "m", **fields}).ceiling == Usage({"pages_processed": most})


def test_a_search_is_a_hundred_documents() -> None:
    few = asked("/v2/rerank", {"model": "m", "query": "q", "documents": ["a", {"text": "b"}]})
    many = asked("/v2/rerank", {"model": "m", "query": "q", "documents": ["a" * 1_500] * 101})
    assert (few.ceiling.units["search_units"], few.asked.units["search_units"]) == (1, 1)
    assert (many.ceiling.units["search_units"], many.asked.units["search_units"]) == (3, 2)


# --- responses ------------------------------------------------------------------------------------------------------

SPEECH = asked("/v1/audio/speech", {"model": "gpt-4o-mini-tts", "input": "x" * 64})


def test_plain_audio_is_estimated_from_the_request() -> None:
    """B1"""
    reading = read(SPEECH, b"\xff\xf3" * 100, content_type="audio/mpeg")
    assert (reading.usage, reading.provenance) == (SPEECH.asked, Provenance.ESTIMATED)
    assert estimate(provider(), SPEECH, reading) == SPEECH.asked
    assert read(SPEECH, b"{}", status=400).usage is None


def test_streamed_speech_reports_tokens() -> None:
    done = {"type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}}
    body = b'data: {"type":"speech.audio.delta","audio":"AAAA"}\n\ndata: ' + json.dumps(done).encode() + b"\n\n"
    reading = read(SPEECH, body, content_type=SSE)
    assert (reading.usage, reading.provenance, reading.terminal) == (token_usage(14, 101), Provenance.PROVIDER_FINAL, True)


@pytest.mark.parametrize("name", [b"Character-Cost", b"dg-char-count"])
def test_characters_in_the_head_are_the_providers_word(name: bytes) -> None:
    call = asked("/v1/text-to-speech/v", {"text": "x" * 64})
    reading = read(call, b"\x00", content_type="audio/mpeg", headers=((b"X-Other", b"1"), (name, b"32")))
    assert (reading.usage, reading.provenance) == (Usage({"input_characters": 32}), Provenance.PROVIDER_FINAL)


@pytest.mark.parametrize(
    "body, expected",
    [
        ({"text": "hi", "usage": {"type": "duration", "seconds": 4}}, Usage({"audio_seconds": 4})),
        ({"text": "hi", "duration": 3.7}, Usage({"audio_seconds": Decimal("3.7")})),
        (
            {
                "text": "hi",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "output_tokens": 5,
                    "total_tokens": 19,
                    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                },
            },
            token_usage(14, 5, input_audio_tokens=14),
        ),
    ],
)
def test_transcriptions_report_tokens_or_seconds(body: dict[str, Any], expected: Usage) -> None:
    """B2, B5"""
    reading = read(upload(model="whisper-1"), json.dumps(body).encode())
    assert (reading.usage, reading.provenance) == (expected, Provenance.PROVIDER_FINAL)


def test_subtitles_report_nothing_so_the_file_is_measured_and_the_text_counted() -> None:
    """B2"""
    call = upload(model="gpt-4o-transcribe")
    for content_type in ("text/plain; charset=utf-8", "text/vtt"):
        reading = read(call, b"WEBVTT\n\n00:00", b" hello", content_type=content_type)
        assert (reading.provenance, reading.output_text_bytes) == (Provenance.ESTIMATED, 19)
        guessed = estimate(provider(), call, reading)
        assert (guessed.units["audio_seconds"], guessed.output_tokens) == (Decimal(2), 5)


def test_a_translation_without_usage_is_billed_by_its_length() -> None:
    """B2"""
    call = upload("/v1/audio/translations", model="whisper-1")
    reading = read(call, b'{"text":"hello"}')
    assert (reading.provenance, reading.usage) == (Provenance.ESTIMATED, call.asked)
    failed = read(call, b'{"error":{"message":"x"}}')
    assert (failed.error, failed.usage) == (True, None)


def test_deepgram_reports_its_duration_exactly() -> None:
    reading = read(asked("/v1/listen", {"url": "u"}), b'{"metadata":{"request_id":"r","duration":25.933313}}')
    assert (reading.usage, reading.response_id) == (Usage({"audio_seconds": Decimal("25.933313")}), "r")


IMAGES = asked("/v1/images/generations", {"model": "m", "prompt": "x", "n": 2})


def test_images_are_counted_in_the_answer() -> None:
    """B1: dall-e reports no usage at all."""
    reading = read(IMAGES, b'{"created":1,"data":[{"url":"a"},{"url":"b"}]}')
    assert (reading.usage, reading.provenance) == (Usage({"images": 2}), Provenance.PROVIDER_FINAL)
    broken = read(IMAGES, b'{"created":1,"data":[{"b64')
    assert broken.provenance is Provenance.ESTIMATED
    assert estimate(provider(), IMAGES, broken).output_tokens == 2 * IMAGE_OUTPUT_TOKENS


@pytest.mark.parametrize("step", [10_000, 10**7])
@pytest.mark.parametrize("usage", [b"", b',"usage":{"input_tokens":7,"output_tokens":8,"total_tokens":15}'])
def test_images_too_large_to_keep_are_counted_all_the_same(step: int, usage: bytes) -> None:
    """I3, I4: at any split, marks across the window's edges too."""
    for images in (1, 3):
        one = b'{"b64_json":"' + b"A" * 700_001 + b'"}'
        body = b'{"data":[' + b",".join([one] * images) + b"]" + usage + b"}"
        reading = read(IMAGES, *(body[i : i + step] for i in range(0, len(body), step)))
        assert reading.usage is not None
        assert (reading.usage.units["images"], reading.usage.input_tokens) == (images, 7 if usage else 0)
        assert reading.provenance is Provenance.PROVIDER_FINAL


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_streamed_image_reports_on_its_last_event(size: int) -> None:
    """I3"""
    done = (
        b'{"type":"image_generation.completed","b64_json":"'
        + b"A" * size
        + b'","usage":{"input_tokens":5,"output_tokens":9,"total_tokens":14}}'
    )
    body = b'event: image_generation.partial_image\ndata: {"type":"image_generation.partial_image","b64_json":"AA"}\n\n'
    body += b"event: image_generation.completed\ndata: " + done + b"\n\n"
    reading = read(IMAGES, *(body[i : i + 65_536] for i in range(0, len(body), 65_536)), content_type=SSE)
    assert (reading.usage, reading.terminal) == (token_usage(5, 9, images=1), True)


def test_imagens_answers_are_counted() -> None:
    call = asked("/v1/models/imagen-4:predict", {"parameters": {"sampleCount": 2}})
    reading = read(call, b'{"predictions":[{"bytesBase64Encoded":"A"},{"raiFilteredReason":"x"}]}')
    assert reading.usage == Usage({"images": 1})


def test_a_reranking_is_billed_by_searches_by_tokens_or_by_its_cost() -> None:
    call = asked("/v1/rerank", {"model": "m", "query": "q", "documents": ["a"]})
    searched = read(call, b'{"results":[],"id":"i","meta":{"billed_units":{"search_units":1}}}')
    assert (searched.usage, searched.provenance) == (Usage({"search_units": 1}), Provenance.PROVIDER_FINAL)
    ranked = read(call, b'{"model":"r","usage":{"total_tokens":43}}', of="voyage")
    assert (ranked.usage, ranked.provenance) == (token_usage(43, 0), Provenance.PROVIDER_FINAL)
    routed = read(call, b'{"model":"r","usage":{"total_tokens":17,"cost":3.4e-7}}', of="openrouter")
    assert routed.usage is not None and routed.provenance is Provenance.ESTIMATED
    assert (routed.usage.input_tokens, routed.usage.units["provider_cost_usd"]) == (17, Decimal("3.4e-7"))
    assert read(call, b'{"results":[]}').usage == call.asked


def test_pages_are_reported() -> None:
    reading = read(
        asked("/v1/ocr", {"model": "m"}),
        b'{"pages":[],"model":"mistral-ocr-2512","usage_info":{"pages_processed":3,"doc_size_bytes":null}}',
    )
    assert (reading.usage, reading.model) == (Usage({"pages_processed": 3}), "mistral-ocr-2512")


def test_a_prediction_that_was_waited_for_reports_its_metrics() -> None:
    call = asked("/v1/models/meta/llama/predictions", {"input": {"prompt": "x"}})
    assert call.model == "meta/llama"
    done = b'{"id":"p","status":"succeeded","metrics":{"predict_time":1.25,"input_token_count":4,"output_token_count":6}}'
    assert read(call, done).usage == token_usage(4, 6, predict_seconds=Decimal("1.25"))
    assert read(call, b'{"id":"p","status":"starting","metrics":{}}').usage is None
    assert read(call, b'{"id":"p","status":"failed","error":"x"}').error


# --- money ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prices() -> PriceBook:
    return load_price_book(
        [
            {
                "provider": "openai",
                "model": "dall-e-3",
                "images_each": "0.04",
                "source": "test",
                "date": "2026-01-01",
            }
        ]
    )


@pytest.mark.parametrize(
    "price_id, model, call, body, content_type",
    [
        ("openai", "tts-1", SPEECH, b"\xff", "audio/mpeg"),
        ("openai", "gpt-4o-mini-tts", SPEECH, b"\xff", "audio/mpeg"),
        ("openai", "whisper-1", upload(), b"hello", "text/plain"),
        ("openai", "gpt-4o-transcribe", upload(), b"hello", "text/plain"),
        ("groq", "whisper-large-v3", upload(), b'{"text":"hello"}', "application/json"),
        ("mistral", "mistral-ocr-2512", asked("/v1/ocr", {}), b'{"usage_info":{"pages_processed":1}}', "application/json"),
        ("openai", "gpt-image-1", IMAGES, b'{"data":', "application/json"),
        ("openai", "dall-e-3", IMAGES, b'{"data":[{"url":"a"},{"url":"b"}]}', "application/json"),
    ],
)
def test_what_is_not_told_in_tokens_is_held_and_charged_too(
    prices: PriceBook, price_id: str, model: str, call: Call, body: bytes, content_type: str
) -> None:
    """B1, B3, B5: and the hold covers the charge."""
    at = datetime(2026, 11, 1, tzinfo=UTC)
    price = prices.price_for(price_id, model, at=at)
    assert price is not None
    usage = estimate(provider(), call, read(call, body, content_type=content_type))
    held, cost = ceiling_cost(price, call.ceiling), prices.cost_of(price_id, model, usage, at=at)
    assert cost is not None
    assert 0 < cost.nanos <= held.nanos
    assert not cost.uncovered and not cost.anomaly
