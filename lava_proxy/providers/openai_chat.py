"""OpenAI's chat completions, completions and embeddings, and the dialects that a hundred hosts speak of them.

Usage comes in the body, or in a stream on a chunk with `choices: []` (only when asked for), on the last chunk (Mistral,
DeepSeek, Together), in its choice (Moonshot), under `x_groq` (Groq) or cumulatively on every chunk (Perplexity, vLLM's
continuous_usage_stats): the last one wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.usage_reader import (
    UsageReader,
    amount,
    count,
    count_or_none,
    items,
    mapping,
    present,
    text_values,
)
from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import names_an_error

Dialect = Literal["openai", "reasoning_outside", "total_minus_prompt"]
"""How completion_tokens is meant. `openai`: it includes the reasoning, except when the total shows that it does not
(xAI adds it: total = prompt + completion + reasoning in 32 of 32 answers seen). `reasoning_outside`: Vercel's gateway
with Gemini reports more reasoning than completion, and a total without it; so does Perplexity's deep research, which
bills it beside the completion (https://docs.perplexity.ai/getting-started/pricing). Elsewhere a little more reasoning than
completion is another count of the same tokens. `total_minus_prompt`: Google's OpenAI-compatible endpoint hides the
thinking tokens, and only the total counts them."""

USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*\{(?!\s*\})')
"""A usage that has members: an empty one says nothing, and hides none that was said before."""

_SEARCH_MODEL = re.compile(r"-search-(?:preview|api)")

_NOT_ALL_GENERATED = (b"url_citation", b"executed_tools")
"""Marks of chunks that quote what a search found (OpenRouter, Groq). Perplexity, besides, repeats the whole message in
every chunk, next to its cumulative usage. None of them is counted as generated text."""


class ChatReader(UsageReader):
    """chat/completions: one document, or chunks up to `[DONE]`."""

    # `text` only inside a typed part (Mistral's thinking): OpenRouter repeats the reasoning under reasoning_details.
    text = text_values("content", "reasoning(?:_content)?", "arguments", "refusal", r'type"\s*:\s*"text"\s*,\s*"text')

    def __init__(self, dialect: Dialect = "openai") -> None:
        super().__init__()
        self._dialect: Dialect = dialect
        self._latest: bytes | None = None  # the last chunk with usage, not parsed yet

    def concerns(self, block: bytes) -> bool:
        return (
            (b'"usage"' in block and USAGE_OBJECT.search(block) is not None)
            or b'"error"' in block
            or b"[DONE]" in block
            or names_an_error(block)
            or any(mark in block for mark in _NOT_ALL_GENERATED)
        )

    def event(self, name: str, data: bytes) -> bool:
        if data.strip() == b"[DONE]":
            self.terminal = True
            return False
        has_usage = b'_tokens"' in data and USAGE_OBJECT.search(data) is not None
        if has_usage:
            self._latest = data  # parsing all of a cumulative stream's usages would be waste: the last one wins
        is_text = not any(mark in data for mark in _NOT_ALL_GENERATED) and not (has_usage and b'"message"' in data)
        if self.model is not None and b'"error"' not in data and name != "error":
            return is_text
        chunk = json_scan.loads(data)
        if not isinstance(chunk, dict):
            self.error = self.error or name == "error"
            return name != "error"
        self.identify(chunk.get("model"), chunk.get("id"), chunk.get("service_tier"))
        if name == "error" or chunk.get("error"):
            self.error = True
            return False
        return is_text

    def settle(self) -> None:
        raw, self._latest = self._latest, None
        if raw is None:
            return
        chunk = json_scan.loads(raw)
        if isinstance(chunk, dict):
            self._usage_chunk(chunk, raw)
        else:
            self.fragment(raw, is_final=False)  # cut short, or too large to keep: the stream's end says which

    def _usage_chunk(self, chunk: Mapping[str, Any], raw: bytes) -> None:
        choices = items(chunk.get("choices"))
        raw_usage = chunk.get("usage") or mapping(chunk.get("x_groq")).get("usage")
        if not isinstance(raw_usage, dict):
            # Moonshot: https://github.com/earendil-works/pi/issues/2017
            raw_usage = next((choice["usage"] for choice in choices if isinstance(choice.get("usage"), dict)), None)
        usage = None if raw_usage is None else self.read_usage(json_scan.exact(raw, "usage", raw_usage))
        if raw_usage is None or usage is None:
            return
        self.usage = usage
        self.unseen = unseen_sources(raw_usage, chunk.get("model"))
        is_done = chunk.get("object") == "chat.completion.done"
        self.final = is_done or not choices or any(choice.get("finish_reason") for choice in choices)
        self.terminal = self.terminal or is_done
        self.identify(chunk.get("model"), chunk.get("id"), chunk.get("service_tier") or raw_usage.get("service_tier"))

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        # MiniMax answers 200 with a status of its own: https://platform.minimax.io/docs/api-reference/errorcode
        self.error = bool(document.get("error")) or count(mapping(document.get("base_resp")), "status_code") > 0
        raw_usage = document.get("usage")
        tier = document.get("service_tier") or mapping(raw_usage).get("service_tier")
        self.identify(document.get("model"), document.get("id"), tier)
        if isinstance(raw_usage, dict):
            self.usage = self.read_usage(json_scan.exact(raw, "usage", raw_usage))
            self.final = self.usage is not None
            self.unseen = unseen_sources(raw_usage, document.get("model"))

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        return chat_usage(raw_usage, self._dialect)


class CompletionsReader(ChatReader):
    """Legacy completions: as chat, with the text under another key."""

    text = text_values("text")


class EmbeddingsReader(ChatReader):
    """Embeddings: one document; nothing is generated."""

    text = text_values("(?!)")

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        prompt = _first_count(raw_usage, "prompt_tokens", "input_tokens", "total_tokens")
        if prompt is None:
            return None
        return token_usage(prompt, 0, **stated_cost(raw_usage))


def chat_usage(raw_usage: Mapping[str, Any], dialect: Dialect = "openai") -> Usage | None:
    """A chat usage object in our units, as reported and not clamped; None when it has no token count at all.

    Both key families are read (`prompt_tokens` and `input_tokens`), because gateways mix them.
    """
    prompt = _first_count(raw_usage, "prompt_tokens", "input_tokens")
    completion = _first_count(raw_usage, "completion_tokens", "output_tokens")
    total = count_or_none(raw_usage.get("total_tokens"))
    if prompt is None and completion is None and total is None:
        return None
    prompt_details = mapping(
        raw_usage.get("prompt_tokens_details")
        or raw_usage.get("prompt_token_details")
        or raw_usage.get("input_tokens_details")
        or raw_usage.get("input_token_details")  # transcriptions
    )
    completion_details = mapping(raw_usage.get("completion_tokens_details") or raw_usage.get("output_tokens_details"))
    reasoning = count(completion_details, "reasoning_tokens") or count(raw_usage, "reasoning_tokens")
    input_tokens = prompt if prompt is not None else max((total or 0) - (completion or 0), 0)
    output_tokens = completion or 0
    audio = count(prompt_details, "audio_tokens")
    if dialect == "total_minus_prompt" and total is not None and total > input_tokens + output_tokens:
        reasoning = max(reasoning, total - input_tokens - output_tokens)
        output_tokens = total - input_tokens
    elif dialect == "reasoning_outside" and reasoning > output_tokens:
        output_tokens += reasoning
    elif total is not None and reasoning and total == input_tokens + output_tokens + reasoning:
        output_tokens += reasoning  # xAI
    elif total is not None and audio and total == input_tokens + output_tokens + audio:
        input_tokens += audio  # Mistral counts audio beside the prompt
    elif total is not None and not audio and raw_usage.get("prompt_audio_seconds") and total > input_tokens + output_tokens:
        audio = total - input_tokens - output_tokens  # and sometimes says only its seconds
        input_tokens += audio
    return token_usage(
        input_tokens,
        output_tokens,
        cached=_cached(raw_usage, prompt_details),
        cache_write=count(prompt_details, "cache_write_tokens") or count(raw_usage, "cache_creation_input_tokens"),
        reasoning=reasoning,
        **_modalities(audio, prompt_details, completion_details),
        **stated_cost(raw_usage),
    )


def _modalities(audio: int, prompt_details: Mapping[str, Any], completion_details: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of other kinds than text; most answers have none."""
    asked, made = prompt_details.get, completion_details.get
    if not (audio or asked("image_tokens") or asked("video_tokens") or made("audio_tokens") or made("image_tokens")):
        return {}
    return present(
        input_audio_tokens=audio,
        input_image_tokens=count(prompt_details, "image_tokens"),
        input_video_tokens=count(prompt_details, "video_tokens"),
        output_audio_tokens=count(completion_details, "audio_tokens"),
        output_image_tokens=count(completion_details, "image_tokens"),
    )


def _first_count(source: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = count_or_none(source.get(name))
        if value is not None:
            return value
    return None


def _cached(raw_usage: Mapping[str, Any], prompt_details: Mapping[str, Any]) -> int:
    """OpenAI's place, or Mistral's older, DeepSeek's and Together's."""
    return count(prompt_details, "cached_tokens") or count(
        raw_usage, "num_cached_tokens", "prompt_cache_hit_tokens", "cached_tokens"
    )


_STATED = frozenset({"cost", "cost_in_usd_ticks", "server_tool_use_details", "server_tool_use", "server_side_tool_usage_details"})


def stated_cost(raw_usage: Mapping[str, Any]) -> dict[str, Any]:
    """What the host itself says the call cost, and the tools it ran.

    `cost` is USD (OpenRouter, Vercel, Avian), Perplexity nests it as `cost.total_cost`; `cost_in_usd_ticks` is xAI's
    exact bill in 1e-10 USD.
    """
    if _STATED.isdisjoint(raw_usage):
        return {}
    server_tools = mapping(raw_usage.get("server_tool_use_details") or raw_usage.get("server_tool_use"))
    tool_details = mapping(raw_usage.get("server_side_tool_usage_details"))
    return present(
        provider_cost_usd=cost_usd(raw_usage),
        cost_in_usd_ticks=count(raw_usage, "cost_in_usd_ticks"),
        web_search_requests=count(server_tools, "web_search_requests"),
        server_side_tool_usage_details=present(**{str(name): count(tool_details, name) for name in tool_details}),
    )


def unseen_sources(raw_usage: Mapping[str, Any], model: object = None) -> tuple[str, ...]:
    """Searches that no usage counts: xAI's live search, billed by the source that was read, which only its own bill contains, and
    OpenAI's search models, which search in every call.
    """
    if count(raw_usage, "num_sources_used") and not count(raw_usage, "cost_in_usd_ticks"):
        return ("live_search_sources",)
    return ("web_search",) if isinstance(model, str) and _SEARCH_MODEL.search(model) and "cost" not in raw_usage else ()


def cost_usd(raw_usage: Mapping[str, Any]) -> Decimal | None:
    """The stated cost. With a key of the caller's own (`is_byok`) OpenRouter's is its fee alone, and the rest is billed to that
    key: https://openrouter.ai/docs/use-cases/byok
    """
    cost = raw_usage.get("cost")
    stated = amount(cost.get("total_cost") if isinstance(cost, dict) else cost)
    if raw_usage.get("is_byok") is not True:
        return stated
    upstream = amount(mapping(raw_usage.get("cost_details")).get("upstream_inference_cost"))
    return stated if upstream is None else upstream + (stated or 0)
