"""JSON that comes bit by bit: a top-level array's elements, and newline-delimited JSON. Bounded memory, any split."""

from __future__ import annotations

import re

from lava_proxy.wire.sse import EventBuffer

ELEMENT_BYTES_MAX = 1 << 20
"""An unfinished element is kept whole up to this size; of a larger one (an inline image) head and tail are kept."""

HEAD_BYTES_KEPT = 4 << 10
TAIL_BYTES_KEPT = 64 << 10

_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)

_QUOTE, _OPEN_ARRAY, _OPEN_OBJECT = b'"[{'


class ArrayElements:
    """Cuts `[{...},{...}]` into its objects and arrays as they arrive. Scalars at the top level are skipped.

    Google's streamGenerateContent without `alt=sse` answers in this form.
    """

    __slots__ = ("_buffer", "_depth", "_element_bytes_max", "_head", "_in_string", "_position", "_start", "closed")

    def __init__(self, *, element_bytes_max: int = ELEMENT_BYTES_MAX) -> None:
        self.closed = False  # the final ] was seen
        self._buffer = bytearray()
        self._head = b""
        self._depth = 0
        self._in_string = False
        self._position = 0
        self._start = -1  # where the current element begins
        self._element_bytes_max = element_bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes; the elements completed by them, each as its raw bytes.

        An element above the limit comes as head and tail with a blank between: perhaps no longer JSON, but searchable.
        """
        self._buffer += data
        elements: list[bytes] = []
        while not self.closed and self._step(elements):
            pass
        self._trim()
        return elements

    def _step(self, elements: list[bytes]) -> bool:
        """Consume one token; False when the buffer has no complete one."""
        buffer = self._buffer
        if self._in_string:
            matched = _STRING_REST.match(buffer, self._position)
            end = self._position if matched is None else matched.end()
            self._position = end
            if end >= len(buffer) or buffer[end] != _QUOTE:
                return False  # the string goes on, or a backslash waits for its partner
            self._in_string = False
            self._position = end + 1
            return True
        token = _STRUCTURE.search(buffer, self._position)
        if token is None:
            self._position = len(buffer)
            return False
        self._position = token.end()
        byte = buffer[token.start()]
        if byte == _QUOTE:
            self._in_string = True
        elif byte in (_OPEN_ARRAY, _OPEN_OBJECT):
            if self._depth == 1:
                self._start = token.start()
            self._depth += 1
        else:
            self._depth -= 1
            if self._depth == 1 and self._start >= 0:
                element = bytes(buffer[self._start : token.end()])
                elements.append(self._head + b" " + element if self._head else element)
                self._head = b""
                self._start = -1
            self.closed = self._depth <= 0
        return True

    def _trim(self) -> None:
        buffer = self._buffer
        cut = self._position if self._start < 0 else self._start
        if self.closed:
            cut = len(buffer)
        elif len(buffer) - cut > self._element_bytes_max:
            if not self._head:
                self._head = bytes(buffer[cut : cut + HEAD_BYTES_KEPT])
            cut = min(len(buffer) - TAIL_BYTES_KEPT, self._position)
            self._start = cut
        del buffer[:cut]
        self._position -= cut
        if self._start >= 0:
            self._start -= cut


class LineBuffer(EventBuffer):
    """Gathers newline-delimited JSON and gives back complete lines, several at a time, as EventBuffer does events."""

    __slots__ = ()

    def _boundary_end(self, buffer: bytearray, start: int) -> int:
        return buffer.rfind(b"\n", start) + 1 or -1


def split_lines(block: bytes) -> list[bytes]:
    """The lines of a block, without their ends; may contain empty ones."""
    return block.split(b"\n")
