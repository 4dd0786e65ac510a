"""How long the dashboard's pages take on the server, and how much a browser loads for the first of them.

Seeds one merchant's requests of 30 days as `./lava bench usage` does, with 1,000 customers in the catalogue, signs in and asks for
every page again and again, one after the other, over a loopback socket. Pages are all addresses of the dashboard that need no id,
and besides them:

    request            one request with what made its price
    requests_*         the list by what is rare or frequent in it, and far down in it

`first_paint_kb` is the page as it travels and every file it names, packed, for the largest page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp import web

from benchmarks.usage import CUSTOMERS, analyse, engine_options, quantile, seed
from lava_proxy import settings
from lava_proxy.api.envelope import answer_errors
from lava_proxy.api.openapi import OpenApi
from lava_proxy.app.embedded import EmbeddedEngines
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.checkout_links import CheckoutLinks
from lava_proxy.billing.funding import Funding
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.providers.prices_source import load_price_book
from lava_proxy.providers.registry import load_registry
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.audit_log import Actor, AuditLog
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import open_merchant_stores
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.webhook_store import WebhookStore
from lava_proxy.web.dashboard.dashboard import DashboardDependencies
from lava_proxy.web.site import Site

P95_MS_MAX = 150.0
FIRST_PAINT_KB_MAX = 300.0
_WARM_UP = 2
_AUDIT_ENTRIES = 1000
_NO_PAGES = ("/dashboard/requests/export", "/dashboard/sign-in")
_CUSTOMER = """
WITH made AS (
  SELECT n - 1 AS n, 'wal_' || (n - 1) AS wallet_id, 'con_' || lpad((n - 1)::text, 26, '0') AS connection_id, sealed
  FROM unnest($2::bytea[]) WITH ORDINALITY AS given (sealed, n)
), wallets AS (
  INSERT INTO wallet SELECT wallet_id, $1, (n % 64)::smallint, now() FROM made
), states AS (
  INSERT INTO wallet_state SELECT wallet_id, 1, n * 1000000000, 0, n * 1000000000, 0, now() FROM made
)
INSERT INTO connection (connection_id, merchant_id, wallet_id, reference_id, secret_hash, secret_sealed, contact, created_at)
SELECT connection_id, $1, wallet_id, 'customer-' || n, sha256(connection_id::bytea), sealed, '{}', now() FROM made
"""


def main() -> int:
    """Run and print a table (or JSON as the last line); 1 when a target is missed."""
    options = parse_arguments()
    report = asyncio.run(measure(options.rows, options.asks))
    print(json.dumps(report) if options.json else table(report))
    return 0 if report["met"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./lava bench dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line instead of the table")
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many requests (default 10 million)")
    parser.add_argument("--asks", type=int, default=50, help="how often each page is asked for (default 50)")
    return parser.parse_args()


async def measure(rows: int, asks: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="lava-bench-dashboard-"))
    owner = EmbeddedEngines()
    try:
        engines = owner.start(folder, engine_options())
        await postgres.migrate(engines.database_url)
        return await over(engines.redis_url, engines.database_url, rows, asks)
    finally:
        owner.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def over(redis_url: str, database_url: str, rows: int, asks: int) -> dict[str, Any]:
    redis, pool = outbox_module.connect(redis_url), await postgres.connect(database_url)
    vault = Vault(new_master_key())
    catalog = CatalogStore(pool, vault)
    merchant = await catalog.create_merchant("bench")
    key = await catalog.create_secret_key(merchant.merchant_id, "bench")
    audit_log = AuditLog(pool)
    funding, charge_store = Funding(catalog, BalanceStore(HotRedis(redis_url))), ChargeStore(pool)
    webhook_client = WebhookClient(timeout_s=2, connections_max=1, allow_private=True, clock=lambda: datetime.now(UTC))
    checkouts = CheckoutStore(pool, vault, lambda: datetime.now(UTC))
    site = Site(
        OpenApi([]).value,
        DashboardDependencies(
            pool=pool,
            catalog=catalog,
            ledger=LedgerStore(pool),
            outbox=Outbox(redis),
            merchant_stores=open_merchant_stores(pool, redis, catalog, vault),
            funding=funding,
            usage=UsageStore(pool),
            request_export=RequestExport(pool),
            open_calls=OpenCalls(redis),
            webhooks=WebhookStore(pool, vault),
            webhook_client=webhook_client,
            charges=Charges(charge_store, None, funding, lambda: datetime.now(UTC)),
            charge_store=charge_store,
            checkout=cast(Any, None),  # no page that is measured makes a session
            checkouts=checkouts,
            checkout_links=CheckoutLinks(checkouts, cast(Any, None), None),
            registry=load_registry(settings.load({}).providers_table),
            prices=load_price_book(),
            sessions=DashboardSessions(redis),
            audit_log=audit_log,
            public_url="http://127.0.0.1/",
        ),
    )
    application = web.Application(middlewares=[answer_errors])
    application.add_routes(site.routes())
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    port = runner.addresses[0][1]
    try:
        began = time.perf_counter()
        sealed = [vault.seal("cons_live_bench", f"connection:con_{number:026d}") for number in range(CUSTOMERS)]
        await pool.execute(_CUSTOMER, merchant.merchant_id, sealed)
        until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        await seed(pool, merchant.merchant_id, 1, rows, until)
        actor = Actor(kind="cli", id="bench", name="bench")
        for number in range(_AUDIT_ENTRIES):
            await audit_log.note(merchant.merchant_id, actor, "meter.change", f"prd_{number % 7}", after={"n": number})
        await UsageStore(pool).rebuild()
        await analyse(pool)
        await pool.execute("ANALYZE request, connection, wallet, wallet_state, audit_log", timeout=3600)
        seed_s = round(time.perf_counter() - began, 1)
        pages, weights = await ask_all(f"http://127.0.0.1:{port}", key, pages_of(site, rows), asks)
    finally:
        await runner.cleanup()
        await redis.aclose()
        await postgres.close(pool)
    return summarise(rows, asks, pages, weights, {"seed_s": seed_s})


def pages_of(site: Site, rows: int) -> dict[str, str]:
    """Name -> address of every page that needs no id, and of some that do."""
    paths = sorted({route.path for route in site.routes() if route.method == "GET" and route.path.startswith("/dashboard")})
    found = {path.removeprefix("/dashboard").strip("/") or "overview": path for path in paths if "{" not in path}
    found = {name: path for name, path in found.items() if path not in _NO_PAGES}
    middle = f"req_{rows // 2:026X}"
    return found | {
        "overview_30_days": "/dashboard?range=30",
        "overview_today": "/dashboard?range=1",
        "request": f"/dashboard/requests/{middle}",
        "requests_far_down": f"/dashboard/requests?before={middle}",
        "requests_failed": "/dashboard/requests?status=error",
        "requests_of_a_customer": f"/dashboard/requests?customer=con_{CUSTOMERS // 2:026d}",
        "requests_of_a_model": "/dashboard/requests?model=model-3",
        "requests_of_a_meter": "/dashboard/requests?meter=prd_1",
        "requests_of_a_model_that_is_none": "/dashboard/requests?model=none",
    }


async def ask_all(base: str, key: str, pages: dict[str, str], asks: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Page -> p50_ms and p95_ms; page -> what a browser loads for it, in KB."""
    times: dict[str, list[float]] = {name: [] for name in pages}
    weights: dict[str, float] = {}
    async with aiohttp.ClientSession(base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.post("/dashboard/sign-in", data={"secret_key": key}, allow_redirects=False) as answer:
            if answer.status != 303:
                raise SystemExit(f"sign-in: {answer.status}")
        for round_ in range(asks + _WARM_UP):
            for name, path in pages.items():
                began = time.perf_counter()
                async with session.get(path) as answer:
                    body = await answer.read()
                elapsed_ms = (time.perf_counter() - began) * 1000
                if answer.status != 200:
                    raise SystemExit(f"{name}: {answer.status} {body[:300]!r}")
                if round_ >= _WARM_UP:
                    times[name].append(elapsed_ms)
                elif round_ == 0:
                    weights[name] = round((len(body) + await packed_bytes(session, body)) / 1024, 1)
    return {name: {"p50_ms": quantile(taken, 50), "p95_ms": quantile(taken, 95)} for name, taken in times.items()}, weights


async def packed_bytes(session: aiohttp.ClientSession, page: bytes) -> int:
    """Of all files that a page names, as they travel."""
    total = 0
    for address in sorted(set(re.findall(rb'(?:src|href)="(/static/[^"]+)"', page))):
        async with session.get(address.decode(), headers={"Accept-Encoding": "gzip"}) as answer:
            await answer.read()
            total += int(answer.headers["Content-Length"])
    return total


def summarise(
    rows: int, asks: int, pages: dict[str, dict[str, float]], weights: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    """The report: every page's figures, and the slowest and the heaviest against their targets."""
    slowest = max(pages, key=lambda name: pages[name]["p95_ms"])
    heaviest = max(weights, key=lambda name: weights[name])
    targets = {
        "page_p95_ms": {"at_most": P95_MS_MAX, "value": pages[slowest]["p95_ms"], "page": slowest},
        "first_paint_kb": {"at_most": FIRST_PAINT_KB_MAX, "value": weights[heaviest], "page": heaviest},
    }
    for target in targets.values():
        target["met"] = float(str(target["value"])) <= float(str(target["at_most"]))
    return {
        "benchmark": "dashboard",
        "rows": rows,
        "asks": asks,
        **facts,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "pages": pages,
        "first_paint_kb": weights,
        "targets": targets,
        "met": all(target["met"] for target in targets.values()),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['rows']} requests; seeded in {report['seed_s']} s", "", f"{'':34}{'p50 ms':>10}{'p95 ms':>10}{'KB':>10}"]
    for name, found in report["pages"].items():
        lines.append(f"{name:34}{found['p50_ms']:>10}{found['p95_ms']:>10}{report['first_paint_kb'][name]:>10}")
    lines.append("")
    for name, target in report["targets"].items():
        verdict = "met" if target["met"] else "MISSED"
        lines.append(f"target {name}: {target['value']} on {target['page']} (at most {target['at_most']}) {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
