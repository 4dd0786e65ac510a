"""What happened to a wallet, newest first: calls, credits, renewals, adjustments, each with why and the balance after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lava_proxy.stores.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """One committed movement. `subject_id`: the request or the order it comes from; `reason`: what an order says of itself."""

    wseq: int
    kind: str
    subject_id: str
    amount_nanos: int
    balance_nanos: int
    debt_nanos: int
    reason: str | None
    at: datetime


class WalletHistory(Database):
    """Reads. Raises StoreError when Postgres cannot answer."""

    async def lines(self, wallet_id: str, *, before: int | None = None, limit: int) -> list[HistoryLine]:
        """From below the number `before`."""
        rows = await self._rows(
            """SELECT e.wseq, e.kind, e.request_id AS subject_id, e.amount_nanos, e.balance_nanos, e.debt_nanos, c.reason, e.at
            FROM ledger_entry e LEFT JOIN credit c ON c.credit_id = e.request_id AND e.kind <> 'settle'
            WHERE e.wallet_id = $1 AND ($2::bigint IS NULL OR e.wseq < $2) ORDER BY e.wseq DESC LIMIT $3""",
            wallet_id, before, limit,
        )  # fmt: skip
        return [HistoryLine(**row) for row in rows]
