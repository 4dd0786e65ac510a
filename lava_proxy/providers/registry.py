"""The table of providers: config/providers.toml as values, found by name, alias or host.

A new host that speaks a known API is one stanza there; a new family is one file here and one line in FAMILIES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args
from urllib.parse import urlsplit

from lava_proxy.providers.base import AuthStyle, DisconnectPolicy, Family, Provider
from lava_proxy.providers.ceilings import DEFAULT_OUTPUT_TOKENS_MAX
from lava_proxy.providers.model_apis import ModelApis
from lava_proxy.providers.passthrough import Passthrough

FAMILIES = ("openai", "anthropic", "google", "bedrock", "cohere", "ollama", "watsonx", "media", "passthrough")
"""The API a host speaks by nature (`media`: speech, images and the like). All but `passthrough` are read by ModelApis."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
_KEYS = frozenset(field.name for field in fields(Provider)) - {"name", "override"}
_STRINGS = ("family", "base", "price_id", "auth", "disconnect")
_STRING_LISTS = ("hosts", "aliases", "key_env", "models", "native_paths")
_POSITIVE = ("output_factor_percent", "ttfb_timeout_s", "idle_timeout_s")


class Registry:
    """All known providers. Immutable after construction."""

    def __init__(self, providers: Iterable[Provider], *, default_output_tokens_max: int = DEFAULT_OUTPUT_TOKENS_MAX) -> None:
        self.providers: tuple[Provider, ...] = tuple(providers)
        model_apis: Family = ModelApis(default_output_tokens_max=default_output_tokens_max)
        self._families: dict[str, Family] = {
            **dict.fromkeys(FAMILIES, model_apis),
            "passthrough": Passthrough(),
        }
        self._by_name: dict[str, Provider] = {}
        self._by_host: dict[str, Provider] = {}
        self._patterns: list[tuple[re.Pattern[str], Provider]] = []
        self._models: list[tuple[re.Pattern[str], Provider]] = []
        for provider in self.providers:
            self._add(provider)

    def by_name(self, name: str) -> Provider | None:
        """The provider with this name or alias, in any case; None when there is none."""
        return self._by_name.get(name.lower())

    def by_host(self, host: str) -> Provider | None:
        """The provider that owns this host name (no port); exact names first, then patterns. None: not reachable."""
        host = host.lower().removesuffix(".")
        provider = self._by_host.get(host)
        if provider is not None:
            return provider
        return next((owner for pattern, owner in self._patterns if pattern.fullmatch(host)), None)

    def by_model(self, model: str) -> tuple[Provider, str] | None:
        """(provider, the model's name there): by the first stanza whose `models` match, else as `provider/model`."""
        lowered = model.lower()
        for pattern, provider in self._models:
            if pattern.fullmatch(lowered):
                return provider, model
        head, slash, rest = model.partition("/")
        named = self.by_name(head) if slash and rest else None
        return None if named is None else (named, rest)

    def family(self, provider: Provider) -> Family:
        """How this provider's requests are read and its responses metered."""
        return self._families[provider.family]

    def _add(self, provider: Provider) -> None:
        for name in (provider.name, *provider.aliases):
            if self._by_name.setdefault(name.lower(), provider) is not provider:
                other = self._by_name[name.lower()].name
                raise ValueError(f"providers.{provider.name}: the name {name!r} is taken by providers.{other}")
        for name in provider.models:
            pattern = ".*".join(re.escape(part) for part in name.lower().split("*"))
            self._models.append((re.compile(pattern), provider))
        for host in provider.hosts:
            if "*" in host:
                if any(host == known for _, owner in self._patterns for known in owner.hosts if owner is not provider):
                    raise ValueError(f"providers.{provider.name}: the host {host!r} is taken")
                self._patterns.append((_host_pattern(host), provider))
            elif self._by_host.setdefault(host, provider) is not provider:
                other = self._by_host[host].name
                raise ValueError(f"providers.{provider.name}: the host {host!r} is taken by providers.{other}")


def load_registry(
    table: Mapping[str, object],
    overrides: Mapping[str, str] | None = None,
    *,
    default_output_tokens_max: int = DEFAULT_OUTPUT_TOKENS_MAX,
) -> Registry:
    """The registry of a parsed providers.toml: `table["providers"]` maps a name to its stanza, `[overrides]` to a base URL.

    `overrides`, which win, map a name or alias to a base URL that takes the provider's calls instead. Raises ValueError with the
    stanza's name and what is accepted when a stanza or an override is wrong.
    """
    stanzas = table.get("providers")
    if not isinstance(stanzas, dict) or not stanzas:
        raise ValueError("providers.toml needs at least one [providers.<name>] table")
    unknown = set(table) - {"providers", "overrides"}
    if unknown:
        raise ValueError(f"providers.toml: unknown top-level keys {sorted(unknown)}; known: overrides, providers")
    configured = table.get("overrides", {})
    if not isinstance(configured, dict) or not all(isinstance(url, str) for url in configured.values()):
        raise ValueError("providers.toml: [overrides] maps provider names to base URLs")
    providers = {name: _provider(name, stanza) for name, stanza in stanzas.items()}
    owners = {alias.lower(): name for name, known in providers.items() for alias in (name, *known.aliases)}
    for name, url in {**configured, **(overrides or {})}.items():
        owner = owners.get(name.lower())
        if owner is None:
            raise ValueError(f"--provider {name}={url}: no provider has this name; known: {', '.join(sorted(providers))}")
        stanza = dict(stanzas[owner])
        providers[owner] = _provider(owner, stanza, override=_base_url(f"--provider {name}", url, ("http", "https")))
    return Registry(providers.values(), default_output_tokens_max=default_output_tokens_max)


def _provider(name: str, stanza: object, override: str | None = None) -> Provider:
    where = f"providers.{name}"
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: a name is 1 to 64 letters, digits, dots, dashes and underscores")
    if not isinstance(stanza, dict):
        raise ValueError(f"{where}: must be a table")
    unknown = set(stanza) - _KEYS
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}; known: {sorted(_KEYS)}")
    for key in ("family", "base"):
        if key not in stanza:
            raise ValueError(f"{where}: {key} is required")
    values: dict[str, Any] = {"hosts": (), **{key: _value(where, key, value) for key, value in stanza.items()}}
    _one_of(where, "family", values["family"], FAMILIES)
    _one_of(where, "auth", values.get("auth", "bearer"), get_args(AuthStyle))
    _one_of(where, "disconnect", values.get("disconnect", "estimate"), get_args(DisconnectPolicy))
    values["base"] = _base_url(f"{where}.base", values["base"], ("https", "http"))
    for alias in values.get("aliases", ()):
        if not _NAME.fullmatch(alias):
            raise ValueError(f"{where}: not a name: alias {alias!r}")
    for host in values["hosts"]:
        if not _HOST.fullmatch(host.replace("*", "x")) or host.strip("*.").count(".") < 1:
            raise ValueError(f"{where}: not a host name or pattern: {host!r} (lower case, at least two fixed labels)")
    return Provider(name=name, override=override, **values)


def _value(where: str, key: str, value: object) -> object:
    """One stanza value, type-checked; lists become tuples."""
    if key in _STRINGS and isinstance(value, str) and value:
        return value
    if key in _STRING_LISTS and isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    if key in _POSITIVE and isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if key == "include_usage" and isinstance(value, bool):
        return value
    raise ValueError(f"{where}.{key}: bad value {value!r}")


def _one_of(where: str, key: str, value: str, accepted: Iterable[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{where}.{key}: {value!r} is none of {', '.join(accepted)}")


def _base_url(where: str, url: str, schemes: tuple[str, ...]) -> str:
    """The URL without a trailing slash; ValueError unless it is scheme://host[:port][/path]."""
    parts = urlsplit(url)
    try:
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        port_is_good = False
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in schemes or not parts.hostname or not port_is_good or not is_plain:
        raise ValueError(f"{where}: {url!r} is not a base URL such as https://host/v1")
    return url.rstrip("/")


def _host_pattern(host: str) -> re.Pattern[str]:
    """`*` stands for one or more characters within one label."""
    return re.compile("[a-z0-9-]+".join(re.escape(part) for part in host.split("*")))
