"""How limits of customers and spend keys are written on a command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lava_proxy.domain.errors import CallerError


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options that `limits_of` reads."""
    for option in reversed(
        [
            click.option("--rpm", type=int, default=None, help="Calls a minute."),
            click.option("--burst", type=int, default=None, help="Calls at once of a minute's [all of them]."),
            click.option("--tpm", type=int, default=None, help="Tokens a minute."),
            click.option("--concurrency", type=int, default=None, help="Calls running at once."),
            click.option("--requests", default=None, metavar="N/CYCLE", help="Calls a cycle, such as 1000/daily."),
            click.option(
                "--spend",
                default=None,
                metavar="USD/CYCLE",
                help="Dollars a cycle (daily, weekly, monthly, total), such as 25.00/monthly.",
            ),
        ]
    ):
        command = option(command)
    return command


def limits_of(
    rpm: int | None, burst: int | None, tpm: int | None, concurrency: int | None, requests: str | None, spend: str | None
) -> dict[str, Any]:
    """The options as the limits' JSON form."""
    if burst is not None and rpm is None:
        raise CallerError("--burst needs --rpm.")
    count, _, request_cycle = (requests or "").partition("/")
    amount, _, spend_cycle = (spend or "").partition("/")
    if requests is not None and not count.isdigit():
        raise CallerError("--requests takes a number and a cycle, such as 1000/daily.")
    return {
        "rate_limit": None if rpm is None else {"rpm": rpm, "burst": burst},
        "token_limit": None if tpm is None else {"tpm": tpm},
        "concurrency_limit": concurrency,
        "request_limit": None if requests is None else {"count": int(count), "cycle": request_cycle or "monthly"},
        "spend_limit": None if spend is None else {"amount": amount, "cycle": spend_cycle or "monthly"},
    }
