"""AWS' binary frames, in any split."""

from __future__ import annotations

import pytest

from lava_proxy.wire.aws_event_stream import Frame, FrameBuffer, encode_frame, headers_of

HEADERS = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
STREAM = b"".join(encode_frame(HEADERS, payload) for payload in (b'{"a":1}', b"", "日本".encode() * 30))
PAYLOADS = [b'{"a":1}', b"", "日本".encode() * 30]

# The first test vector of the AWS SDKs: no headers, no payload.
EMPTY_MESSAGE = bytes.fromhex("00000010 00000000 05c248eb 7d98c8ff")
# And one with the header content-type: application/json and the payload {'foo':'bar'}.
JSON_MESSAGE = bytes.fromhex(
    "0000003d 00000020 07fd8396 0c636f6e74656e742d74797065 07 0010 6170706c69636174696f6e2f6a736f6e"
    "7b27666f6f273a27626172277d 8d9c08b1"
)


def frames_of(*pieces: bytes, **limits: int) -> tuple[list[Frame], FrameBuffer]:
    buffer = FrameBuffer(**limits)
    frames: list[Frame] = []
    for piece in pieces:
        frames += buffer.feed(piece)
    return frames + buffer.take(), buffer


def test_the_published_vectors_are_read_and_written() -> None:
    frames, buffer = frames_of(EMPTY_MESSAGE + JSON_MESSAGE)
    assert [frame.payload for frame in frames] == [b"", b"{'foo':'bar'}"]
    assert frames[1].header("content-type") == "application/json"
    assert not buffer.broken
    assert encode_frame({}, b"") == EMPTY_MESSAGE
    assert encode_frame({"content-type": "application/json"}, b"{'foo':'bar'}") == JSON_MESSAGE


def test_frames_come_out_at_every_split_and_byte_by_byte() -> None:
    """A20, I1"""
    for cut in range(len(STREAM) + 1):
        frames, _ = frames_of(STREAM[:cut], STREAM[cut:])
        assert [frame.payload for frame in frames] == PAYLOADS
    frames, _ = frames_of(*(STREAM[i : i + 1] for i in range(len(STREAM))))
    assert [frame.payload for frame in frames] == PAYLOADS
    assert headers_of(frames[0].raw_headers) == HEADERS
    assert frames[0].is_event and frames[0].header("nothing") == ""


@pytest.mark.parametrize("kind", ["exception", "error"])
def test_a_failure_is_no_event(kind: str) -> None:
    """I12"""
    frames, _ = frames_of(encode_frame({":message-type": kind, ":exception-type": "throttlingException"}, b"{}"))
    assert not frames[0].is_event
    assert frames[0].header(":exception-type") == "throttlingException"


@pytest.mark.parametrize("position", range(0, len(STREAM), 5))
def test_a_flipped_byte_stops_the_reading_at_its_frame(position: int) -> None:
    """I12: what follows a wrong checksum is nobody's guess."""
    spoiled = bytearray(STREAM)
    spoiled[position] ^= 0x40
    frames, buffer = frames_of(bytes(spoiled))
    assert [frame.payload for frame in frames] == PAYLOADS[: len(frames)]
    assert buffer.broken
    assert buffer.feed(STREAM) == [] and buffer.take() == []
    assert len(buffer._buffer) == 0


def test_a_stream_that_is_cut_gives_the_frames_before_the_cut() -> None:
    """D1"""
    frames, buffer = frames_of(STREAM[:-1])
    assert [frame.payload for frame in frames] == PAYLOADS[:2]
    assert not buffer.broken


@pytest.mark.parametrize("step", [100, 10_000, 10**6])
def test_a_huge_frame_is_skipped_and_the_next_is_read(step: int) -> None:
    """I5: memory is bounded."""
    body = encode_frame(HEADERS, b"x" * 300_000) + encode_frame(HEADERS, b"{}")
    buffer = FrameBuffer(frame_bytes_max=50_000)
    frames: list[Frame] = []
    for start in range(0, len(body), step):
        frames += buffer.feed(body[start : start + step])
        assert len(buffer._buffer) <= 60_000
    assert [frame.payload for frame in frames + buffer.take()] == [b"{}"]


def test_strange_headers_are_left_out() -> None:
    typed = b"\x01b\x02\x05" + b"\x01i\x04\x00\x00\x00\x01" + b"\x01t\x07\x00\x01x" + b"\x01z\x63junk"
    assert headers_of(typed) == {"t": "x"}
    for end in range(len(typed)):
        headers_of(typed[:end])
