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

import asyncio
import json
import sys
import time
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from benchmarks._control_plane import ControlPlane, clock, on_fresh_engines, parse_arguments, quantiles, served
from benchmarks._processes import machine
from lava_proxy.api.application import ApiDependencies, build_application
from lava_proxy.api.payments import PaymentServices
from lava_proxy.billing.accounts import Accounts
from lava_proxy.billing.cards import Cards
from lava_proxy.stores import postgres
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.usage_rollup import ROLLUPS
from lava_proxy.stores.usage_store import UsageStore

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
    options = parse_arguments("usage", __doc__, "question is asked", 100)
    report = asyncio.run(on_fresh_engines("usage", lambda plane: measure(plane, options.rows, options.asks)))
    if options.json:
        print(json.dumps(report))
    else:
        print(table(report))
    return 0 if report["met"] else 1


async def measure(plane: ControlPlane, rows: int, asks: int) -> dict[str, Any]:
    """Seed a tenth, ask, seed the rest, ask again. Raises SystemExit when an answer is not what was seeded."""
    pool, accounts = plane.pool, AccountStore(plane.pool)
    payments = PaymentServices(
        charges=plane.charges,
        charge_store=plane.charge_store,
        cards=Cards(plane.charge_store, None, plane.charges, clock),
        accounts=Accounts(accounts, plane.funding, plane.charges, clock),
        account_store=accounts,
    )
    until = clock().replace(hour=0, minute=0, second=0, microsecond=0)
    application = build_application(
        ApiDependencies(**plane.stores(), payments=payments, price_version="bench", metrics=bytes, started_at=until)
    )
    async with served(application) as base:
        phases = {}
        seeded, seed_s = 0, 0.0
        for name, target in (("tenth", max(1, rows // 10)), ("all", rows)):
            began = time.perf_counter()
            await seed(pool, plane.merchant.merchant_id, seeded + 1, target, until)
            seed_s += time.perf_counter() - began
            seeded = target
            began = time.perf_counter()
            counted = await UsageStore(pool).rebuild()
            rebuild_s = time.perf_counter() - began
            if counted != seeded:
                raise SystemExit(f"the rollups count {counted} of {seeded} requests")
            await analyse(pool)
            phases[name] = await ask_all(base, plane.key, until, seeded, asks)
        sizes = {
            row["name"]: row["rows"]
            for row in await pool.fetch(
                "SELECT relname AS name, reltuples::bigint AS rows FROM pg_class"
                " WHERE relname LIKE 'usage\\_by\\_%' AND relkind = 'r'"
            )
        }
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
    return quantiles(times)


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
        "machine": machine(),
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
