"""AWS' binary event stream (`application/vnd.amazon.eventstream`): cut into frames in any split, checksums verified.

A frame is: total length (4 bytes), header length (4), CRC-32 of these eight (4), headers, payload, CRC-32 of all before
(4); integers are big-endian. A header is: name length (1), name, type (1), value; strings (type 7) and bytes (6) carry
a two-byte length. Source: the Smithy specification, "Amazon Event Stream",
https://smithy.io/2.0/aws/amazon-eventstream.html
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct
from typing import NamedTuple

FRAME_BYTES_MAX = 1 << 20
"""A longer frame is skipped unread: a text delta is some 200 bytes, and what ends a stream carries no media."""

BATCH_BYTES = 4 << 10
"""How much is gathered before it is cut, so that the fixed cost is shared by many frames."""

_PRELUDE = Struct(">III")
_CHECKSUM = Struct(">I")
_OVERHEAD = _PRELUDE.size + _CHECKSUM.size
_TOTAL_BYTES_MAX = 25 << 20  # 16 MiB of payload and 128 kB of headers are allowed; more than this is no frame
_FIXED_LENGTHS = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_TEXT_TYPES = (6, 7)
EVENT_MARK = b":message-type\x07\x00\x05event"
"""The encoded header that every frame but a failure has."""


class Frame(NamedTuple):
    """One message: its headers, still encoded, and its payload."""

    raw_headers: bytes
    payload: bytes

    @property
    def is_event(self) -> bool:
        """False for the two kinds that report a failure, `exception` and `error`."""
        return EVENT_MARK in self.raw_headers or b":message-type" not in self.raw_headers

    def header(self, name: str) -> str:
        """The text of a header; "" when it is absent or of another type."""
        return headers_of(self.raw_headers).get(name, "")


class FrameBuffer:
    """Gathers stream bytes and gives back the complete frames, several at a time; about a MiB is the most it holds.

    After a checksum that does not match, `broken` is true and nothing more comes out: where the next frame begins is
    then anybody's guess.
    """

    __slots__ = ("_buffer", "_due", "_frame_bytes_max", "_skip_bytes", "broken")

    def __init__(self, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.broken = False
        self._buffer = bytearray()
        self._due = BATCH_BYTES
        self._skip_bytes = 0  # of an oversize frame, still to come
        self._frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> list[Frame]:
        """Take in bytes; the complete frames when a batch is due, else none."""
        if self.broken:
            return []
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
        self._buffer += data
        return self.take() if len(self._buffer) >= self._due else []

    def take(self) -> list[Frame]:
        """All complete frames held now."""
        if self.broken:
            return []
        buffer = bytes(self._buffer)
        frames: list[Frame] = []
        start = awaited = 0
        while len(buffer) - start >= _PRELUDE.size:
            total, header_bytes, prelude_crc = _PRELUDE.unpack_from(buffer, start)
            is_sane = _OVERHEAD <= total <= _TOTAL_BYTES_MAX and header_bytes <= total - _OVERHEAD
            if not is_sane or crc32(buffer[start : start + 8]) != prelude_crc:
                self.broken = True
                break
            end = start + total
            if total > self._frame_bytes_max:
                self._skip_bytes = max(end - len(buffer), 0)
                start = min(end, len(buffer))
                continue
            if end > len(buffer):
                awaited = total
                break
            if crc32(buffer[start : end - 4]) != _CHECKSUM.unpack_from(buffer, end - 4)[0]:
                self.broken = True
                break
            split = start + _PRELUDE.size + header_bytes
            frames.append(Frame(buffer[start + _PRELUDE.size : split], buffer[split : end - 4]))
            start = end
        if self.broken:
            self._buffer.clear()
        else:
            del self._buffer[:start]
        self._due = max(awaited, BATCH_BYTES)
        return frames


def headers_of(raw: bytes) -> dict[str, str]:
    """The text headers of a frame; what follows something malformed is left out."""
    headers: dict[str, str] = {}
    position = 0
    while position < len(raw):
        name_end = position + 1 + raw[position]
        name = raw[position + 1 : name_end].decode("utf-8", "replace")
        kind = raw[name_end] if name_end < len(raw) else -1
        position = name_end + 1
        if kind in _TEXT_TYPES:
            length = int.from_bytes(raw[position : position + 2], "big")
            headers[name] = raw[position + 2 : position + 2 + length].decode("utf-8", "replace")
            position += 2 + length
        elif kind in _FIXED_LENGTHS:
            position += _FIXED_LENGTHS[kind]
        else:
            break
    return headers


def encode_frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One frame with string headers, for servers that speak this and for tests."""
    raw = b"".join(
        bytes([len(name.encode())]) + name.encode() + b"\x07" + len(value.encode()).to_bytes(2, "big") + value.encode()
        for name, value in headers.items()
    )
    head = (_OVERHEAD + len(raw) + len(payload)).to_bytes(4, "big") + len(raw).to_bytes(4, "big")
    body = head + _CHECKSUM.pack(crc32(head)) + raw + payload
    return body + _CHECKSUM.pack(crc32(body))
