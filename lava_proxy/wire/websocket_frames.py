"""WebSocket frames (RFC 6455 §5) read from a copy of a relayed connection, and the two frames that we ever write ourselves.

The bytes themselves are relayed by others; a reader only follows them: where frames and messages end, and what the messages say.
It never raises: bytes that are no frames make it give up (`is_broken`), and its memory is bounded by `message_bytes_max`.
"""

from __future__ import annotations

from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CLOSE_REASON_BYTES_MAX = 123
BEGINNING_BYTES = 4096
"""Of a message that is too large to keep: enough to tell what kind of message it is."""

_CONTINUATION = 0x0
_CONTROL_BYTES_MAX = 125
_OPCODES = frozenset({_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})


class Message(NamedTuple):
    """A whole message (TEXT, BINARY) or a CLOSE, unmasked. Not `is_whole`: it was too large, `payload` is its beginning."""

    opcode: int
    payload: bytes
    is_whole: bool = True


class FrameReader:
    """Follows one direction. `message_bytes_max` 0 keeps no messages: only where frames end, and the CLOSE."""

    __slots__ = (
        "_control", "_fin", "_head", "_in_payload", "_is_cut", "_left", "_mask", "_mask_at", "_message",
        "_message_bytes_max", "_message_opcode", "_need", "_opcode", "has_closed", "is_broken",
    )  # fmt: skip

    def __init__(self, message_bytes_max: int) -> None:
        self.is_broken = False  # these are no frames that we can read
        self.has_closed = False  # a CLOSE has passed
        self._message_bytes_max = message_bytes_max
        self._head = bytearray()
        self._need = 2  # bytes of the head, as far as is known
        self._in_payload = False
        self._fin = True
        self._opcode = 0
        self._left = 0  # of the present payload
        self._mask: bytes | None = None
        self._mask_at = 0
        self._control = bytearray()
        self._message = bytearray()
        self._message_opcode = 0  # of the message under way; 0 = none
        self._is_cut = False

    @property
    def is_at_frame_end(self) -> bool:
        """May a frame be put in here? A control frame may also stand between the fragments of a message."""
        return not self.is_broken and not self._in_payload and not self._head

    @property
    def is_at_message_end(self) -> bool:
        """May a message be put in here?"""
        return self.is_at_frame_end and not self._message_opcode

    def keep_no_more(self) -> None:
        """From here on only where frames end."""
        self._message_bytes_max = 0
        self._message.clear()

    def feed(self, data: bytes) -> list[Message]:
        """Bytes of the connection in order, in any split; the messages and the CLOSE that they completed."""
        found: list[Message] = []
        at, end = 0, len(data)
        while at < end and not self.is_broken:
            if self._in_payload:
                taken = min(self._left, end - at)
                self._payload(data[at : at + taken])
                at += taken
                self._left -= taken
            else:
                taken = min(self._need - len(self._head), end - at)
                self._head += data[at : at + taken]
                at += taken
                if len(self._head) < self._need or not self._head_is_whole():
                    continue
                self._begin()
            if self._in_payload and not self._left:
                self._end(found)
        return found

    def _head_is_whole(self) -> bool:
        """The head's length is in its second byte."""
        second = self._head[1]
        self._need = 2 + {126: 2, 127: 8}.get(second & 0x7F, 0) + (4 if second & 0x80 else 0)
        return len(self._head) == self._need

    def _begin(self) -> None:
        head = self._head
        first, second = head[0], head[1]
        self._fin, self._opcode = bool(first & 0x80), first & 0x0F
        length, at = second & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(head[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(head[2:10], "big"), 10
        is_control = self._opcode >= CLOSE
        self.is_broken = (
            bool(first & 0x70)  # an extension, and none was agreed on
            or self._opcode not in _OPCODES
            or length >> 63 != 0
            or (is_control and (not self._fin or length > _CONTROL_BYTES_MAX))
            or (self._opcode == _CONTINUATION and not self._message_opcode)
            or (self._opcode in (TEXT, BINARY) and bool(self._message_opcode))
        )
        if self.is_broken:
            self._message.clear()
            return
        self._mask = bytes(head[at : at + 4]) if second & 0x80 else None
        self._mask_at = 0
        self._left = length
        self._in_payload = True
        head.clear()
        self._need = 2
        if self._opcode in (TEXT, BINARY):
            self._message_opcode, self._is_cut = self._opcode, False

    def _payload(self, piece: bytes) -> None:
        if self._opcode >= CLOSE:
            self._control += self._unmasked(piece)
            return
        room = self._message_bytes_max - len(self._message)
        if self._is_cut or not self._message_bytes_max:
            return
        if len(piece) > room:
            self._is_cut = True
            missing = BEGINNING_BYTES - len(self._message)
            if missing > 0:
                self._message += self._unmasked(piece[: min(missing, room)])
            del self._message[BEGINNING_BYTES:]
            return
        self._message += self._unmasked(piece)

    def _unmasked(self, piece: bytes) -> bytes:
        mask = self._mask
        if mask is None or not piece:
            return piece
        turned = mask[self._mask_at % 4 :] + mask[: self._mask_at % 4]
        self._mask_at += len(piece)
        key = (turned * (len(piece) // 4 + 1))[: len(piece)]
        return (int.from_bytes(piece, "big") ^ int.from_bytes(key, "big")).to_bytes(len(piece), "big")

    def _end(self, found: list[Message]) -> None:
        self._in_payload = False
        if self._opcode >= CLOSE:
            if self._opcode == CLOSE:
                self.has_closed = True
                found.append(Message(CLOSE, bytes(self._control)))
            self._control.clear()
        elif self._fin:
            if self._message_bytes_max:
                found.append(Message(self._message_opcode, bytes(self._message), not self._is_cut))
            self._message.clear()
            self._message_opcode = 0


def text_frame(payload: bytes) -> bytes:
    """A whole text message as a server sends it: one frame, not masked."""
    return _head(TEXT, len(payload), 0) + payload


def close_frame(code: int, reason: str, mask: bytes | None = None) -> bytes:
    """A CLOSE; the reason is cut to what fits. A client's has a `mask` of four unpredictable bytes, a server's has none."""
    text = reason.encode()[:CLOSE_REASON_BYTES_MAX].decode("utf-8", "ignore").encode()
    payload = code.to_bytes(2, "big") + text
    if mask is None:
        return _head(CLOSE, len(payload), 0) + payload
    assert len(mask) == 4
    return _head(CLOSE, len(payload), 0x80) + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def _head(opcode: int, length: int, masked: int) -> bytes:
    first = bytes([0x80 | opcode])
    if length <= _CONTROL_BYTES_MAX:
        return first + bytes([masked | length])
    if length < 1 << 16:
        return first + bytes([masked | 126]) + length.to_bytes(2, "big")
    return first + bytes([masked | 127]) + length.to_bytes(8, "big")
