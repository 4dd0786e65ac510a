"""What the Postgres stores share: queries and transactions whose failures become StoreError; broken constraints pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.postgres import Pool

_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
_ACQUIRE_S = 10


class Database:
    """Base of the stores over a pool. `db` is a caller's open connection, so that its transaction holds this query too."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """`async with store.transaction() as db`: what is written with this `db`, by whichever store, is committed together."""
        return self._transaction()

    def _transaction(self, db: Any = None) -> _Transaction:
        """A pooled connection in a transaction; of a caller's `db`, a part of its transaction that can fail alone."""
        return _Transaction(self._pool, db)

    async def _rows(self, query: str, *args: Any, db: Any = None) -> list[dict[str, Any]]:
        return [dict(row) for row in await translated(lambda: (db or self._pool).fetch(query, *args))]

    async def _row(self, query: str, *args: Any, db: Any = None) -> dict[str, Any] | None:
        row = await translated(lambda: (db or self._pool).fetchrow(query, *args))
        return None if row is None else dict(row)

    async def _execute(self, query: str, *args: Any, db: Any = None) -> str:
        return str(await translated(lambda: (db or self._pool).execute(query, *args)))

    async def _changed(self, query: str, *args: Any, db: Any = None) -> int:
        """How many rows a statement changed."""
        return int((await self._execute(query, *args, db=db)).rpartition(" ")[2])


class _Transaction:
    """A connection in a transaction: a pooled one, or (`db`) a caller's, which is in one already."""

    def __init__(self, pool: Pool, db: Any) -> None:
        self._pool = pool
        self._connection = db
        self._is_own = db is None

    async def __aenter__(self) -> Any:
        if self._is_own:
            try:
                self._connection = await self._pool.acquire(timeout=_ACQUIRE_S)
            except _FAILURES as error:
                raise _unavailable(error) from error
        try:
            self._transaction = self._connection.transaction()
            await self._transaction.start()
        except BaseException as error:
            await self._release()
            if isinstance(error, _FAILURES):
                raise _unavailable(error) from error
            raise
        return self._connection

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                await self._transaction.commit()
            else:
                await self._transaction.rollback()
        except _FAILURES as failure:
            if not isinstance(error or failure, asyncpg.IntegrityConstraintViolationError):
                raise _unavailable(failure) from failure
            raise
        finally:
            await self._release()
        if isinstance(error, _FAILURES) and not isinstance(error, asyncpg.IntegrityConstraintViolationError):
            raise _unavailable(error) from error

    async def _release(self) -> None:
        if self._is_own:
            await self._pool.release(self._connection)


async def translated(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a query answers; a failure of Postgres is a StoreError, a broken constraint stays what it is."""
    try:
        return await call()
    except asyncpg.IntegrityConstraintViolationError:
        raise
    except _FAILURES as error:
        raise _unavailable(error) from error


def _unavailable(error: BaseException) -> StoreError:
    return StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable")
