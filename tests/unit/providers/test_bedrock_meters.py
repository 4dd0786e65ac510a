"""Bedrock: Converse, and each model's own bodies under invoke."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from lava_proxy.domain.usage import Provenance, Usage, token_usage
from lava_proxy.providers.base import Call
from lava_proxy.wire.aws_event_stream import encode_frame
from tests.unit.providers.meter_help import asked, read

EVENTS = "application/vnd.amazon.eventstream"
CONVERSE = asked("/model/amazon.nova-lite-v1%3A0/converse-stream", {"messages": []})
INVOKE = asked("/model/anthropic.claude-v2/invoke-with-response-stream")
PLAIN_INVOKE = asked("/model/m/invoke")


def frame(name: str, event: dict[str, Any], kind: str = "event") -> bytes:
    return encode_frame({":event-type": name, ":message-type": kind}, json.dumps(event).encode())


def chunk(event: dict[str, Any]) -> bytes:
    return frame("chunk", {"bytes": b64encode(json.dumps(event).encode()).decode(), "p": "abc"})


def head(**counts: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((f"X-Amzn-Bedrock-{name.replace('_', '-')}-Token-Count".encode(), b"%d" % n) for name, n in counts.items())


@pytest.mark.parametrize(
    "path, api, model, stream",
    [
        ("/model/us.anthropic.claude-x-v1:0/converse", "converse", "us.anthropic.claude-x-v1:0", False),
        ("/model/a%3A0/converse-stream", "converse", "a:0", True),
        ("/model/a/invoke", "invoke", "a", False),
        ("/model/a/invoke-with-response-stream", "invoke", "a", True),
        ("/model/arn%3Aaws%3Abedrock%3Ax%2Fy/invoke", "invoke", "arn:aws:bedrock:x/y", False),
    ],
)
def test_the_path_names_the_api_and_the_model(path: str, api: str, model: str, stream: bool) -> None:
    call = asked(path)
    assert (call.api, call.model, call.stream) == (api, model, stream)


def test_counting_tokens_is_free() -> None:
    assert not asked("/model/a/count-tokens").billable


@pytest.mark.parametrize(
    "body, limit",
    [
        ({"inferenceConfig": {"maxTokens": 77}}, 77),
        ({"max_tokens": 77}, 77),
        ({"max_gen_len": 77}, 77),
        ({"textGenerationConfig": {"maxTokenCount": 77}}, 77),
        ({"inferenceConfig": {"max_new_tokens": 77}}, 77),
    ],
)
def test_every_models_own_limit_sizes_the_hold(body: dict[str, Any], limit: int) -> None:
    """E10"""
    assert asked("/model/m/invoke", body).ceiling.output_tokens == limit
    assert asked("/model/m/converse", {"inferenceConfig": {"maxTokens": limit}}).ceiling.output_tokens == limit


def test_converse_input_includes_the_cache_and_1h_writes_are_told_apart() -> None:
    """A4, A8: inputTokens excludes the cache, as with Anthropic."""
    usage = {
        "inputTokens": 3,
        "outputTokens": 5,
        "cacheReadInputTokens": 100,
        "cacheWriteInputTokens": 20,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 15}, {"ttl": "5m", "inputTokens": 5}],
    }
    body = json.dumps({"output": {}, "usage": usage, "serviceTier": {"type": "flex"}}).encode()
    reading = read(asked("/model/m/converse"), body)
    expected = token_usage(123, 5, cached=100, cache_write=20, uncached_input_tokens=3, cache_write_1h_tokens=15)
    assert (reading.usage, reading.provenance, reading.service_tier) == (expected, Provenance.PROVIDER_FINAL, "flex")


def test_a_converse_stream_ends_with_its_metadata() -> None:
    """C3: without it, what was relayed is known and nothing is called final."""
    texts = frame("contentBlockDelta", {"delta": {"text": "Hi"}}) + frame(
        "contentBlockDelta", {"delta": {"reasoningContent": {"text": "hm"}}}
    )
    tools = frame("contentBlockDelta", {"delta": {"toolUse": {"input": '{"a"'}}})
    stopped = texts + tools + frame("messageStop", {"stopReason": "end_turn"})
    cut = read(CONVERSE, stopped, content_type=EVENTS)
    assert (cut.usage, cut.terminal, cut.output_text_bytes) == (None, False, 8)
    whole = read(CONVERSE, stopped + frame("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2}}), content_type=EVENTS)
    assert whole.usage == token_usage(1, 2, uncached_input_tokens=1)
    assert (whole.terminal, whole.provenance, whole.output_text_bytes) == (True, Provenance.PROVIDER_FINAL, 8)


@pytest.mark.parametrize("kind", ["exception", "error"])
def test_an_exception_frame_is_an_error_and_no_output(kind: str) -> None:
    """A17, D3"""
    body = frame("contentBlockDelta", {"delta": {"text": "Hi"}}) + frame("x", {"message": "slow down", "text": "no"}, kind)
    for call in (CONVERSE, INVOKE):
        reading = read(call, body, content_type=EVENTS)
        assert (reading.error, reading.output_text_bytes, reading.usage) == (True, 2, None)


def test_a_guardrail_is_reported_as_unseen() -> None:
    body = {"trace": {"guardrail": {"x": 1}}, "usage": {"inputTokens": 1, "outputTokens": 2}}
    assert read(asked("/model/m/converse"), json.dumps(body).encode()).unseen == ("guardrail",)


@pytest.mark.parametrize(
    "body, expected",
    [
        ({"prompt_token_count": 5, "generation_token_count": 10}, token_usage(5, 10)),
        ({"inputTextTokenCount": 9, "results": [{"tokenCount": 7}, {"tokenCount": 2}]}, token_usage(9, 9)),
        ({"embedding": [0.5], "inputTextTokenCount": 9}, token_usage(9, 0)),
        ({"usage": {"prompt_tokens": 6, "completion_tokens": 3, "total_tokens": 9}}, token_usage(6, 3)),
        ({"usage": {"inputTokens": 6, "outputTokens": 3, "cacheReadInputTokenCount": 4}}, token_usage(10, 3, cached=4)),
        (
            {"usage": {"input_tokens": 6, "output_tokens": 3, "cache_read_input_tokens": 4}},
            token_usage(10, 3, cached=4, uncached_input_tokens=6),
        ),
        ({"images": ["a", "b"]}, Usage({"images": 2})),
    ],
)
def test_invoke_reads_each_models_own_body(body: dict[str, Any], expected: Usage) -> None:
    """A10"""
    reading = read(PLAIN_INVOKE, json.dumps(body).encode(), headers=head(input=1, output=1))
    assert (reading.usage, reading.provenance) == (expected, Provenance.PROVIDER_FINAL)


def test_invoke_falls_back_to_the_response_headers() -> None:
    headers = head(input=3, output=44, cache_read_input=9511, cache_write_input=1956)
    for body in (b'{"text":"Hello"}', b'{"embeddings":[[0.1', b""):
        reading = read(PLAIN_INVOKE, body, headers=headers)
        assert reading.usage == token_usage(11470, 44, cached=9511, cache_write=1956)
        assert reading.provenance is Provenance.PROVIDER_FINAL
    for wrong in (b"-1", b"x", b"", b"9" * 30):
        reading = read(PLAIN_INVOKE, b'{"text":"Hello"}', headers=((b"x-amzn-bedrock-input-token-count", wrong),))
        assert reading.usage is None
    assert read(PLAIN_INVOKE, b"{}", status=400, headers=headers).usage is None


def invoke(*events: dict[str, Any], call: Call = INVOKE) -> Any:
    return read(call, *map(chunk, events), content_type=EVENTS)


METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 392, "outputTokenCount": 97, "cacheReadInputTokenCount": 8}}


def test_the_models_own_usage_wins_over_the_invocation_metrics() -> None:
    start = {"type": "message_start", "message": {"model": "claude", "id": "i", "usage": {"input_tokens": 392, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 133}}
    reading = invoke(start, text, delta, {"type": "message_stop", **METRICS})
    assert reading.usage == token_usage(392, 133, uncached_input_tokens=392)
    # The URL's name is what AWS bills.
    assert (reading.model, reading.terminal, reading.output_text_bytes) == (None, True, 5)
    early = invoke(start, text)
    assert (early.usage.output_tokens, early.provenance) == (1, Provenance.PROVIDER_PARTIAL)


def test_a_model_without_usage_is_billed_by_the_invocation_metrics() -> None:
    told = {"is_finished": True, "event_type": "stream-end", "response": {"text": "Hello"}, **METRICS}
    reading = invoke({"event_type": "text-generation", "text": "Hello"}, told)
    assert reading.usage == token_usage(400, 97, cached=8)
    assert (reading.provenance, reading.terminal, reading.output_text_bytes) == (Provenance.PROVIDER_FINAL, True, 5)


def test_llamas_counts_are_cumulative_and_the_last_ones_stand() -> None:
    """A21"""
    reading = invoke(
        {"generation": "He", "prompt_token_count": 5, "generation_token_count": 1, "stop_reason": None},
        {"generation": "llo", "prompt_token_count": None, "generation_token_count": 2, "stop_reason": None},
        {"generation": "", "prompt_token_count": None, "generation_token_count": 3, "stop_reason": "stop", **METRICS},
    )
    assert reading.usage == token_usage(5, 3)
    assert reading.output_text_bytes == 5


@pytest.mark.parametrize("sides, output", [({"input": {}}, 0), ({"outputs": []}, 3), ({"input": {}, "outputs": []}, 3)])
def test_a_prompt_that_the_guardrail_stopped_has_no_model_output(sides: dict[str, Any], output: int) -> None:
    blocked = {
        "outputText": "Input blocked",
        "totalOutputTextTokenCount": 3.0,
        "inputTextTokenCount": 6.0,
        "amazon-bedrock-guardrailAction": "INTERVENED",
        "amazon-bedrock-trace": {"guardrail": sides},
    }
    reading = invoke(blocked)
    assert reading.usage == token_usage(6, output)
    assert reading.unseen == ("guardrail",)


def test_a_chunk_that_is_no_base64_is_passed_over() -> None:
    reading = read(INVOKE, frame("chunk", {"bytes": "%%%"}), frame("chunk", {"other": 1}), content_type=EVENTS)
    assert reading.usage is None and not reading.error


@pytest.mark.parametrize(
    ("asked_model", "model"),
    [
        ("global.anthropic.claude-haiku-4-5-20251001-v1:0", None),
        ("anthropic.claude-v2", None),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0", None),
        ("arn:aws:bedrock:us-east-1:1:application-inference-profile/a1b2c3d4e5f6", "claude-haiku-4-5"),
        ("arn:aws:bedrock:us-east-1:1:provisioned-model/a1b2c3d4e5f6", "claude-haiku-4-5"),
    ],
)
def test_the_body_names_the_model_only_where_the_url_does_not(asked_model: str, model: str | None) -> None:
    """B6: the maker's bare name resolved to the regional price, a tenth above the global one."""
    body = {"id": "i", "type": "message", "model": "claude-haiku-4-5", "usage": {"input_tokens": 3, "output_tokens": 5}}
    call = asked(f"/model/{asked_model.replace('/', '%2F').replace(':', '%3A')}/invoke")
    assert (call.model, read(call, json.dumps(body).encode()).model) == (asked_model, model)
    events = chunk({"type": "message_start", "message": body}) + chunk({"type": "message_stop"})
    streamed = asked(f"/model/{asked_model.replace('/', '%2F').replace(':', '%3A')}/invoke-with-response-stream")
    assert read(streamed, events, content_type=EVENTS).model == model
