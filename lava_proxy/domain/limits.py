"""What a spend key or a connection may use: calls and tokens a minute, calls at once, calls and dollars a cycle.

The money script checks and counts them; here are the values, their JSON form, and the cycles (UTC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal, cast, get_args

from lava_proxy.domain.errors import CallerError, Forbidden
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, format_usd, parse_usd

Cycle = Literal["daily", "weekly", "monthly", "total"]
RequestShape = Literal["openai", "anthropic"]

COUNT_MAX = 1_000_000_000
"""The largest limit of a count: 60,000 times it is still exact in the script's doubles."""

_KEYS = ("spend_limit", "request_limit", "rate_limit", "token_limit", "concurrency_limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: no such limit. Cycles matter also without one: they say what the "current" counters count."""

    requests_per_minute: int | None = None
    request_burst: int | None = None  # how many may come at once; None: a whole minute's
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None
    request_count: int | None = None
    request_cycle: Cycle = "monthly"
    spend_nanos: int | None = None
    spend_cycle: Cycle = "monthly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose counters a call moves, and within which limits; the id is a spend key's or a connection's."""

    scope_id: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """What a spend key lets its holder call. None: anything. Names may have `*`."""

    request_shape: RequestShape = "openai"
    allowed_models: tuple[str, ...] | None = None
    allowed_providers: tuple[str, ...] | None = None
    expires_at: datetime | None = None

    def allows_model(self, model: str, *providers: str) -> bool:
        """Is this model allowed, named as it is or with one of its provider's names before it?"""
        if self.allowed_models is None:
            return True
        names = (model, *(f"{provider}/{model}" for provider in providers))
        return any(fnmatchcase(name.lower(), allowed.lower()) for allowed in self.allowed_models for name in names)

    def allows_provider(self, *names: str) -> bool:
        """Is a provider of these names allowed?"""
        allowed = self.allowed_providers
        return allowed is None or any(fnmatchcase(name.lower(), one.lower()) for one in allowed for name in names)

    def check_time(self, now: datetime) -> None:
        """Raises Forbidden (403) once the key has expired."""
        if self.expires_at is not None and now >= self.expires_at:
            raise Forbidden("This spend key has expired.", code="spend_key_expired")

    def check_call(self, model: str | None, billable: bool, *providers: str) -> None:
        """Raises Forbidden (403) for another provider, CallerError 400 `forward_model_invalid` for another model."""
        if not self.allows_provider(*providers):
            raise Forbidden(f"This spend key may not call {providers[0]}.", code="provider_not_allowed")
        if self.allowed_models is None or (model is None and not billable):
            return
        if model is None or not self.allows_model(model, *providers):
            named = "a call that names no model" if model is None else f"the model {model[:100]!r}"
            raise CallerError(
                f"This spend key does not allow {named}; it allows {', '.join(self.allowed_models)[:300]}.",
                code="forward_model_invalid",
            )


def cycle_id(cycle: Cycle, at: datetime) -> str:
    """The name of the UTC day, week (from Monday) or month an aware time is in; one name for ever for `total`."""
    utc = at.astimezone(UTC)
    if cycle == "daily":
        return f"d{utc:%Y-%m-%d}"
    if cycle == "weekly":
        year, week, _ = utc.isocalendar()
        return f"w{year:04d}-{week:02d}"
    return f"m{utc:%Y-%m}" if cycle == "monthly" else "t"


def cycle_start(cycle: Cycle, at: datetime) -> datetime:
    """The first instant of the cycle an aware time is in; 1970 for `total`."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if cycle == "daily":
        return day
    if cycle == "weekly":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if cycle == "monthly" else datetime(1970, 1, 1, tzinfo=UTC)


def cycle_end(cycle: Cycle, at: datetime) -> datetime | None:
    """The first instant after the cycle an aware time is in; None for `total`."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if cycle == "daily":
        return day + timedelta(days=1)
    if cycle == "weekly":
        return day + timedelta(days=7 - day.weekday())
    if cycle == "monthly":
        return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeUse:
    """What a scope has used: in the cycles of its limits, and in all. Spend is what ended calls were charged, in nano-USD."""

    spent_nanos: int
    spent_total_nanos: int
    requests: int
    requests_total: int
    last_used_ms: int  # since 1970; 0: never


def use_of(counted: Mapping[str, str], limits: Limits, now: datetime) -> ScopeUse:
    """The use that a scope's counters (the fields of money.lua's `l` hash) tell; of the month where there is no limit."""
    in_spend_cycle = counted.get("scy") == cycle_id(limits.spend_cycle, now)
    in_request_cycle = counted.get("rcy") == cycle_id(limits.request_cycle, now)
    return ScopeUse(
        spent_nanos=int(counted.get("sp", "0")) if in_spend_cycle else 0,
        spent_total_nanos=int(counted.get("ts", "0")),
        requests=int(counted.get("rc", "0")) if in_request_cycle else 0,
        requests_total=int(counted.get("tr", "0")),
        last_used_ms=int(counted.get("lu", "0")),
    )


def parse_limits(document: Mapping[str, Any]) -> Limits:
    """Limits out of a JSON object's spend_limit, request_limit, rate_limit, token_limit, concurrency_limit; others ignored.

    null and absent are no limit. Raises CallerError (400) that names the field and what is accepted.
    """
    values: dict[str, Any] = {}
    spend = _members(document, "spend_limit", ("amount", "cycle"))
    if spend is not None:
        values["spend_nanos"] = _dollars(spend.get("amount"))
        values["spend_cycle"] = _cycle("spend_limit", spend.get("cycle"))
    requests = _members(document, "request_limit", ("count", "cycle"))
    if requests is not None:
        values["request_count"] = _count("request_limit.count", requests.get("count"))
        values["request_cycle"] = _cycle("request_limit", requests.get("cycle"))
    rate = _members(document, "rate_limit", ("rpm", "burst"))
    if rate is not None:
        values["requests_per_minute"] = _count("rate_limit.rpm", rate.get("rpm"))
        if rate.get("burst") is not None:
            values["request_burst"] = _count("rate_limit.burst", rate["burst"])
    tokens = _members(document, "token_limit", ("tpm",))
    if tokens is not None:
        values["tokens_per_minute"] = _count("token_limit.tpm", tokens.get("tpm"))
    if document.get("concurrency_limit") is not None:
        values["concurrent_calls"] = _count("concurrency_limit", document["concurrency_limit"])
    return Limits(**values)


def limits_document(limits: Limits) -> dict[str, Any]:
    """The JSON form that parse_limits reads; null where there is no limit."""
    return {
        "spend_limit": None
        if limits.spend_nanos is None
        else {"amount": _amount_text(limits.spend_nanos), "cycle": limits.spend_cycle},
        "request_limit": None if limits.request_count is None else {"count": limits.request_count, "cycle": limits.request_cycle},
        "rate_limit": None
        if limits.requests_per_minute is None
        else {"rpm": limits.requests_per_minute, "burst": limits.request_burst},
        "token_limit": None if limits.tokens_per_minute is None else {"tpm": limits.tokens_per_minute},
        "concurrency_limit": limits.concurrent_calls,
    }


def _members(document: Mapping[str, Any], name: str, known: tuple[str, ...]) -> Mapping[str, Any] | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) - set(known):
        raise _bad(f"{name} must be null or an object of {', '.join(known)}")
    return value


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= COUNT_MAX:
        raise _bad(f"{name} must be a whole number from 1 to {COUNT_MAX}")
    return value


def _cycle(name: str, value: object) -> Cycle:
    if value not in get_args(Cycle):
        raise _bad(f"{name}.cycle must be one of {', '.join(get_args(Cycle))}")
    return cast(Cycle, value)


def _dollars(value: object) -> int:
    try:
        nanos = parse_usd(value) if isinstance(value, str) else -1
    except ValueError:
        nanos = -1
    if not 0 <= nanos <= AMOUNT_NANOS_MAX:
        raise _bad('spend_limit.amount must be dollars in a string, such as "25.00", of at most 9000000')
    return nanos


def _amount_text(nanos: int) -> str:
    """Exact dollars with at least two places."""
    text = format_usd(nanos, 9)
    return text[:-7] + text[-7:].rstrip("0")


def _bad(message: str) -> CallerError:
    return CallerError(message + ".", code="invalid_parameter")
