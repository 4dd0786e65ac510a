"""A small provider table for the tests of routes and headers."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from lava_proxy.providers.base import AuthStyle, Provider


def provider(
    name: str, host: str, base: str, *, family: str = "openai", auth: AuthStyle = "bearer", override: str | None = None
) -> Provider:
    return Provider(name=name, family=family, hosts=(host,), base=base, auth=auth, override=override)


OPENAI = provider("openai", "api.openai.com", "https://api.openai.com/v1")
ANTHROPIC = provider("anthropic", "api.anthropic.com", "https://api.anthropic.com/v1", family="anthropic", auth="x-api-key")
GOOGLE = replace(
    provider(
        "google",
        "generativelanguage.googleapis.com",
        "https://generativelanguage.googleapis.com/v1beta",
        family="google",
        auth="x-goog-api-key",
    ),
    aliases=("gemini",),
)
GROQ = provider("groq", "api.groq.com", "https://api.groq.com/openai/v1")
DEEPINFRA = provider("deepinfra", "api.deepinfra.com", "https://api.deepinfra.com/v1/openai")
COHERE = provider("cohere", "api.cohere.com", "https://api.cohere.com/compatibility/v1", family="cohere")
AZURE = provider("azure", "*.openai.azure.com", "https://openai.azure.com/openai/v1", auth="api-key")
VLLM = provider("vllm", "vllm.example", "https://vllm.example/v1", override="http://127.0.0.1:9000/deep")
OLLAMA = provider("ollama", "ollama.example", "http://ollama.example:11434")
NUMBERS = provider("numbers", "10.0.0.*", "https://numbers.example")
ELEVENLABS = provider("elevenlabs", "api.elevenlabs.io", "https://api.elevenlabs.io/v1", auth="xi-api-key")
BEDROCK = provider(
    "bedrock", "bedrock-runtime.*.amazonaws.com", "https://bedrock-runtime.us-east-1.amazonaws.com", family="bedrock"
)
NO_AUTH = provider("none", "free.example", "https://free.example", auth="none")


class FakeRegistry:
    def __init__(self, *providers: Provider) -> None:
        self.providers = providers

    def by_name(self, name: str) -> Provider | None:
        return next((p for p in self.providers if name == p.name or name in p.aliases), None)

    def by_host(self, host: str) -> Provider | None:
        return next((p for p in self.providers if any(fnmatchcase(host, pattern) for pattern in p.hosts)), None)

    def by_model(self, model: str) -> tuple[Provider, str] | None:
        for provider in self.providers:
            if any(fnmatchcase(model, pattern) for pattern in provider.models):
                return provider, model
        head, slash, rest = model.partition("/")
        named = self.by_name(head) if slash else None
        return None if named is None else (named, rest)


REGISTRY = FakeRegistry(
    OPENAI, ANTHROPIC, GOOGLE, GROQ, DEEPINFRA, COHERE, AZURE, VLLM, OLLAMA, NUMBERS, ELEVENLABS, BEDROCK, NO_AUTH
)
