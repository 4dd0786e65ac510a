"""The command line. Commands print JSON on stdout where they say so; a problem is one sentence on stderr and a non-zero exit.

What there is: `cli_run` (servers), `cli_admin`, `cli_plans`, `cli_money` and `cli_keys` (what is sold, to whom, by which keys),
`cli_checks` (audit and repair), `cli_import` (reports in bulk). `cli_installation` says on which installation they work.
"""

from __future__ import annotations

import logging
import sys

import click
import structlog

from lava_proxy import cli_admin, cli_checks, cli_import, cli_keys, cli_money, cli_plans, cli_run
from lava_proxy.domain.errors import LavaError


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


for _module in (cli_run, cli_admin, cli_plans, cli_money, cli_keys, cli_checks, cli_import):
    for _command in _module.COMMANDS:
        cli.add_command(_command)
for _command in cli_money.OF_CUSTOMER:
    cli_admin.customer.add_command(_command)
