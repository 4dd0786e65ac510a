"""OpenAI's images, transcriptions, translations and speech, as OpenAI, Mistral, Groq, xAI and OpenRouter speak them.

Newer models report tokens, older ones seconds (`usage.type: "duration"`) or nothing; images are counted in the answer.
Speech answers with the audio alone, unless it is streamed as events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage
from lava_proxy.providers.openai_chat import USAGE_OBJECT, chat_usage, stated_cost
from lava_proxy.providers.usage_reader import UsageReader, items, mapping, present, seconds, text_values
from lava_proxy.wire import json_scan

_NO_TEXT = text_values("(?!)")


class MediaReader(UsageReader):
    """Usage in the document or on the event that ends a stream, and `[DONE]` after it or not."""

    text = _NO_TEXT

    def concerns(self, block: bytes) -> bool:
        return (
            (b'"usage"' in block and USAGE_OBJECT.search(block) is not None)
            or b'"error"' in block
            or b"[DONE]" in block
            or b".completed" in block
            or b".done" in block
        )

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        event = json_scan.loads(data)
        if not isinstance(event, dict):
            self.error = self.error or name == "error"
            kind = name or str(json_scan.string_named(data, "type"))  # an image too large to keep
            if _is_end(kind) and data.rstrip().endswith(b"}"):
                self.fragment(data, is_final=True)
                self.terminal = True
            return False
        kind = str(event.get("type") or name)
        if kind == "error" or event.get("error"):
            self.error = True
            return False
        if _is_end(kind):
            self.terminal = True
        self._read(event, data)
        return not _is_end(kind)  # the last event repeats the whole text

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.error = bool(document.get("error"))
        self._read(document, raw)
        self.final = self.usage is not None

    def _read(self, body: Mapping[str, Any], raw: bytes) -> None:
        raw_usage = mapping(body.get("usage"))
        self.identify(body.get("model"), body.get("id"), raw_usage.get("service_tier"))
        if raw_usage:
            self.usage = self.read_usage(json_scan.exact(raw, "usage", dict(raw_usage))) or self.usage
            self.final = self.usage is not None

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        """Tokens, seconds, and what the host says it cost."""
        tokens = chat_usage(raw_usage)
        units = {**stated_cost(raw_usage), **({} if tokens is None else tokens.units)}
        units.update(present(audio_seconds=seconds(raw_usage.get("prompt_audio_seconds") or raw_usage.get("seconds"))))
        return Usage(units) if units else None


def _is_end(kind: str) -> bool:
    return kind.endswith((".completed", "text.done", "audio.done"))


class ImagesReader(MediaReader):
    """Generations, edits and variations: how many images the answer has, and tokens or a cost where they are told."""

    counted_mark = b'"b64_json"'

    def _read(self, body: Mapping[str, Any], raw: bytes) -> None:
        super()._read(body, raw)
        self.facts = tuple((name, value) for name in ("size", "quality") if isinstance(value := body.get(name), str)) or self.facts
        is_image = str(body.get("type")).endswith(".completed")
        self._images(max(len(items(body.get("data"))), self.marks, 1 if is_image else 0))
        authored = mapping(body.get("svg_usage"))  # by another model: openai/types/images_response.py, SvgUsage
        tokens = chat_usage(authored)
        if tokens is not None and self.usage is not None:
            others = {str(authored.get("model"))[:256]: dict(tokens.units)}
            self.usage = Usage({**self.usage.units, "other_models": others})

    def fragment(self, raw: bytes, *, is_final: bool) -> None:
        super().fragment(raw, is_final=is_final)
        self._images(max(self.marks, 1 if is_final else 0))

    def _images(self, images: int) -> None:
        if images:
            self.usage = Usage({**({} if self.usage is None else self.usage.units), "images": images})


class TranscriptionReader(MediaReader):
    """Transcriptions and translations; the length of the audio where an answer without usage names it."""

    text = text_values("delta")
    document_text = text_values("text")
    is_plain_text = True

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        super().document(document, raw)
        length = seconds(document.get("duration") or document.get("audio_duration_secs"))
        if self.usage is None and length is not None and not self.error:
            self.usage, self.final = Usage({"audio_seconds": length}), True


class SpeechReader(MediaReader):
    """Speech that is no plain audio: events, or JSON around the audio."""
