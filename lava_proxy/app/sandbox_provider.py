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

Read `sandbox_answers.answer` first, then one family (`sandbox_openai`, ...), then `_send` here. The shapes are those of the
vendors' API references and are held to by their official SDKs in the tests.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from lava_proxy.app.process import stop_event
from lava_proxy.app.sandbox_answers import DELAY_MS_DEFAULT, Answer, BadRequest, Json, Knobs, Reply, answer, dumps, tokens
from lava_proxy.app.sandbox_anthropic import anthropic_count_tokens, anthropic_error, anthropic_messages
from lava_proxy.app.sandbox_gemini import gemini_count_tokens, gemini_embed, gemini_error, gemini_generate, gemini_stream
from lava_proxy.app.sandbox_openai import openai_chat, openai_completions, openai_embeddings, openai_error, openai_responses
from lava_proxy.app.sandbox_realtime import realtime_session

DELAY_MS_MAX = 10_000
WORDS_MAX = 100_000
BODY_BYTES_MAX = 64 * 1024 * 1024
STALL_S = 3600
ERROR_EVENT_AFTER_CHUNKS = 3
MODELS = ("gpt-4o-mini", "gpt-4.1", "claude-sonnet-4-6", "claude-haiku-4-5", "gemini-2.5-flash", "gemini-2.5-pro")

Builder = Callable[[Json, bytes, Knobs], Reply]
ErrorShape = Callable[[int, str], Json]
BY_SUFFIX: tuple[tuple[str, Builder, ErrorShape], ...] = (
    ("/chat/completions", openai_chat, openai_error),
    ("/completions", openai_completions, openai_error),
    ("/responses", openai_responses, openai_error),
    ("/embeddings", openai_embeddings, openai_error),
    ("/messages/count_tokens", anthropic_count_tokens, anthropic_error),
    ("/messages", anthropic_messages, anthropic_error),
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
        return verbs.get(verb), gemini_error
    for suffix, builder, shape in BY_SUFFIX:
        if path.endswith(suffix):
            return builder, shape
    return None, openai_error


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
    encoded = dumps(body)
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
