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
from lava_proxy.providers.usage_reader import UsageReader, count, count_or_none, items, mapping, present, text_values
from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import names_an_error

TERMINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done"})
_TERMINAL_MARKS = tuple(f'"{name}"'.encode() for name in sorted(TERMINAL_EVENTS))
DEFAULT_IMAGE_MODEL = "gpt-image-1"
"""The image tool's, where neither request nor answer names one. https://platform.openai.com/docs/guides/tools-image-generation"""

HOSTED_SHELL = "hosted_shell"
"""A shell in a container of OpenAI's is billed by the container, as a code interpreter is; one of the caller's own is not."""

_ITEM_DONE = b"response.output_item.done"
_CALL_TYPE = re.compile(rb'"type"\s*:\s*"((?:web_search|file_search|code_interpreter|image_generation)_call)"')
_TERMINAL_STATUSES = frozenset({"completed", "incomplete", "failed", "cancelled"})
_IN_BACKGROUND = re.compile(rb'"background"\s*:\s*true')  # within a string its quotes would be escaped


class ResponsesReader(UsageReader):
    """responses, responses/compact and GET responses/{id}; document or stream."""

    text = text_values("delta")  # the .done events and the response itself repeat it
    document_text = text_values("text", "arguments")

    def __init__(self) -> None:
        super().__init__()
        self._shown: Mapping[str, int] = {}  # the tool calls whose end the stream has shown

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
            for unit, calls in tool_calls([event.get("item")]).items():
                self._shown = {**self._shown, unit: self._shown.get(unit, 0) + calls}
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
            self._surcharged(usage, calls, mapping(response.get("tool_usage")), items(response.get("tools")))
            shells = (HOSTED_SHELL,) if any(_is_hosted_shell(item) for item in items(response.get("output"))) else ()
            self.unseen = (*self.unseen, *shells, *unseen_sources(raw_usage))
            self.final = is_terminal or "status" not in response

    def fragment(self, raw: bytes, *, is_final: bool) -> None:
        super().fragment(raw, is_final=is_final)
        if self.usage is not None:
            listed = [{"type": kind.decode()} for kind in _CALL_TYPE.findall(raw)] if not self._shown else []
            tool_usage = next(json_scan.objects_named(raw, "tool_usage"), {})
            tools = next(json_scan.lists_named(raw, "tools"), [])
            self._surcharged(self.usage, self._calls(tool_calls(listed)), tool_usage, items(tools))
        self.deferred = self.deferred or _IN_BACKGROUND.search(raw) is not None

    def _surcharged(
        self, usage: Usage, calls: Mapping[str, Any], tool_usage: Mapping[str, Any], tools: list[Mapping[str, Any]]
    ) -> None:
        """The usage with its calls of tools, and what `tool_usage` says of those beside it (the image tool's own tokens)."""
        drawn = image_tool_usage(mapping(tool_usage.get("image_gen")), tools, calls.get("image_generation_calls", 0))
        searches = count_or_none(mapping(tool_usage.get("web_search")).get("num_requests"))
        told = {} if searches is None or "web_search_calls" not in calls else {"web_search_requests": searches}
        self.usage = Usage({**usage.units, **calls}, {**told, **({"other_models": drawn} if drawn else {})})
        self.unseen = ("image_generation",) if "image_generation_calls" in calls and not drawn else ()

    def _calls(self, listed: dict[str, Any]) -> dict[str, Any]:
        """The calls that a response lists, or that its stream has shown: the one is cut short, the other not always sent."""
        return {**self._shown, **{unit: max(calls, self._shown.get(unit, 0)) for unit, calls in listed.items()}}

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return chat_usage(raw_usage)


def _is_hosted_shell(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "shell_call" and str(mapping(item.get("environment")).get("type")).startswith("container")


def image_tool_usage(drawn: Mapping[str, Any], tools: list[Mapping[str, Any]], images: int) -> dict[str, dict[str, Any]]:
    """What the image tool's model used, by its name; nothing where that is not told.

    OpenAI's SDK (openai/types/responses/response.py, ToolUsage): reported "separate from base model `usage`".
    """
    tokens = chat_usage(drawn) if count(drawn, "total_tokens") else None
    if tokens is None:
        return {}
    named = next((tool.get("model") for tool in tools if tool.get("type") == "image_generation"), None)
    cached = mapping(drawn.get("cached_tokens_details"))
    units: dict[str, Any] = {
        **tokens.units,
        "cached_input_tokens": count(drawn, "cached_tokens"),
        **present(cached_input_image_tokens=count(cached, "cached_image_tokens"), images=images),
    }
    return {named if isinstance(named, str) and named else DEFAULT_IMAGE_MODEL: units}


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
