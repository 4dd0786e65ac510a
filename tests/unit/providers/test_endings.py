"""How a stream that cannot go on says so, family by family."""

from __future__ import annotations

import json

import pytest

from lava_proxy.gateway.headers import error_body
from lava_proxy.providers.endings import Style, error_event, may_carry_event, style_of, whole_events
from lava_proxy.wire.sse import parse_event


@pytest.mark.parametrize(
    ("api", "dialect", "style"),
    [("chat", "openai", "openai"), ("responses", "openai", "responses"), ("messages", "anthropic", "anthropic"),
     ("streamGenerateContent", "google", "google"), ("completions", "openai", "openai")],
)  # fmt: skip
def test_the_api_and_the_callers_dialect_choose_the_shape(api: str, dialect: str, style: Style) -> None:
    assert style_of(api, dialect) == style


def test_an_openai_stream_gets_an_error_object_and_no_done() -> None:
    """D1, D4"""
    event = error_event("openai", error_body("openai", 402, "balance_exhausted", "Gone."))
    name, data = parse_event(event.removesuffix(b"\n\n"))
    error = json.loads(data)["error"]
    assert (name, error["code"], error["message"], error["type"]) == ("", "balance_exhausted", "Gone.", "insufficient_quota")
    assert b"[DONE]" not in event


def test_a_responses_stream_gets_its_error_event() -> None:
    event = error_event("responses", error_body("openai", 402, "balance_exhausted", "Gone."))
    name, data = parse_event(event.removesuffix(b"\n\n"))
    found = json.loads(data)
    assert name == "error"
    assert (found["type"], found["code"], found["message"], found["param"]) == ("error", "balance_exhausted", "Gone.", None)


def test_an_anthropic_stream_gets_its_error_event() -> None:
    event = error_event("anthropic", error_body("anthropic", 402, "balance_exhausted", "Gone."))
    name, data = parse_event(event.removesuffix(b"\n\n"))
    found = json.loads(data)
    assert (name, found["type"], found["error"]["type"]) == ("error", "error", "billing_error")


def test_a_gemini_stream_gets_an_error_object() -> None:
    event = error_event("google", error_body("google", 402, "balance_exhausted", "Gone."))
    assert event.endswith(b"\r\n\r\n")
    assert json.loads(parse_event(event.strip())[1])["error"]["status"] == "FAILED_PRECONDITION"


@pytest.mark.parametrize("body", [error_body("openai", 402, "balance_exhausted", "Gone."), b'{"error":"Gone."}', b"Gone."])
def test_lines_of_json_get_a_last_line(body: bytes) -> None:
    """D4: Ollama's clients raise on `error`, Cohere's first API ends with a reason."""
    line = error_event(style_of("ollama", "openai", is_lines=True), body)
    assert json.loads(line) == {"error": "Gone."} and whole_events(line, is_lines=True) == len(line)
    line = error_event(style_of("cohere_chat", "openai", is_lines=True), body)
    last = json.loads(line)
    assert (last["event_type"], last["finish_reason"], last["message"]) == ("stream-end", "ERROR", "Gone.")
    assert line.count(b"\n") == 1
    assert [whole_events(data, is_lines=True) for data in (b"", b'{"a"', b"{}\n", b'{}\n{"b"')] == [0, 0, 3, 3]


@pytest.mark.parametrize("style", ["openai", "responses", "anthropic", "google"])
@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[1]", b"\xff\x00", b'{"error":"text"}', b'{\n"error":\n{}}'])
def test_whatever_a_provider_answered_becomes_one_well_formed_event(style: Style, body: bytes) -> None:
    event = error_event(style, body)
    assert whole_events(event) == len(event)
    data = parse_event(event.strip())[1]
    assert b"\n" not in data
    assert isinstance(json.loads(data), dict)


@pytest.mark.parametrize(
    ("data", "end"),
    [(b"", 0), (b"data: 1", 0), (b"data: 1\n", 0), (b"data: 1\n\n", 9), (b"data: 1\r\n\r\n", 11), (b"data: 1\r\rdata", 9),
     (b"data: 1\n\ndata: 2\n\nda", 18)],
)  # fmt: skip
def test_the_last_whole_event_of_some_bytes_is_found(data: bytes, end: int) -> None:
    assert whole_events(data) == end


@pytest.mark.parametrize(
    ("content_type", "coding", "may"),
    [(b"text/event-stream", b"", True), (b"Text/Event-Stream; charset=utf-8", b"identity", True),
     (b"text/event-stream", b"gzip", False),
     (b"application/x-ndjson", b"", True), (b"application/stream+json; charset=utf-8", b"", True),
     (b"application/x-ndjson", b"gzip", False), (b"application/json", b"", False),
     (b"application/vnd.amazon.eventstream", b"", False)],
)  # fmt: skip
def test_only_a_plain_event_stream_can_carry_an_event(content_type: bytes, coding: bytes, may: bool) -> None:
    assert may_carry_event(content_type, coding) is may
