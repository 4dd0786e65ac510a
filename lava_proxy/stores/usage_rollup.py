"""Rollups of the requests, kept in the flusher's own transaction: what a row counts for, added up by quarter hour.

Tables of sums, each as coarse as its questions allow: a merchant's totals and shares (`usage_by_meter`), its models
(`usage_by_model`), one customer (`usage_by_customer`); buckets are 15 minutes, since zones lie at :30 and :45. To compare all
customers or models over months there are UTC days (`usage_by_customer_day`, `usage_by_model_day`).

A batch is added up here, from the rows as they are written; the migration's view `usage_fact` says the same in SQL, for
rebuilding, for the audit, and for questions that only rows can answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import chain
from operator import add, itemgetter
from typing import Any

import orjson

from lava_proxy.domain.usage import Outcome, Provenance

MEASURES = (
    "requests", "errors", "input_tokens", "output_tokens", "input_characters", "output_characters", "input_micros",
    "output_micros", "cost_nanos", "charge_nanos", "fee_nanos", "wallet_nanos", "merchant_nanos", "net_nanos",
)  # fmt: skip
ROLLUPS: dict[str, tuple[str, ...]] = {
    "usage_by_meter": ("merchant_id", "bucket", "meter_id", "outcome", "provenance"),
    "usage_by_model": ("merchant_id", "bucket", "meter_id", "provider", "model"),
    "usage_by_customer": ("merchant_id", "connection_id", "bucket", "meter_id", "provider", "model"),
    "usage_by_customer_day": ("merchant_id", "bucket", "connection_id", "meter_id"),
    "usage_by_model_day": ("merchant_id", "bucket", "meter_id", "provider", "model"),
}
"""Table -> its key."""

BUCKET = timedelta(minutes=15)
MODEL_CHARS_MAX = 128
PROVIDER_CHARS_MAX = 64
# Usage and cost of one request come from strangers: what is more is no count, and would only make sums overflow.
_UNITS_MAX = 10**12
_COST_NANOS_MAX = 900_000 * 1_000_000_000
# So a batch's sum is below 2^62; that and 2^62 fit their column together.
_SUM_MAX = 1 << 62
_COMPLETED, _REPORTED = Outcome.COMPLETED.value, Provenance.REPORTED.value
_LOCK = 7_229_004  # the one that rebuild_usage() of the migration takes
_REBUILD_TIMEOUT_S = 24 * 3600
_VERSIONS_MAX = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READ = (
    "merchant_id", "created_at", "connection_id", "meter_id", "provider", "model", "outcome", "provenance", "status", "billed",
    "http_status", "usage", "api", "cost_nanos", "charge_nanos", "provider_key_type", "meter_version",
)  # fmt: skip


def _upsert(table: str, key: Sequence[str]) -> str:
    """In the order of the key; absurd sums are cut, since one that does not fit its column would stop the flusher."""
    sums = ", ".join(f"sum({name})::bigint" for name in MEASURES)
    added = ", ".join(f"{name} = greatest(least(t.{name}, {_SUM_MAX}), -{_SUM_MAX}) + excluded.{name}" for name in MEASURES)
    values = [
        "date_bin('1 day', bucket, 'epoch'::timestamptz)" if name == "bucket" and table.endswith("_day") else name for name in key
    ]
    groups = ", ".join(str(n + 1) for n in range(len(key)))
    return (
        f"INSERT INTO {table} AS t ({', '.join(key)}, {', '.join(MEASURES)}) SELECT {', '.join(values)}, {sums} FROM fresh"
        f" GROUP BY {groups} ORDER BY {groups} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"
    )


_DIMENSIONS = ("merchant_id", "bucket", "connection_id", "meter_id", "provider", "model", "outcome", "provenance")
_TYPES = ["timestamptz" if name == "bucket" else "text" for name in _DIMENSIONS] + ["bigint"] * len(MEASURES)
_ROLL_UP = (
    f"WITH fresh AS MATERIALIZED (SELECT * FROM unnest({', '.join(f'${n}::{kind}[]' for n, kind in enumerate(_TYPES, 1))})"
    f" AS f ({', '.join((*_DIMENSIONS, *MEASURES))}))"
    + "".join(f", {table} AS ({_upsert(table, key)})" for table, key in ROLLUPS.items())
    + " SELECT 1"
)


class UsageRollup:
    """Adds batches to the rollups. Meter versions never change, so what is needed of each is read once."""

    def __init__(self, columns: Sequence[str]) -> None:
        """`columns`: what stands where in the rows to come."""
        self._read = itemgetter(*map(columns.index, _READ))
        self._is_percentage: dict[int, bool] = {}

    async def add(
        self, db: Any, rows: Sequence[Sequence[Any]], reports: Mapping[tuple[Any, ...], Sequence[int]] | None = None
    ) -> None:
        """Add request rows that this transaction writes for the first time.

        `reports`: others, added up already, all completed, of tokens and without a provider's cost: (merchant id, number of the
        bucket, connection id, meter id, provider, model or "") -> how many, input tokens, output tokens, nanos charged.
        """
        if not rows and not reports:
            return
        read = [self._read(row) for row in rows]
        await self._learn(db, {fields[-1] for fields in read} - {None})
        sums: dict[tuple[Any, ...], Sequence[int]] = {}
        for key, amounts in chain(map(_reported, (reports or {}).items()), (self._fact(*fields) for fields in read)):
            known = sums.get(key)
            sums[key] = amounts if known is None else tuple(map(add, known, amounts))
        lines = [(*key, *amounts) for key, amounts in sums.items()]
        columns = list(zip(*lines, strict=True))
        columns[1] = tuple(_EPOCH + number * BUCKET for number in columns[1])
        # One writer at a time: two could otherwise wait for each other's rows, and a rebuild must see all or nothing of a flush.
        await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await db.execute(_ROLL_UP, *columns)

    async def _learn(self, db: Any, version_ids: set[int]) -> None:
        missing = sorted(version_ids - self._is_percentage.keys())
        if not missing:
            return
        if len(self._is_percentage) + len(missing) > _VERSIONS_MAX:
            self._is_percentage.clear()
            missing = sorted(version_ids)
        found = await db.fetch(
            "SELECT version_id, rate_type = 'percentage' AS yes FROM meter_version WHERE version_id = ANY($1::bigint[])", missing
        )
        self._is_percentage |= {row["version_id"]: row["yes"] for row in found}

    def _fact(
        self, merchant_id: str, created_at: datetime, connection_id: str | None, meter_id: str | None, provider: str,
        model: str | None, outcome: str, provenance: str, status: str, billed: bool, http_status: int | None, usage: bytes,
        api: str, cost_nanos: int, charge_nanos: int, provider_key_type: str, meter_version: int | None,
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:  # fmt: skip
        """The key (bucket by its number) and the measures of a row; the same as the view `usage_fact` says."""
        is_error = status == "error"
        if model is None or (is_error and not billed and http_status in (400, 404)):
            model = ""  # a name that the provider did not know makes no row: callers could make up any number of them
        key = (
            merchant_id, (created_at - _EPOCH) // BUCKET, connection_id or "", meter_id or "", provider[:PROVIDER_CHARS_MAX],
            model[:MODEL_CHARS_MAX], outcome, provenance,
        )  # fmt: skip
        cost = min(max(cost_nanos, 0), _COST_NANOS_MAX)
        own_cost = 0 if provider_key_type == "unmanaged" else cost
        by_cost = meter_version is None or self._is_percentage.get(meter_version, True)
        passed_on = by_cost and charge_nanos > 0 and provider_key_type != "unmanaged"
        fee = max(0, charge_nanos - cost) if passed_on else charge_nanos
        borne = 0 if passed_on else own_cost
        payers = (charge_nanos, borne, charge_nanos - own_cost) if connection_id is not None else (0, borne + charge_nanos, 0)
        return key, (1, int(is_error), *_quantities(usage, api), cost, charge_nanos, fee, *payers)


def _reported(counted: tuple[tuple[Any, ...], Sequence[int]]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """The key and the measures of reports that were added up; the same as `_fact` says of each."""
    (merchant_id, bucket, connection_id, meter_id, provider, model), (count, heard, made, charge) = counted
    key = (
        merchant_id, bucket, connection_id, meter_id, provider[:PROVIDER_CHARS_MAX], model[:MODEL_CHARS_MAX], _COMPLETED, _REPORTED,
    )  # fmt: skip
    return key, (count, 0, heard, made, 0, 0, 0, 0, 0, charge, charge, charge, 0, charge)


def _quantities(usage: bytes, api: str) -> tuple[int, int, int, int, int, int]:
    """Tokens, characters and microseconds, in and out."""
    units = _units(usage)
    tokens_and_characters = (
        int(_count(units, "input_tokens")), int(_count(units, "output_tokens")),
        int(_count(units, "input_characters")), int(_count(units, "output_characters")),
    )  # fmt: skip
    if b"seconds" not in usage:
        return (*tokens_and_characters, 0, 0)
    heard, made = _count(units, "input_seconds"), _count(units, "output_seconds")
    if not heard and not made:
        # Providers report the length of one recording: heard by a transcription, made by a speech call.
        length = _count(units, "audio_seconds")
        heard, made = (0, length) if api == "speech" else (length, 0)
    return (*tokens_and_characters, _micros(heard), _micros(made))


def _units(usage: bytes) -> Mapping[str, Any]:
    """The usage object; what has a point in it with Decimals."""
    found: Any = None
    try:
        found = json.loads(usage, parse_float=Decimal, parse_int=Decimal) if b"." in usage else orjson.loads(usage)
    except ValueError:
        found = json.loads(usage, parse_float=Decimal, parse_int=Decimal, strict=False)
    return found if isinstance(found, dict) else {}


def _count(units: Mapping[str, Any], name: str) -> int | Decimal:
    value = units.get(name, 0)
    if type(value) is int and 0 <= value <= _UNITS_MAX:
        return value
    if isinstance(value, bool) or not isinstance(value, int | Decimal | float):
        return 0
    return min(max(Decimal(value), Decimal(0)), Decimal(_UNITS_MAX))


def _micros(seconds: int | Decimal) -> int:
    return int((Decimal(seconds) * 1_000_000).to_integral_value(ROUND_HALF_UP))


async def rebuild(db: Any) -> int:
    """Make the rollups anew from the requests in one transaction, flushes waiting meanwhile; how many requests they count."""
    async with db.transaction():
        await db.execute("SELECT rebuild_usage()", timeout=_REBUILD_TIMEOUT_S)
        return int(await db.fetchval("SELECT coalesce(sum(requests), 0)::bigint FROM usage_by_meter", timeout=_REBUILD_TIMEOUT_S))


async def differences(db: Any) -> list[dict[str, Any]]:
    """Where rollups are not the sums of their requests, as one instant sees both; the first 100 by table, merchant and day.

    Each: table, merchant_id, day, expected and found, which are {requests, charge_nanos, cost_nanos}.
    """
    names = ("requests", "charge_nanos", "cost_nanos")
    sums = ", ".join(f"sum({name}) AS {name}" for name in names)
    facts = f"jsonb_build_object({', '.join(f'''{name!r}, %s.{name}''' for name in names)})"
    tables = " UNION ALL ".join(
        f"SELECT '{table}' AS rollup, merchant_id, date_bin('1 day', bucket, 'epoch'::timestamptz) AS day, {sums}"
        f" FROM {table} GROUP BY 2, 3"
        for table in ROLLUPS
    )
    known = " UNION ALL ".join(f"SELECT '{table}' AS rollup, f.* FROM f" for table in ROLLUPS)
    rows = await db.fetch(
        f"""WITH f AS MATERIALIZED (SELECT merchant_id, date_bin('1 day', created_at, 'epoch'::timestamptz) AS day, {sums}
          FROM usage_fact GROUP BY 1, 2)
        SELECT rollup, merchant_id, day, {facts.replace("%s", "k")} AS expected, {facts.replace("%s", "t")} AS found
        FROM ({known}) k FULL JOIN ({tables}) t USING (rollup, merchant_id, day)
        WHERE (k.requests, k.charge_nanos, k.cost_nanos) IS DISTINCT FROM (t.requests, t.charge_nanos, t.cost_nanos)
        ORDER BY 1, 2, 3 LIMIT 100""",
        timeout=_REBUILD_TIMEOUT_S,
    )
    return [dict(row) for row in rows]
