"""Which installation a command works on, and what commands share: options, their checks, and how an answer is printed.

It is that of LAVA_REDIS_URL and LAVA_DATABASE_URL, else of the `dev` that runs on the data folder.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from lava_proxy import settings as settings_module
from lava_proxy.domain.errors import CallerError
from lava_proxy.settings import Settings

T = TypeVar("T")

_NAMED_MAX = 10
DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where `dev` keeps its engines' data [.lava].",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
MERCHANT = click.option("--merchant", "merchant_id", default=None, help="Merchant id; may be left out when there is only one.")


def installation(settings: Settings, data_dir: Path | None) -> Any:
    """The RunConfig of the installation. Raises CallerError when the environment names none and no `dev` runs on the folder."""
    from lava_proxy.app.run_config import RunConfig

    if settings.environment.get("LAVA_DATABASE_URL") and data_dir is None:
        return config_from_environment(settings)
    folder = data_dir_of(settings, data_dir)
    try:
        daemon = json.loads((folder / "daemon.json").read_text())
        os.kill(daemon["pid"], 0)
        return RunConfig.from_json(daemon["config"])
    except (FileNotFoundError, ProcessLookupError):
        raise CallerError(
            f"No server runs on {folder}: start `lava-proxy dev`, or set LAVA_REDIS_URL, LAVA_DATABASE_URL and LAVA_MASTER_KEY."
        ) from None


def with_stores(data_dir: Path | None, work: Callable[[Any, Settings], Awaitable[T]], *, require_verified: bool = True) -> T:
    """Run `work(stores, settings)` against the installation."""
    from lava_proxy.app.open_stores import open_stores

    settings = settings_module.load()
    config = installation(settings, data_dir)

    async def run() -> T:
        stores = await open_stores(config, settings, pool_max=2, require_verified=require_verified)
        try:
            return await work(stores, settings)
        finally:
            await stores.close()

    return asyncio.run(run())


def show(value: Any) -> None:
    """Print an answer: one line of JSON."""
    click.echo(json.dumps(value, default=str))


async def merchant_of(stores: Any, merchant_id: str | None) -> Any:
    """The Merchant of this id, or the only one there is. Raises CallerError."""
    if merchant_id is not None:
        return await stores.catalog.merchant(merchant_id)
    merchants = await stores.catalog.merchants()
    if not merchants:
        raise CallerError('There is no merchant yet; `merchant create --name "My company"` makes the first.')
    if len(merchants) > 1:
        known = ", ".join(f"{one.merchant_id} ({one.name})" for one in merchants[:_NAMED_MAX])
        more = f" and {len(merchants) - _NAMED_MAX} more" if len(merchants) > _NAMED_MAX else ""
        raise CallerError(f"There are {len(merchants)} merchants; name one with --merchant: {known}{more}.")
    return merchants[0]


def data_dir_of(settings: Settings, data_dir: Path | None) -> Path:
    """The data folder: as given, else as the environment says."""
    return data_dir or Path(settings.environment.get("LAVA_DATA_DIR", ".lava"))


def config_from_environment(settings: Settings, providers: tuple[str, ...] = ()) -> Any:
    """The RunConfig of the LAVA_ variables. Raises CallerError, which names those that are missing."""
    from lava_proxy.app.run_config import RunConfig, parse_overrides

    environment = settings.environment
    missing = [name for name in ("LAVA_REDIS_URL", "LAVA_DATABASE_URL", "LAVA_MASTER_KEY") if not environment.get(name)]
    if missing:
        raise CallerError(f"Set {', '.join(missing)} (or use `lava-proxy dev`, which brings its own engines).")
    public = environment.get("LAVA_PUBLIC_URL", "")
    return RunConfig(
        redis_url=environment["LAVA_REDIS_URL"],
        database_url=environment["LAVA_DATABASE_URL"],
        master_key=environment["LAVA_MASTER_KEY"],
        previous_master_key=environment.get("LAVA_MASTER_KEY_PREVIOUS", ""),
        control_socket=environment.get("LAVA_CONTROL_SOCKET", ""),
        control_url=environment.get("LAVA_CONTROL_URL", ""),
        control_listen=control_listen(environment),
        base_url=f"{public.rstrip('/')}/v1/" if public else "",
        overrides=parse_overrides(providers),
        program=environment.get("LAVA_PROGRAM", "lava-proxy"),
    )


def control_listen(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Where control listens for gateways on other hosts; None where neither variable is set."""
    host, port = environment.get("LAVA_CONTROL_HOST", ""), environment.get("LAVA_CONTROL_PORT", "")
    if not host and not port:
        return None
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise CallerError(f"LAVA_CONTROL_PORT takes 1 to 65535, not {port!r}.")
    return host or "127.0.0.1", int(port or "8081")


def is_line(text: str) -> bool:
    """What the REST API takes as a name too."""
    return 0 < len(text) <= 255 and text.isprintable() and bool(text.strip())


def check_name(name: str) -> None:
    """Raises CallerError for a `--name` that the REST API would refuse."""
    if not is_line(name):
        raise CallerError("--name takes 1 to 255 printable characters, not only spaces.")


def usd(text: str) -> int:
    """Nanos of `--funds`, dollars such as 25.00. Raises CallerError."""
    from lava_proxy.domain.money import AMOUNT_NANOS_MAX, parse_usd

    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise CallerError(f"--funds takes dollars such as 25.00: {error}.") from error
    if not 0 < amount <= AMOUNT_NANOS_MAX:
        raise CallerError(f"--funds must be above 0 and at most 9000000, not {text}.")
    return amount
