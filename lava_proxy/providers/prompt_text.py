"""The text of a request that a model reads: what an estimate of its prompt is counted on. Bounded, without recursion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lava_proxy.providers.ceilings import INPUT_TOKENS_MAX, is_encoded_media, likely_input_tokens, may_hold_media, text_and_media
from lava_proxy.providers.token_families import TokenFamily
from lava_proxy.providers.tokenizer import TEXT_CHARS_MAX, count_tokens
from lava_proxy.wire import json_scan

_PROMPTS = (
    "system", "instructions", "systemInstruction", "system_instruction", "preamble", "messages", "contents", "input", "inputs",
    "prompt", "message", "chat_history", "documents", "query", "content", "text", "texts", "suffix", "inputText", "instances",
    "requests",
)  # fmt: skip
"""Top-level members that models read; everything else sets how they do."""

_SCHEMAS = ("tools", "functions", "toolConfig", "response_format", "output_config")
"""Read as JSON, names included."""

_NOT_READ = frozenset(
    {
        "role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "toolUseId", "mimeType", "mime_type", "media_type",
        "format", "detail", "status", "cache_control", "signature", "thoughtSignature", "url", "image_url", "file_url", "file_id",
        "fileUri", "file_uri", "data", "encrypted_content", "filename", "task_type", "taskType", "model",
    }
)  # fmt: skip
_MESSAGES = ("messages", "contents", "input", "chat_history")


@dataclass(frozen=True, slots=True)
class PromptText:
    """`text` is at most TEXT_CHARS_MAX characters of `chars`."""

    text: str
    chars: int
    messages: int


def prompt_tokens(body: bytes, family: TokenFamily, *, is_framed: bool = True) -> int:
    """About how many tokens a JSON request's prompt is; 0 for a body of another kind.

    Its text (with its tools' schemas) in the family's tokens, its framing (what is embedded has none), its media by kind. Without a
    vocabulary: four bytes a token.
    """
    document = json_scan.loads(body)
    if not isinstance(document, dict):
        return 0
    found = prompt_text(document, has_media=may_hold_media(body))
    counted = count_tokens(found.text, family.vocabulary)
    if counted is None:
        return likely_input_tokens(body)
    if len(found.text) < found.chars:
        counted = -(-counted * found.chars // max(len(found.text), 1))
    _, media_tokens = text_and_media(body, document)
    framing = family.request + family.message * found.messages if is_framed else 0
    return min(-(-counted * family.percent // 100) + framing + media_tokens, INPUT_TOKENS_MAX)


def prompt_text(document: Mapping[str, Any], *, has_media: bool = True) -> PromptText:
    """What a model reads of a request, in the order it stands there. `has_media`: are there strings in it that are no text?"""
    kept: list[str] = []
    chars = 0
    pending: list[object] = [document[name] for name in reversed(_PROMPTS) if name in document]
    schemas = [document[name] for name in _SCHEMAS if document.get(name)]
    if schemas:
        pending.append(json.dumps(schemas, separators=(",", ":"), ensure_ascii=False))
    kept_chars = 0
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if has_media and is_encoded_media(value):
                continue  # counted by its kind
            chars += len(value)
            if kept_chars < TEXT_CHARS_MAX:
                kept.append(value[: TEXT_CHARS_MAX - kept_chars])
                kept_chars += len(kept[-1])
        elif isinstance(value, list):
            pending.extend(reversed(value))
        elif isinstance(value, dict):
            pending.extend(item for name, item in reversed(list(value.items())) if name not in _NOT_READ)
    listed = (document.get(name) for name in _MESSAGES)
    messages = next((len(some) for some in listed if isinstance(some, list) and some and isinstance(some[0], dict)), 1)
    return PromptText("".join(kept), chars, messages + bool(document.get("system")))
