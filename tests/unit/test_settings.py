"""settings.py: every setting once in config/default.toml, the environment wins, and a bad value names its key."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from lava_proxy.settings import _SECTIONS, CONFIG_DIR, load


def test_the_default_file_has_every_setting_once_and_nothing_else() -> None:
    text = (CONFIG_DIR / "default.toml").read_text()
    table = tomllib.loads(text)  # a key given twice is an error of TOML itself
    assert {name: set(values) for name, values in table.items()} == {
        name: {field.name for field in dataclasses.fields(kind)} for name, kind in _SECTIONS.items()
    }
    settings = load({})
    for section, values in table.items():
        assert dataclasses.asdict(getattr(settings, section)) == values


def test_every_setting_has_its_reason_beside_it() -> None:
    lines = (CONFIG_DIR / "default.toml").read_text().splitlines()
    assert [line for line in lines if "=" in line and not line.startswith("#") and len(line.partition("#")[2].strip()) < 10] == []


def test_the_environment_wins_over_a_file_of_ones_own_which_wins_over_the_default(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[reserve]\noutput_tokens_default = 100\nkeep_s = 50\n")
    settings = load({"LAVA_CONFIG": str(own), "LAVA_RESERVE_KEEP_S": "70"})
    assert (settings.reserve.output_tokens_default, settings.reserve.keep_s) == (100, 70)
    assert settings.reserve.lease_s == load({}).reserve.lease_s


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"LAVA_REDIS_TIMEOUT_S": "soon"}, "LAVA_REDIS_TIMEOUT_S"),
        ({"LAVA_REDIS_TIMEOUT_S": "1.5"}, "LAVA_REDIS_TIMEOUT_S"),
        ({"LAVA_REDIS_TIMEOUT_S": "0"}, r"\[redis\] timeout_s"),
        ({"LAVA_HTTP_HEADERS_MAX": "-1"}, r"\[http\] headers_max"),
        ({"LAVA_RESERVE_LEASE_S": "5"}, "reserve.lease_s"),
        ({"LAVA_HTTP_BODY_TIMEOUT_S": "1"}, "http.body_timeout_s"),
    ],
)
def test_a_bad_value_in_the_environment_names_its_key(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load(environment)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[nothing]\nx = 1\n", r"unknown section \[nothing\]"),
        ("[http]\nbody_bytes = 1\n", "body_bytes"),
        ('[http]\nbody_bytes_max = "1"\n', r"\[http\] body_bytes_max"),
        ("[http]\nbody_bytes_max = true\n", r"\[http\] body_bytes_max"),
        ("http = 1\n", "http"),
    ],
)
def test_a_bad_value_in_a_file_names_its_key(tmp_path: Path, text: str, named: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ValueError, match=named):
        load({"LAVA_CONFIG": str(own)})


def test_provider_keys_are_read_by_the_names_their_stanza_gives() -> None:
    settings = load({"OPENAI_API_KEY": "k1", "GEMINI_API_KEY": "", "GOOGLE_API_KEY": "k2"})
    found = settings.provider_keys(
        {"openai": ("OPENAI_API_KEY",), "google": ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "xai": ("XAI_API_KEY",)}
    )
    assert found == {"openai": "k1", "google": "k2"}
    assert "k1" not in repr(settings)


def test_a_provider_key_of_parts_needs_the_first_two() -> None:
    """An AWS access key; the session token is there for temporary ones only."""
    wanted = {"bedrock": ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID:AWS_SECRET_ACCESS_KEY:AWS_SESSION_TOKEN")}
    pair = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "s"}
    assert load(pair).provider_keys(wanted) == {"bedrock": "AKIA1:s"}
    assert load({**pair, "AWS_SESSION_TOKEN": "t"}).provider_keys(wanted) == {"bedrock": "AKIA1:s:t"}
    assert load({**pair, "AWS_BEARER_TOKEN_BEDROCK": "b"}).provider_keys(wanted) == {"bedrock": "b"}
    assert load({"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SESSION_TOKEN": "t"}).provider_keys(wanted) == {}


@pytest.mark.parametrize("name", ["KEEPALIVE_COMMENT_S", "BREAKER_FAILURES_MAX"])
def test_what_can_be_switched_off_is_so_by_zero(name: str) -> None:
    assert getattr(load({f"LAVA_UPSTREAM_{name}": "0"}).upstream, name.lower()) == 0


@pytest.mark.parametrize("name", ["TOTAL_TIMEOUT_S", "BREAKER_OPEN_S"])
def test_a_time_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="positive"):
        load({f"LAVA_UPSTREAM_{name}": "0"})


def test_the_processor_is_one_of_a_few_words() -> None:
    assert load({"LAVA_PAYMENTS_PROCESSOR": "sandbox"}).payments.processor == "sandbox"
    with pytest.raises(ValueError, match=r"\[payments\] processor must be one of auto, sandbox"):
        load({"LAVA_PAYMENTS_PROCESSOR": "paypal"})


def test_stripes_secrets_come_from_the_environment_and_are_not_shown() -> None:
    assert load({}).stripe_account() is None
    account = load({"LAVA_STRIPE_SECRET_KEY": "sk_1", "LAVA_STRIPE_WEBHOOK_SECRET": "whsec_1, whsec_2"}).stripe_account()
    assert account is not None
    assert (account.secret_key, account.webhook_secrets, account.api_base) == ("sk_1", ("whsec_1", "whsec_2"), None)
    assert "sk_1" not in repr(account) and "whsec_1" not in repr(account)
