"""Both ends of the gateway as the tests play them: a provider that does what it is told, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Headers = list[tuple[bytes, bytes]]

PATIENCE_S = 10  # how long a test waits for what must happen at once


def _reset(transport: asyncio.BaseTransport) -> None:
    """Close with a RST, unless it is closed already."""
    if transport.is_closing():
        return
    plain: socket.socket = transport.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()  # type: ignore[attr-defined]


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    return next((value for key, value in headers if key.lower() == name), None)


def parse_head(head: bytes) -> tuple[bytes, Headers]:
    """(first line, headers) of a head without its blank line."""
    first, *lines = head.split(b"\r\n")
    pairs = [line.split(b":", 1) for line in lines if line]
    return first, [(name, value.strip()) for name, value in pairs]


class Call:
    """One request as the provider received it, and the means to answer it."""

    def __init__(self, side: ProviderSide, head: bytes, body: bytes) -> None:
        self.side = side
        self.head = head
        self.body = body
        first, self.headers = parse_head(head)
        self.method, self.target = first.decode("latin-1").split(" ")[:2]

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: bytes) -> bytes | None:
        return header(self.headers, name)

    def write(self, data: bytes) -> None:
        assert self.side.transport is not None
        self.side.transport.write(data)

    def begin(self, status: int = 200, headers: Headers | None = None, reason: bytes = b"OK") -> None:
        """The head of a chunked answer; an event stream unless told otherwise."""
        lines = headers if headers is not None else [(b"content-type", b"text/event-stream")]
        self.write(
            b"HTTP/1.1 %d %b\r\n" % (status, reason)
            + b"".join(name + b": " + value + b"\r\n" for name, value in lines)
            + b"transfer-encoding: chunked\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        self.write(b"%x\r\n" % len(data) + data + b"\r\n")

    def end(self, trailers: bytes = b"") -> None:
        self.write(b"0\r\n" + trailers + b"\r\n")

    def answer(self, body: bytes, status: int = 200, headers: Headers | None = None, reason: bytes = b"OK") -> None:
        """A whole answer with a length."""
        lines = headers if headers is not None else [(b"content-type", b"application/json")]
        self.write(
            b"HTTP/1.1 %d %b\r\n" % (status, reason)
            + b"".join(name + b": " + value + b"\r\n" for name, value in lines)
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )

    def stream(self, events: list[bytes]) -> None:
        """A whole event stream, one chunk an event."""
        self.begin()
        for event in events:
            self.chunk(event)
        self.end()

    def reset(self) -> None:
        assert self.side.transport is not None
        _reset(self.side.transport)

    def close(self) -> None:
        assert self.side.transport is not None
        self.side.transport.close()

    async def gone(self) -> None:
        """Until the gateway has closed this connection."""
        await asyncio.wait_for(self.side.gone.wait(), PATIENCE_S)


class ProviderSide(asyncio.Protocol):
    """One connection that the gateway made."""

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self.transport: asyncio.Transport | None = None
        self.gone = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.received_bytes = 0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._provider.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.gone.set()
        self.writable.set()
        self._provider.lost(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            length = int(header(parse_head(head)[1], b"content-length") or 0)
            if self._provider.answers_at_head:
                assert self.transport is not None
                self.transport.pause_reading()
            elif len(rest) < length:
                return
            self._buffer = rest[length:]
            self._provider.called(Call(self, head, rest[:length]))


class FakeProvider:
    """Listens on loopback. `answer` is called for each request; without it, the test takes them from `next_call`."""

    def __init__(self) -> None:
        self.answer: Callable[[Call], None] | None = None
        self.answers_at_head = False
        self.calls: list[Call] = []
        self.sides: set[ProviderSide] = set()
        self.connections_made = 0
        self.port = 0
        self._waiting: asyncio.Queue[Call] = asyncio.Queue()
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: asyncio.Server | None = None

    async def start(self, unix: str | None = None) -> None:
        loop = asyncio.get_running_loop()
        if unix is not None:
            self._server = await loop.create_unix_server(lambda: ProviderSide(self), unix)
        else:
            self._server = await loop.create_server(lambda: ProviderSide(self), "127.0.0.1", 0, backlog=4096)
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for side in list(self.sides):
            if side.transport is not None:
                side.transport.abort()
        await self.nobody()

    def connected(self, side: ProviderSide) -> None:
        self.connections_made += 1
        self.sides.add(side)
        self._empty.clear()

    def lost(self, side: ProviderSide) -> None:
        self.sides.discard(side)
        if not self.sides:
            self._empty.set()

    def called(self, call: Call) -> None:
        self.calls.append(call)
        if self.answer is not None:
            self.answer(call)
        else:
            self._waiting.put_nowait(call)

    async def next_call(self) -> Call:
        return await asyncio.wait_for(self._waiting.get(), PATIENCE_S)

    async def nobody(self) -> None:
        """Until the gateway holds no connection any more."""
        await asyncio.wait_for(self._empty.wait(), PATIENCE_S)


class Response:
    """What a client saw. `complete` is False when the connection ended before the framing did."""

    def __init__(self, head: bytes) -> None:
        first, self.headers = parse_head(head)
        self.status = int(first.split(b" ")[1])
        self.version = first.split(b" ")[0]
        self.reason = first.split(b" ", 2)[2]
        self.body = b""
        self.chunks: list[bytes] = []
        self.complete = False
        self.interim: list[int] = []
        self.raw_head = head

    def header(self, name: bytes) -> bytes | None:
        return header(self.headers, name)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> str:
        """The code of an error of ours, wherever the dialect puts it."""
        error = self.json()["error"]
        return str(error["details"][0]["reason"] if "details" in error else error.get("code"))


class Client:
    """A raw client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        _reset(self.writer.transport)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def head(self) -> Response:
        """The next final response's head; interim ones are noted on it."""
        interim = []
        while True:
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            response = Response(head[:-4])
            if response.status >= 200:
                response.interim = interim
                return response
            interim.append(response.status)

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; b"" for the last one. Raises IncompleteReadError or ConnectionError when cut."""
        size = int((await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S))[:-2], 16)
        if size == 0:
            while await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S) != b"\r\n":
                pass
            return b""
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE_S))[:-2]

    async def response(self, method: str = "POST") -> Response:
        """A whole response, or as much of it as came."""
        response = await self.head()
        try:
            if method == "HEAD" or response.status in (204, 304):
                pass
            elif response.header(b"transfer-encoding") == b"chunked":
                while data := await self.chunk():
                    response.chunks.append(data)
                    response.body += data
            elif (length := response.header(b"content-length")) is not None:
                response.body = await asyncio.wait_for(self.reader.readexactly(int(length)), PATIENCE_S)
            else:
                response.body = await asyncio.wait_for(self.reader.read(), PATIENCE_S)
            response.complete = True
        except asyncio.IncompleteReadError as error:
            response.body += error.partial
        except ConnectionError:
            pass
        return response

    async def closed(self) -> bytes:
        """What still comes until the gateway closes the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""


def event(payload: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chat_events(
    words: int = 4, *, prompt_tokens: int = 10, completion_tokens: int = 5, usage: bool = True, word: str = "word "
) -> list[bytes]:
    """An OpenAI chat stream: `words` deltas, the finish, the usage chunk (as `include_usage` asks for) and [DONE]."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini-2024-07-18"}
    events = [event({**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})]
    events += [event({**base, "choices": [{"index": 0, "delta": {"content": word}}]}) for _ in range(words)]
    events.append(event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    if usage:
        events.append(usage_event(prompt_tokens, completion_tokens))
    return [*events, DONE]


def usage_event(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The chunk that include_usage adds."""
    return event(
        {
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini-2024-07-18", "choices": [],
            "usage": _usage(prompt_tokens, completion_tokens),
        }
    )  # fmt: skip


def chat_body(prompt_tokens: int = 10, completion_tokens: int = 5, text: str = "Hello.") -> bytes:
    """An OpenAI chat answer that is not streamed."""
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": _usage(prompt_tokens, completion_tokens),
        }
    ).encode()


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def google_events(chunks: int = 3, *, prompt_tokens: int = 10, completion_tokens: int = 6) -> list[bytes]:
    """A Gemini stream: the usage is cumulative and on every chunk, the last one also finishes."""
    events = []
    for number in range(1, chunks + 1):
        candidate: dict[str, Any] = {"content": {"parts": [{"text": "word "}], "role": "model"}, "index": 0}
        if number == chunks:
            candidate["finishReason"] = "STOP"
        output = completion_tokens * number // chunks
        counts = {"promptTokenCount": prompt_tokens, "candidatesTokenCount": output, "totalTokenCount": prompt_tokens + output}
        events.append(event({"candidates": [candidate], "usageMetadata": counts, "modelVersion": "gemini-2.0-flash"}))
    return [line.replace(b"\n\n", b"\r\n\r\n") for line in events]
