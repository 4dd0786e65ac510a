"""A provider that answers from this machine: OpenAI, Anthropic and Gemini shapes, deterministic, failures on request.

A WebSocket at `.../realtime` speaks OpenAI's Realtime events (sandbox_realtime.py).

The answer repeats the prompt, a token is four characters, ids come from a hash of the request: the same request always
gets the same answer and the same usage. Paths are matched by their end, so any base URL and prefix works. Headers:

    x-sandbox-delay-ms: 20            pause before each streamed chunk, 0 to 10,000 (default 10)
    x-sandbox-words: 500              length of the answer, up to 100,000 words
    x-sandbox-fail: status=500        answer with this error status, in the family's own shape
    x-sandbox-fail: cut-after=3       break the connection after 3 chunks (or in the middle of a whole answer)
    x-sandbox-fail: stall             one chunk, then silence
    x-sandbox-fail: error-event       three chunks, then the family's in-band error event

Read `answer` first, then one family, then `_send`. The shapes are those of the vendors' API references and are held to
by their official SDKs in the tests.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import math
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lava_proxy.app.process import stop_event
from lava_proxy.app.sandbox_realtime import realtime_session

Json = dict[str, Any]

DELAY_MS_DEFAULT = 10
DELAY_MS_MAX = 10_000
WORDS_MAX = 100_000
BODY_BYTES_MAX = 64 * 1024 * 1024
STALL_S = 3600
CHARS_PER_TOKEN = 4
ERROR_EVENT_AFTER_CHUNKS = 3
EMBEDDING_DIMENSIONS = 1536
MODELS = ("gpt-4o-mini", "gpt-4.1", "claude-sonnet-4-6", "claude-haiku-4-5", "gemini-2.5-flash", "gemini-2.5-pro")
CLOSING = (
    "This is the lava-proxy sandbox: no provider was called and nobody was charged real money. "
    "Point the same request at a real model by adding a provider key."
)


class BadRequest(Exception):
    """The request cannot be read; answered with 400 in the family's shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What the x-sandbox-* headers ask for."""

    delay_s: float = DELAY_MS_DEFAULT / 1000
    words: int | None = None
    status: int | None = None
    cut_after: int | None = None
    stall: bool = False
    error_event: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model says to one request, and what it counts."""

    model: str
    words: tuple[str, ...]  # joined they are the text
    input_tokens: int
    output_tokens: int
    truncated: bool  # max tokens reached
    seed: str  # 64 hex digits, the hash of the request
    created_s: int

    @property
    def text(self) -> str:
        return "".join(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response before it is sent: one JSON body, or chunks and the family's error event."""

    body: Json | None = None
    chunks: tuple[bytes, ...] = ()
    error_event: bytes = b""
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)


def tokens(text: str) -> int:
    """Four characters a token, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def texts(node: object) -> Iterator[str]:
    """Every text of a prompt in any of the shapes, in order."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from texts(item)
    elif isinstance(node, dict):
        for key in ("system", "systemInstruction", "instructions", "text", "content", "parts", "output"):
            if key in node:
                yield from texts(node[key])


def answer(model: str, prompt: object, max_tokens: object, raw: bytes, words_wanted: int | None) -> Answer:
    """The deterministic answer. `prompt` is the list of messages or a text; `max_tokens` None for no limit."""
    parts = list(texts(prompt))
    said = " ".join((parts[-1] if parts else "").split())
    text = f'You said: "{said[:160]}". {CLOSING}'
    if words_wanted is not None:
        text = " ".join(itertools.islice(itertools.cycle(text.split()), words_wanted))
    limit = max_tokens if isinstance(max_tokens, int) and not isinstance(max_tokens, bool) and max_tokens > 0 else None
    whole = text
    if limit is not None:
        text = text[: limit * CHARS_PER_TOKEN]
    pieces = text.split(" ")
    words = tuple([piece + " " for piece in pieces[:-1]] + pieces[-1:])
    return Answer(
        model=model,
        words=tuple(word for word in words if word),
        input_tokens=sum(tokens(part) for part in parts) or 1,
        output_tokens=tokens(text),
        truncated=len(text) < len(whole),
        seed=hashlib.sha256(raw).hexdigest(),
        created_s=int(time.time()),
    )


def _sse(payload: Json, *, event: str | None = None, newline: bytes = b"\n") -> bytes:
    head = b"event: " + event.encode() + newline if event else b""
    return head + b"data: " + _dumps(payload) + newline + newline


def _dumps(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _model(body: Json) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter")
    return model


# --- OpenAI ---------------------------------------------------------------------------------------------------------

DONE = b"data: [DONE]\n\n"
OPENAI_ERROR_EVENT: Json = {"error": {"message": "sandbox failure", "type": "server_error", "param": None, "code": None}}


def openai_chat(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../chat/completions; platform.openai.com/docs/api-reference/chat."""
    if not isinstance(body.get("messages"), list):
        raise BadRequest("messages must be a list")
    said = answer(
        _model(body),
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
        return _sse({**head, "object": "chat.completion.chunk", "choices": [choice], **tail})

    chunks = [chunk({"role": "assistant", "content": "", "refusal": None})]
    chunks += [chunk({"content": word}) for word in said.words]
    chunks.append(chunk({}, finish))
    if asked:
        chunks.append(_sse({**head, "object": "chat.completion.chunk", "choices": [], "usage": _chat_usage(said)}))
    return Reply(chunks=(*chunks, DONE), error_event=_sse(OPENAI_ERROR_EVENT))


def openai_completions(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../completions (legacy text); platform.openai.com/docs/api-reference/completions."""
    said = answer(_model(body), body.get("prompt", ""), body.get("max_tokens", 16), raw, knobs.words)
    head = {"id": f"cmpl-{said.seed[:29]}", "object": "text_completion", "created": said.created_s, "model": said.model}
    finish = "length" if said.truncated else "stop"
    if not body.get("stream"):
        choice = {"index": 0, "text": said.text, "logprobs": None, "finish_reason": finish}
        return Reply(body={**head, "choices": [choice], "usage": _chat_usage(said)})
    asked = _asks_usage(body)
    tail: Json = {"usage": None} if asked else {}

    def chunk(text: str, finish_reason: str | None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return _sse({**head, "choices": [choice], **tail})

    chunks = [chunk(word, None) for word in said.words]
    chunks.append(chunk("", finish))
    if asked:
        chunks.append(_sse({**head, "choices": [], "usage": _chat_usage(said)}))
    return Reply(chunks=(*chunks, DONE), error_event=_sse(OPENAI_ERROR_EVENT))


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
    said = answer(_model(body), prompt, body.get("max_output_tokens"), raw, knobs.words)
    item_id = f"msg_{said.seed[:48]}"
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": said.text}
    item: Json = {"id": item_id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    whole = _response_object(body, said, item)
    if not body.get("stream"):
        return Reply(body=whole)
    numbers = itertools.count()

    def event(kind: str, **facts: object) -> bytes:
        return _sse({"type": kind, "sequence_number": next(numbers), **facts}, event=kind)

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
    return Reply(chunks=tuple(chunks), error_event=_sse(failed, event="response.failed"))


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
    return Reply(body={"object": "list", "data": data, "model": _model(body), "usage": usage})


def _dimensions(asked: object) -> int:
    return asked if isinstance(asked, int) and 1 <= asked <= 4096 else EMBEDDING_DIMENSIONS


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    digest = hashlib.shake_256(text.encode()).digest(dimensions)
    raw = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(value * value for value in raw))
    return [round(value / length, 8) for value in raw]


# --- Anthropic ------------------------------------------------------------------------------------------------------


def anthropic_messages(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../messages; docs.anthropic.com/en/api/messages and messages-streaming."""
    if not isinstance(body.get("messages"), list):
        raise BadRequest("messages: Field required")
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens: Field required")
    said = answer(_model(body), _anthropic_prompt(body), body["max_tokens"], raw, knobs.words)
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
        return _sse({"type": kind, **facts}, event=kind)

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
    return Reply(chunks=tuple(chunks), error_event=_sse(failed, event="error"))


def anthropic_count_tokens(body: Json, raw: bytes, knobs: Knobs) -> Reply:
    """POST .../messages/count_tokens; the same number that a message would report."""
    said = answer(_model(body), _anthropic_prompt(body), None, raw, None)
    return Reply(body={"input_tokens": said.input_tokens})


def _anthropic_prompt(body: Json) -> list[object]:
    return [*([{"system": body["system"]}] if "system" in body else []), *(body.get("messages") or [])]


# --- Gemini ---------------------------------------------------------------------------------------------------------


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
    failed = _gemini_error(503, "sandbox failure")
    if as_sse:
        chunks = tuple(_sse(payload, newline=b"\r\n") for payload in payloads)
        return Reply(chunks=chunks, error_event=_sse(failed, newline=b"\r\n"))
    parts = [(b"[" if index == 0 else b",\r\n") + _dumps(payload) for index, payload in enumerate(payloads)]
    return Reply(
        chunks=(*parts, b"]\r\n"),
        error_event=b",\r\n" + _dumps(failed) + b"]\r\n",
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


# --- the three error shapes, and models -----------------------------------------------------------------------------


def _openai_error(status: int, message: str) -> Json:
    kind = {401: "invalid_request_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _anthropic_error(status: int, message: str) -> Json:
    names = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = names.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _gemini_error(status: int, message: str) -> Json:
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    name = names.get(status, "UNAVAILABLE" if status == 503 else "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
    return {"error": {"code": status, "message": message, "status": name}}


def _models(request: web.Request) -> Json:
    wanted = request.path.partition("/models/")[2]
    names = [wanted] if wanted else list(MODELS)
    entries: list[Json]
    if "v1beta" in request.path or "x-goog-api-key" in request.headers or "key" in request.query:
        methods = ["generateContent", "streamGenerateContent", "countTokens"]
        entries = [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in names]
        return entries[0] if wanted else {"models": entries}
    if "anthropic-version" in request.headers:
        made = "2026-01-01T00:00:00Z"
        entries = [{"type": "model", "id": name, "display_name": name, "created_at": made} for name in names]
        page = {"data": entries, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        return entries[0] if wanted else page
    entries = [{"id": name, "object": "model", "created": 1767225600, "owned_by": "sandbox"} for name in names]
    return entries[0] if wanted else {"object": "list", "data": entries}


# --- the server -----------------------------------------------------------------------------------------------------

Builder = Callable[[Json, bytes, Knobs], Reply]
ErrorShape = Callable[[int, str], Json]
BY_SUFFIX: tuple[tuple[str, Builder, ErrorShape], ...] = (
    ("/chat/completions", openai_chat, _openai_error),
    ("/completions", openai_completions, _openai_error),
    ("/responses", openai_responses, _openai_error),
    ("/embeddings", openai_embeddings, _openai_error),
    ("/messages/count_tokens", anthropic_count_tokens, _anthropic_error),
    ("/messages", anthropic_messages, _anthropic_error),
)


def build_app() -> web.Application:
    """The provider as an application; one catch-all route, since prefixes are the caller's business."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_route("*", "/{path:.*}", _handle)
    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxServer:
    """A listening sandbox. `base_url` is for `--provider NAME=BASE`; None when it listens on a Unix socket."""

    base_url: str | None
    port: int | None
    runner: web.AppRunner

    async def close(self) -> None:
        """Stop at once; calls in flight are cancelled."""
        await self.runner.cleanup()


async def serve(host: str = "127.0.0.1", port: int = 0, *, sock: socket.socket | None = None) -> SandboxServer:
    """Listen on host and port (0: any free one), or on a bound socket, and return; the caller closes it."""
    runner = web.AppRunner(build_app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.SockSite(runner, sock) if sock is not None else web.TCPSite(runner, host, port)
    await site.start()
    address = runner.addresses[0]
    if isinstance(address, tuple):
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        return SandboxServer(base_url=f"http://{shown}:{address[1]}", port=address[1], runner=runner)
    return SandboxServer(base_url=None, port=None, runner=runner)


async def _handle(request: web.Request) -> web.StreamResponse:
    path = request.path.rstrip("/")
    if request.method == "GET" and ("/models/" in path or path.endswith("/models")):
        return web.json_response(_models(request))
    builder, shape = _route(request, path)
    try:
        knobs = read_knobs(request)
        raw = await request.read()
        if knobs.status is None and path.endswith("/realtime") and request.headers.get("upgrade", "").lower() == "websocket":
            return await _realtime(request, knobs)
        if knobs.status is not None:
            headers = {"retry-after": "1"} if knobs.status in (429, 503) else {}
            failure = shape(knobs.status, "failure asked for by x-sandbox-fail")
            return web.json_response(failure, status=knobs.status, headers=headers)
        if builder is None or request.method != "POST":
            return web.json_response(shape(404, f"the sandbox has no {request.method} {path}"), status=404)
        reply = builder(_read_json(raw), raw, knobs)
    except BadRequest as error:
        return web.json_response(shape(400, str(error)), status=400)
    return await _send(request, reply, knobs, shape)


async def _realtime(request: web.Request, knobs: Knobs) -> web.StreamResponse:
    def answering(model: str, prompt: Sequence[str]) -> Answer:
        return answer(model, list(prompt), None, "\0".join(prompt).encode(), knobs.words)

    with suppress(ConnectionResetError):  # the client may leave when it likes
        return await realtime_session(request, answering, tokens, knobs.delay_s)
    return web.Response()


def _route(request: web.Request, path: str) -> tuple[Builder | None, ErrorShape]:
    before, colon, verb = path.rpartition(":")
    if colon and "/models/" in before:
        model = before.rpartition("/models/")[2]
        as_sse = request.query.get("alt") == "sse"
        verbs: dict[str, Builder] = {
            "generateContent": lambda body, raw, knobs: gemini_generate(body, raw, knobs, model),
            "streamGenerateContent": lambda body, raw, knobs: gemini_stream(body, raw, knobs, model, as_sse=as_sse),
            "countTokens": lambda body, raw, knobs: gemini_count_tokens(body, raw, knobs, model),
            "embedContent": lambda body, raw, knobs: gemini_embed(body, raw, knobs, model),
            "batchEmbedContents": lambda body, raw, knobs: gemini_embed(body, raw, knobs, model),
        }
        return verbs.get(verb), _gemini_error
    for suffix, builder, shape in BY_SUFFIX:
        if path.endswith(suffix):
            return builder, shape
    return None, _openai_error


def _read_json(raw: bytes) -> Json:
    try:
        body = json.loads(raw)
    except ValueError:
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def read_knobs(request: web.Request) -> Knobs:
    """The x-sandbox-* headers. Raises BadRequest with what is accepted."""
    delay_ms = _number(request, "x-sandbox-delay-ms", DELAY_MS_DEFAULT, DELAY_MS_MAX)
    words = _number(request, "x-sandbox-words", -1, WORDS_MAX)
    delay_s, words_wanted = delay_ms / 1000, words if words >= 0 else None
    wanted = request.headers.get("x-sandbox-fail", "").strip()
    if not wanted:
        return Knobs(delay_s=delay_s, words=words_wanted)
    kind, _, value = wanted.partition("=")
    if kind == "status" and value.isdecimal() and 400 <= int(value) <= 599:
        return Knobs(delay_s=delay_s, words=words_wanted, status=int(value))
    if kind == "cut-after" and value.isdecimal():
        return Knobs(delay_s=delay_s, words=words_wanted, cut_after=int(value))
    if wanted == "stall":
        return Knobs(delay_s=delay_s, words=words_wanted, stall=True)
    if wanted == "error-event":
        return Knobs(delay_s=delay_s, words=words_wanted, error_event=True)
    raise BadRequest("x-sandbox-fail must be status=400..599, cut-after=N, stall or error-event")


def _number(request: web.Request, name: str, default: int, largest: int) -> int:
    text = request.headers.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) > largest:
        raise BadRequest(f"{name} must be a whole number up to {largest}")
    return int(text)


async def _send(request: web.Request, reply: Reply, knobs: Knobs, shape: ErrorShape) -> web.StreamResponse:
    if reply.body is not None:
        return await _send_whole(request, reply.body, knobs, shape)
    response = web.StreamResponse(headers={"content-type": reply.content_type, "cache-control": "no-cache"})
    with suppress(ConnectionResetError):  # the client may leave when it likes
        await response.prepare(request)
        for index, chunk in enumerate(reply.chunks):
            if knobs.delay_s:
                await asyncio.sleep(knobs.delay_s)
            if knobs.cut_after == index:
                return _cut(request, response)
            if knobs.error_event and index == ERROR_EVENT_AFTER_CHUNKS:
                await response.write(reply.error_event)
                break
            await response.write(chunk)
            if knobs.stall:
                await asyncio.sleep(STALL_S)
        await response.write_eof()
    return response


async def _send_whole(request: web.Request, body: Json, knobs: Knobs, shape: ErrorShape) -> web.StreamResponse:
    if knobs.stall:
        await asyncio.sleep(STALL_S)
    if knobs.error_event:
        return web.json_response(shape(500, "failure asked for by x-sandbox-fail"), status=500)
    if knobs.cut_after is None:
        return web.json_response(body)
    encoded = _dumps(body)
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(encoded))})
    with suppress(ConnectionResetError):
        await response.prepare(request)
        await response.write(encoded[: len(encoded) // 2])
    return _cut(request, response)


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Drop the connection as a crashed provider would: no last chunk, no goodbye."""
    if request.transport is not None:
        request.transport.abort()
    return response


async def serve_until_stopped(descriptor: int) -> None:
    """The provider as a supervised child, until SIGTERM."""
    stopping = stop_event()
    server = await serve(sock=socket.socket(fileno=descriptor))
    await stopping.wait()
    await server.close()
