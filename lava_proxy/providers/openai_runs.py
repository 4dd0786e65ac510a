"""OpenAI's Assistants runs: a run's usage stands on the event that ends it; its steps' usages sum to it and are not added.

A run that is not streamed shows its usage where it is fetched. It is billed by the copy that shows it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.providers.openai_chat import ChatReader
from lava_proxy.providers.usage_reader import text_values
from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import names_an_error

_RUNNING = frozenset({"queued", "in_progress", "requires_action", "cancelling"})
_REPEATS = b"thread.message.completed"


class RunsReader(ChatReader):
    """threads/{id}/runs and threads/runs; document or stream."""

    text = text_values("value", "arguments")

    def concerns(self, block: bytes) -> bool:
        return b"thread.run" in block or _REPEATS in block or b"[DONE]" in block or names_an_error(block)

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        super().document(document, raw)
        self.deferred = self.final or str(document.get("status")) in _RUNNING

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        run = json_scan.loads(data) if name == "error" or name.startswith("thread.run.") else None
        if isinstance(run, dict) and run.get("object") == "thread.run":
            self.document(run, data)
            self.deferred = self.final  # a stream that breaks is estimated: nobody may ever fetch its run
        elif name == "error":
            self.error = True
        return name != "error" and not name.endswith(".completed")
