"""Google Gemini, at AI Studio and on Vertex: generateContent and its stream, embeddings; Vertex' Anthropic models too.

A stream's usageMetadata is cumulative and the last one counts, as a whole. Output is candidates + thoughts, input is
prompt + tool use; cached tokens are inside the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.prices import INPUT_MODALITIES
from lava_proxy.domain.usage import UnitValue, Usage, token_usage
from lava_proxy.providers.usage_reader import (
    UsageReader,
    count,
    count_or_none,
    items,
    mapping,
    present,
    text_values,
)
from lava_proxy.wire import json_scan

_MARKS = (b"finishReason", b"groundingMetadata", b"blockReason", b'"error"')

MAPS = "google_maps"
"""Grounding with Google Maps is billed by the prompt, at a rate of its own. https://ai.google.dev/gemini-api/docs/pricing"""

CACHE_STORAGE = "cache_storage"
"""What is cached on request is billed by the hour that it is kept, besides the tokens that it is made of."""

_TIERS = {"ON_DEMAND_FLEX": "flex", "ON_DEMAND_PRIORITY": "priority"}
"""Vertex' traffic types that have prices of their own, by the names that AI Studio calls them.
https://docs.cloud.google.com/vertex-ai/generative-ai/docs/deploy/consumption-options"""

_MODALITIES = {"1": "TEXT", "2": "IMAGE", "3": "VIDEO", "4": "AUDIO", "5": "DOCUMENT"}
"""By their numbers, as some servers write an enumeration."""


class GenerateContentReader(UsageReader):
    """generateContent and streamGenerateContent: a document, SSE, or an array streamed element by element."""

    text = text_values("text")
    usage_key = "usageMetadata"

    def __init__(self) -> None:
        super().__init__()
        self._queries = 0
        self._latest: bytes | None = None  # the last chunk with usageMetadata, not parsed yet

    def concerns(self, block: bytes) -> bool:
        return b"TokenCount" in block or any(mark in block for mark in _MARKS)

    def wants_the_last_only(self, block: bytes) -> bool:
        return self.model is not None and not any(mark in block for mark in _MARKS)

    def event(self, name: str, data: bytes) -> bool:
        if self.model is not None and not any(mark in data for mark in _MARKS):
            if b"TokenCount" not in data:
                return True  # its usageMetadata, if any, only names the traffic type
            self._latest = data  # every chunk reports and the last one wins: the others need no parsing
            return True
        latest, self._latest = self._latest, None
        if latest is not None and b"TokenCount" not in data:
            self._parse(latest)  # an end without a usage of its own
        return self._parse(data)

    def _parse(self, data: bytes) -> bool:
        chunk = json_scan.loads(data)
        if not isinstance(chunk, dict):
            self.fragment(data, is_final=False)  # an inline image too large to keep, or cut short
            return True
        return self._chunk(chunk)

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self._chunk(document)
        self.final = self.usage is not None

    def fragment(self, raw: bytes, *, is_final: bool) -> None:
        known, self.usage = self.usage, None
        super().fragment(raw, is_final=is_final)
        if self.usage is None:
            self.usage = known  # of an end whose own usage is cut off, the one before it is not the last word
        elif raw.rstrip().endswith(b"}"):
            self.terminal = self.terminal or json_scan.string_named(raw, "finishReason") is not None
        self._queries = max(self._queries, sum(map(len, json_scan.lists_named(raw, "webSearchQueries"))))
        self.identify(json_scan.string_named(raw, "modelVersion"), json_scan.string_named(raw, "responseId"))

    def _chunk(self, chunk: Mapping[str, Any]) -> bool:
        if isinstance(chunk.get("response"), dict):  # the CLI's endpoint wraps each chunk
            chunk = chunk["response"]
        if chunk.get("error"):
            self.error = True
            return False
        metadata = chunk.get("usageMetadata")
        traffic = mapping(metadata).get("trafficType")
        tier = mapping(metadata).get("serviceTier") or _TIERS.get(str(traffic), traffic)
        self.identify(chunk.get("modelVersion"), chunk.get("responseId"), tier)
        candidates = items(chunk.get("candidates"))
        queries = [mapping(candidate.get("groundingMetadata")).get("webSearchQueries") for candidate in candidates]
        self._queries = max(self._queries, sum(len(some) for some in queries if isinstance(some, list)))
        if any(_is_from_maps(candidate) for candidate in candidates):
            self.unseen = (MAPS,)
        if isinstance(metadata, dict):
            self.usage = self.read_usage(metadata) or self.usage
        is_blocked = bool(mapping(chunk.get("promptFeedback")).get("blockReason"))
        if is_blocked or any(candidate.get("finishReason") for candidate in candidates):
            self.terminal = True
        return True

    def settle(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            self._parse(latest)
        if self.usage is not None and self._queries:
            self.usage = Usage({**self.usage.units, "google_search_queries": self._queries}, self.usage.unshown)

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return generate_usage(raw_usage)


class CachedContentsReader(GenerateContentReader):
    """POST cachedContents: all its tokens are read once, and then kept."""

    text = text_values("(?!)")

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        total = count_or_none(raw_usage.get("totalTokenCount"))
        self.unseen = (CACHE_STORAGE,)
        return None if total is None else token_usage(total, 0)


class PredictReader(GenerateContentReader):
    """Vertex' `:predict`: a token count with each text embedding; Imagen's answers are counted by the image."""

    counted_mark = b'"bytesBase64Encoded"'

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        super().document(document, raw)
        counts = [
            count_or_none(mapping(mapping(prediction.get("embeddings")).get("statistics")).get("token_count"))
            for prediction in items(document.get("predictions"))
        ]
        known = [value for value in counts if value is not None]
        if known:
            self.usage = token_usage(sum(known), 0)
            self.final = True
        images = sum(
            ("bytesBase64Encoded" in prediction or "gcsUri" in prediction)
            and str(prediction.get("mimeType", "image/")).startswith("image/")
            for prediction in items(document.get("predictions"))
        )
        self._images(max(images, self.marks))

    def fragment(self, raw: bytes, *, is_final: bool) -> None:
        super().fragment(raw, is_final=is_final)
        self._images(self.marks)

    def _images(self, images: int) -> None:
        if images and self.usage is None:
            self.usage, self.final = Usage({"images": images}), True


def generate_usage(metadata: Mapping[str, Any]) -> Usage | None:
    """A usageMetadata object in our units; None when it counts nothing (a chunk may only name the traffic type)."""
    if not any(count_or_none(metadata.get(name)) is not None for name in ("promptTokenCount", "totalTokenCount")):
        return None
    tool_use = count(metadata, "toolUsePromptTokenCount")
    thoughts = count(metadata, "thoughtsTokenCount")
    inputs = _modalities(metadata.get("promptTokensDetails") or metadata.get("promptTokenDetails"))
    outputs = _modalities(metadata.get("candidatesTokensDetails"))
    usage = token_usage(
        count(metadata, "promptTokenCount") + tool_use,
        count(metadata, "candidatesTokenCount") + thoughts,
        cached=count(metadata, "cachedContentTokenCount"),
        cache_write=0,
        reasoning=thoughts,
        **present(
            input_audio_tokens=inputs.get("AUDIO"),
            input_image_tokens=inputs.get("IMAGE"),
            input_video_tokens=inputs.get("VIDEO"),
            output_audio_tokens=outputs.get("AUDIO"),
            output_image_tokens=outputs.get("IMAGE"),
            tool_use_prompt_tokens=tool_use,
        ),
    )
    unshown = cached_kinds(_modalities(metadata.get("cacheTokensDetails")))
    return Usage(usage.units, unshown) if unshown else usage


def _is_from_maps(candidate: Mapping[str, Any]) -> bool:
    grounding = candidate.get("groundingMetadata")
    return isinstance(grounding, dict) and any("maps" in chunk for chunk in items(grounding.get("groundingChunks")))


def cached_kinds(by_modality: Mapping[str, int]) -> dict[str, UnitValue]:
    """How much of each kind of input came from the cache, as a price asks for it."""
    kinds: dict[str, UnitValue] = {f"cached_input_{name}_tokens": by_modality.get(name.upper(), 0) for name in INPUT_MODALITIES}
    return {unit: count for unit, count in kinds.items() if count}


def _modalities(details: object) -> dict[str, int]:
    totals: dict[str, int] = {}
    for detail in items(details):
        modality = str(detail.get("modality")).upper()
        modality = _MODALITIES.get(modality, modality)
        totals[modality] = totals.get(modality, 0) + count(detail, "tokenCount")
    return totals
