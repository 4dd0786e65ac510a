"""How a family's own stream says that it failed: the event that ends a stream which cannot go on. Pure.

Shapes: OpenAI chat (an `error` object as data, no [DONE] after it), Responses (`event: error` with the fields at the top, and again
in an `error` object, on which its SDKs raise), Anthropic (`event: error`), Gemini (an `error` object as data), JSON lines (Ollama's
`error`, Cohere's last event). Framings that have no such event, or whose bytes are encoded, get none: there only a cut connection
is honest.
"""

from __future__ import annotations

import json
from typing import Literal

from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import BOUNDARY

Style = Literal["openai", "responses", "anthropic", "google", "ollama", "cohere_lines"]

_LINES = (b"application/x-ndjson", b"application/stream+json", b"application/jsonl", b"application/json-lines")
COMMENT = b": keep-alive\n\n"
"""An SSE comment: clients ignore it, load balancers see bytes."""


def style_of(api: str, dialect: str, *, is_lines: bool = False) -> Style:
    """Which shape the caller's SDK reads, by the API called, the dialect of its errors and whether the stream is JSON lines."""
    if is_lines:
        return "cohere_lines" if api == "cohere_chat" else "ollama"
    if api == "responses":
        return "responses"
    if dialect == "anthropic":
        return "anthropic"
    return "google" if dialect == "google" else "openai"


def error_event(style: Style, error: bytes) -> bytes:
    """The terminal event for an error's JSON body, as `error_body` writes it or a provider sent it.

    What is no JSON object is carried as the message of one.
    """
    document = json_scan.loads(error)
    if not isinstance(document, dict):
        message = error[:2000].decode("utf-8", "replace") or "The provider failed."
        kind = {"type": "api_error", "code": "upstream_error", "message": message}
        document = {"type": "error", "error": kind} if style == "anthropic" else {"error": kind}
    if style == "ollama" or style == "cohere_lines":
        inner = document.get("error")
        said = inner.get("message") if isinstance(inner, dict) else inner or document.get("message")
        message = said if isinstance(said, str) else "The provider failed."
        end = {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR", "message": message}
        return _line({"error": message} if style == "ollama" else end) + b"\n"
    if style == "anthropic":
        return b"event: error\ndata: " + _line(document) + b"\n\n"
    if style == "responses":
        inner = document.get("error")
        facts = inner if isinstance(inner, dict) else {}
        code = facts.get("code") or facts.get("type") or "server_error"
        error_facts = {
            "type": str(facts.get("type") or "server_error"),
            "code": str(code),
            "message": str(facts.get("message", "")),
        }
        event: dict[str, object] = {
            "type": "error",
            "code": str(code),
            "message": error_facts["message"],
            "param": None,
            "sequence_number": 0,
        }
        event["error"] = error_facts  # with it OpenAI's SDKs raise; without, the event is easily overlooked
        return b"event: error\ndata: " + _line(event) + b"\n\n"
    return b"data: " + _line(document) + (b"\r\n\r\n" if style == "google" else b"\n\n")


def whole_events(data: bytes, *, is_lines: bool = False) -> int:
    """How many of the bytes end with an event's end; 0 when none does (the bytes are inside one event)."""
    if is_lines:
        return data.rfind(b"\n") + 1
    end = 0
    for boundary in BOUNDARY.finditer(data):
        end = boundary.end()
    return end


def may_carry_event(content_type: bytes, content_encoding: bytes) -> bool:
    """Can an event be written into a body of this kind: a plain event stream, or lines of JSON?"""
    is_plain = content_encoding.strip().lower() in (b"", b"identity")
    return is_plain and (content_type.strip().lower().startswith(b"text/event-stream") or carries_lines(content_type))


def carries_lines(content_type: bytes) -> bool:
    """Is a body of this type one JSON object a line (Ollama, Cohere's first API)?"""
    return content_type.partition(b";")[0].strip().lower() in _LINES


def _line(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
