"""stores/postgres.py: migrations, partitions, exact numbers, one leader; and what the schema must not allow."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores import postgres
from tests.billing_world import World
from tests.integration.gateway.forwarder import postgres_forwarder, through


async def test_migrating_twice_and_by_many_at_once_applies_each_file_once(empty_database_url: str) -> None:
    """Several processes start together."""
    applied = await asyncio.gather(*(postgres.migrate(empty_database_url) for _ in range(4)))
    names = [name for name, _ in postgres.migrations()]
    assert sorted(name for found in applied for name in found) == names
    assert await postgres.migrate(empty_database_url) == []


async def test_a_changed_migration_is_refused(empty_database_url: str) -> None:
    """Files that were applied never change."""
    await postgres.migrate(empty_database_url)
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("UPDATE schema_migrations SET checksum = 'other'")
    await connection.close()
    with pytest.raises(StoreError) as refused:
        await postgres.migrate(empty_database_url)
    assert refused.value.code == "migration_changed"


async def test_months_are_made_ahead_and_again_nothing(world: World) -> None:
    """Months tile: each begins where the one before ends, across the year's end."""
    async with world.pool.acquire() as connection:
        december = datetime(2030, 12, 31, 23, 59, tzinfo=UTC)
        assert await postgres.ensure_partitions(connection, december) == 12
        assert await postgres.ensure_partitions(connection, december) == 0
        bounds = await connection.fetch(
            "SELECT pg_get_expr(relpartbound, oid) AS b FROM pg_class WHERE relname ~ '^request_203[01]_..$' ORDER BY relname"
        )
        assert "TO ('2031-01-01" in bounds[0]["b"] and "FROM ('2031-01-01" in bounds[1]["b"]


async def test_no_unique_index_has_a_nullable_column(world: World) -> None:
    """36, 51: NULLs are distinct, so such an index would let duplicates through. Partial indexes exclude the NULLs themselves."""
    rows = await world.fetch(
        """SELECT i.indexrelid::regclass::text AS index, a.attname FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
        JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE i.indisunique AND n.nspname = 'public' AND NOT a.attnotnull AND i.indpred IS NULL"""
    )
    assert rows == []


async def test_the_schema_keeps_one_representation_of_money(world: World) -> None:
    """107, 115: whole nano-USD in bigint columns; no second money column, no float, no currency to mix.

    What a card is asked for (in a checkout, by a charge, in a refund) is kept in its unit beside no amount of ours; a refund also
    names the credit that it takes, which is another thing than its cents.
    """
    rows = await world.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    )
    money = [row for row in rows if row["column_name"].endswith("_nanos")]
    assert money and {row["data_type"] for row in money} == {"bigint"}
    assert not [row for row in rows if row["data_type"] in ("real", "double precision", "money", "numeric")]
    words = ("currency", "cents", "dollars", "credits")
    foreign = {row["table_name"] for row in rows if any(word in row["column_name"] for word in words)}
    assert foreign == {"charge", "checkout_session", "refund"}
    beside = {(row["table_name"], row["column_name"]) for row in money if row["table_name"] in foreign}
    assert beside == {("refund", "lot_nanos"), ("refund", "funds_nanos")}


async def test_json_numbers_keep_their_digits(world: World) -> None:
    """Decimals come back as Decimals; bytes go in as the text they are."""
    value = await world.pool.fetchval("SELECT $1::jsonb", b'{"a": 0.10, "b": 12345678901234567890}')
    assert value == {"a": Decimal("0.10"), "b": 12345678901234567890} and str(value["a"]) == "0.10"
    assert await world.pool.fetchval("SELECT $1::jsonb", {"x": [1, None]}) == {"x": [1, None]}


async def test_a_connection_of_a_pool_costs_no_round_trip_and_comes_back_clean(world: World) -> None:
    """What was left open is rolled back; a statement is all that is sent for a statement."""
    heard: list[str] = []
    pool = await postgres.connect(world.database_url, size_max=1, on_query=lambda query: heard.append(query.query))
    try:
        heard.clear()  # what preparing the connection took
        assert [await pool.fetchval("SELECT 1") for _ in range(3)] == [1, 1, 1]
        assert heard == ["SELECT 1"] * 3
        with pytest.raises(asyncpg.UndefinedTableError):
            async with pool.acquire() as db, db.transaction():
                await db.execute("UPDATE merchant SET name = 'changed'")
                await db.execute("SELECT * FROM nothing_of_this_name")
        slow = asyncio.get_running_loop().create_task(pool.execute("UPDATE merchant SET name = pg_sleep(30)::text"))
        await asyncio.wait({slow}, timeout=0.2)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert await pool.fetchval("SELECT pg_current_xact_id_if_assigned()") is None
        assert await pool.fetchval("SELECT count(*) FROM merchant WHERE name = 'changed'") == 0
    finally:
        await postgres.close(pool)


async def test_the_lock_of_a_recovery_ends_with_it_also_when_it_or_a_waiting_one_is_stopped(world: World) -> None:
    """18: nobody who recovers later waits for one that is gone."""
    loop, entered = asyncio.get_running_loop(), asyncio.Event()

    async def recover() -> None:
        async with world.ledger.recovery_lock():
            entered.set()
            await asyncio.Event().wait()

    running = loop.create_task(recover())
    await entered.wait()
    waiting = loop.create_task(recover())
    query = """SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
        WHERE locktype = 'advisory' AND datname = current_database()"""
    async with asyncio.timeout(20):
        while await world.pool.fetchval(query) < 2:
            await asyncio.sleep(0.01)
        for task in (waiting, running):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with world.ledger.recovery_lock():
            assert await world.pool.fetchval(query) == 1
        while await world.pool.fetchval(query):
            await asyncio.sleep(0.01)


async def test_one_process_leads_and_another_follows_when_it_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """18, 56: the lock ends with its connection, so a dead leader blocks nobody."""
    real = asyncio.sleep

    async def no_wait(delay_s: float, *args: Any) -> None:
        await real(0)

    monkeypatch.setattr(postgres.asyncio, "sleep", no_wait)  # type: ignore[attr-defined]
    first, second = postgres.Leader(world.database_url), postgres.Leader(world.database_url)
    assert await first.is_leader() and await first.is_leader()
    assert not await second.is_leader()
    await first.close()
    monkeypatch.undo()
    for _ in range(50):
        if await second.is_leader():
            break
    assert await second.is_leader()
    await second.close()


async def test_a_leader_that_was_cut_off_without_a_word_steps_down_and_its_end_waits_for_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18, 31: the connection looks open for ever; the lock may be another's by now."""
    monkeypatch.setattr(postgres, "LEADER_PING_S", 0)
    monkeypatch.setattr(postgres, "_LEADER_TIMEOUT_S", 0.2)
    forwarder = postgres_forwarder(world.database_url)
    await forwarder.open()
    leader, frozen = (postgres.Leader(through(forwarder, world.database_url)) for _ in range(2))
    try:
        assert await leader.is_leader()
        forwarder.hang()
        with pytest.raises((OSError, *postgres.Failures)):
            await leader.is_leader()
        async with asyncio.timeout(10):
            assert not await leader.is_leader()  # Postgres' side has not noticed: nobody leads until it has
        await forwarder.cut()
        await forwarder.open()
        async with asyncio.timeout(20):
            while not await frozen.is_leader():
                pass
        forwarder.hang()
        async with asyncio.timeout(10):
            await frozen.close()
    finally:
        await forwarder.cut()


async def test_an_unreachable_database_is_a_store_error() -> None:
    """503, with the reason."""
    with pytest.raises(StoreError) as refused:
        await postgres.connect("postgresql://nobody@/nothing?host=/nonexistent", timeout_s=1)
    assert refused.value.code == "database_unavailable"
