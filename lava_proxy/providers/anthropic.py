"""Anthropic Messages, at Anthropic and wherever its bodies travel unchanged (Vertex, gateways).

A stream's usage is the merge of message_start and every message_delta, field by field, later non-null wins: neither
event alone is right. `input_tokens` excludes the cache here, so the normalised input is the sum of three fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.openai_chat import cost_usd
from lava_proxy.providers.usage_reader import UsageReader, count, items, mapping, present, text_values
from lava_proxy.wire import json_scan

_INPUTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")

_FACTS = ("inference_geo", "speed")
"""Where it ran and how fast: both have prices of their own. https://platform.claude.com/docs/en/about-claude/pricing"""

_MARKS = (b"message_start", b"message_delta", b"message_stop", b'"error"')


class MessagesReader(UsageReader):
    """messages; document or stream."""

    text = text_values("text", "partial_json", "thinking")

    def __init__(self) -> None:
        super().__init__()
        self._merged: dict[str, Any] = {}

    def concerns(self, block: bytes) -> bool:
        return any(mark in block for mark in _MARKS)

    def event(self, name: str, data: bytes) -> bool:
        event = json_scan.loads(data)
        if not isinstance(event, dict):
            return name != "error"
        kind = event.get("type") or name
        if kind == "message_start":
            message = mapping(event.get("message"))
            self.identify(message.get("model"), message.get("id"))
            self._merge(message.get("usage"), data)
        elif kind == "message_delta":
            self._merge(event.get("usage"), data)
            self.final = self.final or mapping(event.get("delta")).get("stop_reason") is not None
        elif kind == "message_stop":
            self.terminal = True
        elif kind == "error":
            self.error = True
            return False
        return True

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.error = document.get("type") == "error" or bool(document.get("error"))
        self.identify(document.get("model"), document.get("id"))
        self._merge(document.get("usage"), raw)
        self.final = self.usage is not None

    def _merge(self, raw_usage: object, raw: bytes) -> None:
        """Fold one event's usage in; the same one twice changes nothing. `raw` is where it stands."""
        if not isinstance(raw_usage, dict):
            return
        told = {key: value for key, value in json_scan.exact(raw, "usage", raw_usage).items() if value is not None}
        if not any(count(told, name) for name in _INPUTS):
            # No prompt is empty: hosts that speak this API fill in zeros where they repeat nothing.
            told = {key: value for key, value in told.items() if key not in _INPUTS or key not in self._merged}
        self._merged = {**self._merged, **told}
        self.usage = self.read_usage(self._merged)
        self.facts = tuple((name, value) for name in _FACTS if isinstance(value := self._merged.get(name), str))
        self.identify(None, None, self._merged.get("service_tier"))

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return messages_usage(raw_usage)


class CompleteReader(MessagesReader):
    """The legacy text completions: no usage at all, so what is billed is estimated from the text."""

    text = text_values("completion")

    def event(self, name: str, data: bytes) -> bool:
        event = json_scan.loads(data)
        if isinstance(event, dict) and event.get("type") == "completion":
            self.identify(event.get("model"), event.get("log_id"))
            return True
        return super().event(name, data)


def messages_usage(raw_usage: Mapping[str, Any]) -> Usage | None:
    """A (merged) Messages usage object in our units; None when it counts nothing.

    `iterations` of type compaction are not in the top-level counts, so they are added; message iterations are, and their sum
    stands where the top level understates it. An advisor's iteration is billed at its own model's rate and stands under
    `other_models`. With a fallback_message the top level is right: what a declined model's iterations used is not billed.
    """
    if not any(name in raw_usage for name in ("input_tokens", "output_tokens")):
        return None
    iterations = items(raw_usage.get("iterations"))
    own = [iteration for iteration in iterations if iteration.get("type") == "message"]
    compactions = [iteration for iteration in iterations if iteration.get("type") == "compaction"]
    if any(iteration.get("type") == "fallback_message" for iteration in iterations):
        own = []
    summed = {name: _greater(raw_usage, own, name) + sum(count(one, name) for one in compactions) for name in _COUNTS}
    uncached = summed["input_tokens"]
    cached = summed["cache_read_input_tokens"]
    cache_write = summed["cache_creation_input_tokens"]
    split = mapping(raw_usage.get("cache_creation"))
    cache_write_1h = max(count(split, _WRITTEN_1H), _written_1h(own)) + _written_1h(compactions)
    server_tools = mapping(raw_usage.get("server_tool_use"))
    return token_usage(
        uncached + cached + cache_write,
        summed["output_tokens"],
        cached=cached,
        cache_write=cache_write,
        reasoning=count(mapping(raw_usage.get("output_tokens_details")), "thinking_tokens"),
        uncached_input_tokens=uncached,
        **present(
            cache_write_1h_tokens=cache_write_1h,
            web_search_requests=count(server_tools, "web_search_requests"),
            web_fetch_requests=count(server_tools, "web_fetch_requests"),
            other_models=_other_models(iterations),
            provider_cost_usd=cost_usd(raw_usage),  # OpenRouter's
        ),
    )


_WRITTEN_1H = "ephemeral_1h_input_tokens"
_COUNTS = (*_INPUTS, "output_tokens")


def _greater(raw_usage: Mapping[str, Any], iterations: list[Mapping[str, Any]], name: str) -> int:
    """The top level and its iterations both understate in some answers; neither overstates."""
    return max(count(raw_usage, name), sum(count(iteration, name) for iteration in iterations))


def _written_1h(iterations: list[Mapping[str, Any]]) -> int:
    return sum(count(mapping(iteration.get("cache_creation")), _WRITTEN_1H) for iteration in iterations)


def _other_models(iterations: list[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    models: dict[str, dict[str, int]] = {}
    for iteration in iterations:
        model = iteration.get("model")
        if iteration.get("type") != "advisor_message" or not isinstance(model, str):
            continue
        cached = count(iteration, "cache_read_input_tokens")
        cache_write = count(iteration, "cache_creation_input_tokens")
        units = {
            "input_tokens": count(iteration, "input_tokens") + cached + cache_write,
            "output_tokens": count(iteration, "output_tokens"),
            "cached_input_tokens": cached,
            "cache_write_tokens": cache_write,
            "reasoning_tokens": count(mapping(iteration.get("output_tokens_details")), "thinking_tokens"),
        }
        written_1h = _written_1h([iteration])
        units.update({"cache_write_1h_tokens": written_1h} if written_1h else {})
        known = models.setdefault(model, {})
        for name, value in units.items():
            known[name] = known.get(name, 0) + value
    return models
