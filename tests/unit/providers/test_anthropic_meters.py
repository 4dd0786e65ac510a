"""Anthropic Messages: the merge of a stream's two usages, the cache split, iterations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lava_proxy.domain.usage import Provenance, Reading, token_usage
from lava_proxy.providers.anthropic import messages_usage
from lava_proxy.providers.base import Provider
from lava_proxy.providers.model_apis import ModelApis

FAMILY = ModelApis()
ANTHROPIC = Provider(name="anthropic", family="anthropic", hosts=("api.anthropic.com",), base="https://api.anthropic.com")
ASKED = b'{"model":"claude","max_tokens":100,"stream":true,"messages":[]}'


def read(body: bytes | list[bytes], status: int = 200) -> Reading:
    call = FAMILY.inspect(ANTHROPIC, "POST", "/v1/messages", "", "application/json", ASKED)
    meter = FAMILY.meter(ANTHROPIC, call, status, "text/event-stream; charset=utf-8", "")
    for piece in [body] if isinstance(body, bytes) else body:
        meter.feed(piece)
    return meter.reading()


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}    \n\n".encode() for e in events)


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "msg_1", "model": "claude-x", "usage": usage}}


def delta(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
TOOL = {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'}}
THINKING = {"type": "content_block_delta", "index": 1, "delta": {"type": "thinking_delta", "thinking": "Hm"}}
PING = {"type": "ping"}
STOP = {"type": "message_stop"}


def expected(uncached: int, output: int, **more: Any) -> Any:
    cached, written = more.get("cached", 0), more.get("cache_write", 0)
    return token_usage(uncached + cached + written, output, uncached_input_tokens=uncached, **more)


def test_start_and_delta_are_merged_at_every_split() -> None:
    """A20, A9: neither event alone is right, and neither is lost when a chunk ends inside it."""
    body = sse(
        start(input_tokens=17, output_tokens=3, cache_creation_input_tokens=0, cache_read_input_tokens=0),
        PING,
        TEXT,
        TOOL,
        THINKING,
        delta(input_tokens=None, output_tokens=92, cache_read_input_tokens=40),
        STOP,
    )
    whole = read(body)
    assert whole.usage == expected(17, 92, cached=40)
    assert (whole.model, whole.response_id, whole.terminal) == ("claude-x", "msg_1", True)
    assert whole.output_text_bytes == len("Hello") + len('{"a":1}') + len("Hm")
    for cut in range(len(body)):
        assert read([body[:cut], body[cut:]]) == whole


def test_the_delta_wins_where_it_differs() -> None:
    """A9: server tools make the input grow (2,068 -> 22,397 with web search)."""
    body = sse(start(input_tokens=2068, output_tokens=1), delta(input_tokens=22397, output_tokens=90), STOP)
    assert read(body).usage == expected(22397, 90)


def test_an_input_is_uncached_plus_read_plus_written() -> None:
    """A4, A6: the golden request of 3 uncached and 12,304 written tokens is not counted twice."""
    usage = messages_usage(
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 12304,
            "cache_read_input_tokens": 0,
            "output_tokens": 550,
        }
    )
    assert usage == expected(3, 550, cache_write=12304)


def test_huge_cache_reads_stay_positive() -> None:
    """A5, A11: input 1, cache read 965,602."""
    usage = messages_usage({"input_tokens": 1, "cache_read_input_tokens": 965602, "output_tokens": 7})
    assert usage == expected(1, 7, cached=965602)


def test_the_one_hour_split_survives_the_delta_that_lacks_it() -> None:
    """A8, A7: only message_start says how much was written for an hour; the remainder is a 5-minute write."""
    split = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 4803}
    body = sse(
        start(input_tokens=2, output_tokens=1, cache_creation_input_tokens=4903, cache_creation=split),
        delta(output_tokens=50, cache_creation_input_tokens=6000),
        STOP,
    )
    assert read(body).usage == expected(2, 50, cache_write=6000, cache_write_1h_tokens=4803)


def test_a_second_message_start_changes_nothing() -> None:
    """A27"""
    once = start(input_tokens=17, output_tokens=3, cache_read_input_tokens=5)
    body = sse(once, once, TEXT, delta(output_tokens=9), STOP)
    assert read(body).usage == expected(17, 9, cached=5)


def test_a_stream_that_breaks_after_its_start_is_partial() -> None:
    """C2, D8: the input is known, the output is not."""
    reading = read(sse(start(input_tokens=17, output_tokens=1), TEXT, TEXT))
    assert reading.usage == expected(17, 1)
    assert reading.provenance is Provenance.PROVIDER_PARTIAL
    assert (reading.terminal, reading.output_text_bytes) == (False, 10)


def test_an_error_after_200_is_seen_and_its_text_is_no_output() -> None:
    """A17, D4"""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "x", "text": "y" * 900}}
    reading = read(sse(start(input_tokens=17, output_tokens=1), TEXT, error))
    assert (reading.error, reading.terminal, reading.output_text_bytes) == (True, False, 5)
    assert reading.provenance is Provenance.PROVIDER_PARTIAL


@pytest.mark.parametrize("reason", ["refusal", "pause_turn", "max_tokens"])
def test_every_stop_reason_is_a_billed_end(reason: str) -> None:
    end = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 4}}
    reading = read(sse(start(input_tokens=5, output_tokens=1), end))
    assert (reading.usage, reading.provenance) == (expected(5, 4), Provenance.PROVIDER_FINAL)


def test_compaction_is_added_and_an_advisor_stands_apart() -> None:
    """The top level leaves compaction out; an advisor bills at its own model's rate."""
    iterations = [
        {"type": "compaction", "input_tokens": 99195, "output_tokens": 81},
        {"type": "message", "input_tokens": 162, "output_tokens": 11},
        {"type": "advisor_message", "model": "claude-o", "input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 5},
    ]
    usage = messages_usage({"input_tokens": 162, "output_tokens": 11, "iterations": iterations})
    advisor = dict(token_usage(15, 2, cached=5).units)
    assert usage == expected(99357, 92, other_models={"claude-o": advisor})


def test_with_a_fallback_the_top_level_is_right() -> None:
    iterations = [
        {"type": "message", "input_tokens": 900, "output_tokens": 90},
        {"type": "fallback_message", "input_tokens": 162, "output_tokens": 11},
    ]
    assert messages_usage({"input_tokens": 162, "output_tokens": 11, "iterations": iterations}) == expected(162, 11)


def test_server_tools_and_thinking_are_units() -> None:
    usage = messages_usage(
        {
            "input_tokens": 5,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 12},
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 0},
        }
    )
    assert usage == expected(5, 20, reasoning=12, web_search_requests=3)


def test_a_document_is_read_and_an_error_document_is_not_usage() -> None:
    body = json.dumps({"id": "m", "model": "c", "content": [], "usage": {"input_tokens": 4, "output_tokens": 0}}).encode()
    assert read(body).usage == expected(4, 0)
    error = read(b'{"type":"error","error":{"type":"api_error","message":"no"}}')
    assert (error.usage, error.error) == (None, True)
    assert read(body, status=529).usage is None
