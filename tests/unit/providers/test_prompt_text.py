"""providers/prompt_text.py and token_families.py: what a model reads of a request, counted by its family."""

from __future__ import annotations

import json

import pytest

from lava_proxy.providers.estimate import estimate
from lava_proxy.providers.prompt_text import prompt_text, prompt_tokens
from lava_proxy.providers.token_families import TokenFamily, token_family
from lava_proxy.providers.tokenizer import TEXT_CHARS_MAX, count_tokens
from tests.unit.providers.meter_help import asked, provider, read

pytest.importorskip("rs_bpe", reason="this Python has no o200k vocabulary: estimates are made at 4 bytes a token")

PLAIN = TokenFamily(100, request=0, message=0)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-4o-mini", TokenFamily(102)),
        ("openai/gpt-5.2", TokenFamily(102)),
        ("o3-mini", TokenFamily(102)),
        ("gpt-4.1", TokenFamily(102)),
        ("gpt-4-turbo", TokenFamily(100, "cl100k")),
        ("gpt-4", TokenFamily(100, "cl100k")),
        ("gpt-35-turbo", TokenFamily(100, "cl100k")),
        ("text-embedding-3-small", TokenFamily(100, "cl100k")),
        ("claude-opus-4-8", TokenFamily(143, request=8, message=0)),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", TokenFamily(113, request=8, message=0)),
        ("anthropic/claude-sonnet-4.5", TokenFamily(115, request=8, message=0)),
        ("claude-3-5-sonnet-20240620", TokenFamily(119, request=8, message=0)),
        ("models/gemini-2.5-pro", TokenFamily(106, request=1, message=0)),
        ("mistral-large-2512", TokenFamily(108)),
        ("grok-4", TokenFamily(97, request=150)),
        ("somebody/new-model", TokenFamily(77)),
        (None, TokenFamily(77)),
    ],
)
def test_a_model_belongs_to_one_family_wherever_it_is_sold(model: str | None, family: TokenFamily) -> None:
    assert token_family(model, 77) == family


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [{"role": "system", "content": "one two"}, {"role": "user", "content": [{"type": "text", "text": " three"}]}]},
        {"system": [{"type": "text", "text": "one two"}], "messages": [{"role": "user", "content": " three"}], "model": "x"},
        {
            "contents": [{"role": "user", "parts": [{"text": "one two three"}]}],
            "generationConfig": {"responseMimeType": "a"},
        },
        {"instructions": "one two", "input": [{"role": "user", "content": [{"type": "input_text", "text": " three"}]}]},
        {"prompt": ["one two", " three"], "stop": "never", "user": "somebody"},
        {"input": "one two three", "encoding_format": "float"},
    ],
)
def test_only_what_is_read_is_counted(document: dict[str, object]) -> None:
    assert prompt_text(document).text == "one two three"
    assert prompt_tokens(json.dumps(document).encode(), PLAIN) == count_tokens("one two three")


def test_media_counts_by_kind_and_schemas_as_they_stand() -> None:
    """A28"""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"city": {}}}}}]
    document = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what"}, picture]}], "tools": tools}
    found = prompt_text(document)
    assert found.text == json.dumps([tools], separators=(",", ":")) + "what"
    counted = count_tokens(found.text)
    assert counted is not None
    assert prompt_tokens(json.dumps(document).encode(), PLAIN) == counted + 2_048


def test_text_without_blanks_is_text() -> None:
    """Chinese has none; a long word that looks like base64 is text where the request holds no media."""
    for text in ("東京" * 2_000, "x" * 4_000):
        assert prompt_tokens(json.dumps({"messages": [{"role": "user", "content": text}]}).encode(), PLAIN) == count_tokens(text)


def test_long_prompts_are_counted_by_their_beginning_and_deep_ones_do_not_fail() -> None:
    body = json.dumps({"prompt": "word " * TEXT_CHARS_MAX}).encode()
    assert prompt_text(json.loads(body)).chars == 5 * TEXT_CHARS_MAX
    assert abs(prompt_tokens(body, PLAIN) - TEXT_CHARS_MAX) <= TEXT_CHARS_MAX // 100
    deep: object = "x"
    for _ in range(5_000):
        deep = [deep]
    assert prompt_text({"input": deep}).text == "x"


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff", b'"x"'])
def test_a_body_without_a_prompt_is_none(body: bytes) -> None:
    assert prompt_tokens(body, PLAIN) == 0


def test_framing_is_added_to_what_is_said_and_not_to_what_is_embedded() -> None:
    family = TokenFamily(100, request=3, message=4)
    two = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}).encode()
    assert prompt_tokens(two, family) == prompt_tokens(two, PLAIN) + 3 + 8
    assert prompt_tokens(two, family, is_framed=False) == prompt_tokens(two, PLAIN)


def test_a_streamed_transcription_that_broke_off_is_billed_its_text() -> None:
    """C2, B2: the audio by its length, the text that was relayed by its tokens."""
    call = asked("/v1/audio/transcriptions", {"model": "gpt-4o-transcribe", "stream": True, "file": "data:,"})
    event = b'data: {"type":"transcript.text.delta","delta":"some words that were said"}\n\n'
    reading = read(call, event * 3, content_type="text/event-stream")
    guessed = estimate(provider(), call, reading)
    assert guessed.output_tokens >= 15 and guessed.input_tokens > 0
