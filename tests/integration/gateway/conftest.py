"""Gateways for the tests; they run on uvloop, as the product does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from lava_proxy import settings as settings_module
from lava_proxy.providers.prices_source import load_price_book
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.workers.audit import Audit
from tests.engines import RunningEngines, fresh_database
from tests.integration.gateway.harness import Gateway, World, start_gateway

StartGateway = Callable[..., Awaitable[Gateway]]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="package")
async def world(engines: RunningEngines) -> AsyncIterator[World]:
    """One database for all gateways; audited as a whole at the end."""
    settings = settings_module.load({})
    async with fresh_database(engines.database_url) as database_url:
        await postgres.migrate(database_url)
        pool = await postgres.connect(database_url, size_max=4)
        redis = outbox_module.connect(engines.redis_url)
        await redis.flushall()
        world = World(
            settings=settings, prices=load_price_book(settings.prices_table.get("price", [])), redis_url=engines.redis_url,
            database_url=database_url, redis=redis, pool=pool, catalog=CatalogStore(pool, Vault(new_master_key())),
            ledger=LedgerStore(pool), outbox=Outbox(redis),
        )  # fmt: skip
        try:
            yield world
            await world.verify()
            await world.flush()
            assert (await Audit(world.outbox, world.ledger).run()).violations == []
        finally:
            await postgres.close(pool)
            await redis.aclose()


@pytest.fixture
async def start(world: World, tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Starts gateways that are checked (holds, balances, audit) and stopped when the test ends."""
    started: list[Gateway] = []

    async def start_one(**options: object) -> Gateway:
        gateway = await start_gateway(world, tmp_path, **options)  # type: ignore[arg-type]
        started.append(gateway)
        return gateway

    yield start_one
    for gateway in started:
        await gateway.finish()


@pytest.fixture
async def gateway(start: StartGateway) -> Gateway:
    """A gateway as it is configured by default."""
    return await start()
