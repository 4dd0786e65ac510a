"""How long GET /v1/usage takes over HTTP, and that it does not take longer because there are more requests.

Seeds one merchant's requests of 30 days into embedded engines by SQL: 1,000 customers of very uneven size, each with one of 3
meters and two of 11 models. The migration's own function makes the rollups. Then asks again and again, one question after the
other, over a loopback socket of the API:

    merchant        30 days in days of +05:45, everything
    customer        the same of the largest customer
    by_model        the same with group_by=model
    by_customer     the same with group_by=customer
    year            365 days, everything

and once more over a tenth of the rows, seeded before the rest, to see whether time grows with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from lava_proxy.api.application import ApiDependencies, build_application
from lava_proxy.api.payments import PaymentServices
from lava_proxy.app.embedded import EmbeddedEngines
from lava_proxy.app.engine_sources import EngineOptions
from lava_proxy.billing.accounts import Accounts
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import open_merchant_stores
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_rollup import ROLLUPS
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.webhook_store import WebhookStore

P95_MS_MAX = 100.0
GROWTH_MAX = 3.0  # of the median, from a tenth of the rows to all of them; nearly all buckets are there with a tenth
CUSTOMERS = 1000
DAYS = 30
_CHUNK_ROWS = 500_000

# Row n: a time of the last 30 days, then everything else from n by different strides, so that they do not go together.
_SEED = """
INSERT INTO request (request_id, merchant_id, wallet_id, connection_id, meter_id, meter_version, status, outcome, provenance,
  provider, provider_key_type, model, endpoint, api, streamed, response_id, http_status, billed, usage, cost_nanos, charge_nanos,
  breakdown, price_version, priced_at, service_tier, tier_field, tier_units, position, flags, wseq, metadata, timings, created_at,
  completed_at)
SELECT 'req_' || lpad(upper(to_hex(n)), 26, '0'), $1, 'wal_' || customer, 'con_' || lpad(customer::text, 26, '0'),
  'prd_' || customer % 3, NULL, CASE WHEN n % 50 = 0 THEN 'error' ELSE 'completed' END,
  CASE WHEN n % 50 = 0 THEN 'provider_error' ELSE 'completed' END, CASE WHEN n % 40 = 1 THEN 'estimated' ELSE 'provider_final' END,
  CASE WHEN model < 6 THEN 'openai' ELSE 'anthropic' END, 'managed', 'model-' || model, 'POST /v1/chat/completions', 'chat', true,
  NULL, 200, true, jsonb_build_object('input_tokens', 500 + n % 1000, 'output_tokens', 100 + n % 700), 4500001, 30000000,
  '{}', 'bench', NULL, NULL, '', 0, 0, '', n, NULL, NULL, at, at
FROM (SELECT n, (power(n * 7919 % 10007 / 10007.0, 3) * $4)::int AS customer,
  (power(n * 7919 % 10007 / 10007.0, 3) * $4)::int * 7 % 10 + (n % 5 = 0)::int AS model,
  $5::timestamptz + ((n::numeric * 1000003 % 1000000007) / 1000000007) * $6::interval AS at
  FROM generate_series($2::bigint, $3::bigint) AS n) AS rows
"""


def main() -> int:
    """Run and print a table (or JSON as the last line); 1 when a target is missed."""
    options = parse_arguments()
    report = asyncio.run(measure(options.rows, options.asks))
    if options.json:
        print(json.dumps(report))
    else:
        print(table(report))
    return 0 if report["met"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./lava bench usage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line instead of the table")
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many requests (default 10 million)")
    parser.add_argument("--asks", type=int, default=100, help="how often each question is asked (default 100)")
    return parser.parse_args()


async def measure(rows: int, asks: int) -> dict[str, Any]:
    """Seed a tenth, ask, seed the rest, ask again. Raises SystemExit when an answer is not what was seeded."""
    folder = Path(tempfile.mkdtemp(prefix="lava-bench-usage-"))
    owner = EmbeddedEngines()
    try:
        engines = owner.start(folder, engine_options())
        await postgres.migrate(engines.database_url)
        return await over(engines.redis_url, engines.database_url, rows, asks)
    finally:
        owner.stop()
        shutil.rmtree(folder, ignore_errors=True)


def engine_options() -> EngineOptions:
    """The variables that the product reads too."""
    return EngineOptions(
        redis_bin=os.environ.get("LAVA_REDIS_BIN"),
        pg_bindir=os.environ.get("LAVA_PG_BINDIR"),
        user=os.environ.get("LAVA_EMBED_USER"),
        root_mode="setuid" if os.environ.get("LAVA_EMBED_ROOT_MODE") == "setuid" else "auto",
        search_path=os.environ.get("PATH", os.defpath),
    )


async def over(redis_url: str, database_url: str, rows: int, asks: int) -> dict[str, Any]:
    redis, pool = outbox_module.connect(redis_url), await postgres.connect(database_url)
    vault = Vault(new_master_key())
    catalog = CatalogStore(pool, vault)
    merchant = await catalog.create_merchant("bench")
    key = await catalog.create_secret_key(merchant.merchant_id, "bench")

    def clock() -> datetime:
        return datetime.now(UTC)

    funding, charge_store, accounts = Funding(catalog, BalanceStore(HotRedis(redis_url))), ChargeStore(pool), AccountStore(pool)
    charges = Charges(charge_store, None, funding, clock)
    payments = PaymentServices(
        charges=charges,
        charge_store=charge_store,
        cards=Cards(charge_store, None, charges, clock),
        accounts=Accounts(accounts, funding, charges, clock),
        account_store=accounts,
    )
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    application = build_application(
        ApiDependencies(
            catalog=catalog,
            ledger=LedgerStore(pool),
            outbox=Outbox(redis),
            merchant_stores=open_merchant_stores(pool, redis, catalog, vault, clock),
            funding=funding,
            payments=payments,
            webhooks=WebhookStore(pool, vault),
            webhook_client=WebhookClient(timeout_s=1, connections_max=1, allow_private=False, clock=clock),
            usage=UsageStore(pool),
            request_export=RequestExport(pool),
            price_version="bench",
            metrics=bytes,
            started_at=until,
        )
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        phases = {}
        seeded, seed_s = 0, 0.0
        for name, target in (("tenth", max(1, rows // 10)), ("all", rows)):
            began = time.perf_counter()
            await seed(pool, merchant.merchant_id, seeded + 1, target, until)
            seed_s += time.perf_counter() - began
            seeded = target
            began = time.perf_counter()
            counted = await UsageStore(pool).rebuild()
            rebuild_s = time.perf_counter() - began
            if counted != seeded:
                raise SystemExit(f"the rollups count {counted} of {seeded} requests")
            await analyse(pool)
            phases[name] = await ask_all(f"http://127.0.0.1:{port}", key, until, seeded, asks)
        sizes = {
            row["name"]: row["rows"]
            for row in await pool.fetch(
                "SELECT relname AS name, reltuples::bigint AS rows FROM pg_class"
                " WHERE relname LIKE 'usage\\_by\\_%' AND relkind = 'r'"
            )
        }
    finally:
        await runner.cleanup()
        await redis.aclose()
        await postgres.close(pool)
    return summarise(rows, asks, phases, {"seed_s": round(seed_s, 1), "rebuild_s": round(rebuild_s, 1), "rollup_rows": sizes})


async def seed(pool: postgres.Pool, merchant_id: str, first: int, last: int, until: datetime) -> None:
    """Rows `first` to `last`; the table's indexes are made anew behind them, which is several times quicker."""
    span = timedelta(days=DAYS)
    indexes = await pool.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'request' AND schemaname = 'public' AND indexdef !~ 'UNIQUE'"
    )
    for index in indexes:
        await pool.execute(f"DROP INDEX {index['indexname']}")
    for low in range(first, last + 1, _CHUNK_ROWS):
        high = min(low + _CHUNK_ROWS - 1, last)
        await pool.execute(_SEED, merchant_id, low, high, CUSTOMERS - 1, until - span, span, timeout=3600)
        print(f"seeded {high} requests", file=sys.stderr, flush=True)
    for index in indexes:
        await pool.execute(index["indexdef"].replace(" ON ONLY ", " ON "), timeout=3600)


async def analyse(pool: postgres.Pool) -> None:
    """What autovacuum does within a minute or so of normal life."""
    for table in ROLLUPS:
        await pool.execute(f"VACUUM (ANALYZE) {table}", timeout=3600)
    await pool.execute("CHECKPOINT", timeout=3600)


async def ask_all(base: str, key: str, until: datetime, rows: int, asks: int) -> dict[str, dict[str, float]]:
    """Question -> p50_ms and p95_ms."""
    days = until - timedelta(days=DAYS)
    zone = "+05:45"
    month = {"start": f"{days - timedelta(days=1):%Y-%m-%d}T00:00:00{zone}", "end": f"{until:%Y-%m-%d}T23:59:59{zone}"}
    year = {"start": f"{until - timedelta(days=365):%Y-%m-%d}", "end": f"{until:%Y-%m-%d}"}
    questions: dict[str, dict[str, str]] = {
        "merchant": month,
        "customer": {**month, "customer_id": f"con_{0:026d}"},
        "by_model": {**month, "group_by": "model"},
        "by_customer": {**month, "group_by": "customer"},
        "year": year,
    }
    times: dict[str, list[float]] = {name: [] for name in questions}
    async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {key}"}) as session:
        for round_ in range(asks + 3):  # the first rounds fill caches and are not counted
            for name, params in questions.items():
                began = time.perf_counter()
                async with session.get("/v1/usage", params=params) as answer:
                    body = await answer.read()
                elapsed_ms = (time.perf_counter() - began) * 1000
                if answer.status != 200:
                    raise SystemExit(f"{name}: {answer.status} {body[:200]!r}")
                if round_ >= 3:
                    times[name].append(elapsed_ms)
                elif name != "customer" and (found := json.loads(body)["totals"]["total_requests"]) != rows:
                    raise SystemExit(f"{name}: {found} of {rows} requests")
    return {name: {"p50_ms": quantile(taken, 50), "p95_ms": quantile(taken, 95)} for name, taken in times.items()}


def quantile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 2)


def summarise(rows: int, asks: int, phases: dict[str, dict[str, dict[str, float]]], facts: dict[str, Any]) -> dict[str, Any]:
    """The report: `usage` has every question's figures over all rows, `tenth` over a tenth of them."""
    usage, tenth = phases["all"], phases["tenth"]
    targets = {
        f"{name}_p95_ms": {"at_most": P95_MS_MAX, "value": usage[name]["p95_ms"], "met": usage[name]["p95_ms"] <= P95_MS_MAX}
        for name in ("merchant", "customer", "by_model")
    }
    growth = round(usage["merchant"]["p50_ms"] / tenth["merchant"]["p50_ms"], 2)
    targets["growth_with_ten_times_the_rows"] = {"at_most": GROWTH_MAX, "value": growth, "met": growth <= GROWTH_MAX}
    return {
        "benchmark": "usage",
        "rows": rows,
        "asks": asks,
        **facts,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "usage": usage,
        "tenth": tenth,
        "targets": targets,
        "met": all(target["met"] for target in targets.values()),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['rows']} requests; seeded in {report['seed_s']} s, rolled up in {report['rebuild_s']} s", ""]
    lines.append(f"{'':14}{'p50 ms':>10}{'p95 ms':>10}{'p50, a tenth':>14}")
    for name, found in report["usage"].items():
        lines.append(f"{name:14}{found['p50_ms']:>10}{found['p95_ms']:>10}{report['tenth'][name]['p50_ms']:>14}")
    lines.append("")
    for name, target in report["targets"].items():
        verdict = "met" if target["met"] else "MISSED"
        lines.append(f"target {name}: {target['value']} (at most {target['at_most']}) {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
