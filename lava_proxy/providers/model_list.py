"""The models that the model routes know by name: the price source's, as far as a stanza's `models` claims them."""

from __future__ import annotations

from dataclasses import dataclass

from lava_proxy.domain.limits import RequestShape
from lava_proxy.providers.prices_source import model_ids
from lava_proxy.providers.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model, whose it is (the first name is the provider's own) and which vocabulary its route speaks."""

    model: str
    providers: tuple[str, ...]
    shape: RequestShape


def listed_models(registry: Registry) -> tuple[ListedModel, ...]:
    """By provider in the order of the stanzas, then by name."""
    found = []
    for provider in registry.providers:
        if not provider.models or provider.family == "google":  # Google's models have no model route
            continue
        for name in model_ids(provider.price_id or provider.name):
            owner = registry.by_model(name)
            if owner is not None and owner[0] is provider and not name.startswith("ft:"):
                shape: RequestShape = "anthropic" if provider.family == "anthropic" else "openai"
                found.append(ListedModel(model=name, providers=(provider.name, *provider.aliases), shape=shape))
    return tuple(found)
