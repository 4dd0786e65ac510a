"""Gemini's Live API over a WebSocket (`BidiGenerateContent`), at AI Studio and on Vertex.

The client's first message, `setup`, names the model. Server messages carry `usageMetadata` per turn, not per session (three
turns on each served model: https://github.com/pydantic/pydantic-ai/pull/7269): turns are summed. Within a turn it may come
more than once: with the same prompt and no less output it is the same generation told again, and the last one counts; with
another prompt (the model goes on after a tool's answer) it is a generation of its own. `generateContent`'s names and the Live
API's own (`responseTokenCount`) are both in use. https://ai.google.dev/api/live

A turn that was cut off before its usage came is estimated: text at four bytes a token, audio (24 kHz, 16 bit) at 25 tokens a
second (https://ai.google.dev/gemini-api/docs/tokens), its input as what the turn before it read and wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage
from lava_proxy.providers.google import generate_usage
from lava_proxy.providers.session_meter import Generated, SessionMeter, base64_bytes
from lava_proxy.providers.usage_reader import items, mapping
from lava_proxy.wire import json_scan

ASSUMED_MODEL = "gemini-live-2.5-flash"
"""Whose price a session is held for until its `setup` has named the model; all Live models cost about the same."""

_AUDIO_BYTES_PER_TOKEN = 1_920  # 48,000 bytes and 25 tokens a second
_RENAMED = {"candidatesTokenCount": "responseTokenCount", "candidatesTokensDetails": "responseTokensDetails"}


class LiveMeter(SessionMeter):
    """Reads every message whole: what they say is not marked by a type."""

    def __init__(self, model: str | None) -> None:
        super().__init__(model)
        self._generation: Usage | None = None  # reported last, and not summed yet: it may be told again
        self._turn_is_over = False
        self._generated: Generated | None = None  # since the last report
        self._read_next: dict[str, int] = {}

    def setup(self, payload: bytes) -> str | None:
        """The model that the client's first message names, bare; None when it is no setup with a model."""
        document = json_scan.loads(payload)
        model = mapping(mapping(document).get("setup")).get("model")
        if not isinstance(model, str) or not model.rpartition("/")[2]:
            return None
        name = model.rpartition("/")[2][:256]
        self._name(name)
        return name

    def feed(self, data: bytes) -> None:
        document = json_scan.loads(data)
        if not isinstance(document, dict):
            return
        content = mapping(document.get("serverContent"))
        self._content(content)
        metadata = document.get("usageMetadata")
        if isinstance(metadata, dict):
            self._report(metadata)
        if content.get("turnComplete"):
            self._turn_is_over = True

    def skipped(self, beginning: bytes) -> None:
        self._is_partial = True  # any message may carry the usage

    def _content(self, content: Mapping[str, Any]) -> None:
        for part in items(mapping(content.get("modelTurn")).get("parts")):
            self._generated = self._generated or Generated()
            text, sound = part.get("text"), mapping(part.get("inlineData")).get("data")
            if isinstance(text, str):
                self._generated.text_bytes += len(text.encode("utf-8", "replace"))
            if isinstance(sound, str):
                self._generated.audio_bytes += base64_bytes(len(sound))

    def _report(self, metadata: Mapping[str, Any]) -> None:
        renamed = {name: metadata[live] for name, live in _RENAMED.items() if name not in metadata and live in metadata}
        usage = generate_usage({**metadata, **renamed})
        if usage is None:
            return
        last = self._generation
        is_again = last is not None and last.input_tokens == usage.input_tokens and last.output_tokens <= usage.output_tokens
        if self._turn_is_over and is_again and last != usage:
            is_again = False  # another turn; an identical report behind the end of one is that one's
        if last is not None and not is_again:
            self._add(None, _numbers(last))
        self._generation, self._generated, self._turn_is_over = usage, None, False
        self._read_next = {"input_tokens": usage.input_tokens + usage.output_tokens}
        self.reports += 1

    def _running(self) -> Mapping[str, int] | None:
        if self._generated is None:
            return None
        return {**self._read_next, **self._generated.tokens(_AUDIO_BYTES_PER_TOKEN)}

    def _pending(self) -> Mapping[str, int]:
        return _numbers(self._generation) if self._generation is not None else {}


def _numbers(usage: Usage) -> dict[str, int]:
    return {unit: amount for unit, amount in usage.units.items() if isinstance(amount, int)}
