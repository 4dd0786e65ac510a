"""Gemini's shapes: generateContent, its stream, countTokens, embeddings, errors."""

from __future__ import annotations

import base64

from lava_proxy.app.sandbox_answers import (
    Answer,
    BadRequest,
    Json,
    Knobs,
    Reply,
    answer,
    dumps,
    embedding,
    sse,
    texts,
    tokens,
)


def gemini_generate(body: Json, raw: bytes, knobs: Knobs, model: str) -> Reply:
    """POST .../models/MODEL:generateContent; ai.google.dev/api/generate-content."""
    said = _gemini_answer(body, raw, knobs, model)
    finish = "MAX_TOKENS" if said.truncated else "STOP"
    return Reply(body=_gemini_chunk(said, said.text, finish, final=True))


def gemini_stream(body: Json, raw: bytes, knobs: Knobs, model: str, *, as_sse: bool) -> Reply:
    """POST .../models/MODEL:streamGenerateContent: with alt=sse events (Google ends their lines with CRLF), else one
    JSON array that grows. Usage stands on every chunk, the output's only on the last."""
    said = _gemini_answer(body, raw, knobs, model)
    last = len(said.words) - 1
    finish = "MAX_TOKENS" if said.truncated else "STOP"
    payloads = [
        _gemini_chunk(said, word, finish if index == last else None, final=index == last) for index, word in enumerate(said.words)
    ]
    failed = gemini_error(503, "sandbox failure")
    if as_sse:
        chunks = tuple(sse(payload, newline=b"\r\n") for payload in payloads)
        return Reply(chunks=chunks, error_event=sse(failed, newline=b"\r\n"))
    parts = [(b"[" if index == 0 else b",\r\n") + dumps(payload) for index, payload in enumerate(payloads)]
    return Reply(
        chunks=(*parts, b"]\r\n"),
        error_event=b",\r\n" + dumps(failed) + b"]\r\n",
        content_type="application/json",
    )


def gemini_count_tokens(body: Json, raw: bytes, knobs: Knobs, model: str) -> Reply:
    """POST .../models/MODEL:countTokens."""
    inner = body.get("generateContentRequest")
    count = _gemini_answer(inner if isinstance(inner, dict) else body, raw, knobs, model).input_tokens
    return Reply(body={"totalTokens": count, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": count}]})


def gemini_embed(body: Json, raw: bytes, knobs: Knobs, model: str) -> Reply:
    """POST .../models/MODEL:embedContent, and :batchEmbedContents with its list of requests."""
    if isinstance(body.get("requests"), list):
        return Reply(body={"embeddings": [_gemini_embedding(request) for request in body["requests"]]})
    count = sum(tokens(text) for text in texts(body.get("content", "")))
    return Reply(body={"embedding": _gemini_embedding(body), "usageMetadata": {"promptTokenCount": count}})


def _gemini_embedding(request: Json) -> Json:
    wanted = request.get("outputDimensionality")
    return {"values": embedding(" ".join(texts(request.get("content", ""))), wanted if isinstance(wanted, int) else 768)}


def _gemini_answer(body: Json, raw: bytes, knobs: Knobs, model: str) -> Answer:
    if not body.get("contents"):
        raise BadRequest("contents is not specified")
    config = body.get("generationConfig")
    limit = config.get("maxOutputTokens") if isinstance(config, dict) else None
    system = body.get("systemInstruction", body.get("system_instruction"))
    prompt = [system, body["contents"]] if system else body["contents"]
    return answer(model, prompt, limit, raw, knobs.words)


def _gemini_chunk(said: Answer, text: str, finish: str | None, *, final: bool) -> Json:
    candidate: Json = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage: Json = {
        "promptTokenCount": said.input_tokens,
        "totalTokenCount": said.input_tokens + (said.output_tokens if final else 0),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": said.input_tokens}],
    }
    if final:
        usage["candidatesTokenCount"] = said.output_tokens
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": said.model,
        "responseId": base64.urlsafe_b64encode(bytes.fromhex(said.seed))[:22].decode(),
    }


def gemini_error(status: int, message: str) -> Json:
    """The body of an answer with this status."""
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    name = names.get(status, "UNAVAILABLE" if status == 503 else "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
    return {"error": {"code": status, "message": message, "status": name}}
