"""Usage that a response reports in its head: for answers that are audio, and for bodies that count nothing."""

from __future__ import annotations

from collections.abc import Iterable

from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.usage_reader import COUNT_MAX

_BEDROCK = b"x-amzn-bedrock-"
_TIERS = (b"x-amzn-bedrock-service-tier", b"x-gemini-service-tier")
"""https://docs.aws.amazon.com/bedrock/latest/userguide/service-tiers-inference.html"""

_CHARACTERS = (b"character-cost", b"dg-char-count")
"""ElevenLabs (https://elevenlabs.io/docs/api-reference/introduction, "Tracking generation costs") and Deepgram's speak
(https://developers.deepgram.com/docs/tts-rest) name the characters that they bill."""


def header_usage(api: str, headers: Iterable[tuple[bytes, bytes]]) -> Usage | None:
    """The usage in a response's headers, for the APIs that report it there; None when there is none."""
    if api in ("invoke", "converse"):
        counts = {name.lower(): value for name, value in headers if name.lower().startswith(_BEDROCK)}
        return _bedrock_usage(counts) if counts else None
    if api in ("speech", "sound"):
        for name, value in headers:
            if name.lower() in _CHARACTERS and (characters := _count(value)):
                return Usage({"input_characters": characters})
    return None


def header_service_tier(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The tier in a response's head, other than the usual one; a tier that the body names wins over it."""
    for name, value in headers:
        if name.lower() in _TIERS and value.strip().lower() not in (b"", b"standard", b"default"):
            return value.strip().decode("latin-1")[:64]
    return None


def _bedrock_usage(counts: dict[bytes, bytes]) -> Usage | None:
    """Bedrock's counts; the input excludes the cache."""
    read, generated, cached, written = (
        _count(counts.get(_BEDROCK + name + b"-token-count"))
        for name in (b"input", b"output", b"cache-read-input", b"cache-write-input")
    )
    if read is None and generated is None:
        return None
    return token_usage((read or 0) + (cached or 0) + (written or 0), generated or 0, cached=cached or 0, cache_write=written or 0)


def _count(value: bytes | None) -> int | None:
    if value is None or len(value) > 15 or not value.strip().isdigit():
        return None
    return min(int(value), COUNT_MAX)
