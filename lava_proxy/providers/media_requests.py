"""What a request for speech, transcription, images, pages or a reranking counts: its ceiling, and its own quantities.

The ceiling is the most, for the hold; `asked` is the likely amount, taken as usage where the response does not say.
Both name tokens too where the API has models that are billed by them (gpt-4o-mini-tts, gpt-4o-transcribe, gpt-image-1):
a price knows only one of the two units, so nothing is counted twice.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from typing import Any
from urllib.parse import parse_qsl

from lava_proxy.domain.prices import Facts, facts_of
from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.ceilings import IMAGE_TOKENS, INPUT_TOKENS_MAX, text_and_media
from lava_proxy.providers.endpoints import Endpoint
from lava_proxy.providers.usage_reader import count_or_none, items, mapping
from lava_proxy.wire import json_scan
from lava_proxy.wire.audio_length import audio_seconds
from lava_proxy.wire.multipart import form_parts

AUDIO_BYTES_PER_SECOND_MIN = 2_000
"""16 kbit/s, the thinnest speech coding in use (Opus, AMR-WB): an unreadable file is at most this long."""

AUDIO_BYTES_PER_SECOND = 8_000
"""64 kbit/s, the middle of what voice recorders and MP3 encoders write."""

REMOTE_AUDIO_SECONDS_MAX = Decimal(3_600)
"""Assumed of audio that is only linked to; longer files are rare, and the response reports what they were."""

REMOTE_AUDIO_SECONDS = Decimal(60)
AUDIO_TOKENS_PER_SECOND_MAX = 128
"""Of input: Mistral reports about 100 a second, Gemini 32, OpenAI 10."""

AUDIO_TOKENS_PER_SECOND = 10
TRANSCRIPT_TOKENS_PER_SECOND_MAX = 50
"""Fast speech is 6 tokens a second; with speakers named a recorded answer had 39."""

SPEECH_TOKENS_PER_CHARACTER_MAX = 3
SPEECH_TOKENS_PER_2_CHARACTERS = 3
"""OpenAI's speech is some 20 audio tokens a second, and a second is some 15 characters."""

IMAGE_OUTPUT_TOKENS_MAX = 8_192
"""gpt-image-1's largest at high quality has 6,240 tokens, three partial images 300 more.
https://platform.openai.com/docs/guides/image-generation"""

IMAGE_OUTPUT_TOKENS = 1_056
"""The same, square at medium quality."""

IMAGE_TOKENS_OF = {
    (quality, size): tokens
    for quality, counts in {"low": (272, 408, 400), "medium": (1_056, 1_584, 1_568), "high": (4_160, 6_240, 6_208)}.items()
    for size, tokens in zip(("1024x1024", "1024x1536", "1536x1024"), counts, strict=True)
}
"""The same, by quality and size: what an answer that does not report its tokens is taken to be."""

VIDEO_SECONDS = 8
"""Veo's, where a request does not say. https://ai.google.dev/gemini-api/docs/video"""

VIDEO_SECONDS_OPENAI = 4
VIDEO_SECONDS_OPENAI_MAX = 12
"""Sora's, where a request does not say (a remix is as long as its original); the answer says it.
https://platform.openai.com/docs/api-reference/videos/create"""

VIDEO_SECONDS_MAX = 600
IMAGES_MAX = 128
IMAGEN_IMAGES = 4  # where a request does not say how many
PAGE_BYTES_MIN = 4_096
"""A page of a compressed text PDF is seldom smaller."""

PAGE_BYTES = 65_536
PAGES_MAX = 1_000
"""The longest document that Mistral takes. https://docs.mistral.ai/capabilities/document_ai/basic_ocr"""

DOCUMENTS_PER_SEARCH = 100
DOCUMENT_BYTES = 1_000
"""A search is a query and up to 100 documents; a document above 500 tokens counts as several.
https://docs.cohere.com/docs/rerank-overview"""

_SIZED_APIS = frozenset({"images", "imagen", "videos"})
_FACTS = frozenset({"size", "quality", "resolution"})
_AUDIO_TYPES = ("audio/", "video/", "application/octet-stream")
_FORM_TYPE = "multipart/"
_MODEL_KEYS = ("model", "model_id")
_MODEL_LENGTH_MAX = 256
_PAGE_RANGE = re.compile(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRequest:
    """What a media request says of itself."""

    model: str | None
    stream: bool
    ceiling: Usage
    asked: Usage
    facts: Facts = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """A request's fields, wherever they stand, and its files."""

    fields: Mapping[str, Any]
    files: list[memoryview]
    is_json: bool
    body: bytes


def media_request(endpoint: Endpoint, query: str, content_type: str, body: bytes) -> MediaRequest:
    """Read a request of one of MEDIA_APIS. What cannot be read counts as nothing; never raises."""
    form = _form(query, content_type, body)
    ceiling, asked = _QUANTITIES[endpoint.api](form)
    stream = form.fields.get("stream")
    named = (form.fields.get(key) for key in _MODEL_KEYS)
    return MediaRequest(
        model=endpoint.model or next((name[:_MODEL_LENGTH_MAX] for name in named if isinstance(name, str) and name), None),
        stream=endpoint.stream or stream is True or stream == "true" or form.fields.get("stream_format") == "sse",
        ceiling=ceiling,
        asked=asked,
        facts=facts_of(_priced_by(form)) if endpoint.api in _SIZED_APIS else (),
    )


def _priced_by(form: _Form) -> Mapping[str, object]:
    """Size, quality and resolution, wherever the API keeps them."""
    return {name: value for name, value in {**form.fields, **mapping(form.fields.get("parameters"))}.items() if name in _FACTS}


def _form(query: str, content_type: str, body: bytes) -> _Form:
    lowered = content_type.lower()
    if lowered.startswith(_FORM_TYPE):
        fields, files = form_parts(content_type, body)
        return _Form(fields=fields, files=[file for _, file in files], is_json=False, body=body)
    in_query = dict(parse_qsl(query))
    if lowered.startswith(_AUDIO_TYPES):
        return _Form(fields=in_query, files=[memoryview(body)], is_json=False, body=body)
    document = json_scan.loads(body)
    return _Form(fields={**in_query, **mapping(document)}, files=[], is_json=isinstance(document, dict), body=body)


def _speech(form: _Form) -> tuple[Usage, Usage]:
    """Characters of the text; tokens only for the APIs of OpenAI's shape, where some models are billed by them."""
    spoken, guidance = form.fields.get("input"), form.fields.get("instructions")
    if not isinstance(spoken, str):
        texts = [form.fields.get("text"), *(item.get("text") for item in items(form.fields.get("inputs")))]
        total = sum(len(text) for text in texts if isinstance(text, str))
        characters = Usage({"input_characters": total} if total else {})
        return characters, characters
    counted = {"input_characters": len(spoken)}
    read = len(spoken) + (len(guidance) if isinstance(guidance, str) else 0)
    most, likely = len(spoken) * SPEECH_TOKENS_PER_CHARACTER_MAX + 64, len(spoken) * SPEECH_TOKENS_PER_2_CHARACTERS // 2
    return (
        token_usage(read + 1, most, output_audio_tokens=most, **counted),
        token_usage(read // 4 + 1, likely, output_audio_tokens=likely, **counted),
    )


def _transcription(form: _Form) -> tuple[Usage, Usage]:
    most, likely = _audio_seconds(form)
    prompt = form.fields.get("prompt")
    prompt_bytes = len(prompt.encode("utf-8", "replace")) if isinstance(prompt, str) else 0
    heard_most, heard = ceil(most * AUDIO_TOKENS_PER_SECOND_MAX), ceil(likely * AUDIO_TOKENS_PER_SECOND)
    return (
        token_usage(
            min(heard_most + prompt_bytes + 64, INPUT_TOKENS_MAX),
            ceil(most * TRANSCRIPT_TOKENS_PER_SECOND_MAX) + 256,
            input_audio_tokens=heard_most,
            audio_seconds=most,
        ),
        token_usage(heard + prompt_bytes // 4, 0, input_audio_tokens=heard, audio_seconds=likely),
    )


def _listening(form: _Form) -> tuple[Usage, Usage]:
    most, likely = _audio_seconds(form)
    return Usage({"audio_seconds": most}), Usage({"audio_seconds": likely})


def _audio_seconds(form: _Form) -> tuple[Decimal, Decimal]:
    """(the most, the likely) seconds of the audio in a request."""
    audios = form.files or _encoded_audio(form)
    if not audios:
        return REMOTE_AUDIO_SECONDS_MAX, REMOTE_AUDIO_SECONDS
    most = likely = Decimal(0)
    for audio in audios:
        known = audio_seconds(audio)
        most += known or Decimal(-(-len(audio) // AUDIO_BYTES_PER_SECOND_MIN))
        likely += known or Decimal(-(-len(audio) // AUDIO_BYTES_PER_SECOND))
    return most, likely


def _encoded_audio(form: _Form) -> list[memoryview]:
    """Audio that stands in JSON as base64, with or without `data:` before it."""
    places = [form.fields.get(name) for name in ("input_audio", "audio", "file", "audio_base64", "data")]
    texts = [mapping(place).get("data") or place for place in places]
    for text in texts:
        if isinstance(text, str) and len(text) > 256:
            encoded = text.partition(",")[2] if text.startswith("data:") else text
            try:
                return [memoryview(b64decode(encoded))]
            except (Base64Error, ValueError):
                continue
    return []


def _images(form: _Form) -> tuple[Usage, Usage]:
    images = _number(form.fields.get("n"), 1)
    each = IMAGE_TOKENS_OF.get((str(form.fields.get("quality")), str(form.fields.get("size"))), IMAGE_OUTPUT_TOKENS)
    prompt = form.fields.get("prompt")
    if form.is_json:
        text_bytes, media_tokens = text_and_media(form.body, form.fields)
    else:
        text_bytes = len(prompt.encode("utf-8", "replace")) if isinstance(prompt, str) else 0
        media_tokens = len(form.files) * IMAGE_TOKENS
    # Pictures to be edited are read at high fidelity: up to four times what a chat makes of them.
    read, most, likely = media_tokens * 4, images * IMAGE_OUTPUT_TOKENS_MAX, images * each
    return (
        token_usage(
            min(text_bytes // 2 + 64 + read, INPUT_TOKENS_MAX),
            most,
            input_image_tokens=read,
            output_image_tokens=most,
            images=images,
        ),
        token_usage(
            text_bytes // 4 + media_tokens,
            likely,
            input_image_tokens=media_tokens,
            output_image_tokens=likely,
            images=images,
        ),
    )


def _video(form: _Form) -> tuple[Usage, Usage]:
    """Seconds: a video is billed when it is ordered, by its length. OpenAI's `seconds`, xAI's `duration`, Veo's parameters."""
    parameters = mapping(form.fields.get("parameters"))
    named = form.fields.get("seconds") or form.fields.get("duration") or parameters.get("durationSeconds")
    videos = _number(parameters.get("sampleCount"), 1)
    seconds = min(
        _number(named, VIDEO_SECONDS if parameters or "instances" in form.fields else VIDEO_SECONDS_OPENAI), VIDEO_SECONDS_MAX
    )
    length = Usage({"video_seconds": seconds * videos})
    most = Usage({"video_seconds": (seconds if named else VIDEO_SECONDS_OPENAI_MAX) * videos})
    return most, length


def _imagen(form: _Form) -> tuple[Usage, Usage]:
    images = Usage({"images": _number(mapping(form.fields.get("parameters")).get("sampleCount"), IMAGEN_IMAGES)})
    return images, images


def _number(value: object, default: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        value = int(value)
    return min(count_or_none(value) or default, IMAGES_MAX)


def _ocr(form: _Form) -> tuple[Usage, Usage]:
    most, likely = _pages(form)
    return Usage({"pages_processed": most}), Usage({"pages_processed": likely})


def _pages(form: _Form) -> tuple[int, int]:
    """(the most, the likely) pages: those named, or what the document's bytes can hold."""
    named = _named_pages(form.fields.get("pages"))
    if named:
        return named, named
    document = mapping(form.fields.get("document"))
    if document.get("type") == "image_url":
        return 1, 1
    url = document.get("document_url")
    if isinstance(url, str) and url.startswith("data:"):
        document_bytes = len(url) * 3 // 4
    elif form.files:
        document_bytes = sum(len(file) for file in form.files)
    else:
        return PAGES_MAX, 1
    return min(document_bytes // PAGE_BYTES_MIN + 1, PAGES_MAX), min(document_bytes // PAGE_BYTES + 1, PAGES_MAX)


def _named_pages(pages: object) -> int:
    """How many pages a list ([0, 2]) or a text ("0-5,7") names; 0 when it names none."""
    if isinstance(pages, list):
        return min(len(pages), PAGES_MAX)
    total = 0
    for part in pages.split(",")[:PAGES_MAX] if isinstance(pages, str) else ():
        found = _PAGE_RANGE.match(part.strip())
        if found is not None:
            total += max(int(found[2] or found[1]) - int(found[1]) + 1, 0)
    return min(total, PAGES_MAX)


def _rerank(form: _Form) -> tuple[Usage, Usage]:
    """Searches, and tokens: the query is read once with each document."""
    documents = form.fields.get("documents")
    lengths = [len(str(document).encode("utf-8", "replace")) for document in documents] if isinstance(documents, list) else []
    query = form.fields.get("query")
    read = sum(lengths) + (len(query.encode("utf-8", "replace")) if isinstance(query, str) else 0) * max(len(lengths), 1)
    pieces = sum(length // DOCUMENT_BYTES + 1 for length in lengths)
    return (
        token_usage(min(read // 2 + 64, INPUT_TOKENS_MAX), 0, search_units=max(-(-pieces // DOCUMENTS_PER_SEARCH), 1)),
        token_usage(min(read // 4 + 1, INPUT_TOKENS_MAX), 0, search_units=max(-(-len(lengths) // DOCUMENTS_PER_SEARCH), 1)),
    )


_QUANTITIES = {
    "speech": _speech,
    "sound": _speech,
    "transcriptions": _transcription,
    "translations": _transcription,
    "listen": _listening,
    "images": _images,
    "imagen": _imagen,
    "videos": _video,
    "ocr": _ocr,
    "rerank": _rerank,
}
