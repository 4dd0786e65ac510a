"""Frozen settings, read once from config/*.toml and the environment; the only reader of either.

Order: config/default.toml, the file named by LAVA_CONFIG, then LAVA_<SECTION>_<NAME>. Unknown keys are errors.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = _PACKAGE / "_config" if (_PACKAGE / "_config").is_dir() else _PACKAGE.parent / "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    head_bytes_max: int
    headers_max: int
    body_bytes_max: int
    head_timeout_s: int
    body_timeout_s: int
    idle_timeout_s: int
    write_stall_timeout_s: int
    pipeline_max: int
    connections_max: int
    unread_bodies_bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    connect_timeout_s: int
    pool_idle_s: int
    pool_per_host_max: int
    pool_wait_s: int
    drain_bytes_max: int
    drain_timeout_s: int
    stop_timeout_s: int
    total_timeout_s: int
    keepalive_comment_s: int
    websocket_idle_timeout_s: int
    websocket_message_bytes_max: int
    breaker_failures_max: int
    breaker_open_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    output_tokens_default: int
    lease_s: int
    checkpoint_s: int
    keep_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    timeout_s: int
    connect_wait_s: int
    outbox_entries_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    grants_max: int
    unknown_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flusher:
    batch_rows_max: int
    idle_wait_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    timeout_s: int
    lease_s: int
    concurrency_max: int
    endpoint_concurrency_max: int
    keep_days: int
    allow_private: int  # 1: receivers may have private addresses and plain http


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    body_bytes_max: int
    batch_bytes_max: int
    batch_items_max: int
    keep_s: int
    ledger_check_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Payments:
    processor: str
    timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeAccount:
    """The secrets of one Stripe account, and where its API is."""

    secret_key: str = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(repr=False)
    publishable_key: str
    api_base: str | None
    js_url: str  # the script of the card form


@dataclass(frozen=True, slots=True, kw_only=True)
class TwilioAccount:
    """The Verify service that proves phones."""

    account_sid: str
    auth_token: str = field(repr=False)
    service_sid: str
    api_base: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it. `environment` is a copy of the variables the program may use (provider keys by stanza's `key_env`)."""

    http: Http
    upstream: Upstream
    reserve: Reserve
    redis: Redis
    cache: Cache
    flusher: Flusher
    webhooks: Webhooks
    reports: Reports
    payments: Payments
    providers_table: Mapping[str, Any] = field(repr=False)
    prices_table: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        if self.reserve.lease_s < 5 * self.reserve.checkpoint_s:
            raise ValueError("reserve.lease_s must be at least five times reserve.checkpoint_s, else live streams are reaped")
        if self.http.body_timeout_s < self.http.head_timeout_s:
            raise ValueError("http.body_timeout_s must not be below http.head_timeout_s")
        if self.webhooks.lease_s < 2 * self.webhooks.timeout_s:
            raise ValueError("webhooks.lease_s must be at least twice webhooks.timeout_s, else deliveries under way are sent again")

    def stripe_account(self) -> StripeAccount | None:
        """Stripe as the environment names it; None without a secret key. Several webhook secrets are separated by commas."""
        key = self.environment.get("LAVA_STRIPE_SECRET_KEY", "")
        if not key:
            return None
        secrets = self.environment.get("LAVA_STRIPE_WEBHOOK_SECRET", "").split(",")
        return StripeAccount(
            secret_key=key,
            webhook_secrets=tuple(secret.strip() for secret in secrets if secret.strip()),
            publishable_key=self.environment.get("LAVA_STRIPE_PUBLISHABLE_KEY", ""),
            api_base=self.environment.get("LAVA_STRIPE_API_BASE") or None,
            js_url=self.environment.get("LAVA_STRIPE_JS_URL") or "https://js.stripe.com/v3/",
        )

    def twilio_account(self) -> TwilioAccount | None:
        """Twilio as the environment names it; None without an account. Raises ValueError for half of one."""
        names = ("LAVA_TWILIO_ACCOUNT_SID", "LAVA_TWILIO_AUTH_TOKEN", "LAVA_TWILIO_VERIFY_SERVICE")
        values = [self.environment.get(name, "") for name in names]
        if not any(values):
            return None
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        if missing:
            raise ValueError(f"Twilio Verify also needs {' and '.join(missing)}")
        account_sid, auth_token, service_sid = values
        api_base = self.environment.get("LAVA_TWILIO_API_BASE") or "https://verify.twilio.com"
        return TwilioAccount(account_sid=account_sid, auth_token=auth_token, service_sid=service_sid, api_base=api_base)

    def public_url(self) -> str | None:
        """Where people reach our pages, ending in /; None: wherever their browser found us. Raises ValueError for no address."""
        url = self.environment.get("LAVA_PUBLIC_URL", "").strip()
        if not url:
            return None
        if not url.startswith(("https://", "http://")) or not url.isascii() or " " in url or "?" in url or "#" in url:
            raise ValueError(f"LAVA_PUBLIC_URL must be an address such as https://pay.example.com/, not {url!r}")
        return url.rstrip("/") + "/"

    def provider_keys(self, key_env: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Provider name -> key, for the providers whose variable is set."""
        found: dict[str, str] = {}
        for name, variables in key_env.items():
            value = next((key for variable in variables if (key := self._provider_key(variable))), None)
            if value:
                found[name] = value
        return found

    def _provider_key(self, variable: str) -> str:
        """Of one variable, or of some joined by `:`, of which the first two must be set."""
        values = [self.environment.get(name, "") for name in variable.split(":")]
        return ":".join(values).rstrip(":") if all(values[:2]) else ""


# Zero switches these off.
_MAY_BE_ZERO = frozenset({"keepalive_comment_s", "breaker_failures_max", "allow_private", "ledger_check_ms"})

_SECTIONS: dict[str, type] = {
    "http": Http,
    "upstream": Upstream,
    "reserve": Reserve,
    "redis": Redis,
    "cache": Cache,
    "flusher": Flusher,
    "webhooks": Webhooks,
    "reports": Reports,
    "payments": Payments,
}
_CHOICES = {("payments", "processor"): ("auto", "sandbox", "stripe", "none")}  # the settings that are words


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the files and the given (default: the process') environment. Raises ValueError naming a bad key."""
    environ = dict(os.environ if environment is None else environment)
    table = _read(CONFIG_DIR / "default.toml")
    if environ.get("LAVA_CONFIG"):
        for section, values in _read(Path(environ["LAVA_CONFIG"])).items():
            if section not in _SECTIONS:
                raise ValueError(f"{environ['LAVA_CONFIG']}: unknown section [{section}]; known: {', '.join(_SECTIONS)}")
            if not isinstance(values, dict):
                raise ValueError(f"{environ['LAVA_CONFIG']}: {section} is a section: write [{section}] and its settings below")
            table[section].update(values)
    sections: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        known = {f.name for f in fields(kind)}
        values = table.get(name, {})
        if set(values) - known:
            raise ValueError(f"[{name}]: unknown settings {sorted(set(values) - known)}; known: {sorted(known)}")
        for key in known:
            text = environ.get(f"LAVA_{name}_{key}".upper())
            if text is not None:
                is_word = (name, key) in _CHOICES
                values[key] = text if is_word else _integer(f"LAVA_{name}_{key}".upper(), text)
        for key, value in values.items():
            if (name, key) in _CHOICES:
                if value not in _CHOICES[name, key]:
                    raise ValueError(f"[{name}] {key} must be one of {', '.join(_CHOICES[name, key])}, not {value!r}")
                continue
            if type(value) is not int or value < 0 or (value == 0 and key not in _MAY_BE_ZERO):
                raise ValueError(f"[{name}] {key} must be a positive integer, not {value!r}")
        sections[name] = kind(**values)
    return Settings(
        **sections,
        providers_table=_read(CONFIG_DIR / "providers.toml"),
        prices_table=_read(CONFIG_DIR / "prices.toml"),
        environment=environ,
    )


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be an integer, not {text!r}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error
