"""Amazon Bedrock: Converse, whose usage is AWS' own, and InvokeModel, whose bodies are each model's own.

Streams are binary frames; a converse stream ends with a `metadata` event. Invoke wraps the model's events in `chunk`
frames and adds `amazon-bedrock-invocationMetrics` to the last one; the model's own usage wins over it (one recorded
answer has 133 tokens in the one and 97 in the other). Input excludes the cache here, as with Anthropic.
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.anthropic import MessagesReader
from lava_proxy.providers.openai_chat import chat_usage
from lava_proxy.providers.usage_reader import UsageReader, count, count_or_none, items, mapping, present, text_values
from lava_proxy.wire import json_scan

GUARDRAIL = "guardrail"
"""Guardrails are billed in text units of their own, next to the tokens."""

SERVER_TOOLS = "server_tools"
"""Nova's own tools (web grounding) are billed by the request; `serverToolUsage` counts them."""

_METRICS = "amazon-bedrock-invocationMetrics"
_MESSAGES_EVENTS = ("message_start", "message_delta", "message_stop", "error")
_STOPS = ("stop_reason", "completionReason", "finish_reason", "stopReason")


class ConverseReader(UsageReader):
    """converse and converse-stream."""

    text = text_values("text", "input")

    def concerns(self, block: bytes) -> bool:
        return b'"usage"' in block

    def event(self, name: str, data: bytes) -> bool:
        if b'"usage"' not in data:
            return True
        event = json_scan.loads(data)
        if isinstance(event, dict) and isinstance(event.get("usage"), dict):
            self._read(event)
            self.terminal = self.final
            return False
        return True

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self._read(document)

    def _read(self, document: Mapping[str, Any]) -> None:
        self.usage = self.read_usage(mapping(document.get("usage"))) or self.usage
        self.final = self.usage is not None
        self.identify(None, None, mapping(document.get("serviceTier")).get("type"))
        guarded = (GUARDRAIL,) if mapping(document.get("trace")).get("guardrail") else ()
        searched = (SERVER_TOOLS,) if _is_any_positive(mapping(document.get("usage")).get("serverToolUsage")) else ()
        self.unseen = (*guarded, *searched)

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return converse_usage(raw_usage)


class InvokeReader(MessagesReader):
    """invoke and invoke-with-response-stream: Anthropic's bodies, and Nova's, Llama's, Titan's, Mistral's, Cohere's.

    A body names the model as its maker does; what AWS bills is the one that the URL names, with its region (`global.`, `us.`).
    So the body's name stands only where the URL names none.
    """

    text = text_values("text", "partial_json", "thinking", "generation", "outputText", "completion", "content", "input")

    def __init__(self, asked_model: str | None = None) -> None:
        super().__init__()
        self._is_named = "." in (asked_model or "").rpartition("/")[2]  # `vendor.model`, not an application's profile
        self._metrics: Usage | None = None
        self._counts: dict[str, int] = {}

    def identify(self, model: object, response_id: object, service_tier: object = None) -> None:
        """As for every reader, but for a model that the URL has named already."""
        super().identify(None if self._is_named else model, response_id, service_tier)

    def concerns(self, block: bytes) -> bool:
        return (
            b'"message_' in block
            or b"oken_count" in block
            or b"TokenCount" in block
            or b'"usage"' in block
            or b'"amazon-bedrock-' in block
            or b'"error"' in block
            or b'"is_finished":true' in block
        )

    def event(self, name: str, data: bytes) -> bool:
        event = json_scan.loads(data)
        if not isinstance(event, dict):
            return True
        if event.get("type") in _MESSAGES_EVENTS:
            is_text = super().event(name, data)
        else:
            is_text = event.get("is_finished") is not True  # Cohere's last event repeats the whole text
            self._read(event, data)
        metrics = event.get(_METRICS)
        if isinstance(metrics, dict):
            self.terminal = True
            self._metrics = converse_usage(metrics, states_uncached=False)
        return is_text

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self._read(document, raw)
        self.final = self.usage is not None

    def _read(self, body: Mapping[str, Any], raw: bytes) -> None:
        self.identify(body.get("model"), body.get("id"))
        raw_usage = body.get("usage") or mapping(body.get("metadata")).get("usage")
        if isinstance(raw_usage, dict):
            if "inputTokens" in raw_usage:
                self.usage = converse_usage(raw_usage, states_uncached=False)
            elif "prompt_tokens" in raw_usage:
                self.usage = chat_usage(raw_usage)
            else:
                self._merge(raw_usage, raw)
        self._count(body)
        images = body.get("images")
        made = sum(image is not None for image in images) if isinstance(images, list) else 0  # null: filtered
        if self.usage is None and made:
            self.usage = Usage({"images": made})
        guardrail = mapping(mapping(body.get("amazon-bedrock-trace")).get("guardrail"))
        is_intervened = body.get("amazon-bedrock-guardrailAction") == "INTERVENED"
        if guardrail or is_intervened:
            self.unseen = (GUARDRAIL,)
        is_blocked = is_intervened and "input" in guardrail and "outputs" not in guardrail
        if is_blocked and self.usage is not None and "output_tokens" in self.usage.units:
            # The prompt was stopped, no model ran: the answer is the guardrail's own text, which is not billed by token.
            self.usage = Usage({**self.usage.units, "output_tokens": 0})
        self.terminal = self.terminal or is_blocked or any(body.get(name) for name in _STOPS)

    def _count(self, body: Mapping[str, Any]) -> None:
        """Llama's and Titan's counts stand in the body itself; in streams they are cumulative."""
        read = _latest(body, "prompt_token_count", "inputTextTokenCount")
        generated = _latest(body, "generation_token_count", "totalOutputTextTokenCount")
        results = [result for result in items(body.get("results")) if "tokenCount" in result]  # a reranking's have none
        if results and generated is None:
            generated = sum(count(result, "tokenCount") for result in results)
        if read is not None:
            self._counts = {**self._counts, "input": read}
        if generated is not None:
            self._counts = {**self._counts, "output": generated}
        if (self._counts and self.usage is None) or read is not None or generated is not None:
            self.usage = token_usage(self._counts.get("input", 0), self._counts.get("output", 0))

    def settle(self) -> None:
        super().settle()
        if self.usage is None and self._metrics is not None:
            self.usage, self.final = self._metrics, True


def _is_any_positive(value: object) -> bool:
    """Is there a number above 0 anywhere within?"""
    if isinstance(value, dict | list):
        return any(_is_any_positive(item) for item in (value.values() if isinstance(value, dict) else value))
    return bool(count_or_none(value))


def _latest(body: Mapping[str, Any], *names: str) -> int | None:
    return next((value for name in names if (value := count_or_none(body.get(name))) is not None), None)


def converse_usage(raw_usage: Mapping[str, Any], *, states_uncached: bool = True) -> Usage | None:
    """A Converse (or Nova, or invocationMetrics) usage object in our units; None when it counts nothing."""
    names = ("inputTokens", "outputTokens", "inputTokenCount", "outputTokenCount")
    if not any(count_or_none(raw_usage.get(name)) is not None for name in names):
        return None
    uncached = count(raw_usage, "inputTokens", "inputTokenCount")
    cached = count(raw_usage, "cacheReadInputTokens", "cacheReadInputTokenCount")
    written = count(raw_usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    details = items(raw_usage.get("cacheDetails"))
    return token_usage(
        uncached + cached + written,
        count(raw_usage, "outputTokens", "outputTokenCount"),
        cached=cached,
        cache_write=written,
        reasoning=0,
        **({"uncached_input_tokens": uncached} if states_uncached else {}),
        **present(cache_write_1h_tokens=sum(count(detail, "inputTokens") for detail in details if detail.get("ttl") == "1h")),
    )
