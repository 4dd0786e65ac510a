"""[overrides] of providers.toml and `--provider`: how people attach their own servers."""

from __future__ import annotations

import pytest

from lava_proxy import settings
from lava_proxy.app.open_stores import registry_of
from lava_proxy.app.run_config import RunConfig, parse_overrides
from lava_proxy.domain.errors import CallerError
from lava_proxy.providers.registry import load_registry

_TABLE = {**settings.load({}).providers_table, "overrides": {"openai": "http://127.0.0.1:1/x", "gemini": "http://127.0.0.1:2"}}


def test_the_files_overrides_hold_until_an_option_names_the_same_provider() -> None:
    registry = load_registry(_TABLE, parse_overrides(("openai=http://127.0.0.1:9",)))
    openai, google = registry.by_name("openai"), registry.by_name("google")
    assert openai is not None and openai.override == "http://127.0.0.1:9"
    assert google is not None and google.override == "http://127.0.0.1:2"


@pytest.mark.parametrize("value", ["openai", "openai=ftp://x", "=http://x/"])
def test_an_option_that_is_no_name_and_url_is_refused(value: str) -> None:
    with pytest.raises((CallerError, ValueError)):
        load_registry(_TABLE, parse_overrides((value,)))


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="overrides"):
        load_registry({**_TABLE, "overrides": {"openai": 1}})


def test_the_setting_for_calls_without_max_tokens_is_what_they_are_held_for() -> None:
    chosen = settings.load({"LAVA_RESERVE_OUTPUT_TOKENS_DEFAULT": "777"})
    config = RunConfig(redis_url="", database_url="", master_key="", control_socket="", base_url="")
    registry = registry_of(config, chosen)
    provider = registry.by_name("openai")
    assert provider is not None
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"x"}]}'
    call = registry.family(provider).inspect(provider, "POST", "/v1/chat/completions", "", "application/json", body)
    assert call.ceiling.output_tokens == 777
