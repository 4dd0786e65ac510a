"""Frames as an established library writes them, read at every split; and bytes that are no frames."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from lava_proxy.wire.websocket_frames import BINARY, CLOSE, TEXT, FrameReader, Message, close_frame, text_frame

LIMIT = 1 << 20


def written(frame: Frame, *, masked: bool) -> bytes:
    return frame.serialize(mask=masked)


def read(data: bytes, *cuts: int, limit: int = LIMIT) -> list[Message]:
    reader = FrameReader(limit)
    found: list[Message] = []
    marks = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(marks):
        found += reader.feed(data[start:end])
    assert not reader.is_broken
    return found


def parsed(data: bytes, *, masked: bool) -> Frame:
    """One frame of ours, as the library reads it."""
    stream = StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    parser = Frame.parse(stream.read_exact, mask=masked, max_size=LIMIT)
    try:
        while True:
            next(parser)
    except StopIteration as stop:
        frame: Frame = stop.value
        return frame


def conversation(masked: bool) -> tuple[bytes, list[Message]]:
    """Every kind of frame, with a ping between two fragments."""
    frames = [
        Frame(Opcode.TEXT, b'{"a":1}'),
        Frame(Opcode.TEXT, b"first ", fin=False),
        Frame(Opcode.PING, b"are you there"),
        Frame(Opcode.CONT, b"second ", fin=False),
        Frame(Opcode.CONT, b"third"),
        Frame(Opcode.BINARY, b""),
        Frame(Opcode.PONG, b""),
        Frame(Opcode.BINARY, bytes(range(256))),
        Frame(Opcode.CLOSE, Close(1000, "bye").serialize()),
    ]
    expected = [
        Message(TEXT, b'{"a":1}'), Message(TEXT, b"first second third"), Message(BINARY, b""), Message(BINARY, bytes(range(256))),
        Message(CLOSE, b"\x03\xe8bye"),
    ]  # fmt: skip
    return b"".join(written(frame, masked=masked) for frame in frames), expected


def test_every_split_in_two_and_byte_by_byte_reads_the_same() -> None:
    """A20: fragments, control frames between them, masks, both short lengths."""
    for masked in (False, True):
        data, expected = conversation(masked)
        for cut in range(len(data) + 1):
            assert read(data, cut) == expected
        assert read(data, *range(1, len(data))) == expected


def test_a_64_bit_length_is_read() -> None:
    payload = bytes(70_000)
    for masked in (False, True):
        data = written(Frame(Opcode.BINARY, payload), masked=masked)
        assert read(data, 1, 3, 9, 13, 5_000) == [Message(BINARY, payload)]


@given(
    st.lists(st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY]), st.lists(st.binary(max_size=300), min_size=1, max_size=4))),
    st.booleans(),
    st.lists(st.integers(min_value=0, max_value=4_000), max_size=6),
)
def test_random_messages_in_random_fragments_and_splits_are_read_whole(
    messages: list[tuple[Opcode, list[bytes]]], masked: bool, cuts: list[int]
) -> None:
    data = b""
    for opcode, pieces in messages:
        for index, piece in enumerate(pieces):
            frame = Frame(Opcode.CONT if index else opcode, piece, fin=index == len(pieces) - 1)
            data += written(Frame(Opcode.PING, b"x"), masked=masked) + written(frame, masked=masked)
    expected = [Message(int(opcode), b"".join(pieces)) for opcode, pieces in messages]
    assert read(data, *(min(cut, len(data)) for cut in cuts)) == expected


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_bytes_raise_and_memory_stays_bounded(pieces: list[bytes]) -> None:
    reader = FrameReader(64)
    for piece in pieces:
        for message in reader.feed(piece):
            assert len(message.payload) <= 125
        assert len(reader._message) <= 64
        assert len(reader._head) <= 14


def test_a_message_above_the_bound_is_skipped_and_the_next_one_is_read() -> None:
    data = b"".join(
        written(frame, masked=False)
        for frame in (
            Frame(Opcode.TEXT, b'{"type":"large"' + b" " * 90, fin=False),
            Frame(Opcode.CONT, b" " * 9_000 + b"}"),
            Frame(Opcode.TEXT, b"next"),
        )
    )
    large, following = read(data, 7, 100, limit=100)
    assert (large.is_whole, large.payload.startswith(b'{"type":"large"'), len(large.payload) <= 100) == (False, True, True)
    assert following == Message(TEXT, b"next")


def test_where_frames_and_messages_end_is_known_without_keeping_any() -> None:
    reader = FrameReader(0)
    for masked in (False, True):
        first = written(Frame(Opcode.TEXT, b"ab", fin=False), masked=masked)
        assert reader.is_at_message_end
        assert reader.feed(first[:-1]) == []
        assert not reader.is_at_frame_end
        reader.feed(first[-1:])
        assert reader.is_at_frame_end
        assert not reader.is_at_message_end
        assert reader.feed(written(Frame(Opcode.CONT, b"c"), masked=masked)) == []
    assert reader.feed(written(Frame(Opcode.CLOSE, b"\x03\xe8"), masked=True)) == [Message(CLOSE, b"\x03\xe8")]
    assert reader.has_closed


def test_what_is_no_frame_is_given_up() -> None:
    for data in (
        b"\xc1\x01a",  # compressed, though no extension was agreed on
        b"\x83\x01a",  # an unknown opcode
        b"\x80\x01a",  # a continuation of nothing
        b"\x01\x01a\x81\x01b",  # a message inside another
        b"\x89\x7e\x00\x80" + bytes(128),  # a control frame too long
        b"\x09\x00",  # a control frame in fragments
        b"\x82\xff" + b"\xff" * 8 + bytes(4),  # a length beyond 63 bits
    ):
        reader = FrameReader(LIMIT)
        assert reader.feed(data + b"\x81\x01z") == []
        assert reader.is_broken
        assert not reader.is_at_frame_end


def test_our_own_frames_are_read_by_an_established_library() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        assert parsed(text_frame(b"x" * size), masked=False).data == b"x" * size
    closed = parsed(close_frame(1008, "é" * 100), masked=False)
    assert (closed.opcode, Close.parse(closed.data)) == (Opcode.CLOSE, Close(1008, "é" * 61))
    closed = parsed(close_frame(1000, "done", mask=b"\x01\x02\x03\x04"), masked=True)
    assert Close.parse(closed.data) == Close(1000, "done")
