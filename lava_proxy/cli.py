"""The command line. Commands print JSON on stdout where they say so; a problem is one sentence on stderr and a non-zero exit."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import structlog

from lava_proxy import cli_money
from lava_proxy import settings as settings_module
from lava_proxy.cli_import import requests_group
from lava_proxy.cli_plans import OVERAGE_HELP, add_plan_commands, overage_of
from lava_proxy.domain.errors import CallerError, LavaError, NotFound
from lava_proxy.settings import Settings

T = TypeVar("T")

_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where `dev` keeps its engines' data [.lava].",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")


def main() -> None:
    """Entry point: translates our errors into a sentence and exit status 1."""
    _configure_logs()
    try:
        status = cli.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)  # click returns the status of `ctx.exit`; commands return nothing
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (LavaError, ValueError, OSError) as error:
        click.echo(f"lava-proxy: {error}", err=True)
        sys.exit(1)


class _LibraryLines(logging.Handler):
    """What libraries log, as one JSON line of ours each, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage() + (f": {error}" if error is not None else "")
        structlog.get_logger("library").warning(text[:500], action="library_says", logger=record.name)


def _configure_logs() -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryLines()])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """lava-proxy: a self-hosted gateway that sells AI calls."""


cli.add_command(requests_group)

# -- running

_PROVIDER_HELP = (
    "Send a provider's calls to this scheme and host instead, path and query kept; a path in BASE_URL is prefixed. "
    "Attaches vLLM, Ollama or a test server. Repeatable."
)


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        [
            click.option("--host", default=None, help="Address to listen on [LAVA_HOST or 127.0.0.1]."),
            click.option(
                "--port",
                type=click.IntRange(0, 65535),
                default=None,
                help="Port; 0 takes a free one [LAVA_PORT or 8080].",
            ),
            click.option(
                "--workers",
                type=click.IntRange(1, 256),
                default=None,
                help="Gateway processes [LAVA_WORKERS or the cores].",
            ),
            click.option(
                "--provider",
                "providers",
                multiple=True,
                metavar="NAME=BASE_URL",
                help=_PROVIDER_HELP,
            ),
            _JSON,
        ]
    ):
        command = option(command)
    return command


@cli.command()
@_run_options
@_DATA_DIR
@click.option("--clock-file", default=None, help="Tests: read business time (ISO 8601) from this file.")
def dev(
    host: str | None,
    port: int | None,
    workers: int | None,
    providers: tuple[str, ...],
    as_json: bool,
    data_dir: Path | None,
    clock_file: str | None,
) -> None:
    """Run everything with embedded Valkey and PostgreSQL and a seeded sandbox. Data stays in the data folder."""
    from lava_proxy.app.supervisor import Supervisor

    settings = settings_module.load()
    options = _options(settings, host, port, workers, providers, as_json, _data_dir(settings, data_dir), clock_file)
    sys.exit(Supervisor(options, settings).run_dev())


@cli.command()
@_run_options
def serve(host: str | None, port: int | None, workers: int | None, providers: tuple[str, ...], as_json: bool) -> None:
    """Run gateway, control and worker against LAVA_REDIS_URL and LAVA_DATABASE_URL (needs LAVA_MASTER_KEY)."""
    from lava_proxy.app.supervisor import Supervisor

    settings = settings_module.load()
    options = _options(settings, host, port, workers, providers, as_json, Path("."), None)
    sys.exit(Supervisor(options, settings).run_serve(_config_from_environment(settings, providers)))


def _options(
    settings: Settings, host: str | None, port: int | None, workers: int | None, providers: tuple[str, ...], as_json: bool,
    data_dir: Path, clock_file: str | None,
) -> Any:  # fmt: skip
    from lava_proxy.app.supervisor import Options

    environment = settings.environment
    try:
        chosen_port = port if port is not None else int(environment.get("LAVA_PORT", "8080"))
        chosen_workers = workers or int(environment.get("LAVA_WORKERS", "0")) or min(os.cpu_count() or 1, 32)
    except ValueError as error:
        raise CallerError(f"LAVA_PORT and LAVA_WORKERS must be numbers: {error}.") from error
    if not 0 <= chosen_port <= 65535 or not 1 <= chosen_workers <= 256:
        raise CallerError("LAVA_PORT takes 0 to 65535 and LAVA_WORKERS 1 to 256.")
    return Options(
        host=host or environment.get("LAVA_HOST", "127.0.0.1"), port=chosen_port, workers=chosen_workers, data_dir=data_dir,
        providers=providers, as_json=as_json, clock_file=clock_file,
    )  # fmt: skip


def _data_dir(settings: Settings, data_dir: Path | None) -> Path:
    return data_dir or Path(settings.environment.get("LAVA_DATA_DIR", ".lava"))


def _config_from_environment(settings: Settings, providers: tuple[str, ...] = ()) -> Any:
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
        control_listen=_control_listen(environment),
        base_url=f"{public.rstrip('/')}/v1/" if public else "",
        overrides=parse_overrides(providers),
    )


def _control_listen(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Where control listens for gateways on other hosts; None where neither variable is set."""
    host, port = environment.get("LAVA_CONTROL_HOST", ""), environment.get("LAVA_CONTROL_PORT", "")
    if not host and not port:
        return None
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise CallerError(f"LAVA_CONTROL_PORT takes 1 to 65535, not {port!r}.")
    return host or "127.0.0.1", int(port or "8081")


def _role_config(settings: Settings, supervised: bool, *needs: str) -> Any:
    """`needs`: the variables of which the role cannot do without one."""
    from lava_proxy.app.run_config import RunConfig, control_address

    if supervised:
        return RunConfig.from_json(sys.stdin.read())
    config = _config_from_environment(settings)
    if needs and not any(settings.environment.get(name) for name in needs):
        raise CallerError(
            f"Set {' or '.join(needs)}: a gateway passes everything but model calls on to the control process, by a Unix socket on "
            "the same host (LAVA_CONTROL_SOCKET, on both sides) or by TCP (LAVA_CONTROL_HOST and LAVA_CONTROL_PORT where control "
            "listens, LAVA_CONTROL_URL at the gateways)."
        )
    if config.control_url:
        control_address(config.control_url)
    return config


_SUPERVISED = click.option("--supervised", is_flag=True, hidden=True)


@cli.command()
@click.option("--fd", type=int, default=None, hidden=True)
@_SUPERVISED
def gateway(fd: int | None, supervised: bool) -> None:
    """Run one gateway worker (a fleet's role). LAVA_CONTROL_URL or LAVA_CONTROL_SOCKET says where the control process is."""
    from lava_proxy.app.gateway_role import run_gateway
    from lava_proxy.app.process import run_role

    settings = settings_module.load()
    config = _role_config(settings, supervised, "LAVA_CONTROL_URL", "LAVA_CONTROL_SOCKET")
    if fd is not None:
        listening = socket.socket(fileno=fd)
    else:
        host, port = (
            settings.environment.get("LAVA_HOST", "127.0.0.1"),
            int(settings.environment.get("LAVA_PORT", "8080")),
        )
        listening = socket.create_server((host, port), reuse_port=True)
    run_role(run_gateway(config, settings, listening), supervised=supervised)


@cli.command()
@_SUPERVISED
def control(supervised: bool) -> None:
    """Run the control process: REST API, status page, metrics (a fleet's role). Listens on LAVA_CONTROL_HOST and _PORT."""
    from lava_proxy.app.control_role import run_control
    from lava_proxy.app.process import run_role

    settings = settings_module.load()
    config = _role_config(settings, supervised, "LAVA_CONTROL_HOST", "LAVA_CONTROL_PORT", "LAVA_CONTROL_SOCKET")
    run_role(run_control(config, settings), supervised=supervised)


@cli.command()
@_SUPERVISED
def worker(supervised: bool) -> None:
    """Run the background workers: recovery, flusher, reaper, credits (a fleet's role; one of them leads)."""
    from lava_proxy.app.process import run_role
    from lava_proxy.app.worker_role import run_worker

    settings = settings_module.load()
    run_role(run_worker(_role_config(settings, supervised), settings), supervised=supervised)


@cli.command("sandbox-provider", hidden=True)
@click.option("--fd", type=int, required=True)
@_SUPERVISED
def sandbox_provider(fd: int, supervised: bool) -> None:
    """The built-in provider of `dev`."""
    from lava_proxy.app.process import run_role
    from lava_proxy.app.sandbox_provider import serve_until_stopped

    sys.stdin.read()
    run_role(serve_until_stopped(fd), supervised=supervised)


@cli.command()
@_DATA_DIR
def migrate(data_dir: Path | None) -> None:
    """Apply missing database migrations; prints those applied."""
    from lava_proxy.stores import postgres

    config = _installation(settings_module.load(), data_dir)
    _print({"applied": asyncio.run(postgres.migrate(config.database_url))})


# -- administering: works on LAVA_REDIS_URL and LAVA_DATABASE_URL, else on the `dev` that runs on the data folder


def _installation(settings: Settings, data_dir: Path | None) -> Any:
    from lava_proxy.app.run_config import RunConfig

    if settings.environment.get("LAVA_DATABASE_URL") and data_dir is None:
        return _config_from_environment(settings)
    folder = _data_dir(settings, data_dir)
    try:
        daemon = json.loads((folder / "daemon.json").read_text())
        os.kill(daemon["pid"], 0)
        return RunConfig.from_json(daemon["config"])
    except (FileNotFoundError, ProcessLookupError):
        raise CallerError(
            f"No server runs on {folder}: start `lava-proxy dev`, or set LAVA_REDIS_URL, LAVA_DATABASE_URL and LAVA_MASTER_KEY."
        ) from None


def _with_stores(data_dir: Path | None, work: Callable[[Any, Settings], Awaitable[T]], *, require_verified: bool = True) -> T:
    """Run `work(stores, settings)` against the installation."""
    from lava_proxy.app.open_stores import open_stores

    settings = settings_module.load()
    config = _installation(settings, data_dir)

    async def run() -> T:
        stores = await open_stores(config, settings, pool_max=2, require_verified=require_verified)
        try:
            return await work(stores, settings)
        finally:
            await stores.close()

    return asyncio.run(run())


def _print(value: Any) -> None:
    click.echo(json.dumps(value, default=str))


async def _merchant_of(stores: Any, merchant_id: str | None) -> Any:
    if merchant_id is not None:
        return await stores.catalog.merchant(merchant_id)
    merchants = await stores.catalog.merchants()
    if len(merchants) != 1:
        raise CallerError(f"There are {len(merchants)} merchants; name one with --merchant.")
    return merchants[0]


_MERCHANT = click.option("--merchant", "merchant_id", default=None, help="Merchant id; may be left out when there is only one.")


@cli.group()
def merchant() -> None:
    """Merchants: who sells AI calls here."""


@merchant.command("set")
@_MERCHANT
@click.option("--clamp-floor", type=int, default=None, help="Lower max_tokens to what a balance affords, at least to this; 0: off.")
@click.option("--overage", default=None, help=f"Where neither customer nor plan says otherwise: {OVERAGE_HELP}")
@_DATA_DIR
def merchant_set(merchant_id: str | None, clamp_floor: int | None, overage: str | None, data_dir: Path | None) -> None:
    """Change a merchant's options; running servers follow at once."""
    if clamp_floor is None and overage is None:
        raise CallerError("Name an option to set: --clamp-floor, --overage.")
    policy = None if overage is None else overage_of(overage)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.domain.plans import overage_document
        from lava_proxy.stores.plan_store import PlanStore

        owner, plans = await _merchant_of(stores, merchant_id), PlanStore(stores.pool, stores.catalog.clock)
        if clamp_floor is not None:
            owner = await stores.catalog.set_clamp_floor(owner.merchant_id, clamp_floor)
        if overage is not None:
            await plans.set_merchant_overage(owner.merchant_id, policy)
        found = await plans.merchant_overage(owner.merchant_id)
        return {
            "merchant_id": owner.merchant_id, "name": owner.name, "clamp_floor": owner.clamp_floor,
            "overage": None if found is None else overage_document(found),
        }  # fmt: skip

    _print(_with_stores(data_dir, work))


@merchant.command("create")
@click.option("--name", required=True)
@click.option("--funds", default=None, help="Dollars for the merchant's own wallet, such as 100.00.")
@_DATA_DIR
def merchant_create(name: str, funds: str | None, data_dir: Path | None) -> None:
    """Make a merchant; prints its first secret key, shown only here."""
    amount = _usd(funds) if funds is not None else 0
    _check_name(name)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.billing.funding import Funding
        from lava_proxy.wire.forward_token import mint

        made = await stores.catalog.create_merchant(name)
        key = await stores.catalog.create_secret_key(made.merchant_id, "First key")
        funding = Funding(stores.catalog, stores.balances, stores.catalog.clock)
        await funding.open_wallet(made.wallet_id)
        if amount:
            await funding.fund(made.merchant_id, made.wallet_id, amount, "merchant create")
        return {
            "merchant_id": made.merchant_id,
            "name": name,
            "wallet_id": made.wallet_id,
            "secret_key": key,
            "self_forward_token": mint(key),
            "dashboard_link": await _dashboard_link(stores, _installation(settings, data_dir), made.merchant_id),
        }

    _print(_with_stores(data_dir, work))


add_plan_commands(cli, _with_stores, _merchant_of, _print)


@cli.group()
def dashboard() -> None:
    """The dashboard in the browser."""


@dashboard.command("link")
@_MERCHANT
@_DATA_DIR
def dashboard_link(merchant_id: str | None, data_dir: Path | None) -> None:
    """Print an address that signs a browser in, once, within an hour."""

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await _merchant_of(stores, merchant_id)
        link = await _dashboard_link(stores, _installation(settings, data_dir), owner.merchant_id)
        return {"merchant_id": owner.merchant_id, "dashboard_link": link}

    _print(_with_stores(data_dir, work))


async def _dashboard_link(stores: Any, config: Any, merchant_id: str) -> str:
    """Without a public URL only the path is known."""
    from lava_proxy.stores.audit_log import Actor, AuditLog
    from lava_proxy.stores.dashboard_sessions import DashboardSessions

    actor = Actor(kind="cli", id=f"uid {os.getuid()}", name="Command line")
    await AuditLog(stores.pool).note(merchant_id, actor, "session.link", merchant_id)
    code = await DashboardSessions(stores.redis).create_link(merchant_id)
    return f"{config.base_url.removesuffix('v1/') or '/'}dashboard/enter/{code}"


@cli.group()
def payments() -> None:
    """Card payments."""


@payments.command("reconcile")
@click.option("--day", default=None, help="UTC day, such as 2026-11-23 [yesterday].")
@_DATA_DIR
def payments_reconcile(day: str | None, data_dir: Path | None) -> None:
    """Compare what the card processor captured on a day with what the ledger credits; exit 1 when they differ."""
    try:
        chosen = date.fromisoformat(day) if day else datetime.now(UTC).date() - timedelta(days=1)
    except ValueError:
        raise CallerError(f"--day takes a date such as 2026-11-23, not {day!r}.") from None

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.app.card_payments import open_card_payments
        from lava_proxy.billing.funding import Funding

        cards = open_card_payments(
            stores.pool, Funding(stores.catalog, stores.balances, stores.catalog.clock), _installation(settings, data_dir), settings
        )
        try:
            return await cards.charges.reconcile(chosen)
        finally:
            await cards.close()

    report = _with_stores(data_dir, work)
    _print(report)
    if not report["met"]:
        sys.exit(1)


@cli.group()
def customer() -> None:
    """Customers (connections): whose balance a call draws on."""


@customer.command("create")
@_MERCHANT
@click.option("--funds", default=None, help="Dollars to start with, such as 25.00.")
@click.option("--reference-id", default=None, help="Your own id of this customer.")
@click.option("--email", default=None)
@click.option("--phone", default=None)
@_DATA_DIR
def customer_create(
    merchant_id: str | None,
    funds: str | None,
    reference_id: str | None,
    email: str | None,
    phone: str | None,
    data_dir: Path | None,
) -> None:
    """Make a customer with a wallet."""
    amount = _usd(funds) if funds is not None else 0
    if reference_id is not None and (not _is_line(reference_id) or reference_id.startswith("con_")):
        raise CallerError("--reference-id takes 1 to 255 printable characters and may not start with con_.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.billing.funding import Funding
        from lava_proxy.domain.money import format_usd

        owner = await _merchant_of(stores, merchant_id)
        contact = {name: value for name, value in (("email", email), ("phone", phone)) if value}
        made = await stores.catalog.create_connection(owner.merchant_id, reference_id=reference_id, contact=contact)
        funding = Funding(stores.catalog, stores.balances, stores.catalog.clock)
        await funding.open_wallet(made.wallet_id)
        if amount:
            await funding.fund(owner.merchant_id, made.wallet_id, amount, "customer create")
        return {
            "customer_id": made.connection_id, "connection_id": made.connection_id, "connection_secret": made.secret,
            "reference_id": reference_id, "merchant_id": owner.merchant_id, "wallet_id": made.wallet_id,
            "balance": format_usd(amount),
        }  # fmt: skip

    _print(_with_stores(data_dir, work))


def _is_line(text: str) -> bool:
    """What the REST API takes as a name too."""
    return 0 < len(text) <= 255 and text.isprintable() and bool(text.strip())


def _check_name(name: str) -> None:
    if not _is_line(name):
        raise CallerError("--name takes 1 to 255 printable characters, not only spaces.")


class _Commands:
    """What commands of other modules run with."""

    def run(self, data_dir: Path | None, work: Callable[[Any, Settings], Awaitable[dict[str, Any]]]) -> None:
        _print(_with_stores(data_dir, work))

    async def merchant(self, stores: Any, merchant_id: str | None) -> Any:
        return await _merchant_of(stores, merchant_id)

    def config(self, settings: Settings, data_dir: Path | None) -> Any:
        return _installation(settings, data_dir)


cli_money.add_commands(cli, customer, _Commands())


def _usd(text: str) -> int:
    from lava_proxy.domain.money import AMOUNT_NANOS_MAX, parse_usd

    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise CallerError(f"--funds takes dollars such as 25.00: {error}.") from error
    if not 0 < amount <= AMOUNT_NANOS_MAX:
        raise CallerError(f"--funds must be above 0 and at most 9000000, not {text}.")
    return amount


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _limits(
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


@customer.command("limit")
@_MERCHANT
@click.argument("customer_ref")
@_limit_options
@_DATA_DIR
def customer_limit(
    merchant_id: str | None, customer_ref: str, rpm: int | None, burst: int | None, tpm: int | None, concurrency: int | None,
    requests: str | None, spend: str | None, data_dir: Path | None,
) -> None:  # fmt: skip
    """Replace a customer's limits with the given ones; none given lifts them all."""
    from lava_proxy.domain.limits import Limits, limits_document, parse_limits

    limits = parse_limits(_limits(rpm, burst, tpm, concurrency, requests, spend))

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await _merchant_of(stores, merchant_id)
        found = await stores.catalog.connection(owner.merchant_id, customer_ref)
        if found is None:
            raise NotFound(f"No customer {customer_ref!r}.")
        chosen = None if limits == Limits() else limits
        await stores.catalog.set_connection_limits(owner.merchant_id, found.connection_id, chosen)
        return {"customer_id": found.connection_id, **limits_document(limits)}

    _print(_with_stores(data_dir, work))


@cli.group()
def checkout() -> None:
    """Hosted checkouts: pages on which customers pay."""


@checkout.command("link")
@_MERCHANT
@click.option("--plan", "plan_id", default=None, help="The plan to subscribe to.")
@click.option("--customer", "customer_ref", default=None, help="An id or reference_id; without it, a new customer.")
@click.option("--email", default=None, help="Send the link there, too.")
@click.option("--origin", default=None, help="Where the page leads back to [the server].")
@_DATA_DIR
def checkout_link(
    merchant_id: str | None,
    plan_id: str | None,
    customer_ref: str | None,
    email: str | None,
    origin: str | None,
    data_dir: Path | None,
) -> None:
    """Make a checkout and print its link: a plan's, else a top-up's (--customer) or a new customer's."""
    config = _installation(settings_module.load(), data_dir)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.app.hosted_checkout import make_link

        owner = await _merchant_of(stores, merchant_id)
        return await make_link(
            stores.pool, stores.redis, stores.catalog, stores.balances, stores.outbox, config, settings,
            merchant_id=owner.merchant_id, plan_id=plan_id, customer=customer_ref, email=email, origin_url=origin,
        )  # fmt: skip

    _print(_with_stores(data_dir, work))


@cli.group("spend-key")
def spend_key() -> None:
    """Spend keys (lava_sk_...): draw on the merchant's own wallet at provider cost, within limits."""


@spend_key.command("create")
@_MERCHANT
@click.option("--name", required=True)
@click.option(
    "--shape", type=click.Choice(["openai", "anthropic"]), default="openai", show_default=True, help="API of its model routes."
)
@click.option("--model", "models", multiple=True, help="Allowed model, `*` for any characters. Repeatable; none: all.")
@click.option("--provider", "providers", multiple=True, help="Allowed provider. Repeatable; none: all.")
@click.option("--expires-at", default=None, help="ISO 8601, such as 2026-12-31T23:59:59Z.")
@_limit_options
@_DATA_DIR
def spend_key_create(
    merchant_id: str | None, name: str, shape: str, models: tuple[str, ...], providers: tuple[str, ...], expires_at: str | None,
    rpm: int | None, burst: int | None, tpm: int | None, concurrency: int | None, requests: str | None, spend: str | None,
    data_dir: Path | None,
) -> None:  # fmt: skip
    """Make a spend key; prints its secret, shown only here."""
    from lava_proxy.api.spend_keys import parse_rules, spend_key_object
    from lava_proxy.domain.limits import KeyRules, parse_limits

    _check_name(name)
    limits = parse_limits(_limits(rpm, burst, tpm, concurrency, requests, spend))
    asked = {"request_shape": shape, "allowed_models": list(models) or None, "allowed_providers": list(providers) or None}
    rules = parse_rules(asked | {"expires_at": expires_at}, KeyRules())

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await _merchant_of(stores, merchant_id)
        made = await stores.catalog.create_spend_key(owner.merchant_id, name=name, rules=rules, limits=limits)
        return {**spend_key_object(made, {}, made.created_at), "merchant_id": owner.merchant_id, "key": made.secret}

    _print(_with_stores(data_dir, work))


@cli.group()
def meter() -> None:
    """Meters: what a customer's usage costs."""


@meter.command("create")
@_MERCHANT
@click.option("--name", required=True)
@click.option("--slug", default=None, help="Name in tokens; made from the name when left out.")
@click.option("--rate-type", type=click.Choice(["fixed", "percentage"]), default="fixed", show_default=True)
@click.option(
    "--tier-type",
    type=click.Choice(["tokens_1m", "characters_1m", "minutes", "requests"]),
    default="tokens_1m",
    show_default=True,
)
@click.option("--token-basis", type=click.Choice(["input+output", "output"]), default="input+output", show_default=True)
@click.option(
    "--tier", "tiers", multiple=True, metavar="[START:]RATE",
    help="Graduated tiers in order, e.g. --tier 0:20 --tier 1000000:15 (dollars per 1M tokens or characters, per minute, per "
    "request; percent of provider cost for percentage meters). A single rate needs no start.",
)  # fmt: skip
@_DATA_DIR
def meter_create(
    merchant_id: str | None,
    name: str,
    slug: str | None,
    rate_type: str,
    tier_type: str,
    token_basis: str,
    tiers: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Make a meter; prints its id, slug and secret."""
    import re

    from lava_proxy.domain.fees import format_tier, parse_tiers

    _check_name(name)
    if not tiers:
        raise CallerError("A meter needs at least one --tier, such as --tier 20.")
    pairs = [tier.rpartition(":") for tier in tiers]
    parsed = parse_tiers(rate_type, tier_type, [{"start": start or "0", "rate": rate} for start, _, rate in pairs])  # type: ignore[arg-type]
    chosen = slug or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "meter"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", chosen):
        raise CallerError("--slug takes 1 to 100 letters, digits, - and _.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await _merchant_of(stores, merchant_id)
        made = await stores.catalog.create_meter(
            owner.merchant_id,
            name=name,
            slug=chosen,
            rate_type=rate_type,
            tier_type=tier_type,
            tiers=parsed,
            token_basis=token_basis,
        )
        return {
            "meter_id": made.meter_id, "meter_slug": chosen, "product_secret": made.secret, "merchant_id": owner.merchant_id,
            "rate_type": rate_type, "token_basis": token_basis,
            "tiers": [format_tier(cast(Any, rate_type), cast(Any, tier_type), tier) for tier in parsed],
        }  # fmt: skip

    _print(_with_stores(data_dir, work))


@cli.group("provider-key")
def provider_key() -> None:
    """Provider keys stored for a merchant, encrypted."""


@provider_key.command("set")
@_MERCHANT
@click.option("--provider", required=True, help="Provider name, such as openai.")
@click.option(
    "--key",
    default=None,
    help="The key; asked for (or read from standard input) when left out, which keeps it out of the shell's history.",
)
@_DATA_DIR
def provider_key_set(merchant_id: str | None, provider: str, key: str | None, data_dir: Path | None) -> None:
    """Store a provider key for a merchant's calls."""
    secret = (key or (click.prompt("Key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline())).strip()
    if not 8 <= len(secret) <= 4096 or not secret.isascii() or any(c.isspace() for c in secret):
        raise CallerError("A provider key is 8 to 4096 printable ASCII characters without spaces.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.providers.registry import load_registry

        known = load_registry(settings.providers_table).by_name(provider)
        if known is None:
            raise NotFound(f"No provider {provider!r}; the names are in config/providers.toml.")
        owner = await _merchant_of(stores, merchant_id)
        await stores.catalog.set_provider_key(owner.merchant_id, known.name, secret)
        return {"merchant_id": owner.merchant_id, "provider": known.name, "hint": f"...{secret[-4:]}"}

    _print(_with_stores(data_dir, work))


@cli.group()
def token() -> None:
    """Forward tokens: merchant key, customer and meter in one credential."""


@token.command("mint")
@click.option("--secret-key", required=True, envvar="LAVA_SECRET_KEY", help="Or LAVA_SECRET_KEY, which `ps` does not show.")
@click.option("--customer", default=None, help="Customer (connection) id or reference id.")
@click.option("--meter", "meter_slug", default=None, help="Meter slug.")
@click.option(
    "--provider-key",
    "own_key",
    default=None,
    envvar="LAVA_PROVIDER_KEY",
    help="Call the provider with this key (or LAVA_PROVIDER_KEY).",
)
@click.option("--disable-billing", is_flag=True, default=None, help="Proxy and record, charge nothing.")
def token_mint(
    secret_key: str, customer: str | None, meter_slug: str | None, own_key: str | None, disable_billing: bool | None
) -> None:
    """Make a token; nothing is looked up."""
    from lava_proxy.wire.forward_token import mint

    if customer is not None and meter_slug is None:
        raise CallerError("A customer needs a meter: add --meter.")
    _print({"forward_token": mint(secret_key, customer, meter_slug, own_key, disable_billing or None)})


@token.command("inspect")
@click.argument("text")
def token_inspect(text: str) -> None:
    """Show what a token holds, secrets shortened. TEXT `-` reads it from standard input."""
    from lava_proxy.wire.forward_token import parse_credential

    found = parse_credential(sys.stdin.read().strip() if text == "-" else text)

    def short(secret: str | None) -> str | None:
        return None if secret is None else f"{secret[:9]}...{secret[-4:]}" if len(secret) > 20 else "..."

    shown_customer = short(found.customer_ref) if found.customer_field == "connection_secret" else found.customer_ref
    shown_meter = short(found.meter_ref) if found.meter_field in ("product_secret", "meter_secret") else found.meter_ref
    _print({
        "kind": found.kind, "secret_key": short(found.secret_key),
        "customer": shown_customer, "customer_field": found.customer_field,
        "meter": shown_meter, "meter_field": found.meter_field,
        "provider_key": short(found.provider_key), "disable_billing": found.disable_billing,
    })  # fmt: skip


@cli.group()
def keys() -> None:
    """The master key, which stored secrets are sealed with."""


@keys.command("rotate")
@click.option(
    "--new-key-env",
    default=None,
    help="The environment variable with the key to seal with [LAVA_MASTER_KEY_NEXT if it is set, else LAVA_MASTER_KEY].",
)
def keys_rotate(new_key_env: str | None) -> None:
    """Seal every stored secret anew; prints how many. See deploy/RUNBOOK.md for the order of things.

    What is sealed now is opened with LAVA_MASTER_KEY or LAVA_MASTER_KEY_PREVIOUS. All or nothing; may be run again.
    """
    settings = settings_module.load()
    environment = settings.environment
    name = new_key_env or ("LAVA_MASTER_KEY_NEXT" if environment.get("LAVA_MASTER_KEY_NEXT") else "LAVA_MASTER_KEY")
    new_key = environment.get(name)
    if not new_key:
        raise CallerError(f"{name} is not set; make a key with: openssl rand -base64 32.")
    config = _config_from_environment(settings)

    async def run() -> dict[str, Any]:
        from lava_proxy.stores import postgres
        from lava_proxy.stores.key_rotation import rotate
        from lava_proxy.stores.vault import Vault

        vault = Vault(new_key, (config.master_key, config.previous_master_key))
        pool = await postgres.connect(config.database_url, size_max=1)
        try:
            return {"sealed_with": name, **(await rotate(pool, vault))}
        finally:
            await pool.close()

    _print(asyncio.run(run()))


# -- checking and mending


@cli.command()
@click.option("--rerate", "rerating", is_flag=True, help="Instead, rate every stored row again from its own facts and compare.")
@click.option("--since", default=None, help="With --rerate: only rows made at or after this moment (ISO 8601, UTC unless it says).")
@_JSON
@_DATA_DIR
def audit(rerating: bool, since: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Recompute the money invariants over Redis and Postgres, while serving; exits 1 on a violation."""
    if since is not None and not rerating:
        raise CallerError("--since goes with --rerate.")
    if rerating:
        _rerate(_moment(since) if since is not None else None, as_json, data_dir)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.workers.audit import Audit

        return (await Audit(stores.outbox, stores.ledger).run()).as_dict()

    report = _with_stores(data_dir, work, require_verified=False)
    if not as_json:
        click.echo(
            f"wallets {report['wallets']}, open holds {report['holds_open']}, unflushed {report['outbox']}, "
            f"requests {report['rows']}, drift {report['drift_nanos']} nano-dollars, violations {len(report['violations'])}"
        )
        for violation in report["violations"]:
            click.echo(
                f"  {violation['invariant']} {violation['where']}: expected {violation['expected']}, found {violation['found']}"
            )
    if as_json:
        _print(report)
    sys.exit(0 if report["met"] else 1)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CallerError(f"--since takes a moment such as 2026-11-01 or 2026-11-01T12:00:00Z: {error}.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _rerate(since: datetime | None, as_json: bool, data_dir: Path | None) -> None:
    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.app.open_stores import prices_of
        from lava_proxy.billing.rating import Rating
        from lava_proxy.providers.registry import load_registry
        from lava_proxy.workers.audit import rerate

        providers = load_registry(settings.providers_table).providers
        rating = Rating(stores.catalog, prices_of(settings), {p.name: p.price_id or p.name for p in providers})
        return (await rerate(stores.ledger, rating, since)).as_dict()

    report = _with_stores(data_dir, work, require_verified=False)
    if as_json:
        _print(report)
    else:
        click.echo(
            f"rows {report['rows']} rated again, {report['other_price_version']} of other prices than {report['price_version']}; "
            f"charge {report['charge_nanos_stored']} stored, {report['charge_nanos_again']} again; "
            f"cost {report['cost_nanos_stored']} stored, {report['cost_nanos_again']} again (nano-USD); "
            f"differing rows {report['differing']}"
        )
        for found in report["differences"]:
            click.echo(f"  {found['request_id']} {found['field']}: stored {found['stored']}, again {found['again']}")
    sys.exit(0 if report["met"] else 1)


@cli.command()
@click.option("--rollups", is_flag=True, help="Instead: the sums behind usage reports, from the requests. Calls go on meanwhile.")
@_JSON
@_DATA_DIR
def rebuild(rollups: bool, as_json: bool, data_dir: Path | None) -> None:
    """Write Redis' balances anew from Postgres. Calls wait (503) meanwhile; open holds settle late."""
    if rollups:
        _rebuild_rollups(as_json, data_dir)
        return

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.workers.recovery import rebuild_all

        return await rebuild_all(stores.outbox, stores.ledger, settings.flusher)

    report = _with_stores(data_dir, work, require_verified=False)
    if not as_json:
        click.echo(
            f"{report['wallets']} wallets rebuilt in {report['partitions']} partitions, {report['flushed']} rows flushed before."
        )
    else:
        _print(report)


def _rebuild_rollups(as_json: bool, data_dir: Path | None) -> None:
    async def work(stores: Any, settings: Settings) -> int:
        from lava_proxy.stores.usage_store import UsageStore

        return await UsageStore(stores.pool).rebuild()

    requests = _with_stores(data_dir, work, require_verified=False)
    if as_json:
        _print({"met": True, "requests": requests})
    else:
        click.echo(f"Usage rollups rebuilt from {requests} requests.")


@cli.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", default=1, show_default=True, help="Of the random splits.")
@_JSON
def conformance(folder: Path, seed: int, as_json: bool) -> None:
    """Serve a folder of recordings through the real daemon; print met, missed and unknown by provider and API."""
    from lava_proxy.app.conformance import run

    sys.exit(run(folder, seed=seed, as_json=as_json))
