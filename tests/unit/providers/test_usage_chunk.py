"""The filter that takes out the one chunk we asked for."""

from __future__ import annotations

import random

import pytest

from lava_proxy.providers.usage_chunk import HELD_BYTES_MAX, UsageChunkFilter

HI = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":null}'
AZURE_FIRST = b'data: {"choices":[],"id":"","prompt_filter_results":[{"prompt_index":0}]}'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
USAGE_SPACED = b'data:{"choices": [ ], "usage": {"prompt_tokens": 1}}'
AFTER = b'data: {"id":"c","choices":[],"usage":null,"moderation":{"results":[]}}'
TOOLS = b'data: {"choices":[{"delta":{"tool_calls":[]}}],"usage":{"prompt_tokens":1}}'
DONE = b"data: [DONE]"
COMMENT = b": keep-alive"


def run(pieces: list[bytes]) -> bytes:
    chunk_filter = UsageChunkFilter()
    return b"".join(chunk_filter.feed(piece) for piece in pieces) + chunk_filter.finish()


def body(end: bytes, *events: bytes) -> bytes:
    return b"".join(event + end + end for event in events)


@pytest.mark.parametrize("usage", [USAGE, USAGE_SPACED])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_output_is_input_minus_that_one_event_at_every_split(end: bytes, usage: bytes) -> None:
    """I14, I2: all terminators, every offset, and byte by byte."""
    before, after = (COMMENT, AZURE_FIRST, HI, TOOLS), (AFTER, DONE)
    whole = body(end, *before, usage, *after)
    wanted = body(end, *before, *after)
    for cut in range(len(whole) + 1):
        assert run([whole[:cut], whole[cut:]]) == wanted
    assert run([bytes([byte]) for byte in whole]) == wanted


def test_random_splits_give_the_same() -> None:
    """I14"""
    whole = body(b"\r\n", AZURE_FIRST, HI, HI, USAGE, DONE)
    wanted = body(b"\r\n", AZURE_FIRST, HI, HI, DONE)
    random_source = random.Random(7)
    for _ in range(300):
        cuts = [0, *sorted(random_source.randrange(len(whole)) for _ in range(9)), len(whole)]
        assert run([whole[cuts[i] : cuts[i + 1]] for i in range(len(cuts) - 1)]) == wanted


def test_only_the_first_such_chunk_is_taken() -> None:
    assert run([body(b"\n", USAGE, USAGE, DONE)]) == body(b"\n", USAGE, DONE)


def test_a_usage_chunk_at_the_very_end_without_its_blank_line_is_taken() -> None:
    assert run([body(b"\n", HI) + USAGE]) == body(b"\n", HI)


def test_chunks_with_choices_flow_before_they_end() -> None:
    """I9, I15: nothing waits for an event's end once it cannot be the one."""
    chunk_filter = UsageChunkFilter()
    head, tail = HI[:60], HI[60:]
    assert b'"choices":[{' in head
    assert chunk_filter.feed(head) == head
    assert chunk_filter.feed(tail + b"\n") == tail + b"\n"
    assert chunk_filter.feed(b"\n") == b"\n"
    assert chunk_filter.feed(HI + b"\n\n") == HI + b"\n\n"


def test_a_break_gives_back_what_was_held() -> None:
    assert run([body(b"\n", HI) + USAGE[:40]]) == body(b"\n", HI) + USAGE[:40]


def test_an_endless_event_is_not_held() -> None:
    """I5"""
    chunk_filter = UsageChunkFilter()
    sent = chunk_filter.feed(b"data: " + b"x" * HELD_BYTES_MAX)
    assert len(sent) == HELD_BYTES_MAX + 6
    assert chunk_filter.feed(b"yy") == b"yy"
    assert chunk_filter.feed(b"\n\n" + body(b"\n", USAGE, DONE)) == b"\n\n" + body(b"\n", DONE)


@pytest.mark.parametrize("other", [b'{"choices":[],"usage":{"prompt_tokens":1}}', b"\x1f\x8b\x08 gzip", b"", b"\r\n\r\n"])
def test_what_is_no_event_stream_passes(other: bytes) -> None:
    assert run([other[:5], other[5:]]) == other
