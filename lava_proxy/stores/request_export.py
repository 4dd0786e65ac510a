"""Stored requests in pages, newest first, for lists and exports of any size: each page is a query of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg

from lava_proxy.domain.errors import CallerError, StoreError
from lava_proxy.stores.postgres import Pool

PAGE_ROWS = 500
_TIMEOUT_S = 25  # below what the gateway waits for a silent control process
_TOO_SLOW = "Too many requests lie between those that match; choose a shorter time, a customer, a meter or a model."


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests: those for which everything given is true. `start` inclusive, `end` exclusive, of their creation."""

    connection_id: str | None = None
    meter_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: str | None = None
    provider: str | None = None
    model: str | None = None
    start: datetime | None = None
    end: datetime | None = None


class RequestExport:
    """Reads only. Raises StoreError when Postgres cannot answer, CallerError when it would take too long."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def pages(self, merchant_id: str, filters: RequestFilter) -> AsyncIterator[list[dict[str, Any]]]:
        """Rows of the table `request`, at most PAGE_ROWS at a time; those that arrive meanwhile are not among them."""
        before: str | None = None
        while True:
            rows = await self.page(merchant_id, filters, before=before, limit=PAGE_ROWS)
            if rows:
                yield rows
            if len(rows) < PAGE_ROWS:
                return
            before = rows[-1]["request_id"]

    async def page(
        self, merchant_id: str, filters: RequestFilter, *, before: str | None, limit: int, timeout_s: int = _TIMEOUT_S
    ) -> list[dict[str, Any]]:
        """At most `limit` rows from below the id `before`. Raises CallerError `search_too_slow` after `timeout_s`."""
        conditions = ["merchant_id = $1"]
        args: list[Any] = [merchant_id]
        wanted = {
            "request_id < {}": before,
            "connection_id = {}": filters.connection_id,
            "meter_id = {}": filters.meter_id,
            "metadata @> {}": dict(filters.metadata) or None,
            "status = {}": filters.status,
            "provider = {}": filters.provider,
            "model = {}": filters.model,
            "created_at >= {}": filters.start,
            "created_at < {}": filters.end,
        }
        for condition, value in wanted.items():
            if value is not None:
                args.append(value)
                conditions.append(condition.format(f"${len(args)}"))
        query = f"SELECT * FROM request WHERE {' AND '.join(conditions)} ORDER BY request_id DESC LIMIT {limit}"
        try:
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                # A plan for any value would walk the whole table for a model, customer or meter that is rare or not there.
                await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
                return [dict(row) for row in await connection.fetch(query, *args, timeout=timeout_s)]
        except TimeoutError as error:
            raise CallerError(_TOO_SLOW, code="search_too_slow", status=422) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error
