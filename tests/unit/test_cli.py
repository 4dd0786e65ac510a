"""The command line's own checks."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from lava_proxy import cli as command_line
from lava_proxy import cli_admin, cli_keys, settings
from lava_proxy.app.run_config import RunConfig, control_address
from lava_proxy.cli_installation import control_listen, merchant_of
from lava_proxy.cli_run import options_of
from lava_proxy.domain.errors import CallerError
from lava_proxy.stores.catalog_store import Merchant


@pytest.fixture(autouse=True)
def the_logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command configures the logs of its process; here they would go on into a stream that ends with the test."""
    monkeypatch.setattr(command_line, "_configure_logs", lambda: None)


@pytest.mark.parametrize("variables", [{"LAVA_WORKERS": "-1"}, {"LAVA_PORT": "99999"}, {"LAVA_PORT": "abc"}])
def test_ports_and_workers_out_of_range_are_refused_by_name(variables: dict[str, str]) -> None:
    with pytest.raises(CallerError, match=r"LAVA_PORT.*LAVA_WORKERS"):
        options_of(settings.load(variables), None, None, None, (), False, Path(), None)


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_is_the_one_a_command_ends_with(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """click returns the status of `ctx.exit` instead of raising it."""

    @click.command("leave-now")
    @click.pass_context
    def leave(context: click.Context) -> None:
        context.exit(status)

    monkeypatch.setitem(command_line.cli.commands, "leave-now", leave)
    monkeypatch.setattr(sys, "argv", ["lava-proxy", "leave-now"])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["merchant", "create", "--name", ""],
        ["merchant", "create", "--name", "  "],
        ["meter", "create", "--name", "a\nb", "--tier", "1"],
        ["spend-key", "create", "--name", "x" * 256],
        ["customer", "create", "--reference-id", "con_mine"],
        ["customer", "create", "--reference-id", " "],
        ["customer", "create", "--funds", ""],
    ],
)
def test_what_the_rest_api_refuses_as_a_name_the_command_line_refuses_too(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """113: before anything is looked for or written; the sentence names the option."""
    reached: list[Any] = []
    for module in (cli_admin, cli_keys):
        monkeypatch.setattr(module, "with_stores", lambda *given, **options: reached.append(given))
    monkeypatch.setattr(sys, "argv", ["lava-proxy", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 1 and not reached
    option = next(word for word in reversed(arguments) if word in ("--name", "--reference-id", "--funds"))
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://control:8081", ("control", 8081, False)),
        ("https://control.internal", ("control.internal", 443, True)),
        ("http://[::1]:8081/", ("::1", 8081, False)),
    ],
)
def test_a_control_url_names_host_port_and_tls(url: str, expected: tuple[str, int, bool]) -> None:
    assert control_address(url) == expected


@pytest.mark.parametrize(
    "url", ["control:8081", "ftp://control", "http://", "http://c:99999", "http://c/path", "http://u@c", "http://c?x"]
)
def test_what_is_no_control_url_is_refused_by_its_variables_name(url: str) -> None:
    with pytest.raises(CallerError, match="LAVA_CONTROL_URL"):
        control_address(url)


def test_control_listens_by_tcp_only_where_it_is_told_to_and_on_loopback_by_default() -> None:
    assert control_listen({}) is None
    assert control_listen({"LAVA_CONTROL_PORT": "9000"}) == ("127.0.0.1", 9000)
    assert control_listen({"LAVA_CONTROL_HOST": "10.0.0.5"}) == ("10.0.0.5", 8081)
    with pytest.raises(CallerError, match="LAVA_CONTROL_PORT"):
        control_listen({"LAVA_CONTROL_PORT": "many"})


def test_the_processes_of_an_installation_are_told_all_of_it() -> None:
    config = RunConfig(redis_url="r", database_url="d", master_key="k", control_socket="", base_url="", control_listen=("::1", 1))
    assert RunConfig.from_json(config.to_json()) == config


class _Merchants:
    """A catalogue of so many merchants."""

    def __init__(self, count: int) -> None:
        self._found = [Merchant(merchant_id=f"mer_{n}", name=f"No. {n}", wallet_id="", clamp_floor=0) for n in range(count)]

    async def merchants(self) -> list[Merchant]:
        return self._found


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, 'There is no merchant yet; `merchant create --name "My company"` makes the first.'),
        (2, "There are 2 merchants; name one with --merchant: mer_0 (No. 0), mer_1 (No. 1)."),
        (12, "mer_9 (No. 9) and 2 more."),
    ],
)
async def test_a_command_that_cannot_know_the_merchant_names_those_there_are(count: int, said: str) -> None:
    with pytest.raises(CallerError, match=re.escape(said)):
        await merchant_of(SimpleNamespace(catalog=_Merchants(count)), None)


async def test_the_only_merchant_need_not_be_named() -> None:
    assert (await merchant_of(SimpleNamespace(catalog=_Merchants(1)), None)).merchant_id == "mer_0"


def test_a_command_to_paste_is_the_one_that_was_typed_and_finds_the_data() -> None:
    config = RunConfig(redis_url="", database_url="", master_key="", control_socket="", base_url="")
    assert config.command("dashboard link") == "lava-proxy dashboard link"
    cloned = replace(config, program="./lava", data_dir="/tmp/my data")
    assert cloned.command("dashboard link") == "./lava dashboard link --data-dir '/tmp/my data'"
    assert RunConfig.from_json(replace(cloned, sandboxed=("openai",)).to_json()) == replace(cloned, sandboxed=("openai",))
