"""OpenAI's shapes: chat, completions, responses, embeddings, errors."""

from __future__ import annotations

import base64
import itertools
import struct

from lava_proxy.app.sandbox_answers import (
    Answer,
    BadRequest,
    Json,
    Knobs,
    Reply,
    answer,
    embedding,
    model_of,
    sse,
    tokens,
)

EMBEDDING_DIMENSIONS = 1536
DONE = b"data: [DONE]\n\n"
OPENAI_ERROR_EVENT: Json = {"error": {"message": "sandbox failure", "type": "server_error", "param": None, "code": None}}


def openai_chat(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../chat/completions; platform.openai.com/docs/api-reference/chat."""
    if not isinstance(body.get("messages"), list):
        raise BadRequest("messages must be a list")
    said = answer(
        model_of(body),
        body["messages"],
        body.get("max_completion_tokens", body.get("max_tokens")),
        raw,
        knobs.words,
    )
    head = {
        "id": f"chatcmpl-{said.seed[:29]}",
        "created": said.created_s,
        "model": said.model,
        "service_tier": "default",
    }
    finish = "length" if said.truncated else "stop"
    if not body.get("stream"):
        message: Json = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return Reply(body={**head, "object": "chat.completion", "choices": [choice], "usage": _chat_usage(said)})
    asked = _asks_usage(body)
    tail: Json = {"usage": None} if asked else {}

    def chunk(delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse({**head, "object": "chat.completion.chunk", "choices": [choice], **tail})

    chunks = [chunk({"role": "assistant", "content": "", "refusal": None})]
    chunks += [chunk({"content": word}) for word in said.words]
    chunks.append(chunk({}, finish))
    if asked:
        chunks.append(sse({**head, "object": "chat.completion.chunk", "choices": [], "usage": _chat_usage(said)}))
    return Reply(chunks=(*chunks, DONE), error_event=sse(OPENAI_ERROR_EVENT))


def openai_completions(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../completions (legacy text); platform.openai.com/docs/api-reference/completions."""
    said = answer(model_of(body), body.get("prompt", ""), body.get("max_tokens", 16), raw, knobs.words)
    head = {"id": f"cmpl-{said.seed[:29]}", "object": "text_completion", "created": said.created_s, "model": said.model}
    finish = "length" if said.truncated else "stop"
    if not body.get("stream"):
        choice = {"index": 0, "text": said.text, "logprobs": None, "finish_reason": finish}
        return Reply(body={**head, "choices": [choice], "usage": _chat_usage(said)})
    asked = _asks_usage(body)
    tail: Json = {"usage": None} if asked else {}

    def chunk(text: str, finish_reason: str | None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return sse({**head, "choices": [choice], **tail})

    chunks = [chunk(word, None) for word in said.words]
    chunks.append(chunk("", finish))
    if asked:
        chunks.append(sse({**head, "choices": [], "usage": _chat_usage(said)}))
    return Reply(chunks=(*chunks, DONE), error_event=sse(OPENAI_ERROR_EVENT))


def _asks_usage(body: Json) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _chat_usage(said: Answer) -> Json:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def openai_responses(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../responses; platform.openai.com/docs/api-reference/responses and responses-streaming."""
    prompt = [body.get("instructions") or "", body.get("input") or ""]
    said = answer(model_of(body), prompt, body.get("max_output_tokens"), raw, knobs.words)
    item_id = f"msg_{said.seed[:48]}"
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": said.text}
    item: Json = {"id": item_id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    whole = _response_object(body, said, item)
    if not body.get("stream"):
        return Reply(body=whole)
    numbers = itertools.count()

    def event(kind: str, **facts: object) -> bytes:
        return sse({"type": kind, "sequence_number": next(numbers), **facts}, event=kind)

    started = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    chunks = [
        event("response.created", response=started),
        event("response.in_progress", response=started),
        event("response.output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []}),
        event("response.content_part.added", **place, part={**part, "text": ""}),
        *(event("response.output_text.delta", **place, delta=word, logprobs=[]) for word in said.words),
        event("response.output_text.done", **place, text=said.text, logprobs=[]),
        event("response.content_part.done", **place, part=part),
        event("response.output_item.done", output_index=0, item=item),
        event(f"response.{whole['status']}", response=whole),
    ]
    error = {"code": "server_error", "message": "sandbox failure"}
    failed = {
        "type": "response.failed",
        "sequence_number": 99,
        "response": {**started, "status": "failed", "error": error},
    }
    return Reply(chunks=tuple(chunks), error_event=sse(failed, event="response.failed"))


def _response_object(body: Json, said: Answer, item: Json) -> Json:
    return {
        "id": f"resp_{said.seed[:48]}",
        "object": "response",
        "created_at": said.created_s,
        "status": "incomplete" if said.truncated else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if said.truncated else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": said.model,
        "output": [item],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": said.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.input_tokens + said.output_tokens,
        },
        "user": body.get("user"),
    }


def openai_embeddings(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../embeddings; both encodings (the SDK asks for base64 of little-endian float32)."""
    given = body.get("input", "")
    inputs = given if isinstance(given, list) else [given]
    if inputs and isinstance(inputs[0], int):
        inputs = [inputs]  # one input, as token numbers
    dimensions = _dimensions(body.get("dimensions"))
    data = []
    for index, item in enumerate(inputs):
        vector = embedding(str(item), dimensions)
        packed = struct.pack(f"<{dimensions}f", *vector)
        value = base64.b64encode(packed).decode() if body.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    count = sum(len(item) if isinstance(item, list) else tokens(str(item)) for item in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return Reply(body={"object": "list", "data": data, "model": model_of(body), "usage": usage})


def _dimensions(asked: object) -> int:
    return asked if isinstance(asked, int) and 1 <= asked <= 4096 else EMBEDDING_DIMENSIONS


def openai_error(status: int, message: str) -> Json:
    """The body of an answer with this status."""
    kind = {401: "invalid_request_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
