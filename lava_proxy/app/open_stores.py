"""What every role, and every command that administers, opens the same way."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.domain.prices import PriceBook
from lava_proxy.providers.prices_source import load_price_book
from lava_proxy.providers.registry import Registry, load_registry
from lava_proxy.settings import Settings
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.vault import Vault
from lava_proxy.stores.webhook_store import WebhookStore


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores every role builds the same way."""

    redis: Redis
    hot: HotRedis
    outbox: Outbox
    balances: BalanceStore
    pool: postgres.Pool
    catalog: CatalogStore
    ledger: LedgerStore
    webhooks: WebhookStore

    async def close(self) -> None:
        await self.hot.stop()
        await self.redis.aclose()
        await postgres.close(self.pool)


async def open_stores(config: RunConfig, settings: Settings, *, pool_max: int, require_verified: bool = True) -> Stores:
    """Connect to both engines; Postgres must answer, Redis may come later."""
    redis = outbox_module.connect(config.redis_url)
    hot = HotRedis(
        config.redis_url,
        timeout_s=settings.redis.timeout_s,
        connect_wait_s=settings.redis.connect_wait_s,
        require_verified=require_verified,
    )
    await hot.start()
    pool = await postgres.connect(config.database_url, size_max=pool_max)
    vault = vault_of(config)
    return Stores(
        redis,
        hot,
        Outbox(redis, business_clock(config)),
        BalanceStore(hot),
        pool,
        CatalogStore(pool, vault, business_clock(config)),
        LedgerStore(pool),
        WebhookStore(pool, vault),
    )


def vault_of(config: RunConfig) -> Vault:
    return Vault(config.master_key, (config.previous_master_key,))


def registry_of(config: RunConfig, settings: Settings) -> Registry:
    return load_registry(
        settings.providers_table, config.overrides, default_output_tokens_max=settings.reserve.output_tokens_default
    )


def prices_of(settings: Settings) -> PriceBook:
    return load_price_book(settings.prices_table.get("price", []))
