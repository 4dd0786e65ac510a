"""Anthropic's shapes: messages, count_tokens, errors."""

from __future__ import annotations

from lava_proxy.app.sandbox_answers import (
    BadRequest,
    Json,
    Knobs,
    Reply,
    answer,
    model_of,
    sse,
)


def anthropic_messages(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../messages; docs.anthropic.com/en/api/messages and messages-streaming."""
    if not isinstance(body.get("messages"), list):
        raise BadRequest("messages: Field required")
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens: Field required")
    said = answer(model_of(body), _anthropic_prompt(body), body["max_tokens"], raw, knobs.words)
    usage = {
        "input_tokens": said.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": said.output_tokens,
        "service_tier": "standard",
    }
    stop = "max_tokens" if said.truncated else "end_turn"
    message: Json = {
        "id": f"msg_01{said.seed[:22]}",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": [{"type": "text", "text": said.text}],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }
    if not body.get("stream"):
        return Reply(body=message)

    def event(kind: str, **facts: object) -> bytes:
        return sse({"type": kind, **facts}, event=kind)

    started = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    chunks = [
        event("message_start", message=started),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in said.words),
        event("content_block_stop", index=0),
        event(
            "message_delta",
            delta={"stop_reason": stop, "stop_sequence": None},
            usage={"output_tokens": said.output_tokens},
        ),
        event("message_stop"),
    ]
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "sandbox failure"}}
    return Reply(chunks=tuple(chunks), error_event=sse(failed, event="error"))


def anthropic_count_tokens(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../messages/count_tokens; the same number that a message would report."""
    said = answer(model_of(body), _anthropic_prompt(body), None, raw, None)
    return Reply(body={"input_tokens": said.input_tokens})


def _anthropic_prompt(body: Json) -> list[object]:
    return [*([{"system": body["system"]}] if "system" in body else []), *(body.get("messages") or [])]


def anthropic_error(status: int, message: str) -> Json:
    """The body of an answer with this status."""
    names = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = names.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
