"""Wallets that may be charged beyond their credit: their lines, and the notes that they are to be looked at.

Notes are made by triggers (a policy, plan, card or hold-off changed; migration 0014), by the flusher (`note_low`) and after refused
calls. They are only appended, so nobody waits here; the worker takes, looks and deletes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lava_proxy.domain.overage import LimitedReason, Line
from lava_proxy.domain.plans import Bundle, Overage, parse_overage
from lava_proxy.domain.webhooks import CUSTOMER_LIMITED
from lava_proxy.stores.charge_store import OPEN
from lava_proxy.stores.database import Database
from lava_proxy.stores.outbox import OutboxEntry
from lava_proxy.stores.webhook_events import add_event

_OPEN = "(" + ", ".join(f"'{state}'" for state in sorted(OPEN)) + ")"
_FACTS = f"""SELECT c.wallet_id, c.connection_id, c.merchant_id, c.status,
  c.overage AS own, p.overage AS of_plan, m.overage AS of_merchant,
  s.cycle_end_at, b.credit_bundle_id, b.plan_id, b.name, b.cost_nanos, b.credit_nanos, b.created_at,
  EXISTS (SELECT 1 FROM wallet_person wp JOIN payment_method pm ON pm.person_id = wp.person_id AND pm.processor = $2
    AND pm.is_default AND pm.detached_at IS NULL WHERE wp.wallet_id = c.wallet_id) AS has_card,
  h.next_try_at, coalesce(h.suspended, false) AS suspended,
  o.state AS open_state, o.purpose AS open_purpose,
  l.policy, l.debt_nanos_min, l.balance_nanos_max, l.overdraft_nanos, l.limited_reason
FROM connection c JOIN merchant m USING (merchant_id)
  LEFT JOIN subscription s ON s.connection_id = c.connection_id AND s.status <> 'cancelled'
  LEFT JOIN plan p ON p.plan_id = s.plan_id
  LEFT JOIN credit_bundle b ON b.credit_bundle_id = s.auto_top_up_bundle_id AND b.deleted_at IS NULL
  LEFT JOIN charge_hold_off h ON h.wallet_id = c.wallet_id
  LEFT JOIN charge o ON o.wallet_id = c.wallet_id AND o.state IN {_OPEN}
  LEFT JOIN overage_line l ON l.wallet_id = c.wallet_id
WHERE c.wallet_id = ANY($1::text[])"""
_NOTE_LOW = """INSERT INTO overage_note (wallet_id, is_low)
SELECT l.wallet_id, true FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS n (wallet_id, debt_nanos, balance_nanos)
  JOIN overage_line l USING (wallet_id)
WHERE (n.debt_nanos >= l.debt_nanos_min OR n.balance_nanos <= l.balance_nanos_max)
  AND NOT EXISTS (SELECT 1 FROM overage_note o WHERE o.wallet_id = l.wallet_id AND o.is_low AND NOT o.is_taken)"""
_DUE = """SELECT wallet_id FROM (
  SELECT wallet_id, not_before, note_id FROM overage_note WHERE not_before <= $1 ORDER BY not_before, note_id LIMIT $2) AS due
GROUP BY wallet_id ORDER BY min(not_before), min(note_id)"""
_CARD_PURPOSES = frozenset({"overage", "auto_top_up", "subscription_renewal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Why a wallet is looked at: all its notes in one."""

    wallet_id: str
    note_ids: tuple[int, ...]
    is_low: bool = False
    is_cycle_end: bool = False
    needed_nanos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What Postgres knows of a wallet that may be charged."""

    wallet_id: str
    connection_id: str
    merchant_id: str
    status: str
    own: Overage | None
    of_plan: Overage | None
    of_merchant: Overage | None
    cycle_end_at: datetime | None
    bundle: Bundle | None
    limited: LimitedReason
    held_off_until: datetime | None
    line: Line | None  # as it stands


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCharge:
    number: int  # of charges of the purpose before it, canceled ones left out: a part of its key
    has_open: bool
    has_orders: bool  # of money that are not in the ledger yet


class OverageStore(Database):
    """Raises StoreError when Postgres cannot answer."""

    async def take_notes(self, now: datetime, limit: int) -> list[Note]:
        """Wallets that are due, longest waiting first, with all their notes. What crosses a line from here on is noted anew."""
        due = [row["wallet_id"] for row in await self._rows(_DUE, now, limit)]
        if not due:
            return []
        rows = await self._rows(
            """UPDATE overage_note SET is_taken = true WHERE wallet_id = ANY($1::text[])
            RETURNING note_id, wallet_id, is_low, is_cycle_end, needed_nanos""",
            due,
        )
        return [_merged(wallet_id, [row for row in rows if row["wallet_id"] == wallet_id]) for wallet_id in due]

    async def drop(self, note: Note, *, wait_until: datetime | None = None) -> None:
        """The wallet has been looked at; with `wait_until` it is looked at again then, for the same reasons."""
        async with self._transaction() as db:
            await self._execute("DELETE FROM overage_note WHERE note_id = ANY($1::bigint[])", list(note.note_ids), db=db)
            if wait_until is not None:
                await self._execute(
                    "INSERT INTO overage_note (wallet_id, is_low, is_cycle_end, needed_nanos, not_before)"
                    " VALUES ($1, $2, $3, $4, $5)",
                    note.wallet_id, note.is_low, note.is_cycle_end, note.needed_nanos, wait_until, db=db,
                )  # fmt: skip

    async def note_refused(self, needed: Mapping[str, int]) -> None:
        """Calls of these wallets were refused: wallet -> what the smallest of them could have cost, in nanos."""
        await self._execute(
            """INSERT INTO overage_note (wallet_id, needed_nanos)
            SELECT wallet_id, needed FROM unnest($1::text[], $2::bigint[]) AS n (wallet_id, needed)
            JOIN overage_line l USING (wallet_id) WHERE l.policy = 'auto_top_up'""",
            list(needed), list(needed.values()),
        )  # fmt: skip

    async def note_month(self, month: str) -> int:
        """At a month's beginning, once: the debts of wallets that have no plan's cycle are due; how many there are."""
        if await self._row("SELECT 1 AS known FROM overage_month WHERE month >= $1", month) is not None:
            return 0
        async with self._transaction() as db:
            if not await self._changed("INSERT INTO overage_month VALUES ($1) ON CONFLICT DO NOTHING", month, db=db):
                return 0
            await self._execute("DELETE FROM overage_month WHERE month < $1", month, db=db)
            return await self._changed(
                """INSERT INTO overage_note (wallet_id, is_cycle_end)
                SELECT l.wallet_id, true FROM overage_line l JOIN wallet_state w USING (wallet_id)
                  JOIN connection c USING (wallet_id)
                WHERE w.debt_nanos > 0 AND l.policy = 'charge' AND NOT EXISTS (
                  SELECT 1 FROM subscription s WHERE s.connection_id = c.connection_id AND s.status <> 'cancelled')""",
                db=db,
            )

    async def facts(self, wallet_ids: Sequence[str], processor: str) -> dict[str, Facts]:
        """Wallet -> what is known of it; wallets of no connection are left out."""
        rows = await self._rows(_FACTS, list(wallet_ids), processor)
        return {row["wallet_id"]: _facts(row) for row in rows}

    async def next_charge(self, wallet_id: str, purpose: str) -> NextCharge:
        """What the next automatic charge of a wallet depends on, all of one moment."""
        row = await self._row(
            f"""SELECT
              (SELECT count(*) FROM charge WHERE wallet_id = $1 AND purpose = $2 AND state <> 'canceled') AS number,
              EXISTS (SELECT 1 FROM charge WHERE wallet_id = $1 AND state IN {_OPEN}) AS has_open,
              EXISTS (SELECT 1 FROM credit WHERE wallet_id = $1 AND applied_at IS NULL) AS has_orders""",
            wallet_id, purpose,
        )  # fmt: skip
        assert row is not None
        return NextCharge(**row)

    async def set_line(self, facts: Facts, line: Line | None, now: datetime) -> None:
        """Keep a wallet's new line and show it in the connection's status; becoming limited is told once."""
        async with self._transaction() as db:
            if line is None:
                await self._execute("DELETE FROM overage_line WHERE wallet_id = $1", facts.wallet_id, db=db)
                await self._show(db, facts, "limited", "ok")
                return
            await self._execute(
                """INSERT INTO overage_line VALUES ($1, $2, $3, $4, $5, $6)
                ON CONFLICT (wallet_id) DO UPDATE SET policy = EXCLUDED.policy, debt_nanos_min = EXCLUDED.debt_nanos_min,
                  balance_nanos_max = EXCLUDED.balance_nanos_max, overdraft_nanos = EXCLUDED.overdraft_nanos,
                  limited_reason = EXCLUDED.limited_reason""",
                facts.wallet_id, line.policy, line.debt_nanos_min, line.balance_nanos_max, line.overdraft_nanos,
                line.limited_reason, db=db,
            )  # fmt: skip
            if not line.limited_reason:
                await self._show(db, facts, "limited", "ok")
            elif await self._show(db, facts, "ok", "limited"):
                await add_event(
                    db, merchant_id=facts.merchant_id, event_type=CUSTOMER_LIMITED, at=now, connection_id=facts.connection_id,
                    facts={"limited_reason": line.limited_reason},
                )  # fmt: skip

    async def _show(self, db: Any, facts: Facts, old: str, new: str) -> bool:
        return bool(
            await self._changed(
                "UPDATE connection SET status = $3 WHERE connection_id = $1 AND status = $2", facts.connection_id, old, new, db=db
            )
        )


async def note_low(db: Any, entries: Sequence[OutboxEntry]) -> None:
    """Note, in the flusher's transaction, the wallets that these debits have brought across their line."""
    low: dict[str, OutboxEntry] = {}
    for entry in entries:
        is_down = entry.debt_nanos > 0 or entry.balance_nanos <= 0
        if entry.kind == "s" and entry.amount_nanos and is_down and _is_newer(entry, low.get(entry.wallet_id)):
            low[entry.wallet_id] = entry
    if low:
        found = list(low.values())
        await db.execute(_NOTE_LOW, list(low), [entry.debt_nanos for entry in found], [entry.balance_nanos for entry in found])


def _is_newer(entry: OutboxEntry, known: OutboxEntry | None) -> bool:
    return known is None or known.wseq < entry.wseq


def _merged(wallet_id: str, rows: Sequence[dict[str, Any]]) -> Note:
    needed = [row["needed_nanos"] for row in rows if row["needed_nanos"]]
    return Note(
        wallet_id=wallet_id,
        note_ids=tuple(row["note_id"] for row in rows),
        is_low=any(row["is_low"] for row in rows),
        is_cycle_end=any(row["is_cycle_end"] for row in rows),
        needed_nanos=min(needed, default=0),
    )


def _facts(row: dict[str, Any]) -> Facts:
    bundle = None
    if row["credit_bundle_id"] is not None:
        bundle = Bundle(**{name: row[name] for name in Bundle.__dataclass_fields__})
    line = None
    if row["policy"] is not None:
        line = Line(**{name: row[name] for name in Line.__dataclass_fields__})
    return Facts(
        wallet_id=row["wallet_id"], connection_id=row["connection_id"], merchant_id=row["merchant_id"], status=row["status"],
        own=_overage(row["own"]), of_plan=_overage(row["of_plan"]), of_merchant=_overage(row["of_merchant"]),
        cycle_end_at=row["cycle_end_at"], bundle=bundle, limited=_limited(row), held_off_until=row["next_try_at"],
        line=line,
    )  # fmt: skip


def _limited(row: dict[str, Any]) -> LimitedReason:
    if not row["has_card"]:
        return "no_card"
    if row["suspended"]:
        return "suspended"
    is_waiting = row["open_state"] == "requires_action" and row["open_purpose"] in _CARD_PURPOSES
    return "requires_action" if is_waiting else ""


def _overage(document: dict[str, Any] | None) -> Overage | None:
    return None if document is None else parse_overage(document)
