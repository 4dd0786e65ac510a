"""Answers as their APIs document them, of combinations that no recording shows: each is read in every form it can come in.

The bodies are made here; what is expected of each is what the documentation of its API says that is billed.
"""

from __future__ import annotations

import json
import random
import tomllib
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lava_proxy.domain.usage import Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Call
from lava_proxy.providers.registry import load_registry
from tests.unit.providers.response_forms import Answer, array, chunks, coded, document, frames, lines, sse

CONFIG = Path(__file__).resolve().parents[3] / "config" / "providers.toml"
REGISTRY = load_registry(tomllib.loads(CONFIG.read_text()))
RANDOM_SPLITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`usage` None: the answer says nothing that is billed. `more`: other fields of the reading."""

    name: str
    of: str
    path: str
    answer: Answer
    usage: Usage | None
    asks: dict[str, Any] = field(default_factory=dict)
    method: str = "POST"
    query: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    provenance: Provenance = Provenance.PROVIDER_FINAL
    more: dict[str, Any] = field(default_factory=dict)


def units(**counts: Any) -> Usage:
    return Usage(counts)


def chat_chunk(choices: list[dict[str, Any]] | None = None, **others: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices or [], **others}


def said(text: str, **others: Any) -> dict[str, Any]:
    return chat_chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}], **others)


def stopped(**others: Any) -> dict[str, Any]:
    return chat_chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], **others)


def counts(prompt: int, completion: int, **others: Any) -> dict[str, Any]:
    total = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**total, **others}


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "msg_1", "type": "message", "model": "claude-x", "usage": usage}}


def delta(stop: str = "end_turn", **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": usage}


def spoken(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


STOP: dict[str, Any] = {"type": "message_stop"}
PING: dict[str, Any] = {"type": "ping"}


def messages(*events: dict[str, Any]) -> Answer:
    return sse(*events, STOP, named=True)


def response(*, output: list[dict[str, Any]] | None = None, status: str = "completed", **others: Any) -> dict[str, Any]:
    made = {"id": "resp_1", "object": "response", "status": status, "model": "gpt-x", "output": output or [], **others}
    return made


def tokens(read: int, generated: int, cached: int = 0, reasoning: int = 0, **others: Any) -> dict[str, Any]:
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, **others},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": read + generated,
    }


def modality(**by: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": count} for name, count in by.items()]


def gemini(text: str = "", *, finish: str | None = None, usage: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **others}
    chunk: dict[str, Any] = {"candidates": [{**candidate, **({"finishReason": finish} if finish else {})}]}
    return {**chunk, **({"usageMetadata": usage} if usage else {}), "modelVersion": "gemini-x", "responseId": "r1"}


OPENAI = [
    Case(
        name="chat with every detail",
        of="openai",
        path="/v1/chat/completions",
        asks={"model": "gpt-x", "messages": []},
        answer=document(
            {
                "id": "c1",
                "model": "gpt-x-2026-01-01",
                "service_tier": "priority",
                "choices": [{"index": 0, "message": {"content": "Hi", "audio": {"data": "QUJD" * 99}}, "finish_reason": "stop"}],
                "usage": counts(
                    900,
                    300,
                    prompt_tokens_details={
                        "cached_tokens": 128,
                        "cache_write_tokens": 256,
                        "audio_tokens": 40,
                        "text_tokens": 800,
                        "image_tokens": 60,
                    },
                    completion_tokens_details={
                        "reasoning_tokens": 64,
                        "audio_tokens": 100,
                        "accepted_prediction_tokens": 7,
                        "rejected_prediction_tokens": 9,
                    },
                ),
            }
        ),
        usage=token_usage(
            900,
            300,
            cached=128,
            cache_write=256,
            reasoning=64,
            input_audio_tokens=40,
            input_image_tokens=60,
            output_audio_tokens=100,
        ),
        more={"service_tier": "priority", "model": "gpt-x-2026-01-01"},
    ),
    Case(
        name="chat stream with moderation behind the usage",
        of="openai",
        path="/v1/chat/completions",
        asks={"model": "gpt-x", "messages": [], "stream": True, "stream_options": {"include_usage": True}},
        answer=sse(
            said("", usage=None),
            said("Hi", usage=None, obfuscation="x8"),
            stopped(usage=None),
            chat_chunk(usage=counts(9, 2), service_tier="flex"),
            chat_chunk(moderation={"flagged": False}, usage=None),
            done=True,
        ),
        usage=token_usage(9, 2),
        more={"service_tier": "flex", "terminal": True},
    ),
    Case(
        name="an empty usage behind the real one hides nothing",
        of="vllm",
        path="/v1/chat/completions",
        asks={"model": "m", "messages": [], "stream": True},
        answer=sse(said("Hi"), stopped(), chat_chunk(usage=counts(9, 2)), chat_chunk(usage={}), done=True),
        usage=token_usage(9, 2),
    ),
    Case(
        name="a model that searches in every call",
        of="openai",
        path="/v1/chat/completions",
        asks={"model": "gpt-4o-search-preview", "messages": []},
        answer=document({"id": "c", "model": "gpt-4o-search-preview-2025-03-11", "choices": [], "usage": counts(9, 400)}),
        usage=token_usage(9, 400),
        more={"unseen": ("web_search",)},
    ),
    Case(
        name="legacy completions of several prompts",
        of="openai",
        path="/v1/completions",
        asks={"model": "davinci-002", "prompt": ["a", "b"]},
        answer=document({"id": "c", "model": "davinci-002", "choices": [{"text": "x"}, {"text": "y"}], "usage": counts(8, 32)}),
        usage=token_usage(8, 32),
    ),
    Case(
        name="responses stream with all the tools, ended by its limit",
        of="openai",
        path="/v1/responses",
        asks={"model": "gpt-x", "input": "x", "stream": True},
        answer=sse(
            {"type": "response.created", "response": response(status="in_progress", usage=None)},
            {"type": "response.output_text.delta", "delta": "Hi", "obfuscation": "abc"},
            {
                "type": "response.incomplete",
                "response": response(
                    status="incomplete",
                    service_tier="flex",
                    output=[
                        {"type": "web_search_call", "id": "1", "action": {"type": "search", "query": "q", "queries": ["q", "r"]}},
                        {"type": "web_search_call", "id": "2", "action": {"type": "open_page", "url": "https://x"}},
                        {"type": "web_search_call", "id": "3", "action": {"type": "find_in_page", "pattern": "x"}},
                        {"type": "file_search_call", "id": "4", "queries": ["x"]},
                        {"type": "code_interpreter_call", "id": "5", "container_id": "c1", "code": "1"},
                        {"type": "image_generation_call", "id": "6", "result": "QUJD" * 30},
                        {"type": "mcp_call", "id": "7"},
                        {"type": "function_call", "id": "8", "arguments": "{}"},
                        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
                    ],
                    usage=tokens(5000, 64, cached=1024, reasoning=32, cache_write_tokens=2048),
                ),
            },
            named=True,
        ),
        usage=token_usage(
            5000,
            64,
            cached=1024,
            cache_write=2048,
            reasoning=32,
            web_search_calls=1,
            file_search_calls=1,
            code_interpreter_calls=1,
            image_generation_calls=1,
        ),
        more={"unseen": ("image_generation",), "service_tier": "flex", "terminal": True},
    ),
    Case(
        name="a background response that is fetched when it failed",
        of="openai",
        path="/v1/responses/resp_1",
        method="GET",
        answer=document(response(status="failed", background=True, error={"code": "server_error"}, usage=tokens(10, 3))),
        usage=token_usage(10, 3),
        more={"deferred": True, "error": True},
    ),
    Case(
        name="a background response that is still queued",
        of="openai",
        path="/v1/responses",
        asks={"model": "gpt-x", "input": "x", "background": True},
        answer=document(response(status="queued", background=True, usage=None)),
        usage=None,
        provenance=Provenance.NONE,
        more={"deferred": True},
    ),
    Case(
        name="a compacted conversation",
        of="openai",
        path="/v1/responses/compact",
        asks={"model": "gpt-x", "input": []},
        answer=document({"id": "resp_9", "object": "response.compaction", "output": [], "usage": tokens(900, 40, reasoning=8)}),
        usage=token_usage(900, 40, reasoning=8),
    ),
    Case(
        name="embeddings in base64",
        of="openai",
        path="/v1/embeddings",
        asks={"model": "text-embedding-3-small", "input": ["a"], "encoding_format": "base64"},
        answer=document(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": "AAAA" * 2048}],
                "model": "text-embedding-3-small",
                "usage": {"prompt_tokens": 5, "total_tokens": 5},
            }
        ),
        usage=token_usage(5, 0),
    ),
    Case(
        name="speech as events",
        of="openai",
        path="/v1/audio/speech",
        asks={"model": "gpt-4o-mini-tts", "input": "Hi", "voice": "x", "stream_format": "sse"},
        answer=sse(
            {"type": "speech.audio.delta", "audio": "QUJD" * 50},
            {"type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}},
        ),
        usage=token_usage(14, 101),
        more={"terminal": True},
    ),
    Case(
        name="a transcription by tokens",
        of="openai",
        path="/v1/audio/transcriptions",
        asks={"model": "gpt-4o-transcribe"},
        answer=document(
            {
                "text": "Hi",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "output_tokens": 45,
                    "total_tokens": 59,
                    "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
                },
            }
        ),
        usage=token_usage(14, 45, input_audio_tokens=4),
    ),
    Case(
        name="a transcription by its length, which is told twice",
        of="openai",
        path="/v1/audio/transcriptions",
        asks={"model": "whisper-1", "response_format": "verbose_json"},
        answer=document({"task": "transcribe", "duration": 8.470000267, "text": "Hi", "usage": {"type": "duration", "seconds": 9}}),
        usage=units(audio_seconds=9),
    ),
    Case(
        name="a transcription stream of words",
        of="openai",
        path="/v1/audio/transcriptions",
        asks={"model": "gpt-4o-transcribe", "stream": True},
        answer=sse(
            {"type": "transcript.text.delta", "delta": "Hi"},
            {
                "type": "transcript.text.done",
                "text": "Hi",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 30,
                    "output_tokens": 6,
                    "total_tokens": 36,
                    "input_token_details": {"text_tokens": 0, "audio_tokens": 30},
                },
            },
            done=True,
        ),
        usage=token_usage(30, 6, input_audio_tokens=30),
    ),
    Case(
        name="a drawn picture with partial ones before it",
        of="openai",
        path="/v1/images/generations",
        asks={"model": "gpt-image-1", "prompt": "x", "stream": True, "partial_images": 2},
        answer=sse(
            {"type": "image_generation.partial_image", "b64_json": "QUJD" * 40, "partial_image_index": 0},
            {"type": "image_generation.partial_image", "b64_json": "QUJD" * 40, "partial_image_index": 1},
            {
                "type": "image_generation.completed",
                "b64_json": "QUJD" * 80,
                "size": "1024x1024",
                "quality": "high",
                "usage": {
                    "total_tokens": 4410,
                    "input_tokens": 50,
                    "output_tokens": 4360,
                    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
                },
            },
            named=True,
        ),
        usage=token_usage(50, 4360, images=1),
    ),
    Case(
        name="an edited picture, of which nothing but the number is told",
        of="openai",
        path="/v1/images/variations",
        asks={"model": "dall-e-2", "n": 2},
        answer=document({"created": 1, "data": [{"url": "https://a"}, {"url": "https://b"}]}),
        usage=units(images=2),
    ),
    Case(
        name="a failed response stream is billed what it says",
        of="openai",
        path="/v1/responses",
        asks={"model": "gpt-x", "input": "x", "stream": True},
        answer=sse(
            {"type": "response.created", "response": response(status="in_progress", usage=None)},
            {"type": "response.failed", "response": response(status="failed", error={"code": "x"}, usage=tokens(7, 1))},
            named=True,
        ),
        usage=token_usage(7, 1),
        more={"error": True, "terminal": True},
    ),
    Case(
        name="a response stream whose end repeats none of its items",
        of="azure",
        path="/openai/v1/responses",
        asks={"model": "gpt-x", "input": "x", "stream": True},
        answer=sse(
            {"type": "response.created", "response": response(status="in_progress", usage=None)},
            {"type": "response.output_item.done", "item": {"type": "web_search_call", "action": {"type": "search"}}},
            {"type": "response.output_item.done", "item": {"type": "web_search_call", "action": {"type": "open_page"}}},
            {"type": "response.output_item.done", "item": {"type": "message", "content": []}},
            {"type": "response.completed", "response": response(usage=tokens(70, 9))},
            named=True,
        ),
        usage=token_usage(70, 9, web_search_calls=1),
    ),
    Case(
        name="shells, one of them the provider's",
        of="openai",
        path="/v1/responses",
        asks={"model": "gpt-x", "input": "x"},
        answer=document(
            response(
                output=[
                    {"type": "shell_call", "environment": {"type": "local"}},
                    {"type": "shell_call", "environment": {"type": "container_reference", "container_id": "c"}},
                ],
                usage=tokens(70, 9),
            )
        ),
        usage=token_usage(70, 9),
        more={"unseen": ("hosted_shell",)},
    ),
    Case(
        name="a decision",
        of="openai",
        path="/v1/decisions",
        asks={"model": "gpt-x", "input": "x"},
        answer=document({"id": "dec_1", "object": "decision", "model": "gpt-x", "answers": [], "usage": tokens(50, 2, cached=8)}),
        usage=token_usage(50, 2, cached=8),
    ),
    Case(
        name="a drawing whose lines another model wrote",
        of="openai",
        path="/v1/images/generations",
        asks={"model": "gpt-image-2", "prompt": "x", "output_format": "svg"},
        answer=document(
            {
                "created": 1,
                "data": [{"b64_json": "QUJD"}],
                "usage": {
                    "input_tokens": 9,
                    "output_tokens": 200,
                    "total_tokens": 209,
                    "output_tokens_details": {"image_tokens": 200, "text_tokens": 0},
                },
                "svg_usage": {
                    "model": "gpt-y",
                    "input_tokens": 300,
                    "output_tokens": 80,
                    "reasoning_tokens": 30,
                    "total_tokens": 380,
                },
            }
        ),
        usage=token_usage(
            9, 200, output_image_tokens=200, images=1, other_models={"gpt-y": dict(token_usage(300, 80, reasoning=30).units)}
        ),
    ),
    Case(
        name="a run of a thread that was only ordered",
        of="openai",
        path="/v1/threads/t/runs",
        asks={"assistant_id": "a"},
        answer=document({"id": "run_1", "object": "thread.run", "status": "queued", "model": "gpt-4o", "usage": None}),
        usage=None,
        provenance=Provenance.NONE,
        more={"deferred": True},
    ),
    Case(
        name="a run of a thread that is fetched",
        of="openai",
        path="/v1/threads/t/runs/run_1",
        method="GET",
        answer=document({"id": "run_1", "object": "thread.run", "status": "completed", "model": "gpt-4o", "usage": counts(12, 3)}),
        usage=token_usage(12, 3),
        more={"deferred": True},
    ),
    Case(
        name="a run of a thread that streams its steps",
        of="azure",
        path="/openai/threads/t/runs",
        asks={"assistant_id": "a", "stream": True},
        query="api-version=2024-05-01-preview",
        answer=Answer(
            "sse",
            (
                {"event_type": "thread.run.created", "id": "run_1", "object": "thread.run", "status": "queued", "usage": None},
                {"event_type": "thread.message.delta", "object": "thread.message.delta", "delta": {"content": []}},
                {"event_type": "thread.run.step.completed", "object": "thread.run.step", "usage": counts(5, 1)},
                {
                    "event_type": "thread.run.completed",
                    "id": "run_1",
                    "object": "thread.run",
                    "model": "gpt-4o",
                    "status": "completed",
                    "usage": counts(12, 3, prompt_token_details={"cached_tokens": 4}),
                },
                "[DONE]",
            ),
            named=True,
        ),
        usage=token_usage(12, 3, cached=4),
    ),
]

ANTHROPIC = [
    Case(
        name="web search, an hour's cache, thinking and a compaction in one stream",
        of="anthropic",
        path="/v1/messages",
        asks={"model": "claude-x", "max_tokens": 9, "messages": [], "stream": True},
        answer=messages(
            start(
                input_tokens=2068,
                output_tokens=1,
                cache_read_input_tokens=100,
                cache_creation_input_tokens=70,
                cache_creation={"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 50},
                service_tier="standard",
                inference_geo="us",
            ),
            PING,
            spoken("Hi"),
            delta(
                input_tokens=22397,
                output_tokens=600,
                cache_read_input_tokens=100,
                cache_creation_input_tokens=70,
                server_tool_use={"web_search_requests": 3, "web_fetch_requests": 1},
                output_tokens_details={"thinking_tokens": 200},
                iterations=[
                    {
                        "type": "compaction",
                        "input_tokens": 90000,
                        "output_tokens": 3000,
                        "cache_read_input_tokens": 0,
                        "cache_creation_input_tokens": 0,
                    },
                    {
                        "type": "message",
                        "input_tokens": 22397,
                        "output_tokens": 600,
                        "cache_read_input_tokens": 100,
                        "cache_creation_input_tokens": 70,
                        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 50},
                    },
                ],
            ),
        ),
        usage=token_usage(
            112397 + 170,
            3600,
            cached=100,
            cache_write=70,
            reasoning=200,
            uncached_input_tokens=112397,
            cache_write_1h_tokens=50,
            web_search_requests=3,
            web_fetch_requests=1,
        ),
        more={"facts": (("inference_geo", "us"),), "terminal": True, "model": "claude-x"},
    ),
    Case(
        name="a compaction beside a turn that nobody lists, and one behind a fallback",
        of="anthropic",
        path="/v1/messages",
        asks={"model": "claude-x", "max_tokens": 9, "messages": []},
        answer=document(
            {
                "id": "m",
                "type": "message",
                "model": "claude-served",
                "usage": {
                    "input_tokens": 100,
                    "output_tokens": 20,
                    "iterations": [
                        {
                            "type": "compaction",
                            "input_tokens": 50,
                            "output_tokens": 7,
                            "cache_creation_input_tokens": 30,
                            "cache_creation": {"ephemeral_1h_input_tokens": 30},
                        },
                        {"type": "message", "input_tokens": 900, "output_tokens": 90},
                        {"type": "fallback_message", "model": "claude-served", "input_tokens": 100, "output_tokens": 20},
                    ],
                },
            }
        ),
        usage=token_usage(180, 27, cache_write=30, uncached_input_tokens=150, cache_write_1h_tokens=30),
    ),
    Case(
        name="a gateway whose last event repeats no input",
        of="zai",
        path="/api/anthropic/v1/messages",
        asks={"model": "glm-x", "max_tokens": 9, "messages": [], "stream": True},
        answer=messages(
            start(input_tokens=25, output_tokens=0, cache_read_input_tokens=5),
            spoken("Hi"),
            delta(input_tokens=0, output_tokens=15, cache_read_input_tokens=0),
        ),
        usage=token_usage(30, 15, cached=5, uncached_input_tokens=25),
    ),
    Case(
        name="a gateway whose first event knows nothing yet",
        of="moonshot",
        path="/anthropic/v1/messages",
        asks={"model": "kimi-x", "max_tokens": 9, "messages": [], "stream": True},
        answer=messages(
            start(input_tokens=0, output_tokens=0),
            spoken("Hi"),
            delta(input_tokens=12, output_tokens=15, cache_read_input_tokens=88),
        ),
        usage=token_usage(100, 15, cached=88, uncached_input_tokens=12),
    ),
    Case(
        name="the cache is known only at the end",
        of="anthropic",
        path="/v1/messages",
        asks={"model": "claude-x", "max_tokens": 9, "messages": [], "stream": True},
        answer=messages(
            start(input_tokens=10000, output_tokens=1, cache_read_input_tokens=0, cache_creation_input_tokens=0),
            delta(input_tokens=50, output_tokens=15, cache_read_input_tokens=9950, cache_creation_input_tokens=0),
        ),
        usage=token_usage(10000, 15, cached=9950, uncached_input_tokens=50),
    ),
    Case(
        name="an advisor with an hour's cache",
        of="anthropic",
        path="/v1/messages",
        asks={"model": "claude-x", "max_tokens": 9, "messages": []},
        answer=document(
            {
                "id": "m",
                "type": "message",
                "model": "claude-x",
                "content": [],
                "stop_reason": "end_turn",
                "usage": {
                    "input_tokens": 100,
                    "output_tokens": 20,
                    "service_tier": "priority",
                    "speed": "fast",
                    "iterations": [
                        {"type": "message", "input_tokens": 60, "output_tokens": 10},
                        {
                            "type": "advisor_message",
                            "model": "claude-y",
                            "input_tokens": 500,
                            "output_tokens": 50,
                            "cache_creation_input_tokens": 300,
                            "cache_read_input_tokens": 200,
                            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 300},
                        },
                        {"type": "message", "input_tokens": 40, "output_tokens": 10},
                    ],
                },
            }
        ),
        usage=token_usage(
            100,
            20,
            uncached_input_tokens=100,
            other_models={
                "claude-y": {
                    "input_tokens": 1000,
                    "output_tokens": 50,
                    "cached_input_tokens": 200,
                    "cache_write_tokens": 300,
                    "reasoning_tokens": 0,
                    "cache_write_1h_tokens": 300,
                }
            },
        ),
        more={"service_tier": "priority", "facts": (("speed", "fast"),)},
    ),
    Case(
        name="a fallback to another model",
        of="anthropic",
        path="/v1/messages",
        asks={"model": "claude-x", "max_tokens": 9, "messages": []},
        answer=document(
            {
                "id": "m",
                "type": "message",
                "model": "claude-served",
                "stop_reason": "refusal",
                "usage": {
                    "input_tokens": 10,
                    "output_tokens": 2,
                    "fallback_credit": {"x": 1},
                    "iterations": [
                        {"type": "message", "input_tokens": 900, "output_tokens": 90},
                        {"type": "fallback_message", "model": "claude-served", "input_tokens": 10, "output_tokens": 2},
                    ],
                },
            }
        ),
        usage=token_usage(10, 2, uncached_input_tokens=10),
        more={"model": "claude-served"},
    ),
    Case(
        name="a refusal within the stream is an end",
        of="anthropic",
        path="/v1/messages",
        asks={"model": "claude-x", "max_tokens": 9, "messages": [], "stream": True},
        answer=messages(start(input_tokens=9, output_tokens=1), delta("refusal", output_tokens=4)),
        usage=token_usage(9, 4, uncached_input_tokens=9),
        more={"terminal": True},
    ),
    Case(
        name="at Vertex, by raw prediction",
        of="vertex",
        path="/v1/projects/p/locations/global/publishers/anthropic/models/claude-x@20260101:streamRawPredict",
        asks={"anthropic_version": "vertex-2023-10-16", "messages": [], "max_tokens": 9, "stream": True},
        answer=messages(start(input_tokens=9, output_tokens=1, cache_creation_input_tokens=5), spoken("x"), delta(output_tokens=4)),
        usage=token_usage(14, 4, cache_write=5, uncached_input_tokens=9),
    ),
    Case(
        name="at OpenRouter, which says what it costs",
        of="openrouter",
        path="/api/v1/messages",
        asks={"model": "anthropic/claude-x", "max_tokens": 9, "messages": []},
        answer=document(
            {
                "id": "gen-1",
                "type": "message",
                "model": "anthropic/claude-x",
                "content": [],
                "usage": {"input_tokens": 9, "output_tokens": 4, "cost": 0.000087, "is_byok": False},
            }
        ),
        usage=token_usage(9, 4, uncached_input_tokens=9, provider_cost_usd=Decimal("0.000087")),
    ),
]

GOOGLE = [
    Case(
        name="an array with thoughts, tools and a cache",
        of="google",
        path="/v1beta/models/gemini-x:streamGenerateContent",
        asks={"contents": [], "cachedContent": "cachedContents/1"},
        answer=array(
            gemini("Hi", usage={"promptTokenCount": 1000, "totalTokenCount": 1000}),
            gemini("!", usage={"promptTokenCount": 1000, "candidatesTokenCount": 2, "totalTokenCount": 1002}),
            gemini(
                finish="STOP",
                usage={
                    "promptTokenCount": 1000,
                    "candidatesTokenCount": 40,
                    "thoughtsTokenCount": 300,
                    "toolUsePromptTokenCount": 200,
                    "cachedContentTokenCount": 900,
                    "totalTokenCount": 1540,
                    "promptTokensDetails": modality(TEXT=400, AUDIO=600),
                    "cacheTokensDetails": modality(TEXT=350, AUDIO=550),
                    "toolUsePromptTokensDetails": modality(TEXT=200),
                },
            ),
        ),
        usage=token_usage(1200, 340, cached=900, reasoning=300, input_audio_tokens=600, tool_use_prompt_tokens=200),
        more={"terminal": True},
    ),
    Case(
        name="a last chunk that only names its traffic",
        of="vertex",
        path="/v1/projects/p/locations/l/publishers/google/models/gemini-x:streamGenerateContent",
        query="alt=sse",
        asks={"contents": []},
        answer=sse(
            gemini("Hi", usage={"trafficType": "ON_DEMAND_FLEX"}),
            gemini("!", usage={"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11}),
            gemini("?", usage={"trafficType": "ON_DEMAND_FLEX"}),
            gemini(finish="STOP"),
        ),
        usage=token_usage(9, 2),
        more={"service_tier": "flex"},
    ),
    Case(
        name="built-in tools make the counts go down and up",
        of="google",
        path="/v1beta/models/gemini-x:streamGenerateContent",
        query="alt=sse",
        asks={"contents": [], "tools": [{"google_search": {}}]},
        answer=sse(
            gemini("a", usage={"promptTokenCount": 90, "candidatesTokenCount": 7, "thoughtsTokenCount": 3, "totalTokenCount": 100}),
            gemini(
                "b",
                finish="STOP",
                groundingMetadata={"webSearchQueries": ["x", "y"]},
                usage={"promptTokenCount": 12, "candidatesTokenCount": 9, "toolUsePromptTokenCount": 60, "totalTokenCount": 81},
            ),
        ),
        usage=token_usage(72, 9, tool_use_prompt_tokens=60, google_search_queries=2),
    ),
    Case(
        name="a picture and speech generated",
        of="google",
        path="/v1beta/models/gemini-x-image:generateContent",
        asks={"contents": []},
        answer=document(
            gemini(
                finish="STOP",
                usage={
                    "promptTokenCount": 260,
                    "candidatesTokenCount": 1390,
                    "totalTokenCount": 1650,
                    "promptTokensDetails": modality(TEXT=2, IMAGE=258),
                    "candidatesTokensDetails": modality(IMAGE=1290, AUDIO=100),
                    "serviceTier": "priority",
                },
            )
        ),
        usage=token_usage(260, 1390, input_image_tokens=258, output_audio_tokens=100, output_image_tokens=1290),
        more={"service_tier": "priority"},
    ),
    Case(
        name="modalities by their number",
        of="vertex",
        path="/v1/projects/p/locations/l/publishers/google/models/gemini-x:generateContent",
        asks={"contents": []},
        answer=document(
            gemini(
                finish="STOP",
                usage={
                    "promptTokenCount": 300,
                    "candidatesTokenCount": 4,
                    "totalTokenCount": 304,
                    "promptTokensDetails": [{"modality": 1, "tokenCount": 50}, {"modality": 4, "tokenCount": 250}],
                },
            )
        ),
        usage=token_usage(300, 4, input_audio_tokens=250),
    ),
    Case(
        name="an answer of nothing but thoughts",
        of="google",
        path="/v1beta/models/gemini-x:streamGenerateContent",
        query="alt=sse",
        asks={"contents": []},
        answer=sse(
            gemini(usage={"promptTokenCount": 9, "totalTokenCount": 9}),
            gemini(finish="MAX_TOKENS", usage={"promptTokenCount": 9, "thoughtsTokenCount": 90, "totalTokenCount": 99}),
        ),
        usage=token_usage(9, 90, reasoning=90),
    ),
    Case(
        name="a blocked prompt in a stream",
        of="google",
        path="/v1beta/models/gemini-x:streamGenerateContent",
        asks={"contents": []},
        answer=array(
            {
                "promptFeedback": {"blockReason": "SAFETY"},
                "usageMetadata": {"promptTokenCount": 31, "totalTokenCount": 31},
                "modelVersion": "gemini-x",
            }
        ),
        usage=token_usage(31, 0),
        more={"terminal": True},
    ),
    Case(
        name="many embeddings at once",
        of="google",
        path="/v1beta/models/gemini-embedding-2:batchEmbedContents",
        asks={"requests": []},
        answer=document(
            {
                "embeddings": [{"values": [0.1] * 9}],
                "usageMetadata": {"promptTokenCount": 300, "promptTokenDetails": modality(TEXT=42, IMAGE=258)},
            }
        ),
        usage=token_usage(300, 0, input_image_tokens=258),
    ),
    Case(
        name="pictures of Imagen, some filtered and some stored",
        of="vertex",
        path="/v1/projects/p/locations/l/publishers/google/models/imagen-4:predict",
        asks={"instances": [{"prompt": "x"}], "parameters": {"sampleCount": 4}},
        answer=document(
            {
                "predictions": [
                    {"bytesBase64Encoded": "QUJD", "mimeType": "image/png"},
                    {"gcsUri": "gs://b/1.png", "mimeType": "image/png"},
                    {"raiFilteredReason": "x"},
                ]
            }
        ),
        usage=units(images=2),
    ),
    Case(
        name="old embeddings of Vertex",
        of="vertex",
        path="/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict",
        asks={"instances": []},
        answer=document(
            {
                "predictions": [
                    {"embeddings": {"values": [0.1], "statistics": {"truncated": False, "token_count": 6}}},
                    {"embeddings": {"values": [0.1], "statistics": {"truncated": False, "token_count": 8.0}}},
                ],
                "metadata": {"billableCharacterCount": 44},
            }
        ),
        usage=token_usage(14, 0),
    ),
    Case(
        name="another maker's model at Vertex",
        of="vertex",
        path="/v1/projects/p/locations/l/publishers/ai21/models/jamba-1.5-large:rawPredict",
        asks={"messages": []},
        answer=document({"id": "c", "model": "jamba-1.5-large", "choices": [], "usage": counts(30, 7)}),
        usage=token_usage(30, 7),
    ),
    Case(
        name="places of a map",
        of="google",
        path="/v1beta/models/gemini-x:streamGenerateContent",
        query="alt=sse",
        asks={"contents": [], "tools": [{"googleMaps": {}}]},
        answer=sse(
            gemini("a", usage={"promptTokenCount": 9, "totalTokenCount": 9}),
            gemini("b", groundingMetadata={"groundingChunks": [{"maps": {"placeId": "x"}}]}),
            gemini(finish="STOP", usage={"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}),
        ),
        usage=token_usage(9, 4),
        more={"unseen": ("google_maps",)},
    ),
    Case(
        name="a cache that is made on request",
        of="google",
        path="/v1beta/cachedContents",
        asks={"model": "models/gemini-2.5-flash", "contents": [], "ttl": "300s"},
        answer=document(
            {"name": "cachedContents/1", "model": "models/gemini-2.5-flash", "usageMetadata": {"totalTokenCount": 5000}}
        ),
        usage=token_usage(5000, 0),
        more={"unseen": ("cache_storage",)},
    ),
    Case(
        name="an interaction",
        of="google",
        path="/v1beta/interactions",
        asks={"model": "gemini-x", "input": "Hi"},
        answer=document(
            {
                "id": "v1_abc",
                "status": "completed",
                "model": "gemini-x",
                "service_tier": "flex",
                "usage": {
                    "total_tokens": 1490,
                    "total_input_tokens": 1000,
                    "total_output_tokens": 40,
                    "total_thought_tokens": 250,
                    "total_cached_tokens": 600,
                    "total_tool_use_tokens": 200,
                    "input_tokens_by_modality": [{"modality": "text", "tokens": 700}, {"modality": "audio", "tokens": 300}],
                    "output_tokens_by_modality": [{"modality": "text", "tokens": 40}],
                    "grounding_tool_count": [{"type": "google_search", "count": 2}],
                },
                "steps": [{"type": "model_output", "content": [{"type": "text", "text": "Hi"}]}],
            }
        ),
        usage=token_usage(
            1200,
            290,
            cached=600,
            reasoning=250,
            input_audio_tokens=300,
            tool_use_prompt_tokens=200,
            google_search_queries=2,
        ),
        more={"service_tier": "flex", "response_id": "v1_abc"},
    ),
    Case(
        name="an interaction as a stream",
        of="google",
        path="/v1beta/interactions",
        asks={"model": "gemini-x", "input": "Hi", "stream": True},
        answer=sse(
            {"event_type": "interaction.created", "interaction": {"id": "v1_abc", "status": "in_progress", "model": "gemini-x"}},
            {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
            {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "Hi"}},
            {"event_type": "step.stop", "index": 0},
            {"event_type": "interaction.status_update", "status": "in_progress", "usage": {"total_input_tokens": 9}},
            {
                "event_type": "interaction.completed",
                "interaction": {
                    "id": "v1_abc",
                    "status": "completed",
                    "model": "gemini-x",
                    "usage": {"total_tokens": 33, "total_input_tokens": 9, "total_output_tokens": 4, "total_thought_tokens": 20},
                },
            },
            named=True,
            done=True,
        ),
        usage=token_usage(9, 24, reasoning=20),
        more={"terminal": True},
    ),
    Case(
        name="an interaction in the background",
        of="google",
        path="/v1beta/interactions/v1_abc",
        method="GET",
        answer=document(
            {
                "id": "v1_abc",
                "status": "completed",
                "agent": "deep-research",
                "background": True,
                "usage": {"total_tokens": 33, "total_input_tokens": 9, "total_output_tokens": 24},
            }
        ),
        usage=token_usage(9, 24),
        more={"deferred": True, "model": "deep-research"},
    ),
]

BEDROCK = [
    Case(
        name="converse stream with a cache of two lengths",
        of="bedrock",
        path="/model/us.anthropic.claude-x-v1:0/converse-stream",
        asks={"messages": []},
        answer=frames(
            {"role": "assistant"},
            {"delta": {"text": "Hi"}, "contentBlockIndex": 0},
            {"stopReason": "end_turn"},
            {
                "usage": {
                    "inputTokens": 10,
                    "outputTokens": 5,
                    "totalTokens": 115,
                    "cacheReadInputTokens": 60,
                    "cacheWriteInputTokens": 40,
                    "cacheReadInputTokenCount": 60,
                    "cacheWriteInputTokenCount": 40,
                    "cacheDetails": [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 10}],
                    "serverToolUsage": {},
                },
                "metrics": {"latencyMs": 9},
                "serviceTier": {"type": "priority"},
            },
        ),
        usage=token_usage(110, 5, cached=60, cache_write=40, uncached_input_tokens=10, cache_write_1h_tokens=30),
        more={"service_tier": "priority", "terminal": True},
    ),
    Case(
        name="converse with a search of its own",
        of="bedrock",
        path="/model/us.amazon.nova-2-lite-v1:0/converse",
        asks={"messages": []},
        answer=document(
            {"output": {}, "usage": {"inputTokens": 10, "outputTokens": 5, "serverToolUsage": {"nova_grounding": {"requests": 2}}}}
        ),
        usage=token_usage(10, 5, uncached_input_tokens=10),
        more={"unseen": ("server_tools",)},
    ),
    Case(
        name="Nova's stream",
        of="bedrock",
        path="/model/amazon.nova-lite-v1:0/invoke-with-response-stream",
        asks={"messages": []},
        answer=chunks(
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": "Hi"}, "contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {
                "metadata": {
                    "usage": {"inputTokens": 9, "outputTokens": 4, "cacheReadInputTokenCount": 3, "cacheWriteInputTokenCount": 0},
                    "metrics": {},
                },
                "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 4, "cacheReadInputTokenCount": 3},
            },
        ),
        usage=token_usage(12, 4, cached=3),
    ),
    Case(
        name="Mistral's stream, which counts nothing itself",
        of="bedrock",
        path="/model/mistral.mistral-7b-instruct-v0:2/invoke-with-response-stream",
        asks={"prompt": "x"},
        answer=chunks(
            {"outputs": [{"text": "Hi", "stop_reason": None}]},
            {
                "outputs": [{"text": "", "stop_reason": "stop"}],
                "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 4, "invocationLatency": 3},
            },
        ),
        usage=token_usage(9, 4),
    ),
    Case(
        name="an OpenAI model's stream",
        of="bedrock",
        path="/model/openai.gpt-oss-120b-1:0/invoke-with-response-stream",
        asks={"messages": []},
        answer=chunks(
            said("Hi"),
            stopped(usage=counts(70, 20)) | {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 70, "outputTokenCount": 20}},
        ),
        usage=token_usage(70, 20),
    ),
    Case(
        name="a reranking counts searches and not nothing",
        of="bedrock",
        path="/model/cohere.rerank-v3-5:0/invoke",
        asks={"query": "q", "documents": ["a", "b"], "api_version": 2},
        answer=document({"results": [{"index": 0, "relevance_score": 0.9}, {"index": 1, "relevance_score": 0.1}]}),
        usage=token_usage(2, 0, search_units=1),
        provenance=Provenance.ESTIMATED,
    ),
    Case(
        name="an embedding whose body counts nothing",
        of="bedrock",
        path="/model/cohere.embed-v4:0/invoke",
        asks={"texts": ["a"], "input_type": "search_document"},
        headers=((b"X-Amzn-Bedrock-Input-Token-Count", b"7"),),
        answer=document({"id": "e", "embeddings": {"float": [[0.1]]}, "response_type": "embeddings_by_type", "texts": ["a"]}),
        usage=token_usage(7, 0),
    ),
    Case(
        name="a picture of Titan's embeddings",
        of="bedrock",
        path="/model/amazon.titan-embed-text-v2:0/invoke",
        asks={"inputText": "a"},
        answer=document({"embedding": [0.1], "embeddingsByType": {"float": [0.1]}, "inputTextTokenCount": 5}),
        usage=token_usage(5, 0),
    ),
    Case(
        name="pictures, one of them filtered",
        of="bedrock",
        path="/model/stability.sd3-5-large-v1:0/invoke",
        asks={"prompt": "x"},
        answer=document({"seeds": [1, 2], "finish_reasons": [None, "Filter reason: prompt"], "images": ["QUJD", None]}),
        usage=units(images=1),
    ),
    Case(
        name="a Jamba answer",
        of="bedrock",
        path="/model/ai21.jamba-1-5-large-v1:0/invoke",
        asks={"messages": []},
        answer=document({"id": "c", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": counts(8, 6)}),
        usage=token_usage(8, 6),
    ),
    Case(
        name="a tier that stands in the head",
        of="bedrock",
        path="/model/openai.gpt-oss-20b-1:0/invoke",
        asks={"messages": []},
        headers=((b"X-Amzn-Bedrock-Service-Tier", b"flex"),),
        answer=document({"id": "c", "model": "m", "choices": [], "usage": counts(8, 6)}),
        usage=token_usage(8, 6),
        more={"service_tier": "flex"},
    ),
]

COMPATIBLE = [
    Case(
        name="Azure's asynchronous filter",
        of="azure",
        path="/openai/deployments/d/chat/completions",
        query="api-version=2024-10-21",
        asks={"messages": [], "stream": True},
        answer=sse(
            {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
            said("Hi"),
            stopped(),
            {
                "id": "",
                "model": "",
                "choices": [{"index": 0, "content_filter_offsets": {"check_offset": 44}, "finish_reason": None}],
            },
            chat_chunk(usage=counts(11, 2)),
            done=True,
        ),
        usage=token_usage(11, 2),
        more={"model": "m"},
    ),
    Case(
        name="Moonshot's usage stands in its choice",
        of="moonshot",
        path="/v1/chat/completions",
        asks={"model": "kimi-x", "messages": [], "stream": True},
        answer=sse(
            said("Hi"),
            chat_chunk(
                [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": counts(19, 13, cached_tokens=16)}],
            ),
            done=True,
        ),
        usage=token_usage(19, 13, cached=16),
        more={"terminal": True},
    ),
    Case(
        name="Groq's usage in both places",
        of="groq",
        path="/openai/v1/chat/completions",
        asks={"model": "m", "messages": [], "stream": True},
        answer=sse(
            said("Hi", x_groq={"id": "req_1"}),
            stopped(
                x_groq={"id": "req_1", "usage": counts(20, 9, queue_time=0.1, completion_tokens_details={"reasoning_tokens": 4})}
            ),
            done=True,
        ),
        usage=token_usage(20, 9, reasoning=4),
    ),
    Case(
        name="DeepSeek's hits and misses",
        of="deepseek",
        path="/v1/chat/completions",
        asks={"model": "deepseek-chat", "messages": [], "stream": True},
        answer=sse(
            said("Hi"),
            stopped(
                usage=counts(
                    100,
                    50,
                    prompt_cache_hit_tokens=64,
                    prompt_cache_miss_tokens=36,
                    completion_tokens_details={"reasoning_tokens": 30},
                )
            ),
            done=True,
        ),
        usage=token_usage(100, 50, cached=64, reasoning=30),
    ),
    Case(
        name="xAI's live search",
        of="xai",
        path="/v1/chat/completions",
        asks={"model": "grok-x", "messages": [], "search_parameters": {"mode": "on"}},
        answer=document(
            {
                "id": "c",
                "model": "grok-x",
                "choices": [{"message": {"content": "x"}}],
                "usage": {
                    **counts(100, 40),
                    "total_tokens": 200,
                    "completion_tokens_details": {"reasoning_tokens": 60},
                    "prompt_tokens_details": {"cached_tokens": 5, "image_tokens": 0, "text_tokens": 100},
                    "num_sources_used": 4,
                },
            }
        ),
        usage=token_usage(100, 100, cached=5, reasoning=60),
        more={"unseen": ("live_search_sources",)},
    ),
    Case(
        name="xAI's own bill covers the search",
        of="xai",
        path="/v1/chat/completions",
        asks={"model": "grok-x", "messages": [], "stream": True},
        answer=sse(
            said("x"),
            chat_chunk(
                usage={
                    **counts(100, 40),
                    "total_tokens": 200,
                    "completion_tokens_details": {"reasoning_tokens": 60},
                    "num_sources_used": 4,
                    "cost_in_usd_ticks": 1234567,
                    "server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 0},
                }
            ),
            done=True,
        ),
        usage=token_usage(
            100, 100, reasoning=60, cost_in_usd_ticks=1234567, server_side_tool_usage_details={"web_search_calls": 2}
        ),
    ),
    Case(
        name="OpenRouter with a key of one's own",
        of="openrouter",
        path="/api/v1/chat/completions",
        asks={"model": "openai/gpt-x", "messages": []},
        answer=document(
            {
                "id": "gen-1",
                "model": "openai/gpt-x",
                "choices": [{"message": {"content": "x"}}],
                "usage": counts(10, 5, cost=0.00005, is_byok=True, cost_details={"upstream_inference_cost": 0.001}),
            }
        ),
        usage=token_usage(10, 5, provider_cost_usd=Decimal("0.00105")),
    ),
    Case(
        name="OpenRouter with a key of one's own and no fee",
        of="openrouter",
        path="/api/v1/chat/completions",
        asks={"model": "openai/gpt-x", "messages": [], "stream": True},
        answer=sse(
            said("x"),
            stopped(usage=counts(10, 5, cost=0, is_byok=True, cost_details={"upstream_inference_cost": 0.001})),
            done=True,
        ),
        usage=token_usage(10, 5, provider_cost_usd=Decimal("0.001")),
    ),
    Case(
        name="OpenRouter's own account: the cost stands alone",
        of="openrouter",
        path="/api/v1/chat/completions",
        asks={"model": "openai/gpt-x", "messages": []},
        answer=document(
            {
                "id": "gen-1",
                "model": "openai/gpt-x",
                "choices": [],
                "usage": counts(10, 5, cost=0.001, is_byok=False, cost_details={"upstream_inference_cost": 0.001}),
            }
        ),
        usage=token_usage(10, 5, provider_cost_usd=Decimal("0.001")),
    ),
    Case(
        name="Perplexity's deep research",
        of="perplexity",
        path="/chat/completions",
        asks={"model": "sonar-deep-research", "messages": []},
        answer=document(
            {
                "id": "p",
                "model": "sonar-deep-research",
                "object": "chat.completion",
                "choices": [{"message": {"content": "x"}}],
                "usage": counts(
                    33,
                    7163,
                    citation_tokens=20016,
                    num_search_queries=18,
                    reasoning_tokens=73997,
                    search_context_size="low",
                    cost={"input_tokens_cost": 0.001, "reasoning_tokens_cost": 0.222, "total_cost": 0.409},
                ),
            }
        ),
        usage=token_usage(33, 7163 + 73997, reasoning=73997, provider_cost_usd=Decimal("0.409")),
    ),
    Case(
        name="Perplexity's concise stream",
        of="perplexity",
        path="/chat/completions",
        asks={"model": "sonar-pro", "messages": [], "stream": True, "stream_mode": "concise"},
        answer=sse(
            chat_chunk([{"index": 0, "delta": {"content": ""}}], object="chat.reasoning"),
            chat_chunk([{"index": 0, "delta": {}}], object="chat.reasoning.done", usage=counts(9, 0)),
            chat_chunk([{"index": 0, "delta": {"content": "Hi"}}]),
            chat_chunk(
                [{"index": 0, "message": {"content": "Hi"}, "delta": {}, "finish_reason": "stop"}],
                object="chat.completion.done",
                usage=counts(9, 4, cost={"total_cost": 0.006}),
            ),
        ),
        usage=token_usage(9, 4, provider_cost_usd=Decimal("0.006")),
        more={"terminal": True},
    ),
    Case(
        name="Mistral hears, and counts it beside the prompt without saying how much",
        of="mistral",
        path="/v1/audio/transcriptions",
        asks={"model": "voxtral-mini-latest"},
        answer=document(
            {
                "model": "voxtral-mini-2507",
                "text": "Hi",
                "usage": {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635},
            }
        ),
        usage=token_usage(2629, 635, input_audio_tokens=2625, audio_seconds=203),
    ),
    Case(
        name="Mistral's older word for the cache",
        of="mistral",
        path="/v1/chat/completions",
        asks={"model": "mistral-x", "messages": [], "stream": True},
        answer=sse(said("Hi"), stopped(usage=counts(50, 4, num_cached_tokens=48)), done=True),
        usage=token_usage(50, 4, cached=48),
    ),
    Case(
        name="Mistral's pages",
        of="mistral",
        path="/v1/ocr",
        asks={"model": "mistral-ocr-latest", "document": {}},
        answer=document({"pages": [], "model": "mistral-ocr-2505", "usage_info": {"pages_processed": 29, "doc_size_bytes": None}}),
        usage=units(pages_processed=29),
    ),
    Case(
        name="Together's cache stands at the top",
        of="together",
        path="/v1/chat/completions",
        asks={"model": "m", "messages": [], "stream": True},
        answer=sse(said("Hi"), stopped(usage=counts(50, 4, cached_tokens=32)), done=True),
        usage=token_usage(50, 4, cached=32),
    ),
    Case(
        name="Fireworks reports its performance besides",
        of="fireworks",
        path="/inference/v1/chat/completions",
        asks={"model": "accounts/fireworks/models/x", "messages": [], "stream": True},
        answer=sse(
            said("Hi"),
            stopped(),
            chat_chunk(usage=counts(50, 4, prompt_tokens_details={"cached_tokens": 32}), perf_metrics={"server-time": 1}),
            done=True,
        ),
        usage=token_usage(50, 4, cached=32),
    ),
    Case(
        name="vLLM's usage on every chunk",
        of="vllm",
        path="/v1/chat/completions",
        asks={"model": "m", "messages": [], "stream": True},
        answer=sse(
            said("a", usage=counts(5, 1)),
            said("b", usage=counts(5, 2)),
            stopped(usage=counts(5, 3)),
            chat_chunk(usage=counts(5, 3)),
            done=True,
        ),
        usage=token_usage(5, 3),
    ),
    Case(
        name="a little more reasoning than completion is another count of the same",
        of="openrouter",
        path="/api/v1/chat/completions",
        asks={"model": "m", "messages": []},
        answer=document(
            {"id": "c", "model": "m", "choices": [], "usage": counts(5, 10, completion_tokens_details={"reasoning_tokens": 11})}
        ),
        usage=token_usage(5, 10, reasoning=11),
    ),
    Case(
        name="Vercel's gateway leaves the reasoning out",
        of="vercel-gateway",
        path="/v1/chat/completions",
        asks={"model": "google/gemini-x", "messages": [], "stream": True},
        answer=sse(
            said("x"),
            stopped(usage=counts(5, 3, completion_tokens_details={"reasoning_tokens": 90}, cost=0.0004, market_cost=0.0005)),
            done=True,
        ),
        usage=token_usage(5, 93, reasoning=90, provider_cost_usd=Decimal("0.0004")),
    ),
    Case(
        name="Ollama's lines",
        of="ollama",
        path="/api/chat",
        asks={"model": "m", "messages": []},
        answer=lines(
            {"model": "m", "message": {"content": "Hi"}, "done": False},
            {
                "model": "m",
                "message": {"content": ""},
                "done": True,
                "done_reason": "stop",
                "prompt_eval_count": 7,
                "eval_count": 3,
            },
        ),
        usage=token_usage(7, 3),
        more={"terminal": True},
    ),
    Case(
        name="watsonx' chat",
        of="watsonx",
        path="/ml/v1/text/chat_stream",
        query="version=2024-05-01",
        asks={"model_id": "ibm/granite", "messages": []},
        answer=sse(
            {"id": "c", "model_id": "ibm/granite", "model": "ibm/granite", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
            {"id": "c", "model_id": "ibm/granite", "model": "ibm/granite", "choices": [], "usage": counts(40, 9)},
        ),
        usage=token_usage(40, 9),
    ),
    Case(
        name="watsonx' reranking",
        of="watsonx",
        path="/ml/v1/text/rerank",
        query="version=2024-05-01",
        asks={"model_id": "m", "query": "q", "inputs": [{"text": "a"}]},
        answer=document({"model_id": "m", "results": [{"index": 0, "score": 0.9}], "input_token_count": 318}),
        usage=token_usage(318, 0),
    ),
    Case(
        name="MiniMax answers 200 and means an error",
        of="minimax",
        path="/v1/chat/completions",
        asks={"model": "minimax-x", "messages": []},
        answer=document({"id": "c", "choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
        usage=None,
        provenance=Provenance.NONE,
        more={"error": True},
    ),
    Case(
        name="Voyage's pictures and texts",
        of="voyage",
        path="/v1/multimodalembeddings",
        asks={"model": "voyage-multimodal-3", "inputs": []},
        answer=document(
            {
                "object": "list",
                "data": [],
                "model": "voyage-multimodal-3",
                "usage": {"text_tokens": 5, "image_pixels": 2000000, "total_tokens": 3576},
            }
        ),
        usage=token_usage(3576, 0),
    ),
    Case(
        name="Replicate's language model",
        of="replicate",
        path="/v1/models/meta/llama/predictions",
        asks={"input": {"prompt": "x"}},
        answer=document(
            {
                "id": "p",
                "model": "meta/llama",
                "status": "succeeded",
                "error": None,
                "metrics": {"input_token_count": 7, "output_token_count": 9, "predict_time": 1.25, "total_time": 2.5},
            }
        ),
        usage=token_usage(7, 9, predict_seconds=Decimal("1.25")),
        more={"deferred": True},
    ),
    Case(
        name="Deepgram hears two channels, and bills both",
        of="deepgram",
        path="/v1/listen",
        query="multichannel=true&model=nova-3",
        asks={"url": "https://x/a.wav"},
        answer=document(
            {
                "metadata": {"request_id": "r", "duration": 25.933313, "channels": 2},
                "results": {"channels": [{"alternatives": []}, {"alternatives": []}]},
            }
        ),
        usage=units(audio_seconds=Decimal("51.866626")),
    ),
    Case(
        name="ElevenLabs hears",
        of="elevenlabs",
        path="/v1/speech-to-text",
        asks={"model_id": "scribe_v1"},
        answer=document({"language_code": "en", "text": "Hi", "words": [], "audio_duration_secs": 12.5}),
        usage=units(audio_seconds=Decimal("12.5")),
    ),
    Case(
        name="ElevenLabs speaks with timestamps, and says in its head what that costs",
        of="elevenlabs",
        path="/v1/text-to-speech/v/with-timestamps",
        asks={"text": "Hello", "model_id": "eleven_x"},
        headers=((b"Character-Cost", b"3"),),
        answer=document({"audio_base64": "QUJD" * 99, "alignment": {}}),
        usage=units(input_characters=3),
    ),
]

COHERE = [
    Case(
        name="a v2 stream with reasoning and tools",
        of="cohere",
        path="/v2/chat",
        asks={"model": "command-x", "messages": [], "stream": True},
        answer=sse(
            {"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant"}}},
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"thinking": "hm"}}}},
            {"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": "{}"}}}}},
            {
                "type": "message-end",
                "delta": {
                    "finish_reason": "TOOL_CALL",
                    "usage": {
                        "billed_units": {"input_tokens": 12.0, "output_tokens": 40, "search_units": 1},
                        "tokens": {"input_tokens": 500, "output_tokens": 60, "reasoning_tokens": 20},
                        "cached_tokens": 480,
                    },
                },
            },
            named=True,
            done=True,
        ),
        usage=token_usage(
            12, 40, reasoning=20, search_units=1, cohere_cached_tokens=480, tokens_raw_input=500, tokens_raw_output=60
        ),
        more={"terminal": True},
    ),
    Case(
        name="a v1 stream as events",
        of="cohere",
        path="/v1/chat",
        asks={"model": "command-x", "message": "x", "stream": True},
        answer=sse(
            {"event_type": "stream-start", "generation_id": "g"},
            {"event_type": "text-generation", "text": "Hi"},
            {
                "event_type": "stream-end",
                "is_finished": True,
                "finish_reason": "COMPLETE",
                "response": {"text": "Hi", "meta": {"billed_units": {"input_tokens": 3, "output_tokens": 1}}},
            },
        ),
        usage=token_usage(3, 1),
        more={"terminal": True},
    ),
    Case(
        name="a reranking",
        of="cohere",
        path="/v2/rerank",
        asks={"model": "rerank-v3.5", "query": "q", "documents": ["a"]},
        answer=document({"id": "r", "results": [], "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}}),
        usage=units(search_units=1),
    ),
    Case(
        name="embedded pictures",
        of="cohere",
        path="/v2/embed",
        asks={"model": "embed-v4.0", "images": []},
        answer=document({"id": "e", "embeddings": {}, "meta": {"billed_units": {"images": 2}}}),
        usage=units(images=2),
    ),
    Case(
        name="texts and pictures embedded, told apart",
        of="cohere",
        path="/v2/embed",
        asks={"model": "embed-v4.0", "inputs": []},
        answer=document(
            {
                "id": "e",
                "embeddings": {},
                "meta": {"billed_units": {"input_tokens": 1400, "text_tokens": 25, "image_tokens": 1375, "pages": 2}},
            }
        ),
        usage=token_usage(1400, 0, input_image_tokens=1375, pages_processed=2),
    ),
    Case(
        name="in OpenAI's language",
        of="cohere",
        path="/compatibility/v1/chat/completions",
        asks={"model": "command-x", "messages": []},
        answer=document({"id": "c", "model": "command-x", "choices": [{"message": {"content": "x"}}], "usage": counts(9, 3)}),
        usage=token_usage(9, 3),
    ),
]

CASES = [*OPENAI, *ANTHROPIC, *GOOGLE, *BEDROCK, *COMPATIBLE, *COHERE]
BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def inspected(case: Case) -> Call:
    provider = REGISTRY.by_name(case.of)
    assert provider is not None
    body = json.dumps(case.asks).encode()
    return REGISTRY.family(provider).inspect(provider, case.method, case.path, case.query, "application/json", body)


def read(case: Case, *pieces: bytes, coding: str = "", content_type: str | None = None) -> Reading:
    provider = REGISTRY.by_name(case.of)
    assert provider is not None
    kind = case.answer.content_type if content_type is None else content_type
    meter = REGISTRY.family(provider).meter(provider, inspected(case), 200, kind, coding, case.headers)
    for piece in pieces:
        meter.feed(piece)
    return meter.reading()


@BY_NAME
def test_an_unseen_answer_is_read_as_its_documentation_says(case: Case) -> None:
    """A1, A3, A4, A8, A10, A14, A22: by the family's rules, with no code of its own."""
    reading = read(case, case.answer.body())
    assert (reading.usage, reading.provenance) == (case.usage, case.provenance)
    for name, value in case.more.items():
        assert getattr(reading, name) == value, name


@BY_NAME
def test_no_form_of_an_answer_changes_what_is_read(case: Case) -> None:
    """A20, I1: line ends, comments, several data lines, the order of keys, and members that nobody knows."""
    for form, body in case.answer.forms():
        assert read(case, body).usage == case.usage, form


@BY_NAME
def test_no_split_and_no_coding_of_an_answer_changes_what_is_read(case: Case) -> None:
    """A20, I2: byte by byte, at random, and encoded in each way, whole and with a flush at each piece."""
    body = case.answer.body()
    whole = read(case, body)
    assert read(case, *(body[i : i + 1] for i in range(len(body)))) == whole
    random_source = random.Random(case.name)
    for coding, encoded in [("", body), *coded(body)]:
        for _ in range(RANDOM_SPLITS if not coding else 2):
            cuts = sorted(random_source.randrange(len(encoded) + 1) for _ in range(random_source.choice((1, 5, 40))))
            pieces = [encoded[a:b] for a, b in pairwise([0, *cuts, len(encoded)])]
            assert read(case, *pieces, coding=coding) == whole, coding


@BY_NAME
def test_an_answer_cut_anywhere_claims_no_more_than_it_was_told(case: Case) -> None:
    """D1: not the provider's last word, unless what was read is all of it; and never an exception."""
    body = case.answer.body()
    random_source = random.Random(case.name)
    for cut in {random_source.randrange(len(body)) for _ in range(40)}:
        reading = read(case, body[:cut])
        if reading.provenance is Provenance.PROVIDER_FINAL:
            assert reading.usage == case.usage, body[:cut][-80:]


def test_a_last_event_too_large_to_keep_loses_no_call_of_a_tool() -> None:
    """A3, B6: two pictures of more than a megabyte stand in it; what the stream showed before counts."""
    calls = [
        {"type": "image_generation_call", "id": "1", "result": "QUJD" * 300_000},
        {"type": "web_search_call", "id": "2", "action": {"type": "search"}},
        {"type": "image_generation_call", "id": "3", "result": "QUJD" * 300_000},
    ]
    shown = [{"type": "response.output_item.done", "item": {**call, "result": ""}} for call in calls]
    end = {"type": "response.completed", "response": response(output=calls, usage=tokens(70, 9))}
    case = next(case for case in CASES if case.path == "/v1/responses" and case.asks.get("stream"))
    for events, searches in (([*shown, end], 1), ([end], 0)):
        body = sse(*events, named=True).body()
        for step in (len(body), 60_000):
            reading = read(case, *(body[at : at + step] for at in range(0, len(body), step)))
            assert reading.usage is not None and reading.usage.input_tokens == 70
            assert reading.usage.count("image_generation_calls") >= 1 and reading.usage.count("web_search_calls") >= searches
            assert reading.unseen == ("image_generation",)


@pytest.mark.parametrize("coding", ["none", "utf-8", "identity", "", "UTF8"])
def test_a_coding_that_is_none_hides_nothing(coding: str) -> None:
    """A3: hosts write `none` to keep their own compression away from a stream."""
    for case in CASES[:10]:
        assert read(case, case.answer.body(), coding=coding) == read(case, case.answer.body())


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "", "application/x-json-stream"])
def test_lines_of_json_are_read_whatever_they_are_called(kind: str) -> None:
    """A20: at every split; a document that is cut short is no line."""
    case = next(case for case in CASES if case.name == "Ollama's lines")
    body = case.answer.body()
    for at in range(1, len(body)):
        reading = read(case, body[:at], body[at:], content_type=kind)
        assert (reading.usage, reading.terminal) == (case.usage, True)
    assert read(case, b'{"model":"m",\n"eval_count":7', content_type=kind).usage is None


@pytest.mark.parametrize("path", ["/openai/threads/t/runs", "/v1beta/interactions"])
def test_a_stream_that_breaks_is_no_job_though_it_could_be_fetched(path: str) -> None:
    """C2: nobody may ever fetch it, so it is estimated; one that was told whole is billed once by its id."""
    case = next(case for case in CASES if case.path == path and case.asks.get("stream"))
    for events in range(1, len(case.answer.events) - 2):
        assert not read(case, case.answer.written(list(case.answer.events[:events]))).deferred
    whole = read(case, case.answer.body())
    assert whole.deferred and whole.response_id in ("run_1", "v1_abc")
