"""What only the dashboard asks Postgres: names for ids, balances that run out, choices for filters, what a request took."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lava_proxy.stores.database import Database

AT_RISK_DAYS = 3
PACE_DAYS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRisk:
    """A customer whose balance ends within AT_RISK_DAYS at the pace of the last PACE_DAYS, or has ended."""

    connection_id: str
    name: str
    balance_nanos: int
    debt_nanos: int
    spent_nanos: int  # in PACE_DAYS

    @property
    def hours_left(self) -> int:
        """Whole hours at that pace; 0 when nothing is left."""
        return max(0, self.balance_nanos) * PACE_DAYS * 24 // max(self.spent_nanos, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a merchant has come: `customer_id` is the newest customer, `funded_id` the newest who was given something to spend;
    `has_call`: a customer has made a call that did not fail, so that nothing else was looked up.
    """

    has_call: bool
    provider_keys: tuple[str, ...] = ()
    has_meter: bool = False
    customer_id: str | None = None
    funded_id: str | None = None


class DashboardStore(Database):
    """Reads only. Raises StoreError when Postgres cannot answer."""

    async def has_merchant(self) -> bool:
        """Has anybody begun here?"""
        row = await self._row("SELECT EXISTS (SELECT 1 FROM merchant) AS found")
        return row is not None and bool(row["found"])

    async def progress(self, merchant_id: str) -> Progress:
        """A merchant's first steps. Most are past them, and that is seen first, in the sums by the day."""
        called = await self._row(
            "SELECT 1 FROM usage_by_customer_day WHERE merchant_id = $1 AND connection_id <> '' AND requests > errors LIMIT 1",
            merchant_id,
        )
        if called is not None:
            return Progress(has_call=True)
        row = await self._row(
            """SELECT
              (SELECT array_agg(provider ORDER BY provider) FROM provider_key WHERE merchant_id = $1) AS providers,
              EXISTS (SELECT 1 FROM meter WHERE merchant_id = $1 AND archived_at IS NULL) AS has_meter,
              (SELECT connection_id FROM connection WHERE merchant_id = $1 AND status <> 'deleted'
                ORDER BY connection_id DESC LIMIT 1) AS customer_id,
              (SELECT c.connection_id FROM connection c WHERE c.merchant_id = $1 AND c.status <> 'deleted'
                AND EXISTS (SELECT 1 FROM credit WHERE credit.wallet_id = c.wallet_id AND credit.amount_nanos > 0)
                ORDER BY c.connection_id DESC LIMIT 1) AS funded_id""",
            merchant_id,
        )
        found = row or {}
        return Progress(
            has_call=False,
            provider_keys=tuple(found.get("providers") or ()),
            has_meter=bool(found.get("has_meter")),
            customer_id=found.get("customer_id"),
            funded_id=found.get("funded_id"),
        )

    async def customer_names(self, merchant_id: str, connection_ids: Collection[str]) -> dict[str, str]:
        """Connection id -> the name people know: reference id, e-mail, phone, else the id; deleted ones too."""
        rows = await self._rows(
            "SELECT connection_id, reference_id, contact FROM connection"
            " WHERE merchant_id = $1 AND connection_id = ANY($2::text[])",
            merchant_id, list(set(connection_ids)),
        )  # fmt: skip
        return {row["connection_id"]: name_of(row) for row in rows}

    async def meter_names(self, merchant_id: str) -> list[tuple[str, str]]:
        """(meter id, name) of all meters, the archived too, newest first."""
        rows = await self._rows(
            "SELECT m.meter_id, v.name FROM meter m JOIN LATERAL (SELECT name FROM meter_version WHERE meter_id = m.meter_id"
            " ORDER BY version_id DESC LIMIT 1) v ON true WHERE m.merchant_id = $1 ORDER BY m.meter_id DESC LIMIT 500",
            merchant_id,
        )
        return [(row["meter_id"], row["name"]) for row in rows]

    async def models(self, merchant_id: str, since: datetime) -> list[tuple[str, str]]:
        """(provider, model) of calls since then, in alphabetical order."""
        rows = await self._rows(
            "SELECT DISTINCT provider, model FROM usage_by_model_day WHERE merchant_id = $1 AND bucket >= $2"
            " ORDER BY provider, model LIMIT 500",
            merchant_id, since,
        )  # fmt: skip
        return [(row["provider"], row["model"]) for row in rows]

    async def at_risk(self, merchant_id: str, since: datetime, limit: int) -> list[AtRisk]:
        """Those that end first, of the customers who spent since `since`, PACE_DAYS ago; balances as of the last flush."""
        rows = await self._rows(
            f"""WITH spent AS (
              SELECT connection_id, sum(charge_nanos)::numeric AS nanos FROM usage_by_customer_day
              WHERE merchant_id = $1 AND bucket >= $2 GROUP BY connection_id HAVING sum(charge_nanos) > 0)
            SELECT c.connection_id, c.reference_id, c.contact, s.balance_nanos, s.debt_nanos, spent.nanos::text AS spent
            FROM spent JOIN connection c USING (connection_id) JOIN wallet_state s USING (wallet_id)
            WHERE c.merchant_id = $1 AND c.status <> 'deleted'
              AND (s.debt_nanos > 0 OR s.balance_nanos * {PACE_DAYS}::numeric < spent.nanos * {AT_RISK_DAYS})
            ORDER BY s.balance_nanos / spent.nanos, c.connection_id LIMIT $3""",
            merchant_id, since, limit,
        )  # fmt: skip
        return [
            AtRisk(
                connection_id=row["connection_id"],
                name=name_of(row),
                balance_nanos=row["balance_nanos"],
                debt_nanos=row["debt_nanos"],
                spent_nanos=int(row["spent"]),
            )
            for row in rows
        ]

    async def movement(self, wallet_id: str, wseq: int) -> dict[str, Any] | None:
        """The ledger entry of a request's row: what it took from which pot, and the balance after it."""
        return await self._row(
            "SELECT amount_nanos, balance_nanos, plan_nanos, funds_nanos, debt_nanos, flags, at FROM ledger_entry"
            " WHERE wallet_id = $1 AND wseq = $2",
            wallet_id, wseq,
        )  # fmt: skip


def name_of(row: Any) -> str:
    """What people call a customer; `row` has connection_id, reference_id and contact."""
    contact = row["contact"] or {}
    return str(row["reference_id"] or contact.get("email") or contact.get("phone") or row["connection_id"])
