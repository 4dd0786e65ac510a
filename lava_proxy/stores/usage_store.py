"""Usage added up: totals, series, rankings and shares, from rollups where they answer exactly and from rows where only they can.

Answer times follow the number of buckets, not of requests; a metadata filter or grouping reads the rows of the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import asyncpg

from lava_proxy.domain.errors import CallerError, StoreError
from lava_proxy.domain.usage_window import UsageWindow
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.usage_rollup import BUCKET, MEASURES, ROLLUPS, rebuild

Dimension = Literal["customer", "meter", "model", "provider"]
ShareOf = Literal["outcome", "provenance"]

_COLUMNS: dict[str, str] = {"customer": "connection_id", "meter": "meter_id", "model": "model", "provider": "provider"}
_SUMS = ", ".join(f"coalesce(sum({name}), 0)::numeric AS {name}" for name in MEASURES)
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROWS_TIMEOUT_S = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Whose usage: of one customer, of one meter, of requests that have all of `metadata`; everything where nothing is said."""

    connection_id: str | None = None
    meter_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSums:
    """What a set of requests adds up to; units in the names, tokens as reported."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    input_characters: int = 0
    output_characters: int = 0
    input_micros: int = 0
    output_micros: int = 0
    cost_nanos: int = 0
    charge_nanos: int = 0
    fee_nanos: int = 0  # of the charge, what is not a passed-on cost
    wallet_nanos: int = 0  # charged to customers
    merchant_nanos: int = 0  # borne by the merchant
    net_nanos: int = 0  # of what customers were charged, left after the cost

    def __add__(self, other: UsageSums) -> UsageSums:
        return UsageSums(**{name: getattr(self, name) + getattr(other, name) for name in MEASURES})

    def __sub__(self, other: UsageSums) -> UsageSums:
        return UsageSums(**{name: getattr(self, name) - getattr(other, name) for name in MEASURES})


EVERYTHING = UsageFilter()


class UsageStore:
    """Reads, and rebuilds. Raises StoreError when Postgres cannot answer, CallerError when reading rows takes too long."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def totals(self, merchant_id: str, window: UsageWindow, filters: UsageFilter = EVERYTHING) -> UsageSums:
        """Of the whole window."""
        found = await self._sums(merchant_id, window, filters, "", [])
        return found[0][1] if found else UsageSums()

    async def series(
        self, merchant_id: str, window: UsageWindow, filters: UsageFilter = EVERYTHING
    ) -> list[tuple[datetime, UsageSums]]:
        """(first instant, sums) of every bucket of the window, in order, the empty ones too."""
        # Requests lie in [origin, ...), so counting bins from the origin gives the window's own buckets in any zone.
        binned = await self._sums(
            merchant_id, window, filters, "date_bin({0}::interval, at, {1}::timestamptz)", [window.length, window.origin]
        )
        known = dict(binned)
        return [(first, known.get(first, UsageSums())) for first in window.first_instants()]

    async def top(
        self,
        merchant_id: str,
        window: UsageWindow,
        dimension: Dimension,
        limit: int,
        filters: UsageFilter = EVERYTHING,
    ) -> list[tuple[str, UsageSums]]:
        """(value, sums) of a dimension's `limit` largest values by charge, then cost, then requests; "" for those without one."""
        found = await self._sums(merchant_id, window, filters, _COLUMNS[dimension], [], limit=limit)
        return [(str(value), sums) for value, sums in found]

    async def top_metadata(
        self, merchant_id: str, window: UsageWindow, key: str, limit: int, filters: UsageFilter = EVERYTHING
    ) -> list[tuple[str, UsageSums]]:
        """As `top`, by the value of a metadata key; reads rows."""
        found = await self._sums(
            merchant_id, window, filters, "coalesce(metadata ->> {0}::text, '')", [key], limit=limit, rows_only=True
        )
        return [(str(value), sums) for value, sums in found]

    async def shares(self, merchant_id: str, window: UsageWindow, of: ShareOf, meter_id: str | None = None) -> dict[str, UsageSums]:
        """Sums by outcome (completed, provider_error ...) or by where the usage comes from (provider_final, estimated ...)."""
        return dict(await self._sums(merchant_id, window, UsageFilter(meter_id=meter_id), of, []))

    async def rebuild(self) -> int:
        """Make the rollups anew from the requests, flushes waiting meanwhile; how many requests they count."""
        try:
            async with self._pool.acquire(timeout=10) as db:
                return await rebuild(db)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"Postgres cannot rebuild: {type(error).__name__}", code="database_unavailable") from error

    async def _sums(
        self,
        merchant_id: str,
        window: UsageWindow,
        filters: UsageFilter,
        group: str,
        group_args: Sequence[Any],
        *,
        limit: int | None = None,
        rows_only: bool = False,
    ) -> list[tuple[Any, UsageSums]]:
        """Sums by `group`, an expression of ours over `at` and the dimensions with {0}, {1} for its arguments; "" for one sum."""
        args: list[Any] = [merchant_id]

        def arg(value: Any) -> str:
            args.append(value)
            return f"${len(args)}"

        parts, reads_rows = _parts(window, filters, group, rows_only, arg)
        shown = group.format(*map(arg, group_args)) if group else "''"
        order = " ORDER BY charge_nanos DESC, cost_nanos DESC, requests DESC, 1" if limit is not None else ""
        bound = f" LIMIT {arg(limit)}" if limit is not None else ""
        query = f"SELECT {shown} AS value, {_SUMS} FROM ({' UNION ALL '.join(parts)}) AS found GROUP BY 1{order}{bound}"
        try:
            rows = await self._pool.fetch(query, *args, timeout=_ROWS_TIMEOUT_S)
        except TimeoutError as error:
            if reads_rows:
                raise CallerError(
                    "Too many requests lie in this window to be read one by one; ask for a shorter one.", code="window_too_large"
                ) from error
            raise StoreError("Postgres does not answer in time.", code="database_unavailable") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error
        return [(row["value"], UsageSums(**{name: int(row[name]) for name in MEASURES})) for row in rows]


def _parts(window: UsageWindow, filters: UsageFilter, group: str, rows_only: bool, arg: Any) -> tuple[list[str], bool]:
    """SELECTs that cover the window once: rollups for whole buckets, rows for ragged ends; and whether rows answer it all."""
    conditions = ""
    if filters.connection_id is not None:
        conditions += f" AND connection_id = {arg(filters.connection_id)}"
    if filters.meter_id is not None:
        conditions += f" AND meter_id = {arg(filters.meter_id)}"
    measures = ", ".join(MEASURES)

    def part(table: str, time: str, columns: Sequence[str], first: datetime, after: datetime, more: str = "") -> str:
        chosen = "".join(f", {name}" for name in columns)
        return (
            f"SELECT {time} AS at{chosen}, {measures} FROM {table}"
            f" WHERE merchant_id = $1 AND {time} >= {arg(first)} AND {time} < {arg(after)}{conditions}{more}"
        )

    if rows_only or filters.metadata:
        more = f" AND metadata @> {arg(dict(filters.metadata))}" if filters.metadata else ""
        known = ("connection_id", "meter_id", "provider", "model", "metadata")
        return [part("usage_fact", "created_at", known, window.start, window.end, more)], True
    table = _table(filters, group)
    columns = [name for name in ROLLUPS[table] if name not in ("merchant_id", "bucket")]
    first, after = window.rolled()
    spans: list[tuple[str, str, datetime, datetime]] = []
    if first >= after:
        spans.append(("usage_fact", "created_at", window.start, window.end))
    else:
        spans.append(("usage_fact", "created_at", window.start, first))
        spans += _day_spans(table, first, after) if table.endswith("_day") else [(table, "bucket", first, after)]
        spans.append(("usage_fact", "created_at", after, window.end))
    return [part(name, time, columns, low, high) for name, time, low, high in spans if low < high], False


def _table(filters: UsageFilter, group: str) -> str:
    """The smallest rollup that knows the filter and the group; of days, where it need not be cut finer."""
    if filters.connection_id is not None:
        return "usage_by_customer"
    if group == "connection_id":
        return "usage_by_customer_day"
    return "usage_by_model_day" if group in ("provider", "model") else "usage_by_meter"


def _day_spans(table: str, first: datetime, after: datetime) -> list[tuple[str, str, datetime, datetime]]:
    """Whole UTC days from a table of days, the quarter hours before and behind them from that of buckets."""
    fine = table.removesuffix("_day")
    day, last = first + -(first - _EPOCH) % _DAY, after - (after - _EPOCH) % _DAY
    if day >= last:
        return [(fine, "bucket", first, after)]
    return [(fine, "bucket", first, day), (table, "bucket", day, last), (fine, "bucket", last, after)]


assert BUCKET == timedelta(minutes=15), "windows and rollups agree about the bucket"
