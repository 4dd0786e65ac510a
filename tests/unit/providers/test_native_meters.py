"""The native text APIs of Cohere, Ollama and watsonx, Anthropic's old completions and OpenAI's runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lava_proxy.domain.usage import Provenance, Usage, token_usage
from lava_proxy.providers.estimate import estimate
from tests.unit.providers.meter_help import asked, provider, read

SSE = "text/event-stream"


def sse(*events: tuple[str, dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(f"event: {name}{end}data: {json.dumps(data)}{end}{end}" for name, data in events).encode()


def lines(*events: dict[str, Any]) -> bytes:
    return "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events).encode()


@pytest.mark.parametrize(
    "path, api",
    [
        ("/v1/chat", "cohere_chat"),
        ("/v2/chat", "cohere_chat"),
        ("/v2/embed", "embed"),
        ("/api/chat", "ollama"),
        ("/v1/api/generate", "ollama"),
        ("/api/embed", "ollama_embed"),
        ("/ml/v1/text/generation", "watsonx"),
        ("/ml/v1/text/generation_stream", "watsonx"),
        ("/ml/v1/deployments/d/text/generation", "watsonx"),
        ("/ml/v1/text/chat", "watsonx_chat"),
        ("/v1/complete", "complete"),
        ("/v1/threads/t/runs", "runs"),
        ("/v1/threads/runs", "runs"),
        ("/v1/threads/t/runs/r/submit_tool_outputs", "runs"),
        ("/v1/agents/completions", "agents"),
        ("/v1/fim/completions", "chat"),
        ("/v1/models/o/n/predictions", "predictions"),
    ],
)
def test_the_path_names_the_api(path: str, api: str) -> None:
    """B1: and something is held for it."""
    call = asked(path, {"model": "m"})
    assert (call.api, call.billable) == (api, True)
    assert call.ceiling.input_tokens > 0


@pytest.mark.parametrize(
    "path, body, limit",
    [
        ("/v2/chat", {"max_tokens": 9}, 9),
        ("/v1/chat", {"max_tokens": 9, "num_generations": 2}, 18),
        ("/api/chat", {"options": {"num_predict": 9}}, 9),
        ("/v1/complete", {"max_tokens_to_sample": 9}, 9),
        ("/ml/v1/text/generation", {"parameters": {"max_new_tokens": 9}}, 9),
        ("/v2/embed", {"texts": ["a"]}, 0),
    ],
)
def test_each_apis_own_limit_sizes_the_hold(path: str, body: dict[str, Any], limit: int) -> None:
    """E10"""
    assert asked(path, body).ceiling.output_tokens == limit


def test_watsonx_names_its_model_otherwise() -> None:
    call = asked("/ml/v1/text/generation_stream", {"model_id": "ibm/granite", "input": "Hi"})
    assert (call.model, call.stream) == ("ibm/granite", True)


def test_ollama_streams_unless_it_is_told_not_to() -> None:
    assert asked("/api/chat", {"model": "m"}).stream
    assert not asked("/api/chat", {"model": "m", "stream": False}).stream


# --- Cohere ---------------------------------------------------------------------------------------------------------

COHERE = asked("/v2/chat", {"model": "m", "stream": True})
BILLED = {
    "billed_units": {"input_tokens": 12, "output_tokens": 36},
    "tokens": {"input_tokens": 212, "output_tokens": 37},
    "cached_tokens": 208,
}
AS_BILLED = token_usage(12, 36, cohere_cached_tokens=208, tokens_raw_input=212, tokens_raw_output=37)


def test_cohere_is_billed_by_billed_units() -> None:
    """A10: `tokens` counts the template, and its cached tokens discount nothing."""
    for key in ("usage", "meta"):
        reading = read(COHERE, json.dumps({"id": "i", key: BILLED}).encode())
        assert (reading.usage, reading.provenance, reading.response_id) == (AS_BILLED, Provenance.PROVIDER_FINAL, "i")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_v2_stream_ends_with_message_end(end: str) -> None:
    events: list[tuple[str, dict[str, Any]]] = [
        ("message-start", {"id": "i", "type": "message-start", "delta": {}}),
        ("content-delta", {"type": "content-delta", "delta": {"message": {"content": {"text": "Hi"}}}}),
        ("message-end", {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": BILLED}}),
    ]
    whole = read(COHERE, sse(*events, end=end), content_type=SSE)
    assert (whole.usage, whole.terminal, whole.error, whole.output_text_bytes) == (AS_BILLED, True, False, 2)
    cut = read(COHERE, sse(*events[:2], end=end), content_type=SSE)
    assert (cut.usage, cut.terminal, cut.response_id, cut.output_text_bytes) == (None, False, "i", 2)


def test_a_v1_stream_is_lines_and_its_last_one_is_not_counted_as_text_again() -> None:
    body = lines(
        {"is_finished": False, "event_type": "stream-start", "generation_id": "g"},
        {"is_finished": False, "event_type": "text-generation", "text": "Hi"},
        {"is_finished": True, "event_type": "stream-end", "response": {"text": "Hi", "meta": BILLED}, "finish_reason": "COMPLETE"},
    )
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))], [body[:-1]]):
        reading = read(asked("/v1/chat", {"stream": True}), *pieces, content_type="application/stream+json")
        assert (reading.usage, reading.terminal, reading.output_text_bytes) == (AS_BILLED, True, 2)


def test_a_failed_cohere_stream_is_an_error() -> None:
    """D3"""
    v2 = sse(("message-end", {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "x"}}))
    assert read(COHERE, v2, content_type=SSE).error
    v1 = lines({"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR_LIMIT", "response": {}})
    assert read(COHERE, v1, content_type="application/stream+json").error


def test_cohere_embeds_images_beside_text() -> None:
    billed = {"input_tokens": 5, "image_tokens": 100, "images": 2}
    reading = read(asked("/v2/embed", {"model": "m"}), json.dumps({"meta": {"billed_units": billed}}).encode())
    assert reading.usage == token_usage(105, 0, input_image_tokens=100, images=2)


# --- Ollama ---------------------------------------------------------------------------------------------------------


def test_ollamas_last_line_counts() -> None:
    call = asked("/api/chat", {"model": "m"})
    body = lines(
        {"model": "m", "message": {"content": "He"}, "done": False},
        {"model": "m", "message": {"content": "llo"}, "done": False},
        {"model": "m", "message": {"content": ""}, "done": True, "eval_count": 7},
    )
    for pieces in ([body], [body[i : i + 3] for i in range(0, len(body), 3)], [body[:-1]]):
        reading = read(call, *pieces, content_type="application/x-ndjson")
        assert (reading.usage, reading.terminal, reading.model, reading.output_text_bytes) == (token_usage(0, 7), True, "m", 5)
    cut = read(call, body[:80], content_type="application/x-ndjson")
    assert (cut.usage, cut.terminal) == (None, False)


def test_an_ollama_error_line_is_an_error() -> None:
    """A17, D3"""
    body = lines({"model": "m", "response": "Hi", "done": False}, {"error": "out of memory"})
    reading = read(asked("/api/generate", {"model": "m"}), body, content_type="application/x-ndjson")
    assert (reading.error, reading.output_text_bytes) == (True, 2)


def test_ollama_embeds() -> None:
    assert read(
        asked("/api/embed", {"model": "m"}), b'{"model":"m","embeddings":[[1]],"prompt_eval_count":8}'
    ).usage == token_usage(8, 0)


# --- watsonx --------------------------------------------------------------------------------------------------------


def generated(output: int, stop: str, read_tokens: int = 0) -> tuple[str, dict[str, Any]]:
    result = {"generated_text": "x", "generated_token_count": output, "input_token_count": read_tokens, "stop_reason": stop}
    return "message", {"model_id": "ibm/granite", "results": [result]}


def test_watsonx_streams_are_cumulative_and_the_input_is_named_once() -> None:
    """A21"""
    call = asked("/ml/v1/text/generation_stream", {"model_id": "ibm/granite"})
    events = [generated(0, "not_finished", 8), generated(1, "not_finished"), generated(11, "eos_token")]
    whole = read(call, sse(*events), content_type=SSE)
    assert (whole.usage, whole.model, whole.terminal) == (token_usage(8, 11), "ibm/granite", True)
    cut = read(call, sse(*events[:2]), content_type=SSE)
    assert (cut.usage, cut.provenance, cut.terminal) == (token_usage(8, 1), Provenance.PROVIDER_PARTIAL, False)
    failed = read(call, sse(events[0], ("error", {"errors": [{"code": "x"}]})), content_type=SSE)
    assert failed.error


def test_watsonx_documents_sum_their_results() -> None:
    body = {"model_id": "g", "results": [{"input_token_count": 3, "generated_token_count": 4}, {"generated_token_count": 5}]}
    assert read(asked("/ml/v1/text/generation", {}), json.dumps(body).encode()).usage == token_usage(3, 9)
    embedded = read(asked("/ml/v1/text/embeddings", {"model_id": "e"}), b'{"results":[{"embedding":[]}],"input_token_count":10}')
    assert embedded.usage == token_usage(10, 0)
    chat = b'{"model_id":"g","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
    assert read(asked("/ml/v1/text/chat", {"model_id": "g"}), chat).usage == token_usage(1, 2)


# --- the old APIs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_old_completions_report_nothing_and_are_estimated_from_the_text(stream: bool) -> None:
    call = asked("/v1/complete", {"model": "claude-2", "prompt": "some words " * 100, "stream": stream})
    event = {"type": "completion", "completion": "some words " * 4, "model": "claude-2", "log_id": "l"}
    reading = read(call, sse(("completion", event)) if stream else json.dumps(event).encode(), content_type=SSE)
    assert (reading.usage, reading.provenance, reading.model) == (None, Provenance.NONE, "claude-2")
    guessed = estimate(provider(), call, reading)
    assert 200 < guessed.input_tokens < 300 and 8 <= guessed.output_tokens <= 12


def test_a_runs_steps_are_not_added_to_it() -> None:
    """A15"""

    def usage(n: int) -> dict[str, int]:
        return {"prompt_tokens": n, "completion_tokens": 2 * n, "total_tokens": 3 * n}

    body = sse(
        ("thread.run.created", {"id": "run_1", "object": "thread.run", "model": "gpt-4o-mini", "usage": None}),
        ("thread.message.delta", {"object": "thread.message.delta", "delta": {"content": [{"text": {"value": "Hi"}}]}}),
        ("thread.message.completed", {"object": "thread.message", "content": [{"text": {"value": "Hi"}}]}),
        ("thread.run.step.completed", {"id": "step_1", "object": "thread.run.step", "usage": usage(3)}),
        ("thread.run.completed", {"id": "run_1", "object": "thread.run", "model": "gpt-4o-mini", "usage": usage(5)}),
    )
    reading = read(
        asked("/v1/threads/t/runs", {"assistant_id": "a", "stream": True}),
        body + b"event: done\ndata: [DONE]\n\n",
        content_type=SSE,
    )
    assert (reading.usage, reading.response_id, reading.terminal, reading.output_text_bytes) == (
        token_usage(5, 10),
        "run_1",
        True,
        2,
    )


def test_an_estimate_keeps_units_that_are_no_tokens() -> None:
    """B1"""
    call = asked("/v1/ocr", {"model": "m", "document": {"type": "image_url"}})
    assert estimate(provider(), call, read(call, b"")) == Usage({"pages_processed": 1})
