"""Server-sent events: cut a byte stream at its blank lines, in any split, with bounded memory.

The strategy is lazy: `EventBuffer` gathers a few kilobytes, finds the last blank line with C-speed searches and hands
out the complete events as one block. Only a block that can matter is split (`split_events`) and only an event that can
matter is parsed (`parse_event`). Source: WHATWG HTML, "Server-sent events",
https://html.spec.whatwg.org/multipage/server-sent-events.html (a line ends with LF, CRLF or a bare CR; an event ends
with an empty line).
"""

from __future__ import annotations

import re

EVENT_BYTES_MAX = 1 << 20
"""An unfinished event is kept whole up to this size. A Responses API `response.completed` repeats the whole response
(instructions and tools included), and its items are counted, so one MiB is kept before windows take over."""

HEAD_BYTES_KEPT = 4 << 10
"""Of an event above the limit: enough for the event name, the type and the ids."""

TAIL_BYTES_KEPT = 64 << 10
"""Of an event above the limit: usage objects stand at the end of what carries them."""

BATCH_BYTES = 4 << 10
"""How much is gathered before it is looked at: about ten chunks, so that the searches' fixed cost is shared."""

BOUNDARY = re.compile(rb"\n\n|\n\r\n?|\r\r\n?")
"""A line end and the empty line after it. A final LF may still be on its way when the match ends with CR."""

_LONGEST_BOUNDARY = 3
_BOM = b"\xef\xbb\xbf"


class EventBuffer:
    """Gathers stream bytes and gives back the complete events, several at a time; about a MiB is the most it holds."""

    __slots__ = ("_batch_bytes", "_buffer", "_due", "_event_bytes_max", "_head", "_scanned")

    def __init__(self, *, batch_bytes: int = BATCH_BYTES, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._head = b""  # of an oversize event, whose middle is gone
        self._scanned = 0
        self._batch_bytes = batch_bytes
        self._due = batch_bytes
        self._event_bytes_max = event_bytes_max

    def feed(self, data: bytes) -> bytes:
        """Take in bytes; the complete events when a batch is due, else b""."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._due:
            return b""
        return self.take()

    def take(self) -> bytes:
        """All complete events held now, terminators included; b"" when there is none.

        An event above the limit comes as head and tail with a blank between: perhaps no longer JSON, but searchable.
        """
        buffer = self._buffer
        end = self._boundary_end(buffer, max(self._scanned - _LONGEST_BOUNDARY, 0))
        if end < 0:
            if len(buffer) > self._event_bytes_max:
                self._cut_middle()
            self._scanned = len(buffer)
            self._due = len(buffer) + self._batch_bytes
            return b""
        block = bytes(buffer[:end])
        del buffer[:end]
        self._scanned = 0
        self._due = len(buffer) + self._batch_bytes
        if self._head:
            block = self._head + b" " + block
            self._head = b""
        return block

    @property
    def rest(self) -> bytes:
        """The unfinished event: the last one of a body that ends without a blank line."""
        if self._head:
            return self._head + b" " + bytes(self._buffer)
        return bytes(self._buffer)

    def _boundary_end(self, buffer: bytearray, start: int) -> int:
        """The index after the last end of an event at or after `start`, or -1."""
        return _last_boundary_end(buffer, start)

    def _cut_middle(self) -> None:
        if not self._head:
            self._head = bytes(self._buffer[:HEAD_BYTES_KEPT])
        del self._buffer[:-TAIL_BYTES_KEPT]


def _last_boundary_end(buffer: bytearray, start: int) -> int:
    """The index after the last blank line at or after `start`, or -1."""
    end = buffer.rfind(b"\n\n", start) + 2
    if buffer.find(b"\r", start) >= 0:
        for pair in (b"\n\r", b"\r\r"):
            found = buffer.rfind(pair, start) + 2
            if found > 1 and buffer[found : found + 1] == b"\n":
                found += 1
            end = max(end, found)
    return end if end > 1 else -1


def names_an_error(block: bytes) -> bool:
    """May one of these events be called `error`? The blank after a field's colon is optional."""
    return b"error" in block and (b"event: error" in block or b"event:error" in block)


def split_events(block: bytes) -> list[bytes]:
    """The events of a block, without their terminators; may contain empty ones."""
    if b"\r" not in block:
        return block.split(b"\n\n")
    return BOUNDARY.split(block)


def parse_event(event: bytes) -> tuple[str, bytes]:
    """(event name or "", data) of one event. Comments and unknown fields are skipped; data lines are joined by LF."""
    if event.startswith(b"data: {") and b"\n" not in event and b"\r" not in event:
        return "", event[6:]
    name = ""
    lines: list[bytes] = []
    for line in event.removeprefix(_BOM).splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return name, b"\n".join(lines)
