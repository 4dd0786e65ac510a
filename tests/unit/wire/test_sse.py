"""Event streams: every terminator, every split, bounded memory."""

from __future__ import annotations

import pytest

from lava_proxy.wire.sse import EVENT_BYTES_MAX, EventBuffer, parse_event, split_events


def _events(pieces: list[bytes], *, batch_bytes: int = 0, event_bytes_max: int = EVENT_BYTES_MAX) -> list[bytes]:
    buffer = EventBuffer(batch_bytes=batch_bytes, event_bytes_max=event_bytes_max)
    blocks = [buffer.feed(piece) for piece in pieces]
    blocks += [buffer.take(), buffer.rest]
    data = [parse_event(event)[1] for block in blocks for event in split_events(block)]
    return [value for value in data if value]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("batch_bytes", [0, 7, 4096])
def test_all_terminators_work_at_every_split(end: bytes, batch_bytes: int) -> None:
    """I2: LF, CRLF and bare CR; a CR at the edge of a chunk; `data:` with and without a space."""
    body = (end + end).join([b'data: {"a":1}', b"event: x" + end + b"data:second", b": comment", b"data: [DONE]", b""])
    wanted = [b'{"a":1}', b"second", b"[DONE]"]
    for cut in range(len(body) + 1):
        assert _events([body[:cut], body[cut:]], batch_bytes=batch_bytes) == wanted
    assert _events([bytes([byte]) for byte in body], batch_bytes=batch_bytes) == wanted


def test_a_multibyte_character_may_be_split() -> None:
    """I1: bytes are never decoded before an event is whole."""
    body = 'data: {"t":"日本語 🎈"}\n\n'.encode()
    for cut in range(len(body)):
        assert _events([body[:cut], body[cut:]]) == ['{"t":"日本語 🎈"}'.encode()]


def test_data_lines_are_joined_and_unknown_fields_skipped() -> None:
    assert parse_event(b"id: 7\nevent: output\ndata: one\nretry: 10\ndata: two\n: note") == ("output", b"one\ntwo")


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_event(b"\xef\xbb\xbfevent: a\ndata: b") == ("a", b"b")


def test_a_comment_alone_is_an_event_without_data() -> None:
    """I10: `: OPENROUTER PROCESSING` and blank keep-alives mean nothing."""
    assert _events([b": OPENROUTER PROCESSING\n\n\n\n: ping\n\ndata: x\n\n"]) == [b"x"]


def test_the_last_event_may_lack_its_blank_line() -> None:
    assert _events([b"data: a\n\ndata: b"]) == [b"a", b"b"]


def test_a_five_megabyte_line_passes_and_the_next_event_is_whole() -> None:
    """I3, I4: a long line neither ends the stream nor grows memory, and head and tail of it stay searchable."""
    buffer = EventBuffer(batch_bytes=4096)
    buffer.feed(b'event: image\ndata: {"type":"x","b64":"')
    for _ in range(5 * 16):
        buffer.feed(b"A" * 65536)
        assert len(buffer.rest) < EVENT_BYTES_MAX + (128 << 10)
    block = buffer.feed(b'","usage":{"n":1}}\n\ndata: next\n\n') or buffer.take()
    first, second = [event for event in split_events(block) if event]
    assert first.startswith(b'event: image\ndata: {"type":"x"') and first.endswith(b'"usage":{"n":1}}')
    assert second == b"data: next"


def test_a_stream_without_blank_lines_stays_bounded() -> None:
    """I5: no blank line ever; the window is bounded."""
    buffer = EventBuffer(batch_bytes=0, event_bytes_max=100_000)
    for _ in range(200):
        assert buffer.feed(b"data: lots and lots\n" * 500) == b""
        assert len(buffer.rest) < 300_000
