"""Postgres: the pool and the migrations (dbmate's file format, one advisory lock, checksums)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from typing import Any

import asyncpg
import orjson

from lava_proxy import tasks
from lava_proxy.domain.errors import StoreError

Pool = asyncpg.Pool

_MIGRATION_LOCK = 7_229_001
_PARTITIONED = (("request", "created_at"), ("ledger_entry", "at"), ("ledger_leg", "at"))
_MONTHS_AHEAD = 3


def _encode_json(value: Any) -> bytes:
    """jsonb's binary form: a version byte and the text; bytes are taken as JSON text already, so that digits survive."""
    if isinstance(value, bytes):
        return b"\x01" + value
    try:
        return b"\x01" + json.dumps(value).encode()
    except TypeError:  # a Decimal is in it, which is a number with the digits that it has
        return b"\x01" + orjson.dumps(value, default=_number)


def _number(value: object) -> orjson.Fragment:
    if not isinstance(value, Decimal):
        raise TypeError(f"not a JSON value: {type(value).__name__}")
    return orjson.Fragment(str(value).encode())


_JSON = json.JSONDecoder(parse_float=Decimal)  # json.loads would make one a value


def _decode_json(value: bytes) -> Any:
    return _JSON.decode(value[1:].decode())


async def prepare(connection: Any) -> None:
    """Binary jsonb in and out (COPY needs it); numbers with a point arrive as Decimal."""
    await connection.set_type_codec("jsonb", encoder=_encode_json, decoder=_decode_json, schema="pg_catalog", format="binary")


async def _reset(connection: Any) -> None:
    """Nothing to ask of Postgres: whoever takes a connection of a pool leaves no setting, listener or session lock behind.

    asyncpg itself rolls back what is open. Its own reset is a round trip more for each use of a connection, most of which are one.
    """


async def connect(
    database_url: str, *, size_max: int = 8, timeout_s: float = 10, on_query: Callable[[Any], None] | None = None
) -> Pool:
    """A pool; json columns arrive as Python values. Raises StoreError when the database cannot be reached.

    `on_query` hears of each statement when it has been answered (asyncpg's LoggedQuery).
    """

    async def prepare_pooled(connection: Any) -> None:
        await prepare(connection)
        if on_query is not None:
            connection.add_query_logger(on_query)

    try:
        # Grown on demand: a floor would be restored, with a traceback a try, all the time that Postgres is away.
        pool = await asyncpg.create_pool(
            database_url, min_size=0, max_size=size_max, timeout=timeout_s, command_timeout=60, init=prepare_pooled, reset=_reset
        )
        async with pool.acquire(timeout=timeout_s):
            return pool
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreError(f"Postgres cannot be reached: {error}", code="database_unavailable") from error


async def close(pool: Pool, timeout_s: float = 5) -> None:
    """Close a pool, by force when a query on a dead or frozen server still holds one of its connections."""
    task = tasks.start("pool-close", pool.close())
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        pool.terminate()
        await asyncio.wait({task}, timeout=timeout_s)


def migrations() -> list[tuple[str, str]]:
    """(version_name, up part) of every migration file, in order."""
    folder = resources.files("lava_proxy.stores").joinpath("sql/migrations")
    found = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".sql"):
            up = entry.read_text().split("-- migrate:up", 1)[1].split("-- migrate:down", 1)[0]
            found.append((entry.name.removesuffix(".sql"), up))
    return found


async def migrate(database_url: str) -> list[str]:
    """Apply what is missing, in one transaction each, under a lock; the names applied.

    Raises StoreError when an applied file was changed afterwards.
    """
    try:
        connection = await asyncpg.connect(database_url, timeout=30)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreError(f"Postgres (LAVA_DATABASE_URL) cannot be reached: {error}", code="database_unavailable") from error
    applied = []
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL)"
        )
        known = {row["version"]: row["checksum"] for row in await connection.fetch("SELECT * FROM schema_migrations")}
        for name, up in migrations():
            checksum = hashlib.sha256(up.encode()).hexdigest()
            if name in known:
                if known[name] != checksum:
                    raise StoreError(f"migration {name} was changed after it had been applied", code="migration_changed")
                continue
            async with connection.transaction():
                await connection.execute(up)
                await connection.execute("INSERT INTO schema_migrations VALUES ($1, $2, $3)", name, checksum, datetime.now(UTC))
            applied.append(name)
        await ensure_partitions(connection, datetime.now(UTC))
    finally:
        await connection.close()
    return applied


async def ensure_partitions(connection: Any, now: datetime) -> int:
    """Make the monthly partitions from this month to some months ahead; how many were made."""
    made = 0
    for offset in range(_MONTHS_AHEAD + 1):
        first, after = _month(now, offset), _month(now, offset + 1)
        for table, _ in _PARTITIONED:
            name = f"{table}_{first:%Y_%m}"
            if await connection.fetchval("SELECT to_regclass($1)", name) is None:
                # Names and bounds are ours, not input; DDL takes no parameters.
                bounds = f"FROM ('{first:%Y-%m-%d}+00') TO ('{after:%Y-%m-%d}+00')"
                try:
                    await connection.execute(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES {bounds}")
                except (asyncpg.CheckViolationError, asyncpg.DuplicateTableError):
                    # The month's rows lie in the default partition already (a clock ran ahead), or another process was quicker.
                    continue
                made += 1
    return made


def _month(now: datetime, offset: int) -> datetime:
    months = now.year * 12 + now.month - 1 + offset
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


Failures: tuple[type[Exception], ...] = (asyncpg.PostgresError, asyncpg.InterfaceError)
"""What asyncpg raises; callers above the stores see StoreError, the workers' loops also these."""

_LOST: tuple[type[Exception], ...] = (OSError, *Failures)
_LEADER_LOCK = 7_229_002
_LEADER_TIMEOUT_S = 5.0
LEADER_PING_S = 10.0
# Else Postgres would keep the lock of a host that vanished for two hours. Without effect on a Unix socket.
_NOTICE_DEAD_PEERS = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"


class Leader:
    """One worker process leads: it holds a session lock, which ends with its connection."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._connection: Any = None
        self._seen_at = 0.0
        self._asking = asyncio.Lock()

    async def is_leader(self) -> bool:
        """Do we hold the lock (taking it when it is free)? Raises OSError or Failures when Postgres cannot be asked."""
        if self._is_held():
            return True
        async with self._asking:
            if self._is_held() or await self._is_still_held():
                return True
            connection = await asyncpg.connect(self._database_url, timeout=5)
            try:
                await connection.execute(_NOTICE_DEAD_PEERS, timeout=_LEADER_TIMEOUT_S)
                if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LEADER_LOCK, timeout=_LEADER_TIMEOUT_S):
                    self._connection, self._seen_at = connection, time.monotonic()
                    return True
            finally:
                if self._connection is not connection:
                    await _say_goodbye(connection)
            await asyncio.sleep(0.5)
            return False

    def _is_held(self) -> bool:
        """As of a moment ago."""
        is_open = self._connection is not None and not self._connection.is_closed()
        return is_open and time.monotonic() - self._seen_at < LEADER_PING_S

    async def _is_still_held(self) -> bool:
        """Asks: a connection that nothing passes over can end at Postgres' side without our hearing of it, and the lock with it."""
        connection = self._connection
        if connection is None or connection.is_closed():
            return False
        try:
            await connection.execute("SELECT 1", timeout=_LEADER_TIMEOUT_S)
        except _LOST:
            self._connection = None
            connection.terminate()
            raise
        self._seen_at = time.monotonic()
        return True

    async def close(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            await _say_goodbye(self._connection)


async def _say_goodbye(connection: Any) -> None:
    """Close a connection; a frozen server, which does not answer that, holds up nobody's end."""
    with suppress(*_LOST):
        await connection.close(timeout=_LEADER_TIMEOUT_S)
    if not connection.is_closed():
        connection.terminate()
