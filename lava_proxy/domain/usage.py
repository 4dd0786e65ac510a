"""What a call used, normalised across providers, and how we know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

UnitValue = int | Decimal | Mapping[str, Any]


class Provenance(StrEnum):
    """Where the usage of a row comes from."""

    PROVIDER_FINAL = "provider_final"
    PROVIDER_PARTIAL = "provider_partial"
    ESTIMATED = "estimated"
    REPORTED = "reported"  # by the merchant, after the fact
    NONE = "none"


class Outcome(StrEnum):
    """How a call ended, seen from the gateway."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    PROVIDER_ERROR = "provider_error"
    UPSTREAM_BROKEN = "upstream_broken"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    GATEWAY_STOPPED = "gateway_stopped"
    BALANCE_EXHAUSTED = "balance_exhausted"  # the balance could not follow the stream, which was ended
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class Usage:
    """Unit name -> amount, as reported (never clamped).

    A token API always has the five keys of TOKEN_KEYS: input_tokens counts everything the model read (cache reads and
    writes included), output_tokens everything it generated (reasoning included); cached_input_tokens and
    cache_write_tokens are subsets of input, reasoning_tokens of output. Other units (audio_seconds, images,
    pages_processed, web_search_requests, provider_cost_usd ...) appear only when the provider reported them. Counts are
    int; seconds and dollars are Decimal, read from the JSON text; `other_models` and the like are nested mappings.

    `unshown` is what only a price asks for, and no row shows: how much of a kind of input came from the cache
    (`cached_input_audio_tokens` ...), how many of the searches are billed (`web_search_requests`), and what a tool's own model
    used (`other_models`), where the provider says so.
    """

    units: Mapping[str, UnitValue] = field(default_factory=dict)
    unshown: Mapping[str, UnitValue] = field(default_factory=dict, compare=False)

    def count(self, name: str) -> int:
        """An integer unit, 0 when absent."""
        value = self.units.get(name, 0)
        return value if isinstance(value, int) else 0

    @property
    def input_tokens(self) -> int:
        return self.count("input_tokens")

    @property
    def output_tokens(self) -> int:
        return self.count("output_tokens")


TOKEN_KEYS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")


def token_usage(
    input_tokens: int,
    output_tokens: int,
    *,
    cached: int = 0,
    cache_write: int = 0,
    reasoning: int = 0,
    **extra: UnitValue,
) -> Usage:
    """A token API's usage with the five keys that are always there; extras only where given."""
    units: dict[str, UnitValue] = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_input_tokens": cached,
        "cache_write_tokens": cache_write,
        "reasoning_tokens": reasoning,
    }
    units.update(extra)
    return Usage(units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a meter read from one response."""

    usage: Usage | None
    provenance: Provenance
    model: str | None = None  # as the response names it
    response_id: str | None = None  # the provider's own id
    service_tier: str | None = None  # as the response names it; picks the price
    facts: tuple[tuple[str, str], ...] = ()  # what the response says that its price depends on: (("speed", "fast"),)
    terminal: bool = False  # the family's own end was seen ([DONE], message_stop, response.completed, whole JSON ...)
    error: bool = False  # an in-band error event or object was seen
    output_text_bytes: int = 0  # generated text relayed so far (UTF-8 bytes after JSON unescaping, approximately)
    output_text_sample: bytes = b""  # the beginning of that text, as it stands between JSON's quotes; bounded
    deferred: bool = False  # a job that can be fetched again and again (a background response): billed once by its own id
    unseen: tuple[str, ...] = ()  # what the call also used and is billed for outside of `usage`: "image_generation" ...
