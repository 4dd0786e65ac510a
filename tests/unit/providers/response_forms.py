"""One response in every form in which the same bytes of meaning can travel: framings, line ends, comments, codings."""

from __future__ import annotations

import gzip
import json
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import brotli
import zstandard

from lava_proxy.wire.aws_event_stream import encode_frame

Event = dict[str, Any] | str
"""A stream's event: JSON, or the text of its data (`[DONE]`)."""

Framing = Literal["document", "sse", "lines", "array", "frames", "chunks"]

CONTENT_TYPES: dict[Framing, str] = {
    "document": "application/json",
    "sse": "text/event-stream; charset=utf-8",
    "lines": "application/x-ndjson",
    "array": "application/json; charset=UTF-8",
    "frames": "application/vnd.amazon.eventstream",
    "chunks": "application/vnd.amazon.eventstream",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's body: `events` are JSON values in their order; a document has one. `named`: with `event:` lines, from `type`."""

    framing: Framing
    events: tuple[Event, ...]
    named: bool = False

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.framing]

    def body(self) -> bytes:
        """As most servers write it."""
        return self.written(list(self.events))

    def written(self, events: list[Event], dump: Callable[[Event], bytes] | None = None) -> bytes:
        texts = [(dump or compact)(event) for event in events]
        if self.framing == "document":
            return texts[0]
        if self.framing == "array":
            return b"[" + b",\r\n".join(texts) + b"]"
        if self.framing == "lines":
            return b"".join(text + b"\n" for text in texts)
        if self.framing == "sse":
            return b"".join(self._named(event) + b"data: " + text + b"\n\n" for event, text in zip(events, texts, strict=True))
        return b"".join(self._frame(event, text) for event, text in zip(events, texts, strict=True))

    def forms(self) -> Iterator[tuple[str, bytes]]:
        """(how, the same answer): spaced, with its keys the other way round, and what SSE allows besides."""
        plain = self.body()
        yield "spaced", self.written(list(self.events), spaced)
        yield "keys reversed", self.written(list(self.events), reversed_keys)
        yield "unknown fields", self.written([with_unknown(event) for event in self.events])
        if self.framing in ("document", "array", "sse"):
            yield "bom", b"\xef\xbb\xbf" + plain
        if self.framing == "document":
            yield "indented", json.dumps(self.events[0], indent=2).encode()
            yield "kept alive", b"\n\n   \r\n" + plain + b"\n"
        if self.framing == "lines":
            yield "without the last line end", plain[:-1]
            yield "crlf", plain.replace(b"\n", b"\r\n")
        if self.framing == "sse":
            yield "crlf", plain.replace(b"\n", b"\r\n")
            yield "cr", plain.replace(b"\n", b"\r")
            yield "comments", b": hello\n\n" + plain.replace(b"\n\n", b"\n\n: keep-alive\n\n\n")
            yield "ids", plain.replace(b"data: ", b"id: 7\nretry: 3000\ndata: ")
            yield "no blank after the colon", plain.replace(b"data: ", b"data:").replace(b"event: ", b"event:")
            yield "without the last blank line", plain[:-2]
            yield "many lines", self.written(list(self.events), lines_of_data)
            yield (
                "unknown events",
                b'event: thing.new\ndata: {"type":"thing.new","n":1}\n\n'
                + plain.replace(b"\n\n", b'\n\nevent: thing.new\ndata: {"type":"thing.new","n":1}\n\n', 2),
            )

    def _named(self, event: Event) -> bytes:
        kind = event.get("type") or event.get("event_type") if isinstance(event, dict) else None
        return f"event: {kind}\n".encode() if self.named and kind else b""

    def _frame(self, event: Event, text: bytes) -> bytes:
        if self.framing == "chunks":
            payload = b'{"bytes":"' + b64encode(text) + b'","p":"abcdef"}'
            return encode_frame({":event-type": "chunk", ":message-type": "event"}, payload)
        return encode_frame({":event-type": "event", ":message-type": "event"}, text)


def document(event: dict[str, Any]) -> Answer:
    return Answer("document", (event,))


def sse(*events: Event, named: bool = False, done: bool = False) -> Answer:
    return Answer("sse", (*events, *(("[DONE]",) if done else ())), named)


def lines(*events: Event) -> Answer:
    return Answer("lines", events)


def array(*events: Event) -> Answer:
    return Answer("array", events)


def frames(*events: Event) -> Answer:
    return Answer("frames", events)


def chunks(*events: Event) -> Answer:
    return Answer("chunks", events)


def compact(event: Event) -> bytes:
    return event.encode() if isinstance(event, str) else json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def spaced(event: Event) -> bytes:
    return event.encode() if isinstance(event, str) else json.dumps(event, separators=(" , ", " : ")).encode()


def lines_of_data(event: Event) -> bytes:
    """Pretty JSON as several `data:` lines."""
    if isinstance(event, str):
        return event.encode()
    return json.dumps(event, indent=1).replace("\n", "\ndata: ").encode()


def reversed_keys(event: Event) -> bytes:
    return event.encode() if isinstance(event, str) else compact(_reversed(event))


def with_unknown(event: Event) -> Event:
    """With members that no documentation names, at the top and in every object within."""
    return event if isinstance(event, str) else _with_unknown(event)


def coded(body: bytes) -> Iterator[tuple[str, bytes]]:
    """(content coding, encoded): whole, and flushed every few hundred bytes as servers do with each event."""
    yield "gzip", gzip.compress(body)
    yield "deflate", zlib.compress(body)
    yield "br", brotli.compress(body, quality=1)
    yield "zstd", zstandard.ZstdCompressor().compress(body)
    pieces = [body[start : start + 200] for start in range(0, len(body), 200)]
    flushing = zlib.compressobj(6, zlib.DEFLATED, 31)
    yield "gzip", b"".join(flushing.compress(piece) + flushing.flush(zlib.Z_SYNC_FLUSH) for piece in pieces) + flushing.flush()
    yield "gzip", b"".join(gzip.compress(piece, 1) for piece in pieces)
    yield "zstd", b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces)
    yield "gzip, br", brotli.compress(gzip.compress(body), quality=1)


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


def _with_unknown(value: Any) -> Any:
    if isinstance(value, dict):
        known = {key: _with_unknown(item) for key, item in value.items()}
        return {"x_new": {"y": [1, None, "z"]}, **known, "x_note": 'usage: {"total_tokens": 5}'}
    return [_with_unknown(item) for item in value] if isinstance(value, list) else value
