"""On what terms a connection's calls by a meter are charged: the one place that calls and reports both ask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lava_proxy.domain.catalog import Grant

# Past midnight of a cycle's end its name stays until the renewal begins the next one: the money script ends the credit by itself.
_QUERY = """SELECT s.subscription_id || '.' || to_char(s.cycle_start_at AT TIME ZONE 'UTC', 'YYYYMMDD"T"HH24MISS') AS cycle_id,
  EXISTS (SELECT 1 FROM plan_meter pm WHERE pm.plan_id = s.plan_id AND pm.meter_id = $2) AS plan_linked,
  coalesce(l.overdraft_nanos, 0) AS overdraft_nanos, coalesce(l.policy = 'auto_top_up', false) AS tops_up
FROM connection c
  LEFT JOIN subscription s ON s.connection_id = c.connection_id AND s.status <> 'cancelled'
  LEFT JOIN overage_line l ON l.wallet_id = c.wallet_id
WHERE c.connection_id = $1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingTerms:
    """A grant's fields that follow from the connection's subscription and overage policy; see domain/catalog.py."""

    plan_linked: bool = False
    cycle_id: str | None = None
    overdraft_nanos: int = 0
    tops_up: bool = False

    def on(self, grant: Grant) -> Grant:
        """The grant on these terms."""
        return replace(
            grant, plan_linked=self.plan_linked, cycle_id=self.cycle_id, overdraft_nanos=self.overdraft_nanos, tops_up=self.tops_up
        )


async def billing_terms(fetch_row: Any, connection_id: str, meter_id: str | None) -> BillingTerms:
    """The terms now; `fetch_row(query, *args)` answers a row as a dict, or None. Without a meter nothing draws on a plan."""
    row = await fetch_row(_QUERY, connection_id, meter_id or "")
    return BillingTerms() if row is None else BillingTerms(**row)
