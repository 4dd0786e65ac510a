"""Meters over response bodies: decode, find out the framing, hand the parts that matter to a family's reader.

The framing is read from the first byte before Content-Type: an error may come as JSON though a stream was asked for, and
streams come under many types. `{` starts a document, or, where the type says so, JSON lines; `[` an array of elements; a
zero byte is the length of a binary frame (none is 16 MB long); anything else is an event stream (none of its field names
starts so).
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable

from lava_proxy.domain.usage import Provenance, Reading, Usage
from lava_proxy.providers.usage_reader import UsageReader, text_bytes
from lava_proxy.wire import json_scan
from lava_proxy.wire.aws_event_stream import EVENT_MARK, Frame, FrameBuffer
from lava_proxy.wire.content_coding import decoder
from lava_proxy.wire.json_stream import ArrayElements, LineBuffer, split_lines
from lava_proxy.wire.sse import EventBuffer, parse_event, split_events

DOCUMENT_BYTES_MAX = 1 << 20
"""A JSON body is kept whole up to this size (a chat answer is some kB); of a larger one (embeddings) only windows."""

DOCUMENT_HEAD_BYTES = 16 << 10
DOCUMENT_TAIL_BYTES = 64 << 10

OPENING_EVENTS_MAX = 8
"""Model and id stand in the first events (Azure's first one names neither); after these many nobody looks for them."""

_BLANK = b" \t\r\n\xef\xbb\xbf"


_LINE_TYPES = ("ndjson", "stream+json", "jsonl", "json-lines")

_PLAIN_TYPES = ("text/plain", "text/vtt", "text/srt", "application/x-subrip")

_Look = tuple[UsageReader, int, bytes]
"""A reader that has been told what is known, the bytes of generated text, and the beginning of that text."""

_CHUNK_MARK = b":event-type\x07\x00\x05chunk"
_BYTES_START = b'{"bytes":"'
_BYTES = re.compile(rb'"bytes"\s*:\s*"([^"]*)"')


class FixedMeter:
    """Does not look at the body: error statuses, free endpoints, opaque bytes."""

    __slots__ = ("_reading",)

    def __init__(self, usage: Usage | None = None, provenance: Provenance = Provenance.NONE, *, terminal: bool = False) -> None:
        self._reading = Reading(usage=usage, provenance=provenance, terminal=terminal)

    def feed(self, data: bytes) -> None:
        return None

    def reading(self) -> Reading:
        return self._reading


class BodyMeter:
    """Reads one response body through a family's reader."""

    __slots__ = ("_content_type", "_decoder", "_framing", "_reader")

    def __init__(self, reader: UsageReader, content_encoding: str = "", content_type: str = "") -> None:
        self._reader = reader
        self._decoder = decoder(content_encoding)
        self._content_type = content_type
        self._framing: _Framing | None = None

    def feed(self, data: bytes) -> None:
        if self._decoder is not None:
            data = self._decoder.decode(data)
        framing = self._framing
        if framing is None:
            data = data.lstrip(_BLANK)
            if not data:
                return
            framing = self._framing = _framing_of(data[0], self._content_type.lower(), self._reader)
        framing.feed(data)

    def reading(self) -> Reading:
        if self._framing is None:
            return self._reader.reading(0)
        reader, output_text_bytes, sample = self._framing.look()
        return reader.reading(output_text_bytes, sample)


def _framing_of(first: int, content_type: str, reader: UsageReader) -> _Framing:
    if first == 0x7B:
        is_lines = any(name in content_type for name in _LINE_TYPES)
        return _Events(reader, LineBuffer(), split_lines, _line) if is_lines else _Document(reader)
    if reader.is_plain_text and content_type.startswith(_PLAIN_TYPES):
        return _PlainText(reader)
    if first == 0x5B:
        return _Array(reader)
    if first == 0:
        return _Frames(reader)
    return _Events(reader, EventBuffer(), split_events, parse_event)


def _line(line: bytes) -> tuple[str, bytes]:
    return "", line.strip()


class _Events:
    """An event stream or JSON lines. The usual block is only searched, not split: about a microsecond an event."""

    __slots__ = ("_buffer", "_opening", "_parse", "_reader", "_sample", "_split", "_text_bytes")

    def __init__(
        self,
        reader: UsageReader,
        buffer: EventBuffer,
        split: Callable[[bytes], list[bytes]],
        parse: Callable[[bytes], tuple[str, bytes]],
    ) -> None:
        self._reader = reader
        self._buffer = buffer
        self._split = split
        self._parse = parse
        self._sample = bytearray()
        self._text_bytes = 0
        self._opening = OPENING_EVENTS_MAX

    def feed(self, data: bytes) -> None:
        block = self._buffer.feed(data)
        if block:
            self._text_bytes += self._read(block)

    def look(self) -> _Look:
        """What is known so far."""
        block = self._buffer.take()
        if block:
            self._text_bytes += self._read(block)
        self._reader.settle()
        rest = self._buffer.rest
        if not rest:
            return self._reader, self._text_bytes, bytes(self._sample)
        # The unfinished event is looked at, not consumed: it may be the last one of a body without a final blank line.
        reader, opening, sampled = self._reader, self._opening, len(self._sample)
        self._reader = reader.copied()
        unfinished = self._read(rest)
        self._reader.settle()
        seen, self._reader, self._opening = self._reader, reader, opening
        sample = bytes(self._sample)
        del self._sample[sampled:]
        return seen, self._text_bytes + unfinished, sample

    def _read(self, block: bytes) -> int:
        """Tell the reader what it must know; the bytes of generated text in the block."""
        reader = self._reader
        if (reader.model is not None or self._opening <= 0) and not reader.concerns(block):
            return text_bytes(reader.text, block, self._sample)
        if reader.wants_the_last_only(block):
            for event in reversed(self._split(block)):
                if reader.concerns(event):
                    reader.event(*self._parse(event))
                    break
            return text_bytes(reader.text, block, self._sample)
        total = 0
        for event in self._split(block):
            total += self._read_event(event)
        return total

    def _read_event(self, event: bytes) -> int:
        reader = self._reader
        is_opening = reader.model is None and self._opening > 0
        if not event or not (is_opening or reader.concerns(event)):
            return text_bytes(reader.text, event, self._sample)
        name, data = self._parse(event)
        if not data and not name:
            return 0
        if is_opening:
            self._opening -= 1
        return text_bytes(reader.text, data, self._sample) if reader.event(name, data) else 0


class _Frames:
    """AWS' binary frames. What a `chunk` frame carries is the model's own event, in base64."""

    __slots__ = ("_buffer", "_opening", "_reader", "_sample", "_text_bytes")

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader
        self._buffer = FrameBuffer()
        self._sample = bytearray()
        self._text_bytes = 0
        self._opening = OPENING_EVENTS_MAX

    def feed(self, data: bytes) -> None:
        frames = self._buffer.feed(data)
        if frames:
            self._read(frames)

    def look(self) -> _Look:
        """What is known so far."""
        self._read(self._buffer.take())
        self._reader.settle()
        return self._reader, self._text_bytes, bytes(self._sample)

    def _read(self, frames: list[Frame]) -> None:
        reader = self._reader
        payloads = [_payload(frame) for frame in frames if EVENT_MARK in frame.raw_headers or frame.is_event]
        if len(payloads) < len(frames):
            reader.error = True
        block = b"\n".join(payloads)
        if (reader.model is None and self._opening > 0) or reader.concerns(block):
            block = b"\n".join([payload for payload in payloads if self._is_text(payload)])
        self._text_bytes += text_bytes(reader.text, block, self._sample)

    def _is_text(self, payload: bytes) -> bool:
        """Show the reader one event; is it generated text?"""
        reader = self._reader
        is_opening = reader.model is None and self._opening > 0
        self._opening -= is_opening
        return not (is_opening or reader.concerns(payload)) or reader.event("", payload)


def _payload(frame: Frame) -> bytes:
    """What a frame carries; of a chunk the model's event within."""
    payload = frame.payload
    if _CHUNK_MARK not in frame.raw_headers:
        return payload
    if payload.startswith(_BYTES_START):  # as AWS writes it
        encoded = payload[len(_BYTES_START) : payload.find(b'"', len(_BYTES_START))]
    else:
        found = _BYTES.search(payload)
        encoded = b"" if found is None else found[1]
    try:
        return a2b_base64(encoded) or payload
    except Base64Error:
        return payload


class _PlainText:
    """A body that is the generated text itself."""

    __slots__ = ("_reader", "_text_bytes")

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader
        self._text_bytes = 0

    def feed(self, data: bytes) -> None:
        self._text_bytes += len(data)

    def look(self) -> _Look:
        """What is known so far."""
        return self._reader, self._text_bytes, b""


class _Array:
    """A top-level array whose elements are events."""

    __slots__ = ("_elements", "_reader", "_sample", "_text_bytes")

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader
        self._elements = ArrayElements()
        self._sample = bytearray()
        self._text_bytes = 0

    def feed(self, data: bytes) -> None:
        for element in self._elements.feed(data):
            if self._reader.event("", element):
                self._text_bytes += text_bytes(self._reader.text, element, self._sample)
        if self._elements.closed:
            self._reader.terminal = True

    def look(self) -> _Look:
        """What is known so far."""
        self._reader.settle()
        return self._reader, self._text_bytes, bytes(self._sample)


class _Document:
    """One JSON object; read when its end is there, or, when too large to keep, from its head and tail."""

    __slots__ = ("_buffer", "_dropped_marks", "_head", "_length", "_read_at", "_reader", "_seen")

    def __init__(self, reader: UsageReader) -> None:
        self._reader = self._seen = reader
        self._buffer = bytearray()
        self._head = b""
        self._length = 0
        self._read_at = 0
        self._dropped_marks = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data
        self._length += len(data)
        if len(self._buffer) > DOCUMENT_BYTES_MAX:
            if not self._head:
                self._head = bytes(self._buffer[:DOCUMENT_HEAD_BYTES])
            cut, mark = len(self._buffer) - DOCUMENT_TAIL_BYTES, self._reader.counted_mark
            if mark:  # those that begin before the cut
                self._dropped_marks += self._buffer.count(mark, 0, cut + len(mark) - 1)
            del self._buffer[:cut]

    def look(self) -> _Look:
        """What is known so far."""
        if self._read_at != self._length:
            self._read_at = self._length
            self._read()
        reader = self._seen
        if reader.error or reader.usage is not None:
            return reader, 0, b""  # the text of an error is nobody's output, and with usage nobody estimates
        sample = bytearray()
        counted = text_bytes(reader.document_text or reader.text, self._head + b" " + self._buffer, sample)
        return reader, counted, bytes(sample)

    def _read(self) -> None:
        is_closed = self._buffer.endswith(b"}") or self._buffer.rstrip().endswith(b"}")
        raw = self._head + b" " + self._buffer if self._head else bytes(self._buffer)
        reader = self._seen = self._reader.copied()  # a later look, with more bytes, starts afresh
        if self._head and reader.counted_mark:
            reader.marks = self._dropped_marks + self._buffer.count(reader.counted_mark)
        # With the middle of one long string cut out, the rest is still JSON.
        document = json_scan.loads(raw) if is_closed else None
        if isinstance(document, dict):
            reader.document(document, raw)
            reader.terminal = True
            reader.settle()
        elif not self._head and (events := _lines_of(raw)):
            for event in events:
                reader.event("", event)
            reader.settle()
        elif self._head:
            reader.fragment(raw, is_final=is_closed)
            reader.terminal = is_closed


def _lines_of(raw: bytes) -> list[bytes]:
    """The lines of JSON that a body is, whatever it is called; none when its first line is no object of its own."""
    first, end, _ = raw.partition(b"\n")
    if not end or not first.rstrip().endswith(b"}") or not isinstance(json_scan.loads(first), dict):
        return []
    return [line.strip() for line in raw.split(b"\n") if line.strip()]


_Framing = _Events | _Array | _Document | _Frames | _PlainText
