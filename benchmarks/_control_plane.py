"""What the benchmarks of the control plane share: engines in a folder of their own, the stores on them, an application served.

The stores are composed as the control process composes them, without a card processor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from lava_proxy.app.embedded import EmbeddedEngines
from lava_proxy.app.engine_sources import EngineOptions
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore, Merchant
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import MerchantStores, open_merchant_stores
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.webhook_store import WebhookStore

T = TypeVar("T")


def clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """One merchant's installation: its stores, and a secret key of the merchant's."""

    redis: Any
    pool: postgres.Pool
    vault: Vault
    catalog: CatalogStore
    merchant: Merchant
    key: str
    funding: Funding
    charge_store: ChargeStore
    charges: Charges

    def stores(self) -> dict[str, Any]:
        """What the dependencies of the REST API and of the dashboard have in common, by the names that both give it."""
        return {
            "catalog": self.catalog,
            "ledger": LedgerStore(self.pool),
            "outbox": Outbox(self.redis),
            "merchant_stores": self._merchant_stores(),
            "funding": self.funding,
            "usage": UsageStore(self.pool),
            "request_export": RequestExport(self.pool),
            "webhooks": WebhookStore(self.pool, self.vault),
            "webhook_client": WebhookClient(timeout_s=1, connections_max=1, allow_private=False, clock=clock),
        }

    def _merchant_stores(self) -> MerchantStores:
        return open_merchant_stores(self.pool, self.redis, self.catalog, self.vault, clock)


def engine_options() -> EngineOptions:
    """The variables that the product reads too."""
    return EngineOptions(
        redis_bin=os.environ.get("LAVA_REDIS_BIN"),
        pg_bindir=os.environ.get("LAVA_PG_BINDIR"),
        user=os.environ.get("LAVA_EMBED_USER"),
        root_mode="setuid" if os.environ.get("LAVA_EMBED_ROOT_MODE") == "setuid" else "auto",
        search_path=os.environ.get("PATH", os.defpath),
    )


async def on_fresh_engines(name: str, measure: Callable[[ControlPlane], Awaitable[T]]) -> T:
    """What `measure` finds on an installation of its own, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"lava-bench-{name}-"))
    owner = EmbeddedEngines()
    try:
        engines = owner.start(folder, engine_options())
        await postgres.migrate(engines.database_url)
        async with _opened(engines.redis_url, engines.database_url) as made:
            return await measure(made)
    finally:
        owner.stop()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _opened(redis_url: str, database_url: str) -> AsyncIterator[ControlPlane]:
    redis, pool = outbox_module.connect(redis_url), await postgres.connect(database_url)
    try:
        vault = Vault(new_master_key())
        catalog = CatalogStore(pool, vault)
        merchant = await catalog.create_merchant("bench")
        funding, charge_store = Funding(catalog, BalanceStore(HotRedis(redis_url))), ChargeStore(pool)
        yield ControlPlane(
            redis=redis,
            pool=pool,
            vault=vault,
            catalog=catalog,
            merchant=merchant,
            key=await catalog.create_secret_key(merchant.merchant_id, "bench"),
            funding=funding,
            charge_store=charge_store,
            charges=Charges(charge_store, None, funding, clock),
        )
    finally:
        await redis.aclose()
        await postgres.close(pool)


@asynccontextmanager
async def served(application: web.Application) -> AsyncIterator[str]:
    """The base URL of an application on a loopback socket."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def parse_arguments(name: str, description: str | None, asked: str, asks: int) -> argparse.Namespace:
    """--json, --rows and --asks of `./lava bench NAME`; `asked`: what is asked so often."""
    parser = argparse.ArgumentParser(
        prog=f"./lava bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line instead of the table")
    parser.add_argument("--rows", type=int, default=10_000_000, help="how many requests (default 10 million)")
    parser.add_argument("--asks", type=int, default=asks, help=f"how often each {asked} (default {asks})")
    return parser.parse_args()


def quantile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 2)


def quantiles(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Name -> p50_ms and p95_ms of the milliseconds that were taken."""
    return {name: {"p50_ms": quantile(taken, 50), "p95_ms": quantile(taken, 95)} for name, taken in times.items()}
