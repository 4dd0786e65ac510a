"""Ollama's native API: chat, generate and embed; the last line of a stream (`"done":true`) counts.

`prompt_eval_count` is left out when the whole prompt was cached.
https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.usage_reader import UsageReader, count, count_or_none, text_values
from lava_proxy.wire import json_scan


class OllamaReader(UsageReader):
    """One JSON object, or lines of them."""

    text = text_values("content", "response", "thinking")

    def concerns(self, block: bytes) -> bool:
        return b"eval_count" in block or b'"done":true' in block or b'"error"' in block

    def event(self, name: str, data: bytes) -> bool:
        event = json_scan.loads(data)
        if isinstance(event, dict):
            self._read(event)
        return not self.error

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self._read(document)
        self.final = self.usage is not None

    def _read(self, body: Mapping[str, Any]) -> None:
        self.identify(body.get("model"), None)
        self.error = self.error or bool(body.get("error"))
        self.terminal = self.terminal or body.get("done") is True
        self.usage = self.read_usage(body) or self.usage

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        if all(count_or_none(raw_usage.get(name)) is None for name in ("prompt_eval_count", "eval_count")):
            return None
        return token_usage(count(raw_usage, "prompt_eval_count"), count(raw_usage, "eval_count"))
