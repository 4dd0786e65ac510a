"""`audit`, `rebuild` and `conformance`: checking and mending."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lava_proxy.cli_installation import DATA_DIR, JSON, show, with_stores
from lava_proxy.domain.errors import CallerError
from lava_proxy.settings import Settings


@click.command()
@click.option("--rerate", "rerating", is_flag=True, help="Instead, rate every stored row again from its own facts and compare.")
@click.option("--since", default=None, help="With --rerate: only rows made at or after this moment (ISO 8601, UTC unless it says).")
@JSON
@DATA_DIR
def audit(rerating: bool, since: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Recompute the money invariants over Redis and Postgres, while serving; exits 1 on a violation."""
    if since is not None and not rerating:
        raise CallerError("--since goes with --rerate.")
    if rerating:
        _rerate(_moment(since) if since is not None else None, as_json, data_dir)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.workers.audit import Audit

        return (await Audit(stores.outbox, stores.ledger).run()).as_dict()

    report = with_stores(data_dir, work, require_verified=False)
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
        show(report)
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

    report = with_stores(data_dir, work, require_verified=False)
    if as_json:
        show(report)
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


@click.command()
@click.option("--rollups", is_flag=True, help="Instead: the sums behind usage reports, from the requests. Calls go on meanwhile.")
@JSON
@DATA_DIR
def rebuild(rollups: bool, as_json: bool, data_dir: Path | None) -> None:
    """Write Redis' balances anew from Postgres. Calls wait (503) meanwhile; open holds settle late."""
    if rollups:
        _rebuild_rollups(as_json, data_dir)
        return

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.workers.recovery import rebuild_all

        return await rebuild_all(stores.outbox, stores.ledger, settings.flusher)

    report = with_stores(data_dir, work, require_verified=False)
    if not as_json:
        click.echo(
            f"{report['wallets']} wallets rebuilt in {report['partitions']} partitions, {report['flushed']} rows flushed before."
        )
    else:
        show(report)


def _rebuild_rollups(as_json: bool, data_dir: Path | None) -> None:
    async def work(stores: Any, settings: Settings) -> int:
        from lava_proxy.stores.usage_store import UsageStore

        return await UsageStore(stores.pool).rebuild()

    requests = with_stores(data_dir, work, require_verified=False)
    if as_json:
        show({"met": True, "requests": requests})
    else:
        click.echo(f"Usage rollups rebuilt from {requests} requests.")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", default=1, show_default=True, help="Of the random splits.")
@JSON
def conformance(folder: Path, seed: int, as_json: bool) -> None:
    """Serve a folder of recordings through the real daemon; print met, missed and unknown by provider and API."""
    from lava_proxy.app.conformance import run

    sys.exit(run(folder, seed=seed, as_json=as_json))


COMMANDS = (audit, rebuild, conformance)
