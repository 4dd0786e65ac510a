"""OpenAI's APIs and their dialects: the traps that made other gateways bill wrong."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from lava_proxy.domain.usage import Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Provider
from lava_proxy.providers.model_apis import ModelApis
from lava_proxy.providers.openai_chat import chat_usage

FAMILY = ModelApis()
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
CHUNK = {"id": "c1", "model": "m1", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
LAST = {"id": "c1", "model": "m1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def provider(name: str = "openai", **changes: Any) -> Provider:
    return Provider(name=name, family="openai", hosts=(f"api.{name}.test",), base=f"https://api.{name}.test/v1", **changes)


def read(body: bytes | list[bytes], *, api: str = "chat", name: str = "openai", status: int = 200, stream: bool = True) -> Reading:
    asked = json.dumps({"model": "m", "stream": stream, "messages": []}).encode()
    call = FAMILY.inspect(provider(name), "POST", PATHS[api], "", "application/json", asked)
    meter = FAMILY.meter(provider(name), call, status, "text/event-stream", "")
    for piece in [body] if isinstance(body, bytes) else body:
        meter.feed(piece)
    return meter.reading()


def sse(*events: object, done: bool = True, end: bytes = b"\n") -> bytes:
    lines = [b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) for event in events]
    if done:
        lines.append(b"data: [DONE]")
    return b"".join(line + end + end for line in lines)


def test_usage_on_a_chunk_without_choices_is_final() -> None:
    reading = read(sse(CHUNK, LAST, {**CHUNK, "choices": [], "usage": USAGE}))
    assert reading.usage == token_usage(10, 5)
    assert reading.provenance is Provenance.PROVIDER_FINAL
    assert (reading.model, reading.response_id, reading.terminal, reading.error) == ("m1", "c1", True, False)


def test_a_chunk_after_the_usage_chunk_does_not_hide_it() -> None:
    """A16: with moderation on, usage is second to last; every chunk is scanned, the last non-null usage wins."""
    after = {**CHUNK, "choices": [], "usage": None, "moderation": {}}
    assert read(sse(CHUNK, {**CHUNK, "choices": [], "usage": USAGE}, after)).usage == token_usage(10, 5)


def test_a_null_usage_on_every_chunk_is_no_usage() -> None:
    """A13: absent and null are not 0."""
    reading = read(sse({**CHUNK, "usage": None}, {**LAST, "usage": None}))
    assert reading.usage is None
    assert reading.provenance is Provenance.NONE
    assert reading.terminal


def test_a_usage_of_zero_is_reported_and_not_estimated() -> None:
    """A13: an explicit 0 is the provider's word."""
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    reading = read(sse(CHUNK, {**CHUNK, "choices": [], "usage": zero}))
    assert reading.usage == token_usage(0, 0)
    assert reading.provenance is Provenance.PROVIDER_FINAL


def test_an_empty_usage_object_is_no_usage() -> None:
    assert read(sse(CHUNK, {**LAST, "usage": {}})).usage is None


def test_usage_after_done_is_read() -> None:
    """I8: `[DONE]` does not end the reading."""
    assert read(sse(CHUNK) + sse({**CHUNK, "choices": [], "usage": USAGE}, done=False)).usage == token_usage(10, 5)


def test_cumulative_usage_is_not_summed_and_a_broken_stream_is_partial() -> None:
    """A15, A21: vLLM's continuous_usage_stats, Perplexity: the last one wins."""
    chunks = [{**CHUNK, "usage": {**USAGE, "completion_tokens": n, "total_tokens": 10 + n}} for n in range(1, 60)]
    reading = read(sse(*chunks, done=False))
    assert reading.usage == token_usage(10, 59)
    assert reading.provenance is Provenance.PROVIDER_PARTIAL
    assert not reading.terminal
    cut = sse(*chunks, done=False)
    assert read(cut[: cut.rindex(b'"usage"') + 12]).usage == token_usage(10, 58)


def test_an_error_chunk_is_seen_and_its_text_is_no_output() -> None:
    """A17, D3: an error in the stream after 200; its message is not generated text."""
    error = {"error": {"message": "Token limit reached", "content": "x" * 5000, "text": "y" * 5000}}
    reading = read(sse(CHUNK, error, done=False))
    assert reading.error
    assert reading.output_text_bytes == 2
    named = sse(CHUNK, done=False) + b'event: error\ndata: {"message":"no", "content":"' + b"z" * 999 + b'"}\n\n'
    reading = read(named)
    assert reading.error
    assert reading.output_text_bytes == 2


def test_an_error_chunk_with_usage_gives_both() -> None:
    """D3: OpenRouter sends error and usage in one chunk."""
    reading = read(sse(CHUNK, {**CHUNK, "error": {"code": 400}, "usage": {**USAGE, "cost": 0}}), name="openrouter")
    assert reading.error
    assert reading.usage == token_usage(10, 5)


def test_a_json_error_instead_of_the_stream_is_an_error_without_output() -> None:
    """D3: 200 with application/json although a stream was asked for."""
    reading = read(b'{"error":{"message":"overloaded","content":"' + b"x" * 900 + b'"}}')
    assert reading.error
    assert reading.usage is None
    assert reading.output_text_bytes == 0


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_an_error_status_is_never_usage(status: int) -> None:
    """D11: an error body that carries usage is not billed."""
    reading = read(json.dumps({"usage": USAGE}).encode(), status=status)
    assert (reading.usage, reading.provenance) == (None, Provenance.NONE)


def test_the_word_error_and_done_inside_text_mean_nothing() -> None:
    talk = {**CHUNK, "choices": [{"delta": {"content": 'say "error" {"usage": {"prompt_tokens": 7}} [DONE]'}}]}
    reading = read(sse(CHUNK, talk, done=False))
    assert (reading.usage, reading.error, reading.terminal) == (None, False, False)
    assert reading.output_text_bytes == 2 + len('say "error" {"usage": {"prompt_tokens": 7}} [DONE]')


def test_comments_and_blank_lines_mean_nothing() -> None:
    """I10: OpenRouter's comments, DeepSeek's keep-alives."""
    body = b"\n: OPENROUTER PROCESSING\n\n" + sse(CHUNK) + b": keep-alive\n\n\n\n" + sse({**LAST, "usage": USAGE})
    assert read(body).usage == token_usage(10, 5)


def test_the_last_event_may_lack_its_blank_line() -> None:
    body = sse(CHUNK, {**CHUNK, "choices": [], "usage": USAGE}, done=False).rstrip(b"\n")
    for cut in range(len(body)):
        assert read([body[:cut], body[cut:]]).usage == token_usage(10, 5)


def test_looking_at_the_reading_in_between_changes_nothing() -> None:
    body = sse(CHUNK, CHUNK, LAST, {**CHUNK, "choices": [], "usage": USAGE})
    call = FAMILY.inspect(provider(), "POST", PATHS["chat"], "", "application/json", b'{"model":"m","stream":true}')
    meter = FAMILY.meter(provider(), call, 200, "text/event-stream", "")
    texts = []
    for byte in body:
        meter.feed(bytes([byte]))
        texts.append(meter.reading().output_text_bytes)
    assert meter.reading() == read(body)
    assert texts == sorted(texts)
    assert texts[-1] == 4


def test_text_is_counted_after_unescaping() -> None:
    """I1: line breaks are one byte, \\u escapes of CJK three, and a multi-byte character may be split."""
    for ensure_ascii in (True, False):
        text = "日本語\nok 🎈"
        data = json.dumps({**CHUNK, "choices": [{"delta": {"content": text}}]}, ensure_ascii=ensure_ascii).encode()
        body = sse(data)
        for cut in range(0, len(body), 7):
            counted = read([body[:cut], body[cut:]]).output_text_bytes
            assert abs(counted - len(text.encode())) <= 2


def test_reasoning_and_tool_arguments_are_text_but_quoted_search_results_are_not() -> None:
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "12345"},
        {"reasoning": "12345", "reasoning_details": [{"type": "reasoning.text", "text": "12345"}]},
        {"tool_calls": [{"function": {"arguments": "12345"}}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "12345"}]}]},
        {"content": "", "annotations": [{"type": "url_citation", "url_citation": {"content": "x" * 5000}}]},
    ]
    body = sse(*[{**CHUNK, "choices": [{"delta": delta}]} for delta in deltas])
    assert read(body).output_text_bytes == 20


def test_a_huge_line_without_end_stays_bounded_and_later_events_count() -> None:
    """I3, I5: 5 MB in one event."""
    call = FAMILY.inspect(provider(), "POST", PATHS["chat"], "", "application/json", b'{"model":"m","stream":true}')
    meter = FAMILY.meter(provider(), call, 200, "text/event-stream", "")
    meter.feed(sse(CHUNK, done=False) + b'data: {"images":[{"url":"data:image/png;base64,')
    for _ in range(80):
        meter.feed(b"A" * 65536)
    meter.feed(b'"}]}\n\n' + sse({**CHUNK, "choices": [], "usage": USAGE}))
    assert meter.reading().usage == token_usage(10, 5)


def test_garbage_never_raises() -> None:
    for body in (
        b"",
        b"\x00\xff" * 3000,
        b"data: {",
        b"data: [1]\n\n",
        b"{" * 5000,
        b"[",
        b"]",
        b"data: null\n\n" * 500,
    ):
        for api in PATHS:
            reading = read(body, api=api)
            assert reading.usage is None


@pytest.mark.parametrize("value", [-1, 1.5, "7", True, None, [], {}, 10**30, float("1e300")])
def test_a_strange_count_counts_nothing(value: object) -> None:
    """A5: nothing negative or absurd ever becomes money."""
    usage = chat_usage({"prompt_tokens": value, "completion_tokens": 3, "total_tokens": 3})
    assert usage == token_usage(0, 3)


def test_a_number_that_cannot_be_held_is_read_quickly_and_counts_nothing() -> None:
    """A5: a small text may mean a number of a billion digits."""
    body = b'{"model":"m","usage":{"prompt_tokens":1e999999999,"completion_tokens":3,"cost":1e999999999}}'
    assert read(body).usage == token_usage(0, 3)


# --- dialects -------------------------------------------------------------------------------------------------------


def test_cached_tokens_are_inside_the_prompt_wherever_they_are_named() -> None:
    """A4, A12: OpenAI, Mistral (three ways), DeepSeek, Together."""
    for extra in (
        {"prompt_tokens_details": {"cached_tokens": 8}},
        {"prompt_token_details": {"cached_tokens": 8}},
        {"num_cached_tokens": 8, "prompt_tokens_details": None},
        {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 2},
        {"cached_tokens": 8},
    ):
        assert chat_usage({**USAGE, **extra}) == token_usage(10, 5, cached=8)


def test_cache_writes_are_kept_apart_from_cache_reads() -> None:
    details = {"cached_tokens": 3, "cache_write_tokens": 4}
    assert chat_usage({**USAGE, "prompt_tokens_details": details}) == token_usage(10, 5, cached=3, cache_write=4)


def test_more_cached_than_prompt_is_passed_on_as_reported() -> None:
    """A5: Azure Foundry's Grok; clamping happens in cost only."""
    usage = chat_usage({**USAGE, "prompt_tokens_details": {"cached_tokens": 161}})
    assert usage == token_usage(10, 5, cached=161)


def test_xai_adds_reasoning_to_completion_and_openai_does_not() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 4}}
    assert chat_usage({**USAGE, **details}) == token_usage(10, 5, reasoning=4)
    assert chat_usage({**USAGE, **details, "total_tokens": 19}) == token_usage(10, 9, reasoning=4)


def test_vercel_reports_completion_without_reasoning_and_openrouter_does_not() -> None:
    raw = {**USAGE, "completion_tokens_details": {"reasoning_tokens": 9}}
    assert chat_usage(raw, "reasoning_outside") == token_usage(10, 14, reasoning=9)
    assert chat_usage(raw) == token_usage(10, 5, reasoning=9)


def test_google_compat_hides_thinking_in_the_total() -> None:
    """A22: bill total - prompt."""
    body = json.dumps({"model": "g", "usage": {**USAGE, "total_tokens": 40}}).encode()
    assert read(body, name="google").usage == token_usage(10, 30, reasoning=25)
    assert read(body, name="google", api="embeddings").usage == token_usage(10, 0)


def test_mistral_counts_audio_beside_the_prompt() -> None:
    raw = {**USAGE, "prompt_tokens_details": {"audio_tokens": 7}, "total_tokens": 22}
    assert chat_usage(raw) == token_usage(17, 5, input_audio_tokens=7)
    assert chat_usage({**raw, "total_tokens": 15}) == token_usage(10, 5, input_audio_tokens=7)


def test_groq_puts_usage_under_x_groq_and_its_breakdown_is_not_summed() -> None:
    breakdown = {"models": [{"model": "a", "usage": USAGE}, {"model": "b", "usage": USAGE}]}
    x_groq = {"id": "r", "usage": USAGE, "usage_breakdown": breakdown}
    assert read(sse(CHUNK, {**LAST, "x_groq": x_groq})).usage == token_usage(10, 5)


def test_stated_costs_are_exact_decimals() -> None:
    """A14: OpenRouter and Avian say cost, Perplexity cost.total_cost, xAI ticks."""
    body = b'{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1,"cost":0.00000000000000000014}}'
    usage = read(body).usage
    assert usage is not None
    assert usage.units["provider_cost_usd"] == Decimal("0.00000000000000000014")
    nested = b'{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1,"cost":{"total_cost":0.00614}}}'
    assert read(nested) == read(nested)
    assert read(nested).usage == token_usage(1, 1, provider_cost_usd=Decimal("0.00614"))
    assert chat_usage({**USAGE, "cost_in_usd_ticks": 731000, "cost": 0}) == token_usage(10, 5, cost_in_usd_ticks=731000)


def test_tools_that_were_not_used_are_not_listed() -> None:
    raw = {
        **USAGE,
        "server_side_tool_usage_details": {"web_search_calls": 0},
        "server_tool_use": {"web_search_requests": 0},
    }
    assert chat_usage(raw) == token_usage(10, 5)


def test_the_service_tier_is_read_from_either_place() -> None:
    assert read(sse({**CHUNK, "service_tier": "flex"}, {**LAST, "usage": USAGE})).service_tier == "flex"
    assert read(sse(CHUNK, {**LAST, "usage": {**USAGE, "service_tier": "standard"}})).service_tier == "standard"


# --- embeddings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["usage first", "usage last"])
def test_embeddings_of_many_megabytes_are_metered(first: bool) -> None:
    """K12: neither end of the body is lost, the middle is not kept."""
    vector = json.dumps([{"embedding": [0.123456789] * 700_000}]).encode()
    usage = b'"usage":{"prompt_tokens":8,"total_tokens":8}'
    body = b'{"model":"e",' + (usage + b',"data":' + vector if first else b'"data":' + vector + b"," + usage) + b"}"
    assert len(body) > 6 << 20
    reading = read([body[start : start + 65536] for start in range(0, len(body), 65536)], api="embeddings")
    assert reading.usage == token_usage(8, 0)
    assert (reading.model, reading.terminal, reading.provenance) == ("e", True, Provenance.PROVIDER_FINAL)


def test_embeddings_may_only_report_a_total() -> None:
    assert read(b'{"model":"v","usage":{"total_tokens":12}}', api="embeddings").usage == token_usage(12, 0)


# --- responses ------------------------------------------------------------------------------------------------------

R_USAGE = {
    "input_tokens": 20,
    "output_tokens": 9,
    "total_tokens": 29,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
    "output_tokens_details": {"reasoning_tokens": 4},
}
R_EXPECTED = token_usage(20, 9, cached=5, cache_write=2, reasoning=4)


def responses_sse(kind: str, response: dict[str, Any]) -> bytes:
    created = {"type": "response.created", "response": {"id": "r1", "model": "m1", "usage": None, "error": None}}
    delta = {"type": "response.output_text.delta", "delta": "Hello"}
    finished = {"type": "response.output_text.done", "text": "Hello"}
    end = {"type": kind, "response": {"id": "r1", "model": "m1", **response}}
    events = (created, delta, finished, end)
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed", "cancelled"])
def test_usage_is_read_from_every_terminal_event(kind: str) -> None:
    """A3: a relay that only knew `completed` billed incomplete responses as zero."""
    body = responses_sse(f"response.{kind}", {"status": kind, "usage": R_USAGE})
    for step in (1, 50, len(body)):
        reading = read([body[start : start + step] for start in range(0, len(body), step)], api="responses")
        assert reading.usage == R_EXPECTED
        assert reading.provenance is Provenance.PROVIDER_FINAL
        assert reading.terminal
        assert reading.error == (kind == "failed")
        assert reading.output_text_bytes == 5


def test_event_names_may_be_missing() -> None:
    body = responses_sse("response.completed", {"usage": R_USAGE})
    bare = b"\n\n".join(event.split(b"\n", 1)[-1] for event in body.split(b"\n\n"))
    assert read(bare, api="responses").usage == R_EXPECTED


def test_a_terminal_event_of_megabytes_still_gives_its_usage() -> None:
    """I3: response.completed repeats the whole response."""
    image = {"type": "image_generation_call", "result": "A" * (3 << 20)}
    messages = [{"type": "message", "content": [{"text": "word " * 30}]}] * 20_000
    for output, calls in (([image], {"image_generation_calls": 1}), (messages, {})):
        body = responses_sse("response.completed", {"output": output, "usage": R_USAGE})
        reading = read([body[start : start + 9000] for start in range(0, len(body), 9000)], api="responses")
        assert reading.usage == Usage({**R_EXPECTED.units, **calls})
        assert (reading.terminal, reading.provenance) == (True, Provenance.PROVIDER_FINAL)


def test_tool_calls_are_counted_and_pages_opened_are_no_searches() -> None:
    output = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "file_search_call"},
        {"type": "code_interpreter_call"},
        {"type": "image_generation_call"},
        {"type": "message"},
    ]
    usage = read(responses_sse("response.completed", {"usage": R_USAGE, "output": output}), api="responses").usage
    assert usage is not None
    extra = {name: value for name, value in usage.units.items() if name not in R_EXPECTED.units}
    assert extra == {
        "web_search_calls": 1,
        "file_search_calls": 1,
        "code_interpreter_calls": 1,
        "image_generation_calls": 1,
    }


def test_a_queued_response_has_no_usage_yet() -> None:
    """Background: billed when it is fetched, once a response id."""
    reading = read(b'{"id":"r1","model":"m","status":"queued","usage":null,"error":null}', api="responses")
    assert (reading.usage, reading.terminal, reading.error, reading.response_id) == (None, True, False, "r1")


def test_an_error_event_is_seen() -> None:
    """D4, A17"""
    body = responses_sse("response.in_progress", {}) + b'event: error\ndata: {"type":"error","delta":"xxxxxx"}\n\n'
    reading = read(body, api="responses")
    assert (reading.error, reading.usage, reading.output_text_bytes) == (True, None, 5)
