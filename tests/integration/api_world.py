"""What the API tests share: real stores, two merchants, and calls that went through the money script and the flusher."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import redis.asyncio
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy import settings
from lava_proxy.api.application import ApiDependencies, build_application
from lava_proxy.api.payments import PaymentServices
from lava_proxy.billing.accounts import Accounts
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.rows import RowStarts, json_text, opening_row
from lava_proxy.domain.catalog import Grant, Tier
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore, Connection, Merchant, Meter
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import open_merchant_stores
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.vault import Vault
from lava_proxy.stores.webhook_store import WebhookStore
from lava_proxy.workers.flusher import Flusher
from lava_proxy.workers.recovery import Recovery
from tests.card_world import Clock
from tests.checkout_world import made_checkout
from tests.engines import RunningEngines, flush_redis, fresh_database

USD = 1_000_000_000
CLOCK = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class Stores:
    """Real stores over one Redis and one database."""

    redis: redis.asyncio.Redis
    pool: postgres.Pool
    hot: HotRedis
    balances: BalanceStore
    outbox: Outbox
    catalog: CatalogStore
    ledger: LedgerStore
    flusher: Flusher
    vault: Vault
    webhooks: WebhookStore
    webhook_client: WebhookClient

    async def flush(self) -> None:
        await self.flusher.flush_all()


@dataclass(slots=True, kw_only=True)
class Shop:
    """A merchant with a key, a customer with $25 and a meter of $20 per million tokens."""

    merchant: Merchant
    key: str
    customer: Connection
    meter: Meter
    request_ids: list[str] = field(default_factory=list)  # newest first

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@asynccontextmanager
async def opened_stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    """An empty Redis, verified, and a migrated database."""
    await flush_redis(engines.redis_url)
    async with fresh_database(engines.database_url) as database_url:
        await postgres.migrate(database_url)
        client = outbox_module.connect(engines.redis_url)
        pool = await postgres.connect(database_url, size_max=4)
        outbox, ledger = Outbox(client), LedgerStore(pool)
        await Recovery(outbox, ledger).run_once()
        hot = HotRedis(engines.redis_url)
        await hot.start()
        assert await hot.wait_ready(10)
        vault = Vault(base64.b64encode(os.urandom(32)).decode())
        flusher = Flusher(outbox, ledger, settings.load({}).flusher)
        webhook_client = WebhookClient(timeout_s=2, connections_max=10, allow_private=True, clock=lambda: datetime.now(UTC))
        await webhook_client.open()
        yield Stores(
            redis=client,
            pool=pool,
            hot=hot,
            balances=BalanceStore(hot),
            outbox=outbox,
            catalog=CatalogStore(pool, vault),
            ledger=ledger,
            flusher=flusher,
            vault=vault,
            webhooks=WebhookStore(pool, vault),
            webhook_client=webhook_client,
        )
        await webhook_client.close()
        await hot.stop()
        await client.aclose()
        await postgres.close(pool)


async def open_shop(stores: Stores, name: str) -> Shop:
    """A merchant ready to sell; its own wallet holds $100.50."""
    funding = Funding(stores.catalog, stores.balances)
    merchant = await stores.catalog.create_merchant(name)
    key = await stores.catalog.create_secret_key(merchant.merchant_id, name)
    customer = await stores.catalog.create_connection(
        merchant.merchant_id,
        reference_id=f"customer of {name}",
        contact={"email": f"buyer@{name}.example"},
        metadata={"team": "red"},
    )
    for wallet_id, amount in ((merchant.wallet_id, 100 * USD + USD // 2), (customer.wallet_id, 25 * USD)):
        await funding.open_wallet(wallet_id)
        await funding.fund(merchant.merchant_id, wallet_id, amount, "test")
    meter = await stores.catalog.create_meter(
        merchant.merchant_id,
        name="Chat",
        slug="chat",
        rate_type="fixed",
        tier_type="tokens_1m",
        tiers=(Tier(start=0, rate=20 * USD), Tier(start=1_000_000, rate=15 * USD)),
    )
    return Shop(merchant=merchant, key=key, customer=customer, meter=meter)


async def sell(stores: Stores, shop: Shop, *, flush: bool = True, by_meter: bool = True, **changes: Any) -> str:
    """One call of 1,000 + 500 tokens for $0.03 that cost $0.0045000001; its id."""
    grant = Grant(
        merchant_id=shop.merchant.merchant_id,
        wallet_id=shop.customer.wallet_id if by_meter else shop.merchant.wallet_id,
        connection_id=shop.customer.connection_id if by_meter else None,
        meter=shop.meter.version if by_meter else None,
    )
    start = RowStarts().start(
        grant=grant,
        provider="openai",
        key_type="managed",
        endpoint="POST https://api.openai.com/v1/chat/completions",
        api="chat",
        streamed=True,
        metadata=changes.pop("metadata", None),
        tier_field="",
    )
    row = orjson.loads(opening_row(start, "gpt-4o-mini"))
    usage = {"input_tokens": 1000, "output_tokens": 500, "cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}
    charge = changes.pop("charge_nanos", 30_000_000 if by_meter else 4_500_001)
    lines = [[0, 20 * USD, 1500, charge]] if by_meter else []
    row.update(
        status="completed",
        outcome="completed",
        provenance="provider_final",
        response_id="chatcmpl-1",
        http_status=200,
        billed=True,
        usage=json_text(usage | changes.pop("usage", {})),
        cost_nanos=4_500_001,
        charge_nanos=charge,
        breakdown=json_text({"charge": lines, "cost": []}),
        price_version="test-1",
        timings=json_text({"total_us": 1200}),
    )
    row.update(changes)
    request_id = new_id("req")
    wallet_id = grant.wallet_id
    await stores.balances.settle(wallet_id, request_id, charge, row=json_text(row).encode(), keep_ms=60_000)
    shop.request_ids.insert(0, request_id)
    if flush:
        await stores.flush()
    return request_id


def payments(stores: Stores) -> PaymentServices:
    """Cards and charges at the sandbox processor."""
    store, funding, accounts = ChargeStore(stores.pool), Funding(stores.catalog, stores.balances), AccountStore(stores.pool)
    processor = SandboxProcessor(stores.pool, clock=lambda: CLOCK, base_url="http://sandbox.test/")
    charges = Charges(store, processor, funding, lambda: CLOCK)
    return PaymentServices(
        charges=charges,
        charge_store=store,
        cards=Cards(store, processor, charges, lambda: CLOCK),
        accounts=Accounts(accounts, funding, charges, lambda: CLOCK),
        account_store=accounts,
    )


def dependencies(stores: Stores, **changes: Any) -> ApiDependencies:
    """The API over these stores, its health never remembered."""
    values: dict[str, Any] = {
        "catalog": stores.catalog,
        "ledger": stores.ledger,
        "outbox": stores.outbox,
        "merchant_stores": open_merchant_stores(stores.pool, stores.redis, stores.catalog, stores.vault, lambda: CLOCK),
        "funding": Funding(stores.catalog, stores.balances),
        "payments": payments(stores),
        "usage": UsageStore(stores.pool),
        "request_export": RequestExport(stores.pool),
        "webhooks": stores.webhooks,
        "webhook_client": stores.webhook_client,
        "price_version": "prices-1",
        "metrics": lambda: b"# TYPE lava_holds_open gauge\nlava_holds_open 0.0\n",
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "dev": False,
        "status_links": {},
        "clock": lambda: CLOCK,
        "health_remember_s": 0.0,
    }
    funding = Funding(stores.catalog, stores.balances)
    values["checkout_sessions"] = made_checkout(stores, funding, Clock(CLOCK), vault=stores.vault).resource()
    return ApiDependencies(**(values | changes))


@asynccontextmanager
async def served(deps: ApiDependencies) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a running application on loopback."""
    async with TestClient(TestServer(build_application(deps))) as client:
        yield client
