"""How long the dashboard's pages take on the server, and how much a browser loads for the first of them.

Seeds one merchant's requests of 30 days as `./lava bench usage` does, with 1,000 customers in the catalogue, signs in and asks for
every page again and again, one after the other, over a loopback socket. Pages are all addresses of the dashboard that need no id,
and besides them:

    request            one request with what made its price
    requests_*         the list by what is rare or frequent in it, and far down in it

`first_paint_kb` is the page as it travels and every file it names, packed, for the largest page.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, cast

import aiohttp
from aiohttp import web

from benchmarks._control_plane import ControlPlane, clock, on_fresh_engines, parse_arguments, quantiles, served
from benchmarks._processes import machine
from benchmarks.usage import CUSTOMERS, analyse, seed
from lava_proxy import settings
from lava_proxy.api.envelope import answer_errors
from lava_proxy.api.openapi import OpenApi
from lava_proxy.billing.checkout_links import CheckoutLinks
from lava_proxy.providers.prices_source import load_price_book
from lava_proxy.providers.registry import load_registry
from lava_proxy.stores.audit_log import Actor, AuditLog
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.web.dashboard.dashboard import DashboardDependencies
from lava_proxy.web.site import Site

P95_MS_MAX = 150.0
FIRST_PAINT_KB_MAX = 300.0
_WARM_UP = 2
_AUDIT_ENTRIES = 1000
_NO_PAGES = (
    "/dashboard/requests/export",
    "/dashboard/sign-in",
    "/dashboard/steps",
)  # a file, a door, a part that new merchants ask for
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
    options = parse_arguments("dashboard", __doc__, "page is asked for", 50)
    report = asyncio.run(on_fresh_engines("dashboard", lambda plane: measure(plane, options.rows, options.asks)))
    print(json.dumps(report) if options.json else table(report))
    return 0 if report["met"] else 1


async def measure(plane: ControlPlane, rows: int, asks: int) -> dict[str, Any]:
    pool, merchant_id, audit_log = plane.pool, plane.merchant.merchant_id, AuditLog(plane.pool)
    checkouts = CheckoutStore(pool, plane.vault, clock)
    site = Site(
        OpenApi([]).value,
        DashboardDependencies(
            **plane.stores(),
            pool=pool,
            open_calls=OpenCalls(plane.redis),
            charges=plane.charges,
            charge_store=plane.charge_store,
            checkout=cast(Any, None),  # no page that is measured makes a session
            checkouts=checkouts,
            checkout_links=CheckoutLinks(checkouts, cast(Any, None), None),
            registry=load_registry(settings.load({}).providers_table),
            prices=load_price_book(),
            sessions=DashboardSessions(plane.redis),
            audit_log=audit_log,
            public_url="http://127.0.0.1/",
        ),
    )
    application = web.Application(middlewares=[answer_errors])
    application.add_routes(site.routes())
    async with served(application) as base:
        began = time.perf_counter()
        sealed = [plane.vault.seal("cons_live_bench", f"connection:con_{number:026d}") for number in range(CUSTOMERS)]
        await pool.execute(_CUSTOMER, merchant_id, sealed)
        await seed(pool, merchant_id, 1, rows, clock().replace(hour=0, minute=0, second=0, microsecond=0))
        actor = Actor(kind="cli", id="bench", name="bench")
        for number in range(_AUDIT_ENTRIES):
            await audit_log.note(merchant_id, actor, "meter.change", f"prd_{number % 7}", after={"n": number})
        await UsageStore(pool).rebuild()
        await analyse(pool)
        await pool.execute("ANALYZE request, connection, wallet, wallet_state, audit_log", timeout=3600)
        seed_s = round(time.perf_counter() - began, 1)
        pages, weights = await ask_all(base, plane.key, pages_of(site, rows), asks)
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
    return quantiles(times), weights


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
        "machine": machine(),
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
