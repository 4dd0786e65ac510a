"""Google's Interactions API, at AI Studio and on Vertex: one document, or events up to `interaction.completed` and `[DONE]`.

Output is output + thoughts, input is input + tool use, cached tokens are inside the input: total = input + output + thoughts +
tool use. What ran in the background shows its usage where it is fetched, and what was answered at once shows it again there: each
is billed by the copy that shows it first. https://ai.google.dev/api/interactions-api
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.google import cached_kinds
from lava_proxy.providers.usage_reader import UsageReader, count, count_or_none, items, present, text_values
from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import names_an_error

_ENDS = frozenset({"interaction.completed", "interaction.complete"})
_RUNNING = frozenset({"in_progress", "queued"})
_MARKS = (b'"usage"', b"interaction.", b'"error"', b"[DONE]")
_SEARCHES = frozenset({"google_search", "googlesearch", "web_search"})
OTHER_GROUNDING = "grounding"
"""Maps and retrieval are billed by the request, at rates of their own."""


class InteractionsReader(UsageReader):
    """interactions and GET interactions/{id}; document or stream. `is_job`: it runs in the background, or is fetched."""

    text = text_values("text", "arguments")

    def __init__(self, *, is_job: bool = False) -> None:
        super().__init__()
        self.deferred = is_job

    def concerns(self, block: bytes) -> bool:
        return any(mark in block for mark in _MARKS) or names_an_error(block)

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        event = json_scan.loads(data)
        if not isinstance(event, dict):
            if (name or json_scan.string_named(data, "event_type")) in _ENDS and data.rstrip().endswith(b"}"):
                self.fragment(data, is_final=True)
                self.terminal = True
            return False
        kind = str(event.get("event_type") or name)
        if kind == "error" or event.get("error"):
            self.error = True
            return False
        interaction = event.get("interaction")
        if not isinstance(interaction, dict):
            told = event.get("usage")  # on the way, with a change of status
            self.usage = (self.read_usage(told) if isinstance(told, dict) else None) or self.usage
            return True
        self._read(interaction)
        if kind in _ENDS:
            self.terminal = True
        return False  # a whole interaction repeats the text of its steps

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.error = bool(document.get("error"))
        self._read(document)
        self.deferred = self.deferred or str(document.get("status")) in _RUNNING

    def _read(self, interaction: Mapping[str, Any]) -> None:
        model = interaction.get("model") or interaction.get("agent")
        self.identify(model, interaction.get("id"), interaction.get("service_tier") or interaction.get("serviceTier"))
        raw_usage = interaction.get("usage")
        usage = self.read_usage(raw_usage) if isinstance(raw_usage, dict) else None
        if usage is not None:
            self.usage = usage
            self.final = str(interaction.get("status")) not in _RUNNING
            self.deferred = self.deferred or self.final

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        names = ("total_input_tokens", "totalInputTokens", "total_tokens", "totalTokens")
        if all(count_or_none(raw_usage.get(name)) is None for name in names):
            return None
        thoughts = count(raw_usage, "total_thought_tokens", "totalThoughtTokens")
        tool_use = count(raw_usage, "total_tool_use_tokens", "totalToolUseTokens")
        inputs = _modalities(raw_usage.get("input_tokens_by_modality") or raw_usage.get("inputTokensByModality"))
        outputs = _modalities(raw_usage.get("output_tokens_by_modality") or raw_usage.get("outputTokensByModality"))
        searches = self._searches(raw_usage.get("grounding_tool_count") or raw_usage.get("groundingToolCount"))
        unshown = cached_kinds(_modalities(raw_usage.get("cached_tokens_by_modality") or raw_usage.get("cachedTokensByModality")))
        usage = token_usage(
            count(raw_usage, "total_input_tokens", "totalInputTokens") + tool_use,
            count(raw_usage, "total_output_tokens", "totalOutputTokens") + thoughts,
            cached=count(raw_usage, "total_cached_tokens", "totalCachedTokens"),
            cache_write=0,
            reasoning=thoughts,
            **present(
                input_audio_tokens=inputs.get("AUDIO"),
                input_image_tokens=inputs.get("IMAGE"),
                input_video_tokens=inputs.get("VIDEO"),
                output_audio_tokens=outputs.get("AUDIO"),
                output_image_tokens=outputs.get("IMAGE"),
                output_video_tokens=outputs.get("VIDEO"),
                tool_use_prompt_tokens=tool_use,
                google_search_queries=searches,
            ),
        )
        return Usage(usage.units, unshown)

    def _searches(self, grounding: object) -> int:
        """Web searches; of other tools that were used only that they were."""
        searches = 0
        for tool in items(grounding):
            if str(tool.get("type")).lower() in _SEARCHES:
                searches += count(tool, "count")
            elif count(tool, "count"):
                self.unseen = (OTHER_GROUNDING,)
        return searches


def _modalities(details: object) -> dict[str, int]:
    totals: dict[str, int] = {}
    for detail in items(details):
        modality = str(detail.get("modality")).upper()
        totals[modality] = totals.get(modality, 0) + count(detail, "tokens", "tokenCount")
    return totals
