"""OpenAI's Responses API: usage on the terminal event (completed, incomplete, failed, cancelled) or in the document.

There is no `[DONE]` (OpenRouter adds one) and no opt-in. An incomplete or failed response is billed too. One that was made in
background mode says so in every copy of itself, and is billed by the copy that first shows its usage.
https://platform.openai.com/docs/guides/background
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage
from lava_proxy.providers.openai_chat import USAGE_OBJECT, chat_usage, unseen_sources
from lava_proxy.providers.usage_reader import UsageReader, items, mapping, present, text_values
from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import names_an_error

TERMINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done"})
_TERMINAL_MARKS = tuple(f'"{name}"'.encode() for name in sorted(TERMINAL_EVENTS))
_ITEM_DONE = b"response.output_item.done"
_COUNTED = frozenset({"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"})
_CALL_TYPE = re.compile(rb'"type"\s*:\s*"(' + "|".join(sorted(_COUNTED)).encode() + rb')"')
_TERMINAL_STATUSES = frozenset({"completed", "incomplete", "failed", "cancelled"})
_IN_BACKGROUND = re.compile(rb'"background"\s*:\s*true')  # within a string its quotes would be escaped


class ResponsesReader(UsageReader):
    """responses, responses/compact and GET responses/{id}; document or stream."""

    text = text_values("delta")  # the .done events and the response itself repeat it
    document_text = text_values("text", "arguments")

    def __init__(self) -> None:
        super().__init__()
        self._done: tuple[Mapping[str, Any], ...] = ()  # the tool calls whose end the stream has shown

    def concerns(self, block: bytes) -> bool:
        return (
            (b'"usage"' in block and USAGE_OBJECT.search(block) is not None)
            or b'"error"' in block
            or names_an_error(block)
            or b"[DONE]" in block
            or any(mark in block for mark in _TERMINAL_MARKS)
            or (_ITEM_DONE in block and b'_call"' in block)
        )

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        event = json_scan.loads(data)
        if not isinstance(event, dict):
            self._unreadable(name, data)
            return False
        kind = str(event.get("type") or name)
        if kind == "response.output_item.done":
            item = mapping(event.get("item"))
            if str(item.get("type")) in _COUNTED:
                self._done = (*self._done, {"type": item["type"], "action": item.get("action")})
            return True
        response = event.get("response")
        if isinstance(response, dict):
            self._response(response, data, is_terminal=kind in TERMINAL_EVENTS)
        if kind in TERMINAL_EVENTS:
            self.terminal = True
        if kind in ("error", "response.failed") or (event.get("error") and response is None):
            self.error = True
            return False
        return not isinstance(response, dict)  # a whole response repeats the text of the deltas

    def _unreadable(self, name: str, data: bytes) -> None:
        """An event above the size limit, of which head and tail are left, or nonsense."""
        kind = name or json_scan.string_named(data, "type")
        if kind in TERMINAL_EVENTS:
            self.fragment(data, is_final=True)
            self.terminal = True
            self.error = self.error or kind == "response.failed"
        elif name == "error":
            self.error = True

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        self._response(document, raw, is_terminal=str(document.get("status")) in _TERMINAL_STATUSES)
        self.error = bool(document.get("error"))

    def _response(self, response: Mapping[str, Any], raw: bytes, *, is_terminal: bool) -> None:
        self.identify(response.get("model"), response.get("id"), response.get("service_tier"))
        self.deferred = self.deferred or response.get("background") is True
        raw_usage = response.get("usage")
        if not isinstance(raw_usage, dict):
            return
        usage = self.read_usage(json_scan.exact(raw, "usage", raw_usage))
        if usage is not None:
            calls = self._calls(tool_calls(response.get("output")))
            self._surcharged(usage, calls)
            self.unseen = (*self.unseen, *unseen_sources(raw_usage))
            self.final = is_terminal or "status" not in response

    def fragment(self, raw: bytes, *, is_final: bool) -> None:
        super().fragment(raw, is_final=is_final)
        if self.usage is not None:
            listed = [{"type": kind.decode()} for kind in _CALL_TYPE.findall(raw)] if not self._done else []
            self._surcharged(self.usage, self._calls(tool_calls(listed)))
        self.deferred = self.deferred or _IN_BACKGROUND.search(raw) is not None

    def _surcharged(self, usage: Usage, calls: Mapping[str, Any]) -> None:
        self.usage = Usage({**usage.units, **calls})
        # The image tool's own tokens are not in `usage`.
        self.unseen = ("image_generation",) if "image_generation_calls" in calls else ()

    def _calls(self, listed: dict[str, Any]) -> dict[str, Any]:
        """The calls that a response lists, or that its stream has shown: the one is cut short, the other not always sent."""
        shown = tool_calls(list(self._done)) if self._done else {}
        return {**shown, **{unit: max(calls, shown.get(unit, 0)) for unit, calls in listed.items()}}

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return chat_usage(raw_usage)


def tool_calls(output: object) -> dict[str, Any]:
    """How many built-in tool calls the output lists; they are surcharged and not part of usage.

    A web search call that only opens or searches within a page is not a search.
    """
    kinds = [
        str(item.get("type"))
        for item in items(output)
        if item.get("type") != "web_search_call" or mapping(item.get("action")).get("type", "search") == "search"
    ]
    return present(
        web_search_calls=kinds.count("web_search_call"),
        file_search_calls=kinds.count("file_search_call"),
        code_interpreter_calls=kinds.count("code_interpreter_call"),
        image_generation_calls=kinds.count("image_generation_call"),
    )
