"""`dev`, `serve`, the roles of a fleet, and `migrate`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lava_proxy import settings as settings_module
from lava_proxy.cli_installation import DATA_DIR, JSON, config_from_environment, data_dir_of, installation, show
from lava_proxy.domain.errors import CallerError
from lava_proxy.settings import Settings

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
            JSON,
        ]
    ):
        command = option(command)
    return command


@click.command()
@_run_options
@DATA_DIR
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
    options = options_of(settings, host, port, workers, providers, as_json, data_dir_of(settings, data_dir), clock_file)
    sys.exit(Supervisor(options, settings).run_dev())


@click.command()
@_run_options
def serve(host: str | None, port: int | None, workers: int | None, providers: tuple[str, ...], as_json: bool) -> None:
    """Run gateway, control and worker against LAVA_REDIS_URL and LAVA_DATABASE_URL (needs LAVA_MASTER_KEY)."""
    from lava_proxy.app.supervisor import Supervisor

    settings = settings_module.load()
    options = options_of(settings, host, port, workers, providers, as_json, Path("."), None)
    sys.exit(Supervisor(options, settings).run_serve(config_from_environment(settings, providers)))


def options_of(
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


def _role_config(settings: Settings, supervised: bool, *needs: str) -> Any:
    """`needs`: the variables of which the role cannot do without one."""
    from lava_proxy.app.run_config import RunConfig, control_address

    if supervised:
        return RunConfig.from_json(sys.stdin.read())
    config = config_from_environment(settings)
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


@click.command()
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


@click.command()
@_SUPERVISED
def control(supervised: bool) -> None:
    """Run the control process: REST API, status page, metrics (a fleet's role). Listens on LAVA_CONTROL_HOST and _PORT."""
    from lava_proxy.app.control_role import run_control
    from lava_proxy.app.process import run_role

    settings = settings_module.load()
    config = _role_config(settings, supervised, "LAVA_CONTROL_HOST", "LAVA_CONTROL_PORT", "LAVA_CONTROL_SOCKET")
    run_role(run_control(config, settings), supervised=supervised)


@click.command()
@_SUPERVISED
def worker(supervised: bool) -> None:
    """Run the background workers: recovery, flusher, reaper, credits (a fleet's role; one of them leads)."""
    from lava_proxy.app.process import run_role
    from lava_proxy.app.worker_role import run_worker

    settings = settings_module.load()
    run_role(run_worker(_role_config(settings, supervised), settings), supervised=supervised)


@click.command("sandbox-provider", hidden=True)
@click.option("--fd", type=int, required=True)
@_SUPERVISED
def sandbox_provider(fd: int, supervised: bool) -> None:
    """The built-in provider of `dev`."""
    from lava_proxy.app.process import run_role
    from lava_proxy.app.sandbox_provider import serve_until_stopped

    sys.stdin.read()
    run_role(serve_until_stopped(fd), supervised=supervised)


@click.command()
@DATA_DIR
def migrate(data_dir: Path | None) -> None:
    """Apply missing database migrations; prints those applied."""
    from lava_proxy.stores import postgres

    config = installation(settings_module.load(), data_dir)
    show({"applied": asyncio.run(postgres.migrate(config.database_url))})


COMMANDS = (dev, serve, gateway, control, worker, sandbox_provider, migrate)
