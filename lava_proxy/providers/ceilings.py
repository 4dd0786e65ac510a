"""The most a request can use, read from its body: what a hold is sized by. Generous, fast, and bounded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.usage_reader import items, mapping
from lava_proxy.wire import json_scan

DEFAULT_OUTPUT_TOKENS_MAX = 16_384
"""Assumed when a request names no limit: above the default limits of most models, and an answer that long is rare."""

INPUT_TOKENS_MAX = 2_000_000
"""The largest context window that is sold."""

OUTPUT_TOKENS_MAX = 2_000_000
"""All choices together; models stop at some 128,000 each."""

TEXT_BYTES_PER_TOKEN = 2
"""Tokenizers of today average 4 bytes a token in English and not below 2 in any script that is written much."""

LIKELY_TEXT_BYTES_PER_TOKEN = 4
"""The average, which an estimate wants."""

IMAGE_TOKENS = 2_048
"""An image: OpenAI's and Anthropic's largest are about 1,600, Gemini's tiles 258 each."""

MEDIA_BYTES_PER_TOKEN = 50
"""Documents and audio: a PDF page of 100 kB is about 2,000 tokens, a second of audio (16 kB) 10 to 32."""

HISTORY_TOKENS = 32_768
"""Allowance for what the server adds from its own store: previous responses, conversations, stored prompts."""

SERVER_TOOL_TOKENS = 32_768
"""Allowance for what built-in tools read (a recorded answer with web search read 10 times its prompt)."""

HIDDEN_PROMPT_TOKENS = 1_024
"""Allowance for what the provider puts before a prompt: xAI 150 to 680 tokens, Anthropic up to 530 with tools."""

CHOICES_MAX = 128

EMBEDDING_APIS = frozenset(
    {"embeddings", "embedContent", "cachedContents", "predict", "embed", "ollama_embed", "watsonx_embeddings"}
)
"""They generate nothing."""

_NESTED_LIMITS = {
    "complete": (),
    "converse": ("inferenceConfig", "additionalModelRequestFields"),
    "invoke": ("inferenceConfig", "textGenerationConfig"),
    "cohere_chat": (),
    "interactions": ("generation_config",),
    "ollama": ("options",),
    "watsonx": ("parameters",),
    "predictions": ("input",),
}
"""Where the APIs that are not OpenAI's keep their output limit, besides the top level."""

_LIMITS = (
    "max_tokens",
    "maxTokens",
    "max_new_tokens",
    "max_gen_len",
    "maxTokenCount",
    "max_tokens_to_sample",
    "num_predict",
    "max_completion_tokens",
    "max_output_tokens",
)

_STORED_INPUT = ("previous_response_id", "previous_interaction_id", "conversation", "cachedContent", "cached_content")
_URL_KEYS = frozenset({"url", "image_url", "file_url", "file_id", "fileUri", "file_uri", "file", "video_url"})
_MIME_KEYS = ("mimeType", "mime_type", "media_type")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{256}")
_BASE64_BYTES_MIN = 1_024
_OWN_TOOL_TYPES = ("function", "custom", "tool", None)
_GOOGLE_TOOLS = ("googleSearch", "google_search", "googleSearchRetrieval", "urlContext", "url_context", "fileSearch")


def ceiling(api: str, body: bytes, document: Mapping[str, Any], default_output_tokens_max: int) -> Usage:
    """The most tokens a token API's request can read and generate."""
    text_bytes, media_tokens = text_and_media(body, document)
    input_tokens = text_bytes // TEXT_BYTES_PER_TOKEN + 1 + media_tokens + HIDDEN_PROMPT_TOKENS
    is_stored = any(document.get(name) for name in _STORED_INPUT) or isinstance(document.get("prompt"), dict)
    if is_stored or api == "runs":
        input_tokens += HISTORY_TOKENS
    if _has_server_tools(document):
        input_tokens += SERVER_TOOL_TOKENS
    output_tokens = _output_tokens(api, document, default_output_tokens_max)
    return token_usage(min(input_tokens, INPUT_TOKENS_MAX), min(output_tokens, OUTPUT_TOKENS_MAX))


def names_a_limit(api: str, document: Mapping[str, Any]) -> bool:
    """Does the request itself bound its output (or can it have none)?"""
    return api in EMBEDDING_APIS or _output_tokens(api, document, 0) > 0


def likely_input_tokens(body: bytes) -> int:
    """About how many tokens a request's body is, with no allowances, for an estimate. 0 when it is no JSON object."""
    document: object = {}
    if may_hold_media(body):
        document = json_scan.loads(body)
    if not isinstance(document, dict) or body.lstrip()[:1] != b"{":
        return 0
    text_bytes, media_tokens = text_and_media(body, document)
    return min(text_bytes // LIKELY_TEXT_BYTES_PER_TOKEN + 1 + media_tokens, INPUT_TOKENS_MAX)


def _output_tokens(api: str, document: Mapping[str, Any], default: int) -> int:
    if api in EMBEDDING_APIS:
        return 0
    if api in ("generateContent", "streamGenerateContent"):
        config = mapping(document.get("generationConfig") or document.get("generation_config"))
        limit = _limit(config, "maxOutputTokens", "max_output_tokens")
        return (limit or default) * _choices(config, "candidateCount", "candidate_count")
    if api in _NESTED_LIMITS:
        configs = (document, *(mapping(document.get(name)) for name in _NESTED_LIMITS[api]))
        limits = [limit for config in configs if (limit := _limit(config, *_LIMITS)) is not None]
        return max(limits, default=default) * _choices(document, "num_generations", "n")
    limit = _limit(document, "max_completion_tokens", "max_tokens", "max_output_tokens") or default
    if api == "completions":
        return limit * _choices(document, "n", "best_of") * _prompts(document.get("prompt"))
    return limit * (_choices(document, "n") if api == "chat" else 1)


def _limit(source: Mapping[str, Any], *names: str) -> int | None:
    """The largest of the named limits; what is not a positive integer is no limit."""
    values = [source.get(name) for name in names]
    limits = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return min(max(limits), OUTPUT_TOKENS_MAX) if limits else None


def _choices(source: Mapping[str, Any], *names: str) -> int:
    return min(_limit(source, *names) or 1, CHOICES_MAX)


def _prompts(prompt: object) -> int:
    """Legacy completions answer each prompt of a list; a list of numbers is one prompt of tokens."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return min(len(prompt), CHOICES_MAX)
    return 1


def _is_plain_chat(document: Mapping[str, Any]) -> bool:
    """Messages of nothing but text: what most calls are, told without searching the body."""
    messages = document.get("messages")
    if type(messages) is not list:
        return False
    for message in messages:
        if type(message) is not dict or type(message.get("content")) is not str:
            return False
    return True


def may_hold_media(body: bytes) -> bool:
    """May a body hold anything but text? Seven plain searches in a row: a loop over them costs more than they do."""
    return (
        b"image" in body
        or b"nline" in body
        or b"input_audio" in body
        or b"base64" in body
        or b'"file' in body
        or b"video" in body
        or b"document" in body
    )


def text_and_media(body: bytes, document: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes of text, tokens of media) in the body."""
    if _is_plain_chat(document) or not may_hold_media(body):
        return len(body), 0
    media_bytes, media_tokens = _media(document)
    return max(len(body) - media_bytes, 0), media_tokens


def _media(document: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes of encoded media in the body, tokens they may be). Walks without recursion."""
    media_bytes = media_tokens = 0
    pending: list[tuple[str, object, bool]] = [("", document, False)]
    while pending:
        key, value, is_image = pending.pop()
        if isinstance(value, dict):
            mime = next((value[name] for name in _MIME_KEYS if isinstance(value.get(name), str)), "")
            inside = is_image or str(mime).startswith("image/") or "b64_json" in value
            pending.extend((name, item, inside) for name, item in value.items())
        elif isinstance(value, list):
            pending.extend((key, item, is_image) for item in value)
        elif isinstance(value, str):
            if is_encoded_media(value):
                media_bytes += len(value)
                is_picture = is_image or value.startswith("data:image/")
                media_tokens += IMAGE_TOKENS if is_picture else len(value) * 3 // 4 // MEDIA_BYTES_PER_TOKEN + 1
            elif key in _URL_KEYS:
                media_tokens += IMAGE_TOKENS
    return media_bytes, media_tokens


def is_encoded_media(text: str) -> bool:
    """Is a string of a request base64 or a data URL, and not text?"""
    return text.startswith("data:") or (len(text) >= _BASE64_BYTES_MIN and _BASE64.match(text) is not None)


def _has_server_tools(document: Mapping[str, Any]) -> bool:
    if document.get("search_parameters") or document.get("web_search_options"):
        return True
    for tool in items(document.get("tools")):
        if tool.get("type") not in _OWN_TOOL_TYPES or any(name in tool for name in _GOOGLE_TOOLS):
            return True
    return False
