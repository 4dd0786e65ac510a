"""The ledger in Postgres: outbox batches in, exactly once by watermark; requests and histories out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from struct import error as StructError
from typing import Any

import asyncpg
import structlog

from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.ledger import KINDS, Entry
from lava_proxy.stores.balance_store import PARTITIONS, lot_key
from lava_proxy.stores.ids import at_ms, created_at
from lava_proxy.stores.outbox import OutboxEntry
from lava_proxy.stores.overage_store import note_low
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.report_copy import ENTRY_COLUMNS, LEG_COLUMNS, REQUEST_COLUMNS, ReportCopy
from lava_proxy.stores.report_rows import is_report_row
from lava_proxy.stores.row_repair import repaired
from lava_proxy.stores.usage_rollup import UsageRollup, differences
from lava_proxy.stores.webhook_events import note_balances

Marks = dict[int, tuple[int, int]]

_REQUEST_COLUMNS = (
    "request_id", "merchant_id", "wallet_id", "connection_id", "meter_id", "meter_version", "status", "outcome", "provenance",
    "provider", "provider_key_type", "model", "endpoint", "api", "streamed", "response_id", "http_status", "billed", "usage",
    "cost_nanos", "charge_nanos", "breakdown", "price_version", "priced_at", "service_tier", "tier_field", "tier_units",
    "position", "flags", "wseq", "metadata", "timings", "created_at", "completed_at", "spend_key_id",
    "request_key", "fingerprint",
)  # fmt: skip
_AGAINST = {"s": "revenue", "c": "funding", "n": "plan", "a": "adjustment", "x": "expired"}
# What was charged for the pairs of (merchant id, request key) asked for. LIMIT 1 keeps this a look-up by index for each: as plain
# joins, and before the tables' first ANALYZE, it was planned as a join of whole tables, and every report took longer than the last.
REPORTED = """SELECT r.*, asked.request_key AS asked FROM unnest($1::text[], $2::text[]) AS asked (merchant_id, request_key)
  CROSS JOIN LATERAL (SELECT request_id FROM request_once
    WHERE merchant_id = asked.merchant_id AND request_key = asked.request_key LIMIT 1) o
  CROSS JOIN LATERAL (SELECT * FROM request WHERE request_id = o.request_id AND merchant_id = asked.merchant_id LIMIT 1) r"""
_RECOVERY_LOCK = 7_229_003
_REPORT_KEY_CHARS_MAX = 255  # of a report's own id; what is longer in `request_once` is no caller's choice
# What a row that Postgres cannot keep raises: refused by the server, or by the client's encoders.
_UNKEEPABLE = (asyncpg.DataError, StructError, ValueError, TypeError, OverflowError)
_log = structlog.get_logger("ledger")


class Fenced(StoreError):
    """Another flusher has moved the marks: read again from the new ones."""


class LedgerStore:
    """Writes only through `flush`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._usage = UsageRollup(_REQUEST_COLUMNS)
        self._reports = ReportCopy()

    async def marks(self) -> Marks:
        """Partition -> (epoch, pseq) of the last committed outbox entry."""
        rows = await self._fetch("SELECT part, epoch, pseq FROM outbox_mark")
        found = {row["part"]: (row["epoch"], row["pseq"]) for row in rows}
        return {part: found.get(part, (0, 0)) for part in range(PARTITIONS)}

    async def flush(self, entries: Sequence[OutboxEntry], marks: Mapping[int, tuple[int, int]]) -> Marks:
        """Commit entries read after `marks`, and the new marks with them; returns those of the partitions touched.

        Raises Fenced when somebody else has moved a mark, StoreError when Postgres cannot commit; then nothing was written.
        """
        after: Marks = {}
        for entry in entries:
            after[entry.part] = max(after.get(entry.part, (0, 0)), (entry.epoch, entry.pseq))
        try:
            try:
                await self._commit(entries, marks, after)
            except _UNKEEPABLE as error:
                _log.error(
                    "A batch holds a row that Postgres refuses; it is repaired", action="rows_repaired", error=str(error)[:300]
                )
                await self._commit([entry.with_row(repaired(entry.row)) for entry in entries], marks, after)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"Postgres cannot commit: {type(error).__name__}: {error}", code="database_unavailable") from error
        return after

    async def _commit(self, entries: Sequence[OutboxEntry], marks: Mapping[int, tuple[int, int]], after: Marks) -> None:
        async with self._pool.acquire(timeout=10) as db:
            async with db.transaction():
                await db.execute(
                    "INSERT INTO outbox_mark SELECT part, 0, 0 FROM unnest($1::smallint[]) AS part ON CONFLICT DO NOTHING",
                    sorted(after),
                )
                locked = await db.fetch(
                    "SELECT part, epoch, pseq FROM outbox_mark WHERE part = ANY($1::smallint[]) ORDER BY part FOR UPDATE",
                    sorted(after),
                )
                if any((row["epoch"], row["pseq"]) != marks.get(row["part"], (0, 0)) for row in locked):
                    raise Fenced("another flusher has moved the outbox marks")
                await self._write(db, entries)
                await db.executemany(
                    "UPDATE outbox_mark SET epoch = $2, pseq = $3 WHERE part = $1",
                    [(p, *mark) for p, mark in sorted(after.items())],
                )

    @asynccontextmanager
    async def recovery_lock(self) -> AsyncIterator[None]:
        """Held by whoever rebuilds Redis, one at a time over all processes; it ends with its connection. Waits."""
        try:
            db = await self._pool.acquire(timeout=10)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error
        try:
            await db.execute("SELECT pg_advisory_lock($1)", _RECOVERY_LOCK, timeout=3600)
            yield
        finally:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                await db.close(timeout=10)  # ends the lock, whatever became of asking for it
            await self._pool.release(db)

    async def _write(self, db: Any, entries: Sequence[OutboxEntry]) -> None:
        settles = [entry for entry in entries if entry.kind == "s"]
        calls = [entry for entry in entries if not is_report_row(entry.raw)]
        reports = [entry for entry in settles if is_report_row(entry.raw)]
        fresh = await _claimed(db, [self._once(entry) for entry in settles])
        ended = [entry for entry in calls if entry.kind == "s"]
        fresh |= await self._claimed_beside(db, [entry for entry in ended if entry.request_id not in fresh])
        seen = await self._seen_before(db, [entry for entry in ended if entry.request_id in fresh and "once_key" in entry.row])
        once: set[str] = set()
        rows, doubles = [], []
        firsts: list[bool] = []  # which of the reports
        for entry in settles:
            is_first = entry.request_id in fresh and entry.request_id not in once
            if not is_first or entry.request_id in seen:
                doubles.append(entry)
            if is_first:
                once.add(entry.request_id)
            if is_report_row(entry.raw):
                firsts.append(is_first)
            elif is_first:
                rows.append(_request(_uncharged(entry) if entry.request_id in seen else entry))
        copied = self._reports.copied(reports, firsts)
        if rows:
            await db.copy_records_to_table("request", records=rows, columns=_REQUEST_COLUMNS)
        if calls:
            await db.copy_records_to_table("ledger_entry", records=[_ledger(entry) for entry in calls])
            again = {(entry.wallet_id, entry.wseq) for entry in doubles}
            legs = [leg for entry in calls for leg in _legs(entry, is_double=(entry.wallet_id, entry.wseq) in again)]
            await db.copy_records_to_table("ledger_leg", records=legs)
        if reports:
            if copied.requests:
                await _copy(db, "request", REQUEST_COLUMNS, copied.requests)
            await _copy(db, "ledger_entry", ENTRY_COLUMNS, copied.entries)
            await _copy(db, "ledger_leg", LEG_COLUMNS, copied.legs)
        await self._usage.add(db, rows + [_request(entry) for entry in copied.other], copied.facts)
        await self._write_states(db, entries)
        orders = [entry.request_id for entry in entries if entry.kind in "cna"]
        if orders:
            await db.execute(
                "UPDATE credit SET applied_at = $2 WHERE credit_id = ANY($1::text[])", orders, at_ms(entries[-1].at_ms)
            )
        for entry in doubles:
            await self._reverse(db, entry)
        await note_balances(db, entries)
        await note_low(db, entries)

    def _once(self, entry: OutboxEntry) -> tuple[str, str, str]:
        """Merchant id, the name that is charged once, and the request's id."""
        if is_report_row(entry.raw):
            return (*self._reports.once(entry.raw), entry.request_id)
        return entry.row["merchant_id"], entry.row.get("request_key") or entry.request_id, entry.request_id

    async def _claimed_beside(self, db: Any, entries: Sequence[OutboxEntry]) -> set[str]:
        """Calls whose id a report has: it was sent while the call was running, by who saw the id. Both have happened, both count.

        Such a call is charged once too, under a name that no report can have.
        """
        calls = [entry for entry in entries if not entry.row.get("request_key")]
        if not calls:
            return set()
        taken = await db.fetch(
            """SELECT a.request_id FROM unnest($1::text[], $2::text[]) AS a (merchant_id, request_id)
            JOIN request_once o ON o.merchant_id = a.merchant_id AND o.request_key = a.request_id
            WHERE o.request_id <> a.request_id""",
            [entry.row["merchant_id"] for entry in calls],
            [entry.request_id for entry in calls],
        )
        ids = {row["request_id"] for row in taken}
        names = [(e.row["merchant_id"], _own_name(e.request_id), e.request_id) for e in calls if e.request_id in ids]
        return await _claimed(db, names)

    async def _seen_before(self, db: Any, entries: Sequence[OutboxEntry]) -> set[str]:
        """Of calls that were charged for something that is charged once: those for which another call was."""
        first = await _claimed(db, [(e.row["merchant_id"], _own_name(e.row["once_key"]), e.request_id) for e in entries])
        return {entry.request_id for entry in entries} - first

    async def _write_states(self, db: Any, entries: Sequence[OutboxEntry]) -> None:
        """Each wallet's newest entry as the wallet's state; an older one never overwrites a newer."""
        newest: dict[str, OutboxEntry] = {}
        for entry in entries:
            known = newest.get(entry.wallet_id)
            if entry.plan_total_nanos is not None and (known is None or entry.wseq > known.wseq):
                newest[entry.wallet_id] = entry
        found = [newest[wallet_id] for wallet_id in sorted(newest)]
        await db.execute(
            """INSERT INTO wallet_state SELECT * FROM
              unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::timestamptz[])
            ON CONFLICT (wallet_id) DO UPDATE SET wseq = EXCLUDED.wseq, balance_nanos = EXCLUDED.balance_nanos,
              plan_nanos = EXCLUDED.plan_nanos, funds_nanos = EXCLUDED.funds_nanos, debt_nanos = EXCLUDED.debt_nanos,
              at = EXCLUDED.at
            WHERE wallet_state.wseq < EXCLUDED.wseq""",
            [e.wallet_id for e in found], [e.wseq for e in found], [e.balance_nanos for e in found],
            [e.plan_total_nanos for e in found], [e.balance_nanos - (e.plan_total_nanos or 0) for e in found],
            [e.debt_nanos for e in found], [at_ms(e.at_ms) for e in found],
        )  # fmt: skip

    async def _reverse(self, db: Any, entry: OutboxEntry) -> None:
        """A debit of an id that was debited before (Redis had forgotten it): note it, and give the money back."""
        at = at_ms(entry.at_ms)
        await db.execute(
            "INSERT INTO anomaly (kind, wallet_id, request_id, facts, at) VALUES ('second_debit', $1, $2, $3, $4)",
            entry.wallet_id, entry.request_id, {"wseq": entry.wseq, "amount_nanos": entry.amount_nanos}, at,
        )  # fmt: skip
        tier_field = entry.row.get("tier_field") or ""
        tier_units = (entry.row.get("tier_units") or 0) if tier_field else 0
        if entry.amount_nanos < 0 or tier_units:
            credit_id = f"rev_{entry.wallet_id}_{entry.wseq}"
            await db.execute(
                "INSERT INTO credit (credit_id, wallet_id, amount_nanos, lot_key, reason, created_at, tier_field, tier_units)"
                " VALUES ($1, $2, $3, $4, 'reversal', $5, $6, $7) ON CONFLICT DO NOTHING",
                credit_id, entry.wallet_id, -entry.amount_nanos, lot_key("funds", credit_id, entry.at_ms), at, tier_field,
                tier_units,
            )  # fmt: skip

    async def history(self, wallet_id: str) -> list[Entry]:
        """A wallet's committed entries in wseq order."""
        rows = await self._fetch(
            """SELECT wseq, kind, request_id, amount_nanos, balance_nanos, plan_nanos, funds_nanos, debt_nanos, flags, lot_key,
              pinned_nanos, opened_wseq
            FROM ledger_entry WHERE wallet_id = $1 ORDER BY wseq""",
            wallet_id,
        )
        return [Entry(**row) for row in rows]

    async def last_balances(self, part: int) -> dict[str, tuple[int, int]]:
        """Wallet -> (wseq, balance) of its newest committed entry, of one partition's wallets."""
        rows = await self._fetch(
            """SELECT w.wallet_id, e.wseq, e.balance_nanos FROM wallet w CROSS JOIN LATERAL (
              SELECT wseq, balance_nanos FROM ledger_entry WHERE wallet_id = w.wallet_id ORDER BY wseq DESC LIMIT 1) e
            WHERE w.part = $1""",
            part,
        )
        return {row["wallet_id"]: (row["wseq"], row["balance_nanos"]) for row in rows}

    async def counters(self, wallet_id: str, months_from: str) -> dict[str, int]:
        """A wallet's tier counters as the requests tell them, those of cycles that are over left out.

        Over are calendar months before `months_from` ("2026-10") and the cycles that a renewal has dropped.
        """
        dropped = await self._fetch("SELECT drop_cycles FROM credit WHERE wallet_id = $1 AND drop_cycles <> ''", wallet_id)
        over = [cycle for row in dropped for cycle in row["drop_cycles"].split(",")]
        # A debit whose giving back is still to be applied is among them: that will take its units away.
        rows = await self._fetch(
            r"""SELECT tier_field, sum(tier_units)::bigint AS units FROM (
              SELECT tier_field, tier_units, substring(tier_field FROM '[^:]*$') AS cycle FROM request
              WHERE wallet_id = $1 AND tier_units > 0 AND tier_field <> ''
              UNION ALL SELECT tier_field, tier_units, substring(tier_field FROM '[^:]*$') FROM credit
              WHERE wallet_id = $1 AND tier_units > 0 AND applied_at IS NULL) AS used
            WHERE cycle <> ALL($2::text[]) AND (cycle !~ '^\d{4}-\d{2}$' OR cycle COLLATE "C" >= $3) GROUP BY 1""",
            wallet_id, over, months_from,
        )  # fmt: skip
        return {row["tier_field"]: row["units"] for row in rows}

    async def wallet_states(self, wallet_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Wallet -> its row of wallet_state (wseq, balance_nanos, plan_nanos, funds_nanos, debt_nanos, at), as of the last flush.

        Held amounts are included; a wallet without entries is left out.
        """
        rows = await self._fetch("SELECT * FROM wallet_state WHERE wallet_id = ANY($1::text[])", list(wallet_ids))
        return {row["wallet_id"]: row for row in rows}

    async def forget_sweeps(self, part: int) -> None:
        """Let the lots of a partition's wallets be swept again: Redis may have lost that it was done."""
        await self._fetch(
            """UPDATE credit SET swept_at = NULL WHERE swept_at IS NOT NULL
            AND wallet_id IN (SELECT wallet_id FROM wallet WHERE part = $1)""",
            part,
        )

    async def scopes(self, part: int) -> list[dict[str, Any]]:
        """The spend keys and limited connections that draw on a partition's wallets: wallet_id, scope_id, limits (JSON)."""
        return await self._fetch(
            """SELECT m.wallet_id, k.spend_key_id AS scope_id, k.limits FROM spend_key k
              JOIN merchant m USING (merchant_id) JOIN wallet w ON w.wallet_id = m.wallet_id WHERE w.part = $1
            UNION ALL SELECT c.wallet_id, c.connection_id, c.limits FROM connection c
              JOIN wallet w USING (wallet_id) WHERE w.part = $1 AND c.limits IS NOT NULL AND c.status <> 'deleted'""",
            part,
        )

    async def scope_use(self, scope_id: str, requests_since: datetime, spend_since: datetime) -> dict[str, Any]:
        """What a scope's requests add up to: all of them, those of two cycles, and the last one's time."""
        rows = await self._fetch(
            """SELECT count(*) AS total_requests, coalesce(sum(charge_nanos), 0)::bigint AS total_nanos,
              count(*) FILTER (WHERE at >= $2) AS requests,
              coalesce(sum(charge_nanos) FILTER (WHERE at >= $3), 0)::bigint AS nanos, max(at) AS last_used_at
            FROM (SELECT charge_nanos, coalesce(priced_at, created_at) AS at FROM request
              WHERE spend_key_id = $1 OR connection_id = $1) AS used""",
            scope_id, requests_since, spend_since,
        )  # fmt: skip
        return rows[0]

    async def wallet_ids(self, part: int) -> list[str]:
        return [row["wallet_id"] for row in await self._fetch("SELECT wallet_id FROM wallet WHERE part = $1 ORDER BY 1", part)]

    async def unbalanced(self) -> list[dict[str, Any]]:
        """Ledger entries whose legs do not sum to zero or that have none."""
        return await self._fetch(
            """SELECT e.wallet_id, e.wseq, coalesce(sum(l.amount_nanos), -1)::bigint AS sum FROM ledger_entry e
            LEFT JOIN ledger_leg l USING (wallet_id, wseq) GROUP BY 1, 2 HAVING coalesce(sum(l.amount_nanos), -1) <> 0 LIMIT 100"""
        )

    async def settled_twice(self) -> list[dict[str, Any]]:
        """Ids with more than one debit that no reversal answers."""
        return await self._fetch(
            """SELECT e.request_id, count(*) AS times FROM ledger_entry e WHERE e.kind = 'settle' AND NOT EXISTS (
              SELECT 1 FROM anomaly a WHERE a.request_id = e.request_id AND a.wallet_id = e.wallet_id)
            GROUP BY 1 HAVING count(*) > 1 LIMIT 100"""
        )

    async def settled_holds(self, wallet_ids: Sequence[str], request_ids: Sequence[str]) -> list[tuple[str, int]]:
        """(request id, wseq) of those requests that have a committed debit."""
        rows = await self._fetch(
            "SELECT request_id, wseq FROM request WHERE request_id = ANY($2::text[]) AND wallet_id = ANY($1::text[])",
            list(wallet_ids), list(request_ids),
        )  # fmt: skip
        return [(row["request_id"], row["wseq"]) for row in rows]

    async def credited_twice(self) -> list[dict[str, Any]]:
        """Credits, renewals and adjustments that were applied more than once: request_id, kind, times."""
        return await self._fetch(
            """SELECT request_id, min(kind) AS kind, count(*) AS times FROM ledger_entry
            WHERE kind IN ('credit', 'renew', 'adjust') GROUP BY 1 HAVING count(*) > 1 LIMIT 100"""
        )

    async def states_astray(self) -> list[dict[str, Any]]:
        """Wallets whose row of wallet_state is not their newest entry: wallet_id, expected and found (wseq, balance, debt)."""
        return await self._fetch(
            """SELECT w.wallet_id, concat_ws(' ', e.wseq, e.balance_nanos, e.debt_nanos) AS expected,
              concat_ws(' ', s.wseq, s.balance_nanos, s.debt_nanos) AS found
            FROM wallet w CROSS JOIN LATERAL (SELECT wseq, balance_nanos, debt_nanos FROM ledger_entry
              WHERE wallet_id = w.wallet_id ORDER BY wseq DESC LIMIT 1) e
            LEFT JOIN wallet_state s ON s.wallet_id = w.wallet_id
            WHERE (s.wseq, s.balance_nanos, s.plan_nanos + s.funds_nanos, s.debt_nanos)
              IS DISTINCT FROM (e.wseq, e.balance_nanos, e.balance_nanos, e.debt_nanos) LIMIT 100"""
        )

    async def doubles_kept(self) -> list[dict[str, Any]]:
        """Second debits that no credit gives back."""
        return await self._fetch(
            """SELECT a.request_id, a.facts FROM anomaly a WHERE a.kind = 'second_debit' AND (a.facts->>'amount_nanos')::bigint < 0
            AND NOT EXISTS (SELECT 1 FROM credit c WHERE c.credit_id = 'rev_' || a.wallet_id || '_' || (a.facts->>'wseq'))
            LIMIT 100"""
        )

    async def rows_without_entry(self) -> list[dict[str, Any]]:
        """Requests that differ from their ledger entry, or have none; and entries without a request."""
        return await self._fetch(
            """SELECT r.request_id, r.charge_nanos, -e.amount_nanos AS debited FROM request r
            FULL JOIN (SELECT * FROM ledger_entry WHERE kind = 'settle') e ON e.wallet_id = r.wallet_id AND e.wseq = r.wseq
            WHERE (e.wseq IS NULL OR r.wseq IS NULL OR r.charge_nanos <> -e.amount_nanos)
            AND NOT EXISTS (SELECT 1 FROM anomaly a WHERE a.request_id = e.request_id) LIMIT 100"""
        )

    async def usage_differences(self) -> list[dict[str, Any]]:
        """Where rollups are not the sums of their requests: rollup, merchant_id, day, expected, found."""
        try:
            async with self._pool.acquire(timeout=10) as db:
                return await differences(db)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error

    async def rows_after(self, request_id: str, *, since: datetime | None, limit: int) -> list[dict[str, Any]]:
        """Requests in the order of their ids, from above one: what re-rating needs of each."""
        return await self._fetch(
            """SELECT request_id, meter_version, usage, provider, provider_key_type, model, service_tier, priced_at, position,
              tier_field, tier_units, billed, breakdown, price_version, charge_nanos, cost_nanos
            FROM request WHERE request_id > $1 AND ($2::timestamptz IS NULL OR created_at >= $2) ORDER BY request_id LIMIT $3""",
            request_id, since, limit,
        )  # fmt: skip

    async def count_requests(self) -> int:
        return int((await self._fetch("SELECT count(*) AS n FROM request"))[0]["n"])

    async def request(self, merchant_id: str, request_id: str) -> dict[str, Any] | None:
        """By the id that the merchant knows: ours, or a report's own; where one id is both, the one that was there first."""
        rows = await self._fetch(
            """SELECT r.* FROM request r WHERE r.merchant_id = $1 AND r.request_id IN (
              $2, (SELECT o.request_id FROM request_once o WHERE o.merchant_id = $1 AND o.request_key = $2))
            ORDER BY r.request_id LIMIT 1""",
            merchant_id, request_id,
        )  # fmt: skip
        return rows[0] if rows else None

    async def reported(self, merchant_ids: Sequence[str], request_keys: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """(merchant id, request key) -> the stored request, of those asked for (in parallel lists) that were charged before."""
        rows = await self._fetch(
            REPORTED,
            list(merchant_ids),
            list(request_keys),
        )
        return {(row["merchant_id"], row.pop("asked")): row for row in rows}

    async def is_reachable(self) -> bool:
        """True when Postgres answers. Raises StoreError when it cannot."""
        return bool(await self._fetch("SELECT 1 AS one"))

    async def _fetch(self, query: str, *args: Any) -> list[dict[str, Any]]:
        try:
            return [dict(row) for row in await self._pool.fetch(query, *args)]
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error


async def _claimed(db: Any, names: Sequence[tuple[str, str, str]]) -> set[str]:
    """Of (merchant id, name, request id): the requests that are the first of their merchant under their name, for ever."""
    if not names:
        return set()
    rows = await db.fetch(
        """INSERT INTO request_once SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
        ON CONFLICT DO NOTHING RETURNING request_id""",
        *zip(*names, strict=True),
    )
    return {row["request_id"] for row in rows}


async def _copy(db: Any, table: str, columns: Sequence[str], data: bytes) -> None:
    # A view: the driver takes bytes for the name of a file.
    await db.copy_to_table(table, source=memoryview(data), columns=columns, format="binary")


def _own_name(text: str) -> str:
    """A name of ours in `request_once`, which no report can have or take."""
    return text.ljust(_REPORT_KEY_CHARS_MAX + 1, "~")


def _request(entry: OutboxEntry) -> tuple[Any, ...]:
    """The request row. JSON parts travel as text inside the outbox row, so that their digits stay as they were."""
    row = entry.row
    return (
        entry.request_id, row["merchant_id"], entry.wallet_id, row["connection_id"], row["meter_id"], row["meter_version"],
        row["status"], row["outcome"], row["provenance"], row["provider"], row["provider_key_type"], row["model"],
        row["endpoint"], row["api"], row["streamed"], row["response_id"], row["http_status"], row["billed"],
        row["usage"].encode(), row["cost_nanos"], -entry.amount_nanos, row["breakdown"].encode(), row["price_version"],
        _moment(row["priced_at_ms"]), row["service_tier"], row["tier_field"], row["tier_units"], entry.position, entry.flags,
        entry.wseq, _json(row["metadata"]), _json(row["timings"]), _created(entry), at_ms(entry.at_ms),
        row.get("spend_key_id"), row.get("request_key"), row.get("fingerprint"),
    )  # fmt: skip


def _uncharged(entry: OutboxEntry) -> OutboxEntry:
    """A call of its own that showed again what another one was charged for: its row says that it used nothing itself."""
    nothing = {
        "billed": False, "usage": "{}", "breakdown": "{}", "cost_nanos": 0, "price_version": None, "tier_units": 0,
    }  # fmt: skip
    return replace(entry.with_row({**entry.row, **nothing}), amount_nanos=0)


def as_stored(entry: OutboxEntry) -> dict[str, Any]:
    """The request of an entry that is on its way to Postgres, as it will be read from there."""
    row = dict(zip(_REQUEST_COLUMNS, _request(entry), strict=True))
    for name in ("usage", "breakdown", "metadata", "timings"):
        row[name] = None if row[name] is None else json.loads(row[name], parse_float=Decimal)
    return row


def _created(entry: OutboxEntry) -> datetime:
    try:
        return created_at(entry.request_id)
    except ValueError:
        return at_ms(entry.at_ms)


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else at_ms(milliseconds)


def _json(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _ledger(entry: OutboxEntry) -> tuple[Any, ...]:
    return (
        entry.part, entry.epoch, entry.pseq, entry.wallet_id, entry.wseq, KINDS[entry.kind], entry.request_id,
        entry.amount_nanos, entry.balance_nanos, entry.plan_nanos, entry.funds_nanos, entry.position, entry.flags,
        entry.debt_nanos, entry.row.get("lot_key"), at_ms(entry.at_ms), entry.pinned_nanos, entry.opened_wseq,
    )  # fmt: skip


def _legs(entry: OutboxEntry, *, is_double: bool) -> list[tuple[Any, ...]]:
    """Double entry: the wallet against the merchant's account for it, and the provider's cost (once) against the provider."""
    merchant = f"merchant:{entry.row['merchant_id']}"
    against = f"{merchant}:{_AGAINST[entry.kind]}"
    amounts = [(f"wallet:{entry.wallet_id}", entry.amount_nanos), (against, -entry.amount_nanos)]
    cost = entry.row.get("cost_nanos") or 0
    if cost and not is_double:
        amounts += [(f"{merchant}:provider_cost", -cost), (f"provider:{entry.row['provider']}", cost)]
    return [(entry.wallet_id, entry.wseq, account, amount, at_ms(entry.at_ms)) for account, amount in amounts]
