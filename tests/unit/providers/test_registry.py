"""The table of providers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lava_proxy.providers.model_apis import ModelApis
from lava_proxy.providers.passthrough import Passthrough
from lava_proxy.providers.registry import Registry, load_registry

TABLE = tomllib.loads((Path(__file__).resolve().parents[3] / "config" / "providers.toml").read_text())
STANZA = {"family": "openai", "base": "https://api.a.test/v1", "hosts": ["api.a.test"]}

SDK_BASES = {
    "openai": "https://api.openai.com/v1",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "xai": "https://api.x.ai/v1",
    "kluster": "https://api.kluster.ai/v1",
    "inference": "https://api.inference.net/v1",
    "groq": "https://api.groq.com/openai/v1",
    "novita": "https://api.novita.ai/v3/openai",
    "vercel": "https://api.v0.dev/v1",
    "together": "https://api.together.xyz/v1",
    "hyperbolic": "https://api.hyperbolic.xyz/v1",
    "elevenlabs": "https://api.elevenlabs.io/v1",
    "sambanova": "https://api.sambanova.ai/v1",
    "deepinfra": "https://api.deepinfra.com/v1/openai",
    "cohere": "https://api.cohere.ai/compatibility/v1",
    "parasail": "https://api.parasail.io/v1",
    "nebius": "https://api.studio.nebius.com/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "embercloud": "https://api.embercloud.ai/v1",
    "cerebras": "https://api.cerebras.ai/v1",
    "targon": "https://api.targon.com/v1",
    "gmicloud": "https://api.gmi-serving.com/v1",
    "chutes": "https://llm.chutes.ai/v1",
    "baseten": "https://inference.baseten.co/v1",
    "moonshot": "https://api.moonshot.ai/v1",
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(TABLE)


def name_of(found: Any) -> str | None:
    return None if found is None else found.name


def test_every_base_of_the_sdk_is_there(registry: Registry) -> None:
    for name, base in SDK_BASES.items():
        provider = registry.by_name(name)
        assert provider is not None
        assert provider.base == base
        assert registry.by_host(base.split("/")[2]) is provider
    for name in ("anthropic", "google", "googleOpenaiCompatible", "gemini"):
        assert registry.by_name(name) is not None


def test_hosts_match_exactly_first_and_patterns_within_one_label(registry: Registry) -> None:
    assert name_of(registry.by_host("API.OpenAI.com.")) == "openai"
    assert name_of(registry.by_host("my-res.openai.azure.com")) == "azure"
    assert name_of(registry.by_host("us-east5-aiplatform.googleapis.com")) == "vertex"
    assert name_of(registry.by_host("aiplatform.googleapis.com")) == "vertex"
    assert name_of(registry.by_host("bedrock-runtime.eu-central-1.amazonaws.com")) == "bedrock"
    for host in (
        "evil.com",
        "a.b.openai.azure.com",
        "openai.azure.com",
        "api.openai.com.evil.com",
        "xapi.openai.com",
        "evil.com#.openai.azure.com",
        "evil.com/.openai.azure.com",
        "x@y.openai.azure.com",
        "localhost",
        "127.0.0.1",
        "",
    ):
        assert registry.by_host(host) is None


def test_families_are_found(registry: Registry) -> None:
    for name, family in (("openai", ModelApis), ("vertex", ModelApis), ("bedrock", ModelApis), ("pearch", Passthrough)):
        provider = registry.by_name(name)
        assert provider is not None
        assert isinstance(registry.family(provider), family)


def test_providers_that_bill_to_the_end_are_drained(registry: Registry) -> None:
    """C3, C9: the disconnect policy per provider."""
    drained = {provider.name for provider in registry.providers if provider.disconnect == "drain"}
    assert drained >= {
        "bedrock",
        "google",
        "vertex",
        "groq",
        "mistral",
        "perplexity",
        "huggingface",
        "nebius",
        "sambanova",
    }
    assert not drained & {"openai", "azure", "anthropic", "fireworks", "together", "xai", "deepseek", "openrouter"}


def test_the_option_is_never_asked_of_hosts_that_refuse_or_do_not_need_it(registry: Registry) -> None:
    asked = {provider.name for provider in registry.providers if provider.include_usage}
    assert asked >= {"openai", "azure", "vllm", "fireworks"}
    assert not asked & {"mistral", "anthropic", "google", "cohere", "bedrock", "groq", "perplexity", "openrouter"}


def test_every_provider_can_be_reached_by_host_or_attached_by_name(registry: Registry) -> None:
    assert {provider.name for provider in registry.providers if not provider.hosts} == {"vllm", "ollama"}
    for provider in registry.providers:
        assert provider.key_env


def test_an_override_replaces_where_calls_go() -> None:
    registry = load_registry(TABLE, {"gemini": "http://127.0.0.1:9000/fake/"})
    google = registry.by_name("google")
    assert google is not None
    assert google.override == "http://127.0.0.1:9000/fake"
    assert google.base == "https://generativelanguage.googleapis.com"
    assert registry.by_host("generativelanguage.googleapis.com") is google
    openai = registry.by_name("openai")
    assert openai is not None and openai.override is None


@pytest.mark.parametrize(
    "overrides",
    [{"nobody": "http://x.test"}, {"openai": "ftp://x"}, {"openai": "http://"}, {"openai": "http://u:p@x.test"}],
)
def test_a_wrong_override_is_refused_with_its_name(overrides: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(overrides))):
        load_registry(TABLE, overrides)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"family": "openai2"}, "family.*openai2.*passthrough"),
        ({"family": None}, "family"),
        ({"base": "api.a.test"}, "base URL"),
        ({"base": "https://api.a.test/v1?x=1"}, "base URL"),
        ({"auth": "basic"}, "auth.*basic"),
        ({"disconnect": "maybe"}, "disconnect.*maybe"),
        ({"include_usage": "yes"}, "include_usage"),
        ({"output_factor_percent": 0}, "output_factor_percent"),
        ({"ttfb_timeout_s": True}, "ttfb_timeout_s"),
        ({"hosts": "api.a.test"}, "hosts"),
        ({"hosts": ["https://api.a.test"]}, "host name"),
        ({"hosts": ["*"]}, "host name"),
        ({"hosts": ["*.test"]}, "host name"),
        ({"hosts": ["API.a.test"]}, "host name"),
        ({"aliases": ["a b"]}, "alias"),
        ({"timeout": 3}, r"unknown keys \['timeout'\]"),
        ({"override": "http://x"}, "unknown keys"),
    ],
)
def test_a_wrong_stanza_is_refused_with_its_name_and_what_is_accepted(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"providers\.a\b.*{said}"):
        load_registry({"providers": {"a": {**STANZA, **change}}})


def test_names_and_hosts_belong_to_one_provider() -> None:
    other = {**STANZA, "hosts": ["api.b.test"]}
    with pytest.raises(ValueError, match=r"providers\.b: the host 'api\.a\.test' is taken by providers\.a"):
        load_registry({"providers": {"a": STANZA, "b": STANZA}})
    with pytest.raises(ValueError, match=r"providers\.b: the name 'A' is taken by providers\.a"):
        load_registry({"providers": {"a": STANZA, "b": {**other, "aliases": ["A"]}}})
    pattern = {**STANZA, "hosts": ["*.c.test"]}
    with pytest.raises(ValueError, match=r"providers\.b: the host '\*\.c\.test' is taken"):
        load_registry({"providers": {"a": pattern, "b": pattern}})


@pytest.mark.parametrize("table", [{}, {"providers": {}}, {"providers": []}, {"providers": {"a": 1}}, {"x": 1}])
def test_a_wrong_table_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="providers"):
        load_registry(table)
    with pytest.raises(ValueError, match="unknown top-level keys"):
        load_registry({"providers": {"a": STANZA}, "x": 1})
