"""The billing store for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from lava_proxy.stores import postgres
from tests.billing_world import World, billing_world
from tests.engines import RunningEngines, fresh_database

_TABLES = """SELECT string_agg(quote_ident(relname), ', ') FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
  AND relnamespace = 'public'::regnamespace AND relname <> 'schema_migrations'"""


@pytest.fixture(scope="session")
async def migrated_database_url(engines: RunningEngines) -> AsyncIterator[str]:
    """A migrated database, emptied for each test: several times quicker than a new one."""
    async with fresh_database(engines.database_url) as url:
        await postgres.migrate(url)
        yield url


@pytest.fixture
async def world(redis_url: str, migrated_database_url: str) -> AsyncIterator[World]:
    """Real Redis and Postgres, migrated, verified and empty but for a merchant."""
    connection = await asyncpg.connect(migrated_database_url)
    try:
        await connection.execute(f"TRUNCATE {await connection.fetchval(_TABLES)}")
    finally:
        await connection.close()
    async with billing_world(redis_url, migrated_database_url) as made:
        yield made
