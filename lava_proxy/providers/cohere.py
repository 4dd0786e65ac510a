"""Cohere's native API: chat v1 and v2, embed, rerank. What is billed is `billed_units`; `tokens` counts the templated
prompt, and `cached_tokens` refers to that, so it discounts nothing.

Usage stands under `usage` (v2 chat) or `meta` (all others); v2 streams are SSE, v1 streams JSON lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.usage_reader import UsageReader, count, count_or_none, mapping, present, text_values
from lava_proxy.wire import json_scan


class CohereReader(UsageReader):
    """A document, SSE up to `message-end`, or lines up to `stream-end`."""

    text = text_values("text", "tool_plan", "thinking", "arguments")
    usage_key = "billed_units"

    def concerns(self, block: bytes) -> bool:
        return b"billed_units" in block or b"-end" in block or b"[DONE]" in block or b'is_finished":true' in block

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        event = json_scan.loads(data)
        if not isinstance(event, dict):
            return True
        kind = event.get("type") or event.get("event_type") or name
        if kind == "message-start":
            self.identify(None, event.get("id"))
        elif kind == "stream-start":
            self.identify(None, event.get("generation_id"))
        elif kind == "message-end":
            self._end(mapping(event.get("delta")), "usage")
        elif kind == "stream-end":
            self._end(mapping(event.get("response")), "meta")
            self.error = self.error or str(event.get("finish_reason")).startswith("ERROR")
            return False  # it repeats the whole text
        return True

    def _end(self, body: Mapping[str, Any], key: str) -> None:
        self.terminal = True
        self.error = self.error or str(body.get("finish_reason")).startswith("ERROR")
        self._billed(mapping(body.get(key)))

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.identify(document.get("model"), document.get("id") or document.get("response_id"))
        self._billed(mapping(document.get("usage") or document.get("meta")))

    def _billed(self, raw_usage: Mapping[str, Any]) -> None:
        self.usage = cohere_usage(raw_usage) or self.usage
        self.final = self.usage is not None

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return cohere_usage({"billed_units": raw_usage})


def cohere_usage(raw_usage: Mapping[str, Any]) -> Usage | None:
    """A `usage` or `meta` object in our units; None when nothing is billed by it.

    Images of an embedding are tokens beside the text's, so they are added to the input (or to `text_tokens`, where the two are
    told apart).
    """
    billed, tokens = mapping(raw_usage.get("billed_units")), mapping(raw_usage.get("tokens"))
    others = present(
        search_units=count(billed, "search_units"),
        classifications=count(billed, "classifications"),
        images=count(billed, "images"),
        pages_processed=count(billed, "pages"),
    )
    image_tokens = count(billed, "image_tokens")
    named = ("input_tokens", "text_tokens", "output_tokens")
    if not image_tokens and all(count_or_none(billed.get(name)) is None for name in named):
        return Usage(others) if others else None
    return token_usage(
        count(billed, "text_tokens", "input_tokens") + image_tokens,
        count(billed, "output_tokens"),
        cached=0,
        cache_write=0,
        reasoning=count(tokens, "reasoning_tokens"),
        **present(
            input_image_tokens=image_tokens,
            cohere_cached_tokens=count(raw_usage, "cached_tokens"),
            tokens_raw_input=count(tokens, "input_tokens"),
            tokens_raw_output=count(tokens, "output_tokens"),
        ),
        **others,
    )
