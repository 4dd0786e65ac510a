"""IBM watsonx.ai: text generation (counts in each result, cumulative in streams) and embeddings.

Its chat is OpenAI's (`usage` with prompt_tokens) and is read as that.
https://cloud.ibm.com/apidocs/watsonx-ai
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.usage_reader import UsageReader, count, items, text_values
from lava_proxy.wire import json_scan

_INPUT = re.compile(rb'"input_token_count"\s*:\s*([1-9]\d{0,11})\b')
_ENDED = re.compile(rb'"stop_reason"\s*:\s*"(?!not_finished")[^"]+"')


class GenerationReader(UsageReader):
    """text/generation, its stream, and text/embeddings."""

    text = text_values("generated_text")

    def __init__(self) -> None:
        super().__init__()
        self._input = 0
        self._latest: bytes | None = None  # the counts are cumulative: of a stream only the last event is parsed

    def concerns(self, block: bytes) -> bool:
        return True

    def event(self, name: str, data: bytes) -> bool:
        if name == "error" or b'"errors"' in data:
            self.error = True
            return False
        if b"token_count" not in data:
            return True
        self._latest = data
        self.terminal = self.terminal or _ENDED.search(data) is not None
        if self.model is None:
            self.identify(json_scan.string_named(data, "model_id"), None)
        if not self._input and (found := _INPUT.search(data)) is not None:
            self._input = int(found[1])  # only the first event has it
        return True

    def settle(self) -> None:
        raw, self._latest = self._latest, None
        body = None if raw is None else json_scan.loads(raw)
        if isinstance(body, dict):
            self._read(body)

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self.identify(document.get("model_id"), None)
        self._read(document)
        self.final = self.usage is not None

    def _read(self, body: Mapping[str, Any]) -> None:
        results = items(body.get("results"))
        read = count(body, "input_token_count") + sum(count(result, "input_token_count") for result in results)
        generated = sum(count(result, "generated_token_count") for result in results)
        if read or self._input or generated:
            self.usage = token_usage(max(read, self._input), generated)

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return None
