"""Small APIs of one answer each: Deepgram's listen, Mistral's OCR, reranking, Replicate's predictions, ordered videos."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.cohere import cohere_usage
from lava_proxy.providers.openai_chat import stated_cost
from lava_proxy.providers.usage_reader import UsageReader, count, count_or_none, items, mapping, present, seconds, text_values
from lava_proxy.wire import json_scan


class _DocumentReader(UsageReader):
    """An API that answers with one JSON object and generates nothing that could be estimated from text."""

    text = text_values("(?!)")

    def concerns(self, block: bytes) -> bool:
        return False

    def event(self, name: str, data: bytes) -> bool:
        return True

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return None


class ListenReader(_DocumentReader):
    """Deepgram's transcription: `metadata.duration` is what is billed, for each channel that was transcribed on its own
    (https://github.com/orgs/deepgram/discussions/932).

    https://developers.deepgram.com/reference/speech-to-text/listen-pre-recorded
    """

    usage_key = "metadata"

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        metadata = mapping(document.get("metadata"))
        self.identify(None, metadata.get("request_id"))
        self.usage = self.read_usage(metadata)
        self.final = self.usage is not None
        channels = len(items(mapping(document.get("results")).get("channels")))
        length = None if self.usage is None else self.usage.units["audio_seconds"]
        if channels > 1 and isinstance(length, int | Decimal):
            self.usage = Usage({"audio_seconds": length * channels})

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        length = seconds(raw_usage.get("duration"))
        return None if length is None else Usage({"audio_seconds": length})


class OcrReader(_DocumentReader):
    """Mistral's OCR: `usage_info` counts pages. https://docs.mistral.ai/capabilities/document_ai/basic_ocr"""

    usage_key = "usage_info"

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.identify(document.get("model"), document.get("id"))
        self.usage = self.read_usage(mapping(document.get("usage_info")))
        self.final = self.usage is not None

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        if count_or_none(raw_usage.get("pages_processed")) is None:
            return None
        pages = {
            "pages_processed": count(raw_usage, "pages_processed"),
            **present(
                pages_processed_annotation=count(raw_usage, "pages_processed_annotation"),
                doc_size_bytes=count(raw_usage, "doc_size_bytes"),
            ),
        }
        return Usage(pages)


class RerankReader(_DocumentReader):
    """Reranking: Cohere bills search units, Voyage tokens (`usage.total_tokens`), watsonx too (`input_token_count`).

    Elsewhere a bare total does not say which of the two the host bills, so it counts as an estimate; a stated cost in
    it is the price all the same.
    """

    def __init__(self, *, total_is_billed: bool) -> None:
        super().__init__()
        self._total_is_billed = total_is_billed

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.identify(document.get("model"), document.get("id"))
        billed = cohere_usage(mapping(document.get("meta")))
        read = count_or_none(document.get("input_token_count"))
        raw_usage = mapping(document.get("usage"))
        search_units = count(raw_usage, "search_units")
        total = count_or_none(raw_usage.get("total_tokens"))
        if billed is not None:
            self.usage, self.final = billed, True
        elif read is not None:  # watsonx
            self.usage, self.final = token_usage(read, 0), True
        elif not raw_usage:
            return
        else:
            raw_usage = json_scan.exact(raw, "usage", dict(raw_usage))
            units = {**present(search_units=search_units), **stated_cost(raw_usage)}
            if total is not None:
                units = {**token_usage(total, 0).units, **units}
            if self._total_is_billed or search_units:
                self.usage, self.final = Usage(units) if units else None, bool(units)
            elif units:
                self.asked = Usage({**self.asked.units, **units})


class PredictionReader(_DocumentReader):
    """Replicate's predictions, waited for or fetched: `metrics` tells the seconds it ran, and tokens for language models.

    https://replicate.com/docs/reference/http#predictions.create
    """

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.deferred = True
        self.identify(document.get("model"), document.get("id"))
        self.error = document.get("status") in ("failed", "canceled") or bool(document.get("error"))
        metrics = mapping(document.get("metrics"))
        units: dict[str, Any] = dict(_tokens(metrics))
        images = count(metrics, "image_count", "image_output_count")
        length: int | Decimal | None = seconds(metrics.get("predict_time"))
        units.update(present(predict_seconds=length, images=images))
        self.usage = Usage(units) if units else None
        self.final = bool(units) and document.get("status") in (None, "succeeded", "failed", "canceled", "aborted")


class VideoReader(_DocumentReader):
    """A video that was ordered: OpenAI's answer names its seconds and size; Veo's only the operation, so the request counts.

    https://platform.openai.com/docs/api-reference/videos/object
    """

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.identify(document.get("model"), document.get("id") or document.get("name"))
        self.error = bool(document.get("error"))
        named = document.get("seconds")
        length = seconds(int(named) if isinstance(named, str) and named.isascii() and named.isdigit() and len(named) < 6 else named)
        self.facts = tuple((name, value) for name in ("size", "quality") if isinstance(value := document.get(name), str))
        if length is not None and not self.error:
            self.usage, self.final = Usage({"video_seconds": length}), True


def _tokens(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    names = ("input_token_count", "output_token_count")
    if all(count_or_none(metrics.get(name)) is None for name in names):
        return {}
    return token_usage(count(metrics, names[0]), count(metrics, names[1])).units
