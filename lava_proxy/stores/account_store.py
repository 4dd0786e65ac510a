"""Accounts as people read them: pages of a wallet's ledger, what was given back of charges, and who adjusted an account and why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lava_proxy.stores.database import Database


class AccountStore(Database):
    """Raises StoreError when Postgres cannot answer."""

    async def ledger(self, wallet_id: str, *, before: int | None, limit: int) -> list[dict[str, Any]]:
        """A wallet's committed entries, newest first, from below the sequence `before`; `reason` is that of its order."""
        return await self._rows(
            """SELECT e.wseq, e.kind, e.request_id, e.amount_nanos, e.balance_nanos, e.debt_nanos, e.flags, e.at, c.reason
            FROM ledger_entry e LEFT JOIN credit c ON c.credit_id = e.request_id AND e.kind IN ('credit', 'renew', 'adjust')
            WHERE e.wallet_id = $1 AND ($2::bigint IS NULL OR e.wseq < $2) ORDER BY e.wseq DESC LIMIT $3""",
            wallet_id, before, limit,
        )  # fmt: skip

    async def refunded_cents(self, charge_ids: Sequence[str]) -> dict[str, int]:
        """Charge -> cents that went back of it by refunds and disputes, of those where any did."""
        rows = await self._rows(
            """SELECT charge_id, sum(clawed_cents)::bigint AS cents FROM refund WHERE charge_id = ANY($1::text[])
            GROUP BY charge_id HAVING sum(clawed_cents) > 0""",
            list(charge_ids),
        )
        return {row["charge_id"]: row["cents"] for row in rows}

    async def line(self, wallet_id: str) -> tuple[int, str]:
        """How far below zero a wallet's calls may go, in nanos, and why its card cannot be charged ('' where it can)."""
        row = await self._row("SELECT overdraft_nanos, limited_reason FROM overage_line WHERE wallet_id = $1", wallet_id)
        return (0, "") if row is None else (row["overdraft_nanos"], row["limited_reason"])

    async def note_adjustment(
        self,
        db: Any,
        adjust_id: str,
        *,
        merchant_id: str,
        wallet_id: str,
        amount_nanos: int,
        reason: str,
        made_by: str,
        at: datetime,
    ) -> bool:
        """Keep who changed an account and why, with the order of the same id; False when that id had been kept before."""
        done = await self._changed(
            "INSERT INTO adjustment VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (adjust_id) DO NOTHING",
            adjust_id, merchant_id, wallet_id, amount_nanos, reason, made_by, at, db=db,
        )  # fmt: skip
        return bool(done)
