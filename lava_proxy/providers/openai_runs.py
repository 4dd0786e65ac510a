"""OpenAI's Assistants runs: a run's usage stands on the event that ends it; its steps' usages sum to it and are not added."""

from __future__ import annotations

from lava_proxy.providers.openai_chat import ChatReader
from lava_proxy.providers.usage_reader import text_values
from lava_proxy.wire import json_scan

_REPEATS = b"thread.message.completed"


class RunsReader(ChatReader):
    """threads/{id}/runs and threads/runs; document or stream."""

    text = text_values("value", "arguments")

    def concerns(self, block: bytes) -> bool:
        return b"event: thread.run." in block or _REPEATS in block or b"[DONE]" in block or b"event: error" in block

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        run = json_scan.loads(data) if name == "error" or name.startswith("thread.run.") else None
        if isinstance(run, dict) and run.get("object") == "thread.run":
            self.document(run, data)
        elif name == "error":
            self.error = True
        return name != "error" and not name.endswith(".completed")
