"""A provider for the SDK tests: the answers of Mistral, Cohere, Groq, Bedrock and ElevenLabs, with usage that is known.

Only the provider's own paths and keys are answered, so an answer proves where the gateway sent the call and with which
credential. A model (or voice) `status-429` is refused with that status in the vendor's own shape; `flaky-<name>` refuses
the first call with 503 and answers the second. Shapes: the vendors' API references and recorded responses.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit
from zlib import crc32

Json = dict[str, Any]

INPUT_TOKENS = 1_234
OUTPUT_TOKENS = 567
CACHED_TOKENS = 200
CACHE_WRITE_TOKENS = 300
"""Cached and written tokens only where the API reports them; they are part of INPUT_TOKENS."""

WORDS = ("Grüße ", "from ", "the ", "provider", ".")
TEXT = "".join(WORDS)
SPEECH = bytes(range(256)) * 40
KEYS = {
    "mistral": "mistral-key-of-the-operator",
    "cohere": "cohere-key-of-the-operator",
    "groq": "groq-key-of-the-operator",
    "bedrock": "bedrock-key-of-the-operator",
    "elevenlabs": "elevenlabs-key-of-the-operator",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as the provider saw it."""

    provider: str
    path: str
    headers: dict[str, str]
    body: Json
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One body, or the pieces of a stream."""

    content_type: str = "application/json"
    body: bytes = b""
    pieces: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


def _json(body: Json, **headers: str) -> Reply:
    return Reply(body=json.dumps(body).encode(), headers={name.replace("_", "-"): value for name, value in headers.items()})


def _sse(events: list[Json | str], *, named: bool = False) -> Reply:
    pieces = []
    for event in events:
        head = f"event: {event['type']}\n" if named and isinstance(event, dict) else ""
        pieces.append(f"{head}data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
    return Reply(content_type="text/event-stream", pieces=tuple(pieces))


# --- Mistral and Groq -----------------------------------------------------------------------------------------------


def _chat_usage(**more: Any) -> Json:
    return {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        **more,
    }


def _chat(call: Call, usage: Json, last_chunk: Json) -> Reply:
    head = {"id": "0a1b2c3d", "created": 1_790_000_000, "model": call.body["model"]}
    if not call.body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return _json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def chunk(delta: Json, finish_reason: str | None = None, **more: Any) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**head, "object": "chat.completion.chunk", "choices": [choice], **more}

    words: list[Json | str] = [chunk({"content": word}) for word in WORDS]
    return _sse([chunk({"role": "assistant", "content": ""}), *words, chunk({}, "stop", **last_chunk), "[DONE]"])


def _mistral(call: Call) -> Reply:
    if "stream_options" in call.body:  # as Mistral does
        return _refusal(call.provider, 422)
    usage = _chat_usage(prompt_tokens_details={"cached_tokens": CACHED_TOKENS})
    return _chat(call, usage, {"usage": usage})


def _groq(call: Call) -> Reply:
    usage = _chat_usage(queue_time=1, prompt_time=2, completion_time=3, total_time=5)
    return _chat(call, usage, {"x_groq": {"id": "req_0a1b2c3d", "usage": usage}})


# --- Cohere ---------------------------------------------------------------------------------------------------------

BILLED: Json = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
TEMPLATED: Json = {"input_tokens": INPUT_TOKENS + 500, "output_tokens": OUTPUT_TOKENS + 2}


def _cohere_v1(call: Call) -> Reply:
    meta = {"api_version": {"version": "1"}, "billed_units": BILLED, "tokens": TEMPLATED}
    whole = {
        "response_id": "r-1", "text": TEXT, "generation_id": "g-1", "chat_history": [], "finish_reason": "COMPLETE", "meta": meta,
    }  # fmt: skip
    if not call.body.get("stream"):
        return _json(whole)
    events: list[Json] = [{"is_finished": False, "event_type": "stream-start", "generation_id": "g-1"}]
    events += [{"is_finished": False, "event_type": "text-generation", "text": word} for word in WORDS]
    events.append({"is_finished": True, "event_type": "stream-end", "response": whole, "finish_reason": "COMPLETE"})
    pieces = tuple(json.dumps(event).encode() + b"\n" for event in events)
    return Reply(content_type="application/stream+json", pieces=pieces)


def _cohere_v2(call: Call) -> Reply:
    usage = {"billed_units": BILLED, "tokens": TEMPLATED, "cached_tokens": 448}
    if not call.body.get("stream"):
        message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
        return _json({"id": "c-1", "message": message, "finish_reason": "COMPLETE", "usage": usage})
    start = {"message": {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}}
    opened = {"message": {"content": {"type": "text", "text": ""}}}
    return _sse(
        [
            {"id": "c-1", "type": "message-start", "delta": start},
            {"type": "content-start", "index": 0, "delta": opened},
            *({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": word}}}} for word in WORDS),
            {"type": "content-end", "index": 0},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}},
            "[DONE]",
        ],
        named=True,
    )


def _cohere_rerank(call: Call) -> Reply:
    results = [{"index": index, "relevance_score": 0.5} for index in range(len(call.body["documents"]))]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 3}}
    return _json({"id": "k-1", "results": results, "meta": meta})


# --- Bedrock --------------------------------------------------------------------------------------------------------


def _frame(event_type: str, payload: Json) -> bytes:
    """A frame of AWS' event stream: https://smithy.io/2.0/aws/amazon-eventstream.html."""
    head = b""
    for name, value in ((":event-type", event_type), (":content-type", "application/json"), (":message-type", "event")):
        head += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", len(head) + len(body) + 16, len(head))
    message = prelude + struct.pack(">I", crc32(prelude)) + head + body
    return message + struct.pack(">I", crc32(message))


def _frames(*events: tuple[str, Json]) -> Reply:
    return Reply(content_type="application/vnd.amazon.eventstream", pieces=tuple(_frame(kind, payload) for kind, payload in events))


CONVERSE_USAGE: Json = {  # the input here excludes the cache
    "inputTokens": INPUT_TOKENS - CACHED_TOKENS,
    "outputTokens": OUTPUT_TOKENS,
    "totalTokens": INPUT_TOKENS + OUTPUT_TOKENS,
    "cacheReadInputTokens": CACHED_TOKENS,
    "cacheWriteInputTokens": 0,
}


def _converse(call: Call) -> Reply:
    message = {"role": "assistant", "content": [{"text": TEXT}]}
    return _json({"output": {"message": message}, "stopReason": "end_turn", "usage": CONVERSE_USAGE, "metrics": {"latencyMs": 9}})


def _converse_stream(call: Call) -> Reply:
    return _frames(
        ("messageStart", {"role": "assistant"}),
        *(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}) for word in WORDS),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": CONVERSE_USAGE, "metrics": {"latencyMs": 9}}),
    )


_MESSAGES_INPUT: Json = {
    "input_tokens": INPUT_TOKENS - CACHED_TOKENS - CACHE_WRITE_TOKENS,
    "cache_read_input_tokens": CACHED_TOKENS,
    "cache_creation_input_tokens": CACHE_WRITE_TOKENS,
    "cache_creation": {"ephemeral_5m_input_tokens": CACHE_WRITE_TOKENS, "ephemeral_1h_input_tokens": 0},
}


def _message(content: list[Json], stop_reason: str | None, output_tokens: int) -> Json:
    return {
        "id": "msg_bdrk_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001", "content": content,
        "stop_reason": stop_reason, "stop_sequence": None, "usage": {**_MESSAGES_INPUT, "output_tokens": output_tokens},
    }  # fmt: skip


def _invoke(call: Call) -> Reply:
    return _json(_message([{"type": "text", "text": TEXT}], "end_turn", OUTPUT_TOKENS))


def _invoke_stream(call: Call) -> Reply:
    metrics = {"inputTokenCount": 1, "outputTokenCount": 1, "invocationLatency": 9, "firstByteLatency": 3}
    events: list[Json] = [
        {"type": "message_start", "message": _message([], None, 1)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in WORDS),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT_TOKENS}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics},
    ]
    encoded = (_base64_json(event) for event in events)
    return _frames(*(("chunk", {"bytes": text}) for text in encoded))


def _base64_json(event: Json) -> str:
    return b64encode(json.dumps(event).encode()).decode()


# --- ElevenLabs -----------------------------------------------------------------------------------------------------


def _speech(call: Call) -> Reply:
    cost = {"character-cost": str(len(call.body["text"]))}
    if call.path.endswith("/stream"):
        pieces = tuple(SPEECH[start : start + 1024] for start in range(0, len(SPEECH), 1024))
        return Reply(content_type="audio/mpeg", pieces=pieces, headers=cost)
    return Reply(content_type="audio/mpeg", body=SPEECH, headers=cost)


# --- errors, routes, the server -------------------------------------------------------------------------------------

_AWS_ERRORS = {401: "UnrecognizedClientException", 422: "ValidationException", 429: "ThrottlingException",
               503: "ServiceUnavailableException"}  # fmt: skip


def _refusal(provider: str, status: int) -> Reply:
    """An error in the provider's own shape."""
    message = f"{provider} says {status}"
    headers: dict[str, str] = {}
    body: Json
    if provider == "bedrock":
        headers["x-amzn-errortype"] = _AWS_ERRORS[status] + ":http://internal.amazon.com/coral/com.amazon.bedrock/"
        body = {"message": message}
    elif provider == "cohere":
        body = {"id": "e-1", "message": message}
    elif provider == "elevenlabs":
        body = {"detail": {"status": "refused", "message": message}}
    elif provider == "mistral":
        body = {"object": "error", "message": message, "type": "refused", "param": None, "code": "1300"}
    else:
        body = {"error": {"message": message, "type": "refused", "code": "refused"}}
    return Reply(status=status, body=json.dumps(body).encode(), headers=headers)


_ROUTES: tuple[tuple[str, str, Callable[[Call], Reply]], ...] = (
    ("mistral", r"/v1/chat/completions", _mistral),
    ("groq", r"/openai/v1/chat/completions", _groq),
    ("cohere", r"/v1/chat", _cohere_v1),
    ("cohere", r"/v2/chat", _cohere_v2),
    ("cohere", r"/v2/rerank", _cohere_rerank),
    ("bedrock", r"/model/(?P<model>[^/]+)/converse", _converse),
    ("bedrock", r"/model/(?P<model>[^/]+)/converse-stream", _converse_stream),
    ("bedrock", r"/model/(?P<model>[^/]+)/invoke", _invoke),
    ("bedrock", r"/model/(?P<model>[^/]+)/invoke-with-response-stream", _invoke_stream),
    ("elevenlabs", r"/v1/text-to-speech/(?P<model>[^/]+)(?:/stream)?", _speech),
)


class SdkProvider:
    """The server: `overrides()` for the daemon's command line, `calls` for what has arrived."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._refused: set[str] = set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 0  # every piece of a stream at once
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                provider._answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Silent: stderr belongs to the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def overrides(self) -> list[str]:
        """`--provider NAME=URL` for every provider; the path's first segment tells them apart."""
        port = self._server.server_address[1]
        return [part for name in KEYS for part in ("--provider", f"{name}=http://127.0.0.1:{port}/{name}")]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        _, provider, rest = urlsplit(handler.path).path.split("/", 2)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        call = Call(provider=provider, path="/" + rest, headers=headers, body=json.loads(raw), raw=raw)
        self.calls.append(call)
        _send(handler, self._reply(call))

    def _reply(self, call: Call) -> Reply:
        sent = call.headers.get("xi-api-key" if call.provider == "elevenlabs" else "authorization", "").removeprefix("Bearer ")
        if sent != KEYS[call.provider]:
            return _refusal(call.provider, 401)
        for provider, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, call.path)
            if provider != call.provider or match is None:
                continue
            model = unquote(match.groupdict().get("model") or call.body["model"])
            if model.startswith("status-"):
                return _refusal(provider, int(model.removeprefix("status-")))
            if model.startswith("flaky-") and model not in self._refused:
                self._refused.add(model)
                return _refusal(provider, 503)
            return answer(call)
        return _refusal(call.provider, 422)

    @contextlib.contextmanager
    def serving(self) -> Iterator[SdkProvider]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status)
    handler.send_header("content-type", reply.content_type)
    for name, value in reply.headers.items():
        handler.send_header(name, value)
    if not reply.pieces:
        handler.send_header("content-length", str(len(reply.body)))
        handler.end_headers()
        handler.wfile.write(reply.body)
        return
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    for piece in reply.pieces:
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")
